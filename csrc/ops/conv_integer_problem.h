// The convolution of 8-bit codes that conv_integer, qlinear_conv and conv_int8 share: exact sums in int32, and what becomes
// of them tile by tile.
#pragma once
#include "gemm/quantized.h"
#include "ops/conv_problem.h"

namespace tw::TW_ISA {

enum { kStride, kPadding, kDilation, kGroups, kActivation };  // the attributes of all of them

// What becomes of the sums of an image: finish(context, tile) with rows from `filter` on.
struct Sink {
    void (*finish)(const void* context, const IntTile& tile);
    float x_scale;
    char* y;  // of this image and group
    int64_t row;  // between its filters
    int64_t filter;  // the first of the group
    const void* all;  // what all images share
};

struct IntConv {
    View x, w, w_zero, y;  // y: pixels are a run
    const int32_t* x_zero;  // of each image
    const float* x_scale;  // of each image, or null
    int64_t groups;
    const void* packed;
    void (*finish)(const void* context, const IntTile& tile);  // null: y is the sums
    const void* context;
};
Status int_conv(const Call& c, const IntConv& q);

// Prepared filters: rows of codes of zero point 0, then their terms.
int64_t packed_filters(const View& w);  // bytes
void prepare_filters(const View& w, void* packed);

namespace {

inline int32_t code_at(const View& v, int64_t i) {
    return v.dtype == DType::u8 ? v.as<uint8_t>()[i] : v.as<int8_t>()[i];
}

inline int64_t filter_step(const View& v) { return v.ndim && v.shape[0] > 1 ? v.stride[0] : 0; }

}  // namespace
}  // namespace tw::TW_ISA
