// The gradients of attention by tiles of hardware, of bf16: 32 queries, a unit, against 128 keys at a time.
//
// Method    everything is packed once per share: the queries, dy and both turned for all units, k and v for each block of keys.
//           Three units are under way: the slopes of one are made, two rows at a time, beside the products that give the
//           scores of the next, those that add to dq what came of the one before, and those that add to dk and dv, turned,
//           what came of a batch of units before that.
// Numerics  scores and sums float; p and ds are rounded to bf16, each sum of products once more at the end.
#pragma once
#include "core/op_table.h"
#include "gemm/split.h"
#include "ops/attention_slopes.h"
#include "simd/weights.h"

#if defined(TW_TILES)
namespace tw::TW_ISA {
namespace {

struct ByTiles {
    typedef bf16 Type;
    static constexpr const char* kName[] = {"shares of key heads by tiles", "key heads by tiles"};
    static constexpr int64_t kKeys = 128, M = kTallRows, kPanels = kKeys / kPanelColumns;
    static constexpr int64_t kBatch = 4;  // units whose p and ds are added to dk and dv at once
    static constexpr int64_t kOfBatch = kBatch * kPanels * kPieceBytes, kParts = 4;  // with each step of a product
    const Attention& a;
    const Gradient& g;
    const int64_t deep, wide, depth, width;  // steps of depth and of width, and their columns
    const int64_t dq_rows, units;  // of a head, of a key head
    const bool plain;

    ByTiles(const Attention& attention, const Gradient& gradient)
        : a(attention),
          g(gradient),
          deep(ceil_div(a.depth, kPieceTerms)),
          wide(ceil_div(a.width, kPieceTerms)),
          depth(deep * kPieceTerms),
          width(wide * kPieceTerms),
          dq_rows(ceil_div(a.queries, M) * M),
          units(a.group * dq_rows / M),
          plain(a.softcap == 0 && !given(a.mask) && !given(a.alibi) && !a.limit && !given(g.ds)) {}

    // ---- room of a share ----------------------------------------------------------------------------------------------------

    struct Room {
        char *q, *dy, *q_turned, *dy_turned;  // [unit][step of depth or rows][..]
        float *top, *delta;  // [unit][32]
        char *k, *v, *k_along;  // of a block of keys: panels along depth, and along keys
        float *dk, *dv, *scores[2], *slopes[2], *dq;
        char *rows[2], *p[2], *ds[2];
    };
    size_t room() const {
        return static_cast<size_t>((2 * units + 2 * kPanels) * (deep + wide) * kPieceBytes +
                                   deep * kPanels * kPieceBytes + 2 * units * M * 4 + (depth + width) * kKeys * 4 +
                                   2 * (2 * M * kKeys * 4 + kPanels * kPieceBytes + 2 * kOfBatch)) +
               64;
    }
    Room room_at(float* from, float* dq) const {
        char* at = reinterpret_cast<char*>(from);
        const auto next = [&](int64_t bytes) {
            char* const here = at;
            at += bytes;
            return here;
        };
        const auto floats = [&](int64_t n) { return reinterpret_cast<float*>(next(n * 4)); };
        Room r{};
        r.dq = dq;
        r.q = next(units * deep * kPieceBytes), r.q_turned = next(units * deep * kPieceBytes);
        r.dy = next(units * wide * kPieceBytes), r.dy_turned = next(units * wide * kPieceBytes);
        r.top = floats(units * M), r.delta = floats(units * M);
        r.k = next(kPanels * deep * kPieceBytes), r.k_along = next(kPanels * deep * kPieceBytes);
        r.v = next(kPanels * wide * kPieceBytes);
        r.dk = floats(depth * kKeys), r.dv = floats(width * kKeys);
        for (int i = 0; i < 2; ++i) {
            r.scores[i] = floats(M * kKeys), r.slopes[i] = floats(M * kKeys), r.rows[i] = next(kPanels * kPieceBytes);
            r.p[i] = next(kOfBatch), r.ds[i] = next(kOfBatch);
        }
        return r;
    }

