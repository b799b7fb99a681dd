// One GEMM: which operands are packed or read in place, the loops around the register tile, and who runs what.
#pragma once
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/ahead.h"
#include "gemm/few_rows.h"
#include "gemm/pack.h"
#include "gemm/tile.h"

namespace tw::TW_ISA {
namespace {

// One copy of what several regimes call.
#define TW_NOINLINE __attribute__((noinline))

template <class C, class A, class B>
struct Engine {
    typedef Wide<C> T;
    typedef Blocking<T> Block;
    static constexpr int NR = Block::NR;
    // Operands of the type of the sums can be read in place, and a C of that type can hold sums between blocks.
    static constexpr bool kPlainA = __is_same(A, T), kPlainB = __is_same(B, T), kPlainC = __is_same(C, T);
    const Gemm<C, A, B>& g;
    Rows rows;
    int64_t panels, k_blocks, kc_max;
    int64_t spare = 0;  // last columns, too few for a vector, left to dot products
    bool direct_b = false, pack_a, streams;
    bool along_k;  // whether packed rows of A stay rows, which many registers read as fast as columns
    bool continues = false;  // whether this thread goes on with the terms behind these
    bool finishes;  // whether the last block has more to do than to store what it summed and activate it

    explicit Engine(const Gemm<C, A, B>& gemm) : g(gemm), rows(gemm.m), panels(ceil_div(gemm.n, NR)) {
        pack_a = !kPlainA || g.pack_a || (g.a.col != 1 && g.n > Block::kPackColumns && rows.tiles > 1);
        if constexpr (kPlainA && kPlainB)
            direct_b = !g.pack_a && !g.pack_b && !g.packed_b && g.b.col == 1 &&
                       (g.k * g.n * static_cast<int64_t>(sizeof(T)) <=
                            (g.b.row <= NR ? Block::kDenseBytes : Block::kDirectBytes) ||
                        g.m <= 2 * kMR);
        k_blocks = g.k == 0 ? 1 : ceil_div(g.k, Block::KC);
        kc_max = ceil_div(g.k, k_blocks);
        if (kPackedTiles<B> && k_blocks > 1) kc_max = ceil_div(kc_max, kPackedTerms) * kPackedTerms;
        streams = g.m * kc_max * static_cast<int64_t>(sizeof(T)) <= Block::kLeftBytes;
        // Before a wide B panel A is read slowly enough to be taken from where it is.
        pack_a = pack_a || (!streams && kVectorRegisters < 32) || (g.m > kMR && panels >= 64);
        along_k = g.pack_a ? g.a.row != 1 : kVectorRegisters >= 32 && g.a.col == 1;
        finishes = g.alpha != 1 || g.addend.data;
        const int64_t rest = g.n % kLanes<T>;
        if (kPlainA && g.pack_b && g.a.col == 1 && g.k >= 512 && g.n > kLanes<T> && panels < kStreamedPanels &&
            rest <= kColumns)
            spare = rest;
    }

    static constexpr int64_t kStreamedPanels = 8;
    static constexpr int kColumns =
        kVectorRegisters >= 32 ? 4 : 2;  // of dot products that fill the registers with kMR rows

    int64_t k_begin(int64_t block) const { return min_of(block * kc_max, g.k); }

    typedef LeftPart<T> Left;
    typedef PartialSums<T> Sums;
    bool keeps_sums() const { return !kPlainC && k_blocks > 1; }

