// Cholesky, a = U^T U: halves of the diagonal, blocks of kBlock at the bottom.
//
// Method    rows of U are contiguous where a row of a is, so the lower factor is that of a read across. A row takes the
//           updates of all former ones in registers.
#include "linalg/linalg.h"
#include "simd/roots.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// Vectors [j, j + NV) of row k: minus the former rows times their numbers in column k.
template <class T, int NV>
TW_INLINE void update_columns(T* a, int64_t row, int64_t k, int64_t j) {
    constexpr int L = kLanes<T>;
    Vec<T> acc[NV];
    T* const at = a + k * row + j;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[v] = load(at + v * L);
    for (int64_t t = 0; t < k; ++t) {
        const Vec<T> u = splat<T>(a[t * row + k]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[v] -= load(a + t * row + j + v * L) * u;
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(at + v * L, acc[v]);
}

// At most kBlock rows. Whole vectors: what they touch left of the diagonal or beyond column n is scratch.
template <class T>
int64_t factor_block(int64_t n, T* a, int64_t row) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t k = 0; k < n; ++k) {
        const int64_t first = k / L * L;
        int64_t j = first;
        for (; j + 4 * L <= n; j += 4 * L) update_columns<T, 4>(a, row, k, j);
        for (; j < n; j += L) update_columns<T, 1>(a, row, k, j);
        const T square = a[k * row + k];
        if (square <= 0) return k;
        const T root = sqrt(splat<T>(square))[0], inverse = 1 / root;
        for (j = first; j < n; j += L) store(a + k * row + j, load(a + k * row + j) * splat<T>(inverse));
        a[k * row + k] = root;
    }
    return kRegular;
}

// The upper triangle of c, n x n, minus u^T u over k rows of u: squares of kWhole on the diagonal are done whole.
template <class T>
bool subtract_square(int64_t n, int64_t k, const T* u, T* c, int64_t row) {
    constexpr int64_t kWhole = 2 * kBlock;
    const int64_t half = n <= kWhole ? n : (n / 2 + kBlock - 1) / kBlock * kBlock, rest = n - half;
    if (rest == 0) return subtract_product(n, n, k, {u, 1, row}, {u, row, 1}, c, row);
    return subtract_square(half, k, u, c, row) &&
           subtract_product(half, rest, k, {u, 1, row}, {u + half, row, 1}, c + half, row) &&
           subtract_square(rest, k, u + half, c + half * row + half, row);
}

template <class T>
int64_t factor(int64_t n, T* a, int64_t row) {
    if (n <= kBlock) return factor_block(n, a, row);
    const int64_t half = (n / 2 + kBlock - 1) / kBlock * kBlock, rest = n - half;
    T *const right = a + half, *const last = right + half * row;
    if (const int64_t answer = factor(half, a, row); answer != kRegular) return answer;
    if (!solve_lower(half, rest, {a, 1, row}, false, right, row) || !subtract_square(rest, half, right, last, row))
        return kNoMemory;
    const int64_t answer = factor(rest, last, row);
    return answer < 0 ? answer : answer + half;
}

}  // namespace

int64_t factor_cholesky(int64_t n, float* a, int64_t row) { return factor(n, a, row); }
int64_t factor_cholesky(int64_t n, double* a, int64_t row) { return factor(n, a, row); }

}  // namespace tw::TW_ISA
