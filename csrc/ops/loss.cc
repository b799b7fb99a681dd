// Cross entropy of softmax(logits) with class labels l and class weights w, label smoothing s over C classes:
//   loss = -(1 - s) w[l] log p[l] - s / C sum_c w[c] log p[c],    p = softmax(logits)
//   dx[c] = g (A p[c] - s / C w[c] - (c == l) (1 - s) w[l]),      A = (1 - s) w[l] + s / C sum_c w[c]
// "mean" divides the sum of the losses by the sum of w[l]; labels equal to ignore_index count nothing.
//
// Method    labels are checked and copied first, so that nothing is written if one is wrong; then logits (N, C) row by
//           row in cache, and (N, C, spatial) in gathered tiles whose lanes are positions.
// Numerics  sums over rows are joined in double, over columns in blocks of 256; the sum of losses in double.
// Threads   by rows or column tiles; the losses are summed on the calling thread in their order.
// Smoothing: Szegedy et al., "Rethinking the Inception architecture", 2016.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/exp_under.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileElements = 1 << 16;
constexpr int64_t kTileBytes = 256;
constexpr int64_t kIgnored = -1;

enum Attribute { kReduction, kSmoothing, kIgnoreIndex };
enum Reduction { kNone, kSum, kMean };

// What one call works on. Labels are a checked copy, kIgnored where they count nothing.
template <class T>
struct Problem {
    const T* weight;  // C of them, null where all are 1 and no sum over classes is needed
    double weight_sum, smooth;
    int64_t classes;
    bool by_rows, enough;

    double at_label(int64_t label) const { return (1 - smooth) * (weight ? static_cast<double>(weight[label]) : 1.0); }
    double each() const { return smooth / static_cast<double>(classes); }
    // What smoothing adds to the weight of a position; without it no weight but the label's counts, NaN or not.
    double all() const { return smooth > 0 ? each() * weight_sum : 0; }
};

// ---- labels -------------------------------------------------------------------------------------------------------------

void note_first(int64_t* first, int64_t index) {
    int64_t known = __atomic_load_n(first, __ATOMIC_RELAXED);
    while (index < known &&
           !__atomic_compare_exchange_n(first, &known, index, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
}

// copy[i] = label i or kIgnored. An IndexError names the first label that is neither ignored nor a class.
template <class Label>
Status check_labels(const View& labels, int64_t* copy, int64_t classes, int64_t ignore) {
    constexpr int64_t none = INT64_MAX;
    View checked = result(DType::i64, labels.ndim, labels.shape);
    set_contiguous(checked);
    checked.data = copy;
    const View* views[] = {&checked, &labels};
    const Walk w = walk_over(views, 2, labels.ndim, labels.shape);
    int64_t bad = none;
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        int64_t* to = reinterpret_cast<int64_t*>(at[0]);
        const Label* from = reinterpret_cast<const Label*>(at[1]);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t label = from[i * w.stride[1]];
            const bool ignored = label == ignore, outside = label < 0 || label >= classes;
            to[i * w.stride[0]] = ignored ? kIgnored : label;
            if (outside && !ignored) note_first(&bad, to + i * w.stride[0] - copy);
        }
    });
    if (bad == none) return Status::ok;
    return fail(Status::index, "labels", "labels has %lld at position %lld; want 0 to %lld, or ignore_index=%lld",
                static_cast<long long>(copy[bad]), static_cast<long long>(bad), static_cast<long long>(classes - 1),
                static_cast<long long>(ignore));
}

template <class T>
double weight_of_labels(const Problem<T>& p, const int64_t* labels, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i)
        if (labels[i] != kIgnored) sum += p.weight ? static_cast<double>(p.weight[labels[i]]) : 1.0;
    return sum;
}

// ---- one position, logits along a contiguous row ------------------------------------------------------------------------

template <class T>
TW_INLINE Vec<T> weights(const Problem<T>& p, int64_t i, int64_t k) {
    return take(p.weight, 1, i, k);
}

