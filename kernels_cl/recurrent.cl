// What goes before the steps of any recurrent layer.
//
// Method    an item per number.
// Numerics  copies.
//
// Defined by the launch:  DTYPE
#include "recurrent.clh"

// x (T, N, I), zero behind the lengths: a NaN there would meet slopes of zero. `hidden` is I.
__kernel void rows_within(IN(long, lengths), IN(ACC, x), OUT(ACC, to), const Sizes z) {
    START(lengths);
    START(x);
    START(to);
    const INDEX item = get_global_id(0), count = z.count, width = z.hidden;
    if (item >= (INDEX)z.steps * count * width) return;
    const INDEX row = item / width, t = row / count;
    to[item] = t < (INDEX)lengths[row - t * count] ? x[item] : 0;
}
