// Normalisation of x (N, C, *spatial) per channel over samples and space:
//   batch_norm     y = (x - m) r w[c] + b[c],  r = 1 / sqrt(v + eps);  training: m and v are those of the batch, and
//                  mean = (1 - momentum) mean + momentum m,  var = (1 - momentum) var + momentum v n / (n - 1)
//                  otherwise m = mean, v = var;  activation: y = max(y, 0)
//   batch_norm_dx  training: dx = r (g - mean(g) - u mean(g u)),  g = dy w[c],  u = (x - m) r;  otherwise dx = r g
//                  dw[c] = sum dy u,  db[c] = sum dy;  with y, what came out behind a relu: dy = 0 where y is
//
// Method    a channel is read for its moments and again, from cache where it fits, for the result. Short or scattered runs
//           are gathered to whole channels first, several at a time.
// Numerics  moments.h, by runs; sums of runs are joined in double, in order.
// Threads   by channels.
// Source    Ioffe and Szegedy, "Batch normalization", 2015.
#include "core/check.h"
#include "ops/ops.h"
#include "simd/lines.h"
#include "simd/moments.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kShortRun = 32;  // runs below this are joined into one; by shape, so that bits know no strides

Status no_memory() { return fail(Status::memory, "", "no memory for a channel of x; want fewer elements in it"); }

template <class T>
TW_INLINE double number_at(const View& v, int64_t i, double absent) {
    return given(v) ? static_cast<double>(widened(v.as<const T>()[i * v.stride[0]])) : absent;
}
template <class T>
TW_INLINE T& at(const View& v, int64_t i) {
    return v.as<T>()[i * v.stride[0]];
}

Attr all_but_channels(int ndim) {
    Attr a{};
    for (int d = 0; d < ndim; ++d)
        if (d != 1) a.list[a.n++] = d;
    return a;
}

int64_t space_of(const View& x) {
    int64_t n = 1;
    for (int d = 2; d < x.ndim; ++d) n *= x.shape[d];
    return n;
}

// A channel as runs: one per sample, or one of all where those are short.
template <class T>
struct Channels {
    Lines<T> lines;
    int64_t parts, size, pitch;
    bool in_place;
};

template <class T>
Channels<T> channels_of(const View& x) {
    Channels<T> c;
    c.lines = lines_of<T>(x, all_but_channels(x.ndim));
    const int64_t space = space_of(x);
    const bool joined = space < kShortRun;
    c.parts = joined ? 1 : x.shape[0];
    c.size = joined ? c.lines.n : space;
    bool row = true;
    int64_t step = 1;
    for (int d = x.ndim - 1; d >= 2; --d) {
        row &= x.shape[d] == 1 || x.stride[d] == step;
        step *= x.shape[d];
    }
    c.in_place = joined ? lie_as_rows(c.lines) : row;
    c.pitch = joined ? 0 : x.stride[0];
    return c;
}

// Channel i: where it lies, or in the k-th line of the buffer.
template <class T>
TW_INLINE Segments<T> channel(const Channels<T>& c, int64_t i, int64_t k, T* buffer) {
    if (c.in_place) return {c.lines.data + offset_of(c.lines.kept, i), c.parts, c.pitch, c.size};
    return {buffer + k * c.lines.n, c.parts, c.size, c.size};
}

