// Means over a disc around each pixel, weighted by how near a pixel is in place and in value: 16-bit pixels and floats.
//
// Method    rows become floats with margins, plane by plane, kept in turn. Of integers the weight of a distance in value is
//           fetched from a table, which ends where weights round to nothing; sums are taken by squared distance in place.
// Numerics  of integers weights are whole, below 2^20 and 2^8, so that float64 holds the sums and the quotient's floor.
#pragma once
#include "core/index.h"
#include "image/separable.h"
#include "simd/gather.h"
#include "simd/math.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kDiscHalf = 8, kDiscMost = (2 * kDiscHalf + 1) * (2 * kDiscHalf + 1);
constexpr double kWeightOfPlace = 255, kWeightOfValue = (1 << 20) - 1;

// Rings of one squared distance in place, the nearest first; the middle pixel is the first.
struct Rings {
    int64_t down[kDiscMost], along[kDiscMost];
    int64_t first[kDiscHalf * kDiscHalf + 2];
    double exponent[kDiscHalf * kDiscHalf + 1];
    int64_t n;
};

inline void make_rings(int64_t half, double sigma_space, Rings& rings) {
    int64_t k = 0;
    rings.n = 0;
    for (int64_t square = 0; square <= half * half; ++square) {
        const int64_t begin = k;
        for (int64_t u = -half; u <= half; ++u)
            for (int64_t v = -half; v <= half; ++v)
                if (u * u + v * v == square) rings.down[k] = u, rings.along[k++] = v;
        if (k == begin) continue;
        rings.exponent[rings.n] = static_cast<double>(square) * (-0.5 / (sigma_space * sigma_space));
        rings.first[rings.n++] = begin;
    }
    rings.first[rings.n] = k;
}

TW_INLINE f64v half_of(f32v v, int k) {
    typedef VecOf<float, kLanes<double>> Half;
    typename Half::type halves[2];
    __builtin_memcpy(halves, &v, sizeof v);
    return __builtin_convertvector(halves[k], f64v);
}

// One row of n pixels, and up to a vector more, of planes that lie `plane` apart. `weights` are those of distances in value
// up to `most`.
template <int Channels>
void weigh_integers(const float* const* rows, const Rings& rings, const float* weights, float most, int64_t plane,
                    float* to, int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<float>) {
        f64v sum[Channels][2] = {}, total[2] = {};
        for (int64_t r = 0; r < rings.n; ++r) {
            const f64v place = splat(__builtin_rint(kWeightOfPlace * __builtin_exp(rings.exponent[r])));
            f64v ring_sum[Channels][2] = {}, ring_total[2] = {};
            for (int64_t k = rings.first[r]; k < rings.first[r + 1]; ++k) {
                f32v apart{};
#pragma GCC unroll 3
                for (int c = 0; c < Channels; ++c)
                    apart += abs(load(rows[k] + c * plane + x) - load(rows[0] + c * plane + x));
                apart = min_any(apart, splat(most));  // behind the row lies anything: of a NaN the second one stays
                const f32v weight = bitcast<f32v>(
                    gather(reinterpret_cast<const int32_t*>(weights), __builtin_convertvector(apart, i32v)));
#pragma GCC unroll 2
                for (int h = 0; h < 2; ++h) {
                    const f64v w = half_of(weight, h);
                    ring_total[h] += w;
#pragma GCC unroll 3
                    for (int c = 0; c < Channels; ++c) ring_sum[c][h] += w * half_of(load(rows[k] + c * plane + x), h);
                }
            }
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                total[h] += place * ring_total[h];
#pragma GCC unroll 3
                for (int c = 0; c < Channels; ++c) sum[c][h] += place * ring_sum[c][h];
            }
        }
        typedef VecOf<float, kLanes<double>> Half;
#pragma GCC unroll 3
        for (int c = 0; c < Channels; ++c)
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                const f64v mean = (sum[c][h] + 0.5 * total[h]) / total[h], near = round_nearest(mean);
                *reinterpret_cast<typename Half::loose*>(to + c * plane + x + h * kLanes<double>) =
                    __builtin_convertvector(select(near > mean, near - 1, near), typename Half::type);
            }
    }
}

