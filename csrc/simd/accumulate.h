// sum += a * b in the register that holds sum, one rounding where the tier has FMA.
//
// gcc moves the loads of an unrolled register tile above its multiply-adds and lets them overwrite the loaded numbers
// instead of the sums, until sums spill. As operands of an instruction written out they stay where they are.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

#if defined(__FMA__) && !defined(TW_EMULATED_AVX512)
TW_INLINE void accumulate(f32v& sum, f32v a, f32v b) { __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
TW_INLINE void accumulate(f64v& sum, f64v a, f64v b) { __asm__("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
#else
template <class V>
TW_INLINE void accumulate(V& sum, V a, V b) {
    sum = fma(a, b, sum);
}
#endif

// p + n, and not one of several addresses kept at once.
template <class T>
TW_INLINE T stepped(T at, int64_t n) {
    at += n;
    __asm__("" : "+r"(at));
    return at;
}

}  // namespace tw::TW_ISA
