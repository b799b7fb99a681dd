// Multi-head attention, the whole layer: y = concat over heads of softmax(M(q' k''^T / sqrt(D))) v'' times wo^T + bo, with
// q' = q wq^T + bq, k' = k wk^T + bk, v' = v wv^T + bv cut into heads; k'' and v'' are k' and v' and one row more where
// key_bias and value_bias are given, and a row of zeros where add_zero_attn asks for it; M is the masks.
//
// Method    four calls of linear and one of attention, on scratch: heads are strides, rows of biases lie behind those of
//           k' and v', the row of zeros is a sink of score 0. Masks are joined where there are two, or a row more.
// Numerics  those of linear and attention. What lies between them is of the wide type.
// Threads   those of linear and attention.
// Source    Vaswani et al., "Attention is all you need", 2017.
#include "core/check.h"
#include "core/op_table.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {

namespace {

enum Place { kQ, kK, kV, kWq, kWk, kWv, kWo, kBq, kBk, kBv, kBo, kKeyBias, kValueBias, kMask, kKeyMask, kPlaces };
enum Attribute { kHeads, kZeroAttn, kScale, kDropout, kSeed, kOffset };

struct Sizes {
    int64_t batch, queries, keys, heads, depth, width;
    bool biased;  // a row of biases behind the keys
};
Sizes sizes_of(const Call& c) {
    const int64_t heads = c.attr[kHeads].i;
    return {c.in[kQ].shape[0],          c.in[kQ].shape[1],          c.in[kK].shape[1],    heads,
            c.in[kWq].shape[0] / heads, c.in[kWv].shape[0] / heads, given(c.in[kKeyBias])};
}

TW_INLINE DType wide_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }
View absent() {
    View v{};
    v.dtype = DType::none;
    return v;
}
View dense(DType dtype, int ndim, const int64_t* shape, void* data) {
    View v = result(dtype, ndim, shape);
    set_contiguous(v);
    v.data = data;
    return v;
}

// A call of another op: attributes by default, operands not given unless set.
struct Inner {
    View in[8];
    View out;
    Attr attr[12];
    Call call;

    Inner(Tier tier, OpId id) {
        const OpDef& op = *op_table(tier, id);
        for (int i = 0; i < op.n_operands; ++i) in[i] = absent();
        for (int i = 0; i < op.n_attrs; ++i) attr[i] = default_of(op.attrs[i]);
        call = {&op, in, op.n_operands, &out, 1, attr, nullptr};
    }
    void set(const char* name, const Attr& value) {
        for (int i = 0; i < call.op->n_attrs; ++i)
            if (!__builtin_strcmp(call.op->attrs[i].name, name)) attr[i] = value;
    }
    Status run() {
        Inferred r;
        TW_TRY(call.op->infer(call, r));
        return call.op->run(call);
    }
};

// y = x w^T + b; packed: null, or w as linear packs it.
Status project(const View& x, const View& w, const View& b, const View& y, const void* packed) {
    Inner linear(Tier::TW_ISA, OpId::linear);
    linear.in[0] = x, linear.in[1] = w, linear.in[2] = b, linear.out = y;
    linear.call.packed = packed;
    return linear.run();
}

// (B, rows, H D) seen as (B, H, rows, D).
View heads_of(const View& x, int64_t heads) {
    const int64_t depth = heads ? x.shape[2] / heads : 0;
    View v = x;
    v.ndim = 4;
    v.shape[1] = heads, v.shape[2] = x.shape[1], v.shape[3] = depth;
    v.stride[1] = depth * x.stride[2], v.stride[2] = x.stride[1], v.stride[3] = x.stride[2];
    return v;
}

// ---- masks ------------------------------------------------------------------------------------------------------------------

struct Masked {
    int64_t shape[4];
    DType dtype;
    bool joined;  // has to be made; else it is one of those given
};
Masked masked_by(const Call& c) {
    const View &mask = c.in[kMask], &keys = c.in[kKeyMask];
    const Sizes z = sizes_of(c);
    const bool added = given(mask) && mask.dtype != DType::boolean;
    Masked m{{1, 1, 1, z.keys + z.biased}, added ? wide_of(mask.dtype) : DType::boolean, false};
    if (given(mask))
        for (int d = 0; d + 1 < mask.ndim; ++d) m.shape[4 - mask.ndim + d] = mask.shape[d];
    if (given(keys)) m.shape[0] = z.batch;
    const bool both = given(mask) && given(keys), narrow = added && mask.dtype != m.dtype;
    m.joined = (given(mask) || given(keys)) && (z.biased || both || narrow);
    return m;
}
TW_INLINE int64_t bytes_of(const Masked& m) {
    return m.joined ? m.shape[0] * m.shape[1] * m.shape[2] * m.shape[3] * item_size(m.dtype) : 0;
}

