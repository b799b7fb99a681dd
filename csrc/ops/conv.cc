// Convolution over 1, 2 or 3 spatial axes and its two gradients:
//     y[n,k,p]  = act(b[k] + sum_{c,t} w[k,c,t] x[n,c, p*stride + t*dilation - padding])
//     dx[n,c,q] = sum over the (k, t, p) that met q;   dw[k,c,t] = sum_{n,p} dy[n,k,p] x[n,c, p*stride + t*dilation - padding]
//
// Method    implicit GEMM without an unfolded copy. y: weights (read in place) times windows packed panel by panel.
//           dx: one GEMM per phase of the stride, over windows of dy. dw: register tiles over runs of pixels, six
//           channels of x in place against a transposed panel of dy, so padded taps cost nothing.
// Numerics  y, dx: see gemm/gemm.h. dw: one running sum over the pixels of an image, images added in order.
// Threads   tiles of the result; sums are never split between threads.
#include "core/check.h"
#include "core/walk.h"
#include "gemm/pack.h"
#include "gemm/window.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

enum { kStride, kPadding, kDilation, kGroups };  // attributes of conv
enum { kGradSize, kGradStride, kGradPadding, kGradDilation, kGradGroups };  // of conv_dx (shape) and conv_dw (kernel)

// ---- shape rules --------------------------------------------------------------------------------------------------------

// x, w and the attributes; writes the spatial output sizes.
Status check_conv(const View& x, const View& w, Attr& stride, Attr& padding, Attr& dilation, const Attr& groups,
                  int64_t* out, const char* blame) {
    const int rank = x.ndim - 2;
    if (groups.i < 1)
        return fail(Status::attr, "groups", "groups=%lld; want at least 1", static_cast<long long>(groups.i));
    if (w.ndim != x.ndim)
        return fail(Status::shape, "w",
                    "w has shape %s but x has %d dimensions; want (K, C/groups, kernel...) with as many",
                    shape_text(w).text, x.ndim);
    if (x.shape[1] % groups.i || w.shape[0] % groups.i)
        return fail(Status::attr, "groups", "groups=%lld does not divide C=%lld and K=%lld; want a common divisor",
                    static_cast<long long>(groups.i), static_cast<long long>(x.shape[1]),
                    static_cast<long long>(w.shape[0]));
    if (w.shape[1] != x.shape[1] / groups.i)
        return fail(Status::shape, "w", "x has C=%lld but w has C/groups=%lld with groups=%lld; want C=%lld",
                    static_cast<long long>(x.shape[1]), static_cast<long long>(w.shape[1]),
                    static_cast<long long>(groups.i), static_cast<long long>(w.shape[1] * groups.i));
    for (int d = 0; d < rank; ++d)
        if (w.shape[2 + d] < 1)
            return fail(Status::shape, "w", "w has shape %s; want kernel sizes of at least 1", shape_text(w).text);
    TW_TRY(resolve_integers(stride, "stride", rank, 1));
    TW_TRY(resolve_integers(dilation, "dilation", rank, 1));
    return resolve_window(x.shape + 2, w.shape + 2, stride.list, dilation.list, padding, rank, false, out, blame);
}

double conv_flops(const View& y, const View& w) {
    double terms = 2.0 * static_cast<double>(numel(y));
    for (int d = 1; d < w.ndim; ++d) terms *= static_cast<double>(w.shape[d]);
    return terms;
}

Status infer_conv(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &b = c.in[2];
    TW_TRY(want_real(x, "x"));
    TW_TRY(want_ndim(x, "x", 3, 5));
    TW_TRY(want_dtype_of(w, "w", x, "x"));
    View y = result(x.dtype, x.ndim, x.shape);
    TW_TRY(check_conv(x, w, c.attr[kStride], c.attr[kPadding], c.attr[kDilation], c.attr[kGroups], y.shape + 2, "x"));
    y.shape[1] = w.shape[0];
    if (given(b)) {
        TW_TRY(want_dtype_of(b, "b", x, "x"));
        if (b.ndim != 1 || b.shape[0] != w.shape[0])
            return fail(Status::shape, "b", "b has shape %s but w has K=%lld; want (%lld,)", shape_text(b).text,
                        static_cast<long long>(w.shape[0]), static_cast<long long>(w.shape[0]));
    }
    r.n_out = 1;
    r.out[0] = y;
    r.flops = conv_flops(y, w);
    return Status::ok;
}