template <class T>
double loss_of_row(const Problem<T>& p, const T* x, int64_t label) {
    const T largest = Max::lanes(fold_row<NumberMax>(x, p.classes));
    const Vec<T> top = splat<T>(largest);
    const Shift<T> shift = shift_to(top);
    const double total = sum_over<T>(p.classes, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        return first_lanes<T>(exp_under(take(x, 1, i, k), shift), Vec<T>{}, k);
    });
    const double below = log_of_sum(total, shift);
    const double hot = p.at_label(label);
    double loss = hot == 0 ? 0 : hot * (below - (static_cast<double>(x[label]) - static_cast<double>(largest)));
    if (p.smooth > 0) {
        const Vec<T> under = splat<T>(static_cast<T>(below));
        loss += p.each() * sum_over<T>(p.classes, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            const Vec<T> w = weights(p, i, k);
            return select(w != 0, w * (under - (take(x, 1, i, k) - top)), Vec<T>{});
        });
    }
    return loss;
}

template <class T>
void gradient_of_row(const Problem<T>& p, T* dx, const T* x, int64_t label, double g) {
    const Shift<T> shift = shift_to(splat<T>(Max::lanes(fold_row<NumberMax>(x, p.classes))));
    const double total = sum_over<T>(p.classes, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        const Vec<T> e = exp_under(take(x, 1, i, k), shift);
        put(dx, 1, i, k, e);
        return first_lanes<T>(e, Vec<T>{}, k);
    });
    const double hot = p.at_label(label);
    const Vec<T> scale = splat<T>(static_cast<T>(g * (hot + p.all()) / total));
    const Vec<T> even = splat<T>(static_cast<T>(g * p.each()));
    for (int64_t i = 0; i < p.classes; i += kLanes<T>) {
        const int64_t k = min_of(p.classes - i, kLanes<T>);
        const Vec<T> v = take<T>(dx, 1, i, k) * scale;
        put<T>(dx, 1, i, k, p.smooth > 0 ? v - even * weights(p, i, k) : v);
    }
    dx[label] -= static_cast<T>(g * hot);
}

// ---- a tile of positions ----------------------------------------------------------------------------------------------------

// Gathers logits into e, then its columns' maxima and the sums of exp_under; keeps the powers in e if asked to.
template <bool kKeep, class T>
void tile_sums(const Side<T>& x, int64_t n, int64_t columns, int64_t width, T* e, T* top, T* sum) {
    copy_tile_and_top(e, top, x, n, columns, width);
    sum_rows(sum, n, width, [&](int64_t j) __attribute__((always_inline)) {
        return [=, shift = shift_to(load(top + j))](int64_t r) __attribute__((always_inline)) {
            const Vec<T> power = exp_under(load(e + r * width + j), shift);
            if constexpr (kKeep) store(e + r * width + j, power);
            return power;
        };
    });
}

template <class T>
void loss_of_tile(const Problem<T>& p, const Side<T>& x, const int64_t* labels, T* loss, int64_t loss_stride,
                  int64_t columns, int64_t width, T* scratch) {
    const int64_t n = p.classes;
    T *e = scratch, *top = e + n * width, *sum = top + width, *below = sum + width;
    tile_sums<false>(x, n, columns, width, e, top, sum);
    for (int64_t j = 0; j < width; j += kLanes<T>) store(below + j, log_of_sum(load(sum + j), shift_to(load(top + j))));
    if (p.smooth > 0)
        sum_rows(sum, n, width, [&](int64_t j) __attribute__((always_inline)) {
            return [=](int64_t r) __attribute__((always_inline)) {
                const Vec<T> w = splat<T>(p.weight[r]);
                return select(w != 0, w * (load(below + j) - (load(e + r * width + j) - load(top + j))), Vec<T>{});
            };
        });
    for (int64_t j = 0; j < columns; ++j) {
        const int64_t label = labels[j];
        if (label == kIgnored) {
            loss[j * loss_stride] = 0;
            continue;
        }
        const double hot = p.at_label(label), under = static_cast<double>(below[j]);
        double v =
            hot == 0 ? 0 : hot * (under - (static_cast<double>(e[label * width + j]) - static_cast<double>(top[j])));
        if (p.smooth > 0) v += p.each() * static_cast<double>(sum[j]);
        loss[j * loss_stride] = static_cast<T>(v);
    }
}

