#include "gemm/gemm.h"

#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/micro.h"
#include "gemm/pack.h"

namespace tw::TW_ISA {
namespace {

TW_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
TW_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- the table of register tiles --------------------------------------------------------------------------------------

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

template <class T>
TW_INLINE void tile(const Tile<T>& t, int m, int n) {
    (t.a_row == 1 ? choose<T, true>(m, n) : choose<T, false>(m, n))(t, n);
}

// ---- one GEMM ------------------------------------------------------------------------------------------------------------

// Rows per tile: as even as possible, so that no thin last tile remains.
struct Rows {
    int64_t tiles, base, extra;
    explicit Rows(int64_t m) : tiles(ceil_div(m, kMR)), base(tiles ? m / tiles : 0), extra(tiles ? m % tiles : 0) {}
    int64_t begin(int64_t i) const { return i * base + min_of(i, extra); }
    int count(int64_t i) const { return static_cast<int>(base + (i < extra)); }
};

template <int N>
struct Constant {
    static constexpr int value = N;
};

template <class T>
struct Engine {
    typedef Blocking<T> B;
    static constexpr int NR = B::NR;
    const Gemm<T>& g;
    Rows rows;
    int64_t panels, k_blocks, kc_max;
    int64_t spare = 0;  // last columns, too few for a vector, left to dot products
    bool direct_b, scatter;

    explicit Engine(const Gemm<T>& gemm) : g(gemm), rows(gemm.m), panels(ceil_div(gemm.n, NR)) {
        direct_b = !g.pack_b && !g.packed_b && g.b.col == 1 &&
                   (g.k * g.n * static_cast<int64_t>(sizeof(T)) <= B::kDirectBytes || g.m <= 2 * kMR);
        k_blocks = direct_b || g.k == 0 ? 1 : ceil_div(g.k, B::KC);
        kc_max = ceil_div(g.k, k_blocks);
        scatter = g.c_col != 1;
        const int64_t rest = g.n % kLanes<T>;
        if (g.pack_b && g.a.col == 1 && g.k >= 512 && g.n > kLanes<T> && panels < kStreamedPanels && rest <= kColumns)
            spare = rest;
    }

    static constexpr int64_t kStreamedPanels = 8;
    static constexpr int kColumns =
        kVectorRegisters >= 32 ? 4 : 2;  // of dot products that fill the registers with kMR rows

    int64_t k_begin(int64_t block) const { return min_of(block * kc_max, g.k); }

    // Where tile row i of A starts, and how its numbers lie: in place, or in panels packed from tile row `first` on.
    struct Left {
        const T* packed;
        int64_t first, k0, kc;
    };

    // Tile rows [i0, i1) of one panel of C; b points at its terms of this block.
    void run_tiles(int64_t i0, int64_t i1, int64_t panel, int64_t block, const Left& left, const T* b,
                   int64_t b_k) const {
        const int64_t n0 = panel * NR;
        const int n = static_cast<int>(min_of(g.n - spare - n0, NR));
        if (n <= 0) return;
        Tile<T> t{};
        t.kc = k_begin(block + 1) - k_begin(block);
        t.b = b, t.b_k = b_k;
        t.outer = 1;
        t.c_row = g.c_row;
        t.load_c = g.accumulate || block > 0;
        t.bias_col = g.bias_col ? g.bias_col + n0 : nullptr;
        t.activation = block == k_blocks - 1 ? g.activation : Activation::none;
        for (int64_t i = i0; i < i1;) {
            const int m = rows.count(i);
            const int64_t same = i < rows.extra ? min_of(rows.extra, i1) : i1, m0 = rows.begin(i);
            t.tiles = scatter ? 1 : same - i;
            t.c = g.c + m0 * g.c_row + n0 * g.c_col;
            t.bias_row = g.bias_row ? g.bias_row + m0 : nullptr;
            if (left.packed) {
                t.a = left.packed + (i - left.first) * kMR * left.kc;
                t.a_row = g.a.row == 1 ? 1 : left.kc, t.a_k = g.a.row == 1 ? kMR : 1, t.a_tile = kMR * left.kc;
            } else {
                t.a = g.a.data + m0 * g.a.row + left.k0 * g.a.col;
                t.a_row = g.a.row, t.a_k = g.a.col, t.a_tile = m * g.a.row;
            }
            scatter ? run_scattered(t, m, n) : tile(t, m, n);
            i += t.tiles;
        }
    }

