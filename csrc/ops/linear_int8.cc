// A dense layer with 8-bit weights: y = activation(x (w_scale (w - w_zero))^T + b), activations quantised on the way.
//
// Method    gemm/quantized.h. Each row of x is quantised to 0..255 by its own range while it is packed; finished tiles of
//           sums are scaled back by row and column, biased and activated in registers. prepare() keeps w in panels.
// Numerics  the sums are exact. Scales, products and the bias are float32, each operation rounded by itself: bit-equal on
//           every tier and device but for the ULP of the activation. 16-bit results are rounded once, at the store. A row
//           with a NaN or an infinity is NaN.
// Threads   tiles of y are independent.
// Source    Jacob et al., "Quantization and training of neural networks", 2018; a range per row as in Dettmers et al.,
//           "LLM.int8()", 2022.
#include "core/check.h"
#include "core/walk.h"
#include "gemm/micro.h"
#include "gemm/quantized.h"
#include "ops/ops.h"
#include "simd/quantize.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kMostTerms = 0x7fffffff / (255 * 128), kMostShifted = 0x7fffffff / (255 * 255);

float number_at(const View& v, int64_t i) {
    switch (v.dtype) {
        case DType::f64: return static_cast<float>(v.as<double>()[i]);
        case DType::f16: return to_float(v.as<f16>()[i]);
        case DType::bf16: return to_float(v.as<bf16>()[i]);
        default: return v.as<float>()[i];
    }
}

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &w_scale = c.in[2], &b = c.in[3], &w_zero = c.in[4];
    if (!is_float(x.dtype))
        return fail(Status::dtype, "x", "x has dtype %s; want float32, float64, float16 or bfloat16", name_of(x.dtype));
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    if (w.dtype != DType::i8 && w.dtype != DType::u8)
        return fail(Status::dtype, "w", "w has dtype %s; want int8 or uint8", name_of(w.dtype));
    TW_TRY(want_ndim(w, "w", 2, 2));
    const int64_t in = x.shape[x.ndim - 1], out = w.shape[0];
    const auto want_each = [&](const View& v, const char* name, bool or_one) {
        if (v.ndim == 1 && v.shape[0] == out) return Status::ok;
        if (or_one && (v.ndim == 0 || (v.ndim == 1 && v.shape[0] == 1))) return Status::ok;
        return fail(Status::shape, name, "%s has shape %s but w has O=%lld; want %s(%lld,)", name, shape_text(v).text,
                    static_cast<long long>(out), or_one ? "() or " : "", static_cast<long long>(out));
    };
    if (w.shape[1] != in)
        return fail(Status::shape, "w", "x has I=%lld but w has shape %s; want w of shape (O, %lld)",
                    static_cast<long long>(in), shape_text(w).text, static_cast<long long>(in));
    if (w_scale.dtype != DType::f32) TW_TRY(want_dtype_of(w_scale, "w_scale", x, "x"));
    TW_TRY(want_each(w_scale, "w_scale", true));
    if (given(b)) {
        TW_TRY(want_dtype_of(b, "b", x, "x"));
        TW_TRY(want_each(b, "b", false));
    }
    if (given(w_zero)) {
        TW_TRY(want_dtype_of(w_zero, "w_zero", w, "w"));
        TW_TRY(want_each(w_zero, "w_zero", true));
    }
    const int64_t most = given(w_zero) || w.dtype == DType::u8 ? kMostShifted : kMostTerms;
    if (in > most)
        return fail(Status::shape, "w", "I=%lld terms could leave int32; want %lld or fewer",
                    static_cast<long long>(in), static_cast<long long>(most));
    View y = result(x.dtype, x.ndim, x.shape);
    y.shape[y.ndim - 1] = out;
    r.n_out = 1;
    r.out[0] = y;
    r.flops = 2.0 * static_cast<double>(numel(y)) * static_cast<double>(in);
    return Status::ok;
}

// ---- x ----------------------------------------

