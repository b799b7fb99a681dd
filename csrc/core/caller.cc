#include "core/caller.h"

#include "core/check.h"
#include "core/isa.h"
#include "core/profile.h"
#include "core/small.h"

namespace tw {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 40;
constexpr int64_t kMaxSpan = int64_t{1} << 56;        // bytes; no processor maps as many for one program

__attribute__((always_inline)) inline Extent extent(const View& view) {
    const int64_t size = item_size(view.dtype);
    const char* low = static_cast<const char*>(view.data);
    const char* high = low;
    for (int d = 0; d < view.ndim; ++d) {
        if (view.shape[d] == 0) return {low, low};
        const int64_t reach = (view.shape[d] - 1) * view.stride[d] * size;
        (reach < 0 ? low : high) += reach;
    }
    return {low, high + size};
}

bool overlap(const Extent& a, const Extent& b) { return a.low < b.high && b.low < a.high; }

bool same_view(const View& a, const View& b) {
    if (a.data != b.data || a.dtype != b.dtype || a.ndim != b.ndim) return false;
    for (int d = 0; d < a.ndim; ++d)
        if (a.shape[d] != b.shape[d] || (a.shape[d] > 1 && a.stride[d] != b.stride[d])) return false;
    return true;
}

// All but a variadic operand, which is the first, stand for one array each.
const char* operand_name(const Call& call, int i) {
    const int named = i - (call.n_in - call.op->n_operands);
    return call.op->operands[named > 0 ? named : 0].name;
}

// `written` against every operand but number `skip`; as a result (skip < 0) it may be exactly some of them.
Status check_disjoint(const Call& call, const View& written, const char* name, int skip) {
    const Extent own = extent(written);
    for (int i = 0; i < call.n_in; ++i) {
        if (i == skip || !given(call.in[i]) || !overlap(own, extent(call.in[i]))) continue;
        const bool may_be_same =
            skip < 0 && ((call.op->flags & kElementwise) || ((call.op->flags & kOutIsLast) && i == call.n_in - 1));
        if (may_be_same && same_view(written, call.in[i])) continue;
        return fail(Status::shape, name, "%s shares memory with %s; want separate arrays%s", name,
                    operand_name(call, i), may_be_same ? ", or exactly the same one" : "");
    }
    return Status::ok;
}

// Where the first bytes of elements lie, from the data pointer: [low, high].
struct Span {
    int64_t low = 0, high = 0;
    bool empty = false;
};

Status check_layout(const DLTensor& t, View& v, const char* name, Span& span) {
    if (t.ndim < 0 || t.ndim > kMaxDims)
        return fail(Status::shape, name, "%s has %d dimensions; want 0 to %d", name, t.ndim, kMaxDims);
    if (t.ndim > 0 && !t.shape) return fail(Status::shape, name, "%s has no shape; want one size per dimension", name);
    v.ndim = t.ndim;
    const int64_t size = item_size(v.dtype);
    int64_t elements = 1;
    for (int d = v.ndim - 1; d >= 0; --d) {
        const int64_t n = v.shape[d] = t.shape[d];
        v.stride[d] = elements;
        if (n < 0)
            return fail(Status::shape, name, "%s has a dimension of %lld; want sizes of at least 0", name,
                        static_cast<long long>(n));
        if (n == 0) {
            span.empty = true;
        } else if (__builtin_mul_overflow(elements, n, &elements) || elements > kMaxElements) {
            return fail(Status::shape, name, "%s has more than 2^40 elements; want fewer", name);
        }
    }
    if (!t.strides) {
        span.high = (elements - 1) * size;
        return Status::ok;
    }
    for (int d = 0; d < v.ndim; ++d) {
        v.stride[d] = v.shape[d] > 1 ? t.strides[d] : 0;
        int64_t reach;
        if (v.shape[d] > 1 &&
            (__builtin_mul_overflow(v.shape[d] - 1, v.stride[d], &reach) ||
             __builtin_mul_overflow(reach, size, &reach) ||
             __builtin_add_overflow(reach < 0 ? span.low : span.high, reach, reach < 0 ? &span.low : &span.high) ||
             span.high > kMaxSpan || span.low < -kMaxSpan))
            return fail(Status::shape, name, "%s has a stride of %lld, which leaves the address space", name,
                        static_cast<long long>(v.stride[d]));
    }
    return Status::ok;
}

}  // namespace