    // Tile rows [i0, i1) of one panel of C; b points at its terms of this block.
    TW_NOINLINE void run_tiles(int64_t i0, int64_t i1, int64_t panel, int64_t block, const Left& left, const T* b,
                               int64_t b_k, const Sums& sums, const Ahead& ahead) const {
        const int64_t n0 = panel * NR;
        const int n = static_cast<int>(min_of(g.n - spare - n0, NR));
        if (n <= 0) return;
        Tile<T> t{};
        t.kc = k_begin(block + 1) - k_begin(block);
        t.b = b, t.b_k = b_k;
        t.outer = 1;
        t.ahead = ahead.at, t.ahead_step = ahead.step, t.ahead_lines = ceil_div(ahead.lines, i1 - i0);
        t.load_c = g.accumulate || block > 0;
        t.bias_col = g.bias_col && block == 0 ? g.bias_col + n0 : nullptr;
        const bool last = block == k_blocks - 1;
        t.activation = last && !finishes ? g.activation : Activation::none;
        const bool through_copy = last ? !kPlainC || g.c_col != 1 || finishes : kPlainC && g.c_col != 1;
        for (int64_t i = i0; i < i1;) {
            const int m = rows.count(i);
            const int64_t same = i < rows.extra ? min_of(rows.extra, i1) : i1, m0 = rows.begin(i);
            t.tiles = through_copy ? 1 : same - i;
            t.bias_row = g.bias_row && block == 0 ? g.bias_row + m0 : nullptr;
            if (left.packed) {
                t.a = left.packed + (i - left.first) * kMR * left.kc;
                t.a_row = along_k ? left.kc : 1, t.a_k = along_k ? 1 : kMR, t.a_tile = kMR * left.kc;
            } else if constexpr (kPlainA) {
                t.a = g.a.data + m0 * g.a.row + left.k0 * g.a.col;
                t.a_row = g.a.row, t.a_k = g.a.col, t.a_tile = m * g.a.row;
            }
            if (through_copy) {
                run_copied(t, m, n, m0, n0, block, sums);
            } else {
                if constexpr (kPlainC)
                    t.c = g.c + m0 * g.c_row + n0, t.c_row = g.c_row;
                else
                    t.c = sums.at(m0, n0), t.c_row = sums.row, t.load_c = block > 0;
                tile(t, m, n);
            }
            i += t.tiles;
            if (t.ahead) t.ahead += t.tiles * t.ahead_lines * 64;
        }
    }

    // A tile of a C that is narrow or has no neighbouring columns goes through a small dense copy.
    void run_copied(Tile<T> t, int m, int n, int64_t m0, int64_t n0, int64_t block, const Sums& sums) const {
        T copy[kMR * NR];
        C* const c = g.c + m0 * g.c_row + n0 * g.c_col;
        if (!kPlainC && block > 0)
            t.start = sums.at(m0, n0), t.start_row = sums.row;
        else if (t.load_c)
            for (int i = 0; i < m; ++i)
                for (int j = 0; j < n; ++j) copy[i * NR + j] = wide_of(c[i * g.c_row + j * g.c_col]);
        t.c = copy;
        t.c_row = NR;
        tile(t, m, n);
        store_copied(copy, NR, m, n, m0, n0, finishes && block == k_blocks - 1);
    }

    // Rows of sums, `row` apart, into C at (m0, n0).
    TW_NOINLINE void store_copied(const T* copy, int64_t row, int m, int n, int64_t m0, int64_t n0, bool finish) const {
        for (int i = 0; i < m; ++i)
            for (int j = 0; j < n; j += kLanes<T>) {
                const int lanes = n - j < kLanes<T> ? n - j : kLanes<T>;
                Vec<T> v = load_n(copy + i * row + j, lanes);
                if (finish) v = finished(v, m0 + i, n0 + j, lanes);
                C* const to = g.c + (m0 + i) * g.c_row + (n0 + j) * g.c_col;
                if (g.c_col != 1)
                    for (int lane = 0; lane < lanes; ++lane) to[lane * g.c_col] = narrowed<C>(v[lane]);
                else if (lanes == kLanes<T>)
                    store_from(to, v);
                else
                    store_from_n(to, v, lanes);
            }
    }

    // What becomes of complete sums at (i, j), (i, j + 1), ...
    Vec<T> finished(Vec<T> v, int64_t i, int64_t j, int lanes) const {
        v = v * g.alpha;
        if (g.addend.data)
            v += g.beta * take_wide<T>(g.addend.data + i * g.addend.row + j * g.addend.col, g.addend.col, lanes);
        return activate(v, g.activation);
    }

    // Whether prepared panels are multiplied where they are.
    bool stored_b() const { return kPlainB && g.packed_b; }

    TW_NOINLINE void pack(int64_t block, int64_t panel, T* to) const {
        const int64_t k0 = k_begin(block), kc = k_begin(block + 1) - k0, n0 = panel * NR, n = min_of(g.n - n0, NR);
        if (g.pack_b)
            g.pack_b(g.context, k0, kc, n0, n, to);
        else
            pack_panel(g.b, k0, kc, n0, n, to);
    }

