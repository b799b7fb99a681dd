// Rows of a table held to a norm: times most / (norm + 1e-7) where the norm is beyond `most`, else as they are.
#pragma once
#include "core/check.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr AttrSpec kMaxNorm = {.name = "max_norm", .kind = AttrKind::real, .none_ok = true};
constexpr AttrSpec kNormType = {.name = "norm_type", .kind = AttrKind::real, .f = 2};

Status check_norm(const Attr& most, const Attr& type) {
    if (!most.is_none && !(most.f >= 0))
        return fail(Status::attr, "max_norm", "max_norm=%g; want None or 0 or more", most.f);
    if (type.f == 1 || type.f == 2 || type.f == __builtin_inf()) return Status::ok;
    return fail(Status::attr, "norm_type", "norm_type=%g; want 1, 2 or inf", type.f);
}

template <class T>
Wide<T> norm_of(const T* row, int64_t step, int64_t n, double type) {
    typedef Wide<T> W;
    Vec<W> all{};
    each_vector<T>(n, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        Vec<W> v = abs(take(row, step, i, lanes));
        if (lanes < kLanes<W>) v = first_lanes<W>(v, Vec<W>{}, lanes);
        all = type == 1 ? all + v : type == 2 ? all + v * v : max_nan(all, v);
    });
    if (type == 1) return reduce_add(all);
    if (type == 2) return static_cast<W>(__builtin_sqrt(static_cast<double>(reduce_add(all))));
    W top{};
    for (int64_t i = 0; i < kLanes<W>; ++i) top = all[i] > top || all[i] != all[i] ? all[i] : top;
    return top;
}

// What a row is multiplied by.
template <class T>
TW_INLINE Wide<T> held_to(const T* row, int64_t step, int64_t n, const Attr& most, const Attr& type) {
    typedef Wide<T> W;
    const W norm = norm_of(row, step, n, type.f), limit = static_cast<W>(most.f);
    return norm > limit ? limit / (norm + W(1e-7)) : W{1};
}

}  // namespace
}  // namespace tw::TW_ISA
