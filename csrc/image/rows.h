// Rows of an 8-bit picture as a filter wants them: one channel, contiguous, blurred if asked for.
//
// Method    the blur is separable: a ring keeps rows blurred along x, from which a row is blurred along y when it is asked
//           for. It mirrors at the border without repeating the edge pixel.
// Numerics  taps in 1/256, sums exact, one rounding half up. Sums along x are kept less 2^15, to fit signed 16 bits.
#pragma once
#include "core/gaussian.h"
#include "core/types.h"
#include "simd/pixels.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kMargin = 64;  // elements before and behind a row that a filter may touch

// From one row to the next: whole vectors from kMargin before the row to kMargin behind it. An odd number of lines, so
// that rows of a window do not fall on each other in the cache.
TW_INLINE int64_t row_pitch(int64_t width) { return (((width + 63) / 64 + 2 * kMargin / 64) | 1) * 64; }

// Index into 0..n-1 of position i of the endless picture that mirrors at its edge pixels.
TW_INLINE int64_t mirrored(int64_t i, int64_t n) {
    if (n == 1) return 0;
    const int64_t period = 2 * (n - 1);
    i = (i % period + period) % period;
    return i < n ? i : period - i;
}

struct Picture {
    const uint8_t* data;
    int64_t height, width, channels;
    int64_t row, column, channel;  // strides
};

TW_INLINE Picture picture_of(const View& v) {
    Picture p = {v.as<uint8_t>(), v.shape[0], v.shape[1], 1, v.stride[0], v.stride[1], 0};
    if (v.ndim == 3) p.channels = v.shape[2], p.channel = v.stride[2];
    return p;
}

TW_INLINE void copy_row(uint8_t* __restrict to, const uint8_t* __restrict from, int64_t step, int64_t n) {
    if (step == 1)
        __builtin_memcpy(to, from, static_cast<size_t>(n));
    else if (step == 3)
        for (int64_t x = 0; x < n; ++x) to[x] = from[3 * x];
    else
        for (int64_t x = 0; x < n; ++x) to[x] = from[x * step];
}

// Taps of a blur; none where there is no blur.
struct Taps {
    int64_t n;
    int16_t tap[kMaxTaps];
    int32_t pair[kMaxTaps / 2 + 1];  // two taps as they lie in a vector, the last with a zero
};

TW_INLINE void make_taps(double sigma, Taps& taps) {
    taps.n = sigma > 0 ? gaussian_width(sigma) : 0;
    if (taps.n) gaussian_taps(sigma, taps.n, taps.tap);
    for (int64_t k = 0; k < taps.n; k += 2)
        taps.pair[k / 2] = taps.tap[k] + (k + 1 < taps.n ? taps.tap[k + 1] * (1 << 16) : 0);
}

// One channel of a picture.
class Channel {
public:
    TW_INLINE int64_t bytes(int64_t width, int64_t taps) {
        const int64_t ring = taps * row_pitch(width) * static_cast<int64_t>(sizeof(int16_t));
        return taps ? ring + row_pitch(width + taps) : 0;
    }

    void start(const Picture& picture, int64_t channel, const Taps& taps, char* scratch) {
        p_ = picture;
        first_ = picture.data + channel * picture.channel;
        taps_ = &taps, half_ = taps.n / 2, next_ = -1;
        pitch_ = row_pitch(p_.width);
        ring_ = reinterpret_cast<int16_t*>(scratch);
        padded_ = reinterpret_cast<uint8_t*>(ring_ + taps.n * pitch_);
    }

    // Pixels 0..width-1 of row y, and up to kMargin more of any value; y never falls from one call to the next.
    void read(int64_t y, uint8_t* to) {
        if (!taps_->n) return copy_row(to, first_ + y * p_.row, p_.column, p_.width);
        if (next_ < 0) next_ = y > half_ ? y - half_ : 0;
        for (; next_ < p_.height && next_ <= y + half_; ++next_) blur_along(next_);
        blur_down(y, to);
    }

private:
    void blur_along(int64_t y) {
        const int64_t n = p_.width, taps = taps_->n;
        const uint8_t* const from = first_ + y * p_.row;
        uint8_t* const row = padded_ + half_;
        copy_row(row, from, p_.column, n);
        for (int64_t i = 1; i <= half_; ++i) {
            row[-i] = from[mirrored(-i, n) * p_.column];
            row[n - 1 + i] = from[mirrored(n - 1 + i, n) * p_.column];
        }
        int16_t* const to = ring_ + y % taps * pitch_;
        switch (taps) {
            case 5: return sums_along<5>(row, to);
            case 7: return sums_along<7>(row, to);
            default: return sums_along<0>(row, to);
        }
    }

    void blur_down(int64_t y, uint8_t* to) {
        const int64_t taps = taps_->n;
        const int16_t* rows[kMaxTaps + 1];
        for (int64_t k = 0; k <= taps; ++k)  // the last has a tap of zero
            rows[k] = ring_ + mirrored(y + (k < taps ? k : 0) - half_, p_.height) % taps * pitch_;
        switch (taps) {
            case 5: return sums_down<5>(rows, to);
            case 7: return sums_down<7>(rows, to);
            default: return sums_down<0>(rows, to);
        }
    }

    // Of N taps, which stay in registers, or of any number for N = 0.
    template <int N>
    void sums_along(const uint8_t* row, int16_t* to) const {
        const int64_t taps = N ? N : taps_->n, half = taps / 2, n = p_.width;
        i16v held[N / 2 + 1];
        for (int k = 0; k <= N / 2; ++k) held[k] = splat(taps_->tap[k]);
        const i16v middle = splat(taps_->tap[half]);
        for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
            i16v total = load_pixels(row + x) * middle + splat<int16_t>(-32768);
#pragma GCC unroll 4
            for (int64_t k = 0; k < half; ++k) {
                const uint8_t* const at = row + x + k - half;
                total += (load_pixels(at) + load_pixels(at + taps - 1 - 2 * k)) * (N ? held[k] : splat(taps_->tap[k]));
            }
            store(to + x, total);
        }
    }

    template <int N>
    void sums_down(const int16_t* const* rows, uint8_t* to) const {
        const int64_t taps = N ? N : taps_->n, n = p_.width;
        const i32v start =
            splat<int32_t>((32768 << 8) + (1 << 15));  // what sums along x lack, and half of the last bit
        const int16_t* own[N + 1];
        i32v held[N / 2 + 1];
        for (int k = 0; k <= N; ++k) own[k] = rows[k];
        for (int k = 0; k <= N / 2; ++k) held[k] = splat(taps_->pair[k]);
        for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
            i32v low = start, high = start;
#pragma GCC unroll 4
            for (int64_t k = 0; k < taps; k += 2) {
                const i16v a = load((N ? own[k] : rows[k]) + x), b = load((N ? own[k + 1] : rows[k + 1]) + x);
                const i16v pair = bitcast<i16v>(N ? held[k / 2] : splat(taps_->pair[k / 2]));
                low += dot_pairs(interleave_low(a, b), pair);
                high += dot_pairs(interleave_high(a, b), pair);
            }
            store_pixels(to + x, narrow_units(low >> 16, high >> 16));
        }
    }

    Picture p_;
    const uint8_t* first_;
    const Taps* taps_;
    int64_t half_, next_, pitch_;
    int16_t* ring_;
    uint8_t* padded_;
};

}  // namespace
}  // namespace tw::TW_ISA
