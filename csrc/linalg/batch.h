// What the ops over factorisations share: batches of matrices, the copy into scratch, and what is said of a bad one.
//
// Results are staged: they reach `out` when the last matrix of the batch is done, so that an error leaves it untouched.
#pragma once
#include "core/check.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/walk.h"
#include "linalg/linalg.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kSmallMatrix = int64_t{1} << 20;  // multiply-adds below which a batch is split by matrix

// The axes in front of the last `inner`.
inline View leading(const View& v, int inner) {
    View lead = v;
    lead.ndim = v.ndim > inner ? v.ndim - inner : 0;
    return lead;
}

template <class T>
inline Matrix<T> matrix_of(const View& v, const void* data) {
    return {static_cast<const T*>(data), v.stride[v.ndim - 2], v.stride[v.ndim - 1]};
}

inline int64_t side_of(const View& a) { return a.shape[a.ndim - 1]; }

// a (..., N, N).
inline Status want_square(const View& a, const char* name) {
    TW_TRY(want_real(a, name));
    TW_TRY(want_ndim(a, name, 2, kMaxDims));
    const int64_t n = side_of(a);
    if (a.shape[a.ndim - 2] != n)
        return fail(Status::shape, name, "%s has shape %s; want square matrices (..., N, N)", name, shape_text(a).text);
    if (n > INT32_MAX) return fail(Status::shape, name, "%s has N=%lld; want less than 2^31", name, (long long)n);
    return Status::ok;
}

// Runs one(i, at) for every matrix of a batch, at[k] being where matrix i of walked view k begins.
template <class One>
void each_matrix(const Walk& w, int64_t work, const One& one) {
    const int64_t batch = walk_rows(w) * w.row;
    const auto at_index = [&](int64_t i) {
        char* at[kMaxWalked];
        walk_seek(w, i / w.row, at);
        for (int k = 0; k < w.n; ++k) at[k] += i % w.row * w.stride[k] * w.size[k];
        one(i, static_cast<char* const*>(at));
    };
    if (batch > 1 && work < kSmallMatrix) {
        const int64_t group = kSmallMatrix / 16 / (work + 64) + 1;
        parallel((batch + group - 1) / group, [&](int64_t chunk) {
            const int64_t end = chunk * group + group < batch ? chunk * group + group : batch;
            for (int64_t i = chunk * group; i < end; ++i) at_index(i);
        });
    } else {
        for (int64_t i = 0; i < batch; ++i) at_index(i);
    }
}

// Whether row i of a has only finite numbers from column `from(i)` on.
template <class T, class From>
bool all_finite(const T* a, int64_t row, int64_t n, const From& from) {
    Vec<T> sum{};
    for (int64_t i = 0; i < n; ++i) {
        const int64_t first = from(i);
        each_vector<T>(n - first, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
            const Vec<T> v = load_n(a + i * row + first + j, lanes);
            sum += v - v;
        });
    }
    return reduce_add(sum) == 0;
}

// The first matrix without a usable pivot, and the column where that showed; the lowest of all threads.
struct FirstBad {
    int64_t matrix = INT64_MAX, column = 0;
    bool enough = true;
    int lock = 0;
};

inline void note_bad(FirstBad& bad, int64_t matrix, int64_t answer) {
    if (answer == kRegular) return;
    while (__atomic_exchange_n(&bad.lock, 1, __ATOMIC_ACQUIRE)) {
    }
    if (answer == kNoMemory) {
        bad.enough = false;
    } else if (matrix < bad.matrix) {
        bad.matrix = matrix;
        bad.column = answer;
    }
    __atomic_store_n(&bad.lock, 0, __ATOMIC_RELEASE);
}

inline Status no_memory() {
    return fail(Status::memory, "", "no memory for a copy of the matrices; want smaller operands");
}

// The error of a batch, if any. `lead` is its shape, `own` that of the matrices to blame, which may be broadcast to it;
// `what` and `want` speak of one matrix.
inline Status error_of(const FirstBad& bad, const View& lead, const View& own, const char* name, const char* what,
                       const char* want) {
    if (!bad.enough) return no_memory();
    if (bad.matrix == INT64_MAX) return Status::ok;
    const long long column = bad.column;
    if (own.ndim == 0) return fail(Status::singular, name, "%s has %s %lld; want %s", name, what, column, want);
    int64_t index[kMaxDims], rest = bad.matrix;
    const int skipped = lead.ndim - own.ndim;
    for (int d = lead.ndim - 1; d >= skipped; rest /= lead.shape[d], --d)
        index[d - skipped] = own.shape[d - skipped] == 1 ? 0 : rest % lead.shape[d];
    return fail(Status::singular, name, "%s has %s %lld of matrix %s; want %s", name, what, column,
                shape_text(own.ndim, index).text, want);
}

// Results of `count` matrices on their way to out, rows apart as scratch wants them.
template <class T>
struct Stage {
    Scratch scratch;
    T* data;
    int64_t rows, columns, row;
    Stage(int64_t count, int64_t rows_of_one, int64_t columns_of_one)
        : scratch(static_cast<size_t>(count * rows_of_one * row_of(rows_of_one, columns_of_one) + 1) * sizeof(T)),
          data(scratch.template as<T>()),
          rows(rows_of_one),
          columns(columns_of_one),
          row(row_of(rows_of_one, columns_of_one)) {}
    // A column is dense; a matrix of one element is still worked on in whole vectors.
    static int64_t row_of(int64_t rows_of_one, int64_t columns_of_one) {
        return columns_of_one == 1 && rows_of_one > 1 ? 1 : padded<T>(columns_of_one);
    }
    T* operator[](int64_t i) const { return data + i * rows * row; }
};

// Staged matrices to the last two axes of `out`.
template <class T>
void deliver_matrices(const Stage<T>& stage, const View& out) {
    const View lead = leading(out, 2);
    const View* views[] = {&lead};
    each_matrix(walk_over(views, 1, lead.ndim, lead.shape), stage.rows * stage.columns,
                [&](int64_t i, char* const* at) {
        move_matrix({stage[i], stage.row, 1}, stage.rows, stage.columns, reinterpret_cast<T*>(at[0]),
                    out.stride[out.ndim - 2], out.stride[out.ndim - 1]);
    });
}

// Staged columns to the last axis of `out`.
template <class T>
void deliver_vectors(const Stage<T>& stage, const View& out) {
    const View lead = leading(out, 1);
    const View* views[] = {&lead};
    each_matrix(walk_over(views, 1, lead.ndim, lead.shape), stage.rows, [&](int64_t i, char* const* at) {
        copy_row(reinterpret_cast<T*>(at[0]), out.stride[out.ndim - 1], stage[i], 1, stage.rows);
    });
}

template <class T>
void fill_matrix(T* a, int64_t row, int64_t rows, int64_t columns, T value) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) a[i * row + j] = value;
}

// What becomes of a matrix with a NaN or an infinity: nothing is known of its inverse.
template <class T>
constexpr T kUnknown = static_cast<T>(__builtin_nan(""));

// a <- its LU factors, or NaN throughout; the answer of factor_lu.
template <class T>
int64_t factor_or_unknown(int64_t n, T* a, int64_t row, int32_t* pivots) {
    if (all_finite(a, row, n, [](int64_t) { return int64_t{0}; })) return factor_lu(n, a, row, pivots);
    fill_matrix(a, row, n, n, kUnknown<T>);
    for (int64_t i = 0; i < n; ++i) pivots[i] = static_cast<int32_t>(i);
    return kRegular;
}

}  // namespace
}  // namespace tw::TW_ISA
