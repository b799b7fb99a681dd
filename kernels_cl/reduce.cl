// reduce_sum, reduce_mean, reduce_max and the count of maxima: y[o] = merge over j of x[o, j], any axes, any strides.
//
// Method    kept axes are numbered by o, reduced ones by j. GROUP items of a work-group share one result (GROUP > 1,
//           reduced axis contiguous), or one item makes it alone (GROUP 1: neighbours read neighbouring columns). Long
//           reductions with few results are cut into SHARES whose partial results are reduced again: no atomics.
// Numerics  an item adds blocks of 256 terms and then the blocks, so the rounding error grows with the square root of
//           the length at most; means divide the sum once; max propagates NaN.
//
// Defined by the launch:  INTO   the dtype of y: partial results of 16-bit floats are f32
#include "types.clh"
#include "rows.clh"

#ifdef SPREAD  // the gradient of max: each maximum's share of dy

#include "each.clh"

__kernel void spread(ANY(T, dy), ANY(T, x), ANY(T, largest), ANY(ACC, count), ANY(T, dx), const Walk walk) {
    START(dy);
    START(x);
    START(largest);
    START(count);
    START(dx);
    EACH(k, i) {
        const ACC chosen = LOAD(x, AT(1, i)) == LOAD(largest, AT(2, i)) ? 1 : 0;
        STORE(dx, AT(4, i), LOAD(dy, AT(0, i)) * chosen / count[AT(3, i)]);
    }
}

#else

typedef struct {
    long results, count, share;  // share: the j's of one share
    long kept[KEPT], kept_stride[KEPT];
    long shape[REDUCED], stride[REDUCED];
} Reduction;

#define BLOCK 256
#define RESULT CAT(storage_, INTO)

#if defined(REDUCE_sum)
#define START_VALUE 0
#define TERM(v) (v)
#define MERGE(a, b) ((a) + (b))
#define MERGE_GROUP(v) GROUP_SUM(v)
#elif defined(REDUCE_count)
#define START_VALUE 0
#define TERM(v) ((v) == wanted ? (ACC)1 : (ACC)0)
#define MERGE(a, b) ((a) + (b))
#define MERGE_GROUP(v) GROUP_SUM(v)
#else
#define START_VALUE (-INFINITY)
#define TERM(v) (v)
#define MERGE(a, b) nan_max(a, b)
#define MERGE_GROUP(v) GROUP_MAX(v)
#endif

// y is (SHARES, results).
__kernel void reduce(IN(T, x),
#ifdef REDUCE_count
                     IN(T, largest),
#endif
                     OUT(RESULT, y), const Reduction r, const ACC divisor) {
    START(x);
    START(y);
    const INDEX task = ROW, item = ITEM;
    const INDEX results = r.results, share = task / results, o = task - share * results;
    if (share >= SHARES) return;
    GROUP_MEMORY
    INDEX at = 0, rest = o;
#pragma unroll
    for (int d = KEPT - 1; d >= 0; --d) {
        const INDEX up = rest / (INDEX)r.kept[d];
        at += (rest - up * (INDEX)r.kept[d]) * (INDEX)r.kept_stride[d];
        rest = up;
    }
    x += at;
#ifdef REDUCE_count
    START(largest);
    const ACC wanted = LOAD(largest, o);
#endif
    const INDEX first = share * (INDEX)r.share;
    const INDEX end = first + (INDEX)r.share < (INDEX)r.count ? first + (INDEX)r.share : (INDEX)r.count;
    ACC total = START_VALUE;
    for (INDEX block = first; block < end; block += BLOCK * GROUP) {
        const INDEX block_end = block + BLOCK * GROUP < end ? block + BLOCK * GROUP : end;
        ACC part = START_VALUE;
        ALONG(j, block, block_end) {
#if REDUCED == 1
            const INDEX place = j * (INDEX)r.stride[0];
#else
            INDEX place = 0, left = j;
#pragma unroll
            for (int d = REDUCED - 1; d >= 0; --d) {
                const INDEX up = left / (INDEX)r.shape[d];
                place += (left - up * (INDEX)r.shape[d]) * (INDEX)r.stride[d];
                left = up;
            }
#endif
            part = MERGE(part, TERM(LOAD(x, place)));
        }
        total = MERGE(total, part);
    }
    total = MERGE_GROUP(total);
    if (item == 0) CAT(store_, INTO)(y, share * results + o, total / divisor);
}

#endif
