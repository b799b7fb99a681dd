// Dense layers whose weights are 4-bit codes with a scale per group, or indices of 1 to 8 bits into tables:
// y = activation(x W^T + b), W(o, i) = scales(o, g) (code - zeros(o, g)) or table(o, g, index), g = i / group.
//
//   linear_int4   w (O, G, group / 2): code 2 i in the low half of byte i, groups of a row one behind the other
//   linear_lut    w (O, ceil(I bits / 8)): index i in bits i bits .. (i + 1) bits - 1 of a row, the lowest first
//
// Method    few rows of x: w is streamed once. A 32-bit word is 8 codes of one output; a mask leaves code j in place, 16^j
//           times too large, and x, laid out to match, is divided by 16^j, which is exact. Zero points act on sums of x.
//           Many rows, and tables: panels of W are made as the GEMM packs them.
// Numerics  float32 sums; codes are exact. 16-bit x, scales and b are widened; y is rounded once. Streamed, an x of less
//           than 2^-102 loses digits to its division.
// Threads   outputs are independent.
// Source    ONNX Runtime's MatMulNBits (the layout); Core ML's constexpr_lut_to_dense.
#include "core/check.h"
#include "core/walk.h"
#include "gemm/gemm.h"
#include "gemm/micro.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kFewRows = 16;  // of x, up to which w is streamed
constexpr int64_t kChunkBytes = 1 << 17;  // of w, streamed by a chunk
constexpr int kCodes = 8;  // in a word
constexpr int kStep = kCodes * kLanes<float>;  // codes in a vector of words

Status no_memory() { return fail(Status::memory, "", "no memory for unpacked operands; want smaller ones"); }

// ---- float operands of any type as float32 ------------------------------------------------------------------------------

template <class T>
void widen_row(float* to, const T* from, int64_t step, int64_t n) {
    int64_t i = 0;
    if constexpr (sizeof(T) <= sizeof(float))
        if (step == 1)
            for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, load_as<float>(from + i));
    for (; i < n; ++i)
        if constexpr (__is_same(T, double))
            to[i] = static_cast<float>(from[i * step]);
        else
            to[i] = to_float(from[i * step]);
}

void widen_row(float* to, const View& v, int64_t offset, int64_t step, int64_t n) {
    switch (v.dtype) {
        case DType::f64: return widen_row(to, v.as<double>() + offset, step, n);
        case DType::f16: return widen_row(to, v.as<f16>() + offset, step, n);
        case DType::bf16: return widen_row(to, v.as<bf16>() + offset, step, n);
        default: return widen_row(to, v.as<float>() + offset, step, n);
    }
}

// All of v, C order.
void widen_all(float* to, const View& v) {
    View rows = v;
    if (v.ndim > 0) --rows.ndim;
    const int64_t n = v.ndim ? v.shape[v.ndim - 1] : 1, step = v.ndim ? v.stride[v.ndim - 1] : 0, count = numel(rows);
    parallel(ceil_div(count, 256), [&](int64_t chunk) {
        for (int64_t r = chunk * 256; r < min_of(chunk * 256 + 256, count); ++r) {
            int64_t offset = 0, rest = r;
            for (int d = rows.ndim - 1; d >= 0; --d) {
                offset += rest % v.shape[d] * v.stride[d];
                rest /= v.shape[d];
            }
            widen_row(to + r * n, v, offset, step, n);
        }
    });
}

template <class T>
void narrow_row(T* to, int64_t step, const float* from, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if constexpr (__is_same(T, double))
            to[i * step] = static_cast<double>(from[i]);
        else
            to[i * step] = from_float<T>(from[i]);
}

void narrow_row(const View& y, int64_t offset, int64_t step, const float* from, int64_t n) {
    switch (y.dtype) {
        case DType::f64: return narrow_row(y.as<double>() + offset, step, from, n);
        case DType::f16: return narrow_row(y.as<f16>() + offset, step, from, n);
        case DType::bf16: return narrow_row(y.as<bf16>() + offset, step, from, n);
        default: return narrow_row(y.as<float>() + offset, step, from, n);
    }
}

// ---- shapes -----------------------------------------------------------------------------------------------------------------

Status infer_layer(const View& x, const View& w, const View& b, Inferred& r) {
    if (!is_float(x.dtype))
        return fail(Status::dtype, "x", "x has dtype %s; want float32, float64, float16 or bfloat16", name_of(x.dtype));
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    if (w.dtype != DType::u8) return fail(Status::dtype, "w", "w has dtype %s; want uint8", name_of(w.dtype));
    TW_TRY(want_ndim(w, "w", 2, 3));
    if (given(b)) {
        TW_TRY(want_dtype_of(b, "b", x, "x"));
        TW_TRY(want_shape(b, "b", 1, w.shape));
    }
    View y = result(x.dtype, x.ndim, x.shape);
    y.shape[y.ndim - 1] = w.shape[0];
    r.n_out = 1;
    r.out[0] = y;
    r.flops = 2.0 * static_cast<double>(numel(y)) * static_cast<double>(x.shape[x.ndim - 1]);
    return Status::ok;
}

