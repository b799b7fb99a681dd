// Truth, element by element: comparisons and logic on two arrays, states of one, and a choice between two.
//
// Method    one item per ITEMS elements, each.clh; which comparison is an argument.
// Numerics  IEEE comparisons; a bool is written as 0 or 1, and true if not 0.
//
// Defined by the launch:  BITS   uchar ushort uint ulong: what choose moves
#include "types.clh"
#include "each.clh"

#ifdef BITS

__kernel void choose(IN(uchar, condition), ANY(BITS, a), ANY(BITS, b), ANY(BITS, y), const Walk walk) {
    START(condition);
    START(a);
    START(b);
    START(y);
    EACH(k, i) y[AT(3, i)] = condition[AT(0, i)] ? a[AT(1, i)] : b[AT(2, i)];
}

#else

inline bool holds(const int which, const ACC a, const ACC b) {
    switch (which) {
        case 0: return a == b;
        case 1: return a != b;
        case 2: return a < b;
        case 3: return a <= b;
        case 4: return a > b;
        case 5: return a >= b;
        case 6: return a != 0 && b != 0;
        case 7: return a != 0 || b != 0;
        default: return (a != 0) != (b != 0);
    }
}

__kernel void compare(ANY(T, a), ANY(T, b), ANY(uchar, y), const long which, const Walk walk) {
    START(a);
    START(b);
    START(y);
    EACH(k, i) y[AT(2, i)] = holds((int)which, LOAD(a, AT(0, i)), LOAD(b, AT(1, i)));
}

// 0: not x; 1: NaN; from 2 on: infinite, above if odd, below from 4 on.
__kernel void state(ANY(T, x), ANY(uchar, y), const long which, const Walk walk) {
    START(x);
    START(y);
    EACH(k, i) {
        const ACC v = LOAD(x, AT(0, i));
#if REALS
        const bool infinite = isinf(v) && (v > 0 ? which % 2 == 1 : which >= 4);
        y[AT(1, i)] = which == 0 ? v == 0 : which == 1 ? isnan(v) != 0 : infinite;
#else
        y[AT(1, i)] = v == 0;
#endif
    }
}

#endif
