// Deformable convolution on columns: each tap of each window samples x where an offset says, times a mask.
//
//     s(c,t,p)                 = mask[g,t,p] x(c, p stride + t dilation - before + offset[g,t,p])   g: offset group of c
//     deform_unfold            y[n,c,t,p] = s(c,t,p)
//     deform_fold              x[n,c,q]  += y[n,c,t,p] ds/dx, for all (t,p)
//     deform_unfold_doffset    doffset[n,g,t,axis,p] = sum over c of dy[n,c,t,p] ds/doffset
//     deform_unfold_dmask      dmask[n,g,t,p]        = sum over c of dy[n,c,t,p] ds/dmask
//
// Method    x(c, .) is bilinear between four pixels, zeros outside. One item per result; deform_fold, whose samples may
//           fall anywhere, one item per plane of x. deform_conv multiplies the columns by conv.cl.
// Numerics  in ACC; deform_fold adds in the order of (t,p), without atomics.
//
// Defined by the launch:  MASK, if there is one
#include "types.clh"

typedef struct {
    long batch, channels, offset_groups, in[2], out[2], window[2], stride[2], dilation[2], before[2];
} Windows;

#ifdef MASK
#define MASK_IN IN(T, mask),
#define MASK_START START(mask);
#define MASK_AT(i) LOAD(mask, i)
#else
#define MASK_IN
#define MASK_START
#define MASK_AT(i) ((ACC)1)
#endif

#define TAPS ((INDEX)(s.window[0] * s.window[1]))
#define PIXELS ((INDEX)(s.out[0] * s.out[1]))
#define PLANE ((INDEX)(s.in[0] * s.in[1]))
#define PER_GROUP ((INDEX)(s.channels / s.offset_groups))

// A sample: its first pixel along both axes, far outside if it meets none, and the shares of that and of the next.
typedef struct {
    INDEX first[2];
    ACC share[2][2];
} Sample;

inline Sample sample_at(const ACC off_h, const ACC off_w, const INDEX tap, const INDEX p, const Windows s) {
    const ACC offset[2] = {off_h, off_w};
    const INDEX taps[2] = {tap / (INDEX)s.window[1], tap % (INDEX)s.window[1]};
    const INDEX pixel[2] = {p / (INDEX)s.out[1], p % (INDEX)s.out[1]};
    Sample r;
    for (int axis = 0; axis < 2; ++axis) {
        const ACC whole = floor(offset[axis]);
        const bool between = whole != offset[axis];
        r.share[axis][0] = between ? whole + 1 - offset[axis] : (ACC)1;
        r.share[axis][1] = between ? offset[axis] - whole : (ACC)0;
        const bool close = whole > -1e9f && whole < 1e9f;
        r.first[axis] = close ? pixel[axis] * (INDEX)s.stride[axis] + taps[axis] * (INDEX)s.dilation[axis] -
                                   (INDEX)s.before[axis] + (INDEX)whole
                             : -4;
    }
    if (isnan(off_h) || isnan(off_w))
        for (int i = 0; i < 4; ++i) r.share[i / 2][i % 2] = off_h + off_w;
    return r;
}

// x at one of the four pixels; zero outside.
inline ACC corner_at(__global const T *x, const Sample at, const int down, const int right, const Windows s) {
    const INDEX h = at.first[0] + down, w = at.first[1] + right;
    if (h < 0 || h >= (INDEX)s.in[0] || w < 0 || w >= (INDEX)s.in[1]) return 0;
    return LOAD(x, h * (INDEX)s.in[1] + w);
}

inline ACC value_at(__global const T *x, const Sample at, const Windows s) {
    ACC sum = 0;
    for (int i = 0; i < 4; ++i) sum += at.share[0][i / 2] * at.share[1][i % 2] * corner_at(x, at, i / 2, i % 2, s);
    return sum;
}

