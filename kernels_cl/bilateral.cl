// The bilateral filter of 8-bit pictures: a mean weighted by how near a pixel is, in place and in value.
//
// Method    each item sums the disc around one pixel. weights holds 256 for each squared distance in place.
// Numerics  weights in whole numbers, exact sums, one rounding half up. Outside, pixels mirror without repeating the edge.
#include "mirror.clh"

__kernel void bilateral(IN(uchar, image), IN(uchar, weights), OUT(uchar, y), const long half_width, const long height,
                        const long width) {
    START(image);
    START(weights);
    START(y);
    const long i = get_global_id(0);
    if (i >= height * width) return;
    const long x = i % width, row = i / width;
    const int center = image[i];
    int sum = 0, total = 0;
    for (long u = -half_width; u <= half_width; ++u)
        for (long v = -half_width; v <= half_width; ++v) {
            const long square = u * u + v * v;
            if (square > half_width * half_width) continue;
            const int pixel = image[mirrored(row + u, height) * width + mirrored(x + v, width)];
            const int weight = weights[square * 256 + abs(pixel - center)];
            sum += weight * pixel;
            total += weight;
        }
    y[i] = (uchar)((2 * sum + total) / (2 * total));
}