Status want_float_of(const View& v, const char* name, const View& x) {
    return v.dtype == DType::f32 ? Status::ok : want_dtype_of(v, name, x, "x");
}

Status infer_int4(Call& c, Inferred& r) {
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

Status infer_lut(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &table = c.in[2], &b = c.in[3];
    TW_TRY(infer_layer(x, w, b, r));
    const int64_t bits = c.attr[0].i, group = c.attr[1].i, in = x.shape[x.ndim - 1], out = w.shape[0];
    if (bits < 1 || bits > 8) return fail(Status::attr, "bits", "bits=%lld; want 1 to 8", static_cast<long long>(bits));
    if (group < 0 || group >= kMaxSize)
        return fail(Status::attr, "group", "group=%lld; want 0, or the inputs that share a table",
                    static_cast<long long>(group));
    const int64_t packed[] = {out, ceil_div(in * bits, 8)};
    TW_TRY(want_shape(w, "w", 2, packed));
    TW_TRY(want_float_of(table, "table", x));
    const int64_t entries = int64_t{1} << bits, groups = group ? ceil_div(in, group) : 1;
    const int64_t full[] = {table.ndim == 3 && table.shape[0] == 1 ? 1 : out, groups, entries};
    const int64_t rows[] = {out, entries};
    if (group) return want_shape(table, "table", 3, full);
    return table.ndim == 2 ? want_shape(table, "table", 2, rows) : want_shape(table, "table", 1, &entries);
}

// ---- w streamed -------------------------------------------------------------------------------------------------------------

// Everything contiguous and float32.
struct Int4 {
    const uint8_t* w;  // rows of `bytes`
    const float *scales, *bias;
    const uint8_t* zeros;  // rows of (groups + 1) / 2, or null: 8
    int64_t in, out, group, groups, bytes;
};

// A row of x in the order of its codes: vector j of a step holds x[8 lane + j] / 16^j; then the sums of groups.
int64_t spread_size(const Int4& p) {
    return ceil_div(p.in, kStep) * kStep + ceil_div(p.groups, kLanes<float>) * kLanes<float>;
}

void spread_row(const Int4& p, const float* x, float* to) {
    constexpr int L = kLanes<float>;
    float part[kCodes];
    for (int j = 0; j < kCodes; ++j) part[j] = j == 0 || j == kCodes - 1 ? 1.f : part[j - 1] * 0.0625f;
    for (int64_t first = 0; first < p.in; first += kStep, to += kStep) {
        const int64_t count = min_of(p.in - first, kStep);
        for (int64_t i = 0; i < count; ++i) to[i % kCodes * L + i / kCodes] = x[first + i] * part[i % kCodes];
        for (int64_t i = count; i < kStep; ++i) to[i % kCodes * L + i / kCodes] = 0;
    }
    for (int64_t g = 0; g < p.groups; ++g) {
        float sum = 0;
        for (int64_t i = g * p.group; i < min_of(g * p.group + p.group, p.in); ++i) sum += x[i];
        to[g] = sum;
    }
    for (int64_t g = p.groups; g < ceil_div(p.groups, L) * L; ++g) to[g] = 0;
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

// The zero points of L groups from group g on; 0 where there are no more.
TW_INLINE f32v zero_points(const uint8_t* zeros, int64_t g, int64_t groups) {
    constexpr int L = kLanes<float>;
    alignas(kVecBytes) float zero[L] = {};
    const int64_t count = min_of(groups - g, L);
    for (int64_t l = 0; l < count; ++l) zero[l] = code_at(zeros, g + l);
    return load_aligned(zero);
}

// Takes the share of the zero points off the sums of one output and leaves y in lane 0.
template <int R>
TW_INLINE void close_sums(const Int4& p, const float* const* x, int64_t o, f32v* total) {
    constexpr int L = kLanes<float>;
    const int64_t sums = ceil_div(p.in, kStep) * kStep;
    const float* const scales = p.scales + o * p.groups;
    for (int64_t g = 0; g < p.groups; g += L) {
        const f32v z = p.zeros ? zero_points(p.zeros + o * ((p.groups + 1) / 2), g, p.groups) : splat(8.f);
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
            for (int r = 0; r < R; ++r) sum[r][c] = f32v{};
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
                const f32v xv = load(x[r] + s * kStep + j * L);
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
        close_sums<R>(p, x, o + c, own);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) y[r][c] = own[r][0];
    }
}

// y of one row of x and one output, whose codes are a stream that the hardware sees.
template <int Group>
float stream_one(const Int4& p, const float* x, int64_t o) {
    constexpr int64_t L = kLanes<float>, kAhead = 2048;
    const auto* const words = reinterpret_cast<const uint32_t*>(p.w + o * p.bytes);
    const float* const scales = p.scales + o * p.groups;
    const int64_t steps = ceil_div(p.in, kStep), whole = min_of(steps, p.bytes / 4 / L);
    const auto sum = [&](int64_t s, u32v code) __attribute__((always_inline)) {
        f32v even{}, odd{};
#pragma GCC unroll 8
        for (int j = 0; j < kCodes; ++j) {
            const u32v kept = j == kCodes - 1 ? code >> 28 : code & (15u << (4 * j));
            f32v& to = j % 2 ? odd : even;
            to += load(x + s * kStep + j * L) * to_f32(bitcast<i32v>(kept));
        }
        return (even + odd) * step_scale<Group>(scales, s, p.groups);
    };
    f32v first{}, second{};
    int64_t s = 0;
    for (; s + 2 <= whole; s += 2) {
        __builtin_prefetch(reinterpret_cast<const char*>(words + s * L) + kAhead);
        first += sum(s, load(words + s * L));
        second += sum(s + 1, load(words + (s + 1) * L));
    }
    for (; s < steps; ++s) first += sum(s, load_n(words + s * L, min_of(L, p.bytes / 4 - s * L)));
    f32v total[] = {first + second};
    close_sums<1>(p, &x, o, total);
    return total[0][0];
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
            for (int64_t o = first; o < end; ++o) y[r * p.out + o] = stream_one<Group>(p, spread + r * size, o);
            r += 1;
        }
    }
}

