#include "gemm/tiled.h"

#include "core/isa.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/pack.h"
#include "gemm/tile.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kStayingBytes = 640 * 1024;      // of an A that passes through L2 once for a few panels, at least
constexpr int64_t kSharedBytes = 2 * 1024 * 1024;  // of B packed at a time by all threads
constexpr int64_t kSerialWork = int64_t{1} << 18;  // multiply-adds that are not worth a second thread
constexpr int64_t kGroup = 16;                     // tiles of A that take turns with each panel
constexpr int64_t kSidePanels = 4;                 // panels of a thread that share each group of tiles
constexpr int64_t kFewPanels = 8;                  // too few to share among threads

// Where registers are many, most of the L2 that there is.
int64_t staying_bytes() {
    return kVectorRegisters >= 32 ? max_of(kStayingBytes, cache_sizes().l2 * 5 / 8) : kStayingBytes;
}

// The blocks of k: as even as possible, each with its part of a panel in L1; a little too many are one block all the same,
// which is cheaper than to meet C twice.
struct Blocks {
    int64_t k, count, terms;
    template <class T>
    static constexpr int64_t kTerms = kVectorRegisters >= 32 ? Blocking<T>::KC : 384;
    Blocks(int64_t depth, int64_t most)
        : k(depth), count(k <= most + most / 2 ? 1 : ceil_div(k, most)), terms(ceil_div(k, count)) {}
    int64_t begin(int64_t block) const { return min_of(block * terms, k); }
    int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }
};

template <class V, int U, int W>
TW_INLINE V total(const V (&acc)[U][W], int v) {
    V sum[U];
    for (int u = 0; u < U; ++u) sum[u] = acc[u][v];
    for (int half = U / 2; half; half /= 2)
        for (int u = 0; u < half; ++u) sum[u] += sum[u + half];
    return sum[0];
}

// sums[column][kMR] of one tile and R columns of a panel: rows of A are the lanes.
template <class T, int R>
void sum_columns(const T* a, int64_t kc, const T* b, int64_t b_k, T* sums) {
    constexpr int L = kLanes<T>, V = (kMR + L - 1) / L, U = R * V > 1 ? 4 : 8;
    Vec<T> acc[R][U][V] = {};
    int64_t k = 0;
    // A vector reaches into the term that follows, which the last terms do not have.
    for (; k + 2 * U + L <= kc; k += U, a += U * kMR, b += U * b_k)
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                const Vec<T> rows = load(a + u * kMR + v * L);
#pragma GCC unroll 2
                for (int r = 0; r < R; ++r) acc[r][u][v] += rows * splat<T>(b[u * b_k + r]);
            }
    for (; k < kc; ++k, a += kMR, b += b_k)
        for (int v = 0; v < V; ++v) {
            const Vec<T> rows = load_n(a + v * L, min_of(L, kMR - v * L));
            for (int r = 0; r < R; ++r) acc[r][0][v] += rows * splat<T>(b[r]);
        }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store_n(sums + r * kMR + v * L, total(acc[r], v), min_of(L, kMR - v * L));
}

// The next tiles of A, fetched from memory while these are multiplied: kStreams stretches of so many lines.
struct Next {
    const char* at = nullptr;
    int64_t lines = 0;
};

template <class T>
struct Tiled {
    static constexpr int NR = Blocking<T>::NR, L = kLanes<T>;
    // Cheaper with rows of A as the lanes than as one more vector, unless a vector holds many more lanes than rows.
    static constexpr int64_t kSpareColumns = kVectorRegisters >= 32 ? 0 : 2;
    const Gemm<T>& g;
    const T* tiles;
    Source<T> source;
    Blocks blocks;
    int64_t n_tiles, panels, spare;
    int64_t last_k;  // how far apart the terms of the last panel are: those of a narrow one lie close together

    Tiled(const Gemm<T>& gemm, const T* a, const Source<T>& b)
        : g(gemm),
          tiles(a),
          source(b),
          blocks(g.k, Blocks::kTerms<T>),
          n_tiles(ceil_div(g.m, kMR)),
          panels(ceil_div(g.n, NR)) {
        const int64_t rest = g.n % L;
        spare = rest <= kSpareColumns ? rest : 0;
        const int64_t last = g.n - (panels - 1) * NR;
        last_k = last == spare ? spare : last <= L ? L : NR;
    }

    const T* tile_of(int64_t block, int64_t tile) const {
        return tiles + (blocks.begin(block) * n_tiles + tile * blocks.size(block)) * kMR;
    }

