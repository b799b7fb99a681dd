// Linear quantisation: q = clamp(rint(x / scale) + zero), x = (q - zero) scale, and q with the scale and zero of x's range;
// of rows, q = rint(x / scale) with scale = largest of the row / 127.
//
// Method    one pass over merged axes. The scale of a channel or block is an operand whose stride is 0 along the axes it is
//           shared by, so all granularities are one loop. dynamic_quantize_linear reads x twice.
// Numerics  float32, one operation rounded at a time: bit-equal on every tier and device. Halves to even; infinities
//           saturate, NaN becomes the zero point. q - zero is exact in int32 (it wraps), then rounded to float32.
// Threads   elements are independent; the range of x is exact, so its order is free.
// Source    ONNX QuantizeLinear-25, DequantizeLinear-25, DynamicQuantizeLinear-11.
#include "simd/quantize.h"
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kRange = 1 << 15;  // elements whose range a chunk finds

// ---- strided rows as float vectors ----------------------------------------

template <class T>
TW_INLINE f32v take_float(const T* p, int64_t stride, int64_t i, int64_t n) {
    if (stride == 1) return n == kLanes<float> ? load_as<float>(p + i) : load_as_n<float>(p + i, n);
    if (stride == 0) return splat(to_float(*p));
    f32v v{};
    for (int64_t k = 0; k < n; ++k) v[k] = to_float(p[(i + k) * stride]);
    return v;
}

template <class T>
TW_INLINE i32v take_int(const T* p, int64_t stride, int64_t i, int64_t n) {
    if (stride == 1 && sizeof(T) == 1)
        return widen(n == kLanes<float> ? load_part<Part<T>>(p + i) : load_part_n<Part<T>>(p + i, n));
    if (stride == 0) return splat<int32_t>(*p);
    i32v v{};
    for (int64_t k = 0; k < n; ++k) v[k] = p[(i + k) * stride];
    return v;
}
TW_INLINE i32v take_int(const int32_t* p, int64_t stride, int64_t i, int64_t n) { return take(p, stride, i, n); }

template <class T, class P>
TW_INLINE void put_part(T* p, int64_t stride, int64_t i, int64_t n, P v) {
    if (stride != 1) {
        T lane[kLanes<float>];
        __builtin_memcpy(lane, &v, sizeof v);
        for (int64_t k = 0; k < n; ++k) p[(i + k) * stride] = lane[k];
    } else if (n == kLanes<float>) {
        __builtin_memcpy(p + i, &v, sizeof v);
    } else {
        store_part_n(p + i, v, n);
    }
}
template <class T>
TW_INLINE void put_float(T* p, int64_t stride, int64_t i, int64_t n, f32v v) {
    if constexpr (__is_same(T, float))
        put(p, stride, i, n, v);
    else
        put_part(p, stride, i, n, of_f32(v, T{}));
}

// ---- rows ----------------------------------------

// Elements of one row and their strides: 0 y, 1 x, 2 scale, 3 zero.
struct Row {
    char* const* at;
    const int64_t* stride;
    int64_t n;
    bool has_zero, streams;

    // Neighbours of one scale and zero point, as nearly all rows are.
    bool is_plain() const {
        return stride[0] == 1 && stride[1] == 1 && stride[2] == 0 && (!has_zero || stride[3] == 0);
    }
};

// As many codes of a plain row as fill whole vectors; answers how many.
template <class T, class Q>
int64_t quantize_plain(Q* q, const T* x, int64_t n, float scale, float zero) {
    constexpr float low = static_cast<Q>(-1) < 0 ? -128.f : 0.f;
    constexpr int64_t lanes = kLanes<float>;
    const f32v by = splat(scale), z = splat(zero);
    const auto codes = [&](int64_t i) __attribute__((always_inline)) {
        return code_of(load_as<float>(x + i) / by, z, low, low + 255.f);
    };
    int64_t i = 0;
    for (; i + 4 * lanes <= n; i += 4 * lanes)
        store(q + i, narrow8<Q>(codes(i), codes(i + lanes), codes(i + 2 * lanes), codes(i + 3 * lanes)));
    return i;
}

// The same the other way.
template <bool kStream, class Q, class T>
int64_t dequantize_plain(T* y, const Q* q, int64_t n, float scale, int32_t zero) {
    constexpr int64_t lanes = kLanes<float>;
    const f32v by = splat(scale);
    const u32v less = splat(static_cast<uint32_t>(zero));
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        const f32v v = to_f32(bitcast<i32v>(bitcast<u32v>(take_int(q, 1, i, lanes)) - less)) * by;
        if constexpr (kStream)
            stream_from(y + i, v);
        else
            store_from(y + i, v);
    }
    return i;
}

