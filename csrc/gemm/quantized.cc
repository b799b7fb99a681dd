#include "gemm/quantized.h"

#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/codes.h"
#include "gemm/tiles.h"

namespace tw::TW_ISA {
namespace {

constexpr int NR = kIntNR;
// Of k, between two visits to the sums: of tiles a panel of B that stays in L1.
constexpr int64_t kBlockWords = kVectorRegisters >= 32 && !kHasTiles ? 512 : 256;
constexpr int64_t kTallTiles = kHasTiles ? 16 : 28;  // of A that stay in L2 while panels of B pass
constexpr int64_t kWidePanels = 16;
constexpr int64_t kSharedWork = int64_t{1} << 24;  // of tiles, worth waking another thread for
constexpr int64_t kChunkWork = int64_t{1} << (kHasTiles ? 21 : 19);  // worth handing to another thread
constexpr int64_t kPackedA = int64_t{4} << 20, kPackedB = int64_t{16} << 20;  // bytes packed at a time
constexpr int64_t kFewCodes = 128 << 10;  // bytes of an A that stays in L2 while panels of B are streams
constexpr int64_t kFewTiles = 4;
constexpr int64_t kWideBytes = 1 << 20;  // of B that stays in L2 while rows of tiles pass
constexpr int64_t kAhead = kHasTiles ? 4096 : 2048;  // bytes of B fetched before they are multiplied

// ---- the register tile ------------------------------------------------------------------------------------------------

struct Dots {
    int64_t words;
    const DotLeft* a;
    int64_t a_row;
    int32_t* c;
    int64_t c_row;
    bool load_c;
    const int8_t* ahead;  // if given: fetched meanwhile, ahead_step bytes with each word
    int64_t ahead_step;
    TileKind kind;
    const int32_t* from = nullptr;  // of tiles in hardware: if given, the sums to add to, NR apart
};

// B is DotRight, or int8_t where words are widened as they are read.
template <int MR, class B, bool Ahead>
void dots(const Dots& t, const B* b) {
    constexpr int L = kLanes<int32_t>;
    i32v acc[MR][kIntNV];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kIntNV; ++j) acc[i][j] = t.load_c ? load(t.c + i * t.c_row + j * L) : i32v{};
    const DotLeft* rows[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) rows[i] = t.a + i * t.a_row;
    for (int64_t w = 0; w < t.words; ++w, b += NR * kDotDepth) {
        if constexpr (Ahead) __builtin_prefetch(t.ahead + w * t.ahead_step);
        i32v bv[kIntNV];
#pragma GCC unroll 4
        for (int j = 0; j < kIntNV; ++j) bv[j] = load_words(b + j * L * kDotDepth);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
            int32_t word;
            __builtin_memcpy(&word, rows[i] + w * kDotDepth, sizeof word);
            i32v av = splat(word);
            in_order(av);
#pragma GCC unroll 4
            for (int j = 0; j < kIntNV; ++j) {
                acc[i][j] = dot(acc[i][j], av, bv[j]);
                in_order(acc[i][j]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kIntNV; ++j) store(t.c + i * t.c_row + j * L, acc[i][j]);
}

#if defined(TW_TILES)
constexpr int kDotRows = 4;  // rows of A that are bytes by bytes as fast as memory gives B
#else
template <class B, bool Ahead>
void run_dots(int m, const Dots& t, const B* b) {
    constexpr void (*table[kMR])(const Dots&, const B*) = {dots<1, B, Ahead>, dots<2, B, Ahead>, dots<3, B, Ahead>,
                                                           dots<4, B, Ahead>, dots<5, B, Ahead>, dots<6, B, Ahead>};
    table[m - 1](t, b);
}
#endif

template <class B>
TW_INLINE void run_dots(int m, const Dots& t, const B* b) {
#if defined(TW_TILES)
    if constexpr (sizeof(B) == 1)
        if (m <= kDotRows && t.kind == TileKind::u8s8 && t.ahead && !t.from) {
            constexpr void (*table[kDotRows])(const Dots&, const B*) = {dots<1, B, true>, dots<2, B, true>,
                                                                        dots<3, B, true>, dots<4, B, true>};
            return table[m - 1](t, b);
        }
    const TileBlock block = {t.words / kStepWords,
                             t.a,
                             t.a_row,
                             b,
                             t.c,
                             t.c_row * 4,
                             t.load_c,
                             t.from,
                             reinterpret_cast<const char*>(t.ahead),
                             t.ahead ? t.ahead_step * kStepWords / 64 : 0};
    switch (t.kind) {
        case TileKind::u8u8: return multiply_tiles<TileKind::u8u8>(block, m);
        case TileKind::u8s8: return multiply_tiles<TileKind::u8s8>(block, m);
        case TileKind::s8u8: return multiply_tiles<TileKind::s8u8>(block, m);
        default: return multiply_tiles<TileKind::s8s8>(block, m);
    }
#else
    t.ahead ? run_dots<B, true>(m, t, b) : run_dots<B, false>(m, t, b);
#endif
}

// Words as the tile multiplies them.
void widen_panel(const int8_t* from, int64_t words, DotRight* to) {
    constexpr int64_t step = kLanes<int32_t> * kDotDepth;
    for (int64_t i = 0; i < words * NR * kDotDepth; i += step)
        store(reinterpret_cast<int32_t*>(to + i), load_words(from + i));
}

// ---- few rows, bytes of B along k: each is read once, where it lies ----

constexpr int64_t kFewRows = kHasTiles ? 8 : 4;
constexpr int64_t kSharedBytes = 1 << 19;  // of B, worth another thread

// The sums of M rows of A by one column, NR apart, and the sum of the column itself.
template <int M>
__attribute__((noinline)) void dots_along(const DotLeft* a, int64_t a_row, const int8_t* b, int64_t k, int32_t* sums,
                                          int32_t* sum) {
    constexpr int64_t step = kLanes<int32_t> * kDotDepth;
    i32v acc[M] = {}, all{};
    const i32v ones = splat<int32_t>(kDotDepth == 4 ? 0x01010101 : 0x00010001);
    const auto add = [&](int64_t i, i32v words) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) acc[r] = dot(acc[r], bitcast<i32v>(load(a + r * a_row + i)), words);
        all = dot(all, ones, words);
    };
    int64_t i = 0;
    for (; i + step <= k; i += step) {
        __builtin_prefetch(b + i + kAhead);
        add(i, load_words(b + i));
    }
    if (i < k) {
        int8_t rest[step] = {};
        __builtin_memcpy(rest, b + i, static_cast<size_t>(k - i));
        add(i, load_words(rest));
    }
#pragma GCC unroll 8
    for (int r = 0; r < M; ++r) sums[r * NR] = reduce_add(acc[r]);
    *sum = reduce_add(all);
}

// ---- one GEMM -----------------------------------------------------------------------------------------------------------

// Rows per tile: as even as possible, so that no thin last tile remains; of tiles in hardware all that fit.
struct Rows {
    int64_t tiles, base, extra;
    int64_t m;
    explicit Rows(int64_t rows)
        : tiles(ceil_div(rows, kIntMR)), base(tiles ? rows / tiles : 0), extra(tiles ? rows % tiles : 0), m(rows) {}
    int64_t begin(int64_t i) const { return kHasTiles ? i * kIntMR : i * base + min_of(i, extra); }
    int count(int64_t i) const {
        return static_cast<int>(kHasTiles ? min_of(m - i * kIntMR, kIntMR) : base + (i < extra));
    }
};

struct Engine {
    const IntGemm& g;
    int64_t words, k_blocks, block_words, a_stride, panels, panel_bytes, b_panels, row_block;
    bool by_rows;  // of tiles in hardware that are many: a row of them passes along panels
    bool direct;  // sums go straight to C
    bool a_zeros;  // a0 is not all 0
    TileKind kind;
    const int8_t* b = nullptr;
    const int32_t* b_sum = nullptr;
    const DotLeft* a = nullptr;
    const RowTerms* terms = nullptr;

