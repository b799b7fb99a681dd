// Sums, means and maxima over any axes, and the gradient of the maximum: dx = dy / (number of maxima) where x = max.
//
// Method    kept axes before the last reduced one are outputs. If none comes after it, an output is a fold of a flat row
//           (kLanes rows at a time are joined by a transpose, not lane by lane); else rows of kept columns are added 8 at a
//           time into a buffer, several narrow rows side by side. Where elements do not lie so, blocks are gathered first.
// Numerics  sums of 16-bit floats and of f32 in f32, pairwise: 16 deep in a block, 64 rows of 8 in a column task, then binary; 2^24 + 10 ones are
//           exact. Max: NaN wins. The order is a function of shape, axes and tier, so strides never change bits.
// Threads   tasks of about kChunkElements; partial results of one output are joined in order.
#include "core/axes.h"
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

struct Plan {
    Axes outer, outer_y;  // kept axes before the last reduced one, in x and in y
    Axes reduced;
    Axes inner, inner_y;  // kept axes after it
    Axes flat;  // reduced, then inner
    int64_t tail;  // the innermost reduced axes that no kept axis divides
};

// y has the axes of x, reduced ones at size 1.
Plan plan_of(const View& x, const View& y, const Attr& axes) {
    Plan p{};
    p.outer.count = p.outer_y.count = p.reduced.count = p.inner.count = p.inner_y.count = 1;
    bool reduced[kMaxDims] = {};
    int last = -1;
    for (int k = 0; k < axes.n; ++k) reduced[axes.list[k]] = true;
    for (int d = 0; d < x.ndim; ++d)
        if (reduced[d] && x.shape[d] != 1) last = d;
    p.tail = 1;
    for (int d = 0; d < x.ndim; ++d) {
        if (reduced[d]) {
            append_axis(p.reduced, x.shape[d], x.stride[d]);
            p.tail *= x.shape[d];
        } else {
            append_axis(d < last ? p.outer : p.inner, x.shape[d], x.stride[d]);
            append_axis(d < last ? p.outer_y : p.inner_y, x.shape[d], y.stride[d]);
            if (d < last && x.shape[d] != 1) p.tail = 1;
        }
    }
    p.flat = p.reduced;
    for (int d = 0; d < p.inner.n; ++d) append_axis(p.flat, p.inner.size[d], p.inner.stride[d]);
    return p;
}

// A result: y = folded / divisor.
template <class T>
TW_INLINE Vec<T> finished(Vec<T> v, T divisor) {
    return divisor == 1 ? v : v / divisor;
}

template <class T>
void put_results(T* y, const Axes& a, int64_t first, int64_t n, const Wide<T>* v, Wide<T> divisor) {
    typedef Wide<T> W;
    for (int64_t i = 0; i < n; i += kLanes<W>) {
        const int64_t m = min_of(n - i, kLanes<W>);
        const Vec<W> result = finished(load_n(v + i, m), divisor);
        if (a.n <= 1)
            put(y + first * step_of(a), step_of(a), i, m, result);
        else
            for (int64_t k = 0; k < m; ++k) y[offset_of(a, first + i + k)] = narrowed<T>(result[k]);
    }
}

// ---- outputs that are folds of rows ---------------------------------------------------------------------------------------

constexpr int64_t kShortRun = 512;  // runs below this are gathered into longer rows

// The reduced elements in pieces of at most kChunkElements, none crossing a segment.
struct Pieces {
    int64_t segment, per_segment, count, per_task, tasks;
};

Pieces pieces_of(const Plan& p) {
    Pieces s;
    const int64_t k = p.reduced.count;
    s.segment = max_of(1, p.tail >= kShortRun ? p.tail : k);
    s.per_segment = ceil_div(s.segment, kChunkElements);
    s.count = max_of(1, ceil_div(k, s.segment) * s.per_segment);
    s.per_task = max_of(1, kChunkElements / s.segment);
    s.tasks = ceil_div(s.count, s.per_task);
    return s;
}

