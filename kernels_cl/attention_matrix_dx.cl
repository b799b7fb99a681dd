// The gradients of attention in 16 bits on matrix instructions, scores computed anew in two kernels, without atomics.
//
//     attend_dq     dq = scale ds k, and delta = sum(dy y)     rows are queries; tiles of k and v pass
//     attend_dkv    dv = p^T dy, dk = scale ds^T q             rows are keys; tiles of q and dy pass
//     with p = exp(score - lse), at most 1, ds = p (dy v^T - delta); a dropped weight is 0, others grow by `kept`
//
// Method    FlashAttention-2, its backward pass cut in two. What a group keeps lies in fragments: attend_dkv works on
//           transposed scores, so that p^T and ds^T are left operands as they come. Tiles of STEP rows pass through a
//           ring of SLOTS pairs of tiles that is filled in the background.
// Numerics  products exact, sums in float. p and ds are rounded to 16 bits before the products that they are factors of.
//
// Defined by the launch:  STEP, SLOTS;  OF_QUERIES   for attend_dq;  attention_matrix.clh
#define FRAGMENTS_N (MAX(STEP, MAX(DEPTH, WIDTH)) / 8)
#include "attention_matrix.clh"

#define PAIR_CHUNKS (STEP * (DEPTH + WIDTH) / 8)
#define DEPTH_CHUNKS (STEP * DEPTH / 8)

#define TURN(fetch)                                               \
    copies_wait(SLOTS - 2);                                       \
    barrier(CLK_LOCAL_MEM_FENCE);                                 \
    fetch;                                                        \
    copies_commit();                                              \
    __local const uint4 *deep = ring + slot * PAIR_CHUNKS, *broad = deep + DEPTH_CHUNKS;

#define NEXT_SLOT                                             \
    slot = slot + 1 == SLOTS ? 0 : slot + 1;                  \
    next_slot = next_slot + 1 == SLOTS ? 0 : next_slot + 1;

#define ZERO(c, m, n)                           \
    UNROLL for (int i = 0; i < (m); ++i)        \
        UNROLL for (int j = 0; j < (n); ++j) c[i][j] = 0;

// A pair of neighbours of a result.
#ifdef COPIED
#define PUT(p, i, column, width, one, other) \
    if ((column) < (width)) STORE2(p, i, one, other);
#else
#define PUT(p, i, column, width, one, other)      \
    if ((column) < (width)) STORE(p, i, one);     \
    if ((column) + 1 < (width)) STORE(p, (i) + 1, other);
#endif
#define PUT_ROWS(p, c, row_in, rows, at, width, WIDE, by)                                                            \
    UNROLL for (int i = 0; i < FRAGMENTS; ++i) {                                                                     \
        const int put = (row_in) + i * 16 + lane / 4;                                                                \
        UNROLL for (int j = 0; j < (WIDE) / 8; ++j) {                                                                \
            const int column = 8 * j + 2 * (lane % 4);                                                               \
            if (put < (rows)) {                                                                                      \
                PUT(p, at(put) * (width) + column, column, width, (c)[i][j].s0 * (by), (c)[i][j].s1 * (by))          \
            }                                                                                                        \
            if (put + 8 < (rows)) {                                                                                  \
                PUT(p, at(put + 8) * (width) + column, column, width, (c)[i][j].s2 * (by), (c)[i][j].s3 * (by))      \
            }                                                                                                        \
        }                                                                                                            \
    }

// What p and ds of one score are: of a raw product s, with dp = dy v^T.
inline float power_at(const float s, const float factor, const float minus_lse) {
    return power_of_two(fmin(fma(s, factor, minus_lse), 0.0f));
}

#ifdef OF_QUERIES

