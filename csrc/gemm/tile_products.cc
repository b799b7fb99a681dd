// C = activation(alpha (bias + A B) + beta addend) on tiles of bf16, of float and 16-bit matrices: what a tier with tiles lends
// the ops of the tiers below (core/tile_kernels.h).
//
// Method    gemm/pieces.h. A block of C stays in L2 as sums while blocks of k pass: panels of B are split for all of its rows,
//           each tile of rows just before all panels are multiplied by it: split numbers never leave L2, and are split
//           again for every block of C. bf16 is read in place where rows of A are
//           whole steps.
// Numerics  sums are float, rounded once at the store. Units of C whose operands' exponents do not fit are left to the tier
//           below: a choice by the operands alone.
// Threads   blocks of C are independent; k is never split between threads.
#include "gemm/tile_products.h"

#include "gemm/gemm.h"
#include "gemm/split.h"

#if defined(TW_TILES)
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/micro.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileSums = kTallRows * kPanelColumns;
constexpr int64_t kUnitTiles = 2;  // of a unit of 64 x 64
// Of a block of C at most: its sums, and its panels between two visits to them.
constexpr int64_t kMostTiles = 64, kSumBytes = 1 << 20, kPanelBytes = 400 << 10;
constexpr int64_t kLeastBlock = 24 << 10, kMostBlock = 96 << 10;  // bytes of one panel between two visits

typedef bool Below(const void* gemm);

template <class C, class A, class B>
struct Engine {
    static constexpr int P = kPieces<A> > kPieces<B> ? kPieces<A> : kPieces<B>;
    static constexpr int64_t kStepBytes = P * kPieceBytes;
    typedef Gemm<C, A, B> Product;
    const Product& g;
    Below* const below;
    int64_t tiles, pairs, steps, k_blocks, block_steps;
    int64_t tall, wide;  // of a block of C, in tiles and pairs of panels
    bool in_place = false;  // bf16 that is read where it lies
    bool simple;  // nothing is done with sums but to store them
    bool plain;  // the same, and whole tiles can

    Engine(const Product& product, Below* other) : g(product), below(other) {
        tiles = ceil_div(g.m, kTallRows), pairs = ceil_div(g.n, kPairColumns), steps = ceil_div(g.k, kPieceTerms);
        // Rows a multiple of 2 KiB apart evict each other.
        if constexpr (P == 1) in_place = g.a.col == 1 && g.k % kPieceTerms == 0 && g.a.row % 1024 != 0;
        simple = g.c_col == 1 && !g.bias_row && !g.bias_col && g.alpha == 1 && !g.addend.data &&
                 g.activation == Activation::none && !g.accumulate;
        plain = __is_same(C, float) && simple;
        choose_blocks();
        const int64_t bytes =
            P == 1 ? kPanelStep * 16 : max_of(kLeastBlock, min_of(kMostBlock, kPanelBytes / (2 * wide)));
        k_blocks = ceil_div(steps * kStepBytes, bytes);
        block_steps = ceil_div(steps, k_blocks);
        k_blocks = ceil_div(steps, block_steps);
    }

    // Large blocks split each number seldom, small ones occupy all threads.
    void choose_blocks() {
        const int64_t threads = num_threads();
        double least = 0;
        for (int64_t t = kMostTiles; t >= kUnitTiles; t /= 2)
            for (int64_t w = kMostPairs; w >= 1; w /= 2) {
                const int64_t rows = min_of(t, tiles), columns = min_of(w, pairs);
                if (rows * columns * 2 * kTileSums * 4 > kSumBytes) continue;
                const int64_t turns = ceil_div(ceil_div(tiles, rows) * ceil_div(pairs, columns), threads);
                // A number is split, and read, in the time of this many products; a thread comes to help in that of some.
                constexpr double split = P == 1 ? 50 : 30, wake = 40000;
                const double cost = static_cast<double>(turns) * (static_cast<double>(rows * columns * kPairColumns) +
                                                                  split * static_cast<double>(rows + 2 * columns)) +
                                    (rows < tiles || columns < pairs ? wake / static_cast<double>(g.k) : 0);
                if (least == 0 || cost < least) least = cost, tall = rows, wide = columns;
            }
    }

