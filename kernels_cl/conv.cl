// Convolution over 1, 2 or 3 spatial axes (as 3-D with ones), zero padding, and its two gradients.
//
//     conv       y[n,k,p]  = act(b[k] + [y[n,k,p] +] sum over c, t of w[k,c,t] x[n,c, p stride + t dilation - before])
//     conv_dx    dx[n,c,i] = sum over k, t with p stride + t dilation - before = i of w[k,c,t] dy[n,k,p]
//     conv_dw    dw[k,c,t] = sum over n, p of dy[n,k,p] x[n,c, p stride + t dilation - before]
//
// Method    implicit GEMM (gemm.clh), one product per group: nothing is unfolded in memory.
//
//               |  M   N                    K              A           B
//     conv      |  k   n, p                 c, t           w           window of x
//     conv_dx   |  c   n, i of one phase    k, t of phase  w           dy
//     conv_dw   |  k   c, t                 n, p           dy          window of x
//
//           conv_dx gathers. The places i with equal (i + before) mod stride, a phase, meet the same taps t: every
//           phase is a product of its own, and no result is added to twice. conv_dw cuts its long K into SHARES that
//           write partial sums, added by matmul.cl's add_shares. Groups of few channels (depthwise) take the direct
//           kernels: one item per result, or for dw a work-group of GROUP items.
//           Where the channels of x and y lie side by side (conv_rows, conv_dx_rows, conv_dw_rows), K is walked tap by
//           tap, and a chunk of channels of one place is copied as one piece, or as zeros outside:
//
//               |  M      N     K       A        B
//     conv      |  n, p   k     t, c    window   w as k, t, c
//     conv_dx   |  n, i   c     t, k    dy       w as phase, c, t, k
//     conv_dw   |  k      t, c  n, p    dy       window
// Numerics  sums in float (double for f64), in the order of K; the GEMM kernels multiply the zeros of the border.
//
// Defined by the launch:  one of CONV CONV_DX CONV_DW, with ROWS or not;  DIRECT;  ARRANGE;  UNIT_STRIDE;  DENSE_RESULT, its
//                         pixels follow each other without gaps;  KERNEL0 KERNEL1 KERNEL2, where divisions are to be cheap
#include "types.clh"
#include "activation.clh"
#include "warp.clh"

// BIAS, ADD_TO_RESULT, which holds a residual, ACTIVATE: also of conv_dx, which then is a transposed convolution
//
// Channels c and k are per group. x and y stand for dx and dy too; w and dw are contiguous, the others lie as strides say.
typedef struct {
    long batch, groups, c, k;
    long in[3], out[3], window[3], stride[3], dilation[3], before[3];
    long phase_tap[3], phase_out[3];  // stride / g and dilation / g, g = gcd(stride, dilation): steps within a phase
    long x[5], y[5];                  // strides in elements: n c d h w
    long share;                       // the k's of one share of conv_dw
    long by[5];                       // reciprocals (see divide) of out d h w, c and k
} Conv;

#ifdef KERNEL0
#define KERNEL(axis) CAT(KERNEL, axis)
#else
#define KERNEL(axis) ((INDEX)s.window[axis])
#endif
#define TAPS (KERNEL(0) * KERNEL(1) * KERNEL(2))
#define PLANE(sizes) ((INDEX)(sizes)[0] * (INDEX)(sizes)[1] * (INDEX)(sizes)[2])

#ifdef BIAS
#define BIAS_IN IN(T, bias),
#define BIAS_START START(bias);
#define WITH_BIAS(v, k) ((v) + LOAD(bias, k))
#else
#define BIAS_IN
#define BIAS_START
#define WITH_BIAS(v, k) (v)
#endif

#ifdef ADD_TO_RESULT
#define WITH_RESULT(v, result, place) ((v) + LOAD(result, place))
#else
#define WITH_RESULT(v, result, place) (v)
#endif

#ifdef CORE_S
#define TILE_GROUP __attribute__((reqd_work_group_size(TILE_ITEMS, 1, 1)))
#else
#define TILE_GROUP
#endif

// A row-major number taken apart: ((rest * sizes[0] + at[0]) * sizes[1] + at[1]) * sizes[2] + at[2].
typedef struct {
    INDEX rest, at[3];
} Split;

