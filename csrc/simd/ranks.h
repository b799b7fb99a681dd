// Ranks in histograms of 16 bins: a vector of running sums whatever the tier.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

// T is uint8_t or uint16_t, whose counts stay below 2^15.
template <class T>
using Bins = typename VecOf<T, 16>::type;

// 16 counts of 8 bits as counts of T.
template <class T>
TW_INLINE Bins<T> load_bins(const uint8_t* p) {
    return __builtin_convertvector(*reinterpret_cast<const VecOf<uint8_t, 16>::loose*>(p), Bins<T>);
}

TW_INLINE void store_bins(uint8_t* p, Bins<uint8_t> v) { *reinterpret_cast<VecOf<uint8_t, 16>::loose*>(p) = v; }

// How many of 16 running sums are less than `need`, which the last one reaches.
TW_INLINE int bins_below(Bins<uint8_t> sums, int need) {
#if defined(__SSE4_2__)
    const __m128i limit = _mm_set1_epi8(static_cast<char>(need)), all = (__m128i)sums;
    return __builtin_ctz(static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(all, limit), all))));
#else
    int n = 0;
    while (sums[n] < need) ++n;
    return n;
#endif
}
TW_INLINE int bins_below(Bins<uint16_t> sums, int need) {
#if defined(__AVX2__)
    const __m256i less = _mm256_cmpgt_epi16(_mm256_set1_epi16(static_cast<short>(need)), (__m256i)sums);
    return __builtin_popcount(static_cast<unsigned>(_mm256_movemask_epi8(less))) / 2;
#else
    int n = 0;
    while (sums[n] < need) ++n;
    return n;
#endif
}

}  // namespace tw::TW_ISA
