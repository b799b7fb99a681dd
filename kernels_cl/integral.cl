// Sums over all pixels above and left of a place, of pixels or of their squares: along the rows, then down the columns.
//
// Defined by the launch:  DTYPE    u8, u16 or f32
//                         SUM      uint, which wraps, or double
//                         SQUARES  or not
// Method    each item sums a row, then each a column. The first row and column of y are zero.
#include "types.clh"

__kernel void rows(IN(T, image), OUT(SUM, y), const long height, const long width) {
    START(image);
    START(y);
    const long i = get_global_id(0);
    if (i >= height) return;
    SUM run = 0;
    for (long x = 0; x < width; ++x) {
        const SUM v = image[i * width + x];
#ifdef SQUARES
        run += v * v;
#else
        run += v;
#endif
        y[(i + 1) * (width + 1) + x + 1] = run;
    }
}

__kernel void columns(OUT(SUM, y), const long height, const long width) {
    START(y);
    const long x = get_global_id(0) + 1;
    if (x > width) return;
    SUM run = 0;
    for (long i = 1; i <= height; ++i) y[i * (width + 1) + x] = run += y[i * (width + 1) + x];
}
