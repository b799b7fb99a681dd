// Pooling of boxes (R, 4) of (N, C, H, W) into cells (R, C, P, Q), and the gradient of the mean; see csrc/ops/roi_align.cc.
//
// Method    one item per result. The gradient gathers: an element of dx visits the cells of its sample's boxes, and the
//           weight of a cell's samples is a product of one along the rows and one along the columns.
// Numerics  places in double where the device has it, sums in ACC in the order of the samples.
#include "types.clh"

#ifdef cl_khr_fp64
typedef double Real;
#else
typedef float Real;
#endif

// The samples of a box along an axis of n elements.
typedef struct {
    Real start, cell, step;
    long grid, n;
} Along;

inline Along along(const Real low, const Real high, const Real scale, const long aligned, const long cells,
                   const long n, const long ratio) {
    Along a;
    Real length = (high - low) * scale;
    if (!aligned && length < 1) length = 1;
    a.start = low * scale - (aligned ? (Real)0.5f : (Real)0);
    a.cell = length / (Real)cells;
    const Real grid = ratio ? (Real)ratio : ceil(a.cell);
    a.grid = grid > 0 ? (long)fmin(grid, (Real)1.0e18f) : 0;
    a.step = a.cell / (Real)a.grid;
    a.n = n;
    return a;
}

inline Real place_of(const Along a, const long cell, const long i) {
    return a.start + (Real)cell * a.cell + ((Real)i + (Real)0.5f) * a.step;
}

// The samples of a cell that may lie inside, from first to end.
inline void samples_of(const Along a, const long cell, long *first, long *end) {
    *first = 0;
    *end = a.grid;
    if (!(a.step > 0)) return;
    const Real at = place_of(a, cell, 0), grid = (Real)a.grid;
    *first = (long)clamp((-1 - at) / a.step - 1, (Real)0, grid);
    *end = (long)clamp(((Real)a.n - at) / a.step + 2, (Real)0, grid);
}

// The neighbours of a place and the weight of the second, both the same where that is 0; false outside.
inline bool between(const Along a, Real at, INDEX *low, INDEX *high, Real *part) {
    if (!(at >= -1 && at <= (Real)a.n)) return false;
    at = fmax(at, (Real)0);
    *low = min((INDEX)at, (INDEX)(a.n - 1));
    *part = *low == (INDEX)(a.n - 1) ? 0 : at - (Real)*low;
    *high = *low + (*part > 0);
    return true;
}

#define LAY_OUT                                                                                                       \
    const Along down = along(LOAD(boxes, 4 * r + 1), LOAD(boxes, 4 * r + 3), scale, aligned, cells_y, height, ratio); \
    const Along across = along(LOAD(boxes, 4 * r), LOAD(boxes, 4 * r + 2), scale, aligned, cells_x, width, ratio);    \
    const bool is_finite = isfinite(down.start) && isfinite(down.cell) && isfinite(across.start) && isfinite(across.cell);

// NaN wins.
inline ACC larger(const ACC a, const ACC b) { return b > a || isnan(b) ? b : a; }
#define SHARE(value, weight) ((weight) != 0 ? (value) * (weight) : (ACC)0)

