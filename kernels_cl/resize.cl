// A picture of another size, as csrc/ops/resize.cc has it: weights in 1/2^14, sums down first, two roundings half up.
//
// Method    each item sums the pixels of one element; outside the picture the edge repeats.
// Numerics  exact sums.
#include "types.clh"

__kernel void resample(IN(uchar, image), IN(int, first_down), IN(int, down), IN(int, first_along), IN(int, along),
                       OUT(uchar, y), const long taps_down, const long taps_along, const long height, const long width,
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
}
