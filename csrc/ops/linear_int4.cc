// A dense layer whose weights are 4-bit codes with a scale per group: y = activation(x W^T + b),
// W(o, i) = scales(o, g) (code - zeros(o, g)), g = i / group.
//
//   w (O, G, group / 2): code 2 i in the low half of byte i, groups of a row one behind the other
//
// Method    few rows of x: w is streamed once. A 32-bit word is 8 codes of one output; a mask leaves code j in place, 16^j
//           times too large, and x, laid out to match, is divided by 16^j, which is exact. A zero point of 8 is where sums
//           begin: at -8 times the sum of their x; others act on sums of x at the end.
//           One row where the CPU multiplies bytes: x are whole numbers of 24 bits, bytes of three ranks, whose sums with codes
//           are exact (gemm/nibbles.h).
//           Many rows: panels of W are made as the GEMM packs them.
// Numerics  float32 sums; codes are exact. 16-bit x, scales and b are widened; y is rounded once. Streamed, an x of less
//           than 2^-102 loses digits to its division; as a whole number it is rounded to 2^-22 of the largest power of two
//           among 32 neighbours (2^-21 with zero points), or to 2^-122.
// Threads   outputs are independent.
// Source    ONNX Runtime's MatMulNBits (the layout).
#include "core/profile.h"
#include "core/tile_kernels.h"
#include "gemm/layer.h"
#include "gemm/micro.h"
#include "gemm/nibbles.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kFewRows = 16;  // of x, up to which w is streamed
constexpr int64_t kChunkBytes = 1 << 17;  // of w, streamed by a chunk
constexpr int kStep = kCodes * kLanes<float>;  // codes in a vector of words

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &scales = c.in[2], &zeros = c.in[3], &b = c.in[4];
    TW_TRY(infer_layer(x, w, b, r));
    const int64_t group = c.attr[0].i, in = x.shape[x.ndim - 1], out = w.shape[0];
    if (group != 32 && group != 64 && group != 128)
        return fail(Status::attr, "group", "group=%lld; want 32, 64 or 128", static_cast<long long>(group));
    const int64_t groups = ceil_div(in, group), flat[] = {out, groups * group / 2}, cubic[] = {out, groups, group / 2};
    TW_TRY(w.ndim == 2 ? want_shape(w, "w", 2, flat) : want_shape(w, "w", 3, cubic));
    TW_TRY(want_float_of(scales, "scales", x));
    TW_TRY(want_shape(scales, "scales", 2, cubic));
    if (given(zeros)) {
        const int64_t packed[] = {out, ceil_div(groups, 2)};
        TW_TRY(want_dtype_of(zeros, "zeros", w, "w"));
        TW_TRY(want_shape(zeros, "zeros", 2, packed));
    }
    return Status::ok;
}

// ---- w streamed -------------------------------------------------------------------------------------------------------------

// Everything contiguous and float32.
struct Int4 {
    const uint8_t* w;  // rows of `bytes`
    const float *scales, *bias;
    const uint8_t* zeros;  // rows of (groups + 1) / 2, or null: 8
    int64_t in, out, group, groups, bytes;
};

// A row of x in the order of its codes: vector j of a step holds x[8 lane + j] / 16^j, and one more where the step's sums
// begin; then, if zero points are given, the sums of groups.
constexpr int kSpread = kStep + kLanes<float>;
int64_t spread_size(const Int4& p) {
    return ceil_div(p.in, kStep) * kSpread + (p.zeros ? ceil_div(p.groups, kLanes<float>) * kLanes<float> : 0);
}

void sum_groups(const Int4& p, const float* x, float* to) {
    for (int64_t g = 0; p.zeros && g < ceil_div(p.groups, kLanes<float>) * kLanes<float>; ++g) {
        float sum = 0;
        for (int64_t i = g * p.group; i < min_of(g * p.group + p.group, p.in); ++i) sum += x[i];
        to[g] = sum;
    }
}

void spread_row(const Int4& p, const float* x, float* to) {
    constexpr int64_t L = kLanes<float>;
    for (int64_t first = 0; first < p.in; first += kStep, to += kSpread) {
        f32v sum{};
        float part = 1;
        for (int64_t j = 0; j < kCodes; ++j) {
            const int64_t lanes = min_of(ceil_div(max_of(p.in - first - j, 0), kCodes), L);
            const f32v own = load_strided(x + first + j, kCodes, lanes);
            store(to + j * L, own * splat(j == kCodes - 1 ? 1.f : part));
            sum += own, part *= 0.0625f;
        }
        store(to + kStep, p.zeros ? f32v{} : sum * splat(-8.f));
    }
    sum_groups(p, x, to);
}

