// Rows of a table by index, and the gradient of the table.
//
// Method    look_up: an item per element. sum_rows: an item per element of the table looks through all indices.
// Numerics  sums run in the order of the indices.
//
// Defined by the launch:  DTYPE   of the table
#include "types.clh"

__kernel void look_up(IN(T, w), IN(long, indices), OUT(T, y), const long count, const long width) {
    START(w);
    START(indices);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX place = i / (INDEX)width;
    STORE(y, i, LOAD(w, (INDEX)indices[place] * (INDEX)width + (i - place * (INDEX)width)));
}

__kernel void sum_rows(IN(T, dy), IN(long, indices), OUT(T, dw), const long count, const long width,
                       const long places, const long padding, const long by_frequency) {
    START(dy);
    START(indices);
    START(dw);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX row = i / (INDEX)width, column = i - row * (INDEX)width;
    ACC sum = 0;
    INDEX times = 0;
    for (INDEX k = 0; k < (INDEX)places; ++k)
        if (indices[k] == row && row != padding) {
            sum += LOAD(dy, k * (INDEX)width + column);
            ++times;
        }
    STORE(dw, i, by_frequency && times > 1 ? sum * ((ACC)1 / times) : sum);
}
