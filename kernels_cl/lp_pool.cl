// What the p-norm over windows and its gradient need around the sums of windows (pool.cl): powers and roots.
//
// Method    one result per element, each.clh; what is summed is kept in ACC.
// Numerics  powers are the device's pow, but for 1, 2 and the square root.
#include "types.clh"
#include "each.clh"

inline ACC raised(const ACC v, const ACC q) {
    return q == 1 ? v : q == 2 ? v * v : q == 0.5f ? sqrt(v) : q == 0 ? 1 : pow(v, q);
}

__kernel void powers(ANY(T, x), ANY(ACC, to), const ACC p, const Walk walk) {
    START(x);
    START(to);
    EACH(k, i) to[AT(1, i)] = raised(fabs(LOAD(x, AT(0, i))), p);
}

__kernel void roots(ANY(ACC, sums), ANY(T, y), const ACC q, const Walk walk) {
    START(sums);
    START(y);
    EACH(k, i) STORE(y, AT(1, i), raised(sums[AT(0, i)], q));
}

// Windows without a norm have no share.
__kernel void shares(ANY(T, dy), ANY(T, y), ANY(ACC, to), const ACC q, const Walk walk) {
    START(dy);
    START(y);
    START(to);
    EACH(k, i) {
        const ACC v = LOAD(y, AT(1, i));
        to[AT(2, i)] = v == 0 ? (ACC)0 : LOAD(dy, AT(0, i)) * raised(fabs(v), q);
    }
}

__kernel void slopes(ANY(T, x), ANY(ACC, sums), ANY(T, dx), const ACC q, const Walk walk) {
    START(x);
    START(sums);
    START(dx);
    EACH(k, i) {
        const ACC v = LOAD(x, AT(0, i)), size = raised(fabs(v), q);
        STORE(dx, AT(2, i), (v > 0 ? size : v < 0 ? -size : v) * sums[AT(1, i)]);
    }
}
