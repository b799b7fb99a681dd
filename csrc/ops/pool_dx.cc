// Gradients of pooling: max_pool_dx adds dy at the saved positions, avg_pool_dx gives each element of x its share
//   dx[i] = sum over the windows o that see i of dy[o] / (cells of o)
//
// Method    max: indices are checked, then scattered plane by plane. mean: a row of dx gathers the shares of the rows of
//           windows above it, then spreads them along the row, as a sliding sum of shares set at the windows' starts.
// Numerics  max: in the order of dy. mean: one division per share, rows of windows first.
// Threads   max by planes, mean by rows of dx: no two threads add to one element.
#include "core/check.h"
#include "core/pooling.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kPart = 8192;  // elements of a row of dx at a time

Status no_memory() { return fail(Status::memory, "", "no memory for a plane of dx; want a smaller shape"); }

// ---- max_pool_dx ----------------------------------------------------------------------------------------------------------

bool inside(int64_t index, int64_t size) { return static_cast<uint64_t>(index) < static_cast<uint64_t>(size); }

template <class T>
T* small_row(const Windows& w, T* y, int64_t plane, int64_t outer, int64_t inner) {
    return y + small_plane(w, plane) + outer * w.axis[0].small_step + inner * w.axis[1].small_step;
}

// The first index of a plane that lies outside, or null.
const int64_t* first_outside(const Windows& w, const int64_t* indices, int64_t plane) {
    const int64_t n = w.axis[2].out, step = w.axis[2].small_step;
    for (int64_t outer = 0; outer < w.axis[0].out; ++outer)
        for (int64_t inner = 0; inner < w.axis[1].out; ++inner) {
            const int64_t* row = small_row(w, indices, plane, outer, inner);
            bool good = true;
            if (step == 1)
                for (int64_t o = 0; o < n; ++o) good &= inside(row[o], w.plane_size);
            else
                for (int64_t o = 0; o < n; ++o) good &= inside(row[o * step], w.plane_size);
            for (int64_t o = 0; !good; ++o)
                if (!inside(row[o * step], w.plane_size)) return row + o * step;
        }
    return nullptr;
}

Status check_indices(const Windows& w, const int64_t* indices) {
    const int64_t per_plane = w.axis[0].out * w.axis[1].out * w.axis[2].out,
                  group = max_of(1, kChunkElements / per_plane);
    int64_t bad_plane = w.planes;
    parallel(ceil_div(w.planes, group), [&](int64_t chunk) {
        for (int64_t plane = chunk * group; plane < min_of(chunk * group + group, w.planes); ++plane) {
            if (!first_outside(w, indices, plane)) continue;
            int64_t known = __atomic_load_n(&bad_plane, __ATOMIC_RELAXED);
            while (plane < known &&
                   !__atomic_compare_exchange_n(&bad_plane, &known, plane, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            }
        }
    });
    const int64_t* bad = bad_plane < w.planes ? first_outside(w, indices, bad_plane) : nullptr;
    if (!bad) return Status::ok;
    return fail(Status::index, "indices", "indices has %lld in plane %lld of N x C; want 0 to %lld, positions in shape",
                static_cast<long long>(*bad), static_cast<long long>(bad_plane),
                static_cast<long long>(w.plane_size - 1));
}

// Every index is looked at again, since another thread may write to the array meanwhile.
template <class T>
Status max_gradient(const Windows& w, const Windows& wi, T* dx, const T* dy, const int64_t* indices) {
    TW_TRY(check_indices(wi, indices));
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    typedef Wide<T> W;
    const bool dense = is_dense(w) && !kIsNarrow<T>;
    const int64_t group = max_of(1, kChunkElements / w.plane_size);
    bool enough = true;
    parallel(ceil_div(w.planes, group), [&](int64_t chunk) {
        Scratch scratch(dense ? 0 : static_cast<size_t>(w.plane_size) * sizeof(W));
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t plane = chunk * group; plane < min_of(chunk * group + group, w.planes); ++plane) {
            W* const to = dense ? reinterpret_cast<W*>(dx + wide_plane(w, plane)) : scratch.as<W>();
            __builtin_memset(to, 0, static_cast<size_t>(w.plane_size) * sizeof(W));
            for (int64_t outer = 0; outer < d.out; ++outer)
                for (int64_t inner = 0; inner < h.out; ++inner) {
                    const T* g = small_row(w, dy, plane, outer, inner);
                    const int64_t* index = small_row(wi, indices, plane, outer, inner);
                    for (int64_t o = 0; o < a.out; ++o) {
                        const int64_t at = index[o * wi.axis[2].small_step];
                        if (inside(at, w.plane_size)) to[at] += widened(g[o * a.small_step]);
                    }
                }
            for (int64_t r = 0; !dense && r < d.size * h.size; ++r)
                copy_row(dx + wide_plane(w, plane) + r / h.size * d.wide_step + r % h.size * h.wide_step, a.wide_step,
                         to + r * a.size, 1, a.size);
        }
    });
    return enough ? Status::ok : no_memory();
}

