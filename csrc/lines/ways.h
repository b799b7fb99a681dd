// Where an edge goes on from each pixel, in one byte: what a walk looks up at each step. Kernels of each tier.
//
//     bits 0, 1  the heading of the pixel
//     bits 2, 3  the neighbour that a step towards larger coordinates leads to: 0 the one ahead, 1 before it in the other
//                direction, 2 behind it, kNowhere where the edge ends
//     bits 4, 5  the same towards smaller coordinates
//     bit 7      drawn already; where there is no edge nothing leads on
#pragma once
#include <cstdint>

namespace tw::lines {

constexpr uint8_t kNowhere = 3, kDrawn = 128, kNoEdge = kNowhere << 2 | kNowhere << 4;
constexpr int kWays = 64;

// What the op edge_gradients writes: size, anchor, heading.
constexpr uint16_t kHeading = 3, kUpright = 1, kAnchor = 4;
constexpr int kSizeShift = 3, kSizes = 2048;
constexpr uint16_t kSize = (kSizes - 1) << kSizeShift;  // |dx| + |dy| in place

// A row that is not the first or the last one of a plane.
struct EdgeRow {
    const uint16_t* strength;
    int64_t width;
    int least;  // strength of an edge, in place
    uint16_t upright_anchors;  // kAnchor where the row holds those of upright edges
    const uint16_t* flat_anchors;  // kAnchor in columns that hold those of flat edges
};

struct WayKernels {
    // Writes a byte for each pixel, and where anchors are; gives how many.
    int64_t (*survey)(const EdgeRow&, uint8_t* ways, int32_t* anchors);
    // Of pixels 1, 5, 9 ... of n, whose dx and dy these are, how many have |dx| + |dy| <= most.
    int64_t (*count_faint)(const int16_t* gradient, int64_t n, int32_t most);
};

const WayKernels& way_kernels();  // of the active tier

}  // namespace tw::lines
