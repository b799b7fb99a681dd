// Attention to keys and values that lie in pages of a pool: those of sequence b are pages table[b][0], table[b][1] ..., of
// which the first lengths[b] places count. In 8 bits k = k_scale code and v = v_scale code, a scale per head and place.
//
// Method    a block of queries that share a key head against a tile of keys at a time, each key read once where it lies
//           and widened in registers: attention_keys.h. A few queries: tiles of keys are shared out, joined in order.
// Numerics  scores, powers and sums in the wide type, scales of 8-bit keys applied to scores, those of values to weights;
//           16-bit results rounded once.
// Threads   blocks of queries, or tiles of keys: what one does depends on the shapes alone.
// Source    Kwon et al., "Efficient memory management for large language model serving with PagedAttention", 2023; Dao et
//           al., "Flash-Decoding for long-context inference", 2023.
#include "ops/attention_keys.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBlockRows = 32;  // of queries that pass over all keys together
enum PagedOperand { kQ, kK, kV, kTable, kLengths, kKeyScale, kValueScale, kAlibi, kSinks };
enum PagedAttribute { kPagedCausal, kPagedScale, kPagedWindow, kPagedSoftcap };

TW_INLINE long long ll(int64_t n) { return static_cast<long long>(n); }

Status check_pool(const View& q, const View& k, const View& v) {
    const bool wide = q.dtype == DType::f64;
    const bool stored =
        wide ? k.dtype == DType::f64
             : k.dtype == DType::f32 || k.dtype == DType::f16 || k.dtype == DType::bf16 || k.dtype == DType::i8;
    if (!stored)
        return fail(Status::dtype, "k", "k has dtype %s; want %s beside q of %s", name_of(k.dtype),
                    wide ? "float64" : "float32, float16, bfloat16 or int8", name_of(q.dtype));
    TW_TRY(want_dtype_of(v, "v", k, "k"));
    TW_TRY(want_ndim(q, "q", 4, 4));
    TW_TRY(want_ndim(k, "k", 4, 4));
    TW_TRY(want_ndim(v, "v", 4, 4));
    if (k.shape[3] != q.shape[3])
        return fail(Status::shape, "k", "k has shape %s but q has %s; want k (P, Hkv, L, D) with D=%lld",
                    shape_text(k).text, shape_text(q).text, ll(q.shape[3]));
    if (k.shape[1] == 0 ? q.shape[1] != 0 : q.shape[1] % k.shape[1] != 0)
        return fail(Status::shape, "k", "q has H=%lld heads but k has %lld; want a divisor of H", ll(q.shape[1]),
                    ll(k.shape[1]));
    if (v.shape[0] != k.shape[0] || v.shape[1] != k.shape[1] || v.shape[2] != k.shape[2])
        return fail(Status::shape, "v", "v has shape %s but k has %s; want v (P, Hkv, L, Dv) with P, Hkv and L of k",
                    shape_text(v).text, shape_text(k).text);
    return Status::ok;
}

Status check_scale(const View& scale, const char* name, const View& k) {
    if (k.dtype != DType::i8) {
        if (!given(scale)) return Status::ok;
        return fail(Status::dtype, name, "%s is given but k has dtype %s; want it for int8 alone", name,
                    name_of(k.dtype));
    }
    if (!given(scale)) return fail(Status::dtype, name, "%s is None but k has int8; want float32 scales", name);
    if (scale.dtype != DType::f32)
        return fail(Status::dtype, name, "%s has dtype %s; want float32", name, name_of(scale.dtype));
    return want_shape(scale, name, 3, k.shape);
}

Status want_integers(const View& v, const char* name) {
    if (v.dtype == DType::i32 || v.dtype == DType::i64) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want int32 or int64", name, name_of(v.dtype));
}

