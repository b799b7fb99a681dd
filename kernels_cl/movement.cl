// Moving elements: copy (also concat and expand, through strides) and pad.
//
// Method    one item per element of the result, each.clh.
// Numerics  exact.
//
// Defined by the launch:  BITS   uchar ushort uint ulong: what is moved
#include "types.clh"
#include "each.clh"

__kernel void copy(ANY(BITS, x), ANY(BITS, y), const Walk walk) {
    START(x);
    START(y);
#ifdef VECTOR  // elements of any size, 16 bytes of them
    __global const uint4 *from = (__global const uint4 *)x;
    __global uint4 *to = (__global uint4 *)y;
    const INDEX n = (INDEX)walk.n, per = 16 / sizeof(BITS), size = get_local_size(0);
    const INDEX first = (INDEX)get_group_id(0) * (ITEMS / per) * size + (INDEX)get_local_id(0);
    uint4 held[2];
    UNROLL for (int c = 0; c < 2; ++c)
        if ((first + c * size + 1) * per <= n) held[c] = from[first + c * size];
    UNROLL for (int c = 0; c < 2; ++c) {
        const INDEX at = first + c * size;
        if ((at + 1) * per <= n) to[at] = held[c];
        else for (INDEX i = at * per; i < n; ++i) y[i] = x[i];
    }
#else
    BITS held[ITEMS];
    EACH(k, i) held[k] = x[AT(0, i)];
    EACH(k, i) y[AT(1, i)] = held[k];
#endif
}

#ifdef PADDED  // rank of the padded array
typedef struct {
    long n, shape[PADDED], before[PADDED], inside[PADDED], stride[PADDED];  // inside, stride: of x
} Frame;

__kernel void pad(IN(BITS, x), IN(BITS, value), OUT(BITS, y), const Frame f) {
    START(x);
    START(value);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)f.n) return;
    INDEX rest = i, at = 0;
    bool inside = true;
#pragma unroll
    for (int d = PADDED - 1; d >= 0; --d) {
        const INDEX up = rest / (INDEX)f.shape[d];
        const INDEX place = rest - up * (INDEX)f.shape[d] - (INDEX)f.before[d];
        inside = inside && place >= 0 && place < (INDEX)f.inside[d];
        at += place * (INDEX)f.stride[d];
        rest = up;
    }
    y[i] = inside ? x[at] : value[0];
}
#endif