    // Whether the first tile can make panel j while it reads B in place, and from where.
    bool gathers(int64_t j, const T** vector) const {
        if (!source.offset || !tiles || g.m < kMR || (j + 1) * NR > g.n) return false;
        if (source.vectors) return source.vectors(g.context, j * NR, vector);
        for (int v = 0; v < kNV; ++v) vector[v] = g.b.data + j * NR + v * L;
        return true;
    }
    bool gathers(int64_t j) const {
        const T* vector[kNV];
        return gathers(j, vector);
    }

    // Makes panel j of a block at `to`, and the first tile of it.
    void gather(int64_t j, int64_t block, T* to) const {
        const T* vector[kNV];
        gathers(j, vector);
        Tile<T> t = tile_at(0, tile_of(block, 0), j, to, block);
        t.vectors = vector, t.offset = source.offset + blocks.begin(block), t.keep = to;
        run_tile(t, kMR, NR);
    }

    // The first of the tiles from row i0 on of panel j: a and b point at their terms of the block.
    Tile<T> tile_at(int64_t i0, const T* a, int64_t j, const T* b, int64_t block) const {
        const int64_t n0 = j * NR, m0 = i0 * kMR;
        Tile<T> t{};
        t.kc = blocks.size(block);
        t.a = a, t.a_row = 1, t.a_k = kMR, t.a_tile = kMR * t.kc;
        t.b = b, t.b_k = j + 1 == panels ? last_k : NR;
        t.c = g.c + m0 * g.c_row + n0, t.c_row = g.c_row;
        t.load_c = block > 0 || g.accumulate || g.addend.data;
        if (block == 0 && g.addend.data) t.start = g.addend.data + m0 * g.addend.row + n0, t.start_row = g.addend.row;
        t.bias_row = block == 0 && g.bias_row ? g.bias_row + m0 : nullptr;
        t.activation = block == blocks.count - 1 ? g.activation : Activation::none;
        t.in_pairs = true;
        return t;
    }

    // Tile rows [i0, i1) of panel j: a and b point at their terms of the block.
    void multiply(int64_t i0, int64_t i1, const T* a, int64_t j, const T* b, int64_t block, const Next& next) const {
        if (i0 >= i1) return;
        const int64_t n0 = j * NR, m0 = i0 * kMR, m = min_of(i1 * kMR, g.m) - m0, n = min_of(NR, g.n - spare - n0);
        Tile<T> t = tile_at(i0, a, j, b, block);
        if (spare && n0 + NR >= g.n) multiply_spare(t, m, b + n, n);
        if (n <= 0) return;
        t.ahead = next.at, t.ahead_lines = ceil_div(next.lines, i1 - i0);
        t.ahead_step = next.lines * 64;
        t.tiles = m / kMR;
        if (t.tiles > 0) run_tile(t, kMR, static_cast<int>(n));
        const int64_t done = t.tiles * kMR;
        if (done == m) return;
        t.a += t.tiles * t.a_tile, t.c += done * t.c_row, t.tiles = 1, t.ahead = nullptr, t.ahead_lines = 0;
        if (t.start) t.start += done * t.start_row;
        if (t.bias_row) t.bias_row += done;
        run_tile(t, static_cast<int>(m - done), static_cast<int>(n));
    }

    // The columns from `at` on of the panel, at b.
    void multiply_spare(const Tile<T>& t, int64_t m, const T* b, int64_t at) const {
        T sums[2 * kMR];
        const T* const from = t.start ? t.start : t.c;
        const int64_t from_row = t.start ? t.start_row : t.c_row;
        for (int64_t i = 0; i < m; ++i) {
            if (i % kMR == 0)
                (spare == 1 ? sum_columns<T, 1> : sum_columns<T, 2>)(t.a + i / kMR * t.a_tile, t.kc, b, t.b_k, sums);
            for (int64_t r = 0; r < spare; ++r) {
                T v = sums[r * kMR + i % kMR];
                if (t.load_c) v += from[i * from_row + at + r];
                if (t.bias_row) v += t.bias_row[i];
                if (is_clip(t.activation)) v = activate(splat<T>(v), t.activation)[0];
                t.c[i * t.c_row + at + r] = v;
            }
        }
        if (t.activation > Activation::relu6)
            activate_tile(t.c + at, t.c_row, static_cast<int>(m), static_cast<int>(spare), t.activation);
    }

    // Panels [j0, j1) of a block, one after the other; those of a matrix side by side, in longer runs of its rows.
    void pack(int64_t block, int64_t j0, int64_t j1, T* to) const {
        const int64_t k0 = blocks.begin(block), kc = blocks.size(block);
        if (kc == 0) return;
        int64_t j = j0;
        if (!g.pack_b && g.b.col == 1) {
            j = max_of(j0, min_of(j1, g.n / NR));
            pack_panels(g.b, k0, kc, j0 * NR, j - j0, to);
        }
        for (; j < j1; ++j) {
            T* const panel = to + (j - j0) * kc * NR;
            if (g.pack_b)
                g.pack_b(g.context, k0, kc, j * NR, min_of(NR, g.n - j * NR), panel);
            else
                pack_panel(g.b, k0, kc, j * NR, min_of(NR, g.n - j * NR), panel);
            if (j + 1 == panels) draw_together(panel, kc);
        }
    }

