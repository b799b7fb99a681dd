// attention in 16 bits on matrix instructions: y = softmax(scale q k^T + mask) v without scores in memory.
//
//     attend            y and the logarithm of the sum of the powers, of all keys or of one of `shares` parts of them
//     attend_together   y and that logarithm from those of the shares
//
// Method    FlashAttention-2 (Dao, 2023). A warp has 16 FRAGMENTS rows; its scores, powers and results are fragments.
//           Tiles of KEYS rows of k and v, in turn, pass through a ring of SLOTS tiles that is filled in the background.
//           Keys that no row of a group sees are not read; only blocks at the edge of what rows see ask which they are.
// Numerics  products exact, sums in float, a maximum that follows the scores within 2^8. Powers are rounded to 16 bits before they meet v, their own
//           sum is not.
//
// Defined by the launch:  KEYS, SLOTS;  attention_matrix.clh
//                         Q_ASIDE   q is read again and again, in the order of fragments, from memory beside the first cache
//                         PARTIAL   y and lse are those of shares, in ACC
#define FRAGMENTS_N (MAX(KEYS, WIDTH) / 8)
#include "attention_matrix.clh"

#ifdef PARTIAL
#define RESULT ACC
#define PUT(p, i, v) (p)[i] = (v)
#define PUT2(p, i, v, w) *(__global float2 *)((p) + (i)) = (float2)(v, w)
#else
#define RESULT T
#define PUT(p, i, v) STORE(p, i, v)
#define PUT2(p, i, v, w) STORE2(p, i, v, w)
#endif

// One phase: its tile has arrived for all items, who are done with the one before, whose slot is filled anew.
#define TURN(fetch)                                  \
    copies_wait(SLOTS - 2);                          \
    barrier(CLK_LOCAL_MEM_FENCE);                    \
    fetch;                                           \
    copies_commit();                                 \
    __local const uint4 *tile = ring + slot * TILE_CHUNKS; \
    slot = slot + 1 == SLOTS ? 0 : slot + 1;         \
    next_slot = next_slot + 1 == SLOTS ? 0 : next_slot + 1;

// Phase p is tile p / 2 of k, or of v if p is odd.
#define FETCH_PHASE(p, odd)                                                                                     \
    if ((p) / 2 < blocks) {                                                                                     \
        const int fetch_first = begin + (p) / 2 * KEYS;                                                         \
        __local uint4 *fetch_tile = ring + next_slot * TILE_CHUNKS;                                             \
        if (odd)                                                                                                \
            FETCH(fetch_tile, v, fetch_first, KEYS, end - 1, width, WIDTH)                                      \
        else                                                                                                    \
            FETCH(fetch_tile, k, fetch_first, KEYS, end - 1, depth, DEPTH)                                      \
    }