    // A tile of a C without neighbouring columns goes through a small dense copy.
    void run_scattered(Tile<T> t, int m, int n) const {
        T copy[kMR * NR];
        T* const c = t.c;
        for (int i = 0; t.load_c && i < m; ++i)
            for (int j = 0; j < n; ++j) copy[i * NR + j] = c[i * g.c_row + j * g.c_col];
        t.c = copy;
        t.c_row = NR;
        tile(t, m, n);
        for (int i = 0; i < m; ++i)
            for (int j = 0; j < n; ++j) c[i * g.c_row + j * g.c_col] = copy[i * NR + j];
    }

    void pack(int64_t block, int64_t panel, T* to) const {
        const int64_t k0 = k_begin(block), kc = k_begin(block + 1) - k0, n0 = panel * NR, n = min_of(g.n - n0, NR);
        if (g.pack_b)
            g.pack_b(g.context, k0, kc, n0, n, to);
        else
            pack_panel(g.b, k0, kc, n0, n, to);
    }

    const T* prepared(int64_t block, int64_t panel) const {
        return g.packed_b + panel * NR * g.k + k_begin(block) * NR;
    }

    // Work of about this many multiply-adds makes a chunk worth handing to another thread.
    static constexpr int64_t kChunkWork = int64_t{1} << 18;

    // Chunks of tiles: `tall` tile rows by `wide` panels each.
    struct Grid {
        int64_t tall, wide, down, across;
        int64_t chunks() const { return down * across; }
    };

    Grid grid(int64_t panels_here, int64_t kc, int64_t max_tall) const {
        const int64_t tile_work = kMR * NR * (kc ? kc : 1);
        Grid q;
        q.tall = min_of(rows.tiles, max_tall);
        q.wide = panels_here;
        // Cut the longer side until there are 16 chunks or they are small enough.
        while (ceil_div(rows.tiles, q.tall) * ceil_div(panels_here, q.wide) < 16) {
            if (q.tall * q.wide * tile_work <= kChunkWork || (q.wide == 1 && q.tall == 1)) break;
            if (q.wide > 1 && (q.wide * NR >= q.tall * kMR || q.tall == 1))
                q.wide = ceil_div(q.wide, 2);
            else
                q.tall = ceil_div(q.tall, 2);
        }
        q.down = ceil_div(rows.tiles, q.tall);
        q.across = ceil_div(panels_here, q.wide);
        return q;
    }

    // B stays where it is.
    bool run_direct() const {
        note_kernel("gemm direct");
        const Grid q = grid(panels, g.k, rows.tiles);
        return parallel(q.chunks(), [&](int64_t chunk) {
            const int64_t i0 = chunk / q.across * q.tall, i1 = min_of(i0 + q.tall, rows.tiles);
            const int64_t j0 = chunk % q.across * q.wide, j1 = min_of(j0 + q.wide, panels);
            for (int64_t j = j0; j < j1; ++j) run_tiles(i0, i1, j, 0, {nullptr, 0, 0, g.k}, g.b.data + j * NR, g.b.row);
        });
    }

    // Each thread packs a panel of B and runs all of A over it at once: the panel never leaves its L2.
    bool run_streamed() const {
        note_kernel("gemm streamed");
        bool enough = true;
        const int64_t wide = panels >= 32 ? 2 : 1;
        const bool done = parallel(ceil_div(panels, wide), [&](int64_t chunk) {
            Scratch scratch(static_cast<size_t>(kc_max * NR) * sizeof(T));
            T* panel = scratch.template as<T>();
            if (!panel) {
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                return;
            }
            for (int64_t j = chunk * wide; j < min_of(chunk * wide + wide, panels); ++j)
                for (int64_t block = 0; block < k_blocks; ++block) {
                    pack(block, j, panel);
                    run_tiles(0, rows.tiles, j, block, {nullptr, 0, k_begin(block), 0}, panel, NR);
                }
        });
        return done ? enough : true;
    }