// dy against the output that x and w would give.
Status check_dy(const View& dy, const View& x, const View& w, const int64_t* out) {
    bool same = dy.shape[0] == x.shape[0] && dy.shape[1] == w.shape[0];
    View want = result(dy.dtype, dy.ndim, x.shape);
    want.shape[1] = w.shape[0];
    for (int d = 2; d < dy.ndim; ++d) {
        want.shape[d] = out[d - 2];
        same = same && dy.shape[d] == out[d - 2];
    }
    if (same) return Status::ok;
    return fail(Status::shape, "dy", "dy has shape %s; want %s, the result of this convolution", shape_text(dy).text,
                shape_text(want).text);
}

Status infer_conv_dx(Call& c, Inferred& r) {
    const View &dy = c.in[0], &w = c.in[1];
    TW_TRY(want_real(dy, "dy"));
    TW_TRY(want_ndim(dy, "dy", 3, 5));
    TW_TRY(want_dtype_of(w, "w", dy, "dy"));
    TW_TRY(want_ndim(w, "w", dy.ndim, dy.ndim));
    Attr& shape = c.attr[kGradSize];
    const Attr& groups = c.attr[kGradGroups];
    TW_TRY(resolve_integers(shape, "shape", dy.ndim - 2, 0));
    View x = result(dy.dtype, dy.ndim, dy.shape);
    if (groups.i < 1 || groups.i >= kMaxSize)
        return fail(Status::attr, "groups", "groups=%lld; want at least 1", static_cast<long long>(groups.i));
    if (__builtin_mul_overflow(w.shape[1], groups.i, &x.shape[1]))
        return fail(Status::attr, "groups", "groups=%lld is too large; want a divisor of K=%lld",
                    static_cast<long long>(groups.i), static_cast<long long>(w.shape[0]));
    for (int d = 2; d < x.ndim; ++d) x.shape[d] = shape.list[d - 2];
    int64_t out[kMaxDims];
    TW_TRY(check_conv(x, w, c.attr[kGradStride], c.attr[kGradPadding], c.attr[kGradDilation], groups, out, "shape"));
    TW_TRY(check_dy(dy, x, w, out));
    r.n_out = 1;
    r.out[0] = x;
    r.flops = conv_flops(dy, w);
    return Status::ok;
}

Status infer_conv_dw(Call& c, Inferred& r) {
    const View &dy = c.in[0], &x = c.in[1];
    TW_TRY(want_real(dy, "dy"));
    TW_TRY(want_ndim(dy, "dy", 3, 5));
    TW_TRY(want_dtype_of(x, "x", dy, "dy"));
    TW_TRY(want_ndim(x, "x", dy.ndim, dy.ndim));
    Attr& kernel = c.attr[kGradSize];
    const Attr& groups = c.attr[kGradGroups];
    TW_TRY(resolve_integers(kernel, "kernel", dy.ndim - 2, 1));
    View w = result(dy.dtype, dy.ndim, dy.shape);
    w.shape[0] = dy.shape[1];
    if (groups.i < 1)
        return fail(Status::attr, "groups", "groups=%lld; want at least 1", static_cast<long long>(groups.i));
    w.shape[1] = x.shape[1] / groups.i;
    for (int d = 2; d < w.ndim; ++d) w.shape[d] = kernel.list[d - 2];
    int64_t out[kMaxDims];
    TW_TRY(check_conv(x, w, c.attr[kGradStride], c.attr[kGradPadding], c.attr[kGradDilation], groups, out, "kernel"));
    TW_TRY(check_dy(dy, x, w, out));
    r.n_out = 1;
    r.out[0] = w;
    r.flops = conv_flops(dy, w);
    return Status::ok;
}

