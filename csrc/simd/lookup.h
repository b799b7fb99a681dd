// What bytes become by a table of 256, and bytes of three channels apart and together, whole vectors at once, on CPUs of the
// widest tiers that permute bytes and multiply them by fours. Most do: the tiers do not ask for it, so that these functions
// are compiled for it one by one.
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

// Lane i of the result is lane at[i] of a, or, less 64, of b.
TW_PERMUTES_BYTES TW_INLINE u8v pick(u8v a, u8v b, u8v at) {
    return (u8v)_mm512_permutex2var_epi8((__m512i)a, (__m512i)at, (__m512i)b);
}
template <int C, int... I>
TW_PERMUTES_BYTES TW_INLINE u8v channel_of(const u8v (&v)[3], Seq<I...>) {
    const u8v first = pick(v[0], v[1], u8v{static_cast<uint8_t>(3 * I + C)...});
    return pick(first, v[2], u8v{static_cast<uint8_t>(3 * I + C < 128 ? I : 3 * I + C - 64)...});
}
template <int V, int... I>
TW_PERMUTES_BYTES TW_INLINE u8v together_of(const u8v (&v)[3], Seq<I...>) {
    const u8v first = pick(v[0], v[1], u8v{static_cast<uint8_t>((64 * V + I) / 3 + (64 * V + I) % 3 * 64)...});
    return pick(first, v[2], u8v{static_cast<uint8_t>((64 * V + I) % 3 == 2 ? (64 * V + I) / 3 + 64 : I)...});
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
template <int, class S>
TW_INLINE u8v channel_of(const u8v (&v)[3], S) {
    return v[0];
}
template <int, class S>
TW_INLINE u8v together_of(const u8v (&v)[3], S) {
    return v[0];
}
#endif

// n pixels of three channels into planes that lie `plane` apart, all bits of `flip` turned, and up to a vector more; and back.
TW_PERMUTES_BYTES static inline void split_channels(const uint8_t* from, uint8_t flip, uint8_t* to, int64_t plane,
                                                    int64_t n) {
    for (int64_t x = 0; x < n; x += kVecBytes) {
        u8v v[3];
        for (int k = 0; k < 3; ++k) {
            const int64_t at = 3 * x + k * kVecBytes, left = 3 * n - at;
            v[k] = load_n(from + at, left < 0 ? 0 : left < kVecBytes ? left : kVecBytes) ^ splat(flip);
        }
        store(to + x, channel_of<0>(v, Indices<u8v>{}));
        store(to + plane + x, channel_of<1>(v, Indices<u8v>{}));
        store(to + 2 * plane + x, channel_of<2>(v, Indices<u8v>{}));
    }
}
TW_PERMUTES_BYTES static inline void join_channels(const uint8_t* from, int64_t plane, uint8_t* to, int64_t n) {
    for (int64_t x = 0; x < n; x += kVecBytes) {
        const u8v v[3] = {load(from + x), load(from + plane + x), load(from + 2 * plane + x)};
        const u8v joined[3] = {together_of<0>(v, Indices<u8v>{}), together_of<1>(v, Indices<u8v>{}),
                               together_of<2>(v, Indices<u8v>{})};
        for (int k = 0; k < 3; ++k) {
            const int64_t at = 3 * x + k * kVecBytes, left = 3 * n - at;
            store_n(to + at, joined[k], left < 0 ? 0 : left < kVecBytes ? left : kVecBytes);
        }
    }
}

}  // namespace tw::TW_ISA