    // Blocks of B, and of an A that does not run along k, packed by all threads, then used by all.
    bool run_blocked() const {
        note_kernel(g.packed_b ? "gemm prepared" : "gemm blocked");
        const bool pack_a = g.a.col != 1 && g.n > B::kPackColumns && rows.tiles > 1;
        const int64_t panel_block = g.packed_b ? panels : min_of(panels, B::NC / NR);
        const int64_t row_block = min_of(rows.tiles, 4096 / kMR);
        Scratch b_scratch(g.packed_b ? 64 : static_cast<size_t>((panel_block * NR + spare) * kc_max) * sizeof(T));
        Scratch a_scratch(pack_a ? static_cast<size_t>(row_block * kMR * kc_max) * sizeof(T) : 64);
        T* const b_panels = b_scratch.template as<T>();
        T* const a_panels = a_scratch.template as<T>();
        if (!b_panels || !a_panels) return false;
        for (int64_t j0 = 0; j0 < panels; j0 += panel_block)
            for (int64_t block = 0; block < k_blocks; ++block)
                if (!run_block(j0, min_of(panel_block, panels - j0), block, row_block, pack_a, a_panels, b_panels))
                    return true;
        return true;
    }

    // The spare columns of the last panel as runs along k.
    void stand_spare(const T* panel, int64_t kc, T* to) const {
        const int64_t from = (g.n - spare) % NR;
        for (int64_t c = 0; c < spare; ++c)
            for (int64_t k = 0; k < kc; ++k) to[c * kc + k] = panel[k * NR + from + c];
    }

    bool run_block(int64_t j0, int64_t n_panels, int64_t block, int64_t row_block, bool pack_a, T* a_panels,
                   T* b_panels) const {
        const int64_t k0 = k_begin(block), kc = k_begin(block + 1) - k0;
        const int64_t max_tall = B::MC / kMR;
        for (int64_t i0 = 0; i0 < rows.tiles; i0 += row_block) {
            const int64_t n_rows = min_of(row_block, rows.tiles - i0);
            const int64_t b_jobs = !g.packed_b && i0 == 0 ? n_panels : 0, a_jobs = pack_a ? ceil_div(n_rows, 8) : 0;
            if (b_jobs + a_jobs > 0 && !parallel(b_jobs + a_jobs, [&](int64_t job) {
                if (job < b_jobs) {
                    pack(block, j0 + job, b_panels + job * NR * kc);
                    if (j0 + job == panels - 1)
                        stand_spare(b_panels + job * NR * kc, kc, b_panels + n_panels * NR * kc);
                    return;
                }
                const int64_t first = (job - b_jobs) * 8;
                for (int64_t i = first; i < min_of(first + 8, n_rows); ++i)
                    pack_rows(g.a, rows.begin(i0 + i), rows.count(i0 + i), k0, kc, a_panels + i * kMR * kc);
            }))
                return false;
            Grid q = grid(n_panels, kc, min_of(max_tall, n_rows));
            q.down = ceil_div(n_rows, q.tall);
            if (!parallel(q.chunks(), [&](int64_t chunk) {
                const int64_t first = chunk / q.across * q.tall, end = min_of(first + q.tall, n_rows);
                const int64_t j_first = chunk % q.across * q.wide, j_end = min_of(j_first + q.wide, n_panels);
                const Left left = {pack_a ? a_panels : nullptr, i0, k0, kc};
                for (int64_t j = j_first; j < j_end; ++j)
                    run_tiles(i0 + first, i0 + end, j0 + j, block, left,
                              g.packed_b ? prepared(block, j0 + j) : b_panels + j * NR * kc, NR);
                if (spare && j0 + j_end == panels)
                    for (int64_t i = i0 + first; i < i0 + end; ++i)
                        run_dots(rows.begin(i), rows.count(i), g.n - spare, static_cast<int>(spare),
                                 g.a.data + rows.begin(i) * g.a.row + k0, b_panels + n_panels * NR * kc, kc, kc,
                                 block == 0, block == k_blocks - 1);
            }))
                return false;
        }
        return true;
    }