Status infer(Call& c, Inferred& r) {
    const View &q = c.in[kQ], &k = c.in[kK], &v = c.in[kV], &table = c.in[kTable];
    TW_TRY(want_floating(q, "q"));
    TW_TRY(check_pool(q, k, v));
    TW_TRY(want_integers(table, "table"));
    TW_TRY(want_ndim(table, "table", 2, 2));
    if (table.shape[0] != q.shape[0])
        return fail(Status::shape, "table", "table has shape %s but q has B=%lld; want (%lld, pages)",
                    shape_text(table).text, ll(q.shape[0]), ll(q.shape[0]));
    TW_TRY(want_integers(c.in[kLengths], "lengths"));
    TW_TRY(want_shape(c.in[kLengths], "lengths", 1, q.shape));
    TW_TRY(check_scale(c.in[kKeyScale], "k_scale", k));
    TW_TRY(check_scale(c.in[kValueScale], "v_scale", k));
    for (int i = kAlibi; i <= kSinks; ++i) {
        if (!given(c.in[i])) continue;
        const char* const name = i == kAlibi ? "alibi" : "sinks";
        TW_TRY(want_dtype_of(c.in[i], name, q, "q"));
        TW_TRY(want_shape(c.in[i], name, 1, q.shape + 1));
    }
    TW_TRY(check_scores(q, c.attr[kPagedScale], c.attr[kPagedSoftcap], c.attr[kPagedWindow]));
    r.n_out = 1;
    r.out[0] = result(q.dtype, 4, q.shape);
    r.out[0].shape[3] = v.shape[3];
    r.flops = 2.0 * static_cast<double>(numel(q) / max_of(q.shape[3], 1)) *
              static_cast<double>(table.shape[1] * k.shape[2]) * static_cast<double>(q.shape[3] + v.shape[3]) /
              (c.attr[kPagedCausal].i ? 2 : 1);
    return Status::ok;
}

// ---- what a call works in ---------------------------------------------------------------------------------------------------

int64_t number_at(const View& v, int64_t at) {
    return v.dtype == DType::i32 ? v.as<int32_t>()[at] : v.as<int64_t>()[at];
}

// lengths (B,), then the pages of each sequence (B, M); those behind a length are not read and stay 0.
Status copy_table(const View& table, const View& lengths, int64_t pages, int64_t page, int64_t* to) {
    const int64_t batch = table.shape[0], most = table.shape[1];
    for (int64_t b = 0; b < batch; ++b) {
        to[b] = number_at(lengths, b * lengths.stride[0]);
        if (to[b] < 0 || to[b] > most * page)
            return fail(Status::index, "lengths", "lengths has %lld at position %lld; want 0 to %lld", ll(to[b]), ll(b),
                        ll(most * page));
        for (int64_t i = 0; i < most; ++i) {
            int64_t& own = to[batch + b * most + i];
            own = 0;
            if (i * page >= to[b]) continue;
            own = number_at(table, b * table.stride[0] + i * table.stride[1]);
            if (own < 0 || own >= pages)
                return fail(Status::index, "table", "table has %lld at position %lld; want 0 to %lld", ll(own),
                            ll(b * most + i), ll(pages - 1));
        }
    }
    return Status::ok;
}

template <class W>
struct Paged {
    Attention a;  // its k and v are the pools; alibi is wide
    View k_scale, v_scale;  // dtype none but for 8 bits
    Result r;  // its sinks are wide
    const int64_t* table;
    int64_t page, most;  // places of a page, pages of a sequence
    const W* q;  // (B, Hkv, group T, depth) in whole vectors, scaled
    W* y;  // (B, Hkv, group T, width)
    int64_t depth, width, rows;  // rows that share a key head
};

