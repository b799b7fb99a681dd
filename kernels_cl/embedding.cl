// Rows of a table by index, and the gradient of the table.
//
// Method    look_up: an item per element; hold_rows: one per place. sum_rows: an item per element of the table looks through all indices.
// Numerics  sums run in the order of the indices.
//
// Defined by the launch:  DTYPE   of the table
#include "types.clh"

// What the row of a place is multiplied by: most / (norm + 1e-7) where the norm of `kind`, 0 for the largest, is beyond.
__kernel void hold_rows(IN(T, w), IN(long, indices), OUT(ACC, by), const ACC most, const long count, const long width,
                        const long kind) {
    START(w);
    START(indices);
    START(by);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    w += (INDEX)indices[i] * (INDEX)width;
    ACC norm = 0;
    for (INDEX j = 0; j < (INDEX)width; ++j) {
        const ACC size = fabs((ACC)LOAD(w, j));
        norm = kind == 0 ? (size > norm || isnan(size) ? size : norm) : norm + (kind == 1 ? size : size * size);
    }
    if (kind == 2) norm = sqrt(norm);
    by[i] = norm > most ? most / (norm + (ACC)1e-7) : (ACC)1;
}

__kernel void look_up(IN(T, w), IN(long, indices), IN(ACC, by), OUT(T, y), const long count, const long width,
                      const long held) {
    START(w);
    START(indices);
    START(by);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX place = i / (INDEX)width;
    const ACC v = LOAD(w, (INDEX)indices[place] * (INDEX)width + (i - place * (INDEX)width));
    STORE(y, i, held ? v * by[place] : v);
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
