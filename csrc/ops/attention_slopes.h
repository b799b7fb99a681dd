// What the gradients of attention share, however their products are made: the slopes of a row, and shares of the keys.
#pragma once
#include "ops/attention_problem.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kShares = 16;  // of work in all, as far as there are keys

struct Gradient {
    View dy, y, lse, dq, dk, dv;
    View ds;  // slopes of what is added to scores, (B, H, T, S); dtype none if not asked for
};

// p and ds of one row, in place of its scores and of dy v^T; 0 outside `seen`. Factors, if not null, are those by which
// forward multiplied the weights. `ds`, if not null, gets ds as it is before the cap bends it.
template <class T, bool kPlainToo = true>
TW_INLINE void slope_row(const Attention& a, const Added<Wide<T>>& add, const Wide<T>* factors, Wide<T>* scores,
                         Wide<T>* slopes, Span seen, int64_t n, Wide<T> lse, Wide<T> delta, Wide<T>* ds,
                         int64_t ds_step) {
    typedef Wide<T> W;
    const bool any_seen = lse != -static_cast<W>(kInf);
    if (!any_seen) seen.end = seen.begin;
    W *const s = scores + seen.begin, *const d = slopes + seen.begin;
    const bool plain = kPlainToo && a.softcap == 0 && !add.any() && !factors && !ds;
    each_vector<W>(plain ? seen.end - seen.begin : 0, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
        const Vec<W> p = power(min_any(Vec<W>{}, take(s, 1, j, lanes) - lse));
        put(s, 1, j, lanes, p);
        put(d, 1, j, lanes, select(p == 0, Vec<W>{}, p * (take(d, 1, j, lanes) - delta)));
    });
    const W cap = static_cast<W>(a.softcap), inverse = a.softcap > 0 ? static_cast<W>(1 / a.softcap) : W{0};
    each_vector<W>(plain ? 0 : seen.end - seen.begin, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
        const Vec<W> factor = factors ? take(factors + seen.begin, 1, j, lanes) : splat(W{1});
        const Vec<W> whole = take(d, 1, j, lanes) * factor - delta;
        Vec<W> v = take(s, 1, j, lanes), part = whole;
        if (a.softcap > 0) {
            const Vec<W> bent = tanh(v * inverse);
            v = bent * cap;
            part *= 1 - bent * bent;
        }
        v = with_added<T>(a, add, seen.begin + j, lanes, v);
        const Vec<W> p = power(min_any(Vec<W>{}, v - lse));
        put(s, 1, j, lanes, p * factor);
        put(d, 1, j, lanes, select(p == 0, Vec<W>{}, p * part));
        if (ds) put(ds, ds_step, seen.begin + j, lanes, select(p == 0, Vec<W>{}, p * whole));
    });
    if (seen.end - seen.begin == n) return;
    W* const both[] = {scores, slopes};
    for (W* const row : both) {
        __builtin_memset(row, 0, static_cast<size_t>(seen.begin) * sizeof(W));
        __builtin_memset(row + seen.end, 0, static_cast<size_t>(n - seen.end) * sizeof(W));
    }
}

template <class T>
TW_INLINE T* head_at(const View& x, int64_t b, int64_t h) {
    return x.as<T>() + b * x.stride[0] + h * x.stride[1];
}

// dy y of a query.
template <class T>
TW_INLINE Wide<T> delta_of(const Gradient& g, int64_t b, int64_t h, int64_t t) {
    typedef Wide<T> W;
    const T* const dy = head_at<T>(g.dy, b, h) + t * g.dy.stride[2];
    const T* const y = head_at<T>(g.y, b, h) + t * g.y.stride[2];
    return static_cast<W>(sum_over<W>(g.y.shape[3], [&](int64_t j, int64_t n) __attribute__((always_inline)) {
        const Vec<W> part = take(dy, g.dy.stride[3], j, n) * take(y, g.y.stride[3], j, n);
        return n == kLanes<W> ? part : first_lanes<W>(part, Vec<W>{}, n);
    }));
}

template <class T>
TW_INLINE void write_rows(const View& x, int64_t b, int64_t h, int64_t first, int64_t rows, const Wide<T>* from,
                          int64_t from_row, Wide<T> by) {
    T* to = head_at<T>(x, b, h) + first * x.stride[2];
    for (int64_t r = 0; r < rows; ++r, to += x.stride[2], from += from_row)
        each_vector<T>(x.shape[3], [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            put(to, x.stride[3], i, n, take(from, 1, i, n) * by);
        });
}

// By a `Way` that knows T, how many keys it takes at a time, what room it needs, in bytes, and rows and columns of the sums
// of dq of a head. What it adds to dq, [group][rows][columns], starts at 0.
template <class Way>
bool in_shares(const Attention& a, const Gradient& g, const Way& way) {
    typedef typename Way::Type T;
    typedef Wide<T> W;
    const int64_t heads = a.batch * a.kv_heads, tiles = ceil_div(a.keys, Way::kKeys);
    const int64_t of_head = way.dq_rows * way.depth, dq_size = a.group * of_head;
    const int64_t per_share = ceil_div(max_of(tiles, 1), max_of(1, kShares / heads)) * Way::kKeys;
    const int64_t shares = max_of(1, ceil_div(a.keys, per_share));
    const bool alone = shares == 1;
    Scratch parts(alone ? 64 : static_cast<size_t>(heads * shares * dq_size) * sizeof(W));
    if (!parts.as<W>()) return false;
    bool enough = true;
    note_kernel(Way::kName[alone]);
    const auto write_dq = [&](int64_t i, const W* sums) {
        for (int64_t group = 0; group < a.group; ++group)
            write_rows<T>(g.dq, i / a.kv_heads, i % a.kv_heads * a.group + group, 0, a.queries, sums + group * of_head,
                          way.depth, static_cast<W>(a.scale));
    };
    if (given(g.ds))  // tiles that nobody sees are not visited
        parallel(a.batch * a.heads, [&](int64_t i) {
            const W none = 0;
            for (int64_t t = 0; t < a.queries; ++t)
                copy_row(head_at<W>(g.ds, i / a.heads, i % a.heads) + t * g.ds.stride[2], g.ds.stride[3], &none, 0,
                         a.keys);
        });
    parallel(heads * shares, [&](int64_t job) {
        const int64_t i = job / shares, begin = job % shares * per_share, of_dq = alone ? dq_size : 0;
        Scratch scratch(static_cast<size_t>(of_dq) * sizeof(W) + way.room());
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        W* const dq = alone ? scratch.as<W>() : parts.as<W>() + job * dq_size;
        __builtin_memset(dq, 0, static_cast<size_t>(dq_size) * sizeof(W));
        way.share(scratch.as<W>() + of_dq, i / a.kv_heads, i % a.kv_heads, begin, min_of(a.keys, begin + per_share),
                  dq);
        if (alone) write_dq(i, dq);
    });
    if (!enough || alone) return enough;
    parallel(heads, [&](int64_t i) {
        W* const sums = parts.as<W>() + i * shares * dq_size;
        for (int64_t s = 1; s < shares; ++s)
            for (int64_t j = 0; j < dq_size; j += kLanes<W>)
                store(sums + j, load(sums + j) + load(sums + s * dq_size + j));
        write_dq(i, sums);
    });
    return true;
}

}  // namespace
}  // namespace tw::TW_ISA
