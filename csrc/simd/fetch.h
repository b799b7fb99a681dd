// Loads from places anywhere, and what mixes the pixels that lie there.
#pragma once
#include "simd/pixels.h"

namespace tw::TW_ISA {

// Words of 32 bits that begin at p[at[i]]. Gathers of 8 lanes, and places that are still in a vector, are slower on Zen.
template <int... I>
TW_INLINE i32v load_words_at(const uint16_t* p, const uint32_t* at, Seq<I...>) {
    const auto word = [=](int i) __attribute__((always_inline)) {
        int32_t v;
        __builtin_memcpy(&v, p + at[i], sizeof v);
        return v;
    };
    return i32v{word(I)...};
}
TW_INLINE i32v load_words_at(const uint16_t* p, const uint32_t* at) {
#if defined(__AVX512F__)
    return (i32v)_mm512_i32gather_epi32((__m512i)load(at), p, 2);
#else
    return load_words_at(p, at, Indices<u32v>{});
#endif
}

// 16 bytes from p[at[0]], p[at[1]], ..., one in each 16-byte unit.
TW_INLINE i16v load_units_at(const int16_t* p, const int32_t* at) {
#if defined(__AVX2__)
    const auto unit = [=](int i) __attribute__((always_inline)) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + at[i]));
    };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(unit(0)), unit(1), 1);
#if defined(__AVX512F__)
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(unit(2)), unit(3), 1);
    return (i16v)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
    return (i16v)low;
#endif
#else
    return load(p + at[0]);
#endif
}

// All bytes of a 32-bit lane become its third one; both halves its upper one.
template <int... I>
TW_INLINE u8v third_bytes(u32v v, Seq<I...>) {
    return look_up16(bitcast<u8v>(v), u8v{static_cast<uint8_t>(I % 16 / 4 * 4 + 2)...});
}
TW_INLINE u8v third_bytes(u32v v) { return third_bytes(v, Indices<u8v>{}); }
template <int... I>
TW_INLINE i16v upper_halves(u32v v, Seq<I...>) {
    return bitcast<i16v>(look_up16(bitcast<u8v>(v), u8v{static_cast<uint8_t>(I % 16 / 4 * 4 + 2 + I % 2)...}));
}
TW_INLINE i16v upper_halves(u32v v) { return upper_halves(v, Indices<u8v>{}); }

}  // namespace tw::TW_ISA
