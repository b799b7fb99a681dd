// Indices into tables as floats: W(o, i), what linear_lut multiplies by.
//
// Method    one item per weight; the layout is that of csrc/ops/linear_lut.cc.
// Numerics  entries of a table are exact.
//
// Defined by the launch:  DTYPE   of the table
#include "types.clh"

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
