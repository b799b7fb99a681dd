// Square roots and their inverses.
//
//   sqrt(v)          rounded once; what AVX-512 approximates is put right in less time than its instruction takes
//   inverse_sqrt(v)  1 / sqrt(v): at most 0.501 ULP on AVX-512, two roundings elsewhere
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

TW_INLINE f64v sqrt(f64v v) {
#if defined(__SSE4_2__)
    return TW_MM(sqrt_pd)(v);
#elif defined(__aarch64__)
    return vsqrtq_f64(v);
#else
    for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
    return v;
#endif
}
TW_INLINE f64v inverse_sqrt(f64v v) { return 1 / sqrt(v); }

#if defined(__AVX512F__) && !defined(TW_EMULATED_AVX512)

// root and half its inverse take one step of Newton's together; then the remainder, which is exact, puts the root right.
TW_INLINE f32v sqrt(f32v v) {
    constexpr uint32_t least = 0x0f800000, infinity = 0x7f800000;  // 2^-96: remainders are no denormal numbers
    const f32v half = splat(0.5f), about = _mm512_rsqrt14_ps(v), near = v * about, inverse = about * half;
    const f32v lack = _mm512_fnmadd_ps(near, inverse, half);
    const f32v root = _mm512_fmadd_ps(near, lack, near), rate = _mm512_fmadd_ps(inverse, lack, inverse);
    const f32v result = _mm512_fmadd_ps(_mm512_fnmadd_ps(root, root, v), rate, root);
    const __mmask16 others = _mm512_cmpge_epu32_mask(_mm512_sub_epi32((__m512i)v, _mm512_set1_epi32(least)),
                                                     _mm512_set1_epi32(infinity - least));
    return __builtin_expect(others, 0) ? (f32v)_mm512_sqrt_ps(v) : result;
}

// The product v about is taken in two parts: what it lacks to 1 / about would else lose half its bits.
TW_INLINE f32v inverse_sqrt(f32v v) {
    const f32v about = _mm512_rsqrt14_ps(v), high = v * about, low = _mm512_fmsub_ps(v, about, high);
    const f32v lack = _mm512_fnmadd_ps(low, about, _mm512_fnmadd_ps(high, about, splat(1.f)));
    const f32v change = lack * _mm512_fmadd_ps(lack, splat(0.375f), splat(0.5f));
    const __mmask16 finite = _mm512_cmp_ps_mask(high, high, _CMP_ORD_Q);  // not where v is 0 or infinity
    return _mm512_mask_fmadd_ps(about, finite, change, about);
}

#else

TW_INLINE f32v sqrt(f32v v) {
#if defined(__SSE4_2__)
    return TW_MM(sqrt_ps)(v);
#elif defined(__aarch64__)
    return vsqrtq_f32(v);
#else
    for (int i = 0; i < kLanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
}
TW_INLINE f32v inverse_sqrt(f32v v) { return 1 / sqrt(v); }

#endif

}  // namespace tw::TW_ISA