template <int... I>
TW_INLINE f32v repeat_lanes(f32v v, int lanes, Seq<I...>) {
    switch (lanes) {
        case 4: return shuffle<(I / 4)...>(v, v);
        case 8: return shuffle<(I / 8)...>(v, v);
        default: return shuffle<(I * 0)...>(v, v);
    }
}

// The scale of each word of a step: neighbouring words share a group.
template <int Group>
TW_INLINE f32v step_scale(const float* scales, int64_t step, int64_t groups) {
    constexpr int L = kLanes<float>, lanes = Group / kCodes;
    const int64_t first = step * kStep / Group;
    if constexpr (lanes >= L) return splat(scales[first]);
    return repeat_lanes(groups - first >= L ? load(scales + first) : load_n(scales + first, groups - first), lanes,
                        Indices<f32v>{});
}

// Code i of a row of packed codes.
TW_INLINE float code_at(const uint8_t* row, int64_t i) { return static_cast<float>(row[i / 2] >> (i % 2 * 4) & 15); }

// The zero points of a vector of groups from group g on; 0 where there are no more.
TW_INLINE f32v zero_points(const uint8_t* zeros, int64_t g, int64_t groups) {
    constexpr int L = kLanes<float>;
    alignas(kVecBytes) float zero[L] = {};
    const int64_t count = min_of(groups - g, L);
    for (int64_t l = 0; l < count; ++l) zero[l] = code_at(zeros, g + l);
    return load_aligned(zero);
}

// Takes the share of given zero points off the sums of one output and leaves y in lane 0; sums of x by group begin at
// x[r] + sums.
template <int R>
TW_INLINE void close_sums(const Int4& p, const float* const* x, int64_t sums, int64_t o, f32v* total) {
    constexpr int L = kLanes<float>;
    const float* const scales = p.scales + o * p.groups;
    for (int64_t g = 0; p.zeros && g < p.groups; g += L) {
        const f32v z = zero_points(p.zeros + o * ((p.groups + 1) / 2), g, p.groups);
        const f32v part = (p.groups - g >= L ? load(scales + g) : load_n(scales + g, p.groups - g)) * z;
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) total[r] -= part * load(x[r] + sums + g);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) total[r] = splat(reduce_add(total[r]) + (p.bias ? p.bias[o] : 0.f));
}

// y[r][c] of R rows of x and C outputs.
template <int Group, int R, int C>
void stream(const Int4& p, const float* const* x, int64_t o, float (*y)[C]) {
    constexpr int L = kLanes<float>;
    const int64_t words = p.bytes / 4, steps = ceil_div(p.in, kStep);
    f32v total[R][C] = {};
    for (int64_t s = 0; s < steps; ++s) {
        u32v code[C];
        f32v sum[R][C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const auto* row = reinterpret_cast<const uint32_t*>(p.w + (o + c) * p.bytes) + s * L;
            __builtin_prefetch(reinterpret_cast<const char*>(row) + C * p.bytes);  // the next C rows are no stream yet
            code[c] = words - s * L >= L ? load(row) : load_n(row, words - s * L);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][c] = load(x[r] + s * kSpread + kStep);
        }
#pragma GCC unroll 8
        for (int j = 0; j < kCodes; ++j) {
            f32v v[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const u32v kept = j == kCodes - 1 ? code[c] >> 28 : code[c] & (15u << (4 * j));
                v[c] = to_f32(bitcast<i32v>(kept));
            }
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const f32v xv = load(x[r] + s * kSpread + j * L);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) sum[r][c] += xv * v[c];
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            const f32v scale = step_scale<Group>(p.scales + (o + c) * p.groups, s, p.groups);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) total[r][c] += sum[r][c] * scale;
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
        f32v own[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) own[r] = total[r][c];
        close_sums<R>(p, x, steps * kSpread, o + c, own);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) y[r][c] = own[r][0];
    }
}