template <class Op, class T>
Vec<Wide<T>> fold_piece(const Plan& p, const Pieces& s, const T* x, int64_t piece, T* buffer) {
    const int64_t within = piece % s.per_segment * kChunkElements;
    const int64_t n = min_of(kChunkElements, min_of(s.segment, p.reduced.count) - within);
    return fold_row<Op>(contiguous(x, p.reduced, piece / s.per_segment * s.segment + within, n, buffer), n);
}

template <class Op, class T>
Wide<T> fold_task(const Plan& p, const Pieces& s, const T* x, int64_t task, T* buffer) {
    Pairwise<Vec<Wide<T>>> sum;
    sum.n = 0;
    for (int64_t i = task * s.per_task; i < min_of((task + 1) * s.per_task, s.count); ++i)
        join<Op>(sum, fold_piece<Op>(p, s, x, i, buffer));
    return Op::lanes(joined<Op>(sum, Op::template identity<Wide<T>>()));
}

// Rows that one gather can bring in together: both indices are single axes, and neither is contiguous.
bool is_matrix(const Plan& p) { return p.outer.n == 1 && p.reduced.n == 1 && p.reduced.stride[0] != 1; }

// One piece per output: kLanes outputs are folded to vectors, then joined together.
template <class Op, class T, class Y>
void fold_short_rows(const Plan& p, const Pieces& s, const T* x, Y* y, Wide<T> divisor, int64_t first, int64_t last,
                     T* buffer) {
    typedef Wide<T> W;
    constexpr int lanes = kLanes<W>;
    const int64_t n = p.reduced.count, step = p.outer.n == 1 ? p.outer.stride[0] : 0;
    const bool matrix = is_matrix(p), in_place = step_of(p.reduced) == 1 && p.reduced.n <= 1 && p.outer.n <= 1;
    alignas(kVecBytes) W folded[lanes * lanes];
    for (int64_t o = first; o < last; o += lanes) {
        const int64_t m = min_of(lanes, last - o);
        if (matrix) gather_block(buffer, x + o * step, step, p.reduced.stride[0], m, n);
        const T* const row = matrix ? buffer : x + o * step;
        const int64_t apart = matrix ? n : step;
        for (int64_t k = 0; k < m; ++k)
            store(folded + k * lanes, matrix || in_place
                                          ? fold_row<Op>(row + k * apart, n)
                                          : fold_piece<Op>(p, s, x + offset_of(p.outer, o + k), 0, buffer));
        for (int64_t k = m; k < lanes; ++k) store(folded + k * lanes, Vec<W>{});
        alignas(kVecBytes) W results[lanes];
        store(results, fold_lanes_of<Op>(folded));
        put_results(y, p.outer_y, o, m, results, divisor);
    }
}

