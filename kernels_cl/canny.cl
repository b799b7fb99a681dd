// Canny's edges in a fixed number of launches, the same bits as csrc/ops/canny.cc. blur.cl goes before where asked for.
//
//     peaks            gradient, magnitude, sector, largest across the edge, both thresholds: fused, nothing stored
//     given_peaks      the same from gradients that exist
//     unite            candidates that touch get one root: union-find with atomic minima, each link once
//     mark             the roots of strong pixels are marked
//     edges            candidates of marked roots
//
// Defined by the launch:  SIZE  of the Sobel window, or GIVEN gradients;  L2  squared magnitudes
// A label is 0 where there is no candidate, else 1 + the place of another pixel of the same chain, or of itself.
#include "types.clh"

typedef struct {
    int magnitude;
    int sector;  // whose neighbours lie across the edge: beside 0, above and below 1, diagonals 2 (falling) and 3
} Edge;

inline Edge edge_of(const int dx, const int dy) {
    const int x = abs(dx), y = abs(dy), flat = x * 13573 >> 15;
    Edge e;
#ifdef L2
    e.magnitude = (int)min((uint)(dx * dx) + (uint)(dy * dy), (uint)INT_MAX);
#else
    e.magnitude = x + y;
#endif
    e.sector = y <= flat ? 0 : y > flat + 2 * x ? 1 : (dx ^ dy) < 0 ? 3 : 2;
    return e;
}

// What decides about a pixel: its edge and the magnitudes of its eight neighbours, 0 outside the picture.
#define PEAK(EDGE_AT)                                                                                          \
    const long i = get_global_id(0);                                                                           \
    if (i >= height * width) return;                                                                           \
    const long y = i / width, x = i % width;                                                                   \
    const Edge here = EDGE_AT(y, x);                                                                           \
    bool kept = here.magnitude > low;                                                                          \
    if (kept) {                                                                                                \
        const int down = here.sector == 0 ? 0 : 1, right = here.sector == 1 ? 0 : here.sector == 3 ? -1 : 1;   \
        const long y0 = y - down, x0 = x - right, y1 = y + down, x1 = x + right;                               \
        const int before = y0 < 0 || x0 < 0 || x0 >= width ? 0 : EDGE_AT(y0, x0).magnitude;                      \
        const int after = y1 >= height || x1 < 0 || x1 >= width ? 0 : EDGE_AT(y1, x1).magnitude;                 \
        kept = here.magnitude > before && (here.sector < 2 ? here.magnitude >= after : here.magnitude > after); \
    }                                                                                                          \
    labels[i] = kept ? (uint)i + 1 : 0;                                                                        \
    strong[i] = kept && here.magnitude > high

#ifdef SIZE
// Both sums of a window.
inline int smoothed(const int *v) {
#if SIZE == 3
    return v[0] + 2 * v[1] + v[2];
#elif SIZE == 5
    return v[0] + v[4] + 4 * (v[1] + v[3]) + 6 * v[2];
#else
    return v[0] + v[6] + 6 * (v[1] + v[5]) + 15 * (v[2] + v[4]) + 20 * v[3];
#endif
}
inline int changed(const int *v) {
#if SIZE == 3
    return v[2] - v[0];
#elif SIZE == 5
    return v[4] - v[0] + 2 * (v[3] - v[1]);
#else
    return v[6] - v[0] + 4 * (v[5] - v[1]) + 5 * (v[4] - v[2]);
#endif
}

// Sums of the largest window fit 16 bits once they are divided, halves to even.
inline int reduced(const int v) { return SIZE == 7 ? (v + 7 + (v >> 4 & 1)) >> 4 : v; }

inline Edge edge_at(__global const uchar *image, const long height, const long width, const int channels, const long y,
                    const long x) {
    Edge best;
    best.magnitude = best.sector = 0;
    for (int c = 0; c < channels; ++c) {
        int smooth[SIZE], change[SIZE];
        for (int k = 0; k < SIZE; ++k) {
            const long column = clamp(x + k - SIZE / 2, (long)0, width - 1);
            int v[SIZE];
            for (int r = 0; r < SIZE; ++r)
                v[r] = image[(clamp(y + r - SIZE / 2, (long)0, height - 1) * width + column) * channels + c];
            smooth[k] = smoothed(v), change[k] = changed(v);
        }
        const Edge e = edge_of(reduced(changed(smooth)), reduced(smoothed(change)));
        if (c == 0 || e.magnitude > best.magnitude) best = e;
    }
    return best;
}

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
#else

// ---- hysteresis -----------------------------------------------------------------------------------------------------

inline uint root_of(volatile __global const uint *labels, uint place) {
    for (uint up = labels[place] - 1; up != place; up = labels[place] - 1) place = up;
    return place;
}

// The larger root points at the smaller; whoever comes second goes on with what was there before.
inline void link(volatile __global uint *labels, uint a, uint b) {
    while (true) {
        a = root_of(labels, a), b = root_of(labels, b);
        if (a == b) return;
        const uint low = min(a, b), high = max(a, b);
        const uint before = atomic_min(labels + high, low + 1) - 1;
        if (before == high) return;
        a = before, b = low;
    }
}

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
