// One result per pixel of pictures: colours to grey, and how far two pictures are apart.
//
// Defined by the launch:  DTYPE  u8, u16 or f32
// Method    each item computes one pixel, or ITEMS elements.
// Numerics  exact integers, grey with one rounding half up; grey floats are summed in float64.
#include "types.clh"

#ifdef ITEMS
#include "each.clh"

__kernel void apart(ANY(T, a), ANY(T, b), ANY(T, y), const Walk walk) {
    START(a);
    START(b);
    START(y);
    EACH(k, i) {
        const T u = a[AT(0, i)], v = b[AT(1, i)];
#if FLOATS
        y[AT(2, i)] = fabs(u - v);
#else
        y[AT(2, i)] = abs_diff(u, v);
#endif
    }
}
#else
__kernel void grey(IN(T, image), OUT(T, y), const long n) {
    START(image);
    START(y);
    const long i = get_global_id(0);
    if (i >= n) return;
    const T r = image[3 * i], g = image[3 * i + 1], b = image[3 * i + 2];
#if FLOATS
    y[i] = (T)((9798.0 * r + 19235.0 * g + 3735.0 * b) * (1.0 / (1 << 15)));
#else
    y[i] = (T)((9798 * r + 19235 * g + 3735 * b + (1 << 14)) >> 15);
#endif
}
#endif
