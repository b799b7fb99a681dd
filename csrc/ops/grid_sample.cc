// Values of x between its elements, at the places that a grid names:
//
//   y[n, c, o..] = sum over taps t of weight_t(grid[n, o..]) x[n, c, place_t]
//
// A place is named by one number per spatial axis, the last axis first, from -1 at the first element to 1 at the last
// (align_corners), or at the outer edges of the two.
//
// Method    the taps of a place are found once and serve all channels: one, 2 or 4 along each axis.
// Numerics  coordinates, weights and sums in double, rounded once. nearest rounds halves to even; cubic has a = -0.75.
// Threads   places of the result.
// Source    Jaderberg et al., "Spatial transformer networks", 2015; ONNX GridSample-22.
#include "core/axes.h"
#include "core/check.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

enum GridAttr { kMode, kPadding, kAlignCorners };
enum Mode { kLinear, kNearest, kCubic };
enum Padding { kZeros, kBorder, kReflection };
constexpr int kMaxSpatial = 3;
constexpr int kMaxTaps = 64;  // 4 along each of 3 axes

// Mirrored at both ends until it is between them.
double reflected(double v, double low, double high) {
    const double range = high - low;
    if (!(range > 0)) return low;
    const double beyond = v < low ? low - v : v > high ? v - high : 0;
    if (beyond == 0) return v;
    const double times = __builtin_floor(beyond / range), rest = beyond - times * range;
    const bool even = static_cast<int64_t>(times) % 2 == 0;
    return (v < low) == even ? low + rest : high - rest;
}

struct Spatial {
    int64_t size, stride;
    double low, high;  // where reflection turns back
};

double in_elements(double v, const Spatial& s, bool align_corners) {
    const auto size = static_cast<double>(s.size);
    v = align_corners ? (v + 1) / 2 * (size - 1) : ((v + 1) * size - 1) / 2;
    return v == v ? (v > -0x1p40 ? (v < 0x1p40 ? v : 0x1p40) : -0x1p40) : -1;
}

double padded(double v, const Spatial& s, int padding) {
    if (v >= s.low && v <= s.high) return v;
    const auto last = static_cast<double>(s.size - 1);
    if (padding == kBorder) return v < 0 ? 0 : v > last ? last : v;
    return padding == kReflection ? reflected(v, s.low, s.high) : v;
}

struct Taps {
    int n;
    int64_t offset[kMaxTaps];
    double weight[kMaxTaps];
};

// Numbers of an axis' taps and the weight of each; out is what they are multiplied with.
void extend(Taps& taps, const Spatial& s, double v, int mode, int padding) {
    double weight[4];
    int count = 1;
    auto first = static_cast<int64_t>(__builtin_floor(v));
    const double t = v - static_cast<double>(first);
    if (mode == kNearest) {
        first = static_cast<int64_t>(v);
        weight[0] = 1;
    } else if (mode == kLinear) {
        count = 2;
        weight[0] = 1 - t, weight[1] = t;
    } else {
        constexpr double a = -0.75;
        count = 4;
        --first;
        const double u = 1 - t;
        weight[0] = ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a;
        weight[1] = ((a + 2) * t - (a + 3)) * t * t + 1;
        weight[2] = ((a + 2) * u - (a + 3)) * u * u + 1;
        weight[3] = ((a * (u + 1) - 5 * a) * (u + 1) + 8 * a) * (u + 1) - 4 * a;
    }
    Taps made;
    made.n = 0;
    for (int k = 0; k < count; ++k) {
        int64_t at = first + k;
        if (at < 0 || at >= s.size) {
            if (padding == kZeros) continue;
            at = static_cast<int64_t>(padded(static_cast<double>(at), s, padding));
            at = at < 0 ? 0 : min_of(at, s.size - 1);
        }
        for (int i = 0; i < taps.n; ++i) {
            made.offset[made.n] = taps.offset[i] + at * s.stride;
            made.weight[made.n++] = taps.weight[i] * weight[k];
        }
    }
    taps = made;
}

