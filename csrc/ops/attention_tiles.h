// Attention by tiles of hardware: 32 queries against 128 keys at a time, in pieces of bf16.
//
// Method    gemm/pieces.h. k^T and v are split once per key head, as panels in the order in which they are met, q once per
//           tile of queries, weights in registers, as they are made. Three pairs of queries and keys are under way: the
//           weights of one are made, rows at a time, beside the products that give the scores of the next and those of
//           weights and values of the one before. The top of a row moves only where weights under it are beyond 2^8:
//           what was summed seldom shrinks, and few rows are searched for their maximum.
// Numerics  scores and sums float. Weights: three pieces for float, 16 bits for f16, rounded to bf16 for bf16; their sum is
//           exact. Where nobody asks for it, weights of bf16 are made of 7 bits of a fraction, and the sum is that of these.
//           Key heads whose numbers do not fit pieces are left to the tier below: a choice by the operands alone.
#pragma once
#include "core/op_table.h"
#include "gemm/split.h"
#include "ops/attention_softmax.h"
#include "simd/weights.h"

#if defined(TW_TILES)
namespace tw::TW_ISA {
namespace {

constexpr int64_t kKeysOfTiles = 128, kBlockSteps = kKeysOfTiles / kPieceTerms;
constexpr int64_t kMostGroups = 4;  // of 32 queries, which a block of keys meets while it is in L2
constexpr int64_t kPartsOfStep = 4;

// ---- softmax ----------------------------------------------------------------------------------------------------------------

// What a row has come to, in powers of two: a number near its top, and sums of 2^(score - top).
struct TileRow {
    f32v sum;
    float top;
};

// 32 weights of a row as a step of the left side of a product.
template <int P>
TW_INLINE void store_weights(f32v x, f32v y, char* to) {
    if constexpr (P == 1) {
        store_flushed(reinterpret_cast<bf16*>(to), x, y);
    } else {
        u32v words[P];
        split_words(x, y, words);
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p) store(reinterpret_cast<uint32_t*>(to + p * kPieceBytes), words[p]);
    }
}

constexpr float kSlack = 8, kMostWeight = 0x1p8f, kFar = 0x1p16f;

// A whole row of scores, times `by` less the top of the row, become weights. Returns their sums.
template <int P>
TW_INLINE f32v weights_of(const f32v (&x)[kKeysOfTiles / kLanes<float>], float by, float top, char* weights) {
    constexpr int64_t N = kKeysOfTiles / kLanes<float>;
    f32v sums[2] = {};
#pragma GCC unroll 16
    for (int64_t i = 0; i < N; i += 2) {
        const f32v p0 = power_of_two(fma(x[i], splat(by), splat(-top)));
        const f32v p1 = power_of_two(fma(x[i + 1], splat(by), splat(-top)));
        sums[0] += p0, sums[1] += p1;
        store_weights<P>(p0, p1, weights + i / 2 * P * kPieceBytes);
    }
    return sums[0] + sums[1];
}

// The same where the top may move. Returns the factor by which that shrinks what was there.
template <int P>
__attribute__((noinline)) float weigh_anew(const float* s, float by, char* weights, TileRow& row) {
    constexpr int64_t L = kLanes<float>, N = kKeysOfTiles / L;
    f32v x[N], most = splat(-kInf);
    for (int64_t i = 0; i < N; ++i) x[i] = load(s + i * L), most = max_any(x[i], most);
    const float top = reduce_max(most * by);
    float factor = 1;
    if (top > row.top + kSlack / 2) {
        factor = row.top == -kInf ? 0.f : power_of_two(splat(row.top - top))[0];
        row.top = top, row.sum *= factor;
    }
    // What the product with `by` is rounded by is no small number then; the bound, never met, keeps it rounded.
    if (!(row.top < kFar && row.top > -kFar)) {
        for (f32v& score : x) score = min_any(splat(row.top + kSlack), score * by);
        by = 1;
    }
    // Where all is -Inf nothing is subtracted, so that weights are 0.
    row.sum += weights_of<P>(x, by, row.top == -kInf ? 0.f : row.top, weights);
    return factor;
}

// Scores are -Inf where a key is not seen; times `by`, they are powers of two.
template <int P>
__attribute__((noinline)) float weigh(const float* s, float by, char* weights, TileRow& row) {
    constexpr int64_t L = kLanes<float>, N = kKeysOfTiles / L;
    if (!(row.top < kFar && row.top > -kFar)) return weigh_anew<P>(s, by, weights, row);
    f32v x[N];
#pragma GCC unroll 16
    for (int64_t i = 0; i < N; ++i) x[i] = load(s + i * L);
    const f32v sums = weights_of<P>(x, by, row.top, weights);
    if (any(sums > kMostWeight)) return weigh_anew<P>(s, by, weights, row);
    row.sum += sums;
    return 1;
}

// ---- a tile of queries ------------------------------------------------------------------------------------------------------

struct PackedHead {
    const char* blocks;  // of keys: panels of k^T, then panels of v
    ExponentRange k, v;
};

// Scores as `weigh` takes them, become bf16 to their last bit but one; their sum is that of what they become. Scores times
// `by` are below 2^16.
__attribute__((noinline)) float weigh_roughly(const float* s, float by, char* weights, TileRow& row) {
    constexpr int64_t L = kLanes<float>, N = kKeysOfTiles / L;
    float factor = 1;
    f32v x[N];
#pragma GCC unroll 16
    for (int64_t i = 0; i < N; ++i) x[i] = load(s + i * L);
    for (bool known = row.top != -kInf;; known = true) {
        const f32v scale = splat(128 * by), from = splat(kBf16One - 128 * (known ? row.top : 0.f));
        if (known) {
            f32v sums[2] = {};
            Vec<uint16_t> most{};
#pragma GCC unroll 8
            for (int64_t i = 0; i < N; i += 2) {
                const Vec<uint16_t> bits = bf16_powers(fma(x[i], scale, from), fma(x[i + 1], scale, from));
                store(reinterpret_cast<uint16_t*>(weights + i / 2 * kPieceBytes), bits);
                most = bits > most ? bits : most;
                sums[i / 2 % 2] = add_pairs(sums[i / 2 % 2], bits);
            }
            if (!any_above(most, static_cast<uint16_t>(kBf16One + 128 * kSlack))) {
                row.sum += sums[0] + sums[1];
                return factor;
            }
        }
        f32v top = x[0];
#pragma GCC unroll 16
        for (int64_t i = 1; i < N; ++i) top = max_any(x[i], top);
        const float now = reduce_max(top) * by;
        if (now == -kInf) {
            for (int64_t i = 0; i < N / 2; ++i)
                store(reinterpret_cast<uint16_t*>(weights + i * kPieceBytes), Vec<uint16_t>{});
            return factor;
        }
        factor = row.top == -kInf ? 0.f : power_of_two(splat(row.top - now))[0];
        row.top = now, row.sum *= factor;
    }
}

// Of a row with a mask and the like.
__attribute__((noinline)) float soften_scores(const Attention& a, const Added<float>& add, float* s, Span seen,
                                              int64_t n, Running<float>& row) {
    for (int64_t j = 0; j < n; j += kLanes<float>) store(s + j, load(s + j) * static_cast<float>(a.scale));
    return soften<float>(a, add, s, seen, n, row);
}

template <class T>
struct ByTiles {
    static constexpr int P = kPieces<T>;
    static constexpr int64_t kStepBytes = P * kPieceBytes, K = kKeysOfTiles, M = kTallRows;
    const Attention& a;
    const Result& r;
    const int64_t deep, wide;  // steps of depth, panels of v
    const int64_t k_bytes, block_bytes;  // of a block of keys
    const bool plain;
    Attention in_floats;  // as rows of the mask are given to soften_scores