template <class T, class S, class Q>
void quantize_row(const Row& r) {
    constexpr float low = static_cast<Q>(-1) < 0 ? -128.f : 0.f;
    Q* const q = reinterpret_cast<Q*>(r.at[0]);
    const T* const x = reinterpret_cast<const T*>(r.at[1]);
    const S* const scale = reinterpret_cast<const S*>(r.at[2]);
    const Q* const zero = reinterpret_cast<const Q*>(r.at[3]);
    int64_t i = r.is_plain() ? quantize_plain(q, x, r.n, to_float(*scale), r.has_zero ? to_float(*zero) : 0.f) : 0;
    for (; i < r.n; i += kLanes<float>) {
        const int64_t n = min_of(r.n - i, kLanes<float>);
        const f32v v = take_float(x, r.stride[1], i, n) / take_float(scale, r.stride[2], i, n);
        const f32v z = r.has_zero ? to_f32(take_int(zero, r.stride[3], i, n)) : f32v{};
        put_part(q, r.stride[0], i, n, narrow8<Q>(code_of(v, z, low, low + 255.f)));
    }
}

template <class Q, class T>
void dequantize_row(const Row& r) {
    T* const y = reinterpret_cast<T*>(r.at[0]);
    const Q* const q = reinterpret_cast<const Q*>(r.at[1]);
    const T* const scale = reinterpret_cast<const T*>(r.at[2]);
    const Q* const zero = reinterpret_cast<const Q*>(r.at[3]);
    int64_t i = 0;
    if (r.is_plain()) {
        const int32_t less = r.has_zero ? int32_t{*zero} : 0;
        const float by = to_float(*scale);
        const bool streams = r.streams && reinterpret_cast<uintptr_t>(y) % (kLanes<float> * sizeof(T)) == 0;
        i = streams ? dequantize_plain<true>(y, q, r.n, by, less) : dequantize_plain<false>(y, q, r.n, by, less);
    }
    for (; i < r.n; i += kLanes<float>) {
        const int64_t n = min_of(r.n - i, kLanes<float>);
        u32v v = bitcast<u32v>(take_int(q, r.stride[1], i, n));
        if (r.has_zero) v -= bitcast<u32v>(take_int(zero, r.stride[3], i, n));
        put_float(y, r.stride[0], i, n, to_f32(bitcast<i32v>(v)) * take_float(scale, r.stride[2], i, n));
    }
}

typedef void RowKernel(const Row&);

template <class T, class S>
RowKernel* quantizer_to(DType q) {
    return q == DType::u8 ? quantize_row<T, S, uint8_t> : quantize_row<T, S, int8_t>;
}
template <class T>
RowKernel* quantizer_by(DType scale, DType q) {
    return scale == DType::f32 ? quantizer_to<T, float>(q) : quantizer_to<T, T>(q);
}
RowKernel* quantizer(DType x, DType scale, DType q) {
    if (x == DType::f16) return quantizer_by<f16>(scale, q);
    if (x == DType::bf16) return quantizer_by<bf16>(scale, q);
    return quantizer_by<float>(scale, q);
}
template <class Q>
RowKernel* dequantizer_to(DType y) {
    return y == DType::f16    ? dequantize_row<Q, f16>
           : y == DType::bf16 ? dequantize_row<Q, bf16>
                              : dequantize_row<Q, float>;
}
RowKernel* dequantizer(DType q, DType y) {
    return q == DType::i8   ? dequantizer_to<int8_t>(y)
           : q == DType::u8 ? dequantizer_to<uint8_t>(y)
                            : dequantizer_to<int32_t>(y);
}

// ---- granularity ----------------------------------------

Status want_float(const View& v, const char* name) {
    if (v.dtype == DType::f32 || v.dtype == DType::f16 || v.dtype == DType::bf16) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want float32, float16 or bfloat16", name, name_of(v.dtype));
}