// Runs body(first, rows, buffer of `arrays` blocks of lines) over channels in parallel.
template <class T, class Body>
bool each_block(int64_t count, int64_t n, bool in_place, int arrays, const Body& body) {
    const int64_t per_task = in_place ? max_of(1, kChunkElements / max_of(1, n)) : lines_per_block(n);
    bool enough = true;
    note_kernel(in_place ? "channels" : "gathered channels");
    parallel(ceil_div(count, per_task), [&](int64_t task) {
        Scratch scratch(in_place ? 0 : static_cast<size_t>(arrays * per_task * n) * sizeof(T));
        if (!scratch.as<T>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        body(task * per_task, min_of(per_task, count - task * per_task), scratch.as<T>(), per_task * n);
    });
    return enough;
}

struct Forward {
    const View *x, *weight, *bias, *mean, *var, *y, *saved_mean, *saved_rstd;  // the last two may be null
    bool training, relu;
    double momentum, eps;
};

template <class T>
Status forward(const Forward& f) {
    typedef Wide<T> W;
    const Channels<T> x = channels_of<T>(*f.x), y = channels_of<T>(*f.y);
    const bool in_place = x.in_place && y.in_place;
    const int64_t n = x.lines.n;
    const bool streams = in_place && numel(*f.y) * static_cast<int64_t>(sizeof(T)) >= streaming_bytes();
    const bool enough =
        each_block<T>(x.lines.count, n, in_place, 2, [&](int64_t first, int64_t rows, T* buffer, int64_t block) {
        if (!x.in_place && n)
            for (int64_t k = 0, m; k < rows; k += m) {
                m = min_of(rows - k, together_at(x.lines, first + k));
                rows_in(x.lines, first + k, m, buffer + k * n);
            }
        for (int64_t k = 0; k < rows; ++k) {
            const int64_t c = first + k;
            const Segments<T> from = channel(x, c, k, buffer), to = channel(y, c, k, buffer + block);
            double mean = f.training ? 0 : static_cast<double>(at<W>(*f.mean, c));
            double var = f.training ? 0 : static_cast<double>(at<W>(*f.var, c));
            if (f.training) {
                const Moments m = moments_of(from);
                mean = n ? m.mean : __builtin_nan("");
                var = m.square / m.n;
                const double keep = 1 - f.momentum;
                if (n && given(*f.mean))
                    at<W>(*f.mean, c) =
                        static_cast<W>(keep * static_cast<double>(at<W>(*f.mean, c)) + f.momentum * mean);
                if (n && given(*f.var))
                    at<W>(*f.var, c) = static_cast<W>(keep * static_cast<double>(at<W>(*f.var, c)) +
                                                      f.momentum * (m.square / (m.n - 1)));
            }
            const double r = inverse_root(var, f.eps), scale = r * number_at<T>(*f.weight, c, 1);
            const W middle = static_cast<W>(mean);
            const double off = mean - static_cast<double>(middle), rest = off == off ? off : 0;
            const W a = static_cast<W>(scale), b = static_cast<W>(number_at<T>(*f.bias, c, 0) - rest * scale);
            if (f.saved_mean) at<W>(*f.saved_mean, c) = middle;
            if (f.saved_rstd) at<W>(*f.saved_rstd, c) = static_cast<W>(r);
            for (int64_t p = 0; p < from.parts; ++p) {
                T* const out = to.at + p * to.pitch;
                const T* const in = from.at + p * from.pitch;
                const bool past = streams && may_stream(out);
                if (f.relu)
                    past ? scaled_row<true, true>(out, in, from.size, middle, a, b)
                         : scaled_row<false, true>(out, in, from.size, middle, a, b);
                else
                    past ? scaled_row<true>(out, in, from.size, middle, a, b)
                         : scaled_row<false>(out, in, from.size, middle, a, b);
            }
        }
        if (!y.in_place && n)
            for (int64_t k = 0, m; k < rows; k += m) {
                m = min_of(rows - k, together_at(y.lines, first + k));
                rows_back(y.lines, first + k, m, buffer + block + k * n);
            }
        if (streams) stream_fence();
    });
    return enough ? Status::ok : no_memory();
}

struct Backward {
    const View *dy, *x, *mean, *rstd, *weight, *y, *dx, *dw, *db;  // the last two may be null
    bool training;
};

// Of a channel's share of a sample in one of the two kinds.
template <bool kMasked, class T>
void gradient_share(const Backward& g, T* out, const T* dy, const T* x, const T* y, int64_t n, Wide<T> mean,
                    Wide<T> scale, Wide<T> slope, Wide<T> level, bool past) {
    typedef Wide<T> W;
    if (!g.training)
        each_vector<T>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            emit<false>(out, i, k, fma(counted<kMasked>(dy, y, i, k), splat<W>(scale), Vec<W>{}));
        });
    else if (past)
        gradient_segment<true, kMasked>(out, dy, x, n, mean, scale, slope, level, y);
    else
        gradient_segment<false, kMasked>(out, dy, x, n, mean, scale, slope, level, y);
}