inline Split split(const INDEX number, const INDEX size0, const INDEX size1, const INDEX size2) {
    Split parts;
    const INDEX rows = number / size2, planes = rows / size1;
    parts.at[2] = number - rows * size2;
    parts.at[1] = rows - planes * size1;
    parts.rest = planes / size0;
    parts.at[0] = planes - parts.rest * size0;
    return parts;
}

inline Split split_tap(const INDEX number, const Conv s) { return split(number, KERNEL(0), KERNEL(1), KERNEL(2)); }

// n / size for 0 <= n < 2^31, by a multiplication with its 32-bit reciprocal and a shift (in the upper half of `by`).
inline INDEX divide(const INDEX n, const INDEX size, const long by) {
    if (sizeof(INDEX) > 4) return n / size;
    return (INDEX)((mul_hi((uint)n, (uint)by) + (uint)n) >> (uint)(by >> 32));
}

inline Split split_out(const INDEX number, const Conv s) {
    Split parts;
    const INDEX size0 = s.out[0], size1 = s.out[1], size2 = s.out[2];
    const INDEX rows = divide(number, size2, s.by[2]), planes = divide(rows, size1, s.by[1]);
    parts.at[2] = number - rows * size2;
    parts.at[1] = rows - planes * size1;
    parts.rest = divide(planes, size0, s.by[0]);
    parts.at[0] = planes - parts.rest * size0;
    return parts;
}

inline bool within(const INDEX i, const long size) { return i >= 0 && i < (INDEX)size; }

// Where the window of result `o` (sample in rest) begins: sample's base in rest, places in at.
inline Split window_of(const Split o, const Conv s) {
    Split window;
    window.rest = o.rest * (INDEX)s.x[0];
    for (int axis = 0; axis < 3; ++axis) window.at[axis] = o.at[axis] * (INDEX)s.stride[axis] - (INDEX)s.before[axis];
    return window;
}

// x under tap `tap` (channel in rest) of a window; zero outside.
inline ACC read_x(__global const T *x, const Split window, const Split tap, const Conv s) {
    const INDEX d = window.at[0] + tap.at[0] * (INDEX)s.dilation[0];
    const INDEX h = window.at[1] + tap.at[1] * (INDEX)s.dilation[1];
    const INDEX w = window.at[2] + tap.at[2] * (INDEX)s.dilation[2];
    if (!within(d, s.in[0]) || !within(h, s.in[1]) || !within(w, s.in[2])) return 0;
    return LOAD(x, window.rest + tap.rest * (INDEX)s.x[1] + d * (INDEX)s.x[2] + h * (INDEX)s.x[3] + w * (INDEX)s.x[4]);
}

#if defined(CORE_P) && defined(LANES)
#define VECTOR CAT(ACC, LANES)

// LANES elements of a row of `size` that begin at place w of it; zeros outside.
inline VECTOR read_row(__global const T *row, const INDEX w, const INDEX size) {
    if (w >= 0 && w + LANES <= size) return CAT(vload, LANES)(0, row + w);
    ACC lanes[LANES];
    for (int e = 0; e < LANES; ++e) lanes[e] = within(w + e, size) ? LOAD(row, w + e) : 0;
    return CAT(vload, LANES)(0, lanes);
}

// read_x for LANES windows that lie side by side.
inline VECTOR read_x_row(__global const T *x, const Split window, const Split tap, const Conv s) {
    const INDEX d = window.at[0] + tap.at[0] * (INDEX)s.dilation[0];
    const INDEX h = window.at[1] + tap.at[1] * (INDEX)s.dilation[1];
    if (!within(d, s.in[0]) || !within(h, s.in[1])) return 0;
    x += window.rest + tap.rest * (INDEX)s.x[1] + d * (INDEX)s.x[2] + h * (INDEX)s.x[3];
    return read_row(x, window.at[2] + tap.at[2] * (INDEX)s.dilation[2], s.in[2]);
}
#endif

inline INDEX place_in_y(const Split o, const Conv s) {
    return o.rest * (INDEX)s.y[0] + o.at[0] * (INDEX)s.y[2] + o.at[1] * (INDEX)s.y[3] + o.at[2] * (INDEX)s.y[4];
}

