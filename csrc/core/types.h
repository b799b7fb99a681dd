// The element types and the borrowed tensor that every floor passes around.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tw {

struct f16 {
    uint16_t bits;
};
struct bf16 {
    uint16_t bits;
};

// X(name, bytes, text), in the order of the tables by dtype. From f8e4m3 on they are of 8 bits or fewer, a number to a byte
// (core/small.h): such arrays are moved, cast and quantised, and nothing is computed in them.
#define TW_DTYPES(X)                 \
    X(f32, 4, "float32")             \
    X(f64, 8, "float64")             \
    X(f16, 2, "float16")             \
    X(bf16, 2, "bfloat16")           \
    X(i8, 1, "int8")                 \
    X(u8, 1, "uint8")                \
    X(i32, 4, "int32")               \
    X(i64, 8, "int64")               \
    X(boolean, 1, "bool")            \
    X(i16, 2, "int16")               \
    X(u16, 2, "uint16")              \
    X(u32, 4, "uint32")              \
    X(u64, 8, "uint64")              \
    X(f8e4m3, 1, "float8_e4m3fn")    \
    X(f8e4m3z, 1, "float8_e4m3fnuz") \
    X(f8e5m2, 1, "float8_e5m2")      \
    X(f8e5m2z, 1, "float8_e5m2fnuz") \
    X(f8e8m0, 1, "float8_e8m0fnu")   \
    X(f4e2m1, 1, "float4_e2m1fn")    \
    X(i4, 1, "int4")                 \
    X(u4, 1, "uint4")                \
    X(i2, 1, "int2")                 \
    X(u2, 1, "uint2")
#define TW_NAME(name, bytes, text) name,
#define TW_BYTES(name, bytes, text) bytes,
#define TW_TEXT(name, bytes, text) text,
enum class DType : uint8_t { TW_DTYPES(TW_NAME) none };
constexpr int kDTypes = static_cast<int>(DType::none);
constexpr int kNumberTypes = static_cast<int>(DType::f8e4m3);
constexpr int kMaxDims = 8;
constexpr int kMaxOperands = 16;  // named in an op's table
constexpr int kMaxInputs = 64;    // arrays of one call: a variadic operand is many
constexpr int kMaxOutputs = 8;
constexpr int kMaxAttrs = 24;

constexpr int64_t kItemSize[kDTypes] = {TW_DTYPES(TW_BYTES)};
constexpr const char* kDTypeName[kDTypes] = {TW_DTYPES(TW_TEXT)};
#undef TW_NAME
#undef TW_BYTES
#undef TW_TEXT

// A borrowed n-d array: no ownership, strides in elements (0 and negative ones included).
struct View {
    void* data;
    int64_t shape[kMaxDims];
    int64_t stride[kMaxDims];
    int32_t ndim;
    DType dtype;  // none: an optional operand that was not given

    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
};

static inline bool given(const View& v) { return v.dtype != DType::none; }
static inline int64_t item_size(DType t) { return t == DType::none ? 0 : kItemSize[static_cast<int>(t)]; }
static inline const char* name_of(DType t) { return t == DType::none ? "none" : kDTypeName[static_cast<int>(t)]; }
static inline bool is_float(DType t) { return t <= DType::bf16; }

static inline int64_t numel(const View& v) {
    int64_t n = 1;
    for (int d = 0; d < v.ndim; ++d) n *= v.shape[d];
    return n;
}

static inline bool is_contiguous(const View& v) {
    int64_t want = 1;
    for (int d = v.ndim - 1; d >= 0; --d) {
        if (v.shape[d] != 1 && v.stride[d] != want) return false;
        want *= v.shape[d];
    }
    return true;
}

static inline void set_contiguous(View& v) {
    int64_t step = 1;
    for (int d = v.ndim - 1; d >= 0; --d) {
        v.stride[d] = step;
        step *= v.shape[d] ? v.shape[d] : 1;
    }
}

}  // namespace tw