// ---- avg_pool_dx ----------------------------------------------------------------------------------------------------------

template <class T>
TW_INLINE void clear(T* p, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes<T>) store(p + i, Vec<T>{});
}

// What a part of a row needs: shares of its windows, the result, and the shares at their starts.
template <class T>
struct Room {
    int64_t shares, row, starts;
    int64_t bytes() const { return (shares + row + starts) * static_cast<int64_t>(sizeof(T)); }
};
template <class T>
Room<T> room_of(const PoolAxis& a, int64_t part) {
    constexpr int64_t lanes = kLanes<T>;
    const int64_t windows = min_of(a.out, (part + a.kernel) / a.stride + 2);
    const auto whole = [](int64_t n) { return (ceil_div(n, lanes) + 1) * lanes; };
    return {whole(windows), whole(part), whole(part + min_of(a.kernel, 2 * lanes)) + lanes};
}

// shares[k] = the sum over rows of windows of dy / cells, windows.first + k along the row.
template <class T>
void gather_shares(const Windows& w, const RowPart& p, const Taps& windows, const T* dy, const Wide<T>* cells,
                   bool include_padding, Wide<T>* shares) {
    typedef Wide<T> W;
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    const Taps above = windows_at(d, p.outer), beside = windows_at(h, p.inner);
    const int64_t n = windows.last - windows.first;
    clear(shares, n);
    for (int64_t i = above.first; i < above.last; ++i)
        for (int64_t j = beside.first; j < beside.last; ++j) {
            const T* from = dy + p.small + i * d.small_step + j * h.small_step + windows.first * a.small_step;
            const W outer_cells = static_cast<W>(cells_of(d, i, include_padding) * cells_of(h, j, include_padding));
            for (int64_t o = 0; o < n; o += kLanes<W>) {
                const Vec<W> g = take(from, a.small_step, o, min_of(n - o, kLanes<W>));
                store(shares + o, load(shares + o) + g / (outer_cells * load(cells + windows.first + o)));
            }
        }
}

// row[i] = the sum of the shares of the windows that see column first + i.
template <class T>
void spread(const PoolAxis& a, const RowPart& p, const Taps& windows, const T* shares, T* row, T* starts) {
    if (a.kernel < 2 * kLanes<T>) {
        clear(starts, p.n + a.kernel + kLanes<T>);
        for (int64_t o = windows.first; o < windows.last; ++o)
            starts[start_of(a, o) - p.first + a.kernel - 1] = shares[o - windows.first];
        for (int64_t i = 0; i < p.n; i += kLanes<T>) {
            Vec<T> v = load(starts + i);
            for (int64_t j = 1; j < a.kernel; ++j) v += load(starts + i + j);
            store(row + i, v);
        }
        return;
    }
    clear(row, p.n);
    for (int64_t o = windows.first; o < windows.last; ++o) {
        const int64_t start = start_of(a, o) - p.first, first = max_of(start, 0), last = min_of(start + a.kernel, p.n);
        const T share = shares[o - windows.first];
        for (int64_t i = first; i < last; ++i) row[i] += share;
    }
}

