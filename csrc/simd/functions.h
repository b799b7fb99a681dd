// The functions of the elementwise ops on vectors of float or double: Name::of(x), of two arguments where it takes two,
// and Name::slope(x), its derivative.
//
// Numerics: the functions are those of math.h with their stated ULP, + - * / and comparisons IEEE's. Exponentials of -|x|
// alone, so that nothing overflows; NaN stays NaN. At a kink the slope is the left one.
#pragma once
#include "simd/math.h"
#include "simd/roots.h"

namespace tw::TW_ISA {

// ---- arithmetic, and functions with gradients of their own ----------------------------------------------------------

struct Add {
    template <class V> TW_INLINE V of(V a, V b) { return a + b; }
};
struct Sub {
    template <class V> TW_INLINE V of(V a, V b) { return a - b; }
};
struct Mul {
    template <class V> TW_INLINE V of(V a, V b) { return a * b; }
};
struct Div {
    template <class V> TW_INLINE V of(V a, V b) { return a / b; }
};
struct Relu {
    template <class V> TW_INLINE V of(V x) { return select(x <= V{}, V{}, x); }  // NaN stays NaN
};
struct Sigmoid {
    template <class V> TW_INLINE V of(V x) { return sigmoid(x); }
};
struct Tanh {
    template <class V> TW_INLINE V of(V x) { return tanh(x); }
};
struct Gelu {
    template <class V> TW_INLINE V of(V x) { return gelu(x); }
};
struct GeluTanh {
    template <class V> TW_INLINE V of(V x) { return gelu_tanh(x); }
};
struct Exp {
    template <class V> TW_INLINE V of(V x) { return exp(x); }
};
struct Log {
    template <class V> TW_INLINE V of(V x) { return log(x); }
};
struct Erf {
    template <class V> TW_INLINE V of(V x) { return erf(x); }
};
struct ReluDx {
    template <class V> TW_INLINE V of(V dy, V x) { return select(x <= V{}, V{}, dy); }
};
struct SigmoidDx {
    template <class V> TW_INLINE V of(V dy, V y) { return dy * (y * (1 - y)); }
};
struct TanhDx {
    template <class V> TW_INLINE V of(V dy, V y) { return dy * (1 - y * y); }
};
struct GeluDx {
    template <class V> TW_INLINE V of(V dy, V x) { return dy * gelu_grad(x); }
};
struct GeluTanhDx {
    template <class V> TW_INLINE V of(V dy, V x) { return dy * gelu_tanh_grad(x); }
};

// ---- functions of at most two numbers, and their slopes ---------------------------------------------------------------

// Two numbers that a function may take, splat.
template <class V>
struct Constants {
    V alpha, beta;
};

template <class V>
TW_INLINE V constant(double x) {
    return splat<Elem<V>>(static_cast<Elem<V>>(x));
}
template <class V>
TW_INLINE V between(V x, V low, V high) {
    return min_any(high, max_any(low, x));  // NaN stays
}

struct Silu {
    template <class V> TW_INLINE V of(V x, const Constants<V>&) { return silu(x); }
    template <class V> TW_INLINE V slope(V x, const Constants<V>&) { return silu_grad(x); }
};
struct Softplus {
    template <class V> TW_INLINE V of(V x, const Constants<V>&) { return max_any(V{}, x) + log1p(exp(-abs(x))); }
    template <class V> TW_INLINE V slope(V x, const Constants<V>&) { return sigmoid(x); }
};
// With t = exp(-|x|), tanh(softplus(x)) = (1 + 2 t) / (1 + 2 t + 2 t t), and (2 t + t t) / (2 + 2 t + t t) on the left.
struct Mish {
    template <class V> TW_INLINE V ratio(V x) {
        const V t = exp(-abs(x)), left = t * (2 + t);
        return select(x < 0, left, 1 + 2 * t) / select(x < 0, 2 + left, 1 + 2 * t * (1 + t));
    }
    template <class V> TW_INLINE V of(V x, const Constants<V>&) {
        return select(x < constant<V>(-110), V{} - V{}, x * ratio(x));
    }
    template <class V> TW_INLINE V slope(V x, const Constants<V>&) {
        const V r = ratio(x), inside = between(x, constant<V>(-120), constant<V>(120));
        return r + inside * (1 - r) * (1 + r) * sigmoid(x);
    }
};
struct Elu {
    template <class V> TW_INLINE V of(V x, const Constants<V>& c) { return select(x > 0, x, c.alpha * expm1(x)); }
    template <class V> TW_INLINE V slope(V x, const Constants<V>& c) {
        return select(x > 0, constant<V>(1), c.alpha * exp(x));
    }
};
struct LeakyRelu {
    template <class V> TW_INLINE V of(V x, const Constants<V>& c) { return select(x > 0, x, c.alpha * x); }
    template <class V> TW_INLINE V slope(V x, const Constants<V>& c) { return select(x > 0, constant<V>(1), c.alpha); }
};
struct HardSigmoid {
    template <class V> TW_INLINE V of(V x, const Constants<V>& c) {
        return between(fma(c.alpha, x, c.beta), V{}, constant<V>(1));
    }
    template <class V> TW_INLINE V slope(V x, const Constants<V>& c) {
        const V y = fma(c.alpha, x, c.beta);
        return select((y > 0) & (y < 1), c.alpha, V{});
    }
};
struct HardSwish {
    template <class V> TW_INLINE V of(V x, const Constants<V>&) { return x * between(x + 3, V{}, constant<V>(6)) / 6; }
    template <class V> TW_INLINE V slope(V x, const Constants<V>&) {
        return select(x <= -3, V{}, select(x >= 3, constant<V>(1), (2 * x + 3) / 6));
    }
};
struct Clip {
    template <class V> TW_INLINE V of(V x, const Constants<V>& c) { return between(x, c.alpha, c.beta); }
    template <class V> TW_INLINE V slope(V x, const Constants<V>& c) {
        return select((x >= c.alpha) & (x <= c.beta), constant<V>(1), V{});
    }
};
struct Sqrt {
    template <class V> TW_INLINE V of(V x, const Constants<V>&) { return sqrt(x); }
    template <class V> TW_INLINE V slope(V x, const Constants<V>&) { return constant<V>(0.5) / sqrt(x); }
};
struct Rsqrt {
    template <class V> TW_INLINE V of(V x, const Constants<V>&) { return inverse_sqrt(x); }
    template <class V> TW_INLINE V slope(V x, const Constants<V>&) { return constant<V>(-0.5) / (x * sqrt(x)); }
};
struct Abs {
    template <class V> TW_INLINE V of(V x, const Constants<V>&) { return abs(x); }
    template <class V> TW_INLINE V slope(V x, const Constants<V>&) {
        return select(x > 0, constant<V>(1), select(x < 0, constant<V>(-1), x));
    }
};
struct Neg {
    template <class V> TW_INLINE V of(V x, const Constants<V>&) { return -x; }
    template <class V> TW_INLINE V slope(V, const Constants<V>&) { return constant<V>(-1); }
};

}  // namespace tw::TW_ISA
