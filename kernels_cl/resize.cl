// A picture of another size, as csrc/ops/resize.cc has it: sums down first, weights in 1/2^14 or as floats.
//
// Defined by the launch:  DTYPE  u8, u16 or f32
// Method    each item sums the pixels of one element; outside the picture the edge repeats.
// Numerics  u8: exact sums, two roundings half up. Else sums in float64, rounded to float32.
#include "types.clh"

#if BYTES
#define WEIGHT int
#else
#define WEIGHT float
#endif

__kernel void resample(IN(T, image), IN(int, first_down), IN(WEIGHT, down), IN(int, first_along), IN(WEIGHT, along),
                       OUT(T, y), const long taps_down, const long taps_along, const long height, const long width,
                       const long rows, const long columns, const long channels) {
    START(image);
    START(first_down);
    START(down);
    START(first_along);
    START(along);
    START(y);
    const long i = get_global_id(0);
    if (i >= rows * columns * channels) return;
    const long c = i % channels, x = i / channels % columns, row = i / channels / columns;
#if BYTES
    int total = 1 << 19;
    for (long v = 0; v < taps_along; ++v) {
        const long at = clamp(first_along[x] + v, (long)0, width - 1);
        int sum = 1 << 7;
        for (long u = 0; u < taps_down; ++u) {
            const long from = clamp(first_down[row] + u, (long)0, height - 1);
            sum += down[row * taps_down + u] * image[(from * width + at) * channels + c];
        }
        total += along[x * taps_along + v] * (sum >> 8);
    }
    y[i] = convert_uchar_sat(total >> 20);
#else
    double total = 0;
    for (long v = 0; v < taps_along; ++v) {
        const long at = clamp(first_along[x] + v, (long)0, width - 1);
        double sum = 0;
        for (long u = 0; u < taps_down; ++u) {
            const long from = clamp(first_down[row] + u, (long)0, height - 1);
            sum += (double)down[row * taps_down + u] * (double)image[(from * width + at) * channels + c];
        }
        total += (double)along[x * taps_along + v] * (double)(float)sum;
    }
#if FLOATS
    y[i] = (T)total;
#else
    y[i] = (T)clamp(floor(total + 0.5), 0.0, 65535.0);
#endif
#endif
}
