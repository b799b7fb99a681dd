// Dilation and erosion of 8-bit pictures: the largest or smallest pixel of a run, along x and then down.
//
// Defined by the launch:  MAX, or not
// Method    each item looks at the `k` elements that lie `step` apart; outside the row or column there are none.
#include "types.clh"

// Element i is at place i / step % n of a line of n.
__kernel void extreme(IN(uchar, from), OUT(uchar, to), const long count, const long n, const long step, const long k) {
    START(from);
    START(to);
    const long i = get_global_id(0);
    if (i >= count) return;
    const long place = i / step % n, first = max(place - k / 2, (long)0), last = min(place - k / 2 + k, n);
    uchar best = from[i];
    for (long p = first; p < last; ++p) {
        const uchar v = from[i + (p - place) * step];
#ifdef MAX
        best = max(best, v);
#else
        best = min(best, v);
#endif
    }
    to[i] = best;
}
