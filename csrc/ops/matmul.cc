// y = alpha a @ b + beta c with numpy's rules, and y = activation(x @ w^T + b + residual).
//
// Method    leading axes are merged into rows where strides allow it, else walked as a batch; transposes are strides,
//           so no operand is copied. All products run on gemm/. prepare() keeps the right operand in panels.
// Numerics  see gemm/gemm.h; bias is the first term of each sum, one rounding at the store. 16-bit operands are storage:
//           they are widened exactly and summed in float. A 16-bit right operand may meet float32 on the left.
// Threads   a batch of small products is split by product, everything else inside gemm.
#include "core/product.h"
#include "core/walk.h"
#include "gemm/gemm.h"
#include "ops/ops.h"
#include "simd/convert.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kSmallProduct = int64_t{1} << 21;  // multiply-adds below which a batch is split by product

// The types of a left operand and the result, and of a right operand.
template <class Left, class Right>
struct Types {
    typedef Left C;
    typedef Right B;
};

template <class F>
auto with_types(DType left, DType right, const F& f) {
    if (left == DType::f64) return f(Types<double, double>{});
    if (left == DType::f16) return f(Types<f16, f16>{});
    if (left == DType::bf16) return f(Types<bf16, bf16>{});
    if (right == DType::f16) return f(Types<float, f16>{});
    if (right == DType::bf16) return f(Types<float, bf16>{});
    return f(Types<float, float>{});
}

// The dtype of the left operand, or 16 bits beside float32.
Status want_right(const View& v, const char* name, const View& left, const char* left_name) {
    if (v.dtype == left.dtype || (left.dtype == DType::f32 && is_float(v.dtype) && v.dtype != DType::f64))
        return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s but %s has %s; want the same%s", name, name_of(v.dtype),
                left_name, name_of(left.dtype), left.dtype == DType::f32 ? ", float16 or bfloat16" : "");
}

// Packed panels of a 2-D right operand, of strides `along` the terms of a sum and `across` the columns.
int64_t packed_bytes(const View& v, int64_t k, int64_t n) {
    if (v.dtype == DType::bf16) return 2 * packed_elements<bf16>(k, n);
    return v.dtype == DType::f64 ? 8 * packed_elements<double>(k, n)
                                 : item_size(v.dtype) * packed_elements<float>(k, n);
}
void pack_right(const View& v, int64_t k, int64_t n, int64_t along, int64_t across, void* packed) {
    with_types(v.dtype, v.dtype, [&](auto types) {
        typedef typename decltype(types)::B B;
        pack_all(Matrix<B>{v.as<B>(), along, across}, k, n, static_cast<B*>(packed));
        return 0;
    });
}

// The axes before the last `inner` ones, of one operand.
View leading(const View& v, int inner) {
    View lead = v;
    lead.ndim = v.ndim > inner ? v.ndim - inner : 0;
    return lead;
}

Status no_memory() { return fail(Status::memory, "", "no memory for packed panels; want smaller operands"); }

// Runs product(addresses) for every index of a batch, in parallel if each is small.
template <class Product>
Status for_batch(const Walk& w, int64_t work, const Product& product) {
    const int64_t batch = walk_rows(w) * w.row;
    bool enough = true;
    const auto one = [&](int64_t i) {
        char* at[kMaxWalked];
        walk_seek(w, i / w.row, at);
        for (int k = 0; k < w.n; ++k) at[k] += i % w.row * w.stride[k] * w.size[k];
        if (!product(at)) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    };
    if (batch > 1 && work < kSmallProduct) {
        const int64_t group = max_of(1, kSmallProduct / 16 / (work + 1));
        parallel(ceil_div(batch, group), [&](int64_t chunk) {
            for (int64_t i = chunk * group; i < min_of(chunk * group + group, batch); ++i) one(i);
        });
    } else {
        for (int64_t i = 0; i < batch; ++i) one(i);
    }
    return enough ? Status::ok : no_memory();
}

// ---- matmul -------------------------------------------------------------------------------------------------------------

enum MatmulAttr { kAlpha, kBeta };

Status infer_matmul(Call& c, Inferred& r) {
    const View &a = c.in[0], &b = c.in[1], &addend = c.in[2];
    TW_TRY(want_floating(a, "a"));
    TW_TRY(want_right(b, "b", a, "a"));
    View y{};
    y.dtype = a.dtype;
    TW_TRY(resolve_product(a, b, y));
    if (given(addend)) {
        TW_TRY(want_dtype_of(addend, "c", a, "a"));
        View stretched = addend;
        if (!broadcast_to(y, stretched))
            return fail(Status::shape, "c", "c has shape %s but the product has %s; want one that broadcasts to it",
                        shape_text(addend).text, shape_text(y).text);
    }
    r.n_out = 1;
    r.out[0] = y;
    r.flops = 2.0 * static_cast<double>(numel(y)) * static_cast<double>(a.shape[a.ndim - 1]);
    return Status::ok;
}

