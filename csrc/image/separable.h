// Separable filters of pictures of any pixels, a row at a time, as float32 numbers that every tier rounds alike.
//
//     t[j] = sum over u of down[u] image[pace i + u - kh/2, j]
//     y[i, j] = (sum over terms, v of along[v] t[pace j + v - kw/2]) / divisor
//
// Numerics  weights are float32, so that products are exact in float64. Sums are taken there in order and rounded once, t to
//           float32, y to its own type, integers half up: a tier with FMA has the bits of one without.
#pragma once
#include "core/memory.h"
#include "core/parallel.h"
#include "image/check.h"
#include "image/window.h"

namespace tw::TW_ISA {
namespace {

enum class Outside { mirrors, repeats };  // where a picture goes on beyond its edge

// `half` pixels more at either end of a row.
TW_INLINE void add_margins(float* row, int64_t width, int64_t step, int64_t half, Outside outside) {
    for (int64_t k = 1; k <= half; ++k)
        for (int64_t c = 0; c < step; ++c) {
            const bool repeats = outside == Outside::repeats;
            row[-k * step + c] = row[(repeats ? 0 : mirrored(-k, width)) * step + c];
            row[(width - 1 + k) * step + c] = row[(repeats ? width - 1 : mirrored(width - 1 + k, width)) * step + c];
        }
}

// Row y of the endless picture from `half` pixels before its first on, channels interleaved.
TW_INLINE void take_floats(const View& image, int64_t y, int64_t half, Outside outside, float* to) {
    const int64_t step = row_channels(image), width = image.shape[1], height = image.shape[0];
    const int64_t at = outside == Outside::mirrors ? mirrored(y, height) : y < 0 ? 0 : y < height ? y : height - 1;
    float* const row = to + half * step;
    with_pixels(image.dtype, [&](auto pixel) {
        const auto* const from = image.as<decltype(pixel)>() + at * image.stride[0];
        if (has_whole_rows(image))
            for (int64_t i = 0; i < width * step; ++i) row[i] = static_cast<float>(from[i]);
        else
            each_in_row(image, [&](int64_t i, int64_t j) { row[i] = static_cast<float>(from[j]); });
        return Status::ok;
    });
    add_margins(row, width, step, half, outside);
}

TW_INLINE f64v rounded_half_up(f64v v) {
    const f64v half = v + 0.5, near = round_nearest(half);
    return select(near > half, near - 1, near);
}

// to[x] = (sum over k of weights[k] rows[k][x]) / divisor, for x < n and up to kMargin more.
inline void sum_rows(const float* const* rows, const float* weights, int64_t count, double divisor, bool whole,
                     float* to, int64_t n) {
    constexpr int64_t lanes = kLanes<double>, block = 4;
    typedef VecOf<float, lanes> Floats;
    for (int64_t x = 0; x < n; x += block * lanes) {
        f64v total[block] = {};
        for (int64_t k = 0; k < count; ++k) {
            const f64v weight = splat<double>(weights[k]);
            const float* const from = rows[k] + x;
#pragma GCC unroll 4
            for (int64_t b = 0; b < block; ++b) {
                const auto& floats = *reinterpret_cast<const typename Floats::loose*>(from + b * lanes);
                total[b] += weight * __builtin_convertvector(floats, f64v);
            }
        }
#pragma GCC unroll 4
        for (int64_t b = 0; b < block; ++b) {
            if (divisor != 1) total[b] /= divisor;
            if (whole) total[b] = rounded_half_up(total[b]);
            *reinterpret_cast<typename Floats::loose*>(to + x + b * lanes) =
                __builtin_convertvector(total[b], typename Floats::type);
        }
    }
}

// Every pace-th pixel of a row becomes row i of y.
TW_INLINE void put_floats(const View& y, int64_t i, const float* row, int64_t pace) {
    const int64_t step = row_channels(y);
    const auto put = [&](auto pixel) {
        typedef decltype(pixel) T;
        T* const to = y.as<T>() + i * y.stride[0];
        const auto as_pixel = [](float v) {
            if constexpr (kIsFloating<T>)
                return v;
            else
                return static_cast<T>(v < 0 ? 0 : v > 65535 ? 65535 : v);
        };
        if (pace == 1 && has_whole_rows(y))
            for (int64_t x = 0; x < row_elements(y); ++x) to[x] = as_pixel(row[x]);
        else
            each_in_row(y, [&](int64_t x, int64_t j) { to[j] = as_pixel(row[x / step * pace * step + x % step]); });
    };
    y.dtype == DType::u16 ? put(uint16_t{}) : put(float{});
}

constexpr int64_t kMostWeights = 1024;  // of one direction, all terms together

struct Weights {
    const float *down, *along;
};

struct Separable {
    int64_t kh, kw;
    const Weights* terms;
    int64_t count;
    double divisor;
    int64_t pace;
    Outside outside;
};

// y is float32 or uint16.
inline Status separable(const View& image, const View& y, const Separable& f) {
    const int64_t width = image.shape[1], step = row_channels(image), n = width * step, half = f.kw / 2;
    const int64_t rows = y.shape[0], wide = n + 2 * half * step, pitch = row_pitch(wide);
    const int64_t band_rows = f.kh < 16 ? 32 : 2 * f.kh;
    bool enough = true;
    parallel((rows + band_rows - 1) / band_rows, [&](int64_t band) {
        Scratch scratch(static_cast<size_t>((f.kh + f.count + 1) * pitch) * sizeof(float));
        float* const ring = scratch.as<float>();
        if (!ring) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        float *const sums = ring + f.kh * pitch, *const row = sums + f.count * pitch;
        const float *window[kMostWeights], *places[kMostWeights];
        float along[kMostWeights];
        for (int64_t t = 0; t < f.count; ++t)
            for (int64_t v = 0; v < f.kw; ++v) {
                places[t * f.kw + v] = sums + t * pitch + v * step;
                along[t * f.kw + v] = f.terms[t].along[v];
            }
        const auto place = [&](int64_t i) { return ring + (i % f.kh + f.kh) % f.kh * pitch; };
        const int64_t first = band * band_rows, last = first + band_rows < rows ? first + band_rows : rows;
        int64_t next = f.pace * first - f.kh / 2;
        for (int64_t i = first; i < last; ++i) {
            const int64_t top = f.pace * i - f.kh / 2;
            for (; next < top + f.kh; ++next) take_floats(image, next, half, f.outside, place(next));
            for (int64_t u = 0; u < f.kh; ++u) window[u] = place(top + u);
            for (int64_t t = 0; t < f.count; ++t)
                sum_rows(window, f.terms[t].down, f.kh, 1, false, sums + t * pitch, wide);
            sum_rows(places, along, f.count * f.kw, f.divisor, y.dtype == DType::u16, row, n);
            put_floats(y, i, row, f.pace);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for %lld rows of %lld; want a smaller window",
                         static_cast<long long>(f.kh), static_cast<long long>(n));
}

}  // namespace
}  // namespace tw::TW_ISA