__kernel void roi_align(IN(T, x), IN(T, boxes), IN(long, images), OUT(T, y), const long count, const long channels,
                        const long height, const long width, const long cells_y, const long cells_x, const long ratio,
                        const long aligned, const ACC scale) {
    START(x);
    START(boxes);
    START(images);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX q = i % (INDEX)cells_x, p = i / (INDEX)cells_x % (INDEX)cells_y;
    const INDEX c = i / (INDEX)(cells_x * cells_y) % (INDEX)channels, r = i / (INDEX)(cells_x * cells_y * channels);
    LAY_OUT
    if (!is_finite) {
        STORE(y, i, (ACC)NAN);
        return;
    }
    x += (images[r] * channels + c) * height * width;
    long top, bottom, left, right;
    samples_of(down, p, &top, &bottom);
    samples_of(across, q, &left, &right);
    ACC sum = 0, largest = 0;
    bool begun = bottom - top != down.grid || right - left != across.grid;
    for (long s = top; s < bottom; ++s) {
        INDEX y0 = 0, y1 = 0, x0 = 0, x1 = 0;
        Real v = 0, h = 0;
        const bool inside = between(down, place_of(down, p, s), &y0, &y1, &v);
        for (long t = left; t < right; ++t) {
            ACC value = 0;
            if (inside && between(across, place_of(across, q, t), &x0, &x1, &h)) {
                const ACC a = LOAD(x, y0 * (INDEX)width + x0), b = LOAD(x, y0 * (INDEX)width + x1);
                const ACC c = LOAD(x, y1 * (INDEX)width + x0), d = LOAD(x, y1 * (INDEX)width + x1);
                const ACC part = (ACC)h, rest = (ACC)(1 - h), lower = (ACC)v, upper = (ACC)(1 - v);
#if defined(LARGEST) && LARGEST == 2
                value = larger(larger(SHARE(a, rest * upper), SHARE(b, part * upper)),
                               larger(SHARE(c, rest * lower), SHARE(d, part * lower)));
#else
                value = (a * rest + b * part) * upper + (c * rest + d * part) * lower;
#endif
            }
            sum += value;
            largest = begun ? larger(largest, value) : value;
            begun = true;
        }
    }
#ifdef LARGEST
    STORE(y, i, largest);
#else
    STORE(y, i, sum / fmax((ACC)down.grid * (ACC)across.grid, (ACC)1));
#endif
}

// The weight of element `at` in the sum of a cell's samples.
inline ACC weight_of(const Along a, const long cell, const INDEX at) {
    const Real near = a.start + (Real)cell * a.cell, far = near + a.cell, place = (Real)at;
    const bool border = at == 0 || at == (INDEX)(a.n - 1);
    if (!border && (fmax(near, far) < place - 1 || fmin(near, far) > place + 1)) return 0;
    long first, end;
    samples_of(a, cell, &first, &end);
    ACC weight = 0;
    for (long s = first; s < end; ++s) {
        INDEX low, high;
        Real part;
        if (!between(a, place_of(a, cell, s), &low, &high, &part)) continue;
        weight += (low == at ? (ACC)(1 - part) : (ACC)0) + (high == at ? (ACC)part : (ACC)0);
    }
    return weight;
}

__kernel void roi_align_dx(IN(T, dy), IN(T, boxes), IN(long, images), OUT(T, dx), const long count,
                           const long channels, const long height, const long width, const long cells_y,
                           const long cells_x, const long ratio, const long aligned, const ACC scale,
                           const long n_boxes) {
    START(dy);
    START(boxes);
    START(images);
    START(dx);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX w = i % (INDEX)width, h = i / (INDEX)width % (INDEX)height;
    const INDEX c = i / (INDEX)(width * height) % (INDEX)channels, image = i / (INDEX)(width * height * channels);
    ACC sum = 0;
    for (INDEX r = 0; r < (INDEX)n_boxes; ++r) {
        if (images[r] != image) continue;
        LAY_OUT
        if (!is_finite) continue;
        __global const T *of_box = dy + (r * channels + c) * cells_y * cells_x;
        ACC of_all = 0;
        for (INDEX p = 0; p < (INDEX)cells_y; ++p) {
            const ACC rows = weight_of(down, p, h);
            if (rows == 0) continue;
            for (INDEX q = 0; q < (INDEX)cells_x; ++q) {
                const ACC columns = weight_of(across, q, w);
                if (columns != 0) of_all += rows * columns * LOAD(of_box, p * (INDEX)cells_x + q);
            }
        }
        sum += of_all / fmax((ACC)down.grid * (ACC)across.grid, (ACC)1);
    }
    STORE(dx, i, sum);
}