// y[n] of one row of x and N outputs, side by side: each x is loaded once, and sums do not wait for each other.
template <int Group, int N>
void stream_row(const Int4& p, const float* x, int64_t o, float* y) {
    constexpr int64_t L = kLanes<float>;
    const auto* const words = reinterpret_cast<const uint32_t*>(p.w + o * p.bytes);
    const float* const scales = p.scales + o * p.groups;
    const int64_t row = p.bytes / 4, steps = ceil_div(p.in, kStep);
    f32v total[N] = {};
    for (int64_t s = 0; s < steps; ++s) {
        const float* const own = x + s * kSpread;
        u32v code[N];
        f32v sum[N][2] = {};
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const uint32_t* const at = words + n * row + s * L;
            __builtin_prefetch(at + N * row);  // the next N rows are no stream yet
            code[n] = row - s * L >= L ? load(at) : load_n(at, row - s * L);
            sum[n][0] = load(own + kStep);
        }
#pragma GCC unroll 8
        for (int j = 0; j < kCodes; ++j) {
            const f32v xv = load(own + j * L);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                const u32v kept = j == kCodes - 1 ? code[n] >> 28 : code[n] & (15u << (4 * j));
                sum[n][j % 2] += xv * to_f32(bitcast<i32v>(kept));
            }
        }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n)
            total[n] += (sum[n][0] + sum[n][1]) * step_scale<Group>(scales + n * p.groups, s, p.groups);
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        close_sums<1>(p, &x, steps * kSpread, o + n, total + n);
        y[n] = total[n][0];
    }
}

// ---- one row of x as bytes of three ranks ----

// False if there is an infinity or a NaN.
bool rank_row(const Int4& p, const float* x, RankStep* to) {
    // All that sums of 32 products by codes, 8 taken off, leave of 32 bits; one less where zero points are taken off later.
    const uint32_t bits = p.zeros ? 21 : 22;
    const float most = static_cast<float>(p.zeros ? 1 << 22 : (1 << 23) - 1);
    constexpr auto kTurn = Indices<f32v>{};
    Mask<float> strange{};
    for (int64_t first = 0; first < p.in; first += kRankStep, ++to) {
        f32v own[kRanked], largest{};
        for (int j = 0; j < kRanked; ++j) {
            const int64_t lanes = min_of(ceil_div(max_of(p.in - first - j, 0), kRanked), kLanes<float>);
            own[j] = load_strided(x + first + j, kRanked, lanes);
            largest = max_any(abs(own[j]), largest);
            strange |= own[j] - own[j] != 0;
        }
        // 2^(e - bits) for an e of at least -100, and its inverse.
        constexpr uint32_t kBias = 127;
        const u32v e = bitcast<u32v>(max_any(largest, splat(0x1p-100f))) >> 23;
        const f32v inverse = bitcast<f32v>((2 * kBias + bits - e) << 23);
        to->unit = turn_lanes(bitcast<f32v>((e - bits) << 23), kTurn);
        i32v sum{};
        for (int word = 0; word < kWords; ++word) {
            u32v rank[kRanks][2] = {};
#pragma GCC unroll 8
            for (int j = 0; j < kCodes; ++j) {
                const f32v whole = round_nearest(own[word * kCodes + j] * inverse);
                const i32v q = to_i32(min_any(max_any(whole, splat(-most)), splat(most)));
                sum += q;
#pragma GCC unroll 3
                for (uint32_t r = 0; r < kRanks; ++r)
                    rank[r][j % 2] |= (bitcast<u32v>(q) >> (16 - 8 * r) & 255u) << static_cast<uint32_t>(j / 2 * 8);
            }
#pragma GCC unroll 3
            for (int r = 0; r < kRanks; ++r)
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half)
                    to->x[word][r][half] = turn_lanes(bitcast<i32v>(rank[r][half]), kTurn);
        }
        to->begin = p.zeros ? i32v{} : turn_lanes(sum * -8, kTurn);
    }
    return !any(strange);
}

template <int Group, int R, int C>
void stream_block(const Int4& p, const float* const* x, int64_t o, float* y, int64_t y_row) {
    float part[R][C];
    stream<Group, R, C>(p, x, o, part);
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) y[r * y_row + o + c] = part[r][c];
}

// R rows of x from row r on, outputs [first, end): C at a time, so that their sums hide each other's latency.
template <int Group, int R, int C>
void stream_rows(const Int4& p, const float* spread, int64_t size, int64_t r, int64_t first, int64_t end, float* y) {
    const float* rows[R];
    for (int k = 0; k < R; ++k) rows[k] = spread + (r + k) * size;
    y += r * p.out;
    int64_t o = first;
    for (; end - o >= C; o += C) stream_block<Group, R, C>(p, rows, o, y, p.out);
    for (; o < end; ++o) stream_block<Group, R, 1>(p, rows, o, y, p.out);
}

