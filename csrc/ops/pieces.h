// Ops element by element whose kernels see contiguous numbers alone, by dtype from a table.
//
//   run_pieces(call, kernel)     y[i] = f(x[0][i], x[1][i], ...), every operand broadcast to the result
//   kernel_of<F, T>, to_bool_of  kernels from a function of numbers, F::of(T a, T b, ...)
//
// Kernels are plain loops that the compiler makes vectors of; ops/mapped_rows.cc brings them rows of any strides. 16-bit
// floats are computed in float.
#pragma once
#include "core/check.h"
#include "core/number.h"
#include "ops/map.h"

namespace tw::TW_ISA {

typedef void Kernel(void* y, const void* const* x, int64_t n);

static inline void run_pieces(const Call& c, Kernel* kernel) {
    const View* views[4] = {&c.out[0]};
    for (int k = 0; k < c.n_in; ++k) views[k + 1] = &c.in[k];
    const auto call = [](char* const* at, int64_t n, const void* f) {
        (*static_cast<Kernel* const*>(f))(at[0], reinterpret_cast<const void* const*>(at + 1), n);
    };
    map_rows(views, c.n_in + 1, 1, 1, call, &kernel);
}

// ---- kernels ----------------------------------------------------------------------------------------------------------

// Element i of operand k.
template <class T>
TW_INLINE T item(const void* const* x, int k, int64_t i) {
    return static_cast<const T*>(x[k])[i];
}

// y may be an operand: then element i is read before it is written.
template <class F, class T>
void each_one(void* y, const void* const* x, int64_t n) {
    if constexpr (kIsNarrow<T>) {
        float a[kLanes<float>];
        T* const to = static_cast<T*>(y);
        for (int64_t i = 0; i < n; i += kLanes<float>) {
            const int64_t m = min_of(kLanes<float>, n - i);
            store(a, load_as_n<float>(static_cast<const T*>(x[0]) + i, m));
            for (float& v : a) v = F::of(v);
            store_from_n(to + i, load(a), m);
        }
    } else {
        T* const to = static_cast<T*>(y);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) to[i] = F::of(item<T>(x, 0, i));
    }
}

template <class F, class T>
void each_two(void* y, const void* const* x, int64_t n) {
    if constexpr (kIsNarrow<T>) {
        float a[kLanes<float>], b[kLanes<float>];
        T* const to = static_cast<T*>(y);
        for (int64_t i = 0; i < n; i += kLanes<float>) {
            const int64_t m = min_of(kLanes<float>, n - i);
            store(a, load_as_n<float>(static_cast<const T*>(x[0]) + i, m));
            store(b, load_as_n<float>(static_cast<const T*>(x[1]) + i, m));
            for (int k = 0; k < kLanes<float>; ++k) a[k] = F::of(a[k], b[k]);
            store_from_n(to + i, load(a), m);
        }
    } else {
        T* const to = static_cast<T*>(y);
#pragma GCC ivdep
        for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(F::of(item<T>(x, 0, i), item<T>(x, 1, i)));
    }
}

// A bool, of one operand or of two.
template <class F, class T>
void is_one(void* y, const void* const* x, int64_t n) {
    uint8_t* const to = static_cast<uint8_t*>(y);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) to[i] = F::of(widened(item<T>(x, 0, i)));
}
template <class F, class T>
void are_two(void* y, const void* const* x, int64_t n) {
    uint8_t* const to = static_cast<uint8_t*>(y);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) to[i] = F::of(widened(item<T>(x, 0, i)), widened(item<T>(x, 1, i)));
}

// ---- tables by dtype: null where a function has no kernel ----------------------------------------------------------------

struct KernelByType {
    Kernel* of[kNumberTypes];  // in the order of DType
};
TW_INLINE Kernel* kernel_at(const KernelByType& table, DType dtype) { return table.of[static_cast<int>(dtype)]; }

// K<F, T> for the floats, for the integers, and for the integers by their size alone.
#define TW_FLOAT_KERNELS(K, F) K<F, float>, K<F, double>, K<F, f16>, K<F, bf16>
#define TW_INTEGER_KERNELS(K, F, boolean)                                                                              \
    K<F, int8_t>, K<F, uint8_t>, K<F, int32_t>, K<F, int64_t>, boolean, K<F, int16_t>, K<F, uint16_t>, K<F, uint32_t>, \
        K<F, uint64_t>
#define TW_WIDTH_KERNELS(K, F, boolean)                                                                    \
    K<F, uint8_t>, K<F, uint8_t>, K<F, uint32_t>, K<F, uint64_t>, boolean, K<F, uint16_t>, K<F, uint16_t>, \
        K<F, uint32_t>, K<F, uint64_t>
#define TW_NO_FLOATS nullptr, nullptr, nullptr, nullptr

// ---- shape rule -------------------------------------------------------------------------------------------------------

// The shape that b has together with y so far.
static inline Status broadcast_with(View& y, const View& b, const char* name, const View& a, const char* a_name) {
    const int ndim = y.ndim > b.ndim ? y.ndim : b.ndim;
    for (int d = 1; d <= ndim; ++d) {  // inner axes first: they move outwards, if at all
        const int64_t m = d <= y.ndim ? y.shape[y.ndim - d] : 1, n = d <= b.ndim ? b.shape[b.ndim - d] : 1;
        if (m != n && m != 1 && n != 1)
            return fail(Status::shape, name, "%s has shape %s and %s has %s; want shapes that broadcast", a_name,
                        shape_text(a).text, name, shape_text(b).text);
        y.shape[ndim - d] = m == 1 ? n : m;
    }
    y.ndim = ndim;
    return Status::ok;
}

static inline Status want_number(const View& v, const char* name) {
    if (is_float(v.dtype) || is_integer(v.dtype)) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want a float or an integer of 8 to 64 bits", name,
                name_of(v.dtype));
}
static inline Status want_integer(const View& v, const char* name) {
    if (is_integer(v.dtype)) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want an integer of 8 to 64 bits", name, name_of(v.dtype));
}
static inline Status want_bool(const View& v, const char* name) {
    if (v.dtype == DType::boolean) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want bool", name, name_of(v.dtype));
}

// a and b of one dtype, that `want` allows, broadcast together.
template <class Want>
static Status infer_two(const Call& c, Inferred& r, const Want& want) {
    const View &a = c.in[0], &b = c.in[1];
    TW_TRY(want(a, "a"));
    TW_TRY(want_dtype_of(b, "b", a, "a"));
    r.n_out = 1;
    View& y = r.out[0];
    y.data = nullptr;
    y.dtype = a.dtype;
    y.ndim = 0;
    TW_TRY(broadcast_with(y, a, "a", a, "a"));
    return broadcast_with(y, b, "b", a, "a");
}

}  // namespace tw::TW_ISA
