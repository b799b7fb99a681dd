// Whole numbers near others, and signs, one kernel, chosen by FUNCTION.
//
// Method    one item per ITEMS elements, each.clh.
// Numerics  exact; NaN stays NaN.
#include "types.clh"
#include "each.clh"

inline ACC value_of(const int function, const ACC x) {
#if REALS
    switch (function) {
        case 0: return ceil(x);
        case 1: return floor(x);
        case 2: return rint(x);
        case 3: return trunc(x);
    }
#endif
    return x > 0 ? 1 : x < 0 ? -1 : x;
}

__kernel void rounding(ANY(T, x), ANY(T, y), const long function, const Walk walk) {
    START(x);
    START(y);
    EACH(k, i) STORE(y, AT(1, i), value_of((int)function, LOAD(x, AT(0, i))));
}
