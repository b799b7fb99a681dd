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

// Where tile row i of A starts, and how its numbers lie: in place, or in panels packed from tile row `first` on.
template <class T>
struct LeftPart {
    const T* packed;
    int64_t first, k0, kc;
};

// Sums of a narrow C between blocks of k: element (i, j) at data[(i - m0) * row + j - n0].
template <class T>
struct PartialSums {
    T* data;
    int64_t row, m0, n0;
    T* at(int64_t m, int64_t n) const { return data + (m - m0) * row + n - n0; }
};

// Work of about this many multiply-adds makes a chunk worth handing to another thread.
constexpr int64_t kSharedWork = int64_t{1} << 18;

// Chunks of tiles: `tall` tile rows by `wide` panels each.
struct Grid {
    int64_t tall, wide, down, across;
    int64_t chunks() const { return down * across; }
};

template <class T>
Grid grid(const Rows& rows, int64_t panels, int64_t kc, int64_t max_tall) {
    constexpr int64_t NR = Blocking<T>::NR;
    const int64_t tile_work = kMR * NR * (kc ? kc : 1);
    Grid q;
    q.tall = min_of(rows.tiles, max_tall);
    q.wide = panels;
    // Cut the longer side until there are 16 chunks or they are small enough.
    while (ceil_div(rows.tiles, q.tall) * ceil_div(panels, q.wide) < 16) {
        if (q.tall * q.wide * tile_work <= kSharedWork || (q.wide == 1 && q.tall == 1)) break;
        if (q.wide > 1 && (q.wide * NR >= q.tall * kMR || q.tall == 1))
            q.wide = ceil_div(q.wide, 2);
        else
            q.tall = ceil_div(q.tall, 2);
    }
    q.down = ceil_div(rows.tiles, q.tall);
    q.across = ceil_div(panels, q.wide);
    return q;
}

template <class T>
using Kernel = void (*)(const Tile<T>&, int);

template <class T, int NV, bool Columns, bool Masked, int kStepA = 0, int kStepB = 0>
constexpr Kernel<T> kernel_for(int m) {
    constexpr Kernel<T> table[kMR] = {
        micro<T, 1, NV, Columns, Masked, kStepA, kStepB>, micro<T, 2, NV, Columns, Masked, kStepA, kStepB>,
        micro<T, 3, NV, Columns, Masked, kStepA, kStepB>, micro<T, 4, NV, Columns, Masked, kStepA, kStepB>,
        micro<T, 5, NV, Columns, Masked, kStepA, kStepB>, micro<T, 6, NV, Columns, Masked, kStepA, kStepB>};
    return table[m - 1];
}

template <class T, bool Columns>
Kernel<T> choose_masked(int m, int n) {
    const int vectors = static_cast<int>(ceil_div(n, kLanes<T>));
    if (vectors == 1) return kernel_for<T, 1, Columns, true>(m);
    if constexpr (kNV == 4) {
        if (vectors == 2) return kernel_for<T, 2, Columns, true>(m);
        if (vectors == 3) return kernel_for<T, 3, Columns, true>(m);
    }
    return kernel_for<T, kNV, Columns, true>(m);
}

template <class T>
Kernel<T> choose(const Tile<T>& t, int m, int n) {
    constexpr int NR = Blocking<T>::NR;
    const bool whole = n == NR, panel = t.b_k == NR;
    // Tiles of doubles are compiled for unknown steps alone, to keep the library small.
    constexpr int known_a = sizeof(T) == 4 ? kMR : 0, known_b = sizeof(T) == 4 ? NR : 0;
    if (t.a_row == 1) {
        if (!whole) return choose_masked<T, true>(m, n);
        if (panel && t.a_k == kMR) return kernel_for<T, kNV, true, false, known_a, known_b>(m);
        return kernel_for<T, kNV, true, false>(m);
    }
    if (!whole || t.a_k != 1) return choose_masked<T, false>(m, n);
    return panel ? kernel_for<T, kNV, false, false, 1, known_b>(m) : kernel_for<T, kNV, false, false, 1>(m);
}

template <class T, int NV>
constexpr Kernel<T> kernel_in_pairs(int m) {
    constexpr Kernel<T> table[] = {
        micro<T, 1, NV, true, true, 0, 0, false, 2>, micro<T, 2, NV, true, true, 0, 0, false, 2>,
        micro<T, 3, NV, true, true, 0, 0, false, 2>, micro<T, 4, NV, true, true, 0, 0, false, 2>,
        micro<T, 5, NV, true, true, 0, 0, false, 2>, micro<T, 6, NV, true, true, 0, 0, false, 2>};
    return table[m - 1];
}

// Tiles that the others do not ask for: see Tile.
template <class T>
Kernel<T> choose_special(const Tile<T>& t, int m, int n) {
    if (t.offset) return micro<T, kMR, kNV, true, false, kMR, 0, true>;
    constexpr int L = kLanes<T>, NR = Blocking<T>::NR;
    if (n <= L) return kernel_in_pairs<T, 1>(m);
    if constexpr (kNV == 4 && sizeof(T) == 4) {
        if (m == kMR && n < NR && t.a_row == 1 && t.a_k == kMR && t.b_k == NR)
            return n <= 2 * L   ? micro<T, kMR, 2, true, true, kMR, NR>
                   : n <= 3 * L ? micro<T, kMR, 3, true, true, kMR, NR>
                                : micro<T, kMR, 4, true, true, kMR, NR>;
    }
    return choose(t, m, n);
}

template <class T>
TW_INLINE void tile(const Tile<T>& t, int m, int n) {
    choose(t, m, n)(t, n);
}

}  // namespace
}  // namespace tw::TW_ISA
