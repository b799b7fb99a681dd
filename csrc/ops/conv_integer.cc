// Convolutions of 8-bit codes over 1, 2 or 3 spatial axes, exact in int32:
//     sum[n,k,p] = sum_{c,t} (w[k,c,t] - w_zero[k]) (x[n,c, p*stride + t*dilation - padding] - x_zero)
//
//   conv_integer   y = sum
//   qlinear_conv   y = clamp(rint((sum + b[k]) (x_scale w_scale[k] / y_scale)) + y_zero)
//   conv_int8      y = act(sum (x_scale w_scale[k]) + b[k]), x quantised on the way by the range of its image
//
// Method    conv_integer_problem.h: filters times windows; what becomes of a tile of sums is decided here.
// Numerics  integer sums are exact: a number of terms whose sum could leave int32 is an error. Float operations around
//           them are rounded one by one: bit-equal on every tier and device but for the ULP of an activation. An image
//           with a NaN or an infinity is NaN.
// Threads   tiles of y; small images and groups side by side.
// Source    ONNX ConvInteger-10, QLinearConv-10; Jacob et al., "Quantization and training of neural networks", 2018.
#include "gemm/micro.h"
#include "ops/conv_integer_problem.h"
#include "simd/quantize.h"
#include "simd/widen.h"

