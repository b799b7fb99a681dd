// Attention in bf16 by tiles: 32 queries against 128 keys at a time, so that scores and weights stay in L1.
//
// Method    k^T and v are packed once per key head, tiles that meet one after the other next to each other. Rows of scores
//           become weights in bf16 in registers. The top of a row moves only where a score lies beyond 2^8 times it: what
//           was summed seldom shrinks, and no row is searched for its very maximum.
// Numerics  scores and sums float; weights are rounded to bf16, their sum is not.
#pragma once
#include "core/op_table.h"
#include "ops/attention_softmax.h"
#include "simd/tiles.h"
#include "simd/weights.h"

#if defined(TW_TILES)
namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileNumbers = kTileRows * kTileBytes / 2, kTileDepth = kTileBytes / 2;  // of bf16
constexpr int64_t kQueriesOfTiles = 2 * kTileRows, kKeysOfTiles = 128;

TW_INLINE int64_t of_tiles(int64_t n) { return ceil_div(n, kTileDepth) * kTileDepth; }

// ---- packing ----------------------------------------------------------------------------------------------------------------

// One key head: k^T as [16 keys][32 of depth] tiles, v as [16 columns][32 keys] tiles; zero beyond their ends.
struct PackedTiles {
    bf16 *k, *v;
};

// Rows [0, rows) of 32 numbers each, n of them where x has them.
TW_INLINE void stage_rows(const bf16* x, int64_t row, int64_t step, int64_t rows, int64_t n, bf16* to) {
    __builtin_memset(to, 0, static_cast<size_t>(kTileNumbers) * sizeof(bf16));
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < n; ++i) to[r * kTileDepth + i] = x[r * row + i * step];
}

// A tile of k^T: pairs of depth by keys.
TW_INLINE void turn_tile(const bf16* x, int64_t row, int64_t step, int64_t keys, int64_t depth, bf16* to) {
    alignas(64) bf16 stage[kTileNumbers];
    if (keys < kTileRows || depth < kTileDepth || step != 1 || row % 2 != 0) {
        stage_rows(x, row, step, keys, depth, stage);
        x = stage, row = kTileDepth;
    }
    transpose_tile(reinterpret_cast<const float*>(x), row / 2, reinterpret_cast<float*>(to), int64_t{kTileRows});
}

// A tile of v: pairs of keys by columns.
TW_INLINE void pair_tile(const bf16* x, int64_t row, int64_t step, int64_t keys, int64_t columns, bf16* to) {
    for (int64_t i = 0; i < kTileRows; ++i) {
        Part16 both[2] = {};
        for (int64_t k = 2 * i; k < min_of(keys, 2 * i + 2); ++k) {
            const bf16* const from = x + k * row;
            if (step == 1 && columns >= kTileRows)
                both[k % 2] = load_part<Part16>(from);
            else
                for (int64_t j = 0; j < min_of(columns, kTileRows); ++j) both[k % 2][j] = from[j * step].bits;
        }
        store(reinterpret_cast<uint32_t*>(to) + i * kTileRows, widen(both[0]) | widen(both[1]) << 16);
    }
}

// Keys [s0, s0 + n) of a head, s0 a multiple of 32; `tiles` of v lie along all keys.
TW_INLINE void pack_tiles(const Attention& a, int64_t b, int64_t head, int64_t s0, int64_t n, int64_t tiles,
                          const PackedTiles& to) {
    const bf16* const k = a.k.as<bf16>() + b * a.k.stride[0] + head * a.k.stride[1];
    const bf16* const v = a.v.as<bf16>() + b * a.v.stride[0] + head * a.v.stride[1];
    const int64_t deep = ceil_div(a.depth, kTileDepth);
    for (int64_t s = s0; s < s0 + of_tiles(n); s += kTileRows)
        for (int64_t d = 0; d < deep; ++d)
            turn_tile(k + s * a.k.stride[2] + d * kTileDepth * a.k.stride[3], a.k.stride[2], a.k.stride[3],
                      max_of(0, min_of(kTileRows, s0 + n - s)), min_of(kTileDepth, a.depth - d * kTileDepth),
                      to.k + (s / kTileRows * deep + d) * kTileNumbers);
    for (int64_t s = s0; s < s0 + n; s += kTileDepth)
        for (int64_t j = 0; j < of_tiles(a.width); j += kTileRows)
            pair_tile(v + s * a.v.stride[2] + j * a.v.stride[3], a.v.stride[2], a.v.stride[3],
                      min_of(kTileDepth, s0 + n - s), max_of(0, a.width - j),
                      to.v + (j / kTileRows * tiles + s / kTileDepth) * kTileNumbers);
}

