// What the attention kernels share: the call, who sees whom, masks, and products of tiles.
#pragma once
#include "core/check.h"
#include "core/walk.h"
#include "gemm/ahead.h"
#include "gemm/gemm.h"
#include "gemm/pack.h"
#include "ops/ops.h"
#include "simd/philox.h"
#include "simd/rows.h"

#define TW_ATTENTION_ATTRS                                                                                            \
    {.name = "causal", .kind = AttrKind::boolean}, {.name = "scale", .kind = AttrKind::real, .none_ok = true},        \
        {.name = "window", .kind = AttrKind::integers, .none_ok = true}, {.name = "softcap", .kind = AttrKind::real}, \
        {.name = "dropout", .kind = AttrKind::real}, {.name = "seed", .kind = AttrKind::integer, .none_ok = true}, {  \
        .name = "offset", .kind = AttrKind::integer                                                                   \
    }

namespace tw::TW_ISA {
namespace {

enum AttentionAttribute { kCausal, kScale, kWindow, kSoftcap, kDropout, kSeed, kOffset, kReturnLse };

struct Attention {
    View q, k, v, mask;  // mask: dtype none where there is none
    int64_t batch, heads, kv_heads, group, queries, keys, depth, width;
    int64_t mask_stride[4];  // along (B, H, T, S): 0 where the mask repeats
    const int64_t* lengths;  // keys that count in each sequence; null: all
    bool causal, windowed;
    int64_t left, right;
    double scale, softcap;
    View alibi;  // slopes (H,); dtype none where there are none
    double kept;  // 1 / (1 - dropout), the factor of weights that are not dropped
    uint64_t limit, seed, offset;  // words of philox below limit drop a weight
};

// ---- shapes -----------------------------------------------------------------------------------------------------------------

// How scores are made: 1 / sqrt(D) for a scale of None, a window as a pair.
Status check_scores(const View& q, Attr& scale, const Attr& softcap, Attr& window) {
    constexpr double most = 0x1p64;
    if (scale.is_none) {
        scale.is_none = false;
        scale.f = q.shape[3] ? 1 / __builtin_sqrt(static_cast<double>(q.shape[3])) : 1;
    }
    if (!(scale.f > -most && scale.f < most))
        return fail(Status::attr, "scale", "scale=%g; want a number between -2^64 and 2^64", scale.f);
    const double cap = softcap.f;
    if (!(cap == 0 || (cap > 1 / most && cap < most)))
        return fail(Status::attr, "softcap", "softcap=%g; want 0 for none, or a number between 2^-64 and 2^64", cap);
    if (!window.is_none) TW_TRY(resolve_integers(window, "window", 2, 0));
    return Status::ok;
}

// q (B, H, T, D), k (B, Hkv, S, D), v (B, Hkv, S, Dv), mask and lengths, and the attributes.
inline Status check_attention(const View& q, const View& k, const View& v, const View& mask, const View& lengths,
                              const View& alibi, Attr* attr) {
    const auto ll = [](int64_t n) { return static_cast<long long>(n); };
    TW_TRY(want_floating(q, "q"));
    TW_TRY(want_dtype_of(k, "k", q, "q"));
    TW_TRY(want_dtype_of(v, "v", q, "q"));
    TW_TRY(want_ndim(q, "q", 4, 4));
    TW_TRY(want_ndim(k, "k", 4, 4));
    TW_TRY(want_ndim(v, "v", 4, 4));
    const int64_t heads = q.shape[1], kv_heads = k.shape[1];
    if (k.shape[0] != q.shape[0] || k.shape[3] != q.shape[3])
        return fail(Status::shape, "k", "k has shape %s but q has %s; want k (B, Hkv, S, D) with B=%lld and D=%lld",
                    shape_text(k).text, shape_text(q).text, ll(q.shape[0]), ll(q.shape[3]));
    if (kv_heads == 0 ? heads != 0 : heads % kv_heads != 0)
        return fail(Status::shape, "k", "q has H=%lld heads but k has %lld; want a divisor of H", ll(heads),
                    ll(kv_heads));
    if (v.shape[0] != k.shape[0] || v.shape[1] != kv_heads || v.shape[2] != k.shape[2])
        return fail(Status::shape, "v", "v has shape %s but k has %s; want v (B, Hkv, S, Dv) with B, Hkv and S of k",
                    shape_text(v).text, shape_text(k).text);
    if (given(mask)) {
        if (mask.dtype != DType::boolean && mask.dtype != q.dtype)
            return fail(Status::dtype, "mask", "mask has dtype %s; want bool or %s, the dtype of q",
                        name_of(mask.dtype), name_of(q.dtype));
        TW_TRY(want_ndim(mask, "mask", 0, 4));
        const int64_t full[] = {q.shape[0], heads, q.shape[2], k.shape[2]};
        for (int d = 0; d < mask.ndim; ++d) {
            const int64_t size = mask.shape[d], wanted = full[4 - mask.ndim + d];
            if (size != 1 && size != wanted)
                return fail(Status::shape, "mask", "mask has shape %s; want one that broadcasts to %s",
                            shape_text(mask).text, shape_text(4, full).text);
        }
    }
    if (given(lengths)) {
        if (lengths.dtype != DType::i32 && lengths.dtype != DType::i64)
            return fail(Status::dtype, "lengths", "lengths has dtype %s; want int32 or int64", name_of(lengths.dtype));
        TW_TRY(want_shape(lengths, "lengths", 1, q.shape));
    }
    if (given(alibi)) {
        TW_TRY(want_dtype_of(alibi, "alibi", q, "q"));
        TW_TRY(want_shape(alibi, "alibi", 1, q.shape + 1));
    }
    if (!(attr[kDropout].f >= 0 && attr[kDropout].f < 1))
        return fail(Status::attr, "dropout", "dropout=%g; want a probability, 0 or more and below 1", attr[kDropout].f);
    if (attr[kSeed].is_none) {
        if (attr[kDropout].f > 0)
            return fail(Status::attr, "seed", "seed is None with dropout=%g; want a number", attr[kDropout].f);
        attr[kSeed].is_none = false, attr[kSeed].i = 0;
    }
    for (int i = kSeed; i <= kOffset; ++i)
        if (attr[i].i < 0) {
            const char* name = i == kSeed ? "seed" : "offset";
            return fail(Status::attr, name, "%s=%lld; want 0 or more", name, ll(attr[i].i));
        }
    return check_scores(q, attr[kScale], attr[kSoftcap], attr[kWindow]);
}

inline Attention attention_of(const View& q, const View& k, const View& v, const View& mask, const View& alibi,
                              const int64_t* lengths, const Attr* attr) {
    Attention a{};
    a.q = q, a.k = k, a.v = v, a.mask = mask;
    a.batch = q.shape[0], a.heads = q.shape[1], a.queries = q.shape[2], a.depth = q.shape[3];
    a.kv_heads = k.shape[1], a.keys = k.shape[2], a.width = v.shape[3];
    a.group = a.kv_heads ? a.heads / a.kv_heads : 1;
    if (given(mask))
        for (int d = 0; d < mask.ndim; ++d) a.mask_stride[4 - mask.ndim + d] = mask.shape[d] == 1 ? 0 : mask.stride[d];
    a.lengths = lengths;
    a.causal = attr[kCausal].i != 0;
    a.windowed = !attr[kWindow].is_none;
    if (a.windowed) a.left = attr[kWindow].list[0], a.right = attr[kWindow].list[1];
    a.scale = attr[kScale].f, a.softcap = attr[kSoftcap].f;
    a.alibi = alibi;
    a.kept = 1 / (1 - attr[kDropout].f);
    a.limit = static_cast<uint64_t>(attr[kDropout].f * 0x1p32);
    a.seed = static_cast<uint64_t>(attr[kSeed].i), a.offset = static_cast<uint64_t>(attr[kOffset].i);
    return a;
}

// to[b] = lengths[b]; an IndexError names the first that is not a number of keys.
inline Status check_lengths(const View& lengths, int64_t keys, int64_t* to) {
    for (int64_t b = 0; b < lengths.shape[0]; ++b) {
        const int64_t at = b * lengths.stride[0];
        to[b] = lengths.dtype == DType::i32 ? lengths.as<int32_t>()[at] : lengths.as<int64_t>()[at];
        if (to[b] < 0 || to[b] > keys)
            return fail(Status::index, "lengths", "lengths has %lld at position %lld; want 0 to S=%lld",
                        static_cast<long long>(to[b]), static_cast<long long>(b), static_cast<long long>(keys));
    }
    return Status::ok;
}

TW_INLINE Status no_memory() {
    return fail(Status::memory, "", "no memory for the tiles of q, k and v; want less of them");
}

// ---- who sees whom, the mask aside ------------------------------------------------------------------------------------------

struct Span {
    int64_t begin, end;
};

TW_INLINE int64_t length_of(const Attention& a, int64_t b) { return a.lengths ? a.lengths[b] : a.keys; }

// Keys that query t sees: the last query stands at the last key that counts.
TW_INLINE Span keys_seen(const Attention& a, int64_t length, int64_t t) {
    const int64_t at = t + length - a.queries;
    Span s = {0, length};
    if (a.causal) s.end = min_of(s.end, at + 1);
    if (a.windowed) s = {max_of(s.begin, at - a.left), min_of(s.end, at + a.right + 1)};
    return {s.begin, max_of(s.begin, s.end)};
}
// Queries that see any of the keys of `keys`.
TW_INLINE Span queries_seeing(const Attention& a, int64_t length, Span keys) {
    const int64_t shift = length - a.queries;
    Span s = {0, a.queries};
    if (a.causal) s.begin = max_of(s.begin, keys.begin - shift);
    if (a.windowed) s = {max_of(s.begin, keys.begin - a.right - shift), min_of(s.end, keys.end + a.left - shift)};
    return {s.begin, max_of(s.begin, s.end)};
}
// The part of a span in [first, first + n), counted from first.
TW_INLINE Span within(Span s, int64_t first, int64_t n) {
    const int64_t begin = min_of(max_of(s.begin - first, 0), n);
    return {begin, min_of(max_of(s.end - first, begin), n)};
}

// Scores of whole vectors of n keys become -Inf outside a span.
TW_INLINE void hide_unseen(float* s, Span seen, int64_t n) {
    constexpr int64_t L = kLanes<float>;
    for (int64_t j = 0; j < seen.begin; j += L) store_n(s + j, splat(-kInf), min_of(L, seen.begin - j));
    for (int64_t j = seen.end; j < n; j += L) store_n(s + j, splat(-kInf), min_of(L, n - j));
}

// ---- masks ------------------------------------------------------------------------------------------------------------------

TW_INLINE const char* mask_at(const Attention& a, int64_t b, int64_t h, int64_t t, int64_t s) {
    const int64_t* step = a.mask_stride;
    return a.mask.as<const char>() + (b * step[0] + h * step[1] + t * step[2] + s * step[3]) * item_size(a.mask.dtype);
}

// n lanes of scores from key j of a row on: -Inf where a boolean mask forbids, or plus an added one.
template <class T>
TW_INLINE Vec<Wide<T>> masked(const Attention& a, const char* row, int64_t j, int64_t n, Vec<Wide<T>> s) {
    typedef Wide<T> W;
    const int64_t step = a.mask_stride[3];
    if (a.mask.dtype != DType::boolean) return s + take(reinterpret_cast<const T*>(row), step, j, n);
    const uint8_t* keep = reinterpret_cast<const uint8_t*>(row);
    Vec<W> kept{};
    if constexpr (__is_same(W, float)) {
        if (step == 1)
            kept = n == kLanes<W> ? load_as<W>(keep + j) : load_as_n<W>(keep + j, n);
        else
            for (int64_t i = 0; i < n; ++i) kept[i] = keep[(j + i) * step];
    } else {
        for (int64_t i = 0; i < n; ++i) kept[i] = keep[(j + i) * step];
    }
    return select(kept != 0, s, splat(-static_cast<W>(kInf)));
}

// Whether a boolean mask forbids all of a tile.
TW_INLINE bool all_masked(const Attention& a, int64_t b, int64_t h, int64_t t0, int64_t rows, int64_t s0, int64_t n) {
    if (a.mask.dtype != DType::boolean) return false;
    const int64_t row = a.mask_stride[2], step = a.mask_stride[3];
    for (int64_t r = 0; r < (row ? rows : 1); ++r) {
        const char* at = mask_at(a, b, h, t0 + r, s0);
        int64_t j = 0;
        for (; step == 1 && j + 8 <= n; j += 8) {
            uint64_t eight;
            __builtin_memcpy(&eight, at + j, 8);
            if (eight) return false;
        }
        for (; j < (step ? n : 1); ++j)
            if (at[j * step]) return false;
    }
    return true;
}

// ---- what is added to scores, and weights that are dropped -----------------------------------------------------------------

// Of one query: its row of the mask (null: none), and a slope (0: none) times how far keys are from its place.
template <class W>
struct Added {
    const char* mask;
    W slope, ahead;  // ahead: the first key of the tile less the place of the query
    bool any() const { return mask || slope != 0; }
};

template <class T>
TW_INLINE Added<Wide<T>> added_at(const Attention& a, int64_t b, int64_t h, int64_t t, int64_t s0) {
    typedef Wide<T> W;
    const char* const mask = given(a.mask) ? mask_at(a, b, h, t, s0) : nullptr;
    if (!given(a.alibi)) return {mask, W{0}, W{0}};
    const int64_t place = t + length_of(a, b) - a.queries;
    return {mask, widened(a.alibi.as<const T>()[h * a.alibi.stride[0]]), static_cast<W>(s0 - place)};
}

// n lanes of scores from key j of the tile on, with what is added.
template <class T>
TW_INLINE Vec<Wide<T>> with_added(const Attention& a, const Added<Wide<T>>& add, int64_t j, int64_t n, Vec<Wide<T>> s) {
    typedef Wide<T> W;
    if (add.slope != 0) s -= add.slope * abs(iota<W>() + (add.ahead + static_cast<W>(j)));
    return add.mask ? masked<T>(a, add.mask, j, n, s) : s;
}

// Factors of the weights of n keys from s0 on for a query: 0 where a draw drops one, else 1 / (1 - dropout).
template <class W>
void draw_row(const Attention& a, int64_t b, int64_t h, int64_t t, int64_t s0, int64_t n, W* to) {
    const uint64_t first = static_cast<uint64_t>(((b * a.heads + h) * a.queries + t) * a.keys + s0);
    const W kept = static_cast<W>(a.kept);
    uint32_t words[4 * kCounters];
    for (int64_t i = 0; i < n;) {
        const uint64_t at = first + static_cast<uint64_t>(i);
        const int64_t skip = static_cast<int64_t>(at % 4), count = min_of(4 * kCounters - skip, n - i);
        philox(words, at / 4, a.offset, a.seed);
        for (int64_t k = 0; k < count; ++k) to[i + k] = words[skip + k] >= a.limit ? kept : W{0};
        i += count;
    }
}

// exp(x) for x <= 0, 0 below -87, where the parts may be anything. Where a NaN took part x is anything, and so is the result.
TW_INLINE f32v power(f32v x) {
    const Exponential e = exp_parts(x);
    const u32v significand = bitcast<u32v>(fma_once(e.r, e.slope, splat(1.f)));
    return select(x < -87.f, f32v{}, bitcast<f32v>(significand + (bitcast<u32v>(to_i32(e.n)) << 23)));
}
TW_INLINE f64v power(f64v x) { return exp(x); }

// ---- tiles ------------------------------------------------------------------------------------------------------------------

template <class W>
TW_INLINE int64_t padded(int64_t n) {
    return ceil_div(n, kLanes<W>) * kLanes<W>;
}

// Rows of x, scaled, as [rows][padded(n)].
template <class T>
void copy_rows(const T* x, int64_t row, int64_t step, int64_t rows, int64_t n, Wide<T> by, Wide<T>* to) {
    typedef Wide<T> W;
    for (int64_t r = 0; r < rows; ++r, x += row)
        for (int64_t i = 0; i < n; i += kLanes<W>, to += kLanes<W>)
            store(to, take(x, step, i, min_of(n - i, kLanes<W>)) * by);
}

// Columns [n0, n0 + n) of c = a times panels of b [panel][terms][NR]; only of rows that see the keys of a panel.
template <class W>
void score_tile(const Attention& p, int64_t length, int64_t t0, int64_t rows, int64_t s0, int64_t n, const W* a,
                int64_t a_row, int64_t terms, const W* panels, W* c, int64_t c_row) {
    constexpr int64_t NR = Blocking<W>::NR;
    for (int64_t j = 0; j < n; j += NR, panels += terms * NR) {
        const int64_t width = min_of(NR, n - j);
        const Span seen = within(queries_seeing(p, length, {s0 + j, s0 + j + width}), t0, rows);
        if (seen.begin == seen.end) continue;
        const int64_t first = seen.begin / kMR * kMR, rest = (seen.end - first) % kMR;
        Tile<W> t{};
        t.kc = terms, t.a_row = a_row, t.a_k = 1, t.a_tile = kMR * a_row, t.b = panels, t.b_k = NR, t.c_row = c_row;
        t.a = a + first * a_row, t.c = c + first * c_row + j;
        t.tiles = (seen.end - first) / kMR;
        if (t.tiles && j + NR < n) fetch_meanwhile(t, panels + terms * NR, terms * NR, t.tiles);
        if (t.tiles) run_tile(t, kMR, static_cast<int>(width));
        fetch_nothing(t);
        t.a += t.tiles * t.a_tile, t.c += t.tiles * kMR * c_row, t.tiles = 1;
        if (rest) run_tile(t, static_cast<int>(rest), static_cast<int>(width));
    }
}

template <class W>
struct Left {
    const W* data;
    int64_t row, term;
};
template <class W>
struct Right {
    const W* data;
    int64_t term, panel;  // distances of terms, and of panels of NR columns
};

// c += a b for m rows and n columns; rows [i, i + count) need the terms range(i, count) only, all of them if `whole`.
template <class W, class Range>
TW_INLINE void add_product(Left<W> a, Right<W> b, W* c, int64_t c_row, int64_t m, int64_t n, int64_t terms, bool whole,
                           const Range& range) {
    constexpr int64_t NR = Blocking<W>::NR;
    for (int64_t j = 0; j < n; j += NR, b.data += b.panel) {
        const int width = static_cast<int>(min_of(NR, n - j));
        Tile<W> t{};
        t.a_row = a.row, t.a_k = a.term, t.a_tile = kMR * a.row, t.b_k = b.term, t.c_row = c_row, t.load_c = true;
        int64_t i = 0;
        if (whole && m >= kMR) {
            t.kc = terms, t.a = a.data, t.b = b.data, t.c = c + j, t.tiles = m / kMR;
            if (b.term == NR && j + NR < n) fetch_meanwhile(t, b.data + b.panel, terms * NR, t.tiles);
            run_tile(t, kMR, width);
            fetch_nothing(t);
            i = t.tiles * kMR;
        }
        for (t.tiles = 1; i < m; i += kMR) {
            const int64_t count = min_of(kMR, m - i);
            const Span s = whole ? Span{0, terms} : range(i, count);
            if (s.begin == s.end) continue;
            t.kc = s.end - s.begin;
            t.a = a.data + i * a.row + s.begin * a.term, t.b = b.data + s.begin * b.term, t.c = c + i * c_row + j;
            run_tile(t, static_cast<int>(count), width);
        }
    }
}

}  // namespace
}  // namespace tw::TW_ISA
