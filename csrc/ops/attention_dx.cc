// The gradients of attention. With p = exp(score - lse), at most 1, from the log of the sum that forward saved:
//     dv = p^T dy,  ds = p (dy v^T - sum(dy y)),  dq = scale ds k,  dk = scale ds^T q,  and ds of a mask that is added
//
// Method    tiles of keys outside, tiles of queries inside: dk and dv of a tile stay in cache, dq of the head is added to
//           as tiles of keys pass. Five products by the register tile of the GEMM. Where heads are few, shares of the
//           keys have sums for dq of their own, added in order. O(T + S) memory.
// Numerics  everything in the wide type; 16-bit gradients rounded once. Powers below exp(-87) are 0.
// Threads   shares of the keys of a key head, cut by shape alone; nothing is added to by two of them.
// Source    Dao et al., "FlashAttention", 2022, appendix B.
#include "ops/attention_problem.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileKeys = kNV == 4 ? 192 : 96;  // a multiple of register tiles either way round
constexpr int64_t kShortDepth = 96;  // up to which a tile has kLongTile queries
constexpr int64_t kLongTile = 96, kShortTile = 48;
constexpr int kReturnSlopes = kReturnLse;  // in the place of the one that forward has there
constexpr int64_t kShares = 16;  // of work in all, as far as there are keys

struct Gradient {
    View dy, y, lse, dq, dk, dv;
    View ds;  // slopes of what is added to scores, (B, H, T, S); dtype none if not asked for
};

// p and ds of one row, in place of its scores and of dy v^T; 0 outside `seen`. Factors, if not null, are those by which
// forward multiplied the weights. `ds`, if not null, gets ds as it is before the cap bends it.
template <class T>
TW_INLINE void slope_row(const Attention& a, const Added<Wide<T>>& add, const Wide<T>* factors, Wide<T>* scores,
                         Wide<T>* slopes, Span seen, int64_t n, Wide<T> lse, Wide<T> delta, Wide<T>* ds,
                         int64_t ds_step) {
    typedef Wide<T> W;
    const bool any_seen = lse != -static_cast<W>(kInf);
    if (!any_seen) seen.end = seen.begin;
    W *const s = scores + seen.begin, *const d = slopes + seen.begin;
    const bool plain = a.softcap == 0 && !add.any() && !factors && !ds;
    each_vector<W>(plain ? seen.end - seen.begin : 0, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
        const Vec<W> p = power(min_any(Vec<W>{}, take(s, 1, j, lanes) - lse));
        put(s, 1, j, lanes, p);
        put(d, 1, j, lanes, select(p == 0, Vec<W>{}, p * (take(d, 1, j, lanes) - delta)));
    });
    const W cap = static_cast<W>(a.softcap), inverse = a.softcap > 0 ? static_cast<W>(1 / a.softcap) : W{0};
    each_vector<W>(plain ? 0 : seen.end - seen.begin, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
        const Vec<W> factor = factors ? take(factors + seen.begin, 1, j, lanes) : splat(W{1});
        const Vec<W> whole = take(d, 1, j, lanes) * factor - delta;
        Vec<W> v = take(s, 1, j, lanes), part = whole;
        if (a.softcap > 0) {
            const Vec<W> bent = tanh(v * inverse);
            v = bent * cap;
            part *= 1 - bent * bent;
        }
        v = with_added<T>(a, add, seen.begin + j, lanes, v);
        const Vec<W> p = power(min_any(Vec<W>{}, v - lse));
        put(s, 1, j, lanes, p * factor);
        put(d, 1, j, lanes, select(p == 0, Vec<W>{}, p * part));
        if (ds) put(ds, ds_step, seen.begin + j, lanes, select(p == 0, Vec<W>{}, p * whole));
    });
    if (seen.end - seen.begin == n) return;
    W* const both[] = {scores, slopes};
    for (W* const row : both) {
        __builtin_memset(row, 0, static_cast<size_t>(seen.begin) * sizeof(W));
        __builtin_memset(row + seen.end, 0, static_cast<size_t>(n - seen.end) * sizeof(W));
    }
}

// Scratch of one share.
template <class W>
struct Room {
    W *k_panels, *v_panels, *k, *dk, *dv;  // of a tile of keys
    W *q, *dy, *scores, *slopes;  // of a tile of queries
    W *delta, *dq;  // of all queries of the group: dy y, and the sums of dq where there is one share

