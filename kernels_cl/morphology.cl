// Dilation and erosion of pictures: the largest or smallest pixel of a run, along x and then down.
//
// Defined by the launch:  DTYPE  u8, u16 or f32;  MAX, or not
// Method    each item looks at the `k` elements that lie `step` apart; outside the row or column there are none.
// Numerics  exact; a NaN is the result of what it is in.
#include "types.clh"

// Element i is at place i / step % n of a line of n.
__kernel void extreme(IN(T, from), OUT(T, to), const long count, const long n, const long step, const long k) {
    START(from);
    START(to);
    const long i = get_global_id(0);
    if (i >= count) return;
    const long place = i / step % n, first = max(place - k / 2, (long)0), last = min(place - k / 2 + k, n);
    T best = from[i];
    for (long p = first; p < last; ++p) {
        const T v = from[i + (p - place) * step];
#ifdef MAX
        if (v > best || v != v) best = v;
#else
        if (v < best || v != v) best = v;
#endif
    }
    to[i] = best;
}
