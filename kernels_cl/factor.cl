// LU with partial pivoting and Cholesky of dense row-major matrices (batch, n, n), in place.
//
// Method    the host goes through the columns in panels [first, last) and leaves what is right of them to matmul.cl. A
//           panel is factored column by column by one work-group per matrix, or by one item if GROUP is 1.
// Numerics  products and sums in float (double for f64), columns in order; the first largest number of a column is its
//           pivot. A matrix with a number that is not finite becomes NaN throughout, and swaps nothing.
//
// Defined by the launch:  GROUP;  PANEL_lu or PANEL_cholesky for a panel;  PART  0 all of a matrix, 1 what is on and
//                         below its diagonal, 2 on and above
#include "types.clh"
#include "rows.clh"

#ifdef PART
#if PART == 1
#define READ(row, column) ((row) >= (column))
#elif PART == 2
#define READ(row, column) ((row) <= (column))
#else
#define READ(row, column) true
#endif

// unknown[matrix] = 1 where a number that is read is not finite; all writers agree.
__kernel void find_unknown(IN(T, a), OUT(int, unknown), const long count, const long n) {
    START(a);
    START(unknown);
    const INDEX i = get_global_id(0), N = n;
    if (i < (INDEX)count && READ(i / N % N, i % N) && !isfinite(a[i])) unknown[i / (N * N)] = 1;
}

__kernel void forget_unknown(OUT(T, a), IN(int, unknown), const long count, const long n) {
    START(a);
    START(unknown);
    const INDEX i = get_global_id(0);
    if (i < (INDEX)count && unknown[i / ((INDEX)n * (INDEX)n)]) a[i] = NAN;
}
#endif

#if GROUP > 1
#define SYNC barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)
#else
#define SYNC
#endif

#define ENTER                               \
    START(a);                               \
    START(bad);                             \
    const INDEX matrix = ROW, N = n;        \
    if (matrix >= (INDEX)batch) return;     \
    a += (long)matrix * n * n;              \
    if (bad[matrix]) return;

#ifdef PANEL_lu
// bad[matrix] = 1 + the first column whose pivot is 0.
__kernel void panel(OUT(T, a), OUT(int, pivots), OUT(int, bad), const long batch, const long n, const long first,
                    const long last) {
#if GROUP > 1
    __local ACC sizes[GROUP];
    __local INDEX places[GROUP];
#endif
    START(pivots);
    ENTER
    pivots += (long)matrix * n;
    for (INDEX k = first; k < (INDEX)last; ++k) {
        ACC size = -1;
        INDEX row = k;
        ALONG(i, k, N) {
            const ACC own = fabs(a[i * N + k]);
            if (own > size) {
                size = own;
                row = i;
            }
        }
#if GROUP > 1
        sizes[ITEM] = size;
        places[ITEM] = row;
        for (int other = GROUP / 2; other > 0; other /= 2) {
            barrier(CLK_LOCAL_MEM_FENCE);
            if (ITEM < other) {
                const ACC theirs = sizes[ITEM + other];
                if (theirs > sizes[ITEM] || (theirs == sizes[ITEM] && places[ITEM + other] < places[ITEM])) {
                    sizes[ITEM] = theirs;
                    places[ITEM] = places[ITEM + other];
                }
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        row = places[0];
#endif
        const ACC pivot = a[row * N + k];
        SYNC;
        if (ITEM == 0) pivots[k] = row;
        if (pivot == 0) {
            if (ITEM == 0) bad[matrix] = k + 1;
            return;
        }
        ALONG(j, 0, N) {
            const T held = a[k * N + j];
            a[k * N + j] = a[row * N + j];
            a[row * N + j] = held;
        }
        SYNC;
        ALONG(i, k + 1, N) {
            const ACC share = a[i * N + k] / pivot;
            a[i * N + k] = share;
            for (INDEX j = k + 1; j < (INDEX)last; ++j) a[i * N + j] = MAC(-share, a[k * N + j], a[i * N + j]);
        }
        SYNC;
    }
}
#endif

#ifdef PANEL_cholesky
// Element (i, j) of the lower factor lies at i * down + j * across. bad[matrix] = 1 + the first column without a root.
__kernel void panel(OUT(T, a), OUT(int, bad), const long batch, const long n, const long first, const long last,
                    const long down, const long across) {
    ENTER
    const INDEX D = down, A = across;
    for (INDEX k = first; k < (INDEX)last; ++k) {
        const ACC square = a[k * (D + A)];
        SYNC;
        if (square <= 0) {
            if (ITEM == 0) bad[matrix] = k + 1;
            return;
        }
        const ACC root = sqrt(square);
        ALONG(i, k, N) a[i * D + k * A] = i == k ? root : a[i * D + k * A] / root;
        SYNC;
        ALONG(i, k + 1, N) {
            const ACC own = a[i * D + k * A];
            const INDEX end = i + 1 < (INDEX)last ? i + 1 : (INDEX)last;
            for (INDEX j = k + 1; j < end; ++j) a[i * D + j * A] = MAC(-own, a[j * D + k * A], a[i * D + j * A]);
        }
        SYNC;
    }
}
#endif
