// paged_attention: y = softmax(scale q k^T) v for each head, k and v in the pages of a pool.
//
//     attend_pages     y                                               a group per query
//
// Method    that of attend in attention.cl: a block of GROUP scores at a time, one per item, is shared in local memory; then
//           items take COLUMNS columns each. A key is found by the page of its place.
// Numerics  a running maximum; sums run along the keys, one term after the other. Codes of 8 bits times their scales.
//
// Defined by the launch:  DTYPE   of q and y;  STORED   of k and v;  GROUP, COLUMNS
#include "types.clh"
#include "rows.clh"

#define S CAT(storage_, STORED)
#define LOAD_STORED(p, i) ((ACC)CAT(load_, STORED)(p, i))

typedef struct {
    long heads, kv_heads, queries, most, page, depth, width, left, right, alibi, sinks, coded;
} Sizes;

__kernel void attend_pages(IN(T, q), IN(S, k), IN(S, v), IN(long, table), IN(long, lengths), IN(float, k_scale),
                           IN(float, v_scale), IN(T, alibi), IN(T, sinks), OUT(T, y), const ACC scale,
                           const ACC softcap, const Sizes z) {
    START(q);
    START(k);
    START(v);
    START(table);
    START(lengths);
    START(k_scale);
    START(v_scale);
    START(alibi);
    START(sinks);
    START(y);
    GROUP_MEMORY
    __local ACC power[GROUP];
    const INDEX t = ROW % (INDEX)z.queries, h = ROW / (INDEX)z.queries % (INDEX)z.heads;
    const INDEX b = ROW / (INDEX)z.queries / (INDEX)z.heads, head = h / ((INDEX)z.heads / (INDEX)z.kv_heads);
    const long length = lengths[b], place = t + length - z.queries;
    const INDEX begin = (INDEX)max(0L, place - z.left), end = (INDEX)min(length, max(0L, place + z.right + 1));
    const INDEX page = z.page, width = z.width;
    // Where in the pool place j is, in places of a head.
#define AT(j) ((table[b * (INDEX)z.most + (j) / page] * (INDEX)z.kv_heads + head) * page + (j) % page)
    q += ROW * (INDEX)z.depth;
    ACC top = z.sinks ? (ACC)LOAD(sinks, h) : -(ACC)INFINITY, sum = top == -(ACC)INFINITY ? 0 : 1, acc[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) acc[c] = 0;
    for (INDEX first = begin; first < end; first += GROUP) {
        const INDEX j = first + ITEM;
        ACC s = -(ACC)INFINITY, by = 1;
        if (j < end) {
            const INDEX at = AT(j);
            s = 0;
            for (INDEX d = 0; d < (INDEX)z.depth; ++d)
                s = MAC(LOAD(q, d) * scale, LOAD_STORED(k, at * (INDEX)z.depth + d), s);
            if (z.coded) {
                s *= k_scale[at];
                by = v_scale[at];
            }
            if (softcap > 0) s = tanh(s / softcap) * softcap;
            if (z.alibi) s -= LOAD(alibi, h) * (ACC)abs(j - place);
        }
        const ACC highest = nan_max(top, GROUP_MAX(s)), base = highest == -(ACC)INFINITY ? (ACC)0 : highest;
        const ACC p = exp(s - base), shrink = top == highest ? (ACC)1 : exp(top - base);
        sum = sum * shrink + GROUP_SUM(p);
        top = highest;
        power[ITEM] = p == 0 ? (ACC)0 : p * by;
        barrier(CLK_LOCAL_MEM_FENCE);
        const INDEX count = min((INDEX)GROUP, end - first);
        for (INDEX c = 0, d = ITEM; c < COLUMNS; ++c, d += GROUP) {
            if (d >= width) continue;
            ACC a = acc[c] * shrink;
            for (INDEX i = 0; i < count; ++i) a = MAC(power[i], LOAD_STORED(v, AT(first + i) * width + d), a);
            acc[c] = a;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    for (INDEX c = 0, d = ITEM; c < COLUMNS; ++c, d += GROUP)
        if (d < width) STORE(y, ROW * width + d, acc[c] / (sum == 0 ? (ACC)1 : sum));
}