// Both masks in one; a row of biases is always seen.
template <class M, class T>
void join(const Call& c, const Masked& m, T* to, T seen, T hidden) {
    const View &mask = c.in[kMask], &keys = c.in[kKeyMask];
    const Sizes z = sizes_of(c);
    int64_t step[4] = {};
    if (given(mask))
        for (int d = 0; d < mask.ndim; ++d) step[4 - mask.ndim + d] = mask.shape[d] == 1 ? 0 : mask.stride[d];
    for (int64_t row = 0, rows = m.shape[0] * m.shape[1] * m.shape[2]; row < rows; ++row, to += m.shape[3]) {
        const int64_t t = row % m.shape[2], h = row / m.shape[2] % m.shape[1], b = row / m.shape[2] / m.shape[1];
        const M* const from = given(mask) ? mask.as<const M>() + b * step[0] + h * step[1] + t * step[2] : nullptr;
        for (int64_t s = 0; s < z.keys; ++s) {
            to[s] = from ? widened(from[s * step[3]]) : seen;
            if (given(keys) && !keys.as<const uint8_t>()[b * keys.stride[0] + s * keys.stride[1]]) to[s] = hidden;
        }
        if (z.biased) to[z.keys] = seen;
    }
}

// The mask as attention takes it, made at `room` if it has to be.
View mask_of(const Call& c, void* room) {
    const View &mask = c.in[kMask], &keys = c.in[kKeyMask];
    const Masked m = masked_by(c);
    if (m.joined) {
        if (m.dtype == DType::boolean)
            join<uint8_t>(c, m, static_cast<uint8_t*>(room), uint8_t{1}, uint8_t{0});
        else
            for_floating(mask.dtype, [&]<class T>() {
                typedef Wide<T> W;
                join<T>(c, m, static_cast<W*>(room), W{0}, -static_cast<W>(kInf));
            });
        return dense(m.dtype, 4, m.shape, room);
    }
    if (!given(keys)) return mask;
    View v = keys;
    v.ndim = 4;
    v.shape[1] = v.shape[2] = 1, v.shape[3] = keys.shape[1];
    v.stride[1] = v.stride[2] = 0, v.stride[3] = keys.stride[1];
    return v;
}

// ---- shapes -----------------------------------------------------------------------------------------------------------------

Status check_weight(const Call& c, Place place, Place bias, int64_t in, int64_t out) {
    const View &w = c.in[place], &b = c.in[bias], &q = c.in[kQ];
    const char *const name = c.op->operands[place].name, *const of_bias = c.op->operands[bias].name;
    const int64_t shape[] = {out < 0 ? w.shape[0] : out, in};
    TW_TRY(want_dtype_of(w, name, q, "q"));
    TW_TRY(want_ndim(w, name, 2, 2));
    if (w.shape[1] != in || (out >= 0 && w.shape[0] != out)) TW_TRY(want_shape(w, name, 2, shape));
    if (!given(b)) return Status::ok;
    TW_TRY(want_dtype_of(b, of_bias, q, "q"));
    return want_shape(b, of_bias, 1, w.shape);
}

