// C = activation(alpha (bias + A B) + beta addend) on tiles of bf16, of float and 16-bit matrices: what a tier with tiles lends
// the ops of the tiers below (core/tile_kernels.h).
//
// Method    gemm/pieces.h. A block of C stays in L2 as sums while blocks of k pass: panels of B are split for all of its rows,
//           each tile of rows just before all panels are multiplied by it: split numbers never leave L2, and are split
//           again for every block of C. bf16, and f16 where the CPU has tiles of it, need no splitting: a B that was
//           prepared in tiles is read where it lies, and rows of A are copied, and sums become C, between the products of
//           the tile before and after.
//           Of two pieces, all panels pass a tile of rows whose steps stay in L1, and what a panel needs first is loaded
//           before the sums of the one before are stored.
// Numerics  sums are float, rounded once at the store. f16 leaves out the products of two second pieces, each at most
//           2^-16 |a b|, where the store rounds to 2^-11: what sums of f16 that cancel may lose. A number of at most 8
//           significant bits has no second piece: products with one are exact. Second pieces that are all zero are not
//           multiplied, which changes no bit. Units of C whose operands' exponents do not fit are left to the tier
//           below: a choice by the operands alone.
// Threads   blocks of C are independent; k is never split between threads.
#include "gemm/tile_products.h"

#include "gemm/gemm.h"
#include "gemm/split.h"

#if defined(TW_TILES)
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/beside.h"
#include "gemm/micro.h"

namespace tw::TW_ISA {
namespace {

// Of a block of C at most; where k is in blocks, its sums.
constexpr int64_t kMostTiles = 64, kSumBytes = 1 << 20, kSumBytesOfTwo = 4 << 20;
constexpr int64_t kTurns = 4, kSlots = kTurns + 1;  // panels that take turns; places of sums, one still being stored
constexpr int64_t kRightBytes = 1 << 20, kRightBytesOfTwo = 3 << 18;  // of B that stay in L2
constexpr int64_t kFewTiles = 8, kFewSteps = 8, kFewBytes = 400 << 10;  // of few rows of A and a deep B

typedef bool Below(const void* gemm);

// What products of all types share.
template <class C, class A, class B>
struct Products {
    typedef Gemm<C, A, B> Product;
    const Product& g;
    Below* const below;
    int64_t tiles, pairs, steps;
    int64_t tall = 0, wide = 0;  // of a block of C, in tiles and pairs of panels
    bool simple;  // nothing is done with sums but to store them
    const bool alone;  // one of several products that threads share

    Products(const Product& product, Below* other, bool shared) : g(product), below(other), alone(shared) {
        tiles = ceil_div(g.m, kTallRows), pairs = ceil_div(g.n, kPairColumns), steps = ceil_div(g.k, kPieceTerms);
        simple = g.c_col == 1 && !g.bias_row && !g.bias_col && g.alpha == 1 && !g.addend.data &&
                 g.activation == Activation::none && !g.accumulate;
    }

    // Large blocks split each number seldom, small ones occupy all threads.
    // A number of A, or of B, is split and read in the time of so many products.
    void choose_blocks(double of_a, double of_b, int64_t most_sums, int64_t most_wide) {
        const int64_t threads = alone ? 1 : num_threads();
        double least = 0;
        int64_t tallest = kMostTiles;
        while (tallest / 2 >= tiles) tallest /= 2;
        for (int64_t t = tallest; t >= 1; t /= 2)
            for (int64_t w = min_of(min_of(kMostPairs, pairs), most_wide); w >= 1; --w) {
                const int64_t rows = min_of(t, tiles), columns = min_of(w, pairs);
                if (rows * columns * 2 * kTileSums * 4 > most_sums) continue;
                const int64_t turns = ceil_div(ceil_div(tiles, rows) * ceil_div(pairs, columns), threads);
                constexpr double wake = 40000;  // a thread comes to help in the time of so many
                const double cost = static_cast<double>(turns) *
                                        (static_cast<double>(rows * columns * kPairColumns) +
                                         of_a * static_cast<double>(rows) + of_b * static_cast<double>(2 * columns)) +
                                    (rows < tiles || columns < pairs ? wake / static_cast<double>(g.k) : 0);
                if (least == 0 || cost < least) least = cost, tall = rows, wide = columns;
            }
    }