    explicit Engine(const IntGemm& gemm) : g(gemm) {
        words = words_of(g.k);
        by_rows = kHasTiles && g.m > kFewTiles * kIntMR;
        k_blocks = g.m <= kIntMR ? 1 : max_of(1, ceil_div(words, kBlockWords));
        block_words = ceil_div(ceil_div(words, k_blocks), kStepWords) * kStepWords;
        a_zeros = kDotDepth == 4 && !(kHasTiles && g.a_centred);
        kind = g.a_unsigned      ? g.b.is_unsigned ? TileKind::u8u8 : TileKind::u8s8
               : g.b.is_unsigned ? TileKind::s8u8
                                 : TileKind::s8s8;
        a_stride = g.a_row ? g.a_row : left_stride(g.k);
        panels = ceil_div(g.n, NR);
        panel_bytes = words * NR * kDotDepth;
        b_panels = g.packed_b ? panels : min_of(panels, max_of(1, kPackedB / max_of(panel_bytes, 1)));
        const int64_t fit = kPackedA / (a_stride * static_cast<int64_t>(sizeof(DotLeft))) / kIntMR * kIntMR;
        const int64_t row_blocks = ceil_div(g.m, max_of(fit, kIntMR));
        row_block = g.packed_a ? g.m : min_of(g.m, ceil_div(ceil_div(g.m, row_blocks), kIntMR) * kIntMR);
        direct = g.c && g.c_col == 1 && !a_zeros && !g.b_zero;
    }

