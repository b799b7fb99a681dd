// Masks of lanes as bits of a word, and bits of a word as bytes; words of 16 bits compared, added and widened.
#pragma once
#include "simd/pixels.h"

namespace tw::TW_ISA {

// Bit i is set where lane i of two masks of 16-bit lanes, laid end to end, is.
TW_INLINE uint64_t lane_bits(i16v low, i16v high) {
#if defined(__AVX512F__)
    return _mm512_movepi16_mask((__m512i)low) | static_cast<uint64_t>(_mm512_movepi16_mask((__m512i)high)) << 32;
#elif defined(__AVX2__)
    const __m256i bytes = _mm256_packs_epi16((__m256i)low, (__m256i)high);
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8)));
#elif defined(__SSE4_2__)
    return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16((__m128i)low, (__m128i)high)));
#else
    constexpr int n = kLanes<int16_t>;
    uint64_t bits = 0;
    for (int i = 0; i < n; ++i) bits |= uint64_t{low[i] != 0} << i | uint64_t{high[i] != 0} << (n + i);
    return bits;
#endif
}

// The same of one mask of 32-bit lanes.
TW_INLINE uint64_t lane_bits(i32v mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__SSE4_2__)
    return static_cast<uint32_t>(TW_MM(movemask_ps)((f32v)mask));
#else
    uint64_t bits = 0;
    for (int i = 0; i < kLanes<int32_t>; ++i) bits |= uint64_t{mask[i] != 0} << i;
    return bits;
#endif
}

// The same of one mask of 8-bit lanes.
TW_INLINE uint64_t lane_bits(u8v mask) {
#if defined(__AVX512F__)
    return _mm512_movepi8_mask((__m512i)mask);
#elif defined(__SSE4_2__)
    return static_cast<uint32_t>(TW_MM(movemask_epi8)((Bits)mask));
#else
    uint64_t bits = 0;
    for (int i = 0; i < kLanes<uint8_t>; ++i) bits |= uint64_t{mask[i] != 0} << i;
    return bits;
#endif
}

// Whether a lane of a is above that of b: without a mask of lanes, which takes longer than to compare.
TW_INLINE bool any_above(Vec<uint16_t> a, Vec<uint16_t> b) {
#if defined(__AVX512F__) && !defined(TW_EMULATED_AVX512)
    return _mm512_cmpgt_epu16_mask((__m512i)a, (__m512i)b) != 0;
#else
    return any(a > b);
#endif
}
TW_INLINE bool any_above(i16v a, i16v b) {
#if defined(__AVX512F__) && !defined(TW_EMULATED_AVX512)
    return _mm512_cmpgt_epi16_mask((__m512i)a, (__m512i)b) != 0;
#else
    return any(a > b);
#endif
}

// a + b, or 65535 where it is more.
TW_INLINE Vec<uint16_t> add_saturating(Vec<uint16_t> a, Vec<uint16_t> b) {
#if defined(__SSE4_2__)
    return (Vec<uint16_t>)TW_MM(adds_epu16)((Bits)a, (Bits)b);
#else
    return a + b < a ? ~Vec<uint16_t>{} : a + b;
#endif
}

TW_INLINE i32v load_wide(const uint16_t* p) {
    return __builtin_convertvector(*reinterpret_cast<const VecOf<uint16_t, kLanes<int32_t>>::loose*>(p), i32v);
}

// A byte per bit, lowest first: 255 where it is set and 0 elsewhere. Shuffles stay inside 16-byte units.
template <int... I>
TW_INLINE u8v bytes_of(uint64_t bits, Seq<I...>) {
    const u8v words = bitcast<u8v>(splat<uint64_t>(bits));
    const u8v each = shuffle<(I / 8 + I / 16 * 16)...>(words, words), own = u8v{static_cast<uint8_t>(1 << I % 8)...};
    return bitcast<u8v>((each & own) == own);
}
TW_INLINE u8v bytes_of_bits(uint64_t bits) { return bytes_of(bits, Indices<u8v>{}); }

}  // namespace tw::TW_ISA