// Outputs [first, end) of m rows of x; the few rows of w between them stay in the cache.
template <int Group>
void stream_chunk(const Int4& p, const float* spread, int64_t size, int64_t m, int64_t first, int64_t end, float* y) {
    constexpr int C = kVectorRegisters >= 32 ? 4 : 2;
    for (int64_t r = 0; r < m;) {
        if (m - r >= 4) {
            stream_rows<Group, 4, C>(p, spread, size, r, first, end, y), r += 4;
        } else if (m - r >= 2) {
            stream_rows<Group, 2, C>(p, spread, size, r, first, end, y), r += 2;
        } else {
            int64_t o = first;
            for (; end - o >= 2; o += 2) stream_row<Group, 2>(p, spread + r * size, o, y + r * p.out + o);
            if (o < end) stream_row<Group, 1>(p, spread + r * size, o, y + r * p.out + o);
            r += 1;
        }
    }
}

// Runs body(first, end) for chunks of outputs.
template <class Body>
void share_outputs(const Int4& p, const Body& body) {
    const int64_t tall = max_of(4, kChunkBytes / max_of(p.bytes, 1) / 4 * 4);
    parallel(ceil_div(p.out, tall), [&](int64_t chunk) { body(chunk * tall, min_of(chunk * tall + tall, p.out)); });
}

// False if it was not to be: no memory, or an x that is no number.
bool run_ranks(const Int4& p, const float* x, float* y) {
    auto* const kernel = tile_kernels().nibbles;
    if (kVecBytes < 64 || !kernel) return false;
    Scratch scratch(static_cast<size_t>(ceil_div(p.in, kRankStep)) * sizeof(RankStep));
    Scratch sums_scratch(static_cast<size_t>(ceil_div(p.groups, kLanes<float>) * kLanes<float> + 1) * sizeof(float));
    RankStep* const ranks = scratch.as<RankStep>();
    float* const sums = sums_scratch.as<float>();
    if (!ranks || !sums || !rank_row(p, x, ranks)) return false;
    note_kernel("int4 by ranks");
    sum_groups(p, x, sums);
    share_outputs(p, [&](int64_t first, int64_t end) {
        const NibbleRow row = {ranks, p.w, p.scales, p.in, p.group, p.groups, p.bytes, first, end, y};
        kernel(&row);
        for (int64_t o = first; (p.zeros || p.bias) && o < end; ++o) {
            f32v total{};
            total[0] = y[o];
            close_sums<1>(p, &sums, 0, o, &total);
            y[o] = total[0];
        }
    });
    return true;
}

bool run_streamed(const Int4& p, const float* x, int64_t m, float* y) {
    if (m == 1 && run_ranks(p, x, y)) return true;
    note_kernel("int4 streamed");
    const int64_t size = spread_size(p);
    Scratch scratch(static_cast<size_t>(m * size + 1) * sizeof(float));
    float* const spread = scratch.as<float>();
    if (!spread) return false;
    for (int64_t r = 0; r < m; ++r) spread_row(p, x + r * p.in, spread + r * size);
    share_outputs(p, [&](int64_t first, int64_t end) {
        if (p.group == 32)
            stream_chunk<32>(p, spread, size, m, first, end, y);
        else if (p.group == 64)
            stream_chunk<64>(p, spread, size, m, first, end, y);
        else
            stream_chunk<128>(p, spread, size, m, first, end, y);
    });
    return true;
}

// ---- W in panels ------------------------------------------------------------------------------------------------------------

// Words [first, first + kLanes) of `lanes` outputs from o on, turned so that outputs are the lanes: [word][output].
void turn_words(const Int4& p, int64_t first, int64_t o, int64_t lanes, uint32_t* to) {
    constexpr int64_t L = kLanes<float>;
    const int64_t count = min_of(L, p.bytes / 4 - first);
    const uint8_t* const from = p.w + o * p.bytes + 4 * first;
    if (count == L && lanes == L) {
        // Rows of codes are whole words, which are floats to transpose_tile.
        return transpose_tile(reinterpret_cast<const float*>(from), p.bytes / 4, reinterpret_cast<float*>(to), L);
    }
    for (int64_t i = 0; i < L; ++i)
        for (int64_t l = 0; l < L; ++l) {
            to[i * L + l] = 0;
            if (i < count && l < lanes) __builtin_memcpy(to + i * L + l, from + l * p.bytes + 4 * i, sizeof *to);
        }
}