// ---- one problem, whatever the rank ----------------------------------------------------------------------------------------

// Axis `a` of 3 as seen by a tensor of lower rank: leading axes have size 1.
struct Axes {
    int64_t in[kMaxRank], out[kMaxRank], taps[kMaxRank], stride[kMaxRank], dilation[kMaxRank], before[kMaxRank];
    int64_t x_stride[kMaxRank], y_stride[kMaxRank];
    int64_t n_taps() const { return taps[0] * taps[1] * taps[2]; }
    int64_t n_out() const { return out[0] * out[1] * out[2]; }
};

Axes axes_of(const View& x, const View& w, const View& y, const Attr& stride, const Attr& padding,
             const Attr& dilation) {
    Axes s;
    const int skip = kMaxRank - (x.ndim - 2);
    for (int a = 0; a < kMaxRank; ++a) {
        const int d = a - skip;
        const bool real = d >= 0;
        s.in[a] = real ? x.shape[2 + d] : 1;
        s.out[a] = real ? y.shape[2 + d] : 1;
        s.taps[a] = real ? w.shape[2 + d] : 1;
        s.stride[a] = real ? stride.list[d] : 1;
        s.dilation[a] = real ? dilation.list[d] : 1;
        s.before[a] = real ? padding.list[2 * d] : 0;
        s.x_stride[a] = real ? x.stride[2 + d] : 0;
        s.y_stride[a] = real ? y.stride[2 + d] : 0;
    }
    return s;
}

// Whether the axes from `first` on are laid out as one run of neighbours.
bool is_run(const View& v, int first) {
    int64_t want = 1;
    for (int d = v.ndim - 1; d >= first; --d) {
        if (v.shape[d] != 1 && v.stride[d] != want) return false;
        want *= v.shape[d];
    }
    return true;
}

template <class T>
void copy(const View& to, const View& from) {
    const View* views[] = {&to, &from};
    const Walk w = walk_over(views, 2, to.ndim, to.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* dst = reinterpret_cast<T*>(at[0]);
        const T* src = reinterpret_cast<const T*>(at[1]);
        for (int64_t i = 0; i < count; ++i) dst[i * w.stride[0]] = src[i * w.stride[1]];
    });
}

// A view whose axes from `first` on are one run: `v` itself, or scratch of the same shape, copied if `load`.
template <class T>
View as_run(const View& v, int first, const Scratch& scratch, bool load) {
    if (is_run(v, first)) return v;
    View r = v;
    set_contiguous(r);
    r.data = scratch.template as<T>();
    if (load) copy<T>(r, v);
    return r;
}

template <class T>
size_t run_bytes(const View& v, int first) {
    return is_run(v, first) ? 64 : static_cast<size_t>(numel(v)) * sizeof(T);
}

Status no_memory() { return fail(Status::memory, "", "no memory for packed panels; want smaller operands"); }

// Runs job(image, group) for all; small ones side by side, large ones one after the other with threads inside.
template <class Job>
Status for_images(int64_t images, int64_t groups, double flops, const Job& job) {
    bool enough = true;
    const auto one = [&](int64_t i) {
        if (!job(i / groups, i % groups)) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    };
    const int64_t jobs = images * groups;
    if (jobs >= 8 && flops / static_cast<double>(jobs) < 2e7)
        parallel(jobs, one);
    else
        for (int64_t i = 0; i < jobs; ++i) one(i);
    return enough ? Status::ok : no_memory();
}

// ---- forward ----------------------------------------------------------------------------------------------------------------

constexpr int64_t kMaxTaps = 1 << 16;  // along one axis, for the offset tables

Status too_many_taps() {
    return fail(Status::unsupported, "w", "w has more than 65536 taps along an axis; want fewer");
}

