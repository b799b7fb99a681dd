// Products of 8-bit matrices: y = (a - a_zero) @ (b - b_zero) in int32, or requantised to 8 bits,
// y = clamp(rint(sum (a_scale b_scale / y_scale)) + y_zero).
//
// Method    gemm/quantized.h, with numpy's rules for the shapes; strides are read in place.
// Numerics  integer sums are exact: a K whose sum could leave int32 is an error. Requantisation is rounded operation by
//           operation in float32. So results are bit-equal on every tier and device.
// Threads   a batch of small products is split by product, everything else inside int_gemm.
// Source    ONNX MatMulInteger-10, QLinearMatMul-21.
#include "core/product.h"
#include "gemm/quantized.h"
#include "ops/ops.h"
#include "simd/quantize.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kSmallProduct = int64_t{1} << 21;  // multiply-adds below which a batch is split by product

Status want_bytes(const View& v, const char* name) {
    if (v.dtype == DType::i8 || v.dtype == DType::u8) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want int8 or uint8", name, name_of(v.dtype));
}

Status no_memory() { return fail(Status::memory, "", "no memory for packed panels; want smaller operands"); }

int32_t value_at(const View& v, int64_t i) { return v.dtype == DType::u8 ? v.as<uint8_t>()[i] : v.as<int8_t>()[i]; }

// The largest |value - zero| of an operand.
int64_t reach_of(const View& v, const View& zero) { return given(zero) || v.dtype == DType::u8 ? 255 : 128; }

// Terms whose sum must stay in int32.
Status want_depth(int64_t k, int64_t reach, const char* name, const char* letter) {
    const int64_t most = 0x7fffffff / reach;
    if (k <= most) return Status::ok;
    return fail(Status::shape, name,
                "%s=%lld terms could leave int32; want %lld or fewer for these types and zero points", letter,
                static_cast<long long>(k), static_cast<long long>(most));
}

// ---- shapes ----------------------------------------

Status infer_product(const View& a, const View& b, View& y) {
    TW_TRY(want_bytes(a, "a"));
    TW_TRY(want_bytes(b, "b"));
    y = View{};
    return resolve_product(a, b, y);
}

// One number, one per row of a or column of b, or as many axes as the matrix with 1 in place of K.
Status want_granularity(const View& v, const char* name, const View& matrix, const char* matrix_name, bool rows) {
    const int axis = matrix.ndim > 1 ? matrix.ndim - (rows ? 2 : 1) : -1;
    const int64_t size = axis < 0 ? 1 : matrix.shape[axis];
    if (v.ndim == 0 || (v.ndim == 1 && (v.shape[0] == 1 || v.shape[0] == size))) return Status::ok;
    bool fits = v.ndim == matrix.ndim && matrix.ndim > 1;
    for (int d = 0; fits && d < v.ndim; ++d) {
        const bool summed = d == matrix.ndim - (rows ? 1 : 2);
        fits = v.shape[d] == 1 || (!summed && v.shape[d] == matrix.shape[d]);
    }
    if (fits) return Status::ok;
    return fail(Status::shape, name,
                "%s has shape %s but %s has shape %s; want (), (%lld,), or that shape with 1 for K", name,
                shape_text(v).text, matrix_name, shape_text(matrix).text, static_cast<long long>(size));
}

Status want_zero(const View& zero, const char* name, const View& matrix, const char* matrix_name, bool rows) {
    if (!given(zero)) return Status::ok;
    TW_TRY(want_dtype_of(zero, name, matrix, matrix_name));
    return want_granularity(zero, name, matrix, matrix_name, rows);
}

// The step from row to row (column to column) of a zero point or scale.
int64_t step_of(const View& v, bool rows) {
    if (!given(v) || v.ndim == 0) return 0;
    const int axis = v.ndim == 1 ? 0 : v.ndim - (rows ? 2 : 1);
    return v.shape[axis] == 1 ? 0 : v.stride[axis];
}

// Where the matrix number `index` of a batch of shape y[: lead] begins in an operand whose own leading axes broadcast to it.
int64_t offset_of(const View& v, int inner, const View& y, int lead, int64_t index) {
    const int own = v.ndim > inner ? v.ndim - inner : 0;
    int64_t offset = 0;
    for (int d = lead - 1; d >= 0; --d) {
        const int64_t i = index % y.shape[d];
        index /= y.shape[d];
        const int at = d - lead + own;
        if (at >= 0 && v.shape[at] != 1) offset += i * v.stride[at];
    }
    return offset;
}

// A zero point or scale of one product: element i at data[i * step].
struct Along {
    View v;
    int64_t offset, step;
    float scale(int64_t i) const { return v.as<float>()[offset + i * step]; }
    int32_t zero(int64_t i) const { return given(v) ? value_at(v, offset + i * step) : 0; }
};

// ---- one product ----------------------------------------

struct Left {
    Bytes a;
    int64_t k;
    Along zero;
};

