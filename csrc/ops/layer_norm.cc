// Normalisation of lines, x along `axes`, of n elements each:
//   layer_norm          y = (s - mean) rstd w + b,  s = x + residual,  rstd = 1 / sqrt(var + eps)
//   rms_norm            y = s rstd w,  rstd = 1 / sqrt(mean of s s + eps)
//   mean_variance_norm  y = (x - mean) rstd
//   layer_norm_dx       dx = rstd (g - mean(g) - u mean(g u)),  g = dy w,  u = (x - mean) rstd;  dw = sum dy u,  db = sum dy
//   rms_norm_dx         dx = rstd (g - u mean(g u)),  u = x rstd;  dw = sum dy u
//
// Method    a row stays in cache between its statistics and its result: memory is read once and written once, past the
//           caches where the result would not stay in them. Lines that are not rows are gathered by the block. The sums
//           over lines of dw and db are kept beside the row, per task of lines.
// Numerics  moments.h; sums over a line are joined in double. y of a large mean: (s - m) rstd - (mean - m) rstd with m the
//           rounded mean. dw and db add the lines of a task in order, then tasks pairwise.
// Threads   by lines, in tasks that depend on shape alone.
// Source    Ba et al., "Layer normalization", 2016; Zhang and Sennrich, "Root mean square layer normalization", 2019.
#include "core/check.h"
#include "ops/ops.h"
#include "simd/lines.h"
#include "simd/moments.h"
#include "simd/onward.h"

namespace tw::TW_ISA {
namespace {

Status no_memory(int64_t n) {
    return fail(Status::memory, "", "no memory for lines of %lld elements; want smaller axes",
                static_cast<long long>(n));
}

// An operand of parameters as contiguous numbers of Wide<T>; one that is not given is `absent` everywhere, or null.
template <class T>
struct Parameters {
    Parameters(const View& v, int64_t n, const Wide<T>* absent) : room_(static_cast<size_t>(n) * sizeof(Wide<T>)) {
        at = nullptr;
        enough = true;
        if (!given(v) && !absent) return;
        if (given(v) && !kIsNarrow<T> && is_contiguous(v)) {
            at = v.as<const Wide<T>>();
            return;
        }
        Wide<T>* const to = room_.template as<Wide<T>>();
        enough = to != nullptr;
        if (!enough) return;
        Axes axes{};
        axes.count = 1;
        for (int d = 0; given(v) && d < v.ndim; ++d) append_axis(axes, v.shape[d], v.stride[d]);
        if (!given(v)) copy_row(to, 1, absent, 0, n);
        for (int64_t i = 0; given(v) && i < n; i += run_of(axes, i))
            copy_row(to + i, 1, v.as<const T>() + offset_of(axes, i), step_of(axes), min_of(run_of(axes, i), n - i));
        at = to;
    }
    const Wide<T>* at;
    bool enough;

private:
    Scratch room_;
};

template <class W>
struct Statistics {
    W mean, rstd, rest;  // rest: what rounding the mean left, times rstd
};

template <bool kCentred, class S>
TW_INLINE Statistics<Wide<S>> statistics_of(const S* s, int64_t n, double eps) {
    typedef Wide<S> W;
    const double count = static_cast<double>(n);
    if constexpr (!kCentred) return {0, static_cast<W>(inverse_root(square_of(s, n) / count, eps)), 0};
    const Moments m = moments_of(s, n);
    const double rstd = n ? inverse_root(m.square / m.n, eps) : __builtin_nan("");
    const W mean = static_cast<W>(n ? m.mean : __builtin_nan(""));
    const double rest = m.mean - static_cast<double>(mean);
    return {mean, static_cast<W>(rstd), static_cast<W>((rest == rest ? rest : 0) * rstd)};
}

// `soon` and `to` are asked for on the way, unless null (far_bytes).
template <bool kCentred, bool kStream, bool kScaled, class T, class S>
TW_INLINE void normalise(T* y, const S* s, int64_t n, const Statistics<Wide<T>>& of, const Wide<T>* w, const Wide<T>* b,
                         const T* soon, const T* to) {
    typedef Wide<T> W;
    const Vec<W> mean = splat<W>(of.mean), rstd = splat<W>(of.rstd), rest = splat<W>(of.rest);
    each_vector<T>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        if (soon) {
            __builtin_prefetch(soon + i);
            if constexpr (!kStream) __builtin_prefetch(to + i, 1);
        }
        Vec<W> v = take(s, 1, i, k);
        if constexpr (kCentred)
            v = fma(v - mean, rstd, -rest);
        else
            v *= rstd;
        if constexpr (kScaled) v = kCentred ? fma(v, take(w, 1, i, k), take(b, 1, i, k)) : v * take(w, 1, i, k);
        emit<kStream>(y, i, k, v);
    });
}