// A run of places within a page.
template <class S>
struct Run {
    Rows<S> rows;
    int64_t n;
    const float* scales;
    int64_t scales_step;
};
template <class S>
TW_INLINE Run<S> run_at(const View& pool, const View& scale, const int64_t* pages, int64_t page, int64_t head,
                        int64_t first, int64_t n) {
    const int64_t own = pages[first / page], place = first % page;
    Run<S> run = {
        {pool.as<const S>() + own * pool.stride[0] + head * pool.stride[1] + place * pool.stride[2], pool.stride[2]},
        min_of(n, page - place),
        nullptr,
        0};
    if (given(scale)) {
        run.scales = scale.as<const float>() + own * scale.stride[0] + head * scale.stride[1] + place * scale.stride[2];
        run.scales_step = scale.stride[2];
    }
    return run;
}
// f(run, places before it) for the runs of [first, first + n); gathered in `room` where columns are not neighbours.
template <class S, class F>
TW_INLINE void each_run(const View& pool, const View& scale, const int64_t* pages, int64_t page, int64_t head,
                        int64_t first, int64_t n, S* room, const F& f) {
    for (int64_t j = 0; j < n;) {
        Run<S> run = run_at<S>(pool, scale, pages, page, head, first + j, n - j);
        if (pool.stride[3] != 1) {
            gather_block(room, run.rows.data, run.rows.row, pool.stride[3], run.n, pool.shape[3]);
            run.rows = {room, pool.shape[3]};
        }
        if (j + run.n < n) {  // no stream leads from page to page
            const Run<S> next = run_at<S>(pool, scale, pages, page, head, first + j + run.n, n - j - run.n);
            for (int64_t k = 0; k < kKeysAhead; ++k)
                fetch_parts(next.rows, kSideBySide, next.n / kSideBySide, k, pool.shape[3]);
        }
        f(run, j);
        j += run.n;
    }
}
template <class W>
TW_INLINE void multiply_row(W* row, const float* by, int64_t step, int64_t n) {
    if constexpr (__is_same(W, float))
        each_vector<float>(n, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
            put(row, 1, i, lanes, take(row, 1, i, lanes) * take(by, step, i, lanes));
        });
}

// Rows [first_row, first_row + rows) of a key head against the tile of keys from s0 on, added to what came before.
template <class W, class S>
bool attend_keys(const Paged<W>& p, int64_t b, int64_t head, int64_t first_row, int64_t rows, int64_t s0, W* scores,
                 W* sums, Running<W>* running) {
    const Attention& a = p.a;
    const int64_t length = length_of(a, b), last = first_row + rows - 1;
    const bool one_head = first_row / a.queries == last / a.queries;
    const int64_t t0 = one_head ? first_row % a.queries : 0, t1 = one_head ? last % a.queries : a.queries - 1;
    const Span all = within({keys_seen(a, length, t0).begin, keys_seen(a, length, t1).end}, s0, kTileKeys);
    const int64_t n = all.end - all.begin, first = s0 + all.begin;
    if (n == 0) return true;
    const bool gathers = a.k.stride[3] != 1 || a.v.stride[3] != 1;
    Scratch room(gathers ? static_cast<size_t>(n * max_of(a.depth, a.width)) * sizeof(S) + 64 : 64);
    if (!room.as<S>()) return false;
    const int64_t* const pages = p.table + b * p.most;
    const W* const q = p.q + ((b * a.kv_heads + head) * p.rows + first_row) * p.depth;
    each_run<S>(a.k, p.k_scale, pages, p.page, head, first, n, room.as<S>(), [&](const Run<S>& run, int64_t j) {
        score_all(run.rows, run.n, a.depth, q, p.depth, rows, scores + j);
        for (int64_t i = 0; run.scales && i < rows; ++i)
            multiply_row(scores + i * kTileKeys + j, run.scales, run.scales_step, run.n);
    });
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t t = (first_row + i) % a.queries, h = head * a.group + (first_row + i) / a.queries;
        const W factor = soften<W>(a, added_at<W>(a, b, h, t, first), scores + i * kTileKeys,
                                   within(keys_seen(a, length, t), first, n), n, running[i]);
        if (!(factor == 1)) shrink(sums + i * p.width, p.width, factor);
    }
    each_run<S>(a.v, p.v_scale, pages, p.page, head, first, n, room.as<S>(), [&](const Run<S>& run, int64_t j) {
        for (int64_t i = 0; run.scales && i < rows; ++i)
            multiply_row(scores + i * kTileKeys + j, run.scales, run.scales_step, run.n);
        add_rows(run.rows, run.n, a.width, scores + j, rows, sums, p.width);
    });
    return true;
}

template <class W>
TW_INLINE void begin_rows(const Paged<W>& p, int64_t head, int64_t first_row, int64_t rows, bool first_keys, W* sums,
                          Running<W>* running) {
    __builtin_memset(sums, 0, static_cast<size_t>(rows * p.width) * sizeof(W));
    for (int64_t i = 0; i < rows; ++i)
        running[i] = first_keys ? started<W>(p.r, head * p.a.group + (first_row + i) / p.a.queries)
                                : Running<W>{-static_cast<W>(kInf), 0};
}
template <class W>
TW_INLINE void end_row(const Paged<W>& p, int64_t i, int64_t row, const W* sums, Running<W> all) {
    const Vec<W> total = splat(all.sum == 0 ? W{1} : all.sum);
    W* const y = p.y + (i * p.rows + row) * p.width;
    for (int64_t j = 0; j < p.width; j += kLanes<W>) store(y + j, load(sums + j) / total);
}

