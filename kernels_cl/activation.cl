// Activation functions and roots, y = f(x), and dx = dy f'(x): one kernel each, chosen by FUNCTION and its slope.
//
// Method    one item per ITEMS elements, each.clh.
// Numerics  exponentials of -|x| alone, so that nothing overflows; NaN stays NaN. At a kink the slope is the left one.
#include "types.clh"
#include "each.clh"
#include "activation.clh"

#define BETWEEN(x, low, high) ((x) < (low) ? (low) : (x) > (high) ? (high) : (x))

enum { SILU, SOFTPLUS, MISH, ELU, LEAKY_RELU, HARD_SIGMOID, HARD_SWISH, CLIP, SQRT, RSQRT, ABS, NEG };

inline ACC mish_ratio(const ACC x) {
    const ACC t = exp(-fabs(x)), left = t * (2 + t);
    return x < 0 ? left / (2 + left) : (1 + 2 * t) / (1 + 2 * t * (1 + t));
}

inline ACC value_of(const int function, const ACC x, const ACC alpha, const ACC beta) {
    switch (function) {
        case SILU: return x == -INFINITY ? 0 : x * act_sigmoid(x);
        case SOFTPLUS: return (x < 0 ? 0 : x) + log1p(exp(-fabs(x)));
        case MISH: return x < -110 ? 0 : x * mish_ratio(x);
        case ELU: return x > 0 ? x : alpha * expm1(x);
        case LEAKY_RELU: return x > 0 ? x : alpha * x;
        case HARD_SIGMOID: return BETWEEN(fma(alpha, x, beta), (ACC)0, (ACC)1);
        case HARD_SWISH: return x * BETWEEN(x + 3, (ACC)0, (ACC)6) / 6;
        case CLIP: return BETWEEN(x, alpha, beta);
        case SQRT: return sqrt(x);
        case RSQRT: return 1 / sqrt(x);
        case ABS: return fabs(x);
        default: return -x;
    }
}

inline ACC slope_of(const int function, const ACC x, const ACC alpha, const ACC beta) {
    switch (function) {
        case SILU: {
            const ACC s = act_sigmoid(x);
            return isinf(x) ? s : s + x * s * act_sigmoid(-x);
        }
        case SOFTPLUS: return act_sigmoid(x);
        case MISH: {
            const ACC r = mish_ratio(x);
            return r + BETWEEN(x, (ACC)-120, (ACC)120) * (1 - r) * (1 + r) * act_sigmoid(x);
        }
        case ELU: return x > 0 ? 1 : alpha * exp(x);
        case LEAKY_RELU: return x > 0 ? 1 : alpha;
        case HARD_SIGMOID: {
            const ACC y = fma(alpha, x, beta);
            return y > 0 && y < 1 ? alpha : 0;
        }
        case HARD_SWISH: return x <= -3 ? 0 : x >= 3 ? 1 : (2 * x + 3) / 6;
        case CLIP: return x >= alpha && x <= beta ? 1 : 0;
        case SQRT: return (ACC)0.5 / sqrt(x);
        case RSQRT: return (ACC)-0.5 / (x * sqrt(x));
        case ABS: return x > 0 ? 1 : x < 0 ? -1 : x;
        default: return -1;
    }
}

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