__kernel void attend_dq(DQ_OPERANDS) {
    START_DQ_OPERANDS
    __local uint4 ring[SLOTS * PAIR_CHUNKS];
    const int item = get_local_id(0), warp = item / 32, lane = item % 32;
    FRAGMENT_MEMORY
    const int queries = z.queries, depth = z.depth, width = z.width;
    const int group = z.heads / z.kv_heads, rows = queries * group, tiles = (rows + ROWS - 1) / ROWS;
    const int id = get_group_id(0), pair = id / tiles, first_row = (tiles - 1 - id % tiles) * ROWS;
    const int b = pair / (int)z.kv_heads, head = pair % (int)z.kv_heads;
    k += (INDEX)pair * (INDEX)z.keys * depth;
    v += (INDEX)pair * (INDEX)z.keys * width;
    const long length = LENGTH(b);
    const int first_place = first_row / group + (int)length - queries;
    const int last_place = (MIN(first_row + ROWS, rows) - 1) / group + (int)length - queries;
    const int begin = MAX(0L, first_place - z.left), end = MIN(length, MAX(0L, last_place + z.right + 1));
    const int all_from = MAX(0L, last_place - z.left), all_to = MIN(length, MAX(0L, first_place + z.right + 1));
    const int blocks = (MAX(0, end - begin) + STEP - 1) / STEP;
    const float factor = scale * LOG2_E;
    const int left = MIN(z.left, FAR), right = MIN(z.right, FAR);

#define FETCH_PAIR(n)                                                                          \
    if ((n) < blocks) {                                                                        \
        __local uint4 *pair_tile = ring + next_slot * PAIR_CHUNKS;                             \
        FETCH(pair_tile, k, begin + (n) * STEP, STEP, end - 1, depth, DEPTH)                   \
        FETCH(pair_tile + DEPTH_CHUNKS, v, begin + (n) * STEP, STEP, end - 1, width, WIDTH)    \
    }
    int slot = 0, next_slot = 0;
    UNROLL for (int n = 0; n < SLOTS - 1; ++n) {
        FETCH_PAIR(n)
        copies_commit();
        ++next_slot;
    }

    int place[FRAGMENTS][2];
#ifdef EXTRAS
    int heads[FRAGMENTS][2];
#endif
    float minus_lse[FRAGMENTS][2], own_delta[FRAGMENTS][2];
    uint4 query[DEPTH / 16][FRAGMENTS], slope_of_y[WIDTH / 16][FRAGMENTS];
    ACC4 acc[FRAGMENTS][DEPTH / 8];
    ZERO(acc, FRAGMENTS, DEPTH / 8)
    UNROLL for (int i = 0; i < FRAGMENTS; ++i) {
        const int row = first_row + (warp * FRAGMENTS + i) * 16 + lane / 4;
        const int one = MIN(row, rows - 1), other = MIN(row + 8, rows - 1);
        UNROLL for (int d = 0; d < DEPTH / 16; ++d)
            query[d][i] = LEFT_OF(q + QUERY_AT(one) * depth, q + QUERY_AT(other) * depth, d, depth);
        float2 part = 0;
        UNROLL for (int d = 0; d < WIDTH / 16; ++d) {
            slope_of_y[d][i] = LEFT_OF(dy + QUERY_AT(one) * width, dy + QUERY_AT(other) * width, d, width);
            const uint4 result = LEFT_OF(y + QUERY_AT(one) * width, y + QUERY_AT(other) * width, d, width);
            part.x = multiply_pairs(slope_of_y[d][i].s0, result.s0, part.x);
            part.y = multiply_pairs(slope_of_y[d][i].s1, result.s1, part.y);
            part.x = multiply_pairs(slope_of_y[d][i].s2, result.s2, part.x);
            part.y = multiply_pairs(slope_of_y[d][i].s3, result.s3, part.y);
        }
        QUAD(part.x, PLUS_)
        QUAD(part.y, PLUS_)
        UNROLL for (int e = 0; e < 2; ++e) {
            const int own = MIN(row + 8 * e, rows - 1);
            place[i][e] = own / group + (int)length - queries;
#ifdef EXTRAS
            heads[i][e] = head * group + own % group;
#endif
            own_delta[i][e] = e ? part.y : part.x;
            const float logs = lse[QUERY_AT(own)];
            minus_lse[i][e] = logs == -INFINITY ? logs : -logs * LOG2_E;
            if (lane % 4 == 0 && row + 8 * e < rows) delta[QUERY_AT(own)] = own_delta[i][e];
        }
    }

    for (int n = 0; n < blocks; ++n) {
        const int first = begin + n * STEP;
        TURN(FETCH_PAIR(n + SLOTS - 1))
        NEXT_SLOT
        ACC4 s[FRAGMENTS][STEP / 8], dp[FRAGMENTS][STEP / 8];
        ZERO(s, FRAGMENTS, STEP / 8)
        ZERO(dp, FRAGMENTS, STEP / 8)
        UNROLL for (int d = 0; d < DEPTH / 16; ++d) TIMES_ROWS(s, query[d], deep, d, STEP / 8, DEPTH)
        UNROLL for (int d = 0; d < WIDTH / 16; ++d) TIMES_ROWS(dp, slope_of_y[d], broad, d, STEP / 8, WIDTH)
        const bool edge = first < all_from || first + STEP > all_to;
        UNROLL for (int i = 0; i < FRAGMENTS; ++i)
            UNROLL for (int j = 0; j < STEP / 8; ++j) {
                float own[4], slopes[4];
                vstore4(s[i][j], 0, own);
                vstore4(dp[i][j], 0, slopes);
                UNROLL for (int e = 0; e < 4; ++e) {
                    const int key = first + 8 * j + 2 * (lane % 4) + e % 2;
                    const int at = place[i][e / 2];
                    const bool seen = !edge || (key >= at - left && key <= at + right && key < end);
#ifdef EXTRAS
                    const int t = at - (int)length + queries;
                    float slope = 1, bent = 0, dropped = 1;
                    if (seen) {
                        bent = bent_score(own[e], mask, alibi, b, heads[i][e / 2], t, key, at, scale, softcap, z, &slope);
                        dropped = factor_of(b, heads[i][e / 2], t, key, kept, z);
                    }
                    const float p = seen ? power_at(bent, 1, minus_lse[i][e / 2]) : 0;
                    const float ds = p == 0 ? 0 : p * (slopes[e] * dropped - own_delta[i][e / 2]);
                    const int row = first_row + (warp * FRAGMENTS + i) * 16 + lane / 4 + e / 2 * 8;
                    if (z.slopes && seen && row < rows) ds_of_scores[QUERY_AT(row) * (INDEX)z.keys + key] = ds;
                    own[e] = ds * slope;
#else
                    const float p = seen ? power_at(own[e], factor, minus_lse[i][e / 2]) : 0;
                    own[e] = p * (slopes[e] - own_delta[i][e / 2]);
#endif
                }
                s[i][j] = vload4(0, own);
            }
        UNROLL for (int d = 0; d < STEP / 16; ++d) {
            uint4 left[FRAGMENTS];
            UNROLL for (int i = 0; i < FRAGMENTS; ++i) left[i] = AS_LEFT(s[i], d);
            TIMES_COLUMNS(acc, left, deep, d, DEPTH / 8, DEPTH)
        }
    }
    copies_wait(0);
    PUT_ROWS(dq, acc, first_row + warp * FRAGMENTS * 16, rows, QUERY_AT, depth, DEPTH, scale)
}

