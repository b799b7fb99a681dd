// Activation functions and roots, y = f(x), and dx = dy f'(x): one kernel each, chosen by FUNCTION and its slope.
//
// Method    one item per ITEMS elements, each.clh.
// Numerics  exponentials of -|x| alone, so that nothing overflows; NaN stays NaN. At a kink the slope is the left one.
#include "types.clh"
#include "each.clh"
#include "functions.clh"

__kernel void activation(ANY(T, x), ANY(T, y), const long function, const ACC alpha, const ACC beta, const Walk walk) {
    START(x);
    START(y);
    EACH(k, i) STORE(y, AT(1, i), value_of((int)function, LOAD(x, AT(0, i)), alpha, beta));
}

__kernel void activation_dx(ANY(T, dy), ANY(T, x), ANY(T, dx), const long function, const ACC alpha, const ACC beta,
                            const Walk walk) {
    START(dy);
    START(x);
    START(dx);
    EACH(k, i) STORE(dx, AT(2, i), LOAD(dy, AT(0, i)) * slope_of((int)function, LOAD(x, AT(1, i)), alpha, beta));
}