    // ---- packing ------------------------------------------------------------------------------------------------------------

    static const uint16_t* halves(const View& x, int64_t b, int64_t h, int64_t row) {
        return reinterpret_cast<const uint16_t*>(head_at<bf16>(x, b, h) + row * x.stride[2]);
    }
    // Up to 32 rows of x as they are, [32][terms], and turned, [terms][32].
    static void pack_unit(const View& x, const uint16_t* from, int64_t rows, int64_t steps, char* to, char* turned) {
        ExponentRange any;
        __builtin_memset(to, 0, static_cast<size_t>(steps * kPieceBytes));
        copy_left(from, x.stride[2], x.stride[3], rows, x.shape[3], reinterpret_cast<uint16_t*>(to), any);
        for (int64_t j = 0; j < steps; ++j, turned += kPieceBytes) {
            alignas(kVecBytes) uint32_t words[kTileRows * kPanelColumns];
            pack_pairs(from + j * kPanelColumns * x.stride[3], x.stride[2], x.stride[3], rows,
                       min_of(kPanelColumns, x.shape[3] - j * kPanelColumns), words, any);
            for (int64_t i = 0; i < 2; ++i)
                transpose_tile(reinterpret_cast<const float*>(words) + i * kTileRows, kPanelColumns,
                               reinterpret_cast<float*>(turned) + i * kTileRows * kTileRows, kTileRows);
        }
    }
    void pack_queries(const Room& r, int64_t b, int64_t head) const {
        for (int64_t u = 0; u < units; ++u) {
            const int64_t h = head * a.group + u * M / dq_rows, t0 = u * M % dq_rows, rows = min_of(M, a.queries - t0);
            pack_unit(a.q, halves(a.q, b, h, t0), rows, deep, r.q + u * deep * kPieceBytes,
                      r.q_turned + u * deep * kPieceBytes);
            pack_unit(g.dy, halves(g.dy, b, h, t0), rows, wide, r.dy + u * wide * kPieceBytes,
                      r.dy_turned + u * wide * kPieceBytes);
            for (int64_t i = 0; i < M; ++i) {
                const bool here = i < rows;
                const float lse = here ? head_at<float>(g.lse, b, h)[(t0 + i) * g.lse.stride[2]] : -kInf;
                r.top[u * M + i] = lse == -kInf ? kInf : lse * kLog2e;  // of no key: all powers are 0
                r.delta[u * M + i] = here ? delta_of<bf16>(g, b, h, t0 + i) : 0;
            }
        }
    }
    void pack_keys(const Room& r, int64_t b, int64_t head, int64_t s0, int64_t n) const {
        const int64_t k_key = a.k.stride[2], k_col = a.k.stride[3], v_key = a.v.stride[2], v_col = a.v.stride[3];
        const uint16_t *const k = halves(a.k, b, head, s0), *const v = halves(a.v, b, head, s0);
        const auto words = [](char* to) { return reinterpret_cast<uint32_t*>(to); };
        ExponentRange any;
        for (int64_t j = 0; j * kPanelColumns < n; ++j) {
            const int64_t first = j * kPanelColumns, columns = min_of(kPanelColumns, n - first);
            pack_pairs(k + first * k_key, k_col, k_key, a.depth, columns, words(r.k + j * deep * kPieceBytes), any);
            pack_pairs(v + first * v_key, v_col, v_key, a.width, columns, words(r.v + j * wide * kPieceBytes), any);
        }
        for (int64_t j = 0; j < deep; ++j) {
            const int64_t first = j * kPanelColumns;
            pack_pairs(k + first * k_col, k_key, k_col, n, min_of(kPanelColumns, a.depth - first),
                       words(r.k_along + j * kPanels * kPieceBytes), any);
        }
    }

