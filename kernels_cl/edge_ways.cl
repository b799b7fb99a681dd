// What edges are drawn along, the same bits as csrc/ops/edge_ways.cc. blur.cl goes before where asked for.
//
// Method    sizes with headings first, 0 on the rim; then each item looks at those around its pixel.
#include "sobel.clh"

// The picture, a channel after another, with its edge pixels repeated around it.
__kernel void frame(IN(uchar, image), OUT(uchar, pixels), const long height, const long width, const long channels) {
    START(image);
    START(pixels);
    const long i = get_global_id(0), columns = width + 3, rows = height + 2;
    if (i >= channels * rows * columns) return;
    const long y = clamp(i / columns % rows - 1, (long)0, height - 1), x = clamp(i % columns - 1, (long)0, width - 1);
    pixels[i] = image[(y * width + x) * channels + i / columns / rows];
}

__kernel void head(IN(uchar, image), OUT(ushort, sizes), const long height, const long width, const long channels) {
    START(image);
    START(sizes);
    const long i = get_global_id(0);
    if (i >= height * width) return;
    const long y = i / width, x = i % width;
    const Edge here = edge_at(image, height, width, (int)channels, y, x);
    const int rim = y == 0 || x == 0 || y == height - 1 || x == width - 1;
    const int upright = abs(here.dx) >= abs(here.dy), back = upright ? here.dx > 0 : here.dy < 0;
    sizes[i] = rim ? 0 : (ushort)(16 * here.magnitude + upright + 2 * back);
}

// Where a step leads: 2 ahead, 1 before it, 0 behind it, 3 nowhere.
inline int way(const int here, const int ahead, const int before, const int behind, const long threshold) {
    const int to = max(max(ahead | 8, before | 4), behind);
    return to >> 4 < threshold || ((to ^ here) & 3) == 2 ? 3 : to >> 2 & 3;
}

__kernel void lead(IN(ushort, sizes), OUT(uchar, ways), const long height, const long width, const long threshold,
                   const long anchor) {
    START(sizes);
    START(ways);
    const long i = get_global_id(0);
    if (i >= height * width) return;
    const int here = sizes[i], size = here >> 4;
    if (here == 0 || size < threshold) {
        ways[i] = 60;
        return;
    }
    const int upright = here & 1;
    const long ahead = upright ? width : 1, across = upright ? 1 : width;
    const int larger = way(here, sizes[i + ahead], sizes[i + ahead - across], sizes[i + ahead + across], threshold);
    const int smaller = way(here, sizes[i - ahead], sizes[i - ahead - across], sizes[i - ahead + across], threshold);
    const int before = sizes[i - across] >> 4, after = sizes[i + across] >> 4;
    const int starts = size > before && size - before >= anchor && size - after >= anchor;
    ways[i] = (uchar)((here & 3) + 4 * larger + 16 * smaller + 64 * starts);
}
