// Exponentials below a maximum, without the rounding error of x - max: the heart of softmax.
//
//   Shift s = shift_to(top);  exp_under(x, s) = exp(x - top) 2^k for one k of the row, which a quotient does not see;
//   log_of_sum(sum of exp_under, s) = log(sum of exp(x - top))
//
// Method: float: while |top| < 256 no maximum is subtracted, only the exponent of its power of two; beyond, every x that
// does not vanish lies within a factor of 2 of top, so x - top is exact (Sterbenz 1974). Rounding to an integer by a
// number whose last bit is 1 leaves the exponent where it is needed. k makes all that does not vanish a normal number,
// so that only the quotient is rounded where it is denormal. double: exp(x - top).
// Numerics: float as exp; double has the rounding of x - top. -Inf gives 0 in the quotient; a NaN, or top at an
// infinity, gives NaN.
#pragma once
#include "simd/math.h"

namespace tw::TW_ISA {

template <class T>
struct Shift {
    Vec<T> from, rest, power;  // subtracted from x; top - from; subtracted from the exponent
};

constexpr float kUnderTop = 0x1p32f;  // about where the exponential of the maximum comes to lie

TW_INLINE Shift<float> shift_to(f32v top) {
    const f32v from = select(abs(top) < 256.f, f32v{}, top), rest = top - from;
    return {from, rest, round_nearest(rest * kLog2e)};
}
TW_INLINE f32v exp_under(f32v x, const Shift<float>& s) {
    // Of whole, the last bits are the exponent of a factor; its other bits are shifted out.
    const f32v own = max_any(s.rest - 108.f, x - s.from), base = (0x1.8p23f + 127.f + 32.f) - s.power;
    const f32v whole = fma(own, splat(kLog2e), base), n = whole - base;
    const Exponential e = exp_of_rest(fma(n, splat(-kLn2Low), fma(n, splat(-kLn2High), own)), n);
    return fma(e.r, e.slope, splat(1.f)) * bitcast<f32v>(bitcast<i32v>(whole) << 23);
}
TW_INLINE f32v log_lack(const Shift<float>& s) {
    return fma(s.power, splat(kLn2Low), fma(s.power, splat(kLn2High), -s.rest));
}
TW_INLINE f32v log_of_sum(f32v sum, const Shift<float>& s) { return log(sum * (1 / kUnderTop)) + log_lack(s); }
TW_INLINE double log_of_sum(double sum, const Shift<float>& s) {
    return __builtin_log(sum / static_cast<double>(kUnderTop)) + static_cast<double>(log_lack(s)[0]);
}

TW_INLINE Shift<double> shift_to(f64v top) { return {top, f64v{}, f64v{}}; }
TW_INLINE f64v exp_under(f64v x, const Shift<double>& s) { return exp(x - s.from); }
TW_INLINE f64v log_of_sum(f64v sum, const Shift<double>&) { return log(sum); }
TW_INLINE double log_of_sum(double sum, const Shift<double>&) { return __builtin_log(sum); }

}  // namespace tw::TW_ISA
