// Gradients of 8-bit pictures: derivative filters of 3, 5 and 7 pixels, a row at a time.
//
// Method    separable: sums down the window, smoothed and differenced, then along it.
// Numerics  exact integers. The sums of 7 pixels are divided by 16, halves to even, so that they fit 16 bits.
#pragma once
#include "simd/pixels.h"

namespace tw::TW_ISA {
namespace {

// The first half of a filter's weights; smooth is symmetric, change antisymmetric about the middle.
template <int K>
struct Sobel;
template <>
struct Sobel<3> {
    typedef int16_t Wide;  // holds all sums
    static constexpr int size = 3, smooth[] = {1, 2}, change[] = {1};
};
template <>
struct Sobel<5> {
    typedef int16_t Wide;
    static constexpr int size = 5, smooth[] = {1, 4, 6}, change[] = {1, 2};
};
template <>
struct Sobel<7> {
    typedef int32_t Wide;
    static constexpr int size = 7, smooth[] = {1, 6, 15, 20}, change[] = {1, 4, 5};
};

// at(i) is the i-th vector of the window.
template <class S, class At>
TW_INLINE auto smoothed(const At& at) {
    typedef decltype(at(0)) V;
    constexpr int half = S::size / 2;
    V total = at(half) * static_cast<Elem<V>>(S::smooth[half]);
#pragma GCC unroll 3
    for (int i = 0; i < half; ++i) total += (at(i) + at(S::size - 1 - i)) * static_cast<Elem<V>>(S::smooth[i]);
    return total;
}
template <class S, class At>
TW_INLINE auto changed(const At& at) {
    typedef decltype(at(0)) V;
    V total{};
#pragma GCC unroll 3
    for (int i = 0; i < S::size / 2; ++i) total += (at(S::size - 1 - i) - at(i)) * static_cast<Elem<V>>(S::change[i]);
    return total;
}

// Sums down a window of rows, at places first to last and up to a vector more.
template <class S>
TW_INLINE void sums_down(const int16_t* const* rows, int16_t* smooth, int16_t* change, int64_t first, int64_t last) {
    for (int64_t x = first; x < last; x += kLanes<int16_t>) {
        const auto at = [&](int i) __attribute__((always_inline)) { return load(rows[i] + x); };
        store(smooth + x, smoothed<S>(at));
        store(change + x, changed<S>(at));
    }
}

TW_INLINE i16v load_sums(const int16_t* p, int16_t) { return load(p); }
TW_INLINE i32v load_sums(const int16_t* p, int32_t) { return load_wide(p); }

TW_INLINE void store_sums(int16_t* p, i16v v) { store(p, v); }
// A sixteenth: 7 brings all but a half up to the next number, and a half up to an even one.
TW_INLINE void store_sums(int16_t* p, i32v v) { store_narrow(p, (v + 7 + (v >> 4 & 1)) >> 4); }

// Gradients at places 0 to n - 1, and up to a vector more, from sums that reach half a window beyond.
template <class S>
TW_INLINE void sums_along(const int16_t* smooth, const int16_t* change, int16_t* dx, int16_t* dy, int64_t n) {
    typedef typename S::Wide Wide;
    constexpr int half = S::size / 2;
    for (int64_t x = 0; x < n; x += kLanes<Wide>) {
        store_sums(dx + x, changed<S>([&](int i) __attribute__((always_inline)) {
            return load_sums(smooth + x + i - half, Wide{});
        }));
        store_sums(dy + x, smoothed<S>([&](int i) __attribute__((always_inline)) {
            return load_sums(change + x + i - half, Wide{});
        }));
    }
}

// The same of 3 pixels in one go: body(x, a, b) of vectors, of which dx is a + b and dy a - b.
template <class Body>
TW_INLINE void sobel3(const int16_t* const* rows, int64_t n, const Body& body) {
    const int16_t *const a = rows[0], *const b = rows[1], *const c = rows[2];
    for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
        const i16v falling = load(c + x + 1) - load(a + x - 1), rising = load(a + x + 1) - load(c + x - 1);
        const i16v across = load(b + x + 1) - load(b + x - 1), down = load(c + x) - load(a + x);
        body(x, falling + (across + down), rising + (across - down));
    }
}

}  // namespace
}  // namespace tw::TW_ISA