template <class T>
Status conv(const Call& c) {
    const View &x = c.in[0], &w_given = c.in[1], &b = c.in[2], &y_given = c.out[0];
    const int64_t groups = c.attr[kGroups].i, kg = w_given.shape[0] / groups, cg = w_given.shape[1];
    Scratch w_scratch(run_bytes<T>(w_given, 1)), y_scratch(run_bytes<T>(y_given, 2));
    Scratch bias_scratch(static_cast<size_t>(w_given.shape[0] + 1) * sizeof(T));
    if (!w_scratch.as<T>() || !y_scratch.as<T>() || !bias_scratch.as<T>()) return no_memory();
    const View w = as_run<T>(w_given, 1, w_scratch, true), y = as_run<T>(y_given, 2, y_scratch, false);
    const Axes s = axes_of(x, w, y, c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
    T* bias = nullptr;
    if (given(b)) {
        bias = bias_scratch.as<T>();
        for (int64_t k = 0; k < w.shape[0]; ++k) bias[k] = b.as<T>()[k * b.stride[0]];
    }
    if (s.taps[0] > kMaxTaps || s.taps[1] > kMaxTaps || s.taps[2] > kMaxTaps) return too_many_taps();
    Scratch offsets(static_cast<size_t>(s.taps[0] + s.taps[1] + s.taps[2]) * sizeof(int64_t));
    if (!offsets.as<int64_t>()) return no_memory();
    Window<T> window{};
    window.channel_stride = x.stride[1];
    bool point = true;  // a 1x1 kernel on all pixels: the image is the matrix
    for (int a = 0, at = 0; a < kMaxRank; ++a) {
        int64_t* offset = offsets.as<int64_t>() + at;
        for (int64_t t = 0; t < s.taps[a]; ++t) offset[t] = t * s.dilation[a] - s.before[a];
        window.axis[a] = {s.in[a], s.out[a], s.x_stride[a], s.stride[a], s.taps[a], offset};
        point = point && s.taps[a] == 1 && s.stride[a] == 1 && s.out[a] == s.in[a];
        at += static_cast<int>(s.taps[a]);
    }
    point = point && is_run(x, 2);
    Gemm<T> g{};
    g.m = kg, g.n = s.n_out(), g.k = cg * s.n_taps();
    g.c_row = y.stride[1], g.c_col = 1;
    g.activation =
        c.attr[kGroups + 1].is_none ? Activation::none : static_cast<Activation>(c.attr[kGroups + 1].choice + 1);
    const Status status = for_images(x.shape[0], groups, conv_flops(y, w), [&](int64_t image, int64_t group) {
        Gemm<T> one = g;
        Window<T> here = window;
        here.image = x.as<T>() + image * x.stride[0] + group * cg * x.stride[1];
        one.a = {w.as<T>() + group * kg * w.stride[0], w.stride[0], 1};
        one.c = y.as<T>() + image * y.stride[0] + group * kg * y.stride[1];
        one.bias_row = bias ? bias + group * kg : nullptr;
        if (point) {
            one.b = {here.image, x.stride[1], 1};
        } else {
            one.pack_b = pack_window<T>;
            one.context = &here;
        }
        return gemm(one);
    });
    if (y.data != y_given.data) copy<T>(y_given, y);
    return status;
}

// ---- gradient with respect to x ------------------------------------------------------------------------------------------------

// The taps along one axis that reach the positions q = phase, phase + stride, ... and the pixels of dy they come from.
struct Phase {
    int64_t begin, count;  // first q and how many
    int64_t taps;
    int64_t tap[64], offset[64];
};

bool phase_of(const Axes& s, int a, int64_t phase, Phase& p) {
    p.begin = phase;
    p.count = phase < s.in[a] ? (s.in[a] - phase + s.stride[a] - 1) / s.stride[a] : 0;
    p.taps = 0;
    for (int64_t t = 0; t < s.taps[a]; ++t) {
        const int64_t distance = phase + s.before[a] - t * s.dilation[a];
        if (distance % s.stride[a]) continue;
        if (p.taps == 64) return false;
        p.tap[p.taps] = t;
        p.offset[p.taps++] = distance / s.stride[a];
    }
    return true;
}

// w[k, c, taps of the phase] of one group as rows of c: [cg][kg * taps].
template <class T>
void gather_weights(const View& w, int64_t k0, int64_t kg, int64_t cg, const Axes& s, const Phase* p, int32_t* table,
                    T* to) {
    const int64_t all = s.n_taps();
    int64_t taps = 0;
    for (int64_t i = 0; i < p[0].taps; ++i)
        for (int64_t j = 0; j < p[1].taps; ++j)
            for (int64_t l = 0; l < p[2].taps; ++l)
                table[taps++] = static_cast<int32_t>((p[0].tap[i] * s.taps[1] + p[1].tap[j]) * s.taps[2] + p[2].tap[l]);
    constexpr int64_t kRows = 16;  // channels at a time: w is read in runs of kRows * all
    parallel(ceil_div(cg, kRows), [&](int64_t chunk) {
        for (int64_t k = 0; k < kg; ++k)
            for (int64_t c = chunk * kRows; c < min_of(chunk * kRows + kRows, cg); ++c) {
                const T* from = w.as<T>() + (k0 + k) * w.stride[0] + c * all;
                T* row = to + (c * kg + k) * taps;
                for (int64_t t = 0; t < taps; ++t) row[t] = from[table[t]];
            }
    });
}

// Writes a dense [cg][count] block to every stride-th position of dx.
template <class T>
void spread(const T* from, T* dx, const Axes& s, const Phase* p, int64_t channels, int64_t channel_stride) {
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < p[0].count; ++i)
            for (int64_t j = 0; j < p[1].count; ++j) {
                T* row = dx + c * channel_stride + (p[0].begin + i * s.stride[0]) * s.x_stride[0] +
                         (p[1].begin + j * s.stride[1]) * s.x_stride[1] + p[2].begin * s.x_stride[2];
                for (int64_t l = 0; l < p[2].count; ++l) row[l * s.stride[2] * s.x_stride[2]] = *from++;
            }
}

