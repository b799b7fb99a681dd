// The gradients of attention. With p = exp(score - lse), at most 1, from the log of the sum that forward saved:
//     dv = p^T dy,  ds = p (dy v^T - sum(dy y)),  dq = scale ds k,  dk = scale ds^T q,  and ds of a mask that is added
//
// Method    tiles of keys outside, tiles of queries inside: dk and dv of a tile stay in cache, dq of the head is added to
//           as tiles of keys pass. Five products by the register tile of the GEMM. Where heads are few, shares of the
//           keys have sums for dq of their own, added in order. O(T + S) memory. A tier with tiles has bf16 by them
//           (attention_dx_tiles.h) and leaves all else to the tier below.
// Numerics  everything in the wide type; 16-bit gradients rounded once. Powers below exp(-87) are 0.
// Threads   shares of the keys of a key head, cut by shape alone; nothing is added to by two of them.
// Source    Dao et al., "FlashAttention", 2022, appendix B.
#include "ops/attention_dx_tiles.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileKeys = kNV == 4 ? 192 : 96;  // a multiple of register tiles either way round
constexpr int64_t kShortDepth = 96;  // up to which a tile has kLongTile queries
constexpr int64_t kLongTile = 96, kShortTile = 48;
constexpr int kReturnSlopes = kReturnLse;  // in the place of the one that forward has there

// Scratch of one share.
template <class W>
struct Room {
    W *k_panels, *v_panels, *k, *dk, *dv;  // of a tile of keys
    W *q, *dy, *scores, *slopes;  // of a tile of queries
    W* delta;  // of all queries of the group: dy y

    static int64_t elements(int64_t depth, int64_t width, int64_t tall, int64_t queries) {
        return kTileKeys * (3 * depth + 2 * width) + tall * (depth + width + 2 * kTileKeys) + queries;
    }
    Room(W* at, int64_t depth, int64_t width, int64_t tall) {
        const auto next = [&](int64_t n) {
            W* const here = at;
            at += n;
            return here;
        };
        k_panels = next(kTileKeys * depth), v_panels = next(kTileKeys * width), k = next(kTileKeys * depth);
        dk = next(kTileKeys * depth), dv = next(kTileKeys * width);
        q = next(tall * depth), dy = next(tall * width);
        scores = next(tall * kTileKeys), slopes = next(tall * kTileKeys);
        delta = at;
    }
};

template <class T>
struct ByRegisters {
    typedef T Type;
    typedef Wide<T> W;
    static constexpr int64_t NR = Blocking<W>::NR, kKeys = kTileKeys;
    static constexpr const char* kName[] = {"shares of key heads", "key heads"};
    const Attention& a;
    const Gradient& g;
    int64_t depth = padded<W>(a.depth), width = padded<W>(a.width);
    int64_t tall = max_of(a.depth, a.width) <= kShortDepth ? kLongTile : kShortTile;
    int64_t dq_rows = a.queries;

    size_t room() const {
        return static_cast<size_t>(Room<W>::elements(depth, width, tall, a.group * a.queries)) * sizeof(W);
    }

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
    void share(W* at, int64_t b, int64_t head, int64_t begin, int64_t end, W* dq) const {
        const Room<W> room(at, depth, width, tall);
        const int64_t length = length_of(a, b);
        for (int64_t i = 0; i < a.group * a.queries; ++i)
            room.delta[i] = delta_of<T>(g, b, head * a.group + i / a.queries, i % a.queries);
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
                    const int64_t row = group * a.queries + t0;
                    meet(room, b, h, s0, n, t0, rows, room.delta + row, dq + row * depth);
                }
            write_rows<T>(g.dk, b, head, s0, all, room.dk, depth, W{1});
            write_rows<T>(g.dv, b, head, s0, all, room.dv, width, W{1});
        }
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
#if defined(TW_TILES)
    if (!pays_by_tiles(a)) return run_below(Tier::TW_ISA, c);
    const bool enough = in_shares(a, g, ByTiles(a, g));
#else
    const bool enough = for_floating(a.q.dtype, [&]<class T>() { return in_shares(a, g, ByRegisters<T>{a, g}); });
#endif
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

extern const Entry op_attention_dx = {"attention_dx", kOperands, TW_COUNT(kOperands), kAttrs, TW_COUNT(kAttrs),
                                      infer,          run};

}  // namespace tw::TW_ISA