Status infer(Call& c, Inferred& r) {
    const auto ll = [](int64_t n) { return static_cast<long long>(n); };
    const View &q = c.in[kQ], &k = c.in[kK], &v = c.in[kV], &wq = c.in[kWq], &wv = c.in[kWv];
    TW_TRY(want_floating(q, "q"));
    TW_TRY(want_dtype_of(k, "k", q, "q"));
    TW_TRY(want_dtype_of(v, "v", q, "q"));
    TW_TRY(want_ndim(q, "q", 3, 3));
    TW_TRY(want_ndim(k, "k", 3, 3));
    TW_TRY(want_ndim(v, "v", 3, 3));
    if (k.shape[0] != q.shape[0])
        return fail(Status::shape, "k", "k has shape %s but q has %s; want B=%lld of both", shape_text(k).text,
                    shape_text(q).text, ll(q.shape[0]));
    if (v.shape[0] != k.shape[0] || v.shape[1] != k.shape[1])
        return fail(Status::shape, "v", "v has shape %s but k has %s; want B and S of both", shape_text(v).text,
                    shape_text(k).text);
    const int64_t heads = c.attr[kHeads].i;
    if (heads < 1 || heads >= kMaxSize)
        return fail(Status::attr, "heads", "heads=%lld; want 1 or more, below 2^40", ll(heads));
    TW_TRY(check_weight(c, kWq, kBq, q.shape[2], -1));
    TW_TRY(check_weight(c, kWk, kBk, k.shape[2], wq.shape[0]));
    TW_TRY(check_weight(c, kWv, kBv, v.shape[2], -1));
    const View* const cut[] = {&wq, &wv};
    for (const View* w : cut)
        if (w->shape[0] % heads != 0) {
            const char* const name = w == &wq ? "wq" : "wv";
            return fail(Status::shape, name, "%s has %lld rows with heads=%lld; want a multiple of it", name,
                        ll(w->shape[0]), ll(heads));
        }
    TW_TRY(check_weight(c, kWo, kBo, wv.shape[0], -1));
    const View &key_bias = c.in[kKeyBias], &value_bias = c.in[kValueBias];
    if (given(key_bias) != given(value_bias)) {
        const bool key = given(key_bias);
        return fail(Status::shape, key ? "value_bias" : "key_bias", "%s is given but %s is not; want both or neither",
                    key ? "key_bias" : "value_bias", key ? "value_bias" : "key_bias");
    }
    if (given(key_bias)) {
        TW_TRY(want_dtype_of(key_bias, "key_bias", q, "q"));
        TW_TRY(want_shape(key_bias, "key_bias", 1, wq.shape));
        TW_TRY(want_dtype_of(value_bias, "value_bias", q, "q"));
        TW_TRY(want_shape(value_bias, "value_bias", 1, wv.shape));
    }
    const DType wide = wide_of(q.dtype);
    if (given(c.in[kKeyMask])) {
        if (c.in[kKeyMask].dtype != DType::boolean)
            return fail(Status::dtype, "key_mask", "key_mask has dtype %s; want bool", name_of(c.in[kKeyMask].dtype));
        TW_TRY(want_shape(c.in[kKeyMask], "key_mask", 2, k.shape));
    }
    const Sizes z = sizes_of(c);
    const View& mask = c.in[kMask];
    if (given(mask)) {
        const int64_t full[] = {z.batch, z.heads, z.queries, z.keys};
        if (mask.dtype != DType::boolean && mask.dtype != q.dtype)
            return fail(Status::dtype, "mask", "mask has dtype %s; want bool or %s, the dtype of q",
                        name_of(mask.dtype), name_of(q.dtype));
        TW_TRY(want_ndim(mask, "mask", 0, 4));
        for (int d = 0; d < mask.ndim; ++d)
            if (mask.shape[d] != 1 && mask.shape[d] != full[4 - mask.ndim + d])
                return fail(Status::shape, "mask", "mask has shape %s; want one that broadcasts to %s",
                            shape_text(mask).text, shape_text(4, full).text);
    }
    // The other attributes are those of attention, which checks them.
    const int64_t of_q[] = {z.batch, z.heads, z.queries, z.depth}, of_v[] = {z.batch, z.heads, z.keys, z.width};
    const int64_t of_k[] = {z.batch, z.heads, z.keys, z.depth};
    Inner inner(active_tier(), OpId::attention);
    inner.in[0] = result(wide, 4, of_q), inner.in[1] = result(wide, 4, of_k), inner.in[2] = result(wide, 4, of_v);
    for (int i = kScale; i <= kOffset; ++i) inner.set(c.op->attrs[i].name, c.attr[i]);
    Inferred of_attention;
    TW_TRY(inner.call.op->infer(inner.call, of_attention));
    for (int i = 0; i < inner.call.op->n_attrs; ++i)
        for (int j = kScale; j <= kOffset; ++j)
            if (!__builtin_strcmp(inner.call.op->attrs[i].name, c.op->attrs[j].name)) c.attr[j] = inner.attr[i];
    const int64_t y[] = {z.batch, z.queries, c.in[kWo].shape[0]};
    r.n_out = 1;
    r.out[0] = result(q.dtype, 3, y);
    const double rows_q = static_cast<double>(z.batch * z.queries), rows_k = static_cast<double>(z.batch * z.keys);
    r.flops = of_attention.flops + 2 * rows_q * static_cast<double>(numel(wq) + numel(c.in[kWo])) +
              2 * rows_k * static_cast<double>(numel(c.in[kWk]) + numel(wv));
    return Status::ok;
}