template <class T>
Status backward(const Backward& g) {
    typedef Wide<T> W;
    const Channels<T> dy = channels_of<T>(*g.dy), x = channels_of<T>(*g.x), dx = channels_of<T>(*g.dx);
    const bool masked = given(*g.y);
    const Channels<T> y = masked ? channels_of<T>(*g.y) : dy;
    const bool in_place = dy.in_place && x.in_place && y.in_place && dx.in_place;
    const int64_t n = x.lines.n;
    const bool streams = in_place && numel(*g.dx) * static_cast<int64_t>(sizeof(T)) >= streaming_bytes();
    const bool sums = g.training || g.dw;
    const bool enough =
        each_block<T>(x.lines.count, n, in_place, 4, [&](int64_t first, int64_t rows, T* buffer, int64_t block) {
        const Channels<T>* sides[3] = {&dy, &x, &y};
        for (int s = 0; s < 2 + masked; ++s)
            for (int64_t k = 0, m; !sides[s]->in_place && n && k < rows; k += m) {
                m = min_of(rows - k, together_at(sides[s]->lines, first + k));
                rows_in(sides[s]->lines, first + k, m, buffer + s * block + k * n);
            }
        for (int64_t k = 0; k < rows; ++k) {
            const int64_t c = first + k;
            const Segments<T> d = channel(dy, c, k, buffer), v = channel(x, c, k, buffer + block),
                              shown = channel(y, c, k, buffer + 2 * block), to = channel(dx, c, k, buffer + 3 * block);
            const W m = at<const W>(*g.mean, c), r = at<const W>(*g.rstd, c);
            double all = 0, along = 0;
            for (int64_t p = 0; sums && p < d.parts; ++p) {
                double own = 0, own_along = 0;
                const T *dyp = d.at + p * d.pitch, *xp = v.at + p * v.pitch;
                if (masked)
                    gradient_sums<T, true>(dyp, xp, d.size, m, r, own, own_along, shown.at + p * shown.pitch);
                else
                    gradient_sums<T>(dyp, xp, d.size, m, r, own, own_along);
                all += own;
                along += own_along;
            }
            if (g.dw) at<T>(*g.dw, c) = narrowed<T>(static_cast<W>(along));
            if (g.db) at<T>(*g.db, c) = narrowed<T>(static_cast<W>(all));
            const double scale = static_cast<double>(r) * number_at<T>(*g.weight, c, 1);
            const double share = g.training ? scale / static_cast<double>(n) : 0;
            const W a = static_cast<W>(scale), level = g.training ? static_cast<W>(share * all) : 0,
                    slope = g.training ? static_cast<W>(share * along * static_cast<double>(r)) : 0;
            for (int64_t p = 0; p < d.parts; ++p) {
                T* const out = to.at + p * to.pitch;
                const T *dyp = d.at + p * d.pitch, *xp = v.at + p * v.pitch;
                const bool past = streams && may_stream(out);
                if (masked)
                    gradient_share<true>(g, out, dyp, xp, shown.at + p * shown.pitch, d.size, m, a, slope, level, past);
                else
                    gradient_share<false, T>(g, out, dyp, xp, nullptr, d.size, m, a, slope, level, past);
            }
        }
        for (int64_t k = 0, m; !dx.in_place && n && k < rows; k += m) {
            m = min_of(rows - k, together_at(dx.lines, first + k));
            rows_back(dx.lines, first + k, m, buffer + 3 * block + k * n);
        }
        if (streams) stream_fence();
    });
    return enough ? Status::ok : no_memory();
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status want_channels(const View& x) {
    TW_TRY(want_floating(x, "x"));
    if (x.ndim >= 2) return Status::ok;
    return fail(Status::shape, "x", "x has shape %s; want (N, C, *spatial)", shape_text(x).text);
}

Status want_parameter(const View& v, const char* name, const View& x) {
    if (!given(v)) return Status::ok;
    TW_TRY(want_dtype_of(v, name, x, "x"));
    return want_shape(v, name, 1, x.shape + 1);
}

View statistic_of(const View& x) { return result(x.dtype == DType::f64 ? DType::f64 : DType::f32, 1, x.shape + 1); }

Status want_statistic(const View& v, const char* name, const View& x) {
    const View want = statistic_of(x);
    if (v.dtype != want.dtype)
        return fail(Status::dtype, name, "%s has dtype %s; want %s, which statistics of %s are kept in", name,
                    name_of(v.dtype), name_of(want.dtype), name_of(x.dtype));
    return want_shape(v, name, 1, want.shape);
}

enum { kTraining, kMomentum, kEps, kStats, kActivation };

Status infer_forward(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_channels(x));
    TW_TRY(want_parameter(c.in[1], "weight", x));
    TW_TRY(want_parameter(c.in[2], "bias", x));
    const bool training = c.attr[kTraining].i != 0;
    for (int k = 3; k < 5; ++k) {
        const char* name = c.op->operands[k].name;
        if (given(c.in[k]))
            TW_TRY(want_statistic(c.in[k], name, x));
        else if (!training)
            return fail(Status::shape, name, "%s is not given and training=False; want one number per channel", name);
    }
    if (!(c.attr[kMomentum].f >= 0 && c.attr[kMomentum].f <= 1))
        return fail(Status::attr, "momentum", "momentum=%g; want 0 to 1", c.attr[kMomentum].f);
    if (!(c.attr[kEps].f >= 0 && c.attr[kEps].f < __builtin_inf()))
        return fail(Status::attr, "eps", "eps=%g; want a finite number >= 0", c.attr[kEps].f);
    if (training && x.shape[0] * space_of(x) == 1)
        return fail(Status::shape, "x", "x has shape %s, one element per channel; want more with training=True",
                    shape_text(x).text);
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    if (c.attr[kStats].i) {
        r.n_out = 3;
        r.out[1] = r.out[2] = statistic_of(x);
    }
    r.flops = 8.0 * static_cast<double>(numel(x));
    return Status::ok;
}

