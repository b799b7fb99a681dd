// Trigonometric and hyperbolic functions and their inverses, one kernel, chosen by FUNCTION.
//
// Method    one item per ITEMS elements, each.clh.
// Numerics  the OpenCL built-ins.
#include "types.clh"
#include "each.clh"

inline ACC value_of(const int function, const ACC x) {
    switch (function) {
        case 0: return sin(x);
        case 1: return cos(x);
        case 2: return tan(x);
        case 3: return asin(x);
        case 4: return acos(x);
        case 5: return atan(x);
        case 6: return sinh(x);
        case 7: return cosh(x);
        case 8: return asinh(x);
        case 9: return acosh(x);
        default: return atanh(x);
    }
}

__kernel void trigonometry(ANY(T, x), ANY(T, y), const long function, const Walk walk) {
    START(x);
    START(y);
    EACH(k, i) STORE(y, AT(1, i), value_of((int)function, LOAD(x, AT(0, i))));
}