template <class Op, class T, class Y>
bool fold_rows(const Plan& p, const T* x, Y* y, Wide<T> divisor) {
    typedef Wide<T> W;
    constexpr int64_t lanes = kLanes<W>;
    const Pieces s = pieces_of(p);
    const int64_t outputs = p.outer.count;
    const bool gathers = step_of(p.reduced) != 1 || p.reduced.n > 1;
    const int64_t together = s.count == 1 && is_matrix(p) ? min_of(lanes, outputs) * p.reduced.count : kChunkElements;
    const size_t room = gathers ? static_cast<size_t>(together) * sizeof(T) : 0;
    bool enough = true;
    if (s.count == 1) {
        note_kernel("rows");
        const int64_t rows = max_of(1, kChunkElements / max_of(1, p.reduced.count));
        const int64_t group = rows < lanes ? rows : rows / lanes * lanes;
        parallel(ceil_div(outputs, group), [&](int64_t chunk) {
            Scratch scratch(room);
            if (!scratch.as<T>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            fold_short_rows<Op>(p, s, x, y, divisor, chunk * group, min_of(chunk * group + group, outputs),
                                scratch.as<T>());
        });
        return enough;
    }
    note_kernel("long rows");
    Scratch partials(static_cast<size_t>(outputs * s.tasks) * sizeof(W));
    W* const partial = partials.as<W>();
    if (!partial) return false;
    parallel(outputs * s.tasks, [&](int64_t chunk) {
        Scratch scratch(room);
        if (!scratch.as<T>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        partial[chunk] = fold_task<Op>(p, s, x + offset_of(p.outer, chunk / s.tasks), chunk % s.tasks, scratch.as<T>());
    });
    for (int64_t o = 0; enough && o < outputs; ++o) {
        const W v = Op::lanes(fold_row<Op>(partial + o * s.tasks, s.tasks));
        put_results(y, p.outer_y, o, 1, &v, divisor);
    }
    return enough;
}

// ---- outputs that are columns -----------------------------------------------------------------------------------------------

constexpr int64_t kTileColumns = 1024;
constexpr int64_t kNarrow = 32;
constexpr int64_t kFarColumns = 512;

// Rows of `width` columns, cut into tiles of columns and tasks of rows. Narrow rows go `side` to a row.
struct Columns {
    int64_t side, width, rows, rest;  // rest: elements of an incomplete last row
    int64_t tile, tiles, rows_per_task, tasks;
};

Columns columns_of(const Plan& p) {
    Columns c;
    const int64_t k = p.reduced.count, n = p.inner.count;
    c.side = n < kNarrow ? max_of(1, min_of(2 * kNarrow / n, k)) : 1;
    c.width = c.side * n;
    c.rows = k / c.side;
    c.rest = k % c.side * n;
    c.tile = min_of(c.width, kTileColumns);
    c.tiles = ceil_div(c.width, c.tile);
    c.rows_per_task = max_of(64, ceil_div(kChunkElements / c.tile, 8) * 8);
    c.tasks = max_of(1, ceil_div(c.rows, c.rows_per_task));
    return c;
}

// Rows from `row` on whose columns first .. first + n lie contiguous and evenly apart; 0 if not even one.
int64_t rows_in_place(const Plan& p, const Columns& c, int64_t row, int64_t first, int64_t n) {
    if (c.side > 1) return step_of(p.flat) == 1 ? run_of(p.flat, row * c.width) / c.width : 0;
    return n == 1 || (step_of(p.inner) == 1 && run_of(p.inner, first) >= n) ? run_of(p.reduced, row) : 0;
}

template <class T>
void gather_rows(const Plan& p, const Columns& c, const T* x, int64_t row, int64_t rows, int64_t first, int64_t n,
                 T* buffer) {
    if (c.side == 1 && p.inner.n == 1 && run_of(p.reduced, row) >= rows) {
        const T* at = x + offset_of(p.reduced, row) + first * step_of(p.inner);
        return gather_block(buffer, at, step_of(p.reduced), step_of(p.inner), rows, n);
    }
    for (int64_t r = row; r < row + rows; ++r, buffer += n) {
        const T* from = c.side > 1 ? contiguous(x, p.flat, r * c.width, n, buffer)
                                   : contiguous(x + offset_of(p.reduced, r), p.inner, first, n, buffer);
        if (from != buffer) copy_row(buffer, 1, from, 1, n);
    }
}

template <class Op, class T>
TW_INLINE Vec<Wide<T>> fold_eight(const T* p, int64_t stride, int64_t n) {
    typedef Wide<T> W;
    const auto at = [&](int64_t r) __attribute__((always_inline)) {
        return n == kLanes<W> ? load_as<W>(p + r * stride) : load_or_identity<Op>(p + r * stride, n);
    };
    return Op::of(Op::of(Op::of(at(0), at(1)), Op::of(at(2), at(3))),
                  Op::of(Op::of(at(4), at(5)), Op::of(at(6), at(7))));
}

// total[j] joins j-th elements of the rows for j < n, and stays as it is beyond.
template <class Op, class T>
void add_rows(Wide<T>* total, const T* x, int64_t stride, int64_t rows, int64_t n) {
    typedef Wide<T> W;
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8) {
        const T* p = x + r * stride;
        each_vector<T>(n, [&](int64_t j, int64_t m) __attribute__((always_inline)) {
            if (n >= kFarColumns)  // the next rows of so long ones are pages that no hardware foresees
                for (int64_t k = 0; k < 8; ++k) __builtin_prefetch(p + j + (k + 8) * stride);
            store(total + j, Op::of(load(total + j), fold_eight<Op>(p + j, stride, m)));
        });
    }
    for (; r < rows; ++r)
        each_vector<T>(n, [&](int64_t j, int64_t m) __attribute__((always_inline)) {
            const T* p = x + r * stride + j;
            store(total + j, Op::of(load(total + j), m < kLanes<W> ? load_or_identity<Op>(p, m) : load_as<W>(p)));
        });
}

template <class Op, class T>
void fold_column_task(const Plan& p, const Columns& c, const T* x, int64_t task, int64_t first, int64_t n,
                      Wide<T>* total, T* buffer) {
    typedef Wide<T> W;
    for (int64_t j = 0; j < n; j += kLanes<W>) store(total + j, Op::template identity<W>());
    const int64_t last = min_of((task + 1) * c.rows_per_task, c.rows);
    const int64_t stride = c.side > 1 ? c.width : step_of(p.reduced);
    for (int64_t r = task * c.rows_per_task; r < last;) {
        const int64_t in_place = rows_in_place(p, c, r, first, n);
        int64_t rows =
            in_place >= last - r ? last - r : in_place / 8 * 8;  // eights start at the same rows for any strides
        if (rows > 0) {
            const int64_t start =
                c.side > 1 ? offset_of(p.flat, r * c.width) : offset_of(p.reduced, r) + offset_of(p.inner, first);
            add_rows<Op>(total, x + start, stride, rows, n);
        } else {
            rows = min_of(8, last - r);
            gather_rows(p, c, x, r, rows, first, n, buffer);
            add_rows<Op>(total, buffer, n, rows, n);
        }
        r += rows;
    }
    if (c.rest && task == c.tasks - 1)
        add_rows<Op>(total, contiguous(x, p.flat, c.rows * c.width, c.rest, buffer), 0, 1, c.rest);
}

// Joins what lies side by side in one wide row.
template <class Op, class T>
void fold_sides(T* total, int64_t sides, int64_t n) {
    for (; sides > 1; sides = (sides + 1) / 2) {
        const int64_t half = (sides + 1) / 2;
        for (int64_t i = 0; i < (sides - half) * n; ++i)
            total[i] = Op::of(splat<T>(total[i]), splat<T>(total[i + half * n]))[0];
    }
}

template <class Op, class T, class Y>
bool fold_columns(const Plan& p, const T* x, Y* y, Wide<T> divisor) {
    typedef Wide<T> W;
    const Columns c = columns_of(p);
    constexpr int64_t room = kTileColumns + kLanes<W>;
    const int64_t outputs = p.outer.count, n = p.inner.count;
    bool enough = true;
    note_kernel(c.side > 1 ? "narrow columns" : "columns");
    Scratch partials(c.tasks > 1 ? static_cast<size_t>(outputs * c.tasks * c.width) * sizeof(W) : 0);
    W* const partial = partials.as<W>();
    if (!partial) return false;
    const auto finish = [&](int64_t o, int64_t first, int64_t count, W* total) {
        if (c.side > 1) fold_sides<Op>(total, c.side, n);
        put_results(y + offset_of(p.outer_y, o), p.inner_y, first, c.side > 1 ? n : count, total, divisor);
    };
    // Narrow outputs are many: some go to one chunk.
    const int64_t jobs = outputs * c.tiles * c.tasks;
    const int64_t group = c.tasks > 1 ? 1 : max_of(1, kChunkElements / (c.tile * max_of(1, c.rows)));
    parallel(ceil_div(jobs, group), [&](int64_t chunk) {
        Scratch scratch(static_cast<size_t>(room) * sizeof(W) + static_cast<size_t>(8 * kTileColumns) * sizeof(T));
        W* const total = scratch.as<W>();
        if (!total) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t job = chunk * group; job < min_of(chunk * group + group, jobs); ++job) {
            const int64_t task = job % c.tasks, o = job / c.tasks / c.tiles, first = job / c.tasks % c.tiles * c.tile;
            const int64_t count = min_of(c.tile, c.width - first);
            fold_column_task<Op>(p, c, x + offset_of(p.outer, o), task, first, count, total,
                                 reinterpret_cast<T*>(total + room));
            if (c.tasks == 1)
                finish(o, first, count, total);
            else
                copy_row(partial + (o * c.tasks + task) * c.width + first, 1, total, 1, count);
        }
    });
    if (c.tasks == 1 || !enough) return enough;
    parallel(outputs * c.tiles, [&](int64_t chunk) {
        alignas(kVecBytes) W total[room];
        const int64_t o = chunk / c.tiles, first = chunk % c.tiles * c.tile, count = min_of(c.tile, c.width - first);
        const W* from = partial + o * c.tasks * c.width + first;
        for (int64_t j = 0; j < count; j += kLanes<W>) {
            Pairwise<Vec<W>> sum;
            sum.n = 0;
            for (int64_t t = 0; t < c.tasks; ++t)
                join<Op>(sum, take(from + t * c.width, 1, j, min_of(count - j, kLanes<W>)));
            store(total + j, joined<Op>(sum, Op::template identity<W>()));
        }
        finish(o, first, count, total);
    });
    return enough;
}

