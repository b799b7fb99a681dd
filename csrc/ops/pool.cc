// Maximum and mean over windows of x (N, C, spatial), rank 1 to 3:  y[o] = max or mean of x[o stride - padding + t dilation]
// over the taps t that fall inside x; the gradients are in pool_dx.cc.
//
// Method    a row of outputs: the window's input rows are joined vertically, whole vectors at a time; then the taps along
//           it, stride 2 by even and odd lanes. The usual kernels do so in registers, others through a padded buffer.
//           16-bit and strided rows are gathered as float or double first, so that all types share these kernels. A
//           window as wide as x merges its axis into the one before, so that global pooling folds one row. With indices
//           each tap is compared, lanes are outputs; usual kernels keep maxima and places in registers.
// Numerics  max: the first maximum wins, NaN wins over numbers; kernels that do not watch for NaN run first and a sum
//           tells whether one was met. mean: rows first, then taps; one division, or what rounds like it.
// Threads   by rows of outputs; every output is computed by itself.
#include "core/check.h"
#include "core/pooling.h"
#include "core/walk.h"
#include "ops/pool_part.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kSpan = 8192;  // elements of a buffered row

Status no_memory() { return fail(Status::memory, "", "no memory for a row of the window; want a smaller kernel or x"); }

// Parts of rows of outputs, of bounded span.
RowGrid grid_of(const Windows& w) {
    const PoolAxis& a = w.axis[2];
    const int64_t part = min_of(a.out, max_of(64, (kSpan - reach_of(a)) / a.stride));
    const int64_t work = part * min_of(a.stride, a.kernel) * w.axis[0].kernel * w.axis[1].kernel;
    return {w.planes, w.axis[0].out, w.axis[1].out, a.out, part, max_of(1, kChunkElements / work)};
}

// The columns of x that a part reads: [first, first + size), of which n from before on lie inside.
struct Span {
    int64_t first, before, n;
};
Span span_of(const PoolAxis& a, const RowPart& p) {
    const int64_t first = start_of(a, p.first), size = (p.n - 1) * a.stride + reach_of(a) + 1;
    const int64_t low = max_of(first, 0);
    return {first, low - first, min_of(first + size, a.size) - low};
}
// Elements of a buffered span: whole vectors, and two more that stride-2 loads may touch.
template <class T>
int64_t room_of(const PoolAxis& a, const RowGrid& g) {
    constexpr int64_t lanes = kLanes<Wide<T>>;
    return (ceil_div((g.part - 1) * a.stride + reach_of(a) + 1, lanes) + 3) * lanes;
}

// Calls row(address, offset in the plane) for the rows of a window that lie inside x, both at column 0.
template <class T, class Row>
TW_INLINE void each_window_row(const Windows& w, const RowPart& p, const T* x, const Row& row) {
    const PoolAxis &d = w.axis[0], &h = w.axis[1];
    const Taps td = taps_of(d, p.outer), th = taps_of(h, p.inner);
    for (int64_t i = td.first; i < td.last; ++i)
        for (int64_t j = th.first; j < th.last; ++j) {
            const int64_t z = start_of(d, p.outer) + i * d.dilation, y = start_of(h, p.inner) + j * h.dilation;
            row(x + p.wide + z * d.wide_step + y * h.wide_step, (z * h.size + y) * w.axis[2].size);
        }
}

template <class T>
T* small_row(const Windows& w, const RowPart& p, T* y) {
    return y + p.small + p.outer * w.axis[0].small_step + p.inner * w.axis[1].small_step +
           p.first * w.axis[2].small_step;
}

// ---- without indices --------------------------------------------------------------------------------------------------------

// A plane and where it lies, found without a division where planes follow each other.
struct PlanePlace {
    int64_t channel, wide, small;
};
PlanePlace place_of(const Windows& w, int64_t plane) {
    return {plane % w.channels, wide_plane(w, plane), small_plane(w, plane)};
}
TW_INLINE void advance(const Windows& w, PlanePlace& p) {
    p.wide += w.wide_channel, p.small += w.small_channel;
    if (++p.channel < w.channels) return;
    p.channel = 0;
    p.wide += w.wide_batch - w.channels * w.wide_channel;
    p.small += w.small_batch - w.channels * w.small_channel;
}