void pack_left(const void* context, int64_t first, int64_t rows, bool sums, DotLeft* to, int64_t stride,
               RowTerms* terms) {
    const Left& l = *static_cast<const Left*>(context);
    for (int64_t i = 0; i < rows; ++i)
        pack_left_row(l.a, first + i, l.k, l.zero.zero(first + i), sums, to + i * stride, terms + i);
}

// How the sums of one product become codes of y.
struct Requantize {
    char* y;
    int64_t y_row, y_col;
    const float *row_scale, *column_scale;
    float y_scale, zero;
};

template <class Q>
void requantize(const void* context, const IntTile& t) {
    const Requantize& r = *static_cast<const Requantize*>(context);
    constexpr int L = kLanes<float>;
    constexpr float low = static_cast<Q>(-1) < 0 ? -128.f : 0.f;
    for (int i = 0; i < t.m; ++i)
        for (int j = 0; j < t.n; j += L) {
            const int lanes = t.n - j < L ? t.n - j : L;
            const f32v both = apart(splat(r.row_scale[t.m0 + i]) * load_n(r.column_scale + t.n0 + j, lanes));
            const f32v v = apart(to_f32(load(t.sums + i * kIntNR + j)) * (both / splat(r.y_scale)));
            const auto codes = narrow8<Q>(code_of(v, splat(r.zero), low, low + 255.f));
            Q* const y = reinterpret_cast<Q*>(r.y) + (t.m0 + i) * r.y_row + (t.n0 + j) * r.y_col;
            if (r.y_col == 1)
                store_part_n(y, codes, lanes);
            else
                for (int e = 0; e < lanes; ++e) y[e * r.y_col] = codes[e];
        }
}

// The operands of both ops; scales only where the result is requantised.
struct Operands {
    View a, b, a_zero, b_zero, a_scale, b_scale;
    View y;
    float y_scale, y_zero;
};

bool run_product(const Operands& o, const Product& p, int lead, int64_t index) {
    const bool scaled = given(o.a_scale);
    const bool zeros = given(o.b_zero) || right_flip(o.b.dtype == DType::u8);
    const auto along = [&](const View& v, bool rows) {
        return Along{v, given(v) ? offset_of(v, 2, o.y, lead, index) : 0, step_of(v, rows)};
    };
    const auto matrix = [&](const View& v) {
        return v.as<char>() + offset_of(v, v.ndim > 1 ? 2 : 1, o.y, lead, index) * item_size(v.dtype);
    };
    const Left left = {{matrix(o.a), p.a_row, p.a_col, o.a.dtype == DType::u8}, p.k, along(o.a_zero, true)};
    const int64_t y_row = o.a.ndim > 1 ? o.y.stride[lead] : 0, y_col = o.b.ndim > 1 ? o.y.stride[o.y.ndim - 1] : 1;
    char* const y = o.y.as<char>() + offset_of(o.y, o.y.ndim - lead, o.y, lead, index) * item_size(o.y.dtype);
    Scratch zero_scratch(static_cast<size_t>(zeros ? p.n : 1) * sizeof(int32_t));
    Scratch scale_scratch(static_cast<size_t>(scaled ? p.m + p.n : 1) * sizeof(float));
    int32_t* const b_zero = zero_scratch.as<int32_t>();
    float* const row_scale = scale_scratch.as<float>();
    if (!b_zero || !row_scale) return false;
    IntGemm g{};
    g.m = p.m, g.n = p.n, g.k = p.k;
    g.pack_a = pack_left, g.a = &left;
    g.b = {matrix(o.b), p.b_row, p.b_col, o.b.dtype == DType::u8};
    g.a_unsigned = left.a.is_unsigned, g.a_centred = !given(o.a_zero);
    if (g.a_centred && !zeros && left_in_place(left.a, p.m, p.k))
        g.packed_a = static_cast<const DotLeft*>(left.a.data), g.a_row = left.a.row;
    if (zeros) {
        const Along zero = along(o.b_zero, false);
        for (int64_t j = 0; j < p.n; ++j) b_zero[j] = right_zero(g.b.is_unsigned, zero.zero(j));
        g.b_zero = b_zero;
    }
    if (!scaled) {
        g.c = reinterpret_cast<int32_t*>(y), g.c_row = y_row, g.c_col = y_col;
        return int_gemm(g);
    }
    float* const column_scale = row_scale + p.m;
    const Along a_scale = along(o.a_scale, true), b_scale = along(o.b_scale, false);
    for (int64_t i = 0; i < p.m; ++i) row_scale[i] = a_scale.scale(i);
    for (int64_t j = 0; j < p.n; ++j) column_scale[j] = b_scale.scale(j);
    const Requantize r = {y, y_row, y_col, row_scale, column_scale, o.y_scale, o.y_zero};
    g.finish = o.y.dtype == DType::u8 ? requantize<uint8_t> : requantize<int8_t>;
    g.context = &r;
    return int_gemm(g);
}

