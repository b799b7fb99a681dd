// Dot products of packed words: one 32-bit lane holds several values along k.
//
// Numerics: dot is exact on every tier (int32 wraps; the caller bounds K), so integer results are bit-equal.
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

// ---- 8-bit integers ---------------------------------------------------------------------------------------------------
//
//            left, in registers          right, in registers        right, in memory
//   VNNI     4 x uint8 along k           4 x int8                   4 x int8: the same words
//   others   2 x int16 along k           2 x int16                  2 x int8, widened by load_words
//
// pmaddubsw would multiply twice as many bytes but saturates its sums of two; 16-bit halves never do, and also take
// what is left of 8 bits after a zero point is subtracted. On Zen both make 32 products a cycle.

#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kDotDepth = 4;
typedef uint8_t DotLeft;
typedef int8_t DotRight;
#else
constexpr int kDotDepth = 2;
typedef int16_t DotLeft;
typedef int16_t DotRight;
#endif

// Keeps the compiler from moving the making of v, which with 16 registers ends in spilt sums.
template <class V>
TW_INLINE void in_order(V& v) {
#if defined(__x86_64__) && !defined(TW_EMULATED_AVX512)
    __asm__ volatile("" : "+v"(v));
#elif defined(__aarch64__)
    __asm__ volatile("" : "+w"(v));
#else
    (void)v;
#endif
}

// acc + the products of the words of a and b; int32 wraps, the caller bounds k.
TW_INLINE i32v dot(i32v acc, i32v a, i32v b) {
#if defined(__AVX512VNNI__)
    return (i32v)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return vusdotq_s32(acc, (uint8x16_t)a, (int8x16_t)b);
#elif defined(__SSE4_2__)
#if defined(__AVX512BW__)
    return acc + (i32v)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return acc + (i32v)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return acc + (i32v)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
#elif defined(__aarch64__)
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    return acc + (i32v)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#else
    return acc + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

// kLanes<int32_t> words from memory, as the right side of dot().
TW_INLINE i32v load_words(const int8_t* p) {
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_MATMUL_INT8)
    return bitcast<i32v>(load(p));
#elif defined(__AVX512BW__)
    return (i32v)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return (i32v)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__SSE4_2__)
    return (i32v)_mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    typename VecOf<int8_t, kLanes<int16_t>>::type v;
    __builtin_memcpy(&v, p, sizeof v);
    return bitcast<i32v>(__builtin_convertvector(v, Vec<int16_t>));
#endif
}
TW_INLINE i32v load_words(const int16_t* p) { return bitcast<i32v>(load(p)); }

}  // namespace tw::TW_ISA
