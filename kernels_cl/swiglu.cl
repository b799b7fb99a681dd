// Gated units y = act(gate) x, act = silu or gelu, and their gradients dgate = dy x act'(gate), dx = dy act(gate).
//
// Method    each item computes ITEMS elements.
// Numerics  the activations of activation.clh and a rounding or two more.
#include "types.clh"
#include "each.clh"
#include "activation.clh"

inline ACC silu_slope(const ACC x) {
    const ACC s = act_sigmoid(x);
    return isinf(x) ? s : s + x * s * act_sigmoid(-x);
}

#define GATED(name, value, slope)                                                                                  \
    __kernel void name(ANY(T, gate), ANY(T, x), ANY(T, y), const Walk walk) {                                      \
        START(gate);                                                                                               \
        START(x);                                                                                                  \
        START(y);                                                                                                  \
        EACH(k, i) {                                                                                               \
            const ACC g = LOAD(gate, AT(0, i)), v = LOAD(x, AT(1, i));                                             \
            STORE(y, AT(2, i), value(g) * v);                                                                      \
        }                                                                                                          \
    }                                                                                                              \
    __kernel void name##_dx(ANY(T, dy), ANY(T, gate), ANY(T, x), ANY(T, dgate), ANY(T, dx), const Walk walk) {     \
        START(dy);                                                                                                 \
        START(gate);                                                                                               \
        START(x);                                                                                                  \
        START(dgate);                                                                                              \
        START(dx);                                                                                                 \
        EACH(k, i) {                                                                                               \
            const ACC d = LOAD(dy, AT(0, i)), g = LOAD(gate, AT(1, i)), v = LOAD(x, AT(2, i));                     \
            STORE(dgate, AT(3, i), d * v * slope(g));                                                              \
            STORE(dx, AT(4, i), d * value(g));                                                                     \
        }                                                                                                          \
    }

GATED(swiglu, act_silu, silu_slope)
GATED(geglu, act_gelu, gelu_slope)
GATED(geglu_tanh, act_gelu_tanh, gelu_tanh_slope)
