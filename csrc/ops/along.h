// Kernels along some axes of their operands: lines of n elements, each as a row or as a column of a tile.
//
//   run_along(kernel, call, axes)         a kernel is a struct with
//     kInputs, kTiles, kKept              operands; tiles, those of the operands first; numbers it keeps per column
//     kRows, kGroups                      whether it has row(y, in, n, after): a line as contiguous numbers; y may be in[0];
//                                         after: what to ask for on the way where rows come from afar, or null
//     group(y, y_step, in, in_step, rows, n)  with kGroups: at most kLanes lines, as row would give them
//     kGroupedElements                    of the longest line that goes in groups
//     take(tile, rows, width, kept)       the next rows of a tile; kept begins as zeros
//     close(tile, n, width, kept)         after the last of them
//     result(y, tile, r, n, width, kept)  row r of the results, given the operands' tiles as close left them
//
// All of them see Wide<T> alone: 16-bit operands pass through scratch and share the code of float. Rows are taken where
// the last axis is one of `axes`, tiles elsewhere; any strides. That depends on shape alone, and so do the bits.
#pragma once
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/onward.h"
#include "simd/rows.h"

namespace tw::TW_ISA {

constexpr int64_t kTileElements = 1 << 16;  // of a tile of columns, so that it stays in L2
constexpr int64_t kTileBytes = 256;  // of its rows at least: memory is read in longer pieces than one line

struct Along {
    Walk walk;  // over the kept axes; the result first
    Axes line[kMaxWalked];
    int64_t n;
    bool columns;
};

// Sides have the axes of the first, which is the result; one that has fewer holds the kept ones alone.
static Along along_of(const View* const* sides, int count, const View& x, const Attr& axes) {
    Along a;
    View flat[kMaxWalked];
    const View* views[kMaxWalked];
    for (int k = 0; k < count; ++k) {
        const View& v = *sides[k];
        const bool whole = v.ndim == x.ndim;
        View& kept = flat[k];
        kept.data = v.data;
        kept.dtype = v.dtype;
        kept.ndim = 0;
        Axes& line = a.line[k];
        line.n = 0;
        line.count = 1;
        for (int d = 0, gone = 0; d < v.ndim; ++d) {
            if (whole && gone < axes.n && axes.list[gone] == d) {
                append_axis(line, v.shape[d], v.stride[d]);
                ++gone;
            } else {
                kept.shape[kept.ndim] = v.shape[d];
                kept.stride[kept.ndim++] = v.stride[d];
            }
        }
        views[k] = &kept;
    }
    a.walk = walk_over(views, count, flat[0].ndim, flat[0].shape);
    a.n = a.line[count - 1].count;
    int64_t inner = 1;
    for (int d = axes.n ? static_cast<int>(axes.list[axes.n - 1]) + 1 : 0; d < x.ndim; ++d) inner *= x.shape[d];
    a.columns = inner != 1;
    return a;
}

template <class T>
static void gather_line(Wide<T>* to, const T* x, const Axes& line) {
    const int64_t run = run_of(line, 0);
    for (int64_t i = 0; i < line.count; i += run) copy_row(to + i, 1, x + offset_of(line, i), step_of(line), run);
}
template <class T>
static void scatter_line(T* y, const Axes& line, const Wide<T>* from) {
    const int64_t run = run_of(line, 0);
    for (int64_t i = 0; i < line.count; i += run) copy_row(y + offset_of(line, i), step_of(line), from + i, 1, run);
}

// What lies at i of these is read and written soon after i of the row; perhaps outside of the arrays.
template <class W>
struct After {
    const W *in[kMaxWalked], *y;
    bool past;  // results go past the caches
};

template <class Kernel, class W>
__attribute__((noinline)) static void row_of(const Kernel& kernel, W* y, const W* const* in, int64_t n,
                                             const After<W>* after) {
    kernel.row(y, in, n, after);
}

constexpr int64_t kShortElements = 256;  // of a line, so that kLanes of them stay in L1

template <class Kernel, class W>
__attribute__((noinline)) static void group_of(const Kernel& kernel, W* y, int64_t y_step, const W* const* in,
                                               const int64_t* in_step, int64_t rows, int64_t n) {
    kernel.group(y, y_step, in, in_step, rows, n);
}

template <class T, class Kernel>
static bool run_rows(const Kernel& kernel, const Along& a) {
    typedef Wide<T> W;
    constexpr int sides = Kernel::kInputs + 1;
    int64_t at_buffer[sides], room = 0;
    for (int k = sides - 1; k >= 0; --k) {
        at_buffer[k] = -1;
        if (!kIsNarrow<T> && is_one_row(a.line[k])) continue;
        const bool shared = k == 0 && at_buffer[1] >= 0 && a.line[0].count == a.n;
        at_buffer[k] = shared ? at_buffer[1] : room;
        if (!shared) room += a.line[k].count;
    }
    note_kernel(room ? "gathered rows" : "rows");
    const int64_t results = walk_rows(a.walk) * a.walk.row * a.line[0].count;
    const int64_t bytes = results * static_cast<int64_t>(sizeof(T));
    const bool streams = room == 0 && bytes >= streaming_bytes(), far = room == 0 && (streams || bytes >= far_bytes());
    bool enough = true;
    for_each_row(a.walk, max_of(1, kChunkElements / max_of(a.n, 1)), [&](char* const* at, int64_t count) {
        Scratch scratch(static_cast<size_t>(room) * sizeof(W));
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        int64_t i = 0;
        if constexpr (kVectorRegisters >= 32 && __is_same(T, float) && Kernel::kGroups) {
            const bool groups = room == 0 && !streams && a.n > kLanes<W> && a.n <= Kernel::kGroupedElements;
            for (; groups && i < count; i += kLanes<W>) {
                const W* in[sides - 1];
                for (int k = 1; k < sides; ++k) in[k - 1] = reinterpret_cast<const W*>(at[k]) + i * a.walk.stride[k];
                group_of(kernel, reinterpret_cast<W*>(at[0]) + i * a.walk.stride[0], a.walk.stride[0], in,
                         a.walk.stride + 1, min_of(kLanes<W>, count - i), a.n);
            }
        }
        for (; i < count; ++i) {
            W* line[sides];
            const W* in[sides];
            After<W> after;
            after.past = streams;
            for (int k = 0; k < sides; ++k) {
                T* const p = reinterpret_cast<T*>(at[k]) + i * a.walk.stride[k];
                line[k] = at_buffer[k] < 0 ? reinterpret_cast<W*>(p) : scratch.as<W>() + at_buffer[k];
                if (k > 0) in[k - 1] = line[k], after.in[k - 1] = read_soon(in[k - 1], a.walk.stride[k]);
                if (k == 0) after.y = written_soon(line[0]);
                if (k > 0 && at_buffer[k] >= 0) gather_line(line[k], p, a.line[k]);
            }
            row_of(kernel, line[0], in, a.n, far ? &after : nullptr);
            T* const y = reinterpret_cast<T*>(at[0]) + i * a.walk.stride[0];
            if (at_buffer[0] >= 0) scatter_line(y, a.line[0], static_cast<const W*>(line[0]));
        }
        if (streams) stream_fence();
    });
    return enough;
}

template <class Kernel, class W>
__attribute__((noinline)) static void take_rows(const Kernel& kernel, W* const* tile, int64_t rows, int64_t width,
                                                W* kept) {
    kernel.take(tile, rows, width, kept);
}
template <class Kernel, class W>
__attribute__((noinline)) static void close_tile(const Kernel& kernel, W* const* tile, int64_t n, int64_t width,
                                                 W* kept) {
    kernel.close(tile, n, width, kept);
}
template <class Kernel, class W>
__attribute__((noinline)) static void result_of(const Kernel& kernel, W* y, const W* const* tile, int64_t r, int64_t n,
                                                int64_t width, const W* kept) {
    kernel.result(y, tile, r, n, width, kept);
}

// Rows first .. last of a tile from where they lie; memory is asked for a few rows ahead, as rows lie pages apart.
template <class T>
static void gather_rows(Wide<T>* tile, const T* x, const Axes& line, int64_t across, int64_t first, int64_t last,
                        int64_t columns, int64_t width) {
    constexpr int64_t lanes = kLanes<Wide<T>>;
    for (int64_t r = first; r < last; ++r) {
        const T* const from = x + offset_of(line, r);
        const T* const ahead = r + kRowsAhead < line.count ? x + offset_of(line, r + kRowsAhead) : from;
        for (int64_t j = 0; j < columns; j += lanes) {
            __builtin_prefetch(ahead + j * across);
            store(tile + r * width + j, take<T>(from, across, j, min_of(columns - j, lanes)));
        }
    }
}

template <class T, class Kernel>
static bool run_columns(const Kernel& kernel, const Along& a) {
    typedef Wide<T> W;
    constexpr int64_t lanes = kLanes<W>;
    const int64_t n = a.n;
    const int64_t fitting = min_of(512, kTileElements / Kernel::kTiles / max_of(n, 1)) / lanes * lanes;
    const int64_t widest = max_of(fitting, kTileBytes / static_cast<int64_t>(sizeof(T)));
    bool enough = true;
    note_kernel("columns");
    for_each_row(a.walk, widest, [&](char* const* at, int64_t count) {
        const int64_t width = ceil_div(count, lanes) * lanes;
        Scratch scratch(static_cast<size_t>((Kernel::kTiles * n + Kernel::kKept + 1) * width) * sizeof(W));
        W* tile[Kernel::kTiles];
        const W* tiles[Kernel::kTiles];
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int k = 0; k < Kernel::kTiles; ++k) tiles[k] = tile[k] = scratch.as<W>() + k * n * width;
        W *const kept = tile[0] + Kernel::kTiles * n * width, *const row = kept + Kernel::kKept * width;
        __builtin_memset(kept, 0, static_cast<size_t>(Kernel::kKept * width) * sizeof(W));
        for (int64_t first = 0; first < n; first += kBlockRows) {
            const int64_t last = min_of(first + kBlockRows, n);
            W* block[Kernel::kTiles];
            for (int k = 0; k < Kernel::kTiles; ++k) {
                block[k] = tile[k] + first * width;
                if (k < Kernel::kInputs)
                    gather_rows(tile[k], reinterpret_cast<const T*>(at[k + 1]), a.line[k + 1], a.walk.stride[k + 1],
                                first, last, count, width);
            }
            take_rows<Kernel, W>(kernel, block, last - first, width, kept);
        }
        close_tile<Kernel, W>(kernel, tile, n, width, kept);
        const Axes& line = a.line[0];
        T* const y = reinterpret_cast<T*>(at[0]);
        const int64_t across = a.walk.stride[0];
        const bool direct = !kIsNarrow<T> && across == 1 && width == count;
        for (int64_t r = 0; r < line.count; ++r) {
            T* const to = y + offset_of(line, r);
            if (r + kRowsAhead < line.count)
                for (int64_t j = 0; j < count; j += lanes)
                    __builtin_prefetch(y + offset_of(line, r + kRowsAhead) + j * across, 1);
            W* const result = direct ? reinterpret_cast<W*>(to) : row;
            result_of<Kernel, W>(kernel, result, tiles, r, n, width, kept);
            if (!direct) copy_row(to, across, static_cast<const W*>(row), 1, count);
        }
    });
    return enough;
}

