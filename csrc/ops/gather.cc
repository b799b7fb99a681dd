// Elements by index, and elements put where indices say; indices below 0 count from the end.
//
//   gather            y[.., k.., ..] = x[.., indices[k..], ..]           along one axis
//   gather_elements   y[i, j, ..] = x[i, indices[i, j, ..], ..]           along one axis
//   gather_nd         y[k.., ..] = x[indices[k.., 0], indices[k.., 1], ..]
//   scatter_elements, scatter_nd   the same places of a copy of x take updates, or are added to, multiplied, ...
//
// Method    indices are checked and copied first, so that nothing is written if one is wrong. Slices are copied as rows.
// Numerics  moves are exact. Updates of one place come in C order, so its value is defined; 16-bit floats are updated
//           in float, and rounded once.
// Threads   gathers: slices of the result. Scatters: one thread, which is what keeps their order.
// Source    ONNX Gather-13, GatherElements-13, GatherND-13, ScatterElements-18, ScatterND-18.
#include "core/axes.h"
#include "core/check.h"
#include "core/walk.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

enum Reduction { kNone, kAdd, kMul, kMax, kMin };

Status no_memory(int64_t n) {
    return fail(Status::memory, "", "no memory for %lld indices; want fewer", static_cast<long long>(n));
}

Status want_indices(const View& v) {
    if (v.dtype == DType::i32 || v.dtype == DType::i64) return Status::ok;
    return fail(Status::dtype, "indices", "indices has dtype %s; want int32 or int64", name_of(v.dtype));
}

Axes axes_of(const View& v, int first, int last) {
    Axes a{};
    a.count = 1;
    for (int d = first; d < last; ++d) append_axis(a, v.shape[d], v.stride[d]);
    return a;
}

// Indices in C order, those below 0 counted from the end of axis `size`, or, of tuples, of the axes from 0 on.
Status read_indices(const View& indices, const int64_t* size, int per_tuple, int64_t* to) {
    const Axes a = axes_of(indices, 0, indices.ndim);
    const int64_t count = numel(indices);
    for (int64_t i = 0; i < count;) {
        const int64_t run = min_of(run_of(a, i), count - i), step = step_of(a), first = offset_of(a, i);
        for (int64_t k = 0; k < run; ++k, ++i) {
            const int64_t at = first + k * step, n = size[i % per_tuple];
            const int64_t index = indices.dtype == DType::i32 ? indices.as<int32_t>()[at] : indices.as<int64_t>()[at];
            if (index < -n || index >= n)
                return fail(Status::index, "indices", "indices has %lld at position %lld; want %lld to %lld",
                            static_cast<long long>(index), static_cast<long long>(i), static_cast<long long>(-n),
                            static_cast<long long>(n - 1));
            to[i] = index < 0 ? index + n : index;
        }
    }
    return Status::ok;
}

// body.operator()<T>() for an unsigned T of the element's size.
template <class Body>
void for_size(DType dtype, const Body& body) {
    switch (item_size(dtype)) {
        case 1: return body.template operator()<uint8_t>();
        case 2: return body.template operator()<uint16_t>();
        case 4: return body.template operator()<uint32_t>();
        default: return body.template operator()<uint64_t>();
    }
}

// count elements along two index groups of one size.
template <class T>
TW_INLINE void copy_slice(T* to, const Axes& ta, const T* from, const Axes& fa, int64_t count) {
    for (int64_t i = 0; i < count;) {
        const int64_t run = min_of(count - i, min_of(run_of(ta, i), run_of(fa, i)));
        copy_row(to + offset_of(ta, i), step_of(ta), from + offset_of(fa, i), step_of(fa), run);
        i += run;
    }
}

// The whole of x into y, which has its shape.
void copy_whole(const View& y, const View& x) {
    const View* views[] = {&y, &x};
    const Walk w = walk_over(views, 2, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        copy_items(at[0], w.stride[0], at[1], w.stride[1], w.size[0], count);
    });
}

