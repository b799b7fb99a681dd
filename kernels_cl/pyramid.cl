// Half of 8-bit pictures and twice the size of any, smoothed by 1 4 6 4 1, as csrc/ops/pyramid.cc has it.
//
// Defined by the launch:  DTYPE  u8, u16 or f32
// Method    each item sums the window of one element.
// Numerics  exact sums, one rounding half up; of floats in float64, those down rounded to float32.
#include "mirror.clh"

__constant int kTaps[5] = {1, 4, 6, 4, 1};

#if BYTES
__kernel void down(IN(uchar, image), OUT(uchar, y), const long height, const long width, const long rows,
                   const long columns, const long channels) {
    START(image);
    START(y);
    const long i = get_global_id(0);
    if (i >= rows * columns * channels) return;
    const long c = i % channels, x = i / channels % columns, row = i / channels / columns;
    int total = 128;
    for (int u = 0; u < 5; ++u)
        for (int v = 0; v < 5; ++v)
            total += kTaps[u] * kTaps[v] *
                     image[(mirrored(2 * row + u - 2, height) * width + mirrored(2 * x + v - 2, width)) * channels + c];
    y[i] = (uchar)(total >> 8);
}
#endif

// The taps of place i of the doubled axis: 1 6 1 at even places, 0 4 4 at odd ones, from pixel i / 2 - 1 on.
inline int tap(const long i, const int k) { return i % 2 ? (k ? 4 : 0) : (k == 1 ? 6 : 1); }
inline long place(const long i, const long n) { return i < 0 ? min((long)1, n - 1) : min(i, n - 1); }

__kernel void up(IN(T, image), OUT(T, y), const long height, const long width, const long rows,
                 const long columns, const long channels) {
    START(image);
    START(y);
    const long i = get_global_id(0);
    if (i >= rows * columns * channels) return;
    const long c = i % channels, x = i / channels % columns, row = i / channels / columns;
#if FLOATS
    double total = 0;
    for (int v = x % 2; v < 3; ++v) {
        double sum = 0;
        for (int u = row % 2; u < 3; ++u)
            sum += (double)tap(row, u) *
                   image[(place(row / 2 + u - 1, height) * width + place(x / 2 + v - 1, width)) * channels + c];
        total += (double)tap(x, v) * (double)(float)sum;
    }
    y[i] = (T)(total / 64);
#else
    int total = 32;
    for (int u = 0; u < 3; ++u)
        for (int v = 0; v < 3; ++v)
            total += tap(row, u) * tap(x, v) *
                     image[(place(row / 2 + u - 1, height) * width + place(x / 2 + v - 1, width)) * channels + c];
    y[i] = (T)(total >> 6);
#endif
}
