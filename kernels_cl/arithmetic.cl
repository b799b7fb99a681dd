// Arithmetic on two arrays, one kernel, chosen by FUNCTION: powers, remainders, the larger and the smaller, bits and
// shifts, and + - * / of integers; and turned, the bits or the signs of integers.
//
// Method    one item per ITEMS elements, each.clh.
// Numerics  pow is the device's; fmod is exact. Integers wrap, by way of unsigned numbers; a remainder by 0 is 0.
#include "types.clh"
#include "each.clh"

#if REALS
inline ACC joined(const int function, const ACC a, const ACC b) {
    ACC r;
    switch (function) {
        case 0: return pow(a, b);
        case 1: r = fmod(a, b); return r != 0 && (r < 0) != (b < 0) ? r + b : r;
        case 2: return a > b || isnan(a) ? a : b;
        case 3: return a < b || isnan(a) ? a : b;
        default: return fmod(a, b);
    }
}
#else
#define BITS_OF_ELEMENT (8 * (int)sizeof(T))
inline ACC power(const ACC a, const ACC b) {
    if (b < 0) return a == 1 || (a == -1 && b % 2 == 0) ? 1 : a == -1 ? a : 0;
    ulong y = 1, square = (ulong)a;
    for (ulong rest = (ulong)b; rest; rest >>= 1, square *= square)
        if (rest & 1) y *= square;
    return (ACC)y;
}
inline ACC remainder_of(const ACC a, const ACC b) { return b == 0 || b == -1 ? 0 : a % b; }
inline ACC joined(const int function, const ACC a, const ACC b) {
    const bool shifts = b >= 0 && b < BITS_OF_ELEMENT;
    ACC r;
    switch (function) {
        case 0: return power(a, b);
        case 1: r = remainder_of(a, b); return r != 0 && (r < 0) != (b < 0) ? r + b : r;
        case 2: return a > b ? a : b;
        case 3: return a < b ? a : b;
        case 4: return a & b;
        case 5: return a | b;
        case 6: return a ^ b;
        case 7: return shifts ? (ACC)((ulong)a << b) : 0;
        case 8: return shifts ? a >> b : a < 0 ? -1 : 0;
        case 9: return remainder_of(a, b);
        case 10: return (ACC)((ulong)a + (ulong)b);
        case 11: return (ACC)((ulong)a - (ulong)b);
        case 12: return (ACC)((ulong)a * (ulong)b);
        default: return b == 0 ? 0 : b == -1 ? (ACC)(0 - (ulong)a) : a / b;
    }
}

// 0: all bits; 1: the sign; 2: the sign of negative ones.
__kernel void turned(ANY(T, x), ANY(T, y), const long function, const Walk walk) {
    START(x);
    START(y);
    EACH(k, i) {
        const ACC v = LOAD(x, AT(0, i));
        STORE(y, AT(1, i), (T)(function == 0 ? ~v : function == 1 || v < 0 ? (ACC)(0 - (ulong)v) : v));
    }
}
#endif

__kernel void arithmetic(ANY(T, a), ANY(T, b), ANY(T, y), const long function, const Walk walk) {
    START(a);
    START(b);
    START(y);
    EACH(k, i) STORE(y, AT(2, i), joined((int)function, LOAD(a, AT(0, i)), LOAD(b, AT(1, i))));
}