// ---- the ops ------------------------------------------------------------------------------------------------------------------

// y as a view with the axes of x, reduced ones at size 1.
View with_axes(const View& y, const View& x, const Attr& axes, bool kept) {
    if (kept) return y;
    View v = y;
    v.ndim = x.ndim;
    for (int d = 0, k = 0, from = 0; d < x.ndim; ++d) {
        const bool gone = k < axes.n && axes.list[k] == d;
        k += gone;
        v.shape[d] = gone ? 1 : y.shape[from];
        v.stride[d] = gone ? 0 : y.stride[from++];
    }
    return v;
}

Status no_memory() { return fail(Status::memory, "", "no memory for partial results; want a smaller x"); }

template <class Op, class T, class Y = T>
Status fold(const View& x, const View& y, const Attr& axes, bool mean) {
    const Plan p = plan_of(x, y, axes);
    if (p.outer.count * p.inner.count == 0) return Status::ok;
    const Wide<T> divisor = mean ? static_cast<Wide<T>>(p.reduced.count) : 1;
    const bool by_rows = p.inner.count == 1 && p.reduced.count != 1;
    const bool enough = by_rows ? fold_rows<Op>(p, x.as<const T>(), y.as<Y>(), divisor)
                                : fold_columns<Op>(p, x.as<const T>(), y.as<Y>(), divisor);
    return enough ? Status::ok : no_memory();
}