    static int64_t elements(int64_t depth, int64_t width, int64_t tall, int64_t queries, bool with_dq) {
        return kTileKeys * (3 * depth + 2 * width) + tall * (depth + width + 2 * kTileKeys) +
               queries * (1 + (with_dq ? depth : 0));
    }
    Room(W* at, int64_t depth, int64_t width, int64_t tall, int64_t queries) {
        const auto next = [&](int64_t n) {
            W* const here = at;
            at += n;
            return here;
        };
        k_panels = next(kTileKeys * depth), v_panels = next(kTileKeys * width), k = next(kTileKeys * depth);
        dk = next(kTileKeys * depth), dv = next(kTileKeys * width);
        q = next(tall * depth), dy = next(tall * width);
        scores = next(tall * kTileKeys), slopes = next(tall * kTileKeys);
        delta = next(queries), dq = at;
    }
};

template <class T>
TW_INLINE T* head_at(const View& x, int64_t b, int64_t h) {
    return x.as<T>() + b * x.stride[0] + h * x.stride[1];
}

template <class T>
TW_INLINE void write_rows(const View& x, int64_t b, int64_t h, int64_t first, int64_t rows, const Wide<T>* from,
                          int64_t from_row, Wide<T> by) {
    T* to = head_at<T>(x, b, h) + first * x.stride[2];
    for (int64_t r = 0; r < rows; ++r, to += x.stride[2], from += from_row)
        each_vector<T>(x.shape[3], [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            put(to, x.stride[3], i, n, take(from, 1, i, n) * by);
        });
}

template <class T>
struct Backward {
    typedef Wide<T> W;
    static constexpr int64_t NR = Blocking<W>::NR;
    const Attention& a;
    const Gradient& g;
    int64_t depth = padded<W>(a.depth), width = padded<W>(a.width);
    int64_t tall = max_of(a.depth, a.width) <= kShortDepth ? kLongTile : kShortTile;

    // A tile of keys against a tile of queries of head h.
    void meet(const Room<W>& room, int64_t b, int64_t h, int64_t s0, int64_t n, int64_t t0, int64_t rows,
              const W* delta, W* dq) const {
        const int64_t length = length_of(a, b);
        copy_rows(head_at<T>(a.q, b, h) + t0 * a.q.stride[2], a.q.stride[2], a.q.stride[3], rows, a.depth,
                  static_cast<W>(a.scale), room.q);
        copy_rows(head_at<T>(g.dy, b, h) + t0 * g.dy.stride[2], g.dy.stride[2], g.dy.stride[3], rows, a.width, W{1},
                  room.dy);
        score_tile(a, length, t0, rows, s0, n, room.q, depth, a.depth, room.k_panels, room.scores, kTileKeys);
        score_tile(a, length, t0, rows, s0, n, room.dy, width, a.width, room.v_panels, room.slopes, kTileKeys);
        bool whole = true;
        for (int64_t i = 0; i < rows; ++i) {
            const Span seen = within(keys_seen(a, length, t0 + i), s0, n);
            W factors[kTileKeys];
            if (a.limit) draw_row(a, b, h, t0 + i, s0, n, factors);
            const W lse = head_at<W>(g.lse, b, h)[(t0 + i) * g.lse.stride[2]];
            W* const ds =
                given(g.ds) ? head_at<W>(g.ds, b, h) + (t0 + i) * g.ds.stride[2] + s0 * g.ds.stride[3] : nullptr;
            slope_row<T>(a, added_at<T>(a, b, h, t0 + i, s0), a.limit ? factors : nullptr, room.scores + i * kTileKeys,
                         room.slopes + i * kTileKeys, seen, n, lse, delta[i], ds, g.ds.stride[3]);
            whole &= seen.end - seen.begin == n;
        }
        const auto by_key = [&](int64_t j, int64_t count) __attribute__((always_inline)) {
            return within(queries_seeing(a, length, {s0 + j, s0 + j + count}), t0, rows);
        };
        add_product(Left<W>{room.scores, 1, kTileKeys}, Right<W>{room.dy, width, NR}, room.dv, width, n, width, rows,
                    whole, by_key);
        add_product(Left<W>{room.slopes, 1, kTileKeys}, Right<W>{room.q, depth, NR}, room.dk, depth, n, depth, rows,
                    whole, by_key);
        add_product(Left<W>{room.slopes, kTileKeys, 1}, Right<W>{room.k, depth, NR}, dq, depth, rows, depth, n, whole,
                    [&](int64_t i, int64_t count) __attribute__((always_inline)) {
            const Span first = within(keys_seen(a, length, t0 + i), s0, n);
            const Span last = within(keys_seen(a, length, t0 + i + count - 1), s0, n);
            return Span{first.begin, max_of(first.begin, last.end)};
        });
    }

