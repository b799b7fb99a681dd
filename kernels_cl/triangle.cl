// tril and triu: the part of each matrix on one side of a diagonal, zeros on the other.
//
// Method    one item per element.
// Numerics  exact.
//
// Defined by the launch:  BITS   uchar ushort uint ulong;   LOWER   1 for tril, 0 for triu
#include "types.clh"

__kernel void triangle(IN(BITS, x), OUT(BITS, y), const long count, const long rows, const long columns,
                       const long diagonal) {
    START(x);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX row = i / (INDEX)columns;
    const long distance = (long)(i - row * (INDEX)columns) - (long)(row % (INDEX)rows);
    y[i] = (LOWER ? distance <= diagonal : distance >= diagonal) ? x[i] : 0;
}