// The whole plane is one window and one contiguous row: planes are the lanes.
template <class Op, class T>
void pool_planes(const Windows& w, const T* x, T* y, Wide<T> divisor) {
    typedef Wide<T> W;
    constexpr int64_t lanes = kLanes<W>;
    const int64_t n = w.axis[2].size, rows = max_of(1, kChunkElements / n);
    const int64_t group = rows < lanes ? rows : rows / lanes * lanes;
    parallel(ceil_div(w.planes, group), [&](int64_t chunk) {
        alignas(kVecBytes) W folded[lanes * lanes];
        const int64_t last = min_of(chunk * group + group, w.planes);
        PlanePlace read = place_of(w, chunk * group), written = read;
        for (int64_t i = chunk * group; i < last; i += lanes) {
            const int64_t m = min_of(last - i, lanes);
            for (int64_t k = 0; k < m; ++k, advance(w, read)) store(folded + k * lanes, fold_row<Op>(x + read.wide, n));
            for (int64_t k = m; k < lanes; ++k) store(folded + k * lanes, Vec<W>{});
            alignas(kVecBytes) W result[lanes];
            store(result, fold_lanes_of<Op>(folded) / divisor);
            for (int64_t k = 0; k < m; ++k, advance(w, written)) y[written.small] = narrowed<T>(result[k]);
        }
    });
}

bool is_global(const Windows& w) {
    const PoolAxis &d = w.axis[0], &h = w.axis[1];
    return spans(w.axis[2]) && d.size == 1 && h.size == 1 && d.out == 1 && h.out == 1;
}

// Elements of scratch: the buffers, rows that x does not hold as contiguous W, and results that y does not.
template <class W>
int64_t scratch_of(int64_t room, bool direct) {
    return (direct ? 2 : 3 + kRowsAtOnce) * room * static_cast<int64_t>(sizeof(W));
}
template <class T>
bool lies_direct(const PoolAxis& a) {
    return !kIsNarrow<T> && a.wide_step == 1 && a.small_step == 1;
}

// Joins the windows of a part. Answers whether a NaN may have been lost.
template <class Op, class T>
bool join_part(const Windows& w, const RowPart& p, const T* x, bool direct, Part<Wide<T>>& part) {
    typedef Wide<T> W;
    const PoolAxis& a = w.axis[2];
    const Span s = span_of(a, p);
    W* const gathered = part.every + part.room;
    bool more = false, lost = false;
    part.rows = 0;
    part.before = s.before;
    part.n = s.n;
    each_window_row(w, p, x + (s.first + s.before) * a.wide_step, [&](const T* at, int64_t) {
        if (part.rows == kRowsAtOnce) {
            lost |= join_rows<Op>(part, more);
            more = true;
            part.rows = 0;
        }
        if (direct) {
            part.row[part.rows] = reinterpret_cast<const W*>(at);
        } else {
            copy_row(gathered + part.rows * part.room, 1, at, a.wide_step, s.n);
            part.row[part.rows] = gathered + part.rows * part.room;
        }
        ++part.rows;
    });
    if constexpr (!__is_same(Op, Max)) {
        if (!more && p.first == 0) {
            const Near near = join_near<Op>(a, part);
            if (near != Near::no) return near == Near::lost;
        }
    }
    lost |= join_rows<Op>(part, more);
    if (!lost) join_along<Op>(a, part);
    return lost;
}

// What the outputs of a row are divided by, elements of the last axis: alone, and with those of whole windows above.
template <class W>
struct Divisors {
    const W *cells, *all, *inverse;
    W whole;
    bool include_padding, along;  // along: `cells` is all there is to it

    void divide(const Windows& w, const RowPart& p, Part<W>& part) const {
        part.above = along ? 1
                           : static_cast<W>(cells_of(w.axis[0], p.outer, include_padding) *
                                            cells_of(w.axis[1], p.inner, include_padding));
        const bool usual = along || part.above == whole;
        part.cells = (usual ? all : cells) + p.first;
        part.inverse = usual ? inverse + p.first : nullptr;
    }
};

