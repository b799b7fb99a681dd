// y = exp(x - max x) / sum exp(x - max x) and y = x - max x - log(sum exp(x - max x)) along one axis, and the gradients
// dx = y (dy - sum dy y) and dx = dy - exp(y) sum dy from the results y.
//
// Method    last axis: a row stays in cache for its passes (maximum, exponentials and their sum, scaling). Other axes:
//           a tile of columns is gathered into scratch, and its columns are the lanes. Strided rows pass through scratch.
//           x - max x is never rounded before the exponential (simd/exp_under.h).
// Numerics  row sums are joined in double, column sums in blocks of 256 rows; a row of -Inf or with +Inf or NaN is NaN (a NaN that the
//           maximum loses comes back in the sum).
// Threads   by rows or column tiles; each line is computed by itself, so bits never depend on the split.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/exp_under.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileElements = 1 << 16;  // of a tile of columns, so that it stays in L2
constexpr int64_t kTileBytes = 256;  // of its rows at least: memory is read in longer pieces than one line

// ---- kernels: row(y, in, n, e) on contiguous rows, tile(y, in, n, columns, scratch) on columns -----------------------------
// e holds powers until they are scaled: the row y itself, or scratch if y cannot hold them.

template <bool kLog>
struct Softmax {
    static constexpr int kInputs = 1;

    // The same in registers.
    template <class T>
    TW_INLINE void short_row(T* y, const T* x, int64_t n) {
        typedef Wide<T> W;
        const Vec<W> v = load_as_n<W>(x, n), top = splat<W>(Max::lanes(first_lanes<W>(v, Max::identity<W>(), n)));
        const Shift<W> shift = shift_to(top);
        const Vec<W> e = first_lanes<W>(exp_under(v, shift), Vec<W>{}, n);
        const Vec<W> total = splat<W>(reduce_add(e));
        if constexpr (kLog)
            put(y, 1, 0, n, v - top - (log(total) + log_lack(shift)));
        else
            put(y, 1, 0, n, e / total);
    }

    template <class T>
    TW_INLINE void row(T* y, const T* const* in, int64_t n, Wide<T>* e) {
        typedef Wide<T> W;
        const T* x = in[0];
        if (n <= kLanes<W>) return short_row(y, x, n);
        const Vec<W> top = splat<W>(Max::lanes(fold_row<NumberMax>(x, n)));
        const Shift<W> shift = shift_to(top);
        const double total = sum_over<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            const Vec<W> power = exp_under(take(x, 1, i, k), shift);
            if constexpr (!kLog) put(e, 1, i, k, power);
            return k == kLanes<W> ? power : first_lanes<W>(power, Vec<W>{}, k);
        });
        if constexpr (kLog) {
            const Vec<W> below =
                splat<W>(static_cast<W>(__builtin_log(total) + static_cast<double>(log_lack(shift)[0])));
            each_vector<T>(n, [&](int64_t i, int64_t k)
                                  __attribute__((always_inline)) { put(y, 1, i, k, take(x, 1, i, k) - top - below); });
        } else {
            const Vec<W> scale = splat<W>(static_cast<W>(1 / total));
            each_vector<T>(n, [&](int64_t i, int64_t k)
                                  __attribute__((always_inline)) { put(y, 1, i, k, take(e, 1, i, k) * scale); });
        }
    }

    template <class T>
    TW_INLINE void tile(const Side<T>& y, const Side<T>* in, int64_t n, int64_t columns, int64_t width,
                        Wide<T>* scratch) {
        typedef Wide<T> W;
        W *e = scratch, *top = scratch + n * width, *sum = top + width;
        copy_tile_and_top(e, top, in[0], n, columns, width);
        sum_rows(sum, n, width, [&](int64_t j) __attribute__((always_inline)) {
            return [=, shift = shift_to(load(top + j))](int64_t r) __attribute__((always_inline)) {
                W* at = e + r * width + j;
                const Vec<W> power = exp_under(load(at), shift);
                if constexpr (!kLog) store(at, power);
                return power;
            };
        });
        for (int64_t j = 0; j < width; j += kLanes<W>) {
            if constexpr (kLog)
                store(sum + j, log(load(sum + j)) + log_lack(shift_to(load(top + j))));
            else
                store(sum + j, 1 / load(sum + j));
        }
        put_rows(y, n, columns, [&](int64_t r, int64_t j) __attribute__((always_inline)) {
            const Vec<W> v = load(e + r * width + j), s = load(sum + j);
            if constexpr (kLog)
                return v - load(top + j) - s;
            else
                return v * s;
        });
    }
};

