// Rows as vectors whatever their stride, blocks gathered where a kernel wants them contiguous, and folds of rows.
//
//   take(p, stride, i, n), put(p, stride, i, n, v)   lanes of elements i .. i+n of a strided row, n <= kLanes<Wide<T>>
//   fold_row<Sum>(p, n)                              one vector whose lanes join to the sum; Max alike
//   sum_over<T>(n, f)                                sum of f(i, lanes) over a row, blocks joined in double
//
// T is what lies in memory, Wide<T> what is computed in: 16-bit floats become float when taken, and are rounded once
// when put. Every other type is its own Wide.
//
// Numerics: a fold is pairwise over blocks of 64 vectors, 16 additions deep inside a block: the error of a sum of K is
// about (16 + log2 K) roundings, and the order is a function of K and the tier only. Max lets NaN win.
#pragma once
#include "core/axes.h"
#include "simd/convert.h"
#include "simd/vec.h"

namespace tw::TW_ISA {

template <class T>
static constexpr bool kIsNarrow = !__is_same(T, Wide<T>);

template <class T>
TW_INLINE Wide<T> widened(T x) {
    if constexpr (kIsNarrow<T>)
        return to_float(x);
    else
        return x;
}
template <class T>
TW_INLINE T narrowed(Wide<T> x) {
    if constexpr (kIsNarrow<T>)
        return from_float<T>(x);
    else
        return x;
}

// ---- strided rows -----------------------------------------------------------------------------------------------------

template <class T>
TW_INLINE Vec<Wide<T>> take(const T* p, int64_t stride, int64_t i, int64_t n) {
    typedef Wide<T> W;
    if (stride == 1) return n == kLanes<W> ? load_as<W>(p + i) : load_as_n<W>(p + i, n);
    if (stride == 0) return splat<W>(widened(*p));
    if constexpr (kIsNarrow<T>) {
        T lane[kLanes<W>] = {};
        for (int64_t k = 0; k < n; ++k) lane[k] = p[(i + k) * stride];
        return load_as<W>(lane);
    } else {
        return load_strided(p + i * stride, stride, n);
    }
}

template <class T>
TW_INLINE void put_strided(T* p, int64_t stride, int64_t n, Vec<Wide<T>> v) {
    if constexpr (kIsNarrow<T>) {
        T lane[kLanes<Wide<T>>];
        store_from(lane, v);
        for (int64_t k = 0; k < n; ++k) p[k * stride] = lane[k];
    } else {
        for (int64_t k = 0; k < n; ++k) p[k * stride] = v[k];
    }
}
template <class T>
TW_INLINE void put(T* p, int64_t stride, int64_t i, int64_t n, Vec<Wide<T>> v) {
    if (stride != 1) return put_strided(p + i * stride, stride, n, v);
    if constexpr (kIsNarrow<T>) {
        if (n == kLanes<Wide<T>>)
            store_from(p + i, v);
        else
            store_from_n(p + i, v, n);
    } else {
        if (n == kLanes<T>)
            store(p + i, v);
        else
            store_n(p + i, v, n);
    }
}

// Calls f(i, lanes) for every vector of a row of T; the last may be a part.
template <class T, class F>
TW_INLINE void each_vector(int64_t n, const F& f) {
    constexpr int64_t lanes = kLanes<Wide<T>>;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) f(i, lanes);
    if (i < n) f(i, n - i);
}

template <class T>
static void copy_row(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t n) {
    if (n <= 0) return;  // an empty axis may have no element to repeat
    if (to_stride == 1 && from_stride == 1) {
        __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(T));
    } else if (to_stride == 1 && from_stride == 0) {
        const T value = *from;
        for (int64_t i = 0; i < n; ++i) to[i] = value;
    } else {
        for (int64_t i = 0; i < n; ++i) to[i * to_stride] = from[i * from_stride];
    }
}

// The same between a 16-bit type and its Wide one.
template <class To, class From>
static void copy_row(To* to, int64_t to_stride, const From* from, int64_t from_stride, int64_t n) {
    static_assert(__is_same(Wide<To>, Wide<From>));
    if (n <= 0) return;
    each_vector<To>(n, [&](int64_t i, int64_t k)
                           __attribute__((always_inline)) { put(to, to_stride, i, k, take(from, from_stride, i, k)); });
}

// A rows x columns block into contiguous memory; the inner loop runs along the source's shorter stride.
template <class T>
static void gather_block(T* to, const T* from, int64_t row_stride, int64_t column_stride, int64_t rows,
                         int64_t columns) {
    const int64_t r = row_stride < 0 ? -row_stride : row_stride, c = column_stride < 0 ? -column_stride : column_stride;
    if (c <= r) {
        for (int64_t i = 0; i < rows; ++i) copy_row(to + i * columns, 1, from + i * row_stride, column_stride, columns);
    } else {
        for (int64_t j = 0; j < columns; ++j) copy_row(to + j, columns, from + j * column_stride, row_stride, rows);
    }
}

