// Whole numbers near others, and signs: ceil, floor, round (halves to even), trunc, and sign, -1, 0 or 1.
//
// Method    one kernel per dtype (ops/pieces.h), the processor's own rounding.
// Numerics  exact. NaN stays NaN, infinities and the sign of a zero stay; sign keeps a zero.
// Threads   rows are cut into pieces of kChunkElements; elements are independent, so bits never depend on the split.
#include "core/check.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

struct Ceil {
    TW_INLINE float of(float x) { return __builtin_ceilf(x); }
    TW_INLINE double of(double x) { return __builtin_ceil(x); }
};
struct Floor {
    TW_INLINE float of(float x) { return __builtin_floorf(x); }
    TW_INLINE double of(double x) { return __builtin_floor(x); }
};
struct Round {
    TW_INLINE float of(float x) { return __builtin_rintf(x); }
    TW_INLINE double of(double x) { return __builtin_rint(x); }
};
struct Trunc {
    TW_INLINE float of(float x) { return __builtin_truncf(x); }
    TW_INLINE double of(double x) { return __builtin_trunc(x); }
};
struct Sign {
    template <class T>
    TW_INLINE T of(T x) {
        return x > 0 ? T{1} : x < 0 ? static_cast<T>(-1) : x;
    }
};

constexpr KernelByType kCeil = {{TW_FLOAT_KERNELS(each_one, Ceil)}}, kFloor = {{TW_FLOAT_KERNELS(each_one, Floor)}},
                       kRound = {{TW_FLOAT_KERNELS(each_one, Round)}}, kTrunc = {{TW_FLOAT_KERNELS(each_one, Trunc)}},
                       kSign = {{TW_FLOAT_KERNELS(each_one, Sign), TW_INTEGER_KERNELS(each_one, Sign, nullptr)}};

template <const KernelByType& table>
Status run(const Call& c) {
    run_pieces(c, kernel_at(table, c.in[0].dtype));
    return Status::ok;
}

Status infer_any(Call& c, Inferred& r) {
    TW_TRY(want_number(c.in[0], "x"));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}
Status infer(Call& c, Inferred& r) {
    TW_TRY(want_floating(c.in[0], "x"));
    return infer_any(c, r);
}

constexpr Operand kX[] = {{"x"}};

}  // namespace

extern const Entry op_ceil = {"ceil", kX, 1, nullptr, 0, infer, run<kCeil>, kElementwise};
extern const Entry op_floor = {"floor", kX, 1, nullptr, 0, infer, run<kFloor>, kElementwise};
extern const Entry op_round = {"round", kX, 1, nullptr, 0, infer, run<kRound>, kElementwise};
extern const Entry op_trunc = {"trunc", kX, 1, nullptr, 0, infer, run<kTrunc>, kElementwise};
extern const Entry op_sign = {"sign", kX, 1, nullptr, 0, infer_any, run<kSign>, kElementwise};

}  // namespace tw::TW_ISA
