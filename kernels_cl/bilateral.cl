// The bilateral filter of pictures: a mean weighted by how near a pixel is, in place and in value.
//
// Defined by the launch:  DTYPE  u8, u16 or f32
// Method    each item sums the disc around one pixel. weights holds 256 for each squared distance in place, of 16 bits one
//           for each squared distance in place, then 65536 for distances in value.
// Numerics  of integers whole weights, exact sums, one rounding half up. Outside, pixels mirror without repeating the edge.
#include "mirror.clh"

#define BYTES CAT(is_bytes_, DTYPE)
#define is_bytes_u8 1

#if BYTES
#define WEIGHT uchar
#define SUM int
#define WEIGHT_OF(square, apart) weights[(square) * 256 + (apart)]
#else
#define WEIGHT int
#define SUM long
#define WEIGHT_OF(square, apart) (weights[square] * (long)weights[half_width * half_width + 1 + (apart)])
#endif

#if FLOATS
__kernel void bilateral(IN(T, image), OUT(T, y), const long half_width, const long height, const long width,
                        const float color, const float space) {
    START(image);
#else
__kernel void bilateral(IN(T, image), IN(WEIGHT, weights), OUT(T, y), const long half_width, const long height,
                        const long width) {
    START(image);
    START(weights);
#endif
    START(y);
    const long i = get_global_id(0);
    if (i >= height * width) return;
    const long x = i % width, row = i / width;
#if FLOATS
    const float center = image[i];
    float sum = 0, total = 0;
#define SUM float
#else
    const int center = image[i];
    SUM sum = 0, total = 0;
#endif
    for (long u = -half_width; u <= half_width; ++u) {
        SUM row_sum = 0, row_total = 0;  // of their own, so that less is rounded
        for (long v = -half_width; v <= half_width; ++v) {
            const long square = u * u + v * v;
            if (square > half_width * half_width) continue;
            const T pixel = image[mirrored(row + u, height) * width + mirrored(x + v, width)];
#if FLOATS
            const float apart = pixel - center, weight = exp(apart * apart * color + (float)square * space);
            row_sum += weight * apart;
#else
            const SUM weight = WEIGHT_OF(square, abs((int)pixel - center));
            row_sum += weight * pixel;
#endif
            row_total += weight;
        }
        sum += row_sum, total += row_total;
    }
#if FLOATS
    y[i] = center + sum / total;
#else
    y[i] = (T)((2 * sum + total) / (2 * total));
#endif
}