// All rows of outputs; divisors are null for a maximum.
template <class Op, class T>
Status pool_rows(const Windows& w, const T* x, T* y, const Divisors<Wide<T>>* divisors) {
    typedef Wide<T> W;
    const PoolAxis& a = w.axis[2];
    const RowGrid grid = grid_of(w);
    const int64_t room = room_of<T>(a, grid);
    const bool direct = lies_direct<T>(a);
    note_kernel(a.stride == 2 ? "rows stride 2" : "rows");
    const bool enough = for_each_part(w, grid, scratch_of<W>(room, direct), [&](const RowPart& p, char* scratch) {
        Part<W> part;
        part.room = room;
        part.buffer = reinterpret_cast<W*>(scratch);
        part.every = part.buffer + room;
        T* const to = small_row(w, p, y);
        part.to = direct ? reinterpret_cast<W*>(to) : part.buffer + (2 + kRowsAtOnce) * room;
        part.outputs = p.n;
        if constexpr (__is_same(Op, Sum)) divisors->divide(w, p, part);
        if (join_part<Op>(w, p, x, direct, part)) {
            if constexpr (!__is_same(Op, Sum)) join_part<Max>(w, p, x, direct, part);
        }
        if (!direct) copy_row(to, a.small_step, static_cast<const W*>(part.to), 1, p.n);
    });
    return enough ? Status::ok : no_memory();
}

template <class T>
Status max_forward(const Windows& w, const T* x, T* y) {
    if (is_global(w)) return note_kernel("planes"), pool_planes<Max>(w, x, y, 1), Status::ok;
    return pool_rows<NumberMax, T>(w, x, y, nullptr);
}

template <class T>
Status mean_forward(const Windows& w, const T* x, T* y, bool include_padding, const Attr& divisor) {
    typedef Wide<T> W;
    const PoolAxis& a = w.axis[2];
    const W given = static_cast<W>(divisor.i);
    if (is_global(w)) {
        note_kernel("planes");
        return pool_planes<Sum>(w, x, y, divisor.is_none ? static_cast<W>(a.size) : given), Status::ok;
    }
    const int64_t room = a.out + kLanes<W>;
    Scratch counts(static_cast<size_t>(3 * room) * sizeof(W));
    W* const cells = counts.as<W>();
    if (!cells) return no_memory();
    W *const all = cells + room, *const inverse = all + room;
    const W whole = divisor.is_none ? static_cast<W>(w.axis[0].kernel * w.axis[1].kernel) : 1;
    for (int64_t o = 0; o < a.out; ++o) {
        cells[o] = divisor.is_none ? static_cast<W>(cells_of(a, o, include_padding)) : given;
        all[o] = whole * cells[o];
        inverse[o] = 1 / all[o];
    }
    const Divisors<W> divisors = {cells, all, inverse, whole, include_padding, !divisor.is_none};
    return pool_rows<Sum>(w, x, y, &divisors);
}

// ---- maxima with their positions --------------------------------------------------------------------------------------------

template <class T>
struct Found {
    typedef Elem<Mask<T>> Int;
    T *buffer, *best;
    Int* where;  // distance in the plane from the window's first tap
};

constexpr int kUsualRows = 3;  // of the windows of usual kernels, 2 or 3 pixels of dilation 1 in strides of 1 or 2

// The rows of a window of a usual kernel, padded, and how far each is from the window's first tap.
template <class T>
struct UsualRows {
    const T* row[kUsualRows];
    Elem<Mask<T>> distance[kUsualRows];
    int count = 0;
};

// A part's maxima in registers. Answers whether a NaN may have been overlooked.
template <int K, int S, class T>
__attribute__((noinline)) bool compare_usual(const UsualRows<T>& u, int64_t n, const Found<T>& f) {
    typedef typename Found<T>::Int Int;
    Vec<T> sum{};
    for (int64_t i = 0; i < n; i += kLanes<T>) {
        Vec<T> m = Max::identity<T>();
        auto at = bitcast<Mask<T>>(load(f.where + i));
        for (int r = 0; r < u.count; ++r)
#pragma GCC unroll 3
            for (int j = 0; j < K; ++j) {
                const T* const from = u.row[r] + i * S + j;
                const Vec<T> v = S == 1 ? load(from) : load_stride2(from);
                at = select(v > m, bitcast<Mask<T>>(splat<Int>(static_cast<Int>(u.distance[r] + j))), at);
                m = max_any(v, m);
                sum += v;
            }
        store(f.best + i, m);
        store(f.where + i, bitcast<Vec<Int>>(at));
    }
    return any(sum != sum);
}