// The elements i .. i+n of x along `a`, gathered into `buffer` unless they are contiguous.
template <class T>
static const T* contiguous(const T* x, const tw::Axes& a, int64_t i, int64_t n, T* buffer) {
    if (n == 0) return x;
    if (step_of(a) == 1 && run_of(a, i) >= n) return x + offset_of(a, i);
    for (int64_t k = 0; k < n;) {
        const int64_t run = run_of(a, i + k) < n - k ? run_of(a, i + k) : n - k;
        copy_row(buffer + k, 1, x + offset_of(a, i + k), step_of(a), run);
        k += run;
    }
    return buffer;
}

// ---- folds --------------------------------------------------------------------------------------------------------------

struct Sum {
    template <class T> TW_INLINE Vec<T> identity() { return Vec<T>{}; }
    template <class V> TW_INLINE V of(V a, V b) { return a + b; }
    template <class V> TW_INLINE Elem<V> lanes(V v) { return reduce_add(v); }
};
struct Max {
    template <class T> TW_INLINE Vec<T> identity() { return splat<T>(-static_cast<T>(__builtin_inff())); }
    template <class V> TW_INLINE V of(V a, V b) { return max_nan(a, b); }
    template <class V> TW_INLINE Elem<V> lanes(V v) { return reduce_max(v); }
};

// A maximum that may lose a NaN, at a third of the price.
struct NumberMax : Max {
    template <class V> TW_INLINE V of(V a, V b) { return max_any(a, b); }
};

// The first n lanes of v, `fill` beyond.
template <class T>
TW_INLINE Vec<T> first_lanes(Vec<T> v, Vec<T> fill, int64_t n) {
    typedef Elem<Mask<T>> Lane;
    return select(bitcast<Mask<T>>(iota<Lane>()) < static_cast<Lane>(n), v, fill);
}

template <class Op, class T>
TW_INLINE Vec<Wide<T>> load_or_identity(const T* p, int64_t n) {
    typedef Wide<T> W;
    if constexpr (__is_same(Op, Sum)) return load_as_n<W>(p, n);
    return first_lanes<W>(load_as_n<W>(p, n), Op::template identity<W>(), n);
}

// Joins values pairwise in the order they come, as a binary counter carries.
template <class V>
struct Pairwise {
    V level[48];
    uint64_t n;
};
template <class Op, class V>
TW_INLINE void join(Pairwise<V>& sum, V v) {
    int k = 0;
    for (; sum.n >> k & 1; ++k) v = Op::of(sum.level[k], v);
    sum.level[k] = v;
    ++sum.n;
}
template <class Op, class V>
TW_INLINE V joined(const Pairwise<V>& sum, V identity) {
    V v = identity;
    for (int k = 0; sum.n >> k; ++k)
        if (sum.n >> k & 1) v = Op::of(sum.level[k], v);
    return v;
}

template <class T>
constexpr int64_t kFoldBlock = 64 * kLanes<Wide<T>>;

template <class Op, class T>
TW_INLINE Vec<Wide<T>> fold_block(const T* p, int64_t n) {
    typedef Wide<T> W;
    constexpr int64_t step = kLanes<W>;
    if (n <= step) return n == step ? load_as<W>(p) : load_or_identity<Op>(p, n);
    Vec<W> a = Op::template identity<W>(), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 * step <= n; i += 4 * step) {
        a = Op::of(a, load_as<W>(p + i));
        b = Op::of(b, load_as<W>(p + i + step));
        c = Op::of(c, load_as<W>(p + i + 2 * step));
        d = Op::of(d, load_as<W>(p + i + 3 * step));
    }
    for (; i + step <= n; i += step) a = Op::of(a, load_as<W>(p + i));
    if (i < n) b = Op::of(b, load_or_identity<Op>(p + i, n - i));
    return Op::of(Op::of(a, b), Op::of(c, d));
}

template <class Op, class T>
static Vec<Wide<T>> fold_row(const T* p, int64_t n) {
    if (n <= kFoldBlock<T>) return fold_block<Op>(p, n);
    Pairwise<Vec<Wide<T>>> sum;
    sum.n = 0;
    for (int64_t i = 0; i < n; i += kFoldBlock<T>)
        join<Op>(sum, fold_block<Op>(p + i, n - i < kFoldBlock<T> ? n - i : kFoldBlock<T>));
    return joined<Op>(sum, Op::template identity<Wide<T>>());
}

// Halves of g lanes of every vector folded in a and b joined, those of a and of b in turn: Second picks the upper ones.
template <int G, int Second, class V, int... I>
TW_INLINE V halves_in_turn(V a, V b, Seq<I...>) {
    constexpr int half = G / 2, n = sizeof...(I);
    return shuffle<(I / half % 2 * n + I / G * G + I % half + Second * half)...>(a, b);
}

// v[0] becomes the folds of all: vectors k and k + Count / 2 share one, until each has a single lane.
template <class Op, int Count, class V>
TW_INLINE void fold_pairs(V* v) {
    if constexpr (Count > 1) {
        constexpr int G = kCount<V> / (kCount<V> / Count);
#pragma GCC unroll 8
        for (int k = 0; k < Count / 2; ++k)
            v[k] = Op::of(halves_in_turn<G, 0>(v[k], v[k + Count / 2], Indices<V>{}),
                          halves_in_turn<G, 1>(v[k], v[k + Count / 2], Indices<V>{}));
        fold_pairs<Op, Count / 2>(v);
    }
}

