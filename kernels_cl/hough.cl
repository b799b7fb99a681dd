// Votes of edge pixels for the lines that run through them, as csrc/ops/hough.cc has them.
//
// Method    an item casts the votes of one pixel.
#include "types.clh"

__kernel void vote(IN(uchar, edges), IN(int, cosines), IN(int, sines), OUT(int, votes), const long n, const long width,
                   const long angles, const long bins) {
    START(edges);
    START(cosines);
    START(sines);
    START(votes);
    const long i = get_global_id(0);
    if (i >= n || !edges[i]) return;
    const int x = (int)(i % width), y = (int)(i / width);
    for (long k = 0; k < angles; ++k) {
        const int r = (x * cosines[k] + y * sines[k] + (1 << 15)) >> 16;
        atomic_inc(votes + k * bins + bins / 2 + r);
    }
}