Status run_forward(const Call& c) {
    const bool stats = c.n_out > 1;
    const Forward f = {&c.in[0],
                       &c.in[1],
                       &c.in[2],
                       &c.in[3],
                       &c.in[4],
                       &c.out[0],
                       stats ? &c.out[1] : nullptr,
                       stats ? &c.out[2] : nullptr,
                       c.attr[kTraining].i != 0,
                       !c.attr[kActivation].is_none,
                       c.attr[kMomentum].f,
                       c.attr[kEps].f};
    return for_floating(c.in[0].dtype, [&]<class T>() { return forward<T>(f); });
}

Status infer_dx(Call& c, Inferred& r) {
    const View &dy = c.in[0], &x = c.in[1];
    TW_TRY(want_channels(x));
    TW_TRY(want_dtype_of(dy, "dy", x, "x"));
    TW_TRY(want_shape_of(dy, "dy", x, "x"));
    TW_TRY(want_statistic(c.in[2], "mean", x));
    TW_TRY(want_statistic(c.in[3], "rstd", x));
    TW_TRY(want_parameter(c.in[4], "weight", x));
    if (given(c.in[5])) {
        TW_TRY(want_dtype_of(c.in[5], "y", x, "x"));
        TW_TRY(want_shape_of(c.in[5], "y", x, "x"));
    }
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    if (c.attr[1].i) {
        r.n_out = 3;
        r.out[1] = r.out[2] = result(x.dtype, 1, x.shape + 1);
    }
    r.flops = 14.0 * static_cast<double>(numel(x));
    return Status::ok;
}

Status run_dx(const Call& c) {
    const bool sums = c.n_out > 1;
    const Backward g = {&c.in[0],
                        &c.in[1],
                        &c.in[2],
                        &c.in[3],
                        &c.in[4],
                        &c.in[5],
                        &c.out[0],
                        sums ? &c.out[1] : nullptr,
                        sums ? &c.out[2] : nullptr,
                        c.attr[0].i != 0};
    return for_floating(c.in[1].dtype, [&]<class T>() { return backward<T>(g); });
}

constexpr Operand kOperands[] = {{"x"},
                                 {"weight", Role::optional},
                                 {"bias", Role::optional},
                                 {"mean", Role::optional_inout},
                                 {"var", Role::optional_inout}};
constexpr Operand kDxOperands[] = {
    {"dy"}, {"x"}, {"mean"}, {"rstd"}, {"weight", Role::optional}, {"y", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "training", .kind = AttrKind::boolean},
    {.name = "momentum", .kind = AttrKind::real, .f = 0.1},
    {.name = "eps", .kind = AttrKind::real, .f = 1e-5},
    {.name = "return_stats", .kind = AttrKind::boolean},
    {.name = "activation", .kind = AttrKind::choice, .choices = "relu", .none_ok = true},
};
constexpr AttrSpec kDxAttrs[] = {
    {.name = "training", .kind = AttrKind::boolean, .i = 1},
    {.name = "return_dw", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_batch_norm = {"batch_norm", kOperands, 5, kAttrs, 5, infer_forward, run_forward};
extern const Entry op_batch_norm_dx = {"batch_norm_dx", kDxOperands, 6, kDxAttrs, 2, infer_dx, run_dx};

}  // namespace tw::TW_ISA
