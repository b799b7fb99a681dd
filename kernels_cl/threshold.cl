// Thresholds of pictures: what a pixel becomes where it exceeds the limit, and what elsewhere, itself or a value.
//
// Defined by the launch:  DTYPE  u8, u16 or f32
// Method    each item computes ITEMS elements. Numbers are floats, which hold all values of 16 bits and a limit of -1.
#include "types.clh"
#include "each.clh"

__kernel void threshold(ANY(T, x), ANY(T, y), const float limit, const float above, const float other,
                        const long keeps, const Walk walk) {
    START(x);
    START(y);
    EACH(k, i) {
        const T v = x[AT(0, i)];
        const bool exceeds = v > limit;
        const bool kept = exceeds ? keeps & 1 : keeps & 2;
        y[AT(1, i)] = kept ? v : (T)(exceeds ? above : other);
    }
}
