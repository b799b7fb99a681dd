// Elementwise ops, y[i] = f(x[i]) and y[i] = f(a[i], b[i]) with numpy broadcasting, and gradients of the unary ones.
//
// Method    each item loads ITEMS elements, then computes and stores them; broadcast operands are read with stride 0.
// Numerics  + - * and relu round once; / as the device rounds it (correctly where it can be asked to); log, erf and erfc
//           erf and erfc are the OpenCL built-ins, sigmoid and gelu are built on them (activation.clh).
#include "types.clh"
#include "each.clh"
#include "activation.clh"

#define UNARY(name, value)                                      \
    __kernel void name(ANY(T, x), ANY(T, y), const Walk walk) { \
        START(x);                                               \
        START(y);                                               \
        ACC xs[ITEMS];                                          \
        TAKE(xs, x, 0)                                          \
        EACH_OF_ITEM(k) {                                       \
            const ACC x = xs[k];                                \
            xs[k] = value;                                      \
        }                                                       \
        GIVE(y, 1, xs)                                          \
    }

#define BINARY(name, a, b, value)                                          \
    __kernel void name(ANY(T, a), ANY(T, b), ANY(T, y_), const Walk walk) { \
        START(a);                                                          \
        START(b);                                                          \
        START(y_);                                                         \
        ACC as[ITEMS], bs[ITEMS];                                          \
        TAKE(as, a, 0)                                                     \
        TAKE(bs, b, 1)                                                     \
        EACH_OF_ITEM(k) {                                                  \
            const ACC a = as[k], b = bs[k];                                \
            as[k] = value;                                                 \
        }                                                                  \
        GIVE(y_, 2, as)                                                    \
    }

BINARY(add, a, b, a + b)
BINARY(sub, a, b, a - b)
BINARY(mul, a, b, a * b)
BINARY(div, a, b, a / b)

UNARY(each_relu, act_relu(x))
UNARY(each_sigmoid, act_sigmoid(x))
UNARY(each_tanh, TANH(x))
UNARY(each_gelu, act_gelu(x))
UNARY(each_gelu_tanh, act_gelu_tanh(x))
UNARY(each_exp, EXP(x))
UNARY(each_log, log(x))
UNARY(each_erf, erf(x))

BINARY(relu_dx, dy, x, x <= 0 ? 0 : dy)
BINARY(sigmoid_dx, dy, y, dy * (y * (1 - y)))
BINARY(tanh_dx, dy, y, dy * ((1 - y) * (1 + y)))
BINARY(gelu_dx, dy, x, dy * gelu_slope(x))
BINARY(gelu_tanh_dx, dy, x, dy * gelu_tanh_slope(x))
