// y = a @ b with numpy's rules, and y = activation(x @ w^T + b).
//
// Method    leading axes are merged into rows where strides allow it, else walked as a batch; transposes are strides,
//           so no operand is copied. All products run on gemm/. prepare() keeps the right operand in panels.
// Numerics  see gemm/gemm.h; bias is the first term of each sum, one rounding at the store.
// Threads   a batch of small products is split by product, everything else inside gemm.
#include "core/check.h"
#include "core/walk.h"
#include "gemm/gemm.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kSmallProduct = int64_t{1} << 21;  // multiply-adds below which a batch is split by product

// The axes before the last `inner` ones, of one operand.
View leading(const View& v, int inner) {
    View lead = v;
    lead.ndim = v.ndim > inner ? v.ndim - inner : 0;
    return lead;
}

// Runs product(a, b, y) for every index of a batch, in parallel if each is small.
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
    return enough ? Status::ok : fail(Status::memory, "", "no memory for packed panels; want smaller operands");
}

// ---- matmul -------------------------------------------------------------------------------------------------------------

// Both operands as matrices: a 1-D a is a row, a 1-D b a column.
struct Product {
    int64_t m, n, k;
    int64_t a_row, a_col, b_row, b_col;
};

Product product_of(const View& a, const View& b) {
    Product p;
    const int ma = a.ndim - 1, mb = b.ndim - 1;
    p.k = a.shape[ma];
    p.m = ma ? a.shape[ma - 1] : 1;
    p.n = mb ? b.shape[mb] : 1;
    p.a_col = a.stride[ma];
    p.a_row = ma ? a.stride[ma - 1] : 0;
    p.b_row = mb ? b.stride[mb - 1] : b.stride[mb];
    p.b_col = mb ? b.stride[mb] : 0;
    return p;
}

Status infer_matmul(Call& c, Inferred& r) {
    const View &a = c.in[0], &b = c.in[1];
    TW_TRY(want_real(a, "a"));
    TW_TRY(want_dtype_of(b, "b", a, "a"));
    TW_TRY(want_ndim(a, "a", 1, kMaxDims));
    TW_TRY(want_ndim(b, "b", 1, kMaxDims));
    const Product p = product_of(a, b);
    const int64_t kb = b.shape[b.ndim > 1 ? b.ndim - 2 : 0];
    if (p.k != kb)
        return fail(Status::shape, "b", "a has shape %s, K=%lld, but b has shape %s, K=%lld; want equal K",
                    shape_text(a).text, static_cast<long long>(p.k), shape_text(b).text, static_cast<long long>(kb));
    const int la = a.ndim > 2 ? a.ndim - 2 : 0, lb = b.ndim > 2 ? b.ndim - 2 : 0, lead = la > lb ? la : lb;
    View y{};
    y.dtype = a.dtype;
    for (int d = lead; d > 0; --d) {
        const int64_t m = d <= la ? a.shape[la - d] : 1, n = d <= lb ? b.shape[lb - d] : 1;
        if (m != n && m != 1 && n != 1)
            return fail(Status::shape, "b", "a has shape %s and b has %s; want leading axes that broadcast",
                        shape_text(a).text, shape_text(b).text);
        y.shape[y.ndim++] = m == 1 ? n : m;
    }
    if (a.ndim > 1) y.shape[y.ndim++] = p.m;
    if (b.ndim > 1) y.shape[y.ndim++] = p.n;
    r.n_out = 1;
    r.out[0] = y;
    r.flops = 2.0 * static_cast<double>(numel(y)) * static_cast<double>(p.k);
    return Status::ok;
}

template <class T>
Status matmul(const Call& c) {
    const View &a = c.in[0], &b = c.in[1], &y = c.out[0];
    const Product p = product_of(a, b);
    const int a_inner = a.ndim > 1 ? 2 : 1, b_inner = b.ndim > 1 ? 2 : 1, y_inner = (a.ndim > 1) + (b.ndim > 1);
    Gemm<T> g{};
    g.m = p.m, g.n = p.n, g.k = p.k;
    g.c_col = b.ndim > 1 ? y.stride[y.ndim - 1] : 1;
    g.c_row = a.ndim > 1 ? y.stride[y.ndim - (b.ndim > 1 ? 2 : 1)] : 1;
    View la = leading(a, a_inner), lb = leading(b, b_inner), ly = leading(y, y_inner);
    // One b for all: the batch is only more rows, if a and y can be walked as such.
    if (lb.ndim == 0 && a.ndim > 2) {
        View ra = leading(a, 1), ry = leading(y, b.ndim > 1 ? 1 : 0);
        const View* rows[] = {&ry, &ra};
        const Walk merged = walk_over(rows, 2, ry.ndim, ry.shape);
        if (merged.ndim == 0) {
            g.m = merged.row, g.c_row = merged.stride[0];
            ly.ndim = la.ndim = 0;
            g.a = {a.as<T>(), merged.stride[1], p.a_col};
            g.b = {b.as<T>(), p.b_row, p.b_col};
            g.c = y.as<T>();
            g.packed_b = static_cast<const T*>(c.packed);
            return gemm(g) ? Status::ok
                           : fail(Status::memory, "", "no memory for packed panels; want smaller operands");
        }
    }
    const View* views[] = {&ly, &la, &lb};
    const Walk w = walk_over(views, 3, ly.ndim, ly.shape);
    return for_batch(w, p.m * p.n * p.k, [&](char* const* at) {
        Gemm<T> one = g;
        one.a = {reinterpret_cast<const T*>(at[1]), p.a_row, p.a_col};
        one.b = {reinterpret_cast<const T*>(at[2]), p.b_row, p.b_col};
        one.c = reinterpret_cast<T*>(at[0]);
        one.packed_b = static_cast<const T*>(c.packed);
        return gemm(one);
    });
}