template <class T>
struct Rows {
    const T* x;
    int64_t row, col, k;
};

template <class T>
void pack_rows(const void* context, int64_t first, int64_t rows, bool sums, DotLeft* to, int64_t stride,
               RowTerms* terms) {
    const auto& r = *static_cast<const Rows<T>*>(context);
    const bool in_place = __is_same(T, float) && r.col == 1;
    Scratch scratch(in_place ? 64 : static_cast<size_t>(r.k + kLanes<float>) * sizeof(float));
    for (int64_t i = 0; i < rows; ++i) {
        const T* x = r.x + (first + i) * r.row;
        const float* row = reinterpret_cast<const float*>(x);
        if (!in_place) {
            float* const copy = scratch.as<float>();
            int64_t k = 0;
            if constexpr (sizeof(T) <= sizeof(float))
                if (r.col == 1)
                    for (; k + kLanes<float> <= r.k; k += kLanes<float>) store(copy + k, load_as<float>(x + k));
            for (; k < r.k; ++k)
                if constexpr (__is_same(T, double))
                    copy[k] = static_cast<float>(x[k * r.col]);
                else
                    copy[k] = to_float(x[k * r.col]);
            row = copy;
        }
        quantize_left_row(row, r.k, sums, to + i * stride, terms + i);
    }
}

// ---- y ----------------------------------------

struct Finish {
    char* y;
    int64_t row, col;
    const float *scale, *bias;  // of each column; bias may be null
    Activation activation;
};

template <class T>
TW_INLINE void put_tile_row(T* y, int64_t col, f32v v, int lanes) {
    if constexpr (__is_same(T, double)) {
        for (int e = 0; e < lanes; ++e) y[e * col] = static_cast<double>(v[e]);
    } else if (col == 1) {
        lanes == kLanes<float> ? store_from(y, v) : store_from_n(y, v, lanes);
    } else {
        for (int e = 0; e < lanes; ++e) y[e * col] = from_float<T>(v[e]);
    }
}

template <class T, bool Biased>
TW_INLINE void finish_vector(const Finish& f, const int32_t* sums, f32v own, int64_t n, int lanes, T* y) {
    const bool whole = lanes == kLanes<float>;
    const f32v both = apart(own * (whole ? load(f.scale + n) : load_n(f.scale + n, lanes)));
    f32v v = apart(to_f32(load(sums)) * both);
    if (Biased) v = v + (whole ? load(f.bias + n) : load_n(f.bias + n, lanes));
    if (f.activation != Activation::none) v = activate(v, f.activation);
    put_tile_row(y, f.col, v, lanes);
}

template <class T, bool Biased>
void finish(const void* context, const IntTile& t) {
    const Finish f = *static_cast<const Finish*>(context);
    constexpr int L = kLanes<float>;
    for (int i = 0; i < t.m; ++i) {
        const f32v own = splat(t.rows[i].scale);
        const int32_t* const sums = t.sums + i * kIntNR;
        T* const y = reinterpret_cast<T*>(f.y) + (t.m0 + i) * f.row + t.n0 * f.col;
        int j = 0;
        for (; j + L <= t.n; j += L) finish_vector<T, Biased>(f, sums + j, own, t.n0 + j, L, y + j * f.col);
        if (j < t.n) finish_vector<T, Biased>(f, sums + j, own, t.n0 + j, t.n - j, y + j * f.col);
    }
}

