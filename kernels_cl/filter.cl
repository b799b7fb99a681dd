// Correlation of a picture with any small kernel (kh, kw).
//
// Defined by the launch:  DTYPE  of the picture, u8, u16 or f32
// Method    each item sums the window of one element.
// Numerics  float32 sums. Outside the picture pixels mirror at the edge without repeating it.
#include "mirror.clh"

__kernel void filtered(IN(T, image), IN(float, taps), OUT(float, y), const long kh, const long kw, const long height,
                       const long width, const long channels) {
    START(image);
    START(taps);
    START(y);
    const long i = get_global_id(0);
    if (i >= height * width * channels) return;
    const long c = i % channels, x = i / channels % width, row = i / channels / width;
    float total = 0;
    for (long u = 0; u < kh; ++u) {
        const long at = mirrored(row + u - kh / 2, height) * width;
        for (long v = 0; v < kw; ++v)
            total += taps[u * kw + v] * (float)LOAD(image, (at + mirrored(x + v - kw / 2, width)) * channels + c);
    }
    y[i] = total;
}
