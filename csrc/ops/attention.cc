// Attention: y = softmax(scale q k^T + mask) v for each head; heads of q share those of k and v in equal groups.
//
// Method    k^T and v are packed into panels once per key head. A tile of queries passes over tiles of keys: products by
//           the register tile of the GEMM, exponentials under a running maximum, products with v. Tiles that nobody
//           sees are skipped, and so are panels and terms at their edges. A few queries against many keys: shares of the
//           keys, each read once where it lies, joined in order. O(T + S) memory.
// Numerics  scores and sums in the wide type; 16-bit results rounded once. Powers below exp(-87) are 0.
// Threads   tiles of queries, or shares of keys: what one does depends on the shapes alone.
// Source    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention",
//           2022; Dao et al., "Flash-Decoding for long-context inference", 2023.
#include "gemm/micro.h"
#include "ops/attention_problem.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileKeys = 256;
constexpr int64_t kShortDepth = 96;  // up to which a tile has kLongTile queries
constexpr int64_t kLongTile = 96, kShortTile = 48;
constexpr int64_t kFewRows = 8;  // of queries that share a key head: too few for packing to pay
constexpr int64_t kFewQueries = 2;  // too few rows for a tile of one head
constexpr int64_t kPackedBytes = 8 << 20;  // of key heads packed at a time

struct Result {
    View y, lse, sinks;  // lse: dtype none if not asked for; sinks (H,): if not given
};

// exp(x) for x <= 0. Where a NaN took part x is anything, and so is the result.
TW_INLINE f32v power(f32v x) {
    const Exponential e = exp_parts(at_least(x, -87.f));
    const u32v significand = bitcast<u32v>(fma_once(e.r, e.slope, splat(1.f)));
    return select(x < -87.f, f32v{}, bitcast<f32v>(significand + (bitcast<u32v>(to_i32(e.n)) << 23)));
}
TW_INLINE f64v power(f64v x) { return exp(x); }

// What a row of scores has come to: the sum of exp(score - top).
template <class W>
struct Running {
    W top, sum;
};

// s[0, n) becomes exp(s - top), 0 outside `seen`. Returns the factor by which the new top shrinks what was there.
template <class T>
TW_INLINE Wide<T> soften(const Attention& a, const Added<Wide<T>>& add, Wide<T>* s, Span seen, int64_t n,
                         Running<Wide<T>>& row) {
    typedef Wide<T> W;
    constexpr int64_t L = kLanes<W>;
    const W lowest = -static_cast<W>(kInf);
    W* const from = s + seen.begin;
    const int64_t count = seen.end - seen.begin;
    if (a.softcap > 0 || add.any()) {
        const W cap = static_cast<W>(a.softcap), inverse = static_cast<W>(1 / a.softcap);
        each_vector<W>(count, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
            Vec<W> v = take(from, 1, j, lanes);
            if (a.softcap > 0) v = tanh(v * inverse) * cap;
            v = with_added<T>(a, add, seen.begin + j, lanes, v);
            put(from, 1, j, lanes, v);
        });
    }
    Vec<W> m0 = splat(row.top), m1 = m0, m2 = m0, m3 = m0;
    int64_t j = 0;
    for (; j + 4 * L <= count; j += 4 * L) {
        m0 = max_any(load(from + j), m0), m1 = max_any(load(from + j + L), m1);
        m2 = max_any(load(from + j + 2 * L), m2), m3 = max_any(load(from + j + 3 * L), m3);
    }
    for (; j + L <= count; j += L) m0 = max_any(load(from + j), m0);
    if (j < count) m1 = max_any(first_lanes<W>(load_n(from + j, count - j), splat(lowest), count - j), m1);
    const W top = Max::lanes(max_any(max_any(m0, m1), max_any(m2, m3)));
    // A NaN that the maximum lost comes back in the sum; nothing but -Inf leaves a sum of 0.
    const Vec<W> base = splat(top == lowest ? W{0} : top);
    Vec<W> s0{}, s1{};
    for (j = 0; j + 2 * L <= count; j += 2 * L) {
        const Vec<W> p0 = power(load(from + j) - base), p1 = power(load(from + j + L) - base);
        store(from + j, p0), store(from + j + L, p1);
        s0 += p0, s1 += p1;
    }
    for (; j < count; j += L) {
        const int64_t lanes = min_of(L, count - j);
        const Vec<W> p = power(take(from, 1, j, lanes) - base);
        put(from, 1, j, lanes, p);
        s0 += lanes == L ? p : first_lanes<W>(p, Vec<W>{}, lanes);
    }
    if (count < n) {
        __builtin_memset(s, 0, static_cast<size_t>(seen.begin) * sizeof(W));
        __builtin_memset(s + seen.end, 0, static_cast<size_t>(n - seen.end) * sizeof(W));
    }
    const W factor = row.top == top ? W{1} : power(splat(row.top) - base)[0];
    row.sum = row.sum * factor + reduce_add(s0 + s1);
    row.top = top;
    return factor;
}

