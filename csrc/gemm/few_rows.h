// Few rows times prepared panels: every weight passes once, from memory, and is widened in registers.
#pragma once
#include "gemm/gemm.h"
#include "simd/accumulate.h"
#include "simd/convert.h"

namespace tw::TW_ISA {
namespace {

// Panels that one kernel reads side by side: enough sums to hide the latency of a multiply-add.
template <int MR>
constexpr int kSideBySide = MR * kNV >= 8 ? 1 : 8 / (MR * kNV);

// Bytes between what is multiplied and what is fetched: a stream ends at each page for the hardware, not for this.
constexpr int64_t kStreamAhead = 2048;

// sums (MR, P * NR) += a (MR, k, rows behind each other) times P panels (k, NR) behind each other, cut every kc terms.
template <class T, class B, int MR, int P>
void rows_by_panels(const T* a, const B* panels, int64_t k, int64_t kc, T* sums) {
    typedef Vec<T> V;
    constexpr int L = kLanes<T>, NR = Blocking<T>::NR, NV = P * kNV;
    for (int64_t k0 = 0; k0 < k; k0 += kc) {
        V acc[MR][NV] = {};
        const int64_t end = k0 + kc < k ? k0 + kc : k;
        const B* b = panels + k0 * NR;
        for (int64_t at = k0; at < end; ++at, b += NR) {
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const B* const from = b + p * NR * k;
#pragma GCC unroll 4
                for (int byte = 0; byte < static_cast<int>(NR * sizeof(B)); byte += 64)
                    __builtin_prefetch(reinterpret_cast<const char*>(from) + kStreamAhead + byte);
#pragma GCC unroll 4
                for (int v = 0; v < kNV; ++v) {
                    const V bv = load_as<T>(from + v * L);
#pragma GCC unroll 8
                    for (int i = 0; i < MR; ++i) accumulate(acc[i][p * kNV + v], splat<T>(a[i * k + at]), bv);
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) {
                T* const sum = sums + (i * NV + v) * L;
                store(sum, acc[i][v] + load(sum));
            }
    }
}

template <class T, class B>
using RowsKernel = void (*)(const T*, const B*, int64_t, int64_t, T*);

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