template <class C, class B>
Status matmul(const Call& c) {
    typedef Wide<C> T;
    const View &a = c.in[0], &b = c.in[1], &y = c.out[0];
    const Product p = product_of(a, b);
    const double beta = c.attr[kBeta].f;
    View addend = c.in[2];
    if (beta == 0) addend.dtype = DType::none;  // not even a NaN in it counts
    if (given(addend)) broadcast_to(y, addend);
    const int a_inner = a.ndim > 1 ? 2 : 1, b_inner = b.ndim > 1 ? 2 : 1, y_inner = (a.ndim > 1) + (b.ndim > 1);
    Gemm<C, C, B> g{};
    g.m = p.m, g.n = p.n, g.k = p.k;
    g.c_col = b.ndim > 1 ? y.stride[y.ndim - 1] : 1;
    g.c_row = a.ndim > 1 ? y.stride[y.ndim - (b.ndim > 1 ? 2 : 1)] : 1;
    g.alpha = static_cast<T>(c.attr[kAlpha].f), g.beta = static_cast<T>(beta);
    g.b = {b.as<B>(), p.b_row, p.b_col};
    g.packed_b = static_cast<const B*>(c.packed);
    g.addend = {nullptr, a.ndim > 1 ? addend.stride[y.ndim - (b.ndim > 1 ? 2 : 1)] : 0,
                b.ndim > 1 ? addend.stride[y.ndim - 1] : 0};
    const bool adds = given(addend);
    View la = leading(a, a_inner), lb = leading(b, b_inner), ly = leading(y, y_inner);
    // One b for all: the batch is only more rows, if a, y and c can be walked as such.
    if (lb.ndim == 0 && a.ndim > 2) {
        const int row_inner = b.ndim > 1 ? 1 : 0;
        View ra = leading(a, 1), ry = leading(y, row_inner), rc = adds ? leading(addend, row_inner) : ry;
        const View* rows[] = {&ry, &ra, &rc};
        const Walk merged = walk_over(rows, 3, ry.ndim, ry.shape);
        if (merged.ndim == 0) {
            g.m = merged.row, g.c_row = merged.stride[0];
            g.a = {a.as<C>(), merged.stride[1], p.a_col};
            g.c = y.as<C>();
            if (adds) g.addend.data = addend.as<C>(), g.addend.row = merged.stride[2];
            return gemm(g) ? Status::ok : no_memory();
        }
    }
    View lc = adds ? leading(addend, y_inner) : ly;
    const View* views[] = {&ly, &la, &lb, &lc};
    const Walk w = walk_over(views, 4, ly.ndim, ly.shape);
    return for_batch(w, p.m * p.n * p.k, [&](char* const* at) {
        Gemm<C, C, B> one = g;
        one.a = {reinterpret_cast<const C*>(at[1]), p.a_row, p.a_col};
        one.b.data = reinterpret_cast<const B*>(at[2]);
        one.c = reinterpret_cast<C*>(at[0]);
        if (adds) one.addend.data = reinterpret_cast<const C*>(at[3]);
        return gemm(one);
    });
}

Status run_matmul(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return with_types(c.in[0].dtype, c.in[1].dtype,
                      [&](auto types) { return matmul<typename decltype(types)::C, typename decltype(types)::B>(c); });
}

int64_t matmul_packed_size(const Call& c) {
    const View& b = c.in[1];
    return given(b) && b.ndim == 2 && is_float(b.dtype) ? packed_bytes(b, b.shape[0], b.shape[1]) : 0;
}

void matmul_pack(const Call& c, void* packed) {
    const View& b = c.in[1];
    pack_right(b, b.shape[0], b.shape[1], b.stride[0], b.stride[1], packed);
}

// ---- linear -------------------------------------------------------------------------------------------------------------