#else

__kernel void attend_dkv(DKV_OPERANDS) {
    START_DKV_OPERANDS
    __local uint4 ring[SLOTS * PAIR_CHUNKS];
    __local float logs_ring[SLOTS * STEP], delta_ring[SLOTS * STEP];
    const int item = get_local_id(0), warp = item / 32, lane = item % 32;
    FRAGMENT_MEMORY
    const int queries = z.queries, keys = z.keys, depth = z.depth, width = z.width, group = z.heads / z.kv_heads;
    const int tiles = (keys + ROWS - 1) / ROWS, id = get_group_id(0), pair = id / tiles, first_key = id % tiles * ROWS;
    const int b = pair / (int)z.kv_heads, head = pair % (int)z.kv_heads;
    const long length = LENGTH(b);
    const int shift = queries - (int)length, last_key = MIN(first_key + ROWS, (int)length) - 1;
    // Queries that meet a key of this group, the same for each head.
    const int begin = MAX(0L, first_key + shift - z.right);
    const int end = last_key < first_key ? 0 : (int)MIN((long)queries, MAX(0L, last_key + shift + z.left + 1));
    const int all_from = MAX(0L, last_key + shift - z.right);
    const int all_to = first_key + ROWS > length ? 0 : (int)MIN((long)queries, MAX(0L, first_key + shift + z.left + 1));
    const int per_head = (MAX(0, end - begin) + STEP - 1) / STEP, blocks = per_head * group;
    const float factor = scale * LOG2_E;
    const int left = MIN(z.left, FAR), right = MIN(z.right, FAR);
#define KEY_AT(row) ((INDEX)pair * keys + (row))

    // The head and the first query of the block that is fetched next, and of the one that is worked on.
    int fetch_head = head * group, fetch_from = begin, now_head = fetch_head, now_from = begin;
#define ON(of_head, from)            \
    if ((from += STEP) >= end) {     \
        from = begin;                \
        ++of_head;                   \
    }
#define FETCH_PAIR(n)                                                                                             \
    if ((n) < blocks) {                                                                                           \
        __local uint4 *pair_tile = ring + next_slot * PAIR_CHUNKS;                                                \
        const INDEX above = ((INDEX)b * (INDEX)z.heads + fetch_head) * queries;                                   \
        FETCH(pair_tile, q + above * depth, fetch_from, STEP, end - 1, depth, DEPTH)                              \
        FETCH(pair_tile + DEPTH_CHUNKS, dy + above * width, fetch_from, STEP, end - 1, width, WIDTH)              \
        for (int i = 0; i < (2 * STEP + 32 * WARPS - 1) / (32 * WARPS); ++i) {                                    \
            const int number = (item + i * 32 * WARPS) % STEP, at = next_slot * STEP + number;                    \
            const INDEX from = above + MIN(fetch_from + number, end - 1);                                         \
            if (item + i * 32 * WARPS < STEP) copy4(logs_ring + at, lse + from);                                  \
            else if (item + i * 32 * WARPS < 2 * STEP) copy4(delta_ring + at, delta + from);                      \
        }                                                                                                         \
        ON(fetch_head, fetch_from)                                                                                \
    }
    int slot = 0, next_slot = 0;
    UNROLL for (int n = 0; n < SLOTS - 1; ++n) {
        FETCH_PAIR(n)
        copies_commit();
        ++next_slot;
    }

    uint4 key[DEPTH / 16][FRAGMENTS], value[WIDTH / 16][FRAGMENTS];
    ACC4 of_k[FRAGMENTS][DEPTH / 8], of_v[FRAGMENTS][WIDTH / 8];
    ZERO(of_k, FRAGMENTS, DEPTH / 8)
    ZERO(of_v, FRAGMENTS, WIDTH / 8)
    UNROLL for (int i = 0; i < FRAGMENTS; ++i) {
        const int row = first_key + (warp * FRAGMENTS + i) * 16 + lane / 4;
        const int one = MAX(0, MIN(row, last_key)), other = MAX(0, MIN(row + 8, last_key));
        UNROLL for (int d = 0; d < DEPTH / 16; ++d)
            key[d][i] = LEFT_OF(k + KEY_AT(one) * depth, k + KEY_AT(other) * depth, d, depth);
        UNROLL for (int d = 0; d < WIDTH / 16; ++d)
            value[d][i] = LEFT_OF(v + KEY_AT(one) * width, v + KEY_AT(other) * width, d, width);
    }

    for (int n = 0; n < blocks; ++n) {
        TURN(FETCH_PAIR(n + SLOTS - 1))
        __local const float *logs = logs_ring + slot * STEP, *deltas = delta_ring + slot * STEP;
        NEXT_SLOT
        ACC4 s[FRAGMENTS][STEP / 8], dp[FRAGMENTS][STEP / 8];
        ZERO(s, FRAGMENTS, STEP / 8)
        ZERO(dp, FRAGMENTS, STEP / 8)
        UNROLL for (int d = 0; d < DEPTH / 16; ++d) TIMES_ROWS(s, key[d], deep, d, STEP / 8, DEPTH)
        UNROLL for (int d = 0; d < WIDTH / 16; ++d) TIMES_ROWS(dp, value[d], broad, d, STEP / 8, WIDTH)
        const bool edge = now_from < all_from || now_from + STEP > MIN(all_to, end);
        UNROLL for (int i = 0; i < FRAGMENTS; ++i)
            UNROLL for (int j = 0; j < STEP / 8; ++j) {
                float own[4], slopes[4];
                vstore4(s[i][j], 0, own);
                vstore4(dp[i][j], 0, slopes);
                UNROLL for (int e = 0; e < 4; ++e) {
                    const int number = 8 * j + 2 * (lane % 4) + e % 2, t = now_from + number;
                    const int row = first_key + (warp * FRAGMENTS + i) * 16 + lane / 4 + e / 2 * 8, at = row + shift;
                    const bool seen =
                        !edge || (row <= last_key && t < end && t >= at - right && t <= at + left);
                    const float own_log = logs[number], minus_lse = own_log == -INFINITY ? own_log : -own_log * LOG2_E;
#ifdef EXTRAS
                    float slope = 1, bent = 0, dropped = 1;
                    if (seen) {
                        bent = bent_score(own[e], mask, alibi, b, now_head, t, row, t - shift, scale, softcap, z, &slope);
                        dropped = factor_of(b, now_head, t, row, kept, z);
                    }
                    const float p = seen ? power_at(bent, 1, minus_lse) : 0;
                    own[e] = p * dropped;
                    slopes[e] = p == 0 ? 0 : p * (slopes[e] * dropped - deltas[number]) * slope;
#else
                    own[e] = seen ? power_at(own[e], factor, minus_lse) : 0;
                    slopes[e] = own[e] * (slopes[e] - deltas[number]);
#endif
                }
                s[i][j] = vload4(0, own);
                dp[i][j] = vload4(0, slopes);
            }
        UNROLL for (int d = 0; d < STEP / 16; ++d) {
            uint4 left[FRAGMENTS];
            UNROLL for (int i = 0; i < FRAGMENTS; ++i) left[i] = AS_LEFT(s[i], d);
            TIMES_COLUMNS(of_v, left, broad, d, WIDTH / 8, WIDTH)
        }
        UNROLL for (int d = 0; d < STEP / 16; ++d) {
            uint4 left[FRAGMENTS];
            UNROLL for (int i = 0; i < FRAGMENTS; ++i) left[i] = AS_LEFT(dp[i], d);
            TIMES_COLUMNS(of_k, left, deep, d, DEPTH / 8, DEPTH)
        }
        ON(now_head, now_from)
    }
    copies_wait(0);
    PUT_ROWS(dk, of_k, first_key + warp * FRAGMENTS * 16, keys, KEY_AT, depth, DEPTH, scale)
    PUT_ROWS(dv, of_v, first_key + warp * FRAGMENTS * 16, keys, KEY_AT, width, WIDTH, 1.0f)
}

#endif
