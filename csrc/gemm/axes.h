// Groups of axes: sorting, fusing, and walking them.
#pragma once
#include "gemm/contract.h"

namespace tw::TW_ISA {
namespace {

TW_INLINE int64_t magnitude(int64_t stride) { return stride < 0 ? -stride : stride; }

TW_INLINE int64_t product(const Axes& g) {
    int64_t n = 1;
    for (int i = 0; i < g.n; ++i) n *= g.at[i].size;
    return n;
}

TW_INLINE void append(Axes& g, const Axis& axis) { g.at[g.n++] = axis; }

TW_INLINE void remove(Axes& g, int i) {
    for (--g.n; i < g.n; ++i) g.at[i] = g.at[i + 1];
}

// Largest key first; equal keys keep their order.
template <class Key>
TW_INLINE void sort(Axes& g, const Key& key) {
    for (int i = 1; i < g.n; ++i)
        for (int j = i; j > 0 && key(g.at[j]) > key(g.at[j - 1]); --j) {
            const Axis t = g.at[j];
            g.at[j] = g.at[j - 1];
            g.at[j - 1] = t;
        }
}

// Joins neighbours that all tensors walk as one.
TW_INLINE void fuse(Axes& g) {
    int to = 0;
    for (int i = 1; i < g.n; ++i) {
        Axis& outer = g.at[to];
        const Axis& inner = g.at[i];
        if (outer.a == inner.a * inner.size && outer.b == inner.b * inner.size && outer.c == inner.c * inner.size)
            outer = {outer.size * inner.size, inner.a, inner.b, inner.c};
        else
            g.at[++to] = inner;
    }
    if (g.n) g.n = to + 1;
}

// Where a walk through a group is: the index along each axis, and the offsets that come of it.
struct Place {
    int64_t digit[kMaxLabels];
    int64_t a, b, c;
};

TW_INLINE void seek(const Axes& g, int64_t i, Place& p) {
    p.a = p.b = p.c = 0;
    for (int d = g.n - 1; d >= 0; --d) {
        const Axis& axis = g.at[d];
        const int64_t digit = p.digit[d] = d ? i % axis.size : i;
        if (d) i /= axis.size;
        p.a += digit * axis.a, p.b += digit * axis.b, p.c += digit * axis.c;
    }
}

// By `steps` along the last axis, at most to its end.
TW_INLINE void advance(const Axes& g, Place& p, int64_t steps) {
    for (int d = g.n - 1; d >= 0; --d) {
        const Axis& axis = g.at[d];
        p.digit[d] += steps;
        p.a += steps * axis.a, p.b += steps * axis.b, p.c += steps * axis.c;
        if (p.digit[d] < axis.size || d == 0) return;
        p.digit[d] = 0;
        p.a -= axis.size * axis.a, p.b -= axis.size * axis.b, p.c -= axis.size * axis.c;
        steps = 1;
    }
}

// What is left of the last axis.
TW_INLINE int64_t run_length(const Axes& g, const Place& p) { return g.n ? g.at[g.n - 1].size - p.digit[g.n - 1] : 1; }

}  // namespace
}  // namespace tw::TW_ISA