template <class T>
void sample(const Call& c) {
    const View &x = c.in[0], &grid = c.in[1], &y = c.out[0];
    const int rank = x.ndim - 2, mode = c.attr[kMode].choice, padding = c.attr[kPadding].choice;
    const bool align = c.attr[kAlignCorners].i != 0;
    Spatial spatial[kMaxSpatial];
    for (int d = 0; d < rank; ++d) {
        const auto size = static_cast<double>(x.shape[d + 2]);
        spatial[d] = {x.shape[d + 2], x.stride[d + 2], align ? 0 : -0.5, align ? size - 1 : size - 0.5};
    }
    Axes from{}, to{};
    from.count = to.count = 1;
    for (int d = 0; d < rank; ++d) append_axis(from, y.shape[d + 2], grid.stride[d + 1]);
    for (int d = 0; d < rank; ++d) append_axis(to, y.shape[d + 2], y.stride[d + 2]);
    const int64_t places = x.shape[0] * to.count, channels = x.shape[1];
    const int64_t per_chunk = max_of(1, kChunkElements / 8 / max_of(1, channels));
    parallel(ceil_div(places, per_chunk), [&](int64_t chunk) {
        for (int64_t p = chunk * per_chunk, last = min_of(places, p + per_chunk); p < last; ++p) {
            const int64_t n = p / to.count, o = p - n * to.count;
            const T* const at = grid.as<const T>() + n * grid.stride[0] + offset_of(from, o);
            Taps taps = {1, {0}, {1}};
            for (int d = 0; d < rank; ++d) {
                const Spatial& s = spatial[d];
                double v = in_elements(widened(at[(rank - 1 - d) * grid.stride[rank + 1]]), s, align);
                if (mode == kNearest) v = __builtin_rint(v);
                extend(taps, s, padded(v, s, padding), mode, padding);
            }
            for (int64_t k = 0; k < channels; ++k) {
                const T* const image = x.as<const T>() + n * x.stride[0] + k * x.stride[1];
                double sum = 0;
                for (int i = 0; i < taps.n; ++i) sum += taps.weight[i] * widened(image[taps.offset[i]]);
                y.as<T>()[n * y.stride[0] + k * y.stride[1] + offset_of(to, o)] =
                    narrowed<T>(static_cast<Wide<T>>(sum));
            }
        }
    });
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    for_floating(c.in[0].dtype, [&]<class T>() { sample<T>(c); });
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &grid = c.in[1];
    TW_TRY(want_floating(x, "x"));
    TW_TRY(want_ndim(x, "x", 3, 2 + kMaxSpatial));
    TW_TRY(want_dtype_of(grid, "grid", x, "x"));
    TW_TRY(want_ndim(grid, "grid", x.ndim, x.ndim));
    const int rank = x.ndim - 2;
    if (grid.shape[0] != x.shape[0] || grid.shape[x.ndim - 1] != rank)
        return fail(Status::shape, "grid",
                    "grid has shape %s; want the batch of x, %lld, first and %d coordinates last",
                    shape_text(grid).text, static_cast<long long>(x.shape[0]), rank);
    for (int d = 2; d < x.ndim; ++d)
        if (x.shape[d] == 0)
            return fail(Status::shape, "x", "x has shape %s; want spatial sizes of at least 1", shape_text(x).text);
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    double elements = 1;
    for (int d = 2; d < x.ndim; ++d) r.out[0].shape[d] = grid.shape[d - 1];
    for (int d = 0; d < x.ndim; ++d) elements *= static_cast<double>(r.out[0].shape[d]);
    r.flops = 30.0 * elements;
    return Status::ok;
}

constexpr Operand kOperands[] = {{"x"}, {"grid"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "mode", .kind = AttrKind::choice, .choices = "linear|nearest|cubic"},
    {.name = "padding", .kind = AttrKind::choice, .choices = "zeros|border|reflection"},
    {.name = "align_corners", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_grid_sample = {"grid_sample", kOperands, 2, kAttrs, 3, infer, run};

}  // namespace tw::TW_ISA