// ---- products ---------------------------------------------------------------------------------------------------------------

// 32 rows by 32 columns of c = a b, or += : `count` tiles along the terms, those of b one after the other, and those of its
// next 16 columns b_next behind them.
TW_INLINE void multiply_tiles(const bf16* a, int64_t a_row, const bf16* b, int64_t b_next, int64_t count, float* c,
                              int64_t c_row, bool add) {
    const int64_t a_bytes = a_row * 2, c_bytes = c_row * 4;
    float* const below = c + kTileRows * c_row;
    if (add) {
        tile_load<0>(c, c_bytes), tile_load<1>(c + kTileRows, c_bytes);
        tile_load<2>(below, c_bytes), tile_load<3>(below + kTileRows, c_bytes);
    } else {
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    }
    for (int64_t i = 0; i < count; ++i, a += kTileDepth, b += kTileNumbers) {
        tile_load<4>(a, a_bytes), tile_load<6>(b, kTileBytes);
        tile_dot<TileKind::bf16, 0, 4, 6>();
        tile_load<7>(b + b_next, kTileBytes);
        tile_dot<TileKind::bf16, 1, 4, 7>();
        tile_load<5>(a + kTileRows * a_row, a_bytes);
        tile_dot<TileKind::bf16, 2, 5, 6>();
        tile_dot<TileKind::bf16, 3, 5, 7>();
    }
    tile_store<0>(c, c_bytes), tile_store<1>(c + kTileRows, c_bytes);
    tile_store<2>(below, c_bytes), tile_store<3>(below + kTileRows, c_bytes);
}

// ---- softmax ----------------------------------------------------------------------------------------------------------------

// What a row has come to, in powers of two: a number near its top, and sums of 2^(score - top).
struct TileRow {
    f32v sum;
    float top;
};

// A whole row of scores becomes weights; -Inf where a key is not seen. Scores times `by` are powers of two. Returns the
// factor by which the new top shrinks what was there.
TW_INLINE float weigh(const float* s, float by, bf16* weights, TileRow& row) {
    constexpr int64_t L = kLanes<float>, N = kKeysOfTiles / L;
    constexpr float kSlack = 8;
    f32v x[N];
#pragma GCC unroll 16
    for (int64_t i = 0; i < N; ++i) x[i] = load(s + i * L);
    f32v most[2] = {x[0], x[1]};
#pragma GCC unroll 16
    for (int64_t i = 2; i < N; ++i) most[i % 2] = max_any(x[i], most[i % 2]);
    const f32v top = max_any(most[0], most[1]) * by;
    float factor = 1;
    if (any(top > row.top + kSlack)) {
        const float next = reduce_max(top);
        factor = row.top == -kInf ? 0.f : power_of_two(splat(row.top - next))[0];
        row.top = next, row.sum *= factor;
    }
    // Where all is -Inf nothing is subtracted, so that weights are 0.
    const f32v base = splat(row.top == -kInf ? 0.f : -row.top);
    f32v sums[2] = {row.sum, f32v{}};
#pragma GCC unroll 16
    for (int64_t i = 0; i < N; i += 2) {
        const f32v p0 = power_of_two(fma(x[i], splat(by), base));
        const f32v p1 = power_of_two(fma(x[i + 1], splat(by), base));
        sums[0] += p0, sums[1] += p1;
        store_flushed(weights + i * L, p0, p1);
    }
    row.sum = sums[0] + sums[1];
    return factor;
}

