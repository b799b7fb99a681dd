// The picture that lines are fitted to: bytes, from which gradients are taken where somebody asks for them.
#pragma once
#include <cstdint>

namespace tw::lines {

// Around the picture edge pixels are repeated: once, and behind a row twice. Of several channels that counts at a pixel
// whose |dx| + |dy| is largest, the first of equals.
struct Blurred {
    const uint8_t* pixel;  // the first one of the first channel
    int64_t row, channel;  // bytes from one to the next
    int64_t channels;

    const uint8_t* at(int64_t x, int64_t y) const { return pixel + y * row + x; }
};

constexpr int64_t kFrameRows = 2, kFrameColumns = 3;  // that are not of the picture: one before it, the others behind

}  // namespace tw::lines
