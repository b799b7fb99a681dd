// Dense matrices in place: triangular solves, LU with partial pivoting, Cholesky; what the ops over them share.
//
// Method    recursive halves (Toledo 1997; Gustavson 1997), so that nearly all work is gemm; blocks of kBlock rows or
//           columns at the bottom run in registers and L1. Rows lie in scratch, padded to whole vectors.
// Numerics  no block is ever inverted: substitution, hence the componentwise bounds of Higham (2002), theorems 8.5, 9.3
//           and 10.3. Zeros of a triangle are not read, so a NaN spreads no further than the formula says.
// Threads   gemm and columns of right sides; cut by shape, so bits do not depend on the number of threads.
#pragma once
#include "gemm/gemm.h"

namespace tw::TW_ISA {

constexpr int64_t kBlock = 32;

// What a factorisation answers: the first column without a usable pivot, or one of these.
constexpr int64_t kRegular = -1;
constexpr int64_t kNoMemory = -2;

// The length of a row of n in scratch: whole vectors and an odd number of cache lines, so that the rows of a column do
// not share cache sets.
template <class T>
constexpr int64_t padded(int64_t n) {
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    return ((n + line - 1) / line | 1) * line;
}

// x <- t^-1 x for a lower triangular t of n rows, of which nothing above the diagonal is read. x has n rows of m
// neighbours; strides of t and the rows of x may be negative, which makes an upper triangle a lower one.
bool solve_lower(int64_t n, int64_t m, const Matrix<float>& t, bool unit, float* x, int64_t x_row);
bool solve_lower(int64_t n, int64_t m, const Matrix<double>& t, bool unit, double* x, int64_t x_row);

// The same for an upper triangular t.
template <class T>
TW_INLINE bool solve_upper(int64_t n, int64_t m, const Matrix<T>& t, bool unit, T* x, int64_t x_row) {
    const Matrix<T> turned = {t.data + (n - 1) * (t.row + t.col), -t.row, -t.col};
    return solve_lower(n, m, turned, unit, x + (n - 1) * x_row, -x_row);
}

// a <- L and U with P a = L U: the unit diagonal of L is not stored, and step k swapped rows k and pivots[k] >= k.
// Rows are `row` >= padded(n) apart.
int64_t factor_lu(int64_t n, float* a, int64_t row, int32_t* pivots);
int64_t factor_lu(int64_t n, double* a, int64_t row, int32_t* pivots);

// The upper triangle of a <- U with a = U^T U; what is below the diagonal is scratch. Rows are `row` >= padded(n) apart.
int64_t factor_cholesky(int64_t n, float* a, int64_t row);
int64_t factor_cholesky(int64_t n, double* a, int64_t row);

// c -= a b, m x n over k; the rows of c have neighbours.
bool subtract_product(int64_t m, int64_t n, int64_t k, const Matrix<float>& a, const Matrix<float>& b, float* c,
                      int64_t c_row);
bool subtract_product(int64_t m, int64_t n, int64_t k, const Matrix<double>& a, const Matrix<double>& b, double* c,
                      int64_t c_row);

// Rows k and pivots[k] of a change places, k = 0, 1, ... (backward: n - 1, ..., 1, 0), each of `columns` numbers.
void swap_rows(float* a, int64_t row, int64_t columns, const int32_t* pivots, int64_t n, bool backward = false);
void swap_rows(double* a, int64_t row, int64_t columns, const int32_t* pivots, int64_t n, bool backward = false);

// to <- from, rows x columns, any strides.
void move_matrix(const Matrix<float>& from, int64_t rows, int64_t columns, float* to, int64_t to_row, int64_t to_col);
void move_matrix(const Matrix<double>& from, int64_t rows, int64_t columns, double* to, int64_t to_row, int64_t to_col);

}  // namespace tw::TW_ISA
