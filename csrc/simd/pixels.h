// 8-bit pixels in 16-bit lanes, and the integer arithmetic that filters of pixels are made of. Every tier gives the same bits.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

using u8v = Vec<uint8_t>;
using i16v = Vec<int16_t>;
using Bits = Vec<long long>;  // what intrinsics on integers take

// kLanes<int16_t> pixels.
TW_INLINE i16v load_pixels(const uint8_t* p) {
#if defined(__AVX512F__)
    return (i16v)_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return (i16v)_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__SSE4_2__)
    return (i16v)_mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    return __builtin_convertvector(*reinterpret_cast<const VecOf<uint8_t, kLanes<int16_t>>::loose*>(p), i16v);
#endif
}

// kLanes<int16_t> pixels from lanes of 0 to 255.
TW_INLINE void store_pixels(uint8_t* p, i16v v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi16_epi8((__m512i)v));
#elif defined(__AVX2__)
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16((__m256i)v, (__m256i)v), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
#elif defined(__SSE4_2__)
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16((__m128i)v, (__m128i)v));
#else
    typedef VecOf<uint8_t, kLanes<int16_t>> Bytes;
    *reinterpret_cast<Bytes::loose*>(p) = __builtin_convertvector(v, Bytes::type);
#endif
}

// The same of two vectors.
TW_INLINE void store_pixels(uint8_t* p, i16v a, i16v b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16((__m256i)a, (__m256i)b), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
#elif defined(__SSE4_2__) && !defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16((__m128i)a, (__m128i)b));
#else
    store_pixels(p, a);
    store_pixels(p + kLanes<int16_t>, b);
#endif
}

// kLanes<int32_t> numbers of 16 bits in 32-bit lanes, and back where they fit.
TW_INLINE i32v load_wide(const int16_t* p) {
    return __builtin_convertvector(*reinterpret_cast<const VecOf<int16_t, kLanes<int32_t>>::loose*>(p), i32v);
}
TW_INLINE void store_narrow(int16_t* p, i32v v) {
    typedef VecOf<int16_t, kLanes<int32_t>> Half;
    *reinterpret_cast<Half::loose*>(p) = __builtin_convertvector(v, Half::type);
}

// a b / 2^16, rounded down.
TW_INLINE i16v mul_high(i16v a, i16v b) {
#if defined(__SSE4_2__)
    return (i16v)TW_MM(mulhi_epi16)((Bits)a, (Bits)b);
#elif defined(__aarch64__)
    return vqdmulhq_s16(a, b) >> 1;
#endif
}

// Sums of two neighbouring products: lane i is a[2i] b[2i] + a[2i+1] b[2i+1].
TW_INLINE i32v dot_pairs(i16v a, i16v b) {
#if defined(__SSE4_2__)
    return (i32v)TW_MM(madd_epi16)((Bits)a, (Bits)b);
#elif defined(__aarch64__)
    return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
#endif
}

// Sums of two neighbouring products of bytes, of which a is unsigned; what does not fit 16 bits saturates.
TW_INLINE i16v dot_bytes(u8v a, Vec<int8_t> b) {
#if defined(__SSE4_2__)
    return (i16v)TW_MM(maddubs_epi16)((Bits)a, (Bits)b);
#elif defined(__aarch64__)
    const int16x8_t low = vmulq_s16((int16x8_t)vmovl_u8(vget_low_u8(a)), vmovl_s8(vget_low_s8(b)));
    const int16x8_t high = vmulq_s16((int16x8_t)vmovl_high_u8(a), vmovl_high_s8(b));
    return vqaddq_s16(vuzp1q_s16(low, high), vuzp2q_s16(low, high));
#endif
}

// In each 16-byte unit entries of a table of 16: lane i is table[index[i] % 16], or 0 where the index is 128 or more.
TW_INLINE u8v look_up16(u8v table, u8v index) {
#if defined(__SSE4_2__)
    return (u8v)TW_MM(shuffle_epi8)((Bits)table, (Bits)index);
#elif defined(__aarch64__)
    return vqtbl1q_u8(table, index & 0x8f);
#endif
}

// In each 16-byte unit the lanes of a, then those of b: undoes interleave_low and interleave_high. What does not fit saturates.
TW_INLINE i16v narrow_units(i32v a, i32v b) {
#if defined(__SSE4_2__)
    return (i16v)TW_MM(packs_epi32)((Bits)a, (Bits)b);
#elif defined(__aarch64__)
    return vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
#endif
}

TW_INLINE u8v narrow_units(i16v a, i16v b) {
#if defined(__SSE4_2__)
    return (u8v)TW_MM(packus_epi16)((Bits)a, (Bits)b);
#elif defined(__aarch64__)
    return vcombine_u8(vqmovun_s16(a), vqmovun_s16(b));
#endif
}

}  // namespace tw::TW_ISA