namespace tw::TW_ISA {
namespace {

// ---- shapes -----------------------------------------------------------------------------------------------------------

Status want_bytes(const View& v, const char* name) {
    if (v.dtype == DType::i8 || v.dtype == DType::u8) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want int8 or uint8", name, name_of(v.dtype));
}

Status want_one(const View& v, const char* name) {
    if (v.ndim == 0 || (v.ndim == 1 && v.shape[0] == 1)) return Status::ok;
    return fail(Status::shape, name, "%s has shape %s; want one number", name, shape_text(v).text);
}

// One number, or one per filter.
Status want_filters(const View& v, const char* name, const View& w) {
    if (v.ndim == 0 || (v.ndim == 1 && (v.shape[0] == 1 || v.shape[0] == w.shape[0]))) return Status::ok;
    return fail(Status::shape, name, "%s has shape %s but w has K=%lld; want () or (%lld,)", name, shape_text(v).text,
                static_cast<long long>(w.shape[0]), static_cast<long long>(w.shape[0]));
}

Status want_f32(const View& v, const char* name) {
    if (v.dtype == DType::f32) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want float32", name, name_of(v.dtype));
}

// x, w and the attributes; y but for its dtype.
Status infer_conv(Call& c, const View& x, const View& w, const View& w_zero, int64_t x_reach, Inferred& r) {
    TW_TRY(want_ndim(x, "x", 3, 5));
    TW_TRY(want_bytes(w, "w"));
    View y = result(DType::i32, x.ndim, x.shape);
    TW_TRY(check_conv(x, w, c.attr[kStride], c.attr[kPadding], c.attr[kDilation], c.attr[kGroups], y.shape + 2, "x"));
    y.shape[1] = w.shape[0];
    if (given(w_zero)) {
        TW_TRY(want_dtype_of(w_zero, "w_zero", w, "w"));
        TW_TRY(want_filters(w_zero, "w_zero", w));
    }
    int64_t terms = w.shape[1];
    for (int d = 2; d < w.ndim; ++d) terms *= w.shape[d];
    const int64_t most = 0x7fffffff / (x_reach * (given(w_zero) || w.dtype == DType::u8 ? 255 : 128));
    if (terms > most)
        return fail(Status::shape, "w",
                    "w has %lld terms per filter, whose sum could leave int32; want %lld or fewer for these types and "
                    "zero points",
                    static_cast<long long>(terms), static_cast<long long>(most));
    r.n_out = 1;
    r.out[0] = y;
    r.flops = conv_flops(y, w);
    return Status::ok;
}

int64_t reach_of(const View& v, const View& zero) { return given(zero) || v.dtype == DType::u8 ? 255 : 128; }

// ---- numbers ----------------------------------------------------------------------------------------------------------

float number_at(const View& v, int64_t i) {
    switch (v.dtype) {
        case DType::f64: return static_cast<float>(v.as<double>()[i]);
        case DType::f16: return to_float(v.as<f16>()[i]);
        case DType::bf16: return to_float(v.as<bf16>()[i]);
        default: return v.as<float>()[i];
    }
}

// ---- conv_integer -----------------------------------------------------------------------------------------------------

Status infer_conv_integer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &x_zero = c.in[2], &w_zero = c.in[3];
    TW_TRY(want_bytes(x, "x"));
    TW_TRY(infer_conv(c, x, w, w_zero, reach_of(x, x_zero), r));
    if (given(x_zero)) {
        TW_TRY(want_dtype_of(x_zero, "x_zero", x, "x"));
        TW_TRY(want_one(x_zero, "x_zero"));
    }
    return Status::ok;
}

// Runs int_conv with the same zero point for every image, and a y that is a run.
template <class Y>
Status run_codes(const Call& c, IntConv q, const View& x_zero, const View& y) {
    if (numel(y) == 0) return Status::ok;
    const int64_t images = q.x.shape[0];
    Scratch zeros(static_cast<size_t>(images) * sizeof(int32_t)), y_scratch(run_bytes<Y>(y, 2));
    int32_t* const zero = zeros.as<int32_t>();
    if (!zero || !y_scratch.as<void>()) return no_memory();
    for (int64_t i = 0; i < images; ++i) zero[i] = given(x_zero) ? code_at(x_zero, 0) : 0;
    q.x_zero = zero;
    q.groups = c.attr[kGroups].i;
    q.packed = c.packed;
    q.y = as_run<Y>(y, 2, y_scratch, false);
    TW_TRY(int_conv(c, q));
    if (q.y.data != y.data) copy<Y>(y, q.y);
    return Status::ok;
}

Status run_conv_integer(const Call& c) {
    IntConv q{};
    q.x = c.in[0], q.w = c.in[1], q.w_zero = c.in[3];
    return run_codes<int32_t>(c, q, c.in[2], c.out[0]);
}

// ---- qlinear_conv -----------------------------------------------------------------------------------------------------

enum { kX, kXScale, kXZero, kW, kWScale, kWZero, kYScale, kYZero, kB };

Status infer_qlinear_conv(Call& c, Inferred& r) {
    const View &x = c.in[kX], &w = c.in[kW], &b = c.in[kB];
    TW_TRY(want_bytes(x, "x"));
    TW_TRY(infer_conv(c, x, w, c.in[kWZero], reach_of(x, c.in[kXZero]), r));
    TW_TRY(want_f32(c.in[kXScale], "x_scale"));
    TW_TRY(want_one(c.in[kXScale], "x_scale"));
    TW_TRY(want_dtype_of(c.in[kXZero], "x_zero", x, "x"));
    TW_TRY(want_one(c.in[kXZero], "x_zero"));
    TW_TRY(want_f32(c.in[kWScale], "w_scale"));
    TW_TRY(want_filters(c.in[kWScale], "w_scale", w));
    TW_TRY(want_f32(c.in[kYScale], "y_scale"));
    TW_TRY(want_one(c.in[kYScale], "y_scale"));
    TW_TRY(want_bytes(c.in[kYZero], "y_zero"));
    TW_TRY(want_one(c.in[kYZero], "y_zero"));
    if (given(b)) {
        if (b.dtype != DType::i32) return fail(Status::dtype, "b", "b has dtype %s; want int32", name_of(b.dtype));
        TW_TRY(want_shape(b, "b", 1, w.shape));
    }
    r.out[0].dtype = c.in[kYZero].dtype;
    return Status::ok;
}

struct Requantize {
    const float* scale;  // of each filter
    const int32_t* bias;
    float zero;
};

template <class Q>
void requantize(const void* context, const IntTile& t) {
    const Sink& sink = *static_cast<const Sink*>(context);
    const Requantize& r = *static_cast<const Requantize*>(sink.all);
    constexpr int L = kLanes<float>;
    constexpr float low = static_cast<Q>(-1) < 0 ? -128.f : 0.f;
    for (int i = 0; i < t.m; ++i) {
        const int64_t k = sink.filter + t.m0 + i;
        const u32v bias = splat(static_cast<uint32_t>(r.bias[k]));
        const f32v scale = splat(r.scale[k]), zero = splat(r.zero);
        Q* const y = reinterpret_cast<Q*>(sink.y) + (t.m0 + i) * sink.row + t.n0;
        for (int j = 0; j < t.n; j += L) {
            const i32v sum = bitcast<i32v>(bitcast<u32v>(load(t.sums + i * kIntNR + j)) + bias);
            const f32v v = apart(to_f32(sum) * scale);
            store_part_n(y + j, narrow8<Q>(code_of(v, zero, low, low + 255.f)), t.n - j < L ? t.n - j : L);
        }
    }
}

Status run_qlinear_conv(const Call& c) {
    const View &w = c.in[kW], &w_scale = c.in[kWScale], &b = c.in[kB], &y = c.out[0];
    const int64_t filters = w.shape[0];
    Scratch scratch(static_cast<size_t>(filters) * 2 * sizeof(float) + 64);
    float* const scale = scratch.as<float>();
    if (!scale) return no_memory();
    int32_t* const bias = reinterpret_cast<int32_t*>(scale + filters);
    const float x_scale = *c.in[kXScale].as<float>(), y_scale = *c.in[kYScale].as<float>();
    for (int64_t k = 0; k < filters; ++k) {
        scale[k] = x_scale * w_scale.as<float>()[k * filter_step(w_scale)] / y_scale;
        bias[k] = given(b) ? b.as<int32_t>()[k * b.stride[0]] : 0;
    }
    const Requantize last = {scale, bias, static_cast<float>(code_at(c.in[kYZero], 0))};
    IntConv q{};
    q.x = c.in[kX], q.w = w, q.w_zero = c.in[kWZero];
    q.finish = y.dtype == DType::u8 ? requantize<uint8_t> : requantize<int8_t>;
    q.context = &last;
    return run_codes<uint8_t>(c, q, c.in[kXZero], y);
}

// ---- conv_int8 --------------------------------------------------------------------------------------------------------

Status infer_conv_int8(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &w_scale = c.in[2], &b = c.in[3], &w_zero = c.in[4];
    TW_TRY(want_conv_float(x, "x"));
    TW_TRY(infer_conv(c, x, w, w_zero, 255, r));
    if (w_scale.dtype != DType::f32) TW_TRY(want_dtype_of(w_scale, "w_scale", x, "x"));
    TW_TRY(want_filters(w_scale, "w_scale", w));
    TW_TRY(check_bias(b, x, w.shape[0]));
    r.out[0].dtype = x.dtype;
    return Status::ok;
}

// x as contiguous float32: itself, or a copy in `to`.
template <class T>
const float* floats_of(const View& x, float* to) {
    if (__is_same(T, float) && is_contiguous(x)) return x.as<float>();
    View copy = x;
    copy.dtype = DType::f32;
    set_contiguous(copy);
    copy.data = to;
    const View* views[] = {&copy, &x};
    const Walk walk = walk_over(views, 2, x.ndim, x.shape);
    for_each_row(walk, kChunkElements, [&](char* const* at, int64_t count) {
        widen_row(reinterpret_cast<float*>(at[0]), reinterpret_cast<const T*>(at[1]), walk.stride[1], count);
    });
    return to;
}

constexpr int64_t kPiece = 1 << 14;  // of an image, searched or quantised by one job

// The codes of one image, its zero point and its scale.
bool quantize_image(const float* x, int64_t n, uint8_t* codes, int32_t* zero, float* scale) {
    const int64_t pieces = ceil_div(n, kPiece);
    Scratch scratch(static_cast<size_t>(pieces + 1) * sizeof(Range));
    Range* const ranges = scratch.as<Range>();
    if (!ranges) return false;
    parallel(pieces, [&](int64_t i) { ranges[i] = range_of(x + i * kPiece, min_of(kPiece, n - i * kPiece)); });
    Range all = {0, 0};
    for (int64_t i = 0; i < pieces; ++i) {
        if (!(ranges[i].low >= all.low)) all.low = ranges[i].low;
        if (!(ranges[i].high <= all.high)) all.high = ranges[i].high;
        if (ranges[i].low != ranges[i].low) {
            all = ranges[i];
            break;
        }
    }
    const RowCode own = row_code(all);
    const f32v inverse = splat(own.inverse), offset = splat(own.zero);
    parallel(pieces, [&](int64_t p) {
        constexpr int L = kLanes<float>;
        const int64_t end = min_of(p * kPiece + kPiece, n);
        const int64_t first = p * kPiece;
        for (int64_t i = first + code_bytes(x + first, end - first, own, codes + first); i < end; i += L) {
            const int64_t lanes = min_of(end - i, L);
            const f32v v = lanes == L ? load(x + i) : load_n(x + i, lanes);
            store_part_n(codes + i, narrow8<uint8_t>(code_of(apart(v * inverse), offset, 0.f, 255.f)), lanes);
        }
    });
    *zero = static_cast<int32_t>(own.zero), *scale = own.scale;
    return true;
}

struct Scale {
    const float *scale, *bias;  // of each filter; bias may be null
    Activation activation;
};

template <class T>
void scale_sums(const void* context, const IntTile& t) {
    const Sink& sink = *static_cast<const Sink*>(context);
    const Scale& f = *static_cast<const Scale*>(sink.all);
    constexpr int L = kLanes<float>;
    for (int i = 0; i < t.m; ++i) {
        const int64_t k = sink.filter + t.m0 + i;
        const f32v both = splat(sink.x_scale * f.scale[k]);
        T* const y = reinterpret_cast<T*>(sink.y) + (t.m0 + i) * sink.row + t.n0;
        for (int j = 0; j < t.n; j += L) {
            const int lanes = t.n - j < L ? t.n - j : L;
            f32v v = apart(to_f32(load(t.sums + i * kIntNR + j)) * both);
            if (f.bias) v = v + splat(f.bias[k]);
            if (f.activation != Activation::none) v = activate(v, f.activation);
            if constexpr (__is_same(T, double))
                for (int e = 0; e < lanes; ++e) y[j + e] = static_cast<double>(v[e]);
            else
                lanes == L ? store_from(y + j, v) : store_from_n(y + j, v, lanes);
        }
    }
}

template <class T>
Status conv_int8(const Call& c) {
    const View &x = c.in[0], &w = c.in[1], &w_scale = c.in[2], &b = c.in[3], &y = c.out[0];
    const int64_t filters = w.shape[0], images = x.shape[0], size = numel(x) / images;
    const bool straight = __is_same(T, float) && is_contiguous(x);
    Scratch x_scratch(straight ? 64 : static_cast<size_t>(numel(x)) * sizeof(float) + 64);
    Scratch code_scratch(static_cast<size_t>(numel(x)) + 64), y_scratch(run_bytes<T>(y, 2));
    Scratch numbers(static_cast<size_t>(2 * filters + 2 * images) * sizeof(float));
    uint8_t* const codes = code_scratch.as<uint8_t>();
    float* const scale = numbers.as<float>();
    if (!x_scratch.as<void>() || !codes || !y_scratch.as<void>() || !scale) return no_memory();
    float *const bias = scale + filters, *const x_scale = bias + filters;
    int32_t* const x_zero = reinterpret_cast<int32_t*>(x_scale + images);
    for (int64_t k = 0; k < filters; ++k) {
        scale[k] = number_at(w_scale, k * filter_step(w_scale));
        bias[k] = given(b) ? number_at(b, k * b.stride[0]) : 0.f;
    }
    const float* const floats = floats_of<T>(x, x_scratch.as<float>());
    for (int64_t i = 0; i < images; ++i)
        if (!quantize_image(floats + i * size, size, codes + i * size, x_zero + i, x_scale + i)) return no_memory();
    const Scale last = {scale, given(b) ? bias : nullptr, activation_of(c.attr[kActivation])};
    IntConv q{};
    q.x = x, q.x.dtype = DType::u8, q.x.data = codes;
    set_contiguous(q.x);
    q.w = w, q.w_zero = c.in[4];
    q.x_zero = x_zero, q.x_scale = x_scale;
    q.groups = c.attr[kGroups].i;
    q.packed = c.packed;
    q.y = as_run<T>(y, 2, y_scratch, false);
    q.finish = scale_sums<T>, q.context = &last;
    TW_TRY(int_conv(c, q));
    if (q.y.data != y.data) copy<T>(y, q.y);
    return Status::ok;
}

Status run_conv_int8(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return conv_int8<T>(c); });
}

