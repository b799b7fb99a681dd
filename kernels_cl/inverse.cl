// Determinants from LU factors (batch, n, n); inverses need the kernels of factor.cl and solve.cl alone.
//
// Method    one item per matrix; the product of the diagonal is kept as mantissa and exponent.
// Numerics  one rounding per factor, in float (double for f64).
//
// Defined by the launch:  SIGN   for the sign and the logarithm instead of the determinant
#include "types.clh"

__kernel void determinant(IN(T, lu), IN(int, pivots), IN(int, bad),
#ifdef SIGN
                          OUT(T, sign),
#endif
                          OUT(T, y), const long batch, const long n) {
    START(lu);
    START(pivots);
    START(bad);
#ifdef SIGN
    START(sign);
#endif
    START(y);
    const INDEX matrix = get_global_id(0);
    if (matrix >= (INDEX)batch) return;
    lu += (long)matrix * n * n;
    pivots += (long)matrix * n;
    ACC mantissa = bad[matrix] ? 0 : 1;
    int exponent = 0;
    for (INDEX i = 0; i < (INDEX)n && mantissa != 0; ++i) {
        int more = 0;
        const ACC value = lu[i * ((INDEX)n + 1)];
        mantissa = frexp(pivots[i] == i ? mantissa * value : -mantissa * value, &more);
        if (isfinite(mantissa)) exponent += more;
    }
#ifdef SIGN
    sign[matrix] = mantissa < 0 ? -1 : mantissa > 0 ? 1 : mantissa;
    y[matrix] = log(fabs(mantissa)) + (ACC)exponent * (ACC)0.693147180559945309417;
#else
    y[matrix] = ldexp(mantissa, exponent);
#endif
}