    ByTiles(const Attention& attention, const Result& result)
        : a(attention),
          r(result),
          deep(ceil_div(a.depth, kPieceTerms)),
          wide(ceil_div(a.width, kPairColumns) * 2),
          k_bytes(K / kPanelColumns * deep * kStepBytes),
          block_bytes(k_bytes + wide * kBlockSteps * kStepBytes),
          plain(a.softcap == 0 && !given(a.mask) && !given(a.alibi) && !a.limit && a.scale > 0),
          in_floats(attention) {
        if (!__is_same(T, float) && a.mask.dtype != DType::boolean) in_floats.mask_stride[3] = 1;
    }

    // Keys [s0, s0 + n) of a head, a block of them.
    void pack(int64_t b, int64_t head, int64_t s0, int64_t n, char* to, ExponentRange& of_k,
              ExponentRange& of_v) const {
        const int64_t k_key = a.k.stride[2], k_col = a.k.stride[3], v_key = a.v.stride[2], v_col = a.v.stride[3];
        const T* const k = a.k.as<T>() + b * a.k.stride[0] + head * a.k.stride[1] + s0 * k_key;
        const T* const v = a.v.as<T>() + b * a.v.stride[0] + head * a.v.stride[1] + s0 * v_key;
        char* const to_v = to + k_bytes;
        if constexpr (P == 1) {
            for (int64_t j = 0; j < n; j += kPanelColumns)
                pack_pairs(reinterpret_cast<const uint16_t*>(k + j * k_key), k_col, k_key, a.depth,
                           min_of(n - j, kPanelColumns),
                           reinterpret_cast<uint32_t*>(to + j / kPanelColumns * deep * kStepBytes), of_k);
            for (int64_t j = 0; j < a.width; j += kPanelColumns)
                pack_pairs(reinterpret_cast<const uint16_t*>(v + j * v_col), v_key, v_col, n,
                           min_of(a.width - j, kPanelColumns),
                           reinterpret_cast<uint32_t*>(to_v + j / kPanelColumns * kBlockSteps * kStepBytes), of_v);
        } else {
            for (int64_t j = 0; j < n; j += kPairColumns)
                split_right<P>(k + j * k_key, k_col, k_key, 0, 1, a.depth, min_of(n - j, kPairColumns),
                               to + j / kPanelColumns * deep * kStepBytes, deep * kStepBytes, &of_k);
            for (int64_t j = 0; j < a.width; j += kPairColumns)
                split_right<P>(v + j * v_col, v_key, v_col, 0, 1, n, min_of(a.width - j, kPairColumns),
                               to_v + j / kPanelColumns * kBlockSteps * kStepBytes, kBlockSteps * kStepBytes, &of_v);
        }
    }