template <class T>
bool conv_dx_phase(const View& dy, const View& w, const View& dx, const Axes& s, const Phase* p, int64_t groups) {
    const int64_t kg = w.shape[0] / groups, cg = w.shape[1];
    const int64_t taps = p[0].taps * p[1].taps * p[2].taps, count = p[0].count * p[1].count * p[2].count;
    const bool whole = s.stride[0] * s.stride[1] * s.stride[2] == 1 && is_run(dx, 2);
    Scratch weights(static_cast<size_t>(groups * cg * kg * taps + 1) * sizeof(T));
    Scratch table(static_cast<size_t>(taps + 1) * sizeof(int32_t));
    T* const packed = weights.as<T>();
    if (!packed || !table.as<int32_t>()) return false;
    for (int64_t group = 0; group < groups; ++group)
        gather_weights(w, group * kg, kg, cg, s, p, table.as<int32_t>(), packed + group * cg * kg * taps);
    return for_images(dx.shape[0], groups,
                      2.0 * static_cast<double>(dx.shape[0] * groups * cg * kg * taps) * static_cast<double>(count),
                      [&](int64_t image, int64_t group) {
        Scratch block(whole ? 64 : static_cast<size_t>(cg * count) * sizeof(T));
        if (!block.as<T>()) return false;
        T* const to = dx.as<T>() + image * dx.stride[0] + group * cg * dx.stride[1];
        Window<T> window{};
        window.image = dy.as<T>() + image * dy.stride[0] + group * kg * dy.stride[1];
        window.channel_stride = dy.stride[1];
        for (int a = 0; a < kMaxRank; ++a)
            window.axis[a] = {s.out[a], p[a].count, s.y_stride[a], 1, p[a].taps, p[a].offset};
        Gemm<T> g{};
        g.m = cg, g.n = count, g.k = kg * taps;
        g.a = {packed + group * cg * kg * taps, kg * taps, 1};
        g.pack_b = pack_window<T>;
        g.context = &window;
        g.c = whole ? to : block.as<T>();
        g.c_row = whole ? dx.stride[1] : count;
        g.c_col = 1;
        if (!gemm(g)) return false;
        if (!whole) spread(block.as<T>(), to, s, p, cg, dx.stride[1]);
        return true;
    }) == Status::ok;
}

