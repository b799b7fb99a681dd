// Edge Drawing: pixels of an edge put in the order in which they follow each other.
#pragma once
#include <cstdint>
#include <vector>

#include "lines/buffer.h"

namespace tw::lines {

// What the op edge_gradients writes, rows close together. Routing and fitting mark pixels in the upper bits of strength.
struct Planes {
    uint16_t* strength;
    const int16_t* gradient;  // dx and dy of each pixel
    int64_t height, width;
};

constexpr uint16_t kHeading = 3, kAnchor = 4, kClaimed = 1 << 14, kDrawn = 1 << 15;
constexpr int kSizeShift = 3;
constexpr uint16_t kSize = 0x3ff8;  // |dx| + |dy| in place

struct Pixel {
    int32_t x, y;
};

// Chain k is pixel[start[k]] to pixel[start[k + 1] - 1], with the brighter side on the right.
struct Chains {
    Buffer<Pixel> pixel;
    std::vector<int64_t> start;
};

struct RouteOptions {
    int threshold;       // least |dx| + |dy| of a pixel on an edge
    int64_t interval;    // every so many rows hold anchors of upright edges, and columns of flat ones
    int64_t least;       // pixels of a chain that is kept
};

Chains draw_chains(const Planes& planes, const RouteOptions& options);

}  // namespace tw::lines