// ---- the ops ----------------------------------------------------------------------------------------------------------

int64_t packed_size(const Call& c) { return packed_filters(c.in[1]); }
void pack(const Call& c, void* packed) { prepare_filters(c.in[1], packed); }
int64_t packed_size_qlinear(const Call& c) { return packed_filters(c.in[kW]); }
void pack_qlinear(const Call& c, void* packed) { prepare_filters(c.in[kW], packed); }

constexpr Operand kInteger[] = {{"x"}, {"w"}, {"x_zero", Role::optional}, {"w_zero", Role::optional}};
constexpr Operand kLinear[] = {{"x"},       {"x_scale"}, {"x_zero"},           {"w"}, {"w_scale"}, {"w_zero"},
                               {"y_scale"}, {"y_zero"},  {"b", Role::optional}};
constexpr Operand kDynamic[] = {{"x"}, {"w"}, {"w_scale"}, {"b", Role::optional}, {"w_zero", Role::optional}};
constexpr AttrSpec kAttrs[] = {TW_CONV_ATTRS};
constexpr AttrSpec kDynamicAttrs[] = {
    TW_CONV_ATTRS, {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true}};

}  // namespace

extern const Entry op_conv_integer = {"conv_integer",     kInteger,         4, kAttrs,      TW_COUNT(kAttrs),
                                      infer_conv_integer, run_conv_integer, 0, packed_size, pack};
extern const Entry op_qlinear_conv = {
    "qlinear_conv",      kLinear,     9, kAttrs, TW_COUNT(kAttrs), infer_qlinear_conv, run_qlinear_conv, 0,
    packed_size_qlinear, pack_qlinear};
extern const Entry op_conv_int8 = {"conv_int8",     kDynamic,      5, kDynamicAttrs, TW_COUNT(kDynamicAttrs),
                                   infer_conv_int8, run_conv_int8, 0, packed_size,   pack};

}  // namespace tw::TW_ISA
