// attention: y = softmax(scale q k^T + mask) v for each head, and its gradients.
//
//     attend        y and the logarithm of the sum of the powers        a group per query
//     attend_dq     dq = scale ds k, and delta = sum(dy y)              a group per query
//     attend_dkv    dv = p^T dy, dk = scale ds^T q                      a group per key
//     with p = exp(score - lse), at most 1, ds = p (dy v^T - delta); a dropped weight is 0, others grow by `kept`
//
// Method    a block of GROUP scores at a time, one per item, is shared in local memory; then items take COLUMNS columns
//           each. Keys that a query does not see are not read.
// Numerics  a running maximum in attend; sums run along the keys, one term after the other.
//
// Defined by the launch:  DTYPE   of q, k, v;  GROUP, COLUMNS;  ADDED: attention.clh
#include "attention.clh"
#include "rows.clh"

// The score of a query and a key; *slope is what the cap leaves of it.
inline ACC score_of(__global const T *q, __global const T *k, __global const MASK_TYPE *mask, __global const T *alibi,
                    const INDEX b, const INDEX h, const INDEX t, const INDEX j, const long place, const ACC scale,
                    const ACC softcap, const Sizes z, ACC *slope) {
    ACC s = 0;
    for (INDEX d = 0; d < (INDEX)z.depth; ++d) s = MAC(LOAD(q, d) * scale, LOAD(k, d), s);
    *slope = 1;
    if (softcap > 0) {
        const ACC bent = tanh(s / softcap);
        s = bent * softcap;
        *slope = 1 - bent * bent;
    }
    if (z.alibi) s -= LOAD(alibi, h) * (ACC)abs(j - place);
    if (!z.masked) return s;
    const long at = b * z.mask_step[0] + h * z.mask_step[1] + t * z.mask_step[2] + j * z.mask_step[3];
#ifdef ADDED
    return s + LOAD(mask, at);
#else
    return mask[at] ? s : -(ACC)INFINITY;
#endif
}

#define SCORE(h, t, j, place, slope)                                                                             \
    score_of(q + ((b * (INDEX)z.heads + (h)) * (INDEX)z.queries + (t)) * (INDEX)z.depth,                  \
             k + ((b * (INDEX)z.kv_heads + head) * (INDEX)z.keys + (j)) * (INDEX)z.depth, mask, alibi, b, h, t, j, \
             place, scale, softcap, z, slope)

// Query t of head h of sequence b, and the keys that it sees.
#define FOR_A_QUERY                                                                                                  \
    const INDEX t = ROW % (INDEX)z.queries, h = ROW / (INDEX)z.queries % (INDEX)z.heads;                             \
    const INDEX b = ROW / (INDEX)z.queries / (INDEX)z.heads, head = h / ((INDEX)z.heads / (INDEX)z.kv_heads);        \
    const long length = LENGTH(b), place = t + length - z.queries;                                                   \
    const INDEX begin = (INDEX)max(0L, place - z.left), end = (INDEX)min(length, max(0L, place + z.right + 1));

#define BLOCKS(first, begin, end) for (INDEX first = begin; first < end; first += GROUP)
#define EACH_COLUMN(c, d, columns)                                   \
    for (INDEX c = 0, d = ITEM; c < COLUMNS; ++c, d += GROUP)        \
        if (d < (INDEX)(columns))

