// LU with partial pivoting: halves of the columns, panels of kBlock columns at the bottom.
//
// Method    a panel is turned, so that its columns lie contiguous: a column takes the updates of all former ones in
//           registers, and the search for its pivot rides along.
#include "core/memory.h"
#include "core/parallel.h"
#include "linalg/linalg.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// The largest |.| per lane, and where it was seen first.
template <class T>
struct Largest {
    Vec<T> size;
    Mask<T> at;
};

template <class T>
TW_INLINE void look(Largest<T>& best, Vec<T> v, Mask<T> at) {
    const Vec<T> size = abs(v);
    const Mask<T> larger = size > best.size;
    best.size = select(larger, size, best.size);
    best.at = larger ? at : best.at;
}

template <class T>
int64_t first_of(const Largest<T>& best) {
    typedef Elem<Mask<T>> Lane;
    const Mask<T> largest = best.size == splat<T>(reduce_max(best.size));
    const Mask<T> never = splat<Lane>(__INT32_MAX__);
    return -reduce_max(largest ? -best.at : -never);
}

// Rows [first, last) of y minus u times those of x, in whole aligned vectors: what one step stores, the next one loads.
template <class T>
TW_INLINE void subtract_rows(T* y, const T* x, T u, int64_t first, int64_t last) {
    typedef Elem<Mask<T>> Lane;
    constexpr int64_t L = kLanes<T>;
    for (int64_t i = first / L * L; i < last; i += L) {
        const Vec<T> former = load(y + i);
        Vec<T> v = former - load(x + i) * splat<T>(u);
        if (i < first || i + L > last) {
            const Mask<T> row = iota<Lane>() + static_cast<Lane>(i);
            v = select((row >= static_cast<Lane>(first)) & (row < static_cast<Lane>(last)), v, former);
        }
        store(y + i, v);
    }
}

// Rows [i, i + NV vectors) of a column: minus the former columns times their numbers in this column's top.
template <class T, int NV>
TW_INLINE void update_rows(T* column, const T* former, int64_t step, int64_t k, int64_t i, Largest<T>& best) {
    typedef Elem<Mask<T>> Lane;
    constexpr int L = kLanes<T>;
    Vec<T> acc[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[v] = load(column + i + v * L);
    const T* from = former + i;
    for (int64_t t = 0; t < k; ++t, from += step) {
        const Vec<T> u = splat<T>(column[t]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[v] -= load(from + v * L) * u;
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
        store(column + i + v * L, acc[v]);
        look<T>(best, acc[v], iota<Lane>() + static_cast<Lane>(i + v * L));
    }
}

// The largest number of a finished column from row k on.
template <class T>
TW_INLINE Largest<T> largest_of(const T* column, int64_t k, int64_t m) {
    typedef Elem<Mask<T>> Lane;
    Largest<T> best = {splat<T>(-1), Mask<T>{}};
    for (int64_t i = k; i < m; i += kLanes<T>) look<T>(best, load(column + i), iota<Lane>() + static_cast<Lane>(i));
    return best;
}

// Column k <- its final numbers, from all former columns; the search for its pivot rides along.
template <class T>
TW_INLINE Largest<T> finish_column(int64_t k, int64_t m, T* panel, int64_t step) {
    constexpr int L = kLanes<T>;
    T* const column = panel + k * step;
    for (int64_t t = 0; t + 1 < k; ++t) subtract_rows(column, panel + t * step, column[t], t + 1, k);
    Largest<T> best = {splat<T>(-1), Mask<T>{}};
    int64_t i = k;
    for (; i + 4 * L <= m; i += 4 * L) update_rows<T, 4>(column, panel, step, k, i, best);
    for (; i < m; i += L) update_rows<T, 1>(column, panel, step, k, i, best);
    return best;
}

// Turned panel: n columns of m rows, `step` apart, with a vector of zeros below each. A low one lies in L1, and each step
// updates all columns to come; a high one is read once per column. Either way an element meets the same terms in turn.
template <class T>
int64_t factor_panel(int64_t m, int64_t n, T* panel, int64_t step, int32_t* pivots) {
    constexpr int L = kLanes<T>;
    const bool low = m * n * static_cast<int64_t>(sizeof(T)) <= 16 * 1024;
    for (int64_t k = 0; k < n; ++k) {
        T* const column = panel + k * step;
        const int64_t pivot = first_of<T>(low ? largest_of(column, k, m) : finish_column(k, m, panel, step));
        pivots[k] = static_cast<int32_t>(pivot < k || pivot >= m ? k : pivot);  // neither where all are NaN
        const T value = column[pivots[k]];
        if (value == 0) return k;
        if (pivots[k] != k)
            for (int64_t j = 0; j < n; ++j) {
                T* const row = panel + j * step;
                const T held = row[k];
                row[k] = row[pivots[k]];
                row[pivots[k]] = held;
            }
        const T inverse = 1 / value;
        const bool exact = inverse - inverse == 0;  // else the pivot is too small to be turned over
        for (int64_t i = k + 1; i < m; i += L) {
            const Vec<T> v = load(column + i);
            store(column + i, exact ? v * splat<T>(inverse) : v / splat<T>(value));
        }
        for (int64_t j = k + 1; low && j < n; ++j)
            subtract_rows(panel + j * step, column, panel[j * step + k], k + 1, m);
    }
    return kRegular;
}

template <class T>
int64_t factor_columns(int64_t m, int64_t n, T* a, int64_t row, int32_t* pivots) {
    if (n <= kBlock) {
        const int64_t step = padded<T>(m + kLanes<T>);
        Scratch scratch(static_cast<size_t>(n * step) * sizeof(T));
        T* const panel = scratch.template as<T>();
        if (!panel) return kNoMemory;
        move_matrix({a, row, 1}, m, n, panel, 1, step);
        for (int64_t j = 0; j < n; ++j)
            for (int64_t i = m; i < m + kLanes<T>; ++i) panel[j * step + i] = 0;
        const int64_t answer = factor_panel(m, n, panel, step, pivots);
        move_matrix({panel, 1, step}, m, n, a, row, 1);
        return answer;
    }
    const int64_t half = (n / 2 + kBlock - 1) / kBlock * kBlock, rest = n - half;
    T *const right = a + half, *const below = a + half * row, *const last = below + half;
    if (const int64_t answer = factor_columns(m, half, a, row, pivots); answer != kRegular) return answer;
    swap_rows(right, row, rest, pivots, half);
    if (!solve_lower(half, rest, {a, row, 1}, true, right, row) ||
        !subtract_product(m - half, rest, half, {below, row, 1}, {right, row, 1}, last, row))
        return kNoMemory;
    if (const int64_t answer = factor_columns(m - half, rest, last, row, pivots + half); answer != kRegular)
        return answer < 0 ? answer : answer + half;
    swap_rows(below, row, half, pivots + half, rest);
    for (int64_t k = half; k < n; ++k) pivots[k] += static_cast<int32_t>(half);
    return kRegular;
}

}  // namespace

int64_t factor_lu(int64_t n, float* a, int64_t row, int32_t* pivots) { return factor_columns(n, n, a, row, pivots); }
int64_t factor_lu(int64_t n, double* a, int64_t row, int32_t* pivots) { return factor_columns(n, n, a, row, pivots); }

}  // namespace tw::TW_ISA
