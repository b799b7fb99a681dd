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
TW_INLINE Vec<uint16_t> flushed(f32v a, f32v b) {
#if defined(__AVX512BF16__) && !defined(TW_EMULATED_VNNI)
    return bitcast<Vec<uint16_t>>(_mm512_cvtne2ps_pbh(b, a));
#else
    uint16_t both[2 * kLanes<float>];
    store_from(reinterpret_cast<bf16*>(both), a), store_from(reinterpret_cast<bf16*>(both) + kLanes<float>, b);
    return load(both);
#endif
}
TW_INLINE void store_flushed(bf16* p, f32v a, f32v b) { store(reinterpret_cast<uint16_t*>(p), flushed(a, b)); }

// a0 b0 a1 b1 .. of the lower or the upper halves of each 16 bytes: one instruction, where zip_low takes several.
template <int High, int... I>
TW_INLINE Vec<uint16_t> zip_unit(Vec<uint16_t> a, Vec<uint16_t> b, Seq<I...>) {
    return shuffle<(I / 8 * 8 + I % 8 / 2 + I % 2 * kCount<Vec<uint16_t>> + High * 4)...>(a, b);
}
TW_INLINE Vec<uint16_t> zip_units_low(Vec<uint16_t> a, Vec<uint16_t> b) {
    return zip_unit<0>(a, b, Indices<Vec<uint16_t>>{});
}
TW_INLINE Vec<uint16_t> zip_units_high(Vec<uint16_t> a, Vec<uint16_t> b) {
    return zip_unit<1>(a, b, Indices<Vec<uint16_t>>{});
}

}  // namespace tw::TW_ISA
