// Ops element by element on vectors of a floating type: y[i] = f(x[i]) and y[i] = f(a[i], b[i]), broadcast to y.
//
// One pass over merged axes. f is compiled once, in a loop over whole vectors of neighbours; what does not lie so, and
// the end of a row, passes through buffers that stay in L1.
#pragma once
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/onward.h"
#include "simd/rows.h"

namespace tw::TW_ISA {

constexpr int64_t kMapped = 256;  // elements of a buffer

template <class T, class F>
static __attribute__((noinline)) void map_vectors(T* y, const T* x, int64_t n, F f) {
    typedef Wide<T> W;
    for (int64_t i = 0; i < n; i += kLanes<W>) {
        expect_store(y + i);
        store_from(y + i, f(load_as<W>(x + i)));
    }
}

template <class T, class F>
static __attribute__((noinline)) void map_vectors(T* y, const T* a, const T* b, int64_t n, F f) {
    typedef Wide<T> W;
    for (int64_t i = 0; i < n; i += kLanes<W>) {
        expect_store(y + i);
        store_from(y + i, f(load_as<W>(a + i), load_as<W>(b + i)));
    }
}

// The same where loads decide.
template <class T, class F>
static __attribute__((noinline)) void map_lines(T* y, const T* a, const T* b, int64_t n, F f) {
    Onward<T> from_a = onward(a), from_b = onward(b);
    for (int64_t i = 0; i < n; i += kLanes<T>) {
        expect_store(y + i);
        store(y + i, f(next(from_a), next(from_b)));
    }
}

// n elements of a row as whole vectors of neighbours, zeros behind them.
template <class T>
static void take_in(T* to, const T* from, int64_t stride, int64_t n) {
    copy_row(to, 1, from, stride, n);
    for (; n % kLanes<Wide<T>>; ++n) to[n] = T{};
}

template <class T, class F>
TW_INLINE void map_one(const View& y, const View& x, F f) {
    const View* views[] = {&y, &x};
    const Walk w = walk_over(views, 2, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        constexpr int64_t L = kLanes<Wide<T>>;
        T* const to = reinterpret_cast<T*>(at[0]);
        const T* const from = reinterpret_cast<const T*>(at[1]);
        const int64_t st = w.stride[0], sf = w.stride[1], whole = st == 1 && sf == 1 ? count / L * L : 0;
        if (whole) map_vectors(to, from, whole, f);
        T buffer[kMapped];
        for (int64_t i = whole; i < count; i += kMapped) {
            const int64_t n = min_of(count - i, kMapped);
            take_in(buffer, from + i * sf, sf, n);
            map_vectors(buffer, buffer, ceil_div(n, L) * L, f);
            copy_row(to + i * st, st, buffer, 1, n);
        }
    });
}

// kLight: f is so little that loads decide.
template <class T, bool kLight = false, class F>
TW_INLINE void map_two(const View& y, const View& a, const View& b, F f) {
    const View* views[] = {&y, &a, &b};
    const Walk w = walk_over(views, 3, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        constexpr int64_t L = kLanes<Wide<T>>;
        T* const to = reinterpret_cast<T*>(at[0]);
        const T *const p = reinterpret_cast<const T*>(at[1]), *const q = reinterpret_cast<const T*>(at[2]);
        const int64_t st = w.stride[0], sp = w.stride[1], sq = w.stride[2];
        const int64_t whole = st == 1 && sp == 1 && sq == 1 ? count / L * L : 0;
        if constexpr (kLight && kVecBytes == 64 && !kIsNarrow<T>) {
            if (crosses_lines(p) || crosses_lines(q))
                map_lines(to, p, q, whole, f);
            else
                map_vectors(to, p, q, whole, f);
        } else {
            map_vectors(to, p, q, whole, f);
        }
        T some_p[kMapped], some_q[kMapped];
        for (int64_t i = whole; i < count; i += kMapped) {
            const int64_t n = min_of(count - i, kMapped);
            const bool full = n % L == 0, there = sp == 1 && full;
            if (!there) take_in(some_p, p + i * sp, sp, n);
            if (sq != 0 || i == whole) take_in(some_q, q + i * sq, sq, n);
            T* const direct = st == 1 && full ? to + i : some_p;
            map_vectors(direct, there ? p + i : some_p, static_cast<const T*>(some_q), ceil_div(n, L) * L, f);
            if (direct == some_p) copy_row(to + i * st, st, some_p, 1, n);
        }
    });
}

}  // namespace tw::TW_ISA