template <class Op, bool kMean>
Status run(const Call& c) {
    const View &x = c.in[0], y = with_axes(c.out[0], x, c.attr[0], c.attr[1].i != 0);
    return for_floating(x.dtype, [&]<class T>() { return fold<Op, T>(x, y, c.attr[0], kMean); });
}

// dx = 1 at maxima, counted, then replaced by dy / count. No maximum at all means that y is NaN, and so is dx.
template <class T>
Status max_gradient(const Call& c) {
    const View &dx = c.out[0], &x = c.in[1];
    if (numel(dx) == 0) return Status::ok;
    const bool kept = c.attr[1].i != 0;
    const View dy = with_axes(c.in[0], x, c.attr[0], kept), y = with_axes(c.in[2], x, c.attr[0], kept);
    typedef Wide<T> W;
    View share = result(sizeof(W) == 4 ? DType::f32 : DType::f64, y.ndim, y.shape);
    set_contiguous(share);
    Scratch scratch(static_cast<size_t>(numel(share)) * sizeof(W));
    if (!scratch.as<W>()) return no_memory();
    share.data = scratch.as<void>();

    const View* marks[] = {&dx, &x, &y};
    const Walk mark = walk_over(marks, 3, dx.ndim, dx.shape);
    for_each_row(mark, kChunkElements, [&](char* const* at, int64_t count) {
        T* to = reinterpret_cast<T*>(at[0]);
        const T *px = reinterpret_cast<const T*>(at[1]), *py = reinterpret_cast<const T*>(at[2]);
        for (int64_t i = 0; i < count; i += kLanes<W>) {
            const int64_t n = min_of(count - i, kLanes<W>);
            const auto is_max = take(px, mark.stride[1], i, n) == take(py, mark.stride[2], i, n);
            put(to, mark.stride[0], i, n, select(is_max, splat<W>(1), Vec<W>{}));
        }
    });
    TW_TRY((fold<Sum, T, W>(dx, share, c.attr[0], false)));
    const View* shares[] = {&share, &dy};
    const Walk divide = walk_over(shares, 2, share.ndim, share.shape);
    for_each_row(divide, kChunkElements, [&](char* const* at, int64_t count) {
        W* s = reinterpret_cast<W*>(at[0]);
        const T* g = reinterpret_cast<const T*>(at[1]);
        for (int64_t i = 0; i < count; ++i) {
            W& v = s[i * divide.stride[0]];
            v = v == 0 ? static_cast<W>(__builtin_nanf("")) : widened(g[i * divide.stride[1]]) / v;
        }
    });
    const View* spreads[] = {&dx, &share};
    const Walk spread = walk_over(spreads, 2, dx.ndim, dx.shape);
    for_each_row(spread, kChunkElements, [&](char* const* at, int64_t count) {
        T* to = reinterpret_cast<T*>(at[0]);
        const W* s = reinterpret_cast<const W*>(at[1]);
        for (int64_t i = 0; i < count; i += kLanes<W>) {
            const int64_t n = min_of(count - i, kLanes<W>);
            const Vec<W> v = take(s, spread.stride[1], i, n);
            put(to, spread.stride[0], i, n, select((take<T>(to, spread.stride[0], i, n) != 0) | (v != v), v, Vec<W>{}));
        }
    });
    return Status::ok;
}