    // 32 queries against a block of keys.
    struct Pair {
        int64_t group, rows, t0, s0, n;
        bool first;  // of these queries
        bool whole;  // all of these queries see all of these keys
        float *scores, *factors;
        char* weights;
    };

    // A tile of queries on its way over the keys.
    struct Way {
        const ByTiles& by;
        int64_t b, h, t0, rows, length;
        const char *keys, *q;
        TileRow* row;
        Running<float>* running;
        float* sums;
        const bool roughly;

        const char* block(const Pair& p) const { return keys + p.s0 / K * by.block_bytes; }

        // Of pieces there are many queries: half a tile is rare.
        static __attribute__((always_inline)) void multiply(const PieceBlock& t, int64_t n, const auto& with_part) {
            P > 1 || n > kTileRows ? multiply_steps<P, true>(t, with_part) : multiply_steps<P, false>(t, with_part);
        }

        // What changes from panel to panel is written to `t` alone: what is written in parts is slow to be copied whole.
        void score(const Pair& p, const auto& with_part) const {
            const int64_t panel = by.deep * kStepBytes;
            const char *const own = q + p.group * panel, *from = block(p);
            PieceBlock t = {by.deep, own, from, p.scores, K, false, own, from};
            if (P == 1) t.a_row = by.deep * kTileBytes, t.a_step = kTileBytes;
            for (int64_t j = 0; j < p.n; j += kPanelColumns, from += panel) {
                t.b = from, t.next_b = from + panel, t.c = p.scores + j;
                multiply(t, p.rows, with_part);
            }
        }

