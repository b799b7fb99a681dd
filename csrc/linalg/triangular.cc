// Triangular solves, and the moves and updates that every factorisation needs.
#include "core/index.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "linalg/linalg.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// ---- moves ----------------------------------------------------------------------------------------------------------------

// to[j * to_row + i] = from[i * from_row + j]
template <class T>
void transpose_matrix(const T* from, int64_t from_row, int64_t rows, int64_t columns, T* to, int64_t to_row) {
    constexpr int64_t L = kLanes<T>;
    int64_t i = 0;
    for (; i + L <= rows; i += L) {
        int64_t j = 0;
        for (; j + L <= columns; j += L) transpose_tile(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
        for (; j < columns; ++j) store(to + j * to_row + i, load_strided(from + i * from_row + j, from_row, L));
    }
    for (; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) to[j * to_row + i] = from[i * from_row + j];
}

template <class T>
void move_any(const Matrix<T>& from, int64_t rows, int64_t columns, T* to, int64_t to_row, int64_t to_col) {
    if (columns == 1 && rows > 1) return move_any<T>({from.data, from.col, from.row}, 1, rows, to, to_col, to_row);
    if (to_col != 1 && to_row == 1) return move_any<T>({from.data, from.col, from.row}, columns, rows, to, to_col, 1);
    constexpr int64_t kRows = 64;  // to a chunk
    const auto chunk = [&](int64_t piece) {
        const int64_t first = piece * kRows, count = min_of(kRows, rows - first);
        const T* source = from.data + first * from.row;
        T* target = to + first * to_row;
        if (to_col == 1 && from.row == 1 && from.col != 1)
            return transpose_matrix(source, from.col, columns, count, target, to_row);
        for (int64_t i = 0; i < count; ++i)
            copy_row(target + i * to_row, to_col, source + i * from.row, from.col, columns);
    };
    if (rows * columns < int64_t{1} << 16) {
        for (int64_t piece = 0; piece < ceil_div(rows, kRows); ++piece) chunk(piece);
    } else {
        parallel(ceil_div(rows, kRows), chunk);
    }
}

template <class T>
void swap_two(T* a, T* b, int64_t n) {
    int64_t j = 0;
    for (; j + kLanes<T> <= n; j += kLanes<T>) {
        const Vec<T> held = load(a + j);
        store(a + j, load(b + j));
        store(b + j, held);
    }
    for (; j < n; ++j) {
        const T held = a[j];
        a[j] = b[j];
        b[j] = held;
    }
}

template <class T>
void swap_any(T* a, int64_t row, int64_t columns, const int32_t* pivots, int64_t n, bool backward) {
    constexpr int64_t kColumns = 256;  // a chunk of a row; its lines of all rows stay in L2
    const auto chunk = [&](int64_t piece) {
        T* const at = a + piece * kColumns;
        const int64_t count = min_of(kColumns, columns - piece * kColumns);
        for (int64_t step = 0; step < n; ++step) {
            const int64_t k = backward ? n - 1 - step : step;
            if (pivots[k] != k) swap_two(at + k * row, at + pivots[k] * row, count);
        }
    };
    if (n * columns < int64_t{1} << 15) {
        for (int64_t piece = 0; piece < ceil_div(columns, kColumns); ++piece) chunk(piece);
    } else {
        parallel(ceil_div(columns, kColumns), chunk);
    }
}

// ---- updates ----------------------------------------------------------------------------------------------------------------

template <class T>
void negate_matrix(const Matrix<T>& from, int64_t rows, int64_t columns, T* to) {
    const auto negate = [&](int64_t i) {
        T* const row = to + i * columns;
        each_vector<T>(columns, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
            put(row, 1, j, n, -take(from.data + i * from.row, from.col, j, n));
        });
    };
    if (from.col == 1) {
        for (int64_t i = 0; i < rows; ++i) negate(i);
        return;
    }
    move_any<T>(from, rows, columns, to, columns, 1);
    for (int64_t i = 0; i < rows * columns; ++i) to[i] = -to[i];
}

// The engine adds products: the smaller operand is negated on the way.
template <class T>
bool subtract(int64_t m, int64_t n, int64_t k, const Matrix<T>& a, const Matrix<T>& b, T* c, int64_t c_row) {
    const bool turn_a = m < n;
    Scratch scratch(static_cast<size_t>((turn_a ? m : n) * k + 1) * sizeof(T));
    T* const turned = scratch.template as<T>();
    if (!turned) return false;
    if (turn_a)
        negate_matrix(a, m, k, turned);
    else
        negate_matrix(b, k, n, turned);
    Gemm<T> g{};
    g.m = m, g.n = n, g.k = k;
    g.a = turn_a ? Matrix<T>{turned, k, 1} : a;
    g.b = turn_a ? b : Matrix<T>{turned, n, 1};
    g.c = c, g.c_row = c_row, g.c_col = 1;
    g.accumulate = true;
    return gemm(g);
}

