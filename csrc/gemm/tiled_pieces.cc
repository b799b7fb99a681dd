// C = activation(bias + addend + A B) on tiles, floats in three pieces; what a tier with tiles lends gemm/tiled.cc.
//
// Method    gemm/pieces.h. Where A stays in L2, each thread splits panels of B for itself and runs all of A over them; else
//           all threads split B, a band of panels at a time, and then run groups of rows of A over the band, some hundred
//           terms at a time. B is split where it lies if the packer can say so, else out of what it packs.
// Numerics  one running sum over k. Panels whose exponents do not fit are left to the caller.
// Threads   blocks of C are independent; k is never split between threads, so bits do not depend on their number.
#include "gemm/tiled_pieces.h"

#if defined(TW_TILES)
#include "core/index.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/micro.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int kPieces = 3, NR = kPanelColumns, MR = kTallRows, L = kLanes<float>;
constexpr int64_t kStepBytes = kPieces * kPieceBytes;  // of a row tile of A, or a panel of B
constexpr int64_t kStayingBytes = 1280 * 1024;  // of an A and a panel of B that stay in L2
constexpr int64_t kBandBytes = 3 * 1024 * 1024;  // of B split at a time by all threads
constexpr int64_t kBlockSteps = 16;  // between two visits to the sums
constexpr int64_t kChunkWork = int64_t{1} << 20;
constexpr int64_t kShares = 4;  // chunks of panels for a thread
constexpr int64_t kFewPanels = 16, kGroup = 4;  // row tiles of a job
constexpr int64_t kPackTerms = 64;  // packed at a time, in L1

TW_INLINE void split_to(f32v x, f32v y, Exponents& seen, char* to) {
    u32v words[kPieces];
    split_pairs(x, y, words, seen);
    for (int p = 0; p < kPieces; ++p) store(reinterpret_cast<uint32_t*>(to + p * kPieceBytes), words[p]);
}

ExponentRange split_tile(const Matrix<float>& a, int64_t m, int64_t k, char* to) {
    Exponents seen;
    for (int64_t k0 = 0; k0 < k; k0 += kPieceTerms, to += kStepBytes)
        for (int64_t i = 0; i < MR; ++i) {
            const float* const from = a.data + i * a.row + k0 * a.col;
            const int64_t n = i < m ? min_of(k - k0, kPieceTerms) : 0;
            const auto take = [&](int64_t at) {
                const int64_t lanes = max_of(0, min_of(n - at, L));
                if (lanes == 0) return f32v{};
                return a.col == 1 ? load_n(from + at, lanes) : load_strided(from + at * a.col, a.col, lanes);
            };
            split_to(take(0), take(L), seen, to + i * kTileBytes);
        }
    return seen.range();
}

struct Engine {
    const Gemm<float>& g;
    const InPieces& job;
    const char* a;
    ExponentRange range;
    int64_t tiles, panels, steps, step_bytes;

    Engine(const InPieces& given) : g(*given.g), job(given), a(given.a), range(given.range) {
        tiles = ceil_div(g.m, MR), panels = ceil_div(g.n, NR), steps = ceil_div(g.k, kPieceTerms);
    }

    // Words [r0, r1) of the step that begins with term k0 of `terms`, each `take(term, vector)`, at `to`.
    template <class Take>
    __attribute__((always_inline)) static void split_words(int64_t r0, int64_t r1, int64_t k0, int64_t terms, char* to,
                                                           Exponents& seen, const Take& take) {
        const bool whole = k0 + kPieceTerms <= terms;
        for (int64_t r = r0; r < r1 && whole; ++r)
            for (int v = 0; v < 2; ++v)
                split_to(take(k0 + r, v), take(k0 + r + kTileRows, v), seen, to + r * 2 * kTileBytes + v * kTileBytes);
        for (int64_t r = r0; r < r1 && !whole; ++r)
            for (int v = 0; v < 2; ++v) {
                const int64_t k = k0 + r;
                const f32v x = k < terms ? take(k, v) : f32v{};
                const f32v y = k + kTileRows < terms ? take(k + kTileRows, v) : f32v{};
                split_to(x, y, seen, to + r * 2 * kTileBytes + v * kTileBytes);
            }
    }

