// How often bytes occur: in pairs, by a table of all pairs; or 64 that lie near each other, of which bits are taken apart and
// counted, on CPUs of the widest tiers that multiply matrices of bits. Most do: the tiers do not ask for it, so that these
// functions are compiled for it one by one.
#pragma once
#include "simd/pixels.h"

namespace tw::TW_ISA {

constexpr int kPairs = 1 << 16;

// Adds 1 to the byte of a table that the pair of bytes at `at` tells: whether it is 0 then. In as few instructions as there
// are: apart, a load would wait for the store of its neighbour.
TW_INLINE bool count_pair(uint8_t* table, const uint8_t* at) {
#if defined(__x86_64__)
    bool carry;
    uint64_t pair;
    __asm__("movzwl %[at], %k[pair]\n\taddb $1, (%[table],%[pair])"
            : "=@ccc"(carry), [pair] "=&r"(pair), "+m"(*reinterpret_cast<uint8_t (*)[kPairs]>(table))
            : [at] "m"(*reinterpret_cast<const uint8_t (*)[2]>(at)), [table] "r"(table));
    return carry;
#else
    uint16_t pair;
    __builtin_memcpy(&pair, at, sizeof pair);
    return ++table[pair] == 0;
#endif
}

// Counts of values that lie in windows of kNear or kWide, which reach below 0 and above 255: value v counts as v mod 256.
constexpr int kNear = 32, kWide = 64;
struct Tally {
    alignas(64) uint64_t counts[kWide / 2 + 256 + kWide / 2];
};
TW_INLINE void add_tally(const Tally& t, uint32_t* sums) {
    for (int v = 0; v < 256 + kWide; ++v) sums[(v - kWide / 2) & 255] += static_cast<uint32_t>(t.counts[v]);
}

#if defined(__AVX512F__) && !defined(TW_EMULATED_AVX512)
#define TW_TALLIES __attribute__((target("avx512vbmi,gfni,avx512vpopcntdq")))

// Whether what is TW_TALLIES may be called.
TW_INLINE bool tallies() {
    return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni") &&
           __builtin_cpu_supports("avx512vpopcntdq");
}

// Bit `Plane` of 64 bytes, eight times, from bits that are apart.
template <int Plane, int... I>
TW_TALLIES TW_INLINE Bits plane_of(Bits apart, Seq<I...>) {
    return (Bits)_mm512_permutexvar_epi8((__m512i)u8v{static_cast<uint8_t>(I % 8 * 8 + Plane)...}, (__m512i)apart);
}
TW_TALLIES TW_INLINE void add_bits(uint64_t* counts, Bits set) {
    store(counts, load_aligned(counts) + (Vec<uint64_t>)_mm512_popcnt_epi64((__m512i)set));
}

// Adds how many bytes, each less than kValues, are 0, 1, ... to `counts`: eight values are the lanes of a vector.
template <int kValues>
TW_TALLIES TW_INLINE void tally(u8v bytes, uint64_t* counts) {
    constexpr Indices<u8v> lanes{};
    const __m512i each_bit = _mm512_set1_epi64(static_cast<long long>(0x8040201008040201));
    const Bits apart = (Bits)_mm512_gf2p8affine_epi64_epi8(each_bit, (__m512i)bytes, 0);
    const Bits own = (plane_of<0>(apart, lanes) ^ Bits{-1, 0, -1, 0, -1, 0, -1, 0}) &
                     (plane_of<1>(apart, lanes) ^ Bits{-1, -1, 0, 0, -1, -1, 0, 0}) &
                     (plane_of<2>(apart, lanes) ^ Bits{-1, -1, -1, -1, 0, 0, 0, 0});
    const Bits third = plane_of<3>(apart, lanes), fourth = plane_of<4>(apart, lanes);
    const Bits fifth = kValues > 32 ? plane_of<5>(apart, lanes) : Bits{};
#pragma GCC unroll 2
    for (int k = 0; k < kValues; k += 32) {
        const Bits some = own & (k ? fifth : ~fifth);
        add_bits(counts + k, some & ~third & ~fourth);
        add_bits(counts + k + 8, some & third & ~fourth);
        add_bits(counts + k + 16, some & ~third & fourth);
        add_bits(counts + k + 24, some & third & fourth);
    }
}

// What is asked of each block, kept in registers: made anew it would take the port that shuffles.
struct Windows {
    u8v past_near, past_wide, margin;
    TW_INLINE Windows of() {
        Windows w = {splat(static_cast<uint8_t>(-kNear)), splat(static_cast<uint8_t>(-kWide)),
                     splat(static_cast<uint8_t>((kWide - kNear) / 2))};
        __asm__("" : "+v"(w.past_near), "+v"(w.past_wide), "+v"(w.margin));
        return w;
    }
};

// Counts 64 bytes if they lie near what two of them have in the mean. False: they do not.
TW_TALLIES TW_INLINE bool tally_near(const Windows& w, const uint8_t* at, Tally& t) {
    const int middle = ((at[12] + at[51] + 1) / 2 + 4) & ~7;
    const u8v above = load(at) - splat(static_cast<uint8_t>(middle - kWide / 2));
    if (_mm512_test_epi8_mask((__m512i)above, (__m512i)w.past_wide)) return false;
    uint64_t* const counts = t.counts + kWide / 2 + middle;
    const u8v nearer = above - w.margin;
    if (_mm512_test_epi8_mask((__m512i)nearer, (__m512i)w.past_near))
        tally<kWide>(above, counts - kWide / 2);
    else
        tally<kNear>(nearer, counts - kNear / 2);
    return true;
}
#else
#define TW_TALLIES
TW_INLINE constexpr bool tallies() { return false; }
struct Windows {
    TW_INLINE Windows of() { return {}; }
};
TW_INLINE bool tally_near(const Windows&, const uint8_t*, Tally&) { return false; }
#endif

}  // namespace tw::TW_ISA
