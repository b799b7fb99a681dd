// The Gaussian blur of 8-bit pictures (N pixels high and wide, channels interleaved): along x, then down.
//
// Numerics  taps in 1/256 of sum 256, sums exact, one rounding half up. Outside the picture pixels mirror at the edge.
#include "mirror.clh"

__kernel void blur_x(IN(uchar, image), IN(short, taps), OUT(ushort, along), const long count, const long height,
                     const long width, const long channels) {
    START(image);
    START(taps);
    START(along);
    const long i = get_global_id(0);
    if (i >= height * width * channels) return;
    const long c = i % channels, x = i / channels % width, row = i / channels / width * width;
    uint total = 0;
    for (long k = 0; k < count; ++k)
        total += (uint)taps[k] * image[(row + mirrored(x + k - count / 2, width)) * channels + c];
    along[i] = (ushort)total;
}

__kernel void blur_y(IN(ushort, along), IN(short, taps), OUT(uchar, blurred), const long count, const long height,
                     const long width, const long channels) {
    START(along);
    START(taps);
    START(blurred);
    const long i = get_global_id(0), pitch = width * channels;
    if (i >= height * pitch) return;
    const long y = i / pitch, at = i % pitch;
    uint total = 1u << 15;
    for (long k = 0; k < count; ++k) total += (uint)taps[k] * along[mirrored(y + k - count / 2, height) * pitch + at];
    blurred[i] = (uchar)(total >> 16);
}

// The mean of kh by kw pixels, rounded half up.
__kernel void box(IN(uchar, image), OUT(uchar, blurred), const long kh, const long kw, const long height,
                  const long width, const long channels) {
    START(image);
    START(blurred);
    const long i = get_global_id(0);
    if (i >= height * width * channels) return;
    const long c = i % channels, x = i / channels % width, y = i / channels / width;
    uint total = 0;
    for (long u = 0; u < kh; ++u) {
        const long row = mirrored(y + u - kh / 2, height) * width;
        for (long v = 0; v < kw; ++v) total += image[(row + mirrored(x + v - kw / 2, width)) * channels + c];
    }
    const uint area = (uint)(kh * kw);
    blurred[i] = (uchar)((2 * total + area) / (2 * area));
}
