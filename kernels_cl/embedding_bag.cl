// Bags of rows of a table, and the gradients of the table and of the weights.
//
// Method    bag_rows: an item per column of a bag. bag_dw: an item per element of the table looks through all bags.
//           bag_dweights: an item per place.
// Numerics  running sums in the order of the places; of equal numbers the first is the largest, a NaN before all.
//
// Defined by the launch:  DTYPE   of the table
#include "types.clh"

typedef struct {
    long items, columns, places, bags, padding, weighted, mode;  // mode: 0 sum, 1 mean, 2 max
    long held, by_frequency;  // held: rows are multiplied by numbers per place
} Sizes;

#define OPERANDS IN(T, w), IN(long, indices), IN(long, offsets), IN(T, weights), IN(ACC, by)
#define START_OPERANDS START(w); START(indices); START(offsets); START(weights); START(by);
#define END_OF(b) ((b) + 1 < (INDEX)z.bags ? (INDEX)offsets[(b) + 1] : (INDEX)z.places)
#define HELD(i) (z.held ? by[i] : (ACC)1)
#define WEIGHT(i) (z.weighted ? (ACC)LOAD(weights, i) : (ACC)1)

// 1, or 1 over the places of a bag that count.
inline ACC share_of(__global const long *indices, const INDEX begin, const INDEX end, const Sizes z) {
    INDEX n = 0;
    if (z.mode != 1) return 1;
    for (INDEX i = begin; i < end; ++i) n += indices[i] != z.padding;
    return n ? (ACC)1 / n : (ACC)1;
}

// The place of the largest number of a column in a bag, or -1.
inline INDEX largest(__global const T *w, __global const long *indices, __global const ACC *by, const INDEX begin,
                     const INDEX end, const INDEX columns, const INDEX column, const Sizes z) {
    INDEX best = -1;
    ACC top = 0;
    for (INDEX i = begin; i < end; ++i) {
        if (indices[i] == z.padding) continue;
        const ACC v = LOAD(w, (INDEX)indices[i] * columns + column) * HELD(i);
        if (best < 0 || v > top || (isnan(v) && !isnan(top))) best = i, top = v;
    }
    return best;
}

__kernel void bag_rows(OPERANDS, OUT(T, y), const Sizes z) {
    START_OPERANDS
    START(y);
    const INDEX item = get_global_id(0), columns = z.columns;
    if (item >= (INDEX)z.items) return;
    const INDEX b = item / columns, column = item - b * columns, begin = offsets[b], end = END_OF(b);
    if (z.mode == 2) {
        const INDEX best = largest(w, indices, by, begin, end, columns, column, z);
        STORE(y, item, best < 0 ? (ACC)0 : LOAD(w, (INDEX)indices[best] * columns + column) * HELD(best));
        return;
    }
    ACC sum = 0;
    for (INDEX i = begin; i < end; ++i)
        if (indices[i] != z.padding)
            sum = MAC(LOAD(w, (INDEX)indices[i] * columns + column) * HELD(i), WEIGHT(i), sum);
    STORE(y, item, sum * share_of(indices, begin, end, z));
}

__kernel void bag_dw(OPERANDS, IN(T, dy), OUT(T, dw), const Sizes z) {
    START_OPERANDS
    START(dy);
    START(dw);
    const INDEX item = get_global_id(0), columns = z.columns;
    if (item >= (INDEX)z.items) return;
    const INDEX row = item / columns, column = item - row * columns;
    ACC sum = 0;
    INDEX times = 0;
    if (row != z.padding)
        for (INDEX b = 0; b < (INDEX)z.bags; ++b) {
            const INDEX begin = offsets[b], end = END_OF(b);
            const ACC slope = LOAD(dy, b * columns + column);
            if (z.mode == 2) {
                const INDEX best = largest(w, indices, by, begin, end, columns, column, z);
                if (best >= 0 && indices[best] == row) sum += slope;
                continue;
            }
            const ACC share = share_of(indices, begin, end, z);
            for (INDEX i = begin; i < end; ++i)
                if (indices[i] == row) {
                    sum = MAC(slope, WEIGHT(i) * share, sum);
                    ++times;
                }
        }
    STORE(dw, item, z.by_frequency && times > 1 ? sum * ((ACC)1 / times) : sum);
}

__kernel void bag_dweights(OPERANDS, IN(T, dy), OUT(T, to), const Sizes z) {
    START_OPERANDS
    START(dy);
    START(to);
    const INDEX i = get_global_id(0), columns = z.columns;
    if (i >= (INDEX)z.items) return;
    INDEX b = (INDEX)z.bags - 1;
    while (offsets[b] > i) --b;
    ACC sum = 0;
    if (indices[i] != z.padding)
        for (INDEX j = 0; j < columns; ++j)
            sum = MAC((ACC)LOAD(w, (INDEX)indices[i] * columns + j), (ACC)LOAD(dy, b * columns + j), sum);
    STORE(to, i, sum);
}
