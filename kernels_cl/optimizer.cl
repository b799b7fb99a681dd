// One step of SGD and of Adam, in place.
//
//     sgd    g += decay w;  v = momentum v + (1 - dampening) g;  w -= lr (nesterov ? g + momentum v : v)
//     adam   g += decay w;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w -= rate m / (sqrt(v) / root + eps)
//
// Method    one pass, each.clh; the bias corrections rate = lr / (1 - b1^step) and root = sqrt(1 - b2^step) come from
//           the host in double.
// Numerics  everything in the dtype of w, one rounding per operation.
#include "types.clh"
#include "each.clh"

__kernel void sgd(ANY(T, w), ANY(T, g),
#ifdef MOMENTUM
                  ANY(T, v),
#endif
                  const ACC lr, const ACC momentum, const ACC keep, const ACC decay, const Walk walk) {
    START(w);
    START(g);
#ifdef MOMENTUM
    START(v);
#endif
    EACH(k, i) {
        const ACC old = LOAD(w, AT(0, i));
        ACC step = MAC(decay, old, LOAD(g, AT(1, i)));
#ifdef MOMENTUM
        const ACC speed = MAC(momentum, LOAD(v, AT(2, i)), keep * step);
        STORE(v, AT(2, i), speed);
#ifdef NESTEROV
        step = MAC(momentum, speed, step);
#else
        step = speed;
#endif
#endif
        STORE(w, AT(0, i), MAC(-lr, step, old));
    }
}

__kernel void adam(ANY(T, w), ANY(T, g), ANY(T, m), ANY(T, v), const ACC rate, const ACC root, const ACC beta1,
                   const ACC rest1, const ACC beta2, const ACC rest2, const ACC eps, const ACC decay, const Walk walk) {
    START(w);
    START(g);
    START(m);
    START(v);
    EACH(k, i) {
        const ACC old = LOAD(w, AT(0, i));
        const ACC slope = MAC(decay, old, LOAD(g, AT(1, i)));
        const ACC mean = MAC(beta1, LOAD(m, AT(2, i)), rest1 * slope);
        const ACC square = MAC(beta2, LOAD(v, AT(3, i)), rest2 * slope * slope);
        STORE(m, AT(2, i), mean);
        STORE(v, AT(3, i), square);
        STORE(w, AT(0, i), old - rate * mean / (sqrt(square) / root + eps));
    }
}
