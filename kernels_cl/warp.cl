// Pictures seen through an affine or a projective map of the plane, as csrc/ops/warp.cc has them.
//
// Defined by the launch:  DTYPE  u8, u16 or f32;  PROJECTIVE, or not; NEAREST, or not
// Method    each item mixes the four pixels around the place of one element.
// Numerics  map holds whole numbers, whose sums are exact; places in 1/128 pixel; one rounding half up. Floats are mixed in
//           float64, along and then down, each rounded to float32.
#include "types.clh"

inline T pixel(__global const T *image, const long y, const long x, const long height, const long width,
                 const long channels, const long c, const T border) {
    return y >= 0 && y < height && x >= 0 && x < width ? image[(y * width + x) * channels + c] : border;
}

inline long place(const double p) { return (long)fmin(fmax(floor(p + 0.5), -(double)(1 << 28)), (double)(1 << 28)); }

__kernel void warp(IN(T, image), IN(double, map), OUT(T, y), const long height, const long width,
                   const long rows, const long columns, const long channels, const float border) {
    START(image);
    START(map);
    START(y);
    const long i = get_global_id(0);
    if (i >= rows * columns * channels) return;
    const long c = i % channels;
    const double x = (double)(i / channels % columns), row = (double)(i / channels / columns);
    double u = x * map[0] + row * map[1] + map[2], v = x * map[3] + row * map[4] + map[5];
#ifdef PROJECTIVE
    const double w = x * map[6] + row * map[7] + map[8];
    u = w == 0 ? (double)(1 << 28) : u / w;
    v = w == 0 ? (double)(1 << 28) : v / w;
#endif
    const long px = place(u * map[9]), py = place(v * map[9]);
#define AT(dy, dx) pixel(image, (py >> 7) + dy, (px >> 7) + dx, height, width, channels, c, (T)border)
#ifdef NEAREST
    y[i] = pixel(image, (py + 64) >> 7, (px + 64) >> 7, height, width, channels, c, (T)border);
#else
    const int fx = (int)(px & 127), fy = (int)(py & 127);
#if FLOATS
    const float upper = (float)((double)AT(0, 0) * (128 - fx) + (double)AT(0, 1) * fx);
    const float lower = (float)((double)AT(1, 0) * (128 - fx) + (double)AT(1, 1) * fx);
    y[i] = (T)(((double)upper * (128 - fy) + (double)lower * fy) / (1 << 14));
#else
    const int upper = AT(0, 0) * (128 - fx) + AT(0, 1) * fx, lower = AT(1, 0) * (128 - fx) + AT(1, 1) * fx;
    y[i] = (T)((upper * (128 - fy) + lower * fy + (1 << 13)) >> 14);
#endif
#endif
}
