// The bilateral filter of pictures: a mean weighted by how near a pixel is, in place and in value.
//
// Defined by the launch:  DTYPE     u8, u16 or f32
//                         CHANNELS  1 or 3, which share their weights
// Method    each item sums the disc around one pixel. weights holds, for each squared distance in place, those of all
//           distances in value; of 16 bits one for each squared distance in place, then those of distances in value.
// Numerics  of integers whole weights, exact sums, one rounding half up. Outside, pixels mirror without repeating the edge.
#include "mirror.clh"

#define BYTES CAT(is_bytes_, DTYPE)
#define is_bytes_u8 1

#if BYTES
#define WEIGHT uchar
#define SUM int
#define WEIGHT_OF(square, apart) weights[(square) * (255 * CHANNELS + 1) + (apart)]
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
#define SUM float
#define VALUE float
#define APART fabs
#else
#define VALUE int
#define APART abs
#endif
    VALUE center[CHANNELS];
    SUM sum[CHANNELS], total = 0;
    for (int c = 0; c < CHANNELS; ++c) center[c] = image[i * CHANNELS + c], sum[c] = 0;
    for (long u = -half_width; u <= half_width; ++u) {
        SUM row_sum[CHANNELS], row_total = 0;  // of their own, so that less is rounded
        for (int c = 0; c < CHANNELS; ++c) row_sum[c] = 0;
        for (long v = -half_width; v <= half_width; ++v) {
            const long square = u * u + v * v;
            if (square > half_width * half_width) continue;
            const long at = mirrored(row + u, height) * width + mirrored(x + v, width);
            VALUE apart[CHANNELS], all = 0;
            for (int c = 0; c < CHANNELS; ++c) apart[c] = image[at * CHANNELS + c] - center[c], all += APART(apart[c]);
#if FLOATS
            const SUM weight = exp(all * all * color + (float)square * space);
#else
            const SUM weight = WEIGHT_OF(square, all);
#endif
            for (int c = 0; c < CHANNELS; ++c) row_sum[c] += weight * apart[c];
            row_total += weight;
        }
        for (int c = 0; c < CHANNELS; ++c) sum[c] += row_sum[c];
        total += row_total;
    }
    for (int c = 0; c < CHANNELS; ++c)
#if FLOATS
        y[i * CHANNELS + c] = center[c] + sum[c] / total;
#else
        y[i * CHANNELS + c] = (T)((2 * (sum[c] + center[c] * total) + total) / (2 * total));
#endif
}
