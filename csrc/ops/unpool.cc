// Values put where a maximum was found, indices being positions in the spatial axes of a plane:
//   max_pool_dx    dx[indices[o]] += dy[o]              max_unpool      y[indices[o]] = x[o], the last o of a position; else 0
//   max_unpool_dx  dx[o] = dy[indices[o]] if o is the last of its position, else 0
//
// Method    every index is checked before anything is written, then plane by plane.
// Numerics  sums in the order of dy; the others copy.
// Threads   by planes: no two threads write to one element.
#include "core/check.h"
#include "core/pooling.h"
#include "ops/ops.h"
#include "simd/onward.h"

namespace tw::TW_ISA {
namespace {

Status no_memory() { return fail(Status::memory, "", "no memory for a plane; want a smaller shape"); }

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
            // Negative where an index is, or where it is more than the last position.
            uint64_t signs = 0;
            const uint64_t last = static_cast<uint64_t>(w.plane_size - 1);
            if (step == 1)
                for (int64_t o = 0; o < n; ++o)
                    signs |= static_cast<uint64_t>(row[o]) | (last - static_cast<uint64_t>(row[o]));
            else
                for (int64_t o = 0; o < n; ++o)
                    signs |= static_cast<uint64_t>(row[o * step]) | (last - static_cast<uint64_t>(row[o * step]));
            for (int64_t o = 0; signs >> 63 && o < n; ++o)
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

// Calls body(results of a row, its indices) for the rows of a plane.
template <class T, class Row>
TW_INLINE void each_row(const Windows& w, const Windows& wi, T* small, const int64_t* indices, int64_t plane,
                        const Row& body) {
    for (int64_t outer = 0; outer < w.axis[0].out; ++outer)
        for (int64_t inner = 0; inner < w.axis[1].out; ++inner)
            body(small_row(w, small, plane, outer, inner), small_row(wi, indices, plane, outer, inner));
}

// While a plane is worked on row by row the next one is asked for, a share with each row.
template <int kWrites, class T>
struct NextPlane {
    const char* at;
    int64_t share;
    static NextPlane of(const Windows& w, const T* x, int64_t plane) {
        const int64_t rows = w.axis[0].out * w.axis[1].out, bytes = w.plane_size * static_cast<int64_t>(sizeof(T));
        return {reinterpret_cast<const char*>(x + wide_plane(w, min_of(plane + 1, w.planes - 1))),
                is_dense(w) ? ceil_div(bytes, 64 * rows) * 64 : 0};
    }
    void ask() {
        for (int64_t i = 0; i < share; i += 64) __builtin_prefetch(at + i, kWrites);
        at += share;
    }
};

template <int64_t N>
struct Known {
    static constexpr int64_t value = N;
};
struct Step {
    int64_t value;
};

// One row of values. A function of its own: among its callers' variables the loop would live on the stack.
template <bool kSums, class W, class T, class G, class I>
__attribute__((noinline)) void scatter_row(W* to, int64_t size, const T* g, const int64_t* index, int64_t n, G g_step,
                                           I index_step) {
    for (int64_t o = 0; o < n; ++o) {
        const int64_t at = index[o * index_step.value];
        if (!inside(at, size)) continue;
        const W v = widened(g[o * g_step.value]);
        to[at] = kSums ? to[at] + v : v;
    }
}

// Sums, or the last value, of each position. Every index is looked at again, since another thread may write to the
// array meanwhile.
template <bool kSums, class T>
Status scatter(const Windows& w, const Windows& wi, T* dx, const T* dy, const int64_t* indices) {
    TW_TRY(check_indices(wi, indices));
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    typedef Wide<T> W;
    const W zero = 0;
    const bool dense = is_dense(w) && !kIsNarrow<T>;
    const int64_t group = max_of(1, kChunkElements / w.plane_size);
    bool enough = true;
    parallel(ceil_div(w.planes, group), [&](int64_t chunk) {
        Scratch scratch(dense ? 0 : static_cast<size_t>(w.plane_size) * sizeof(W));
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t plane = chunk * group; plane < min_of(chunk * group + group, w.planes); ++plane) {
            W* const to = dense ? reinterpret_cast<W*>(dx + wide_plane(w, plane)) : scratch.as<W>();
            write_row(to, &zero, 0, w.plane_size);
            NextPlane<1, T> next = NextPlane<1, T>::of(w, dx, plane);
            each_row(w, wi, dy, indices, plane, [&](const T* g, const int64_t* index) {
                next.ask();
                if (a.small_step == 1 && wi.axis[2].small_step == 1)
                    scatter_row<kSums>(to, w.plane_size, g, index, a.out, Known<1>{}, Known<1>{});
                else
                    scatter_row<kSums>(to, w.plane_size, g, index, a.out, Step{a.small_step},
                                       Step{wi.axis[2].small_step});
            });
            for (int64_t r = 0; !dense && r < d.size * h.size; ++r)
                copy_row(dx + wide_plane(w, plane) + r / h.size * d.wide_step + r % h.size * h.wide_step, a.wide_step,
                         to + r * a.size, 1, a.size);
        }
    });
    return enough ? Status::ok : no_memory();
}

// One row of results, last to first: a value where its position is met for the first time, zero elsewhere.
template <class T, class S, class I>
__attribute__((noinline)) void gather_row(T* to, const T* from, uint8_t* met, int64_t size, const int64_t* index,
                                          int64_t n, S step, I index_step) {
    for (int64_t o = n - 1; o >= 0; --o) {
        const int64_t at = index[o * index_step.value];
        const bool first = inside(at, size) && !met[at];
        to[o * step.value] = first ? from[at] : T{};
        if (first) met[at] = 1;
    }
}

template <class T>
Status gather(const Windows& w, const Windows& wi, const T* dy, T* dx, const int64_t* indices) {
    TW_TRY(check_indices(wi, indices));
    const PoolAxis &d = w.axis[0], &h = w.axis[1], &a = w.axis[2];
    const bool dense = is_dense(w), neighbours = a.small_step == 1 && wi.axis[2].small_step == 1;
    const int64_t group = max_of(1, kChunkElements / w.plane_size);
    const size_t positions = static_cast<size_t>(w.plane_size);
    bool enough = true;
    parallel(ceil_div(w.planes, group), [&](int64_t chunk) {
        Scratch met_scratch(positions), plane_scratch(dense ? 0 : positions * sizeof(T));
        uint8_t* const met = met_scratch.as<uint8_t>();
        T* const copy = plane_scratch.as<T>();
        if (!met || !copy) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t plane = chunk * group; plane < min_of(chunk * group + group, w.planes); ++plane) {
            __builtin_memset(met, 0, positions);
            const T* const from = dense ? dy + wide_plane(w, plane) : copy;
            for (int64_t r = 0; !dense && r < d.size * h.size; ++r)
                copy_row(copy + r * a.size, 1,
                         dy + wide_plane(w, plane) + r / h.size * d.wide_step + r % h.size * h.wide_step, a.wide_step,
                         a.size);
            NextPlane<0, T> next = NextPlane<0, T>::of(w, dy, plane);
            for (int64_t r = d.out * h.out - 1; r >= 0; --r) {
                next.ask();
                T* const to = small_row(w, dx, plane, r / h.out, r % h.out);
                const int64_t* const index = small_row(wi, indices, plane, r / h.out, r % h.out);
                if (neighbours)
                    gather_row(to, from, met, w.plane_size, index, a.out, Known<1>{}, Known<1>{});
                else
                    gather_row(to, from, met, w.plane_size, index, a.out, Step{a.small_step},
                               Step{wi.axis[2].small_step});
            }
        }
    });
    return enough ? Status::ok : no_memory();
}