// Rows [k0, k0 + kc) of `lanes` columns from o on of W^T, a vector of outputs each, NR apart.
void int4_columns(const Int4& p, int64_t k0, int64_t kc, int64_t o, int64_t lanes, float* to) {
    constexpr int64_t L = kLanes<float>, NR = Blocking<float>::NR;
    alignas(kVecBytes) uint32_t words[L * L];
    f32v scale{}, less{};
    int64_t turned = -1;
    for (int64_t k = k0; k < k0 + kc;) {
        const int64_t word = k / kCodes, code = k % kCodes, n = min_of(kCodes - code, k0 + kc - k);
        if (word / L != turned) turned = word / L, turn_words(p, turned * L, o, lanes, words);
        if (k == k0 || k % p.group == 0) {
            const int64_t g = k / p.group;
            alignas(kVecBytes) float zero[L] = {};
            for (int64_t l = 0; p.zeros && l < lanes; ++l)
                zero[l] = code_at(p.zeros + (o + l) * ((p.groups + 1) / 2), g);
            less = p.zeros ? load_aligned(zero) : splat(8.f);
            scale = load_strided(p.scales + o * p.groups + g, p.groups, lanes);  // zero beyond the last output
        }
        const u32v codes = load_aligned(words + word % L * L) >> static_cast<uint32_t>(4 * code);
        const auto put = [&](int64_t c) __attribute__((always_inline)) {
            const u32v own = codes >> static_cast<uint32_t>(4 * c) & 15u;
            store(to + c * NR, (to_f32(bitcast<i32v>(own)) - less) * scale);
        };
        if (n == kCodes)
#pragma GCC unroll 8
            for (int c = 0; c < kCodes; ++c) put(c);
        else
            for (int64_t c = 0; c < n; ++c) put(c);
        k += n, to += n * NR;
    }
}

// Rows [k0, k0 + kc) of columns [n0, n0 + n) of W^T.
void int4_panel(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, float* panel) {
    constexpr int64_t L = kLanes<float>, NR = Blocking<float>::NR;
    for (int64_t j = 0; j < NR; j += L)
        int4_columns(*static_cast<const Int4*>(context), k0, kc, n0 + j, min_of(max_of(n - j, 0), L), panel + j);
}

// ---- the op ----------------------------------------------------------------------------------------------------

void activate_rows(float* y, int64_t n, Activation activation) {
    if (activation == Activation::none) return;
    for (int64_t i = 0; i < n; i += kLanes<float>) {
        const int64_t lanes = min_of(n - i, kLanes<float>);
        store_n(y + i, activate(load_n(y + i, lanes), activation), lanes);
    }
}

bool all_finite(const float* y, int64_t n) {
    Mask<float> strange{};
    for (int64_t i = 0; i < n; i += kLanes<float>) {
        const f32v v = load_n(y + i, min_of(n - i, kLanes<float>));
        strange |= v - v != 0;
    }
    return !any(strange);
}

Status run(const Call& c) {
    const View &x = c.in[0], &w = c.in[1], &scales = c.in[2], &zeros = c.in[3], &b = c.in[4], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    Scratch w_room(room_for(w, 1, true)), s_room(room_for(scales, sizeof(float), false)),
        z_room(room_for(zeros, 1, true)), b_room(room_for(b, sizeof(float), false));
    if (!w_room.as<void>() || !s_room.as<void>() || !z_room.as<void>() || !b_room.as<void>()) return no_memory();
    Int4 p;
    p.in = x.shape[x.ndim - 1], p.out = w.shape[0], p.group = c.attr[0].i, p.groups = ceil_div(p.in, p.group);
    p.bytes = p.groups * p.group / 2;
    p.w = dense<uint8_t>(w, w_room), p.scales = dense<float>(scales, s_room), p.zeros = dense<uint8_t>(zeros, z_room);
    p.bias = dense<float>(b, b_room);
    return run_layer(x, y, c.attr[1], [&](const float* rows, int64_t m, float* to, Activation activation) {
        if (m <= kFewRows) {
            if (!run_streamed(p, rows, m, to)) return false;
            // Zero points act on sums there: an infinity would meet itself and be lost.
            if (all_finite(to, m * p.out)) {
                activate_rows(to, m * p.out, activation);
                return true;
            }
        }
        Gemm<float> g = gemm_of(rows, m, p.in, p.out, to, activation);
        g.bias_col = p.bias;
        g.pack_b = int4_panel, g.context = &p;
        return gemm(g);
    });
}

constexpr Operand kOperands[] = {{"x"}, {"w"}, {"scales"}, {"zeros", Role::optional}, {"b", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "group", .kind = AttrKind::integer, .i = 32},
    {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true}};

}  // namespace

extern const Entry op_linear_int4 = {"linear_int4", kOperands, 5, kAttrs, 2, infer, run};

}  // namespace tw::TW_ISA