template <bool kCentred, class T, class S>
TW_INLINE Statistics<Wide<T>> norm_row(T* y, const S* s, int64_t n, double eps, const Wide<T>* w, const Wide<T>* b,
                                       bool streams, const T* soon, const T* to) {
    const Statistics<Wide<T>> of = statistics_of<kCentred>(s, n, eps);
    if (!w)
        normalise<kCentred, false, false>(y, s, n, of, w, b, soon, to);
    else if (streams && may_stream(y))
        normalise<kCentred, true, true>(y, s, n, of, w, b, soon, to);
    else
        normalise<kCentred, false, true>(y, s, n, of, w, b, soon, to);
    return of;
}

// s = x + residual, kept wide for the norm and stored as a result if `sum` is given.
template <class T>
TW_INLINE void add_row(Wide<T>* s, T* sum, const T* x, const T* residual, int64_t n) {
    each_vector<T>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        const Vec<Wide<T>> v = take(x, 1, i, k) + take(residual, 1, i, k);
        put(s, 1, i, k, v);
        if (sum) put(sum, 1, i, k, v);
    });
}

// ---- forward ----------------------------------------------------------------------------------------------------------------

struct Forward {
    const View *x, *weight, *bias, *residual;  // the last three may be none
    const View *y, *sum, *mean, *rstd;  // the last three may be null
    const Attr* axes;
    double eps;
};

template <class T>
int64_t bytes_of(const Lines<T>& l) {
    return l.count * l.n * static_cast<int64_t>(sizeof(T));
}

template <bool kCentred, class T>
Status forward(const Forward& f) {
    typedef Wide<T> W;
    const Lines<T> x = lines_of<T>(*f.x, *f.axes), y = lines_of<T>(*f.y, *f.axes);
    const bool adds = given(*f.residual), keeps = f.sum != nullptr;
    const Lines<T> residual = adds ? lines_of<T>(*f.residual, *f.axes) : x,
                   sum = keeps ? lines_of<T>(*f.sum, *f.axes) : y;
    const Lines<W> mean = lines_of<W>(f.mean ? *f.mean : *f.y, *f.axes),
                   rstd = lines_of<W>(f.rstd ? *f.rstd : *f.y, *f.axes);
    const int64_t n = x.n, lines = x.count;
    if (lines == 0) return Status::ok;
    const W one = 1, nothing = 0;
    const bool scaled = given(*f.weight) || given(*f.bias);
    const Parameters<T> w(*f.weight, n, scaled ? &one : nullptr), b(*f.bias, n, scaled ? &nothing : nullptr);
    const bool in_place = lie_as_rows(x) && lie_as_rows(y) && lie_as_rows(residual) && lie_as_rows(sum);
    const int64_t block = lines_per_block(n);
    const int64_t per_task = ceil_div(max_of(1, kChunkElements / max_of(1, n)), block) * block;
    const int64_t sides = in_place ? 0 : 4 * block * n, wide = adds ? n : 0;
    const size_t room = static_cast<size_t>(sides) * sizeof(T) + static_cast<size_t>(wide) * sizeof(W);
    const bool streams = in_place && bytes_of(y) >= streaming_bytes();
    const bool far = in_place && (streams || bytes_of(y) >= far_bytes());
    bool enough = w.enough && b.enough;
    note_kernel(in_place ? "rows" : "gathered rows");
    parallel(enough ? ceil_div(lines, per_task) : 0, [&](int64_t task) {
        Scratch scratch(room);
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        W* const s = scratch.as<W>();
        T* const buffer = reinterpret_cast<T*>(s + wide);
        const int64_t last = min_of((task + 1) * per_task, lines);
        for (int64_t i = task * per_task, rows; i < last; i += rows) {
            rows = min_of(min_of(block, last - i), min_of(together_at(x, i), together_at(y, i)));
            if (adds) rows = min_of(rows, together_at(residual, i));
            if (keeps) rows = min_of(rows, together_at(sum, i));
            const int64_t size = block * n;
            const Rows<T> from = rows_in(x, i, rows, buffer), to = rows_out(y, i, buffer + size);
            const Rows<T> more = adds ? rows_in(residual, i, rows, buffer + 2 * size) : from;
            const Rows<T> total = keeps ? rows_out(sum, i, buffer + 3 * size) : to;
            for (int64_t r = 0; r < rows; ++r) {
                Statistics<W> of;
                const T *const next = far ? read_soon(row(from, r), from.pitch) : nullptr, *const next_y =
                                                                                               written_soon(row(to, r));
                if (adds) {
                    add_row(s, keeps ? row(total, r) : nullptr, row(from, r), row(more, r), n);
                    of = norm_row<kCentred>(row(to, r), s, n, f.eps, w.at, b.at, streams, next, next_y);
                } else {
                    of = norm_row<kCentred>(row(to, r), row(from, r), n, f.eps, w.at, b.at, streams, next, next_y);
                    if (keeps) copy_row(row(total, r), 1, row(from, r), 1, n);
                }
                if (f.mean) mean.data[offset_of(mean.kept, i + r)] = of.mean;
                if (f.rstd) rstd.data[offset_of(rstd.kept, i + r)] = of.rstd;
            }
            rows_back(y, i, rows, to.at);
            if (keeps) rows_back(sum, i, rows, total.at);
        }
        if (streams) stream_fence();
    });
    return enough ? Status::ok : no_memory(n);
}