        void add_values(const Pair& p, const auto& with_part) const {
            const int64_t width = by.wide * kPanelColumns;
            float* const own = sums + p.group * M * width;
            if (!p.first)
                for (int64_t i = 0; i < p.rows; ++i)
                    if (!(p.factors[i] == 1)) shrink(own + i * width, width, p.factors[i]);
            const char* from = block(p) + by.k_bytes;
            PieceBlock t = {ceil_div(p.n, kPieceTerms), p.weights, from, own, width, !p.first, p.weights, from};
            for (int64_t j = 0; j < by.a.width; j += kPanelColumns, from += kBlockSteps * kStepBytes) {
                t.b = from, t.next_b = from + kBlockSteps * kStepBytes, t.c = own + j;
                multiply(t, p.rows, with_part);
            }
        }

        __attribute__((noinline)) float soften_row(const Pair& p, int64_t i, float* own, char* weights) const {
            const Attention& a = by.a;
            const int64_t t = p.t0 + i;
            Added<float> add = added_at<T>(a, b, h, t, p.s0);
            float mask[K];
            if (!__is_same(T, float) && add.mask && a.mask.dtype != DType::boolean) {
                for (int64_t j = 0; j < p.n; j += kLanes<float>)
                    store(mask + j, take(reinterpret_cast<const T*>(add.mask), a.mask_stride[3], j,
                                         min_of(kLanes<float>, p.n - j)));
                add.mask = reinterpret_cast<const char*>(mask);
            }
            const float factor = soften_scores(by.in_floats, add, own, within(keys_seen(a, length, t), p.s0, p.n), p.n,
                                               running[p.group * M + i]);
            if (a.limit) drop(a, b, h, t, p.s0, p.n, own);
            for (int64_t j = p.n; j < K; ++j) own[j] = 0;
            for (int64_t j = 0; j < K; j += kPieceTerms)
                store_weights<P>(load(own + j), load(own + j + kLanes<float>), weights + j / kPieceTerms * kStepBytes);
            return factor;
        }

        __attribute__((noinline)) void weigh_row(const Pair& p, int64_t i, float scale) const {
            float* const own = p.scores + i * K;
            char* const weights = p.weights + i * kTileBytes;
            if (!by.plain) {
                p.factors[i] = soften_row(p, i, own, weights);
                return;
            }
            if (!p.whole) hide_unseen(own, within(keys_seen(by.a, length, p.t0 + i), p.s0, p.n), K);
            TileRow& of = row[p.group * M + i];
            p.factors[i] = roughly ? weigh_roughly(own, scale, weights, of) : weigh<P>(own, scale, weights, of);
        }

        // The next pair in the order of keys, then of queries; false at the end.
        bool next(Pair& p) const {
            const Attention& a = by.a;
            const int64_t end = keys_seen(a, length, t0 + rows - 1).end;
            while (true) {
                if (++p.group * M >= rows) p.group = 0, p.s0 += K;
                if (p.s0 >= end) return false;
                p.t0 = t0 + p.group * M, p.rows = min_of(M, rows - p.group * M);
                const int64_t first = keys_seen(a, length, p.t0).begin;
                const Span of_last = keys_seen(a, length, p.t0 + p.rows - 1);
                p.n = min_of(K, of_last.end - p.s0);
                p.whole = keys_seen(a, length, p.t0).end >= p.s0 + K && of_last.begin <= p.s0;
                if (p.n > 0 && first < p.s0 + K && !all_masked(a, b, h, p.t0, p.rows, p.s0, p.n)) return true;
            }
        }
    };

