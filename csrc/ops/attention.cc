// Attention: y = softmax(scale q k^T + mask) v for each head; heads of q share those of k and v in equal groups.
//
// Method    k^T and v are packed into panels once per key head. A tile of queries passes over tiles of keys: products by
//           the register tile of the GEMM, exponentials under a running maximum, products with v. Tiles that nobody
//           sees are skipped, and so are panels and terms at their edges. A few queries against many keys: shares of the
//           keys, each read once where it lies, joined in order. O(T + S) memory. A tier with tiles has those of 32
//           bits and less by them (attention_tiles.h) and leaves all else to the tier below.
// Numerics  scores and sums in the wide type; 16-bit results rounded once. Powers below exp(-87) are 0.
// Threads   tiles of queries, or shares of keys: what one does depends on the shapes alone.
// Source    Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao et al., "FlashAttention",
//           2022; Dao et al., "Flash-Decoding for long-context inference", 2023.
#include "ops/attention_keys.h"
#include "ops/attention_tiles.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kShortDepth = 96;  // up to which a tile has kLongTile queries
constexpr int64_t kLongTile = 96, kShortTile = 48;
constexpr int64_t kFewRows = 8;  // of queries that share a key head: too few for packing to pay
constexpr int64_t kFewQueries = 2;  // too few rows for a tile of one head

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
TW_INLINE Rows<T> rows_of(const View& x, int64_t b, int64_t head, int64_t s0, int64_t n, T* buffer) {
    const T* at = x.as<T>() + b * x.stride[0] + head * x.stride[1] + s0 * x.stride[2];
    const int64_t columns = x.shape[3];
    if (x.stride[3] == 1 || columns <= 1) return {at, x.stride[2]};
    gather_block(buffer, at, x.stride[2], x.stride[3], n, columns);
    return {buffer, columns};
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
    const Rows<T> k = rows_of(a.k, b, head, first, n, k_buffer);
    const Rows<T> v = rows_of(a.v, b, head, first, n, k_buffer + (gather_k ? n * a.depth : 0));
    score_all(k, n, a.depth, q, depth, rows, scores);
    for (int64_t j = 0; j < kValuesAhead; ++j) fetch_parts(v, kFour, n / kFour, j, a.width);
    for (int64_t i = 0; i < rows; ++i) {
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
            const Running<W> all = join_shares(sum, running + at, shares, rows, width);
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
#if defined(TW_TILES)
    return few || !pays_by_tiles(a) ? run_below(Tier::TW_ISA, c) : run_by_tiles(a, r, c);
#else
    const bool enough =
        for_floating(a.q.dtype, [&]<class T>() { return few ? attend_few<T>(a, r) : attend_tiles<T>(a, r); });
    return enough ? Status::ok : no_memory();
#endif
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

extern const Entry op_attention = {"attention", kOperands, TW_COUNT(kOperands), kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