template <bool kLog>
struct SoftmaxDx {
    static constexpr int kInputs = 2;

    template <class V>
    TW_INLINE V term(V dy, V y) {
        if constexpr (kLog)
            return dy;
        else
            return dy * y;
    }
    template <class V>
    TW_INLINE V gradient(V dy, V y, V sum) {
        if constexpr (kLog)
            return dy - exp(y) * sum;
        else
            return y * (dy - sum);
    }

    template <class T>
    TW_INLINE void row(T* dx, const T* const* in, int64_t n, Wide<T>*) {
        typedef Wide<T> W;
        const T *dy = in[0], *y = in[1];
        const double total = sum_over<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            return term<Vec<W>>(take(dy, 1, i, k), take(y, 1, i, k));
        });
        const Vec<W> sum = splat<W>(static_cast<W>(total));
        each_vector<T>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            put(dx, 1, i, k, gradient<Vec<W>>(take(dy, 1, i, k), take(y, 1, i, k), sum));
        });
    }

    template <class T>
    TW_INLINE void tile(const Side<T>& dx, const Side<T>* in, int64_t n, int64_t columns, int64_t width,
                        Wide<T>* scratch) {
        typedef Wide<T> W;
        W *dy = scratch, *y = dy + n * width, *sum = y + n * width;
        copy_tile(dy, in[0], n, columns, width);
        copy_tile(y, in[1], n, columns, width);
        sum_rows(sum, n, width, [&](int64_t j) __attribute__((always_inline)) {
            return [=](int64_t r) __attribute__((always_inline)) {
                return term<Vec<W>>(load(dy + r * width + j), load(y + r * width + j));
            };
        });
        put_rows(dx, n, columns, [&](int64_t r, int64_t j) __attribute__((always_inline)) {
            return gradient<Vec<W>>(load(dy + r * width + j), load(y + r * width + j), load(sum + j));
        });
    }
};

// ---- walking the lines ------------------------------------------------------------------------------------------------------

struct Lines {
    Walk walk;  // over everything but the axis; the result first
    int64_t n;  // length of a line
    int64_t along[kMaxWalked];  // strides along the axis
};

template <class Kernel, class T>
bool run_rows(const Lines& lines) {
    typedef Wide<T> W;
    constexpr int sides = Kernel::kInputs + 1;
    const int64_t n = lines.n;
    bool strided = false, enough = true;
    for (int k = 0; k < sides; ++k) strided |= lines.along[k] != 1 && n > 1;
    note_kernel(strided ? "strided rows" : "rows");
    const int64_t wide = kIsNarrow<T> ? n : 0, gathered = strided ? sides * n : 0;
    const size_t room = static_cast<size_t>(wide) * sizeof(W) + static_cast<size_t>(gathered) * sizeof(T);
    for_each_row(lines.walk, max_of(1, kChunkElements / n), [&](char* const* at, int64_t count) {
        Scratch scratch(room);
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        T* const buffer = reinterpret_cast<T*>(scratch.as<W>() + wide);
        for (int64_t i = 0; i < count; ++i) {
            T* line[sides];
            for (int k = 0; k < sides; ++k) {
                line[k] = reinterpret_cast<T*>(at[k]) + i * lines.walk.stride[k];
                if (strided && k > 0) {
                    copy_row(buffer + k * n, 1, line[k], lines.along[k], n);
                    line[k] = buffer + k * n;
                }
            }
            const T* in[2] = {line[1], line[sides - 1]};
            T* const y = strided ? buffer : line[0];
            Kernel::template row<T>(y, in, n, kIsNarrow<T> ? scratch.as<W>() : reinterpret_cast<W*>(y));
            if (strided) copy_row(line[0], lines.along[0], buffer, 1, n);
        }
    });
    return enough;
}