    // False: no memory. Without an answer where numbers do not fit pieces: `fit` becomes false.
    bool attend(int64_t b, int64_t h, int64_t t0, int64_t rows, const PackedHead& head, bool* fit) const {
        const int64_t width = wide * kPanelColumns, groups = ceil_div(rows, M), of_q = deep * kStepBytes;
        constexpr int64_t kScores = M * K * 4, kWeights = kBlockSteps * kStepBytes;
        Scratch scratch(static_cast<size_t>(
            groups * (M * static_cast<int64_t>(sizeof(TileRow)) + M * width * 4 + of_q) + 2 * kScores + 2 * kWeights));
        char* at = scratch.as<char>();
        if (!at) return false;
        const auto room = [&](int64_t bytes) {
            char* const here = at;
            at += bytes;
            return here;
        };
        Running<float> running[kMostGroups * M];
        float factors[2][M];
        TileRow* const row = reinterpret_cast<TileRow*>(room(groups * M * static_cast<int64_t>(sizeof(TileRow))));
        float* const sums = reinterpret_cast<float*>(room(groups * M * width * 4));
        char* const q = room(groups * of_q);
        float* const scores[] = {reinterpret_cast<float*>(room(kScores)), reinterpret_cast<float*>(room(kScores))};
        char* const weights[] = {room(kWeights), room(kWeights)};

        const int64_t q_row = a.q.stride[2], q_col = a.q.stride[3];
        const T* const from = a.q.as<T>() + b * a.q.stride[0] + h * a.q.stride[1] + t0 * q_row;
        ExponentRange of_rows;
        if (P == 1) __builtin_memset(q, 0, static_cast<size_t>(groups * of_q));
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t own = min_of(M, rows - g * M);
            if constexpr (P == 1)
                copy_left(reinterpret_cast<const uint16_t*>(from + g * M * q_row), q_row, q_col, own, a.depth,
                          reinterpret_cast<uint16_t*>(q + g * of_q), of_rows);
            else
                split_left<P>(from + g * M * q_row, q_row, q_col, own, a.depth, q + g * of_q, of_rows);
        }
        if (!fits(of_rows, head)) {
            __atomic_store_n(fit, false, __ATOMIC_RELAXED);
            return true;
        }
        for (int64_t i = 0; i < rows; ++i) {
            running[i] = started<T>(r, h);
            row[i] = {first_lanes<float>(splat(running[i].sum), f32v{}, 1), running[i].top * kLog2e};
        }
        const Way way = {*this,       b, h,   t0,      rows, length_of(a, b),
                         head.blocks, q, row, running, sums, may_be_rough(of_rows, head.k)};
        const float scale = static_cast<float>(a.scale * static_cast<double>(kLog2e));
        bool met[kMostGroups] = {};
        // Whose values are added, whose weights are made, whose scores are; they change places, for copies would wait.
        Pair pairs[3] = {}, *last = pairs, *now = pairs + 1, *next = pairs + 2;
        next->group = -1, next->s0 = keys_seen(a, way.length, t0).begin / K * K;
        bool has_last = false, has_now = false, has_next = way.next(*next);
        tiles_begin();
        for (int64_t turn = 0; has_last || has_now || has_next; ++turn) {
            int64_t done = 0, credit = 0;
            const int64_t all = has_now ? now->rows : 0;
            const int64_t of_scores = has_next ? ceil_div(next->n, kPanelColumns) * deep * kPartsOfStep : 0;
            const int64_t of_values =
                has_last ? ceil_div(a.width, kPanelColumns) * ceil_div(last->n, kPieceTerms) * kPartsOfStep : 0;
            // Rows that come with each part of a product, in 65536ths.
            const int64_t share = (all << 16) / max_of(1, of_scores + of_values);
            const auto with_part = [&](int64_t, int) __attribute__((always_inline)) {
                for (credit += share; credit >= 1 << 16; credit -= 1 << 16) way.weigh_row(*now, done++, scale);
            };
            if (has_next) {
                next->scores = scores[turn % 2], next->weights = weights[turn % 2], next->factors = factors[turn % 2];
                next->first = !met[next->group], met[next->group] = true;
                way.score(*next, with_part);
            }
            if (has_last) way.add_values(*last, with_part);
            for (; done < all; ++done) way.weigh_row(*now, done, scale);
            Pair* const free = last;
            free->group = next->group, free->s0 = next->s0;
            last = now, now = next, next = free;
            has_last = has_now, has_now = has_next;
            has_next = has_next && way.next(*next);
        }
        tiles_end();
        for (int64_t i = 0; i < rows; ++i) {
            if (!met[i / M]) __builtin_memset(sums + i * width, 0, static_cast<size_t>(width) * sizeof(float));
            if (plain) running[i] = {row[i].top * (1 / kLog2e), reduce_add(row[i].sum)};
            if (P == 1 && !given(r.lse) && r.y.stride[3] == 1 && a.width % kPieceTerms == 0)
                finish_flushed(b, h, t0 + i, sums + i * width, running[i].sum);
            else
                finish<T, (P < 3)>(r, b, h, t0 + i, a.width, sums + i * width, running[i]);
        }
        return true;
    }

