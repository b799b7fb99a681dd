// Straight lines through chains of edge pixels, refined on the gradients and validated.
#pragma once
#include "lines/route.h"

namespace tw::lines {

struct LineOptions {
    int threshold;         // least |dx| + |dy| on an edge
    int64_t interval;      // every so many rows hold anchors of upright edges, and columns of flat ones
    double least_length;   // pixels; 0: as short as a line of perfect direction can be and still be valid
    double fit_error;      // pixels from a line at which a chain leaves it
    int64_t gap;           // longest stretch without an edge that a line may jump
    bool validate;
    double log_eps;        // log10 of the lines expected in noise
    bool subpixel;
};

// From 1 to 2 the brighter side lies on the right. log_nfa is -log10 of the number of false alarms.
struct Line {
    float x1, y1, x2, y2, width, log_nfa, strength;
};

// What a threshold should be at least, by the noise of the picture.
int auto_threshold(const Planes& planes);
std::vector<Line> find_lines(const Planes& planes, const LineOptions& options);

}  // namespace tw::lines