// A few rows: tiles of keys apart, then joined.
template <class W, class S>
bool attend_apart(const Paged<W>& p, int64_t shares) {
    const int64_t heads = p.a.batch * p.a.kv_heads, rows = p.rows;
    const int64_t numbers = heads * shares * rows * (p.width + kTileKeys);
    Scratch scratch(static_cast<size_t>(numbers) * sizeof(W) +
                    static_cast<size_t>(heads * shares * rows) * sizeof(Running<W>));
    W* const sums = scratch.as<W>();
    if (!sums) return false;
    W* const scores = sums + heads * shares * rows * p.width;
    Running<W>* const running = reinterpret_cast<Running<W>*>(sums + numbers);
    bool enough = true;
    note_kernel("tiles of keys");
    parallel(heads * shares, [&](int64_t job) {
        const int64_t i = job / shares, s0 = job % shares * kTileKeys, at = job * rows;
        begin_rows(p, i % p.a.kv_heads, 0, rows, s0 == 0, sums + at * p.width, running + at);
        if (!attend_keys<W, S>(p, i / p.a.kv_heads, i % p.a.kv_heads, 0, rows, s0, scores + at * kTileKeys,
                               sums + at * p.width, running + at))
            __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    });
    parallel(heads, [&](int64_t i) {
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = i * shares * rows + row;
            W* const sum = sums + at * p.width;
            const Running<W> all = join_shares(sum, running + at, shares, rows, p.width);
            end_row(p, i, row, sum, all);
        }
    });
    return enough;
}

// Blocks of rows, each against all keys.
template <class W, class S>
bool attend_blocks(const Paged<W>& p, int64_t shares) {
    const int64_t blocks = ceil_div(p.rows, kBlockRows);
    bool enough = true;
    note_kernel("blocks of queries");
    parallel(p.a.batch * p.a.kv_heads * blocks, [&](int64_t job) {
        const int64_t i = job / blocks, b = i / p.a.kv_heads, head = i % p.a.kv_heads;
        const int64_t first = job % blocks * kBlockRows, rows = min_of(kBlockRows, p.rows - first);
        Scratch scratch(static_cast<size_t>(rows * (p.width + kTileKeys)) * sizeof(W) +
                        static_cast<size_t>(rows) * sizeof(Running<W>));
        W* const sums = scratch.as<W>();
        if (!sums) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        W* const scores = sums + rows * p.width;
        Running<W>* const running = reinterpret_cast<Running<W>*>(scores + rows * kTileKeys);
        begin_rows(p, head, first, rows, true, sums, running);
        for (int64_t s0 = 0; s0 < min_of(length_of(p.a, b), shares * kTileKeys); s0 += kTileKeys)
            if (!attend_keys<W, S>(p, b, head, first, rows, s0, scores, sums, running))
                return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t row = 0; row < rows; ++row) end_row(p, i, first + row, sums + row * p.width, running[row]);
    });
    return enough;
}

// ---- calls ------------------------------------------------------------------------------------------------------------------

