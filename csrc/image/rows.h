// Rows of an 8-bit picture as a filter wants them: one channel, contiguous, blurred if asked for.
//
// Method    the blur is separable: from a ring of rows one is blurred down, in 16 bits, and then along, in 32 bits: its even
//           and its odd pixels apart, so that pairs of neighbours are multiplied where they lie. It mirrors at the border
//           without repeating the edge pixel.
// Numerics  taps in 1/256, sums exact, one rounding half up. Sums down are kept less 2^15, to fit signed 16 bits.
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
        const int64_t sums = row_pitch(width + taps) * static_cast<int64_t>(sizeof(int16_t));
        return taps ? sums + taps * row_pitch(width) : 0;
    }

    void start(const Picture& picture, int64_t channel, const Taps& taps, char* scratch) {
        p_ = picture;
        first_ = picture.data + channel * picture.channel;
        taps_ = &taps, half_ = taps.n / 2, next_ = -1;
        pitch_ = row_pitch(p_.width);
        sums_ = reinterpret_cast<int16_t*>(scratch) + half_;
        ring_ = reinterpret_cast<uint8_t*>(sums_ - half_ + row_pitch(p_.width + taps.n));
    }

    // Pixels 0..width-1 of row y, and up to kMargin more of any value; y never falls from one call to the next.
    void read(int64_t y, uint8_t* to) {
        if (!taps_->n) return copy_row(to, first_ + y * p_.row, p_.column, p_.width);
        if (next_ < 0) next_ = y > half_ ? y - half_ : 0;
        for (; next_ < p_.height && next_ <= y + half_; ++next_)
            copy_row(ring_ + next_ % taps_->n * pitch_, first_ + next_ * p_.row, p_.column, p_.width);
        const uint8_t* rows[kMaxTaps];
        for (int64_t k = 0; k < taps_->n; ++k) rows[k] = ring_ + mirrored(y + k - half_, p_.height) % taps_->n * pitch_;
        switch (taps_->n) {
            case 5: return blur<5>(rows, to);
            case 7: return blur<7>(rows, to);
            default: return blur<0>(rows, to);
        }
    }

private:
    // Of N taps, which stay in registers, or of any number for N = 0.
    template <int N>
    void blur(const uint8_t* const* rows, uint8_t* to) const {
        const int64_t n = p_.width;
        sums_down<N>(rows);
        for (int64_t i = 1; i <= half_; ++i) {
            sums_[-i] = sums_[mirrored(-i, n)];
            sums_[n - 1 + i] = sums_[mirrored(n - 1 + i, n)];
        }
        sums_along<N>(to);
    }

    template <int N>
    void sums_down(const uint8_t* const* rows) const {
        const int64_t taps = N ? N : taps_->n, half = taps / 2, n = p_.width;
        i16v held[N / 2 + 1];
        const uint8_t* own[N + 1];
        for (int k = 0; k <= N / 2; ++k) held[k] = splat(taps_->tap[k]);
        for (int k = 0; k < N; ++k) own[k] = rows[k];
        const i16v middle = splat(taps_->tap[half]);
        for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
            const auto at = [&](int64_t k)
                                __attribute__((always_inline)) { return load_pixels((N ? own[k] : rows[k]) + x); };
            i16v total = at(half) * middle + splat<int16_t>(-32768);
#pragma GCC unroll 4
            for (int64_t k = 0; k < half; ++k)
                total += (at(k) + at(taps - 1 - k)) * (N ? held[k] : splat(taps_->tap[k]));
            store(sums_ + x, total);
        }
    }

    template <int N>
    void sums_along(uint8_t* to) const {
        const int64_t taps = N ? N : taps_->n, n = p_.width;
        const i32v start = splat<int32_t>((32768 << 8) + (1 << 15));  // what sums down lack, and half of the last bit
        i32v held[N / 2 + 1];
        for (int k = 0; k <= N / 2; ++k) held[k] = splat(taps_->pair[k]);
        for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
            const int16_t* const at = sums_ + x - half_;
            i32v even = start, odd = start;
#pragma GCC unroll 4
            for (int64_t k = 0; k < taps; k += 2) {
                const i16v pair = bitcast<i16v>(N ? held[k / 2] : splat(taps_->pair[k / 2]));
                even += dot_pairs(load(at + k), pair);
                odd += dot_pairs(load(at + k + 1), pair);
            }
            store_pixels(to + x, bitcast<i16v>(even >> 16 | (odd & splat<int32_t>(-65536))));
        }
    }

    Picture p_;
    const uint8_t* first_;
    const Taps* taps_;
    int64_t half_, next_, pitch_;
    int16_t* sums_;  // of a row, from `half_` before it on
    uint8_t* ring_;
};

}  // namespace
}  // namespace tw::TW_ISA
