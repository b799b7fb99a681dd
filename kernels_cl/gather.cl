// Elements by index, and elements put where indices say; the indices were checked, those below 0 count from the end.
//
// Method    one item per element of the result; of a scatter it looks through the updates that may meet it.
// Numerics  moves are exact. Updates of one place come in C order, in float for 16-bit floats.
//
// Defined by the launch:  BITS    uchar ushort uint ulong: what gathers move;  DTYPE in its place: of a scatter
//                         ITEMS   where gather_elements walks (each.clh)
//                         TUPLE   numbers in a place of gather_nd and scatter_nd;  AXES   dimensions of scatter_elements
#include "types.clh"

inline INDEX from_start(const long index, const long n) { return (INDEX)(index < 0 ? index + n : index); }

#ifdef TUPLE
typedef struct {
    long size[TUPLE], stride[TUPLE];
} Tuple;

inline INDEX place_of(__global const long *tuple, const Tuple axes) {
    INDEX at = 0;
    for (int d = 0; d < TUPLE; ++d) at += from_start(tuple[d], axes.size[d]) * (INDEX)axes.stride[d];
    return at;
}
#endif

#ifdef BITS

#ifdef ITEMS
#include "each.clh"

// x is at index 0 of the axis.
__kernel void gather_elements(ANY(BITS, x), ANY(long, indices), ANY(BITS, y), const long n, const long stride,
                              const Walk walk) {
    START(x);
    START(indices);
    START(y);
    EACH(k, i) y[AT(2, i)] = x[AT(0, i) + from_start(indices[AT(1, i)], n) * (INDEX)stride];
}

#elif defined(TUPLE)

__kernel void gather_nd(IN(BITS, x), IN(long, indices), OUT(BITS, y), const long count, const long inner,
                        const Tuple axes) {
    START(x);
    START(indices);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX tuple = i / (INDEX)inner;
    y[i] = x[place_of(indices + tuple * TUPLE, axes) + i - tuple * (INDEX)inner];
}

#else

// y[o, k, i] = x[o, indices[k], i], n of them along the axis.
__kernel void gather(IN(BITS, x), IN(long, indices), OUT(BITS, y), const long count, const long n, const long places,
                     const long inner) {
    START(x);
    START(indices);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX slice = i / (INDEX)inner, outer = slice / (INDEX)places;
    const INDEX at = from_start(indices[slice - outer * (INDEX)places], n);
    y[i] = x[(outer * (INDEX)n + at) * (INDEX)inner + (i - slice * (INDEX)inner)];
}

#endif
#else

#if REALS
#define IS_NAN(v) isnan(v)
#else
#define IS_NAN(v) 0
#endif

inline ACC updated(const int reduction, const ACC old, const ACC by) {
    switch (reduction) {
        case 1: return old + by;
        case 2: return old * by;
        case 3: return old > by || IS_NAN(old) ? old : by;
        case 4: return old < by || IS_NAN(old) ? old : by;
        default: return by;
    }
}

#ifdef TUPLE

__kernel void scatter_nd(IN(T, x), IN(long, indices), IN(T, updates), OUT(T, y), const long count, const long inner,
                         const long tuples, const long reduction, const Tuple axes) {
    START(x);
    START(indices);
    START(updates);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX within = i % (INDEX)inner;
    ACC v = LOAD(x, i);
    for (INDEX t = 0; t < (INDEX)tuples; ++t)
        if (place_of(indices + t * TUPLE, axes) + within == i)
            v = updated((int)reduction, v, LOAD(updates, t * (INDEX)inner + within));
    STORE(y, i, v);
}

#else

typedef struct {
    long shape[AXES], taken[AXES];  // of x and of indices
} Frame;

__kernel void scatter_elements(IN(T, x), IN(long, indices), IN(T, updates), OUT(T, y), const long count,
                               const long axis, const long reduction, const Frame f) {
    START(x);
    START(indices);
    START(updates);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    INDEX rest = i, first = 0, step = 1, along = 0, place = 0;
    bool inside = true;
    for (int d = AXES - 1; d >= 0; --d) {
        const INDEX up = rest / (INDEX)f.shape[d], at = rest - up * (INDEX)f.shape[d];
        if (d == axis) {
            place = at;
            along = step;
        } else {
            inside = inside && at < (INDEX)f.taken[d];
            first += at * step;
        }
        step *= (INDEX)f.taken[d];
        rest = up;
    }
    ACC v = LOAD(x, i);
    for (INDEX k = 0; inside && k < (INDEX)f.taken[axis]; ++k) {
        const INDEX at = first + k * along;
        if (from_start(indices[at], f.shape[axis]) == place) v = updated((int)reduction, v, LOAD(updates, at));
    }
    STORE(y, i, v);
}

#endif
#endif