// One phase of places along an axis, and the taps that meet it.
typedef struct {
    INDEX first, count;  // places first + stride j, j < count
    INDEX tap, taps;     // taps tap + phase_tap u, u < taps
    INDEX out;           // place j meets tap u at result out + j - phase_out u
} Phase;

inline Phase phase_of(const int axis, const INDEX number, const INDEX kernel_size, const Conv s) {
    const INDEX stride = s.stride[axis], dilation = s.dilation[axis], before = s.before[axis];
    const INDEX step = s.phase_tap[axis], in = s.in[axis];
    Phase f;
    f.first = (number + stride - before % stride) % stride;
    f.count = f.first < in ? (in - f.first + stride - 1) / stride : 0;
    f.tap = 0;
    while (f.tap < step && (f.first + before - f.tap * dilation) % stride != 0) ++f.tap;
    f.taps = f.tap < step && f.tap < kernel_size ? (kernel_size - f.tap + step - 1) / step : 0;
    f.out = (f.first + before - f.tap * dilation) / stride;
    return f;
}

// Within a phase: tap u (channel k in rest) and place j (sample in rest).
inline INDEX place_in_w(const Split u, const Phase f0, const Phase f1, const Phase f2, const Conv s) {
    const INDEX d = f0.tap + u.at[0] * (INDEX)s.phase_tap[0], h = f1.tap + u.at[1] * (INDEX)s.phase_tap[1];
    const INDEX w = f2.tap + u.at[2] * (INDEX)s.phase_tap[2];
    return u.rest * (INDEX)s.c * TAPS + (d * KERNEL(1) + h) * KERNEL(2) + w;
}

inline ACC read_dy(__global const T *dy, const Split j, const Split u, const Phase f0, const Phase f1, const Phase f2,
                   const Conv s) {
    const INDEX d = f0.out + j.at[0] - u.at[0] * (INDEX)s.phase_out[0];
    const INDEX h = f1.out + j.at[1] - u.at[1] * (INDEX)s.phase_out[1];
    const INDEX w = f2.out + j.at[2] - u.at[2] * (INDEX)s.phase_out[2];
    if (!within(d, s.out[0]) || !within(h, s.out[1]) || !within(w, s.out[2])) return 0;
    return LOAD(dy, j.rest * (INDEX)s.y[0] + u.rest * (INDEX)s.y[1] + d * (INDEX)s.y[2] + h * (INDEX)s.y[3] +
                        w * (INDEX)s.y[4]);
}

inline INDEX place_in_dx(const Split j, const Phase f0, const Phase f1, const Phase f2, const Conv s) {
    const INDEX d = f0.first + j.at[0] * (INDEX)s.stride[0], h = f1.first + j.at[1] * (INDEX)s.stride[1];
    const INDEX w = f2.first + j.at[2] * (INDEX)s.stride[2];
    return j.rest * (INDEX)s.x[0] + d * (INDEX)s.x[2] + h * (INDEX)s.x[3] + w * (INDEX)s.x[4];
}

#if defined(ROWS)

// Tap and channel of k; tap by tap.
inline Split split_deep(const INDEX k, const INDEX channels, const long by, const INDEX size0, const INDEX size1,
                        const INDEX size2) {
    const INDEX tap = divide(k, channels, by);
    Split deep = split(tap, size0, size1, size2);
    deep.rest = k - tap * channels;
    return deep;
}

// Where the channels of x begin, from deep.rest on, under a tap of a window; null outside.
inline __global const T *chunk_of_x(__global const T *x, const Split window, const Split deep, const Conv s) {
    const INDEX d = window.at[0] + deep.at[0] * (INDEX)s.dilation[0];
    const INDEX h = window.at[1] + deep.at[1] * (INDEX)s.dilation[1];
    const INDEX w = window.at[2] + deep.at[2] * (INDEX)s.dilation[2];
    if (!within(d, s.in[0]) || !within(h, s.in[1]) || !within(w, s.in[2])) return 0;
    return x + (window.rest + deep.rest + d * (INDEX)s.x[2] + h * (INDEX)s.x[3] + w * (INDEX)s.x[4]);
}

