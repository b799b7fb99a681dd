// What bytes become by a table of 256, whole vectors at once, on CPUs of the widest tiers that permute bytes and multiply
// them by fours. Most do: the tiers do not ask for it, so that these functions are compiled for it one by one.
#pragma once
#include "simd/pixels.h"

namespace tw::TW_ISA {

#if defined(__AVX512F__) && !defined(TW_EMULATED_AVX512)
#define TW_PERMUTES_BYTES __attribute__((target("avx512vbmi,avx512vnni")))

// Whether what is TW_PERMUTES_BYTES may be called.
TW_INLINE bool permutes_bytes() { return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni"); }

struct ByteTable {
    u8v part[4];
    TW_INLINE ByteTable of(const uint8_t* p) { return {{load(p), load(p + 64), load(p + 128), load(p + 192)}}; }
};

// Entries 0 to 127, without regard to the uppermost bit; and all of them.
TW_PERMUTES_BYTES TW_INLINE u8v look_up128(const ByteTable& t, u8v index) {
    return (u8v)_mm512_permutex2var_epi8((__m512i)t.part[0], (__m512i)index, (__m512i)t.part[1]);
}
TW_PERMUTES_BYTES TW_INLINE u8v look_up256(const ByteTable& t, u8v index) {
    const u8v high = (u8v)_mm512_permutex2var_epi8((__m512i)t.part[2], (__m512i)index, (__m512i)t.part[3]);
    const __mmask64 upper = _mm512_movepi8_mask((__m512i)index);
    return (u8v)_mm512_mask_blend_epi8(upper, (__m512i)look_up128(t, index), (__m512i)high);
}
// Of each lane its sum and four products of bytes.
TW_PERMUTES_BYTES TW_INLINE i32v add_quads(i32v sum, u8v a, Vec<int8_t> b) {
    return (i32v)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#else
#define TW_PERMUTES_BYTES
TW_INLINE constexpr bool permutes_bytes() { return false; }

struct ByteTable {
    TW_INLINE ByteTable of(const uint8_t*) { return {}; }
};
TW_INLINE u8v look_up128(const ByteTable&, u8v index) { return index; }
TW_INLINE u8v look_up256(const ByteTable&, u8v index) { return index; }
TW_INLINE i32v add_quads(i32v sum, u8v, Vec<int8_t>) { return sum; }
#endif

}  // namespace tw::TW_ISA
