// Rows of an 8-bit picture as a filter wants them: one channel, contiguous, blurred if asked for.
//
// Method    the blur is separable: from a ring of rows one is blurred down, in 16 bits, pairs of rows at once, and then
//           along, in 32 bits: its even and its odd pixels apart, so that pairs of neighbours are multiplied where they
//           lie. It mirrors at the border without repeating the edge pixel.
// Numerics  taps in 1/256, sums exact, one rounding half up. Pixels of the ring are less 128, and so sums down less 2^15,
//           to fit signed numbers.
#pragma once
#include "core/gaussian.h"
#include "core/types.h"
#include "simd/pixels.h"
#include "simd/units.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kMargin = 64;  // elements before and behind a row that a filter may touch

// From one row to the next: whole vectors from kMargin before the row to kMargin behind it. An odd number of lines, so
// that rows of a window do not fall on each other in the cache.
TW_INLINE int64_t row_pitch(int64_t width) { return (((width + 63) / 64 + 2 * kMargin / 64) | 1) * 64; }

// Index into 0..n-1 of position i of the endless picture that mirrors at its edge pixels.
TW_INLINE int64_t mirrored(int64_t i, int64_t n) {
    if (0 <= i && i < n) return i;
    if (n == 1) return 0;
    const int64_t period = 2 * (n - 1);
    if (-n < i && i <= period) return i < 0 ? -i : period - i;
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

// The same in 16 bits, for those who calculate with them more than once.
TW_INLINE void copy_wide(int16_t* __restrict to, const uint8_t* __restrict from, int64_t step, int64_t n) {
    if (step == 1)
        for (int64_t x = 0; x < n; ++x) to[x] = from[x];
    else
        for (int64_t x = 0; x < n; ++x) to[x] = from[x * step];
}

// The same as signed numbers, less 128.
TW_INLINE void copy_signed(uint8_t* __restrict to, const uint8_t* __restrict from, int64_t step, int64_t n) {
    if (step == 1)
        for (int64_t x = 0; x < n; ++x) to[x] = from[x] ^ 128;
    else
        for (int64_t x = 0; x < n; ++x) to[x] = from[x * step] ^ 128;
}

// Taps of a blur; none where there is no blur.
struct Taps {
    int64_t n;
    int16_t tap[kMaxTaps];
    int32_t pair[kMaxTaps / 2 + 1];  // two taps as they lie in a vector, the last with a zero
    int16_t bytes[kMaxTaps / 2 + 1];  // the same in 16 bits
};

TW_INLINE void make_taps(double sigma, Taps& taps) {
    taps.n = sigma > 0 ? gaussian_width(sigma) : 0;
    if (taps.n) gaussian_taps(sigma, taps.n, taps.tap);
    if (taps.n && taps.tap[taps.n / 2] == 256) taps.n = 0;
    for (int64_t k = 0; k < taps.n; k += 2) {
        const int32_t first = taps.tap[k], second = k + 1 < taps.n ? taps.tap[k + 1] : 0;
        taps.pair[k / 2] = first + second * (1 << 16);
        taps.bytes[k / 2] = static_cast<int16_t>(first + second * (1 << 8));
    }
}

// One channel of a picture.
class Channel {
public:
    TW_INLINE int64_t bytes(int64_t width, int64_t taps) {
        const int64_t sums = row_pitch(width + taps) * static_cast<int64_t>(sizeof(int16_t));
        return taps ? sums + ring_rows(taps) * row_pitch(width) : 0;
    }

    void start(const Picture& picture, int64_t channel, const Taps& taps, char* scratch) {
        p_ = picture;
        first_ = picture.data + channel * picture.channel;
        taps_ = &taps, half_ = taps.n / 2, next_ = -1, last_slot_ = ring_rows(taps.n) - 1;
        pitch_ = row_pitch(p_.width);
        sums_ = reinterpret_cast<int16_t*>(scratch) + half_;
        ring_ = reinterpret_cast<uint8_t*>(sums_ - half_ + row_pitch(p_.width + taps.n));
    }

    // Pixels 0..width-1 of row y, and up to kMargin more of any value; y never falls from one call to the next.
    template <class T>
    void read(int64_t y, T* to) {
        if (!taps_->n) return copy(to, first_ + y * p_.row, p_.column, p_.width);
        if (next_ < 0) next_ = y > half_ ? y - half_ : 0;
        for (; next_ < p_.height && next_ <= y + half_; ++next_)
            copy_signed(ring_ + (next_ & last_slot_) * pitch_, first_ + next_ * p_.row, p_.column, p_.width);
        switch (taps_->n) {
            case 5: return blur<5>(y, to);
            case 7: return blur<7>(y, to);
            default: return blur<0>(y, to);
        }
    }

private:
    // A power of two.
    TW_INLINE int64_t ring_rows(int64_t taps) {
        int64_t rows = 1;
        while (rows < taps) rows *= 2;
        return rows;
    }

    const uint8_t* row_of(int64_t y) const { return ring_ + (mirrored(y, p_.height) & last_slot_) * pitch_; }

    // Of N taps, which stay in registers, or of any number for N = 0.
    template <int N, class T>
    void blur(int64_t y, T* to) const {
        const int64_t n = p_.width;
        sums_down<N>(y - half_);
        for (int64_t i = 1; i <= half_; ++i) {
            sums_[-i] = sums_[mirrored(-i, n)];
            sums_[n - 1 + i] = sums_[mirrored(n - 1 + i, n)];
        }
        sums_along<N>(to);
    }

    template <int N>
    void sums_down(int64_t first) const {
        const int64_t taps = N ? N : taps_->n, n = p_.width;
        i16v held[N / 2 + 1];
        const uint8_t* rows[N ? N : kMaxTaps];
        int16_t* const sums = sums_;
        for (int k = 0; k <= N / 2; ++k) held[k] = splat(taps_->bytes[k]);
#pragma GCC unroll 7
        for (int64_t k = 0; k < taps; ++k) rows[k] = row_of(first + k);
        for (int64_t x = 0; x < n; x += kLanes<uint8_t>) {
            i16v low{}, high{};
#pragma GCC unroll 4
            for (int64_t k = 0; k < taps; k += 2) {
                const int64_t second = k + 1 < taps ? k + 1 : k;
                const u8v a = load(rows[k] + x), b = load(rows[second] + x);
                const u8v pair = bitcast<u8v>(N ? held[k / 2] : splat(taps_->bytes[k / 2]));
                low += dot_bytes(pair, bitcast<Vec<int8_t>>(interleave_low(a, b)));
                high += dot_bytes(pair, bitcast<Vec<int8_t>>(interleave_high(a, b)));
            }
            store(sums + x, alternating_units<0>(low, high));
            store(sums + x + kLanes<int16_t>, alternating_units<1>(low, high));
        }
    }

    static void copy(uint8_t* to, const uint8_t* from, int64_t step, int64_t n) { copy_row(to, from, step, n); }
    static void copy(int16_t* to, const uint8_t* from, int64_t step, int64_t n) { copy_wide(to, from, step, n); }
    static void put(uint8_t* to, i16v a, i16v b) { store_pixels(to, a, b); }
    static void put(int16_t* to, i16v a, i16v b) {
        store(to, a);
        store(to + kLanes<int16_t>, b);
    }

    template <int N, class T>
    void sums_along(T* to) const {
        const int64_t taps = N ? N : taps_->n, n = p_.width;
        const i32v start = splat<int32_t>((32768 << 8) + (1 << 15));  // what sums down lack, and half of the last bit
        const int16_t* const sums = sums_ - half_;
        i32v held[N / 2 + 1];
        for (int k = 0; k <= N / 2; ++k) held[k] = splat(taps_->pair[k]);
        const auto pixels = [&](int64_t x) __attribute__((always_inline)) {
            const int16_t* const at = sums + x;
            i32v even = start, odd = start;
#pragma GCC unroll 4
            for (int64_t k = 0; k < taps; k += 2) {
                const i16v pair = bitcast<i16v>(N ? held[k / 2] : splat(taps_->pair[k / 2]));
                even += dot_pairs(load(at + k), pair);
                odd += dot_pairs(load(at + k + 1), pair);
            }
            return bitcast<i16v>(even >> 16 | (odd & splat<int32_t>(-65536)));
        };
        constexpr int64_t lanes = kLanes<int16_t>;
        for (int64_t x = 0; x < n; x += 2 * lanes) put(to + x, pixels(x), pixels(x + lanes));
    }

    Picture p_;
    const uint8_t* first_;
    const Taps* taps_;
    int64_t half_, next_, pitch_, last_slot_;
    int16_t* sums_;  // of a row, from `half_` before it on
    uint8_t* ring_;
};

}  // namespace
}  // namespace tw::TW_ISA