    // ---- a block of keys ----------------------------------------------------------------------------------------------------

    struct Unit {
        int64_t at, h, t0;
        int turn, batch;  // which of the two rooms
        int64_t place;  // in its batch
    };
    struct Batch {
        int64_t first, count, panels;  // panels: not added yet
        int room;
    };

    struct Block {
        const ByTiles& by;
        const Room& r;
        const int64_t b, head, s0, n, length;
        Span seeing;
        Unit now{};
        int64_t done = 0, credit = 0, share = 0;  // pairs of rows, and how many come with each part, in 65536ths

        // The next unit that sees any of the keys; false at the end.
        bool next(Unit& u) const {
            const int64_t each = by.dq_rows / M;
            while (++u.at < by.units) {
                u.h = head * by.a.group + u.at / each, u.t0 = u.at % each * M;
                const int64_t rows = min_of(M, by.a.queries - u.t0);
                if (u.t0 + rows > seeing.begin && u.t0 < seeing.end && !all_masked(by.a, b, u.h, u.t0, rows, s0, n))
                    return true;
            }
            return false;
        }

        static __attribute__((always_inline)) f32v power_at(const float* s, f32v by_scale, float top) {
            return power_of_two(min_any(f32v{}, fma(load(s), by_scale, splat(-top))));
        }

        // p and ds of rows 2i and 2i + 1: pairs along queries of both, and rows of ds.
        __attribute__((noinline)) void slope_pair(int64_t i) {
            const Attention& a = by.a;
            float* s[2];
            float* d[2];
            float top[2], delta[2];
            for (int k = 0; k < 2; ++k) {
                const int64_t row = 2 * i + k, t = now.t0 + row;
                s[k] = r.scores[now.turn] + row * kKeys, d[k] = r.slopes[now.turn] + row * kKeys;
                top[k] = r.top[now.at * M + row], delta[k] = r.delta[now.at * M + row];
                const Span seen = within(keys_seen(a, length, t), s0, n);
                if (by.plain)
                    hide_unseen(s[k], seen, kKeys);
                else
                    slope_any(s[k], d[k], t, seen, delta[k]);
            }
            const f32v scale = splat(static_cast<float>(a.scale * static_cast<double>(kLog2e)));
            const int64_t at = now.place * kPieceBytes + i * 2 * kTileBytes;
            char* const rows = r.rows[now.turn] + 2 * i * kTileBytes;
            for (int64_t j = 0; j < n; j += kPanelColumns) {
                constexpr int64_t L = kLanes<float>;
                const int64_t panel = j / kPanelColumns;
                f32v p[2][2], ds[2][2];
#pragma GCC unroll 2
                for (int k = 0; k < 2; ++k)
#pragma GCC unroll 2
                    for (int l = 0; l < 2; ++l) {
                        const f32v slope = load(d[k] + j + l * L);
                        if (by.plain) {
                            p[k][l] = power_at(s[k] + j + l * L, scale, top[k]);
                            ds[k][l] = select(p[k][l] == 0.f, f32v{}, p[k][l] * (slope - delta[k]));
                        } else {
                            p[k][l] = load(s[k] + j + l * L), ds[k][l] = slope;
                        }
                    }
                const Halves p0 = flushed(p[0][0], p[0][1]), p1 = flushed(p[1][0], p[1][1]);
                const Halves d0 = flushed(ds[0][0], ds[0][1]), d1 = flushed(ds[1][0], ds[1][1]);
                uint16_t* const of_p = reinterpret_cast<uint16_t*>(r.p[now.batch] + panel * kBatch * kPieceBytes + at);
                uint16_t* const of_d = reinterpret_cast<uint16_t*>(r.ds[now.batch] + panel * kBatch * kPieceBytes + at);
                uint16_t* const of_rows = reinterpret_cast<uint16_t*>(rows + panel * kPieceBytes);
                store(of_p, zip_units_low(p0, p1)), store(of_p + 2 * L, zip_units_high(p0, p1));
                store(of_d, zip_units_low(d0, d1)), store(of_d + 2 * L, zip_units_high(d0, d1));
                store(of_rows, d0), store(of_rows + 2 * L, d1);
            }
        }
        // Of a row with a mask and the like, in place.
        __attribute__((noinline)) void slope_any(float* s, float* d, int64_t t, Span seen, float delta) const {
            const Attention& a = by.a;
            const Gradient& g = by.g;
            if (t >= a.queries) seen.end = seen.begin = 0, t = a.queries - 1;
            for (int64_t j = 0; j < kKeys; j += kLanes<float>) store(s + j, load(s + j) * static_cast<float>(a.scale));
            float factors[kKeys];
            if (a.limit) draw_row(a, b, now.h, t, s0, n, factors);
            float* const ds =
                given(g.ds) ? head_at<float>(g.ds, b, now.h) + t * g.ds.stride[2] + s0 * g.ds.stride[3] : nullptr;
            slope_row<bf16, false>(a, added_at<bf16>(a, b, now.h, t, s0), a.limit ? factors : nullptr, s, d, seen,
                                   kKeys, head_at<float>(g.lse, b, now.h)[t * g.lse.stride[2]], delta, ds,
                                   g.ds.stride[3]);
        }

