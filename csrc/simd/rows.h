// Rows as vectors whatever their stride, blocks gathered where a kernel wants them contiguous, and folds of rows.
//
//   take(p, stride, i, n), put(p, stride, i, n, v)   lanes of elements i .. i+n of a strided row, n <= kLanes
//   fold_row<Sum>(p, n)                              one vector whose lanes join to the sum; Max alike
//   sum_over<T>(n, f)                                sum of f(i, lanes) over a row, blocks joined in double
//
// Numerics: a fold is pairwise over blocks of 64 vectors, 16 additions deep inside a block: the error of a sum of K is
// about (16 + log2 K) roundings, and the order is a function of K and the tier only. Max lets NaN win.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

// ---- strided rows -----------------------------------------------------------------------------------------------------

template <class T>
TW_INLINE Vec<T> take(const T* p, int64_t stride, int64_t i, int64_t n) {
    if (stride == 1) return n == kLanes<T> ? load(p + i) : load_n(p + i, n);
    if (stride == 0) return splat<T>(*p);
    return load_strided(p + i * stride, stride, n);
}

template <class T>
TW_INLINE void put(T* p, int64_t stride, int64_t i, int64_t n, Vec<T> v) {
    if (stride == 1) {
        if (n == kLanes<T>)
            store(p + i, v);
        else
            store_n(p + i, v, n);
    } else {
        for (int64_t k = 0; k < n; ++k) p[(i + k) * stride] = v[k];
    }
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
TW_INLINE Vec<T> load_or_identity(const T* p, int64_t n) {
    if constexpr (__is_same(Op, Sum)) return load_n(p, n);
    return first_lanes<T>(load_n(p, n), Op::template identity<T>(), n);
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
constexpr int64_t kFoldBlock = 64 * kLanes<T>;

template <class Op, class T>
TW_INLINE Vec<T> fold_block(const T* p, int64_t n) {
    constexpr int64_t step = kLanes<T>;
    if (n <= step) return n == step ? load(p) : load_or_identity<Op>(p, n);
    Vec<T> a = Op::template identity<T>(), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 4 * step <= n; i += 4 * step) {
        a = Op::of(a, load(p + i));
        b = Op::of(b, load(p + i + step));
        c = Op::of(c, load(p + i + 2 * step));
        d = Op::of(d, load(p + i + 3 * step));
    }
    for (; i + step <= n; i += step) a = Op::of(a, load(p + i));
    if (i < n) b = Op::of(b, load_or_identity<Op>(p + i, n - i));
    return Op::of(Op::of(a, b), Op::of(c, d));
}

template <class Op, class T>
static Vec<T> fold_row(const T* p, int64_t n) {
    if (n <= kFoldBlock<T>) return fold_block<Op>(p, n);
    Pairwise<Vec<T>> sum;
    sum.n = 0;
    for (int64_t i = 0; i < n; i += kFoldBlock<T>)
        join<Op>(sum, fold_block<Op>(p + i, n - i < kFoldBlock<T> ? n - i : kFoldBlock<T>));
    return joined<Op>(sum, Op::template identity<T>());
}

// The folds of kLanes rows at once: lane k is Op::lanes(v[k]), bit for bit.
template <class Op, class T>
TW_INLINE Vec<T> fold_lanes_of(const T* vectors) {
    constexpr int n = kLanes<T>;
    alignas(kVecBytes) T turned[n * n];
    transpose_tile(vectors, n, turned, n);
    for (int half = n / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i)
            store(turned + i * n, Op::of(load(turned + i * n), load(turned + (i + half) * n)));
    return load(turned);
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
TW_INLINE void copy_tile(T* tile, const Side<T>& x, int64_t n, int64_t columns, int64_t width) {
    for (int64_t r = 0; r < n; ++r)
        for (int64_t j = 0; j < columns; j += kLanes<T>) {
            if (r + kRowsAhead < n) __builtin_prefetch(x.data + (r + kRowsAhead) * x.along + j * x.across);
            store(tile + r * width + j,
                  take<T>(x.data + r * x.along, x.across, j, columns - j < kLanes<T> ? columns - j : kLanes<T>));
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
TW_INLINE void copy_tile_and_top(T* tile, T* top, const Side<T>& x, int64_t n, int64_t columns, int64_t width) {
    for (int64_t j = 0; j < width; j += kLanes<T>) store(top + j, Max::identity<T>());
    each_block(n, [&](int64_t first, int64_t last) __attribute__((always_inline)) {
        copy_tile(tile + first * width, Side<T>{x.data + first * x.along, x.along, x.across}, last - first, columns,
                  width);
        for (int64_t j = 0; j < width; j += kLanes<T>) {
            Vec<T> m = load(top + j);
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
    for (int64_t r = 0; r < n; ++r)
        for (int64_t j = 0; j < columns; j += kLanes<T>) {
            if (r + kRowsAhead < n) __builtin_prefetch(y.data + (r + kRowsAhead) * y.along + j * y.across, 1);
            put(y.data + r * y.along, y.across, j, columns - j < kLanes<T> ? columns - j : kLanes<T>, f(r, j));
        }
}

template <class T, class F>
TW_INLINE void each_vector(int64_t n, const F& f) {
    int64_t i = 0;
    for (; i + kLanes<T> <= n; i += kLanes<T>) f(i, int64_t{kLanes<T>});
    if (i < n) f(i, n - i);
}

}  // namespace tw::TW_ISA
