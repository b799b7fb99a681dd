// Several axes of a view walked as one flat index, in C order; neighbours that lie evenly apart are one.
#pragma once
#include "core/types.h"

namespace tw {

struct Axes {
    int n;
    int64_t count;
    int64_t size[kMaxDims], stride[kMaxDims];
};

static inline void append_axis(Axes& a, int64_t size, int64_t stride) {
    a.count *= size;
    if (size == 1) return;
    if (a.n && a.stride[a.n - 1] == size * stride) {
        a.size[a.n - 1] *= size;
        a.stride[a.n - 1] = stride;
    } else {
        a.size[a.n] = size;
        a.stride[a.n++] = stride;
    }
}

static inline int64_t offset_of(const Axes& a, int64_t i) {
    if (i == 0) return 0;
    if (a.n == 1) return i * a.stride[0];
    int64_t offset = 0;
    for (int d = a.n - 1; d >= 0; --d) {
        offset += i % a.size[d] * a.stride[d];
        i /= a.size[d];
    }
    return offset;
}

// Elements from i on that follow each other with the last axis' stride.
static inline int64_t run_of(const Axes& a, int64_t i) {
    if (a.n < 2) return a.n ? a.size[0] - i : 1;
    const int64_t last = a.size[a.n - 1];
    return last ? last - i % last : 0;
}
static inline int64_t step_of(const Axes& a) { return a.n ? a.stride[a.n - 1] : 1; }
static inline bool is_one_row(const Axes& a) { return a.n <= 1 && step_of(a) == 1; }

}  // namespace tw