template <class T>
bool compare_usual(const PoolAxis& a, const UsualRows<T>& u, int64_t n, const Found<T>& f) {
    if (a.kernel == 2) return a.stride == 1 ? compare_usual<2, 1>(u, n, f) : compare_usual<2, 2>(u, n, f);
    return a.stride == 1 ? compare_usual<3, 1>(u, n, f) : compare_usual<3, 2>(u, n, f);
}

bool is_usual(const Windows& w) {
    const PoolAxis& a = w.axis[2];
    return (a.kernel == 2 || a.kernel == 3) && a.dilation == 1 && a.stride <= 2 && w.axis[0].kernel == 1 &&
           w.axis[1].kernel <= kUsualRows;
}

// Where the first tap of each window of a part is that lies inside: what windows of -Inf alone answer.
template <class T>
void first_taps(const PoolAxis& a, const RowPart& p, const Found<T>& f, int64_t wide, int64_t distance) {
    typedef typename Found<T>::Int Int;
    fill(f.where, wide, static_cast<Int>(distance));
    for (int64_t o = 0; o < p.n && start_of(a, p.first + o) < 0; ++o)
        f.where[o] += static_cast<Int>(taps_of(a, p.first + o).first * a.dilation);
}

template <class T>
bool find_usual(const Windows& w, const RowPart& p, const Span& s, const T* x, const Found<Wide<T>>& f, int64_t wide,
                int64_t room, int64_t origin) {
    typedef Wide<T> W;
    const W lowest = Max::identity<W>()[0];
    UsualRows<W> rows;
    each_window_row(w, p, x + (s.first + s.before) * w.axis[2].wide_step, [&](const T* row, int64_t offset) {
        W* const to = f.buffer + rows.count * room;
        fill(to, s.before, lowest);
        copy_row(to + s.before, 1, row, w.axis[2].wide_step, s.n);
        fill(to + s.before + s.n, room - s.before - s.n, lowest);
        rows.row[rows.count] = to;
        rows.distance[rows.count++] = static_cast<Elem<Mask<W>>>(offset + s.first - origin);
    });
    first_taps(w.axis[2], p, f, wide, rows.distance[0]);
    return compare_usual(w.axis[2], rows, p.n, f);
}

// Takes one input row into a part's maxima. Answers whether a NaN may have been overlooked.
template <bool kWatch, class T>
__attribute__((noinline)) bool compare_row(const PoolAxis& a, int64_t n, const Found<T>& f, int64_t distance) {
    typedef typename Found<T>::Int Int;
    constexpr int64_t lanes = kLanes<T>;
    Vec<T> sum{};
    for (int64_t i = 0; i < n; i += lanes) {
        Vec<T> m = load(f.best + i);
        Vec<Int> at = load(f.where + i);
        for (int64_t j = 0; j < a.kernel; ++j) {
            const T* from = f.buffer + i * a.stride + j * a.dilation;
            const Vec<T> v = a.stride == 1   ? load(from)
                             : a.stride == 2 ? load_stride2(from)
                                             : load_strided(from, a.stride, min_of(n - i, lanes));
            const Vec<Int> here = splat<Int>(static_cast<Int>(distance + j * a.dilation));
            if constexpr (kWatch) {
                const auto better = ~(v <= m) & (m == m);
                at = bitcast<Vec<Int>>(select(better, bitcast<Mask<T>>(here), bitcast<Mask<T>>(at)));
                m = select(better, v, m);
            } else {
                at = bitcast<Vec<Int>>(select(v > m, bitcast<Mask<T>>(here), bitcast<Mask<T>>(at)));
                m = max_any(v, m);
                sum += v;
            }
        }
        store(f.best + i, m);
        store(f.where + i, at);
    }
    return any(sum != sum);
}

