// Maximum and mean over windows that share out x (N, C, spatial) evenly among `size` results per axis:
//   window o of an axis of n elements is [floor(o n / size), ceil((o + 1) n / size)); windows may overlap by one element.
//
// Method    where n is a multiple of size everywhere, the pool with kernel = stride = n / size. Else the rows of a window
//           are joined as vectors, then its columns. The gradient of the mean spreads the shares of rows of windows
//           along them, then every row of dx is the sum of those that see it.
// Numerics  max: the first maximum wins, NaN wins over numbers. mean: rows first, then columns; one division.
// Threads   by rows of results, the gradient by planes; bits never depend on the split.
#include "core/check.h"
#include "core/op_table.h"
#include "core/pooling.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {

namespace {

Status no_memory() { return fail(Status::memory, "", "no memory for a row of x; want a smaller x"); }

// Window o of the axis; infer has seen to it that the products fit.
Taps share_of(const PoolAxis& a, int64_t o) { return {o * a.size / a.out, ((o + 1) * a.size + a.out - 1) / a.out}; }
int64_t count_of(const Taps& t) { return t.last - t.first; }

template <class W>
TW_INLINE bool is_better(W v, W than) {
    return than == than && !(v <= than);
}

struct Adding {
    typedef Sum Vectors;
    template <class W> TW_INLINE W of(W a, W b) { return a + b; }
};
struct Largest {
    typedef Max Vectors;
    template <class W> TW_INLINE W of(W a, W b) { return is_better(b, a) ? b : a; }
};

template <class Op, class W>
W joined_span(const W* p, int64_t n) {
    typedef typename Op::Vectors V;
    if (n >= 2 * kLanes<W>) return V::lanes(fold_row<V>(p, n));
    W v = p[0];
    for (int64_t i = 1; i < n; ++i) v = Op::of(v, p[i]);
    return v;
}

// to[i] = the rows of the window joined at column i.
template <class Op, class T>
void join_rows(const Windows& w, const RowPart& p, const T* x, Wide<T>* to) {
    typedef Wide<T> W;
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    const Taps td = share_of(d, p.outer), th = share_of(h, p.inner);
    bool begun = false;
    for (int64_t i = td.first; i < td.last; ++i)
        for (int64_t j = th.first; j < th.last; ++j) {
            const T* row = x + p.wide + i * d.wide_step + j * h.wide_step;
            each_vector<T>(a.size, [&](int64_t k, int64_t n) __attribute__((always_inline)) {
                const Vec<W> v = take(row, a.wide_step, k, n);
                store(to + k, begun ? Op::Vectors::of(load(to + k), v) : v);
            });
            begun = true;
        }
}

// Rows of results, one at a time; a row of x and a vector more in scratch.
RowGrid grid_of(const Windows& w) {
    const int64_t rows = ceil_div(w.axis[0].size, w.axis[0].out) * ceil_div(w.axis[1].size, w.axis[1].out);
    return {w.planes,      w.axis[0].out, w.axis[1].out,
            w.axis[2].out, w.axis[2].out, max_of(1, kChunkElements / (rows * w.axis[2].size + w.axis[2].out))};
}
template <class W>
int64_t row_bytes(const Windows& w) {
    return (w.axis[2].size + kLanes<W>)*static_cast<int64_t>(sizeof(W));
}

template <class T>
T* small_row(const Windows& w, T* y, const RowPart& p) {
    return y + small_plane(w, p.plane) + p.outer * w.axis[0].small_step + p.inner * w.axis[1].small_step;
}

template <class Op, class T>
Status forward(const Windows& w, const T* x, T* y) {
    typedef Wide<T> W;
    const PoolAxis& a = w.axis[2];
    note_kernel("rows");
    const bool enough = for_each_part(w, grid_of(w), row_bytes<W>(w), [&](const RowPart& p, char* scratch) {
        W* const row = reinterpret_cast<W*>(scratch);
        T* const to = small_row(w, y, p);
        join_rows<Op>(w, p, x, row);
        const int64_t rows = count_of(share_of(w.axis[0], p.outer)) * count_of(share_of(w.axis[1], p.inner));
        for (int64_t o = 0; o < a.out; ++o) {
            const Taps t = share_of(a, o);
            const W v = joined_span<Op>(row + t.first, count_of(t));
            const W by = __is_same(Op, Adding) ? static_cast<W>(rows * count_of(t)) : 1;
            to[o * a.small_step] = narrowed<T>(v / by);
        }
    });
    return enough ? Status::ok : no_memory();
}

template <class T>
Status max_with_indices(const Windows& w, const Windows& wi, const T* x, T* y, int64_t* indices) {
    typedef Wide<T> W;
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    note_kernel("rows with indices");
    for_each_part(w, grid_of(w), 0, [&](const RowPart& p, char*) {
        const Taps td = share_of(d, p.outer), th = share_of(h, p.inner);
        T* const to = small_row(w, y, p);
        int64_t* const where = small_row(wi, indices, p);
        for (int64_t o = 0; o < a.out; ++o) {
            const Taps ta = share_of(a, o);
            W best = 0;
            int64_t at = -1;
            for (int64_t i = td.first; i < td.last; ++i)
                for (int64_t j = th.first; j < th.last; ++j)
                    for (int64_t k = ta.first; k < ta.last; ++k) {
                        const W v = widened(x[p.wide + i * d.wide_step + j * h.wide_step + k * a.wide_step]);
                        if (at >= 0 && !is_better(v, best)) continue;
                        best = v;
                        at = (i * h.size + j) * a.size + k;
                    }
            to[o * a.small_step] = narrowed<T>(best);
            where[o * wi.axis[2].small_step] = at;
        }
    });
    return Status::ok;
}

// seen[i] = the windows that see position i of the axis.
void see(const PoolAxis& a, Taps* seen) {
    int64_t first = 0, last = 0;
    for (int64_t i = 0; i < a.size; ++i) {
        while (share_of(a, first).last <= i) ++first;
        while (last < a.out && share_of(a, last).first <= i) ++last;
        seen[i] = {first, last};
    }
}

// row[i] = the shares of the windows o of the axis that see column i, dy[o] / cells.
template <class T>
void spread_row(const PoolAxis& a, const T* dy, int64_t above, Wide<T>* row) {
    typedef Wide<T> W;
    __builtin_memset(row, 0, static_cast<size_t>(a.size) * sizeof(W));
    for (int64_t o = 0; o < a.out; ++o) {
        const Taps t = share_of(a, o);
        const W share = widened(dy[o * a.small_step]) / static_cast<W>(above * count_of(t));
        for (int64_t i = t.first; i < t.last; ++i) row[i] += share;
    }
}

template <class T>
Status mean_gradient(const Windows& w, T* dx, const T* dy) {
    typedef Wide<T> W;
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    const int64_t group = max_of(1, kChunkElements / w.plane_size);
    note_kernel("rows");
    bool enough = true;
    parallel(ceil_div(w.planes, group), [&](int64_t chunk) {
        Scratch seen(static_cast<size_t>(d.size + h.size) * sizeof(Taps)),
            scratch(static_cast<size_t>(d.out * h.out * a.size + kLanes<W>) * sizeof(W));
        Taps *const outer = seen.as<Taps>(), *const inner = outer + d.size;
        W* const rows = scratch.as<W>();
        if (!outer || !rows) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        see(d, outer), see(h, inner);
        for (int64_t k = chunk * group; k < min_of(chunk * group + group, w.planes); ++k) {
            RowPart p{k, 0, 0, 0, a.out, 0, 0};
            for (p.outer = 0; p.outer < d.out; ++p.outer)
                for (p.inner = 0; p.inner < h.out; ++p.inner)
                    spread_row(a, small_row(w, dy, p), count_of(share_of(d, p.outer)) * count_of(share_of(h, p.inner)),
                               rows + (p.outer * h.out + p.inner) * a.size);
            for (int64_t r = 0; r < d.size * h.size; ++r) {
                const Taps by_d = outer[r / h.size], by_h = inner[r % h.size];
                T* const to = dx + wide_plane(w, k) + r / h.size * d.wide_step + r % h.size * h.wide_step;
                each_vector<T>(a.size, [&](int64_t c, int64_t n) __attribute__((always_inline)) {
                    Vec<W> v{};
                    for (int64_t i = by_d.first; i < by_d.last; ++i)
                        for (int64_t j = by_h.first; j < by_h.last; ++j) v += load(rows + (i * h.out + j) * a.size + c);
                    put(to, a.wide_step, c, n, v);
                });
            }
        }
    });
    return enough ? Status::ok : no_memory();
}

// ---- the ops ----------------------------------------------------------------------------------------------------------------

// kernel[d] = n / size where that is whole along every axis.
bool is_even(const View& wide, const View& small, int64_t* kernel) {
    for (int d = 2; d < wide.ndim; ++d) {
        if (wide.shape[d] % small.shape[d]) return false;
        kernel[d - 2] = wide.shape[d] / small.shape[d];
    }
    return true;
}

Status run_mean(const Call& c) {
    const View &x = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    int64_t kernel[3];
    if (is_even(x, y, kernel)) {
        const int rank = x.ndim - 2;
        Attr a[kAvgPoolAttrs] = {};
        a[kAvgKernel] = a[kAvgStride] = sizes_attr(rank, kernel);
        a[kAvgPadding] = sizes_attr(rank, nullptr);
        a[kAvgDivisor].is_none = true;
        Call inner = c;
        inner.op = op_table(active_tier(), OpId::avg_pool);
        inner.attr = a;
        return inner.op->run(inner);
    }
    const Windows w = windows_over(x, y, {});
    return for_floating(x.dtype, [&]<class T>() { return forward<Adding>(w, x.as<const T>(), y.as<T>()); });
}

Status run_max(const Call& c) {
    const View &x = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    int64_t kernel[3];
    if (is_even(x, y, kernel)) {
        const int rank = x.ndim - 2;
        constexpr int64_t ones[3] = {1, 1, 1};
        Attr a[kMaxPoolAttrs] = {};
        a[kMaxKernel] = a[kMaxStride] = sizes_attr(rank, kernel);
        a[kMaxPadding] = sizes_attr(rank, nullptr);
        a[kMaxDilation] = sizes_attr(rank, ones);
        a[kMaxIndices].i = c.attr[1].i;
        Call inner = c;
        inner.op = op_table(active_tier(), OpId::max_pool);
        inner.attr = a;
        return inner.op->run(inner);
    }
    const Windows w = windows_over(x, y, {});
    return for_floating(x.dtype, [&]<class T>() {
        if (!c.attr[1].i) return forward<Largest>(w, x.as<const T>(), y.as<T>());
        return max_with_indices(w, windows_over(x, c.out[1], {}), x.as<const T>(), y.as<T>(), c.out[1].as<int64_t>());
    });
}

Status run_mean_dx(const Call& c) {
    const View &dy = c.in[0], &dx = c.out[0];
    if (numel(dx) == 0) return Status::ok;
    int64_t kernel[3];
    if (is_even(dx, dy, kernel)) {
        const int rank = dx.ndim - 2;
        Attr a[kAvgPoolDxAttrs] = {};
        a[kDxShape] = sizes_attr(rank, dx.shape + 2);
        a[kDxKernel] = a[kDxStride] = sizes_attr(rank, kernel);
        a[kDxPadding] = sizes_attr(rank, nullptr);
        a[kDxDivisor].is_none = true;
        Call inner = c;
        inner.op = op_table(active_tier(), OpId::avg_pool_dx);
        inner.attr = a;
        return inner.op->run(inner);
    }
    const Windows w = windows_over(dx, dy, {});
    return for_floating(dy.dtype, [&]<class T>() { return mean_gradient(w, dx.as<T>(), dy.as<const T>()); });
}

// Sizes of x and of the results whose products the windows need.
Status want_products(const int64_t* sizes, const int64_t* shared, int rank, const char* name) {
    for (int d = 0; d < rank; ++d) {
        int64_t product;
        if (sizes[d] < 1)
            return fail(Status::shape, name, "%s has no elements along spatial axis %d; want at least one", name, d);
        if (__builtin_mul_overflow(sizes[d], shared[d] + 1, &product) || product > INT64_MAX - shared[d])
            return fail(Status::unsupported, name,
                        "%s has %lld elements along spatial axis %d for %lld windows; want fewer", name,
                        static_cast<long long>(sizes[d]), d, static_cast<long long>(shared[d]));
    }
    return Status::ok;
}

Status infer_forward(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_planes(x, "x"));
    const int rank = x.ndim - 2;
    TW_TRY(resolve_integers(c.attr[0], "size", rank, 1));
    TW_TRY(want_products(x.shape + 2, c.attr[0].list, rank, "x"));
    r.n_out = 1;
    r.out[0] = planes_like(x, rank, c.attr[0].list);
    return Status::ok;
}

