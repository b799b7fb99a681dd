// Pooling over 1, 2 or 3 spatial axes (as 3-D with ones) of (planes, *spatial), and the gradient of the mean.
//
//     max_pool   y = max over the window; the first maximum's place within the plane; NaN wins
//     avg_pool   y = sum over the window / divisor; the divisor counts padding, but not what ceil_mode adds behind it
//
// Method    one item per result. avg_pool_dx gathers: an element of dx visits the windows that cover it.
// Numerics  sums in window order.
#include "types.clh"

typedef struct {
    long planes;
    long in[3], out[3], window[3], stride[3], dilation[3], before[3], after[3];
} Pool;

// First place of window o along an axis; windows reach from begin to end by dilation.
#define BEGIN(axis, o) ((o) * (INDEX)p.stride[axis] - (INDEX)p.before[axis])

typedef struct {
    INDEX plane, at[3];
} Place;

inline Place place_of(INDEX i, const long *sizes) {
    Place place;
    for (int axis = 2; axis >= 0; --axis) {
        const INDEX up = i / (INDEX)sizes[axis];
        place.at[axis] = i - up * (INDEX)sizes[axis];
        i = up;
    }
    place.plane = i;
    return place;
}

__kernel void max_pool(IN(T, x), OUT(T, y),
#ifdef INDICES
                       OUT(long, indices),
#endif
                       const Pool p) {
    START(x);
    START(y);
#ifdef INDICES
    START(indices);
#endif
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)(p.planes * p.out[0] * p.out[1] * p.out[2])) return;
    const Place o = place_of(i, p.out);
    x += (long)o.plane * p.in[0] * p.in[1] * p.in[2];
    ACC largest = -INFINITY;
    INDEX where = -1;
    for (INDEX a = 0; a < (INDEX)p.window[0]; ++a) {
        const INDEX d = BEGIN(0, o.at[0]) + a * (INDEX)p.dilation[0];
        if (d < 0 || d >= (INDEX)p.in[0]) continue;
        for (INDEX b = 0; b < (INDEX)p.window[1]; ++b) {
            const INDEX h = BEGIN(1, o.at[1]) + b * (INDEX)p.dilation[1];
            if (h < 0 || h >= (INDEX)p.in[1]) continue;
            for (INDEX c = 0; c < (INDEX)p.window[2]; ++c) {
                const INDEX w = BEGIN(2, o.at[2]) + c * (INDEX)p.dilation[2];
                if (w < 0 || w >= (INDEX)p.in[2]) continue;
                const INDEX at = (d * (INDEX)p.in[1] + h) * (INDEX)p.in[2] + w;
                const ACC v = LOAD(x, at);
                if (where < 0 || v > largest || (isnan(v) && !isnan(largest))) {
                    largest = v;
                    where = at;
                }
            }
        }
    }
    STORE(y, i, largest);
#ifdef INDICES
#ifdef FLAT
    indices[i] = (long)o.plane * p.in[0] * p.in[1] * p.in[2] + where;
#else
    indices[i] = where;
#endif
#endif
}

// Elements that a window is divided by, and the part of it that lies inside x.
typedef struct {
    INDEX first, end, count;
} Window;

inline Window window_at(const INDEX o, const INDEX in, const INDEX size, const INDEX stride, const INDEX before,
                        const INDEX after) {
    Window window;
    window.first = o * stride - before;
    window.end = min(window.first + size, in + after);
    window.count = window.end - window.first;
    window.first = max(window.first, (INDEX)0);
    window.end = min(window.end, in);
#ifndef COUNT_PADDING
    window.count = max(window.end - window.first, (INDEX)0);
#endif
    return window;
}

// The given divisor, if any. A window wholly in the padding has nothing else to divide its sum, 0, by.
#define DIVISOR(ds, hs, ws) (given ? (ACC)given : (ACC)max(ds.count * hs.count * ws.count, (INDEX)1))

#define WINDOW(axis, o)                                                                                              \
    window_at(o, (INDEX)p.in[axis], (INDEX)p.window[axis], (INDEX)p.stride[axis], (INDEX)p.before[axis], \
              (INDEX)p.after[axis])

__kernel void avg_pool(IN(T, x), OUT(T, y), const Pool p, const long given) {
    START(x);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)(p.planes * p.out[0] * p.out[1] * p.out[2])) return;
    const Place o = place_of(i, p.out);
    x += (long)o.plane * p.in[0] * p.in[1] * p.in[2];
    const Window ds = WINDOW(0, o.at[0]), hs = WINDOW(1, o.at[1]), ws = WINDOW(2, o.at[2]);
    ACC sum = 0;
    for (INDEX d = ds.first; d < ds.end; ++d)
        for (INDEX h = hs.first; h < hs.end; ++h)
            for (INDEX w = ws.first; w < ws.end; ++w) sum += LOAD(x, (d * (INDEX)p.in[1] + h) * (INDEX)p.in[2] + w);
    STORE(y, i, sum / DIVISOR(ds, hs, ws));
}

// Windows that cover place `at`: first .. last along an axis.
#define FIRST(axis, at)                                                                       \
    max((INDEX)0, ((at) + (INDEX)p.before[axis] - (INDEX)p.window[axis] + (INDEX)p.stride[axis]) / \
                      (INDEX)p.stride[axis])
#define LAST(axis, at) min((INDEX)p.out[axis] - 1, ((at) + (INDEX)p.before[axis]) / (INDEX)p.stride[axis])

__kernel void avg_pool_dx(IN(T, dy), OUT(T, dx), const Pool p, const long given) {
    START(dy);
    START(dx);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)(p.planes * p.in[0] * p.in[1] * p.in[2])) return;
    const Place at = place_of(i, p.in);
    dy += (long)at.plane * p.out[0] * p.out[1] * p.out[2];
    ACC sum = 0;
    for (INDEX a = FIRST(0, at.at[0]); a <= LAST(0, at.at[0]); ++a) {
        const Window ds = WINDOW(0, a);
        for (INDEX b = FIRST(1, at.at[1]); b <= LAST(1, at.at[1]); ++b) {
            const Window hs = WINDOW(1, b);
            for (INDEX c = FIRST(2, at.at[2]); c <= LAST(2, at.at[2]); ++c) {
                const Window ws = WINDOW(2, c);
                const ACC share = LOAD(dy, (a * (INDEX)p.out[1] + b) * (INDEX)p.out[2] + c);
                sum += share / DIVISOR(ds, hs, ws);
            }
        }
    }
    STORE(dx, i, sum);
}
