// Numbers of 8 bits or fewer, one to a byte as ml_dtypes lays them out: floats of 8 and of 4 bits, and integers of 4 and of
// 2, which lie in the low bits.
//
// Numerics  a float is rounded once, halves to even; one of e8m0, a power of two, up. What is too large becomes the largest
//           number there is, or, with saturate false, infinite: NaN where there is no infinity. What is below 0 is NaN in
//           e8m0. NaN is -0 in e2m1, which has none. Integers truncate and saturate, and take NaN to 0.
// Source    Micikevicius et al., FP8 formats for deep learning, 2022; OCP microscaling formats 1.0; ONNX Cast-25.
#pragma once
#include "core/types.h"

namespace tw {

static inline bool is_small(DType t) { return t >= DType::f8e4m3 && t != DType::none; }
static inline bool is_small_integer(DType t) { return t >= DType::i4 && t != DType::none; }

// Bits that a number of such a type takes; the rest of its byte says nothing.
static inline int bits_of_small(DType t) { return t >= DType::i2 ? 2 : t >= DType::f4e2m1 ? 4 : 8; }

static inline bool is_padded(DType t) { return t >= DType::f4e2m1 && t != DType::none; }

// What n bytes stand for, which is exact.
void decode_small(DType dtype, float* to, const void* from, int64_t n);

void encode_small(DType dtype, void* to, const float* from, int64_t n, bool saturate);

}  // namespace tw
