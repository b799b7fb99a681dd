// C = activation(bias + addend + A B) on tiles, floats in three pieces; what a tier with tiles lends gemm/tiled.cc.
//
// Method    gemm/pieces.h. Where A stays in L2, each thread splits panels of B for itself and runs all of A over them. Else a
//           block of C stays there as sums, while blocks of k pass. Both are split beside the products of what came before:
//           the panels that come next, and rows of A, so that A passes from memory once, as floats. B is taken where it lies
//           if the packer can say where, else out of what it packs.
// Numerics  one running sum over k. Panels whose exponents do not fit are left to the caller.
// Threads   blocks of C are independent; k is never split between threads, so bits do not depend on their number.
#include "gemm/tiled_pieces.h"

#if defined(TW_TILES)
#include "core/index.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/micro.h"
#include "gemm/split.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int NR = kPanelColumns, MR = kTallRows, L = kLanes<float>;
constexpr int64_t kStepBytes = kPieces<float> * kPieceBytes;  // of a row tile of A, or a panel of B
// Of a block of C: its panels, its sums, and the panels between two visits to them.
constexpr int64_t kMostPanels = 16, kMostSums = 160, kBlockBytes = 400 * 1024, kLeastSteps = 4, kMostSteps = 32;
constexpr int64_t kSomeSteps = 16;  // where one block of k is not enough: rows of A in pieces stay nearer
constexpr int64_t kChunkWork = int64_t{1} << 20, kPolledWork = int64_t{1} << 34;  // at least; at most
constexpr int64_t kTileFloats = MR * kPieceTerms;
constexpr int64_t kShares = 4;  // chunks of panels for a thread; the first panel of each is split by itself
constexpr int64_t kPackTerms = 64;  // packed at a time, in L1

// `seen` null: the exponents are known.
TW_INLINE void split_to(f32v x, f32v y, Exponents* seen, char* to) {
    u32v words[kPieces<float>];
    split_words(x, y, words);
    if (seen) {
        seen->see(bitcast<Halves>(words[0]));
        seen->left |= bitcast<u32v>(x) | bitcast<u32v>(y);
    }
    for (int p = 0; p < kPieces<float>; ++p) store(reinterpret_cast<uint32_t*>(to + p * kPieceBytes), words[p]);
}

