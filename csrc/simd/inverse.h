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
// The same, of which at least 44 bits hold; 2^-100 < |v| < 2^100.
TW_INLINE f64v about_inverse(f64v v) {
#if defined(__AVX512F__) && !defined(TW_EMULATED_AVX512)
    f64v r = _mm512_rcp14_pd(v);
    r += r * (1 - v * r);
    return r + r * (1 - v * r);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    f64v r = _mm256_cvtps_pd(_mm_rcp_ps(_mm256_cvtpd_ps(v)));
    r += r * (1 - v * r);
    return r + r * (1 - v * r);
#else
    return 1 / v;
#endif
}

}  // namespace tw::TW_ISA