    // Keys [begin, end) of a key head: their dk and dv, and their part of dq, [group][queries][depth], which starts at 0.
    void share(const Room<W>& room, int64_t b, int64_t head, int64_t begin, int64_t end, W* dq) const {
        const int64_t length = length_of(a, b);
        for (int64_t i = 0; i < a.group * a.queries; ++i) {
            const int64_t h = head * a.group + i / a.queries, t = i % a.queries;
            const T* const dy = head_at<T>(g.dy, b, h) + t * g.dy.stride[2];
            const T* const y = head_at<T>(g.y, b, h) + t * g.y.stride[2];
            room.delta[i] =
                static_cast<W>(sum_over<W>(a.width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
                const Vec<W> part = take(dy, g.dy.stride[3], j, n) * take(y, g.y.stride[3], j, n);
                return n == kLanes<W> ? part : first_lanes<W>(part, Vec<W>{}, n);
            }));
        }
        const Matrix<T> k = {head_at<T>(a.k, b, head), a.k.stride[3], a.k.stride[2]};
        const Matrix<T> v = {head_at<T>(a.v, b, head), a.v.stride[3], a.v.stride[2]};
        for (int64_t s0 = begin; s0 < end; s0 += kTileKeys) {
            const int64_t all = min_of(kTileKeys, end - s0), n = max_of(0, min_of(all, length - s0));
            __builtin_memset(room.dk, 0, static_cast<size_t>(all * depth) * sizeof(W));
            __builtin_memset(room.dv, 0, static_cast<size_t>(all * width) * sizeof(W));
            const Span seeing = n ? queries_seeing(a, length, {s0, s0 + n}) : Span{0, 0};
            if (seeing.begin < seeing.end) {
                for (int64_t j = 0; j < n; j += NR) {
                    if (a.depth) pack_panel(k, 0, a.depth, s0 + j, min_of(NR, n - j), room.k_panels + j * a.depth);
                    if (a.width) pack_panel(v, 0, a.width, s0 + j, min_of(NR, n - j), room.v_panels + j * a.width);
                }
                copy_rows(k.data + s0 * k.col, k.col, k.row, n, a.depth, W{1}, room.k);
            }
            for (int64_t group = 0; group < a.group; ++group)
                for (int64_t t0 = seeing.begin / tall * tall; t0 < seeing.end; t0 += tall) {
                    const int64_t rows = min_of(tall, a.queries - t0), h = head * a.group + group;
                    if (all_masked(a, b, h, t0, rows, s0, n)) continue;
                    const int64_t at = group * a.queries + t0;
                    meet(room, b, h, s0, n, t0, rows, room.delta + at, dq + at * depth);
                }
            write_rows<T>(g.dk, b, head, s0, all, room.dk, depth, W{1});
            write_rows<T>(g.dv, b, head, s0, all, room.dv, width, W{1});
        }
    }

    bool run() const {
        const int64_t heads = a.batch * a.kv_heads, tiles = ceil_div(a.keys, kTileKeys);
        const int64_t queries = a.group * a.queries, dq_size = queries * depth;
        const int64_t per_share = ceil_div(max_of(tiles, 1), max_of(1, kShares / heads));
        const int64_t shares = max_of(1, ceil_div(tiles, per_share));
        const bool alone = shares == 1;
        Scratch parts(alone ? 64 : static_cast<size_t>(heads * shares * dq_size) * sizeof(W));
        if (!parts.template as<W>()) return false;
        bool enough = true;
        note_kernel(alone ? "key heads" : "shares of key heads");
        const auto write_dq = [&](int64_t i, const W* sums) {
            for (int64_t group = 0; group < a.group; ++group)
                write_rows<T>(g.dq, i / a.kv_heads, i % a.kv_heads * a.group + group, 0, a.queries,
                              sums + group * a.queries * depth, depth, static_cast<W>(a.scale));
        };
        if (given(g.ds))  // tiles that nobody sees are not visited
            parallel(a.batch * a.heads, [&](int64_t i) {
                const W none = 0;
                for (int64_t t = 0; t < a.queries; ++t)
                    copy_row(head_at<W>(g.ds, i / a.heads, i % a.heads) + t * g.ds.stride[2], g.ds.stride[3], &none, 0,
                             a.keys);
            });
        parallel(heads * shares, [&](int64_t job) {
            const int64_t i = job / shares, begin = job % shares * per_share * kTileKeys;
            Scratch scratch(static_cast<size_t>(Room<W>::elements(depth, width, tall, queries, alone)) * sizeof(W));
            if (!scratch.template as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            const Room<W> room(scratch.template as<W>(), depth, width, tall, queries);
            W* const dq = alone ? room.dq : parts.template as<W>() + job * dq_size;
            __builtin_memset(dq, 0, static_cast<size_t>(dq_size) * sizeof(W));
            share(room, i / a.kv_heads, i % a.kv_heads, begin, min_of(a.keys, begin + per_share * kTileKeys), dq);
            if (alone) write_dq(i, dq);
        });
        if (!enough || alone) return enough;
        parallel(heads, [&](int64_t i) {
            W* const sums = parts.template as<W>() + i * shares * dq_size;
            for (int64_t s = 1; s < shares; ++s)
                for (int64_t j = 0; j < dq_size; j += kLanes<W>)
                    store(sums + j, load(sums + j) + load(sums + s * dq_size + j));
            write_dq(i, sums);
        });
        return true;
    }
};