    // `finish` of bf16 by the instruction for it, to which denormals are zeros.
    void finish_flushed(int64_t b, int64_t h, int64_t t, const float* from, float sum) const {
        constexpr int64_t L = kLanes<float>;
        const f32v inverse = splat(1 / (sum == 0 ? 1.f : sum));
        bf16* const y = r.y.as<bf16>() + b * r.y.stride[0] + h * r.y.stride[1] + t * r.y.stride[2];
        for (int64_t i = 0; i < a.width; i += 2 * L)
            store_flushed(y + i, load(from + i) * inverse, load(from + i + L) * inverse);
    }

    // Whether nobody asks for the sum of weights, and scores are far from what float cannot hold.
    bool may_be_rough(const ExponentRange& q, const ExponentRange& k) const {
        const double most = static_cast<double>(a.depth) * a.scale * static_cast<double>(kLog2e);
        return P == 1 && plain && !given(r.lse) && q.most < 255 && k.most < 255 &&
               __builtin_ldexp(most, q.most + k.most - 2 * 126) < 0x1p16;
    }

    // Weights below 2^-50 may lose what lies behind their first piece.
    bool fits(const ExponentRange& q, const PackedHead& head) const {
        constexpr ExponentRange kWeights = {127 - 50, 127 + 8};
        if (P == 1) return true;
        if (P == 2) return q.most < 255 && head.k.most < 255 && head.v.most < 255;
        return ranges_fit(q, head.k, a.depth) && ranges_fit(kWeights, head.v, a.keys);
    }

    // ---- a call -----------------------------------------------------------------------------------------------------

    // Some key heads, and the queries that look at them, by the tier below.
    static View part_of(View x, int dim, int64_t first, int64_t n) {
        if (given(x) && dim >= 0 && x.shape[dim] != 1)
            x.data = static_cast<char*>(x.data) + first * x.stride[dim] * item_size(x.dtype), x.shape[dim] = n;
        return x;
    }
    Status leave(const Call& c, int64_t b, int64_t head) const {
        View in[7], out[2];
        for (int i = 0; i < 7; ++i) {
            const View& x = c.in[i];
            const bool by_batch = i <= 4, by_head = i != 4;
            const int batch = i == 3 ? x.ndim - 4 : 0, heads = i == 3 ? x.ndim - 3 : i < 3 ? 1 : 0;
            const int64_t n = i == 1 || i == 2 ? 1 : a.group;
            in[i] = by_batch ? part_of(x, batch, b, 1) : x;
            if (by_head) in[i] = part_of(in[i], heads, head * n, n);
        }
        for (int i = 0; i < c.n_out; ++i) out[i] = part_of(part_of(c.out[i], 0, b, 1), 1, head * a.group, a.group);
        Call part = c;
        part.in = in, part.out = out;
        return run_below(Tier::TW_ISA, part);
    }

