// Maximum and mean over windows that share out (planes, *wide) among (planes, *small), as 3-D with ones, and the gradient
// of the mean. Window o along an axis is [floor(o wide / small), ceil((o + 1) wide / small)), and the windows that see
// element i are those with `wide` and `small` exchanged.
//
// Method    one item per result, the gradient too: an element of dx visits the windows that see it.
// Numerics  sums in window order; the first maximum wins, and NaN over numbers.
#include "types.clh"

typedef struct {
    long planes, wide[3], small[3];
} Pool;

typedef struct {
    INDEX plane, first[3], end[3];
} Window;

// The window of result i, of `small` sizes, over `wide` ones.
inline Window window_of(INDEX i, const long *wide, const long *small) {
    Window w;
    for (int axis = 2; axis >= 0; --axis) {
        const INDEX up = i / (INDEX)small[axis];
        const long o = i - up * (INDEX)small[axis];
        w.first[axis] = o * wide[axis] / small[axis];
        w.end[axis] = ((o + 1) * wide[axis] + small[axis] - 1) / small[axis];
        i = up;
    }
    w.plane = i;
    return w;
}

#define ACROSS(axis, i) for (INDEX i = w.first[axis]; i < w.end[axis]; ++i)
#define PLACE(sizes, a, b, c) (((a) * (INDEX)sizes[1] + (b)) * (INDEX)sizes[2] + (c))
#define VOLUME(sizes) ((INDEX)(sizes[0] * sizes[1] * sizes[2]))

__kernel void adaptive_avg_pool(IN(T, x), OUT(T, y), const Pool p) {
    START(x);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)p.planes * VOLUME(p.small)) return;
    const Window w = window_of(i, p.wide, p.small);
    x += (long)w.plane * VOLUME(p.wide);
    ACC sum = 0;
    ACROSS(0, a) ACROSS(1, b) ACROSS(2, c) sum += LOAD(x, PLACE(p.wide, a, b, c));
    STORE(y, i, sum / (ACC)((w.end[0] - w.first[0]) * (w.end[1] - w.first[1]) * (w.end[2] - w.first[2])));
}

__kernel void adaptive_max_pool(IN(T, x), OUT(T, y),
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
    if (i >= (INDEX)p.planes * VOLUME(p.small)) return;
    const Window w = window_of(i, p.wide, p.small);
    x += (long)w.plane * VOLUME(p.wide);
    INDEX where = PLACE(p.wide, w.first[0], w.first[1], w.first[2]);
    ACC largest = LOAD(x, where);
    ACROSS(0, a) ACROSS(1, b) ACROSS(2, c) {
        const INDEX at = PLACE(p.wide, a, b, c);
        const ACC v = LOAD(x, at);
        if (v > largest || (isnan(v) && !isnan(largest))) {
            largest = v;
            where = at;
        }
    }
    STORE(y, i, largest);
#ifdef INDICES
    indices[i] = where;
#endif
}

// Elements of window o along an axis.
inline ACC cells_of(const long o, const long wide, const long small) {
    return (ACC)(((o + 1) * wide + small - 1) / small - o * wide / small);
}

__kernel void adaptive_avg_pool_dx(IN(T, dy), OUT(T, dx), const Pool p) {
    START(dy);
    START(dx);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)p.planes * VOLUME(p.wide)) return;
    const Window w = window_of(i, p.small, p.wide);
    dy += (long)w.plane * VOLUME(p.small);
    ACC sum = 0;
    ACROSS(0, a) ACROSS(1, b) {
        const ACC rows = cells_of(a, p.wide[0], p.small[0]) * cells_of(b, p.wide[1], p.small[1]);
        ACROSS(2, c) sum += LOAD(dy, PLACE(p.small, a, b, c)) / (rows * cells_of(c, p.wide[2], p.small[2]));
    }
    STORE(dx, i, sum);
}