    // The product of rows [i0, i0 + m) and columns [j0, j0 + n), as the tier below has it.
    bool leave(int64_t i0, int64_t m, int64_t j0, int64_t n) const {
        Product part = g;
        part.m = m, part.n = n;
        part.a.data += i0 * g.a.row;
        part.c += i0 * g.c_row + j0 * g.c_col;
        if (g.bias_row) part.bias_row += i0;
        if (g.bias_col) part.bias_col += j0;
        if (g.addend.data) part.addend.data += i0 * g.addend.row + j0 * g.addend.col;
        static_assert(Blocking<float>::NR == kPairColumns);
        if (g.packed_b)
            part.packed_b += j0 * g.k;
        else
            part.b.data += j0 * g.b.col;
        return below(&part);
    }

    bool run() const {
        note_kernel(g.packed_b ? "tiles prepared" : "tiles");
        const int64_t across = ceil_div(pairs, wide);
        bool enough = true;
        parallel(ceil_div(tiles, tall) * across, [&](int64_t chunk) {
            const int64_t t0 = chunk / across * tall, p0 = chunk % across * wide;
            if (!run_block(t0, min_of(t0 + tall, tiles), p0, min_of(p0 + wide, pairs)))
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
        return enough;
    }

    // ---- operands ---------------------------------------------------------------------------------------------------

    const B* right_at(int64_t pair, int64_t step) const {
        const int64_t j0 = pair * kPairColumns, k0 = step * kPieceTerms;
        return g.packed_b ? g.packed_b + j0 * g.k + k0 * kPairColumns : g.b.data + k0 * g.b.row + j0 * g.b.col;
    }
    int64_t terms(int64_t s0, int64_t s1) const { return min_of(s1 * kPieceTerms, g.k) - s0 * kPieceTerms; }
    int64_t rows_of(int64_t tile) const { return min_of(g.m - tile * kTallRows, kTallRows); }
    int64_t panels_of(int64_t pair) const { return pair * kPairColumns + kPanelColumns < g.n ? 2 : 1; }

    void split_rows(int64_t tile, int64_t s0, int64_t s1, char* to, ExponentRange& seen) const {
        const A* const from = g.a.data + tile * kTallRows * g.a.row + s0 * kPieceTerms * g.a.col;
        if constexpr (P == 1)
            copy_left(reinterpret_cast<const uint16_t*>(from), g.a.row, g.a.col, rows_of(tile), terms(s0, s1),
                      in_place && rows_of(tile) % kTileRows == 0 ? nullptr : reinterpret_cast<uint16_t*>(to), seen,
                      left_row(s1 - s0) / 2);
        else
            split_left<P>(from, g.a.row, g.a.col, rows_of(tile), terms(s0, s1), to, seen);
    }

    // Pairs [p0, p1) of panels `panel` bytes apart.
    void split_columns(int64_t p0, int64_t p1, int64_t s0, int64_t s1, char* to, int64_t panel,
                       ExponentRange* seen) const {
        const B* const from = right_at(p0, s0);
        const int64_t row = g.packed_b ? kPairColumns : g.b.row, col = g.packed_b ? 1 : g.b.col;
        const int64_t pair = g.packed_b ? kPairColumns * g.k : kPairColumns * col;
        const int64_t n = min_of((p1 - p0) * kPairColumns, g.n - p0 * kPairColumns);
        if constexpr (P == 1) {
            const auto* const at = reinterpret_cast<const uint16_t*>(from);
            const int64_t along = col != 1 ? 0 : g.packed_b ? 2 : n / kPanelColumns;
            for (int64_t p = 0; along && p < (g.packed_b ? p1 - p0 : 1); ++p)
                pack_pairs_along(at + p * pair, row, terms(s0, s1), along, to + 2 * p * panel, panel, seen + p);
            for (int64_t i = g.packed_b ? 2 * (p1 - p0) : along; i * kPanelColumns < n; ++i)
                pack_pairs(at + i / 2 * pair + i % 2 * kPanelColumns * col, row, col, terms(s0, s1),
                           min_of(n - i * kPanelColumns, kPanelColumns), reinterpret_cast<uint32_t*>(to + i * panel),
                           seen[i / 2]);
        } else {
            split_right<P>(from, row, col, pair, p1 - p0, terms(s0, s1), g.packed_b ? (p1 - p0) * kPairColumns : n, to,
                           panel, seen);
        }
    }

    bool whole(int64_t tile, int64_t n0) const { return rows_of(tile) % kTileRows == 0 && g.n - n0 >= kPanelColumns; }

    bool fits(const ExponentRange& a, const ExponentRange& b) const {
        if (P == 2) return a.most < 255 && b.most < 255;
        return ranges_fit(a, b, g.k);
    }

    // Bytes between rows of a copy of A: an odd number of lines, so that they fall into different sets.
    static int64_t left_row(int64_t some) { return (some | 1) * kTileBytes; }

    // ---- a block of C -----------------------------------------------------------------------------------------------

    bool run_block(int64_t t0, int64_t t1, int64_t p0, int64_t p1) const {
        const int64_t panels = 2 * (p1 - p0) - (panels_of(p1 - 1) == 1), panel_bytes = block_steps * kStepBytes + 256;
        const int64_t left_bytes =
            P == 1 ? kTallRows * left_row(block_steps) : kTallRows * kTileBytes * block_steps * P;
        const int64_t sums_count = (t1 - t0) * panels;
        Scratch scratch(static_cast<size_t>(2 * (p1 - p0) * panel_bytes + left_bytes + sums_count * kTileSums * 4));
        char* const right = scratch.as<char>();
        if (!right) return false;
        char* const left = right + 2 * (p1 - p0) * panel_bytes;
        float* const sums = reinterpret_cast<float*>(left + left_bytes);
        ExponentRange of_rows[kMostTiles / kUnitTiles], of_columns[kMostPairs];
        bool some = true, enough = true;
        tiles_begin();
        for (int64_t block = 0; block < k_blocks && some; ++block) {
            const int64_t s0 = block * block_steps, s1 = min_of(s0 + block_steps, steps);
            const bool last = block + 1 == k_blocks;
            split_columns(p0, p1, s0, s1, right, panel_bytes, of_columns);
            for (int64_t t = t0; t < t1; ++t) {
                split_rows(t, s0, s1, left, of_rows[(t - t0) / kUnitTiles]);
                const int64_t m0 = t * kTallRows, n_rows = rows_of(t);
                for (int64_t p = 0; p < panels; ++p) {
                    const int64_t n0 = p0 * kPairColumns + p * kPanelColumns;
                    float* const own = sums + ((t - t0) * panels + p) * kTileSums;
                    const char* const next = right + (p + 1 < panels ? p + 1 : 0) * panel_bytes;
                    if constexpr (P == 1) {
                        const bool here = in_place && n_rows % kTileRows == 0;
                        const void* const a =
                            here ? static_cast<const void*>(g.a.data + m0 * g.a.row + s0 * kPieceTerms) : left;
                        const TileBlock b = {s1 - s0,
                                             a,
                                             here ? g.a.row * 2 : left_row(s1 - s0),
                                             right + p * panel_bytes,
                                             own,
                                             kPanelColumns * 4,
                                             block > 0};
                        multiply_tiles<TileKind::bf16>(b, static_cast<int>(n_rows));
                    } else {
                        PieceBlock b = {s1 - s0, left, right + p * panel_bytes, own, kPanelColumns, block > 0,
                                        left,    next};
                        if constexpr (__is_same(C, float))
                            if (plain && last && whole(t, n0)) b.to = g.c + m0 * g.c_row + n0, b.to_row = g.c_row;
                        multiply_pieces<P>(b, n_rows);
                    }
                }
                if (last && ((t - t0) % kUnitTiles == kUnitTiles - 1 || t + 1 == t1))
                    enough &= finish_units(t0, (t - t0) / kUnitTiles * kUnitTiles + t0, t + 1, p0, p1, panels, sums,
                                           of_rows, of_columns);
            }
            some = last;
            for (int64_t i = 0; i * kUnitTiles < t1 - t0; ++i)
                for (int64_t j = 0; j < p1 - p0; ++j) some |= fits(of_rows[i], of_columns[j]);
        }
        tiles_end();
        for (int64_t i = t0; i < t1 && !some; i += kUnitTiles)
            enough &= finish_units(t0, i, min_of(i + kUnitTiles, t1), p0, p1, panels, sums, of_rows, of_columns);
        return enough;
    }

    // Tiles [i, i1), a unit high.
    bool finish_units(int64_t t0, int64_t i, int64_t i1, int64_t p0, int64_t p1, int64_t panels, const float* sums,
                      const ExponentRange* of_rows, const ExponentRange* of_columns) const {
        bool enough = true;
        const int64_t m0 = i * kTallRows;
        for (int64_t j = p0; j < p1; ++j) {
            const int64_t n0 = j * kPairColumns;
            if (!fits(of_rows[(i - t0) / kUnitTiles], of_columns[j - p0])) {
                enough &= leave(m0, min_of(i1 * kTallRows, g.m) - m0, n0, min_of(n0 + kPairColumns, g.n) - n0);
                continue;
            }
            for (int64_t t = i; t < i1; ++t)
                for (int64_t p = 2 * (j - p0); p < min_of(2 * (j + 1 - p0), panels); ++p)
                    if (!plain || !whole(t, p0 * kPairColumns + p * kPanelColumns))
                        finish(sums + ((t - t0) * panels + p) * kTileSums, t * kTallRows,
                               p0 * kPairColumns + p * kPanelColumns);
        }
        return enough;
    }

    void finish(const float* sums, int64_t m0, int64_t n0) const {
        const int64_t m = min_of(g.m - m0, kTallRows), n = min_of(g.n - n0, kPanelColumns);
        const Matrix<C> addend = {g.addend.data ? g.addend.data + m0 * g.addend.row + n0 * g.addend.col : nullptr,
                                  g.addend.row, g.addend.col};
        C* const c = g.c + m0 * g.c_row + n0 * g.c_col;
        const float *const of_row = g.bias_row ? g.bias_row + m0 : nullptr, *const of_column =
                                                                                g.bias_col ? g.bias_col + n0 : nullptr;
        if (g.c_col == 1 || g.c_row != 1)
            return finish_rows(sums, m, n, c, g.c_row, g.c_col, of_row, of_column, addend);
        alignas(kVecBytes) float turned[kTileSums];
        for (int64_t i = 0; i < kTallRows; i += kLanes<float>)
            for (int64_t j = 0; j < kPanelColumns; j += kLanes<float>)
                transpose_tile(sums + i * kPanelColumns + j, kPanelColumns, turned + j * kTallRows + i, kTallRows);
        finish_rows(turned, n, m, c, g.c_col, g.c_row, of_column, of_row, {addend.data, addend.col, addend.row});
    }

    void finish_rows(const float* sums, int64_t m, int64_t n, C* c, int64_t c_row, int64_t c_col, const float* of_row,
                     const float* of_column, const Matrix<C>& addend) const {
        constexpr int L = kLanes<float>;
        for (int64_t i = 0; simple && n == kPanelColumns && i < m; ++i)
            for (int64_t j = 0; j < kPanelColumns; j += L)
                store_from(c + i * c_row + j, load(sums + i * kPanelColumns + j));
        if (simple && n == kPanelColumns) return;
        for (int64_t j = 0; j < n; j += L) {
            const int lanes = static_cast<int>(min_of(n - j, L));
            const f32v bias = of_column ? load_n(of_column + j, lanes) : f32v{};
            for (int64_t i = 0; i < m; ++i) {
                C* const to = c + i * c_row + j * c_col;
                f32v v = load(sums + i * kPanelColumns + j) + bias;
                if (of_row) v = v + splat(of_row[i]);
                if (g.accumulate) v = v + take_wide<float>(to, c_col, lanes);
                v = v * g.alpha;
                if (addend.data)
                    v += g.beta * take_wide<float>(addend.data + i * addend.row + j * addend.col, addend.col, lanes);
                if (g.activation != Activation::none) v = activate(v, g.activation);
                if (c_col != 1)
                    for (int e = 0; e < lanes; ++e) to[e * c_col] = from_float<C>(v[e]);
                else if (lanes == L)
                    store_from(to, v);
                else
                    store_from_n(to, v, lanes);
            }
        }
    }
};

template <class C, class A, class B>
bool product(const void* gemm, Below* below) {
    const auto& g = *static_cast<const Gemm<C, A, B>*>(gemm);
    // One piece is multiplied in the same order either way.
    if constexpr (__is_same(A, B) && kPieces<A> == 1)
        if (!g.packed_b && g.b.col != 1 && g.b.row == 1 && (g.a.col != 1 || g.m < g.n)) {
            // Rows of A need no transpose, and those of the smaller matrix less.
            Gemm<C, A, B> t = g;
            t.m = g.n, t.n = g.m;
            t.a = {g.b.data, g.b.col, g.b.row};
            t.b = {g.a.data, g.a.col, g.a.row};
            t.c_row = g.c_col, t.c_col = g.c_row;
            t.bias_row = g.bias_col, t.bias_col = g.bias_row;
            t.addend = {g.addend.data, g.addend.col, g.addend.row};
            return Engine<C, A, B>(t, below).run();
        }
    return Engine<C, A, B>(g, below).run();
}

}  // namespace

void pack_pairs(const uint16_t* b, int64_t row, int64_t col, int64_t k, int64_t n, uint32_t* to, ExponentRange& range) {
    Exponents seen;
    constexpr int L = kLanes<float>;
    const int64_t words = ceil_div(k, kPieceTerms) * kTileRows;
    int64_t w = 0;
    const auto put = [&](int64_t at, u32v v) __attribute__((always_inline)) {
        seen.see(bitcast<Halves>(v));
        store(to + at, v);
    };
    if (col == 1 && n == kPanelColumns) {
        for (; w < k / 2; ++w) {
            const uint16_t* const from = b + 2 * w * row;
            const Halves x = load(from), y = load(from + row);
            __builtin_prefetch(from + kPieceTerms * row), __builtin_prefetch(from + (kPieceTerms + 1) * row);
            put(w * kPanelColumns, bitcast<u32v>(zip_low(x, y)));
            put(w * kPanelColumns + L, bitcast<u32v>(zip_high(x, y)));
        }
    } else if (row == 1 && n == kPanelColumns) {
        alignas(kVecBytes) float tile[L * L], turned[L * L];
        for (; 2 * (w + L) <= k; w += L)
            for (int64_t j = 0; j < kPanelColumns; j += L) {
                for (int64_t q = 0; q < L; ++q) {
                    const uint16_t* const from = b + (j + q) * col + 2 * w;
                    __builtin_prefetch(from + 4 * L, 0, 2);
                    __builtin_memcpy(tile + q * L, from, 4 * L);
                }
                transpose_tile(tile, L, turned, L);
                for (int64_t q = 0; q < L; ++q) put((w + q) * kPanelColumns + j, bitcast<u32v>(load(turned + q * L)));
            }
    }
    for (; w < words; ++w)
        for (int64_t j = 0; j < kPanelColumns; j += L) {
            alignas(kVecBytes) uint32_t some[L];
            for (int64_t q = 0; q < L; ++q) {
                const uint16_t* const from = b + 2 * w * row + (j + q) * col;
                const bool here = j + q < n;
                const uint32_t low = here && 2 * w < k ? from[0] : 0, high = here && 2 * w + 1 < k ? from[row] : 0;
                some[q] = low | high << 16;
            }
            put(w * kPanelColumns + j, load(some));
        }
    join(range, seen.range());
}

void multiply_floats(const PieceBlock& t, int64_t rows) { multiply_pieces<kPieces<float>>(t, rows); }
void split_floats_left(const float* from, int64_t row, int64_t col, int64_t rows, int64_t k, char* to,
                       ExponentRange& range) {
    split_left<kPieces<float>>(from, row, col, rows, k, to, range);
}

bool product_f32(const void* gemm, Below* below) { return product<float, float, float>(gemm, below); }
bool product_f16(const void* gemm, Below* below) { return product<f16, f16, f16>(gemm, below); }
bool product_bf16(const void* gemm, Below* below) { return product<bf16, bf16, bf16>(gemm, below); }
bool product_f32_f16(const void* gemm, Below* below) { return product<float, float, f16>(gemm, below); }
bool product_f32_bf16(const void* gemm, Below* below) { return product<float, float, bf16>(gemm, below); }

}  // namespace tw::TW_ISA
#endif