    // Panels [j0, j0 + count) of one block, behind each other.
    void pack_some(int64_t block, int64_t j0, int64_t count, T* to) const {
        const int64_t k0 = k_begin(block), kc = k_begin(block + 1) - k0;
        int64_t done = 0;
        if (g.packed_b && !g.pack_b) {
            done = count;
            widen_panels(g.packed_b + j0 * packed_panel<B>(g.k) + k0 * NR, packed_panel<B>(g.k), count, kc, to);
        } else if (!g.pack_b && g.b.col == 1 && (count > 1 || kVectorRegisters >= 32)) {
            done = min_of(count, g.n / NR - j0);
            pack_panels(g.b, k0, kc, j0 * NR, done, to);
        }
        for (; done < count; ++done) pack(block, j0 + done, to + done * kc * NR);
    }

    const T* prepared(int64_t block, int64_t panel) const {
        if constexpr (kPlainB) return g.packed_b + panel * NR * g.k + k_begin(block) * NR;
        return nullptr;
    }

    // Runs body(i) for all chunks, on this thread alone where there is little to do.
    template <class Body>
    bool spread(int64_t chunks, const Body& body) const {
        if (g.m * g.n * g.k >= kSharedWork) return parallel(chunks, body);
        for (int64_t i = 0; i < chunks; ++i) body(i);
        return true;
    }

    // B stays where it is.
    bool run_direct() const {
        note_kernel("gemm direct");
        if constexpr (kPlainA && kPlainB) {
            const Grid q = grid<T>(rows, panels, g.k, rows.tiles);
            return parallel(q.chunks(), [&](int64_t chunk) {
                const int64_t i0 = chunk / q.across * q.tall, i1 = min_of(i0 + q.tall, rows.tiles);
                const int64_t j0 = chunk % q.across * q.wide, j1 = min_of(j0 + q.wide, panels);
                for (int64_t j = j0; j < j1; ++j)
                    for (int64_t block = 0; block < k_blocks; ++block)
                        run_tiles(i0, i1, j, block, {nullptr, 0, k_begin(block), 0},
                                  g.b.data + k_begin(block) * g.b.row + j * NR, g.b.row, {}, {});
            });
        }
        return true;
    }

    TW_NOINLINE void pack_left(int64_t i, int64_t block, T* to) const {
        const int64_t k0 = k_begin(block), kc = k_begin(block + 1) - k0;
        if (g.pack_a)
            g.pack_a(g.context, rows.begin(i), rows.count(i), k0, kc, to);
        else if (kVectorRegisters >= 32 && along_k)
            pack_along(g.a, rows.begin(i), rows.count(i), k0, kc, to);
        else
            pack_rows(g.a, rows.begin(i), rows.count(i), g.m - rows.begin(i), k0, kc, to);
    }

    // A stays in L2 while panels of B, packed by the thread that uses them, pass through L1.
    bool run_streamed() const {
        note_kernel(g.packed_b ? "gemm prepared" : "gemm streamed");
        Scratch a_scratch(pack_a ? static_cast<size_t>(rows.tiles * kMR * g.k) * sizeof(T) : 64);
        T* const a_panels = a_scratch.template as<T>();
        if (!a_panels) return false;
        const auto left = [&](int64_t block) {
            const int64_t k0 = k_begin(block);
            return Left{pack_a ? a_panels + rows.tiles * kMR * k0 : nullptr, 0, k0, k_begin(block + 1) - k0};
        };
        if (pack_a && !spread(rows.tiles, [&](int64_t i) {
            for (int64_t block = 0; block < k_blocks; ++block)
                pack_left(i, block, a_panels + rows.tiles * kMR * k_begin(block) + i * kMR * left(block).kc);
        }))
            return true;
        bool enough = true;
        // Several panels take turns with one block of A, but not so many that a thread has nothing to do.
        const int64_t wide = stored_b() ? 1 : min_of(4, ceil_div(panels, 8));
        const bool done = spread(ceil_div(panels, wide), [&](int64_t chunk) {
            const int64_t j0 = chunk * wide, j1 = min_of(j0 + wide, panels);
            Scratch scratch(stored_b() ? 64 : static_cast<size_t>(kc_max * wide * NR) * sizeof(T));
            Scratch sums(keeps_sums() ? static_cast<size_t>(g.m * wide * NR) * sizeof(T) : 64);
            T* const panel = scratch.template as<T>();
            if (!panel || !sums.template as<T>()) {
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                return;
            }
            for (int64_t block = 0; block < k_blocks; ++block) {
                if (!stored_b()) pack_some(block, j0, j1 - j0, panel);
                for (int64_t j = j0; j < j1; ++j)
                    run_tiles(0, rows.tiles, j, block, left(block),
                              stored_b() ? prepared(block, j) : panel + (j - j0) * left(block).kc * NR, NR,
                              {sums.template as<T>(), wide * NR, 0, j0 * NR}, block_after(block, j0, j1, j));
            }
        });
        return done ? enough : true;
    }

