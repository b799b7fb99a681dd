// One step of SGD, Adam, RMSProp and Lion, in place, along g' = scale g + decay w + l1 sign(w).
//
//     sgd      v = momentum v + into g';  w -= rate (v + nesterov terms);  without v: w -= rate g'
//     adam     m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2;  w = left w - rate m / (sqrt(largest v) / root + eps)
//     rmsprop  v = alpha v + (1 - alpha) g'^2;  move = g' / (sqrt(v - mean^2) + eps);  w -= rate move, with momentum
//     lion     w -= rate (sign(b1 m + (1 - b1) g') + shrink w);  m = b2 m + (1 - b2) g'
//
// Method    one pass, each.clh; HAS_X is the number of the array x among those that are given. Bias corrections and what
//           else does not change from element to element come from the host in double.
// Numerics  everything in the dtype of w, one rounding per operation.
#include "types.clh"
#include "each.clh"

inline ACC slope(const ACC g, const ACC w, const ACC scale, const ACC decay, const ACC l1) {
    return MAC(decay, w, scale * g) + l1 * sign(w);
}

// The optional arrays of a step, in order; ANY begins the list of parameters.
#ifdef HAS_V
#define V_PARAMETER ANY(T, v),
#else
#define V_PARAMETER
#endif
#ifdef HAS_VMAX
#define VMAX_PARAMETER ANY(T, vmax),
#else
#define VMAX_PARAMETER
#endif
#ifdef HAS_MEAN
#define MEAN_PARAMETER ANY(T, mean),
#else
#define MEAN_PARAMETER
#endif
#ifdef HAS_SPEED
#define SPEED_PARAMETER ANY(T, speed),
#else
#define SPEED_PARAMETER
#endif

__kernel void sgd(ANY(T, w), ANY(T, g), V_PARAMETER const ACC rate, const ACC momentum, const ACC into,
                  const ACC nesterov, const ACC scale, const ACC decay, const ACC l1, const Walk walk) {
    START(w);
    START(g);
#ifdef HAS_V
    START(v);
#endif
    EACH(k, i) {
        const ACC old = LOAD(w, AT(0, i));
        ACC step = slope(LOAD(g, AT(1, i)), old, scale, decay, l1);
#ifdef HAS_V
        const ACC speed = MAC(momentum, LOAD(v, AT(HAS_V, i)), into * step);
        STORE(v, AT(HAS_V, i), speed);
        step = nesterov != 0 ? MAC(momentum, speed, nesterov * step) : speed;
#endif
        STORE(w, AT(0, i), MAC(-rate, step, old));
    }
}

#if defined(HAS_M) && defined(HAS_V)
__kernel void adam(ANY(T, w), ANY(T, g), ANY(T, m), ANY(T, v), VMAX_PARAMETER const ACC rate, const ACC root,
                   const ACC beta1, const ACC rest1, const ACC beta2, const ACC rest2, const ACC eps, const ACC left,
                   const ACC scale, const ACC decay, const ACC l1, const Walk walk) {
    START(w);
    START(g);
    START(m);
    START(v);
#ifdef HAS_VMAX
    START(vmax);
#endif
    EACH(k, i) {
        const ACC old = LOAD(w, AT(0, i));
        const ACC along = slope(LOAD(g, AT(1, i)), old, scale, decay, l1);
        const ACC mean = MAC(beta1, LOAD(m, AT(2, i)), rest1 * along);
        ACC square = MAC(beta2, LOAD(v, AT(3, i)), rest2 * along * along);
        STORE(m, AT(2, i), mean);
        STORE(v, AT(3, i), square);
#ifdef HAS_VMAX
        const ACC largest = LOAD(vmax, AT(HAS_VMAX, i));
        square = square > largest || isnan(square) ? square : largest;
        STORE(vmax, AT(HAS_VMAX, i), square);
#endif
        STORE(w, AT(0, i), left * old - rate * mean / (sqrt(square) / root + eps));
    }
}
#elif defined(HAS_V)
__kernel void rmsprop(ANY(T, w), ANY(T, g), ANY(T, v), MEAN_PARAMETER SPEED_PARAMETER const ACC rate, const ACC alpha,
                      const ACC rest, const ACC eps, const ACC momentum, const ACC scale, const ACC decay,
                      const ACC l1, const Walk walk) {
    START(w);
    START(g);
    START(v);
#ifdef HAS_MEAN
    START(mean);
#endif
#ifdef HAS_SPEED
    START(speed);
#endif
    EACH(k, i) {
        const ACC old = LOAD(w, AT(0, i));
        const ACC along = slope(LOAD(g, AT(1, i)), old, scale, decay, l1);
        ACC size = MAC(alpha, LOAD(v, AT(2, i)), rest * along * along);
        STORE(v, AT(2, i), size);
#ifdef HAS_MEAN
        const ACC middle = MAC(alpha, LOAD(mean, AT(HAS_MEAN, i)), rest * along);
        STORE(mean, AT(HAS_MEAN, i), middle);
        size = size - middle * middle;
#endif
        ACC move = along / (sqrt(size) + eps);
#ifdef HAS_SPEED
        move = MAC(momentum, LOAD(speed, AT(HAS_SPEED, i)), move);
        STORE(speed, AT(HAS_SPEED, i), move);
#endif
        STORE(w, AT(0, i), MAC(-rate, move, old));
    }
}
#elif defined(HAS_M)
__kernel void lion(ANY(T, w), ANY(T, g), ANY(T, m), const ACC rate, const ACC beta1, const ACC rest1, const ACC beta2,
                   const ACC rest2, const ACC shrink, const ACC scale, const ACC decay, const ACC l1, const Walk walk) {
    START(w);
    START(g);
    START(m);
    EACH(k, i) {
        const ACC old = LOAD(w, AT(0, i)), before = LOAD(m, AT(2, i));
        const ACC along = slope(LOAD(g, AT(1, i)), old, scale, decay, l1);
        STORE(w, AT(0, i), MAC(-rate, sign(MAC(beta1, before, rest1 * along)) + shrink * old, old));
        STORE(m, AT(2, i), MAC(beta2, before, rest2 * along));
    }
}
#endif
