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

// Order is part of the ABI of the tables in core/types.cc and of _core.
enum class DType : uint8_t { f32, f64, f16, bf16, i8, u8, i32, i64, boolean, i16, u16, none };
constexpr int kDTypes = 11;
constexpr int kMaxDims = 8;
constexpr int kMaxOperands = 16;  // named in an op's table
constexpr int kMaxInputs = 64;    // arrays of one call: a variadic operand is many
constexpr int kMaxOutputs = 8;
constexpr int kMaxAttrs = 24;

constexpr int64_t kItemSize[kDTypes] = {4, 8, 2, 2, 1, 1, 4, 8, 1, 2, 2};
constexpr const char* kDTypeName[kDTypes] = {"float32", "float64", "float16", "bfloat16", "int8",  "uint8",
                                             "int32",   "int64",   "bool",    "int16",    "uint16"};

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