template <class T>
Status conv_dx(const Call& c) {
    const View &dy = c.in[0], &w_given = c.in[1], &dx = c.out[0];
    Scratch w_scratch(run_bytes<T>(w_given, 2));
    if (!w_scratch.as<T>()) return no_memory();
    View w = as_run<T>(w_given, 2, w_scratch, true);
    // gather_weights walks (c, tap) as one run.
    Scratch w_rows(run_bytes<T>(w, 1));
    if (!w_rows.as<T>()) return no_memory();
    w = as_run<T>(w, 1, w_rows, true);
    const Axes s = axes_of(dx, w, dy, c.attr[kGradStride], c.attr[kGradPadding], c.attr[kGradDilation]);
    const int64_t groups = c.attr[kGradGroups].i;
    for (int64_t i = 0; i < min_of(s.stride[0], s.in[0]); ++i)
        for (int64_t j = 0; j < min_of(s.stride[1], s.in[1]); ++j)
            for (int64_t l = 0; l < min_of(s.stride[2], s.in[2]); ++l) {
                Phase p[kMaxRank];
                if (!phase_of(s, 0, i, p[0]) || !phase_of(s, 1, j, p[1]) || !phase_of(s, 2, l, p[2]))
                    return fail(Status::unsupported, "w",
                                "w has more than 64 taps along an axis at one phase of the stride; want fewer");
                if (!conv_dx_phase<T>(dy, w, dx, s, p, groups)) return no_memory();
            }
    return Status::ok;
}

// ---- gradient with respect to w ------------------------------------------------------------------------------------------------

// Pixels p of one axis with 0 <= p * stride + offset < in: [begin, end).
void reach(const Axes& s, int a, int64_t tap, int64_t& begin, int64_t& end) {
    const int64_t offset = tap * s.dilation[a] - s.before[a];
    begin = offset >= 0 ? 0 : min_of(ceil_div(-offset, s.stride[a]), s.out[a]);
    end = offset >= s.in[a] ? 0 : min_of((s.in[a] - 1 - offset) / s.stride[a] + 1, s.out[a]);
    if (end < begin) end = begin;
}

// What one job of dw sums: filters of one panel, channels [c0, c1) and taps [t0, t1) of one group.
struct Share {
    int64_t group, panel, c0, c1, t0, t1;
};

// Adds the pixel rows [h0, h1) of depth d of one image to sums[channel][tap][NR]; `panel` is dy there as [pixel][NR].
template <class T>
void sum_rows(const View& x, const Axes& s, const Share& q, int64_t cg, int64_t image, int64_t d, int64_t h0,
              int64_t h1, const T* panel, T* sums) {
    constexpr int NR = Blocking<T>::NR;
    const int64_t taps = q.t1 - q.t0;
    const T* from = x.as<T>() + image * x.stride[0] + q.group * cg * x.stride[1];
    Tile<T> tile{};
    tile.a_row = x.stride[1];
    tile.a_k = s.stride[2] * s.x_stride[2];
    tile.b_k = NR;
    tile.a_outer = s.stride[1] * s.x_stride[1];
    tile.b_outer = s.out[2] * NR;
    tile.c_row = taps * NR;
    tile.load_c = true;
    for (int64_t tap = q.t0; tap < q.t1; ++tap) {
        const int64_t td = tap / s.taps[2] / s.taps[1], th = tap / s.taps[2] % s.taps[1], tw = tap % s.taps[2];
        const int64_t pd = d * s.stride[0] + td * s.dilation[0] - s.before[0];
        if (pd < 0 || pd >= s.in[0]) continue;
        int64_t hb, he, wb, we;
        reach(s, 1, th, hb, he);
        reach(s, 2, tw, wb, we);
        hb = max_of(hb, h0), he = min_of(he, h1);
        if (he <= hb || we <= wb) continue;
        const T* corner = from + pd * s.x_stride[0] +
                          (hb * s.stride[1] + th * s.dilation[1] - s.before[1]) * s.x_stride[1] +
                          (wb * s.stride[2] + tw * s.dilation[2] - s.before[2]) * s.x_stride[2];
        tile.kc = we - wb;
        tile.outer = he - hb;
        tile.b = panel + ((hb - h0) * s.out[2] + wb) * NR;
        for (int64_t c = q.c0; c < q.c1; c += kMR) {
            tile.a = corner + c * x.stride[1];
            tile.c = sums + ((c - q.c0) * taps + tap - q.t0) * NR;
            run_tile(tile, static_cast<int>(min_of(kMR, q.c1 - c)), NR);
        }
    }
}