// The taps of phases in front of this one.
inline INDEX taps_before(const int axis, const INDEX number, const INDEX kernel_size, const Conv s) {
    INDEX taps = 0;
    for (INDEX i = 0; i < number; ++i) taps += phase_of(axis, i, kernel_size, s).taps;
    return taps;
}

inline INDEX phase_start(const Split phase, const Phase f0, const Phase f1, const Conv s) {
    return taps_before(0, phase.at[0], KERNEL(0), s) * KERNEL(1) * KERNEL(2) +
           f0.taps * (taps_before(1, phase.at[1], KERNEL(1), s) * KERNEL(2) +
                      f1.taps * taps_before(2, phase.at[2], KERNEL(2), s));
}

#if defined(ARRANGE)

#define BITS CAT(bits_, DTYPE)
#define bits_f16 ushort
#define bits_bf16 ushort
#define bits_f32 uint

// w (groups k, c, taps) as conv_rows or, CONV_DX, as conv_dx_rows reads it: an item per element.
__kernel void arrange(IN(BITS, w), OUT(BITS, to), const Conv s) {
    START(w);
    START(to);
    const INDEX i = get_global_id(0), channels = s.c, filters = s.k;
    if (i >= (INDEX)s.groups * filters * channels * TAPS) return;
    const Split tap = split(i, KERNEL(0), KERNEL(1), KERNEL(2));
    const INDEX filter = tap.rest / channels, channel = tap.rest - filter * channels;
#ifdef CONV_DX
    const INDEX group = filter / filters;
    Split phase;
    INDEX u[3], step[3];
    Phase f[3];
    for (int axis = 0; axis < 3; ++axis) {
        const INDEX size = axis == 0 ? KERNEL(0) : axis == 1 ? KERNEL(1) : KERNEL(2);
        phase.at[axis] = tap.at[axis] * (INDEX)s.dilation[axis] % (INDEX)s.stride[axis];
        f[axis] = phase_of(axis, phase.at[axis], size, s);
        u[axis] = (tap.at[axis] - f[axis].tap) / (INDEX)s.phase_tap[axis];
    }
    const INDEX taps = f[0].taps * f[1].taps * f[2].taps, number = (u[0] * f[1].taps + u[1]) * f[2].taps + u[2];
    const INDEX first = (group * TAPS + phase_start(phase, f[0], f[1], s)) * channels * filters;
    to[first + (channel * taps + number) * filters + filter % filters] = w[i];
#else
    const INDEX number = (tap.at[0] * KERNEL(1) + tap.at[1]) * KERNEL(2) + tap.at[2];
    to[(filter * TAPS + number) * channels + channel] = w[i];
#endif
}

#elif defined(CONV)

TILE_GROUP
__kernel void conv_rows(IN(T, x), IN(T, w), BIAS_IN OUT(T, y), const Conv s) {
    START(x);
    START(w);
    BIAS_START
    START(y);
    const INDEX M = (INDEX)s.batch * PLANE(s.out), N = s.k, channels = s.c, K = channels * TAPS;
    const INDEX tiles = (M + TILE_M - 1) / TILE_M * ((N + TILE_N - 1) / TILE_N);
    const INDEX group = (INDEX)get_group_id(0) / tiles;
    x += group * channels;
    w += (long)group * N * K;
    y += group * N;

#define TILE ((INDEX)get_group_id(0) - group * tiles)
#define N_ALL N
#define K_FIRST 0
#define K_PLACE Split
#define K_AT(k) split_deep(k, channels, s.by[3], KERNEL(0), KERNEL(1), KERNEL(2))
#define A_PLACE Split
#define A_AT(m) window_of(split_out(m, s), s)
#define A_GATHER(place, deep) chunk_of_x(x, place, deep, s)
#define A_GATHERED x
#define B_SOURCE(k, n) (w + ((n) * K + (k)))
#define C_PLACE INDEX
#define C_AT(n) (n)
#ifdef DENSE_RESULT
#define PLACE_OF(place, m) ((m) * (INDEX)s.y[4] + (place))
#else
#define PLACE_OF(place, m) (place_in_y(split_out(m, s), s) + (place))
#endif
#define FINISH(place, m, value) ACTIVATE(WITH_RESULT(WITH_BIAS(value, group * N + (place)), y, PLACE_OF(place, m)))
#define C_WRITE(place, m, n, value) STORE(y, PLACE_OF(place, m), FINISH(place, m, value))
#define C_WRITE_PAIR(place, m, n, v, w) \
    STORE2(y, PLACE_OF(place, m), FINISH(place, m, v), FINISH((place) + 1, m, w))
#include "gemm.clh"
}