// ---- substitution -----------------------------------------------------------------------------------------------------------

// Rows [i, i + R) of NV vectors of columns: what is known above, then the small triangle in registers.
template <class T, int R, int NV, bool Masked>
TW_INLINE void substitute_rows(int64_t i, const T* t, bool unit, T* x, int64_t x_row, int64_t n) {
    constexpr int L = kLanes<T>;
    const auto get = [=](const T* p, int v) __attribute__((always_inline)) {
        return Masked ? load_n(p + v * L, n - v * L) : load(p + v * L);
    };
    Vec<T> acc[R][NV];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] = get(x + (i + r) * x_row, v);
    const T* row = t + i * kBlock;
    for (int64_t j = 0; j < i; ++j) {
        Vec<T> known[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) known[v] = get(x + j * x_row, v);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[r][v] -= splat<T>(row[r * kBlock + j]) * known[v];
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int s = 0; s < r; ++s)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[r][v] -= splat<T>(row[r * kBlock + i + s]) * acc[s][v];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            if (!unit) acc[r][v] /= splat<T>(row[r * kBlock + i + r]);
            if (Masked)
                store_n(x + (i + r) * x_row + v * L, acc[r][v], n - v * L);
            else
                store(x + (i + r) * x_row + v * L, acc[r][v]);
        }
    }
}

template <class T, int NV, bool Masked>
void substitute_columns(int64_t rows, const T* t, bool unit, T* x, int64_t x_row, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) substitute_rows<T, 4, NV, Masked>(i, t, unit, x, x_row, n);
    for (; i < rows; ++i) substitute_rows<T, 1, NV, Masked>(i, t, unit, x, x_row, n);
}

// Columns of rows [i, i + count) of the triangle, next to the diagonal; beyond the last row they hold nothing of use.
template <class T>
TW_INLINE void diagonal_columns(const Matrix<T>& t, int64_t i, int64_t count, T* columns) {
    constexpr int64_t L = kLanes<T>;
    const T* const from = t.data + i * t.row + i;
    if (count == L) return transpose_tile(from, t.row, columns, L);
    for (int64_t c = 0; c < count; ++c)
        for (int64_t r = 0; r < L; ++r) columns[c * L + r] = r >= c && r < count ? from[r * t.row + c] : T(0);
}

// Columns below their pivots over these: what is then taken off waits for no division. False if a quotient nears the limits
// of the type, which solutions need not do. A wide division takes so long that the pivots are turned over instead.
template <class T>
TW_INLINE bool divide_columns(const T* columns, Vec<T> pivots, int64_t count, T* to) {
    constexpr int L = kLanes<T>;
    constexpr bool turns_over = kVectorRegisters >= 32;
    const Vec<T> least = splat<T>(0x1p-60), most = splat<T>(0x1p60), over = splat<T>(1) / pivots;
    Mask<T> strange{};
    if (turns_over) strange = (abs(over) > most) | (abs(over) < least);
#pragma GCC unroll 16
    for (int c = 0; c < L; ++c) {
        if (c >= count) break;
        const Vec<T> column = select(iota<T>() > splat<T>(c), load_aligned(columns + c * L), Vec<T>{});
        const Vec<T> part = turns_over ? column * splat<T>(over[c]) : column / splat<T>(pivots[c]);
        strange |= (abs(part) > most) | ((abs(part) < least) & (column != Vec<T>{}));
        store(to + c * L, part);
    }
    return !any(strange);
}

// One right side beside rows of neighbours, a vector of unknowns after the other: dot products with what is known, turned
// into the lanes of one vector, from which the columns next to the diagonal are then taken off one by one.
template <class T>
void substitute_one(int64_t n, const Matrix<T>& t, bool unit, T* x) {
    constexpr int L = kLanes<T>;
    alignas(kVecBytes) T sums[L * L], turned[L * L], columns[L * L];
    for (int64_t i = 0; i < n; i += L) {
        const int64_t count = min_of(L, n - i);
        const T* row[L];
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r) row[r] = t.data + (i + (r < count ? r : 0)) * t.row;
        diagonal_columns(t, i, count, columns);
        Vec<T> rest = count == L ? load(x + i) : load_n(x + i, count), found{};
        Vec<T> diagonal = splat<T>(1);
#pragma GCC unroll 16
        for (int c = 0; c < L; ++c)
            if (!unit && c < count) diagonal[c] = columns[c * L + c];
        if (i > 0) {
            Vec<T> sum[L]{};
            for (int64_t j = 0; j < i; j += L) {
                const Vec<T> known = load(x + j);
#pragma GCC unroll 16
                for (int r = 0; r < L; ++r) sum[r] += load(row[r] + j) * known;
            }
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r) store(sums + r * L, sum[r]);
            transpose_tile(sums, L, turned, L);
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r) rest -= load_aligned(turned + r * L);
        }
        const bool divides = !unit && !divide_columns(columns, diagonal, count, turned);
        const T* const off = unit || divides ? columns : turned;