    bool run() {
        Scratch a_scratch(
            g.packed_a ? 64 : static_cast<size_t>(left_rows(max_of(row_block, kFewRows)) * a_stride) * sizeof(DotLeft));
        Scratch terms_scratch(g.packed_a ? 64 : static_cast<size_t>(row_block) * sizeof(RowTerms));
        Scratch b_scratch(g.packed_b ? 64 : static_cast<size_t>(packed_right_bytes(g.k, b_panels * NR)));
        DotLeft* const made_a = a_scratch.as<DotLeft>();
        RowTerms* const made_terms = terms_scratch.as<RowTerms>();
        int8_t* const made = b_scratch.as<int8_t>();
        if (!made_a || !made_terms || !made) return false;
        a = g.packed_a ? g.packed_a : made_a;
        terms = g.packed_a ? g.a_terms : made_terms;
        if (along_k()) return run_along(made_a, made_terms, reinterpret_cast<int32_t*>(made));
        note_kernel(g.packed_b ? "int8 prepared" : "int8 blocked");
        b = g.packed_b ? g.packed_b : made;
        b_sum = reinterpret_cast<const int32_t*>(b + b_panels * panel_bytes);
        bool enough = true;
        int64_t packed_from = -1;
        for (int64_t j0 = 0; j0 < panels; j0 += b_panels) {
            const int64_t here = min_of(b_panels, panels - j0);
            for (int64_t i0 = 0; i0 < g.m; i0 += row_block) {
                const int64_t count = min_of(row_block, g.m - i0);
                const int64_t group = max_of(1, (1 << 15) / a_stride), at_once = g.pack_b ? 1 : kPanelsAtOnce;
                const int64_t b_jobs = !g.packed_b && i0 == 0 ? ceil_div(here, at_once) : 0;
                const int64_t a_jobs = !g.packed_a && packed_from != i0 ? ceil_div(count, group) : 0;
                packed_from = i0;
                if (!spread(b_jobs + a_jobs, [&](int64_t job) {
                    if (job < b_jobs) return pack_b(j0, job * at_once, min_of(at_once, here - job * at_once), made);
                    const int64_t first = (job - b_jobs) * group;
                    g.pack_a(g.a, i0 + first, min_of(group, count - first), g.b_zero != nullptr,
                             made_a + first * a_stride, a_stride, made_terms + first);
                }))
                    return true;
                if (!run_rows(i0, count, j0, here, enough)) return true;
            }
        }
        return enough;
    }

    bool along_k() const {
        return g.m <= kFewRows && !g.packed_a && !g.packed_b && !g.pack_b && g.b.row == 1 && g.a_unsigned &&
               !g.b.is_unsigned && b_panels == panels;
    }

