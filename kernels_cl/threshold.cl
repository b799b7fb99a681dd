// Thresholds of 8-bit pictures: (x & keep) | set, one such pair where x exceeds the limit and one elsewhere.
//
// Method    each item computes ITEMS elements.
#include "types.clh"
#include "each.clh"

__kernel void threshold(ANY(uchar, x), ANY(uchar, y), const long limit, const long above, const long other,
                        const Walk walk) {
    START(x);
    START(y);
    EACH(k, i) {
        const long v = x[AT(0, i)], rule = v > limit ? above : other;
        y[AT(1, i)] = (uchar)((v & rule) | rule >> 8);
    }
}