Status run_products(const Operands& o) {
    if (numel(o.y) == 0) return Status::ok;
    Product p = product_of(o.a, o.b);
    const int lead = o.y.ndim - (o.a.ndim > 1) - (o.b.ndim > 1);
    int64_t batch = 1;
    for (int d = 0; d < lead; ++d) batch *= o.y.shape[d];
    const int64_t work = p.m * p.n * max_of(p.k, 1);
    const int64_t group = work < kSmallProduct ? max_of(1, kSmallProduct / 16 / work) : batch;
    bool enough = true;
    parallel(ceil_div(batch, group), [&](int64_t chunk) {
        for (int64_t i = chunk * group; i < min_of(chunk * group + group, batch); ++i)
            if (!run_product(o, p, lead, i)) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    });
    return enough ? Status::ok : no_memory();
}

// ---- matmul_integer ----------------------------------------

Status infer_matmul_integer(Call& c, Inferred& r) {
    const View &a = c.in[0], &b = c.in[1], &a_zero = c.in[2], &b_zero = c.in[3];
    TW_TRY(infer_product(a, b, r.out[0]));
    TW_TRY(want_zero(a_zero, "a_zero", a, "a", true));
    TW_TRY(want_zero(b_zero, "b_zero", b, "b", false));
    const int64_t k = a.shape[a.ndim - 1];
    TW_TRY(want_depth(k, reach_of(a, a_zero) * reach_of(b, b_zero), "a", "K"));
    r.out[0].dtype = DType::i32;
    r.n_out = 1;
    r.flops = 2.0 * static_cast<double>(numel(r.out[0])) * static_cast<double>(k);
    return Status::ok;
}

Status run_matmul_integer(const Call& c) {
    Operands o{};
    o.a = c.in[0], o.b = c.in[1], o.a_zero = c.in[2], o.b_zero = c.in[3], o.y = c.out[0];
    o.a_scale.dtype = o.b_scale.dtype = DType::none;
    return run_products(o);
}

// ---- qlinear_matmul ----------------------------------------

Status want_scale(const View& v, const char* name) {
    if (v.dtype == DType::f32) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want float32", name, name_of(v.dtype));
}

Status want_one(const View& v, const char* name) {
    if (v.ndim == 0 || (v.ndim == 1 && v.shape[0] == 1)) return Status::ok;
    return fail(Status::shape, name, "%s has shape %s; want one number", name, shape_text(v).text);
}

Status infer_qlinear_matmul(Call& c, Inferred& r) {
    const View &a = c.in[0], &a_scale = c.in[1], &a_zero = c.in[2], &b = c.in[3], &b_scale = c.in[4];
    const View &b_zero = c.in[5], &y_scale = c.in[6], &y_zero = c.in[7];
    TW_TRY(infer_product(a, b, r.out[0]));
    TW_TRY(want_scale(a_scale, "a_scale"));
    TW_TRY(want_granularity(a_scale, "a_scale", a, "a", true));
    TW_TRY(want_zero(a_zero, "a_zero", a, "a", true));
    TW_TRY(want_scale(b_scale, "b_scale"));
    TW_TRY(want_granularity(b_scale, "b_scale", b, "b", false));
    TW_TRY(want_zero(b_zero, "b_zero", b, "b", false));
    TW_TRY(want_scale(y_scale, "y_scale"));
    TW_TRY(want_one(y_scale, "y_scale"));
    TW_TRY(want_bytes(y_zero, "y_zero"));
    TW_TRY(want_one(y_zero, "y_zero"));
    const int64_t k = a.shape[a.ndim - 1];
    TW_TRY(want_depth(k, reach_of(a, a_zero) * reach_of(b, b_zero), "a", "K"));
    r.out[0].dtype = y_zero.dtype;
    r.n_out = 1;
    r.flops = 2.0 * static_cast<double>(numel(r.out[0])) * static_cast<double>(k);
    return Status::ok;
}

Status run_qlinear_matmul(const Call& c) {
    Operands o{};
    o.a = c.in[0], o.a_scale = c.in[1], o.a_zero = c.in[2], o.b = c.in[3], o.b_scale = c.in[4], o.b_zero = c.in[5];
    o.y = c.out[0];
    o.y_scale = *c.in[6].as<float>();
    o.y_zero = static_cast<float>(value_at(c.in[7], 0));
    return run_products(o);
}

constexpr Operand kInteger[] = {{"a"}, {"b"}, {"a_zero", Role::optional}, {"b_zero", Role::optional}};
constexpr Operand kLinear[] = {{"a"}, {"a_scale"}, {"a_zero"}, {"b"}, {"b_scale"}, {"b_zero"}, {"y_scale"}, {"y_zero"}};

}  // namespace

extern const Entry op_matmul_integer = {"matmul_integer",     kInteger,          4, nullptr, 0,
                                        infer_matmul_integer, run_matmul_integer};
extern const Entry op_qlinear_matmul = {"qlinear_matmul",     kLinear,           8, nullptr, 0,
                                        infer_qlinear_matmul, run_qlinear_matmul};

}  // namespace tw::TW_ISA