// ---- the ops ----------------------------------------------------------------------------------------------------------------

template <bool kSums>
Status run_scatter(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const WindowAttrs none = {};
    const Windows w = windows_over(c.out[0], c.in[0], none), wi = windows_over(c.out[0], c.in[1], none);
    return for_floating(c.in[0].dtype, [&]<class T>() {
        return scatter<kSums>(w, wi, c.out[0].as<T>(), c.in[0].as<const T>(), c.in[1].as<const int64_t>());
    });
}
Status run_gather(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const WindowAttrs none = {};
    const Windows w = windows_over(c.in[0], c.out[0], none), wi = windows_over(c.in[0], c.in[1], none);
    return for_floating(c.in[0].dtype, [&]<class T>() {
        return gather(w, wi, c.in[0].as<const T>(), c.out[0].as<T>(), c.in[1].as<const int64_t>());
    });
}

Status want_indices(const View& indices) {
    if (indices.dtype == DType::i64) return Status::ok;
    return fail(Status::dtype, "indices", "indices has dtype %s; want int64", name_of(indices.dtype));
}

Status infer_scatter(Call& c, Inferred& r) {
    const View &x = c.in[0], &indices = c.in[1];
    const char* name = c.op->operands[0].name;
    TW_TRY(want_planes(x, name));
    TW_TRY(want_indices(indices));
    TW_TRY(want_shape_of(indices, "indices", x, name));
    TW_TRY(resolve_integers(c.attr[0], "shape", x.ndim - 2, 1));
    r.n_out = 1;
    r.out[0] = planes_like(x, x.ndim - 2, c.attr[0].list);
    return Status::ok;
}

Status infer_gather(Call& c, Inferred& r) {
    const View &dy = c.in[0], &indices = c.in[1];
    TW_TRY(want_planes(dy, "dy"));
    TW_TRY(want_indices(indices));
    if (indices.ndim != dy.ndim || indices.shape[0] != dy.shape[0] || indices.shape[1] != dy.shape[1])
        return fail(Status::shape, "indices", "indices has shape %s; want (N, C, ...) as dy, which has shape %s",
                    shape_text(indices).text, shape_text(dy).text);
    for (int d = 2; d < dy.ndim; ++d)
        if (dy.shape[d] < 1)
            return fail(Status::shape, "dy", "dy has no elements along spatial axis %d; want at least one", d - 2);
    r.n_out = 1;
    r.out[0] = planes_like(dy, dy.ndim - 2, indices.shape + 2);
    return Status::ok;
}

constexpr Operand kDyIndices[] = {{"dy"}, {"indices"}};
constexpr Operand kXIndices[] = {{"x"}, {"indices"}};
constexpr AttrSpec kShape[] = {{.name = "shape", .kind = AttrKind::integers, .required = true}};

}  // namespace

extern const Entry op_max_pool_dx = {"max_pool_dx", kDyIndices, 2, kShape, 1, infer_scatter, run_scatter<true>};
extern const Entry op_max_unpool = {"max_unpool", kXIndices, 2, kShape, 1, infer_scatter, run_scatter<false>};
extern const Entry op_max_unpool_dx = {"max_unpool_dx", kDyIndices, 2, nullptr, 0, infer_gather, run_gather};

}  // namespace tw::TW_ISA