// ---- gather -----------------------------------------------------------------------------------------------------------

Status infer_gather(Call& c, Inferred& r) {
    const View &x = c.in[0], &indices = c.in[1];
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    TW_TRY(want_indices(indices));
    TW_TRY(resolve_axis(c.attr[0], "axis", x.ndim));
    TW_TRY(want_ndim(indices, "indices", 0, kMaxDims + 1 - x.ndim));
    const int axis = static_cast<int>(c.attr[0].i);
    View y = result(x.dtype, x.ndim - 1 + indices.ndim, x.shape);
    for (int d = 0; d < indices.ndim; ++d) y.shape[axis + d] = indices.shape[d];
    for (int d = axis + 1; d < x.ndim; ++d) y.shape[d - 1 + indices.ndim] = x.shape[d];
    r.n_out = 1;
    r.out[0] = y;
    return Status::ok;
}

template <class T>
void gather(const Call& c, const int64_t* index, int64_t count) {
    const View &x = c.in[0], &y = c.out[0];
    const int axis = static_cast<int>(c.attr[0].i), after = axis + c.in[1].ndim;
    const Axes xo = axes_of(x, 0, axis), xi = axes_of(x, axis + 1, x.ndim);
    const Axes yo = axes_of(y, 0, axis), yk = axes_of(y, axis, after), yi = axes_of(y, after, y.ndim);
    const int64_t step = x.stride[axis], per_chunk = max_of(1, kChunkElements / max_of(1, xi.count));
    const int64_t slices = xo.count * count;
    parallel(ceil_div(slices, per_chunk), [&](int64_t chunk) {
        for (int64_t s = chunk * per_chunk, last = min_of(slices, s + per_chunk); s < last; ++s) {
            const int64_t o = s / count, k = s - o * count;
            copy_slice(y.as<T>() + offset_of(yo, o) + offset_of(yk, k), yi,
                       x.as<const T>() + offset_of(xo, o) + index[k] * step, xi, xi.count);
        }
    });
}

