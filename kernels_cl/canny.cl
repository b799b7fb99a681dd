// Canny's edges in a fixed number of launches, the same bits as csrc/ops/canny.cc. blur.cl goes before where asked for.
//
//     peaks            gradient, magnitude, sector, largest across the edge, both thresholds: fused, nothing stored
//     given_peaks      the same from gradients that exist
//     unite            candidates that touch get one root: union-find with atomic minima, each link once
//     mark             the roots of strong pixels are marked
//     edges            candidates of marked roots
//
// Defined by the launch:  SIZE  of the Sobel window, or GIVEN gradients, or DEEP ones of floats;  L2  squared magnitudes
// A label is 0 where there is no candidate, else 1 + the place of another pixel of the same chain, or of itself.
#include "sobel.clh"
#include "union.clh"

#ifdef DEEP
#define MAGNITUDE float
#define LIMIT float
typedef struct {
    float magnitude;
    int sector;
} DeepEdge;
#define EDGE DeepEdge

// Of the channels at place i the one with the largest magnitude.
inline DeepEdge deep_edge(__global const float *dx, __global const float *dy, const long i, const long channels) {
    DeepEdge best;
    for (long c = 0; c < channels; ++c) {
        const float u = dx[i * channels + c], v = dy[i * channels + c];
        const float x = fabs(u), y = fabs(v), flat = x * 0.41421356f;
#ifdef L2
        const float magnitude = (float)((double)u * (double)u + (double)v * (double)v);
#else
        const float magnitude = x + y;
#endif
        if (c > 0 && !(magnitude > best.magnitude)) continue;
        best.magnitude = magnitude;
        best.sector = y <= flat ? 0 : y - (x + x) > flat ? 1 : (u < 0) != (v < 0) ? 3 : 2;
    }
    return best;
}
#else
#define MAGNITUDE int
#define LIMIT long
#define EDGE Edge
#endif

// What decides about a pixel: its edge and the magnitudes of its eight neighbours, 0 outside the picture.
#define PEAK(EDGE_AT)                                                                                          \
    const long i = get_global_id(0);                                                                           \
    if (i >= height * width) return;                                                                           \
    const long y = i / width, x = i % width;                                                                   \
    const EDGE here = EDGE_AT(y, x);                                                                           \
    bool kept = here.magnitude > low;                                                                          \
    if (kept) {                                                                                                \
        const int down = here.sector == 0 ? 0 : 1, right = here.sector == 1 ? 0 : here.sector == 3 ? -1 : 1;   \
        const long y0 = y - down, x0 = x - right, y1 = y + down, x1 = x + right;                               \
        const MAGNITUDE before = y0 < 0 || x0 < 0 || x0 >= width ? 0 : EDGE_AT(y0, x0).magnitude;                      \
        const MAGNITUDE after = y1 >= height || x1 < 0 || x1 >= width ? 0 : EDGE_AT(y1, x1).magnitude;                 \
        kept = here.magnitude > before && (here.sector < 2 ? here.magnitude >= after : here.magnitude > after); \
    }                                                                                                          \
    labels[i] = kept ? (uint)i + 1 : 0;                                                                        \
    strong[i] = kept && here.magnitude > high

#ifdef SIZE
#define IMAGE_EDGE(y, x) edge_at(image, height, width, (int)channels, y, x)
__kernel void peaks(IN(uchar, image), OUT(uint, labels), OUT(uchar, strong), const long height, const long width,
                    const long channels, const long low, const long high) {
    START(image);
    START(labels);
    START(strong);
    PEAK(IMAGE_EDGE);
}
#elif defined(GIVEN)
#define GIVEN_EDGE(y, x) edge_of(dx[(y) * width + (x)], dy[(y) * width + (x)])
__kernel void given_peaks(IN(short, dx), IN(short, dy), OUT(uint, labels), OUT(uchar, strong), const long height,
                          const long width, const long low, const long high) {
    START(dx);
    START(dy);
    START(labels);
    START(strong);
    PEAK(GIVEN_EDGE);
}
#elif defined(DEEP)
#define DEEP_EDGE(y, x) deep_edge(dx, dy, (y) * width + (x), channels)
__kernel void deep_peaks(IN(float, dx), IN(float, dy), OUT(uint, labels), OUT(uchar, strong), const long height,
                         const long width, const long channels, const LIMIT low, const LIMIT high) {
    START(dx);
    START(dy);
    START(labels);
    START(strong);
    PEAK(DEEP_EDGE);
}
#else

// ---- hysteresis -----------------------------------------------------------------------------------------------------

__kernel void unite(OUT(uint, labels), const long height, const long width) {
    START(labels);
    const long i = get_global_id(0);
    if (i >= height * width || !labels[i]) return;
    const long y = i / width, x = i % width;
    if (x > 0 && labels[i - 1]) link(labels, (uint)i, (uint)(i - 1));
    if (y == 0) return;
    for (long k = max(x - 1, (long)0); k <= min(x + 1, width - 1); ++k) {
        const long above = (y - 1) * width + k;
        if (labels[above]) link(labels, (uint)i, (uint)above);
    }
}

// Every writer of a mark writes the same.
__kernel void mark(IN(uint, labels), IN(uchar, strong), OUT(uchar, marks), const long count) {
    START(labels);
    START(strong);
    START(marks);
    const long i = get_global_id(0);
    if (i < count && strong[i]) marks[root_of(labels, (uint)i)] = 1;
}

__kernel void edges(IN(uint, labels), IN(uchar, marks), OUT(uchar, out), const long count) {
    START(labels);
    START(marks);
    START(out);
    const long i = get_global_id(0);
    if (i < count) out[i] = labels[i] && marks[root_of(labels, (uint)i)] ? 255 : 0;
}
#endif
