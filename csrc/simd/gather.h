// Words of 32 bits from anywhere.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

template <int... I>
TW_INLINE i32v gather_each(const int32_t* p, i32v index, Seq<I...>) {
    return i32v{p[index[I]]...};
}

// Lane i is p[index[i]].
TW_INLINE i32v gather(const int32_t* p, i32v index) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (i32v)_mm256_i32gather_epi32(p, (__m256i)index, 4);
#else
    return gather_each(p, index, Indices<i32v>{});
#endif
}

}  // namespace tw::TW_ISA