    void draw_together(T* panel, int64_t kc) const {
        if (last_k == L)
            for (int64_t k = 1; k < kc; ++k) store(panel + k * L, load(panel + k * NR));
        else if (last_k < L)
            for (int64_t k = 1; k < kc; ++k)
                for (int64_t r = 0; r < last_k; ++r) panel[k * last_k + r] = panel[k * NR + r];
    }

    // Panels [j0, j1) of a block, and the first tile of those that it gathers.
    void make(int64_t block, int64_t j0, int64_t j1, T* to) const {
        if (!source.offset) return pack(block, j0, j1, to);
        for (int64_t j = j0; j < j1; ++j, to += blocks.size(block) * NR)
            gathers(j) ? gather(j, block, to) : pack(block, j, j + 1, to);
    }

    template <class Body>
    bool spread(int64_t jobs, const Body& body) const {
        if (g.m * g.n * g.k >= kSerialWork) return parallel(jobs, body);
        for (int64_t i = 0; i < jobs; ++i) body(i);
        return true;
    }

    // Each thread packs panels for itself and runs all tiles over them.
    bool by_panels() const {
        note_kernel("gemm tiled");
        const int64_t wide = max_of(1, min_of(kSidePanels, panels / 16));
        const int64_t group = wide == 1 ? n_tiles : kGroup;
        bool enough = true;
        spread(ceil_div(panels, wide), [&](int64_t job) {
            const int64_t j0 = job * wide, j1 = min_of(j0 + wide, panels);
            Scratch scratch(static_cast<size_t>(wide * blocks.terms * NR + 1) * sizeof(T));
            T* const packed = scratch.template as<T>();
            if (!packed) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            for (int64_t block = 0; block < blocks.count; ++block) {
                const int64_t each = blocks.size(block) * NR;
                make(block, j0, j1, packed);
                for (int64_t i = 0; i < n_tiles; i += group)
                    for (int64_t j = j0; j < j1; ++j) {
                        const int64_t from = i == 0 && gathers(j) ? 1 : i;
                        multiply(from, min_of(i + group, n_tiles), tile_of(block, from), j, packed + (j - j0) * each,
                                 block, {});
                    }
            }
        });
        return enough;
    }

    // A share of the lines of what this thread, probably, multiplies next.
    Next next_share(int64_t i0, int64_t i1, int64_t block, int64_t last_block, int64_t shares) const {
        if (!tiles) return {};
        int64_t first = i0;
        if (++block == last_block) block = 0, first = i0 + (i1 - i0) * num_threads();
        if (first + (i1 - i0) > n_tiles || block >= blocks.count) return {};
        const int64_t bytes = (i1 - i0) * kMR * blocks.size(block) * static_cast<int64_t>(sizeof(T));
        return {reinterpret_cast<const char*>(tile_of(block, first)), ceil_div(bytes, 64 * kStreams * shares)};
    }

    // B packed by all, a few blocks of it at a time; then every thread runs groups of tiles over all of it.
    bool by_tiles() const {
        note_kernel(tiles ? "gemm tiled, shared" : "gemm shared");
        const int64_t band = min_of(panels, max_of(1, Blocking<T>::NC / NR)), each = blocks.terms * NR;
        const int64_t bytes = band * each * static_cast<int64_t>(sizeof(T));
        const int64_t together = max_of(1, min_of(blocks.count, kSharedBytes / max_of(bytes, 1)));
        Scratch b_scratch(static_cast<size_t>(together * band * each + 1) * sizeof(T));
        T* const b = b_scratch.template as<T>();
        if (!b) return false;
        const int64_t tall = min_of(n_tiles, max_of(4, min_of(kGroup, n_tiles / 8))), down = ceil_div(n_tiles, tall);
        bool enough = true;
        for (int64_t j0 = 0; j0 < panels; j0 += band)
            for (int64_t first = 0; first < blocks.count; first += together) {
                const int64_t here = min_of(band, panels - j0), last = min_of(first + together, blocks.count);
                const auto panel = [&](int64_t block, int64_t j) {
                    return b + (block - first) * here * each + j * blocks.size(block) * NR;
                };
                const int64_t side = max_of(1, min_of(kSidePanels, here / 8));
                if (!spread(ceil_div(here, side), [&](int64_t job) {
                    const int64_t j = job * side;
                    for (int64_t block = first; block < last; ++block)
                        make(block, j0 + j, j0 + min_of(j + side, here), panel(block, j));
                }))
                    return true;
                const int64_t across = min_of(here, max_of(1, 8 / down)), wide = ceil_div(here, across);
                if (!spread(down * across, [&](int64_t job) {
                    const int64_t i0 = job / across * tall, i1 = min_of(i0 + tall, n_tiles);
                    const int64_t k0 = job % across * wide, k1 = min_of(k0 + wide, here);
                    Scratch a_scratch(tiles ? 64 : static_cast<size_t>(tall * kMR * blocks.terms + 1) * sizeof(T));
                    T* const own = a_scratch.template as<T>();
                    if (!own) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                    for (int64_t block = first; block < last; ++block) {
                        if (!tiles) pack_block(i0, i1, block, own);
                        const Next share = next_share(i0, i1, block, last, max_of(1, k1 - k0));
                        for (int64_t j = k0; j < k1; ++j) {
                            Next next = share;
                            if (next.at) next.at += (j - k0) * next.lines * 64 * kStreams;
                            const int64_t from = i0 == 0 && gathers(j0 + j) ? 1 : i0;
                            multiply(from, i1, tiles ? tile_of(block, from) : own, j0 + j, panel(block, j), block,
                                     next);
                        }
                    }
                }))
                    return true;
            }
        return enough;
    }

