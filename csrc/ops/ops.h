// What every op file starts from: the vectors of this tier, the call types and the checks that shape rules share.
#pragma once
#include "core/index.h"
#include "core/isa.h"
#include "core/memory.h"
#include "core/opdef.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "simd/convert.h"
#include "simd/math.h"
#include "simd/vec.h"

namespace tw::TW_ISA {

// What an op file says of an op: the least tier keeps all of it, the others their kernels, and so compile no shape rule.
#define TW_PASTE(a, b) a##b
#define TW_LEAST(isa) TW_PASTE(TW_LEAST_, isa)
#if TW_LEAST(TW_ISA)
typedef OpDef Entry;
#else
struct Entry : Kernels {
    consteval Entry(const char*, const Operand*, int, const AttrSpec*, int, Status (*)(Call&, Inferred&),
                    Status (*run)(const Call&), uint32_t = 0, int64_t (*packed_size)(const Call&) = nullptr,
                    void (*pack)(const Call&, void*) = nullptr)
        : Kernels{run, packed_size, pack} {}
};
#endif

#define TW_COUNT(table) static_cast<int>(sizeof(table) / sizeof(table[0]))

// body.operator()<T>() for the element type T of a floating dtype.
template <class Body>
TW_INLINE auto for_floating(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::f32: return body.template operator()<float>();
        case DType::f64: return body.template operator()<double>();
        case DType::f16: return body.template operator()<f16>();
        default: return body.template operator()<bf16>();
    }
}

// Results from this size on are stored past the caches: half of the last one could not hold them.
TW_INLINE int64_t streaming_bytes() {
    const int64_t last = cache_sizes().l3;
    return last > 0 ? last / 2 : int64_t{1} << 24;
}

// Rows of results from this size on, which no cache of a core holds, and of what they are made from come from afar, and
// are asked for a row early: a row may be a page, at whose end hardware that fetches ahead stops.
TW_INLINE int64_t far_bytes() {
    const int64_t own = cache_sizes().l2;
    return own > 0 ? own : int64_t{1} << 20;
}

// Elements per chunk of a parallel elementwise or row loop: a function of shape alone.
constexpr int64_t kChunkElements = 1 << 15;

}  // namespace tw::TW_ISA
