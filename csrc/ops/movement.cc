// Moving elements: concat, pad, expand, and cast between any two element types.
//
// Method    every op is copies and fills of strided views; merged rows go to memcpy where both sides are contiguous.
//           cast runs over contiguous rows (strided ones pass through a small buffer); 16-bit floats widen to float32.
// Numerics  moves are exact. Casts to floats round once, half to even; floats to integers truncate, saturate, and take
//           NaN to 0; integers saturate; to bool everything but 0 is true.
// Threads   pieces of kChunkElements; elements are independent.
#include "core/check.h"
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

// ---- cast -----------------------------------------------------------------------------------------------------------------

struct boolean {
    uint8_t byte;
};

template <class T>
constexpr bool kIsHalf = __is_same(T, f16) || __is_same(T, bf16);

template <class To, class From>
TW_INLINE To float_as_integer(From x) {
    constexpr int bits = 8 * static_cast<int>(sizeof(To));
    constexpr bool is_signed = static_cast<To>(-1) < 0;
    constexpr From bound = static_cast<From>(is_signed ? uint64_t{1} << (bits - 1) : uint64_t{1} << (bits % 64));
    constexpr From low = is_signed ? -bound : 0;
    constexpr To least = is_signed ? static_cast<To>(uint64_t{1} << (bits - 1)) : 0, most = static_cast<To>(~least);
    typedef decltype(To{} + 0) Wide;
    const From inside = x > low && x < bound ? x : 0;  // NaN is not inside
    const To whole = static_cast<To>(static_cast<Wide>(inside));
    return x >= bound ? most : x <= low ? least : whole;
}

template <class To, class From>
TW_INLINE To integer_as_integer(From x) {
    constexpr int bits = 8 * static_cast<int>(sizeof(To));
    constexpr bool is_signed = static_cast<To>(-1) < 0;
    constexpr To least = is_signed ? static_cast<To>(uint64_t{1} << (bits - 1)) : 0, most = static_cast<To>(~least);
    typedef decltype(To{} + From{}) Wide;
    const Wide v = x;
    return static_cast<To>(v < Wide{least} ? Wide{least} : v > Wide{most} ? Wide{most} : v);
}

template <class To, class From>
TW_INLINE To number_as(From x) {
    if constexpr (__is_same(From, boolean)) {
        return number_as<To>(static_cast<uint8_t>(x.byte != 0));
    } else if constexpr (__is_same(To, boolean)) {
        return boolean{static_cast<uint8_t>(x != 0)};
    } else if constexpr (kIsFloating<To>) {
        return static_cast<To>(x);
    } else if constexpr (kIsFloating<From>) {
        return float_as_integer<To>(x);
    } else {
        return integer_as_integer<To>(x);
    }
}

// A double that rounds to any 16-bit float as x does: beyond 2^53 the low bits only matter as being 0 or not.
TW_INLINE double sticky_double(double x) { return x; }
TW_INLINE double sticky_double(int32_t x) { return x; }
TW_INLINE double sticky_double(int64_t x) {
    const bool large = x >= int64_t{1} << 53 || x <= -(int64_t{1} << 53);
    return static_cast<double>(large ? (x >> 12 | ((x & 4095) != 0)) * 4096 : x);
}

constexpr int64_t kBuffer = 512;

template <class To, class From>
void cast_part(To* to, const From* from, int64_t n);

// Rows from half floats, and to half floats from types wider than float, pass through a buffer of floats.
template <class To, class From>
void cast_buffered(To* to, const From* from, int64_t n) {
    alignas(64) float part[kBuffer];
    for (int64_t i = 0; i < n; i += kBuffer) {
        const int64_t m = min_of(kBuffer, n - i);
        if constexpr (__is_same(From, double) || __is_same(From, int32_t) || __is_same(From, int64_t)) {
            for (int64_t k = 0; k < m; ++k) part[k] = to_odd_float(sticky_double(from[i + k]));
        } else {
            cast_part(part, from + i, m);
        }
        cast_part(to + i, part, m);
    }
}