Status infer_max(Call& c, Inferred& r) {
    TW_TRY(infer_forward(c, r));
    if (!c.attr[1].i) return Status::ok;
    r.out[r.n_out++] = r.out[0];
    r.out[1].dtype = DType::i64;
    return Status::ok;
}

Status infer_dx(Call& c, Inferred& r) {
    const View& dy = c.in[0];
    TW_TRY(want_planes(dy, "dy"));
    const int rank = dy.ndim - 2;
    TW_TRY(resolve_integers(c.attr[0], "shape", rank, 1));
    for (int d = 0; d < rank; ++d)
        if (dy.shape[2 + d] < 1)
            return fail(Status::shape, "dy", "dy has no elements along spatial axis %d; want at least one", d);
    TW_TRY(want_products(c.attr[0].list, dy.shape + 2, rank, "shape"));
    r.n_out = 1;
    r.out[0] = planes_like(dy, rank, c.attr[0].list);
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kDy[] = {{"dy"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "size", .kind = AttrKind::integers, .required = true},
    {.name = "return_indices", .kind = AttrKind::boolean},
};
constexpr AttrSpec kShape[] = {{.name = "shape", .kind = AttrKind::integers, .required = true}};

}  // namespace

extern const Entry op_adaptive_avg_pool = {"adaptive_avg_pool", kX, 1, kAttrs, 1, infer_forward, run_mean};
extern const Entry op_adaptive_avg_pool_dx = {"adaptive_avg_pool_dx", kDy, 1, kShape, 1, infer_dx, run_mean_dx};
extern const Entry op_adaptive_max_pool = {"adaptive_max_pool", kX, 1, kAttrs, 2, infer_max, run_max};

}  // namespace tw::TW_ISA