template <class T>
Status mean_gradient(const Windows& w, T* dx, const T* dy, bool include_padding) {
    typedef Wide<T> W;
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    const int64_t part = min_of(a.size, kPart);
    const RowGrid grid = {w.planes, d.size, h.size, a.size, part, max_of(1, kChunkElements / part)};
    const Room<W> room = room_of<W>(a, part);
    Scratch counts(static_cast<size_t>(a.out + kLanes<W>) * sizeof(W));
    W* const cells = counts.as<W>();
    if (!cells) return no_memory();
    for (int64_t o = 0; o < a.out; ++o) cells[o] = static_cast<W>(cells_of(a, o, include_padding));
    note_kernel(a.kernel < 2 * kLanes<W> ? "sliding rows" : "rows");
    const bool enough = for_each_part(w, grid, room.bytes(), [&](const RowPart& p, char* scratch) {
        W *shares = reinterpret_cast<W*>(scratch), *row = shares + room.shares, *starts = row + room.row;
        const Taps windows = {windows_at(a, p.first).first, windows_at(a, p.first + p.n - 1).last};
        T* const to = dx + p.wide + p.outer * d.wide_step + p.inner * h.wide_step + p.first * a.wide_step;
        if (windows.first < windows.last) gather_shares(w, p, windows, dy, cells, include_padding, shares);
        spread(a, p, windows, shares, row, starts);
        copy_row(to, a.wide_step, row, 1, p.n);
    });
    return enough ? Status::ok : no_memory();
}

// ---- the ops ----------------------------------------------------------------------------------------------------------------

enum MeanAttr { kShape, kKernel, kStride, kPadding, kCeil, kIncludePadding };

template <class T>
Status max_pool_dx(const Call& c) {
    const WindowAttrs none = {};
    return max_gradient<T>(windows_over(c.out[0], c.in[0], none), windows_over(c.out[0], c.in[1], none),
                           c.out[0].as<T>(), c.in[0].as<const T>(), c.in[1].as<const int64_t>());
}

template <class T>
Status avg_pool_dx(const Call& c) {
    const Attr* a = c.attr;
    Windows w = windows_over(c.out[0], c.in[0], {a[kKernel].list, a[kStride].list, nullptr, a[kPadding].list}),
            merged = w;
    if (merge_spanned(merged) && merged.axis[2].out == 1) w = merged;  // one window: the order of its sum cannot change
    return mean_gradient<T>(w, c.out[0].as<T>(), c.in[0].as<const T>(), a[kIncludePadding].i != 0);
}

Status run_max_dx(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return max_pool_dx<T>(c); });
}
Status run_mean_dx(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return avg_pool_dx<T>(c); });
}

Status infer_max_dx(Call& c, Inferred& r) {
    const View &dy = c.in[0], &indices = c.in[1];
    TW_TRY(want_planes(dy, "dy"));
    if (indices.dtype != DType::i64)
        return fail(Status::dtype, "indices", "indices has dtype %s; want int64", name_of(indices.dtype));
    TW_TRY(want_shape_of(indices, "indices", dy, "dy"));
    TW_TRY(resolve_integers(c.attr[0], "shape", dy.ndim - 2, 1));
    r.n_out = 1;
    r.out[0] = planes_like(dy, dy.ndim - 2, c.attr[0].list);
    return Status::ok;
}

Status infer_mean_dx(Call& c, Inferred& r) {
    const View& dy = c.in[0];
    TW_TRY(want_planes(dy, "dy"));
    Attr* a = c.attr;
    const int rank = dy.ndim - 2;
    int64_t out[3];
    TW_TRY(resolve_integers(a[kShape], "shape", rank, 1));
    TW_TRY(resolve_pooling(rank, a[kShape].list, a[kKernel], a[kStride], a[kPadding], nullptr, a[kCeil].i != 0, out,
                           "shape"));
    const View y = planes_like(dy, rank, out);
    TW_TRY(want_shape(dy, "dy", y.ndim, y.shape));
    r.n_out = 1;
    r.out[0] = planes_like(dy, rank, a[kShape].list);
    return Status::ok;
}

constexpr Operand kDy[] = {{"dy"}};
constexpr Operand kDyIndices[] = {{"dy"}, {"indices"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "shape", .kind = AttrKind::integers, .required = true},
    {.name = "kernel", .kind = AttrKind::integers, .required = true},
    {.name = "stride", .kind = AttrKind::integers, .none_ok = true},
    {.name = "padding", .kind = AttrKind::padding},
    {.name = "ceil_mode", .kind = AttrKind::boolean},
    {.name = "count_include_pad", .kind = AttrKind::boolean, .i = 1},
};

}  // namespace

const OpDef op_max_pool_dx = {"max_pool_dx", kDyIndices, 2, kAttrs, 1, infer_max_dx, run_max_dx};
const OpDef op_avg_pool_dx = {"avg_pool_dx", kDy, 1, kAttrs, TW_COUNT(kAttrs), infer_mean_dx, run_mean_dx};

}  // namespace tw::TW_ISA