// Numbers of q, alibi and sinks in the wide type, and what the kernels leave, back in the type of the results.
template <class T>
bool attend(const Call& c, Attention a, const int64_t* table) {
    typedef Wide<T> W;
    const View &q = c.in[kQ], &y = c.out[0];
    const int64_t depth = padded<W>(a.depth), width = padded<W>(a.width), heads = a.batch * a.kv_heads;
    const int64_t rows = a.group * a.queries;
    Scratch scratch(static_cast<size_t>(heads * rows * (depth + width) + 2 * a.heads + 1) * sizeof(W));
    W* const own = scratch.as<W>();
    if (!own) return false;
    W *const sums = own + heads * rows * depth, *const slopes = sums + heads * rows * width;
    View sinks = c.in[kSinks];
    const auto widen = [&](View& v, W* to) {
        if (!given(v)) return;
        copy_row(to, 1, v.as<const T>(), v.stride[0], a.heads);
        v.data = to, v.dtype = __is_same(W, double) ? DType::f64 : DType::f32, v.stride[0] = 1;
    };
    widen(a.alibi, slopes), widen(sinks, slopes + a.heads);
    parallel(a.batch * a.heads, [&](int64_t i) {
        copy_rows(q.as<T>() + i / a.heads * q.stride[0] + i % a.heads * q.stride[1], q.stride[2], q.stride[3],
                  a.queries, a.depth, static_cast<W>(a.scale), own + i * a.queries * depth);
    });
    View none{};
    none.dtype = DType::none;
    const int64_t most = c.in[kTable].shape[1], page = a.k.shape[2];
    const Paged<W> p = {
        a, c.in[kKeyScale], c.in[kValueScale], {none, none, sinks}, table, page, most, own, sums, depth, width, rows};
    const int64_t shares = max_of(1, ceil_div(a.keys, kTileKeys));
    const bool few = rows <= kBlockRows;
    const auto pass = [&]<class S>() { return few ? attend_apart<W, S>(p, shares) : attend_blocks<W, S>(p, shares); };
    bool enough = false;
    if constexpr (__is_same(W, double)) {
        enough = pass.template operator()<double>();
    } else {
        switch (a.k.dtype) {
            case DType::f16: enough = pass.template operator()<f16>(); break;
            case DType::bf16: enough = pass.template operator()<bf16>(); break;
            case DType::i8: enough = pass.template operator()<int8_t>(); break;
            default: enough = pass.template operator()<float>();
        }
    }
    if (!enough) return false;
    parallel(a.batch * a.heads, [&](int64_t i) {
        for (int64_t t = 0; t < a.queries; ++t)
            copy_row(y.as<T>() + i / a.heads * y.stride[0] + i % a.heads * y.stride[1] + t * y.stride[2], y.stride[3],
                     sums + (i * a.queries + t) * width, 1, a.width);
    });
    return true;
}

Status run(const Call& c) {
    const View &q = c.in[kQ], &k = c.in[kK], &v = c.in[kV], &table = c.in[kTable];
    const int64_t batch = q.shape[0];
    Scratch copy(static_cast<size_t>(batch * (1 + table.shape[1]) + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory();
    TW_TRY(copy_table(table, c.in[kLengths], k.shape[0], k.shape[2], copy.as<int64_t>()));
    Attention a{};
    a.q = q, a.k = k, a.v = v, a.mask.dtype = DType::none;
    a.batch = batch, a.heads = q.shape[1], a.queries = q.shape[2], a.depth = q.shape[3];
    a.kv_heads = k.shape[1], a.keys = table.shape[1] * k.shape[2], a.width = v.shape[3];
    a.group = a.kv_heads ? a.heads / a.kv_heads : 1;
    a.lengths = copy.as<int64_t>(), a.alibi = c.in[kAlibi];
    a.causal = c.attr[kPagedCausal].i != 0, a.windowed = !c.attr[kPagedWindow].is_none;
    if (a.windowed) a.left = c.attr[kPagedWindow].list[0], a.right = c.attr[kPagedWindow].list[1];
    a.scale = c.attr[kPagedScale].f, a.softcap = c.attr[kPagedSoftcap].f;
    if (a.batch * a.heads * a.queries * a.width == 0) return Status::ok;
    const int64_t* const pages = copy.as<int64_t>() + batch;
    const bool enough = for_floating(q.dtype, [&]<class T>() { return attend<T>(c, a, pages); });
    return enough ? Status::ok : no_memory();
}

constexpr Operand kOperands[] = {{"q"},
                                 {"k"},
                                 {"v"},
                                 {"table"},
                                 {"lengths"},
                                 {"k_scale", Role::optional},
                                 {"v_scale", Role::optional},
                                 {"alibi", Role::optional},
                                 {"sinks", Role::optional}};
constexpr AttrSpec kAttrs[] = {{.name = "causal", .kind = AttrKind::boolean},
                               {.name = "scale", .kind = AttrKind::real, .none_ok = true},
                               {.name = "window", .kind = AttrKind::integers, .none_ok = true},
                               {.name = "softcap", .kind = AttrKind::real}};

}  // namespace

extern const Entry op_paged_attention = {
    "paged_attention", kOperands, TW_COUNT(kOperands), kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
