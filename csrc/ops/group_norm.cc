// Normalisation of x (N, C, *spatial) over the spatial axes and groups of channels; instance_norm has a group per channel:
//   group_norm     y = (x - mean) rstd w[c] + b[c],  mean and rstd = 1 / sqrt(var + eps) of sample n, group g
//   group_norm_dx  dx = rstd (g - mean(g) - u mean(g u)),  g = dy w[c],  u = (x - mean) rstd;
//                  dw[c] = sum dy u,  db[c] = sum dy over samples and space
//
// Method    a group is read for its moments, and again from cache for the result, a channel at a time; groups that do not
//           lie in one piece are gathered. The gradient's sums are made per channel and weighted afterwards.
// Numerics  moments.h; sums of a channel are joined in double, those of samples pairwise.
// Threads   by groups of samples; dw and db by channels.
// Source    Wu and He, "Group normalization", 2018; Ulyanov et al., "Instance normalization", 2016.
#include "core/check.h"
#include "ops/ops.h"
#include "simd/lines.h"
#include "simd/moments.h"

namespace tw::TW_ISA {
namespace {

Status no_memory() { return fail(Status::memory, "", "no memory for a group of x; want fewer elements in it"); }

template <class T>
TW_INLINE double number_at(const View& v, int64_t i, double absent) {
    return given(v) ? static_cast<double>(widened(v.as<const T>()[i * v.stride[0]])) : absent;
}

// x as (N, groups, channels of a group, *spatial), whose lines are the groups.
View grouped(const View& x, int64_t groups) {
    View v = x;
    ++v.ndim;
    for (int d = x.ndim; d > 2; --d) {
        v.shape[d] = x.shape[d - 1];
        v.stride[d] = x.stride[d - 1];
    }
    v.shape[1] = groups;
    v.shape[2] = x.shape[1] / groups;
    v.stride[1] = v.shape[2] * x.stride[1];
    v.stride[2] = x.stride[1];
    return v;
}

Attr axes_of_groups(int ndim) {
    Attr a{};
    for (int d = 2; d <= ndim; ++d) a.list[a.n++] = d;
    return a;
}

struct Groups {
    int64_t lines, channels, size, per_task, block;  // channels of a group, elements of a channel
};

template <class T>
Groups groups_of(const Lines<T>& x, const View& v, int64_t groups) {
    Groups g;
    g.lines = x.count;
    g.channels = v.shape[1] / groups;
    g.size = g.channels ? x.n / g.channels : 0;
    g.block = lines_per_block(x.n);
    g.per_task = max_of(1, kChunkElements / max_of(1, x.n));
    return g;
}

template <class T>
Status forward(const View& x, const View& weight, const View& bias, const View& y, const View* mean, const View* rstd,
               int64_t groups, double eps) {
    typedef Wide<T> W;
    const Attr axes = axes_of_groups(x.ndim);
    const Lines<T> from = lines_of<T>(grouped(x, groups), axes), to = lines_of<T>(grouped(y, groups), axes);
    const bool in_place = lie_as_rows(from) && lie_as_rows(to);
    const Groups g = groups_of(from, x, groups);
    const int64_t n = from.n;
    if (g.lines == 0) return Status::ok;
    const bool streams = in_place && numel(y) * static_cast<int64_t>(sizeof(T)) >= streaming_bytes();
    bool enough = true;
    note_kernel(in_place ? "rows" : "gathered rows");
    parallel(ceil_div(g.lines, g.per_task), [&](int64_t task) {
        Scratch scratch(in_place ? 0 : static_cast<size_t>(2 * g.block * n) * sizeof(T));
        if (!scratch.as<T>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const int64_t last = min_of((task + 1) * g.per_task, g.lines);
        for (int64_t i = task * g.per_task, rows; i < last; i += rows) {
            rows = min_of(min_of(g.block, last - i), min_of(together_at(from, i), together_at(to, i)));
            const Rows<T> in = rows_in(from, i, rows, scratch.as<T>()),
                          out = rows_out(to, i, scratch.as<T>() + g.block * n);
            for (int64_t k = 0; k < rows; ++k) {
                const Moments m = moments_of<T>(row(in, k), n);
                const double r = n ? inverse_root(m.square / m.n, eps) : __builtin_nan("");
                const W middle = static_cast<W>(n ? m.mean : __builtin_nan(""));
                const double off = m.mean - static_cast<double>(middle), rest = off == off ? off : 0;
                const int64_t line = i + k, first = line % groups * g.channels;
                if (mean) mean->as<W>()[line / groups * mean->stride[0] + line % groups * mean->stride[1]] = middle;
                if (rstd)
                    rstd->as<W>()[line / groups * rstd->stride[0] + line % groups * rstd->stride[1]] =
                        static_cast<W>(r);
                for (int64_t c = 0; c < g.channels; ++c) {
                    const double scale = r * number_at<T>(weight, first + c, 1);
                    const W a = static_cast<W>(scale),
                            b = static_cast<W>(number_at<T>(bias, first + c, 0) - rest * scale);
                    T* const at = row(out, k) + c * g.size;
                    const T* const of = row(in, k) + c * g.size;
                    if (streams && may_stream(at))
                        scaled_row<true>(at, of, g.size, middle, a, b);
                    else
                        scaled_row<false>(at, of, g.size, middle, a, b);
                }
            }
            rows_back(to, i, rows, out.at);
        }
        if (streams) stream_fence();
    });
    return enough ? Status::ok : no_memory();
}

template <class T>
Status backward(const View& dy, const View& x, const View& mean, const View& rstd, const View& weight, const View& dx,
                const View* dw, const View* db, int64_t groups) {
    typedef Wide<T> W;
    const Attr axes = axes_of_groups(x.ndim);
    const Lines<T> from = lines_of<T>(grouped(dy, groups), axes), of = lines_of<T>(grouped(x, groups), axes),
                   to = lines_of<T>(grouped(dx, groups), axes);
    const bool in_place = lie_as_rows(from) && lie_as_rows(of) && lie_as_rows(to);
    const Groups g = groups_of(of, x, groups);
    const int64_t n = of.n, channels = x.shape[1];
    const bool streams = in_place && numel(dx) * static_cast<int64_t>(sizeof(T)) >= streaming_bytes();
    // Sums of dy and of dy u by sample and channel.
    Scratch sums(static_cast<size_t>(2 * x.shape[0] * channels) * sizeof(double));
    double* const sum = sums.as<double>();
    bool enough = sum != nullptr;
    note_kernel(in_place ? "rows" : "gathered rows");
    parallel(enough ? ceil_div(g.lines, g.per_task) : 0, [&](int64_t task) {
        Scratch scratch(in_place ? 0 : static_cast<size_t>(3 * g.block * n) * sizeof(T));
        T* const buffer = scratch.as<T>();
        if (!buffer) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const int64_t last = min_of((task + 1) * g.per_task, g.lines);
        for (int64_t i = task * g.per_task, rows; i < last; i += rows) {
            rows = min_of(min_of(g.block, last - i), min_of(together_at(from, i), together_at(to, i)));
            rows = min_of(rows, together_at(of, i));
            const Rows<T> d = rows_in(from, i, rows, buffer), v = rows_in(of, i, rows, buffer + g.block * n),
                          out = rows_out(to, i, buffer + 2 * g.block * n);
            for (int64_t k = 0; k < rows; ++k) {
                const int64_t line = i + k, sample = line / groups, group = line % groups, first = group * g.channels;
                const W m = mean.as<const W>()[sample * mean.stride[0] + group * mean.stride[1]];
                const W r = rstd.as<const W>()[sample * rstd.stride[0] + group * rstd.stride[1]];
                double all = 0, along = 0;
                for (int64_t c = 0; c < g.channels; ++c) {
                    double* const own = sum + 2 * (sample * channels + first + c);
                    gradient_sums<T>(row(d, k) + c * g.size, row(v, k) + c * g.size, g.size, m, r, own[0], own[1]);
                    const double w = number_at<T>(weight, first + c, 1);
                    all += w * own[0];
                    along += w * own[1];
                }
                const double scale = static_cast<double>(r), count = static_cast<double>(n);
                const W slope = static_cast<W>(scale * scale * along / count),
                        level = static_cast<W>(scale * all / count);
                for (int64_t c = 0; c < g.channels; ++c) {
                    const W a = static_cast<W>(scale * number_at<T>(weight, first + c, 1));
                    T* const at = row(out, k) + c * g.size;
                    const T *dyc = row(d, k) + c * g.size, *xc = row(v, k) + c * g.size;
                    if (streams && may_stream(at))
                        gradient_segment<true>(at, dyc, xc, g.size, m, a, slope, level);
                    else
                        gradient_segment<false>(at, dyc, xc, g.size, m, a, slope, level);
                }
            }
            rows_back(to, i, rows, out.at);
        }
        if (streams) stream_fence();
    });
    for (int64_t c = 0; enough && dw && c < channels; ++c) {
        double all = 0, along = 0;
        for (int64_t s = 0; s < x.shape[0]; ++s) {
            all += sum[2 * (s * channels + c)];
            along += sum[2 * (s * channels + c) + 1];
        }
        dw->as<T>()[c * dw->stride[0]] = narrowed<T>(static_cast<W>(along));
        db->as<T>()[c * db->stride[0]] = narrowed<T>(static_cast<W>(all));
    }
    return enough ? Status::ok : no_memory();
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status want_channels(const View& x) {
    TW_TRY(want_floating(x, "x"));
    if (x.ndim >= 2 && x.ndim < kMaxDims) return Status::ok;
    return fail(Status::shape, "x", "x has shape %s; want (N, C, *spatial) with 2 to %d dimensions", shape_text(x).text,
                kMaxDims - 1);
}

Status want_groups(const View& x, const Attr& groups) {
    const int64_t g = groups.i;
    if (g >= 1 && x.shape[1] % g == 0) return Status::ok;
    return fail(Status::attr, "groups", "groups=%lld with C=%lld channels; want a divisor of C",
                static_cast<long long>(g), static_cast<long long>(x.shape[1]));
}

Status want_parameter(const View& v, const char* name, const View& x) {
    if (!given(v)) return Status::ok;
    TW_TRY(want_dtype_of(v, name, x, "x"));
    return want_shape(v, name, 1, x.shape + 1);
}

View statistic_of(const View& x, int64_t groups) {
    const int64_t shape[2] = {x.shape[0], groups};
    return result(x.dtype == DType::f64 ? DType::f64 : DType::f32, 2, shape);
}

Status infer_any(const Call& c, int64_t groups, const Attr& eps, bool stats, Inferred& r) {
    const View& x = c.in[0];
    if (!(eps.f >= 0 && eps.f < __builtin_inf()))
        return fail(Status::attr, "eps", "eps=%g; want a finite number >= 0", eps.f);
    TW_TRY(want_parameter(c.in[1], "weight", x));
    TW_TRY(want_parameter(c.in[2], "bias", x));
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    if (stats) {
        r.n_out = 3;
        r.out[1] = r.out[2] = statistic_of(x, groups);
    }
    r.flops = 8.0 * static_cast<double>(numel(x));
    return Status::ok;
}

enum GroupAttr { kGroups, kEps, kStats };

Status infer_group(Call& c, Inferred& r) {
    TW_TRY(want_channels(c.in[0]));
    TW_TRY(want_groups(c.in[0], c.attr[kGroups]));
    return infer_any(c, c.attr[kGroups].i, c.attr[kEps], c.attr[kStats].i != 0, r);
}

Status infer_instance(Call& c, Inferred& r) {
    TW_TRY(want_channels(c.in[0]));
    return infer_any(c, c.in[0].shape[1], c.attr[0], false, r);
}

Status run_any(const Call& c, int64_t groups, double eps) {
    if (numel(c.in[0]) == 0 && c.n_out == 1) return Status::ok;
    const bool stats = c.n_out > 1;
    return for_floating(c.in[0].dtype, [&]<class T>() {
        return forward<T>(c.in[0], c.in[1], c.in[2], c.out[0], stats ? &c.out[1] : nullptr, stats ? &c.out[2] : nullptr,
                          groups, eps);
    });
}
Status run_group(const Call& c) { return run_any(c, c.attr[kGroups].i, c.attr[kEps].f); }
Status run_instance(const Call& c) { return run_any(c, max_of(1, c.in[0].shape[1]), c.attr[0].f); }

Status infer_dx(Call& c, Inferred& r) {
    const View &dy = c.in[0], &x = c.in[1];
    TW_TRY(want_channels(x));
    TW_TRY(want_groups(x, c.attr[0]));
    TW_TRY(want_dtype_of(dy, "dy", x, "x"));
    TW_TRY(want_shape_of(dy, "dy", x, "x"));
    const View statistic = statistic_of(x, c.attr[0].i);
    for (int k = 2; k < 4; ++k) {
        const char* name = c.op->operands[k].name;
        if (c.in[k].dtype != statistic.dtype)
            return fail(Status::dtype, name, "%s has dtype %s; want %s, which statistics of %s are kept in", name,
                        name_of(c.in[k].dtype), name_of(statistic.dtype), name_of(x.dtype));
        TW_TRY(want_shape(c.in[k], name, 2, statistic.shape));
    }
    TW_TRY(want_parameter(c.in[4], "weight", x));
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
    return for_floating(c.in[1].dtype, [&]<class T>() {
        return backward<T>(c.in[0], c.in[1], c.in[2], c.in[3], c.in[4], c.out[0], sums ? &c.out[1] : nullptr,
                           sums ? &c.out[2] : nullptr, c.attr[0].i);
    });
}

constexpr Operand kOperands[] = {{"x"}, {"weight", Role::optional}, {"bias", Role::optional}};
constexpr Operand kDxOperands[] = {{"dy"}, {"x"}, {"mean"}, {"rstd"}, {"weight", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "groups", .kind = AttrKind::integer, .required = true},
    {.name = "eps", .kind = AttrKind::real, .f = 1e-5},
    {.name = "return_stats", .kind = AttrKind::boolean},
};
constexpr AttrSpec kInstanceAttrs[] = {{.name = "eps", .kind = AttrKind::real, .f = 1e-5}};
constexpr AttrSpec kDxAttrs[] = {
    {.name = "groups", .kind = AttrKind::integer, .required = true},
    {.name = "return_dw", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_group_norm = {"group_norm", kOperands, 3, kAttrs, 3, infer_group, run_group};
extern const Entry op_group_norm_dx = {"group_norm_dx", kDxOperands, 5, kDxAttrs, 2, infer_dx, run_dx};
extern const Entry op_instance_norm = {"instance_norm", kOperands, 3, kInstanceAttrs, 1, infer_instance, run_instance};

}  // namespace tw::TW_ISA