Status infer_linear(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &b = c.in[2], &residual = c.in[3];
    TW_TRY(want_floating(x, "x"));
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    TW_TRY(want_right(w, "w", x, "x"));
    TW_TRY(want_ndim(w, "w", 2, 2));
    const int64_t in = x.shape[x.ndim - 1], out = w.shape[0];
    if (w.shape[1] != in)
        return fail(Status::shape, "w", "x has I=%lld but w has shape %s; want w of shape (O, %lld)",
                    static_cast<long long>(in), shape_text(w).text, static_cast<long long>(in));
    if (given(b)) {
        TW_TRY(want_right(b, "b", x, "x"));
        if (b.ndim != 1 || b.shape[0] != out)
            return fail(Status::shape, "b", "b has shape %s but w has O=%lld; want (%lld,)", shape_text(b).text,
                        static_cast<long long>(out), static_cast<long long>(out));
    }
    View y = result(x.dtype, x.ndim, x.shape);
    y.shape[y.ndim - 1] = out;
    if (given(residual)) {
        TW_TRY(want_dtype_of(residual, "residual", x, "x"));
        TW_TRY(want_shape(residual, "residual", y.ndim, y.shape));
    }
    r.n_out = 1;
    r.out[0] = y;
    r.flops = 2.0 * static_cast<double>(numel(y)) * static_cast<double>(in);
    return Status::ok;
}

template <class S, class T>
void widen_bias(const View& b, T* to) {
    for (int64_t i = 0; i < b.shape[0]; ++i) {
        if constexpr (__is_same(S, T))
            to[i] = b.as<S>()[i * b.stride[0]];
        else
            to[i] = to_float(b.as<S>()[i * b.stride[0]]);
    }
}

template <class C, class B>
Status linear(const Call& c) {
    typedef Wide<C> T;
    const View &x = c.in[0], &w = c.in[1], &b = c.in[2], &residual = c.in[3], &y = c.out[0];
    Scratch bias_scratch(static_cast<size_t>(w.shape[0] + 1) * sizeof(T));
    Gemm<C, C, B> g{};
    g.k = w.shape[1], g.n = w.shape[0];
    g.b = {w.as<B>(), w.stride[1], w.stride[0]};
    g.packed_b = static_cast<const B*>(c.packed);
    g.c_col = y.stride[y.ndim - 1];
    g.activation = c.attr[0].is_none ? Activation::none : static_cast<Activation>(c.attr[0].choice + 1);
    if (given(b)) {
        T* bias = bias_scratch.template as<T>();
        if (!bias) return fail(Status::memory, "b", "no memory for the bias; want a smaller one");
        with_types(b.dtype, b.dtype, [&](auto types) {
            if constexpr (__is_same(Wide<typename decltype(types)::B>, T))
                widen_bias<typename decltype(types)::B>(b, bias);
            return 0;
        });
        g.bias_col = bias;
    }
    const View lx = leading(x, 1), ly = leading(y, 1), lr = given(residual) ? leading(residual, 1) : ly;
    const View* views[] = {&ly, &lx, &lr};
    const Walk rows = walk_over(views, 3, ly.ndim, ly.shape);
    g.m = rows.row;
    g.c_row = rows.stride[0];
    bool enough = true;
    for (int64_t i = 0; i < walk_rows(rows); ++i) {
        char* at[kMaxWalked];
        walk_seek(rows, i, at);
        g.c = reinterpret_cast<C*>(at[0]);
        g.a = {reinterpret_cast<const C*>(at[1]), rows.stride[1], x.stride[x.ndim - 1]};
        if (given(residual))
            g.addend = {reinterpret_cast<const C*>(at[2]), rows.stride[2], residual.stride[residual.ndim - 1]};
        enough = gemm(g) && enough;
    }
    return enough ? Status::ok : no_memory();
}

Status run_linear(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return with_types(c.in[0].dtype, c.in[1].dtype,
                      [&](auto types) { return linear<typename decltype(types)::C, typename decltype(types)::B>(c); });
}

int64_t linear_packed_size(const Call& c) {
    const View& w = c.in[1];
    return given(w) && w.ndim == 2 && is_float(w.dtype) ? packed_bytes(w, w.shape[1], w.shape[0]) : 0;
}

void linear_pack(const Call& c, void* packed) {
    const View& w = c.in[1];
    pack_right(w, w.shape[1], w.shape[0], w.stride[1], w.stride[0], packed);
}

constexpr Operand kABC[] = {{"a"}, {"b"}, {"c", Role::optional}};
constexpr AttrSpec kMatmulAttrs[] = {{.name = "alpha", .kind = AttrKind::real, .f = 1},
                                     {.name = "beta", .kind = AttrKind::real, .f = 1}};
constexpr Operand kXWBR[] = {{"x"}, {"w"}, {"b", Role::optional}, {"residual", Role::optional}};
constexpr AttrSpec kLinearAttrs[] = {
    {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true}};

}  // namespace

extern const Entry op_matmul = {"matmul",     kABC,       3, kMatmulAttrs,       2,
                                infer_matmul, run_matmul, 0, matmul_packed_size, matmul_pack};
extern const Entry op_linear = {"linear",     kXWBR,      4, kLinearAttrs,       1,
                                infer_linear, run_linear, 0, linear_packed_size, linear_pack};

}  // namespace tw::TW_ISA