    bool run_along(DotLeft* rows, RowTerms* of_rows, int32_t* of_columns) {
        note_kernel("int8 along");
        g.pack_a(g.a, 0, g.m, g.b_zero != nullptr, rows, a_stride, of_rows);
        a = rows, terms = of_rows, b_sum = of_columns;
        const int64_t group = max_of(1, kSharedBytes / (NR * max_of(g.k, 1)));
        return parallel(ceil_div(panels, group), [&](int64_t chunk) {
            run_columns(chunk * group, min_of(chunk * group + group, panels), of_columns);
        });
    }

    __attribute__((noinline)) void run_columns(int64_t p0, int64_t p1, int32_t* of_columns) const {
        const auto kind = g.m == 1 ? dots_along<1> : dots_along<kFewRows>;
        for (int64_t p = p0; p < p1; ++p) {
            int32_t sums[kFewRows * NR];
            const int n = static_cast<int>(min_of(NR, g.n - p * NR));
            const auto* const columns = static_cast<const int8_t*>(g.b.data) + p * NR * g.b.col;
            for (int64_t j = 0; j < n; ++j)
                kind(a, a_stride, columns + j * g.b.col, g.k, sums + j, of_columns + p * NR + j);
            hand_over(sums, terms, 0, static_cast<int>(g.m), p * NR, n, p);
        }
    }

    // Runs body(i) for all chunks: here, where tiles of little that is read are done before another thread would have come.
    template <class Body>
    bool spread(int64_t chunks, const Body& body) const {
        if (!kHasTiles || g.m * g.n * g.k >= kSharedWork || g.n * g.k >= kSharedBytes) return parallel(chunks, body);
        for (int64_t i = 0; i < chunks; ++i) body(i);
        return true;
    }

    // Panels [first, first + count) of those from panel j0 on.
    void pack_b(int64_t j0, int64_t first, int64_t count, int8_t* all) const {
        const int64_t n0 = (j0 + first) * NR, n = min_of(count * NR, g.n - n0);
        int8_t* const to = all + first * panel_bytes;
        g.pack_b ? pack_panel(g.pack_b, g.b_context, g.k, n0, n, to) : pack_panels(g.b, g.k, n0, n, to);
        int32_t* const sums = reinterpret_cast<int32_t*>(all + b_panels * panel_bytes) + first * NR;
        for (int64_t i = 0; a_zeros && i < count; ++i)
            sum_panel(to + i * panel_bytes, words, kHasTiles && g.b.is_unsigned, sums + i * NR);
    }

