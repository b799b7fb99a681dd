// The median of a square window of 8-bit pixels.
//
// Method    each item finds the bits of one median, the highest first, counting its window once for each. Outside the
//           picture the edge pixels repeat.
#include "types.clh"

__kernel void median(IN(uchar, image), OUT(uchar, y), const long size, const long height, const long width,
                     const long channels) {
    START(image);
    START(y);
    const long i = get_global_id(0);
    if (i >= height * width * channels) return;
    const long c = i % channels, x = i / channels % width, row = i / channels / width;
    int found = 0;
    for (int bit = 128; bit; bit /= 2) {
        int below = 0;  // pixels of the window that are less than found + bit
        for (long u = row - size / 2; u <= row + size / 2; ++u) {
            const long at = clamp(u, (long)0, height - 1) * width;
            for (long v = x - size / 2; v <= x + size / 2; ++v)
                below += image[(at + clamp(v, (long)0, width - 1)) * channels + c] < found + bit;
        }
        if (below < (size * size + 1) / 2) found += bit;
    }
    y[i] = (uchar)found;
}
