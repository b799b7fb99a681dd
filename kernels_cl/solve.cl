// Triangular solves in place: t x = b with x (batch, rows, columns), of any strides.
//
// Method    the host goes through t in blocks [first, last) of its diagonal and leaves what is beside them to matmul.cl.
//           A block is substituted column by column of x, one item each.
// Numerics  products and sums in float (double for f64); rows in the order of substitution.
#include "types.clh"

typedef struct {
    long batch, columns, first, last, upper, unit;
    long t_batch, t_row, t_column, x_batch, x_row, x_column;
} System;

__kernel void substitute(IN(T, t), OUT(T, x), const System s) {
    START(t);
    START(x);
    const long item = get_global_id(0), matrix = item / s.columns;
    if (matrix >= s.batch) return;
    t += matrix * s.t_batch;
    x += matrix * s.x_batch + item % s.columns * s.x_column;
    const INDEX t_row = s.t_row, t_column = s.t_column, x_row = s.x_row, count = s.last - s.first;
    const INDEX begin = s.upper ? s.last - 1 : s.first, step = s.upper ? -1 : 1;
    for (INDEX k = 0; k < count; ++k) {
        const INDEX i = begin + k * step;
        ACC sum = x[i * x_row];
        for (INDEX j = begin; j != i; j += step) sum = MAC(-t[i * t_row + j * t_column], x[j * x_row], sum);
        x[i * x_row] = s.unit ? sum : sum / t[i * (t_row + t_column)];
    }
}

// bad[matrix] = 1 + the first zero on the diagonal, for matrices (batch, n, n).
__kernel void find_zero(IN(T, t), OUT(int, bad), const long batch, const long n) {
    START(t);
    START(bad);
    const INDEX matrix = get_global_id(0);
    if (matrix >= (INDEX)batch) return;
    t += (long)matrix * n * n;
    int found = 0;
    for (INDEX i = n - 1; i >= 0; --i)
        if (t[i * ((INDEX)n + 1)] == 0) found = i + 1;
    bad[matrix] = found;
}

// Rows k and pivots[k] of x (batch, n, columns) change places, k ascending, or descending if `back`; one item a column.
__kernel void swap_rows(OUT(T, x), IN(int, pivots), const long batch, const long n, const long columns,
                        const long back) {
    START(x);
    START(pivots);
    const long item = get_global_id(0), matrix = item / columns;
    if (matrix >= batch) return;
    x += matrix * n * columns + item % columns;
    pivots += matrix * n;
    for (long k = 0; k < n; ++k) {
        const long i = back ? n - 1 - k : k, row = pivots[i];
        const T held = x[i * columns];
        x[i * columns] = x[row * columns];
        x[row * columns] = held;
    }
}