#elif defined(CONV_DX)

// Where the channels of dy begin, from u.rest on, that place j of a phase meets at tap u; null outside.
inline __global const T *chunk_of_dy(__global const T *dy, const Split j, const Split u, const Phase f0, const Phase f1,
                                     const Phase f2, const Conv s) {
    const INDEX d = f0.out + j.at[0] - u.at[0] * (INDEX)s.phase_out[0];
    const INDEX h = f1.out + j.at[1] - u.at[1] * (INDEX)s.phase_out[1];
    const INDEX w = f2.out + j.at[2] - u.at[2] * (INDEX)s.phase_out[2];
    if (!within(d, s.out[0]) || !within(h, s.out[1]) || !within(w, s.out[2])) return 0;
    return dy + (j.rest * (INDEX)s.y[0] + u.rest + d * (INDEX)s.y[2] + h * (INDEX)s.y[3] + w * (INDEX)s.y[4]);
}

TILE_GROUP
__kernel void conv_dx_rows(IN(T, dy), IN(T, w), BIAS_IN OUT(T, dx), const Conv s) {
    START(dy);
    START(w);
    BIAS_START
    START(dx);
    const INDEX N = s.c, N_ALL = N, filters = s.k;
    // Tiles are laid out for the largest phase; phases differ by at most one place along an axis.
    INDEX most = s.batch;
    for (int axis = 0; axis < 3; ++axis) most *= (INDEX)((s.in[axis] + s.stride[axis] - 1) / s.stride[axis]);
    const INDEX tiles = (most + TILE_M - 1) / TILE_M * ((N + TILE_N - 1) / TILE_N);
    const INDEX product = (INDEX)get_group_id(0) / tiles;
    const Split phase = split(product, s.stride[0], s.stride[1], s.stride[2]);
    const INDEX group = phase.rest;
    const Phase f0 = phase_of(0, phase.at[0], KERNEL(0), s), f1 = phase_of(1, phase.at[1], KERNEL(1), s),
                f2 = phase_of(2, phase.at[2], KERNEL(2), s);
    const INDEX M = (INDEX)s.batch * f0.count * f1.count * f2.count, K = filters * (f0.taps * f1.taps * f2.taps);
    if (M == 0) return;
    dy += group * filters;
    w += (long)(group * TAPS + phase_start(phase, f0, f1, s)) * N * filters;
    dx += group * N;

#define TILE ((INDEX)get_group_id(0) - product * tiles)
#define K_FIRST 0
#define K_PLACE Split
#ifdef UNIT_STRIDE
#define K_AT(k) split_deep(k, filters, s.by[4], KERNEL(0), KERNEL(1), KERNEL(2))
#else
#define K_AT(k) split_deep(k, filters, s.by[4], f0.taps, f1.taps, f2.taps)
#endif
#define A_PLACE Split
#define A_AT(m) split(m, f0.count, f1.count, f2.count)
#define A_GATHER(place, deep) chunk_of_dy(dy, place, deep, f0, f1, f2, s)
#define A_GATHERED dy
#define B_SOURCE(k, n) (w + ((n) * K + (k)))
#define C_PLACE INDEX
#define C_AT(n) (n)
#if defined(DENSE_RESULT) && defined(UNIT_STRIDE)
#define PLACE_OF(place, m) ((m) * (INDEX)s.x[4] + (place))
#else
#define PLACE_OF(place, m) (place_in_dx(A_AT(m), f0, f1, f2, s) + (place))
#endif
#define FINISH(place, m, value) ACTIVATE(WITH_RESULT(WITH_BIAS(value, group * N + (place)), dx, PLACE_OF(place, m)))
#define C_WRITE(place, m, n, value) STORE(dx, PLACE_OF(place, m), FINISH(place, m, value))
#define C_WRITE_PAIR(place, m, n, v, w) \
    STORE2(dx, PLACE_OF(place, m), FINISH(place, m, v), FINISH((place) + 1, m, w))
#include "gemm.clh"
}

