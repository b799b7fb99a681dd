// Weights of bf16: powers of two, and their stores. For tiers whose products take bf16.
#pragma once
#include "simd/convert.h"
#include "simd/math.h"

namespace tw::TW_ISA {

#if defined(__AVX512F__)
// 2^x to 1.5 ULP for x < 128, 0 for -Inf.
TW_INLINE f32v power_of_two(f32v x) {
    constexpr int kAbove = 1;  // the integer below
    const f32v part = _mm512_reduce_ps(x, kAbove);
    return _mm512_scalef_ps(
        poly_inner(part, 1.f, 0x1.62e4f6p-1f, 0x1.ebd5a8p-3f, 0x1.c95446p-5f, 0x1.26900cp-7f, 0x1.ec320ap-10f), x);
}
#endif

// Two vectors; denormals may become zeros.
TW_INLINE void store_flushed(bf16* p, f32v a, f32v b) {
#if defined(__AVX512BF16__) && !defined(TW_EMULATED_VNNI)
    const __m512bh both = _mm512_cvtne2ps_pbh(b, a);
    __builtin_memcpy(p, &both, sizeof both);
#else
    store_from(p, a), store_from(p + kLanes<float>, b);
#endif
}

}  // namespace tw::TW_ISA
