// Exponentials below a maximum, without the rounding error of x - max: the heart of softmax.
//
//   Shift s = shift_to(top);  exp_under(x, s) = exp(x - top) 2^k for one k of the row, which a quotient does not see;
//   log(sum of exp_under) + log_lack(s) = log(sum of exp(x - top))
//
// Method: float: while |top| < 256 no maximum is subtracted, only the exponent of its power of two; beyond, every x that
// does not vanish lies within a factor of 2 of top, so x - top is exact (Sterbenz 1974). double: exp(x - top).
// Numerics: float as exp; double has the rounding of x - top. -Inf gives 0; a NaN, or top at an infinity, gives NaN.
#pragma once
#include "simd/math.h"

namespace tw::TW_ISA {

template <class T>
struct Shift {
    Vec<T> from, rest, power;  // subtracted from x; top - from; subtracted from the exponent
};

TW_INLINE Shift<float> shift_to(f32v top) {
    const f32v from = select(abs(top) < 256.f, f32v{}, top), rest = top - from;
    return {from, rest, round_nearest(rest * kLog2e)};
}
TW_INLINE f32v exp_under(f32v x, const Shift<float>& s) {
    const Exponential e = exp_parts(max_any(s.rest - 110.f, x - s.from));
    return scale(fma(e.r, e.slope, splat(1.f)), e.n - s.power);
}
TW_INLINE f32v log_lack(const Shift<float>& s) {
    return fma(s.power, splat(kLn2Low), fma(s.power, splat(kLn2High), -s.rest));
}

TW_INLINE Shift<double> shift_to(f64v top) { return {top, f64v{}, f64v{}}; }
TW_INLINE f64v exp_under(f64v x, const Shift<double>& s) { return exp(x - s.from); }
TW_INLINE f64v log_lack(const Shift<double>&) { return f64v{}; }

}  // namespace tw::TW_ISA