inline ACC slope_at(__global const T *x, const Sample at, const int axis, const Windows s) {
    ACC sum = 0;
    for (int i = 0; i < 4; ++i) {
        const int along = axis ? i % 2 : i / 2, across = axis ? i / 2 : i % 2;
        const ACC share = at.share[1 - axis][across], corner = corner_at(x, at, i / 2, i % 2, s);
        sum += (along ? share : -share) * corner;
    }
    return sum;
}

// Row r of the samples, (n, offset group, tap): the offsets of pixel p.
#define SAMPLE(r, p)                                                                                              \
    sample_at(LOAD(offset, 2 * (r) * PIXELS + (p)), LOAD(offset, (2 * (r) + 1) * PIXELS + (p)), (r) % TAPS, (p), s)

__kernel void deform_unfold(IN(T, x), IN(T, offset), MASK_IN OUT(T, y), const Windows s) {
    START(x);
    START(offset);
    MASK_START
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)(s.batch * s.channels) * TAPS * PIXELS) return;
    const INDEX p = i % PIXELS, tap = i / PIXELS % TAPS, plane = i / PIXELS / TAPS;
    const INDEX r = plane / PER_GROUP * TAPS + tap;  // planes of a group are neighbours
    STORE(y, i, MASK_AT(r * PIXELS + p) * value_at(x + (long)plane * PLANE, SAMPLE(r, p), s));
}

__kernel void deform_fold(IN(T, y), IN(T, offset), MASK_IN OUT(ACC, x), const Windows s) {
    START(y);
    START(offset);
    MASK_START
    START(x);
    const INDEX plane = get_global_id(0);
    if (plane >= (INDEX)(s.batch * s.channels)) return;
    x += (long)plane * PLANE;
    for (INDEX tap = 0; tap < TAPS; ++tap)
        for (INDEX p = 0; p < PIXELS; ++p) {
            const INDEX r = plane / PER_GROUP * TAPS + tap;
            const Sample at = SAMPLE(r, p);
            const ACC v = MASK_AT(r * PIXELS + p) * LOAD(y, (plane * TAPS + tap) * PIXELS + p);
            for (int i = 0; i < 4; ++i) {
                const INDEX h = at.first[0] + i / 2, w = at.first[1] + i % 2;
                if (h >= 0 && h < (INDEX)s.in[0] && w >= 0 && w < (INDEX)s.in[1])
                    x[h * (INDEX)s.in[1] + w] += at.share[0][i / 2] * at.share[1][i % 2] * v;
            }
        }
}

// Sums over the channels of an offset group.
#define ALONG_CHANNELS(r, p, plus)                                                                                \
    const INDEX first = (r) / TAPS * PER_GROUP;                                                                   \
    for (INDEX plane = first; plane < first + PER_GROUP; ++plane)                                                 \
        sum = MAC(LOAD(dy, (plane * TAPS + (r) % TAPS) * PIXELS + (p)), plus, sum);

__kernel void deform_unfold_doffset(IN(T, dy), IN(T, x), IN(T, offset), MASK_IN OUT(T, to), const Windows s) {
    START(dy);
    START(x);
    START(offset);
    MASK_START
    START(to);
    const INDEX i = get_global_id(0);
    if (i >= 2 * (INDEX)(s.batch * s.offset_groups) * TAPS * PIXELS) return;
    const INDEX p = i % PIXELS, axis = i / PIXELS % 2, r = i / PIXELS / 2;
    const Sample at = SAMPLE(r, p);
    ACC sum = 0;
    ALONG_CHANNELS(r, p, slope_at(x + (long)plane * PLANE, at, axis, s))
    STORE(to, i, MASK_AT(r * PIXELS + p) * sum);
}

__kernel void deform_unfold_dmask(IN(T, dy), IN(T, x), IN(T, offset), OUT(T, to), const Windows s) {
    START(dy);
    START(x);
    START(offset);
    START(to);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)(s.batch * s.offset_groups) * TAPS * PIXELS) return;
    const INDEX p = i % PIXELS, r = i / PIXELS;
    const Sample at = SAMPLE(r, p);
    ACC sum = 0;
    ALONG_CHANNELS(r, p, value_at(x + (long)plane * PLANE, at, s))
    STORE(to, i, sum);
}