__kernel void attend(OPERANDS, IN(T, sinks), OUT(T, y), OUT(ACC, lse), SETTINGS) {
    START_OPERANDS
    START(sinks);
    START(y);
    START(lse);
    GROUP_MEMORY
    __local ACC power[GROUP];
    FOR_A_QUERY
    v += (b * (INDEX)z.kv_heads + head) * (INDEX)z.keys * (INDEX)z.width;
    ACC top = z.sinks ? (ACC)LOAD(sinks, h) : -(ACC)INFINITY, sum = top == -(ACC)INFINITY ? 0 : 1, acc[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) acc[c] = 0;
    BLOCKS(first, begin, end) {
        ACC slope, s = -(ACC)INFINITY;
        if (first + ITEM < end) s = SCORE(h, t, first + ITEM, place, &slope);
        const ACC highest = nan_max(top, GROUP_MAX(s)), base = highest == -(ACC)INFINITY ? (ACC)0 : highest;
        const ACC p = exp(s - base), shrink = top == highest ? (ACC)1 : exp(top - base);
        sum = sum * shrink + GROUP_SUM(p);
        top = highest;
        power[ITEM] = p == 0 ? (ACC)0 : p * factor_of(b, h, t, first + ITEM, kept, z);
        barrier(CLK_LOCAL_MEM_FENCE);
        const INDEX count = min((INDEX)GROUP, end - first);
        EACH_COLUMN(c, d, z.width) {
            ACC a = acc[c] * shrink;
            for (INDEX j = 0; j < count; ++j) a = MAC(power[j], LOAD(v, (first + j) * (INDEX)z.width + d), a);
            acc[c] = a;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    EACH_COLUMN(c, d, z.width) STORE(y, ROW * (INDEX)z.width + d, acc[c] / (sum == 0 ? (ACC)1 : sum));
    if (ITEM == 0) lse[ROW] = top + log(sum);
}

__kernel void attend_dq(DQ_OPERANDS) {
    START_DQ_OPERANDS
    GROUP_MEMORY
    __local ACC slopes[GROUP];
    FOR_A_QUERY
    dy += ROW * (INDEX)z.width;
    y += ROW * (INDEX)z.width;
    __global const T *values = v + (b * (INDEX)z.kv_heads + head) * (INDEX)z.keys * (INDEX)z.width;
    __global const T *keys = k + (b * (INDEX)z.kv_heads + head) * (INDEX)z.keys * (INDEX)z.depth;
    ACC own = 0, acc[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) acc[c] = 0;
    EACH_COLUMN(c, d, z.width) own = MAC(LOAD(dy, d), LOAD(y, d), own);
    const ACC total = GROUP_SUM(own);
    if (ITEM == 0) delta[ROW] = total;
    BLOCKS(first, begin, end) {
        ACC ds = 0;
        if (first + ITEM < end) {
            ACC slope, dp = 0;
            const INDEX j = first + ITEM;
            const ACC p = p_of(SCORE(h, t, j, place, &slope), lse[ROW]);
            for (INDEX d = 0; d < (INDEX)z.width; ++d) dp = MAC(LOAD(dy, d), LOAD(values, j * (INDEX)z.width + d), dp);
            ds = p == 0 ? (ACC)0 : p * (dp * factor_of(b, h, t, j, kept, z) - total);
            if (z.slopes) ds_of_scores[ROW * (INDEX)z.keys + j] = ds;
            if (softcap > 0) ds *= slope;
        }
        slopes[ITEM] = ds;
        barrier(CLK_LOCAL_MEM_FENCE);
        const INDEX count = min((INDEX)GROUP, end - first);
        EACH_COLUMN(c, d, z.depth) {
            ACC a = acc[c];
            for (INDEX j = 0; j < count; ++j) a = MAC(slopes[j], LOAD(keys, (first + j) * (INDEX)z.depth + d), a);
            acc[c] = a;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }
    EACH_COLUMN(c, d, z.depth) STORE(dq, ROW * (INDEX)z.depth + d, acc[c] * scale);
}

__kernel void attend_dkv(DKV_OPERANDS) {
    START_DKV_OPERANDS
    __local ACC powers[GROUP];
    __local ACC slopes[GROUP];
    const INDEX j = ROW % (INDEX)z.keys, head = ROW / (INDEX)z.keys % (INDEX)z.kv_heads;
    const INDEX b = ROW / (INDEX)z.keys / (INDEX)z.kv_heads, group = (INDEX)z.heads / (INDEX)z.kv_heads;
    const long length = LENGTH(b), place = j - length + z.queries;
    const INDEX begin = (INDEX)max(0L, place - z.right);
    const INDEX end = j < length ? (INDEX)min(z.queries, max(0L, place + z.left + 1)) : 0;
    __global const T *value = v + ROW * (INDEX)z.width;
    ACC of_k[COLUMNS], of_v[COLUMNS];
    for (int c = 0; c < COLUMNS; ++c) of_k[c] = of_v[c] = 0;
    for (INDEX g = 0; g < group; ++g) {
        const INDEX h = head * group + g, above = (b * (INDEX)z.heads + h) * (INDEX)z.queries;
        BLOCKS(first, begin, end) {
            ACC p = 0, ds = 0;
            const INDEX t = first + ITEM;
            if (t < end) {
                ACC slope, dp = 0;
                p = p_of(SCORE(h, t, j, t + length - z.queries, &slope), lse[above + t]);
                for (INDEX d = 0; d < (INDEX)z.width; ++d)
                    dp = MAC(LOAD(dy, (above + t) * (INDEX)z.width + d), LOAD(value, d), dp);
                const ACC factor = factor_of(b, h, t, j, kept, z);
                ds = p == 0 ? (ACC)0 : p * (dp * factor - delta[above + t]) * slope;
                p *= factor;
            }
            powers[ITEM] = p;
            slopes[ITEM] = ds;
            barrier(CLK_LOCAL_MEM_FENCE);
            const INDEX count = min((INDEX)GROUP, end - first), from = above + first;
            EACH_COLUMN(c, d, z.width) {
                ACC a = of_v[c];
                for (INDEX i = 0; i < count; ++i) a = MAC(powers[i], LOAD(dy, (from + i) * (INDEX)z.width + d), a);
                of_v[c] = a;
            }
            EACH_COLUMN(c, d, z.depth) {
                ACC a = of_k[c];
                for (INDEX i = 0; i < count; ++i) a = MAC(slopes[i], LOAD(q, (from + i) * (INDEX)z.depth + d), a);
                of_k[c] = a;
            }
            barrier(CLK_LOCAL_MEM_FENCE);
        }
    }
    EACH_COLUMN(c, d, z.width) STORE(dv, ROW * (INDEX)z.width + d, of_v[c]);
    EACH_COLUMN(c, d, z.depth) STORE(dk, ROW * (INDEX)z.depth + d, of_k[c] * scale);
}