#elif defined(CONV_DW)

// dy is one row of channels after another, without gaps between pixels, lines and samples.
TILE_GROUP
__kernel void conv_dw_rows(IN(T, dy), IN(T, x), OUT(ACC, dw), const Conv s) {
    START(dy);
    START(x);
    START(dw);
    const INDEX M = s.k, channels = s.c, N = channels * TAPS, N_ALL = N, all = (INDEX)s.batch * PLANE(s.out);
    const INDEX tiles = (M + TILE_M - 1) / TILE_M * ((N + TILE_N - 1) / TILE_N);
    const INDEX product = (INDEX)get_group_id(0) / tiles, share = product % SHARES, group = product / SHARES;
    const INDEX K_FIRST = share * (INDEX)s.share, pixel = s.y[4];
    const INDEX K = K_FIRST + (INDEX)s.share < all ? K_FIRST + (INDEX)s.share : all;
    dy += group * M;
    x += group * channels;
    dw += ((long)share * s.groups + group) * M * N;  // shares lie behind each other

#define TILE ((INDEX)get_group_id(0) - product * tiles)
#define A_SOURCE(m, k) (dy + ((k) * pixel + (m)))
#define K_PLACE Split
#define K_AT(k) window_of(split_out(k, s), s)
#define B_PLACE Split
#define B_AT(n) split_deep(n, channels, s.by[3], KERNEL(0), KERNEL(1), KERNEL(2))
#define B_GATHER(place, deep) chunk_of_x(x, deep, place, s)
#define B_GATHERED x
#define C_PLACE INDEX
#define C_AT(n) (((n) - divide(n, channels, s.by[3]) * channels) * TAPS + divide(n, channels, s.by[3]))
#define C_WRITE(place, m, n, value) dw[(m) * N + (place)] = value
#include "gemm.clh"
}

#endif

#elif defined(CONV)

TILE_GROUP
__kernel void conv(IN(T, x), IN(T, w), BIAS_IN OUT(T, y), const Conv s) {
    START(x);
    START(w);
    BIAS_START
    START(y);
    const INDEX plane = PLANE(s.out);
    const INDEX M = s.k, N = (INDEX)s.batch * plane, K = (INDEX)s.c * TAPS;
    const INDEX tiles = (M + TILE_M - 1) / TILE_M * ((N + TILE_N - 1) / TILE_N);
    const INDEX group = (INDEX)get_group_id(0) / tiles;
    x += group * s.c * s.x[1];
    w += (long)group * M * K;

#define TILE ((INDEX)get_group_id(0) - group * tiles)
#define N_ALL N
#define K_FIRST 0
#define A_PLACE INDEX
#define A_AT(m) ((m) * K)
#define A_READ(place, k) LOAD(w, (place) + (k))
#define B_PLACE Split
#define B_AT(n) window_of(split_out(n, s), s)
#define B_READ(place, k) read_x(x, place, split_tap(k, s), s)
#define B_ROW(n) (s.x[4] == 1 && s.stride[2] == 1 && (n) % (INDEX)s.out[2] + TILE_N <= (INDEX)s.out[2])
#define B_READ_ROW(place, k) read_x_row(x, place, split_tap(k, s), s)
#define C_PLACE INDEX
#define C_AT(n) place_in_y(split_out(n, s), s)
#define PLACE_OF(place, m) ((place) + (group * M + (m)) * (INDEX)s.y[1])
#define C_WRITE(place, m, n, value)   \
    STORE(y, PLACE_OF(place, m),      \
          ACTIVATE(WITH_RESULT(WITH_BIAS(value, group * M + (m)), y, PLACE_OF(place, m))))
#include "gemm.clh"
}

#elif defined(CONV_DX)