// Weights of a tile of keys that the draws drop become 0, the others grow by as much on average.
template <class W>
TW_INLINE void drop(const Attention& a, int64_t b, int64_t h, int64_t t, int64_t s0, int64_t n, W* weights) {
    W factors[kTileKeys];
    draw_row(a, b, h, t, s0, n, factors);
    each_vector<W>(n, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
        put(weights, 1, j, lanes, take(weights, 1, j, lanes) * take(factors, 1, j, lanes));
    });
}

// Before any key: nothing, or the sink of the head, whose weight goes nowhere.
template <class T>
TW_INLINE Running<Wide<T>> started(const Result& r, int64_t h) {
    typedef Wide<T> W;
    const W lowest = -static_cast<W>(kInf),
            sink = given(r.sinks) ? widened(r.sinks.as<const T>()[h * r.sinks.stride[0]]) : lowest;
    return {sink, sink == lowest ? W{0} : W{1}};
}

template <class W>
TW_INLINE void shrink(W* row, int64_t n, W factor) {
    for (int64_t i = 0; i < n; i += kLanes<W>) store(row + i, load(row + i) * factor);
}

// y and lse of one query from its sums.
template <class T>
TW_INLINE void finish(const Result& r, int64_t b, int64_t h, int64_t t, int64_t width, const Wide<T>* sums,
                      Running<Wide<T>> row) {
    typedef Wide<T> W;
    const Vec<W> total = splat(row.sum == 0 ? W{1} : row.sum);
    T* y = r.y.as<T>() + b * r.y.stride[0] + h * r.y.stride[1] + t * r.y.stride[2];
    each_vector<T>(width, [&](int64_t i, int64_t n)
                              __attribute__((always_inline)) { put(y, r.y.stride[3], i, n, load(sums + i) / total); });
    if (given(r.lse))
        r.lse.as<W>()[b * r.lse.stride[0] + h * r.lse.stride[1] + t * r.lse.stride[2]] =
            row.top + static_cast<W>(__builtin_log(static_cast<double>(row.sum)));
}

// ---- many queries -----------------------------------------------------------------------------------------------------------

// One key head: k^T as [panel of keys][depth][NR], v as [panel of columns][keys][NR].
template <class W>
struct Packed {
    W *k, *v;
};

template <class W>
TW_INLINE int64_t packed_k(const Attention& a) {
    constexpr int64_t NR = Blocking<W>::NR;
    return ceil_div(a.keys, NR) * NR * a.depth;
}
template <class W>
TW_INLINE int64_t packed_v(const Attention& a) {
    constexpr int64_t NR = Blocking<W>::NR;
    return ceil_div(a.width, NR) * NR * a.keys;
}

template <class T>
void pack_keys(const Attention& a, int64_t b, int64_t head, int64_t s0, int64_t n, const Packed<Wide<T>>& to) {
    typedef Wide<T> W;
    constexpr int64_t NR = Blocking<W>::NR;
    const Matrix<T> k = {a.k.as<T>() + b * a.k.stride[0] + head * a.k.stride[1], a.k.stride[3], a.k.stride[2]};
    const Matrix<T> v = {a.v.as<T>() + b * a.v.stride[0] + head * a.v.stride[1], a.v.stride[2], a.v.stride[3]};
    if (a.depth)
        for (int64_t j = 0; j < n; j += NR)
            pack_panel(k, 0, a.depth, s0 + j, min_of(NR, n - j), to.k + (s0 + j) * a.depth);
    for (int64_t i = 0; i < a.width; i += NR)
        pack_panel(v, s0, n, i, min_of(NR, a.width - i), to.v + i * a.keys + s0 * NR);
}

