// Where an edge goes on from each pixel, in one byte: what a walk looks up at each step.
//
//     bits 0, 1  the heading of the pixel: 0 right, 1 down, 2 left, 3 up
//     bits 2, 3  the neighbour that a step towards larger coordinates leads to: kAhead, kBefore it in the other direction,
//                kBehind it, kNowhere where the edge ends
//     bits 4, 5  the same towards smaller coordinates
//     bit 6      an edge may be drawn from here
//     bit 7      drawn already; where there is no edge nothing leads on
#pragma once
#include <cstdint>

namespace tw::lines {

constexpr uint8_t kBehind = 0, kBefore = 1, kAhead = 2, kNowhere = 3;
constexpr uint8_t kHeading = 3, kUpright = 1, kAnchor = 64, kDrawn = 128, kNoEdge = kNowhere << 2 | kNowhere << 4;

}  // namespace tw::lines