Status run_gather(const Call& c) {
    const int64_t count = numel(c.in[1]);
    Scratch copy(static_cast<size_t>(count + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory(count);
    TW_TRY(read_indices(c.in[1], &c.in[0].shape[c.attr[0].i], 1, copy.as<int64_t>()));
    if (numel(c.out[0]) == 0) return Status::ok;
    for_size(c.in[0].dtype, [&]<class T>() { gather<T>(c, copy.as<int64_t>(), count); });
    return Status::ok;
}

// ---- gather_elements, scatter_elements -----------------------------------------------------------------------------------

Status check_elements(const View& x, const View& indices, Attr& axis) {
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    TW_TRY(want_indices(indices));
    TW_TRY(want_ndim(indices, "indices", x.ndim, x.ndim));
    TW_TRY(resolve_axis(axis, "axis", x.ndim));
    for (int d = 0; d < x.ndim; ++d)
        if (d != axis.i && indices.shape[d] > x.shape[d])
            return fail(Status::shape, "indices",
                        "indices has shape %s and x has %s; want no larger sizes but along axis %d",
                        shape_text(indices).text, shape_text(x).text, static_cast<int>(axis.i));
    return Status::ok;
}

Status infer_gather_elements(Call& c, Inferred& r) {
    TW_TRY(check_elements(c.in[0], c.in[1], c.attr[0]));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[1].ndim, c.in[1].shape);
    return Status::ok;
}

// Where the element of a place of `indices` lies in x, its index along the axis apart.
Axes axes_beside(const View& x, const View& indices, int axis) {
    Axes a{};
    a.count = 1;
    for (int d = 0; d < x.ndim; ++d) append_axis(a, indices.shape[d], d == axis ? 0 : x.stride[d]);
    return a;
}

Status run_gather_elements(const Call& c) {
    const View &x = c.in[0], &indices = c.in[1], &y = c.out[0];
    const int axis = static_cast<int>(c.attr[0].i);
    const int64_t count = numel(indices);
    Scratch copy(static_cast<size_t>(count + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory(count);
    const int64_t* const index = copy.as<int64_t>();
    TW_TRY(read_indices(indices, &x.shape[axis], 1, copy.as<int64_t>()));
    const Axes beside = axes_beside(x, indices, axis), to = axes_of(y, 0, y.ndim);
    for_size(x.dtype, [&]<class T>() {
        parallel(ceil_div(count, kChunkElements), [&](int64_t chunk) {
            for (int64_t i = chunk * kChunkElements, last = min_of(count, i + kChunkElements); i < last; ++i)
                y.as<T>()[offset_of(to, i)] = x.as<const T>()[offset_of(beside, i) + index[i] * x.stride[axis]];
        });
    });
    return Status::ok;
}

// ---- what an update does to an element ------------------------------------------------------------------------------------

template <class T>
TW_INLINE T updated(int reduction, T old, T by) {
    switch (reduction) {
        case kAdd:
            if constexpr (kIsFloating<T>) return old + by;
            return static_cast<T>(static_cast<uint64_t>(old) + static_cast<uint64_t>(by));
        case kMul:
            if constexpr (kIsFloating<T>) return old * by;
            return static_cast<T>(static_cast<uint64_t>(old) * static_cast<uint64_t>(by));
        case kMax: return old > by || old != old ? old : by;
        case kMin: return old < by || old != old ? old : by;
        default: return by;
    }
}
template <class P, class T>
TW_INLINE void update(int reduction, P& place, T by) {
    if constexpr (__is_same(P, T))
        place = updated(reduction, place, by);
    else
        place = updated(reduction, place, widened(by));
}

// What is updated: y itself, or its numbers in float, 16-bit ones under a reduction.
class Places {
public:
    Places(const View& y, const View& x, int reduction)
        : y_(y),
          wide_(y),
          narrow_(reduction != kNone && (y.dtype == DType::f16 || y.dtype == DType::bf16)),
          room_(narrow_ ? static_cast<size_t>(numel(y) + 1) * sizeof(float) : 0) {
        if (!narrow_) {
            copy_whole(y, x);
            return;
        }
        wide_.data = room_.as<float>();
        wide_.dtype = DType::f32;
        set_contiguous(wide_);
        if (!wide_.data) return;
        for_narrow([&]<class T>() { convert<float, T>(wide_, x); });
    }
    bool enough() const { return !narrow_ || wide_.data; }
    const View& view() const { return wide_; }
    void finish() {
        if (narrow_) for_narrow([&]<class T>() { convert<T, float>(y_, wide_); });
    }

private:
    template <class Body>
    void for_narrow(const Body& body) {
        y_.dtype == DType::f16 ? body.template operator()<f16>() : body.template operator()<bf16>();
    }
    template <class To, class From>
    static void convert(const View& to, const View& from) {
        const View* views[] = {&to, &from};
        const Walk w = walk_over(views, 2, to.ndim, to.shape);
        for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
            copy_row(reinterpret_cast<To*>(at[0]), w.stride[0], reinterpret_cast<const From*>(at[1]), w.stride[1],
                     count);
        });
    }

    const View y_;
    View wide_;
    const bool narrow_;
    Scratch room_;
};

// body.operator()<T>() for the number type of a reduction, a type of its size where elements only move.
template <class Body>
void for_update(DType dtype, int reduction, const Body& body) {
    if (reduction == kNone) return for_size(dtype, body);
    switch (dtype) {
        case DType::i8: return body.template operator()<int8_t>();
        case DType::u8: return body.template operator()<uint8_t>();
        case DType::i16: return body.template operator()<int16_t>();
        case DType::u16: return body.template operator()<uint16_t>();
        case DType::i32: return body.template operator()<int32_t>();
        case DType::u32: return body.template operator()<uint32_t>();
        case DType::i64: return body.template operator()<int64_t>();
        case DType::u64: return body.template operator()<uint64_t>();
        default: return for_floating(dtype, body);
    }
}

Status check_update(const Call& c, int reduction) {
    const View &x = c.in[0], &updates = c.in[2];
    TW_TRY(want_dtype_of(updates, "updates", x, "x"));
    if (reduction == kNone || is_float(x.dtype) || is_integer(x.dtype)) return Status::ok;
    return fail(Status::dtype, "x", "x has dtype %s; want a float or an integer of 8 to 64 bits for a reduction",
                name_of(x.dtype));
}

Status infer_scatter_elements(Call& c, Inferred& r) {
    TW_TRY(check_elements(c.in[0], c.in[1], c.attr[0]));
    TW_TRY(check_update(c, c.attr[1].choice));
    TW_TRY(want_shape_of(c.in[2], "updates", c.in[1], "indices"));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}

Status run_scatter_elements(const Call& c) {
    const View &indices = c.in[1], &updates = c.in[2], &y = c.out[0];
    const int axis = static_cast<int>(c.attr[0].i), reduction = c.attr[1].choice;
    const int64_t count = numel(indices);
    Scratch copy(static_cast<size_t>(count + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory(count);
    const int64_t* const index = copy.as<int64_t>();
    TW_TRY(read_indices(indices, &y.shape[axis], 1, copy.as<int64_t>()));
    Places places(y, c.in[0], reduction);
    if (!places.enough()) return no_memory(count);
    const View& to = places.view();
    const Axes beside = axes_beside(to, indices, axis), from = axes_of(updates, 0, updates.ndim);
    for_update(y.dtype, reduction, [&]<class T>() {
        for (int64_t i = 0; i < count; ++i)
            update(reduction, to.as<Wide<T>>()[offset_of(beside, i) + index[i] * to.stride[axis]],
                   updates.as<const T>()[offset_of(from, i)]);
    });
    places.finish();
    return Status::ok;
}

// ---- gather_nd, scatter_nd --------------------------------------------------------------------------------------------------

// indices (.., K) name slices of x along its first K axes.
Status check_tuples(const View& x, const View& indices, int& k) {
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    TW_TRY(want_indices(indices));
    TW_TRY(want_ndim(indices, "indices", 1, kMaxDims));
    const int64_t last = indices.shape[indices.ndim - 1];
    if (last < 1 || last > x.ndim)
        return fail(Status::shape, "indices", "indices has shape %s; want a last axis of 1 to %d, the dimensions of x",
                    shape_text(indices).text, x.ndim);
    k = static_cast<int>(last);
    if (indices.ndim - 1 + x.ndim - k <= kMaxDims) return Status::ok;
    return fail(Status::shape, "indices", "indices has shape %s and x has %s; want at most %d dimensions of the result",
                shape_text(indices).text, shape_text(x).text, kMaxDims);
}

// The shape of the slices that indices name.
View slices_of(const View& x, const View& indices, int k) {
    View y = result(x.dtype, indices.ndim - 1 + x.ndim - k, indices.shape);
    for (int d = k; d < x.ndim; ++d) y.shape[indices.ndim - 1 + d - k] = x.shape[d];
    return y;
}

Status infer_gather_nd(Call& c, Inferred& r) {
    int k = 0;
    TW_TRY(check_tuples(c.in[0], c.in[1], k));
    r.n_out = 1;
    r.out[0] = slices_of(c.in[0], c.in[1], k);
    return Status::ok;
}

TW_INLINE int64_t place_of(const View& x, const int64_t* tuple, int k) {
    int64_t at = 0;
    for (int d = 0; d < k; ++d) at += tuple[d] * x.stride[d];
    return at;
}

Status run_gather_nd(const Call& c) {
    const View &x = c.in[0], &indices = c.in[1], &y = c.out[0];
    const int k = static_cast<int>(indices.shape[indices.ndim - 1]), lead = indices.ndim - 1;
    const int64_t tuples = numel(indices) / k;
    Scratch copy(static_cast<size_t>(tuples * k + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory(tuples * k);
    const int64_t* const index = copy.as<int64_t>();
    TW_TRY(read_indices(indices, x.shape, k, copy.as<int64_t>()));
    if (numel(y) == 0) return Status::ok;
    const Axes yk = axes_of(y, 0, lead), yi = axes_of(y, lead, y.ndim), xi = axes_of(x, k, x.ndim);
    const int64_t per_chunk = max_of(1, kChunkElements / max_of(1, xi.count));
    for_size(x.dtype, [&]<class T>() {
        parallel(ceil_div(tuples, per_chunk), [&](int64_t chunk) {
            for (int64_t t = chunk * per_chunk, last = min_of(tuples, t + per_chunk); t < last; ++t)
                copy_slice(y.as<T>() + offset_of(yk, t), yi, x.as<const T>() + place_of(x, index + t * k, k), xi,
                           xi.count);
        });
    });
    return Status::ok;
}

Status infer_scatter_nd(Call& c, Inferred& r) {
    int k = 0;
    TW_TRY(check_tuples(c.in[0], c.in[1], k));
    TW_TRY(check_update(c, c.attr[0].choice));
    const View slices = slices_of(c.in[0], c.in[1], k);
    TW_TRY(want_shape(c.in[2], "updates", slices.ndim, slices.shape));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}

Status run_scatter_nd(const Call& c) {
    const View &indices = c.in[1], &updates = c.in[2], &y = c.out[0];
    const int k = static_cast<int>(indices.shape[indices.ndim - 1]), reduction = c.attr[0].choice;
    const int64_t tuples = numel(indices) / k;
    Scratch copy(static_cast<size_t>(tuples * k + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory(tuples * k);
    const int64_t* const index = copy.as<int64_t>();
    TW_TRY(read_indices(indices, y.shape, k, copy.as<int64_t>()));
    Places places(y, c.in[0], reduction);
    if (!places.enough()) return no_memory(tuples * k);
    const View& target = places.view();
    const Axes from = axes_of(updates, 0, updates.ndim), inner = axes_of(target, k, target.ndim);
    for_update(y.dtype, reduction, [&]<class T>() {
        for (int64_t t = 0; t < tuples; ++t) {
            Wide<T>* const to = target.as<Wide<T>>() + place_of(target, index + t * k, k);
            for (int64_t i = 0; i < inner.count; ++i)
                update(reduction, to[offset_of(inner, i)], updates.as<const T>()[offset_of(from, t * inner.count + i)]);
        }
    });
    places.finish();
    return Status::ok;
}

constexpr Operand kXIndices[] = {{"x"}, {"indices"}};
constexpr Operand kScatter[] = {{"x"}, {"indices"}, {"updates"}};
constexpr AttrSpec kAxis[] = {{.name = "axis", .kind = AttrKind::integer, .i = 0}};
constexpr const char* kReductions = "none|add|mul|max|min";
constexpr AttrSpec kAxisReduction[] = {
    {.name = "axis", .kind = AttrKind::integer, .i = 0},
    {.name = "reduction", .kind = AttrKind::choice, .choices = kReductions},
};
constexpr AttrSpec kReduction[] = {{.name = "reduction", .kind = AttrKind::choice, .choices = kReductions}};

}  // namespace

extern const Entry op_gather = {"gather", kXIndices, 2, kAxis, 1, infer_gather, run_gather};
extern const Entry op_gather_elements = {"gather_elements",     kXIndices,          2, kAxis, 1,
                                         infer_gather_elements, run_gather_elements};
extern const Entry op_gather_nd = {"gather_nd", kXIndices, 2, nullptr, 0, infer_gather_nd, run_gather_nd};
extern const Entry op_scatter_elements = {"scatter_elements",  kScatter, 3, kAxisReduction, 2, infer_scatter_elements,
                                          run_scatter_elements};
extern const Entry op_scatter_nd = {"scatter_nd", kScatter, 3, kReduction, 1, infer_scatter_nd, run_scatter_nd};

}  // namespace tw::TW_ISA