// ---- prepared weights: where each of the four begins, then as linear packs them ----------------------------------------------

struct Header {
    int64_t at[4];  // bytes from the header on; 0: not packed
    int64_t pad[4];
};
constexpr Place kWeights[] = {kWq, kWk, kWv, kWo};

int64_t packed_bytes(const Call& c, Place place) {
    Inner linear(Tier::TW_ISA, OpId::linear);
    linear.in[1] = c.in[place];
    return given(c.in[place]) ? ceil_div(linear.call.op->packed_size(linear.call), 64) * 64 : 0;
}
int64_t packed_size(const Call& c) {
    int64_t bytes = 0;
    for (const Place place : kWeights) bytes += packed_bytes(c, place);
    return bytes ? bytes + static_cast<int64_t>(sizeof(Header)) : 0;
}
void pack(const Call& c, void* to) {
    Header* const header = static_cast<Header*>(to);
    *header = {};
    int64_t at = sizeof(Header);
    for (int i = 0; i < 4; ++i) {
        const int64_t bytes = packed_bytes(c, kWeights[i]);
        if (!bytes) continue;
        Inner linear(Tier::TW_ISA, OpId::linear);
        linear.in[1] = c.in[kWeights[i]];
        linear.call.op->pack(linear.call, static_cast<char*>(to) + at);
        header->at[i] = at;
        at += bytes;
    }
}

// ---- running ----------------------------------------------------------------------------------------------------------------

struct Take {
    char* at;
    void* next(int64_t bytes) {
        char* const here = at;
        at += ceil_div(bytes, 64) * 64;
        return here;
    }
};

// x itself, or a copy in the type of the sums.
View widened_to(const View& x, DType wide, Take& take) {
    if (x.dtype == wide) return x;
    const View y = dense(wide, x.ndim, x.shape, take.next(numel(x) * item_size(wide)));
    for (int64_t i = 0, rows = x.shape[0] * x.shape[1], n = x.shape[2]; i < rows; ++i) {
        const int64_t from = i / x.shape[1] * x.stride[0] + i % x.shape[1] * x.stride[1];
        float* const to = y.as<float>() + i * n;
        if (x.dtype == DType::f16)
            copy_row(to, 1, x.as<const f16>() + from, x.stride[2], n);
        else
            copy_row(to, 1, x.as<const bf16>() + from, x.stride[2], n);
    }
    return y;
}

// Row `row` of each sequence of a (B, rows, N) of the wide type.
template <class T>
void write_rows(const View& bias, const View& to, int64_t row) {
    for (int64_t b = 0; b < to.shape[0]; ++b)
        copy_row(to.as<Wide<T>>() + b * to.stride[0] + row * to.stride[1], 1, bias.as<const T>(), bias.stride[0],
                 to.shape[2]);
}

// Rows of the wide type, rounded.
template <class T>
void write_result(const View& y, const Wide<T>* from) {
    for (int64_t i = 0, rows = y.shape[0] * y.shape[1], n = y.shape[2]; i < rows; ++i)
        copy_row(y.as<T>() + i / y.shape[1] * y.stride[0] + i % y.shape[1] * y.stride[1], y.stride[2], from + i * n, 1,
                 n);
}