TW_INLINE void hide_unseen(float* s, Span seen) {
    constexpr int64_t L = kLanes<float>;
    for (int64_t j = 0; j < seen.begin; j += L) store_n(s + j, splat(-kInf), min_of(L, seen.begin - j));
    for (int64_t j = seen.end; j < kKeysOfTiles; j += L) store_n(s + j, splat(-kInf), min_of(L, kKeysOfTiles - j));
}

// ---- a tile of queries ------------------------------------------------------------------------------------------------------

inline bool attend_by_tiles(const Attention& a, const Result& r, int64_t b, int64_t h, int64_t t0, int64_t rows,
                            int64_t tiles, const PackedTiles& packed) {
    constexpr int64_t M = kQueriesOfTiles, K = kKeysOfTiles;
    const int64_t depth = of_tiles(a.depth), width = of_tiles(a.width), length = length_of(a, b);
    const bool plain = a.softcap == 0 && !given(a.mask) && !given(a.alibi) && !a.limit && a.scale > 0;
    const float by = static_cast<float>(a.scale * static_cast<double>(kLog2e));
    Scratch scratch(static_cast<size_t>(M) * (sizeof(TileRow) + static_cast<size_t>(K + width) * sizeof(float) +
                                              static_cast<size_t>(K + depth) * sizeof(bf16)));
    TileRow* const row = scratch.as<TileRow>();
    if (!row) return false;
    float *const scores = reinterpret_cast<float*>(row + M), *const sums = scores + M * K;
    bf16 *const weights = reinterpret_cast<bf16*>(sums + M * width), *const q = weights + M * K;
    Running<float> running[M];
    __builtin_memset(sums, 0, static_cast<size_t>(M * width) * sizeof(float));
    __builtin_memset(q, 0, static_cast<size_t>(M * depth) * sizeof(bf16));
    const bf16* const next_q = a.q.as<bf16>() + b * a.q.stride[0] + h * a.q.stride[1] + (t0 + M) * a.q.stride[2];
    const bf16* const y = r.y.as<bf16>() + b * r.y.stride[0] + h * r.y.stride[1] + t0 * r.y.stride[2];
    for (int64_t i = 0; i < rows; ++i) {
        // What comes next, and where results go, arrive meanwhile.
        for (int64_t j = 0; j < a.depth; j += kTileDepth) __builtin_prefetch(next_q + i * a.q.stride[2] + j);
        for (int64_t j = 0; j < a.width; j += kTileDepth) __builtin_prefetch(y + i * r.y.stride[2] + j, 1);
        copy_row(q + i * depth, 1, a.q.as<bf16>() + b * a.q.stride[0] + h * a.q.stride[1] + (t0 + i) * a.q.stride[2],
                 a.q.stride[3], a.depth);
        running[i] = started<bf16>(r, h);
        row[i] = {first_lanes<float>(splat(running[i].sum), f32v{}, 1), running[i].top * kLog2e};
    }
    const int64_t begin = keys_seen(a, length, t0).begin, end = keys_seen(a, length, t0 + rows - 1).end;
    tiles_begin();
    for (int64_t s0 = begin / K * K; s0 < end; s0 += K) {
        const int64_t n = min_of(K, end - s0);
        if (all_masked(a, b, h, t0, rows, s0, n)) continue;
        for (int64_t j = 0; j < n; j += kTileDepth)
            multiply_tiles(q, depth, packed.k + (s0 + j) * depth, depth * kTileRows, depth / kTileDepth, scores + j, K,
                           false);
        const Span first = within(keys_seen(a, length, t0), s0, n);
        const Span last = within(keys_seen(a, length, t0 + rows - 1), s0, n);
        const bool whole = max_of(first.begin, last.begin) == 0 && min_of(first.end, last.end) == K;
        for (int64_t i = 0; i < rows; ++i) {
            float* const own = scores + i * K;
            float factor;
            if (plain) {
                if (!whole) hide_unseen(own, within(keys_seen(a, length, t0 + i), s0, n));
                factor = weigh(own, by, weights + i * K, row[i]);
            } else {
                for (int64_t j = 0; j < n; j += kLanes<float>)
                    store(own + j, load(own + j) * static_cast<float>(a.scale));
                factor = soften<bf16>(a, added_at<bf16>(a, b, h, t0 + i, s0), own,
                                      within(keys_seen(a, length, t0 + i), s0, n), n, running[i]);
                if (a.limit) drop(a, b, h, t0 + i, s0, n, own);
                for (int64_t j = n; j < of_tiles(n); ++j) own[j] = 0;
                copy_row(weights + i * K, 1, own, 1, of_tiles(n));
            }
            if (!(factor == 1)) shrink(sums + i * width, width, factor);
        }
        for (int64_t j = 0; j < width; j += kTileDepth)
            multiply_tiles(weights, K, packed.v + (j / kTileRows * tiles + s0 / kTileDepth) * kTileNumbers,
                           tiles * kTileNumbers, of_tiles(n) / kTileDepth, sums + j, width, true);
    }
    tiles_end();
    for (int64_t i = 0; i < rows; ++i) {
        if (plain) running[i] = {row[i].top * (1 / kLog2e), reduce_add(row[i].sum)};
        finish<bf16>(r, b, h, t0 + i, a.width, sums + i * width, running[i]);
    }
    return true;
}

