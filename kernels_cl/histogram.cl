// The histogram of 8-bit elements, and a map of 256 values applied to them.
//
// Method    a work-group counts in local memory, then adds what it found to the whole.
#include "types.clh"

__kernel void count(IN(uchar, x), OUT(uint, counts), const long n, const long per_item) {
    START(x);
    START(counts);
    __local uint found[256];
    for (int v = (int)get_local_id(0); v < 256; v += (int)get_local_size(0)) found[v] = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    const long group = get_local_size(0), first = get_group_id(0) * group * per_item + get_local_id(0);
    for (long k = 0; k < per_item; ++k)
        if (first + k * group < n) atomic_inc(found + x[first + k * group]);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int v = (int)get_local_id(0); v < 256; v += (int)get_local_size(0))
        if (found[v]) atomic_add(counts + v, found[v]);
}

__kernel void look_up(IN(uchar, x), IN(uchar, map), OUT(uchar, y), const long n) {
    START(x);
    START(map);
    START(y);
    const long i = get_global_id(0);
    if (i < n) y[i] = map[x[i]];
}
