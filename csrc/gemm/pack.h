// Copies blocks of strided matrices into panels. Panel of B: [kc][NR], zero beyond the last column.
// Panel of A: MR rows of kc where A runs along k, [kc][MR] where it runs along m: both are straight copies.
#pragma once
#include "gemm/gemm.h"

namespace tw::TW_ISA {
namespace {

// Rows [k0, k0+kc) of columns [n0, n0+n) of B as [kc][NR].
template <class T>
void pack_panel(const Matrix<T>& b, int64_t k0, int64_t kc, int64_t n0, int64_t n, T* panel) {
    constexpr int NR = Blocking<T>::NR;
    constexpr int L = kLanes<T>;
    const T* src = b.data + k0 * b.row + n0 * b.col;
    if (b.col == 1) {
        for (int64_t k = 0; k < kc; ++k, src += b.row, panel += NR)
            for (int64_t j = 0; j < NR; j += L)
                store(panel + j, j + L <= n ? load(src + j) : load_n(src + j, n > j ? n - j : 0));
        return;
    }
    const int64_t k_tiles = b.row == 1 ? kc / L * L : 0;
    for (int64_t j = 0; j < NR; j += L) {
        const int64_t columns = n - j < L ? (n > j ? n - j : 0) : L;
        int64_t k = 0;
        if (columns == L)
            for (; k < k_tiles; k += L) transpose_tile(src + j * b.col + k, b.col, panel + k * NR + j, NR);
        for (; k < kc; ++k) store(panel + k * NR + j, load_strided(src + k * b.row + j * b.col, b.col, columns));
    }
}

// Rows [m0, m0+m) of columns [k0, k0+kc) of A, m <= kMR; the tile then reads it with the strides of packed_a below.
template <class T>
void pack_rows(const Matrix<T>& a, int64_t m0, int m, int64_t k0, int64_t kc, T* panel) {
    const T* src = a.data + m0 * a.row + k0 * a.col;
    if (a.row == 1) {
        for (int64_t k = 0; k < kc; ++k, src += a.col)
            for (int i = 0; i < m; ++i) panel[k * kMR + i] = src[i];
        return;
    }
    constexpr int L = kLanes<T>;
    for (int i = 0; i < m; ++i, src += a.row, panel += kc) {
        int64_t k = 0;
        if (a.col == 1)
            for (; k + L <= kc; k += L) store(panel + k, load(src + k));
        for (; k < kc; ++k) panel[k] = src[k * a.col];
    }
}

}  // namespace
}  // namespace tw::TW_ISA