// ---- a call -----------------------------------------------------------------------------------------------------------------

inline bool attend_by_tiles(const Attention& a, const Result& r) {
    const int64_t tiles = of_tiles(a.keys) / kTileDepth;
    const int64_t of_k = of_tiles(a.keys) * of_tiles(a.depth), each = of_k + of_tiles(a.keys) * of_tiles(a.width);
    const int64_t count = a.batch * a.kv_heads, blocks = ceil_div(a.queries, kQueriesOfTiles);
    const int64_t together = min_of(count, max_of(1, kPackedBytes / (each * static_cast<int64_t>(sizeof(bf16)))));
    Scratch scratch(static_cast<size_t>(together * each) * sizeof(bf16));
    if (!scratch.as<bf16>()) return false;
    bool enough = true;
    note_kernel("tiles of bf16");
    for (int64_t first = 0; first < count && enough && !interrupted(); first += together) {
        const int64_t heads = min_of(together, count - first), shares = ceil_div(a.keys, kKeysOfTiles);
        const auto packed = [&](int64_t i) {
            bf16* const at = scratch.as<bf16>() + i * each;
            return PackedTiles{at, at + of_k};
        };
        parallel(heads * shares, [&](int64_t job) {
            const int64_t i = job / shares, b = (first + i) / a.kv_heads, s0 = job % shares * kKeysOfTiles;
            const int64_t n = min_of(kKeysOfTiles, length_of(a, b) - s0);
            if (n > 0) pack_tiles(a, b, (first + i) % a.kv_heads, s0, n, tiles, packed(i));
        });
        parallel(heads * a.group * blocks, [&](int64_t job) {
            const int64_t i = job / blocks / a.group, b = (first + i) / a.kv_heads, t0 = job % blocks * kQueriesOfTiles;
            const int64_t h = (first + i) % a.kv_heads * a.group + job / blocks % a.group;
            if (!attend_by_tiles(a, r, b, h, t0, min_of(kQueriesOfTiles, a.queries - t0), tiles, packed(i)))
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
    }
    return enough;
}

}  // namespace
}  // namespace tw::TW_ISA
#endif