// ---- backward ---------------------------------------------------------------------------------------------------------------

struct Backward {
    const View *dy, *x, *mean, *rstd, *weight;  // mean null: not centred; weight may be none
    const View *dx, *dw, *db;  // dw and db may be null
    const Attr* axes;
};

// What is read and written soon after an element; dy null where rows are near.
template <class T>
struct Next {
    const T *dy, *x, *dx;
};

// One line: dx, and its terms of dw and db added to what stands there.
template <bool kCentred, bool kStream, bool kSums, class T>
TW_INLINE void gradient_row(T* dx, const T* dy, const T* x, int64_t n, Wide<T> mean, Wide<T> rstd, const Wide<T>* w,
                            Wide<T>* dw, Wide<T>* db, const Next<T>& next) {
    typedef Wide<T> W;
    const Vec<W> m = splat<W>(mean), r = splat<W>(rstd);
    const auto unit = [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        if constexpr (kCentred)
            return (take(x, 1, i, k) - m) * r;
        else
            return take(x, 1, i, k) * r;
    };
    double all, along;
    sums_over<W>(n, all, along, [&](int64_t i, int64_t k, Vec<W>& a, Vec<W>& u) __attribute__((always_inline)) {
        const Vec<W> d = take(dy, 1, i, k);
        Vec<W> v = unit(i, k);
        if (k < kLanes<W>) v = first_lanes<W>(v, Vec<W>{}, k);
        const Vec<W> g = d * take(w, 1, i, k);
        if constexpr (kCentred) a += g;
        u += g * v;
        if constexpr (kSums) {
            put(dw, 1, i, k, fma(d, v, take(dw, 1, i, k)));
            if constexpr (kCentred) put(db, 1, i, k, take(db, 1, i, k) + d);
        }
    });
    const double count = static_cast<double>(n);
    const Vec<W> level = splat<W>(static_cast<W>(all / count)), slope = splat<W>(static_cast<W>(along / count));
    each_vector<T>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        if (next.dy) {
            __builtin_prefetch(next.dy + i);
            __builtin_prefetch(next.x + i);
            if constexpr (!kStream) __builtin_prefetch(next.dx + i, 1);
        }
        Vec<W> g = take(dy, 1, i, k) * take(w, 1, i, k);
        if constexpr (kCentred) g -= level;
        emit<kStream>(dx, i, k, r * (g - unit(i, k) * slope));
    });
}

template <bool kCentred, bool kStream, class T>
void gradient_row(T* dx, const T* dy, const T* x, int64_t n, Wide<T> mean, Wide<T> rstd, const Wide<T>* w, Wide<T>* dw,
                  Wide<T>* db, const Next<T>& next) {
    if (dw) return gradient_row<kCentred, kStream, true>(dx, dy, x, n, mean, rstd, w, dw, db, next);
    gradient_row<kCentred, kStream, false>(dx, dy, x, n, mean, rstd, w, dw, db, next);
}

