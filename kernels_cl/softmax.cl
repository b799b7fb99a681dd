// softmax, log_softmax and their gradients along one axis of (outer, n, inner), and logsumexp, a number of each row.
//
//     softmax        y = e / sum(e),  e = exp(x - max)         dx = y (dy - sum(dy y))
//     log_softmax    y = x - max - log(sum(e))                 dx = dy - exp(y) sum(dy)
//     logsumexp      y = max + log(sum(e))
//
// Method    a row per work-group of GROUP items (inner = 1), kept in registers where it is short (PER_ITEM elements an
//           item), or a row per item (GROUP 1: neighbouring items take neighbouring columns).
// Numerics  the maximum is subtracted first, and what that rounds off is carried along; sums: rows.clh.
#include "types.clh"
#include "rows.clh"

#define ROW_BASE(row) ((row) / (INDEX)inner * (INDEX)n * (INDEX)inner + (row) % (INDEX)inner)
#define PLACE(j) (base + (j) * (INDEX)inner)

#ifdef PER_ITEM
#define IN_ROW(k, j) _Pragma("unroll") for (INDEX k = 0, j = ITEM; k < PER_ITEM; ++k, j += GROUP) if (j < (INDEX)n)
#define KEEP(name, from)       \
    ACC name##_kept[PER_ITEM]; \
    IN_ROW(k, j) name##_kept[k] = LOAD(from, PLACE(j));
#define KEPT(name, from, k, j) name##_kept[k]
#else
#define IN_ROW(k, j) ALONG(j, 0, (INDEX)n)
#define KEEP(name, from)
#define KEPT(name, from, k, j) LOAD(from, PLACE(j))
#endif

#define ENTER                       \
    START(y);                       \
    const INDEX row = ROW;          \
    if (row >= (INDEX)rows) return; \
    GROUP_MEMORY                    \
    const INDEX base = ROW_BASE(row);

#define SOFTMAX(name, value)                                                                   \
    __kernel void name(IN(T, x), OUT(T, y), const long rows, const long n, const long inner) { \
        START(x);                                                                              \
        ENTER                                                                                  \
        KEEP(x, x)                                                                             \
        ACC top = -INFINITY;                                                                   \
        IN_ROW(k, j) top = fmax(top, KEPT(x, x, k, j));                                        \
        top = GROUP_MAX(top);                                                                  \
        Sum own_sum = {0, 0};                                                                  \
        IN_ROW(k, j) own_sum = plus(own_sum, exp_below(KEPT(x, x, k, j), top));                \
        const ACC sum = GROUP_SUM(own_sum.sum);                                                \
        const ACC log_sum = log(sum);                                                          \
        IN_ROW(k, j) {                                                                         \
            const ACC own = KEPT(x, x, k, j);                                                  \
            STORE(y, PLACE(j), value);                                                         \
        }                                                                                      \
    }

SOFTMAX(softmax, exp_below(own, top) / sum)
SOFTMAX(log_softmax, (own - top) - log_sum)

// An infinite maximum is the result.
__kernel void logsumexp(IN(T, x), OUT(T, y), const long rows, const long n, const long inner) {
    START(x);
    ENTER
    KEEP(x, x)
    ACC own_top = -INFINITY;
    IN_ROW(k, j) own_top = nan_max(own_top, KEPT(x, x, k, j));
    const ACC top = GROUP_MAX(own_top);
    Sum own_sum = {0, 0};
    IN_ROW(k, j) own_sum = plus(own_sum, exp_below(KEPT(x, x, k, j), top));
    const ACC sum = GROUP_SUM(own_sum.sum);
    if (ITEM == 0) STORE(y, row, isinf(top) ? top : top + log(sum));
}

// y is dx; g the result of the forward op.
#define GRADIENT(name, term, value)                                                                       \
    __kernel void name(IN(T, dy), IN(T, g), OUT(T, y), const long rows, const long n, const long inner) { \
        START(dy);                                                                                        \
        START(g);                                                                                         \
        ENTER                                                                                             \
        KEEP(dy, dy)                                                                                      \
        KEEP(g, g)                                                                                        \
        Sum own_sum = {0, 0};                                                                             \
        IN_ROW(k, j) {                                                                                    \
            const ACC d = KEPT(dy, dy, k, j), r = KEPT(g, g, k, j);                                       \
            own_sum = plus(own_sum, term);                                                                \
        }                                                                                                 \
        const ACC sum = GROUP_SUM(own_sum.sum);                                                           \
        IN_ROW(k, j) {                                                                                    \
            const ACC d = KEPT(dy, dy, k, j), r = KEPT(g, g, k, j);                                       \
            STORE(y, PLACE(j), value);                                                                    \
        }                                                                                                 \
    }

GRADIENT(softmax_dx, d * r, r * (d - sum))
GRADIENT(log_softmax_dx, d, d - exp(r) * sum)