Status run(const Call& c) {
    const Sizes z = sizes_of(c);
    const View& y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    const DType wide = wide_of(c.in[kQ].dtype);
    const bool narrow = wide != c.in[kQ].dtype;
    const int64_t item = item_size(wide), rows = z.keys + z.biased;
    const int64_t of_q[] = {z.batch, z.queries, z.heads * z.depth}, of_k[] = {z.batch, rows, z.heads * z.depth};
    const int64_t of_v[] = {z.batch, rows, z.heads * z.width}, of_o[] = {z.batch, z.queries, z.heads * z.width};
    const Masked masked = masked_by(c);
    int64_t elements = z.batch * (z.queries * (z.heads * (z.depth + z.width)) + rows * z.heads * (z.depth + z.width));
    if (narrow) elements += numel(c.in[kQ]) + numel(c.in[kK]) + numel(c.in[kV]) + numel(y);
    Scratch scratch(static_cast<size_t>((elements + z.heads) * item + bytes_of(masked) + 16 * 64));
    if (!scratch.as<char>())
        return fail(Status::memory, "", "no memory for the projections; want fewer sequences at a time");
    Take take{scratch.as<char>()};
    const View q = dense(wide, 3, of_q, take.next(z.batch * z.queries * z.heads * z.depth * item));
    const View k = dense(wide, 3, of_k, take.next(z.batch * rows * z.heads * z.depth * item));
    const View v = dense(wide, 3, of_v, take.next(z.batch * rows * z.heads * z.width * item));
    const View o = dense(wide, 3, of_o, take.next(z.batch * z.queries * z.heads * z.width * item));
    const View mask = mask_of(c, take.next(bytes_of(masked)));
    const auto packed = [&](int i) -> const void* {
        const Header* const header = static_cast<const Header*>(c.packed);
        return header && header->at[i] ? static_cast<const char*>(c.packed) + header->at[i] : nullptr;
    };
    View own_k = k, own_v = v;
    own_k.shape[1] = own_v.shape[1] = z.keys;
    TW_TRY(project(widened_to(c.in[kQ], wide, take), c.in[kWq], c.in[kBq], q, packed(0)));
    TW_TRY(project(widened_to(c.in[kK], wide, take), c.in[kWk], c.in[kBk], own_k, packed(1)));
    TW_TRY(project(widened_to(c.in[kV], wide, take), c.in[kWv], c.in[kBv], own_v, packed(2)));
    if (z.biased) {
        for_floating(c.in[kQ].dtype, [&]<class T>() {
            write_rows<T>(c.in[kKeyBias], k, z.keys);
            write_rows<T>(c.in[kValueBias], v, z.keys);
        });
    }
    Inner attention(active_tier(), OpId::attention);
    attention.in[0] = heads_of(q, z.heads), attention.in[1] = heads_of(k, z.heads),
    attention.in[2] = heads_of(v, z.heads);
    attention.in[3] = mask, attention.out = heads_of(o, z.heads);
    if (c.attr[kZeroAttn].i) {
        void* const sinks = take.next(z.heads * item);
        __builtin_memset(sinks, 0, static_cast<size_t>(z.heads * item));
        attention.in[6] = dense(wide, 1, &z.heads, sinks);
    }
    for (int i = kScale; i <= kOffset; ++i) attention.set(c.op->attrs[i].name, c.attr[i]);
    TW_TRY(attention.run());
    if (!narrow) return project(o, c.in[kWo], c.in[kBo], y, packed(3));
    const View wide_y = dense(wide, 3, y.shape, take.next(numel(y) * item));
    TW_TRY(project(o, c.in[kWo], c.in[kBo], wide_y, packed(3)));
    for_floating(y.dtype, [&]<class T>() { write_result<T>(y, wide_y.as<const Wide<T>>()); });
    return Status::ok;
}

constexpr Operand kOperands[] = {{"q"},
                                 {"k"},
                                 {"v"},
                                 {"wq"},
                                 {"wk"},
                                 {"wv"},
                                 {"wo"},
                                 {"bq", Role::optional},
                                 {"bk", Role::optional},
                                 {"bv", Role::optional},
                                 {"bo", Role::optional},
                                 {"key_bias", Role::optional},
                                 {"value_bias", Role::optional},
                                 {"mask", Role::optional},
                                 {"key_mask", Role::optional}};
static_assert(TW_COUNT(kOperands) == kPlaces);
constexpr AttrSpec kAttrs[] = {{.name = "heads", .kind = AttrKind::integer, .required = true},
                               {.name = "add_zero_attn", .kind = AttrKind::boolean},
                               {.name = "scale", .kind = AttrKind::real, .none_ok = true},
                               {.name = "dropout", .kind = AttrKind::real},
                               {.name = "seed", .kind = AttrKind::integer, .none_ok = true},
                               {.name = "offset", .kind = AttrKind::integer}};

}  // namespace

extern const Entry op_multi_head_attention = {
    "multi_head_attention", kOperands, kPlaces, kAttrs, TW_COUNT(kAttrs), infer, run, 0, packed_size, pack};

}  // namespace tw::TW_ISA
