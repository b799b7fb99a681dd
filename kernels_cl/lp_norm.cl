// Division by a p-norm along any axes, y = x / N with N = max(sum(|x|^p)^(1/p), eps), and its gradient
//     dx = (dy - sign(x) |x / N|^(p - 1) sum(dy x) / N) / N, or dy / eps where the norm is less than eps
//
// Method    a line per item; neighbouring items take neighbouring lines.
// Numerics  sums carry what they round off; powers are the device's pow, but for 1 and 2.
#define GROUP 1
#include "types.clh"
#include "rows.clh"

typedef struct {
    long lines, n, kept[8], kept_step[8], along[8], along_step[8];
} Lines;

inline INDEX place_of(INDEX i, const long *sizes, const long *steps) {
    INDEX at = 0;
    for (int axis = 7; axis >= 0; --axis) {
        const INDEX up = i / (INDEX)sizes[axis];
        at += (i - up * (INDEX)sizes[axis]) * (INDEX)steps[axis];
        i = up;
    }
    return at;
}

inline ACC raised(const ACC v, const ACC q) { return q == 1 ? v : q == 2 ? v * v : v == 0 && q > 0 ? 0 : pow(v, q); }

inline ACC slope(const ACC u, const ACC p) {
    const ACC size = p == 1 ? 1 : raised(fabs(u), p - 1);
    return u > 0 ? size : u < 0 ? -size : u;
}

// A norm that is NaN stays so.
inline ACC norm_of(const ACC sum, const ACC p) { return p == 1 ? sum : p == 2 ? sqrt(sum) : raised(sum, 1 / p); }

#define EACH_OF_LINE(i, at)                          \
    for (INDEX i = 0, at; i < (INDEX)lines.n; ++i)   \
        if ((at = base + place_of(i, lines.along, lines.along_step)) >= 0)

__kernel void lp_norm(IN(T, x), OUT(T, y), const Lines lines, const ACC p, const ACC eps) {
    START(x);
    START(y);
    const INDEX line = get_global_id(0);
    if (line >= (INDEX)lines.lines) return;
    const INDEX base = place_of(line, lines.kept, lines.kept_step);
    Sum sum = {0, 0};
    EACH_OF_LINE(i, at) sum = plus(sum, raised(fabs(LOAD(x, at)), p));
    const ACC norm = norm_of(sum.sum, p), by = norm < eps ? eps : norm;
    EACH_OF_LINE(i, at) STORE(y, at, LOAD(x, at) / by);
}

__kernel void lp_norm_dx(IN(T, dy), IN(T, x), OUT(T, dx), const Lines lines, const ACC p, const ACC eps) {
    START(dy);
    START(x);
    START(dx);
    const INDEX line = get_global_id(0);
    if (line >= (INDEX)lines.lines) return;
    const INDEX base = place_of(line, lines.kept, lines.kept_step);
    Sum sum = {0, 0}, dot = {0, 0};
    EACH_OF_LINE(i, at) {
        const ACC v = LOAD(x, at);
        sum = plus(sum, raised(fabs(v), p));
        dot = plus(dot, LOAD(dy, at) * v);
    }
    const ACC norm = norm_of(sum.sum, p), by = norm < eps ? eps : norm, along = norm < eps ? 0 : dot.sum / by;
    EACH_OF_LINE(i, at) STORE(dx, at, (LOAD(dy, at) - slope(LOAD(x, at) / by, p) * along) / by);
}
