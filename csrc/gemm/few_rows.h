// Few rows times prepared panels: every weight passes once, from memory, and is widened in registers.
#pragma once
#include "gemm/pack.h"
#include "simd/accumulate.h"
#include "simd/convert.h"

namespace tw::TW_ISA {
namespace {

// Panels that one kernel reads side by side: enough sums to hide the latency of a multiply-add.
template <int MR>
constexpr int kSideBySide = kVectorRegisters >= 32 ? (MR <= 2 ? 2 : 1)
                            : MR * kNV >= 8        ? 1
                                                   : 8 / (MR * kNV);

// One term after another: where it lies in the first of P panels, `panel` apart, and what is fetched with it: as many
// lines, half of those of a panel alone from a second place.
template <class T, class B>
struct Stream {
    const T* a;  // [k][MR]
    const B* b;  // [k][NR]
    int64_t k, panel;
    const B* ahead;
    int64_t ahead_step, ahead_place;  // from term to term, from place to place
    T* sums;  // (MR, P * NR), added to
};

template <class B>
constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(B));  // numbers
template <class T, class B>
constexpr int kLines = kPackedTiles<B> ? kNV : (Blocking<T>::NR + kLine<B> - 1) / kLine<B>;  // of a step of a panel

template <class T, class B, int P>
TW_INLINE void fetch_lines(const B* ahead, int64_t place) {
    constexpr int lines = kLines<T, B>, places = P == 1 && lines > 1 ? 2 : P;
#pragma GCC unroll 4
    for (int p = 0; p < places; ++p)
#pragma GCC unroll 4
        for (int line = 0; line < P * lines / places; ++line) __builtin_prefetch(ahead + p * place + line * kLine<B>);
}

template <class T, class B, int MR, int P>
void rows_by_panels(const Stream<T, B>& s) {
    typedef Vec<T> V;
    constexpr int L = kLanes<T>, NR = Blocking<T>::NR, NV = P * kNV;
    V acc[MR][NV] = {};
    const T* a = s.a;
    const B *b = s.b, *ahead = s.ahead;
    if constexpr (kPackedTiles<B>)
        for (int64_t k = 0; k < s.k; k += 2, a += 2 * MR, ahead += 2 * s.ahead_step) {
            const bool both = k + 1 < s.k;
            fetch_lines<T, B, P>(ahead, s.ahead_place);
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                V low[kNV], high[kNV];
#pragma GCC unroll 4
                for (int v = 0; v < kNV; ++v) {
                    low[v] = prepared_term(b + p * s.panel, k, v);
                    high[v] = prepared_term(b + p * s.panel, k + 1, v);
                }
#pragma GCC unroll 8
                for (int i = 0; i < MR; ++i) {
                    const V first = splat<T>(a[i]), second = splat<T>(both ? a[MR + i] : T(0));
#pragma GCC unroll 4
                    for (int v = 0; v < kNV; ++v) {
                        accumulate(acc[i][p * kNV + v], first, low[v]);
                        accumulate(acc[i][p * kNV + v], second, high[v]);
                    }
                }
            }
        }
    for (int64_t k = 0; !kPackedTiles<B> && k < s.k; ++k, a += MR, b += NR, ahead += s.ahead_step) {
        fetch_lines<T, B, P>(ahead, s.ahead_place);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            V bv[kNV];
#pragma GCC unroll 4
            for (int v = 0; v < kNV; ++v) bv[v] = load_as<T>(b + p * s.panel + v * L);
#pragma GCC unroll 8
            for (int i = 0; i < MR; ++i) {
                const V av = splat<T>(a[i]);
#pragma GCC unroll 4
                for (int v = 0; v < kNV; ++v) accumulate(acc[i][p * kNV + v], av, bv[v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
            T* const sum = s.sums + (i * NV + v) * L;
            store(sum, acc[i][v] + load(sum));
        }
}

template <class T, class B>
using RowsKernel = void (*)(const Stream<T, B>&);

// For m rows; `wide`: over side_by_side(m) panels, else over one.
template <class T, class B>
RowsKernel<T, B> rows_kernel(int m, bool wide) {
    constexpr RowsKernel<T, B> many[] = {rows_by_panels<T, B, 1, kSideBySide<1>>,
                                         rows_by_panels<T, B, 2, kSideBySide<2>>};
    constexpr RowsKernel<T, B> one[] = {rows_by_panels<T, B, 1, 1>, rows_by_panels<T, B, 2, 1>,
                                        rows_by_panels<T, B, 3, 1>, rows_by_panels<T, B, 4, 1>,
                                        rows_by_panels<T, B, 5, 1>, rows_by_panels<T, B, 6, 1>};
    static_assert(kMR == 6 && kSideBySide<3> == 1);
    return wide && m <= 2 ? many[m - 1] : one[m - 1];
}

TW_INLINE int side_by_side(int m) { return m == 1 ? kSideBySide<1> : m == 2 ? kSideBySide<2> : 1; }

}  // namespace
}  // namespace tw::TW_ISA
