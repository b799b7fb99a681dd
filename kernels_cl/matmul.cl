// matmul and linear: y(m, n) = act(sum over k of a(m, k) b(k, n) + bias(n)), any strides, broadcast batches.
//
// Method    gemm.clh with plain loaders; transposed operands only change strides. A long K with few tiles is cut into
//           SHARES that write partial sums, added in order by add_shares: no atomics, same bits every time.
// Numerics  products and sums in float (double for f64); order of the sum: k ascending within a share, then shares.
#include "types.clh"
#include "activation.clh"

// Defined by the launch:  BATCH   batch axes, at least 1;  SHARES;  SUM_ONLY  for add_shares alone
#ifndef SUM_ONLY

typedef struct {
    long m, n, k, share;  // share: the k's of one share
    long a_m, a_k, b_k, b_n;
    long shape[BATCH], a_batch[BATCH], b_batch[BATCH];
} Product;

#ifdef CORE_S
__attribute__((reqd_work_group_size(TILE_M / REG_M * (TILE_N / REG_N), 1, 1)))
#endif
__kernel void matmul(IN(T, a), IN(T, b),
#ifdef BIAS
                     IN(T, bias),
#endif
                     OUT(ACC, y), const Product p) {
    START(a);
    START(b);
#ifdef BIAS
    START(bias);
#endif
    START(y);
    const INDEX M = p.m, N = p.n;
    const INDEX tiles = (M + TILE_M - 1) / TILE_M * ((N + TILE_N - 1) / TILE_N);
    const INDEX group = get_group_id(0), product = group / tiles;
    const INDEX share = product % SHARES, batch = product / SHARES;
    const INDEX K_FIRST = share * (INDEX)p.share;
    const INDEX K = K_FIRST + (INDEX)p.share < (INDEX)p.k ? K_FIRST + (INDEX)p.share : (INDEX)p.k;
    INDEX rest = batch;
#pragma unroll
    for (int d = BATCH - 1; d >= 0; --d) {
        const INDEX i = rest % (INDEX)p.shape[d];
        rest /= (INDEX)p.shape[d];
        a += i * (INDEX)p.a_batch[d];
        b += i * (INDEX)p.b_batch[d];
    }
    // Shares lie behind each other: (share, batch, m, n).
    y += ((long)share * (get_num_groups(0) / (tiles * SHARES)) + batch) * M * N;
    const INDEX a_m = p.a_m, a_k = p.a_k, b_k = p.b_k, b_n = p.b_n;

#define TILE (group - product * tiles)
#define N_ALL N
#define A_PLACE INDEX
#define A_AT(m) ((m) * a_m)
#define A_READ(place, k) LOAD(a, (place) + (k) * a_k)
#define B_PLACE INDEX
#define B_AT(n) ((n) * b_n)
#define B_READ(place, k) LOAD(b, (place) + (k) * b_k)
#define B_ROW(n) (b_n == 1)
#define B_READ_ROW(place, k) CAT(vload, LANES)(0, b + (place) + (k) * b_k)
#define C_PLACE INDEX
#define C_AT(n) (n)
#ifdef BIAS
#define C_WRITE(place, m, n, value) y[(m) * N + (place)] = ACTIVATE(value + LOAD(bias, n))
#else
#define C_WRITE(place, m, n, value) y[(m) * N + (place)] = ACTIVATE(value)
#endif
#include "gemm.clh"
}

#else

__kernel void add_shares(IN(ACC, partial),
#ifdef BIAS
                         IN(T, bias),
#endif
                         OUT(T, y), const long count, const long n, const long shares) {
    START(partial);
#ifdef BIAS
    START(bias);
#endif
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    ACC sum = partial[i];
    for (INDEX s = 1; s < (INDEX)shares; ++s) sum += partial[s * (INDEX)count + i];
#ifdef BIAS
    sum += LOAD(bias, i % (INDEX)n);
#endif
    STORE(y, i, ACTIVATE(sum));
}

#endif
