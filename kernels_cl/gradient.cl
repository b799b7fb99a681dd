// Derivatives of 8-bit pictures: sums of `terms` separable filters of `size` pixels, as csrc/ops/gradient.cc has them.
//
// Method    each item sums the window of one element. taps holds, term by term, those along x and those down.
// Numerics  exact integers, saturated to 16 bits.
#include "mirror.clh"

__kernel void filtered(IN(uchar, image), IN(short, taps), OUT(short, out), const long size, const long terms,
                       const long height, const long width, const long channels) {
    START(image);
    START(taps);
    START(out);
    const long i = get_global_id(0);
    if (i >= height * width * channels) return;
    const long c = i % channels, x = i / channels % width, y = i / channels / width;
    int total = 0;
    for (long u = 0; u < size; ++u) {
        const long row = mirrored(y + u - size / 2, height) * width;
        for (long v = 0; v < size; ++v) {
            const int pixel = image[(row + mirrored(x + v - size / 2, width)) * channels + c];
            for (long t = 0; t < terms; ++t) total += pixel * taps[2 * t * size + v] * taps[(2 * t + 1) * size + u];
        }
    }
    out[i] = convert_short_sat(total);
}
