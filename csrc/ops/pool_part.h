// One part of a row of outputs of max_pool and avg_pool: windows of contiguous rows in W joined vertically, then along the
// row, through a buffer or in registers.
#pragma once
#include "core/pooling.h"
#include "ops/ops.h"
#include "simd/rows.h"
#include "simd/units.h"

namespace tw::TW_ISA {
namespace {

constexpr int kRowsAtOnce = 16;

template <class T>
TW_INLINE void fill(T* p, int64_t n, T value) {
    for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// ---- one part of a row of outputs: everything in W, on contiguous rows ----------------------------------------------------

// Rows of the window at the columns [low, low + n) of x, which are those that the part reads and that lie inside.
template <class W>
struct Part {
    const W* row[kRowsAtOnce];
    int rows;
    int64_t before, n, outputs;  // columns outside before `low`; inside; outputs
    int64_t room;  // of the buffers
    W *buffer, *every;
    W* to;
    const W* cells;  // mean: what an output is divided by, times `above`
    const W* inverse;  // reciprocals of cells where `above` is 1, or null
    W above;
};

// a / b by the reciprocal of b and one correction, which the division itself would take twice as long as.
template <class V>
TW_INLINE V quotient(V a, V b, V inverse) {
    if constexpr (!kHasFma) return a / b;
    const V q = a * inverse, rest = fma(-q, b, a);
    return select(rest == rest, fma(rest, inverse, q), q);  // NaN of an infinite quotient
}

template <class Op, class W>
TW_INLINE void finish(const Part<W>& p, int64_t i, int64_t n, Vec<W> v) {
    if constexpr (__is_same(Op, Sum)) {
        const Vec<W> cells = load(p.cells + i);
        v = p.inverse ? quotient(v, cells, load(p.inverse + i)) : v / (p.above * cells);
    }
    if (n == kLanes<W>)
        store(p.to + i, v);
    else
        store_n(p.to + i, v, n);
}

// Vertical: buffer[before + i] = the rows joined at column i. Answers whether a NumberMax may have lost a NaN: any NaN
// makes the sum of what was read NaN.
template <class Op, int kRows, class W>
TW_INLINE bool join_fixed(const Part<W>& p, bool more) {
    W* const to = p.buffer + p.before;
    Vec<W> sum{};
    for (int64_t i = 0; i < p.n; i += kLanes<W>) {
        const int64_t m = min_of(p.n - i, kLanes<W>);
        Vec<W> v = take(p.row[0], 1, i, m), met = v;
#pragma GCC unroll 3
        for (int r = 1; r < (kRows ? kRows : p.rows); ++r) {
            const Vec<W> next = take(p.row[r], 1, i, m);
            v = Op::of(v, next);
            met += next;
        }
        sum += met;
        store(to + i, more ? Op::of(load(to + i), v) : v);  // `to` has room for whole vectors
    }
    return __is_same(Op, NumberMax) && any(sum != sum);
}

template <class Op, class W>
__attribute__((noinline)) bool join_rows(const Part<W>& p, bool more) {
    return p.rows == 3 && !more ? join_fixed<Op, 3>(p, false) : join_fixed<Op, 0>(p, more);
}

// Horizontal: outputs from the buffer.
template <class Op, class W>
__attribute__((noinline)) void join_along(const PoolAxis& a, const Part<W>& p) {
    constexpr int64_t lanes = kLanes<W>;
    const int64_t s = a.stride, d = a.dilation, k = a.kernel, outputs = p.outputs;
    const W* const buffer = p.buffer;
    const W outside = Op::template identity<W>()[0];
    fill(p.buffer, p.before, outside);
    fill(p.buffer + p.before + p.n, p.room - p.before - p.n, outside);
    if (k >= 2 * lanes && d == 1) {
        alignas(kVecBytes) W lane[lanes] = {};
        for (int64_t i = 0; i < outputs; i += lanes) {
            const int64_t n = min_of(outputs - i, lanes);
            for (int64_t o = 0; o < n; ++o) lane[o] = Op::lanes(fold_row<Op>(buffer + (i + o) * s, k));
            finish<Op>(p, i, n, load_aligned(lane));
        }
    } else if (s == 2) {
        for (int64_t i = 0; i < outputs; i += lanes) {
            Vec<W> v = load_stride2(buffer + 2 * i);
            for (int64_t j = 1; j < k; ++j) v = Op::of(v, load_stride2(buffer + 2 * i + j * d));
            finish<Op>(p, i, min_of(outputs - i, lanes), v);
        }
    } else {
        // Every position by vectors; beyond stride 1, each s-th of them.
        for (int64_t i = 0; i < (outputs - 1) * s + 1; i += lanes) {
            Vec<W> v = load(buffer + i);
            for (int64_t j = 1; j < k; ++j) v = Op::of(v, load(buffer + i + j * d));
            if (s == 1)
                finish<Op>(p, i, min_of(outputs - i, lanes), v);
            else
                store(p.every + i, v);
        }
        for (int64_t i = 0; s != 1 && i < outputs; i += lanes) {
            const int64_t n = min_of(outputs - i, lanes);
            finish<Op>(p, i, n, load_strided(p.every + i * s, s, n));
        }
    }
}

// ---- both in registers, for windows that reach no further than the next vector --------------------------------------------

enum class Near { no, done, lost };  // lost: a NaN may have been

// Even and odd columns of one vector of outputs; with stride 1 `even` holds them all.
template <class T>
struct Columns {
    Vec<T> even, odd;
};

// Lanes t .. t + kLanes of three vectors laid end to end, counted from the middle one.
template <int t, class V, int... I>
TW_INLINE V lanes_from(V before, V here, V after, Seq<I...>) {
    constexpr int n = sizeof...(I);
    if constexpr (t == 0) return here;
    if constexpr (t < 0) return shuffle<(n + I + t)...>(before, here);
    return shuffle<(I + t)...>(here, after);
}

// Joins taps t .. kLast in ascending order; a tap is a column counted from S times the output.
template <class Op, int S, int t, int kLast, class T>
TW_INLINE Vec<T> join_taps(const Columns<T>& before, const Columns<T>& here, const Columns<T>& after, Vec<T> joined,
                           bool first) {
    if constexpr (t > kLast) {
        return joined;
    } else {
        constexpr bool odd = S == 2 && (t & 1);
        constexpr int lane = odd ? (t - 1) / 2 : t / S;
        const Vec<T> tap = odd ? lanes_from<lane>(before.odd, here.odd, after.odd, Indices<Vec<T>>{})
                               : lanes_from<lane>(before.even, here.even, after.even, Indices<Vec<T>>{});
        return join_taps<Op, S, t + 1, kLast, T>(before, here, after, first ? tap : Op::of(joined, tap), false);
    }
}

// Even and odd lanes of a and b, in one step inside units and one between them.
template <class T>
TW_INLINE Columns<T> parted(Vec<T> a, Vec<T> b) {
    const auto in_row = [](Vec<T> v) __attribute__((always_inline)) {
        return sizeof(T) == 4 ? bitcast<Vec<T>>(from_units(bitcast<f64v>(v))) : from_units(v);
    };
    return {in_row(halves_of_units<0, 0>(a, b)), in_row(halves_of_units<1, 1>(a, b))};
}

// The parts that begin a row, of as many rows as columns. Not inlined: in one function with its siblings each loop would
// live on the stack.
template <class Op, int S, int kFirst, int kLast, class W>
__attribute__((noinline)) Near join_in_registers(const Part<W>& given) {
    const Part<W> p = given;  // no store of results can change it
    constexpr int64_t lanes = kLanes<W>;
    constexpr int rows = kLast - kFirst + 1;
    const Vec<W> outside = Op::template identity<W>();
    const W* row[rows];
    for (int r = 0; r < rows; ++r) row[r] = p.row[r];
    Vec<W> sum{};
    Columns<W> before = {outside, outside}, here = before;
    // One vector of outputs: reads the columns after it, on which it may depend. kWhole: all inside x.
    const auto step = [&]<bool kWhole>(int64_t i, int64_t n) __attribute__((always_inline)) {
        const auto joined = [&](const auto& at) __attribute__((always_inline)) {
            Vec<W> v = at(0), met = v;
#pragma GCC unroll 3
            for (int r = 1; r < rows; ++r) {
                const Vec<W> next = at(r);
                v = Op::of(v, next);
                met += next;
            }
            if constexpr (__is_same(Op, NumberMax)) sum += met;
            return v;
        };
        const auto column = [&](int64_t c) __attribute__((always_inline)) {
            if (kWhole || c + lanes <= p.n)
                return joined([&](int r) __attribute__((always_inline)) { return load(row[r] + c); });
            if (c >= p.n) return outside;
            return joined([&](int r)
                              __attribute__((always_inline)) { return load_or_identity<Op>(row[r] + c, p.n - c); });
        };
        const int64_t o = i + lanes;
        Columns<W> after = {column(S * o), outside};
        if constexpr (S == 2) after = parted<W>(after.even, column(2 * o + lanes));
        if (i >= 0) finish<Op>(p, i, n, join_taps<Op, S, kFirst, kLast, W>(before, here, after, outside, true));
        before = here;
        here = after;
    };
    step.template operator()<false>(-lanes, 0);
    int64_t i = 0;
    for (; i + lanes <= p.outputs && S * (i + 2 * lanes) <= p.n; i += lanes) step.template operator()<true>(i, lanes);
    for (; i < p.outputs; i += lanes) step.template operator()<false>(i, min_of(p.outputs - i, lanes));
    return __is_same(Op, NumberMax) && any(sum != sum) ? Near::lost : Near::done;
}

template <class Op, class W>
Near join_near(const PoolAxis& a, const Part<W>& p) {
    if (a.dilation != 1 || a.kernel != p.rows || a.kernel > 3 || a.stride > 2) return Near::no;
#define TW_NEAR(S, first, last)                                                    \
    if (a.stride == S && a.before == -(first) && a.kernel == (last) - (first) + 1) \
        return join_in_registers<Op, S, first, last>(p);
    TW_NEAR(2, -1, 1)
    TW_NEAR(2, 0, 2)
    TW_NEAR(2, 0, 1)
    TW_NEAR(1, -1, 1)
    TW_NEAR(1, 0, 2)
#undef TW_NEAR
    return Near::no;
}

}  // namespace
}  // namespace tw::TW_ISA
