// Weights of 4-bit codes, or of indices into tables, as floats: W(o, i), what linear_int4 and linear_lut multiply by.
//
// Method    one item per weight; the layouts are those of csrc/ops/linear_int4.cc and linear_lut.cc.
// Numerics  (code - zero) scale, rounded once; entries of a table are exact.
//
// Defined by the launch:  DTYPE   of scales or table;  LUT   for tables;  ZEROS   if zero points are given
#include "types.clh"

#ifdef LUT

__kernel void unpack_lut(IN(uchar, w), IN(T, table), OUT(float, y), const long count, const long in, const long bytes,
                         const long bits, const long group, const long row_tables) {
    START(w);
    START(table);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX o = i / (INDEX)in, k = i - o * (INDEX)in;
    const INDEX bit = k * (INDEX)bits, at = o * (INDEX)bytes + bit / 8;
    uint both = w[at];
    if (bit % 8 + (INDEX)bits > 8) both |= (uint)w[at + 1] << 8;
    const INDEX entry = both >> (bit % 8) & ((1u << (uint)bits) - 1u);
    const INDEX first = o * (INDEX)row_tables + (group > 0 ? k / (INDEX)group << (INDEX)bits : 0);
    y[i] = (float)LOAD(table, first + entry);
}

#else

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

#endif
