// Ops element by element on vectors of a floating type: y[i] = f(x[i]) and y[i] = f(a[i], b[i]), broadcast to y.
//
// One pass over merged axes. Rows that lie contiguous pass in whole vectors, any others and the rest by take and put.
#pragma once
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {

template <class T, class F>
TW_INLINE void map_one(const View& y, const View& x, const F& f) {
    typedef Wide<T> W;
    const View* views[] = {&y, &x};
    const Walk w = walk_over(views, 2, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&, f](char* const* at, int64_t count) {
        T* const to = reinterpret_cast<T*>(at[0]);
        const T* const from = reinterpret_cast<const T*>(at[1]);
        const int64_t st = w.stride[0], sf = w.stride[1];
        int64_t i = 0;
        if (st == 1 && sf == 1)
            for (; i + kLanes<W> <= count; i += kLanes<W>) store_from(to + i, f(load_as<W>(from + i)));
        for (; i < count; i += kLanes<W>) {
            const int64_t n = min_of(count - i, kLanes<W>);
            put(to, st, i, n, f(take(from, sf, i, n)));
        }
    });
}

template <class T, class F>
TW_INLINE void map_two(const View& y, const View& a, const View& b, const F& f) {
    typedef Wide<T> W;
    const View* views[] = {&y, &a, &b};
    const Walk w = walk_over(views, 3, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&, f](char* const* at, int64_t count) {
        T* const to = reinterpret_cast<T*>(at[0]);
        const T *const p = reinterpret_cast<const T*>(at[1]), *const q = reinterpret_cast<const T*>(at[2]);
        const int64_t st = w.stride[0], sp = w.stride[1], sq = w.stride[2];
        int64_t i = 0;
        if (st == 1 && sp == 1 && sq == 1) {
            for (; i + kLanes<W> <= count; i += kLanes<W>) store_from(to + i, f(load_as<W>(p + i), load_as<W>(q + i)));
        } else if (st == 1 && sp == 1 && sq == 0) {
            const Vec<W> one = splat<W>(widened(*q));
            for (; i + kLanes<W> <= count; i += kLanes<W>) store_from(to + i, f(load_as<W>(p + i), one));
        }
        for (; i < count; i += kLanes<W>) {
            const int64_t n = min_of(count - i, kLanes<W>);
            put(to, st, i, n, f(take(p, sp, i, n), take(q, sq, i, n)));
        }
    });
}

}  // namespace tw::TW_ISA