    // ---- few columns, both operands along k: dot products, nothing packed -------------------------------------------

    // Rows [m0, m0 + m) times columns [n0, n0 + n) over kc terms; n <= kColumns, m <= kMR.
    void run_dots(int64_t m0, int m, int64_t n0, int n, const T* a, const T* b, int64_t b_col, int64_t kc, bool first,
                  bool last) const {
        T sums[kMR * kColumns];
        for (int i = 0; i < m;) {
            const T* row = a + i * g.a.row;
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
                    T& c = g.c[y * g.c_row + x * g.c_col];
                    T v = sums[r * n + j];
                    if (g.accumulate || !first)
                        v += c;
                    else if (g.bias_row)
                        v += g.bias_row[y];
                    else if (g.bias_col)
                        v += g.bias_col[x];
                    c = last && g.activation != Activation::none ? activate(splat<T>(v), g.activation)[0] : v;
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
        const int64_t tall = min_of(rows.tiles, ceil_div(kChunkWork, kMR * g.n * g.k));
        return parallel(ceil_div(rows.tiles, tall), [&](int64_t chunk) {
            for (int64_t i = chunk * tall; i < min_of(chunk * tall + tall, rows.tiles); ++i)
                for (int64_t n0 = 0; n0 < g.n; n0 += kColumns)
                    run_dots(rows.begin(i), rows.count(i), n0, static_cast<int>(min_of(kColumns, g.n - n0)),
                             g.a.data + rows.begin(i) * g.a.row, g.b.data + n0 * g.b.col, g.b.col, g.k, true, true);
        });
    }

    bool run() const {
        if (few_columns() && g.m > 0 && g.n > 0) return run_few_columns();
        if (g.m == 0 || g.n == 0) return true;
        if (direct_b) return run_direct();
        const bool a_stays = g.m * g.k * static_cast<int64_t>(sizeof(T)) <= B::kDirectBytes && g.a.col == 1;
        if (!g.packed_b && a_stays && panels >= kStreamedPanels) return run_streamed();
        return run_blocked();
    }
};

template <class T>
bool run_gemm(Gemm<T> g) {
    // A C that runs down its columns is the transpose of one that runs along its rows; few rows along k are few columns.
    const bool few_rows = g.m <= 32 && g.m < g.n && g.a.col == 1 && g.b.row == 1 && (g.m <= 4 || g.k >= 1024);
    if (!g.pack_b && !g.packed_b && (few_rows || (g.c_col != 1 && g.c_row == 1))) {
        Gemm<T> t = g;
        t.m = g.n, t.n = g.m;
        t.a = {g.b.data, g.b.col, g.b.row};
        t.b = {g.a.data, g.a.col, g.a.row};
        t.c_row = g.c_col, t.c_col = g.c_row;
        t.bias_row = g.bias_col, t.bias_col = g.bias_row;
        return Engine<T>(t).run();
    }
    return Engine<T>(g).run();
}

template <class T>
void run_pack_all(const Matrix<T>& b, int64_t k, int64_t n, T* packed) {
    constexpr int NR = Blocking<T>::NR;
    parallel(ceil_div(n, NR),
             [&](int64_t j) { pack_panel(b, 0, k, j * NR, min_of(n - j * NR, NR), packed + j * NR * k); });
}

}  // namespace

bool gemm(const Gemm<float>& g) { return run_gemm(g); }
bool gemm(const Gemm<double>& g) { return run_gemm(g); }
void pack_all(const Matrix<float>& b, int64_t k, int64_t n, float* packed) { run_pack_all(b, k, n, packed); }
void pack_all(const Matrix<double>& b, int64_t k, int64_t n, double* packed) { run_pack_all(b, k, n, packed); }
void run_tile(const Tile<float>& t, int m, int n) { tile(t, m, n); }
void run_tile(const Tile<double>& t, int m, int n) { tile(t, m, n); }

}  // namespace tw::TW_ISA
