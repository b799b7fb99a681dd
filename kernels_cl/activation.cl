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
    ACC xs[ITEMS];
    TAKE(xs, x, 0)
    EACH_OF_ITEM(k) xs[k] = value_of((int)function, xs[k], alpha, beta);
    GIVE(y, 1, xs)
}

__kernel void activation_dx(ANY(T, dy), ANY(T, x), ANY(T, dx), const long function, const ACC alpha, const ACC beta,
                            const Walk walk) {
    START(dy);
    START(x);
    START(dx);
    ACC dys[ITEMS], xs[ITEMS];
    TAKE(dys, dy, 0)
    TAKE(xs, x, 1)
    EACH_OF_ITEM(k) dys[k] *= slope_of((int)function, xs[k], alpha, beta);
    GIVE(dx, 2, dys)
}
