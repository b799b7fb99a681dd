// Loads of lanes in the middle of a vector, for windows that begin before an array and end behind it.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

// Touches p[first] to p[last - 1] alone, 0 <= first, last <= kLanes<T>; p itself may lie outside of the array.
template <class T>
TW_INLINE Vec<T> load_between(const T* p, int64_t first, int64_t last) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if defined(__AVX512F__)
    // Without a branch, so that loads of other rows share the mask.
    const uint64_t m = first_bits(last > 0 ? last : 0) & ~first_bits(first < kLanes<T> ? first : kLanes<T>);
    if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_loadu_epi64(static_cast<__mmask8>(m), p);
    return (Vec<T>)_mm512_maskz_loadu_epi32(static_cast<__mmask16>(m), p);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 8) {
        const auto m = (iota<int64_t>() >= splat<int64_t>(first)) & (iota<int64_t>() < splat<int64_t>(last));
        return (Vec<T>)_mm256_maskload_epi64(reinterpret_cast<const long long*>(p), (__m256i)m);
    } else {
        const auto m = (iota<int32_t>() >= splat<int32_t>(static_cast<int32_t>(first))) &
                       (iota<int32_t>() < splat<int32_t>(static_cast<int32_t>(last)));
        return (Vec<T>)_mm256_maskload_epi32(reinterpret_cast<const int*>(p), (__m256i)m);
    }
#else
    Vec<T> v{};
    for (int64_t i = first; i < last; ++i) v[i] = p[i];
    return v;
#endif
}

}  // namespace tw::TW_ISA