// A single number; one per index of `axis`; or, with `block` > 0, the shape of x but for one number per block of `axis`.
Status want_granularity(const View& x, const View& scale, const View& zero, Attr& axis, Attr& block) {
    if (block.i < 0 || block.i >= kMaxSize)
        return fail(Status::attr, "block", "block=%lld; want 0, or the elements that share a scale",
                    static_cast<long long>(block.i));
    const bool single = block.i == 0 && (scale.ndim == 0 || (scale.ndim == 1 && scale.shape[0] == 1));
    if (single && (axis.i >= x.ndim || axis.i < -x.ndim)) axis.i = 0;  // of no meaning; the default is 1 for 1-D x too
    if (x.ndim > 0 || !single) TW_TRY(resolve_axis(axis, "axis", x.ndim));
    if (block.i > 0) {
        View want = result(scale.dtype, x.ndim, x.shape);
        want.shape[axis.i] = ceil_div(x.shape[axis.i], block.i);
        if (x.ndim >= kMaxDims)
            return fail(Status::shape, "x", "x has %d dimensions; want at most %d with block", x.ndim, kMaxDims - 1);
        TW_TRY(want_shape(scale, "scale", want.ndim, want.shape));
    } else if (!single && (scale.ndim != 1 || scale.shape[0] != x.shape[axis.i])) {
        return fail(Status::shape, "scale",
                    "scale has shape %s but x has %lld elements along axis=%lld; want () or (%lld,)",
                    shape_text(scale).text, static_cast<long long>(x.shape[axis.i]), static_cast<long long>(axis.i),
                    static_cast<long long>(x.shape[axis.i]));
    }
    return given(zero) ? want_shape_of(zero, "zero", scale, "scale") : Status::ok;
}

// A scale or zero point as the walk wants it: the axes of x, stride 0 where it is shared.
View along(const View& v, int ndim, int axis) {
    if (v.ndim == ndim && ndim > 1) return v;
    View wide{};
    wide.dtype = v.dtype, wide.data = v.data, wide.ndim = ndim;
    for (int d = 0; d < ndim; ++d) wide.shape[d] = 1;
    if (v.ndim == 1 && v.shape[0] != 1 && ndim > 0) wide.shape[axis] = v.shape[0], wide.stride[axis] = v.stride[0];
    return wide;
}

// [begin, begin + n blocks] of an axis as two axes: block number and place in the block; scales have the first alone.
View cut(const View& v, int axis, int64_t begin, int64_t blocks, int64_t block) {
    View two = v;
    ++two.ndim;
    for (int d = v.ndim; d > axis + 1; --d) two.shape[d] = v.shape[d - 1], two.stride[d] = v.stride[d - 1];
    two.shape[axis] = blocks, two.stride[axis] = v.stride[axis] * (block ? block : 1);
    two.shape[axis + 1] = block ? block : 1, two.stride[axis + 1] = block ? v.stride[axis] : 0;
    two.data = v.as<char>() + begin * v.stride[axis] * item_size(v.dtype);
    return two;
}

void walk_rows_of(const View& y, const View& x, const View& scale, const View& zero, RowKernel* kernel) {
    const bool has_zero = given(zero);
    const View* views[] = {&y, &x, &scale, has_zero ? &zero : &scale};
    const Walk w = walk_over(views, 4, y.ndim, y.shape);
    const bool streams = numel(y) * item_size(y.dtype) >= streaming_bytes();
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        kernel({at, w.stride, count, has_zero, streams});
        if (streams) stream_fence();
    });
}

Status run_rows(const Call& c, RowKernel* kernel) {
    const View &x = c.in[0], &scale = c.in[1], &zero = c.in[2], &y = c.out[0];
    const int axis = static_cast<int>(c.attr[0].i);
    const int64_t block = c.attr[1].i;
    if (numel(x) == 0) return Status::ok;
    const View none{.data = nullptr, .shape = {}, .stride = {}, .ndim = 0, .dtype = DType::none};
    if (block == 0) {
        walk_rows_of(y, x, along(scale, x.ndim, axis), given(zero) ? along(zero, x.ndim, axis) : none, kernel);
        return Status::ok;
    }
    const int64_t whole = x.shape[axis] / block, rest = x.shape[axis] % block;
    const auto part = [&](int64_t begin, int64_t blocks, int64_t size) {
        walk_rows_of(cut(y, axis, begin * block, blocks, size), cut(x, axis, begin * block, blocks, size),
                     cut(scale, axis, begin, blocks, 0), given(zero) ? cut(zero, axis, begin, blocks, 0) : none,
                     kernel);
    };
    if (whole) part(0, whole, block);
    if (rest) part(whole, 1, rest);
    return Status::ok;
}

// ---- the ops ----------------------------------------

