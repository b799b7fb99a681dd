// Lines of an array along some of its axes, numbered along the others in C order, as contiguous rows.
//
//   Lines<T> x = lines_of<T>(view, axes);  x.count lines of x.n elements
//   rows_in(x, first, rows, buffer)        rows from `first` on: where they lie, or gathered into buffer
//   rows_out(y, first, rows, buffer)       where results go: in place, or to a buffer that rows_back scatters
//
// Rows lie `pitch` elements apart. A block never has more rows than together_at(first): so many lie evenly apart.
#pragma once
#include "core/attrs.h"
#include "core/axes.h"
#include "simd/rows.h"

namespace tw::TW_ISA {

template <class T>
struct Lines {
    T* data;
    Axes kept, line;
    int64_t count, n;
};

template <class T>
struct Rows {
    T* at;
    int64_t pitch;
};
template <class T>
TW_INLINE T* row(const Rows<T>& rows, int64_t i) {
    return rows.at + i * rows.pitch;
}

template <class T>
static Lines<T> lines_of(const View& v, const Attr& axes) {
    Lines<T> l{};
    l.data = v.as<T>();
    l.kept.count = l.line.count = 1;
    for (int d = 0, k = 0; d < v.ndim; ++d) {
        const bool along = k < axes.n && axes.list[k] == d;
        k += along;
        append_axis(along ? l.line : l.kept, v.shape[d], v.stride[d]);
    }
    l.count = l.kept.count;
    l.n = l.line.count;
    return l;
}

template <class T>
TW_INLINE int64_t together_at(const Lines<T>& l, int64_t first) {
    return l.kept.n ? run_of(l.kept, first) : 1;
}

template <class T>
TW_INLINE bool lie_as_rows(const Lines<T>& l) {
    return is_one_row(l.line);
}

template <class T>
static Rows<T> rows_in(const Lines<T>& l, int64_t first, int64_t rows, T* buffer) {
    T* const at = l.data + offset_of(l.kept, first);
    if (lie_as_rows(l)) return {at, step_of(l.kept)};
    if (l.line.n == 1) {
        gather_block<T>(buffer, at, step_of(l.kept), step_of(l.line), rows, l.n);
    } else {
        for (int64_t i = 0; i < rows; ++i) contiguous<T>(at + i * step_of(l.kept), l.line, 0, l.n, buffer + i * l.n);
    }
    return {buffer, l.n};
}

template <class T>
TW_INLINE Rows<T> rows_out(const Lines<T>& l, int64_t first, T* buffer) {
    if (lie_as_rows(l)) return {l.data + offset_of(l.kept, first), step_of(l.kept)};
    return {buffer, l.n};
}

template <class T>
static void rows_back(const Lines<T>& l, int64_t first, int64_t rows, const T* buffer) {
    if (lie_as_rows(l)) return;
    T* const at = l.data + offset_of(l.kept, first);
    const int64_t step = step_of(l.line), run = run_of(l.line, 0);
    // Along the shorter stride of what is written.
    if (l.line.n == 1 && step_of(l.kept) < step && rows > 1) {
        for (int64_t j = 0; j < l.n; ++j) copy_row(at + j * step, step_of(l.kept), buffer + j, l.n, rows);
        return;
    }
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < l.n; j += run)
            copy_row(at + i * step_of(l.kept) + offset_of(l.line, j), step, buffer + i * l.n + j, 1, run);
}

constexpr int64_t kBlockLines = 16;

// Rows that go through a buffer together.
TW_INLINE int64_t lines_per_block(int64_t n) {
    const int64_t fitting = (int64_t{1} << 16) / (n ? n : 1);
    return fitting < 1 ? 1 : fitting < kBlockLines ? fitting : kBlockLines;
}

}  // namespace tw::TW_ISA
