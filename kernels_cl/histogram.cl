// The histogram of elements of 8 and 16 bits, and a map of their values applied to them.
//
// Defined by the launch:  DTYPE  u8 or u16
// Method    a work-group counts 8 bits in local memory, then adds what it found to the whole; 16 bits where they are.
#include "types.clh"

#define BYTES CAT(is_bytes_, DTYPE)
#define is_bytes_u8 1

#if BYTES
__kernel void count(IN(T, x), OUT(uint, counts), const long n, const long per_item) {
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
#else
__kernel void count(IN(T, x), OUT(uint, counts), const long n, const long per_item) {
    START(x);
    START(counts);
    const long group = get_local_size(0), first = get_group_id(0) * group * per_item + get_local_id(0);
    for (long k = 0; k < per_item; ++k)
        if (first + k * group < n) atomic_inc(counts + x[first + k * group]);
}
#endif

__kernel void look_up(IN(T, x), IN(T, map), OUT(T, y), const long n) {
    START(x);
    START(map);
    START(y);
    const long i = get_global_id(0);
    if (i < n) y[i] = map[x[i]];
}