DLDataType data_type_of(DType t) {
    const auto bits = static_cast<uint8_t>(8 * item_size(t));
    switch (t) {
        case DType::bf16: return {kDLBfloat, bits, 1};
        case DType::boolean: return {kDLBool, bits, 1};
        case DType::u8:
        case DType::u16:
        case DType::u32:
        case DType::u64: return {kDLUInt, bits, 1};
        case DType::i8:
        case DType::i16:
        case DType::i32:
        case DType::i64: return {kDLInt, bits, 1};
        case DType::f8e4m3: return {kDLFloat8_e4m3fn, bits, 1};
        case DType::f8e4m3z: return {kDLFloat8_e4m3fnuz, bits, 1};
        case DType::f8e5m2: return {kDLFloat8_e5m2, bits, 1};
        case DType::f8e5m2z: return {kDLFloat8_e5m2fnuz, bits, 1};
        case DType::f8e8m0: return {kDLFloat8_e8m0fnu, bits, 1};
        case DType::f4e2m1: return {kDLFloat4_e2m1fn, 4, 1};
        case DType::i4:
        case DType::i2: return {kDLInt, static_cast<uint8_t>(bits_of_small(t)), 1};
        case DType::u4:
        case DType::u2: return {kDLUInt, static_cast<uint8_t>(bits_of_small(t)), 1};
        default: return {kDLFloat, bits, 1};
    }
}

DType dtype_of(DLDataType t) {
    if (t.lanes != 1) return DType::none;
    switch (t.code * 256 + t.bits) {
        case kDLFloat * 256 + 32: return DType::f32;
        case kDLFloat * 256 + 64: return DType::f64;
        case kDLFloat * 256 + 16: return DType::f16;
        case kDLBfloat * 256 + 16: return DType::bf16;
        case kDLInt * 256 + 8: return DType::i8;
        case kDLInt * 256 + 16: return DType::i16;
        case kDLInt * 256 + 32: return DType::i32;
        case kDLInt * 256 + 64: return DType::i64;
        case kDLUInt * 256 + 8: return DType::u8;
        case kDLUInt * 256 + 16: return DType::u16;
        case kDLUInt * 256 + 32: return DType::u32;
        case kDLUInt * 256 + 64: return DType::u64;
        case kDLFloat8_e4m3fn * 256 + 8: return DType::f8e4m3;
        case kDLFloat8_e4m3fnuz * 256 + 8: return DType::f8e4m3z;
        case kDLFloat8_e5m2 * 256 + 8: return DType::f8e5m2;
        case kDLFloat8_e5m2fnuz * 256 + 8: return DType::f8e5m2z;
        case kDLFloat8_e8m0fnu * 256 + 8: return DType::f8e8m0;
        case kDLBool * 256 + 8: return DType::boolean;
        default: return DType::none;
    }
}