    // Narrow prepared panels [j0, j1): those of the next block, fetched while panel j of this one is multiplied.
    Ahead block_after(int64_t block, int64_t j0, int64_t j1, int64_t j) const {
        if constexpr (!kPlainB)
            if (g.packed_b && block + 1 < k_blocks && j1 - j0 == kStreams) {
                const int64_t k0 = k_begin(block + 1);
                return next_group(g.packed_b + j0 * packed_panel<B>(g.k) + k0 * NR, packed_panel<B>(g.k),
                                  (k_begin(block + 2) - k0) * NR, j - j0);
            }
        return {};
    }

    // Blocks of B, and of an A that cannot be read in place, packed by all threads, then used by all.
    bool run_blocked() const {
        note_kernel(g.packed_b ? "gemm prepared" : "gemm blocked");
        const int64_t panel_block = stored_b() ? panels : min_of(panels, Block::NC / NR);
        const int64_t row_block = min_of(rows.tiles, 4096 / kMR);
        Scratch b_scratch(stored_b() ? 64 : static_cast<size_t>((panel_block * NR + spare) * kc_max) * sizeof(T));
        Scratch a_scratch(pack_a ? static_cast<size_t>(row_block * kMR * kc_max) * sizeof(T) : 64);
        Scratch sums(keeps_sums() ? static_cast<size_t>(row_block * kMR * panel_block * NR) * sizeof(T) : 64);
        T* const b_panels = b_scratch.template as<T>();
        T* const a_panels = a_scratch.template as<T>();
        if (!b_panels || !a_panels || !sums.template as<T>()) return false;
        for (int64_t j0 = 0; j0 < panels; j0 += panel_block)
            for (int64_t i0 = 0; i0 < rows.tiles; i0 += row_block)
                for (int64_t block = 0; block < k_blocks; ++block)
                    if (!run_block(i0, min_of(row_block, rows.tiles - i0), j0, min_of(panel_block, panels - j0), block,
                                   a_panels, b_panels,
                                   {sums.template as<T>(), panel_block * NR, rows.begin(i0), j0 * NR}))
                        return true;
        return true;
    }

    // The spare columns of the last panel as runs along k.
    void stand_spare(const T* panel, int64_t kc, T* to) const {
        const int64_t from = (g.n - spare) % NR;
        for (int64_t c = 0; c < spare; ++c)
            for (int64_t k = 0; k < kc; ++k) to[c * kc + k] = panel[k * NR + from + c];
    }