template <class T>
bool attend_tile(const Attention& a, const Result& r, int64_t b, int64_t h, int64_t t0, int64_t rows,
                 const Packed<Wide<T>>& packed) {
    typedef Wide<T> W;
    constexpr int64_t NR = Blocking<W>::NR;
    const int64_t depth = padded<W>(a.depth), width = padded<W>(a.width), length = length_of(a, b);
    Scratch scratch(static_cast<size_t>(rows * (depth + kTileKeys + width)) * sizeof(W) +
                    static_cast<size_t>(rows) * sizeof(Running<W>));
    W* const q = scratch.as<W>();
    if (!q) return false;
    W *const scores = q + rows * depth, *const sums = scores + rows * kTileKeys;
    Running<W>* const running = reinterpret_cast<Running<W>*>(sums + rows * width);
    copy_rows(a.q.as<T>() + b * a.q.stride[0] + h * a.q.stride[1] + t0 * a.q.stride[2], a.q.stride[2], a.q.stride[3],
              rows, a.depth, static_cast<W>(a.scale), q);
    __builtin_memset(sums, 0, static_cast<size_t>(rows * width) * sizeof(W));
    for (int64_t i = 0; i < rows; ++i) running[i] = started<T>(r, h);
    const int64_t begin = keys_seen(a, length, t0).begin, end = keys_seen(a, length, t0 + rows - 1).end;
    for (int64_t s0 = begin / kTileKeys * kTileKeys; s0 < end; s0 += kTileKeys) {
        const int64_t n = min_of(kTileKeys, end - s0);
        if (all_masked(a, b, h, t0, rows, s0, n)) continue;
        score_tile(a, length, t0, rows, s0, n, q, depth, a.depth, packed.k + s0 * a.depth, scores, kTileKeys);
        bool whole = true;
        for (int64_t i = 0; i < rows; ++i) {
            const Span seen = within(keys_seen(a, length, t0 + i), s0, n);
            W* const own = scores + i * kTileKeys;
            const W factor = soften<T>(a, added_at<T>(a, b, h, t0 + i, s0), own, seen, n, running[i]);
            if (!(factor == 1)) shrink(sums + i * width, width, factor);
            if (a.limit) drop(a, b, h, t0 + i, s0, n, own);
            whole &= seen.end - seen.begin == n;
        }
        add_product(Left<W>{scores, kTileKeys, 1}, Right<W>{packed.v + s0 * NR, NR, a.keys * NR}, sums, width, rows,
                    a.width, n, whole, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
            const Span first = within(keys_seen(a, length, t0 + i), s0, n);
            const Span last = within(keys_seen(a, length, t0 + i + count - 1), s0, n);
            return Span{first.begin, max_of(first.begin, last.end)};
        });
    }
    for (int64_t i = 0; i < rows; ++i) finish<T>(r, b, h, t0 + i, a.width, sums + i * width, running[i]);
    return true;
}