// sums[channel][tap][NR] to dw[filter][channel][tap], for the filters that exist.
template <class T>
void write_share(const T* sums, const View& dw, const Share& q, int64_t kg, int64_t all_taps) {
    constexpr int NR = Blocking<T>::NR;
    constexpr int L = kLanes<T>;
    const int64_t taps = q.t1 - q.t0, k0 = q.panel * NR, filters = min_of(NR, kg - k0);
    T* const to = dw.as<T>() + (q.group * kg + k0) * dw.stride[0] + q.c0 * all_taps + q.t0;
    const bool one_run = taps == all_taps;  // channel and tap together are neighbours
    const int64_t runs = one_run ? 1 : q.c1 - q.c0, length = one_run ? (q.c1 - q.c0) * taps : taps;
    for (int64_t r = 0; r < runs; ++r) {
        const T* from = sums + r * taps * NR;
        T* row = to + r * all_taps;
        for (int64_t k = 0; k < filters; k += L) {
            const int64_t lanes = min_of(L, filters - k);
            int64_t i = 0;
            if (lanes == L)
                for (; i + L <= length; i += L)
                    transpose_tile(from + i * NR + k, NR, row + k * dw.stride[0] + i, dw.stride[0]);
            for (; i < length; ++i)
                for (int64_t l = 0; l < lanes; ++l) row[(k + l) * dw.stride[0] + i] = from[i * NR + k + l];
        }
    }
}

template <class T>
Status conv_dw(const Call& c) {
    constexpr int NR = Blocking<T>::NR;
    const View &dy = c.in[0], &x = c.in[1], &dw_given = c.out[0];
    Scratch dw_scratch(run_bytes<T>(dw_given, 1));
    if (!dw_scratch.as<T>()) return no_memory();
    const View dw = as_run<T>(dw_given, 1, dw_scratch, false);
    const Axes s = axes_of(x, dw, dy, c.attr[kGradStride], c.attr[kGradPadding], c.attr[kGradDilation]);
    const int64_t groups = c.attr[kGradGroups].i, kg = dw.shape[0] / groups, cg = dw.shape[1], taps = s.n_taps();
    const int64_t panels = ceil_div(kg, NR), c_tiles = ceil_div(cg, kMR);
    // Jobs of about 8 channel tiles; more and smaller ones, down to single taps, where there would be too few.
    const int64_t tiles = max_of(1, min_of(8, groups * panels * c_tiles / 8)), c_jobs = ceil_div(c_tiles, tiles);
    const int64_t t_jobs = min_of(taps, max_of(ceil_div(8, groups * panels * c_jobs), ceil_div(tiles * taps, 512))),
                  t_step = ceil_div(taps, t_jobs);
    const int64_t rows = max_of(1, min_of(s.out[1], 32768 / (s.out[2] * NR + 1)));  // pixel rows of dy that stay in L2
    bool enough = true;
    parallel(groups * panels * c_jobs * t_jobs, [&](int64_t job) {
        Share q;
        q.t0 = job % t_jobs * t_step, q.t1 = min_of(q.t0 + t_step, taps);
        q.c0 = job / t_jobs % c_jobs * tiles * kMR, q.c1 = min_of(q.c0 + tiles * kMR, cg);
        q.panel = job / t_jobs / c_jobs % panels;
        q.group = job / t_jobs / c_jobs / panels;
        if (q.t1 <= q.t0) return;
        const int64_t n_sums = (q.c1 - q.c0) * (q.t1 - q.t0) * NR;
        Scratch sum_scratch(static_cast<size_t>(n_sums) * sizeof(T)),
            panel_scratch(static_cast<size_t>(rows * s.out[2] * NR) * sizeof(T));
        T *const sums = sum_scratch.as<T>(), *const panel = panel_scratch.as<T>();
        if (!sums || !panel) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t i = 0; i < n_sums; ++i) sums[i] = 0;
        const int64_t k0 = q.group * kg + q.panel * NR, filters = min_of(NR, kg - q.panel * NR);
        for (int64_t image = 0; image < x.shape[0]; ++image)
            for (int64_t d = 0; d < s.out[0]; ++d)
                for (int64_t h0 = 0; h0 < s.out[1]; h0 += rows) {
                    const int64_t h1 = min_of(h0 + rows, s.out[1]);
                    const T* from = dy.as<T>() + image * dy.stride[0] + k0 * dy.stride[1] + d * s.y_stride[0];
                    for (int64_t h = h0; h < h1; ++h)
                        pack_panel(Matrix<T>{from + h * s.y_stride[1], s.y_stride[2], dy.stride[1]}, 0, s.out[2], 0,
                                   filters, panel + (h - h0) * s.out[2] * NR);
                    sum_rows(x, s, q, cg, image, d, h0, h1, panel, sums);
                }
        write_share(sums, dw, q, kg, taps);
    });
    if (dw.data != dw_given.data) copy<T>(dw_given, dw);
    return enough ? Status::ok : no_memory();
}