Status run_matmul(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? matmul<float>(c) : matmul<double>(c);
}

int64_t matmul_packed_size(const Call& c) {
    const View& b = c.in[1];
    if (!given(b) || b.ndim != 2 || (b.dtype != DType::f32 && b.dtype != DType::f64)) return 0;
    return b.dtype == DType::f32 ? 4 * packed_elements<float>(b.shape[0], b.shape[1])
                                 : 8 * packed_elements<double>(b.shape[0], b.shape[1]);
}

void matmul_pack(const Call& c, void* packed) {
    const View& b = c.in[1];
    if (b.dtype == DType::f32)
        pack_all(Matrix<float>{b.as<float>(), b.stride[0], b.stride[1]}, b.shape[0], b.shape[1],
                 static_cast<float*>(packed));
    else
        pack_all(Matrix<double>{b.as<double>(), b.stride[0], b.stride[1]}, b.shape[0], b.shape[1],
                 static_cast<double*>(packed));
}

// ---- linear -------------------------------------------------------------------------------------------------------------

Status infer_linear(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &b = c.in[2];
    TW_TRY(want_real(x, "x"));
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    TW_TRY(want_dtype_of(w, "w", x, "x"));
    TW_TRY(want_ndim(w, "w", 2, 2));
    const int64_t in = x.shape[x.ndim - 1], out = w.shape[0];
    if (w.shape[1] != in)
        return fail(Status::shape, "w", "x has I=%lld but w has shape %s; want w of shape (O, %lld)",
                    static_cast<long long>(in), shape_text(w).text, static_cast<long long>(in));
    if (given(b)) {
        TW_TRY(want_dtype_of(b, "b", x, "x"));
        if (b.ndim != 1 || b.shape[0] != out)
            return fail(Status::shape, "b", "b has shape %s but w has O=%lld; want (%lld,)", shape_text(b).text,
                        static_cast<long long>(out), static_cast<long long>(out));
    }
    View y = result(x.dtype, x.ndim, x.shape);
    y.shape[y.ndim - 1] = out;
    r.n_out = 1;
    r.out[0] = y;
    r.flops = 2.0 * static_cast<double>(numel(y)) * static_cast<double>(in);
    return Status::ok;
}

template <class T>
Status linear(const Call& c) {
    const View &x = c.in[0], &w = c.in[1], &b = c.in[2], &y = c.out[0];
    Scratch bias_scratch(static_cast<size_t>(w.shape[0] + 1) * sizeof(T));
    Gemm<T> g{};
    g.k = w.shape[1], g.n = w.shape[0];
    g.b = {w.as<T>(), w.stride[1], w.stride[0]};
    g.packed_b = static_cast<const T*>(c.packed);
    g.c_col = y.stride[y.ndim - 1];
    g.activation = c.attr[0].is_none ? Activation::none : static_cast<Activation>(c.attr[0].choice + 1);
    if (given(b)) {
        T* bias = bias_scratch.template as<T>();
        if (!bias) return fail(Status::memory, "b", "no memory for the bias; want a smaller one");
        for (int64_t i = 0; i < g.n; ++i) bias[i] = b.as<T>()[i * b.stride[0]];
        g.bias_col = bias;
    }
    const View lx = leading(x, 1), ly = leading(y, 1);
    const View* views[] = {&ly, &lx};
    const Walk rows = walk_over(views, 2, ly.ndim, ly.shape);
    g.m = rows.row;
    g.c_row = rows.stride[0];
    bool enough = true;
    for (int64_t i = 0; i < walk_rows(rows); ++i) {
        char* at[kMaxWalked];
        walk_seek(rows, i, at);
        g.c = reinterpret_cast<T*>(at[0]);
        g.a = {reinterpret_cast<const T*>(at[1]), rows.stride[1], x.stride[x.ndim - 1]};
        enough = gemm(g) && enough;
    }
    return enough ? Status::ok : fail(Status::memory, "", "no memory for packed panels; want smaller operands");
}

Status run_linear(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? linear<float>(c) : linear<double>(c);
}

int64_t linear_packed_size(const Call& c) {
    const View& w = c.in[1];
    if (!given(w) || w.ndim != 2 || (w.dtype != DType::f32 && w.dtype != DType::f64)) return 0;
    return w.dtype == DType::f32 ? 4 * packed_elements<float>(w.shape[1], w.shape[0])
                                 : 8 * packed_elements<double>(w.shape[1], w.shape[0]);
}

void linear_pack(const Call& c, void* packed) {
    const View& w = c.in[1];
    if (w.dtype == DType::f32)
        pack_all(Matrix<float>{w.as<float>(), w.stride[1], w.stride[0]}, w.shape[1], w.shape[0],
                 static_cast<float*>(packed));
    else
        pack_all(Matrix<double>{w.as<double>(), w.stride[1], w.stride[0]}, w.shape[1], w.shape[0],
                 static_cast<double*>(packed));
}

constexpr Operand kAB[] = {{"a"}, {"b"}};
constexpr Operand kXWB[] = {{"x"}, {"w"}, {"b", Role::optional}};
constexpr AttrSpec kLinearAttrs[] = {
    {.name = "activation", .kind = AttrKind::choice, .choices = "relu|sigmoid|tanh|gelu", .none_ok = true}};

}  // namespace

const OpDef op_matmul = {"matmul", kAB, 2, nullptr, 0, infer_matmul, run_matmul, 0, matmul_packed_size, matmul_pack};
const OpDef op_linear = {"linear",     kXWB,       3, kLinearAttrs,       1,
                         infer_linear, run_linear, 0, linear_packed_size, linear_pack};

}  // namespace tw::TW_ISA
