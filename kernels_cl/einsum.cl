// einsum: y(batch, m, n) = alpha * sum over k of a(batch, m, k) b(batch, k, n), every index standing for several axes.
//
// Method    gemm.clh with tables: what an index adds to an address is looked up, so no operand is copied or transposed.
// Numerics  products and sums in float (double for f64), k ascending; one multiplication by alpha.
#include "types.clh"
#include "warp.clh"

// offsets holds, behind each other: of a its m's, k's and batches; of b its n's, k's and batches; of y m's, n's, batches.
typedef struct {
    long m, n, k, batches;
} Sizes;

#ifdef CORE_S
__attribute__((reqd_work_group_size(TILE_ITEMS, 1, 1)))
#endif
__kernel void contract(IN(T, a), IN(T, b), OUT(T, y), IN(long, offsets), const ACC alpha, const Sizes sizes) {
    START(a);
    START(b);
    START(y);
    START(offsets);
    const INDEX M = sizes.m, N = sizes.n, K = sizes.k, batches = sizes.batches, K_FIRST = 0;
    const INDEX tiles = (M + TILE_M - 1) / TILE_M * ((N + TILE_N - 1) / TILE_N);
    const INDEX group = get_group_id(0), batch = group / tiles;
    __global const long *a_m = offsets, *a_k = a_m + M, *a_batch = a_k + K;
    __global const long *b_n = a_batch + batches, *b_k = b_n + N, *b_batch = b_k + K;
    __global const long *y_m = b_batch + batches, *y_n = y_m + M, *y_batch = y_n + N;
    a += a_batch[batch];
    b += b_batch[batch];
    y += y_batch[batch];

#define TILE (group - batch * tiles)
#define N_ALL N
#define A_PLACE INDEX
#define A_AT(m) ((INDEX)a_m[m])
#define A_READ(place, k) LOAD(a, (place) + (INDEX)a_k[k])
#define B_PLACE INDEX
#define B_AT(n) ((INDEX)b_n[n])
#define B_READ(place, k) LOAD(b, (place) + (INDEX)b_k[k])
#define C_PLACE INDEX
#define C_AT(n) ((INDEX)y_n[n])
#define C_WRITE(place, m, n, value) y[(INDEX)y_m[m] + (place)] = alpha * (value)
#include "gemm.clh"
}