        __attribute__((noinline)) void multiply(const PieceBlock& t, int64_t rows) {
            multiply_pieces<1>(t, rows, [this](int64_t, int) __attribute__((always_inline)) {
                for (credit += share; credit >= 1 << 16; credit -= 1 << 16) slope_pair(done++);
            });
        }
        // Rows of a unit by panels of keys.
        void score(const char* from, const char* panels, int64_t steps, float* to) {
            for (int64_t j = 0; j * kPanelColumns < n; ++j) {
                const char* const panel = panels + j * steps * kPieceBytes;
                multiply({steps, from, panel, to + j * kPanelColumns, kKeys, false, from, panel + steps * kPieceBytes,
                          steps * kTileBytes, kTileBytes},
                         M);
            }
        }
        void add_dq(const Unit& u) {
            const char* const rows = r.rows[u.turn];
            for (int64_t j = 0; j < by.deep; ++j) {
                const char* const panel = r.k_along + j * kPanels * kPieceBytes;
                multiply({ceil_div(n, kPieceTerms), rows, panel, r.dq + u.at * M * by.depth + j * kPanelColumns,
                          by.depth, true, rows, panel + kPanels * kPieceBytes},
                         M);
            }
        }
        // Panel j of a batch to dk and dv, [columns][keys].
        void add_panel(const Batch& batch, int64_t j, const char* turned, int64_t steps, int64_t columns,
                       const char* from, float* to) {
            const char* const panel = from + j * kBatch * kPieceBytes;
            turned += batch.first * steps * kPieceBytes;
            for (int64_t i = 0; i < steps; ++i, turned += kPieceBytes, to += M * kKeys)
                multiply({batch.count, turned, panel, to + j * kPanelColumns, kKeys, true, turned + kPieceBytes, panel,
                          kTileBytes, steps * kPieceBytes},
                         columns - i * M);
        }
        void add_panels(Batch& batch, int64_t count) {
            for (; count > 0 && batch.panels > 0; --count) {
                const int64_t j = --batch.panels;
                add_panel(batch, j, r.dy_turned, by.wide, by.a.width, r.p[batch.room], r.dv);
                add_panel(batch, j, r.q_turned, by.deep, by.a.depth, r.ds[batch.room], r.dk);
            }
        }