template <class T>
bool attend_tiles(const Attention& a, const Result& r) {
    typedef Wide<T> W;
    const int64_t of_k = packed_k<W>(a), of_v = packed_v<W>(a), each = (of_k + of_v + 64) / 64 * 64;
    const int64_t count = a.batch * a.kv_heads;
    const int64_t together = min_of(count, max_of(1, kPackedBytes / (each * static_cast<int64_t>(sizeof(W)))));
    const int64_t tall = max_of(a.depth, a.width) <= kShortDepth ? kLongTile : kShortTile;
    const int64_t tiles = ceil_div(a.queries, tall), shares = ceil_div(a.keys, kTileKeys);
    Scratch scratch(static_cast<size_t>(together * each) * sizeof(W));
    if (!scratch.as<W>()) return false;
    bool enough = true;
    note_kernel("tiles of queries");
    for (int64_t first = 0; first < count; first += together) {
        const int64_t heads = min_of(together, count - first);
        const auto packed = [&](int64_t i) {
            W* const at = scratch.as<W>() + i * each;
            return Packed<W>{at, at + of_k};
        };
        parallel(heads * shares, [&](int64_t job) {
            const int64_t i = job / shares, b = (first + i) / a.kv_heads, s0 = job % shares * kTileKeys;
            const int64_t n = min_of(kTileKeys, length_of(a, b) - s0);
            if (n > 0) pack_keys<T>(a, b, (first + i) % a.kv_heads, s0, n, packed(i));
        });
        parallel(heads * a.group * tiles, [&](int64_t job) {
            const int64_t i = job / tiles / a.group, b = (first + i) / a.kv_heads;
            const int64_t h = (first + i) % a.kv_heads * a.group + job / tiles % a.group, t0 = job % tiles * tall;
            if (!attend_tile<T>(a, r, b, h, t0, min_of(tall, a.queries - t0), packed(i)))
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
        if (!enough || interrupted()) break;
    }
    return enough;
}

// ---- few queries ------------------------------------------------------------------------------------------------------------

// Rows [s0, s0 + n) of k or v of one head, n of them one below the other: where they lie, or gathered.
template <class T>
TW_INLINE Matrix<T> rows_of(const View& x, int64_t b, int64_t head, int64_t s0, int64_t n, T* buffer) {
    const T* at = x.as<T>() + b * x.stride[0] + head * x.stride[1] + s0 * x.stride[2];
    const int64_t columns = x.shape[3];
    if (x.stride[3] == 1 || columns <= 1) return {at, x.stride[2], 1};
    gather_block(buffer, at, x.stride[2], x.stride[3], n, columns);
    return {buffer, columns, 1};
}

constexpr int64_t kKeysAhead = 16;  // of k and v that are fetched early: they are read once, from memory

template <class T>
TW_INLINE void fetch_rows(const Matrix<T>& x, int64_t first, int64_t rows, int64_t n, int64_t columns) {
    for (int64_t r = first; r < min_of(first + rows, n); ++r)
        for (int64_t i = 0; i < columns; i += 64 / static_cast<int64_t>(sizeof(T)))
            __builtin_prefetch(x.data + r * x.row + i);
}

// scores[r][j] = key j times query r, for as many keys as fit a register tile at a time.
template <class T, int R>
TW_INLINE void score_rows(const Matrix<T>& k, int64_t n, int64_t depth, const Wide<T>* q, int64_t q_row,
                          Wide<T>* scores, bool fetch) {
    typedef Wide<T> W;
    constexpr int M = R == 1 ? 6 : R == 2 ? 4 : 2;
    W sums[M * R];
    int64_t j = 0;
    for (; j + M <= n; j += M) {
        if (fetch) fetch_rows(k, j + kKeysAhead, M, n, depth);
        dots<W, M, R>(k.data + j * k.row, k.row, q, q_row, depth, sums);
        for (int i = 0; i < M; ++i)
            for (int r = 0; r < R; ++r) scores[r * kTileKeys + j + i] = sums[i * R + r];
    }
    for (; j < n; ++j) {
        dots<W, 1, R>(k.data + j * k.row, k.row, q, q_row, depth, sums);
        for (int r = 0; r < R; ++r) scores[r * kTileKeys + j] = sums[r];
    }
}

// sums[r] += the n rows of v, weighted; four at a time, so that sums are fetched a quarter as often.
template <class T>
TW_INLINE void add_rows(const Matrix<T>& v, int64_t n, int64_t columns, const Wide<T>* weights, int64_t rows,
                        Wide<T>* sums, int64_t sums_row) {
    typedef Wide<T> W;
    for (int64_t j = 0; j < n; j += 4) {
        const int64_t some = min_of(4, n - j);
        fetch_rows(v, j + kKeysAhead, 4, n, columns);
        const T* at[4];
        for (int64_t i = 0; i < 4; ++i) at[i] = v.data + (j + min_of(i, some - 1)) * v.row;
        each_vector<T>(columns, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> v0 = take(at[0], 1, i, lanes), v1 = take(at[1], 1, i, lanes);
            const Vec<W> v2 = take(at[2], 1, i, lanes), v3 = take(at[3], 1, i, lanes);
            for (int64_t r = 0; r < rows; ++r) {
                const W* w = weights + r * kTileKeys + j;
                Vec<W> s = load(sums + r * sums_row + i) + w[0] * v0;
                if (some > 1) s += w[1] * v1;
                if (some > 2) s += w[2] * v2;
                if (some > 3) s += w[3] * v3;
                store(sums + r * sums_row + i, s);
            }
        });
    }
}

// The queries of all heads of a group against one share of the keys. Row i is query i % T of head i / T.
template <class T>
bool attend_share(const Attention& a, const Result& r, int64_t b, int64_t head, int64_t s0, Wide<T>* sums,
                  Running<Wide<T>>* running) {
    typedef Wide<T> W;
    const int64_t rows = a.group * a.queries, depth = padded<W>(a.depth), width = padded<W>(a.width);
    const int64_t length = length_of(a, b);
    __builtin_memset(sums, 0, static_cast<size_t>(rows * width) * sizeof(W));
    for (int64_t i = 0; i < rows; ++i)
        running[i] = s0 ? Running<W>{-static_cast<W>(kInf), 0} : started<T>(r, head * a.group + i / a.queries);
    const Span all = within({keys_seen(a, length, 0).begin, keys_seen(a, length, a.queries - 1).end}, s0, kTileKeys);
    const int64_t n = all.end - all.begin, first = s0 + all.begin;
    if (n == 0) return true;
    const bool gather_k = a.k.stride[3] != 1, gather_v = a.v.stride[3] != 1;
    Scratch scratch(static_cast<size_t>(rows * (depth + kTileKeys)) * sizeof(W) +
                    static_cast<size_t>(n * ((gather_k ? a.depth : 0) + (gather_v ? a.width : 0))) * sizeof(T));
    W* const q = scratch.as<W>();
    if (!q) return false;
    W* const scores = q + rows * depth;
    T* const k_buffer = reinterpret_cast<T*>(scores + rows * kTileKeys);
    for (int64_t g = 0; g < a.group; ++g)
        copy_rows(a.q.as<T>() + b * a.q.stride[0] + (head * a.group + g) * a.q.stride[1], a.q.stride[2], a.q.stride[3],
                  a.queries, a.depth, static_cast<W>(a.scale), q + g * a.queries * depth);
    const Matrix<T> k = rows_of(a.k, b, head, first, n, k_buffer);
    const Matrix<T> v = rows_of(a.v, b, head, first, n, k_buffer + (gather_k ? n * a.depth : 0));
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) score_rows<T, 4>(k, n, a.depth, q + i * depth, depth, scores + i * kTileKeys, i == 0);
    for (; i + 2 <= rows; i += 2) score_rows<T, 2>(k, n, a.depth, q + i * depth, depth, scores + i * kTileKeys, i == 0);
    for (; i < rows; ++i) score_rows<T, 1>(k, n, a.depth, q + i * depth, depth, scores + i * kTileKeys, i == 0);
    for (i = 0; i < rows; ++i) {
        const int64_t t = i % a.queries, h = head * a.group + i / a.queries;
        W* const own = scores + i * kTileKeys;
        soften<T>(a, added_at<T>(a, b, h, t, first), own, within(keys_seen(a, length, t), first, n), n, running[i]);
        if (a.limit) drop(a, b, h, t, first, n, own);
    }
    add_rows(v, n, a.width, scores, rows, sums, width);
    return true;
}