    void pack_block(int64_t i0, int64_t i1, int64_t block, T* to) const {
        for (int64_t i = i0; i < i1; ++i, to += kMR * blocks.size(block))
            pack_rows(g.a, i * kMR, static_cast<int>(min_of(kMR, g.m - i * kMR)), g.m - i * kMR, blocks.begin(block),
                      blocks.size(block), to);
    }

    void run_panel(const T* panel, const T* next_tiles) const {
        for (int64_t block = 0; block < blocks.count; ++block) {
            Next next{};
            if (next_tiles) {
                next.at = reinterpret_cast<const char*>(next_tiles + (tile_of(block, 0) - tiles));
                next.lines = n_tiles * kMR * blocks.size(block) * static_cast<int64_t>(sizeof(T)) / (64 * kStreams);
            }
            multiply(0, n_tiles, tile_of(block, 0), 0, panel + blocks.begin(block) * g.n, block, next);
        }
    }

    bool run() const {
        const int64_t bytes = n_tiles * kMR * g.k * static_cast<int64_t>(sizeof(T));
        if (bytes > staying_bytes() || panels < kFewPanels) return by_tiles();
        if (tiles) return by_panels();
        Scratch scratch(static_cast<size_t>(n_tiles * kMR * g.k + 1) * sizeof(T));
        T* const own = scratch.template as<T>();
        if (!own) return false;
        pack_all_tiles(g.a, g.m, g.k, own);
        return Tiled(g, own, source).by_panels();
    }

    static void pack_all_tiles(const Matrix<T>& a, int64_t m, int64_t k, T* to) {
        Gemm<T> g{};
        g.m = m, g.k = k, g.a = a;
        const Tiled all(g, to, {});
        const auto job = [&](int64_t i) {
            for (int64_t block = 0; block < all.blocks.count; ++block)
                all.pack_block(i, i + 1, block, to + (all.tile_of(block, i) - to));
        };
        if (m * k < kSerialWork)
            for (int64_t i = 0; i < all.n_tiles; ++i) job(i);
        else
            parallel(all.n_tiles, job);
    }
};

template <class T>
void run_panel(const T* tiles, int64_t m, int64_t n, int64_t k, const T* panel, T* c, const T* next) {
    Gemm<T> g{};
    g.m = m, g.n = n, g.k = k;
    g.c = c, g.c_row = g.n, g.c_col = 1;
    Tiled<T>(g, tiles, {}).run_panel(panel, next);
}

}  // namespace

void pack_tiles(const Matrix<float>& a, int64_t m, int64_t k, float* to) { Tiled<float>::pack_all_tiles(a, m, k, to); }
void pack_tiles(const Matrix<double>& a, int64_t m, int64_t k, double* to) {
    Tiled<double>::pack_all_tiles(a, m, k, to);
}
bool multiply_tiled(const Gemm<float>& g, const float* tiles, const Source<float>& source) {
    return Tiled<float>(g, tiles, source).run();
}
bool multiply_tiled(const Gemm<double>& g, const double* tiles, const Source<double>& source) {
    return Tiled<double>(g, tiles, source).run();
}

void multiply_tiles(const float* tiles, int64_t m, int64_t n, int64_t k, const float* panel, float* c,
                    const float* next) {
    run_panel(tiles, m, n, k, panel, c, next);
}
void multiply_tiles(const double* tiles, int64_t m, int64_t n, int64_t k, const double* panel, double* c,
                    const double* next) {
    run_panel(tiles, m, n, k, panel, c, next);
}

}  // namespace tw::TW_ISA