    // Where a panel is taken from.
    enum Way { packed, in_place, with_seams };
    struct Place {
        Way way;
        int64_t n0, n;
        const float *from[2], *next[2];
        int64_t lanes[2];  // of `from`
    };
    Place place(int64_t j) const {
        Place p{};
        p.way = packed, p.n0 = j * NR, p.n = min_of(NR, g.n - p.n0);
        p.lanes[0] = min_of(p.n, L), p.lanes[1] = max_of(0, p.n - L);
        if (!g.pack_b) {
            p.way = p.n == NR ? in_place : packed;
            for (int v = 0; v < 2; ++v) p.from[v] = g.b.data + p.n0 + v * L;
        } else if (p.n == NR && job.source.seam) {
            bool found = true;
            for (int v = 0; v < 2 && found; ++v)
                found = job.source.seam(g.context, p.n0 + v * L, &p.from[v], &p.next[v], &p.lanes[v]);
            if (found) p.way = p.lanes[0] == L && p.lanes[1] == L ? in_place : with_seams;
        }
        return p;
    }

    // Calls body(how to take a vector of a term) for a panel that lies somewhere.
    template <class Body>
    __attribute__((always_inline)) void taking(const Place& p, const Body& body) const {
        const int64_t* const offset = job.source.offset;
        const float *const a0 = p.from[0], *const a1 = p.from[1], *const b0 = p.next[0], *const b1 = p.next[1];
        const int64_t n0 = p.lanes[0], n1 = p.lanes[1], row = g.b.row;
        if (!g.pack_b)
            body([=](int64_t k, int v) __attribute__((always_inline)) {
                const float* const at = (v ? a1 : a0) + k * row;
                __builtin_prefetch(at + NR);
                return load(at);
            });
        else if (p.way == in_place)
            body([=](int64_t k, int v) __attribute__((always_inline)) {
                const float* const at = (v ? a1 : a0) + offset[k];
                __builtin_prefetch(at + NR);
                return load(at);
            });
        else
            body([=](int64_t k, int v) __attribute__((always_inline)) {
                const float* const at = (v ? a1 : a0) + offset[k];
                __builtin_prefetch(at + NR);
                return first_lanes<float>(load(at), load((v ? b1 : b0) + offset[k]), v ? n1 : n0);
            });
    }

    // A panel in pieces.
    void make(const Place& p, char* to, float* buffer, Exponents& seen) const {
        if (p.way != packed)
            return taking(p, [&](const auto& take) __attribute__((always_inline)) {
                for (int64_t s = 0; s < steps; ++s)
                    split_words(0, kTileRows, s * kPieceTerms, g.k, to + s * kStepBytes, seen, take);
            });
        constexpr int64_t row = Blocking<float>::NR;
        for (int64_t k0 = 0; k0 < g.k; k0 += kPackTerms) {
            const int64_t terms = min_of(kPackTerms, g.k - k0);
            if (g.pack_b)
                g.pack_b(g.context, k0, terms, p.n0, p.n, buffer);
            else
                for (int64_t k = 0; k < terms; ++k)
                    for (int v = 0; v < 2; ++v)
                        store(buffer + k * row + v * L, load_n(p.from[v] + (k0 + k) * g.b.row, p.lanes[v]));
            for (int64_t k = 0; k < terms; k += kPieceTerms, to += kStepBytes)
                split_words(0, kTileRows, k, terms, to, seen, [&](int64_t t, int v) __attribute__((always_inline)) {
                    const float* const at = buffer + t * row + v * L;
                    return p.n == NR ? load(at) : load_n(at, p.lanes[v]);
                });
        }
    }

