// Canny's edges: pixels whose gradient is the largest across the edge, kept where it exceeds `high`, or exceeds `low` in
// a chain of such pixels that reaches one above `high` (8-connected). 255 on edges, 0 elsewhere.
//
// Method    one pass over rows: blur, gradient and magnitude of a row in a window of a few rows; three rows of magnitudes
//           decide which pixels are largest; candidates leave as bits, which are flooded and expanded to bytes at the end.
//           Blocks in which nothing exceeds `low` are skipped. No plane of gradients exists.
// Numerics  8 bits: integers throughout, the tangent of 22.5 degrees in 15 bits. Outside the picture the magnitude is 0, and
//           pixels repeat the edge. The bits are those of OpenCV 5. 16 bits and floats: planes of float32 gradients
//           (image/separable.h), every step rounded by itself.
// Threads   bands of rows, whose neighbours' rows are computed again; the flood is a closure. Same bits always.
// Source    J. Canny, "A computational approach to edge detection", 1986.
#include "core/check.h"
#include "image/hysteresis.h"
#include "image/magnitude.h"
#include "image/separable.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;
constexpr int16_t kTangent = 13573;  // of 22.5 degrees, in 15 bits

enum { kLow, kHigh, kSigma, kSize, kL2 };  // attributes of canny

// ---- one row --------------------------------------------------------------------------------------------------------

// x tan(22.5 degrees), rounded down.
TW_INLINE i16v tangent_of(i16v x) { return mul_high(x, splat<int16_t>(2 * kTangent)); }
TW_INLINE i32v tangent_of(i32v x) { return x * int32_t{kTangent} >> 15; }
TW_INLINE f32v tangent_of(f32v x) { return x * 0.41421356f; }

// Whether two numbers have different signs.
template <class V>
TW_INLINE auto opposite(V a, V b) {
    if constexpr (kIsFloating<Elem<V>>)
        return (a < 0) ^ (b < 0);
    else
        return (a ^ b) < 0;
}

// Nothing exceeds a NaN.
template <class V>
TW_INLINE auto exceeds_both(V v, V a, V b) {
    if constexpr (kIsFloating<Elem<V>>)
        return (v > a) & (v > b);
    else
        return v > max_any(a, b);
}

// Whether pixels are the largest across the edge. A tie goes to the first of two neighbours, but to neither on a diagonal.
template <class M, class G>
TW_INLINE Mask<M> is_peak(const Around<M, G>& w, int64_t x, Vec<M> m) {
    const Vec<M> gx = load_in(w.dx + x, M{}), gy = load_in(w.dy + x, M{});
    const Vec<M> size_x = abs(gx), size_y = abs(gy), flat = tangent_of(size_x);
    const auto beside = size_y <= flat, upright = size_y - (size_x + size_x) > flat;
    const auto rising = opposite(gx, gy);
    const auto along_x = (m > load(w.at + x - 1)) & (m >= load(w.at + x + 1));
    const auto along_y = (m > load(w.above + x)) & (m >= load(w.below + x));
    const Vec<M> above = select(rising, load(w.above + x + 1), load(w.above + x - 1));
    const Vec<M> below = select(rising, load(w.below + x - 1), load(w.below + x + 1));
    const auto diagonal = exceeds_both(m, above, below);
    return (beside & along_x) | (upright & along_y) | (~(beside | upright) & diagonal);
}

// Candidates of a row as bits.
template <class M, class G>
void find_peaks(const Around<M, G>& w, M low, M high, int64_t words, uint64_t* weak, uint64_t* strong) {
    constexpr int L = kLanes<M>;
    const Vec<M> lows = splat(low), highs = splat(high);
    for (int64_t word = 0; word < words; ++word) {
        uint64_t kept = 0, sure = 0;
        if constexpr (sizeof(M) == 2) {
            for (int lane = 0; lane < 64; lane += 2 * L) {
                const int64_t x = word * 64 + lane;
                const Vec<M> a = load(w.at + x), b = load(w.at + x + L);
                const auto weak_a = a > lows, weak_b = b > lows;
                if (!any(weak_a | weak_b)) continue;
                const auto kept_a = weak_a & is_peak(w, x, a), kept_b = weak_b & is_peak(w, x + L, b);
                kept |= lane_bits(kept_a, kept_b) << lane;
                sure |= lane_bits(kept_a & (a > highs), kept_b & (b > highs)) << lane;
            }
        } else {
            for (int lane = 0; lane < 64; lane += L) {
                const int64_t x = word * 64 + lane;
                const Vec<M> m = load(w.at + x);
                const auto exceeds = m > lows;
                if (!any(exceeds)) continue;
                const auto peaks = exceeds & is_peak(w, x, m);
                kept |= lane_bits(peaks) << lane;
                sure |= lane_bits(peaks & (m > highs)) << lane;
            }
        }
        weak[word] = kept;
        strong[word] = sure;
    }
}

