// 8-bit pictures with their edge pixels repeated around them, contiguous: what may be read a little outside.
#pragma once
#include "image/rows.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kPad = 16;  // pixels on every side
constexpr int64_t kLeast = 8;  // rows and columns that any picture has, repeated ones included

// A picture with its edge pixels repeated around it.
struct Padded {
    uint8_t* data;
    int64_t height, width, pitch;
    const uint8_t* at(int64_t y, int64_t x) const { return data + (y + kPad) * pitch + x + kPad; }
};

TW_INLINE int64_t padded_pitch(const View& v) { return row_pitch(max_of(v.shape[1], kLeast) + 2 * kPad); }
TW_INLINE int64_t padded_bytes(const View& v) { return (max_of(v.shape[0], kLeast) + 2 * kPad) * padded_pitch(v); }

Padded padded(const View& v, uint8_t* memory) {
    const Padded p = {memory, v.shape[0], v.shape[1], padded_pitch(v)};
    const int64_t rows = max_of(p.height, kLeast) + 2 * kPad, columns = max_of(p.width, kLeast) + 2 * kPad;
    for (int64_t i = 0; i < rows; ++i) {
        const int64_t y = min_of(max_of(i - kPad, 0), p.height - 1);
        const uint8_t* const from = v.as<uint8_t>() + y * v.stride[0];
        uint8_t* const to = memory + i * p.pitch;
        copy_row(to + kPad, from, v.stride[1], p.width);
        __builtin_memset(to, to[kPad], kPad);
        __builtin_memset(to + kPad + p.width, to[kPad + p.width - 1], static_cast<size_t>(columns - kPad - p.width));
    }
    return p;
}

}  // namespace
}  // namespace tw::TW_ISA
