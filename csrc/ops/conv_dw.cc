// The gradient of convolution in w:
//     dw[k,c,t] = c[k,c,t] + sum_{n,p} dy[n,k,p] x[n,c, p*stride + t*dilation - padding]
//
// Method    register tiles over runs of pixels, six channels of x in place against a transposed panel of dy, so that
//           padded taps cost nothing. On a tier that lends tiles, large ones in exact pieces: gemm/gradient_pieces.cc.
// Numerics  one running sum over the pixels of an image, images added in order; c comes last. In pieces: gemm/pieces.h.
// Threads   parts of the result; sums are never split between threads.
#include "core/convolution.h"
#include "core/tile_kernels.h"
#include "gemm/gradient_pieces.h"
#include "gemm/pack.h"
#include "gemm/tiled_pieces.h"
#include "gemm/window.h"
#include "ops/conv_problem.h"
#include "ops/in_float32.h"

namespace tw::TW_ISA {
namespace {

enum { kSize, kStride, kPadding, kDilation, kGroups, kLayout };

Status infer(Call& c, Inferred& r) {
    TW_TRY(want_conv_float(c.in[0], "dy"));
    TW_TRY(want_ndim(c.in[0], "dy", 3, 5));
    TW_TRY(want_dtype_of(c.in[1], "x", c.in[0], "dy"));
    TW_TRY(want_ndim(c.in[1], "x", c.in[0].ndim, c.in[0].ndim));
    const View dy = in_order(c.in[0], c.attr[kLayout]), x = in_order(c.in[1], c.attr[kLayout]);
    Attr& kernel = c.attr[kSize];
    const Attr& groups = c.attr[kGroups];
    TW_TRY(resolve_integers(kernel, "kernel", dy.ndim - 2, 1));
    View w = result(dy.dtype, dy.ndim, dy.shape);
    w.shape[0] = dy.shape[1];
    if (groups.i < 1)
        return fail(Status::attr, "groups", "groups=%lld; want at least 1", static_cast<long long>(groups.i));
    w.shape[1] = x.shape[1] / groups.i;
    for (int d = 2; d < w.ndim; ++d) w.shape[d] = kernel.list[d - 2];
    int64_t out[kMaxDims];
    TW_TRY(check_conv(x, w, c.attr[kStride], c.attr[kPadding], c.attr[kDilation], groups, out, "kernel"));
    TW_TRY(check_conv_dy(dy, x, w, out));
    TW_TRY(check_c(c.in[2], w, "dy"));
    r.n_out = 1;
    r.out[0] = w;
    r.flops = conv_flops(dy, w);
    return Status::ok;
}

// Adds the pixel rows [h0, h1) of depth d of one image to sums[channel][tap][NR]; `panel` is dy there as [pixel][NR].
template <class T>
void sum_rows(const View& x, const ConvAxes& s, const Share& q, int64_t cg, int64_t image, int64_t d, int64_t h0,
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
void write_share(const T* sums, int64_t NR, const View& dw, const Share& q, int64_t kg, int64_t all_taps) {
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

// ---- in pieces, on tiles ---------------------------------------------------------------------------------------------------

struct Written {
    const View& dw;
    int64_t kg, taps;
};
void write_pieces(const void* context, const Share& q, const float* sums) {
    const Written& w = *static_cast<const Written*>(context);
    write_share(sums, kPanelColumns, w.dw, q, w.kg, w.taps);
}

// Whether tiles are faster, in cycles: six products of each step of a tile, and the splitting of both operands; by FMA, a
// vector of filters at a time.
bool pieces_pay(const ConvAxes& s, int64_t images, int64_t kg, int64_t cg) {
    if (cg < 12 || kg < 12) return false;
    const Planes p(s, 1);
    const double tiles = static_cast<double>(ceil_div(cg, kTileRows) * ceil_div(kg, kPanelColumns) * taps_of(s));
    const double filters = static_cast<double>(ceil_div(kg, kLanes<float>) * kLanes<float>);
    const double steps = static_cast<double>(ceil_div(p.image, kPieceTerms) * images);
    const double split = static_cast<double>((cg * p.size + kg * p.image) * images);
    return tiles * (steps * 200 + 100) + 2 * split <
           static_cast<double>(taps_of(s) * pixels_of(s) * images * cg) * filters / 22;
}

bool in_pieces(const View& dy, const View& x, const View& dw, const ConvAxes& s, int64_t groups, Status& status) {
    const int64_t kg = dw.shape[0] / groups, cg = dw.shape[1];
    if (kVectorRegisters < 32 || !tile_kernels().dw || !pieces_pay(s, x.shape[0], kg, cg)) return false;
    const Written written = {dw, kg, taps_of(s)};
    DwInPieces job = {
        s,  x.as<float>(), dy.as<float>(), x.stride[0], x.stride[1], dy.stride[0], dy.stride[1], x.shape[0], groups, kg,
        cg, write_pieces,  &written};
    const auto result = static_cast<InPiecesResult>(tile_kernels().dw(&job));
    status = result == InPiecesResult::no_memory ? no_memory() : Status::ok;
    return result != InPiecesResult::refused;
}

template <class T>
Status conv_dw(const Call& c) {
    constexpr int NR = Blocking<T>::NR;
    const View dy = in_order(c.in[0], c.attr[kLayout]), x = in_order(c.in[1], c.attr[kLayout]), &dw_given = c.out[0];
    Scratch dw_scratch(run_bytes<T>(dw_given, 1));
    if (!dw_scratch.as<T>()) return no_memory();
    const View dw = as_run<T>(dw_given, 1, dw_scratch, false);
    const ConvAxes s = conv_axes(x, dw, dy, c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
    const int64_t groups = c.attr[kGroups].i, kg = dw.shape[0] / groups, cg = dw.shape[1], taps = taps_of(s);
    const int64_t panels = ceil_div(kg, NR), c_tiles = ceil_div(cg, kMR);
    if (cg == 1 && kg <= kDepthwiseFilters && groups > 1 && padded_copy_fits(s)) {
        Scratch dy_scratch(run_bytes<T>(dy, 2));
        if (!dy_scratch.as<T>()) return no_memory();
        Depthwise q{};
        q.x = x, q.w = dw, q.y = as_run<T>(dy, 2, dy_scratch, true), q.axes = s;
        run_strides(q.y, q.axes.y_stride);
        const Status status = depthwise_dw(q);
        if (dw.data != dw_given.data) copy<T>(dw_given, dw);
        return status;
    }
    Status status;
    if constexpr (sizeof(T) == 4)
        if (in_pieces(dy, x, dw, s, groups, status)) {
            if (dw.data != dw_given.data) copy<T>(dw_given, dw);
            return status;
        }
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
        write_share(sums, NR, dw, q, kg, taps);
    });
    if (dw.data != dw_given.data) copy<T>(dw_given, dw);
    return enough ? Status::ok : no_memory();
}

Status run_f32_f64(const Call& c) {
    return c.in[0].dtype == DType::f32 ? plus_c<float>(c, c.in[2], conv_dw<float>)
                                       : plus_c<double>(c, c.in[2], conv_dw<double>);
}

Status run(const Call& c) { return in_float32(c, run_f32_f64); }

constexpr Operand kDyX[] = {{"dy"}, {"x"}, {"c", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "kernel", .kind = AttrKind::integers, .required = true}, TW_CONV_ATTRS, TW_CONV_LAYOUT};

}  // namespace

extern const Entry op_conv_dw = {"conv_dw", kDyX, 3, kAttrs, TW_COUNT(kAttrs), infer, run, kOutIsLast};

}  // namespace tw::TW_ISA