    bool run_block(int64_t i0, int64_t n_rows, int64_t j0, int64_t n_panels, int64_t block, T* a_panels, T* b_panels,
                   const Sums& sums) const {
        const int64_t k0 = k_begin(block), kc = k_begin(block + 1) - k0;
        const int64_t together = kVectorRegisters >= 32 && n_panels < 16 ? 1 : 4;
        const int64_t b_jobs = stored_b() ? 0 : ceil_div(n_panels, together), a_jobs = pack_a ? ceil_div(n_rows, 8) : 0;
        if (b_jobs + a_jobs > 0 && !spread(b_jobs + a_jobs, [&](int64_t job) {
            if (job < b_jobs) {
                const int64_t j = job * together, count = min_of(together, n_panels - j);
                pack_some(block, j0 + j, count, b_panels + j * NR * kc);
                if (j0 + j + count == panels)
                    stand_spare(b_panels + (n_panels - 1) * NR * kc, kc, b_panels + n_panels * NR * kc);
                return;
            }
            const int64_t first = (job - b_jobs) * 8;
            for (int64_t i = first; i < min_of(first + 8, n_rows); ++i)
                pack_left(i0 + i, block, a_panels + i * kMR * kc);
        }))
            return false;
        Grid q = grid<T>(rows, n_panels, kc, min_of(Block::MC / kMR, n_rows));
        q.down = ceil_div(n_rows, q.tall);
        return spread(q.chunks(), [&](int64_t chunk) {
            const int64_t first = chunk / q.across * q.tall, end = min_of(first + q.tall, n_rows);
            const int64_t j_first = chunk % q.across * q.wide, j_end = min_of(j_first + q.wide, n_panels);
            const Left left = {pack_a ? a_panels : nullptr, i0, k0, kc};
            const auto right = [&](int64_t j) { return stored_b() ? prepared(block, j0 + j) : b_panels + j * NR * kc; };
            const int64_t fetched = num_threads() == 1 ? n_panels : j_end, whole = g.n / NR;
            // Few panels of a deep B are in L2 since they were packed: meanwhile the numbers of the next block arrive.
            const T* later = nullptr;
            if constexpr (kPlainB && kVectorRegisters >= 32)
                if (panels <= 4 && (block + 1 < k_blocks || continues) && !g.packed_b && !g.pack_b && g.b.col == 1 &&
                    g.b.row == g.n)
                    later = g.b.data + (k0 + kc) * g.b.row;
            for (int64_t j = j_first; j < j_end; ++j) {
                Ahead ahead{};
                if (later && j < whole) {
                    const int64_t all = whole * n_rows, size = g.n * kc;
                    ahead = next_panel(later + size * (j * n_rows + first) / all, size * (end - first) / all);
                } else if (kVectorRegisters >= 32) {
                    if (!later && j + 1 < fetched) ahead = next_panel(right(j + 1), kc * NR);
                } else if (const int64_t next = j / kStreams * kStreams + kStreams; next + kStreams <= fetched) {
                    ahead = next_group(right(next), stored_b() ? NR * g.k : NR * kc, kc * NR, j);
                }
                run_tiles(i0 + first, i0 + end, j0 + j, block, left, right(j), NR, sums, ahead);
            }
            if constexpr (kPlainA)
                if (spare && j0 + j_end == panels)
                    for (int64_t i = i0 + first; i < i0 + end; ++i)
                        run_dots(rows.begin(i), rows.count(i), g.n - spare, static_cast<int>(spare),
                                 g.a.data + rows.begin(i) * g.a.row + k0, b_panels + n_panels * NR * kc, kc, kc,
                                 block == 0, block == k_blocks - 1);
        });
    }

    // ---- few columns, both operands along k: dot products, nothing packed -------------------------------------------

    // Rows [m0, m0 + m) times columns [n0, n0 + n) over kc terms; n <= kColumns, m <= kMR.
    template <class Right>
    TW_NOINLINE void run_dots(int64_t m0, int m, int64_t n0, int n, const A* a, const Right* b, int64_t b_col,
                              int64_t kc, bool first, bool last) const {
        T sums[kMR * kColumns];
        for (int i = 0; i < m;) {
            const A* row = a + i * g.a.row;
            const int rows_here = m - i >= kMR ? kMR : m - i >= 3 ? 3 : 1;
            const auto at = [&](auto R) {
                if (rows_here == kMR)
                    dots<T, kMR, R.value>(row, g.a.row, b, b_col, kc, sums);
                else if (rows_here == 3)
                    dots<T, 3, R.value>(row, g.a.row, b, b_col, kc, sums);
                else
                    dots<T, 1, R.value>(row, g.a.row, b, b_col, kc, sums);
            };
            if (n == 1)
                at(Constant<1>{});
            else if (n == 2)
                at(Constant<2>{});
            else if (n == 3)
                at(Constant<(kColumns > 2 ? 3 : 1)>{});
            else
                at(Constant<(kColumns > 2 ? 4 : 1)>{});
            for (int r = 0; r < rows_here; ++r)
                for (int j = 0; j < n; ++j) {
                    const int64_t y = m0 + i + r, x = n0 + j;
                    C& c = g.c[y * g.c_row + x * g.c_col];
                    T v = sums[r * n + j];
                    if (g.accumulate || !first)
                        v += wide_of(c);
                    else if (g.bias_row)
                        v += g.bias_row[y];
                    else if (g.bias_col)
                        v += g.bias_col[x];
                    if (last && (finishes || g.activation != Activation::none)) v = finished(splat<T>(v), y, x, 1)[0];
                    c = narrowed<C>(v);
                }
            i += rows_here;
        }
    }

    bool few_columns() const {
        return !g.pack_b && !g.packed_b && g.a.col == 1 && g.b.row == 1 &&
               ((g.n <= 4 && g.k >= 128) || (g.n <= 32 && g.k >= 1024));
    }

