// Floats to 8-bit codes, and the range of a row.
//
//   q = clamp(rint(x / scale) + zero)    halves to even; NaN becomes zero, infinities saturate
//
// Numerics: each operation is rounded by itself, on every tier alike, so that codes are bit-equal everywhere.
#pragma once
#include "simd/convert.h"
#include "simd/dot.h"

namespace tw::TW_ISA {

// A product that no following addition is fused with, which tiers without FMA could not do alike.
TW_INLINE f32v apart(f32v product) {
    in_order(product);
    return product;
}

// Word i of every 16-byte unit, for each i in turn.
template <int... I>
TW_INLINE i32v units_to_runs(i32v v, Seq<I...>) {
    constexpr int units = kVecBytes / 16;
    return shuffle<(I % units * 4 + I / units)...>(v, v);
}

// Byte j of each of four units as word j.
template <int... I>
TW_INLINE Vec<uint8_t> words_of_units(Vec<uint8_t> v, Seq<I...>) {
    return shuffle<(I / 16 * 16 + I % 4 * 4 + I % 16 / 4)...>(v, v);
}
template <class V>
TW_INLINE Vec<uint8_t> zip_units(V units) {
    static_assert(kVecBytes <= 64);
    const i32v runs = units_to_runs(bitcast<i32v>(units), Indices<i32v>{});
    return words_of_units(bitcast<Vec<uint8_t>>(runs), Indices<Vec<uint8_t>>{});
}

// rint(v) + zero, kept in [low, high], as int32. `zero` is a whole number.
TW_INLINE i32v code_of(f32v v, f32v zero, float low, float high) {
    const f32v whole = round_nearest(select(v == v, v, f32v{})) + zero;
    return to_i32(min_any(max_any(whole, splat(low)), splat(high)));
}

// The codes of four vectors, which fit, as one.
template <class Q>
TW_INLINE Vec<Q> narrow8(i32v a, i32v b, i32v c, i32v d) {
#if defined(__SSE4_2__)
#if defined(__AVX512F__)
    typedef __m512i Bits;
#elif defined(__AVX2__)
    typedef __m256i Bits;
#else
    typedef __m128i Bits;
#endif
    const Bits ab = TW_MM(packs_epi32)((Bits)a, (Bits)b), cd = TW_MM(packs_epi32)((Bits)c, (Bits)d);
    const Bits packed = static_cast<Q>(-1) < 0 ? TW_MM(packs_epi16)(ab, cd) : TW_MM(packus_epi16)(ab, cd);
    return bitcast<Vec<Q>>(units_to_runs((i32v)packed, Indices<i32v>{}));
#else
    const Part<Q> parts[] = {narrow8<Q>(a), narrow8<Q>(b), narrow8<Q>(c), narrow8<Q>(d)};
    Vec<Q> v;
    __builtin_memcpy(&v, parts, sizeof v);
    return v;
#endif
}

// The least and the largest of a row and 0; NaN if there is a NaN.
struct Range {
    float low, high;
};
TW_INLINE Range range_of(const float* x, int64_t n) {
    constexpr int kChains = kVectorRegisters >= 32 ? 4 : 2;
    f32v low[kChains] = {}, high[kChains] = {};
    Mask<float> strange = {};
    const auto meet = [&](int at, f32v v) __attribute__((always_inline)) {
        low[at] = min_any(v, low[at]), high[at] = max_any(v, high[at]);
        strange |= v != v;
    };
    int64_t i = 0;
    for (; i + kChains * kLanes<float> <= n; i += kChains * kLanes<float>)
#pragma GCC unroll 4
        for (int at = 0; at < kChains; ++at) meet(at, load(x + i + at * kLanes<float>));
#pragma GCC unroll 4
    for (int at = 2; at < kChains; ++at)
        low[at % 2] = min_any(low[at % 2], low[at]), high[at % 2] = max_any(high[at % 2], high[at]);
    for (; i < n; i += kLanes<float>) meet(0, load_n(x + i, n - i < kLanes<float> ? n - i : kLanes<float>));
    if (any(strange)) return {__builtin_nanf(""), __builtin_nanf("")};
    return {reduce_min(min_any(low[0], low[1])), reduce_max(max_any(high[0], high[1]))};
}

// Scale of -127..127 that covers a row: largest / 127, at least the least normal number, NaN if the row is not finite.
struct RowScale {
    float scale, inverse;
};
TW_INLINE RowScale row_scale(Range r) {
    float scale = apart(splat(r.high > -r.low ? r.high : -r.low) * splat(1.f / 127.f))[0];
    if (!(scale < __builtin_inff())) scale = __builtin_nanf("");
    if (scale < 0x1p-126f) scale = 0x1p-126f;
    return {scale, 1.f / scale};
}
TW_INLINE Part<int8_t> code_within_127(f32v v, RowScale by) {
    return narrow8<int8_t>(code_of(apart(v * splat(by.inverse)), f32v{}, -127.f, 127.f));
}
TW_INLINE void code_row(const float* x, int64_t n, RowScale by, int8_t* to) {
    for (int64_t i = 0; i < n; i += kLanes<float>) {
        const int64_t lanes = n - i < kLanes<float> ? n - i : kLanes<float>;
        const Part<int8_t> part = code_within_127(lanes == kLanes<float> ? load(x + i) : load_n(x + i, lanes), by);
        if (lanes == kLanes<float>)
            __builtin_memcpy(to + i, &part, sizeof part);
        else
            store_part_n(to + i, part, lanes);
    }
}

// Scale and zero point of 0..255 that cover a row: scale = high / 255 - low / 255, at least the least normal number, NaN if
// the row is not finite; zero = rint(-low / scale).
struct RowCode {
    float scale, inverse, zero;
};
TW_INLINE RowCode row_code(Range r) {
    const f32v part = splat(1.f / 255.f);
    const f32v high = apart(splat(r.high) * part), low = apart(splat(r.low) * part);
    float scale = (high - low)[0];
    if (!(scale < __builtin_inff())) scale = __builtin_nanf("");
    if (scale < 0x1p-126f) scale = 0x1p-126f;
    const float inverse = 1.f / scale;
    const f32v zero = apart(splat(-r.low) * splat(inverse));
    return {scale, inverse, static_cast<float>(code_of(zero, f32v{}, 0.f, 255.f)[0])};
}

// Codes of whole vectors of bytes, of which there may be none; how many. Saturation keeps them in 0..255. What lies as far
// behind is likely to be the next row, and fetched.
TW_INLINE int64_t code_bytes(const float* x, int64_t n, RowCode by, uint8_t* to) {
    int64_t i = 0;
    if constexpr (kVecBytes == 64) {
        constexpr int L = kLanes<float>;
        const f32v inverse = splat(by.inverse);
        const i32v zero = to_i32(splat(by.zero));
        for (; i + 4 * L <= n; i += 4 * L) {
            i32v code[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                __builtin_prefetch(x + n + i + v * L);
                code[v] = to_i32(round_nearest(apart(load(x + i + v * L) * inverse))) + zero;
            }
            store(to + i, narrow8<uint8_t>(code[0], code[1], code[2], code[3]));
        }
    }
    return i;
}

}  // namespace tw::TW_ISA