struct Engine {
    const Gemm<float>& g;
    const InPieces& job;
    const char* a;
    ExponentRange range;
    ExponentRange *of_panels = nullptr, *of_rows = nullptr;  // where A is not known ahead: what was seen
    int64_t tiles, panels, steps;

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
                split_to(take(k0 + r, v), take(k0 + r + kTileRows, v), &seen, to + r * 2 * kTileBytes + v * kTileBytes);
        for (int64_t r = r0; r < r1 && !whole; ++r)
            for (int v = 0; v < 2; ++v) {
                const int64_t k = k0 + r;
                const f32v x = k < terms ? take(k, v) : f32v{};
                const f32v y = k + kTileRows < terms ? take(k + kTileRows, v) : f32v{};
                split_to(x, y, &seen, to + r * 2 * kTileBytes + v * kTileBytes);
            }
    }

    // Where a panel is taken from.
    enum Way { packed, in_place, in_front, in_two, in_parts };  // in_front: and not to be read beyond its columns
    struct Place {
        Way way;
        int64_t n0, n, lanes[2];
        VectorParts<float> part[2];
    };
    Place place(int64_t j) const {
        Place p{};
        p.way = packed, p.n0 = j * NR, p.n = min_of(NR, g.n - p.n0);
        p.lanes[0] = min_of(p.n, L), p.lanes[1] = max_of(0, p.n - L);
        if (!g.pack_b) {
            p.way = p.n == NR ? in_place : in_front;
            for (int v = 0; v < 2; ++v) p.part[v] = {{g.b.data + p.n0 + (p.lanes[v] ? v * L : 0)}, {p.lanes[v]}, 1};
        } else if (job.source.parts) {
            bool found = true;
            for (int v = 0; v < 2 && found; ++v)
                found = job.source.parts(g.context, p.n0 + v * L, p.lanes[v], p.part[v]);
            const int most = max_of(p.part[0].count, p.part[1].count);
            if (found) p.way = most > 2 ? in_parts : most == 2 || p.n < NR ? in_two : in_place;
        }
        return p;
    }

    // Calls body(how to take a vector of a term) for a panel that lies somewhere.
    template <class Body>
    __attribute__((always_inline)) void taking(const Place& p, const Body& body) const {
        const int64_t* const offset = job.source.offset;
        const int64_t row = g.b.row;
        const VectorParts<float> a = p.part[0], b = p.part[1];
        if (p.way == in_front)
            body([=](int64_t k, int v) __attribute__((always_inline)) {
                return load_n((v ? b : a).from[0] + k * row, (v ? b : a).end[0]);
            });
        else if (!g.pack_b)
            body([=, to = a.from[0]](int64_t k, int v) __attribute__((always_inline)) {
                const float* const at = to + k * row + v * L;
                __builtin_prefetch(at + NR);
                return load(at);
            });
        else if (p.way == in_place)
            body([=, one = a.from[0], two = b.from[0]](int64_t k, int v) __attribute__((always_inline)) {
                const float* const at = (v ? two : one) + offset[k];
                __builtin_prefetch(at + NR);
                return load(at);
            });
        else if (p.way == in_two)
            body([=](int64_t k, int v) __attribute__((always_inline)) {
                const VectorParts<float>& t = v ? b : a;
                __builtin_prefetch(t.from[0] + offset[k] + NR);
                return first_lanes<float>(load(t.from[0] + offset[k]), load_n(t.from[1] + offset[k], t.end[1]),
                                          t.end[0]);
            });
        else
            body([=](int64_t k, int v) __attribute__((always_inline)) {
                const VectorParts<float>& t = v ? b : a;
                const auto part = [&](int i) __attribute__((always_inline)) { return load(t.from[i] + offset[k]); };
                const f32v last = first_lanes<float>(part(2), load_n(t.from[3] + offset[k], t.end[3]), t.end[2]);
                return first_lanes<float>(part(0), first_lanes<float>(part(1), last, t.end[1]), t.end[0]);
            });
    }

    // Steps [s0, s1) of a panel in pieces.
    void make(const Place& p, int64_t s0, int64_t s1, char* to, float* buffer, Exponents& seen) const {
        if (p.way != packed)
            return taking(p, [&](const auto& take) __attribute__((always_inline)) {
                for (int64_t s = s0; s < s1; ++s, to += kStepBytes)
                    split_words(0, kTileRows, s * kPieceTerms, g.k, to, seen, take);
            });
        constexpr int64_t row = Blocking<float>::NR;
        const int64_t end = min_of(s1 * kPieceTerms, g.k);
        for (int64_t k0 = s0 * kPieceTerms; k0 < end; k0 += kPackTerms) {
            const int64_t terms = min_of(kPackTerms, end - k0);
            g.pack_b(g.context, k0, terms, p.n0, p.n, buffer);
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

    // Steps of rows of A as floats.
    struct Rows {
        const float* from;
        int64_t row, step, steps;

        __attribute__((always_inline)) void split(int64_t s, int64_t r0, int64_t r1, char* to, Exponents* seen) const {
            const float* at = from + s * step + r0 * row;
            to += s * kStepBytes + r0 * kTileBytes;
            for (int64_t r = r0; r < r1; ++r, at += row, to += kTileBytes) {
                __builtin_prefetch(at + 2 * step), __builtin_prefetch(at + 2 * step + L);
                split_to(load(at), load(at + L), seen, to);
            }
        }
    };
    // Steps [s0, s1) of a tile, if they are whole; else none.
    Rows rows_of(int64_t tile, int64_t s0, int64_t s1) const {
        if (job.rows) return {job.rows + (tile * steps + s0) * kTileFloats, kPieceTerms, kTileFloats, s1 - s0};
        const bool whole = g.m - tile * MR >= MR && s1 * kPieceTerms <= g.k;
        return {g.a.data + tile * MR * g.a.row + s0 * kPieceTerms, g.a.row, kPieceTerms, whole ? s1 - s0 : 0};
    }
    void make_rows(int64_t tile, int64_t s0, int64_t s1, char* to, Exponents* seen) const {
        const Rows rows = rows_of(tile, s0, s1);
        for (int64_t s = 0; s < rows.steps; ++s) rows.split(s, 0, MR, to, seen);
        if (rows.steps) return;
        ExponentRange own;
        split_floats_left(rows.from, rows.row, 1, min_of(g.m - tile * MR, MR),
                          min_of(s1 * kPieceTerms, g.k) - s0 * kPieceTerms, to, own);
        join_shared(*of_rows, own);
    }

    // What is done beside a product, a share with each step: words [r0, r1) of `steps` steps from s0 on of a panel that lies
    // somewhere are split, and rows [a0, a1) of A.
    struct Beside {
        const Place* place;
        int64_t r0, r1, s0, steps;
        char* to;
        Exponents* seen;
        Rows rows;
        int64_t a0, a1;
        char* a_to;
        Exponents* a_seen;
        Matrix<float> met[2] = {};  // what finish() writes, and reads: lines to fetch
        int64_t met_rows = 0;  // with each step

        __attribute__((always_inline)) void fetch(int64_t s) const {
            for (int64_t r = s * met_rows; r < min_of((s + 1) * met_rows, MR); ++r)
                for (int64_t at = 0; at < 3 * L; at += L) {
                    __builtin_prefetch(met[0].data + r * met[0].row + min_of(at, NR - 1), 1);
                    if (met[1].data) __builtin_prefetch(met[1].data + r * met[1].row + min_of(at, NR - 1));
                }
        }
        __attribute__((always_inline)) void split_rows(int64_t s, int part) const {
            const int64_t n = a1 - a0;
            if (s < rows.steps) rows.split(s, a0 + n * part / 4, a0 + n * (part + 1) / 4, a_to, a_seen);
        }
    };
    void meet(Beside& b, int64_t tile, int64_t j, int64_t now) const {
        b.met[0] = {g.c + tile * MR * g.c_row + j * NR, g.c_row, 1};
        if (g.addend.data) b.met[1] = {g.addend.data + tile * MR * g.addend.row + j * NR, g.addend.row, 1};
        b.met_rows = ceil_div(MR, now);
    }
    void multiply(const PieceBlock& block, int64_t rows, const Beside& b) const {
        if (!b.place || b.place->way == packed)
            return multiply_pieces<kPieces<float>>(block, rows,
                                                   [&](int64_t s, int part) __attribute__((always_inline)) {
                if (part == 0) b.fetch(s);
                b.split_rows(s, part);
            });
        taking(*b.place, [&](const auto& take) __attribute__((always_inline)) {
            multiply_pieces<kPieces<float>>(block, rows, [&](int64_t s, int part) __attribute__((always_inline)) {
                if (part == 0 && s < b.steps)
                    split_words(b.r0, b.r1, (b.s0 + s) * kPieceTerms, g.k, b.to + s * kStepBytes, *b.seen, take);
                if (part == 0) b.fetch(s);
                b.split_rows(s, part);
            });
        });
    }

    // All rows by one panel; meanwhile, the next one is split.
    void run_panel(int64_t j, const char* panel, const Place& next, char* to, Exponents& seen) const {
        alignas(64) float sums[MR * NR];
        for (int64_t i = 0; i < tiles; ++i) {
            const char *const rows = a + i * steps * kStepBytes, *const then =
                                                                     i + 1 < tiles ? rows + steps * kStepBytes : a;
            Beside b = {
                &next,  kTileRows * i / tiles, kTileRows * (i + 1) / tiles, 0, steps, to, &seen, {}, 0, 0, nullptr,
                nullptr};
            meet(b, i, j, steps);
            multiply({steps, rows, panel, sums, NR, false, then, panel}, g.m - i * MR, b);
            finish(sums, i, j);
        }
    }

    bool by_panels() const {
        note_kernel("gemm tiled in pieces");
        // As even as they can be, for the last thread to end decides; one that has no help need not begin anew.
        const int64_t most = ceil_div(panels, 1 + kChunkWork / (g.m * NR * g.k));
        const int64_t shares = num_threads() == 1 ? 1 : kShares * num_threads();
        const int64_t chunks = min_of(most, max_of(shares, g.m * g.n * g.k / kPolledWork));
        bool enough = true;
        parallel(chunks, [&](int64_t chunk) {
            Scratch scratch(static_cast<size_t>(2 * steps * kStepBytes)),
                packing(static_cast<size_t>(kPackTerms * Blocking<float>::NR) * sizeof(float));
            char* const both = scratch.as<char>();
            if (!both || !packing.as<float>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            tiles_begin();
            const int64_t first = panels * chunk / chunks, end = panels * (chunk + 1) / chunks;
            bool made = false;
            Exponents seen;
            Place next = place(first);
            for (int64_t j = first; j < end; ++j) {
                char *const panel = both + (j - first) % 2 * steps * kStepBytes, *const other = both + (j - first + 1) %
                                                                                                           2 * steps *
                                                                                                           kStepBytes;
                if (!made) seen = {}, make(next, 0, steps, panel, packing.as<float>(), seen);
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

    // ---- A that does not stay in L2: blocks of C ------------------------------------------------------------------------

    // Large blocks of C split B, and read A, seldom; small ones occupy all threads.
    struct Plan {
        int64_t tall, wide, steps, k_blocks;
    };
    Plan plan() const {
        Plan p{};
        int64_t least = 0;
        const int64_t threads = num_threads();
        for (int64_t down = 1; down < 2 * tiles; down *= 2)
            for (int64_t across = ceil_div(panels, kMostPanels); across < 2 * panels; across *= 2) {
                const int64_t tall = ceil_div(tiles, down), wide = ceil_div(panels, across);
                if (tall * wide > kMostSums && (tall > 1 || wide > 1)) continue;
                const int64_t turns = ceil_div(ceil_div(tiles, tall) * ceil_div(panels, wide), threads);
                // In units of the time to split as much, of which products take twice.
                const int64_t cost = turns * (2 * tall * wide + wide + (a ? 1 : 2) * tall);
                if (least == 0 || cost < least) least = cost, p.tall = tall, p.wide = wide;
            }
        const int64_t fit = max_of(kLeastSteps, min_of(kMostSteps, kBlockBytes / (p.wide * kStepBytes)));
        p.k_blocks = steps <= fit ? 1 : ceil_div(steps, min_of(fit, kSomeSteps)), p.steps = ceil_div(steps, p.k_blocks);
        p.k_blocks = ceil_div(steps, p.steps);
        return p;
    }

    bool by_blocks() const {
        note_kernel("gemm tiled in pieces, blocks");
        const Plan p = plan();
        const int64_t across = ceil_div(panels, p.wide);
        bool enough = true;
        parallel(ceil_div(tiles, p.tall) * across, [&](int64_t chunk) {
            const int64_t t0 = chunk / across * p.tall, j0 = chunk % across * p.wide;
            if (!run_block(p, t0, min_of(t0 + p.tall, tiles), j0, min_of(j0 + p.wide, panels)))
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
        return enough;
    }

    bool run_block(const Plan& plan, int64_t t0, int64_t t1, int64_t j0, int64_t j1) const {
        const bool once = plan.k_blocks == 1;
        const int64_t wide = j1 - j0, panel = plan.steps * kStepBytes + 256, band = once ? 0 : wide * panel;
        const int64_t left = a ? 0 : plan.steps * kStepBytes, kept = once ? 1 : (t1 - t0) * wide;
        const int64_t packing = kPackTerms * Blocking<float>::NR * 4;
        Scratch scratch(static_cast<size_t>(wide * panel + band + 2 * left + kept * MR * NR * 4 + packing));
        char* const right = scratch.as<char>();
        if (!right) return false;
        char* const made_rows = right + wide * panel + band;
        float *const sums = reinterpret_cast<float*>(made_rows + 2 * left), *const buffer = sums + kept * MR * NR;
        Exponents seen[kMostPanels], seen_rows, *const to_see = job.rows ? nullptr : &seen_rows;
        Place places[kMostPanels];
        for (int64_t j = 0; j < wide; ++j) places[j] = place(j0 + j);
        PieceBlock product = {0, nullptr, nullptr, nullptr, NR, false};
        tiles_begin();
        Rows coming{};
        for (int64_t block = 0, turn = 0; block < plan.k_blocks; ++block) {
            const int64_t s0 = block * plan.steps, s1 = min_of(s0 + plan.steps, steps);
            const int64_t s2 = min_of(s1 + plan.steps, steps);
            const bool last = s1 == steps;
            char *const now = right + block % 2 * band, *const then = right + (block + 1) % 2 * band;
            for (int64_t j = 0; j < wide; ++j)
                if (block == 0 || places[j].way == packed) make(places[j], s0, s1, now + j * panel, buffer, seen[j]);
            for (int64_t j = 0; j < wide && last; ++j) see_panel(j0 + j, seen[j]);
            for (int64_t t = t0; t < t1; ++t, ++turn) {
                char *const own = made_rows + turn % 2 * left, *const other = made_rows + (turn + 1) % 2 * left;
                if (!a && coming.steps == 0) make_rows(t, s0, s1, own, to_see);
                const bool bottom = t + 1 == t1;
                coming = {};
                if (!a && !(bottom && last)) coming = bottom ? rows_of(t0, s1, s2) : rows_of(t + 1, s0, s1);
                const char* const rows = a ? a + (t * steps + s0) * kStepBytes : own;
                const char* const next_rows = !a       ? other
                                              : bottom ? a + (t0 * steps + (last ? 0 : s1)) * kStepBytes
                                                       : rows + steps * kStepBytes;
                for (int64_t j = 0; j < wide; ++j) {
                    const int64_t shares = t1 - t0, i = t - t0;
                    float* const c = once ? sums : sums + (i * wide + j) * MR * NR;
                    const bool end = j + 1 == wide;
                    product.steps = s1 - s0, product.load_c = block > 0, product.c = c;
                    product.a = rows, product.next_a = end ? next_rows : rows;
                    product.b = now + j * panel, product.next_b = now + (end ? 0 : j + 1) * panel;
                    Beside b = {last ? nullptr : &places[j],
                                kTileRows * i / shares,
                                kTileRows * (i + 1) / shares,
                                s1,
                                s2 - s1,
                                then + j * panel,
                                &seen[j],
                                coming,
                                MR * j / wide,
                                MR * (j + 1) / wide,
                                other,
                                to_see};
                    if (last) meet(b, t, j0 + j, s1 - s0);
                    multiply(product, g.m - t * MR, b);
                    if (last && !job.refused[j0 + j]) finish(c, t, j0 + j);
                }
            }
        }
        tiles_end();
        if (of_rows) join_shared(*of_rows, seen_rows.range());
        return true;
    }

    // What is known of a panel when all of it was split; several threads may say so.
    void see_panel(int64_t j, const Exponents& seen) const {
        if (of_panels)
            join_shared(of_panels[j], seen.range());
        else
            __atomic_store_n(&job.refused[j], !fits(seen), __ATOMIC_RELAXED);
    }

    bool run() const { return a && pieces_stay(g.m, g.n, g.k) ? by_panels() : by_blocks(); }

    // A is split on the way, and what it does not fit is found at the end.
    InPiecesResult run_at_once() {
        Scratch scratch(static_cast<size_t>(panels) * sizeof(ExponentRange));
        of_panels = scratch.as<ExponentRange>(), of_rows = &range;
        if (!of_panels) return InPiecesResult::no_memory;
        range = {};
        for (int64_t j = 0; j < panels; ++j) of_panels[j] = {};
        if (!by_blocks()) return InPiecesResult::no_memory;
        for (int64_t j = 0; j < panels; ++j) job.refused[j] = !ranges_fit(range, of_panels[j], g.k);
        return ranges_fit(range, {127, 127}, g.k) ? InPiecesResult::done : InPiecesResult::refused;
    }
};

}  // namespace

void split_rows(const void* given) {
    const SplitRows& r = *static_cast<const SplitRows*>(given);
    const int64_t steps = ceil_div(r.k, kPieceTerms), each = r.in_floats ? kTileFloats * 4 : kStepBytes;
    *r.range = {};
    parallel(ceil_div(r.m, MR), [&](int64_t i) {
        ExponentRange own;
        alignas(64) char pieces[kStepBytes];
        for (int64_t s = 0; s < steps; ++s) {
            const float* const from = r.a.data + i * MR * r.a.row + s * kPieceTerms * r.a.col;
            const int64_t m = min_of(MR, r.m - i * MR), k = min_of(kPieceTerms, r.k - s * kPieceTerms);
            char* const to = r.to + (i * steps + s) * each;
            split_floats_left(from, r.a.row, r.a.col, m, k, r.in_floats ? pieces : to, own);
            if (r.in_floats) take_block<MR, kPieceTerms>(from, r.a.row, r.a.col, m, k, reinterpret_cast<float*>(to));
        }
        join_shared(*r.range, own);
    });
}

int tiled_in_pieces(const void* given) {
    const InPieces& job = *static_cast<const InPieces*>(given);
    const Gemm<float>& g = *job.g;
    Engine engine(job);
    const bool known = job.a || job.rows;
    // What is found not to fit is made again, for which C must not have been read.
    if (!known && g.a.col == 1 && !g.accumulate && !g.addend.data && !pieces_stay(g.m, g.n, g.k))
        return static_cast<int>(engine.run_at_once());
    Scratch scratch(known ? 64 : static_cast<size_t>(split_bytes(g.m, g.k)));
    if (!scratch.as<char>()) return static_cast<int>(InPiecesResult::no_memory);
    if (!known) {
        const SplitRows rows = {g.a, g.m, g.k, false, scratch.as<char>(), &engine.range};
        split_rows(&rows);
        engine.a = scratch.as<char>();
    }
    if (!ranges_fit(engine.range, {127, 127}, g.k)) return static_cast<int>(InPiecesResult::refused);
    return static_cast<int>(engine.run() ? InPiecesResult::done : InPiecesResult::no_memory);
}

}  // namespace tw::TW_ISA
#endif