template <class Kernel, class T>
bool run_columns(const Lines& lines) {
    typedef Wide<T> W;
    constexpr int64_t lanes = kLanes<W>;
    const int64_t n = lines.n;
    const int64_t fitting = min_of(512, kTileElements / Kernel::kInputs / n) / lanes * lanes;
    const int64_t widest = max_of(fitting, kTileBytes / static_cast<int64_t>(sizeof(T)));
    bool enough = true;
    note_kernel("columns");
    for_each_row(lines.walk, widest, [&](char* const* at, int64_t count) {
        const int64_t width = ceil_div(count, lanes) * lanes;
        Scratch scratch(static_cast<size_t>((Kernel::kInputs * n + 2) * width) * sizeof(W));
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        Side<T> side[Kernel::kInputs + 1];
        for (int k = 0; k <= Kernel::kInputs; ++k)
            side[k] = {reinterpret_cast<T*>(at[k]), lines.along[k], lines.walk.stride[k]};
        Kernel::template tile<T>(side[0], side + 1, n, count, width, scratch.as<W>());
    });
    return enough;
}

template <class Kernel>
Status run(const Call& c) {
    const View& y = c.out[0];
    const int axis = static_cast<int>(c.attr[0].i);
    if (numel(y) == 0) return Status::ok;
    View flat[kMaxWalked];
    const View* views[kMaxWalked];
    Lines lines;
    for (int k = 0; k <= Kernel::kInputs; ++k) {
        const View& v = k == 0 ? y : c.in[k - 1];
        flat[k] = without_axis(v, axis);
        views[k] = &flat[k];
        lines.along[k] = v.stride[axis];
    }
    lines.walk = walk_over(views, Kernel::kInputs + 1, flat[0].ndim, flat[0].shape);
    lines.n = y.shape[axis];
    int64_t inner = 1;
    for (int d = axis + 1; d < y.ndim; ++d) inner *= y.shape[d];
    const bool enough = for_floating(
        y.dtype, [&]<class T>() { return inner == 1 ? run_rows<Kernel, T>(lines) : run_columns<Kernel, T>(lines); });
    return enough ? Status::ok
                  : fail(Status::memory, "", "no memory for a line of %lld elements; want a smaller axis",
                         static_cast<long long>(lines.n));
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status infer_any(Call& c, Inferred& r) {
    const View& first = c.in[0];
    const char* name = c.op->operands[0].name;
    TW_TRY(want_floating(first, name));
    for (int k = 1; k < c.n_in; ++k) {
        TW_TRY(want_dtype_of(c.in[k], c.op->operands[k].name, first, name));
        TW_TRY(want_shape_of(c.in[k], c.op->operands[k].name, first, name));
    }
    if (first.ndim == 0) return fail(Status::shape, name, "%s has shape (); want at least one dimension", name);
    TW_TRY(resolve_axis(c.attr[0], "axis", first.ndim));
    r.n_out = 1;
    r.out[0] = result(first.dtype, first.ndim, first.shape);
    r.flops = 12.0 * static_cast<double>(numel(first));
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kDyY[] = {{"dy"}, {"y"}};
constexpr AttrSpec kAxis[] = {{.name = "axis", .kind = AttrKind::integer, .i = -1}};

}  // namespace

const OpDef op_softmax = {"softmax", kX, 1, kAxis, 1, infer_any, run<Softmax<false>>};
const OpDef op_log_softmax = {"log_softmax", kX, 1, kAxis, 1, infer_any, run<Softmax<true>>};
const OpDef op_softmax_dx = {"softmax_dx", kDyY, 2, kAxis, 1, infer_any, run<SoftmaxDx<false>>};
const OpDef op_log_softmax_dx = {"log_softmax_dx", kDyY, 2, kAxis, 1, infer_any, run<SoftmaxDx<true>>};

}  // namespace tw::TW_ISA
