// Edge Drawing: pixels of an edge put in the order in which they follow each other.
#pragma once
#include <cstdint>
#include <vector>

#include "lines/blurred.h"
#include "lines/buffer.h"

namespace tw::lines {

// What the op edge_ways writes, rows close together.
struct Planes {
    const uint8_t* ways;  // lines/ways.h
    Blurred picture;
    int64_t height, width;
};

struct Pixel {
    int32_t x, y;
};

// Chain k is pixel[start[k]] to pixel[start[k + 1] - 1], with the brighter side on the right.
struct Chains {
    Buffer<Pixel> pixel;
    std::vector<int64_t> start;
};

struct RouteOptions {
    int64_t interval;    // every so many rows hold anchors of upright edges, and columns of flat ones
    int64_t least;       // pixels of a chain that is kept
    int64_t first, past;  // rows of the band whose anchors are taken
};

// Edges from the anchors of a band, as if there were no others. They end a few rows beyond it.
Chains draw_chains(const Planes& planes, const RouteOptions& options);

}  // namespace tw::lines
