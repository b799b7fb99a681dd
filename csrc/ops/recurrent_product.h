// The product of a step, a few rows times weights that stay: packed once, so that a share of the units has its own part.
#pragma once
#include "gemm/gemm.h"
#include "gemm/pack.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// b (terms, blocks H) as [panel of NR units][block][terms][NR]: all blocks of some units lie together.
template <class T>
void pack_units(const Matrix<T>& b, int64_t terms, int64_t units, int64_t blocks, Wide<T>* to) {
    constexpr int64_t NR = Blocking<Wide<T>>::NR;
    parallel(ceil_div(units, NR) * blocks, [&](int64_t job) {
        const int64_t u = job / blocks * NR, column = job % blocks * units + u;
        pack_panel(b, 0, terms, column, min_of(NR, units - u), to + job * NR * terms);
    });
}
template <class W>
TW_INLINE int64_t packed_units(int64_t terms, int64_t units, int64_t blocks) {
    constexpr int64_t NR = Blocking<W>::NR;
    return ceil_div(units, NR) * NR * terms * blocks;
}

// What pack_units made, or `count` of its blocks from `first` on.
template <class W>
struct Weights {
    const W* data;
    int64_t terms, units, blocks, first, count;
};
template <class W>
TW_INLINE Weights<W> some_blocks(Weights<W> w, int64_t first, int64_t count) {
    w.first = first, w.count = count;
    return w;
}

// A panel of b and the columns of c that it adds to.
template <class W>
struct Panel {
    const W* b;
    W* c;
    int64_t width;
};

// R rows times P panels at once: with so few rows, more columns keep the multipliers busy.
template <int R, int P, class W>
TW_INLINE void few_rows(const W* a, int64_t a_row, int64_t terms, const Panel<W>* panels, int64_t c_row) {
    constexpr int64_t NR = Blocking<W>::NR, L = kLanes<W>;
    constexpr int NV = P * kNV;
    const W* b[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) b[p] = panels[p].b;
    Vec<W> sum[R][NV] = {};
    for (int64_t i = 0; i < terms; ++i) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
            const Vec<W> x = load(b[v / kNV] + i * NR + v % kNV * L);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][v] += splat(a[r * a_row + i]) * x;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
            const int64_t at = v % kNV * L, lanes = min_of(L, panels[v / kNV].width - at);
            if (lanes <= 0) continue;
            W* const c = panels[v / kNV].c + r * c_row + at;
            put(c, 1, 0, lanes, take(c, 1, 0, lanes) + sum[r][v]);
        }
}

template <class W>
TW_INLINE void few_rows(int64_t rows, const W* a, int64_t a_row, int64_t terms, const Panel<W>* panels, int64_t count,
                        int64_t c_row) {
    if (rows == 2)
        return count == 2 ? few_rows<2, 2>(a, a_row, terms, panels, c_row)
                          : few_rows<2, 1>(a, a_row, terms, panels, c_row);
    switch (count) {
        case 4: return few_rows<1, 4>(a, a_row, terms, panels, c_row);
        case 3: return few_rows<1, 3>(a, a_row, terms, panels, c_row);
        case 2: return few_rows<1, 2>(a, a_row, terms, panels, c_row);
        default: return few_rows<1, 1>(a, a_row, terms, panels, c_row);
    }
}

// c (rows, ...) += a (rows, terms) w of units [begin, end), begin a multiple of NR. In a row of c, unit u of the k-th block
// taken is at k c_block + u.
template <class W>
void add_product(const W* a, int64_t a_row, int64_t rows, const Weights<W>& w, int64_t begin, int64_t end, W* c,
                 int64_t c_row, int64_t c_block) {
    constexpr int64_t NR = Blocking<W>::NR;
    const int64_t total = ceil_div(max_of(end - begin, 0), NR) * w.count, most = rows == 1 ? 4 : 2;
    const auto panel = [&](int64_t i) __attribute__((always_inline)) {
        const int64_t u = begin + i / w.count * NR, block = i % w.count;
        return Panel<W>{w.data + (u / NR * w.blocks + w.first + block) * NR * w.terms, c + block * c_block + u,
                        min_of(NR, end - u)};
    };
    if (rows <= 0 || w.terms == 0) return;
    if (rows <= 2) {
        for (int64_t i = 0; i < total; i += most) {
            const int64_t some = min_of(most, total - i);
            Panel<W> panels[4];
            for (int64_t k = 0; k < some; ++k) panels[k] = panel(i + k);
            few_rows(rows, a, a_row, w.terms, panels, some, c_row);
        }
        return;
    }
    const int64_t tiles = ceil_div(rows, kMR);
    for (int64_t i = 0; i < total; ++i) {
        const Panel<W> own = panel(i);
        for (int64_t k = 0, first = 0; k < tiles; ++k) {
            const int64_t count = (rows - first) / (tiles - k) + ((rows - first) % (tiles - k) != 0);
            Tile<W> t{};
            t.kc = w.terms, t.a = a + first * a_row, t.a_row = a_row, t.a_k = 1;
            t.b = own.b, t.b_k = NR, t.c = own.c + first * c_row, t.c_row = c_row, t.load_c = true;
            run_tile(t, static_cast<int>(count), static_cast<int>(own.width));
            first += count;
        }
    }
}

}  // namespace
}  // namespace tw::TW_ISA