template <class T>
void gradient_of_tile(const Problem<T>& p, const Side<T>& dx, const Side<T>& x, const int64_t* labels, const T* dy,
                      int64_t dy_stride, double factor, int64_t columns, int64_t width, T* scratch) {
    const int64_t n = p.classes;
    T *e = scratch, *scale = e + n * width, *shift = scale + width, *counted = shift + width;
    tile_sums<true>(x, n, columns, width, e, shift, scale);
    for (int64_t j = 0; j < width; ++j) {
        const int64_t label = j < columns ? labels[j] : kIgnored;
        const double g = j < columns ? factor * static_cast<double>(dy[j * dy_stride]) : 0;
        counted[j] = label == kIgnored ? 0 : 1;
        scale[j] =
            label == kIgnored ? 0 : static_cast<T>(g * (p.at_label(label) + p.all()) / static_cast<double>(scale[j]));
        shift[j] = static_cast<T>(g * p.each());
    }
    put_rows(dx, n, columns, [&](int64_t r, int64_t j) __attribute__((always_inline)) {
        Vec<T> v = load(e + r * width + j) * load(scale + j);
        if (p.smooth > 0) v -= load(shift + j) * p.weight[r];
        return select(load(counted + j) != 0, v, Vec<T>{});
    });
    for (int64_t j = 0; j < columns; ++j)
        if (labels[j] != kIgnored)
            dx.data[labels[j] * dx.along + j * dx.across] -=
                static_cast<T>(factor * static_cast<double>(dy[j * dy_stride]) * p.at_label(labels[j]));
}

// ---- walking the positions --------------------------------------------------------------------------------------------------

template <class T>
int64_t tile_width(const Problem<T>& p) {
    return max_of(min_of(512, kTileElements / p.classes) / kLanes<T> * kLanes<T>,
                  kTileBytes / static_cast<int64_t>(sizeof(T)));
}

template <class T>
void each_loss(Problem<T>& p, const View& logits, const View& labels, const View& loss) {
    const View flat = without_axis(logits, 1);
    const View* views[] = {&loss, &flat, &labels};
    const Walk w = walk_over(views, 3, flat.ndim, flat.shape);
    const int64_t n = p.classes, along = logits.stride[1], s_loss = w.stride[0], s_x = w.stride[1];
    const bool gathered = p.by_rows && along != 1;
    for_each_row(w, p.by_rows ? max_of(1, kChunkElements / n) : tile_width(p), [&](char* const* at, int64_t count) {
        const int64_t width = ceil_div(count, kLanes<T>) * kLanes<T>;
        const int64_t room = p.by_rows ? (gathered ? n : 0) : (n + 3) * width;
        Scratch scratch(static_cast<size_t>(room) * sizeof(T));
        T* const buffer = scratch.as<T>();
        if (!buffer) return __atomic_store_n(&p.enough, false, __ATOMIC_RELAXED);
        T *out = reinterpret_cast<T*>(at[0]), *x = reinterpret_cast<T*>(at[1]);
        const int64_t* label = reinterpret_cast<const int64_t*>(at[2]);
        if (!p.by_rows) return loss_of_tile(p, Side<T>{x, along, s_x}, label, out, s_loss, count, width, buffer);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t l = label[i * w.stride[2]];
            if (gathered && l != kIgnored) copy_row(buffer, 1, x + i * s_x, along, n);
            out[i * s_loss] = l == kIgnored ? 0 : static_cast<T>(loss_of_row<T>(p, gathered ? buffer : x + i * s_x, l));
        }
    });
}

