// Local correlation over 1, 2 or 3 spatial axes (as 3-D with ones), and its gradients:
//
//     local_correlation       y[n,e,p]  = sum over c of a[n,c,p] b[n,c,p+e] / divisor
//     local_correlation_dx    da[n,c,p] = sum over e of dy[n,e,p] b[n,c,p+e] / divisor
//                 (SIDE_B)    db[n,c,q] = sum over e of dy[n,e,q-e] a[n,c,q-e] / divisor
//
// Method    one item per result; places outside add nothing.
// Numerics  one running sum in ACC over c, or over e.
#include "types.clh"

typedef struct {
    long batch, channels, in[3], count[3], stride[3], divisor;
} Grid;

#define VOLUME(sizes) ((INDEX)(sizes)[0] * (INDEX)(sizes)[1] * (INDEX)(sizes)[2])

typedef struct {
    INDEX rest, at[3];
} Place;

inline Place place_of(INDEX i, const long *sizes) {
    Place place;
    for (int axis = 2; axis >= 0; --axis) {
        const INDEX up = i / (INDEX)sizes[axis];
        place.at[axis] = i - up * (INDEX)sizes[axis];
        i = up;
    }
    place.rest = i;
    return place;
}

// The number within the image of `from` displaced by displacement e, or by its opposite; -1 outside.
inline INDEX displaced(const Place from, const INDEX e, const INDEX sign, const Grid g) {
    const Place step = place_of(e, g.count);
    INDEX number = 0;
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
        const INDEX by = (step.at[axis] - (INDEX)g.count[axis] / 2) * (INDEX)g.stride[axis];
        const INDEX at = from.at[axis] + sign * by;
        inside = inside && at >= 0 && at < (INDEX)g.in[axis];
        number = number * (INDEX)g.in[axis] + at;
    }
    return inside ? number : -1;
}

__kernel void local_correlation(IN(T, a), IN(T, b), OUT(T, y), const Grid g) {
    START(a);
    START(b);
    START(y);
    const INDEX i = get_global_id(0), volume = VOLUME(g.in), total = VOLUME(g.count), channels = g.channels;
    if (i >= (INDEX)g.batch * total * volume) return;
    const Place p = place_of(i, g.in);
    const INDEX image = p.rest / total * channels * volume, there = displaced(p, p.rest % total, 1, g);
    ACC sum = 0;
    if (there >= 0)
        for (INDEX c = 0; c < channels; ++c)
            sum = MAC(LOAD(a, image + c * volume + i % volume), LOAD(b, image + c * volume + there), sum);
    STORE(y, i, sum / (ACC)g.divisor);
}

__kernel void local_correlation_dx(IN(T, dy), IN(T, other), OUT(T, dx), const Grid g) {
    START(dy);
    START(other);
    START(dx);
    const INDEX i = get_global_id(0), volume = VOLUME(g.in), total = VOLUME(g.count);
    if (i >= (INDEX)(g.batch * g.channels) * volume) return;
    const Place p = place_of(i, g.in);
    const INDEX image = p.rest / (INDEX)g.channels * total * volume;
    ACC sum = 0;
    for (INDEX e = 0; e < total; ++e) {
#ifdef SIDE_B
        const INDEX there = displaced(p, e, -1, g), here = there;
#else
        const INDEX there = displaced(p, e, 1, g), here = i % volume;
#endif
        if (there >= 0)
            sum = MAC(LOAD(dy, image + e * volume + here), LOAD(other, p.rest * volume + there), sum);
    }
    STORE(dx, i, sum / (ACC)g.divisor);
}
