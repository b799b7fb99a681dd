// Copies blocks of strided matrices into panels, widened to the type of the sums. Panel of B: [kc][NR], zero beyond the last column.
// Panel of A: [kc][MR], which the tile reads as one stream, or [MR][kc].
#pragma once
#include "gemm/gemm.h"
#include "simd/convert.h"

namespace tw::TW_ISA {
namespace {

// The first n of kLanes<T> elements at distance `step`, widened.
template <class T, class S>
TW_INLINE Vec<T> take_wide(const S* p, int64_t step, int64_t n) {
    if (step == 1) return n == kLanes<T> ? load_as<T>(p) : load_as_n<T>(p, n);
    if constexpr (__is_same(T, S)) {
        return load_strided(p, step, n);
    } else {
        S lane[kLanes<T>] = {};
        for (int64_t i = 0; i < n; ++i) lane[i] = p[i * step];
        return load_as<T>(lane);
    }
}

// Transposes a tile of kLanes x kLanes numbers; narrow ones are widened row by row on the way.
template <class T, class S>
TW_INLINE void transpose_wide(const S* src, int64_t src_stride, T* dst, int64_t dst_stride) {
    if constexpr (__is_same(T, S)) {
        transpose_tile(src, src_stride, dst, dst_stride);
    } else {
        constexpr int L = kLanes<T>;
        alignas(kVecBytes) T wide[L * L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) store(wide + i * L, load_as<T>(src + i * src_stride));
        transpose_tile(wide, L, dst, dst_stride);
    }
}

// Rows [k0, k0+kc) of columns [n0, n0+n) of B as [kc][NR].
template <class T, class S>
void pack_panel(const Matrix<S>& b, int64_t k0, int64_t kc, int64_t n0, int64_t n, T* panel) {
    constexpr int NR = Blocking<T>::NR;
    constexpr int L = kLanes<T>;
    const S* src = b.data + k0 * b.row + n0 * b.col;
    if (b.col == 1) {
        for (int64_t k = 0; k < kc; ++k, src += b.row, panel += NR)
            for (int64_t j = 0; j < NR; j += L)
                store(panel + j, j + L <= n ? load_as<T>(src + j) : load_as_n<T>(src + j, n > j ? n - j : 0));
        return;
    }
    const int64_t k_tiles = b.row == 1 ? kc / L * L : 0;
    for (int64_t j = 0; j < NR; j += L) {
        const int64_t columns = n - j < L ? (n > j ? n - j : 0) : L;
        int64_t k = 0;
        if (columns == L)
            for (; k < k_tiles; k += L) transpose_wide(src + j * b.col + k, b.col, panel + k * NR + j, NR);
        for (; k < kc; ++k) store(panel + k * NR + j, take_wide<T>(src + k * b.row + j * b.col, b.col, columns));
    }
}

constexpr int64_t kPackedAhead = 8;

// Rows [k0, k0+kc) of `count` whole panels of columns from n0 on, where B runs along its rows: read in longer runs.
template <class T, class S>
void pack_panels(const Matrix<S>& b, int64_t k0, int64_t kc, int64_t n0, int64_t count, T* panels) {
    constexpr int NR = Blocking<T>::NR;
    constexpr int L = kLanes<T>;
    const S* src = b.data + k0 * b.row + n0;
    for (int64_t k = 0; k < kc; ++k, src += b.row)
        for (int64_t p = 0; p < count; ++p) {
            // Rows far apart are no stream that the hardware sees.
            __builtin_prefetch(src + kPackedAhead * b.row + p * NR);
#pragma GCC unroll 4
            for (int j = 0; j < NR; j += L) store(panels + (p * kc + k) * NR + j, load_as<T>(src + p * NR + j));
        }
}

template <class C>
TW_INLINE Wide<C> wide_of(C x) {
    if constexpr (__is_same(C, Wide<C>)) {
        return x;
    } else {
        return to_float(x);
    }
}

template <class C>
TW_INLINE C narrowed(Wide<C> x) {
    if constexpr (__is_same(C, Wide<C>)) {
        return x;
    } else {
        return from_float<C>(x);
    }
}

// Vector V of the pairs (a, b, c) of every term, one after the other.
template <int V, class P, int... I>
TW_INLINE P woven(P a, P b, P c, Seq<I...>) {
    constexpr int n = sizeof...(I), from = V * n;
    const P two = shuffle<((from + I) % 3 == 1 ? n + (from + I) / 3 : (from + I) / 3 % n)...>(a, b);
    return shuffle<((from + I) % 3 == 2 ? n + (from + I) / 3 : I)...>(two, c);
}

// kLanes terms of six rows of floats as [term][6]: in place of a transpose of as many rows as a vector has lanes.
template <class S>
TW_INLINE void weave_six(const S* src, int64_t row, float* to) {
    typedef Vec<float> V;
    typedef Vec<double> P;
    constexpr int L = kLanes<float>;
    V r[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) r[i] = load_as<float>(src + i * row);
    const auto half = [&](P a, P b, P c, float* at) __attribute__((always_inline)) {
        store(at, bitcast<V>(woven<0>(a, b, c, Indices<P>{})));
        store(at + L, bitcast<V>(woven<1>(a, b, c, Indices<P>{})));
        store(at + 2 * L, bitcast<V>(woven<2>(a, b, c, Indices<P>{})));
    };
    half(bitcast<P>(zip_low(r[0], r[1])), bitcast<P>(zip_low(r[2], r[3])), bitcast<P>(zip_low(r[4], r[5])), to);
    half(bitcast<P>(zip_high(r[0], r[1])), bitcast<P>(zip_high(r[2], r[3])), bitcast<P>(zip_high(r[4], r[5])),
         to + 3 * L);
}

// Rows [m0, m0+m) of columns [k0, k0+kc) of A, m <= kMR, as [kc][kMR]. `below` rows lie in A from m0 on.
template <class T, class S>
void pack_rows(const Matrix<S>& a, int64_t m0, int m, int64_t below, int64_t k0, int64_t kc, T* panel) {
    constexpr int L = kLanes<T>;
    // A vector is wider than kMR: what it writes too far is overwritten by the rows and terms that come after it.
    constexpr int kTall = (kMR + L - 1) / L * L;
    const S* src = a.data + m0 * a.row + k0 * a.col;
    int64_t k = 0;
    if (a.row == 1) {
        for (; below >= kTall && k * kMR + kTall <= kc * kMR; ++k, src += a.col, panel += kMR)
#pragma GCC unroll 4
            for (int i = 0; i < kTall; i += L) store(panel + i, load_as<T>(src + i));
        for (; k < kc; ++k, src += a.col, panel += kMR)
            for (int i = 0; i < m; i += L) {
                const int lanes = m - i < L ? m - i : L;
                store_n(panel + i, load_as_n<T>(src + i, lanes), lanes);
            }
        return;
    }
    if constexpr (kVectorRegisters >= 32 && __is_same(T, float) && kMR == 6)
        for (; a.col == 1 && below >= kMR && k + L <= kc; k += L) weave_six(src + k, a.row, panel + k * kMR);
    if (a.col == 1 && below >= kTall)
        for (; k + 2 * L <= kc; k += L)
#pragma GCC unroll 4
            for (int i = kTall - L; i >= 0; i -= L)
                transpose_wide(src + i * a.row + k, a.row, panel + k * kMR + i, kMR);
    for (; k < kc; ++k)
        for (int i = 0; i < m; ++i) panel[k * kMR + i] = wide_of(src[i * a.row + k * a.col]);
}

// Rows [m0, m0+m) of columns [k0, k0+kc) of an A that runs along k, as [m][kc].
template <class T, class S>
void pack_along(const Matrix<S>& a, int64_t m0, int m, int64_t k0, int64_t kc, T* rows) {
    constexpr int L = kLanes<T>;
    for (int i = 0; i < m; ++i, rows += kc) {
        const S* const src = a.data + (m0 + i) * a.row + k0;
        int64_t k = 0;
        for (; k + L <= kc; k += L) store(rows + k, load_as<T>(src + k));
        if (k < kc) store_n(rows + k, load_as_n<T>(src + k, kc - k), kc - k);
    }
}

// Vector v of term k of a prepared panel that begins with a step of 32 terms.
template <class S>
TW_INLINE f32v prepared_term(const S* panel, int64_t k, int v) {
    const auto* const word =
        reinterpret_cast<const uint32_t*>(panel + k / kPackedTerms * (kPackedTile * kNV) + v * kPackedTile) +
        k % kPackedTerms / 2 * kLanes<float>;
    return bitcast<f32v>(k % 2 ? load(word) & 0xffff0000u : load(word) << 16);
}

// Prepared panels of narrow numbers, `step` apart, widened side by side: as many streams from memory.
template <class T, class S>
void widen_panels(const S* from, int64_t step, int64_t count, int64_t kc, T* panels) {
    constexpr int NR = Blocking<T>::NR;
    constexpr int L = kLanes<T>;
    for (int64_t k = 0; k < kc; ++k)
        for (int64_t p = 0; p < count; ++p)
#pragma GCC unroll 4
            for (int j = 0; j < NR; j += L)
                if constexpr (kPackedTiles<S>)
                    store(panels + (p * kc + k) * NR + j, prepared_term(from + p * step, k, j / L));
                else
                    store(panels + (p * kc + k) * NR + j, load_as<T>(from + p * step + k * NR + j));
}

}  // namespace
}  // namespace tw::TW_ISA