Status run_max_dx(const Call& c) {
    return for_floating(c.in[1].dtype, [&]<class T>() { return max_gradient<T>(c); });
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status infer_reduced(Call& c, const View& x, View& y) {
    TW_TRY(want_floating(x, "x"));
    Attr& axes = c.attr[0];
    TW_TRY(resolve_axes(axes, "axes", x.ndim));
    y = result(x.dtype, 0, x.shape);
    for (int d = 0, k = 0; d < x.ndim; ++d) {
        const bool gone = k < axes.n && axes.list[k] == d;
        k += gone;
        if (!gone || c.attr[1].i) y.shape[y.ndim++] = gone ? 1 : x.shape[d];
    }
    return Status::ok;
}

Status infer_fold(Call& c, Inferred& r) {
    r.n_out = 1;
    return infer_reduced(c, c.in[0], r.out[0]);
}

Status want_maxima(const View& x, const Attr& axes) {
    for (int k = 0; k < axes.n; ++k)
        if (x.shape[axes.list[k]] == 0)
            return fail(Status::shape, "x", "x has shape %s, no elements along axis %lld; want at least one",
                        shape_text(x).text, static_cast<long long>(axes.list[k]));
    return Status::ok;
}

Status infer_max(Call& c, Inferred& r) {
    TW_TRY(infer_fold(c, r));
    return want_maxima(c.in[0], c.attr[0]);
}

Status infer_max_dx(Call& c, Inferred& r) {
    const View& x = c.in[1];
    View y;
    TW_TRY(infer_reduced(c, x, y));
    TW_TRY(want_maxima(x, c.attr[0]));
    for (int k = 0; k < 3; k += 2) {
        TW_TRY(want_dtype_of(c.in[k], c.op->operands[k].name, x, "x"));
        TW_TRY(want_shape(c.in[k], c.op->operands[k].name, y.ndim, y.shape));
    }
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kDyXY[] = {{"dy"}, {"x"}, {"y"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "axes", .kind = AttrKind::axes, .none_ok = true},
    {.name = "keepdims", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_reduce_sum = {"reduce_sum", kX, 1, kAttrs, 2, infer_fold, run<Sum, false>};
extern const Entry op_reduce_mean = {"reduce_mean", kX, 1, kAttrs, 2, infer_fold, run<Sum, true>};
extern const Entry op_reduce_max = {"reduce_max", kX, 1, kAttrs, 2, infer_max, run<Max, false>};
extern const Entry op_reduce_max_dx = {"reduce_max_dx", kDyXY, 3, kAttrs, 2, infer_max_dx, run_max_dx};

}  // namespace tw::TW_ISA
