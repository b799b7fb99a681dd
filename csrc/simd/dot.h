// Dot products of packed words: one 32-bit lane holds two bf16 or four 8-bit values along k.
//
// Numerics: dot_u8s8 is exact on every tier (int32 wraps; the caller bounds K), so integer results are bit-equal.
// dot_bf16 forms each product exactly; the tiers differ in the order and rounding of the two additions, and vdpbf16ps
// flushes denormal inputs and results to zero.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

// acc + a[even] * b[even] + a[odd] * b[odd]; a and b are any vectors of this width.
template <class A, class B>
TW_INLINE f32v dot_bf16(f32v acc, A a, B b) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    return vbfdotq_f32(acc, (bfloat16x8_t)a, (bfloat16x8_t)b);
#else
    const u32v x = bitcast<u32v>(a), y = bitcast<u32v>(b);
    acc = fma(bitcast<f32v>(x << 16), bitcast<f32v>(y << 16), acc);
    return fma(bitcast<f32v>(x & 0xffff0000u), bitcast<f32v>(y & 0xffff0000u), acc);
#endif
}

// acc + the four products of unsigned bytes of a and signed bytes of b.
template <class A, class B>
TW_INLINE i32v dot_u8s8(i32v acc, A a, B b) {
#if defined(__AVX512VNNI__)
    return (i32v)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    return (i32v)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return vusdotq_s32(acc, (uint8x16_t)a, (int8x16_t)b);
#else
    // Even and odd bytes become 16-bit lanes; pmaddubsw would saturate. 255 * -128 still fits 16 bits.
    typedef Vec<int16_t> Half;
    const Half u = bitcast<Half>(a), s = bitcast<Half>(b);
    const Half u0 = u & 0xff, u1 = bitcast<Half>(bitcast<Vec<uint16_t>>(a) >> 8);
    const Half s0 = (s << 8) >> 8, s1 = s >> 8;
#if defined(__AVX512BW__)
    return acc + (i32v)_mm512_madd_epi16((__m512i)u0, (__m512i)s0) + (i32v)_mm512_madd_epi16((__m512i)u1, (__m512i)s1);
#elif defined(__AVX2__)
    return acc + (i32v)_mm256_madd_epi16((__m256i)u0, (__m256i)s0) + (i32v)_mm256_madd_epi16((__m256i)u1, (__m256i)s1);
#elif defined(__SSE4_2__)
    return acc + (i32v)_mm_madd_epi16((__m128i)u0, (__m128i)s0) + (i32v)_mm_madd_epi16((__m128i)u1, (__m128i)s1);
#elif defined(__aarch64__)
    return vpadalq_s16(vpadalq_s16(acc, u0 * s0), u1 * s1);
#else
    const i32v p0 = bitcast<i32v>(u0 * s0), p1 = bitcast<i32v>(u1 * s1);
    return acc + ((p0 << 16) >> 16) + (p0 >> 16) + ((p1 << 16) >> 16) + (p1 >> 16);
#endif
#endif
}

}  // namespace tw::TW_ISA
