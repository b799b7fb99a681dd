// Rotary position embedding: pairs of the first 2 half elements of a row of x (B, H, T, D) are turned, others are copied.
//
// Method    an item per pair, then one per element that stays.
// Numerics  one product and one multiply-add for each result.
//
// Defined by the launch:  DTYPE   of x
#include "types.clh"

typedef struct {
    long items, heads, length, width, half_width, placed, sequence_step, interleaved, inverse;
} Sizes;

__kernel void turn_pairs(IN(T, x), IN(ACC, cosines), IN(ACC, sines), IN(long, places), OUT(T, y), const Sizes z) {
    START(x);
    START(cosines);
    START(sines);
    START(places);
    START(y);
    const INDEX item = get_global_id(0), half_width = z.half_width, per_row = z.width - z.half_width;
    if (item >= (INDEX)z.items) return;
    const INDEX row = item / per_row, i = item - row * per_row;
    x += row * (INDEX)z.width;
    y += row * (INDEX)z.width;
    if (i >= half_width) {
        STORE(y, i + half_width, LOAD(x, i + half_width));
        return;
    }
    const INDEX t = row % (INDEX)z.length;
    const INDEX sequence = row / (INDEX)z.length / (INDEX)z.heads;
    const INDEX place = z.placed ? (INDEX)places[sequence * (INDEX)z.sequence_step + t] : t;
    const INDEX first = z.interleaved ? 2 * i : i, second = z.interleaved ? 2 * i + 1 : i + half_width;
    const ACC c = cosines[place * half_width + i], angle = sines[place * half_width + i], s = z.inverse ? -angle : angle;
    const ACC a = LOAD(x, first), b = LOAD(x, second);
    STORE(y, first, a * c - b * s);
    STORE(y, second, a * s + b * c);
}
