// Dropout: draws of philox4x32-10 (Salmon et al., 2011), then y = x / (1 - p) where a draw lets x pass, else 0.
//
// Method    `draw` writes a byte per draw, four an item; `drop` walks x, y and the draws, broadcast along shared axes.
// Numerics  the draws are exact: the bits of the CPU.
#include "types.clh"
#include "each.clh"

#ifdef DRAWS

__kernel void draw(OUT(uchar, passes), const long n, const long offset, const long seed, const long limit) {
    START(passes);
    const long block = get_global_id(0);
    if (4 * block >= n) return;
    uint a = (uint)block, b = (uint)(block >> 32), c = (uint)offset, d = (uint)(offset >> 32);
    uint k0 = (uint)seed, k1 = (uint)(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const uint low = 0xD2511F53u * a, high = mul_hi(0xD2511F53u, a);
        const uint low2 = 0xCD9E8D57u * c, high2 = mul_hi(0xCD9E8D57u, c);
        a = high2 ^ b ^ k0;
        b = low2;
        c = high ^ d ^ k1;
        d = low;
    }
    const uint words[4] = {a, b, c, d};
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
