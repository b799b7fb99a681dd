// Real powers of numbers >= 0: products and roots where the exponent allows, else exp(q log v).
//
// Numerics: within 2 ULP for the exponents below; else a few ULP times the size of q log v. 0^q is 0, or Inf for q < 0.
#pragma once
#include "simd/math.h"
#include "simd/roots.h"

namespace tw::TW_ISA {

template <class V>
TW_INLINE V raised(V v, double q) {
    if (q == 1) return v;
    if (q == 2) return v * v;
    if (q == 0.5) return sqrt(v);
    if (q == -1) return 1 / v;
    if (q == -0.5) return inverse_sqrt(v);
    if (q == -0.75) return 1 / (sqrt(v) * sqrt(sqrt(v)));
    return exp(log(v) * static_cast<Elem<V>>(q));
}

// The derivative of |v|^p / p in v.
template <class V>
TW_INLINE V power_slope(V v, double p) {
    if (p == 2) return v;
    const V size = p == 1 ? splat<Elem<V>>(1) : raised(abs(v), p - 1);
    return select(v > V{}, size, select(v < V{}, -size, v));
}

}  // namespace tw::TW_ISA