template <class T>
bool attend_few(const Attention& a, const Result& r) {
    typedef Wide<T> W;
    const int64_t rows = a.group * a.queries, width = padded<W>(a.width);
    const int64_t shares = max_of(1, ceil_div(a.keys, kTileKeys)), heads = a.batch * a.kv_heads;
    Scratch scratch(static_cast<size_t>(heads * shares * rows) *
                    (static_cast<size_t>(width) * sizeof(W) + sizeof(Running<W>)));
    W* const sums = scratch.as<W>();
    if (!sums) return false;
    Running<W>* const running = reinterpret_cast<Running<W>*>(sums + heads * shares * rows * width);
    bool enough = true;
    note_kernel("shares of keys");
    parallel(heads * shares, [&](int64_t job) {
        const int64_t i = job / shares;
        if (!attend_share<T>(a, r, i / a.kv_heads, i % a.kv_heads, job % shares * kTileKeys, sums + job * rows * width,
                             running + job * rows))
            __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    });
    if (!enough) return false;
    parallel(heads, [&](int64_t i) {
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = i * shares * rows + row;
            W* const sum = sums + at * width;
            Running<W> all = running[at];
            for (int64_t s = 1; s < shares; ++s) {
                const Running<W> one = running[at + s * rows];
                const W* const other = sum + s * rows * width;
                if (one.sum == 0) continue;
                const W top = all.top > one.top ? all.top : one.top;
                const Vec<W> base = splat(top == -static_cast<W>(kInf) ? W{0} : top);
                const W mine = power(splat(all.top) - base)[0], its = power(splat(one.top) - base)[0];
                all = {top, all.sum * mine + one.sum * its};
                for (int64_t j = 0; j < width; j += kLanes<W>)
                    store(sum + j, load(sum + j) * mine + load(other + j) * its);
            }
            finish<T>(r, i / a.kv_heads, i % a.kv_heads * a.group + row / a.queries, row % a.queries, a.width, sum,
                      all);
        }
    });
    return true;
}