Status infer(Call& c, Inferred& r) {
    const View &dy = c.in[0], &q = c.in[1], &k = c.in[2], &v = c.in[3], &y = c.in[4], &lse = c.in[5];
    TW_TRY(check_attention(q, k, v, c.in[6], c.in[7], c.in[8], c.attr));
    const int64_t shape[] = {q.shape[0], q.shape[1], q.shape[2], v.shape[3]};
    TW_TRY(want_dtype_of(dy, "dy", q, "q"));
    TW_TRY(want_shape(dy, "dy", 4, shape));
    TW_TRY(want_dtype_of(y, "y", q, "q"));
    TW_TRY(want_shape(y, "y", 4, shape));
    const DType wide = q.dtype == DType::f64 ? DType::f64 : DType::f32;
    if (lse.dtype != wide)
        return fail(Status::dtype, "lse", "lse has dtype %s; want %s", name_of(lse.dtype), name_of(wide));
    TW_TRY(want_shape(lse, "lse", 3, shape));
    r.n_out = 3;
    r.out[0] = result(q.dtype, 4, q.shape);
    r.out[1] = result(q.dtype, 4, k.shape);
    r.out[2] = result(q.dtype, 4, v.shape);
    const int64_t scores[] = {q.shape[0], q.shape[1], q.shape[2], k.shape[2]};
    if (c.attr[kReturnSlopes].i) r.out[r.n_out++] = result(wide, 4, scores);
    r.flops = 2.0 * static_cast<double>(q.shape[0] * q.shape[1] * q.shape[2]) * static_cast<double>(k.shape[2]) *
              static_cast<double>(3 * q.shape[3] + 2 * v.shape[3]) / (c.attr[kCausal].i ? 2 : 1);
    return Status::ok;
}

Status run(const Call& c) {
    Scratch lengths(static_cast<size_t>(c.in[1].shape[0]) * sizeof(int64_t));
    if (!lengths.as<int64_t>()) return no_memory();
    const bool some = given(c.in[7]);
    if (some) TW_TRY(check_lengths(c.in[7], c.in[2].shape[2], lengths.as<int64_t>()));
    const Attention a =
        attention_of(c.in[1], c.in[2], c.in[3], c.in[6], c.in[8], some ? lengths.as<int64_t>() : nullptr, c.attr);
    Gradient g{c.in[0], c.in[4], c.in[5], c.out[0], c.out[1], c.out[2], {}};
    g.ds.dtype = DType::none;
    if (c.n_out > 3) g.ds = c.out[3];
    if (a.batch * a.kv_heads == 0) return Status::ok;
    const bool enough = for_floating(a.q.dtype, [&]<class T>() { return Backward<T>{a, g}.run(); });
    return enough ? Status::ok : no_memory();
}

constexpr Operand kOperands[] = {{"dy"},
                                 {"q"},
                                 {"k"},
                                 {"v"},
                                 {"y"},
                                 {"lse"},
                                 {"mask", Role::optional},
                                 {"lengths", Role::optional},
                                 {"alibi", Role::optional}};
constexpr AttrSpec kAttrs[] = {TW_ATTENTION_ATTRS, {.name = "return_slopes", .kind = AttrKind::boolean}};

}  // namespace

extern const OpDef op_attention_dx = {"attention_dx", kOperands, TW_COUNT(kOperands), kAttrs, TW_COUNT(kAttrs),
                                      infer,          run};

}  // namespace tw::TW_ISA
