// What dense layers over packed weights share: float operands of any type as contiguous float32, their shapes, and
// y = activation(...) through a float32 copy where y is not one.
#pragma once
#include "core/check.h"
#include "core/index.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/walk.h"
#include "gemm/gemm.h"
#include "simd/widen.h"

namespace tw::TW_ISA {
namespace {

inline Status no_memory() { return fail(Status::memory, "", "no memory for unpacked operands; want smaller ones"); }

// ---- float operands of any type as float32 ------------------------------------------------------------------------------

inline void widen_row_of(float* to, const View& v, int64_t offset, int64_t step, int64_t n) {
    switch (v.dtype) {
        case DType::f64: return widen_row(to, v.as<double>() + offset, step, n);
        case DType::f16: return widen_row(to, v.as<f16>() + offset, step, n);
        case DType::bf16: return widen_row(to, v.as<bf16>() + offset, step, n);
        default: return widen_row(to, v.as<float>() + offset, step, n);
    }
}

// All of v, C order.
inline void widen_all(float* to, const View& v) {
    View rows = v;
    if (v.ndim > 0) --rows.ndim;
    const int64_t n = v.ndim ? v.shape[v.ndim - 1] : 1, step = v.ndim ? v.stride[v.ndim - 1] : 0, count = numel(rows);
    parallel(ceil_div(count, 256), [&](int64_t chunk) {
        for (int64_t r = chunk * 256; r < min_of(chunk * 256 + 256, count); ++r) {
            int64_t offset = 0, rest = r;
            for (int d = rows.ndim - 1; d >= 0; --d) {
                offset += rest % v.shape[d] * v.stride[d];
                rest /= v.shape[d];
            }
            widen_row_of(to + r * n, v, offset, step, n);
        }
    });
}

template <class T>
void narrow_row(T* to, int64_t step, const float* from, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if constexpr (__is_same(T, double))
            to[i * step] = static_cast<double>(from[i]);
        else
            to[i * step] = from_float<T>(from[i]);
}

inline void narrow_row(const View& y, int64_t offset, int64_t step, const float* from, int64_t n) {
    switch (y.dtype) {
        case DType::f64: return narrow_row(y.as<double>() + offset, step, from, n);
        case DType::f16: return narrow_row(y.as<f16>() + offset, step, from, n);
        case DType::bf16: return narrow_row(y.as<bf16>() + offset, step, from, n);
        default: return narrow_row(y.as<float>() + offset, step, from, n);
    }
}

// ---- shapes -----------------------------------------------------------------------------------------------------------------

inline Status infer_layer(const View& x, const View& w, const View& b, Inferred& r) {
    if (!is_float(x.dtype))
        return fail(Status::dtype, "x", "x has dtype %s; want float32, float64, float16 or bfloat16", name_of(x.dtype));
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    if (w.dtype != DType::u8) return fail(Status::dtype, "w", "w has dtype %s; want uint8", name_of(w.dtype));
    TW_TRY(want_ndim(w, "w", 2, 3));
    if (given(b)) {
        TW_TRY(want_dtype_of(b, "b", x, "x"));
        TW_TRY(want_shape(b, "b", 1, w.shape));
    }
    View y = result(x.dtype, x.ndim, x.shape);
    y.shape[y.ndim - 1] = w.shape[0];
    r.n_out = 1;
    r.out[0] = y;
    r.flops = 2.0 * static_cast<double>(numel(y)) * static_cast<double>(x.shape[x.ndim - 1]);
    return Status::ok;
}

inline Status want_float_of(const View& v, const char* name, const View& x) {
    return v.dtype == DType::f32 ? Status::ok : want_dtype_of(v, name, x, "x");
}

// ---- a layer ----------------------------------------------------------------------------------------------------

// Operands as contiguous arrays: in place where they are, else in the scratch behind them.
template <class T>
const T* dense(const View& v, Scratch& room) {
    if (!given(v)) return nullptr;
    if (is_contiguous(v) && item_size(v.dtype) == sizeof(T) && (sizeof(T) == 1 || v.dtype == DType::f32))
        return v.as<T>();
    if constexpr (sizeof(T) == 1) {
        View to = v;
        to.data = room.as<void>();
        set_contiguous(to);
        const View* views[] = {&to, &v};
        const Walk walk = walk_over(views, 2, v.ndim, v.shape);
        for_each_row(walk, int64_t{1} << 15, [&](char* const* at, int64_t count) {
            for (int64_t i = 0; i < count; ++i)
                reinterpret_cast<T*>(at[0])[i * walk.stride[0]] = reinterpret_cast<const T*>(at[1])[i * walk.stride[1]];
        });
    } else {
        widen_all(room.as<T>(), v);
    }
    return room.as<T>();
}

inline size_t room_for(const View& v, size_t item, bool bytes) {
    if (!given(v)) return 64;
    const bool in_place = is_contiguous(v) && (bytes || v.dtype == DType::f32);
    return in_place ? 64 : static_cast<size_t>(numel(v)) * item + 64;
}

// y = activation(what `product` makes of a dense float32 x), through a float32 copy where y is not one.
template <class Product>
Status run_layer(const View& x, const View& y, const Attr& chosen, const Product& product) {
    const int64_t in = x.shape[x.ndim - 1], out = y.shape[y.ndim - 1], m = in ? numel(x) / in : numel(y) / out;
    const bool straight = is_contiguous(y) && y.dtype == DType::f32;
    Scratch x_room(room_for(x, sizeof(float), false));
    Scratch y_room(straight ? 64 : static_cast<size_t>(m * out) * sizeof(float));
    if (!x_room.as<float>() || !y_room.as<float>()) return no_memory();
    float* const dense_y = straight ? y.as<float>() : y_room.as<float>();
    const Activation activation = chosen.is_none ? Activation::none : static_cast<Activation>(chosen.choice + 1);
    if (!product(dense<float>(x, x_room), m, dense_y, activation)) return no_memory();
    if (straight) return Status::ok;
    for (int64_t r = 0; r < m; ++r) {
        int64_t offset = 0, rest = r;
        for (int d = y.ndim - 2; d >= 0; --d) {
            offset += rest % y.shape[d] * y.stride[d];
            rest /= y.shape[d];
        }
        narrow_row(y, offset, y.stride[y.ndim - 1], dense_y + r * out, out);
    }
    return Status::ok;
}

inline Gemm<float> gemm_of(const float* x, int64_t m, int64_t in, int64_t out, float* y, Activation activation) {
    Gemm<float> g{};
    g.m = m, g.n = out, g.k = in;
    g.a = {x, in, 1};
    g.c = y, g.c_row = out, g.c_col = 1;
    g.activation = activation;
    return g;
}

}  // namespace
}  // namespace tw::TW_ISA