Status infer(Call& c, Inferred& r) {
    const View &q = c.in[0], &v = c.in[2];
    TW_TRY(check_attention(q, c.in[1], v, c.in[3], c.in[4], c.in[5], c.attr));
    if (given(c.in[6])) {
        TW_TRY(want_dtype_of(c.in[6], "sinks", q, "q"));
        TW_TRY(want_shape(c.in[6], "sinks", 1, q.shape + 1));
    }
    r.n_out = 1;
    r.out[0] = result(q.dtype, 4, q.shape);
    r.out[0].shape[3] = v.shape[3];
    if (c.attr[kReturnLse].i) r.out[r.n_out++] = result(q.dtype == DType::f64 ? DType::f64 : DType::f32, 3, q.shape);
    r.flops = 2.0 * static_cast<double>(numel(q) / (q.shape[3] ? q.shape[3] : 1)) * static_cast<double>(v.shape[2]) *
              static_cast<double>(q.shape[3] + v.shape[3]) / (c.attr[kCausal].i ? 2 : 1);
    return Status::ok;
}

Status run(const Call& c) {
    Scratch lengths(static_cast<size_t>(c.in[0].shape[0]) * sizeof(int64_t));
    if (!lengths.as<int64_t>()) return no_memory();
    const bool some = given(c.in[4]);
    if (some) TW_TRY(check_lengths(c.in[4], c.in[1].shape[2], lengths.as<int64_t>()));
    const Attention a =
        attention_of(c.in[0], c.in[1], c.in[2], c.in[3], c.in[5], some ? lengths.as<int64_t>() : nullptr, c.attr);
    Result r{c.out[0], {}, c.in[6]};
    r.lse.dtype = DType::none;
    if (c.n_out > 1) r.lse = c.out[1];
    if (a.batch * a.heads * a.queries == 0) return Status::ok;
    const bool few = a.group * a.queries <= kFewRows || a.queries <= kFewQueries;
    const bool enough =
        for_floating(a.q.dtype, [&]<class T>() { return few ? attend_few<T>(a, r) : attend_tiles<T>(a, r); });
    return enough ? Status::ok : no_memory();
}

constexpr Operand kOperands[] = {{"q"},
                                 {"k"},
                                 {"v"},
                                 {"mask", Role::optional},
                                 {"lengths", Role::optional},
                                 {"alibi", Role::optional},
                                 {"sinks", Role::optional}};
constexpr AttrSpec kAttrs[] = {TW_ATTENTION_ATTRS, {.name = "return_lse", .kind = AttrKind::boolean}};

}  // namespace

extern const OpDef op_attention = {"attention", kOperands, TW_COUNT(kOperands), kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