template <class To, class From>
void cast_part(To* to, const From* from, int64_t n) {
    constexpr bool narrow_from =
        kIsHalf<From> || __is_same(From, float) || (sizeof(From) == 1 && !__is_same(From, boolean));
    if constexpr ((kIsHalf<From> && (__is_same(To, float) || kIsHalf<To>)) || (kIsHalf<To> && narrow_from)) {
        int64_t i = 0;
        for (; i + kLanes<float> <= n; i += kLanes<float>) store_from(to + i, load_as<float>(from + i));
        if (i < n) store_from_n(to + i, load_as_n<float>(from + i, n - i), n - i);
    } else if constexpr (kIsHalf<From> || kIsHalf<To>) {
        cast_buffered(to, from, n);
    } else {
        for (int64_t i = 0; i < n; ++i) to[i] = number_as<To>(from[i]);
    }
}

typedef void Caster(void* to, const void* from, int64_t n);
template <class To, class From>
void cast_row(void* to, const void* from, int64_t n) {
    if constexpr (__is_same(To, From))
        __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(To));
    else
        cast_part(static_cast<To*>(to), static_cast<const From*>(from), n);
}

#define TW_ROW(To)                                                                               \
    {cast_row<To, float>,   cast_row<To, double>,  cast_row<To, f16>,     cast_row<To, bf16>,    \
     cast_row<To, int8_t>,  cast_row<To, uint8_t>, cast_row<To, int32_t>, cast_row<To, int64_t>, \
     cast_row<To, boolean>, cast_row<To, int16_t>, cast_row<To, uint16_t>}
constexpr Caster* kCasters[kDTypes][kDTypes] = {TW_ROW(float),   TW_ROW(double),  TW_ROW(f16),     TW_ROW(bf16),
                                                TW_ROW(int8_t),  TW_ROW(uint8_t), TW_ROW(int32_t), TW_ROW(int64_t),
                                                TW_ROW(boolean), TW_ROW(int16_t), TW_ROW(uint16_t)};
#undef TW_ROW

Caster* caster(DType to, DType from) { return kCasters[static_cast<int>(to)][static_cast<int>(from)]; }

void copy_items(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t size, int64_t n) {
    switch (size) {
        case 1:
            return copy_row(static_cast<uint8_t*>(to), to_stride, static_cast<const uint8_t*>(from), from_stride, n);
        case 2:
            return copy_row(static_cast<uint16_t*>(to), to_stride, static_cast<const uint16_t*>(from), from_stride, n);
        case 4:
            return copy_row(static_cast<uint32_t*>(to), to_stride, static_cast<const uint32_t*>(from), from_stride, n);
        default:
            return copy_row(static_cast<uint64_t*>(to), to_stride, static_cast<const uint64_t*>(from), from_stride, n);
    }
}

Status infer_cast(Call& c, Inferred& r) {
    r.n_out = 1;
    r.out[0] = result(static_cast<DType>(c.attr[0].choice), c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}

Status run_cast(const Call& c) {
    const View &y = c.out[0], &x = c.in[0];
    if (y.dtype == x.dtype) return copy_view(y, x), Status::ok;
    Caster* const cast = caster(y.dtype, x.dtype);
    const View* views[] = {&y, &x};
    const Walk w = walk_over(views, 2, y.ndim, y.shape);
    const int64_t sy = w.stride[0], sx = w.stride[1];
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        if (sy == 1 && sx == 1) return cast(at[0], at[1], count);
        alignas(64) char from[kBuffer * 8], to[kBuffer * 8];
        for (int64_t i = 0; i < count; i += kBuffer) {
            const int64_t n = min_of(kBuffer, count - i);
            copy_items(from, 1, at[1] + i * sx * w.size[1], sx, w.size[1], n);
            cast(to, from, n);
            copy_items(at[0] + i * sy * w.size[0], sy, to, 1, w.size[0], n);
        }
    });
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
    caster(x.dtype, DType::f64)(&bits, &c.attr[1].f, 1);
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
constexpr AttrSpec kDType[] = {{.name = "dtype", .kind = AttrKind::dtype, .required = true}};

}  // namespace

extern const OpDef op_concat = {"concat", kArrays, 1, kAxis, 1, infer_concat, run_concat};
extern const OpDef op_pad = {"pad", kX, 1, kPads, 2, infer_pad, run_pad};
extern const OpDef op_expand = {"expand", kX, 1, kShape, 1, infer_expand, run_expand};
extern const OpDef op_cast = {"cast", kX, 1, kDType, 1, infer_cast, run_cast};

}  // namespace tw::TW_ISA