// The folds of kLanes rows at once: lane k is Op::lanes(v[k]), bit for bit.
template <class Op, class T>
TW_INLINE Vec<T> fold_lanes_of(const T* vectors) {
    constexpr int n = kLanes<T>;
    if constexpr (kVectorRegisters >= 32 && n > 2) {
        Vec<T> v[n];
#pragma GCC unroll 16
        for (int k = 0; k < n; ++k) v[k] = load(vectors + k * n);
        fold_pairs<Op, n>(v);
        return v[0];
    } else {
        alignas(kVecBytes) T turned[n * n];
        transpose_tile(vectors, n, turned, n);
        for (int half = n / 2; half > 0; half /= 2)
            for (int i = 0; i < half; ++i)
                store(turned + i * n, Op::of(load(turned + i * n), load(turned + (i + half) * n)));
        return load(turned);
    }
}

template <class T, class F>
TW_INLINE double sum_over(int64_t n, const F& f) {
    constexpr int64_t step = kLanes<T>;
    double total = 0;
    for (int64_t first = 0; first < n; first += kFoldBlock<T>) {
        const int64_t last = n - first < kFoldBlock<T> ? n : first + kFoldBlock<T>;
        Vec<T> a{}, b{};
        int64_t i = first;
        for (; i + 2 * step <= last; i += 2 * step) {
            a += f(i, step);
            b += f(i + step, step);
        }
        for (; i < last; i += step) a += f(i, last - i < step ? last - i : step);
        total += reduce_add(a + b);
    }
    return total;
}

constexpr int64_t kBlockRows = 256;

// ---- tiles: n rows of `width` columns, a multiple of kLanes, gathered from `columns` strided ones ----------------------

template <class T>
struct Side {
    T* data;
    int64_t along, across;  // strides along the rows and from column to column
};

constexpr int64_t kRowsAhead = 8;  // rows lie pages apart, where the hardware does not prefetch

template <class T>
TW_INLINE void copy_tile(Wide<T>* tile, const Side<T>& x, int64_t n, int64_t columns, int64_t width) {
    constexpr int64_t lanes = kLanes<Wide<T>>;
    for (int64_t r = 0; r < n; ++r)
        for (int64_t j = 0; j < columns; j += lanes) {
            if (r + kRowsAhead < n) __builtin_prefetch(x.data + (r + kRowsAhead) * x.along + j * x.across);
            store(tile + r * width + j,
                  take<T>(x.data + r * x.along, x.across, j, columns - j < lanes ? columns - j : lanes));
        }
}

// Blocks of rows stay in cache between the columns of a tile.
template <class Body>
TW_INLINE void each_block(int64_t n, const Body& body) {
    for (int64_t first = 0; first < n; first += kBlockRows)
        body(first, n - first < kBlockRows ? n : first + kBlockRows);
}

// top[j] = maximum of a column of the tile that is gathered; it may lose a NaN.
template <class T>
TW_INLINE void copy_tile_and_top(Wide<T>* tile, Wide<T>* top, const Side<T>& x, int64_t n, int64_t columns,
                                 int64_t width) {
    typedef Wide<T> W;
    for (int64_t j = 0; j < width; j += kLanes<W>) store(top + j, Max::identity<W>());
    each_block(n, [&](int64_t first, int64_t last) __attribute__((always_inline)) {
        copy_tile(tile + first * width, Side<T>{x.data + first * x.along, x.along, x.across}, last - first, columns,
                  width);
        for (int64_t j = 0; j < width; j += kLanes<W>) {
            Vec<W> m = load(top + j);
            for (int64_t r = first; r < last; ++r) m = max_any(m, load(tile + r * width + j));
            store(top + j, m);
        }
    });
}

// sum[j] = sum over rows of column(j)(row), blocks of rows first.
template <class T, class F>
TW_INLINE void sum_rows(T* sum, int64_t n, int64_t width, const F& column) {
    for (int64_t j = 0; j < width; j += kLanes<T>) store(sum + j, Vec<T>{});
    each_block(n, [&](int64_t first, int64_t last) __attribute__((always_inline)) {
        for (int64_t j = 0; j < width; j += kLanes<T>) {
            const auto f = column(j);
            Vec<T> part{};
            for (int64_t r = first; r < last; ++r) part += f(r);
            store(sum + j, load(sum + j) + part);
        }
    });
}

template <class T, class F>
TW_INLINE void put_rows(const Side<T>& y, int64_t n, int64_t columns, const F& f) {
    constexpr int64_t lanes = kLanes<Wide<T>>;
    for (int64_t r = 0; r < n; ++r)
        for (int64_t j = 0; j < columns; j += lanes) {
            if (r + kRowsAhead < n) __builtin_prefetch(y.data + (r + kRowsAhead) * y.along + j * y.across, 1);
            put(y.data + r * y.along, y.across, j, columns - j < lanes ? columns - j : lanes, f(r, j));
        }
}

}  // namespace tw::TW_ISA
