// Chains cut into straight pieces.
#pragma once
#include "lines/route.h"

namespace tw::lines {

// The line that is nearest to points in the mean square: through x, y in direction ux, uy.
struct Axis {
    double x, y, ux, uy;
};

struct Piece {
    const Pixel* pixel;
    int64_t n;
    Axis axis;  // from the first pixel on
    int64_t before, after;  // further pixels of the chain
};

constexpr int64_t kSeed = 12;  // pixels that a piece starts from

// Appends the pieces of at least `least` pixels, which stray `fit_error` from a line at most.
void cut(const Chains& chains, double fit_error, int64_t least, std::vector<Piece>& pieces);

}  // namespace tw::lines