#pragma GCC unroll 16
        for (int c = 0; c < L; ++c) {
            if (c >= count) break;
            if (divides) rest = select(iota<T>() == splat<T>(c), rest / diagonal, rest);
            found[c] = rest[c];
            rest -= load_aligned(off + c * L) * splat<T>(rest[c]);
        }
        if (!unit && !divides) found /= diagonal;
        count == L ? store(x + i, found) : store_n(x + i, found, count);
    }
}

// At most kBlock rows. The triangle is copied, so that its numbers are neighbours whatever its strides.
template <class T>
void substitute(int64_t rows, int64_t m, const Matrix<T>& from, bool unit, T* x, int64_t x_row) {
    if (m == 1 && from.col == 1 && x_row == 1) return substitute_one(rows, from, unit, x);
    constexpr int64_t step = 2 * kLanes<T>, kColumns = 32 * kLanes<T>;
    alignas(64) T t[kBlock * kBlock];
    for (int64_t i = 0; i < rows; ++i)
        copy_row(t + i * kBlock, 1, from.data + i * from.row, from.col, unit ? i : i + 1);
    if (m == 1) {
        T column[kBlock];
        copy_row(column, 1, x, x_row, rows);
        substitute_one<T>(rows, {t, kBlock, 1}, unit, column);
        return copy_row(x, x_row, column, 1, rows);
    }
    const auto chunk = [&](int64_t piece) {
        const int64_t end = min_of(m, (piece + 1) * kColumns);
        int64_t j = piece * kColumns;
        for (; j + step <= end; j += step) substitute_columns<T, 2, false>(rows, t, unit, x + j, x_row, step);
        for (; j < end; j += kLanes<T>)
            substitute_columns<T, 1, true>(rows, t, unit, x + j, x_row, min_of(kLanes<T>, end - j));
    };
    if (rows * rows * m < int64_t{1} << 17) {
        for (int64_t piece = 0; piece < ceil_div(m, kColumns); ++piece) chunk(piece);
    } else {
        parallel(ceil_div(m, kColumns), chunk);
    }
}

template <class T>
bool solve(int64_t n, int64_t m, const Matrix<T>& t, bool unit, T* x, int64_t x_row) {
    if (n <= kBlock) return substitute(n, m, t, unit, x, x_row), true;
    const int64_t half = ceil_div(ceil_div(n, 2), kBlock) * kBlock, rest = n - half;
    T* const below = x + half * x_row;
    if (!solve(half, m, t, unit, x, x_row)) return false;
    if (!subtract_product(rest, m, half, {t.data + half * t.row, t.row, t.col}, {x, x_row, 1}, below, x_row))
        return false;
    return solve(rest, m, Matrix<T>{t.data + half * (t.row + t.col), t.row, t.col}, unit, below, x_row);
}

}  // namespace

bool solve_lower(int64_t n, int64_t m, const Matrix<float>& t, bool unit, float* x, int64_t x_row) {
    return n == 0 || m == 0 || solve(n, m, t, unit, x, x_row);
}
bool solve_lower(int64_t n, int64_t m, const Matrix<double>& t, bool unit, double* x, int64_t x_row) {
    return n == 0 || m == 0 || solve(n, m, t, unit, x, x_row);
}

bool subtract_product(int64_t m, int64_t n, int64_t k, const Matrix<float>& a, const Matrix<float>& b, float* c,
                      int64_t c_row) {
    return subtract(m, n, k, a, b, c, c_row);
}
bool subtract_product(int64_t m, int64_t n, int64_t k, const Matrix<double>& a, const Matrix<double>& b, double* c,
                      int64_t c_row) {
    return subtract(m, n, k, a, b, c, c_row);
}

void swap_rows(float* a, int64_t row, int64_t columns, const int32_t* pivots, int64_t n, bool backward) {
    swap_any(a, row, columns, pivots, n, backward);
}
void swap_rows(double* a, int64_t row, int64_t columns, const int32_t* pivots, int64_t n, bool backward) {
    swap_any(a, row, columns, pivots, n, backward);
}

void move_matrix(const Matrix<float>& from, int64_t rows, int64_t columns, float* to, int64_t to_row, int64_t to_col) {
    move_any(from, rows, columns, to, to_row, to_col);
}
void move_matrix(const Matrix<double>& from, int64_t rows, int64_t columns, double* to, int64_t to_row,
                 int64_t to_col) {
    move_any(from, rows, columns, to, to_row, to_col);
}

}  // namespace tw::TW_ISA
