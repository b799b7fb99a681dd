// matmul and linear: y(m, n) = act(sum over k of a(m, k) b(k, n) + bias(n)), any strides, broadcast batches.
//
// Method    gemm.clh with plain loaders; transposed operands only change strides. A long K with few tiles is cut into
//           SHARES that write partial sums, added in order by add_shares: no atomics, same bits every time.
// Numerics  products and sums in float (double for f64, int for bytes), one rounding at the store; order of the sum: k
//           ascending within a share, then shares. Bytes: exact modulo 2^32, like the zero points,
//               sum (a - za) (b - zb) = sum a b - zb sum a - za sum b + K za zb.
//
// Defined by the launch:  BATCH    batch axes, at least 1;  SHARES;  PAIRS    n is even and y begins at an even place
//                         B_DTYPE  of b, where it differs;  ZEROS    zero points of a and b
//                         SUM_ONLY; A_SUMS or B_SUMS    for add_shares and line_sums alone
#include "types.clh"
#include "warp.clh"
#if REALS
#include "activation.clh"
#else
#define ACTIVATE(v) (v)
#endif

#define TB CAT(storage_, B_DTYPE)
#if SHARES > 1 || defined(PARTIAL)
#define RESULT ACC
#define PUT(i, v) y[i] = (v)
#elif BYTES
#define RESULT int
#define PUT(i, v) y[i] = (v)
#define PUT2(i, v, w) store2_i32(y, i, v, w)
#else
#define RESULT T
#define PUT(i, v) STORE(y, i, v)
#define PUT2(i, v, w) STORE2(y, i, v, w)
#endif

typedef struct {
    long m, n, k, share;  // share: the k's of one share
    long a_m, a_k, b_k, b_n;
    long a_zero_m, b_zero_n;
#ifdef BATCH
    long shape[BATCH], a_batch[BATCH], b_batch[BATCH], a_zero_batch[BATCH], b_zero_batch[BATCH];
#endif
} Product;

#if defined(SUM_ONLY)

__kernel void add_shares(IN(ACC, partial),
#ifdef BIAS
                         IN(T, bias),
#endif
#ifdef ADDEND
                         IN(T, addend),
#endif
#ifdef SCALED
                         const ACC alpha, const ACC beta,
#endif
                         OUT(T, y), const long count, const long n, const long shares) {
    START(partial);
#ifdef BIAS
    START(bias);
#endif
#ifdef ADDEND
    START(addend);
#endif
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    ACC sum = partial[i];
    for (INDEX s = 1; s < (INDEX)shares; ++s) sum += partial[s * (INDEX)count + i];
#ifdef BIAS
    sum += LOAD(bias, i % (INDEX)n);
#endif
#ifdef SCALED
    sum *= alpha;
#endif
#ifdef ADDEND
    sum += beta * LOAD(addend, i);
#endif
    STORE(y, i, ACTIVATE(sum));
}

#elif defined(A_SUMS) || defined(B_SUMS)

// The sums along k of every row of a (A_SUMS) or column of b, product after product.
__kernel void line_sums(IN(T, x), OUT(int, sums), const long count, const Product p) {
    START(x);
    START(sums);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
#ifdef A_SUMS
    const INDEX lines = p.m, step = p.a_k;
    INDEX rest = i / lines, at = i % lines * (INDEX)p.a_m;
    for (int d = BATCH - 1; d >= 0; rest /= (INDEX)p.shape[d--]) at += rest % (INDEX)p.shape[d] * (INDEX)p.a_batch[d];
#else
    const INDEX lines = p.n, step = p.b_k;
    INDEX rest = i / lines, at = i % lines * (INDEX)p.b_n;
    for (int d = BATCH - 1; d >= 0; rest /= (INDEX)p.shape[d--]) at += rest % (INDEX)p.shape[d] * (INDEX)p.b_batch[d];
#endif
    int sum = 0;
    for (INDEX k = 0; k < (INDEX)p.k; ++k) sum += x[at + k * step];
    sums[i] = sum;
}

#else

#ifdef CORE_S
__attribute__((reqd_work_group_size(TILE_ITEMS, 1, 1)))
#endif
__kernel void matmul(IN(T, a), IN(TB, b),
#ifdef BIAS
                     IN(T, bias),
#endif
#ifdef ZEROS
                     IN(T, a_zeros), IN(TB, b_zeros), IN(int, a_sums), IN(int, b_sums),
#endif
                     OUT(RESULT, y), const Product p) {
    START(a);
    START(b);
#ifdef ZEROS
    START(a_zeros);
    START(b_zeros);
    START(a_sums);
    START(b_sums);
#endif
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
#ifdef ZEROS
        a_zeros += i * (INDEX)p.a_zero_batch[d];
        b_zeros += i * (INDEX)p.b_zero_batch[d];
#endif
    }
#ifdef ZEROS
    a_sums += batch * M;
    b_sums += batch * N;
#endif
    // Shares lie behind each other: (share, batch, m, n).
    y += ((long)share * (get_num_groups(0) / (tiles * SHARES)) + batch) * M * N;
    const INDEX a_m = p.a_m, a_k = p.a_k, b_k = p.b_k, b_n = p.b_n;

#define TILE (group - product * tiles)
#define N_ALL N
#define A_PLACE INDEX
#define A_AT(m) ((m) * a_m)
#define A_READ(place, k) LOAD(a, (place) + (k) * a_k)
#define A_SOURCE(m, k) (a + ((m) * a_m + (k) * a_k))
#define B_PLACE INDEX
#define B_AT(n) ((n) * b_n)
#define B_READ(place, k) CAT(load_, B_DTYPE)(b, (place) + (k) * b_k)
#define B_SOURCE(k, n) (b + ((k) * b_k + (n) * b_n))
#define B_ROW(n) (b_n == 1)
#define B_READ_ROW(place, k) CAT(row_, B_DTYPE)(b + (place) + (k) * b_k, LANES)
#define C_PLACE INDEX
#define C_AT(n) (n)
#if defined(ZEROS)
#define A_ZERO(m) a_zeros[(m) * (INDEX)p.a_zero_m]
#define B_ZERO(n) b_zeros[(n) * (INDEX)p.b_zero_n]
#define FINISH(m, n, v) ((v) - B_ZERO(n) * (a_sums[m] - (int)p.k * A_ZERO(m)) - A_ZERO(m) * b_sums[n])
#elif defined(BIAS)
#define FINISH(m, n, v) ACTIVATE((v) + LOAD(bias, n))
#else
#define FINISH(m, n, v) ACTIVATE(v)
#endif
#define C_WRITE(place, m, n, value) PUT((m) * N + (place), FINISH(m, n, value))
#ifdef PAIRS
#define C_WRITE_PAIR(place, m, n, v, w) PUT2((m) * N + (place), FINISH(m, n, v), FINISH(m, (n) + 1, w))
#endif
#include "gemm.clh"
}

#endif