    // The product of rows [i0, i0 + m) and columns [j0, j0 + n), as the tier below has it.
    __attribute__((noinline)) bool leave(int64_t i0, int64_t m, int64_t j0, int64_t n) const {
        Product part = g;
        part.m = m, part.n = n;
        part.a.data += i0 * g.a.row;
        part.c += i0 * g.c_row + j0 * g.c_col;
        if (g.bias_row) part.bias_row += i0;
        if (g.bias_col) part.bias_col += j0;
        if (g.addend.data) part.addend.data += i0 * g.addend.row + j0 * g.addend.col;
        static_assert(Blocking<float>::NR == kPairColumns);
        if (g.packed_b)
            part.packed_b += j0 / kPairColumns * packed_panel<B>(g.k);
        else
            part.b.data += j0 * g.b.col;
        return below(&part);
    }

    template <class Block>
    bool run_blocks(const char* kernel, const Block& block) const {
        note_kernel(kernel);
        const int64_t across = ceil_div(pairs, wide);
        bool enough = true;
        parallel(ceil_div(tiles, tall) * across, [&](int64_t chunk) {
            const int64_t t0 = chunk / across * tall, p0 = chunk % across * wide;
            if (!block(t0, min_of(t0 + tall, tiles), p0, min_of(p0 + wide, pairs)))
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
        return enough;
    }

    int64_t terms(int64_t s0, int64_t s1) const { return min_of(s1 * kPieceTerms, g.k) - s0 * kPieceTerms; }
    int64_t rows_of(int64_t tile) const { return min_of(g.m - tile * kTallRows, kTallRows); }
    int64_t panels_of(int64_t pair) const { return pair * kPairColumns + kPanelColumns < g.n ? 2 : 1; }
    bool whole(int64_t tile, int64_t n0) const { return rows_of(tile) % kTileRows == 0 && g.n - n0 >= kPanelColumns; }

    __attribute__((noinline)) void finish(const float* sums, int64_t m0, int64_t n0) const {
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

    __attribute__((noinline)) void finish_rows(const float* sums, int64_t m, int64_t n, C* c, int64_t c_row,
                                               int64_t c_col, const float* of_row, const float* of_column,
                                               const Matrix<C>& addend) const {
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

// `Whole`: f16 is multiplied as it is, by an instruction of its own.
template <class C, class A, class B, bool Whole = false>
struct Engine : Products<C, A, B> {
    static constexpr int P = Whole ? 1 : kPieces<A> > kPieces<B> ? kPieces<A> : kPieces<B>;
    static constexpr TileKind kKind = Whole ? TileKind::f16 : TileKind::bf16;
    static constexpr int64_t kStepBytes = P * kPieceBytes;
    // Steps of one visit to the sums, if there are no more; those of a visit where there are; of a block.
    static constexpr int64_t kNearSteps = P == 1 ? 16 : P == 2 ? 8 : 5, kVisitSteps = P == 3 ? 3 : 8;
    static constexpr int64_t kMostSteps = P == 1 ? 64 : P == 2 ? 16 : 21;
    static constexpr int64_t kCalls = P == 3 ? 2 : 1;  // of what is done beside each step
    typedef Products<C, A, B> Base;
    typedef Beside<C, A, P> Besides;
    using Base::g, Base::tiles, Base::pairs, Base::steps, Base::tall, Base::wide, Base::simple;
    using Base::terms, Base::rows_of, Base::panels_of, Base::whole, Base::leave, Base::finish;
    int64_t k_blocks, block_steps;
    bool in_place;  // a prepared B, read where it lies
    bool plain;  // simple, and whole tiles can go to C as they are

    Engine(const Gemm<C, A, B>& product, Below* other, bool shared = false) : Base(product, other, shared) {
        in_place = P == 1 && kPackedTiles<B> && g.packed_b;
        plain = __is_same(C, float) && simple;
        // Few rows: B is split for little, and what is read of it takes the place of what was split.
        const bool few = tiles <= kFewTiles && steps > kMostSteps && !in_place;
        k_blocks = ceil_div(steps, few ? kFewSteps : kMostSteps);
        block_steps = ceil_div(steps, k_blocks);
        Base::choose_blocks(10,
                            in_place ? 2
                            : P == 1 ? 50
                                     : 30,
                            k_blocks == 1 ? INT64_MAX
                            : P == 2      ? kSumBytesOfTwo
                                          : kSumBytes,
                            max_of(1, (few      ? g.packed_b ? 2 * kFewBytes : kFewBytes
                                       : P == 2 ? kRightBytesOfTwo
                                                : kRightBytes) /
                                          (2 * block_steps * kStepBytes)));
    }

    bool run() const {
        if constexpr (kShares)
            if (const int64_t count = min_of(4, steps / 64 * 2); count > 1 && tiles * pairs <= 8 && !g.packed_b)
                return run_shares(count);
        return Base::run_blocks(
            Whole        ? "tiles of f16"
            : g.packed_b ? "tiles prepared"
                         : "tiles",
            [this](int64_t t0, int64_t t1, int64_t p0, int64_t p1) { return run_block(t0, t1, p0, p1); });
    }

    // Few blocks of C, a long k: shares of it are products of their own, as many as the shape says, whatever the threads.
    static constexpr bool kShares = __is_same(C, float) && __is_same(A, float) && __is_same(B, float);
    __attribute__((noinline)) bool run_shares(int64_t count) const {
        const int64_t row = 2 * pairs * kPanelColumns, size = tiles * kTallRows * row;
        const int64_t each = ceil_div(steps, count) * kPieceTerms;
        Scratch scratch(static_cast<size_t>(count * size) * sizeof(float));
        float* const sums = scratch.as<float>();
        if (!sums) return false;
        bool enough = true;
        const bool done = parallel(count, [&](int64_t i) {
            Gemm<C, A, B> part{};
            part.m = g.m, part.n = g.n, part.k = min_of(each, g.k - i * each);
            part.a = {g.a.data + i * each * g.a.col, g.a.row, g.a.col};
            part.b = {g.b.data + i * each * g.b.row, g.b.row, g.b.col};
            if constexpr (kShares) part.c = sums + i * size, part.c_row = row, part.c_col = 1;
            const Engine share(part, Base::below, true);
            if (!share.run_blocks("tiles", [&](int64_t t0, int64_t t1, int64_t p0, int64_t p1) {
                return share.run_block(t0, t1, p0, p1);
            }))
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
        if (!done || !enough) return enough;
        note_kernel("tiles");  // the thread that called may have had no share
        for (int64_t t = 0; t < tiles; ++t)
            for (int64_t p = 0; p * kPanelColumns < g.n; ++p) {
                alignas(kVecBytes) float all[kTileSums];
                for (int64_t j = 0; j < kTileSums; j += kLanes<float>) {
                    const float* const from =
                        sums + (t * kTallRows + j / kPanelColumns) * row + p * kPanelColumns + j % kPanelColumns;
                    f32v v = load(from);
                    for (int64_t i = 1; i < count; ++i) v += load(from + i * size);
                    store(all + j, v);
                }
                finish(all, t * kTallRows, p * kPanelColumns);
            }
        return true;
    }

    // ---- operands ---------------------------------------------------------------------------------------------------

    // Bytes between rows of A: of bf16 an odd number of lines, so that they fall into different sets; and between steps.
    int64_t left_row() const { return P == 1 ? (block_steps | 1) * kTileBytes : kTileBytes; }
    static constexpr int64_t kLeftStep = P == 1 ? kTileBytes : kStepBytes;

    // Rows of a tile of A for steps [s0, s1): at once, or beside as many `steps` of products to come.
    void take_rows(int64_t tile, int64_t s0, int64_t s1, char* to, ExponentRange& range, Besides& beside,
                   int64_t products) const {
        const A* const from = g.a.data + tile * kTallRows * g.a.row + s0 * kPieceTerms * g.a.col;
        const int64_t k = terms(s0, s1), rows = rows_of(tile);
        const int64_t whole = g.a.col != 1 || products == 0 || (!kShares && k % kPieceTerms != 0) ? 0 : k / kPieceTerms;
        if (whole * kPieceTerms < k) {
            const A* const rest = from + whole * kPieceTerms * g.a.col;
            if constexpr (P == 1)
                copy_left(reinterpret_cast<const uint16_t*>(rest), g.a.row, g.a.col, rows, k,
                          reinterpret_cast<uint16_t*>(to), range, left_row() / 2);
            else
                split_left<P, kShares>(rest, g.a.row, g.a.col, rows, k - whole * kPieceTerms, to + whole * kStepBytes,
                                       range);
        }
        if (whole == 0) return;
        beside.from = from, beside.from_row = g.a.row;
        beside.to = to, beside.to_row = left_row(), beside.to_step = kLeftStep;
        beside.steps = whole, beside.step = 0, beside.row_of_a = 0, beside.rows_of_a = rows;
        beside.steps_each = ceil_div(rows * whole, products * kCalls);
        beside.seen = Seen<P>{};
    }

    const char* packed_at(int64_t pair) const {
        return reinterpret_cast<const char*>(g.packed_b + pair * packed_panel<B>(g.k));
    }

    // Pairs [p0, p1) of panels `panel` bytes apart.
    void split_columns(int64_t p0, int64_t p1, int64_t s0, int64_t s1, char* to, int64_t panel,
                       ExponentRange* seen) const {
        const int64_t k0 = s0 * kPieceTerms, all = p1 - p0, own = packed_panel<B>(g.k);
        const int64_t n = min_of(all * kPairColumns, g.n - p0 * kPairColumns);
        const B* const from = g.b.data + k0 * g.b.row + p0 * kPairColumns * g.b.col;
        if constexpr (P == 1) {
            if (g.packed_b) {
                for (int64_t p = 0; p < all; ++p)
                    pack_pairs_along(reinterpret_cast<const uint16_t*>(g.packed_b + (p0 + p) * own + k0 * kPairColumns),
                                     kPairColumns, terms(s0, s1), 2, to + 2 * p * panel, panel, seen + p);
                return;
            }
            const auto* const halves = reinterpret_cast<const uint16_t*>(from);
            const int64_t along = g.b.col == 1 ? n / kPanelColumns : 0;
            if (along) pack_pairs_along(halves, g.b.row, terms(s0, s1), along, to, panel, seen);
            for (int64_t i = along; i * kPanelColumns < n; ++i)
                pack_pairs(halves + i * kPanelColumns * g.b.col, g.b.row, g.b.col, terms(s0, s1),
                           min_of(n - i * kPanelColumns, kPanelColumns), reinterpret_cast<uint32_t*>(to + i * panel),
                           seen[i / 2]);
        } else if (!g.packed_b) {
            split_right<P, kShares>(from, g.b.row, g.b.col, kPairColumns * g.b.col, all, terms(s0, s1), n, to, panel,
                                    seen);
        } else if constexpr (kPackedTiles<B>) {
            alignas(kVecBytes) float step[kPieceTerms * kPairColumns];
            for (int64_t p = 0; p < all; ++p)
                for (int64_t s = s0; s < s1; ++s) {
                    widen_panels(g.packed_b + (p0 + p) * own + s * kPieceTerms * kPairColumns, 0, 1, kPieceTerms, step);
                    split_right<P>(step, kPairColumns, 1, 0, 1, kPieceTerms, kPairColumns,
                                   to + 2 * p * panel + (s - s0) * kStepBytes, panel, seen + p);
                }
        } else {
            split_right<P>(g.packed_b + p0 * own + k0 * kPairColumns, kPairColumns, 1, own, all, terms(s0, s1),
                           all * kPairColumns, to, panel, seen);
        }
    }

    bool fits(const ExponentRange& a, const ExponentRange& b) const {
        if (Whole) return true;
        if (P == 2) return a.most < 255 && b.most < 255;
        return ranges_fit(a, b, g.k);
    }

    // ---- a block of C -----------------------------------------------------------------------------------------------

    // One panel by one tile of rows, some steps of them.
    void multiply(const TileBlock& b, int64_t rows, C* to, Besides& beside) const {
        if constexpr (P == 1) {
            rows > kTileRows ? multiply_tall<kKind>(b, [&](int64_t) { beside.work(); }) : multiply_low<kKind>(b);
        } else {
            PieceBlock& pieces = beside.pieces;
            pieces.steps = b.steps, pieces.a = b.a, pieces.b = b.b;
            pieces.c = static_cast<float*>(b.c), pieces.load_c = b.load_c;
            if constexpr (__is_same(C, float)) pieces.to = to, pieces.to_row = g.c_row;
            multiply_pieces<P, true>(pieces, rows, [&](int64_t, int part) {
                if (part % 2) beside.work();
            });
        }
    }

    // A tile of rows by all panels, of numbers in two pieces.
    void multiply_row(const PanelRow& row, int64_t rows, Besides& beside, const auto& after) const {
        const auto work = [&] { beside.work(); };
        if constexpr (P == 2)
            rows > kTileRows ? multiply_panels<true>(row, work, after) : multiply_panels<false>(row, work, after);
    }

    // Whole sums become numbers of C: beside the next products, where nothing else is done with them.
    void settle(const float* own, int64_t t, int64_t n0, int64_t products, Besides& beside) const {
        if (!simple || !whole(t, n0)) return finish(own, t * kTallRows, n0);
        beside.sums = own, beside.c = g.c + t * kTallRows * g.c_row + n0, beside.c_row = g.c_row;
        beside.row_of_c = 0, beside.rows_of_c = rows_of(t);
        beside.rows_each = ceil_div(kTallRows, products * kCalls);
    }

    __attribute__((noinline)) bool run_block(int64_t t0, int64_t t1, int64_t p0, int64_t p1) const {
        const int64_t panels = 2 * (p1 - p0) - (panels_of(p1 - 1) == 1), panel_bytes = block_steps * kStepBytes + 256;
        const int64_t right_bytes = in_place ? 0 : 2 * (p1 - p0) * panel_bytes;
        const int64_t left_bytes = P == 1 ? kTallRows * left_row() : block_steps * kStepBytes;
        const int64_t kept = k_blocks > 1 ? (t1 - t0) * panels : P == 2 ? panels : kSlots;
        Scratch scratch(static_cast<size_t>(right_bytes + 2 * left_bytes + kept * kTileSums * 4));
        char* const right = scratch.as<char>();
        if (!right) return false;
        char* left = right + right_bytes;
        char* other = left + left_bytes;
        float* const sums = reinterpret_cast<float*>(other + left_bytes);
        ExponentRange of_rows[kMostTiles], of_columns[kMostPairs];
        for (int64_t p = p0; in_place && p < p1; ++p)
            __builtin_memcpy(of_columns + p - p0, packed_at(p + 1) - kRangeLine * 2, sizeof(ExponentRange));
        Besides beside;
        TileBlock b = {0, nullptr, left_row(), nullptr, nullptr, kPanelColumns * 4, false};
        // Sums become C when the next product is under way: they would wait for their tiles.
        const float* pending = nullptr;
        int64_t pending_m = 0, pending_n = 0, turn = 0;
        const auto finish_pending = [&] {
            if (pending) finish(pending, pending_m, pending_n);
            pending = nullptr;
        };
        tiles_begin();
        take_rows(t0, 0, min_of(block_steps, steps), left, of_rows[0], beside, 0);
        for (int64_t block = 0; block < k_blocks; ++block) {
            const int64_t s0 = block * block_steps, s1 = min_of(s0 + block_steps, steps);
            const bool last = block + 1 == k_blocks;
            const int64_t visit = s1 - s0 > kNearSteps ? kVisitSteps : s1 - s0;
            if (!in_place) split_columns(p0, p1, s0, s1, right, panel_bytes, of_columns);
            bool rest = false;
            for (int64_t p = p0; p < p1; ++p) rest |= of_columns[p - p0].rest;
            for (int64_t t = t0; t < t1; ++t) {
                const bool down = t + 1 < t1;
                const int64_t next = down ? t + 1 : t0;
                if (down)
                    take_rows(next, s0, s1, other, of_rows[next - t0], beside, panels * (s1 - s0));
                else if (!last)
                    take_rows(next, s1, min_of(s1 + block_steps, steps), other, of_rows[0], beside, panels * (s1 - s0));
                for (int64_t v = s0; P == 2 && v < s1; v += visit) {
                    const int64_t count = min_of(visit, s1 - v);
                    const bool ends = last && v + visit >= s1;
                    const PanelRow row = {count,
                                          panels,
                                          left + (v - s0) * kStepBytes,
                                          right + (v - s0) * kStepBytes,
                                          panel_bytes,
                                          sums + (k_blocks > 1 ? (t - t0) * panels * kTileSums : 0),
                                          v > 0,
                                          of_rows[t - t0].rest,
                                          rest};
                    multiply_row(row, rows_of(t), beside, [&](int64_t p) {
                        beside.store_rows(kTallRows);
                        if (ends && fits(of_rows[t - t0], of_columns[p / 2]))
                            settle(row.c + p * kTileSums, t, p0 * kPairColumns + p * kPanelColumns, count, beside);
                    });
                }
                for (int64_t first = 0; P != 2 && first < panels; first += kTurns, turn += kTurns)
                    for (int64_t v = s0; v < s1; v += visit)
                        for (int64_t p = first; p < min_of(first + kTurns, panels); ++p) {
                            const int64_t n0 = p0 * kPairColumns + p * kPanelColumns;
                            const int64_t slot = k_blocks > 1 ? (t - t0) * panels + p : (turn + p - first) % kSlots;
                            float* const own = sums + slot * kTileSums;
                            const bool ends = last && v + visit >= s1, easy = simple && whole(t, n0);
                            b.steps = min_of(visit, s1 - v), b.c = own, b.load_c = v > 0;
                            b.a = left + (v - s0) * kLeftStep;
                            b.b = right + p * panel_bytes + (v - s0) * kStepBytes;
                            if (in_place) {
                                b.b = packed_at(p0 + p / 2) + (2 * v + p % 2) * kPanelStep;
                                b.b_row = kTileBytes, b.b_right = kTileRows * kTileBytes, b.b_step = 2 * kPanelStep;
                            }
                            C* const c = plain && ends && easy ? g.c + t * kTallRows * g.c_row + n0 : nullptr;
                            multiply(b, rows_of(t), c, beside);
                            beside.store_rows(kTallRows);
                            finish_pending();
                            if (!ends || c || !fits(of_rows[t - t0], of_columns[p / 2])) continue;
                            if (easy)
                                settle(own, t, n0, b.steps, beside);
                            else
                                pending = own, pending_m = t * kTallRows, pending_n = n0;
                        }
                beside.split_steps(INT64_MAX);
                if (beside.rows_of_a > 0) join(of_rows[next - t0], beside.seen.range());
                beside.rows_of_a = 0;
                char* const used = left;
                left = other, other = used;
            }
        }
        beside.store_rows(kTallRows);
        finish_pending();
        tiles_end();
        bool enough = true;
        for (int64_t t = t0; t < t1; ++t)
            for (int64_t p = p0; p < p1; ++p)
                if (!fits(of_rows[t - t0], of_columns[p - p0]))
                    enough &= leave(t * kTallRows, rows_of(t), p * kPairColumns,
                                    min_of(g.n - p * kPairColumns, kPairColumns));
        return enough;
    }
};

template <class C, class A, class B, bool Whole = false>
bool product(const void* gemm, Below* below) {
    typedef Engine<C, A, B, Whole> Own;
    const auto& g = *static_cast<const Gemm<C, A, B>*>(gemm);
    // One piece is multiplied in the same order either way.
    if constexpr (Own::P == 1) {
        if (!g.packed_b && g.b.col != 1 && g.b.row == 1 && (g.a.col != 1 || g.m < g.n)) {
            // Rows of A need no transpose, and those of the smaller matrix less.
            Gemm<C, A, B> t = g;
            t.m = g.n, t.n = g.m;
            t.a = {g.b.data, g.b.col, g.b.row};
            t.b = {g.a.data, g.a.col, g.a.row};
            t.c_row = g.c_col, t.c_col = g.c_row;
            t.bias_row = g.bias_col, t.bias_col = g.bias_row;
            t.addend = {g.addend.data, g.addend.col, g.addend.row};
            return Own(t, below).run();
        }
    }
    return Own(g, below).run();
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
bool product_f16_whole(const void* gemm, Below* below) { return product<f16, f16, f16, true>(gemm, below); }
bool product_bf16(const void* gemm, Below* below) { return product<bf16, bf16, bf16>(gemm, below); }
bool product_f32_f16(const void* gemm, Below* below) { return product<float, float, f16>(gemm, below); }
bool product_f32_bf16(const void* gemm, Below* below) { return product<float, float, bf16>(gemm, below); }

}  // namespace tw::TW_ISA
#endif