    bool run_few_columns() const {
        note_kernel("gemm dots");
        const int64_t tall = min_of(rows.tiles, ceil_div(kSharedWork, kMR * g.n * g.k));
        return parallel(ceil_div(rows.tiles, tall), [&](int64_t chunk) {
            for (int64_t i = chunk * tall; i < min_of(chunk * tall + tall, rows.tiles); ++i)
                for (int64_t n0 = 0; n0 < g.n; n0 += kColumns)
                    run_dots(rows.begin(i), rows.count(i), n0, static_cast<int>(min_of(kColumns, g.n - n0)),
                             g.a.data + rows.begin(i) * g.a.row, g.b.data + n0 * g.b.col, g.b.col, g.k, true, true);
        });
    }

    // ---- few rows, B prepared: a stream of weights ------------------------------------------------------------------

    static constexpr int64_t kFewRows = 2 * kMR;
    // Numbers beyond what is multiplied: of tiles those of two steps.
    static constexpr int64_t kStreamAhead = kPackedTiles<B> ? 8 * kPackedTile : 2048 / static_cast<int64_t>(sizeof(B));

    bool run_few_rows() const {
        note_kernel("gemm rows");
        Scratch scratch(static_cast<size_t>(g.m * g.k) * sizeof(T));
        T* const a = scratch.template as<T>();
        if (!a) return false;
        for (int64_t i = 0; i < rows.tiles; ++i)
            for (int64_t k = 0; k < g.k; ++k)
                for (int64_t r = 0, m = rows.count(i); r < m; ++r)
                    a[rows.begin(i) * g.k + k * m + r] = wide_of(g.a.data[(rows.begin(i) + r) * g.a.row + k * g.a.col]);
        const int64_t side = rows.tiles == 1 ? side_by_side(rows.count(0)) : 1;
        // Narrow numbers, many rows: bound by arithmetic.
        const bool far = kVectorRegisters >= 32 && g.k >= 8 * kTurnTerms && (kPlainB || rows.tiles == 1);
        const int64_t group = far ? max_of(side, 2) : side;
        const int64_t wide = group * (1 + kSharedWork / (g.m * NR * group * g.k));
        return spread(ceil_div(panels, wide), [&](int64_t chunk) {
            const int64_t end = min_of((chunk + 1) * wide, panels);
            for (int64_t j = chunk * wide; j < end;) {
                const int64_t together = j + group <= end ? group : 1;
                run_panels(a, j, together, min_of(side, together));
                j += together;
            }
        });
    }

    static constexpr int64_t kTurnTerms = 32;

    // All rows times `together` panels, `side` at once. Two panels in turns are two streams, of which memory far away has more to
    // give than of one: both fetch half of what comes next in either. So do tiles of rows.
    void run_panels(const T* a, int64_t j, int64_t together, int64_t side) const {
        const int64_t turns = together / side, row = side * NR, panel = packed_panel<B>(g.k);
        const int64_t most = turns > 1 ? kTurnTerms : kc_max, jobs = turns * rows.tiles;
        T sums[2 * kFewRows * NR > 8 * kLanes<T> ? 2 * kFewRows * NR : 8 * kLanes<T>];
        const auto columns = [&](int64_t turn) { return static_cast<int>(min_of(g.n - (j + turn) * NR, row)); };
        for (int64_t turn = 0; turn < turns; ++turn)
            for (int64_t i = 0; i < g.m; ++i)
                for (int64_t c = 0; c < row; ++c)
                    sums[(turn * g.m + i) * row + c] = c < columns(turn) ? first_term(i, (j + turn) * NR + c) : T(0);
        for (int64_t k0 = 0; k0 < g.k; k0 += most)
            for (int64_t job = 0; job < jobs; ++job) {
                Stream<T, B> s;
                const int64_t turn = job / rows.tiles, i = job % rows.tiles, m = rows.count(i), m0 = rows.begin(i);
                s.a = a + m0 * g.k + k0 * m;
                s.panel = panel;
                s.b = g.packed_b + (j + turn) * panel + k0 * NR;
                s.k = min_of(most, g.k - k0);
                s.ahead_step = NR / jobs, s.ahead_place = side > 1 || turns > 1 ? panel : kLines<T, B> / 2 * kLine<B>;
                s.ahead = s.b - turn * panel + (jobs == 1 ? kStreamAhead : s.k * NR + job * s.k * s.ahead_step);
                s.sums = sums + (turn * g.m + m0) * row;
                rows_kernel<T, B>(static_cast<int>(m), side > 1)(s);
            }
        for (int64_t turn = 0; turn < turns; ++turn)
            for (int64_t i = 0; i < rows.tiles; ++i)
                store_copied(sums + (turn * g.m + rows.begin(i)) * row, row, rows.count(i), columns(turn),
                             rows.begin(i), (j + turn) * NR, true);
    }

