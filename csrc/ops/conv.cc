// Convolution over 1, 2 or 3 spatial axes:
//     y[n,k,p] = act(b[k] + residual[n,k,p] + sum_{c,t} w[k,c,t] x[n,c, p*stride + t*dilation - padding])
//
// Method    implicit GEMM without an unfolded copy: weights in register tiles times windows packed panel by panel from a
//           zero-padded copy of the image; 1x1 kernels read the image itself. Images of few pixels lie side by side, as one
//           with an axis more. layout="NHWC": conv_last.cc; one filter a channel: depthwise.cc; fewer products:
//           conv_winograd.cc.
// Numerics  one running sum over (c, t), see gemm/gemm.h; zeros of the border are multiplied. On a tier with tiles, float
//           weights of many filters and the columns of windows whose exponents fit are multiplied in exact pieces
//           (gemm/pieces.h), with smaller errors than by FMA.
// Threads   tiles of the result; sums are never split between threads.
#include "gemm/padded.h"
#include "gemm/tiled.h"
#include "ops/conv_problem.h"
#include "ops/in_float32.h"

namespace tw::TW_ISA {
namespace {

enum { kStride, kPadding, kDilation, kGroups, kActivation, kLayout, kAlgo };

// The side of the tiles that a Winograd algorithm makes results in; 0: sums as they are written.
int winograd_tile(const Attr& algo) { return algo.is_none ? 0 : algo.choice == 0 ? 4 : 2; }

// Winograd's algorithms know 3x3 kernels alone.
Status check_algo(const View& w, const Attr* a) {
    if (a[kAlgo].is_none) return Status::ok;
    const bool fits = w.ndim == 4 && w.shape[2] == 3 && w.shape[3] == 3 && a[kGroups].i == 1 &&
                      a[kStride].list[0] == 1 && a[kStride].list[1] == 1 && a[kDilation].list[0] == 1 &&
                      a[kDilation].list[1] == 1 && a[kLayout].choice == kNchw;
    if (fits) return Status::ok;
    return fail(Status::attr, "algo",
                "algo='%s' needs a 3x3 kernel, stride=1, dilation=1, groups=1 and layout='NCHW' but w has shape %s and "
                "the attributes differ; want algo=None",
                a[kAlgo].choice == 0 ? "winograd" : "winograd_2x2", shape_text(w).text);
}

Status infer(Call& c, Inferred& r) {
    const View &w = c.in[1], &b = c.in[2], &residual = c.in[3];
    TW_TRY(want_conv_float(c.in[0], "x"));
    TW_TRY(want_ndim(c.in[0], "x", 3, 5));
    TW_TRY(want_dtype_of(w, "w", c.in[0], "x"));
    const View x = in_order(c.in[0], c.attr[kLayout]);
    View y = result(x.dtype, x.ndim, x.shape);
    TW_TRY(check_conv(x, w, c.attr[kStride], c.attr[kPadding], c.attr[kDilation], c.attr[kGroups], y.shape + 2, "x"));
    TW_TRY(check_algo(w, c.attr));
    y.shape[1] = w.shape[0];
    y = in_layout(y, c.attr[kLayout]);
    TW_TRY(check_bias(b, x, w.shape[0]));
    if (given(residual)) {
        TW_TRY(want_dtype_of(residual, "residual", x, "x"));
        TW_TRY(want_shape(residual, "residual", y.ndim, y.shape));
    }
    r.n_out = 1;
    r.out[0] = y;
    r.flops = 2.0 * static_cast<double>(numel(y)) * static_cast<double>(w.shape[1]);
    for (int d = 2; d < w.ndim; ++d) r.flops *= static_cast<double>(w.shape[d]);
    return Status::ok;
}

constexpr int64_t kMaxTaps = 1 << 16;  // along one axis, for the offset tables
constexpr int64_t kFewPixels = 4;  // of an image, for a register tile
constexpr int64_t kSparePixels = 8, kSidePixels = 64;  // of an image, for a panel, and for the way of large weights
constexpr int64_t kPassingWeights = 1 << 18;  // are large
constexpr int64_t kCopiedBytes = 32 << 20;  // of a padded image; larger ones are read where they are
constexpr int64_t kPaddedRows = 32, kPaddedElements = 4096;  // of the copy, filled by one job: at most, at least

// A 1x1 kernel on all pixels: the image is the matrix.
bool is_point(const ConvAxes& s) {
    bool point = true;
    for (int a = 0; a < kMaxRank; ++a) point = point && s.taps[a] == 1 && s.stride[a] == 1 && s.out[a] == s.in[a];
    return point;
}

// y = residual + bias, what a depthwise convolution is then added to.
template <class T>
void start_from(const View& residual, const T* bias, const View& y) {
    copy<T>(y, residual);
    if (!bias) return;
    const int64_t pixels = numel(y) / (y.shape[0] * y.shape[1]);
    parallel(y.shape[0] * y.shape[1], [&](int64_t i) {
        T* row = y.as<T>() + i / y.shape[1] * y.stride[0] + i % y.shape[1] * y.stride[1];
        for (int64_t p = 0; p < pixels; ++p) row[p] += bias[i % y.shape[1]];
    });
}

// All rows of the padded copy of one image.
template <class T>
void fill_all(const Padded<T>& p, const Window<T>& w, int64_t channels, const ConvAxes& s) {
    const int64_t rows = p.size[0] * p.size[1], per_channel = ceil_div(rows, kPaddedRows);
    const int64_t together = ceil_div(kPaddedElements, min_of(rows, kPaddedRows) * p.row);
    const int64_t across = ceil_div(channels, together);
    parallel(across * per_channel, [&](int64_t job) {
        const int64_t first = job / across * kPaddedRows, c0 = job % across * together;
        for (int64_t c = c0; c < min_of(c0 + together, channels); ++c)
            fill_padded(p, w, c, first, min_of(first + kPaddedRows, rows), s.before);
    });
}

// The filters of every group as gemm/tiled.h reads them, for so many pixels.
template <class T>
void pack_weights(const View& w, int64_t groups, int64_t pixels, char* to) {
    const int64_t kg = w.shape[0] / groups, depth = numel(w) / w.shape[0];
    Scratch scratch(run_bytes<T>(w, 1));
    if (!scratch.as<T>()) return;
    const View rows = as_run<T>(w, 1, scratch, true);
    for (int64_t group = 0; group < groups; ++group)
        lay_out(Matrix<T>{rows.as<T>() + group * kg * rows.stride[0], rows.stride[0], 1}, kg, depth, pixels,
                to + group * laid_bytes<T>(kg, depth, pixels));
}

bool is_depthwise(int64_t filters, int64_t channels, int64_t groups, const ConvAxes& s) {
    return channels == 1 && filters <= kDepthwiseFilters && groups > 1 && (s.stride[2] == 1 || padded_copy_fits(s));
}

// Whether weights are laid out in tiles: prepared or not, so that the bits are the same.
bool is_tiled(int64_t filters, const ConvAxes& s) { return filters > kMR && pixels_of(s) > kFewPixels; }

// Whether the images of a batch are convolved as one: where an image leaves much of a panel empty, or makes more weights
// pass through the caches than it has work for.
bool is_side_by_side(const Call& c, const ConvAxes& s) {
    const View &x = c.in[0], &w = c.in[1];
    const int64_t pixels = pixels_of(s), groups = c.attr[kGroups].i, filters = w.shape[0] / groups;
    if (x.shape[0] == 1 || x.ndim == 5 || !c.attr[kAlgo].is_none || filters <= kMR) return false;
    if (x.shape[0] * pixels <= kFewPixels || is_depthwise(filters, w.shape[1], groups, s)) return false;
    return pixels <= kSparePixels || (pixels <= kSidePixels && numel(w) / groups >= kPassingWeights);
}

template <class T>
Status conv(const Call& c) {
    const View &w_given = c.in[1], &b = c.in[2];
    View x_given = c.in[0], residual = c.in[3], y_given = c.out[0];
    const int64_t groups = c.attr[kGroups].i, kg = w_given.shape[0] / groups, cg = w_given.shape[1];
    ConvAxes s = conv_axes(x_given, w_given, y_given, c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
    if (s.taps[0] > kMaxTaps || s.taps[1] > kMaxTaps || s.taps[2] > kMaxTaps)
        return fail(Status::unsupported, "w", "w has more than 65536 taps along an axis; want fewer");
    if (is_side_by_side(c, s)) {
        s = side_by_side(s, x_given, y_given);
        x_given = side_by_side(x_given), y_given = side_by_side(y_given);
        if (given(residual)) residual = side_by_side(residual);
    }
    const bool point = is_point(s);
    Scratch w_scratch(run_bytes<T>(w_given, 1)), y_scratch(run_bytes<T>(y_given, 2)),
        x_scratch(point ? run_bytes<T>(x_given, 2) : 64);
    Scratch bias_scratch(static_cast<size_t>(w_given.shape[0] + 1) * sizeof(T));
    if (!w_scratch.as<T>() || !y_scratch.as<T>() || !x_scratch.as<T>() || !bias_scratch.as<T>()) return no_memory();
    const View w = as_run<T>(w_given, 1, w_scratch, true), y = as_run<T>(y_given, 2, y_scratch, false);
    const View x = point ? as_run<T>(x_given, 2, x_scratch, true) : x_given;
    run_strides(x, s.x_stride), run_strides(y, s.y_stride);
    const Activation activation = activation_of(c.attr[kActivation]);
    T* bias = given(b) ? bias_scratch.as<T>() : nullptr;
    for (int64_t k = 0; bias && k < w.shape[0]; ++k) bias[k] = b.as<T>()[k * b.stride[0]];
    if (const int tile = winograd_tile(c.attr[kAlgo])) {
        Scratch residual_scratch(given(residual) ? run_bytes<T>(residual, 2) : 64);
        if (!residual_scratch.as<T>()) return no_memory();
        ConvWinograd q{};
        q.x = c.in[0], q.w = w, q.y = y, q.axes = s;
        if (given(b)) q.bias = b;
        if (given(residual)) q.residual = as_run<T>(residual, 2, residual_scratch, true);
        q.activation = activation, q.tile = tile, q.packed = c.packed;
        const Status status = conv_winograd(q);
        if (y.data != y_given.data) copy<T>(y_given, y);
        return status;
    }
    if (is_depthwise(kg, cg, groups, s)) {
        View bias_view = result(x.dtype, 1, w.shape);
        bias_view.data = bias, bias_view.stride[0] = 1;
        if (given(residual)) {
            start_from(residual, bias, y);
            bias_view.data = nullptr;
        }
        const Status status = depthwise({x, w, y, bias_view, s, activation, false, given(residual)});
        if (y.data != y_given.data) copy<T>(y_given, y);
        return status;
    }
    Scratch offsets(static_cast<size_t>(s.taps[0] + s.taps[1] + s.taps[2]) * sizeof(int64_t));
    if (!offsets.as<int64_t>()) return no_memory();
    Window<T> window{};
    window.channel_stride = x.stride[1];
    for (int a = 0, at = 0; a < kMaxRank; ++a) {
        int64_t* offset = offsets.as<int64_t>() + at;
        for (int64_t t = 0; t < s.taps[a]; ++t) offset[t] = t * s.dilation[a] - s.before[a];
        window.axis[a] = {s.in[a], s.out[a], s.x_stride[a], s.stride[a], s.taps[a], offset};
        at += static_cast<int>(s.taps[a]);
    }
    Gemm<T> g{};
    g.m = kg, g.n = pixels_of(s), g.k = cg * taps_of(s);
    g.c_row = y.stride[1], g.c_col = 1;
    g.activation = activation;
    const void* laid = c.packed;
    const bool tiled = is_tiled(kg, s);
    Padded<T> layout = padded_for(window, s.dilation);
    const bool padded = tiled && taps_of(s) > 1 && padded_copy_fits(s) &&
                        layout.elements(cg) * static_cast<int64_t>(sizeof(T)) <= kCopiedBytes;
    const bool laid_once = tiled && !laid && x.shape[0] > 1;
    Scratch table(static_cast<size_t>(g.k + 1) * sizeof(int64_t)),
        start_scratch(given(residual) ? run_bytes<T>(residual, 2) : 64),
        laid_scratch(laid_once ? static_cast<size_t>(groups * laid_bytes<T>(kg, g.k, g.n)) + 64 : 64);
    layout.offset = table.as<int64_t>();
    if (!layout.offset || !start_scratch.as<T>() || !laid_scratch.as<char>()) return no_memory();
    if (laid_once) {
        pack_weights<T>(w, groups, g.n, laid_scratch.as<char>());
        laid = laid_scratch.as<char>();
    }
    if (padded)
        padded_offsets(layout, window, cg, s.dilation);
    else
        for (int64_t k = 0; point && k < g.k; ++k) layout.offset[k] = k * x.stride[1];
    View start{};
    if (given(residual)) start = as_run<T>(residual, 2, start_scratch, true);
    const Status status = for_images(x.shape[0], groups, conv_flops(y, w), [&](int64_t image, int64_t group) {
        Gemm<T> one = g;
        Window<T> here = window;
        here.image = x.as<T>() + image * x.stride[0] + group * cg * x.stride[1];
        one.a = {w.as<T>() + group * kg * w.stride[0], w.stride[0], 1};
        one.c = y.as<T>() + image * y.stride[0] + group * kg * y.stride[1];
        one.bias_row = bias ? bias + group * kg : nullptr;
        if (start.data)
            one.addend = {start.as<T>() + image * start.stride[0] + group * kg * start.stride[1], start.stride[1], 1};
        Padded<T> own = layout;
        Scratch copy_scratch(padded ? static_cast<size_t>(layout.elements(cg)) * sizeof(T) : 64);
        if (padded) {
            own.data = copy_scratch.as<T>();
            if (!own.data) return false;
            fill_all(own, here, cg, s);
            one.pack_b = pack_padded<T>, one.context = &own;
        } else if (point) {
            one.b = {here.image, x.stride[1], 1};
        } else {
            one.pack_b = pack_window<T>, one.context = &here;
        }
        if (!tiled) return gemm(one);
        const Source<T> source = {padded || point ? layout.offset : nullptr, padded ? padded_vectors<T> : nullptr,
                                  padded ? padded_parts<T> : nullptr};
        return gemm_tiled(one, laid_at<T>(laid, kg, g.k, group), source);
    });
    if (y.data != y_given.data) copy<T>(y_given, y);
    return status;
}

Status run_f32_f64(const Call& c) {
    if (c.attr[kLayout].choice == kNhwc) {
        ConvLast q{};
        q.x = channels_first(c.in[0]), q.w = c.in[1], q.y = channels_first(c.out[0]);
        if (given(c.in[2])) q.bias = c.in[2];
        if (given(c.in[3])) q.residual = channels_first(c.in[3]);
        q.axes = conv_axes(q.x, q.w, q.y, c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
        q.groups = c.attr[kGroups].i;
        q.activation = activation_of(c.attr[kActivation]);
        q.packed = c.packed;
        return conv_last(q);
    }
    return c.in[0].dtype == DType::f32 ? conv<float>(c) : conv<double>(c);
}

Status run(const Call& c) { return in_float32(c, run_f32_f64); }

// ---- prepared weights ------------------------------------------------------------------------------------------------------

bool can_pack(const Call& c) {
    const View& w = c.in[1];
    const int64_t groups = c.attr[kGroups].i;
    return given(w) && w.ndim >= 3 && w.ndim <= 5 && numel(w) > 0 && groups >= 1 && w.shape[0] % groups == 0 &&
           (w.dtype == DType::f32 || w.dtype == DType::f64);
}

// The pixels that weights are packed for.
int64_t packed_pixels(const Call& c) {
    if (c.n_out == 0 || !given(c.in[0])) return kManyColumns;
    const ConvAxes s = conv_axes(c.in[0], c.in[1], c.out[0], c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
    return pixels_of(is_side_by_side(c, s) ? side_by_side(s, c.in[0], c.out[0]) : s);
}

int64_t packed_size(const Call& c) {
    if (!can_pack(c)) return 0;
    const View& w = c.in[1];
    const int64_t groups = c.attr[kGroups].i, filters = w.shape[0] / groups, depth = numel(w) / w.shape[0];
    if (c.attr[kLayout].choice == kNhwc) return conv_last_packed_size(w, groups);
    if (const int tile = winograd_tile(c.attr[kAlgo]))
        return w.ndim == 4 && w.shape[2] == 3 && w.shape[3] == 3 ? conv_winograd_packed_size(w, tile) : 0;
    if (c.n_out > 0 && given(c.in[0])) {
        ConvAxes s = conv_axes(c.in[0], w, c.out[0], c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
        if (is_side_by_side(c, s)) s = side_by_side(s, c.in[0], c.out[0]);
        if (is_depthwise(filters, w.shape[1], groups, s) || !is_tiled(filters, s)) return 0;
    }
    const int64_t pixels = packed_pixels(c);
    return groups * (w.dtype == DType::f32 ? laid_bytes<float>(filters, depth, pixels)
                                           : laid_bytes<double>(filters, depth, pixels));
}

void pack(const Call& c, void* packed) {
    const View& w = c.in[1];
    const int64_t groups = c.attr[kGroups].i;
    if (c.attr[kLayout].choice == kNhwc) return conv_last_pack(w, groups, packed);
    if (const int tile = winograd_tile(c.attr[kAlgo])) return conv_winograd_pack(w, tile, packed);
    const auto pack_floats = w.dtype == DType::f32 ? pack_weights<float> : pack_weights<double>;
    pack_floats(w, groups, packed_pixels(c), static_cast<char*>(packed));
}

constexpr Operand kOperands[] = {{"x"}, {"w"}, {"b", Role::optional}, {"residual", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    TW_CONV_ATTRS,
    {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true},
    TW_CONV_LAYOUT,
    {.name = "algo", .kind = AttrKind::choice, .choices = "winograd|winograd_2x2", .none_ok = true}};

}  // namespace

extern const Entry op_conv = {"conv", kOperands, 4, kAttrs, TW_COUNT(kAttrs), infer, run, 0, packed_size, pack};

}  // namespace tw::TW_ISA