template <class Kernel>
static Status run_along(const Kernel& kernel, const Call& c, const Attr& axes) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const View* sides[kMaxWalked] = {&c.out[0]};
    for (int k = 0; k < Kernel::kInputs; ++k) sides[k + 1] = &c.in[k];
    const Along a = along_of(sides, Kernel::kInputs + 1, c.in[0], axes);
    const bool enough = for_floating(c.in[0].dtype, [&]<class T>() {
        if constexpr (Kernel::kRows) {
            if (!a.columns) return run_rows<T>(kernel, a);
        }
        return run_columns<T>(kernel, a);
    });
    return enough ? Status::ok
                  : fail(Status::memory, "", "no memory for a line of %lld elements; want smaller axes",
                         static_cast<long long>(a.n));
}

// The columns of a tile, a vector at a time.
template <class W, class Body>
TW_INLINE void each_column(int64_t width, const Body& body) {
    for (int64_t j = 0; j < width; j += kLanes<W>) body(j);
}

constexpr int64_t kSummedRows = 16;

// kept[j] += the sum over `rows` of term(offset in the tile), by blocks, so that roundings are few.
template <class W, class F>
TW_INLINE void add_rows(W* kept, int64_t rows, int64_t width, const F& term) {
    each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
        Vec<W> all{};
        for (int64_t first = 0; first < rows; first += kSummedRows) {
            const int64_t end = min_of(first + kSummedRows, rows);
            Vec<W> block{};
            for (int64_t r = first; r < end; ++r) block += term(r * width + j);
            all += block;
        }
        store(kept + j, load(kept + j) + all);
    });
}

}  // namespace tw::TW_ISA