    // What the sum at (i, j) begins with.
    T first_term(int64_t i, int64_t j) const {
        T v = g.accumulate ? wide_of(g.c[i * g.c_row + j * g.c_col]) : T(0);
        if (g.bias_row) v += g.bias_row[i];
        if (g.bias_col) v += g.bias_col[j];
        return v;
    }

    // Few tiles, a long k: shares of it are products of their own, as many as the shape says, whatever the threads.
    int64_t shares() const {
        if (!kPlainC || kVectorRegisters < 32 || (g.pack_b && !g.pack_a) || g.packed_b) return 1;
        return rows.tiles * panels > 48 ? 1 : min_of(4, g.k / (4 * Block::KC) * 2);
    }

    // A share whose operands packers make, from term k0 of the whole on.
    struct Later {
        const Gemm<C, A, B>& whole;
        int64_t k0;
    };
    static void pack_later_a(const void* context, int64_t m0, int m, int64_t k0, int64_t kc, T* panel) {
        const auto& own = *static_cast<const Later*>(context);
        own.whole.pack_a(own.whole.context, m0, m, own.k0 + k0, kc, panel);
    }
    static void pack_later_b(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, T* panel) {
        const auto& own = *static_cast<const Later*>(context);
        own.whole.pack_b(own.whole.context, own.k0 + k0, kc, n0, n, panel);
    }

    bool run_shares(int64_t count) const {
        note_kernel("gemm shares");
        const int64_t size = g.m * g.n, each = ceil_div(g.k, count);
        Scratch scratch(static_cast<size_t>(count * size) * sizeof(T));
        T* const sums = scratch.template as<T>();
        if (!sums) return false;
        bool enough = true, alone = num_threads() == 1;
        const bool done = parallel(count, [&](int64_t i) {
            Gemm<C, A, B> part{};
            part.m = g.m, part.n = g.n, part.k = min_of(each, g.k - i * each);
            part.a = g.a, part.a.data += i * each * g.a.col;
            part.b = g.b, part.b.data += i * each * g.b.row;
            const Later later = {g, i * each};
            part.context = &later;
            if (g.pack_a) part.pack_a = pack_later_a;
            if (g.pack_b) part.pack_b = pack_later_b;
            if constexpr (kPlainC) part.c = sums + i * size, part.c_row = g.n, part.c_col = 1;
            Engine share(part);
            share.continues = alone && i + 1 < count;
            if (!share.run()) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
        if (!done || !enough) return enough;
        for (int64_t i = 1; i < count; ++i)
            for (int64_t j = 0; j < size; ++j) sums[j] += sums[i * size + j];
        if (g.accumulate || g.bias_row || g.bias_col)
            for (int64_t j = 0; j < size; ++j) sums[j] += first_term(j / g.n, j % g.n);
        store_copied(sums, g.n, static_cast<int>(g.m), static_cast<int>(g.n), 0, 0, true);
        return true;
    }

    bool run() const {
        if (g.m == 0 || g.n == 0) return true;
        if (g.packed_b && !g.pack_a && g.m <= kFewRows && g.k > 0) return run_few_rows();
        if (few_columns()) return run_few_columns();
        if (direct_b) return run_direct();
        if (const int64_t count = shares(); count > 1) return run_shares(count);
        // Prepared panels need no packing, which is what streaming them hides: a block of A for all of them is better.
        const bool stays = streams && !(stored_b() && k_blocks > 1);
        // Few panels: where they occupy all threads, each packs its own.
        const bool alone = kVectorRegisters >= 32 && k_blocks == 1 && panels % num_threads() == 0;
        return stays && (panels >= kStreamedPanels || alone || rows.tiles == 1) && !spare ? run_streamed()
                                                                                          : run_blocked();
    }
};

}  // namespace
}  // namespace tw::TW_ISA