bool run_streamed(const Int4& p, const float* x, int64_t m, float* y) {
    note_kernel("int4 streamed");
    const int64_t size = spread_size(p);
    Scratch scratch(static_cast<size_t>(m * size + 1) * sizeof(float));
    float* const spread = scratch.as<float>();
    if (!spread) return false;
    for (int64_t r = 0; r < m; ++r) spread_row(p, x + r * p.in, spread + r * size);
    const int64_t tall = max_of(4, kChunkBytes / max_of(p.bytes, 1) / 4 * 4);
    parallel(ceil_div(p.out, tall), [&](int64_t chunk) {
        const int64_t first = chunk * tall, end = min_of(first + tall, p.out);
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

struct Lut {
    const uint8_t* w;
    const float* table;
    int64_t bytes, bits, group, row_tables, tables_per_row;  // row_tables: 0 if outputs share theirs
};

void lut_panel(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, float* panel) {
    constexpr int NR = Blocking<float>::NR;
    const Lut& p = *static_cast<const Lut*>(context);
    const uint32_t mask = (1u << p.bits) - 1;
    for (int64_t j = 0; j < NR; ++j) {
        if (j >= n) {
            for (int64_t k = 0; k < kc; ++k) panel[k * NR + j] = 0;
            continue;
        }
        const uint8_t* row = p.w + (n0 + j) * p.bytes;
        const float* tables = p.table + (n0 + j) * p.row_tables;
        for (int64_t k = k0; k < k0 + kc; ++k) {
            const int64_t bit = k * p.bits, byte = bit / 8;
            uint32_t both = row[byte];
            if (bit % 8 + p.bits > 8) both |= static_cast<uint32_t>(row[byte + 1]) << 8;
            const float* table = p.group ? tables + k / p.group * (int64_t{1} << p.bits) : tables;
            panel[(k - k0) * NR + j] = table[both >> (bit % 8) & mask];
        }
    }
}

// ---- the ops ----------------------------------------------------------------------------------------------------------------

// Operands as contiguous arrays: in place where they are, else in the scratch behind them.
template <class T>
const T* dense(const View& v, Scratch& room) {
    if (!given(v)) return nullptr;
    if (is_contiguous(v) && item_size(v.dtype) == sizeof(T) && (sizeof(T) == 1 || v.dtype == DType::f32))
        return v.as<T>();
    if constexpr (sizeof(T) == 1) {
        View to = v;
        to.data = room.as<void>();
        set_contiguous(to);
        const View* views[] = {&to, &v};
        const Walk walk = walk_over(views, 2, v.ndim, v.shape);
        for_each_row(walk, kChunkElements, [&](char* const* at, int64_t count) {
            for (int64_t i = 0; i < count; ++i)
                reinterpret_cast<T*>(at[0])[i * walk.stride[0]] = reinterpret_cast<const T*>(at[1])[i * walk.stride[1]];
        });
    } else {
        widen_all(room.as<T>(), v);
    }
    return room.as<T>();
}

size_t room_for(const View& v, size_t item, bool bytes) {
    if (!given(v)) return 64;
    const bool in_place = is_contiguous(v) && (bytes || v.dtype == DType::f32);
    return in_place ? 64 : static_cast<size_t>(numel(v)) * item + 64;
}

// y = activation(what `product` makes of a dense float32 x), through a float32 copy where y is not one.
template <class Product>
Status run_layer(const View& x, const View& y, const Attr& chosen, const Product& product) {
    const int64_t in = x.shape[x.ndim - 1], out = y.shape[y.ndim - 1], m = in ? numel(x) / in : numel(y) / out;
    const bool straight = is_contiguous(y) && y.dtype == DType::f32;
    Scratch x_room(room_for(x, sizeof(float), false));
    Scratch y_room(straight ? 64 : static_cast<size_t>(m * out) * sizeof(float));
    if (!x_room.as<float>() || !y_room.as<float>()) return no_memory();
    float* const dense_y = straight ? y.as<float>() : y_room.as<float>();
    const Activation activation = chosen.is_none ? Activation::none : static_cast<Activation>(chosen.choice + 1);
    if (!product(dense<float>(x, x_room), m, dense_y, activation)) return no_memory();
    if (straight) return Status::ok;
    for (int64_t r = 0; r < m; ++r) {
        int64_t offset = 0, rest = r;
        for (int d = y.ndim - 2; d >= 0; --d) {
            offset += rest % y.shape[d] * y.stride[d];
            rest /= y.shape[d];
        }
        narrow_row(y, offset, y.stride[y.ndim - 1], dense_y + r * out, out);
    }
    return Status::ok;
}

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

Gemm<float> gemm_of(const float* x, int64_t m, int64_t in, int64_t out, float* y, Activation activation) {
    Gemm<float> g{};
    g.m = m, g.n = out, g.k = in;
    g.a = {x, in, 1};
    g.c = y, g.c_row = out, g.c_col = 1;
    g.activation = activation;
    return g;
}

Status run_int4(const Call& c) {
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

Status run_lut(const Call& c) {
    const View &x = c.in[0], &w = c.in[1], &table = c.in[2], &b = c.in[3], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    Scratch w_room(room_for(w, 1, true)), t_room(room_for(table, sizeof(float), false)),
        b_room(room_for(b, sizeof(float), false));
    if (!w_room.as<void>() || !t_room.as<void>() || !b_room.as<void>()) return no_memory();
    Lut p;
    p.w = dense<uint8_t>(w, w_room), p.table = dense<float>(table, t_room);
    p.bits = c.attr[0].i, p.group = c.attr[1].i, p.bytes = w.shape[1];
    const int64_t in = x.shape[x.ndim - 1], own = table.ndim == 1 || (table.ndim == 3 && table.shape[0] == 1);
    p.tables_per_row = p.group ? ceil_div(in, p.group) : 1;
    p.row_tables = own && w.shape[0] != 1 ? 0 : p.tables_per_row << p.bits;
    const float* const bias = dense<float>(b, b_room);
    return run_layer(x, y, c.attr[2], [&](const float* rows, int64_t m, float* to, Activation activation) {
        Gemm<float> g = gemm_of(rows, m, in, w.shape[0], to, activation);
        g.bias_col = bias;
        g.pack_b = lut_panel, g.context = &p;
        return gemm(g);
    });
}

constexpr Operand kInt4[] = {{"x"}, {"w"}, {"scales"}, {"zeros", Role::optional}, {"b", Role::optional}};
constexpr Operand kLut[] = {{"x"}, {"w"}, {"table"}, {"b", Role::optional}};
#define TW_ACTIVATION {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true}
constexpr AttrSpec kInt4Attrs[] = {{.name = "group", .kind = AttrKind::integer, .i = 32}, TW_ACTIVATION};
constexpr AttrSpec kLutAttrs[] = {{.name = "bits", .kind = AttrKind::integer, .required = true},
                                  {.name = "group", .kind = AttrKind::integer},
                                  TW_ACTIVATION};
#undef TW_ACTIVATION

}  // namespace

extern const OpDef op_linear_int4 = {"linear_int4", kInt4, 5, kInt4Attrs, 2, infer_int4, run_int4};
extern const OpDef op_linear_lut = {"linear_lut", kLut, 4, kLutAttrs, 3, infer_lut, run_lut};

}  // namespace tw::TW_ISA