template <bool kWatch, class T>
bool find_part(const Windows& w, const RowPart& p, const Span& s, const T* x, const Found<Wide<T>>& f, int64_t wide,
               int64_t room, int64_t origin) {
    const PoolAxis& a = w.axis[2];
    const Wide<T> lowest = Max::identity<Wide<T>>()[0];
    bool started = false, lost = false;
    fill(f.buffer, room, lowest);
    fill(f.best, wide, lowest);
    each_window_row(w, p, x + (s.first + s.before) * a.wide_step, [&](const T* row, int64_t offset) {
        const int64_t distance = offset + s.first - origin;
        copy_row(f.buffer + s.before, 1, row, a.wide_step, s.n);
        if (!started) {
            started = true;
            first_taps(a, p, f, wide, distance);
        }
        lost |= compare_row<kWatch>(a, p.n, f, distance);
    });
    return lost;
}

template <class T>
Status max_with_indices(const Windows& w, const T* x, T* y, int64_t* indices, const Windows& wi, bool flat) {
    typedef Wide<T> W;
    constexpr int64_t lanes = kLanes<W>;
    const PoolAxis& a = w.axis[2];
    const RowGrid grid = grid_of(w);
    const int64_t room = room_of<T>(a, grid), wide = ceil_div(grid.part, lanes) * lanes;
    const bool usual = is_usual(w);
    const int64_t rooms = usual ? kUsualRows * room : room;
    note_kernel(usual ? "registers with indices" : "rows with indices");
    const bool enough = for_each_part(w, grid, (rooms + 2 * wide) * static_cast<int64_t>(sizeof(W)),
                                      [&](const RowPart& p, char* scratch) {
        W* const buffer = reinterpret_cast<W*>(scratch);
        const Found<W> found = {buffer, buffer + rooms,
                                reinterpret_cast<typename Found<W>::Int*>(buffer + rooms + wide)};
        const Span span = span_of(a, p);
        const int64_t origin =
            (start_of(w.axis[0], p.outer) * w.axis[1].size + start_of(w.axis[1], p.inner)) * a.size + span.first;
        if (usual ? find_usual(w, p, span, x, found, wide, room, origin)
                  : find_part<false>(w, p, span, x, found, wide, room, origin))
            find_part<true>(w, p, span, x, found, wide, room, origin);
        copy_row(small_row(w, p, y), a.small_step, found.best, 1, p.n);
        RowPart pi = p;
        pi.small = small_plane(wi, p.plane);
        int64_t* const index = small_row(wi, pi, indices);
        const int64_t step = wi.axis[2].small_step, first = origin + (flat ? p.plane * w.plane_size : 0);
        if (step == 1 && a.stride == 2)  // without a product, which vectors of 64 bits lack
            for (int64_t o = 0; o < p.n; ++o) index[o] = first + o * 2 + found.where[o];
        else if (step == 1)
            for (int64_t o = 0; o < p.n; ++o) index[o] = first + o * a.stride + found.where[o];
        else
            for (int64_t o = 0; o < p.n; ++o) index[o * step] = first + o * a.stride + found.where[o];
    });
    return enough ? Status::ok : no_memory();
}

// ---- the ops --------------------------------------------------------------------------------------------------------------------

// Calls body(windows, data of x) with spanned axes merged; an x that does not lie for it is copied.
template <class T, class Body>
Status with_merged(const View& x, const View& y, const WindowAttrs& a, const Body& body) {
    Windows w = windows_over(x, y, a);
    const bool near = merge_spanned(w);
    if (near && (!is_global(w) || w.axis[2].wide_step == 1 || w.axis[2].size == 1)) return body(w, x.as<const T>());
    Scratch scratch(static_cast<size_t>(numel(x)) * sizeof(T));
    View dense = x;
    set_contiguous(dense);
    dense.data = scratch.as<void>();
    if (!dense.data) return no_memory();
    const View* views[] = {&dense, &x};
    const Walk walk = walk_over(views, 2, x.ndim, x.shape);
    for_each_row(walk, kChunkElements, [&](char* const* at, int64_t count) {
        copy_row(reinterpret_cast<T*>(at[0]), walk.stride[0], reinterpret_cast<const T*>(at[1]), walk.stride[1], count);
    });
    w = windows_over(dense, y, a);
    merge_spanned(w);
    return body(w, dense.as<const T>());
}

