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
    int at = 0;
    for (int i = 1; i < kLanes<T>; ++i)
        if (best.size[i] > best.size[at] || (best.size[i] == best.size[at] && best.at[i] < best.at[at])) at = i;
    return best.at[at];
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

// Turned panel: n columns of m rows, `step` apart, with a vector of zeros below each.
template <class T>
int64_t factor_panel(int64_t m, int64_t n, T* panel, int64_t step, int32_t* pivots) {
    constexpr int L = kLanes<T>;
    for (int64_t k = 0; k < n; ++k) {
        T* const column = panel + k * step;
        for (int64_t t = 0; t + 1 < k; ++t) {
            const T u = column[t];
            const T* from = panel + t * step;
            each_vector<T>(k - t - 1, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
                T* const at = column + t + 1 + i;
                store_n(at, load_n(at, count) - load_n(from + t + 1 + i, count) * splat<T>(u), count);
            });
        }
        Largest<T> best = {splat<T>(-1), Mask<T>{}};
        int64_t i = k;
        for (; i + 4 * L <= m; i += 4 * L) update_rows<T, 4>(column, panel, step, k, i, best);
        for (; i < m; i += L) update_rows<T, 1>(column, panel, step, k, i, best);
        const int64_t pivot = first_of<T>(best);  // no row of the panel where all of them are NaN
        pivots[k] = static_cast<int32_t>(pivot < k || pivot >= m ? k : pivot);
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
        for (i = k + 1; i < m; i += L) {
            const Vec<T> v = load(column + i);
            store(column + i, exact ? v * splat<T>(inverse) : v / splat<T>(value));
        }
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
