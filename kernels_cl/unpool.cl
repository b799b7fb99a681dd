// Values put back where a maximum was found: max_pool_dx adds those of equal positions, max_unpool keeps the last.
//
// Method    GROUP items walk the indices of a plane in chunks; of equal positions within a chunk the first item adds all,
//           in order, or the last notes its number, by which max_unpool and its gradient are one item per result. No
//           atomics, and the cost does not depend on the positions.
// Numerics  max_pool_dx adds in the order of the indices, chunk by chunk; the others copy.
#include "types.clh"

#ifdef GROUP

// A group per plane; dx holds zeros.
__kernel void max_pool_dx(IN(T, dy), IN(long, indices), OUT(ACC, dx), const long planes, const long results,
                          const long size) {
    START(dy);
    START(indices);
    START(dx);
    const INDEX plane = get_group_id(0);
    dy += (long)plane * results;
    indices += (long)plane * results;
    dx += (long)plane * size;
#if GROUP == 1
    for (INDEX i = 0; i < (INDEX)results; ++i) {
        const INDEX at = indices[i];
        dx[at] += LOAD(dy, i);
    }
#else
    __local INDEX places[GROUP];
    __local ACC parts[GROUP];
    const int item = get_local_id(0);
    for (INDEX chunk = 0; chunk < (INDEX)results; chunk += GROUP) {
        const INDEX i = chunk + item;
        const INDEX at = i < (INDEX)results ? (INDEX)indices[i] : -1;
        places[item] = at;
        parts[item] = i < (INDEX)results ? LOAD(dy, i) : 0;
        barrier(CLK_LOCAL_MEM_FENCE);
        bool first = at >= 0;
        ACC sum = 0;
        for (int other = 0; other < GROUP; ++other)
            if (places[other] == at) {
                first = first && other >= item;
                sum += parts[other];
            }
        if (first) dx[at] += sum;
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
    }
#endif
}

__kernel void last(IN(long, indices), OUT(long, last), const long planes, const long results, const long size) {
    START(indices);
    START(last);
    const INDEX plane = get_group_id(0);
    indices += (long)plane * results;
    last += (long)plane * size;
#if GROUP == 1
    for (INDEX i = 0; i < (INDEX)results; ++i) last[indices[i]] = i;
#else
    __local INDEX places[GROUP];
    const int item = get_local_id(0);
    for (INDEX chunk = 0; chunk < (INDEX)results; chunk += GROUP) {
        const INDEX i = chunk + item, at = i < (INDEX)results ? (INDEX)indices[i] : -1;
        places[item] = at;
        barrier(CLK_LOCAL_MEM_FENCE);
        bool is_last = at >= 0;
        for (int other = item + 1; other < GROUP; ++other) is_last = is_last && places[other] != at;
        if (is_last) last[at] = i;
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
    }
#endif
}

#else

__kernel void unpool(IN(T, x), IN(long, last), OUT(T, y), const long count, const long size, const long results) {
    START(x);
    START(last);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX from = last[i];
    STORE(y, i, from < 0 ? (ACC)0 : LOAD(x, i / (INDEX)size * (INDEX)results + from));
}

__kernel void unpool_dx(IN(T, dy), IN(long, indices), IN(long, last), OUT(T, dx), const long count, const long size,
                        const long results) {
    START(dy);
    START(indices);
    START(last);
    START(dx);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX plane = i / (INDEX)results, at = plane * (INDEX)size + (INDEX)indices[i];
    STORE(dx, i, last[at] == i - plane * (INDEX)results ? LOAD(dy, at) : (ACC)0);
}

#endif
