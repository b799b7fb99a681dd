// Words of 32 bits from anywhere in memory, and in a vector.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

template <int Scale, int... I>
TW_INLINE i32v gather_each(const uint8_t* p, i32v index, Seq<I...>) {
    const auto word = [=](int i) __attribute__((always_inline)) {
        int32_t v;
        __builtin_memcpy(&v, p + int64_t{Scale} * index[i], sizeof v);
        return v;
    };
    return i32v{word(I)...};
}
template <int Scale>
TW_INLINE i32v gather_words(const void* p, i32v index) {
#if defined(__AVX512F__)
    return (i32v)_mm512_i32gather_epi32((__m512i)index, p, Scale);
#elif defined(__AVX2__)
    return (i32v)_mm256_i32gather_epi32(static_cast<const int*>(p), (__m256i)index, Scale);
#else
    return gather_each<Scale>(static_cast<const uint8_t*>(p), index, Indices<i32v>{});
#endif
}

// Lane i is p[index[i]].
TW_INLINE i32v gather(const int32_t* p, i32v index) { return gather_words<sizeof *p>(p, index); }

// Lane i is the word of the four bytes from p[index[i]] on.
TW_INLINE i32v gather_bytes(const uint8_t* p, i32v index) { return gather_words<1>(p, index); }

// ---- eight lanes, on every tier -------------------------------------------------------------------------------------

using i32x8 = VecOf<int32_t, 8>::type;

TW_INLINE i32x8 load8(const int32_t* p) { return *reinterpret_cast<const VecOf<int32_t, 8>::loose*>(p); }
TW_INLINE i32x8 widen8(const uint8_t* p) {
#if defined(__AVX2__)
    return (i32x8)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
    return __builtin_convertvector(*reinterpret_cast<const VecOf<uint8_t, 8>::loose*>(p), i32x8);
#endif
}

// Bit i is set where lane i of a mask is.
TW_INLINE uint64_t lane_bits8(i32x8 mask) {
#if defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#else
    uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= static_cast<uint64_t>(mask[i] & 1) << i;
    return bits;
#endif
}

// Lane i is table[index[i]], for indices from 0 to 7.
TW_INLINE i32x8 pick(i32x8 table, i32x8 index) {
#if defined(__AVX2__)
    return (i32x8)_mm256_permutevar8x32_epi32((__m256i)table, (__m256i)index);
#else
    i32x8 picked{};
    for (int i = 0; i < 8; ++i) picked[i] = table[index[i]];
    return picked;
#endif
}

}  // namespace tw::TW_ISA