// ---- tables ----------------------------------------------------------------------------------------------------------------------

bool nothing(const Call& c) { return numel(c.out[0]) == 0; }

Status run_conv(const Call& c) {
    return nothing(c) ? Status::ok : c.in[0].dtype == DType::f32 ? conv<float>(c) : conv<double>(c);
}
Status run_conv_dx(const Call& c) {
    return nothing(c) ? Status::ok : c.in[0].dtype == DType::f32 ? conv_dx<float>(c) : conv_dx<double>(c);
}
Status run_conv_dw(const Call& c) {
    return nothing(c) ? Status::ok : c.in[0].dtype == DType::f32 ? conv_dw<float>(c) : conv_dw<double>(c);
}

constexpr Operand kXWB[] = {{"x"}, {"w"}, {"b", Role::optional}};
constexpr Operand kDyW[] = {{"dy"}, {"w"}};
constexpr Operand kDyX[] = {{"dy"}, {"x"}};

#define TW_CONV_ATTRS                                                                                               \
    {.name = "stride", .kind = AttrKind::integers, .i = 1}, {.name = "padding", .kind = AttrKind::padding, .i = 0}, \
        {.name = "dilation", .kind = AttrKind::integers, .i = 1},                                                   \
        {.name = "groups", .kind = AttrKind::integer, .i = 1}

constexpr AttrSpec kConvAttrs[] = {
    TW_CONV_ATTRS,
    {.name = "activation", .kind = AttrKind::choice, .choices = "relu|sigmoid|tanh|gelu", .none_ok = true},
    {.name = "layout", .kind = AttrKind::choice, .choices = "NCHW"}};
constexpr AttrSpec kDxAttrs[] = {{.name = "shape", .kind = AttrKind::integers, .required = true}, TW_CONV_ATTRS};
constexpr AttrSpec kDwAttrs[] = {{.name = "kernel", .kind = AttrKind::integers, .required = true}, TW_CONV_ATTRS};

}  // namespace

const OpDef op_conv = {"conv", kXWB, 3, kConvAttrs, TW_COUNT(kConvAttrs), infer_conv, run_conv};
const OpDef op_conv_dx = {"conv_dx", kDyW, 2, kDxAttrs, TW_COUNT(kDxAttrs), infer_conv_dx, run_conv_dx};
const OpDef op_conv_dw = {"conv_dw", kDyX, 2, kDwAttrs, TW_COUNT(kDwAttrs), infer_conv_dw, run_conv_dw};

}  // namespace tw::TW_ISA