TILE_GROUP
__kernel void conv_dx(IN(T, dy), IN(T, w), BIAS_IN OUT(T, dx), const Conv s) {
    START(dy);
    START(w);
    BIAS_START
    START(dx);
    const INDEX M = s.c;
    // Tiles are laid out for the largest phase; phases differ by at most one place along an axis.
    INDEX N_ALL = s.batch;
    for (int axis = 0; axis < 3; ++axis) N_ALL *= (INDEX)((s.in[axis] + s.stride[axis] - 1) / s.stride[axis]);
    const INDEX tiles = (M + TILE_M - 1) / TILE_M * ((N_ALL + TILE_N - 1) / TILE_N);
    const INDEX product = (INDEX)get_group_id(0) / tiles;
    const Split phase = split(product, s.stride[0], s.stride[1], s.stride[2]);
    const INDEX group = phase.rest;
    const Phase f0 = phase_of(0, phase.at[0], KERNEL(0), s), f1 = phase_of(1, phase.at[1], KERNEL(1), s),
                f2 = phase_of(2, phase.at[2], KERNEL(2), s);
    const INDEX taps = f0.taps * f1.taps * f2.taps;
    const INDEX N = (INDEX)s.batch * f0.count * f1.count * f2.count, K = (INDEX)s.k * taps;
    if (N == 0) return;
    dy += group * s.k * s.y[1];
    w += (long)group * s.k * M * TAPS;

#define TILE ((INDEX)get_group_id(0) - product * tiles)
#define K_FIRST 0
#define SPLIT_TAP(k) split(k, f0.taps, f1.taps, f2.taps)
#define A_PLACE INDEX
#define A_AT(m) ((m) * TAPS)
#define A_READ(place, k) LOAD(w, (place) + place_in_w(SPLIT_TAP(k), f0, f1, f2, s))
#define B_PLACE Split
#define B_AT(n) split(n, f0.count, f1.count, f2.count)
#define B_READ(place, k) read_dy(dy, place, SPLIT_TAP(k), f0, f1, f2, s)
#define C_PLACE INDEX
#define C_AT(n) place_in_dx(split(n, f0.count, f1.count, f2.count), f0, f1, f2, s)
#define PLACE_OF(place, m) ((place) + (group * M + (m)) * (INDEX)s.x[1])
#define C_WRITE(place, m, n, value)   \
    STORE(dx, PLACE_OF(place, m),     \
          ACTIVATE(WITH_RESULT(WITH_BIAS(value, group * M + (m)), dx, PLACE_OF(place, m))))
#include "gemm.clh"
}

#elif defined(CONV_DW)

TILE_GROUP
__kernel void conv_dw(IN(T, dy), IN(T, x), OUT(ACC, dw), const Conv s) {
    START(dy);
    START(x);
    START(dw);
    const INDEX M = s.k, N = (INDEX)s.c * TAPS, all = (INDEX)s.batch * PLANE(s.out);
    const INDEX tiles = (M + TILE_M - 1) / TILE_M * ((N + TILE_N - 1) / TILE_N);
    const INDEX product = (INDEX)get_group_id(0) / tiles, share = product % SHARES, group = product / SHARES;
    const INDEX K_FIRST = share * (INDEX)s.share;
    const INDEX K = K_FIRST + (INDEX)s.share < all ? K_FIRST + (INDEX)s.share : all;
    dy += group * s.k * s.y[1];
    x += group * s.c * s.x[1];
    dw += ((long)share * s.groups + group) * M * N;  // shares lie behind each other

#define TILE ((INDEX)get_group_id(0) - product * tiles)
#define N_ALL N
#define A_PLACE INDEX
#define A_AT(m) ((m) * (INDEX)s.y[1])
#define A_READ(place, k) LOAD(dy, (place) + place_in_y(split_out(k, s), s))
#define B_PLACE Split
#define B_AT(n) split_tap(n, s)
#define B_READ(place, k) read_x(x, window_of(split_out(k, s), s), place, s)
#define C_PLACE INDEX
#define C_AT(n) (n)
#define C_WRITE(place, m, n, value) dw[(m) * N + (place)] = value
#include "gemm.clh"
}

#elif defined(DIRECT)

#include "rows.clh"

