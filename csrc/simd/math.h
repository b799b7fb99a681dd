// Elementary functions on f32v, branch-free, and the same on f64v lane by lane through libm.
//
// Method: argument reduction with two-part constants, then polynomials fitted here: weighted least squares at Chebyshev
// points, reweighted until the relative error levels out (Lawson 1961), coefficients rounded to float one by one with
// the rest refitted. exp: Tang 1989 without the table, two-part ln 2 after Cody and Waite 1980.
// Numerics: NaN in gives NaN out, zeros keep their sign and infinities are IEEE's, denormal results are computed;
// rounding to nearest assumed, no control word touched. The largest error over all 2^32 floats stands at each function,
// in ULP: avx2 / base, and where 16 lanes go a way of their own, avx512. Only base lacks FMA.
#pragma once
#include "simd/cells.h"

namespace tw::TW_ISA {

constexpr float kLog2e = 0x1.715476p+0f;
constexpr float kLn2High = 0x1.62e4p-1f;  // 15 bits: n * kLn2High is exact for every exponent n
constexpr float kLn2Low = 0x1.7f7d1cp-20f;
constexpr float kInf = __builtin_inff();

// a * b + c with one rounding on every tier; base goes through double, where the product is exact.
TW_INLINE f32v fma_once(f32v a, f32v b, f32v c) {
#if defined(__SSE4_2__) && !defined(__FMA__)
    const __m128d low = _mm_cvtps_pd(a) * _mm_cvtps_pd(b) + _mm_cvtps_pd(c);
    const f32v a1 = _mm_movehl_ps(a, a), b1 = _mm_movehl_ps(b, b), c1 = _mm_movehl_ps(c, c);
    const __m128d high = _mm_cvtps_pd(a1) * _mm_cvtps_pd(b1) + _mm_cvtps_pd(c1);
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
#else
    return fma(a, b, c);
#endif
}

// c0 + c1 x + c2 x^2 + ...; only the last step matters enough to round once everywhere.
template <class... C>
TW_INLINE f32v poly_inner(f32v x, float c0, C... rest) {
    if constexpr (sizeof...(rest) == 0) {
        return splat(c0);
    } else {
        return fma(poly_inner(x, rest...), x, splat(c0));
    }
}
template <class... C>
TW_INLINE f32v poly(f32v x, float c0, C... rest) {
    return fma_once(poly_inner(x, rest...), x, splat(c0));
}

TW_INLINE f32v with_sign_of(f32v magnitude, f32v x) {
    return bitcast<f32v>(bitcast<u32v>(magnitude) | (bitcast<u32v>(x) & 0x80000000u));
}

// A NaN in x stays: min_any and max_any answer their second operand then.
TW_INLINE f32v at_most(f32v x, float limit) { return min_any(splat(limit), x); }
TW_INLINE f32v at_least(f32v x, float limit) { return max_any(splat(limit), x); }

// ---- exponentials ---------------------------------------------------------------------------------------------------

// exp(x) = (1 + r slope) 2^n with |r| <= ln(2) / 2.
struct Exponential {
    f32v r, slope, n;
};

// The integer nearest to x log2(e).
TW_INLINE f32v whole_log2e(f32v x) {
#if defined(__AVX512F__)
    return fma(x, splat(kLog2e), splat(0x1.8p23f)) - 0x1.8p23f;  // half the work of rounding, for |x| < 2^21
#else
    return round_nearest(x * kLog2e);
#endif
}
TW_INLINE Exponential exp_of_rest(f32v r, f32v n) {
    return {r, poly_inner(r, 1.f, 0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558acp-5f, 0x1.123976p-7f, 0x1.6a507cp-10f), n};
}
// For |x| < 2^15.
TW_INLINE Exponential exp_parts(f32v x) {
    const f32v n = whole_log2e(x);
    return exp_of_rest(fma(n, splat(-kLn2Low), fma(n, splat(-kLn2High), x)), n);
}
// The argument x + tail, |tail| below one ulp of x.
TW_INLINE Exponential exp_parts(f32v x, f32v tail) {
    const f32v n = whole_log2e(x);
    return exp_of_rest(fma(n, splat(-kLn2Low), fma(n, splat(-kLn2High), x) + tail), n);
}

TW_INLINE f32v power_of_two(i32v n) { return bitcast<f32v>((n + 127) << 23); }

// m * 2^n with a single rounding where the result is denormal; |n| < 250.
TW_INLINE f32v scale(f32v m, f32v n) {
#if defined(__AVX512F__)
    return _mm512_scalef_ps(m, n);
#else
    const i32v i = to_i32(n), half = i >> 1;
    return m * power_of_two(half) * power_of_two(i - half);
#endif
}
// The same where the result is known to be a normal number (or NaN).
TW_INLINE f32v scale_normal(f32v m, f32v n) {
#if defined(__AVX512F__)
    return _mm512_scalef_ps(m, n);
#else
    return bitcast<f32v>(bitcast<i32v>(m) + (to_i32(n) << 23));
#endif
}

TW_INLINE f32v value_of(Exponential e) { return scale(fma_once(e.r, e.slope, splat(1.f)), e.n); }
TW_INLINE f32v normal_value_of(Exponential e) { return scale_normal(fma_once(e.r, e.slope, splat(1.f)), e.n); }
// y exp(x): y goes in before the scaling, so that a denormal result is rounded once.
TW_INLINE f32v times(f32v y, Exponential e) { return scale(fma_once(y * e.r, e.slope, y), e.n); }

// Measured: 0.90 / 0.94 ULP.
TW_INLINE f32v exp(f32v x) { return value_of(exp_parts(at_most(at_least(x, -104.f), 88.8f))); }

// exp(x) - 1 without cancellation: halves of 2^n, so that n = 128 stays in range.
// Measured: 1.97 / 2.11 ULP.
TW_INLINE f32v expm1(f32v x) {
    const Exponential e = exp_parts(at_most(at_least(x, -18.f), 88.8f));
    const f32v z = e.r * e.slope, half = scale_normal(splat(0.5f), e.n);
    return with_sign_of(select(e.n == 0.f, z, 2.f * fma_once(z, half, half - 0.5f)), x);
}

// y / (1 + e), the rounding error of 1 + e corrected to first order.
TW_INLINE f32v over_one_plus(f32v y, f32v e) {
    const f32v d = 1.f + e, lost = e - (d - 1.f), q = y / d;
    return fma(-q, lost, q);
}

#if defined(__AVX512F__)
// y / (1 + exp(-x - tail)) = y 2^n / (2^n + exp(-rest)), -110 <= x <= 26: the denominator is in [0.7, 2^38], and only the
// scaling may round to a denormal. Half of a division's price: an estimate of 14 bits and one step of Newton's.
TW_INLINE f32v times_sigmoid(f32v y, f32v x, f32v tail) {
    const f32v n = whole_log2e(x);
    const Exponential e = exp_of_rest(fma(n, splat(kLn2Low), fma(n, splat(kLn2High), -x) - tail), n);
    const f32v m = fma(e.r, e.slope, splat(1.f)), p = scale(splat(1.f), n);
    const f32v about = _mm512_rcp14_ps(p + m), lack = fma(-p, about, fma(-m, about, splat(1.f)));
    return scale(y * fma(about, lack, about), n);
}
#endif

// 1 / (1 + exp(-x)) with the exponential of -|x| only, so that the left tail keeps its relative accuracy.
// Measured: 1.97 / 1.97 ULP, 1.50.
TW_INLINE f32v sigmoid(f32v x) {
#if defined(__AVX512F__)
    return times_sigmoid(splat(1.f), at_most(at_least(x, -104.f), 20.f), f32v{});
#else
    const f32v e = value_of(exp_parts(-at_most(abs(x), 104.f)));
    return over_one_plus(select(x < 0.f, e, splat(1.f)), e);
#endif
}

// |x| < 0.9735: x + x^3 P(x^2). Beyond: 1 - 2 / (exp(2|x|) + 1), where the quotient is below 1/4.
// Measured: 0.94 / 0.97 ULP, 0.77.
TW_INLINE f32v tanh(f32v x) {
#if defined(__AVX512F__)
    return odd_in_cells<true>(kTanhCells, x, 9.02f, 0.625f);
#else
    const f32v a = abs(x), u = a * a;
    const f32v p = poly(u, -0x1.555542p-2f, 0x1.110cf0p-3f, -0x1.b980ecp-5f, 0x1.60d676p-6f, -0x1.070d72p-7f,
                        0x1.3662d2p-9f, -0x1.8e184ap-12f);
    const f32v c = at_most(a, 9.1f);
    const Exponential e = exp_parts(c + c);
    const f32v two_n = scale_normal(splat(1.f), e.n);
    const f32v large = 1.f - 2.f / fma_once(two_n * e.r, e.slope, two_n + 1.f);
    return with_sign_of(select(a < 0.9735f, fma_once(a * u, p, a), large), x);
#endif
}

// x sigmoid(x) = max(x, 0) - |x| e / (1 + e), e = exp(-|x|): the denormal tail is rounded once.
// Measured: 2.66 / 2.72 ULP, 2.22.
TW_INLINE f32v silu(f32v x) {
#if defined(__AVX512F__)
    const f32v low = at_least(x, -110.f);
    return times_sigmoid(low, at_most(low, 20.f), f32v{});
#else
    const f32v a = at_most(abs(x), 110.f);
    const Exponential e = exp_parts(-a);
    return at_least(x, -0.f) - times(a, e) / (1.f + value_of(e));
#endif
}

// Measured: absolute error 1.0e-7 / 1.0e-7, 0.9e-7.
TW_INLINE f32v silu_grad(f32v x) {
#if defined(__AVX512F__)
    return 0.5f + odd_in_cells<false>(kSiluSlopeCells, x, 21.f, 1.5f);
#else
    const f32v a = at_most(abs(x), 110.f);
    const Exponential e = exp_parts(-a);
    const f32v d = 1.f + value_of(e), left = times((1.f - a / d) / d, e);
    return select(x < 0.f, left, 1.f - left);
#endif
}

// ---- logarithm ------------------------------------------------------------------------------------------------------

// x = 2^e m, m in [sqrt(1/2), sqrt(2)), f = m - 1: log x = (e ln 2 + f) - f^2/2 + f^3 P(f), the bracket in two parts.
// avx512: m in [3/4, 3/2) and f = c m - 1, |f| <= 1/32, for c and log c of 32 cells: log x = (e ln 2 - log c) + log(1 + f),
// where the bracket's upper part is exact. Zero, infinities and negative numbers come out as they should.
// Measured: 0.89 / 0.90 ULP, 0.99.
TW_INLINE f32v log(f32v x) {
#if defined(__AVX512F__)
    const f32v m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    const f32v e = (f32v)_mm512_getexp_ps(x) - (f32v)_mm512_getexp_ps(m);
    const i32v cell = bitcast<i32v>(m) >> 18;
    const f32v f = fma(m, look_up(kLogCells[0], cell), splat(-1.f));
    const f32v high = fma(e, splat(kLn2High), look_up(kLogCells[1], cell));
    const f32v p = poly_inner(f, -0x1.fffffcp-2f, 0x1.555554p-2f, -0x1.003a6ep-2f, 0x1.99dcf2p-3f);
    return high + fma(f * f, p, fma(e, splat(kLn2Low), f));
#else
    const Mask<float> denormal = x < 0x1p-126f;
    const i32v bits = bitcast<i32v>(select(denormal, x * 0x1p24f, x)) - 0x3f3504f3;
    const f32v m = bitcast<f32v>((bits & 0x7fffff) + 0x3f3504f3);
    const f32v e = to_f32((bits >> 23) + (denormal & -24));
    const f32v f = m - 1.f, whole_part = e * kLn2High, high = whole_part + f, low = f - (high - whole_part);
    const f32v p = poly(f, -0.5f, 0x1.555548p-2f, -0x1.000006p-2f, 0x1.99a476p-3f, -0x1.555c44p-3f, 0x1.233ba0p-3f,
                        -0x1.fc28c2p-4f, 0x1.e6c040p-4f, -0x1.de0260p-4f, 0x1.147354p-4f);
    const f32v finite = high + (low + fma(e, splat(kLn2Low), f * f * p));
    const f32v outside = select(x == 0.f, splat(-kInf), splat(__builtin_nanf("")));
    return select(x > 0.f, select(x < kInf, finite, x), outside);
#endif
}

// log(1 + x): the rounding error of u = 1 + x enters as error / u, which is NaN or 0/0 only where log(u) is the answer.
// Measured: 1.44 / 1.44 ULP.
TW_INLINE f32v log1p(f32v x) {
    const f32v u = 1.f + x, y = log(u);
    const f32v c = select(x < 1.f, x - (u - 1.f), 1.f - (u - x)) / u;
    return with_sign_of(select(abs(c) < 1.f, y + c, y), x);
}

// ---- error function and GELU ----------------------------------------------------------------------------------------

// |x| < 0.95: x + x P(x^2). Beyond: 1 - exp(-P(|x|)), P fitted to -log(erfc).
// Measured: 0.96 / 0.97 ULP, 0.78.
TW_INLINE f32v erf(f32v x) {
#if defined(__AVX512F__)
    return odd_in_cells<true>(kErfCells, x, 3.93f, 0.5f);
#else
    const f32v a = abs(x), c = at_most(a, 3.95f);
    const f32v p = poly(a * a, 0x1.06eba8p-3f, -0x1.812740p-2f, 0x1.ce2d64p-4f, -0x1.b80124p-6f, 0x1.544b08p-8f,
                        -0x1.a61810p-11f, 0x1.4fa924p-14f);
    const f32v b = poly(c, -0x1.20f074p+0f, -0x1.4527aep-1f, -0x1.b3b4a0p-4f, 0x1.873c80p-6f, -0x1.e4a722p-9f,
                        0x1.60a79ap-12f, -0x1.a60302p-17f);
    const f32v q = b * c, large = 1.f - normal_value_of(exp_parts(q, fma_once(b, c, -q)));
    return with_sign_of(select(a < 0.95f, fma_once(a, p, a), large), x);
#endif
}

// exp(-a^2 / 2); the square is formed in two parts, since one ulp of it would be up to 60 ulp of the result.
TW_INLINE Exponential exp_of_half_square(f32v a) {
    const f32v s = a * a;
    return exp_parts(-0.5f * s, -0.5f * fma_once(a, a, -s));
}

// The normal distribution's tail Q(a) = erfc(a / sqrt 2) / 2 = exp(-a^2 / 2) R(w) / (a + k) for 0 <= a <= 14.6, where
// w = (a - k) / (a + k) spreads the half-line evenly (Shepherd and Laframboise 1981) and R stays in [0.4, 1.75].
constexpr float kTailShift = 3.5f;
TW_INLINE f32v tail_ratio(f32v w) {
    return poly(w, 0x1.7d241ap-1f, -0x1.219152p-1f, 0x1.42fee8p-2f, -0x1.db5914p-4f, 0x1.1d27d6p-6f, 0x1.a9276ep-8f,
                -0x1.a04b62p-9f, -0x1.ff7450p-12f, 0x1.c1edccp-12f, 0x1.da6104p-14f);
}

// max(x, 0) - |x| Q(|x|): no cancellation in the left tail.
// Measured: 3.67 / 3.75 ULP, 3.91.
TW_INLINE f32v gelu(f32v x) {
    const f32v a = at_most(abs(x), 14.6f);
#if defined(__AVX512F__)
    return at_least(x, -0.f) - times(a * tail_in_cells(a), exp_of_half_square(a));
#else
    const f32v part = a / (a + kTailShift);
    return at_least(x, -0.f) - times(part * tail_ratio(fma(part, splat(2.f), splat(-1.f))), exp_of_half_square(a));
#endif
}

// Phi(x) + x phi(x). Measured: absolute error 1.6e-7 / 1.7e-7, 0.9e-7.
TW_INLINE f32v gelu_grad(f32v x) {
#if defined(__AVX512F__)
    return 0.5f + odd_in_cells<false>(kGeluSlopeCells, x, 6.5f, 0.625f);
#else
    const f32v a = at_most(abs(x), 14.6f), d = a + kTailShift;
    const f32v left = times(tail_ratio((a - kTailShift) / d) / d - a * 0x1.988454p-2f, exp_of_half_square(a));
    return select(x < 0.f, left, 1.f - left);
#endif
}

struct TwoParts {
    f32v high, low;
};

// 2u, u = sqrt(2/pi) (a + 0.044715 a^3), |a| <= 10.9. kHigh1 has 21 bits, so that w - kHigh1 is exact.
TW_INLINE TwoParts tanh_argument(f32v a) {
    constexpr float kHigh1 = 0x1.98845p+0f, kLow1 = 0x1.9ea1b2p-23f, kHigh3 = 0x1.2444f2p-4f, kLow3 = 0x1.49b16ap-29f;
    const f32v s = a * a;
    const f32v w = fma(s, splat(kHigh3), splat(kHigh1));
    const f32v w_low = fma_once(s, splat(kHigh3), kHigh1 - w) + (kLow1 + s * kLow3 + fma_once(a, a, -s) * kHigh3);
    const f32v v = a * w;
    return {v, fma_once(a, w, -v) + a * w_low};
}
TW_INLINE Exponential exp_of_tanh_argument(f32v a) {
    const TwoParts v = tanh_argument(a);
    return exp_parts(-v.high, -v.low);
}

// x sigmoid(2u) = max(x, 0) - |x| e / (1 + e), e = exp(-2|u|).
// Measured: 2.81 / 2.81 ULP, 2.48.
TW_INLINE f32v gelu_tanh(f32v x) {
#if defined(__AVX512F__)
    const f32v low = at_least(x, -10.9f);
    const TwoParts v = tanh_argument(at_most(low, 5.8f));
    return times_sigmoid(low, v.high, v.low);
#else
    const f32v a = at_most(abs(x), 10.9f);
    const Exponential t = exp_of_tanh_argument(a);
    return at_least(x, -0.f) - times(a, t) / (1.f + value_of(t));
#endif
}

// Measured: absolute error 1.2e-7 / 1.2e-7, 1.0e-7.
TW_INLINE f32v gelu_tanh_grad(f32v x) {
#if defined(__AVX512F__)
    return 0.5f + odd_in_cells<false>(kGeluTanhSlopeCells, x, 6.5f, 0.625f);
#else
    const f32v a = at_most(abs(x), 10.9f);
    const Exponential t = exp_of_tanh_argument(a);
    const f32v d = 1.f + value_of(t);
    const f32v slope = fma(a * a, splat(0x1.b6676cp-3f), splat(0x1.988454p+0f));  // (2u)'
    const f32v left = times((1.f - a * slope / d) / d, t);
    return select(x < 0.f, left, 1.f - left);
#endif
}

// ---- double: libm, one lane at a time; a few eps relative, outside cancellation -------------------------------------

template <class F>
TW_INLINE f64v each_lane(f64v v, F f) {
    for (int i = 0; i < kLanes<double>; ++i) v[i] = f(v[i]);
    return v;
}
#define TW_LANE [](double x) __attribute__((always_inline))->double

TW_INLINE f64v exp(f64v v) {
    return each_lane(v, TW_LANE { return __builtin_exp(x); });
}
TW_INLINE f64v log(f64v v) {
    return each_lane(v, TW_LANE { return __builtin_log(x); });
}
TW_INLINE f64v tanh(f64v v) {
    return each_lane(v, TW_LANE { return __builtin_tanh(x); });
}
TW_INLINE f64v erf(f64v v) {
    return each_lane(v, TW_LANE { return __builtin_erf(x); });
}
TW_INLINE f64v sigmoid(f64v v) {
    const f64v e = exp(-abs(v));
    return select(v < 0.0, e, splat(1.0)) / (1.0 + e);
}
TW_INLINE f64v expm1(f64v v) {
    return each_lane(v, TW_LANE { return __builtin_expm1(x); });
}
TW_INLINE f64v log1p(f64v v) {
    return each_lane(v, TW_LANE { return __builtin_log1p(x); });
}
TW_INLINE f64v silu(f64v v) {
    const f64v a = min_any(splat(800.0), abs(v)), e = exp(-a);
    return max_any(splat(-0.0), v) - a * e / (1.0 + e);
}
TW_INLINE f64v silu_grad(f64v v) {
    const f64v a = min_any(splat(800.0), abs(v)), e = exp(-a), d = 1.0 + e;
    const f64v left = e / d * (1.0 - a / d);
    return select(v < 0.0, left, 1.0 - left);
}
TW_INLINE f64v gelu(f64v v) {
    const f64v a = min_any(splat(40.0), abs(v));
    const f64v q = each_lane(a, TW_LANE { return 0.5 * __builtin_erfc(x * 0x1.6a09e667f3bcdp-1); });
    return max_any(splat(-0.0), v) - a * q;
}
TW_INLINE f64v gelu_grad(f64v v) {
    const f64v a = min_any(splat(40.0), abs(v));
    const f64v q = each_lane(a, TW_LANE { return 0.5 * __builtin_erfc(x * 0x1.6a09e667f3bcdp-1); });
    const f64v left = q - a * 0x1.9884533d43651p-2 * exp(-0.5 * a * a);
    return select(v < 0.0, left, 1.0 - left);
}
TW_INLINE f64v gelu_tanh(f64v v) {
    const f64v a = min_any(splat(30.0), abs(v));
    const f64v e = exp(-a * (0x1.9884533d43651p+0 + 0x1.2444f2a4d8b4bp-4 * a * a));
    return max_any(splat(-0.0), v) - a * e / (1.0 + e);
}
TW_INLINE f64v gelu_tanh_grad(f64v v) {
    const f64v a = min_any(splat(30.0), abs(v)), s = a * a;
    const f64v e = exp(-a * (0x1.9884533d43651p+0 + 0x1.2444f2a4d8b4bp-4 * s)), d = 1.0 + e;
    const f64v left = e / d * (1.0 - a * (0x1.9884533d43651p+0 + 3 * 0x1.2444f2a4d8b4bp-4 * s) / d);
    return select(v < 0.0, left, 1.0 - left);
}
#undef TW_LANE

}  // namespace tw::TW_ISA
