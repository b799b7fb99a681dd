// The table of register tiles: one compiled micro() for every size that occurs.
#pragma once
#include "core/index.h"
#include "gemm/micro.h"

namespace tw::TW_ISA {
namespace {

// Rows per tile: as even as possible, so that no thin last tile remains.
struct Rows {
    int64_t tiles, base, extra;
    explicit Rows(int64_t m) : tiles(ceil_div(m, kMR)), base(tiles ? m / tiles : 0), extra(tiles ? m % tiles : 0) {}
    int64_t begin(int64_t i) const { return i * base + min_of(i, extra); }
    int count(int64_t i) const { return static_cast<int>(base + (i < extra)); }
};

template <class T>
using Kernel = void (*)(const Tile<T>&, int);

template <class T, int NV, bool Columns, bool Masked>
constexpr Kernel<T> kernel_for(int m) {
    constexpr Kernel<T> table[kMR] = {micro<T, 1, NV, Columns, Masked>, micro<T, 2, NV, Columns, Masked>,
                                      micro<T, 3, NV, Columns, Masked>, micro<T, 4, NV, Columns, Masked>,
                                      micro<T, 5, NV, Columns, Masked>, micro<T, 6, NV, Columns, Masked>};
    return table[m - 1];
}

template <class T, bool Columns>
Kernel<T> choose(int m, int n) {
    constexpr int L = kLanes<T>;
    if (n == kNV * L) return kernel_for<T, kNV, Columns, false>(m);
    const int vectors = static_cast<int>(ceil_div(n, L));
    if (vectors == 1) return kernel_for<T, 1, Columns, true>(m);
    if constexpr (kNV == 4) {
        if (vectors == 2) return kernel_for<T, 2, Columns, true>(m);
        if (vectors == 3) return kernel_for<T, 3, Columns, true>(m);
    }
    return kernel_for<T, kNV, Columns, true>(m);
}

template <class T, int NV, bool Masked>
constexpr Kernel<T> kernel_in_pairs(int m) {
    constexpr Kernel<T> table[] = {micro<T, 1, NV, true, Masked, false, 2>, micro<T, 2, NV, true, Masked, false, 2>,
                                   micro<T, 3, NV, true, Masked, false, 2>, micro<T, 4, NV, true, Masked, false, 2>,
                                   micro<T, 5, NV, true, Masked, false, 2>, micro<T, 6, NV, true, Masked, false, 2>};
    return table[m - 1];
}

// Tiles that the others do not ask for: see Tile.
template <class T>
Kernel<T> choose_special(const Tile<T>& t, int m, int n) {
    if (t.offset) return micro<T, kMR, kNV, true, false, true>;
    if (n <= kLanes<T>) return kernel_in_pairs<T, 1, true>(m);
    return choose<T, true>(m, n);
}

template <class T>
TW_INLINE void tile(const Tile<T>& t, int m, int n) {
    (t.a_row == 1 ? choose<T, true>(m, n) : choose<T, false>(m, n))(t, n);
}

}  // namespace
}  // namespace tw::TW_ISA