// ---- one band -------------------------------------------------------------------------------------------------------

template <class M>
struct Limits {
    M low, high;
};

// Calls edges(y, dx, dy, magnitudes) for the rows of a band and one on either side, then floods what is found.
template <class M, class G, class Edges>
TW_INLINE void run_band(const EdgeMap& map, int64_t first, int64_t last, Limits<M> limits, History<M, G>& history,
                        const Edges& edges) {
    for (int64_t y = first - 1; y <= last; ++y) {
        if (y >= 0 && y < map.height) {
            edges(y, history.dx(y), history.dy(y), history.magnitudes(y));
            history.close(y);
        }
        if (y <= first) continue;
        const int64_t at = (y - 1) * map.pitch;
        find_peaks(history.window(y - 1, map.height), limits.low, limits.high, map.words, map.weak + at,
                   map.strong + at);
    }
    Flood(map, first, last).run();
}

// ---- the op: bands, then their borders, then bytes ------------------------------------------------------------------

// band(map, first, last) marks candidates and floods rows [first, last); false when memory is exhausted.
template <class Band>
Status run_bands(const View& y, int64_t band_rows, const Band& band) {
    const int64_t height = y.shape[0], width = y.shape[1], words = ceil_div(width, 64);
    Scratch memory(static_cast<size_t>(edge_map_bytes(height, words)));
    bool enough = memory.as<char>() != nullptr;
    if (enough) {
        const EdgeMap map = edge_map_at(memory.as<char>(), height, words);
        const int64_t bands = ceil_div(height, band_rows);
        const auto last_of = [&](int64_t i) { return min_of(i * band_rows + band_rows, height); };
        if (!parallel(bands, [&](int64_t i) {
            if (!band(map, i * band_rows, last_of(i))) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        }))
            return Status::ok;
        if (enough) {
            Flood whole(map, 0, height);
            for (int64_t i = 1; i < bands; ++i) whole.join(i * band_rows);
            parallel(bands, [&](int64_t i) {
                for (int64_t row = i * band_rows; row < last_of(i); ++row)
                    write_edges(map, row, width, y.as<uint8_t>() + row * y.stride[0], y.stride[1]);
            });
            return Status::ok;
        }
    }
    return fail(Status::memory, "image", "no memory for the candidates of %lld rows; want a smaller picture",
                static_cast<long long>(height));
}

template <class M>
Limits<M> limits_of(double low, double high, bool l2) {
    const double both[] = {low, high};
    M limit[2];
    for (int i = 0; i < 2; ++i) {
        double v = both[i];
        if constexpr (kIsFloating<M>) {
            limit[i] = static_cast<M>(l2 ? v * v : v);
            continue;
        }
        if (l2) v = v < 32767 ? v * v : 32767.0 * 32767.0;
        constexpr double most = sizeof(M) == 2 ? INT16_MAX : INT32_MAX;
        limit[i] = static_cast<M>(__builtin_floor(v < most ? v : most));
    }
    return {limit[0], limit[1]};
}

template <class S, class M, bool L2>
Status run_picture(const Call& c) {
    const Picture p = picture_of(c.in[0]);
    const double sigma = c.attr[kSigma].f, scale = S::size == 7 ? 1.0 / 16 : 1;
    Taps taps;
    make_taps(sigma, taps);
    const Limits<M> limits = limits_of<M>(c.attr[kLow].f * scale, c.attr[kHigh].f * scale, L2);
    return run_bands(c.out[0], max_of(kBandRows, 4 * taps.n), [&](const EdgeMap& map, int64_t first, int64_t last) {
        const int64_t kept = History<M>::bytes(p.width);
        Scratch scratch(static_cast<size_t>(kept + Gradients<S>::bytes(p, taps.n)));
        if (!scratch.as<char>()) return false;
        History<M> history(scratch.as<char>(), p.width);
        Gradients<S> gradients(p, taps, scratch.as<char>() + kept);
        run_band(map, first, last, limits, history,
                 [&](int64_t y, int16_t* dx, int16_t* dy, M* m) { gradients.template row<M, L2>(y, dx, dy, m); });
        return true;
    });
}

template <class S>
Status run_size(const Call& c) {
    return c.attr[kL2].i ? run_picture<S, int32_t, true>(c) : run_picture<S, int16_t, false>(c);
}

// ---- from planes of float gradients ---------------------------------------------------------------------------------

