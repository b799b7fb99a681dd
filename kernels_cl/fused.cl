// What the kernel of a fused program is made of; backends/opencl_fused.py writes the kernel itself behind this text.
//
// Method    without folds an item computes ITEMS elements (each.clh). With folds a row belongs to a group of GROUP items
//           (rows.clh): each stage goes along it once, and computes again what an earlier one had computed.
// Numerics  as the single kernels have it; 16-bit values are rounded where they are stored or cast. Numbers are
//           arguments, so that programs that differ in them share a build.
#include "types.clh"
#include "each.clh"
#include "functions.clh"
#include "philox.clh"
#include "rows.clh"

inline ACC nan_min(const ACC a, const ACC b) { return a < b || isnan(a) ? a : b; }

inline ACC as_f16(const ACC x) {
    ushort bits;
    vstore_half_rte((float)x, 0, (half *)&bits);
    return vload_half(0, (const half *)&bits);
}
inline ACC as_bf16(const ACC x) { return as_float((uint)bf16_bits((float)x) << 16); }

inline int passes(const INDEX i, const long limit, const long seed, const long offset) {
    const uint4 drawn = philox((long)(i / 4), offset, seed);
    const int k = (int)(i % 4);
    return (long)(k == 0 ? drawn.x : k == 1 ? drawn.y : k == 2 ? drawn.z : drawn.w) >= limit;
}
