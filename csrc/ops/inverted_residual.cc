// An inverted residual: x (N, Cin, H, W) widened by a 1x1 convolution, filtered channel by channel, narrowed by another:
//     e = act(wide x + wide_b),  d[c,p] = act(b[c] + sum_t w[c,t] e[c, p*stride + t*dilation - padding]),
//     y = narrow_act(narrow d + narrow_b + residual);  without `wide` e is x.
//
// Method    What is wide never leaves the caches. Channels go in slices of a register tile's width, and lie beside each
//           other: a few rows of e of one slice are filtered as soon as they are made,
//               e [row][column][NR]  ->  d [pixel][C]
//           and d, of a band of the image that stays in L2, is narrowed in runs of pixels, whose results are
//           turned on their way to y. 1x1 products are register tiles over packed weights, [panel][k][NR].
// Numerics  one running sum each, cut every KC terms of a product; zeros of the border are multiplied.
// Threads   bands; or, of a band, slices, then runs of pixels or panels; sums are never split between threads.
// Source    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018.
#include "ops/in_float32.h"
#include "ops/inverted_residual_block.h"

namespace tw::TW_ISA {
namespace {

enum Place { kX, kW, kNarrow, kWide, kB, kNarrowB, kWideB, kResidual, kPlaces };
enum Attribute { kStride, kPadding, kDilation, kActivation, kNarrowActivation };

// ---- shapes -----------------------------------------------------------------------------------------------------------------

int64_t channels_of(const Call& c) { return given(c.in[kWide]) ? c.in[kWide].shape[0] : c.in[kX].shape[1]; }

// A 1x1 kernel (out, in, 1, 1); out < 0: any.
Status check_point(const Call& c, Place place, int64_t out, int64_t in) {
    const View& w = c.in[place];
    const char* const name = c.op->operands[place].name;
    TW_TRY(want_dtype_of(w, name, c.in[kX], "x"));
    TW_TRY(want_ndim(w, name, 4, 4));
    const int64_t shape[] = {out < 0 ? w.shape[0] : out, in, 1, 1};
    return want_shape(w, name, 4, shape);
}

Status check_biases(const Call& c, int64_t channels, int64_t filters) {
    const Place places[] = {kB, kNarrowB, kWideB};
    for (const Place place : places) {
        if (!given(c.in[place])) continue;
        const char* const name = c.op->operands[place].name;
        TW_TRY(want_dtype_of(c.in[place], name, c.in[kX], "x"));
        TW_TRY(want_shape(c.in[place], name, 1, place == kNarrowB ? &filters : &channels));
    }
    if (given(c.in[kWideB]) && !given(c.in[kWide]))
        return fail(Status::shape, "wide_b", "wide_b is given but wide is not; want both or neither");
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[kX], &w = c.in[kW], &residual = c.in[kResidual];
    TW_TRY(want_conv_float(x, "x"));
    TW_TRY(want_ndim(x, "x", 4, 4));
    if (given(c.in[kWide])) TW_TRY(check_point(c, kWide, -1, x.shape[1]));
    const int64_t channels = channels_of(c);
    TW_TRY(want_dtype_of(w, "w", x, "x"));
    TW_TRY(want_ndim(w, "w", 4, 4));
    const int64_t filter[] = {channels, 1, w.shape[2], w.shape[3]};
    TW_TRY(want_shape(w, "w", 4, filter));
    if (channels < 1) return fail(Status::shape, "w", "w has shape %s; want one channel or more", shape_text(w).text);
    const int64_t wide[] = {x.shape[0], channels, x.shape[2], x.shape[3]};
    Attr groups{};
    groups.i = channels;
    View y = result(x.dtype, 4, wide);
    TW_TRY(check_conv(result(x.dtype, 4, wide), w, c.attr[kStride], c.attr[kPadding], c.attr[kDilation], groups,
                      y.shape + 2, "x"));
    TW_TRY(check_point(c, kNarrow, -1, channels));
    y.shape[1] = c.in[kNarrow].shape[0];
    TW_TRY(check_biases(c, channels, y.shape[1]));
    if (given(residual)) {
        TW_TRY(want_dtype_of(residual, "residual", x, "x"));
        TW_TRY(want_shape(residual, "residual", 4, y.shape));
    }
    r.n_out = 1;
    r.out[0] = y;
    const double seen = static_cast<double>(x.shape[0] * x.shape[2] * x.shape[3]);
    const double made = static_cast<double>(x.shape[0] * y.shape[2] * y.shape[3]);
    r.flops = 2 * made * static_cast<double>(numel(w) + channels * y.shape[1]);
    if (given(c.in[kWide])) r.flops += 2 * seen * static_cast<double>(numel(c.in[kWide]));
    return Status::ok;
}

// ---- weights: where each of the three begins, then the panels of wide and narrow, and of w [panel][tap][NR] --------------

struct Header {
    int64_t at[3];  // bytes from the header on; 0: not packed
    int64_t pad[5];
};
constexpr Place kWeights[] = {kWide, kW, kNarrow};

// Rows of a panel: the numbers of one filter.
int64_t depth_of(const View& w) { return w.shape[1] * w.shape[2] * w.shape[3]; }

template <class T>
int64_t panel_bytes(const View& w) {
    return ceil_div(w.shape[0], kNR<T>) * kNR<T> * max_of(depth_of(w), 1) * static_cast<int64_t>(sizeof(T));
}
int64_t packed_bytes(const View& w) {
    if (!given(w) || w.ndim != 4 || numel(w) == 0) return 0;
    return w.dtype == DType::f32 ? panel_bytes<float>(w) : w.dtype == DType::f64 ? panel_bytes<double>(w) : 0;
}

// Filters (out, in, kh, kw) as [panel][in][kh][kw][NR], zeros beyond the last one.
template <class T>
void pack_filters(const View& w, T* to) {
    const int64_t depth = depth_of(w);
    parallel(ceil_div(w.shape[0], kNR<T>), [&](int64_t p) {
        T* panel = to + p * kNR<T> * depth;
        const int64_t n = min_of(kNR<T>, w.shape[0] - p * kNR<T>);
        for (int64_t i = 0; i < w.shape[1]; ++i)
            for (int64_t h = 0; h < w.shape[2]; ++h)
                for (int64_t v = 0; v < w.shape[3]; ++v, panel += kNR<T>) {
                    const T* from =
                        w.as<T>() + p * kNR<T> * w.stride[0] + i * w.stride[1] + h * w.stride[2] + v * w.stride[3];
                    for (int64_t k = 0; k < kNR<T>; ++k) panel[k] = k < n ? from[k * w.stride[0]] : T{};
                }
    });
}

int64_t packed_size(const Call& c) {
    int64_t bytes = 0;
    for (const Place place : kWeights) bytes += packed_bytes(c.in[place]);
    return bytes ? bytes + static_cast<int64_t>(sizeof(Header)) : 0;
}

void pack(const Call& c, void* to) {
    Header* const header = static_cast<Header*>(to);
    *header = {};
    int64_t at = sizeof(Header);
    for (int i = 0; i < 3; ++i) {
        const View& w = c.in[kWeights[i]];
        const int64_t bytes = packed_bytes(w);
        if (!bytes) continue;
        void* const panels = static_cast<char*>(to) + at;
        w.dtype == DType::f32 ? pack_filters(w, static_cast<float*>(panels))
                              : pack_filters(w, static_cast<double*>(panels));
        header->at[i] = at;
        at += bytes;
    }
}

// ---- running ----------------------------------------------------------------------------------------------------------------

// The numbers of an optional bias, zeros up to whole panels behind them; null where it is not given.
template <class T>
const T* padded_bias(const View& b, int64_t count, T* to) {
    if (!given(b)) return nullptr;
    for (int64_t k = 0; k < ceil_div(count, kNR<T>) * kNR<T>; ++k) to[k] = k < count ? b.as<T>()[k * b.stride[0]] : T{};
    return to;
}

template <class T>
Status run_as(const Call& c) {
    const View &x_given = c.in[kX], &y_given = c.out[0], &residual_given = c.in[kResidual];
    Scratch x_scratch(run_bytes<T>(x_given, 2)), y_scratch(run_bytes<T>(y_given, 2)),
        residual_scratch(given(residual_given) ? run_bytes<T>(residual_given, 2) : 64);
    const Header* const header = static_cast<const Header*>(c.packed);
    int64_t unpacked = 64;
    for (int i = 0; i < 3; ++i)
        if (!header || !header->at[i]) unpacked += packed_bytes(c.in[kWeights[i]]);
    Block<T> q{};
    q.in = x_given.shape[1], q.channels = channels_of(c), q.filters = y_given.shape[1];
    q.panels = ceil_div(q.channels, kNR<T>);
    const int64_t wide_b = q.panels * kNR<T>, narrow_b = ceil_div(q.filters, kNR<T>) * kNR<T>;
    Scratch weights(static_cast<size_t>(unpacked)),
        biases(static_cast<size_t>(2 * wide_b + narrow_b + max_of(1, x_given.shape[3]) * kNR<T>) * sizeof(T));
    if (!x_scratch.as<T>() || !y_scratch.as<T>() || !residual_scratch.as<T>() || !weights.as<T>() || !biases.as<T>())
        return no_memory();
    const View x = as_run<T>(x_given, 2, x_scratch, true), y = as_run<T>(y_given, 2, y_scratch, false);
    View residual{};
    if (given(residual_given)) residual = as_run<T>(residual_given, 2, residual_scratch, true);
    const T* panels[3] = {};
    T* own = weights.as<T>();
    for (int i = 0; i < 3; ++i) {
        const View& w = c.in[kWeights[i]];
        if (header && header->at[i]) {
            panels[i] = reinterpret_cast<const T*>(static_cast<const char*>(c.packed) + header->at[i]);
        } else if (given(w)) {
            pack_filters(w, own);
            panels[i] = own;
            own += packed_bytes(w) / static_cast<int64_t>(sizeof(T));
        }
    }
    q.wide = panels[0], q.w = panels[1], q.narrow = panels[2];
    T* const bias = biases.as<T>();
    q.wide_b = padded_bias(c.in[kWideB], q.channels, bias);
    q.b = padded_bias(c.in[kB], q.channels, bias + wide_b);
    q.narrow_b = padded_bias(c.in[kNarrowB], q.filters, bias + 2 * wide_b);
    T* const zeros = bias + 2 * wide_b + narrow_b;
    for (int64_t k = 0; k < max_of(1, x.shape[3]) * kNR<T>; ++k) zeros[k] = T{};
    q.zeros = zeros;
    q.s = conv_axes(x, c.in[kW], y, c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
    q.x_plane = x.stride[1], q.y_plane = y.stride[1], q.residual_plane = residual.stride[1];
    q.activation = activation_of(c.attr[kActivation]), q.last = activation_of(c.attr[kNarrowActivation]);
    note_kernel("inverted residual");
    if (!q.run(x, y, residual)) return no_memory();
    if (y.data != y_given.data) copy<T>(y_given, y);
    return Status::ok;
}

Status run_f32_f64(const Call& c) { return c.in[kX].dtype == DType::f32 ? run_as<float>(c) : run_as<double>(c); }
Status run(const Call& c) { return in_float32(c, run_f32_f64); }

constexpr Operand kOperands[] = {{"x"},
                                 {"w"},
                                 {"narrow"},
                                 {"wide", Role::optional},
                                 {"b", Role::optional},
                                 {"narrow_b", Role::optional},
                                 {"wide_b", Role::optional},
                                 {"residual", Role::optional}};
static_assert(TW_COUNT(kOperands) == kPlaces);
constexpr AttrSpec kAttrs[] = {
    {.name = "stride", .kind = AttrKind::integers, .i = 1},
    {.name = "padding", .kind = AttrKind::padding, .i = 0},
    {.name = "dilation", .kind = AttrKind::integers, .i = 1},
    {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true},
    {.name = "narrow_activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true}};

}  // namespace

extern const Entry op_inverted_residual = {
    "inverted_residual", kOperands, kPlaces, kAttrs, TW_COUNT(kAttrs), infer, run, 0, packed_size, pack};

}  // namespace tw::TW_ISA
