// One result per pixel of 8-bit pictures: colours to grey, and how far two pictures are apart.
//
// Method    each item computes one pixel, or ITEMS elements.
// Numerics  exact integers, grey with one rounding half up.
#include "types.clh"

#ifdef ITEMS
#include "each.clh"

__kernel void apart(ANY(uchar, a), ANY(uchar, b), ANY(uchar, y), const Walk walk) {
    START(a);
    START(b);
    START(y);
    EACH(k, i) y[AT(2, i)] = abs_diff(a[AT(0, i)], b[AT(1, i)]);
}
#else
__kernel void grey(IN(uchar, image), OUT(uchar, y), const long n) {
    START(image);
    START(y);
    const long i = get_global_id(0);
    if (i >= n) return;
    y[i] = (uchar)((9798 * image[3 * i] + 19235 * image[3 * i + 1] + 3735 * image[3 * i + 2] + (1 << 14)) >> 15);
}
#endif