template <class T>
void each_gradient(Problem<T>& p, const View& dx, const View& logits, const View& labels, const View& dy,
                   double factor) {
    const View flat_dx = without_axis(dx, 1), flat = without_axis(logits, 1);
    const View* views[] = {&flat_dx, &flat, &labels, &dy};
    const Walk w = walk_over(views, 4, flat.ndim, flat.shape);
    const int64_t n = p.classes, along_x = logits.stride[1], along_dx = dx.stride[1];
    const bool gathered = p.by_rows && (along_x != 1 || along_dx != 1);
    for_each_row(w, p.by_rows ? max_of(1, kChunkElements / n) : tile_width(p), [&](char* const* at, int64_t count) {
        const int64_t width = ceil_div(count, kLanes<T>) * kLanes<T>;
        const int64_t room = p.by_rows ? (gathered ? 2 * n : 0) : (n + 3) * width;
        Scratch scratch(static_cast<size_t>(room) * sizeof(T));
        T* const buffer = scratch.as<T>();
        if (!buffer) return __atomic_store_n(&p.enough, false, __ATOMIC_RELAXED);
        T *out = reinterpret_cast<T*>(at[0]), *x = reinterpret_cast<T*>(at[1]);
        const int64_t* label = reinterpret_cast<const int64_t*>(at[2]);
        const T* g = reinterpret_cast<const T*>(at[3]);
        if (!p.by_rows)
            return gradient_of_tile(p, Side<T>{out, along_dx, w.stride[0]}, Side<T>{x, along_x, w.stride[1]}, label, g,
                                    w.stride[3], factor, count, width, buffer);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t l = label[i * w.stride[2]];
            T* const to = out + i * w.stride[0];
            if (l == kIgnored) {
                for (int64_t k = 0; k < n; ++k) to[k * along_dx] = 0;
                continue;
            }
            if (gathered) copy_row(buffer + n, 1, x + i * w.stride[1], along_x, n);
            gradient_of_row<T>(p, gathered ? buffer : to, gathered ? buffer + n : x + i * w.stride[1], l,
                               factor * static_cast<double>(g[i * w.stride[3]]));
            if (gathered) copy_row(to, along_dx, buffer, 1, n);
        }
    });
}

Status no_memory() { return fail(Status::memory, "", "no memory for scratch of the loss; want smaller logits"); }

// Runs body(problem, labels, loss scratch) once labels are checked and copied.
template <class T, class Body>
Status prepare(const Call& c, const View* in, const Body& body) {
    const View &logits = in[0], &labels = in[1], &weight = in[2];
    Problem<T> p{};
    p.classes = logits.shape[1];
    p.smooth = c.attr[kSmoothing].f;
    p.enough = true;
    p.by_rows = true;
    for (int d = 2; d < logits.ndim; ++d) p.by_rows &= logits.shape[d] == 1;
    const int64_t n = numel(labels);
    const bool weighted = given(weight) || p.smooth > 0;
    Scratch copy(static_cast<size_t>(n) * sizeof(int64_t)), losses(static_cast<size_t>(n) * sizeof(T)),
        classes(weighted ? static_cast<size_t>(p.classes) * sizeof(T) : 0);
    if (!copy.as<T>() || !losses.as<T>() || !classes.as<T>()) return no_memory();
    View checked = result(DType::i64, labels.ndim, labels.shape);
    set_contiguous(checked);
    checked.data = copy.as<void>();
    const int64_t ignore = c.attr[kIgnoreIndex].i;
    TW_TRY(labels.dtype == DType::i32 ? check_labels<int32_t>(labels, copy.as<int64_t>(), p.classes, ignore)
                                      : check_labels<int64_t>(labels, copy.as<int64_t>(), p.classes, ignore));
    p.weight_sum = static_cast<double>(p.classes);
    if (weighted) {
        const T one = 1;
        copy_row(classes.as<T>(), 1, given(weight) ? weight.as<const T>() : &one, given(weight) ? weight.stride[0] : 0,
                 p.classes);
        p.weight = classes.as<T>();
        p.weight_sum = sum_over<T>(
            p.classes, [&](int64_t i, int64_t k) __attribute__((always_inline)) { return weights(p, i, k); });
    }
    note_kernel(p.by_rows ? "rows" : "columns");
    body(p, checked, losses.as<T>());
    return p.enough ? Status::ok : no_memory();
}

