// The median of a square window of pixels.
//
// Defined by the launch:  DTYPE  u8, u16 or f32
// Method    each item finds the bits of one median, the highest first, counting its window once for each: of floats those of
//           an integer of the same order. Outside the picture the edge pixels repeat.
// Numerics  exact; a NaN in a window is its median.
#include "types.clh"

#if FLOATS
inline uint key_of(const float v) {
    const uint bits = as_uint(v);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
inline float value_of(const uint key) { return as_float(key >> 31 ? key & 0x7fffffffu : ~key); }
#else
inline uint key_of(const T v) { return v; }
inline T value_of(const uint key) { return (T)key; }
#endif

__kernel void median(IN(T, image), OUT(T, y), const long size, const long height, const long width,
                     const long channels) {
    START(image);
    START(y);
    const long i = get_global_id(0);
    if (i >= height * width * channels) return;
    const long c = i % channels, x = i / channels % width, row = i / channels / width;
    uint found = 0;
    T unknown = 0;
    for (uint bit = 1u << (8 * sizeof(T) - 1); bit; bit >>= 1) {
        int below = 0;  // pixels of the window that are less than found + bit
        for (long u = row - size / 2; u <= row + size / 2; ++u) {
            const long at = clamp(u, (long)0, height - 1) * width;
            for (long v = x - size / 2; v <= x + size / 2; ++v) {
                const T pixel = image[(at + clamp(v, (long)0, width - 1)) * channels + c];
                below += key_of(pixel) < found + bit;
                if (pixel != pixel) unknown = pixel;
            }
        }
        if (below < (size * size + 1) / 2) found += bit;
    }
    y[i] = unknown != unknown ? unknown : value_of(found);
}