template <class T>
Status linear_int8(const Call& c) {
    const View &x = c.in[0], &w = c.in[1], &w_scale = c.in[2], &b = c.in[3], &w_zero = c.in[4], &y = c.out[0];
    const int64_t k = w.shape[1], n = w.shape[0];
    const bool shifted = given(w_zero) || right_flip(w.dtype == DType::u8);
    Scratch columns(static_cast<size_t>(3 * n + 16) * sizeof(float));
    float* const made = columns.as<float>();
    if (!made) return fail(Status::memory, "w", "no memory for the scales; want fewer outputs");
    const float *scale = made, *bias = made + n;
    int32_t* const zero = reinterpret_cast<int32_t*>(made + 2 * n);
    const int64_t scale_step = w_scale.ndim && w_scale.shape[0] > 1 ? w_scale.stride[0] : 0;
    const int64_t zero_step = given(w_zero) && w_zero.ndim && w_zero.shape[0] > 1 ? w_zero.stride[0] : 0;
    if (w_scale.dtype == DType::f32 && scale_step == 1)
        scale = w_scale.as<float>();
    else
        for (int64_t j = 0; j < n; ++j) made[j] = number_at(w_scale, j * scale_step);
    if (given(b) && b.dtype == DType::f32 && b.stride[0] == 1)
        bias = b.as<float>();
    else
        for (int64_t j = 0; given(b) && j < n; ++j) made[n + j] = number_at(b, j * b.stride[0]);
    for (int64_t j = 0; shifted && j < n; ++j) {
        const int32_t own = !given(w_zero)         ? 0
                            : w.dtype == DType::u8 ? w_zero.as<uint8_t>()[j * zero_step]
                                                   : w_zero.as<int8_t>()[j * zero_step];
        zero[j] = right_zero(w.dtype == DType::u8, own);
    }
    const Activation activation = c.attr[0].is_none ? Activation::none : static_cast<Activation>(c.attr[0].choice + 1);
    View lx = x, ly = y;
    --lx.ndim, --ly.ndim;
    const View* views[] = {&ly, &lx};
    constexpr int64_t kSize = sizeof(T);
    const Walk rows = walk_over(views, 2, ly.ndim, ly.shape);
    bool enough = true;
    for (int64_t i = 0; i < walk_rows(rows); ++i) {
        char* at[kMaxWalked];
        walk_seek(rows, i, at);
        const Rows<T> left = {reinterpret_cast<const T*>(at[1]), rows.stride[1], x.stride[x.ndim - 1], k};
        const Finish last = {at[0], rows.stride[0], y.stride[y.ndim - 1], scale, given(b) ? bias : nullptr, activation};
        IntGemm g{};
        g.m = rows.row, g.n = n, g.k = k;
        g.pack_a = pack_rows<T>, g.a = &left;
        g.b = {w.data, w.stride[1], w.stride[0], w.dtype == DType::u8};
        g.packed_b = static_cast<const int8_t*>(c.packed);
        g.b_zero = shifted ? zero : nullptr;
        g.finish = given(b) ? finish<T, true> : finish<T, false>, g.context = &last;
        g.y = last.y, g.y_row = last.row * kSize, g.y_col = last.col * kSize;
        enough = int_gemm(g) && enough;
    }
    return enough ? Status::ok : fail(Status::memory, "", "no memory for packed panels; want smaller operands");
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    switch (c.in[0].dtype) {
        case DType::f64: return linear_int8<double>(c);
        case DType::f16: return linear_int8<f16>(c);
        case DType::bf16: return linear_int8<bf16>(c);
        default: return linear_int8<float>(c);
    }
}

int64_t packed_size(const Call& c) {
    const View& w = c.in[1];
    if (!given(w) || w.ndim != 2 || (w.dtype != DType::i8 && w.dtype != DType::u8)) return 0;
    return packed_right_bytes(w.shape[1], w.shape[0]);
}

void pack(const Call& c, void* packed) {
    const View& w = c.in[1];
    pack_right({w.data, w.stride[1], w.stride[0], w.dtype == DType::u8}, w.shape[1], w.shape[0],
               static_cast<int8_t*>(packed));
}

constexpr Operand kOperands[] = {{"x"}, {"w"}, {"w_scale"}, {"b", Role::optional}, {"w_zero", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true}};

}  // namespace

extern const Entry op_linear_int8 = {"linear_int8", kOperands, 5, kAttrs, 1, infer, run, 0, packed_size, pack};

}  // namespace tw::TW_ISA
