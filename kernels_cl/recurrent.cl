// What goes before the steps of any recurrent layer, and before a product with weights in 8 bits.
//
// Method    an item per number; code_rows an item per row.
// Numerics  copies; codes are the CPU's, and what they stand for is rounded once.
//
// Defined by the launch:  DTYPE
#include "recurrent.clh"
#include "quantize.clh"

// Rows of k numbers as what their codes stand for: of weights, multiples of the largest / 127; of what meets them, codes of
// 0..255 by the range of the row.
__kernel void code_rows(IN(float, x), OUT(float, to), const long rows, const long k, const long weights) {
    START(x);
    START(to);
    const INDEX row = get_global_id(0);
    if (row >= (INDEX)rows) return;
    x += row * (INDEX)k;
    to += row * (INDEX)k;
    float low = 0, high = 0;
    bool strange = false;
    for (INDEX i = 0; i < (INDEX)k; ++i) {
        strange = strange || isnan(x[i]);
        low = fmin(low, x[i]);
        high = fmax(high, x[i]);
    }
    const float part = 1.0f / 255.0f, top = high * part, bottom = low * part, span = top - bottom;
    const float largest = fmax(high, -low) * (1.0f / 127.0f), size = weights ? largest : span;
    const float by = strange || isinf(size) ? NAN : fmax(size, 0x1p-126f), inverse = 1.0f / by;
    const float zero = weights ? 0.0f : (float)code_of(-low * inverse, 0.0f, 0.0f);
    for (INDEX i = 0; i < (INDEX)k; ++i) {
        const float v = x[i] * inverse, whole = isnan(v) ? 0.0f : rint(v);
        const float least = weights ? -127.0f : -zero, most = weights ? 127.0f : 255.0f - zero;
        to[i] = fmin(fmax(whole, least), most) * by;
    }
}

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