    // Chunks of tall tile rows by wide panels. Panels are divided first: a tall chunk widens a panel for many rows.
    bool run_rows(int64_t i0, int64_t count, int64_t j0, int64_t here, bool& enough) const {
        const Rows rows(count);
        const int64_t work = rows.count(0) * NR * max_of(g.k, 1);
        int64_t tall = min_of(rows.tiles, kTallTiles), wide = min_of(here, kWidePanels);
        // Each thread multiplies by the panels that it packed.
        if (by_rows)
            wide = max_of(kFewTiles, min_of(kWideBytes / max_of(panel_bytes, 1), ceil_div(here, num_threads())));
        wide = min_of(wide, here);
        while (ceil_div(rows.tiles, tall) * ceil_div(here, wide) < 16 && tall * wide * work > kChunkWork)
            if (by_rows && tall > 1)
                tall = ceil_div(tall, 2);
            else if (wide > 1)
                wide = ceil_div(wide, 2);
            else if (tall > 1)
                tall = ceil_div(tall, 2);
            else
                break;
        const int64_t across = ceil_div(here, wide), down = ceil_div(rows.tiles, tall);
        return spread(down * across, [&](int64_t number) {
            const int64_t chunk = by_rows ? number % down * across + number / down : number;
            const int64_t t0 = chunk / across * tall, t1 = min_of(t0 + tall, rows.tiles);
            const int64_t p0 = chunk % across * wide, p1 = min_of(p0 + wide, here);
            if (!run_chunk(rows, i0, t0, t1, j0, p0, p1)) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
    }

    // Tile rows [t0, t1) of A by packed panels [p0, p1); A starts at row i0 of C, B at panel j0.
    bool run_chunk(const Rows& rows, int64_t i0, int64_t t0, int64_t t1, int64_t j0, int64_t p0, int64_t p1) const {
        const int64_t tall = t1 - t0, wide = p1 - p0;
        const bool keep = k_blocks > 1;  // the sums of the whole chunk, between blocks
        const bool widen = kDotDepth == 2 && tall > 1;
        // A block of a tall A stays in L2 while panels pass; all of a small one, and each panel is a stream.
        const bool streams = tall * kIntMR * a_stride * static_cast<int64_t>(sizeof(DotLeft)) <= kFewCodes;
        const int64_t kept = keep ? wide * (by_rows ? 1 : tall) : 1;
        Scratch sums_scratch(static_cast<size_t>(kept * kIntMR * NR) * sizeof(int32_t));
        Scratch wide_scratch(widen ? static_cast<size_t>(block_words * NR) * kWordBytes + 64 : 64);
        int32_t* const sums = sums_scratch.as<int32_t>();
        DotRight* const panel = wide_scratch.as<DotRight>();
        if (!sums || !panel) return false;
#if defined(TW_TILES)
        tiles_begin(g.m < kTileRows ? static_cast<int>(g.m) : kTileRows);
#endif
        // Rows that come next are far away: a line of them is fetched with each step, if that is enough.
        const int64_t next_bytes = kIntMR * a_stride * static_cast<int64_t>(sizeof(DotLeft));
        const int64_t steps = max_of(1, block_words / kStepWords);
        const int64_t lines = ceil_div(next_bytes, 64 * wide * k_blocks * steps);
        for (int64_t i = t0; by_rows && i < t1; ++i)
            for (int64_t block = 0; block < k_blocks; ++block)
                for (int64_t p = p0; p < p1; ++p) {
                    const int64_t done = (block * wide + p - p0) * steps * 64;
                    const auto* const next = reinterpret_cast<const int8_t*>(a + rows.begin(i + 1) * a_stride);
                    run_tile(rows, i0, i, j0, p, block, nullptr, sums + (keep ? (p - p0) * kIntMR * NR : 0),
                             lines == 1 && done < next_bytes && i + 1 < t1 ? next + done : nullptr, 64 / kStepWords);
                }
        for (int64_t step = 0; !by_rows && step < k_blocks * wide; ++step) {
            const int64_t block = streams ? step % k_blocks : step / wide;
            const int64_t p = p0 + (streams ? step / k_blocks : step % wide);
            const int64_t w0 = min_of(block * block_words, words), w1 = min_of(w0 + block_words, words);
            const int8_t* const from = b + p * panel_bytes + w0 * NR * kDotDepth;
            if (widen) widen_panel(from, w1 - w0, panel);
            // What is multiplied next is not seen as a stream: a share of it is fetched with each tile. Few tiles take
            // little time: they fetch while they multiply, and a single one what comes a little later.
            const int64_t bytes = (w1 - w0) * NR * kDotDepth, share = ceil_div(bytes, 64 * tall) * 64;
            const int8_t* const next = from + (tall == 1 ? kAhead : streams ? bytes : panel_bytes);
            const bool steady = tall <= kFewTiles;
            for (int64_t i = t0; i < t1; ++i) {
                const int64_t first = (i - t0) * share;
                for (int64_t at = first; !steady && at < min_of(first + share, bytes); at += 64)
                    __builtin_prefetch(next + at);
                int32_t* const own = sums + (keep ? ((p - p0) * tall + i - t0) * kIntMR * NR : 0);
                run_tile(rows, i0, i, j0, p, block, widen ? panel : nullptr, own, steady ? next + first : nullptr,
                         ceil_div(NR * kDotDepth, tall));
            }
        }
#if defined(TW_TILES)
        tiles_end();
#endif
        return true;
    }

    // One tile: row i of them by panel p, a block of k. `wide`: the words of the panel, if they are widened.
    __attribute__((always_inline)) void run_tile(const Rows& rows, int64_t i0, int64_t i, int64_t j0, int64_t p,
                                                 int64_t block, const DotRight* wide, int32_t* sums,
                                                 const int8_t* ahead, int64_t ahead_step) const {
        const int64_t w0 = min_of(block * block_words, words), w1 = min_of(w0 + block_words, words);
        const int64_t n0 = (j0 + p) * NR, row = rows.begin(i);
        const int m = rows.count(i), n = static_cast<int>(min_of(NR, g.n - n0));
        const bool last = block == k_blocks - 1, straight = direct && n == NR && (!kHasTiles || m % kTileRows == 0);
        Dots t = {w1 - w0, a + row * a_stride + w0 * kDotDepth, a_stride, sums, NR, block > 0, ahead, ahead_step, kind};
        if (g.y && last && !by_rows)
            for (int r = 0; r < m; ++r) __builtin_prefetch(g.y + (i0 + row + r) * g.y_row + n0 * g.y_col, 1);
        if (by_rows) t.from = sums;
        if (straight && (last || !by_rows)) t.c = g.c + (i0 + row) * g.c_row + n0, t.c_row = g.c_row;
        wide ? run_dots(m, t, wide) : run_dots(m, t, b + p * panel_bytes + w0 * NR * kDotDepth);
        if (!straight && last) hand_over(t.c, terms + row, i0 + row, m, n0, n, p);
    }

    __attribute__((noinline)) void hand_over(int32_t* sums, const RowTerms* rows, int64_t m0, int m, int64_t n0, int n,
                                             int64_t p) const {
        if (a_zeros || g.b_zero) take_off_zeros(sums, rows, m, n0, n, p);
        if (g.finish) return g.finish(g.context, {sums, rows, m0, n0, m, n});
        for (int i = 0; i < m; ++i) {
            int32_t* const c = g.c + (m0 + i) * g.c_row + n0 * g.c_col;
            if (g.c_col == 1)
                for (int j = 0; j < n; j += kLanes<int32_t>)
                    store_n(c + j, load(sums + i * NR + j), n - j < kLanes<int32_t> ? n - j : kLanes<int32_t>);
            else
                for (int j = 0; j < n; ++j) c[j * g.c_col] = sums[i * NR + j];
        }
    }

    void take_off_zeros(int32_t* sums, const RowTerms* rows, int m, int64_t n0, int n, int64_t p) const {
        constexpr int L = kLanes<int32_t>;
        for (int j = 0; j < n; j += L) {
            u32v zero{}, column{};
            if (g.b_zero) zero = bitcast<u32v>(n - j >= L ? load(g.b_zero + n0 + j) : load_n(g.b_zero + n0 + j, n - j));
            if (a_zeros) column = bitcast<u32v>(load(b_sum + p * NR + j));
            if (a_zeros && g.b_zero) column -= zero * static_cast<uint32_t>(g.k);
            for (int i = 0; i < m; ++i) {
                u32v v = bitcast<u32v>(load(sums + i * NR + j));
                if (a_zeros) v -= column * static_cast<uint32_t>(rows[i].zero);
                if (g.b_zero) v -= zero * static_cast<uint32_t>(rows[i].sum);
                store(sums + i * NR + j, bitcast<i32v>(v));
            }
        }
    }
};

}  // namespace

bool int_gemm(const IntGemm& g) { return g.m == 0 || g.n == 0 || Engine(g).run(); }

void multiply_panel(const DotLeft* a, const RowTerms* rows, int m, const int8_t* packed, int64_t k, int64_t n,
                    int64_t panel, int32_t* sums) {
    const int64_t panel_bytes = words_of(k) * NR * kDotDepth;
    const int8_t* const b = packed + panel * panel_bytes;
    run_dots(m, Dots{words_of(k), a, left_stride(k), sums, NR, false, b + kAhead, NR * kDotDepth, TileKind::u8s8}, b);
    if (kDotDepth != 4) return;
    const auto* const columns = reinterpret_cast<const int32_t*>(packed + ceil_div(n, NR) * panel_bytes) + panel * NR;
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < NR; j += kLanes<int32_t>) {
            int32_t* const at = sums + i * NR + j;
            const u32v less = bitcast<u32v>(load(columns + j)) * static_cast<uint32_t>(rows[i].zero);
            store(at, bitcast<i32v>(bitcast<u32v>(load(at)) - less));
        }
}

}  // namespace tw::TW_ISA