template <class T>
Status loss(const Call& c) {
    return prepare<T>(c, c.in, [&](Problem<T>& p, const View& labels, T* scratch) {
        const bool each = c.attr[kReduction].choice == kNone;
        View losses = result(c.in[0].dtype, labels.ndim, labels.shape);
        set_contiguous(losses);
        losses.data = scratch;
        each_loss(p, c.in[0], labels, each ? c.out[0] : losses);
        if (each || !p.enough) return;
        const int64_t n = numel(labels);
        double sum = sum_over<T>(
            n, [&](int64_t i, int64_t k) __attribute__((always_inline)) { return take<T>(scratch, 1, i, k); });
        if (c.attr[kReduction].choice == kMean) sum /= weight_of_labels(p, labels.as<const int64_t>(), n);
        *c.out[0].as<T>() = static_cast<T>(sum);
    });
}

template <class T>
Status gradient(const Call& c) {
    return prepare<T>(c, c.in + 1, [&](Problem<T>& p, const View& labels, T*) {
        const bool mean = c.attr[kReduction].choice == kMean;
        const double factor = mean ? 1 / weight_of_labels(p, labels.as<const int64_t>(), numel(labels)) : 1;
        each_gradient(p, c.out[0], c.in[1], labels, c.in[0], factor);
    });
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status infer_problem(const Call& c, const View* in, View& loss) {
    const View &logits = in[0], &labels = in[1], &weight = in[2];
    TW_TRY(want_real(logits, "logits"));
    if (logits.ndim < 2 || logits.shape[1] == 0)
        return fail(Status::shape, "logits", "logits has shape %s; want (N, C, ...) with at least one class",
                    shape_text(logits).text);
    if (labels.dtype != DType::i32 && labels.dtype != DType::i64)
        return fail(Status::dtype, "labels", "labels has dtype %s; want int32 or int64", name_of(labels.dtype));
    const View positions = without_axis(logits, 1);
    TW_TRY(want_shape(labels, "labels", positions.ndim, positions.shape));
    if (given(weight)) {
        TW_TRY(want_dtype_of(weight, "weight", logits, "logits"));
        TW_TRY(want_shape(weight, "weight", 1, logits.shape + 1));
    }
    const double smooth = c.attr[kSmoothing].f;
    if (!(smooth >= 0 && smooth <= 1))
        return fail(Status::attr, "label_smoothing", "label_smoothing=%g; want 0 to 1", smooth);
    loss = result(logits.dtype, c.attr[kReduction].choice == kNone ? positions.ndim : 0, positions.shape);
    return Status::ok;
}

Status infer_loss(Call& c, Inferred& r) {
    r.n_out = 1;
    r.flops = 12.0 * static_cast<double>(numel(c.in[0]));
    return infer_problem(c, c.in, r.out[0]);
}

Status infer_gradient(Call& c, Inferred& r) {
    View loss;
    TW_TRY(infer_problem(c, c.in + 1, loss));
    TW_TRY(want_dtype_of(c.in[0], "dy", c.in[1], "logits"));
    TW_TRY(want_shape(c.in[0], "dy", loss.ndim, loss.shape));
    r.n_out = 1;
    r.out[0] = result(c.in[1].dtype, c.in[1].ndim, c.in[1].shape);
    r.flops = 12.0 * static_cast<double>(numel(c.in[1]));
    return Status::ok;
}

Status run_loss(const Call& c) { return c.in[0].dtype == DType::f32 ? loss<float>(c) : loss<double>(c); }
Status run_gradient(const Call& c) { return c.in[1].dtype == DType::f32 ? gradient<float>(c) : gradient<double>(c); }

constexpr Operand kOperands[] = {{"logits"}, {"labels"}, {"weight", Role::optional}};
constexpr Operand kGradientOperands[] = {{"dy"}, {"logits"}, {"labels"}, {"weight", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "reduction", .kind = AttrKind::choice, .choices = "none|sum|mean", .i = kMean},
    {.name = "label_smoothing", .kind = AttrKind::real},
    {.name = "ignore_index", .kind = AttrKind::integer, .i = -100},
};

}  // namespace

extern const Entry op_softmax_cross_entropy = {"softmax_cross_entropy", kOperands,  3,       kAttrs,
                                               TW_COUNT(kAttrs),        infer_loss, run_loss};
extern const Entry op_softmax_cross_entropy_dx = {"softmax_cross_entropy_dx", kGradientOperands, 4,           kAttrs,
                                                  TW_COUNT(kAttrs),           infer_gradient,    run_gradient};

}  // namespace tw::TW_ISA
