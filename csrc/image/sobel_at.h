// Sobel sums of 3 x 3 bytes at places anywhere: words of dx, in the lower half, and dy.
//
// Method    bytes are fetched as words of four neighbours in a row. Where places lie above each other their rows are
//           shared, and where they lie beside each other their columns, in pairs of 16 bits.
// Numerics  exact integers.
#pragma once
#include "simd/gather.h"
#include "simd/pixels.h"

namespace tw::TW_ISA {
namespace {

TW_INLINE i16v upper_halves_only() { return bitcast<i16v>(splat<int32_t>(-65536)); }
TW_INLINE i32v join_halves(i16v lower, i16v upper) {
    return bitcast<i32v>((lower & ~upper_halves_only()) | (upper & upper_halves_only()));
}
TW_INLINE i16v halves_up(i16v v) { return bitcast<i16v>(bitcast<i32v>(v) << 16); }
TW_INLINE i16v halves_down(i16v v) { return bitcast<i16v>(bitcast<u32v>(v) >> 16); }

// What a row gives, from words of pixels b0 b1 b2 and one more: b2 - b0 below, b0 + 2 b1 + b2 above.
TW_INLINE i16v row_terms(i32v pixels) {
    const u8v order = bitcast<u8v>((iota<int32_t>() & splat(3)) * 0x04040404 + 0x01000002);  // b2 b0 b0 b1
    const Vec<int8_t> weights = bitcast<Vec<int8_t>>(splat(0x0201ff01));  // 1 -1 1 2
    return dot_bytes(look_up16(bitcast<u8v>(pixels), order), weights) + bitcast<i16v>(pixels & splat(0x00ff0000));
}

// Of sums of the upper two and of the lower two of three rows.
TW_INLINE i32v sobel_of(i16v first, i16v second) { return join_halves(first + second, second - first); }

// Pixels from -1 to 2 beside place `at`, in a row so many bytes away.
TW_INLINE i32v pixels_at(const uint8_t* p, i32v at, int64_t away) { return gather_bytes(p + away - 1, at); }

// At places.
TW_INLINE void sobel_at(const uint8_t* p, int64_t row, i32v at, i32v* w) {
    const i16v middle = row_terms(pixels_at(p, at, 0));
    w[0] = sobel_of(row_terms(pixels_at(p, at, -row)) + middle, middle + row_terms(pixels_at(p, at, row)));
}

// At N places above each other, of which that at `at` is number K.
template <int N, int K>
TW_INLINE void sobels_down(const uint8_t* p, int64_t row, i32v at, i32v* w) {
    i16v terms = row_terms(pixels_at(p, at, -(K + 1) * row)), pair{};
#pragma GCC unroll 8
    for (int64_t k = 0; k <= N; ++k) {
        const i16v next = row_terms(pixels_at(p, at, (k - K) * row)), next_pair = terms + next;
        if (k) w[k - 1] = sobel_of(pair, next_pair);
        terms = next, pair = next_pair;
    }
}

// At a place and behind it.
TW_INLINE void two_sobels_along(const uint8_t* p, int64_t row, i32v at, i32v* w) {
    const i32v above = pixels_at(p, at, -row), here = pixels_at(p, at, 0), below = pixels_at(p, at, row);
    const i16v middle = row_terms(here), next = row_terms(here >> 8);
    w[0] = sobel_of(row_terms(above) + middle, middle + row_terms(below));
    w[1] = sobel_of(row_terms(above >> 8) + next, next + row_terms(below >> 8));
}

// Sums down a window of 3, and differences, of pairs of columns.
struct Columns {
    i16v smooth, change;
};
TW_INLINE Columns columns_of(i16v above, i16v at, i16v below) {
    const i16v first = above + at, second = at + below;
    return {first + second, second - first};
}
TW_INLINE i16v between(i16v a, i16v b) { return halves_down(a) | halves_up(b); }

// At five places beside each other, of which that at `at` is the middle one.
TW_INLINE void five_sobels_along(const uint8_t* p, int64_t row, i32v at, i32v* w) {
    i16v even[2][3], odd[2][3];  // columns -3 -1, 1 3, and -2 0, 2 4
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 3
        for (int k = 0; k < 3; ++k) {
            const i16v pixels = bitcast<i16v>(gather_bytes(p + (k - 1) * row + 4 * half - 3, at));
            even[half][k] = pixels & splat<int16_t>(255);
            odd[half][k] = bitcast<i16v>(bitcast<Vec<uint16_t>>(pixels) >> 8);
        }
    }
    const Columns a = columns_of(even[0][0], even[0][1], even[0][2]),
                  c = columns_of(even[1][0], even[1][1], even[1][2]);
    const Columns b = columns_of(odd[0][0], odd[0][1], odd[0][2]), d = columns_of(odd[1][0], odd[1][1], odd[1][2]);
    const i16v ac = between(a.smooth, c.smooth), bd = between(b.smooth, d.smooth);  // columns -1 1, and 0 2
    const i16v ac_change = between(a.change, c.change), bd_change = between(b.change, d.change);
    const i16v dx0 = ac - a.smooth, dy0 = a.change + ac_change + b.change + b.change;  // of columns -2 0
    const i16v dx1 = bd - b.smooth, dy1 = b.change + bd_change + ac_change + ac_change;  // of columns -1 1
    const i16v dx2 = c.smooth - ac, dy2 = ac_change + c.change + bd_change + bd_change;  // of columns 0 2
    w[0] = join_halves(dx0, halves_up(dy0)), w[2] = join_halves(halves_down(dx0), dy0);
    w[1] = join_halves(dx1, halves_up(dy1)), w[3] = join_halves(halves_down(dx1), dy1);
    w[4] = join_halves(halves_down(dx2), dy2);
}

TW_INLINE i32v size_of(i32v word) { return dot_pairs(abs(bitcast<i16v>(word)), splat<int16_t>(1)); }

}  // namespace
}  // namespace tw::TW_ISA
