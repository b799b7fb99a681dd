// Random numbers from words of philox4x32-10 (Salmon et al., 2011): uniform, normal (Box and Muller, 1958), 0 or 1.
//
// Method    an item draws the counter of each of its elements.
// Numerics  the words are those of the CPU, and so is bernoulli; the others are rounded by the device's functions.
#include "each.clh"
#include "philox.clh"
#include "types.clh"

inline uint word_of(const uint4 drawn, const int i) {
    return i == 0 ? drawn.x : i == 1 ? drawn.y : i == 2 ? drawn.z : drawn.w;
}

// Number i of those in [0, 1), each of DIGITS digits.
inline ACC unit(const long i, const long offset, const long seed) {
#if DIGITS == 53
    const uint4 drawn = philox(i / 2, offset, seed);
    const uint high = i % 2 ? drawn.z : drawn.x, low = i % 2 ? drawn.w : drawn.y;
    return ((double)(high >> 5) * 0x1p26 + (double)(low >> 6)) * 0x1p-53;
#else
    return (float)(word_of(philox(i / 4, offset, seed), (int)(i % 4)) >> (32 - DIGITS)) / (float)(1 << DIGITS);
#endif
}

__kernel void uniform_of(ANY(T, y), const ACC low, const ACC size, const long offset, const long seed,
                         const Walk walk) {
    START(y);
    EACH(k, i) STORE(y, AT(0, i), low + size * unit(i, offset, seed));
}

__kernel void normal_of(ANY(T, y), const ACC mean, const ACC std, const long offset, const long seed, const Walk walk) {
    START(y);
    EACH(k, i) {
        const ACC size = 1 - unit(i & ~(INDEX)1, offset, seed), turn = 2 * unit(i | 1, offset, seed);
        const ACC part = i & 1 ? sinpi(turn) : cospi(turn);
        STORE(y, AT(0, i), mean + std * (sqrt(-2 * log(size)) * part));
    }
}

__kernel void bernoulli(ANY(T, p), ANY(T, y), const long offset, const long seed, const Walk walk) {
    START(p);
    START(y);
    EACH(k, i) {
        const ACC chance = LOAD(p, AT(0, i));
        const ulong limit = chance > 0 ? chance < 1 ? (ulong)ceil(chance * (ACC)4294967296) : (ulong)1 << 32 : 0;
        const uint word = word_of(philox(i / 4, offset, seed), (int)(i % 4));
        STORE(y, AT(1, i), (ACC)(word < limit));
    }
}