    Status run(const Call& c) const {
        const int64_t count = a.batch * a.kv_heads, blocks = ceil_div(a.keys, K), each = blocks * block_bytes;
        const int64_t together = min_of(count, max_of(1, kPackedBytes / each));
        int64_t groups = kMostGroups;
        while (groups > 1 && count * a.group * ceil_div(a.queries, groups * M) < 4 * num_threads()) groups /= 2;
        const int64_t tiles = ceil_div(a.queries, groups * M);
        Scratch scratch(static_cast<size_t>(together * each)),
            other(static_cast<size_t>(together * (1 + 2 * blocks)) * sizeof(ExponentRange));
        ExponentRange* const ranges = other.as<ExponentRange>();
        if (!scratch.as<char>() || !ranges) return no_memory();
        bool* const fit = reinterpret_cast<bool*>(ranges + together * 2 * blocks);
        bool enough = true;
        note_kernel(P == 1 ? "tiles of bf16" : "tiles in pieces");
        for (int64_t first = 0; first < count && !interrupted(); first += together) {
            const int64_t heads = min_of(together, count - first);
            for (int64_t i = 0; i < heads * 2 * blocks; ++i) ranges[i] = {};
            for (int64_t i = 0; i < heads; ++i) fit[i] = true;
            parallel(heads * blocks, [&](int64_t job) {
                const int64_t i = job / blocks, b = (first + i) / a.kv_heads, s0 = job % blocks * K;
                const int64_t n = min_of(K, length_of(a, b) - s0);
                if (n > 0)
                    pack(b, (first + i) % a.kv_heads, s0, n, scratch.as<char>() + job * block_bytes, ranges[2 * job],
                         ranges[2 * job + 1]);
            });
            parallel(heads * a.group * tiles, [&](int64_t job) {
                const int64_t i = job / tiles / a.group, b = (first + i) / a.kv_heads, t0 = job % tiles * groups * M;
                const int64_t h = (first + i) % a.kv_heads * a.group + job / tiles % a.group;
                PackedHead head = {scratch.as<char>() + i * each, {}, {}};
                for (int64_t j = i * blocks; j < (i + 1) * blocks; ++j)
                    join(head.k, ranges[2 * j]), join(head.v, ranges[2 * j + 1]);
                if (!attend(b, h, t0, min_of(groups * M, a.queries - t0), head, fit + i))
                    __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            });
            if (!enough) return no_memory();
            for (int64_t i = 0; i < heads; ++i)
                if (!fit[i]) TW_TRY(leave(c, (first + i) / a.kv_heads, (first + i) % a.kv_heads));
        }
        return Status::ok;
    }
};

// Pieces cost as much as the products of a few queries, and tiles that are mostly empty gain nothing. Heads that are left
// to the tier below would be given other draws.
inline bool pays_by_tiles(const Attention& a) {
    if (a.q.dtype == DType::f64 || a.depth * a.width * a.keys == 0) return false;
    if (a.q.dtype == DType::bf16) return true;
    const int64_t filled = a.depth + a.width,
                  all = kPieceTerms * (ceil_div(a.depth, kPieceTerms) + ceil_div(a.width, kPieceTerms));
    return !a.limit && a.queries >= kTallRows && a.group * a.queries >= 2 * kTallRows && a.keys >= 64 &&
           3 * filled >= 2 * all;
}

inline Status run_by_tiles(const Attention& a, const Result& r, const Call& c) {
    if (a.q.dtype == DType::bf16) return ByTiles<bf16>(a, r).run(c);
    return a.q.dtype == DType::f16 ? ByTiles<f16>(a, r).run(c) : ByTiles<float>(a, r).run(c);
}

}  // namespace
}  // namespace tw::TW_ISA
#endif
