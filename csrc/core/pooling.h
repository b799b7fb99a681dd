// The geometry of pooling: windows over up to three spatial axes of (N, C, spatial), and the walk over their rows.
#pragma once
#include "core/check.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "core/types.h"

namespace tw {

struct PoolAxis {
    int64_t size, out, kernel, stride, dilation, before, after;
    int64_t wide_step, small_step;  // strides of the unpooled and of the pooled array
};

struct Taps {
    int64_t first, last;  // [first, last)
};

// `wide` is x or dx, `small` y or dy; absent axes stand in front with size 1.
struct Windows {
    PoolAxis axis[3];
    int64_t planes, channels, plane_size;
    int64_t wide_batch, wide_channel, small_batch, small_channel;
};

struct WindowAttrs {
    const int64_t *kernel, *stride, *dilation, *padding;  // null: ones, and no padding
};

Windows windows_over(const View& wide, const View& small, const WindowAttrs& a);

// Merges the last axis into the one before while one window spans it whole; false if `wide` lies too far apart for it.
bool merge_spanned(Windows& w);
bool spans(const PoolAxis& a);    // one window, all of the axis, no padding
bool is_dense(const Windows& w);    // the spatial axes of `wide` lie as in a contiguous array

// The attributes of max_pool, avg_pool and avg_pool_dx in the order of their tables.
enum MaxPoolAttr { kMaxKernel, kMaxStride, kMaxPadding, kMaxDilation, kMaxCeil, kMaxIndices, kMaxFlat, kMaxPoolAttrs };
enum AvgPoolAttr { kAvgKernel, kAvgStride, kAvgPadding, kAvgCeil, kAvgIncludePadding, kAvgDivisor, kAvgPoolAttrs };
enum AvgPoolDxAttr {
    kDxShape,
    kDxKernel,
    kDxStride,
    kDxPadding,
    kDxCeil,
    kDxIncludePadding,
    kDxDivisor,
    kAvgPoolDxAttrs
};

Attr sizes_attr(int n, const int64_t* values);  // resolved numbers, or null: zero pairs
Status want_divisor(const Attr& divisor);

// The shape rule: resolves the attributes (dilation null: 1) over spatial sizes and gives the pooled sizes.
Status resolve_pooling(int rank, const int64_t* sizes, Attr& kernel, Attr& stride, Attr& padding, Attr* dilation,
                       bool ceil_mode, int64_t* out, const char* blame = "x");
Status want_planes(const View& v, const char* name);                  // floating, (N, C, 1 to 3 spatial axes)
View planes_like(const View& v, int rank, const int64_t* sizes);      // (N, C, sizes), of the dtype of v

static inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most_of(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t start_of(const PoolAxis& a, int64_t o) { return o * a.stride - a.before; }
static inline int64_t reach_of(const PoolAxis& a) { return (a.kernel - 1) * a.dilation; }

// The taps of window o that lie inside.
static inline Taps taps_of(const PoolAxis& a, int64_t o) {
    const int64_t start = start_of(a, o), above = a.size - start;
    if (a.dilation == 1) return {most_of(-start, 0), least_of(a.kernel, above)};
    return {start < 0 ? (a.dilation - 1 - start) / a.dilation : 0,
            above > 0 ? least_of(a.kernel, (above + a.dilation - 1) / a.dilation) : 0};
}

// The windows of dilation 1 that see position i.
static inline Taps windows_at(const PoolAxis& a, int64_t i) {
    const int64_t from = i + a.before, least = from - a.kernel + 1;
    if (a.stride == 1) return {most_of(least, 0), least_of(a.out, from + 1)};
    if (a.out == 1) return {least > 0, 1};
    return {least > 0 ? (least + a.stride - 1) / a.stride : 0, least_of(a.out, from / a.stride + 1)};
}

// Elements inside, or inside and in the padding, of a window of dilation 1.
static inline int64_t cells_of(const PoolAxis& a, int64_t o, bool include_padding) {
    const int64_t start = start_of(a, o), stop = least_of(start + a.kernel, a.size + a.after);
    return include_padding ? stop - start : least_of(stop, a.size) - most_of(start, 0);
}

static inline int64_t wide_plane(const Windows& w, int64_t plane) {
    return plane / w.channels * w.wide_batch + plane % w.channels * w.wide_channel;
}
static inline int64_t small_plane(const Windows& w, int64_t plane) {
    return plane / w.channels * w.small_batch + plane % w.channels * w.small_channel;
}

// Rows over planes, two outer axes and parts of the last one.
struct RowGrid {
    int64_t planes, outer, inner, length, part;  // `part` elements of a row of `length` at a time
    int64_t per_chunk;                           // parts
};
struct RowPart {
    int64_t plane, outer, inner, first, n;
    int64_t wide, small;  // offsets of the plane
};

// Runs body(part, scratch of `bytes`) for every part, in parallel; false when memory is short.
template <class Body>
static inline bool for_each_part(const Windows& w, const RowGrid& g, int64_t bytes, const Body& body) {
    const int64_t per_row = (g.length + g.part - 1) / g.part, count = g.planes * g.outer * g.inner * per_row;
    bool enough = true;
    parallel((count + g.per_chunk - 1) / g.per_chunk, [&](int64_t chunk) {
        Scratch scratch(static_cast<size_t>(bytes));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const int64_t begin = chunk * g.per_chunk, end = least_of(begin + g.per_chunk, count), row = begin / per_row;
        RowPart p{row / g.inner / g.outer, row / g.inner % g.outer, row % g.inner, begin % per_row * g.part, 0, 0, 0};
        p.wide = wide_plane(w, p.plane), p.small = small_plane(w, p.plane);
        for (int64_t i = begin; i < end; ++i) {
            p.n = least_of(g.part, g.length - p.first);
            body(static_cast<const RowPart&>(p), scratch.as<char>());
            if ((p.first += g.part) < g.length) continue;
            p.first = 0;
            if (++p.inner < g.inner) continue;
            p.inner = 0;
            if (++p.outer < g.outer) continue;
            p.outer = 0;
            ++p.plane;
            p.wide = wide_plane(w, p.plane), p.small = small_plane(w, p.plane);
        }
    });
    return enough;
}

}  // namespace tw