Status view_from(const DLTensor& t, View& v, const char* name, bool shape_only) {
    if (t.device.device_type != kDLCPU)
        return fail(Status::dtype, name,
                    "%s is on DLPack device type %d; want a CPU array (type 1), or a pyopencl array for a device", name,
                    t.device.device_type);
    v.dtype = dtype_of(t.dtype);
    if (v.dtype == DType::none)
        return fail(Status::dtype, name,
                    "%s has DLPack dtype code %d, %d bits, %d lanes; want a float, int or bool of 8 to 64 bits", name,
                    t.dtype.code, t.dtype.bits, t.dtype.lanes);
    Span span;
    TW_TRY(check_layout(t, v, name, span));
    v.data = nullptr;
    if (shape_only) return Status::ok;
    if (!t.data && !span.empty) return fail(Status::shape, name, "%s has a null data pointer and is not empty", name);
    uintptr_t first;
    if (__builtin_add_overflow(reinterpret_cast<uintptr_t>(t.data), static_cast<uintptr_t>(t.byte_offset), &first) ||
        (!span.empty &&
         (first > kLastAddress - static_cast<uintptr_t>(span.high) || first < static_cast<uintptr_t>(-span.low))))
        return fail(Status::shape, name, "%s spans more than the address space", name);
    const int64_t size = item_size(v.dtype);
    if (!span.empty && first & static_cast<uintptr_t>(size - 1))
        return fail(Status::shape, name, "%s is not aligned to its %lld-byte elements; want an aligned array", name,
                    static_cast<long long>(size));
    v.data = reinterpret_cast<void*>(first);
    return Status::ok;
}

Extent extent_of(const View& view) { return extent(view); }

bool overlap(const View& a, const View& b) { return overlap(extent(a), extent(b)); }

bool overlaps_itself(const View& v) {
    if (is_contiguous(v)) return false;
    int order[kMaxDims], n = 0;
    for (int d = 0; d < v.ndim; ++d) {
        if (v.shape[d] == 0) return false;
        if (v.shape[d] > 1) order[n++] = d;
    }
    auto step = [&](int d) { return v.stride[d] < 0 ? -v.stride[d] : v.stride[d]; };
    for (int i = 1; i < n; ++i)
        for (int j = i; j > 0 && step(order[j]) < step(order[j - 1]); --j) {
            const int t = order[j];
            order[j] = order[j - 1];
            order[j - 1] = t;
        }
    int64_t reach = 0;
    for (int i = 0; i < n; ++i) {
        if (step(order[i]) <= reach) return true;
        reach += (v.shape[order[i]] - 1) * step(order[i]);
    }
    return false;
}

Status check_out(const Call& call, const View& given, const View& want, const char* name) {
    bool fits = given.ndim == want.ndim;
    for (int d = 0; fits && d < given.ndim; ++d) fits = given.shape[d] == want.shape[d];
    if (!fits)
        return fail(Status::shape, name, "%s has shape %s; want %s", name, shape_text(given).text,
                    shape_text(want).text);
    if (given.dtype != want.dtype)
        return fail(Status::dtype, name, "%s has dtype %s; want %s", name, name_of(given.dtype), name_of(want.dtype));
    if (overlaps_itself(given))
        return fail(Status::shape, name, "elements of %s share memory (strides overlap); want one address per element",
                    name);
    return check_disjoint(call, given, name, -1);
}

Status check_outs_apart(const View* outs, int n) {
    for (int i = 1; i < n; ++i)
        for (int j = 0; j < i; ++j)
            if (overlap(outs[i], outs[j]))
                return fail(Status::shape, "out", "out[%d] shares memory with out[%d]; want separate arrays", i, j);
    return Status::ok;
}

Status check_inout(const Call& call) {
    for (int i = 0; i < call.op->n_operands; ++i) {
        if (!is_updated(call.op->operands[i].role) || !given(call.in[i])) continue;
        const char* name = call.op->operands[i].name;
        if (overlaps_itself(call.in[i]))
            return fail(Status::shape, name, "elements of %s share memory; want one address per element", name);
        TW_TRY(check_disjoint(call, call.in[i], name, i));
    }
    return Status::ok;
}

Status run_recorded(const Call& call) {
    if (!profile_on()) return call.op->run(call);
    const int64_t begin = monotonic_ns();
    const Status status = call.op->run(call);
    profile_add(call.op->name, tier_name(active_tier()), monotonic_ns() - begin);
    return status;
}

}  // namespace tw
