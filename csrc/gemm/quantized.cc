#include "gemm/quantized.h"

#include "core/index.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/tiles.h"
#include "simd/quantize.h"

namespace tw::TW_ISA {
namespace {

constexpr int NR = kIntNR;
constexpr int64_t kWordBytes = 4;
// Of k, between two visits to the sums: of tiles a panel of B that stays in L1.
constexpr int64_t kBlockWords = kVectorRegisters >= 32 && !kHasTiles ? 512 : 256;
constexpr int64_t kTallTiles = kHasTiles ? 16 : 28;  // of A that stay in L2 while panels of B pass
constexpr int64_t kWidePanels = 16;
constexpr int64_t kChunkWork = int64_t{1} << (kHasTiles ? 21 : 19);  // worth handing to another thread
constexpr int64_t kPackedA = int64_t{4} << 20, kPackedB = int64_t{16} << 20;  // bytes packed at a time
constexpr int64_t kFewCodes = 128 << 10;  // bytes of an A that stays in L2 while panels of B are streams
constexpr int64_t kFewTiles = 4;
constexpr int64_t kAhead = 2048;  // bytes of B fetched before they are multiplied

// Tiles take 64 bytes of k at once; what is beyond the last is 0 in A.
constexpr int64_t kStep = kHasTiles ? kTileBytes : kDotDepth;
constexpr int64_t kStepWords = kStep / kDotDepth;
TW_INLINE int64_t words_of(int64_t k) { return ceil_div(k, kStep) * kStepWords; }

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

#if !defined(TW_TILES)
template <class B, bool Ahead>
void run_dots(int m, const Dots& t, const B* b) {
    constexpr void (*table[kMR])(const Dots&, const B*) = {dots<1, B, Ahead>, dots<2, B, Ahead>, dots<3, B, Ahead>,
                                                           dots<4, B, Ahead>, dots<5, B, Ahead>, dots<6, B, Ahead>};
    table[m - 1](t, b);
}
#endif

template <class B>
void run_dots(int m, const Dots& t, const B* b) {
#if defined(TW_TILES)
    const TileBlock block = {t.words / kStepWords,
                             t.a,
                             t.a_row,
                             b,
                             t.c,
                             t.c_row * 4,
                             t.load_c,
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

// ---- packing ------------------------------------------------------------------------------------------------------------

// All words of one panel, n columns of which exist; what the others hold does not matter.
void pack_panel(const Bytes& b, int64_t k, int64_t n0, int64_t n, int8_t* to) {
    constexpr int D = kDotDepth;
    const uint8_t flip = right_flip(b.is_unsigned);
    const uint32_t flips = flip * 0x01010101u;
    const auto* src = static_cast<const uint8_t*>(b.data) + n0 * b.col;
    auto* out = reinterpret_cast<uint8_t*>(to);
    const int64_t whole = k / D;
    int64_t w = 0;
    if (b.col == 1 && (n == NR || b.row > 0)) {
        // Rows are read whole, also beyond the last column where that leads to rows further down.
        const int64_t beyond = n == NR ? 0 : ceil_div(NR - n, b.row);
        for (; w < min_of(whole, (k - beyond) / D); ++w, out += NR * D) {
            const uint8_t* row[D];
            for (int d = 0; d < D; ++d) row[d] = src + (w * D + d) * b.row;
            if constexpr (D == 2) {
                uint16_t pairs[NR];
                for (int j = 0; j < NR; ++j) pairs[j] = static_cast<uint16_t>((row[0][j] | row[1][j] << 8) ^ flips);
                __builtin_memcpy(out, pairs, sizeof pairs);
                continue;
            }
            if constexpr (kVecBytes == 64) {
                for (int j = 0; j < NR; j += 16)
                    store(out + j * D,
                          zip_units(load_units(reinterpret_cast<const int8_t*>(row[0] + j), b.row)) ^ flip);
                continue;
            }
            for (int j = 0; j < NR; ++j)
#pragma GCC unroll 4
                for (int d = 0; d < D; ++d) out[j * D + d] = row[d][j] ^ flip;
        }
    } else if (n == NR && b.row == 1) {
        // Four codes along k are a float to transpose_tile.
        constexpr int L = kLanes<float>;
        alignas(kVecBytes) uint32_t tile[L * L];
        for (; (w + 4 / D * L) * D <= k; w += 4 / D * L, out += NR * 4 * L)
            for (int64_t j = 0; j < NR; j += L) {
                const uint8_t* from = src + j * b.col + w * D;
                for (int64_t q = 0; q < L; ++q) __builtin_memcpy(tile + q * L, from + q * b.col, sizeof(float) * L);
                alignas(kVecBytes) float quads[L * L];
                transpose_tile(reinterpret_cast<const float*>(tile), L, quads, L);
                for (int64_t q = 0; q < L; ++q) {
                    const u32v v = bitcast<u32v>(load_aligned(quads + q * L)) ^ flips;
                    if constexpr (D == 4) {
                        store(reinterpret_cast<uint32_t*>(out + q * NR * 4 + j * 4), v);
                    } else {
                        const Part16 low = narrow16(v & 0xffffu), high = narrow16(v >> 16);
                        __builtin_memcpy(out + q * NR * 4 + j * 2, &low, sizeof low);
                        __builtin_memcpy(out + q * NR * 4 + NR * 2 + j * 2, &high, sizeof high);
                    }
                }
            }
    }
    for (; w < words_of(k); ++w, out += NR * D)
        for (int j = 0; j < NR; ++j)
            for (int d = 0; d < D; ++d) {
                const bool there = j < n && w * D + d < k;
                out[j * D + d] = there ? static_cast<uint8_t>(src[(w * D + d) * b.row + j * b.col] ^ flip) : 0;
            }
}

// The same by a callback, which knows nothing of words beyond k.
void pack_panel(void (*pack_b)(const void* context, int64_t n0, int64_t n, int8_t* panel), const void* context,
                int64_t k, int64_t n0, int64_t n, int8_t* to) {
    pack_b(context, n0, n, to);
    const int64_t there = ceil_div(k, kDotDepth), all = words_of(k);
    __builtin_memset(to + there * NR * kDotDepth, 0, static_cast<size_t>((all - there) * NR * kDotDepth));
}

// The sum of each column of a panel: its product with ones.
void sum_panel(const int8_t* panel, int64_t words, bool is_unsigned, int32_t* sums) {
    constexpr int L = kLanes<int32_t>;
    i32v sum[kIntNV] = {};
    const i32v ones = splat<int32_t>(kDotDepth == 4 ? 0x01010101 : 0x00010001);
    for (int64_t w = 0; w < words; ++w, panel += NR * kDotDepth)
#pragma GCC unroll 4
        for (int j = 0; j < kIntNV; ++j) {
            const i32v word = load_words(panel + j * L * kDotDepth);
            sum[j] = is_unsigned ? dot(sum[j], word, ones) : dot(sum[j], ones, word);
        }
#pragma GCC unroll 4
    for (int j = 0; j < kIntNV; ++j) store(sums + j * L, sum[j]);
}

// Words as the tile multiplies them.
void widen_panel(const int8_t* from, int64_t words, DotRight* to) {
    constexpr int64_t step = kLanes<int32_t> * kDotDepth;
    for (int64_t i = 0; i < words * NR * kDotDepth; i += step)
        store(reinterpret_cast<int32_t*>(to + i), load_words(from + i));
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
    bool direct;  // sums go straight to C
    bool a_zeros;  // a0 is not all 0
    TileKind kind;
    const int8_t* b = nullptr;
    const int32_t* b_sum = nullptr;
    const DotLeft* a = nullptr;
    const RowTerms* terms = nullptr;

    explicit Engine(const IntGemm& gemm) : g(gemm) {
        words = words_of(g.k);
        k_blocks = g.m <= kIntMR ? 1 : max_of(1, ceil_div(words, kBlockWords));
        block_words = ceil_div(ceil_div(words, k_blocks), kStepWords) * kStepWords;
        a_zeros = kDotDepth == 4 && !(kHasTiles && g.a_centred);
        kind = g.a_unsigned      ? g.b.is_unsigned ? TileKind::u8u8 : TileKind::u8s8
               : g.b.is_unsigned ? TileKind::s8u8
                                 : TileKind::s8s8;
        a_stride = left_stride(g.k);
        panels = ceil_div(g.n, NR);
        panel_bytes = words * NR * kDotDepth;
        b_panels = g.packed_b ? panels : min_of(panels, max_of(1, kPackedB / max_of(panel_bytes, 1)));
        const int64_t fit = kPackedA / (a_stride * static_cast<int64_t>(sizeof(DotLeft))) / kIntMR * kIntMR;
        row_block = g.packed_a ? g.m : min_of(g.m, max_of(fit, kIntMR));
        direct = g.c && g.c_col == 1 && !a_zeros && !g.b_zero;
    }

    bool run() {
        Scratch a_scratch(g.packed_a ? 64 : static_cast<size_t>(left_rows(row_block) * a_stride) * sizeof(DotLeft));
        Scratch terms_scratch(g.packed_a ? 64 : static_cast<size_t>(row_block) * sizeof(RowTerms));
        Scratch b_scratch(g.packed_b ? 64 : static_cast<size_t>(packed_right_bytes(g.k, b_panels * NR)));
        DotLeft* const made_a = a_scratch.as<DotLeft>();
        RowTerms* const made_terms = terms_scratch.as<RowTerms>();
        int8_t* const made = b_scratch.as<int8_t>();
        if (!made_a || !made_terms || !made) return false;
        a = g.packed_a ? g.packed_a : made_a;
        terms = g.packed_a ? g.a_terms : made_terms;
        note_kernel(g.packed_b ? "int8 prepared" : "int8 blocked");
        b = g.packed_b ? g.packed_b : made;
        b_sum = reinterpret_cast<const int32_t*>(b + b_panels * panel_bytes);
        bool enough = true;
        int64_t packed_from = -1;
        for (int64_t j0 = 0; j0 < panels; j0 += b_panels) {
            const int64_t here = min_of(b_panels, panels - j0);
            for (int64_t i0 = 0; i0 < g.m; i0 += row_block) {
                const int64_t count = min_of(row_block, g.m - i0);
                const int64_t group = max_of(1, (1 << 15) / a_stride);
                const int64_t b_jobs = !g.packed_b && i0 == 0 ? here : 0;
                const int64_t a_jobs = !g.packed_a && packed_from != i0 ? ceil_div(count, group) : 0;
                packed_from = i0;
                if (!parallel(b_jobs + a_jobs, [&](int64_t job) {
                    if (job < b_jobs) return pack_b(j0 + job, made, made + job * panel_bytes, job);
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

    void pack_b(int64_t panel, int8_t* all, int8_t* to, int64_t job) const {
        const int64_t n0 = panel * NR, n = min_of(NR, g.n - n0);
        g.pack_b ? pack_panel(g.pack_b, g.b_context, g.k, n0, n, to) : pack_panel(g.b, g.k, n0, n, to);
        int32_t* const sums = reinterpret_cast<int32_t*>(all + b_panels * panel_bytes) + job * NR;
        if (a_zeros) sum_panel(to, words, kHasTiles && g.b.is_unsigned, sums);
    }

    // Chunks of tall tile rows by wide panels. Panels are divided first: a tall chunk widens a panel for many rows.
    bool run_rows(int64_t i0, int64_t count, int64_t j0, int64_t here, bool& enough) const {
        const Rows rows(count);
        const int64_t work = rows.count(0) * NR * max_of(g.k, 1);
        int64_t tall = min_of(rows.tiles, kTallTiles), wide = min_of(here, kWidePanels);
        while (ceil_div(rows.tiles, tall) * ceil_div(here, wide) < 16 && tall * wide * work > kChunkWork)
            if (wide > 1)
                wide = ceil_div(wide, 2);
            else if (tall > 1)
                tall = ceil_div(tall, 2);
            else
                break;
        const int64_t across = ceil_div(here, wide);
        return parallel(ceil_div(rows.tiles, tall) * across, [&](int64_t chunk) {
            const int64_t t0 = chunk / across * tall, t1 = min_of(t0 + tall, rows.tiles);
            const int64_t p0 = chunk % across * wide, p1 = min_of(p0 + wide, here);
            if (!run_chunk(rows, i0, t0, t1, j0, p0, p1)) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
    }

    // Tile rows [t0, t1) of the packed A by packed panels [p0, p1); A starts at row i0 of C, B at panel j0.
    bool run_chunk(const Rows& rows, int64_t i0, int64_t t0, int64_t t1, int64_t j0, int64_t p0, int64_t p1) const {
        const int64_t tall = t1 - t0, wide = p1 - p0;
        const bool keep = k_blocks > 1;  // the sums of the whole chunk, between blocks
        const bool widen = kDotDepth == 2 && tall > 1;
        // A block of a tall A stays in L2 while panels pass; all of a small one, and each panel is a stream.
        const bool streams = tall * kIntMR * a_stride * static_cast<int64_t>(sizeof(DotLeft)) <= kFewCodes;
        Scratch sums_scratch(static_cast<size_t>((keep ? wide * tall : 1) * kIntMR * NR) * sizeof(int32_t));
        Scratch wide_scratch(widen ? static_cast<size_t>(block_words * NR) * kWordBytes + 64 : 64);
        int32_t* const sums = sums_scratch.as<int32_t>();
        DotRight* const panel = wide_scratch.as<DotRight>();
        if (!sums || !panel) return false;
#if defined(TW_TILES)
        tiles_begin();
#endif
        // Many rows of tiles: one stays in L1 while panels pass, and C is written along its rows.
        const bool by_rows = kHasTiles && tall > kFewTiles;
        const int64_t major = by_rows ? tall : wide, minor = by_rows ? wide : tall;
        for (int64_t step = 0; step < k_blocks * major; ++step) {
            const int64_t block = streams && !by_rows ? step % k_blocks : step / major;
            const int64_t outer = streams && !by_rows ? step / k_blocks : step % major;
            const int64_t w0 = min_of(block * block_words, words), w1 = min_of(w0 + block_words, words);
            const int64_t bytes = (w1 - w0) * NR * kDotDepth;
            if (widen) widen_panel(b + (p0 + outer) * panel_bytes + w0 * NR * kDotDepth, w1 - w0, panel);
            for (int64_t inner = 0; inner < minor; ++inner) {
                const int64_t i = t0 + (by_rows ? outer : inner), p = p0 + (by_rows ? inner : outer);
                const int8_t* const from = b + p * panel_bytes + w0 * NR * kDotDepth;
                const int64_t n0 = (j0 + p) * NR;
                const int n = static_cast<int>(min_of(NR, g.n - n0));
                const int m = rows.count(i);
                const int64_t row = rows.begin(i);
                // What is multiplied next is not seen as a stream: a share of it is fetched with each tile. Few tiles take
                // little time: they fetch while they multiply, and a single one what comes a little later.
                const int64_t share = ceil_div(bytes, 64 * tall) * 64, first = (i - t0) * share;
                const int8_t* const next = from + (tall == 1 ? kAhead : streams ? bytes : panel_bytes);
                const bool steady = tall <= kFewTiles;
                for (int64_t at = first; !steady && !by_rows && at < min_of(first + share, bytes); at += 64)
                    __builtin_prefetch(next + at);
                Dots t = {w1 - w0,
                          a + row * a_stride + w0 * kDotDepth,
                          a_stride,
                          nullptr,
                          NR,
                          block > 0,
                          steady ? next + first : nullptr,
                          ceil_div(NR * kDotDepth, tall),
                          kind};
                if (g.y && block == k_blocks - 1)
                    for (int r = 0; r < m; ++r) __builtin_prefetch(g.y + (i0 + row + r) * g.y_row + n0 * g.y_col, 1);
                const bool straight = direct && n == NR && (!kHasTiles || m % kTileRows == 0);
                t.c = sums + (keep ? ((p - p0) * tall + i - t0) * kIntMR * NR : 0);
                if (straight) t.c = g.c + (i0 + row) * g.c_row + n0, t.c_row = g.c_row;
                widen ? run_dots(m, t, static_cast<const DotRight*>(panel)) : run_dots(m, t, from);
                if (!straight && block == k_blocks - 1) hand_over(t.c, terms + row, i0 + row, m, n0, n, p);
            }
        }
#if defined(TW_TILES)
        tiles_end();
#endif
        return true;
    }

    void hand_over(int32_t* sums, const RowTerms* rows, int64_t m0, int m, int64_t n0, int n, int64_t p) const {
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
        for (int j = 0; j < n; j += kLanes<int32_t>) {
            const int64_t lanes = n - j < kLanes<int32_t> ? n - j : kLanes<int32_t>;
            const u32v zero = g.b_zero ? bitcast<u32v>(load_n(g.b_zero + n0 + j, lanes)) : u32v{};
            u32v column{};
            if (a_zeros) column = bitcast<u32v>(load(b_sum + p * NR + j)) - zero * static_cast<uint32_t>(g.k);
            for (int i = 0; i < m; ++i) {
                u32v v = bitcast<u32v>(load(sums + i * NR + j));
                if (a_zeros) v -= column * static_cast<uint32_t>(rows[i].zero);
                if (g.b_zero) v -= zero * static_cast<uint32_t>(rows[i].sum);
                store(sums + i * NR + j, bitcast<i32v>(v));
            }
        }
    }
};

void pad_row(DotLeft* to, int64_t k) {
    for (; k % kStep; ++k) to[k] = 0;
}

template <class Code>
int32_t sum_row(const Code* codes, int64_t k) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += static_cast<uint32_t>(static_cast<int32_t>(codes[i]));
    return static_cast<int32_t>(sum);
}

template <class T>
void pack_row(const T* src, int64_t step, int64_t k, int32_t less, DotLeft* to) {
    if (step == 1)
        for (int64_t i = 0; i < k; ++i) to[i] = static_cast<DotLeft>(src[i] - less);
    else
        for (int64_t i = 0; i < k; ++i) to[i] = static_cast<DotLeft>(src[i * step] - less);
}

}  // namespace

bool int_gemm(const IntGemm& g) { return g.m == 0 || g.n == 0 || Engine(g).run(); }

// An odd number of cache lines, so that rows fall into different sets.
int64_t left_stride(int64_t k) {
    return (ceil_div(words_of(k) * kWordBytes, 64) | 1) * 64 / static_cast<int64_t>(sizeof(DotLeft));
}

int64_t packed_right_bytes(int64_t k, int64_t n) {
    return ceil_div(n, NR) * NR * (words_of(k) * kDotDepth + static_cast<int64_t>(sizeof(int32_t)));
}

void pack_right(const Bytes& b, int64_t k, int64_t n, int8_t* packed) {
    const struct {
        const Bytes& b;
        int64_t k;
    } whole = {b, k};
    typedef decltype(whole) Whole;
    const auto panel = [](const void* context, int64_t n0, int64_t count, int8_t* to) {
        const auto& own = *static_cast<Whole*>(context);
        pack_panel(own.b, own.k, n0, count, to);
    };
    pack_right(panel, &whole, k, n, packed);
    if (!kHasTiles || !b.is_unsigned) return;
    const int64_t panels = ceil_div(n, NR), panel_bytes = words_of(k) * NR * kDotDepth;
    for (int64_t p = 0; p < panels; ++p)
        sum_panel(packed + p * panel_bytes, words_of(k), true,
                  reinterpret_cast<int32_t*>(packed + panels * panel_bytes) + p * NR);
}

void pack_right(void (*pack_b)(const void* context, int64_t n0, int64_t n, int8_t* panel), const void* context,
                int64_t k, int64_t n, int8_t* packed) {
    const int64_t panels = ceil_div(n, NR), panel_bytes = words_of(k) * NR * kDotDepth;
    auto* const sums = reinterpret_cast<int32_t*>(packed + panels * panel_bytes);
    parallel(panels, [&](int64_t p) {
        pack_panel(pack_b, context, k, p * NR, min_of(NR, n - p * NR), packed + p * panel_bytes);
        sum_panel(packed + p * panel_bytes, words_of(k), false, sums + p * NR);
    });
}

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

void pack_left_row(const Bytes& a, int64_t row, int64_t k, int32_t zero, bool sums, DotLeft* to, RowTerms* terms) {
    const auto* src = static_cast<const uint8_t*>(a.data) + row * a.row;
    const int32_t shift = a.is_unsigned || kHasTiles ? 0 : 128;  // to unsigned bytes
    const int32_t less = kDotDepth == 4 ? -shift : zero;
    if (a.is_unsigned)
        pack_row(src, a.col, k, less, to);
    else
        pack_row(reinterpret_cast<const int8_t*>(src), a.col, k, less, to);
    terms->zero = kDotDepth == 4 ? zero + shift : 0;
    if (kHasTiles && !a.is_unsigned)
        terms->sum = sums ? sum_row(reinterpret_cast<const int8_t*>(to), k) : 0;
    else
        terms->sum = sums ? sum_row(to, k) : 0;
    terms->scale = 1;
    pad_row(to, k);
}

void quantize_left_row(const float* x, int64_t k, bool sums, DotLeft* to, RowTerms* terms) {
    const RowCode own = row_code(range_of(x, k));
    // 16-bit codes leave out the zero point: rint(x / scale) within [-zero, 255 - zero].
    const float zero = kDotDepth == 4 ? own.zero : 0.f, low = zero - own.zero, high = low + 255.f;
    const f32v inverse = splat(own.inverse), offset = splat(zero);
    const auto code = [=](f32v v) __attribute__((always_inline)) {
        const i32v q = code_of(apart(v * inverse), offset, low, high);
        if constexpr (kDotDepth == 4)
            return narrow8<uint8_t>(q);
        else
            return narrow16(bitcast<u32v>(q) & 0xffffu);
    };
    int64_t i = 0;
    for (; i + kLanes<float> <= k; i += kLanes<float>) {
        const auto part = code(load(x + i));
        __builtin_memcpy(to + i, &part, sizeof part);
    }
    if (i < k) {
        typedef Elem<decltype(code(f32v{}))> Code;
        store_part_n(reinterpret_cast<Code*>(to + i), code(load_n(x + i, k - i)), k - i);
    }
    terms->zero = kDotDepth == 4 ? static_cast<int32_t>(own.zero) : 0;
    terms->sum = sums ? sum_row(to, k) : 0;
    terms->scale = own.scale;
    pad_row(to, k);
}

}  // namespace tw::TW_ISA
