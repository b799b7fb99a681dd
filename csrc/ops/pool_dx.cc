// The gradient of the mean over windows: each element of x gets its share of the windows that see it,
//   dx[i] = sum over the windows o that see i of dy[o] / (cells of o, or the divisor)
//
// Method    a row of dx gathers the shares of the rows of windows above it, then spreads them along the row, as a sliding
//           sum of shares set at the windows' starts. The gradient of the maximum is in unpool.cc.
// Numerics  one division per share, rows of windows first.
// Threads   by rows of dx: no two threads add to one element.
#include "core/check.h"
#include "core/pooling.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kPart = 8192;  // elements of a row of dx at a time

Status no_memory() { return fail(Status::memory, "", "no memory for a plane of dx; want a smaller shape"); }

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
                   bool include_padding, bool divides, Wide<T>* shares) {
    typedef Wide<T> W;
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    const Taps above = windows_at(d, p.outer), beside = windows_at(h, p.inner);
    const int64_t n = windows.last - windows.first;
    clear(shares, n);
    for (int64_t i = above.first; i < above.last; ++i)
        for (int64_t j = beside.first; j < beside.last; ++j) {
            const T* from = dy + p.small + i * d.small_step + j * h.small_step + windows.first * a.small_step;
            const W outer_cells =
                divides ? static_cast<W>(cells_of(d, i, include_padding) * cells_of(h, j, include_padding)) : 1;
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
Status mean_gradient(const Windows& w, T* dx, const T* dy, bool include_padding, const Attr& divisor) {
    typedef Wide<T> W;
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    const int64_t part = min_of(a.size, kPart);
    const RowGrid grid = {w.planes, d.size, h.size, a.size, part, max_of(1, kChunkElements / part)};
    const Room<W> room = room_of<W>(a, part);
    Scratch counts(static_cast<size_t>(a.out + kLanes<W>) * sizeof(W));
    W* const cells = counts.as<W>();
    if (!cells) return no_memory();
    for (int64_t o = 0; o < a.out; ++o)
        cells[o] = static_cast<W>(divisor.is_none ? cells_of(a, o, include_padding) : divisor.i);
    note_kernel(a.kernel < 2 * kLanes<W> ? "sliding rows" : "rows");
    const bool enough = for_each_part(w, grid, room.bytes(), [&](const RowPart& p, char* scratch) {
        W *shares = reinterpret_cast<W*>(scratch), *row = shares + room.shares, *starts = row + room.row;
        const Taps windows = {windows_at(a, p.first).first, windows_at(a, p.first + p.n - 1).last};
        T* const to = dx + p.wide + p.outer * d.wide_step + p.inner * h.wide_step + p.first * a.wide_step;
        if (windows.first < windows.last)
            gather_shares(w, p, windows, dy, cells, include_padding, divisor.is_none, shares);
        spread(a, p, windows, shares, row, starts);
        copy_row(to, a.wide_step, row, 1, p.n);
    });
    return enough ? Status::ok : no_memory();
}

// A plane of one window has one share everywhere.
template <class T>
void share_planes(const Windows& w, T* dx, const T* dy, Wide<T> cells) {
    const PoolAxis& a = w.axis[2];
    const int64_t group = max_of(1, kChunkElements / a.size);
    note_kernel("planes");
    parallel(ceil_div(w.planes, group), [&](int64_t chunk) {
        for (int64_t k = chunk * group; k < min_of(chunk * group + group, w.planes); ++k) {
            const Vec<Wide<T>> share = splat<Wide<T>>(Wide<T>{} + widened(dy[small_plane(w, k)]) / cells);
            T* const to = dx + wide_plane(w, k);
            each_vector<T>(a.size, [&](int64_t i, int64_t n)
                                       __attribute__((always_inline)) { put(to, a.wide_step, i, n, share); });
        }
    });
}

// ---- the ops ----------------------------------------------------------------------------------------------------------------

template <class T>
Status avg_pool_dx(const Call& c) {
    const Attr* a = c.attr;
    Windows w = windows_over(c.out[0], c.in[0], {a[kDxKernel].list, a[kDxStride].list, nullptr, a[kDxPadding].list}),
            merged = w;
    if (merge_spanned(merged) && merged.axis[2].out == 1) w = merged;  // one window: the order of its sum cannot change
    if (w.axis[0].size == 1 && w.axis[1].size == 1 && spans(w.axis[2])) {
        const int64_t cells = a[kDxDivisor].is_none ? w.axis[2].size : a[kDxDivisor].i;
        share_planes<T>(w, c.out[0].as<T>(), c.in[0].as<const T>(), static_cast<Wide<T>>(cells));
        return Status::ok;
    }
    return mean_gradient<T>(w, c.out[0].as<T>(), c.in[0].as<const T>(), a[kDxIncludePadding].i != 0, a[kDxDivisor]);
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return avg_pool_dx<T>(c); });
}

Status infer(Call& c, Inferred& r) {
    const View& dy = c.in[0];
    TW_TRY(want_planes(dy, "dy"));
    Attr* a = c.attr;
    const int rank = dy.ndim - 2;
    int64_t out[3];
    TW_TRY(resolve_integers(a[kDxShape], "shape", rank, 1));
    TW_TRY(resolve_pooling(rank, a[kDxShape].list, a[kDxKernel], a[kDxStride], a[kDxPadding], nullptr,
                           a[kDxCeil].i != 0, out, "shape"));
    TW_TRY(want_divisor(a[kDxDivisor]));
    const View y = planes_like(dy, rank, out);
    TW_TRY(want_shape(dy, "dy", y.ndim, y.shape));
    r.n_out = 1;
    r.out[0] = planes_like(dy, rank, a[kDxShape].list);
    return Status::ok;
}

constexpr Operand kDy[] = {{"dy"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "shape", .kind = AttrKind::integers, .required = true},
    {.name = "kernel", .kind = AttrKind::integers, .required = true},
    {.name = "stride", .kind = AttrKind::integers, .none_ok = true},
    {.name = "padding", .kind = AttrKind::padding},
    {.name = "ceil_mode", .kind = AttrKind::boolean},
    {.name = "count_include_pad", .kind = AttrKind::boolean, .i = 1},
    {.name = "divisor", .kind = AttrKind::integer, .none_ok = true},
};

}  // namespace

extern const Entry op_avg_pool_dx = {"avg_pool_dx", kDy, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
