// The first index outside [least, limit) that is not `allowed`: first[0] = its position, untouched if there is none.
//
// Method    one item per index; positions meet in an integer minimum, so the answer does not depend on the order.
// Numerics  integers only.
//
// Defined by the launch:  ALLOWED  where there is such a value
#include "types.clh"

__kernel void find_bad(IN(T, indices), OUT(int, first), const long count, const long least,
                       const long limit
#ifdef ALLOWED
                       ,
                       const long allowed
#endif
) {
    START(indices);
    START(first);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const long index = indices[i];
    bool good = index >= least && index < limit;
#ifdef ALLOWED
    good = good || index == allowed;
#endif
    if (!good) atomic_min(first, (int)(i < INT_MAX ? i : INT_MAX - 1));
}