template <int Channels>
void weigh_floats(const float* const* rows, const Rings& rings, float color, int64_t plane, float* to, int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<float>) {
        f32v center[Channels], sum[Channels] = {}, total = splat(1.f);
#pragma GCC unroll 3
        for (int c = 0; c < Channels; ++c) {
            center[c] = load(rows[0] + c * plane + x);
            total += center[c] - center[c];  // an infinity is no number of any channel
        }
        for (int64_t r = 1; r < rings.n; ++r) {
            const f32v place = splat(static_cast<float>(rings.exponent[r]));
            f32v ring_sum[Channels] = {}, ring_total{};  // of their own, so that less is rounded
            for (int64_t k = rings.first[r]; k < rings.first[r + 1]; ++k) {
                f32v apart[Channels], all{};
#pragma GCC unroll 3
                for (int c = 0; c < Channels; ++c) {
                    apart[c] = load(rows[k] + c * plane + x) - center[c];
                    all += abs(apart[c]);
                }
                const f32v weight = exp(fma(all * all, splat(color), place));
                ring_total += weight;
#pragma GCC unroll 3
                for (int c = 0; c < Channels; ++c) ring_sum[c] = fma(weight, apart[c], ring_sum[c]);
            }
            total += ring_total;
#pragma GCC unroll 3
            for (int c = 0; c < Channels; ++c) sum[c] += ring_sum[c];
        }
#pragma GCC unroll 3
        for (int c = 0; c < Channels; ++c) store(to + c * plane + x, center[c] + sum[c] / total);
    }
}

// image and y (H, W) or (H, W, 3), both uint16 or float32.
inline Status weigh_disc(const View& image, const View& y, int64_t half, double sigma_color, double sigma_space) {
    constexpr int64_t band_rows = 32;
    const bool whole = image.dtype == DType::u16;
    const int64_t channels = row_channels(image), values = 65535 * channels + 1;
    const double color = -0.5 / (sigma_color * sigma_color);
    const int64_t height = image.shape[0], n = image.shape[1], size = 2 * half + 1, pitch = row_pitch(n + 2 * half);
    Rings rings;
    make_rings(half, sigma_space, rings);
    Scratch table(whole ? values * sizeof(float) : 0);
    float* const weights = whole ? table.as<float>() : nullptr;
    if (whole && !weights)
        return fail(Status::memory, "image", "no memory for %lld weights", static_cast<long long>(values));
    float most = 0;
    for (int64_t v = 0; whole && v < values; ++v) {
        weights[v] =
            static_cast<float>(__builtin_rint(kWeightOfValue * __builtin_exp(static_cast<double>(v * v) * color)));
        most = static_cast<float>(v);
        if (weights[v] == 0) break;
    }
    bool enough = true;
    parallel(ceil_div(height, band_rows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>((size + 2) * channels * pitch) * sizeof(float));
        float *const ring = scratch.as<float>(), *const row = ring + size * channels * pitch;
        float* const joined = row + channels * pitch;  // a row with its channels together
        if (!ring) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const auto place = [&](int64_t i) { return ring + (i % size + size) % size * channels * pitch; };
        const auto take = [&](int64_t i) {
            if (channels == 1) return take_floats(image, i, half, Outside::mirrors, place(i));
            take_floats(image, i, half, Outside::mirrors, joined);
            float* const to = place(i);
            for (int64_t x = 0; x < n + 2 * half; ++x)
                for (int64_t c = 0; c < 3; ++c) to[c * pitch + x] = joined[3 * x + c];
        };
        const float* rows[kDiscMost];
        const int64_t first = band * band_rows;
        for (int64_t i = first - half; i < first + half; ++i) take(i);
        for (int64_t i = first; i < min_of(first + band_rows, height); ++i) {
            take(i + half);
            for (int64_t k = 0; k < rings.first[rings.n]; ++k)
                rows[k] = place(i + rings.down[k]) + half + rings.along[k];
            if (whole)
                (channels == 1 ? weigh_integers<1> : weigh_integers<3>)(rows, rings, weights, most, pitch, row, n);
            else
                (channels == 1 ? weigh_floats<1> : weigh_floats<3>)(rows, rings, static_cast<float>(color), pitch, row,
                                                                    n);
            for (int64_t x = 0; channels > 1 && x < n; ++x)
                for (int64_t c = 0; c < 3; ++c) joined[3 * x + c] = row[c * pitch + x];
            put_floats(y, i, channels == 1 ? row : joined, 1);
        }
    });
    return enough
               ? Status::ok
               : fail(Status::memory, "d", "no memory for %lld rows; want a smaller d", static_cast<long long>(size));
}

}  // namespace
}  // namespace tw::TW_ISA