Status infer_quantize(Call& c, Inferred& r) {
    const View &x = c.in[0], &scale = c.in[1], &zero = c.in[2];
    TW_TRY(want_float(x, "x"));
    if (scale.dtype != DType::f32) TW_TRY(want_dtype_of(scale, "scale", x, "x"));
    Attr& dtype = c.attr[2];
    if (dtype.is_none) {
        dtype.is_none = false;
        dtype.choice = static_cast<int>(given(zero) ? zero.dtype : DType::u8);
    }
    const DType q = static_cast<DType>(dtype.choice);
    if (q != DType::i8 && q != DType::u8)
        return fail(given(zero) && zero.dtype == q ? Status::dtype : Status::attr, given(zero) ? "zero" : "dtype",
                    "the result would have dtype %s; want int8 or uint8", name_of(q));
    if (given(zero) && zero.dtype != q)
        return fail(Status::dtype, "zero", "zero has dtype %s but dtype=%s; want the same", name_of(zero.dtype),
                    name_of(q));
    TW_TRY(want_granularity(x, scale, zero, c.attr[0], c.attr[1]));
    r.n_out = 1;
    r.out[0] = result(q, x.ndim, x.shape);
    return Status::ok;
}

Status run_quantize(const Call& c) { return run_rows(c, quantizer(c.in[0].dtype, c.in[1].dtype, c.out[0].dtype)); }

Status infer_dequantize(Call& c, Inferred& r) {
    const View &q = c.in[0], &scale = c.in[1], &zero = c.in[2];
    if (q.dtype != DType::i8 && q.dtype != DType::u8 && q.dtype != DType::i32)
        return fail(Status::dtype, "x", "x has dtype %s; want int8, uint8 or int32", name_of(q.dtype));
    TW_TRY(want_float(scale, "scale"));
    if (given(zero)) TW_TRY(want_dtype_of(zero, "zero", q, "x"));
    TW_TRY(want_granularity(q, scale, zero, c.attr[0], c.attr[1]));
    r.n_out = 1;
    r.out[0] = result(scale.dtype, q.ndim, q.shape);
    return Status::ok;
}

Status run_dequantize(const Call& c) { return run_rows(c, dequantizer(c.in[0].dtype, c.out[0].dtype)); }

Status infer_dynamic(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_float(x, "x"));
    r.n_out = 3;
    r.out[0] = result(DType::u8, x.ndim, x.shape);
    r.out[1] = result(DType::f32, 0, nullptr);
    r.out[2] = result(DType::u8, 0, nullptr);
    return Status::ok;
}

template <class T>
Range range_of_row(const T* x, int64_t stride, int64_t n) {
    if constexpr (__is_same(T, float)) {
        if (stride == 1) return range_of(x, n);
    }
    f32v low{}, high{};
    Mask<float> strange{};
    for (int64_t i = 0; i < n; i += kLanes<float>) {
        const int64_t lanes = min_of(n - i, kLanes<float>);
        f32v v = take_float(x, stride, i, lanes);
        if (stride == 0) v = first_lanes<float>(v, f32v{}, lanes);
        low = min_any(v, low), high = max_any(v, high);
        strange |= v != v;
    }
    if (any(strange)) return {__builtin_nanf(""), __builtin_nanf("")};
    return {reduce_min(low), reduce_max(high)};
}