    void finish(const float* sums, int64_t tile, int64_t j) const {
        const int64_t m0 = tile * MR, n0 = j * NR, m = min_of(MR, g.m - m0), n = min_of(NR, g.n - n0);
        const Activation activation = g.activation;
        const float* const addend = g.addend.data  ? g.addend.data + m0 * g.addend.row + n0
                                    : g.accumulate ? g.c + m0 * g.c_row + n0
                                                   : nullptr;
        const int64_t addend_row = g.addend.data ? g.addend.row : g.c_row;
        const bool simple = activation == Activation::none || is_clip(activation);
        const f32v limit = clip_limit<f32v>(activation);
        for (int64_t i = 0; i < m; ++i) {
            float* const c = g.c + (m0 + i) * g.c_row + n0;
            const f32v bias = splat(g.bias_row ? g.bias_row[m0 + i] : 0.f);
            for (int64_t at = 0; at < n; at += L) {
                const int64_t lanes = min_of(L, n - at);
                f32v v = load(sums + i * NR + at) + bias;
                if (addend)
                    v += lanes == L ? load(addend + i * addend_row + at) : load_n(addend + i * addend_row + at, lanes);
                if (!simple)
                    v = activate(v, activation);
                else if (activation != Activation::none)
                    v = clipped(v, limit);
                lanes == L ? store(c + at, v) : store_n(c + at, v, lanes);
            }
        }
    }

    bool fits(const Exponents& seen) const { return ranges_fit(range, seen.range(), g.k); }

    // All rows by one panel; meanwhile, the next one, if it lies somewhere, is split.
    void run_panel(int64_t j, const char* panel, const Place& next, char* to, Exponents& seen) const {
        alignas(64) float sums[MR * NR];
        const auto all = [&](const auto& with_tile) __attribute__((always_inline)) {
            for (int64_t i = 0; i < tiles; ++i) {
                const char *const rows = a + i * steps * kStepBytes, *const then =
                                                                         i + 1 < tiles ? rows + steps * kStepBytes : a;
                const PieceBlock block = {steps, rows, panel, sums, NR, false, then, panel};
                with_tile(block, i);
                finish(sums, i, j);
            }
        };
        if (next.way == packed)
            return all([&](const PieceBlock& block, int64_t i) { multiply_pieces<kPieces>(block, g.m - i * MR); });
        taking(next, [&](const auto& take) __attribute__((always_inline)) {
            all([&](const PieceBlock& block, int64_t i) {
                const int64_t r0 = kTileRows * i / tiles, r1 = kTileRows * (i + 1) / tiles;
                multiply_pieces<kPieces>(block, g.m - i * MR, [&](int64_t s) __attribute__((always_inline)) {
                    split_words(r0, r1, s * kPieceTerms, g.k, to + s * kStepBytes, seen, take);
                });
            });
        });
    }

