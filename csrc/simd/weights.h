// Weights of bf16: powers of two, and their stores. For tiers whose products take bf16.
#pragma once
#include "simd/convert.h"
#include "simd/math.h"

namespace tw::TW_ISA {

#if defined(__AVX512F__)
// 2^x to 1.5 ULP for x < 128, 0 for -Inf.
TW_INLINE f32v power_of_two(f32v x) {
    constexpr int kAbove = 1;  // the integer below
    const f32v part = _mm512_reduce_ps(x, kAbove);
    return _mm512_scalef_ps(
        poly_inner(part, 1.f, 0x1.62e4f6p-1f, 0x1.ebd5a8p-3f, 0x1.c95446p-5f, 0x1.26900cp-7f, 0x1.ec320ap-10f), x);
}
#endif

// Two vectors; denormals may become zeros.
TW_INLINE Vec<uint16_t> flushed(f32v a, f32v b) {
#if defined(__AVX512BF16__) && !defined(TW_EMULATED_VNNI)
    return bitcast<Vec<uint16_t>>(_mm512_cvtne2ps_pbh(b, a));
#else
    uint16_t both[2 * kLanes<float>];
    store_from(reinterpret_cast<bf16*>(both), a), store_from(reinterpret_cast<bf16*>(both) + kLanes<float>, b);
    return load(both);
#endif
}
TW_INLINE void store_flushed(bf16* p, f32v a, f32v b) { store(reinterpret_cast<uint16_t*>(p), flushed(a, b)); }

// ---- powers of two as bits of bf16 ------------------------------------------------------------------------------------------

// What the significand of bf16 has too much where it is the fraction of an exponent, by that fraction in 128ths.
constexpr uint8_t kLinearExcess[128] = {
    0,  0,  1,  1,  1,  1,  2,  2,  2,  3,  3,  3,  3,  4,  4,  4,  4,  5,  5,  5,  5,  6,  6,  6,  6,  6,
    7,  7,  7,  7,  7,  8,  8,  8,  8,  8,  8,  9,  9,  9,  9,  9,  9,  9,  10, 10, 10, 10, 10, 10, 10, 10,
    10, 10, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11,
    11, 11, 11, 11, 10, 10, 10, 10, 10, 10, 10, 10, 10, 9,  9,  9,  9,  9,  9,  9,  8,  8,  8,  8,  8,  7,
    7,  7,  7,  7,  6,  6,  6,  6,  5,  5,  5,  4,  4,  4,  3,  3,  3,  3,  2,  2,  1,  1,  1,  0};
constexpr float kBf16One = 127 * 128;

// 2^x in bf16 to 2^-7.2, 2^-9 on average, of 128 x + kBf16One below 2^31; 0 for what is below 2^-127.
TW_INLINE Vec<uint16_t> bf16_powers(f32v a, f32v b) {
#if defined(__AVX512VBMI__)
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    const __m512i linear =
        _mm512_permutexvar_epi64(order, _mm512_packus_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b)));
    const __m512i excess = _mm512_maskz_permutex2var_epi8(0x5555555555555555u, _mm512_loadu_si512(kLinearExcess),
                                                          linear, _mm512_loadu_si512(kLinearExcess + 64));
    return bitcast<Vec<uint16_t>>(_mm512_sub_epi16(linear, excess));
#else
    Vec<uint16_t> bits;
    for (int i = 0; i < 2 * kLanes<float>; ++i) {
        const float x = i < kLanes<float> ? a[i] : b[i - kLanes<float>];
        const int linear = x > 0 ? x < 65535 ? static_cast<int>(__builtin_rintf(x)) : 65535 : 0;
        bits[i] = static_cast<uint16_t>(linear - kLinearExcess[linear % 128]);
    }
    return bits;
#endif
}

TW_INLINE bool any_above(Vec<uint16_t> x, uint16_t limit) {
#if defined(__AVX512VBMI__)
    return _mm512_cmpgt_epu16_mask(bitcast<__m512i>(x), _mm512_set1_epi16(static_cast<short>(limit))) != 0;
#else
    return any(x > limit);
#endif
}

// sum += pairs of bf16.
TW_INLINE f32v add_pairs(f32v sum, Vec<uint16_t> x) {
#if defined(__AVX512BF16__) && !defined(TW_EMULATED_VNNI)
    return _mm512_dpbf16_ps(sum, bitcast<__m512bh>(x), bitcast<__m512bh>(splat<uint16_t>(0x3f80)));
#else
    const u32v words = bitcast<u32v>(x);
    return sum + (bitcast<f32v>(words << 16) + bitcast<f32v>(words & 0xffff0000u));
#endif
}

// a0 b0 a1 b1 .. of the lower or the upper halves of each 16 bytes: one instruction, where zip_low takes several.
template <int High, int... I>
TW_INLINE Vec<uint16_t> zip_unit(Vec<uint16_t> a, Vec<uint16_t> b, Seq<I...>) {
    return shuffle<(I / 8 * 8 + I % 8 / 2 + I % 2 * kCount<Vec<uint16_t>> + High * 4)...>(a, b);
}
TW_INLINE Vec<uint16_t> zip_units_low(Vec<uint16_t> a, Vec<uint16_t> b) {
    return zip_unit<0>(a, b, Indices<Vec<uint16_t>>{});
}
TW_INLINE Vec<uint16_t> zip_units_high(Vec<uint16_t> a, Vec<uint16_t> b) {
    return zip_unit<1>(a, b, Indices<Vec<uint16_t>>{});
}

}  // namespace tw::TW_ISA
