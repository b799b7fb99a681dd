// Windows of an image as columns, and columns added up to an image, over 1, 2 or 3 spatial axes (as 3-D with ones):
//
//     unfold    y[plane,t,p] = x[plane, p stride + t dilation - before], zeros outside
//     fold      x[plane,q]   = sum of y[plane,t,p] over all t, p with p stride + t dilation - before = q
//
// Method    one item per result; fold gathers, tap after tap.
// Numerics  unfold copies; fold adds in ACC in the order of the taps and rounds once.
#include "types.clh"

typedef struct {
    long planes, in[3], out[3], window[3], stride[3], dilation[3], before[3];
} Windows;

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

inline INDEX number_of(const Place place, const long *sizes) {
    return ((place.rest * (INDEX)sizes[0] + place.at[0]) * (INDEX)sizes[1] + place.at[1]) * (INDEX)sizes[2] +
           place.at[2];
}

__kernel void unfold(IN(T, x), OUT(T, y), const Windows s) {
    START(x);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)s.planes * VOLUME(s.window) * VOLUME(s.out)) return;
    const Place pixel = place_of(i, s.out), tap = place_of(pixel.rest, s.window);
    Place from = tap;
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
        from.at[axis] = pixel.at[axis] * (INDEX)s.stride[axis] + tap.at[axis] * (INDEX)s.dilation[axis] -
                        (INDEX)s.before[axis];
        inside = inside && from.at[axis] >= 0 && from.at[axis] < (INDEX)s.in[axis];
    }
    ACC value = 0;
    if (inside) value = LOAD(x, number_of(from, s.in));
    STORE(y, i, value);
}

__kernel void fold(IN(T, y), OUT(T, x), const Windows s) {
    START(y);
    START(x);
    const INDEX i = get_global_id(0), taps = VOLUME(s.window);
    if (i >= (INDEX)s.planes * VOLUME(s.in)) return;
    const Place to = place_of(i, s.in);
    ACC sum = 0;
    for (INDEX t = 0; t < taps; ++t) {
        const Place tap = place_of(t, s.window);
        Place pixel;
        pixel.rest = to.rest * taps + t;
        bool met = true;
        for (int axis = 0; axis < 3; ++axis) {
            const INDEX far = to.at[axis] + (INDEX)s.before[axis] - tap.at[axis] * (INDEX)s.dilation[axis];
            pixel.at[axis] = far / (INDEX)s.stride[axis];
            met = met && far >= 0 && pixel.at[axis] * (INDEX)s.stride[axis] == far &&
                  pixel.at[axis] < (INDEX)s.out[axis];
        }
        if (met) sum += LOAD(y, number_of(pixel, s.out));
    }
    STORE(x, i, sum);
}
