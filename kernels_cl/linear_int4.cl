// 4-bit codes as floats: W(o, i), what linear_int4 multiplies by.
//
// Method    one item per weight; the layout is that of csrc/ops/linear_int4.cc.
// Numerics  (code - zero) scale, rounded once.
//
// Defined by the launch:  DTYPE   of scales;  ZEROS   if zero points are given
#include "types.clh"

__kernel void unpack_int4(IN(uchar, w), IN(T, scales),
#ifdef ZEROS
                          IN(uchar, zeros),
#endif
                          OUT(float, y), const long count, const long in, const long group) {
    START(w);
    START(scales);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX o = i / (INDEX)in, k = i - o * (INDEX)in, g = k / (INDEX)group;
    const INDEX groups = ((INDEX)in + (INDEX)group - 1) / (INDEX)group;
    const int code = w[(o * groups * (INDEX)group + k) / 2] >> (k % 2 * 4) & 15;
#ifdef ZEROS
    const int zero = zeros[zeros_start + o * ((groups + 1) / 2) + g / 2] >> (g % 2 * 4) & 15;
#else
    const int zero = 8;
#endif
    y[i] = (float)(code - zero) * (float)LOAD(scales, o * groups + g);
}
