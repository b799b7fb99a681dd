// What edges are drawn along, the same bits as csrc/ops/edge_gradients.cc. blur.cl goes before where asked for.
//
// Method    each item has the edge at its pixel and, where it is large enough, those of the two neighbours across it.
#include "sobel.clh"

__kernel void gradients(IN(uchar, image), OUT(ushort, strength), OUT(short, gradient), const long height,
                        const long width, const long channels, const long threshold, const long anchor) {
    START(image);
    START(strength);
    START(gradient);
    const long i = get_global_id(0);
    if (i >= height * width) return;
    const long y = i / width, x = i % width;
    const Edge here = edge_at(image, height, width, (int)channels, y, x);
    gradient[2 * i] = (short)here.dx;
    gradient[2 * i + 1] = (short)here.dy;
    if (here.magnitude < threshold || y == 0 || x == 0 || y == height - 1 || x == width - 1) {
        strength[i] = 0;
        return;
    }
    const int upright = abs(here.dx) >= abs(here.dy), down = !upright;
    const int before = edge_at(image, height, width, (int)channels, y - down, x - upright).magnitude;
    const int after = edge_at(image, height, width, (int)channels, y + down, x + upright).magnitude;
    const int starts = here.magnitude > before && here.magnitude - before >= anchor && here.magnitude - after >= anchor;
    const int back = upright ? here.dx > 0 : here.dy < 0;
    strength[i] = (ushort)(8 * here.magnitude + 4 * starts + upright + 2 * back);
}