    bool by_panels() const {
        note_kernel("gemm tiled in pieces");
        const int64_t together = max_of(1 + kChunkWork / (g.m * NR * g.k), ceil_div(panels, kShares * num_threads()));
        bool enough = true;
        parallel(ceil_div(panels, together), [&](int64_t chunk) {
            Scratch scratch(static_cast<size_t>(2 * steps * kStepBytes)),
                packing(static_cast<size_t>(kPackTerms * Blocking<float>::NR) * sizeof(float));
            char* const both = scratch.as<char>();
            if (!both || !packing.as<float>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            tiles_begin();
            const int64_t first = chunk * together, end = min_of(first + together, panels);
            bool made = false;
            Exponents seen;
            Place next = place(first);
            for (int64_t j = first; j < end; ++j) {
                char *const panel = both + (j - first) % 2 * steps * kStepBytes, *const other = both + (j - first + 1) %
                                                                                                           2 * steps *
                                                                                                           kStepBytes;
                if (!made) seen = {}, make(next, panel, packing.as<float>(), seen);
                job.refused[j] = !fits(seen);
                seen = {}, made = false, next.way = packed;
                if (j + 1 < end) next = place(j + 1);
                if (job.refused[j]) continue;
                made = next.way != packed;
                run_panel(j, panel, next, other, seen);
            }
            tiles_end();
        });
        return enough;
    }

    bool by_rows() const {
        note_kernel("gemm tiled in pieces, shared");
        const int64_t each = steps * kStepBytes, band = min_of(panels, max_of(2, kBandBytes / each));
        Scratch b_scratch(static_cast<size_t>(band * each));
        char* const b = b_scratch.as<char>();
        if (!b) return false;
        const int64_t group = max_of(1, min_of(kGroup, tiles / 4));
        bool enough = true;
        for (int64_t j0 = 0; j0 < panels; j0 += band) {
            const int64_t here = min_of(band, panels - j0);
            if (!parallel(here, [&](int64_t j) {
                Scratch packed(static_cast<size_t>(kPackTerms * Blocking<float>::NR) * sizeof(float));
                if (!packed.as<float>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                Exponents seen;
                make(place(j0 + j), b + j * each, packed.as<float>(), seen);
                job.refused[j0 + j] = !fits(seen);
            }))
                return true;
            if (!parallel(ceil_div(tiles, group), [&](int64_t chunk) {
                const int64_t i0 = chunk * group, i1 = min_of(i0 + group, tiles);
                Scratch scratch(static_cast<size_t>(group * here * MR * NR) * sizeof(float));
                float* const sums = scratch.as<float>();
                if (!sums) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                tiles_begin();
                for (int64_t s = 0; s < steps; s += kBlockSteps)
                    for (int64_t j = 0; j < here; ++j) {
                        if (job.refused[j0 + j]) continue;
                        for (int64_t i = i0; i < i1; ++i) {
                            float* const c = sums + (j * group + i - i0) * MR * NR;
                            const int64_t now = min_of(kBlockSteps, steps - s);
                            const char* const panel = b + j * each + s * kStepBytes;
                            const char *const rows = a + (i * steps + s) * kStepBytes, *const then =
                                                                                           i + 1 < i1
                                                                                               ? rows +
                                                                                                     steps * kStepBytes
                                                                                               : rows - (i - i0) *
                                                                                                            steps *
                                                                                                            kStepBytes;
                            multiply_pieces<kPieces>({now, rows, panel, c, NR, s > 0, then, panel}, g.m - i * MR);
                            if (s + kBlockSteps >= steps) finish(c, i, j0 + j);
                        }
                    }
                tiles_end();
            }))
                return true;
        }
        return enough;
    }

    bool run() {
        const bool few = panels < kFewPanels;
        return !few && (tiles + 1) * steps * kStepBytes <= kStayingBytes ? by_panels() : by_rows();
    }
};

}  // namespace

void split_rows(const void* given) {
    const SplitRows& r = *static_cast<const SplitRows*>(given);
    const int64_t tiles = ceil_div(r.m, MR), each = split_bytes(MR, r.k);
    int least = 255, most = 0;
    parallel(tiles, [&](int64_t i) {
        const Matrix<float> a = {r.a.data + i * MR * r.a.row, r.a.row, r.a.col};
        const ExponentRange range = split_tile(a, min_of(MR, r.m - i * MR), r.k, r.to + i * each);
        for (int was = __atomic_load_n(&least, __ATOMIC_RELAXED); range.least < was;)
            if (__atomic_compare_exchange_n(&least, &was, range.least, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
        for (int was = __atomic_load_n(&most, __ATOMIC_RELAXED); range.most > was;)
            if (__atomic_compare_exchange_n(&most, &was, range.most, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
    });
    *r.range = {least, most};
}

int tiled_in_pieces(const void* given) {
    const InPieces& job = *static_cast<const InPieces*>(given);
    Engine engine(job);
    Scratch scratch(job.a ? 64 : static_cast<size_t>(split_bytes(job.g->m, job.g->k)));
    if (!scratch.as<char>()) return static_cast<int>(InPiecesResult::no_memory);
    if (!job.a) {
        const SplitRows rows = {job.g->a, job.g->m, job.g->k, scratch.as<char>(), &engine.range};
        split_rows(&rows);
        engine.a = scratch.as<char>();
    }
    if (!ranges_fit(engine.range, {127, 127}, job.g->k)) return static_cast<int>(InPiecesResult::refused);
    return static_cast<int>(engine.run() ? InPiecesResult::done : InPiecesResult::no_memory);
}

}  // namespace tw::TW_ISA
#endif
