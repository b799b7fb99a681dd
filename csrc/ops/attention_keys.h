// A few queries against many keys, which are read once, where they lie: scores, weighted values, and shares of keys joined.
// W is what is computed in, S what lies in memory.
#pragma once
#include "gemm/micro.h"
#include "ops/attention_softmax.h"

namespace tw::TW_ISA {
namespace {

// Keys or values one below the other, `row` numbers apart.
template <class S>
struct Rows {
    const S* data;
    int64_t row;
};

// k and v are read once, from memory, and one stream alone does not fill the way there: a share is read in some parts side
// by side, in which so many rows are fetched early.
constexpr int64_t kKeysAhead = 2, kValuesAhead = 4;
constexpr int64_t kSideBySide = 8, kFour = 4;  // parts of k for one query, and of v

template <class S>
TW_INLINE void fetch_rows(const Rows<S>& x, int64_t first, int64_t rows, int64_t n, int64_t columns) {
    for (int64_t r = first; r < min_of(first + rows, n); ++r)
        for (int64_t i = 0; i < columns; i += 64 / static_cast<int64_t>(sizeof(S)))
            __builtin_prefetch(x.data + r * x.row + i);
}

// Row j of each of `parts` parts of `each` rows.
template <class S>
TW_INLINE void fetch_parts(const Rows<S>& x, int64_t parts, int64_t each, int64_t j, int64_t columns) {
    for (int64_t i = 0; j < each && i < parts; ++i) fetch_rows(x, i * each + j, 1, parts * each, columns);
}

// scores[r][j] = key j times query r, for as many keys as fit a register tile at a time: one of each part.
template <int R, class W, class S>
TW_INLINE void score_rows(const Rows<S>& k, int64_t n, int64_t depth, const W* q, int64_t q_row, W* scores,
                          bool fetch) {
    constexpr int M = kSideBySide / R;
    const int64_t each = n / M;
    W sums[M * R];
    for (int64_t j = 0; j < each; ++j) {
        if (fetch) fetch_parts(k, M, each, j + kKeysAhead, depth);
        dots<W, M, R>(k.data + j * k.row, each * k.row, q, q_row, depth, sums);
        for (int i = 0; i < M; ++i)
            for (int r = 0; r < R; ++r) scores[r * kTileKeys + i * each + j] = sums[i * R + r];
    }
    for (int64_t j = M * each; j < n; ++j) {
        dots<W, 1, R>(k.data + j * k.row, k.row, q, q_row, depth, sums);
        for (int r = 0; r < R; ++r) scores[r * kTileKeys + j] = sums[r];
    }
}

template <class W, class S>
TW_INLINE Vec<W> part_of(const S* p, int64_t lanes) {
    return lanes == kLanes<W> ? load_as<W>(p) : load_as_n<W>(p, lanes);
}

// sums of R rows += four rows of v, weighted by weights `step` apart, which stay in registers along the columns.
template <int R, class W, class S>
TW_INLINE void add_four(const Rows<S>& v, int64_t columns, const W* weights, int64_t step, W* sums, int64_t sums_row) {
    Vec<W> w[R][4];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) w[r][k] = splat(weights[r * kTileKeys + k * step]);
    each_vector<W>(columns, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        Vec<W> x[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) x[k] = part_of<W>(v.data + k * v.row + i, lanes);
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
            Vec<W> sum = load(sums + r * sums_row + i);
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) sum += w[r][k] * x[k];
            store(sums + r * sums_row + i, sum);
        }
    });
}

// sums[r] += the n rows of v, weighted; four at a time, one of each part, so that sums are fetched a quarter as often.
template <class W, class S>
TW_INLINE void add_rows(const Rows<S>& v, int64_t n, int64_t columns, const W* weights, int64_t rows, W* sums,
                        int64_t sums_row) {
    const int64_t each = n / kFour;
    int64_t j = 0;
    for (; j < each; ++j) {
        fetch_parts(v, kFour, each, j + kValuesAhead, columns);
        const Rows<S> four = {v.data + j * v.row, each * v.row};
        int64_t r = 0;
        for (; r + 2 <= rows; r += 2)
            add_four<2>(four, columns, weights + r * kTileKeys + j, each, sums + r * sums_row, sums_row);
        if (r < rows) add_four<1>(four, columns, weights + r * kTileKeys + j, each, sums + r * sums_row, sums_row);
    }
    j = kFour * each;
    for (; j < n; ++j)
        each_vector<W>(columns, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> x = part_of<W>(v.data + j * v.row + i, lanes);
            for (int64_t r = 0; r < rows; ++r) {
                W* const at = sums + r * sums_row + i;
                store(at, load(at) + weights[r * kTileKeys + j] * x);
            }
        });
}

// score_rows for any number of rows of q; of the keys only the first pass fetches.
template <class W, class S>
TW_INLINE void score_all(const Rows<S>& k, int64_t n, int64_t depth, const W* q, int64_t q_row, int64_t rows,
                         W* scores) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) score_rows<4>(k, n, depth, q + i * q_row, q_row, scores + i * kTileKeys, i == 0);
    for (; i + 2 <= rows; i += 2) score_rows<2>(k, n, depth, q + i * q_row, q_row, scores + i * kTileKeys, i == 0);
    for (; i < rows; ++i) score_rows<1>(k, n, depth, q + i * q_row, q_row, scores + i * kTileKeys, i == 0);
}

// What `shares` shares of the keys have left of a row, `apart` rows between them, joined in the first, in order.
template <class W>
TW_INLINE Running<W> join_shares(W* sum, const Running<W>* running, int64_t shares, int64_t apart, int64_t width) {
    Running<W> all = running[0];
    for (int64_t s = 1; s < shares; ++s) {
        const Running<W> one = running[s * apart];
        const W* const other = sum + s * apart * width;
        if (one.sum == 0) continue;
        const W top = all.top > one.top ? all.top : one.top;
        const Vec<W> base = splat(top == -static_cast<W>(kInf) ? W{0} : top);
        const W mine = power(splat(all.top) - base)[0], its = power(splat(one.top) - base)[0];
        all = {top, all.sum * mine + one.sum * its};
        for (int64_t j = 0; j < width; j += kLanes<W>) store(sum + j, load(sum + j) * mine + load(other + j) * its);
    }
    return all;
}

}  // namespace
}  // namespace tw::TW_ISA
