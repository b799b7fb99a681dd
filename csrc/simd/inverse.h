// Inverses that are nearly right, where what is made of them is put right anyway.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

// 1 / v, of which at least 11 bits hold, and not the same on every tier.
TW_INLINE f32v about_inverse(f32v v) {
#if defined(__AVX512F__)
    return _mm512_rcp14_ps(v);
#elif defined(__SSE4_2__)
    return TW_MM(rcp_ps)(v);
#else
    return 1 / v;
#endif
}

}  // namespace tw::TW_ISA