template <class T>
Status dynamic(const Call& c) {
    const View &x = c.in[0], &q = c.out[0];
    Range all = {0, 0};
    if (numel(x)) {
        const View* views[] = {&q, &x};
        const Walk w = walk_over(views, 2, q.ndim, q.shape);
        // The ranges of chunks meet in two words: a minimum and a maximum have no order.
        uint32_t low = 0, high = 0;  // bits of the magnitudes: those of floats of one sign are ordered as they are
        bool strange = false;
        for_each_row(w, kRange, [&](char* const* at, int64_t count) {
            const Range r = range_of_row(reinterpret_cast<const T*>(at[1]), w.stride[1], count);
            if (r.low != r.low) __atomic_store_n(&strange, true, __ATOMIC_RELAXED);
            const auto raise = [](uint32_t* most, uint32_t bits) {
                uint32_t seen = __atomic_load_n(most, __ATOMIC_RELAXED);
                while (bits > seen &&
                       !__atomic_compare_exchange_n(most, &seen, bits, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
                    continue;
            };
            if (r.low < 0) raise(&low, __builtin_bit_cast(uint32_t, -r.low));
            if (r.high > 0) raise(&high, __builtin_bit_cast(uint32_t, r.high));
        });
        if (interrupted()) return Status::ok;
        all = {-__builtin_bit_cast(float, low), __builtin_bit_cast(float, high)};
        if (strange) all = {__builtin_nanf(""), __builtin_nanf("")};
    }
    float scale = (all.high == all.low ? 1.f : all.high - all.low) / 255.f;
    const float start = 0.f - all.low / scale;
    const float inside = start < 0.f ? 0.f : start > 255.f ? 255.f : start;
    uint8_t zero = static_cast<uint8_t>(code_of(splat(inside), f32v{}, 0.f, 255.f)[0]);
    *c.out[1].as<float>() = scale;
    *c.out[2].as<uint8_t>() = zero;
    if (numel(x) == 0) return Status::ok;
    View scale_view = result(DType::f32, 0, nullptr), zero_view = result(DType::u8, 0, nullptr);
    scale_view.data = &scale, zero_view.data = &zero;
    walk_rows_of(q, x, along(scale_view, x.ndim, 0), along(zero_view, x.ndim, 0),
                 quantizer(x.dtype, DType::f32, DType::u8));
    return Status::ok;
}

Status run_dynamic(const Call& c) {
    const DType x = c.in[0].dtype;
    return x == DType::f16 ? dynamic<f16>(c) : x == DType::bf16 ? dynamic<bf16>(c) : dynamic<float>(c);
}

// ---- rows by their own scales ----------------------------------------

Status infer_rows(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_float(x, "x"));
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    r.n_out = 2;
    r.out[0] = result(DType::i8, x.ndim, x.shape);
    r.out[1] = result(DType::f32, x.ndim - 1, x.shape);
    return Status::ok;
}

template <class T>
void quantize_row(const T* x, int64_t step, int64_t n, int8_t* q, int64_t q_step, float* scale) {
    const RowScale by = row_scale(range_of_row(x, step, n));
    *scale = by.scale;
    each_vector<float>(n, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        put_part(q, q_step, i, lanes, code_within_127(take_float(x, step, i, lanes), by));
    });
}

template <class T>
Status code_all_rows(const Call& c) {
    const View &x = c.in[0], &q = c.out[0], &scale = c.out[1];
    const int64_t n = x.shape[x.ndim - 1], step = x.stride[x.ndim - 1], q_step = q.stride[q.ndim - 1];
    View lx = x, lq = q;
    --lx.ndim, --lq.ndim;
    const View* views[] = {&scale, &lq, &lx};
    const Walk w = walk_over(views, 3, scale.ndim, scale.shape);
    for_each_row(w, max_of(1, kRange / max_of(n, 1)), [&](char* const* at, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            quantize_row(reinterpret_cast<const T*>(at[2]) + i * w.stride[2], step, n,
                         reinterpret_cast<int8_t*>(at[1]) + i * w.stride[1], q_step,
                         reinterpret_cast<float*>(at[0]) + i * w.stride[0]);
    });
    return Status::ok;
}

Status run_rows_alone(const Call& c) {
    if (numel(c.out[1]) == 0) return Status::ok;
    const DType x = c.in[0].dtype;
    return x == DType::f16    ? code_all_rows<f16>(c)
           : x == DType::bf16 ? code_all_rows<bf16>(c)
                              : code_all_rows<float>(c);
}

constexpr Operand kXScaleZero[] = {{"x"}, {"scale"}, {"zero", Role::optional}};
constexpr Operand kX[] = {{"x"}};
constexpr AttrSpec kGranularity[] = {
    {.name = "axis", .kind = AttrKind::integer, .i = 1},
    {.name = "block", .kind = AttrKind::integer},
    {.name = "dtype", .kind = AttrKind::dtype, .none_ok = true},
};

}  // namespace

extern const Entry op_quantize_linear = {"quantize_linear", kXScaleZero, 3, kGranularity, 3,
                                         infer_quantize,    run_quantize};
extern const Entry op_dequantize_linear = {"dequantize_linear", kXScaleZero,   3, kGranularity, 2,
                                           infer_dequantize,    run_dequantize};
extern const Entry op_dynamic_quantize_linear = {
    "dynamic_quantize_linear", kX, 1, nullptr, 0, infer_dynamic, run_dynamic};
extern const Entry op_quantize_rows = {"quantize_rows", kX, 1, nullptr, 0, infer_rows, run_rows_alone};

}  // namespace tw::TW_ISA
