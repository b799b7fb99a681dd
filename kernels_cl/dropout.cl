// Dropout: draws of philox4x32-10 (Salmon et al., 2011), then y = x / (1 - p) where a draw lets x pass, else 0.
//
// Method    `draw` writes a byte per draw, four an item; `drop` walks x, y and the draws, broadcast along shared axes.
// Numerics  the draws are exact: the bits of the CPU.
#include "types.clh"
#include "each.clh"
#include "philox.clh"

#ifdef DRAWS

__kernel void draw(OUT(uchar, passes), const long n, const long offset, const long seed, const long limit) {
    START(passes);
    const long block = get_global_id(0);
    if (4 * block >= n) return;
    const uint4 drawn = philox(block, offset, seed);
    const uint words[4] = {drawn.x, drawn.y, drawn.z, drawn.w};
    for (int i = 0; i < 4 && 4 * block + i < n; ++i) passes[4 * block + i] = (long)words[i] >= limit;
}

#else

__kernel void drop(ANY(T, x), ANY(uchar, passes), ANY(T, y), const ACC scale, const Walk walk) {
    START(x);
    START(passes);
    START(y);
    EACH(k, i) {
        const ACC v = LOAD(x, AT(0, i)) * scale;
        STORE(y, AT(2, i), passes[AT(1, i)] ? v : (ACC)0);
    }
}

#endif