        void run() {
            const int64_t panels = ceil_div(n, kPanelColumns);
            Batch open{}, closed{};
            Unit last{}, coming{};
            coming.at = -1;
            bool has_last = false, has_now = false, has_next = next(coming);
            tiles_begin();
            for (int turn = 0; has_last || has_now || has_next || closed.panels > 0; turn = 1 - turn) {
                coming.turn = turn;
                const int64_t of_scores = has_next ? panels * (by.deep + by.wide) : 0;
                const int64_t of_dq = has_last ? by.deep * panels : 0;
                const int64_t of_panel = closed.panels > 0 ? (by.deep + by.wide) * closed.count : 0;
                const int64_t all = has_now ? M / 2 : 0;
                done = credit = 0, share = (all << 16) / max_of(1, (of_scores + of_dq + of_panel) * kParts);
                if (has_now) now.batch = open.room, now.place = open.count++;
                if (has_now && now.place == 0) open.first = now.at;
                if (has_next) {
                    score(r.q + coming.at * by.deep * kPieceBytes, r.k, by.deep, r.scores[turn]);
                    score(r.dy + coming.at * by.wide * kPieceBytes, r.v, by.wide, r.slopes[turn]);
                }
                if (has_last) add_dq(last);
                add_panels(closed, 1);
                share = 0;
                for (; done < all; ++done) slope_pair(done);
                if (has_now && (open.count == kBatch || !has_next || coming.at != now.at + 1)) {
                    add_panels(closed, kPanels);
                    closed = open, closed.panels = panels;
                    open = {0, 0, 0, 1 - closed.room};
                }
                last = now, has_last = has_now;
                now = coming, has_now = has_next;
                has_next = has_next && next(coming);
            }
            tiles_end();
        }
    };

    // ---- a share ------------------------------------------------------------------------------------------------------------

    // The first n of the columns of a block, as zip_units left them, become rows of x.
    static void write_turned(const View& x, int64_t b, int64_t head, int64_t s0, int64_t n, const float* from,
                             float by) {
        constexpr int64_t L = kTileRows;
        bf16* const to = head_at<bf16>(x, b, head) + s0 * x.stride[2];
        for (int64_t c = 0; c < ceil_div(n, kPanelColumns) * kPanelColumns; c += L)
            for (int64_t i = 0; i < x.shape[3]; i += L) {
                alignas(kVecBytes) float block[L * L];
                transpose_tile(from + i * kKeys + c, kKeys, block, L);
                for (int64_t k = 0; k < L; ++k) {
                    const int64_t row = c / kPanelColumns * kPanelColumns + k / 4 * 8 + c / L % 2 * 4 + k % 4;
                    if (row < n)
                        put(to + row * x.stride[2], x.stride[3], i, min_of(L, x.shape[3] - i),
                            load(block + k * L) * by);
                }
            }
    }

    void share(float* from, int64_t b, int64_t head, int64_t begin, int64_t end, float* dq) const {
        const Room r = room_at(from, dq);
        const int64_t length = length_of(a, b);
        pack_queries(r, b, head);
        for (int64_t s0 = begin; s0 < end; s0 += kKeys) {
            const int64_t all = min_of(kKeys, end - s0), n = max_of(0, min_of(all, length - s0));
            __builtin_memset(r.dk, 0, static_cast<size_t>((depth + width) * kKeys) * sizeof(float));
            const Span seeing = n ? queries_seeing(a, length, {s0, s0 + n}) : Span{0, 0};
            if (seeing.begin < seeing.end) {
                pack_keys(r, b, head, s0, n);
                Block block = {*this, r, b, head, s0, n, length, seeing};
                block.run();
            }
            write_turned(g.dk, b, head, s0, all, r.dk, static_cast<float>(a.scale));
            write_turned(g.dv, b, head, s0, all, r.dv, 1);
        }
    }
};

inline bool pays_by_tiles(const Attention& a) {
    return a.q.dtype == DType::bf16 && a.queries > 0 && a.depth * a.width * a.keys > 0;
}

}  // namespace
}  // namespace tw::TW_ISA
#endif
