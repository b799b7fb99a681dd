// Where the gradient across a line is largest, place by place along it: what a line is fitted to. Kernels of each tier.
//
// Numerics  integers throughout, so that every tier gives the same bits: positions in 1/4096 pixel, gradients across a
//           line in 1/1024. Only the top of a parabola is a quotient, of floats, rounded once.
#pragma once
#include <cstdint>

#include "lines/blurred.h"

namespace tw::lines {

constexpr int kPartBits = 12;  // of a position across a line
constexpr int32_t kPart = 1 << kPartBits;
constexpr int32_t kUnit = 1024;  // of gradients across a line
constexpr double kAligned = 0.853553390593274;  // the squared cosine of 22.5 degrees

enum Look : int32_t { nothing, weak, contrary, near_it, on_it };

// What was found, by the position along the line.
struct Places {
    int32_t *at, *size, *bend, *look;  // across from the base of the line, the gradient there, how sharply it falls
};

// A line: across it, at position i along it, base + (at0 + (i - origin) step) / 2^32.
struct Course {
    Blurred picture;
    int64_t along, beside;  // bytes from one place to the next along and across the line
    int64_t n_along, n_beside;
    int64_t origin, base, at0, step;
    int16_t across[2];  // the direction across the line, towards the brighter side, in 1/kUnit
    int32_t least;  // gradient of an edge, in 1/kUnit
    int32_t contrary;  // square of a gradient that speaks for another edge
};

// Of places k = i - origin that lie off the course by d, in 1/kPart.
struct Sums {
    int64_t n, k, kk, d, kd, sure;
};

// Of places that lie on a line or near it, off the course by r, in 1/kPart, at u from the middle of a stretch, whose half is
// 2^shift u: whole numbers.
struct Curve {
    double n, uu, u4, r, ruu, rr;
    int shift;
};

// Gradients on a line, and how many of them point across it within 22.5 degrees, towards the brighter side.
struct Agreement {
    int64_t aligned, size;
};

struct LineKernels {
    // Fills in the places from first to last, of which those count that lie within `stray` of the course.
    Sums (*look)(const Course&, int64_t first, int64_t last, int32_t stray, const Places&);
    // The sums of places seen before.
    Sums (*sum)(const Course&, int64_t first, int64_t last, int32_t stray, const Places&);
    // How the places seen before lie along the line.
    Curve (*curve)(const Course&, int64_t first, int64_t last, const Places&);
    // The gradient across the line, on it, from first to last; 0 outside the picture.
    void (*profile)(const Course&, int64_t first, int64_t last, int32_t* to);
    Agreement (*agree)(const Course&, int64_t first, int64_t last);
    // Of pixels 1, 5, 9 ... of n, of which this is the first, how many have |dx| + |dy| <= most.
    int64_t (*count_faint)(const Blurred&, const uint8_t* first, int64_t n, int32_t most);
    // Copies a row of ways and lists its n anchors, of which the first pixel is number `place`: of flat edges where `held`
    // is kDrawn, and of upright ones if asked for. Gives how many.
    int64_t (*anchors)(const uint8_t* ways, int64_t n, const uint8_t* held, bool upright, int32_t place, uint8_t* copy,
                       int32_t* to);
    // |dx| + |dy| of pixels so many bytes from this one.
    void (*sizes)(const Blurred&, const uint8_t* from, const int32_t* at, int64_t n, int32_t* to);
};

const LineKernels& line_kernels();  // of the active tier, or the best below it that has them

}  // namespace tw::lines
