// The running softmax of a row of scores: what it has come to, how a tile of keys changes that, and its end.
#pragma once
#include "ops/attention_problem.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileKeys = 256;
constexpr int64_t kPackedBytes = 8 << 20;  // of key heads packed at a time

struct Result {
    View y, lse, sinks;  // lse: dtype none if not asked for; sinks (H,): if not given
};

// What a row of scores has come to: the sum of exp(score - top).
template <class W>
struct Running {
    W top, sum;
};

// s[0, n) becomes exp(s - top), 0 outside `seen`. Returns the factor by which the new top shrinks what was there.
template <class T>
TW_INLINE Wide<T> soften(const Attention& a, const Added<Wide<T>>& add, Wide<T>* s, Span seen, int64_t n,
                         Running<Wide<T>>& row) {
    typedef Wide<T> W;
    constexpr int64_t L = kLanes<W>;
    const W lowest = -static_cast<W>(kInf);
    W* const from = s + seen.begin;
    const int64_t count = seen.end - seen.begin;
    if (a.softcap > 0 || add.any()) {
        const W cap = static_cast<W>(a.softcap), inverse = static_cast<W>(1 / a.softcap);
        each_vector<W>(count, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
            Vec<W> v = take(from, 1, j, lanes);
            if (a.softcap > 0) v = tanh(v * inverse) * cap;
            v = with_added<T>(a, add, seen.begin + j, lanes, v);
            put(from, 1, j, lanes, v);
        });
    }
    Vec<W> m0 = splat(row.top), m1 = m0, m2 = m0, m3 = m0;
    int64_t j = 0;
    for (; j + 4 * L <= count; j += 4 * L) {
        m0 = max_any(load(from + j), m0), m1 = max_any(load(from + j + L), m1);
        m2 = max_any(load(from + j + 2 * L), m2), m3 = max_any(load(from + j + 3 * L), m3);
    }
    for (; j + L <= count; j += L) m0 = max_any(load(from + j), m0);
    if (j < count) m1 = max_any(first_lanes<W>(load_n(from + j, count - j), splat(lowest), count - j), m1);
    const W top = Max::lanes(max_any(max_any(m0, m1), max_any(m2, m3)));
    // A NaN that the maximum lost comes back in the sum; nothing but -Inf leaves a sum of 0.
    const Vec<W> base = splat(top == lowest ? W{0} : top);
    Vec<W> s0{}, s1{};
    for (j = 0; j + 2 * L <= count; j += 2 * L) {
        const Vec<W> p0 = power(load(from + j) - base), p1 = power(load(from + j + L) - base);
        store(from + j, p0), store(from + j + L, p1);
        s0 += p0, s1 += p1;
    }
    for (; j < count; j += L) {
        const int64_t lanes = min_of(L, count - j);
        const Vec<W> p = power(take(from, 1, j, lanes) - base);
        put(from, 1, j, lanes, p);
        s0 += lanes == L ? p : first_lanes<W>(p, Vec<W>{}, lanes);
    }
    if (count < n) {
        __builtin_memset(s, 0, static_cast<size_t>(seen.begin) * sizeof(W));
        __builtin_memset(s + seen.end, 0, static_cast<size_t>(n - seen.end) * sizeof(W));
    }
    const W factor = row.top == top ? W{1} : power(splat(row.top) - base)[0];
    row.sum = row.sum * factor + reduce_add(s0 + s1);
    row.top = top;
    return factor;
}

// Weights of a tile of keys that the draws drop become 0, the others grow by as much on average.
template <class W>
TW_INLINE void drop(const Attention& a, int64_t b, int64_t h, int64_t t, int64_t s0, int64_t n, W* weights) {
    W factors[kTileKeys];
    draw_row(a, b, h, t, s0, n, factors);
    each_vector<W>(n, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
        put(weights, 1, j, lanes, take(weights, 1, j, lanes) * take(factors, 1, j, lanes));
    });
}

// Before any key: nothing, or the sink of the head, whose weight goes nowhere.
template <class T>
TW_INLINE Running<Wide<T>> started(const Result& r, int64_t h) {
    typedef Wide<T> W;
    const W lowest = -static_cast<W>(kInf),
            sink = given(r.sinks) ? widened(r.sinks.as<const T>()[h * r.sinks.stride[0]]) : lowest;
    return {sink, sink == lowest ? W{0} : W{1}};
}

template <class W>
TW_INLINE void shrink(W* row, int64_t n, W factor) {
    for (int64_t i = 0; i < n; i += kLanes<W>) store(row + i, load(row + i) * factor);
}

// y and lse of one query from its sums.
template <class T, bool kInverse = false>
TW_INLINE void finish(const Result& r, int64_t b, int64_t h, int64_t t, int64_t width, const Wide<T>* sums,
                      Running<Wide<T>> row) {
    typedef Wide<T> W;
    const Vec<W> total = splat(row.sum == 0 ? W{1} : row.sum), inverse = 1 / total;
    T* y = r.y.as<T>() + b * r.y.stride[0] + h * r.y.stride[1] + t * r.y.stride[2];
    each_vector<T>(width, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        put(y, r.y.stride[3], i, n, kInverse ? load(sums + i) * inverse : load(sums + i) / total);
    });
    if (given(r.lse))
        r.lse.as<W>()[b * r.lse.stride[0] + h * r.lse.stride[1] + t * r.lse.stride[2]] =
            row.top + static_cast<W>(__builtin_log(static_cast<double>(row.sum)));
}

}  // namespace
}  // namespace tw::TW_ISA