// to[j] = the sum of the parts of all tasks, pairwise.
template <class T>
void join_parts(const View& to, const Wide<T>* parts, int64_t tasks, int64_t pitch, int64_t n) {
    typedef Wide<T> W;
    Axes axes{};
    axes.count = 1;
    for (int d = 0; d < to.ndim; ++d) append_axis(axes, to.shape[d], to.stride[d]);
    for (int64_t i = 0; i < n; i += run_of(axes, i)) {
        T* const at = to.as<T>() + offset_of(axes, i);
        const int64_t run = run_of(axes, i);
        for (int64_t j = 0; j < run; j += kLanes<W>) {
            Pairwise<Vec<W>> sum;
            sum.n = 0;
            const int64_t k = min_of(run - j, kLanes<W>);
            for (int64_t t = 0; t < tasks; ++t) join<Sum>(sum, take(parts + t * pitch + i + j, 1, 0, k));
            put(at, step_of(axes), j, k, joined<Sum>(sum, Vec<W>{}));
        }
    }
}

constexpr int64_t kMostTasks = 64;  // of the sums over lines

template <bool kCentred, class T>
Status backward(const Backward& g) {
    typedef Wide<T> W;
    const Lines<T> dx = lines_of<T>(*g.dx, *g.axes), dy = lines_of<T>(*g.dy, *g.axes), x = lines_of<T>(*g.x, *g.axes);
    const Lines<W> rstd = lines_of<W>(*g.rstd, *g.axes), mean = kCentred ? lines_of<W>(*g.mean, *g.axes) : rstd;
    const int64_t n = x.n, lines = x.count;
    const bool in_place = lie_as_rows(dx) && lie_as_rows(dy) && lie_as_rows(x), sums = g.dw != nullptr;
    const int64_t block = lines_per_block(n);
    const int64_t work = max_of(1, kChunkElements / max_of(1, n));
    const int64_t per_task = ceil_div(max_of(work, sums ? ceil_div(lines, kMostTasks) : 1), block) * block;
    const int64_t tasks = ceil_div(lines, per_task), pitch = 2 * ceil_div(n, 16) * 16;
    const W one = 1;
    const Parameters<T> w(*g.weight, n, &one);
    Scratch partial(sums ? static_cast<size_t>(tasks * pitch) * sizeof(W) : 0);
    bool enough = w.enough && partial.as<W>();
    const bool streams = in_place && bytes_of(dx) >= streaming_bytes();
    const bool far = in_place && (streams || bytes_of(dx) >= far_bytes());
    note_kernel(in_place ? "rows" : "gathered rows");
    parallel(enough ? tasks : 0, [&](int64_t task) {
        Scratch scratch(in_place ? 0 : static_cast<size_t>(3 * block * n) * sizeof(T));
        if (!scratch.as<T>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        T* const buffer = scratch.as<T>();
        W *const dw = sums ? partial.as<W>() + task * pitch : nullptr, *const db = sums ? dw + pitch / 2 : nullptr;
        if (sums) __builtin_memset(dw, 0, static_cast<size_t>(pitch) * sizeof(W));
        const int64_t last = min_of((task + 1) * per_task, lines), size = block * n;
        for (int64_t i = task * per_task, rows; i < last; i += rows) {
            rows = min_of(min_of(block, last - i), min_of(together_at(x, i), together_at(dx, i)));
            rows = min_of(rows, together_at(dy, i));
            const Rows<T> to = rows_out(dx, i, buffer), from = rows_in(dy, i, rows, buffer + size),
                          at = rows_in(x, i, rows, buffer + 2 * size);
            for (int64_t k = 0; k < rows; ++k) {
                const W m = kCentred ? mean.data[offset_of(mean.kept, i + k)] : 0,
                        r = rstd.data[offset_of(rstd.kept, i + k)];
                const auto run = [&]<bool kStream>() {
                    gradient_row<kCentred, kStream>(row(to, k), row(from, k), row(at, k), n, m, r, w.at, dw, db,
                                                    {far ? read_soon(row(from, k), from.pitch) : nullptr,
                                                     read_soon(row(at, k), at.pitch), written_soon(row(to, k))});
                };
                if (streams && may_stream(row(to, k)))
                    run.template operator()<true>();
                else
                    run.template operator()<false>();
            }
            rows_back(dx, i, rows, to.at);
        }
        if (streams) stream_fence();
    });
    if (enough && sums) {
        join_parts<T>(*g.dw, partial.as<W>(), tasks, pitch, n);
        if (g.db) join_parts<T>(*g.db, partial.as<W>() + pitch / 2, tasks, pitch, n);
    }
    return enough ? Status::ok : no_memory(n);
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status want_eps(const Attr& eps) {
    if (eps.f >= 0 && eps.f < __builtin_inf()) return Status::ok;
    return fail(Status::attr, "eps", "eps=%g; want a finite number >= 0", eps.f);
}

View wide_like(const View& v) { return result(v.dtype == DType::f64 ? DType::f64 : DType::f32, v.ndim, v.shape); }

// x with its normalised axes at size 1, in the dtype of statistics.
View statistic_of(const View& x, const Attr& axes) {
    View v = wide_like(x);
    for (int k = 0; k < axes.n; ++k) v.shape[axes.list[k]] = 1;
    return v;
}

// The normalised axes alone: the shape of parameters.
View parameter_of(const View& x, const Attr& axes) {
    View v = result(x.dtype, axes.n, x.shape);
    for (int k = 0; k < axes.n; ++k) v.shape[k] = x.shape[axes.list[k]];
    return v;
}

Status want_axes(const View& x, Attr& axes) {
    TW_TRY(want_floating(x, "x"));
    TW_TRY(resolve_axes(axes, "axes", x.ndim));
    if (axes.n) return Status::ok;
    return x.ndim ? fail(Status::attr, "axes", "axes=(); want at least one axis")
                  : fail(Status::shape, "x", "x has shape (); want at least one dimension");
}

Status want_optional(const View& v, const char* name, const View& x, const View& model) {
    if (!given(v)) return Status::ok;
    TW_TRY(want_dtype_of(v, name, x, "x"));
    return want_shape(v, name, model.ndim, model.shape);
}

// Operands x, weight, [bias,] residual; attributes axes, eps, return_sum, return_stats.
template <bool kCentred>
Status infer_forward(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_axes(x, c.attr[0]));
    TW_TRY(want_eps(c.attr[1]));
    const View parameter = parameter_of(x, c.attr[0]);
    TW_TRY(want_optional(c.in[1], "weight", x, parameter));
    if (kCentred) TW_TRY(want_optional(c.in[2], "bias", x, parameter));
    TW_TRY(want_optional(c.in[c.n_in - 1], "residual", x, x));
    r.n_out = 0;
    r.out[r.n_out++] = result(x.dtype, x.ndim, x.shape);
    if (c.attr[2].i) r.out[r.n_out++] = r.out[0];
    if (c.attr[3].i && kCentred) r.out[r.n_out++] = statistic_of(x, c.attr[0]);
    if (c.attr[3].i) r.out[r.n_out++] = statistic_of(x, c.attr[0]);
    r.flops = 8.0 * static_cast<double>(numel(x));
    return Status::ok;
}

template <bool kCentred>
Status run_forward(const Call& c) {
    const View none = {nullptr, {}, {}, 0, DType::none};
    const View* next = c.out + 1;
    Forward f = {
        &c.in[0],   &c.in[1],   kCentred ? &c.in[2] : &none, &c.in[c.n_in - 1], &c.out[0], nullptr, nullptr, nullptr,
        &c.attr[0], c.attr[1].f};
    if (c.attr[2].i) f.sum = next++;
    if (c.attr[3].i && kCentred) f.mean = next++;
    if (c.attr[3].i) f.rstd = next++;
    return for_floating(c.in[0].dtype, [&]<class T>() { return forward<kCentred, T>(f); });
}

// Operands dy, x, [mean,] rstd, weight; attributes axes, return_dw.
template <bool kCentred>
Status infer_backward(Call& c, Inferred& r) {
    const View &dy = c.in[0], &x = c.in[1];
    TW_TRY(want_axes(x, c.attr[0]));
    TW_TRY(want_dtype_of(dy, "dy", x, "x"));
    TW_TRY(want_shape_of(dy, "dy", x, "x"));
    const View statistic = statistic_of(x, c.attr[0]), parameter = parameter_of(x, c.attr[0]);
    for (int k = 2; k < c.n_in - 1; ++k) {
        const char* name = c.op->operands[k].name;
        if (c.in[k].dtype != statistic.dtype)
            return fail(Status::dtype, name, "%s has dtype %s; want %s, which statistics of %s are kept in", name,
                        name_of(c.in[k].dtype), name_of(statistic.dtype), name_of(x.dtype));
        TW_TRY(want_shape(c.in[k], name, statistic.ndim, statistic.shape));
    }
    TW_TRY(want_optional(c.in[c.n_in - 1], "weight", x, parameter));
    r.n_out = 0;
    r.out[r.n_out++] = result(x.dtype, x.ndim, x.shape);
    if (c.attr[1].i) r.out[r.n_out++] = parameter;
    if (c.attr[1].i && kCentred) r.out[r.n_out++] = parameter;
    r.flops = 14.0 * static_cast<double>(numel(x));
    return Status::ok;
}

template <bool kCentred>
Status run_backward(const Call& c) {
    const bool sums = c.attr[1].i != 0;
    const Backward g = {
        &c.in[0],          &c.in[1],  kCentred ? &c.in[2] : nullptr, &c.in[c.n_in - 2],
        &c.in[c.n_in - 1], &c.out[0], sums ? &c.out[1] : nullptr,    sums && kCentred ? &c.out[2] : nullptr,
        &c.attr[0]};
    return for_floating(c.in[1].dtype, [&]<class T>() { return backward<kCentred, T>(g); });
}

Status infer_mean_variance(Call& c, Inferred& r) {
    const View& x = c.in[0];
    Attr& axes = c.attr[0];
    if (axes.is_none && x.ndim >= 2) {  // all but the channels
        axes.is_none = false;
        axes.n = 0;
        for (int d = 0; d < x.ndim; ++d)
            if (d != 1) axes.list[axes.n++] = d;
    }
    TW_TRY(want_axes(x, axes));
    TW_TRY(want_eps(c.attr[1]));
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    r.flops = 8.0 * static_cast<double>(numel(x));
    return Status::ok;
}

Status run_mean_variance(const Call& c) {
    const View none = {nullptr, {}, {}, 0, DType::none};
    const Forward f = {&c.in[0], &none, &none, &none, &c.out[0], nullptr, nullptr, nullptr, &c.attr[0], c.attr[1].f};
    return for_floating(c.in[0].dtype, [&]<class T>() { return forward<true, T>(f); });
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kLayer[] = {
    {"x"}, {"weight", Role::optional}, {"bias", Role::optional}, {"residual", Role::optional}};
constexpr Operand kRms[] = {{"x"}, {"weight", Role::optional}, {"residual", Role::optional}};
constexpr Operand kLayerDx[] = {{"dy"}, {"x"}, {"mean"}, {"rstd"}, {"weight", Role::optional}};
constexpr Operand kRmsDx[] = {{"dy"}, {"x"}, {"rstd"}, {"weight", Role::optional}};
#define TW_FORWARD_ATTRS(default_eps)                                \
    {                                                                \
        {.name = "axes", .kind = AttrKind::axes, .i = -1},           \
        {.name = "eps", .kind = AttrKind::real, .f = (default_eps)}, \
        {.name = "return_sum", .kind = AttrKind::boolean},           \
        {.name = "return_stats", .kind = AttrKind::boolean},         \
    }
constexpr AttrSpec kLayerAttrs[] = TW_FORWARD_ATTRS(1e-5);
constexpr AttrSpec kRmsAttrs[] = TW_FORWARD_ATTRS(1e-6);
#undef TW_FORWARD_ATTRS
constexpr AttrSpec kMeanVarianceAttrs[] = {
    {.name = "axes", .kind = AttrKind::axes, .none_ok = true},
    {.name = "eps", .kind = AttrKind::real, .f = 1e-9},
};
constexpr AttrSpec kDxAttrs[] = {
    {.name = "axes", .kind = AttrKind::axes, .i = -1},
    {.name = "return_dw", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_layer_norm = {"layer_norm", kLayer, 4, kLayerAttrs, 4, infer_forward<true>, run_forward<true>};
extern const Entry op_layer_norm_dx = {"layer_norm_dx",      kLayerDx,          5, kDxAttrs, 2,
                                       infer_backward<true>, run_backward<true>};
extern const Entry op_rms_norm = {"rms_norm", kRms, 3, kRmsAttrs, 4, infer_forward<false>, run_forward<false>};
extern const Entry op_rms_norm_dx = {"rms_norm_dx", kRmsDx, 4, kDxAttrs, 2, infer_backward<false>, run_backward<false>};
extern const Entry op_mean_variance_norm = {"mean_variance_norm", kX, 1, kMeanVarianceAttrs, 2, infer_mean_variance,
                                            run_mean_variance};

}  // namespace tw::TW_ISA