TW_INLINE float size_of(float dx, float dy, bool l2) {
    const double x = dx, y = dy;
    return l2 ? static_cast<float>(x * x + y * y) : __builtin_fabsf(dx) + __builtin_fabsf(dy);
}

// Of the channels of dx and dy each pixel takes the one with the largest magnitude.
Status trace(const View& dx, const View& dy, const View& edges, double low, double high, bool l2) {
    const int64_t width = dx.shape[1], channels = row_channels(dx), last_axis = dx.ndim - 1;
    const Limits<float> limits = limits_of<float>(low, high, l2);
    return run_bands(edges, kBandRows, [&](const EdgeMap& map, int64_t first, int64_t last) {
        typedef History<float, float> Floats;
        Scratch scratch(static_cast<size_t>(Floats::bytes(width)));
        if (!scratch.as<char>()) return false;
        Floats history(scratch.as<char>(), width);
        run_band(map, first, last, limits, history, [&](int64_t y, float* to_x, float* to_y, float* m) {
            const float *const gx = dx.as<float>() + y * dx.stride[0], *const gy = dy.as<float>() + y * dy.stride[0];
            for (int64_t x = 0; x < width; ++x)
                for (int64_t k = 0; k < channels; ++k) {
                    const float u = gx[x * dx.stride[1] + k * dx.stride[last_axis]];
                    const float v = gy[x * dy.stride[1] + k * dy.stride[last_axis]], size = size_of(u, v, l2);
                    if (k == 0 || size > m[x]) m[x] = size, to_x[x] = u, to_y[x] = v;
                }
        });
        return true;
    });
}

constexpr float kSmooth[][7] = {{1, 2, 1}, {1, 4, 6, 4, 1}, {1, 6, 15, 20, 15, 6, 1}};
constexpr float kChange[][7] = {{-1, 0, 1}, {-1, -2, 0, 2, 1}, {-1, -4, -5, 0, 5, 4, 1}};

Status run_deep(const Call& c) {
    const View& image = c.in[0];
    const int64_t size = c.attr[kSize].i, n = numel(image);
    const double sigma = c.attr[kSigma].f;
    Scratch memory(static_cast<size_t>(3 * n) * sizeof(float));
    float* const planes = memory.as<float>();
    if (!planes) return fail(Status::memory, "image", "no memory for its gradients; want a smaller picture");
    const auto plane = [&](DType dtype, int64_t i) {
        View v = result(dtype, image.ndim, image.shape);
        v.data = planes + i * n;
        for (int64_t d = v.ndim - 1, step = 1; d >= 0; step *= v.shape[d--]) v.stride[d] = step;
        return v;
    };
    View from = image;
    const View blurred = plane(image.dtype, 0), dx = plane(DType::f32, 1), dy = plane(DType::f32, 2);
    if (sigma > 0) {
        float weights[kMaxTaps];
        const int64_t width = gaussian_width(sigma);
        gaussian_weights(sigma, width, weights);
        const Weights both = {weights, weights};
        TW_TRY(separable(image, blurred, {width, width, &both, 1, 1, 1, Outside::mirrors}));
        from = blurred;
    }
    const float *const smooth = kSmooth[size / 2 - 1], *const change = kChange[size / 2 - 1];
    const Weights across = {smooth, change}, down = {change, smooth};
    TW_TRY(separable(from, dx, {size, size, &across, 1, 1, 1, Outside::repeats}));
    TW_TRY(separable(from, dy, {size, size, &down, 1, 1, 1, Outside::repeats}));
    return trace(dx, dy, c.out[0], c.attr[kLow].f, c.attr[kHigh].f, c.attr[kL2].i);
}

Status run_canny(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    if (c.in[0].dtype != DType::u8) return run_deep(c);
    switch (c.attr[kSize].i) {
        case 3: return run_size<Sobel<3>>(c);
        case 5: return run_size<Sobel<5>>(c);
        default: return run_size<Sobel<7>>(c);
    }
}

Status want_thresholds(const Attr& low, const Attr& high) {
    const Attr* const both[] = {&low, &high};
    const char* const names[] = {"low", "high"};
    for (int i = 0; i < 2; ++i)
        if (!(both[i]->f >= 0))
            return fail(Status::attr, names[i], "%s=%g; want a number of at least 0", names[i], both[i]->f);
    if (low.f > high.f) return fail(Status::attr, "low", "low=%g exceeds high=%g; want low <= high", low.f, high.f);
    return Status::ok;
}