template <class T>
Status max_pool(const Call& c) {
    const View &x = c.in[0], &y = c.out[0];
    const WindowAttrs a = {c.attr[kMaxKernel].list, c.attr[kMaxStride].list, c.attr[kMaxDilation].list,
                           c.attr[kMaxPadding].list};
    if (c.attr[kMaxIndices].i)
        return max_with_indices<T>(windows_over(x, y, a), x.as<const T>(), y.as<T>(), c.out[1].as<int64_t>(),
                                   windows_over(x, c.out[1], a), c.attr[kMaxFlat].i != 0);
    return with_merged<T>(x, y, a, [&](const Windows& w, const T* data) { return max_forward<T>(w, data, y.as<T>()); });
}

template <class T>
Status avg_pool(const Call& c) {
    const View &x = c.in[0], &y = c.out[0];
    const WindowAttrs a = {c.attr[kAvgKernel].list, c.attr[kAvgStride].list, nullptr, c.attr[kAvgPadding].list};
    return with_merged<T>(x, y, a, [&](const Windows& w, const T* data) {
        return mean_forward<T>(w, data, y.as<T>(), c.attr[kAvgIncludePadding].i != 0, c.attr[kAvgDivisor]);
    });
}

Status run_max(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return max_pool<T>(c); });
}
Status run_mean(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return avg_pool<T>(c); });
}

Status infer_max(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_planes(x, "x"));
    Attr* a = c.attr;
    const int rank = x.ndim - 2;
    int64_t out[3];
    TW_TRY(resolve_pooling(rank, x.shape + 2, a[kMaxKernel], a[kMaxStride], a[kMaxPadding], &a[kMaxDilation],
                           a[kMaxCeil].i != 0, out));
    if (a[kMaxFlat].i && !a[kMaxIndices].i)
        return fail(Status::attr, "flat_indices", "flat_indices=True without return_indices; want both");
    r.out[0] = planes_like(x, rank, out);
    r.n_out = 1;
    if (!a[kMaxIndices].i) return Status::ok;
    r.out[r.n_out++] = r.out[0];
    r.out[1].dtype = DType::i64;
    int64_t reach = 0;
    for (int d = 0; d < rank; ++d)
        if (__builtin_mul_overflow(reach, x.shape[2 + d], &reach) ||
            (reach += (a[kMaxKernel].list[d] - 1) * a[kMaxDilation].list[d]) > INT32_MAX)
            return fail(Status::unsupported, "kernel",
                        "kernel=%s spans more than 2^31 elements of x; want a smaller one with "
                        "return_indices",
                        attr_text(a[kMaxKernel]).text);
    return Status::ok;
}

Status infer_mean(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_planes(x, "x"));
    Attr* a = c.attr;
    int64_t out[3];
    TW_TRY(resolve_pooling(x.ndim - 2, x.shape + 2, a[kAvgKernel], a[kAvgStride], a[kAvgPadding], nullptr,
                           a[kAvgCeil].i != 0, out));
    TW_TRY(want_divisor(a[kAvgDivisor]));
    r.n_out = 1;
    r.out[0] = planes_like(x, x.ndim - 2, out);
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr AttrSpec kMaxAttrs[] = {
    {.name = "kernel", .kind = AttrKind::integers, .required = true},
    {.name = "stride", .kind = AttrKind::integers, .none_ok = true},
    {.name = "padding", .kind = AttrKind::padding},
    {.name = "dilation", .kind = AttrKind::integers, .i = 1},
    {.name = "ceil_mode", .kind = AttrKind::boolean},
    {.name = "return_indices", .kind = AttrKind::boolean},
    {.name = "flat_indices", .kind = AttrKind::boolean},
};
constexpr AttrSpec kMeanAttrs[] = {
    {.name = "kernel", .kind = AttrKind::integers, .required = true},
    {.name = "stride", .kind = AttrKind::integers, .none_ok = true},
    {.name = "padding", .kind = AttrKind::padding},
    {.name = "ceil_mode", .kind = AttrKind::boolean},
    {.name = "count_include_pad", .kind = AttrKind::boolean, .i = 1},
    {.name = "divisor", .kind = AttrKind::integer, .none_ok = true},
};

}  // namespace

extern const Entry op_max_pool = {"max_pool", kX, 1, kMaxAttrs, TW_COUNT(kMaxAttrs), infer_max, run_max};
extern const Entry op_avg_pool = {"avg_pool", kX, 1, kMeanAttrs, TW_COUNT(kMeanAttrs), infer_mean, run_mean};

}  // namespace tw::TW_ISA