// An operand that this item has put aside itself; it is to be read anew, not kept in registers.
#if defined(NVIDIA) && NVIDIA >= 80
inline uint4 kept16(__global const uint4 *from) {
    uint4 r;
    ASM volatile("ld.global.ca.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.s0), "=r"(r.s1), "=r"(r.s2), "=r"(r.s3) : "l"(from));
    return r;
}
#else
inline uint4 kept16(__global const uint4 *from) { return *from; }
#endif

#define TILE_CHUNKS (KEYS * MAX(DEPTH, WIDTH) / 8)

// The powers of one row of 16, in components X and Y of its fragments.
#define POWERS_OF_ROW(i, e, X, Y)                                                                      \
    {                                                                                                  \
        float highest = top[i][e];                                                                     \
        UNROLL for (int j = 0; j < KEYS / 8; ++j) highest = fmax(highest, fmax(s[i][j].X, s[i][j].Y)); \
        QUAD(highest, LARGER)                                                                          \
        if (highest > top[i][e] + slack) {                                                             \
            const float shrink = power_of_two((top[i][e] - highest) * factor);                         \
            top[i][e] = highest;                                                                       \
            sum[i][e] *= shrink;                                                                       \
            UNROLL for (int j = 0; j < WIDTH / 8; ++j) {                                               \
                acc[i][j].X *= shrink;                                                                 \
                acc[i][j].Y *= shrink;                                                                 \
            }                                                                                          \
        }                                                                                              \
        const float base = top[i][e] == -INFINITY ? 0 : top[i][e] * factor;                            \
        float own = 0;                                                                                 \
        UNROLL for (int j = 0; j < KEYS / 8; ++j) {                                                    \
            s[i][j].X = power_of_two(fma(s[i][j].X, factor, -base));                                   \
            s[i][j].Y = power_of_two(fma(s[i][j].Y, factor, -base));                                   \
            own += s[i][j].X + s[i][j].Y;                                                              \
        }                                                                                              \
        sum[i][e] += own;                                                                              \
    }

__kernel void attend(OPERANDS, IN(T, sinks), OUT(RESULT, y), OUT(ACC, lse), ANY(uint4, aside), const long shares, SETTINGS) {
    START_OPERANDS
    START(sinks);
    START(y);
    START(lse);
    __local uint4 ring[SLOTS * TILE_CHUNKS];
    const int item = get_local_id(0), warp = item / 32, lane = item % 32;
    FRAGMENT_MEMORY
    const int queries = z.queries, depth = z.depth, width = z.width;
    const int group = z.heads / z.kv_heads, rows = queries * group, tiles = (rows + ROWS - 1) / ROWS;
    const int id = get_group_id(0) / (uint)shares, share = get_group_id(0) % (uint)shares, pair = id / tiles;
    const int first_row = (tiles - 1 - id % tiles) * ROWS;  // of causal ones, the longest come first
    const int b = pair / (int)z.kv_heads, head = pair % (int)z.kv_heads;
    k += (INDEX)pair * (INDEX)z.keys * depth;
    v += (INDEX)pair * (INDEX)z.keys * width;

    // What the first and the last row see, and which keys all of them see.
    const long length = LENGTH(b);
    const int first_place = first_row / group + (int)length - queries;
    const int last_place = (MIN(first_row + ROWS, rows) - 1) / group + (int)length - queries;
    const int seen_from = MAX(0L, first_place - z.left), seen_to = MIN(length, MAX(0L, last_place + z.right + 1));
    const int all_from = MAX(0L, last_place - z.left), all_to = MIN(length, MAX(0L, first_place + z.right + 1));
    const int whole = (MAX(0, seen_to - seen_from) + KEYS - 1) / KEYS, part = (whole + (int)shares - 1) / (int)shares;
    const int begin = seen_from + share * part * KEYS, end = MIN(seen_to, begin + part * KEYS);
    const int blocks = (MAX(0, end - begin) + KEYS - 1) / KEYS;

    // The rows of this item: what they see ends or begins at their places.
#define LOWEST(place) (int)MAX(0L, (place) - z.left)
#define HIGHEST(place) (int)MIN((long)end, MAX(0L, (place) + z.right + 1))
    int place[FRAGMENTS][2];
#ifdef EXTRAS
    int heads[FRAGMENTS][2];
#endif
    float top[FRAGMENTS][2], sum[FRAGMENTS][2];
    ACC4 acc[FRAGMENTS][WIDTH / 8];
#ifdef Q_ASIDE
    aside += ((INDEX)(pair * tiles + first_row / ROWS) * WARPS + warp) * (DEPTH / 16 * FRAGMENTS * 32) + lane;
    __global const uint4 *own_q = aside;
#else
    uint4 query[DEPTH / 16][FRAGMENTS];
#endif
    const uint sign = scale < 0 ? 0x80008000u : 0;
    UNROLL for (int i = 0; i < FRAGMENTS; ++i) {
        const int row = first_row + (warp * FRAGMENTS + i) * 16 + lane / 4;
        UNROLL for (int e = 0; e < 2; ++e) {
            const int own = MIN(row + 8 * e, rows - 1);
            place[i][e] = own / group + (int)length - queries;
            top[i][e] = -INFINITY;
            sum[i][e] = 0;
#ifdef EXTRAS
            heads[i][e] = head * group + own % group;
            if (z.sinks && share == 0) top[i][e] = LOAD(sinks, heads[i][e]) * LOG2_E;
#endif
        }
        UNROLL for (int j = 0; j < WIDTH / 8; ++j) acc[i][j] = 0;
        __global const T *one = q + QUERY_AT(MIN(row, rows - 1)) * depth;
        __global const T *other = q + QUERY_AT(MIN(row + 8, rows - 1)) * depth;
#ifdef Q_ASIDE
        UNROLL for (int d = 0; d < DEPTH / 16; ++d)
            aside[(d * FRAGMENTS + i) * 32] = LEFT_OF(one, other, d, depth) ^ sign;
#else
        UNROLL for (int d = 0; d < DEPTH / 16; ++d) query[d][i] = LEFT_OF(one, other, d, depth) ^ sign;
#endif
    }
    // Powers may reach 2^8 before what was summed is scaled anew, but not where a draw makes them larger yet.
#ifdef EXTRAS
    const float factor = 1, slack = 0;
#else
    const float factor = fabs(scale) * LOG2_E, slack = MIN(8 / factor, 1e30f);
#endif

    int slot = 0, next_slot = 0;
    UNROLL for (int p = 0; p < SLOTS - 1; ++p) {
        FETCH_PHASE(p, p % 2)
        copies_commit();
        ++next_slot;
    }
    for (int n = 0; n < blocks; ++n) {
        const int first = begin + n * KEYS;
        ACC4 s[FRAGMENTS][KEYS / 8];
        {
            TURN(FETCH_PHASE(2 * n + SLOTS - 1, (SLOTS - 1) % 2))
            UNROLL for (int i = 0; i < FRAGMENTS; ++i)
                UNROLL for (int j = 0; j < KEYS / 8; ++j) s[i][j] = 0;
            UNROLL for (int d = 0; d < DEPTH / 16; ++d) {
#ifdef Q_ASIDE
                uint4 left[FRAGMENTS];
                UNROLL for (int i = 0; i < FRAGMENTS; ++i) left[i] = kept16(own_q + (d * FRAGMENTS + i) * 32);
                TIMES_ROWS(s, left, tile, d, KEYS / 8, DEPTH)
#else
                TIMES_ROWS(s, query[d], tile, d, KEYS / 8, DEPTH)
#endif
            }
        }
#ifdef EXTRAS
        UNROLL for (int i = 0; i < FRAGMENTS; ++i)
            UNROLL for (int j = 0; j < KEYS / 8; ++j) {
                float own[4], slope;
                vstore4(s[i][j], 0, own);
                UNROLL for (int e = 0; e < 4; ++e) {
                    const int key = first + 8 * j + 2 * (lane % 4) + e % 2;
                    const int at = place[i][e / 2], t = at - (int)length + queries;
                    own[e] = key < LOWEST(at) || key >= HIGHEST(at)
                                 ? -INFINITY
                                 : bent_score(own[e], mask, alibi, b, heads[i][e / 2], t, key, at, fabs(scale), softcap,
                                              z, &slope);
                }
                s[i][j] = vload4(0, own);
            }
#else
        if (first < all_from || first + KEYS > MIN(all_to, end))
            UNROLL for (int i = 0; i < FRAGMENTS; ++i)
                UNROLL for (int j = 0; j < KEYS / 8; ++j) {
                    const int key = first + 8 * j + 2 * (lane % 4);
                    const int low = LOWEST(place[i][0]), high = HIGHEST(place[i][0]);
                    const int other_low = LOWEST(place[i][1]), other_high = HIGHEST(place[i][1]);
                    if (key < low || key >= high) s[i][j].s0 = -INFINITY;
                    if (key + 1 < low || key + 1 >= high) s[i][j].s1 = -INFINITY;
                    if (key < other_low || key >= other_high) s[i][j].s2 = -INFINITY;
                    if (key + 1 < other_low || key + 1 >= other_high) s[i][j].s3 = -INFINITY;
                }
#endif
        UNROLL for (int i = 0; i < FRAGMENTS; ++i) {
            POWERS_OF_ROW(i, 0, s0, s1)
            POWERS_OF_ROW(i, 1, s2, s3)
        }
#ifdef EXTRAS
        if (z.limit)
            UNROLL for (int i = 0; i < FRAGMENTS; ++i)
                UNROLL for (int j = 0; j < KEYS / 8; ++j) {
                    const int key = first + 8 * j + 2 * (lane % 4), late = (int)length - queries;
                    s[i][j].s0 *= factor_of(b, heads[i][0], place[i][0] - late, key, kept, z);
                    s[i][j].s1 *= factor_of(b, heads[i][0], place[i][0] - late, key + 1, kept, z);
                    s[i][j].s2 *= factor_of(b, heads[i][1], place[i][1] - late, key, kept, z);
                    s[i][j].s3 *= factor_of(b, heads[i][1], place[i][1] - late, key + 1, kept, z);
                }
#endif
        {
            TURN(FETCH_PHASE(2 * n + SLOTS, SLOTS % 2))
            UNROLL for (int d = 0; d < KEYS / 16; ++d) {
                uint4 weights[FRAGMENTS];
                UNROLL for (int i = 0; i < FRAGMENTS; ++i) weights[i] = AS_LEFT(s[i], d);
                TIMES_COLUMNS(acc, weights, tile, d, WIDTH / 8, WIDTH)
            }
        }
    }
    copies_wait(0);

    UNROLL for (int i = 0; i < FRAGMENTS; ++i)
        UNROLL for (int e = 0; e < 2; ++e) {
            const int row = first_row + (warp * FRAGMENTS + i) * 16 + lane / 4 + 8 * e;
            const INDEX at = QUERY_AT(MIN(row, rows - 1));
            const INDEX of_share = (INDEX)share * (INDEX)(get_num_groups(0) / (uint)shares / tiles) * rows + at;
            float total = sum[i][e];
            QUAD(total, PLUS_)
            const float base = top[i][e] == -INFINITY ? 0 : top[i][e] * factor;
#ifdef EXTRAS
            if (z.sinks && share == 0) total += power_of_two(LOAD(sinks, heads[i][e]) * LOG2_E - base);
#endif
            const float inverse = 1 / (total == 0 ? 1 : total);
            if (row < rows) {
                if (lane % 4 == 0) lse[of_share] = top[i][e] == -INFINITY ? top[i][e] : base * LN_2 + log(total);
                UNROLL for (int j = 0; j < WIDTH / 8; ++j) {
                    const int column = 8 * j + 2 * (lane % 4);
                    const INDEX to = of_share * width + column;
                    const float one = (e ? acc[i][j].s2 : acc[i][j].s0) * inverse;
                    const float other = (e ? acc[i][j].s3 : acc[i][j].s1) * inverse;
#ifdef COPIED
                    if (column < width) PUT2(y, to, one, other);
#else
                    if (column < width) PUT(y, to, one);
                    if (column + 1 < width) PUT(y, to + 1, other);
#endif
                }
            }
        }
}

#ifdef PARTIAL
// An item per element of y; rows = B H T.
__kernel void attend_together(IN(ACC, parts), IN(ACC, logs), OUT(T, y), OUT(ACC, lse), const long shares, const long rows,
                              const long width) {
    START(parts);
    START(logs);
    START(y);
    START(lse);
    const INDEX at = get_global_id(0), row = at / (INDEX)width;
    if (row >= (INDEX)rows) return;
    float top = -INFINITY, sum = 0, acc = 0;
    for (int n = 0; n < shares; ++n) top = fmax(top, logs[n * (INDEX)rows + row]);
    const float base = top == -INFINITY ? 0 : top;
    for (int n = 0; n < shares; ++n) {
        const float power = exp(logs[n * (INDEX)rows + row] - base);
        sum += power;
        acc = fma(power, parts[n * (INDEX)(rows * width) + at], acc);
    }
    STORE(y, at, acc / (sum == 0 ? 1 : sum));
    if (at == row * (INDEX)width) lse[row] = top == -INFINITY ? top : top + log(sum);
}
#endif