Status want_pixels(const View& v, const char* name) {
    constexpr int64_t most = int64_t{1} << 30;
    if (v.shape[0] > most || v.shape[1] > most || v.shape[0] * ceil_div(v.shape[1], 64) > int64_t{1} << 31)
        return fail(Status::shape, name, "%s has shape %s; want at most 2^30 rows and columns and 2^37 pixels", name,
                    shape_text(v).text);
    return Status::ok;
}

Status infer_canny(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_any_picture(image));
    TW_TRY(want_pixels(image, "image"));
    TW_TRY(want_thresholds(c.attr[kLow], c.attr[kHigh]));
    const double sigma = c.attr[kSigma].f;
    if (!(sigma >= 0 && sigma <= kMaxSigma))
        return fail(Status::attr, "sigma", "sigma=%g; want 0 (no blur) to %g pixels", sigma, kMaxSigma);
    const int64_t size = c.attr[kSize].i;
    if (size != 3 && size != 5 && size != 7)
        return fail(Status::attr, "ksize", "ksize=%lld; want 3, 5 or 7", static_cast<long long>(size));
    r.n_out = 1;
    r.out[0] = result(DType::u8, 2, image.shape);
    r.flops = 40.0 * static_cast<double>(numel(image));
    return Status::ok;
}

// ---- from gradients -------------------------------------------------------------------------------------------------

Status infer_gradients(Call& c, Inferred& r) {
    const View &dx = c.in[0], &dy = c.in[1];
    if (dx.dtype != DType::i16 && dx.dtype != DType::f32)
        return fail(Status::dtype, "dx", "dx has dtype %s; want int16 or float32", name_of(dx.dtype));
    TW_TRY(want_ndim(dx, "dx", 2, 2));
    TW_TRY(want_dtype_of(dy, "dy", dx, "dx"));
    TW_TRY(want_shape_of(dy, "dy", dx, "dx"));
    TW_TRY(want_pixels(dx, "dx"));
    TW_TRY(want_thresholds(c.attr[0], c.attr[1]));
    r.n_out = 1;
    r.out[0] = result(DType::u8, 2, dx.shape);
    r.flops = 20.0 * static_cast<double>(numel(dx));
    return Status::ok;
}

// Any gradients of 16 bits, so that magnitudes take 32.
template <bool L2>
Status run_given(const Call& c) {
    const View &dx = c.in[0], &dy = c.in[1];
    const int64_t width = dx.shape[1];
    const Limits<int32_t> limits = limits_of<int32_t>(c.attr[0].f, c.attr[1].f, L2);
    return run_bands(c.out[0], kBandRows, [&](const EdgeMap& map, int64_t first, int64_t last) {
        Scratch scratch(static_cast<size_t>(History<int32_t>::bytes(width)));
        if (!scratch.as<char>()) return false;
        History<int32_t> history(scratch.as<char>(), width);
        run_band(map, first, last, limits, history, [&](int64_t y, int16_t* to_x, int16_t* to_y, int32_t* m) {
            const int16_t *gx = dx.as<int16_t>() + y * dx.stride[0], *gy = dy.as<int16_t>() + y * dy.stride[0];
            for (int64_t x = 0; x < width; ++x) to_x[x] = gx[x * dx.stride[1]], to_y[x] = gy[x * dy.stride[1]];
            magnitudes<int32_t, L2>(to_x, to_y, m, width);
        });
        return true;
    });
}

Status run_gradients(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    if (c.in[0].dtype == DType::f32) return trace(c.in[0], c.in[1], c.out[0], c.attr[0].f, c.attr[1].f, c.attr[2].i);
    return c.attr[2].i ? run_given<true>(c) : run_given<false>(c);
}

constexpr Operand kImage[] = {{"image"}};
constexpr Operand kGradients[] = {{"dx"}, {"dy"}};
constexpr AttrSpec kCanny[] = {
    {.name = "low", .kind = AttrKind::real, .required = true},
    {.name = "high", .kind = AttrKind::real, .required = true},
    {.name = "sigma", .kind = AttrKind::real},
    {.name = "ksize", .kind = AttrKind::integer, .i = 3},
    {.name = "l2", .kind = AttrKind::boolean},
};
constexpr AttrSpec kFromGradients[] = {
    {.name = "low", .kind = AttrKind::real, .required = true},
    {.name = "high", .kind = AttrKind::real, .required = true},
    {.name = "l2", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_canny = {"canny", kImage, 1, kCanny, TW_COUNT(kCanny), infer_canny, run_canny};
extern const Entry op_canny_gradients = {"canny_gradients", kGradients,   2, kFromGradients, TW_COUNT(kFromGradients),
                                         infer_gradients,   run_gradients};

}  // namespace tw::TW_ISA