// One item per result, in the order of y.
__kernel void conv_direct(IN(T, x), IN(T, w), BIAS_IN OUT(T, y), const Conv s) {
    START(x);
    START(w);
    BIAS_START
    START(y);
    const INDEX plane = PLANE(s.out), channels = (INDEX)s.groups * (INDEX)s.k, i = get_global_id(0);
    if (i >= (INDEX)s.batch * channels * plane) return;
    Split o = split_out(i, s);
    const INDEX k = o.rest % channels;
    o.rest /= channels;
    const Split window = window_of(o, s);
    const INDEX taps = TAPS, first = k / (INDEX)s.k * (INDEX)s.c;
    ACC sum = 0;
    for (INDEX c = 0; c < (INDEX)s.c; ++c)
        for (INDEX t = 0; t < taps; ++t) {
            Split tap = split_tap(t, s);
            tap.rest = first + c;
            sum = MAC(LOAD(w, (k * (INDEX)s.c + c) * taps + t), read_x(x, window, tap, s), sum);
        }
    const INDEX place = place_in_y(o, s) + k * (INDEX)s.y[1];
    STORE(y, place, ACTIVATE(WITH_RESULT(WITH_BIAS(sum, k), y, place)));
}

// One item per result, in the order of dx.
__kernel void conv_dx_direct(IN(T, dy), IN(T, w), BIAS_IN OUT(T, dx), const Conv s) {
    START(dy);
    START(w);
    BIAS_START
    START(dx);
    const INDEX plane = PLANE(s.in), channels = (INDEX)s.groups * (INDEX)s.c, i = get_global_id(0);
    if (i >= (INDEX)s.batch * channels * plane) return;
    const Split at = split(i, s.in[0], s.in[1], s.in[2]);
    const INDEX sample = at.rest / channels, channel = at.rest % channels, group = channel / (INDEX)s.c;
    const INDEX taps = TAPS;
    ACC sum = 0;
    for (INDEX t = 0; t < taps; ++t) {
        const Split tap = split_tap(t, s);
        Split o;
        o.rest = sample;
        bool met = true;
        for (int axis = 0; axis < 3; ++axis) {
            const INDEX reach = at.at[axis] + (INDEX)s.before[axis] - tap.at[axis] * (INDEX)s.dilation[axis];
            o.at[axis] = reach / (INDEX)s.stride[axis];
            met = met && reach >= 0 && o.at[axis] * (INDEX)s.stride[axis] == reach && within(o.at[axis], s.out[axis]);
        }
        if (!met) continue;
        const INDEX place = place_in_y(o, s);
        for (INDEX k = group * (INDEX)s.k; k < (group + 1) * (INDEX)s.k; ++k) {
            const ACC weight = LOAD(w, (k * (INDEX)s.c + channel % (INDEX)s.c) * taps + t);
            sum = MAC(weight, LOAD(dy, place + k * (INDEX)s.y[1]), sum);
        }
    }
    const INDEX to = sample * (INDEX)s.x[0] + channel * (INDEX)s.x[1] + at.at[0] * (INDEX)s.x[2] +
                     at.at[1] * (INDEX)s.x[3] + at.at[2] * (INDEX)s.x[4];
    STORE(dx, to, ACTIVATE(WITH_RESULT(WITH_BIAS(sum, channel), dx, to)));
}

// A work-group (an item, if GROUP is 1) per result, in the order of dw.
__kernel void conv_dw_direct(IN(T, dy), IN(T, x), OUT(T, dw), const Conv s) {
    START(dy);
    START(x);
    START(dw);
    const INDEX i = ROW, item = ITEM;
    GROUP_MEMORY
    if (i >= (INDEX)s.groups * (INDEX)s.k * (INDEX)s.c * TAPS) return;
    Split tap = split_tap(i, s);
    const INDEX k = tap.rest / (INDEX)s.c;
    tap.rest = k / (INDEX)s.k * (INDEX)s.c + tap.rest % (INDEX)s.c;
    const INDEX all = (INDEX)s.batch * PLANE(s.out), block = 256 * GROUP;
    ACC total = 0;
    for (INDEX first = 0; first < all; first += block) {
        const INDEX end = first + block < all ? first + block : all;
        ACC part = 0;
        ALONG(j, first, end) {
            const Split o = split_out(j, s);
            part = MAC(LOAD(dy, place_in_y(o, s) + k * (INDEX)s.y[1]), read_x(x, window_of(o, s), tap, s), part);
        }
        total += part;
    }
    total = GROUP_SUM(total);
    if (item == 0) STORE(dw, i, total);
}

#endif
