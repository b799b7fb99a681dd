// Moving elements: concat, pad and expand.
//
// Method    every op is copies and fills of strided views, by the size of an element; merged rows go to memcpy where both
//           sides are contiguous. pad writes each row of its result once, border and all.
// Numerics  exact. What pad fills with is converted as cast does it.
// Threads   pieces of kChunkElements; elements are independent.
#include "core/check.h"
#include "core/number.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/onward.h"

namespace tw::TW_ISA {
namespace {

// ---- copies and fills of views ------------------------------------------------------------------------------------------

template <class T>
void copy_as(const View& to, const View& from) {
    const View* views[] = {&to, &from};
    const Walk w = walk_over(views, 2, to.ndim, to.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* const y = reinterpret_cast<T*>(at[0]);
        const T* const x = reinterpret_cast<const T*>(at[1]);
        if (w.stride[0] == 1 && (w.stride[1] == 1 || w.stride[1] == 0))
            write_row(y, x, w.stride[1], count);
        else
            copy_row(y, w.stride[0], x, w.stride[1], count);
    });
}

// `from` is broadcast to the shape of `to`.
void copy_view(const View& to, const View& from) {
    switch (item_size(to.dtype)) {
        case 1: return copy_as<uint8_t>(to, from);
        case 2: return copy_as<uint16_t>(to, from);
        case 4: return copy_as<uint32_t>(to, from);
        default: return copy_as<uint64_t>(to, from);
    }
}

// The part [start, start + size) of v along an axis.
View slice(const View& v, int axis, int64_t start, int64_t size) {
    View part = v;
    part.shape[axis] = size;
    part.data = v.as<char>() + start * v.stride[axis] * item_size(v.dtype);
    return part;
}

// ---- concat ---------------------------------------------------------------------------------------------------------------

Status infer_concat(Call& c, Inferred& r) {
    const View& first = c.in[0];
    if (first.ndim == 0) return fail(Status::shape, "arrays", "arrays[0] has shape (); want at least one dimension");
    TW_TRY(resolve_axis(c.attr[0], "axis", first.ndim));
    const int64_t axis = c.attr[0].i;
    View y = result(first.dtype, first.ndim, first.shape);
    for (int k = 1; k < c.n_in; ++k) {
        const View& x = c.in[k];
        if (x.dtype != first.dtype)
            return fail(Status::dtype, "arrays", "arrays[%d] has dtype %s but arrays[0] has %s; want the same", k,
                        name_of(x.dtype), name_of(first.dtype));
        bool fits = x.ndim == first.ndim;
        for (int d = 0; fits && d < x.ndim; ++d) fits = d == axis || x.shape[d] == first.shape[d];
        if (!fits)
            return fail(Status::shape, "arrays",
                        "arrays[%d] has shape %s but arrays[0] has %s; want the same except along axis %lld", k,
                        shape_text(x).text, shape_text(first).text, static_cast<long long>(axis));
        if (__builtin_add_overflow(y.shape[axis], x.shape[axis], &y.shape[axis]))
            return fail(Status::shape, "arrays",
                        "arrays[%d] has shape %s, too large to append; want fewer than 2^40 elements", k,
                        shape_text(x).text);
    }
    r.n_out = 1;
    r.out[0] = y;
    return Status::ok;
}

Status run_concat(const Call& c) {
    const int axis = static_cast<int>(c.attr[0].i);
    int64_t start = 0;
    for (int k = 0; k < c.n_in; ++k) {
        const int64_t size = c.in[k].shape[axis];
        copy_view(slice(c.out[0], axis, start, size), c.in[k]);
        start += size;
    }
    return Status::ok;
}

// ---- expand ---------------------------------------------------------------------------------------------------------------

Status infer_expand(Call& c, Inferred& r) {
    const View& x = c.in[0];
    Attr& shape = c.attr[0];
    if (shape.n > kMaxDims)
        return fail(Status::attr, "shape", "shape=%s has %d sizes; want at most %d", attr_text(shape).text, shape.n,
                    kMaxDims);
    for (int d = 0; d < shape.n; ++d)
        if (shape.list[d] < 0)
            return fail(Status::attr, "shape", "shape=%s; want sizes of 0 or more", attr_text(shape).text);
    shape.is_scalar = false;
    bool fits = x.ndim <= shape.n;
    for (int d = 1; fits && d <= x.ndim; ++d) {
        const int64_t size = x.shape[x.ndim - d];
        fits = size == 1 || size == shape.list[shape.n - d];
    }
    if (!fits)
        return fail(Status::shape, "x", "x has shape %s and shape=%s; want sizes that are equal or 1 in x",
                    shape_text(x).text, attr_text(shape).text);
    r.n_out = 1;
    r.out[0] = result(x.dtype, shape.n, shape.list);
    return Status::ok;
}

Status run_expand(const Call& c) {
    copy_view(c.out[0], c.in[0]);
    return Status::ok;
}

// ---- pad ------------------------------------------------------------------------------------------------------------------

Status infer_pad(Call& c, Inferred& r) {
    const View& x = c.in[0];
    Attr& pads = c.attr[0];
    if (pads.choice) return fail(Status::attr, "pads", "pads is a string; want an int, a tuple of ints or of pairs");
    for (int k = 0; k < pads.n; ++k)
        if (pads.list[k] >= kMaxSize)
            return fail(Status::shape, "pads", "pads=%s would give more than 2^40 elements; want fewer",
                        attr_text(pads).text);
    TW_TRY(resolve_padding(pads, "pads", x.ndim));
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    for (int d = 0; d < x.ndim; ++d)
        if (__builtin_add_overflow(r.out[0].shape[d], pads.list[2 * d] + pads.list[2 * d + 1], &r.out[0].shape[d]))
            return fail(Status::shape, "x", "x has shape %s, too large to pad; want fewer than 2^40 elements",
                        shape_text(x).text);
    return Status::ok;
}

// One axis of y: x stands at [before, before + inside).
struct PaddedAxis {
    int64_t before, inside, size, from, to;  // strides of x and y
};

// Fills [begin, end) of a row, x where it lies and the value around it.
template <class T>
TW_INLINE void pad_row(const PaddedAxis& a, T* to, const T* from, int64_t begin, int64_t end, T value) {
    const int64_t first = min_of(max_of(a.before, begin), end), last = max_of(first, min_of(a.before + a.inside, end));
    for (int64_t i = begin; i < first; ++i) to[i * a.to] = value;
    copy_row(to + first * a.to, a.to, from + (first - a.before) * a.from, a.from, last - first);
    for (int64_t i = last; i < end; ++i) to[i * a.to] = value;
}

// Every row of y once; the last of the axes is the row.
template <class T>
void pad_rows(const PaddedAxis* axis, int outer, T* y, const T* x, T value) {
    const PaddedAxis& a = axis[outer];
    const int64_t part = min_of(a.size, kChunkElements), parts = ceil_div(a.size, part);
    int64_t rows = 1;
    for (int d = 0; d < outer; ++d) rows *= axis[d].size;
    const int64_t group = max_of(1, kChunkElements / part);
    parallel(ceil_div(rows * parts, group), [&](int64_t chunk) {
        for (int64_t k = chunk * group; k < min_of(chunk * group + group, rows * parts); ++k) {
            const int64_t begin = k % parts * part, end = min_of(begin + part, a.size);
            T* to = y;
            const T* from = x;
            bool inside = true;
            for (int64_t d = outer - 1, row = k / parts; d >= 0; row /= axis[d--].size) {
                const int64_t at = row % axis[d].size, in_x = at - axis[d].before;
                to += at * axis[d].to;
                from += in_x * axis[d].from;
                inside &= in_x >= 0 && in_x < axis[d].inside;
            }
            if (inside)
                pad_row(a, to, from, begin, end, value);
            else
                copy_row(to + begin * a.to, a.to, &value, 0, end - begin);
        }
    });
}

// Axes without a border, or of size 1, join the next where both arrays allow it.
Status run_pad(const Call& c) {
    const View &x = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    const Attr& pads = c.attr[0];
    PaddedAxis axis[kMaxDims + 1];
    int n = 0;
    axis[0] = {0, 1, 1, 1, 1};
    for (int d = 0; d < x.ndim; ++d) {
        const PaddedAxis a = {pads.list[2 * d], x.shape[d], y.shape[d], x.stride[d], y.stride[d]};
        PaddedAxis& last = axis[n];
        const bool bare = a.size == a.inside;
        if (bare && a.size == 1 && d + 1 < x.ndim) continue;
        if (bare && last.from == a.inside * a.from && last.to == a.size * a.to)
            last = {last.before * a.size, last.inside * a.size, last.size * a.size, a.from, a.to};
        else if (last.size == 1 && last.before == 0 && last.inside == 1)
            last = a;
        else
            axis[++n] = a;
    }
    uint64_t bits = 0;
    put_element(c.attr[1].f, x.dtype, &bits);
    const auto run = [&]<class T>(T) {
        T value;
        __builtin_memcpy(&value, &bits, sizeof value);
        pad_rows(axis, n, y.as<T>(), x.as<const T>(), value);
    };
    switch (item_size(x.dtype)) {
        case 1: run(uint8_t{}); break;
        case 2: run(uint16_t{}); break;
        case 4: run(uint32_t{}); break;
        default: run(uint64_t{}); break;
    }
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kArrays[] = {{"arrays", Role::variadic}};
constexpr AttrSpec kAxis[] = {{.name = "axis", .kind = AttrKind::integer, .i = 0}};
constexpr AttrSpec kPads[] = {
    {.name = "pads", .kind = AttrKind::padding, .required = true},
    {.name = "value", .kind = AttrKind::real},
};
constexpr AttrSpec kShape[] = {{.name = "shape", .kind = AttrKind::integers, .required = true}};

}  // namespace

extern const Entry op_concat = {"concat", kArrays, 1, kAxis, 1, infer_concat, run_concat};
extern const Entry op_pad = {"pad", kX, 1, kPads, 2, infer_pad, run_pad};
extern const Entry op_expand = {"expand", kX, 1, kShape, 1, infer_expand, run_expand};

}  // namespace tw::TW_ISA
