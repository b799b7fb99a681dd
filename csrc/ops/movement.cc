// Moving elements: concat, pad and expand.
//
// Method    every op is copies and fills of strided views, by the size of an element; merged rows go to memcpy where both
//           sides are contiguous.
// Numerics  exact. What pad fills with is converted as cast does it.
// Threads   pieces of kChunkElements; elements are independent.
#include "core/check.h"
#include "core/number.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// ---- copies and fills of views ------------------------------------------------------------------------------------------

template <class T>
void copy_as(const View& to, const View& from) {
    const View* views[] = {&to, &from};
    const Walk w = walk_over(views, 2, to.ndim, to.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        copy_row(reinterpret_cast<T*>(at[0]), w.stride[0], reinterpret_cast<const T*>(at[1]), w.stride[1], count);
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

// The border is filled axis by axis, each slab within what the axes before it left as interior.
Status run_pad(const Call& c) {
    const View& x = c.in[0];
    const Attr& pads = c.attr[0];
    uint64_t bits = 0;
    put_element(c.attr[1].f, x.dtype, &bits);
    View value{};
    value.dtype = x.dtype;
    value.data = &bits;
    View inside = c.out[0];
    for (int d = 0; d < x.ndim; ++d) {
        const int64_t before = pads.list[2 * d], after = pads.list[2 * d + 1];
        copy_view(slice(inside, d, 0, before), value);
        copy_view(slice(inside, d, before + x.shape[d], after), value);
        inside = slice(inside, d, before, x.shape[d]);
    }
    copy_view(inside, x);
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

extern const OpDef op_concat = {"concat", kArrays, 1, kAxis, 1, infer_concat, run_concat};
extern const OpDef op_pad = {"pad", kX, 1, kPads, 2, infer_pad, run_pad};
extern const OpDef op_expand = {"expand", kX, 1, kShape, 1, infer_expand, run_expand};

}  // namespace tw::TW_ISA
