// How far each pixel of a mask is from the nearest zero, exactly: down the columns, then along the rows.
//
// Method    an item walks a column down and up again; then each item looks along its row, ever farther from its pixel,
//           until nothing there can be nearer.
// Numerics  exact integers; the root as the device rounds it.
#include "types.clh"

#define NONE 65535

__kernel void columns(IN(uchar, mask), OUT(ushort, far), const long height, const long width) {
    START(mask);
    START(far);
    const long x = get_global_id(0);
    if (x >= width) return;
    int run = NONE;
    for (long y = 0; y < height; ++y) {
        run = mask[y * width + x] ? min(run + 1, NONE) : 0;
        far[y * width + x] = (ushort)run;
    }
    for (long y = height - 1; y >= 0; --y) {
        run = min(min(run + 1, NONE), (int)far[y * width + x]);
        far[y * width + x] = (ushort)run;
    }
}

__kernel void rows(IN(ushort, far), OUT(float, y), const long height, const long width) {
    START(far);
    START(y);
    const long i = get_global_id(0);
    if (i >= height * width) return;
    const long x = i % width, row = i - x;
    const long none = (long)1 << 40;
    long best = far[i] == NONE ? none : (long)far[i] * far[i];
    for (long step = 1; step < width && step * step < best; ++step)
        for (long side = -1; side <= 1; side += 2) {
            const long at = x + side * step;
            if (at < 0 || at >= width || far[row + at] == NONE) continue;
            best = min(best, (long)far[row + at] * far[row + at] + step * step);
        }
    y[i] = best == none ? INFINITY : sqrt((float)best);
}
