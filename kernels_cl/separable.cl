// Separable filters of pictures of 16-bit integers and floats, the same bits as csrc/image/separable.h.
//
// Defined by the launch:  DTYPE  of the picture, u16 or f32;  WHOLE  results are u16, rounded half up, or f32
// Method    each item sums the window of one element. weights holds, term by term, those down and those along.
// Numerics  products of floats are exact in float64; sums down are rounded to float32.
#include "mirror.clh"

#ifdef WHOLE
#define RESULT ushort
#else
#define RESULT float
#endif

inline long place(const long i, const long n, const long repeats) {
    return repeats ? clamp(i, (long)0, n - 1) : mirrored(i, n);
}

__kernel void separable(IN(T, image), IN(float, weights), OUT(RESULT, y), const long kh, const long kw,
                        const long terms, const long divisor, const long pace_down, const long pace_along, const long repeats, const long height,
                        const long width, const long rows, const long columns, const long channels) {
    START(image);
    START(weights);
    START(y);
    const long i = get_global_id(0);
    if (i >= rows * columns * channels) return;
    const long c = i % channels, x = i / channels % columns, row = i / channels / columns;
    double total = 0;
    for (long t = 0; t < terms; ++t) {
        __global const float *const down = weights + t * (kh + kw), *const along = down + kh;
        for (long v = 0; v < kw; ++v) {
            const long at = place(pace_along * x + v - kw / 2, width, repeats);
            double sum = 0;
            for (long u = 0; u < kh; ++u) {
                const long from = place(pace_down * row + u - kh / 2, height, repeats);
                sum += (double)down[u] * (double)image[(from * width + at) * channels + c];
            }
            total += (double)along[v] * (double)(float)sum;
        }
    }
    total /= (double)divisor;
#ifdef WHOLE
    y[i] = (ushort)clamp(floor(total + 0.5), 0.0, 65535.0);
#else
    y[i] = (float)total;
#endif
}
