// Trigonometric and hyperbolic functions and their inverses, y[i] = f(x[i]).
//
//   sin cos tan   asin acos atan   sinh cosh   asinh acosh atanh
//
// Method    the C library's functions in double, one number at a time (ops/pieces.h).
// Numerics  float32 and narrower are rounded once from double; float64 is within the C library's ULP. Outside a domain NaN.
// Threads   rows are cut into pieces of kChunkElements; elements are independent, so bits never depend on the split.
#include "core/check.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

#define TW_LIBRARY(X) X(sin) X(cos) X(tan) X(asin) X(acos) X(atan) X(sinh) X(cosh) X(asinh) X(acosh) X(atanh)

#define TW_FUNCTION(name)                                                               \
    struct name##_of {                                                                  \
        TW_INLINE double of(double x) { return __builtin_##name(x); }                   \
        TW_INLINE float of(float x) { return static_cast<float>(__builtin_##name(x)); } \
    };                                                                                  \
    constexpr KernelByType k_##name = {{TW_FLOAT_KERNELS(each_one, name##_of)}};
TW_LIBRARY(TW_FUNCTION)
#undef TW_FUNCTION
#undef TW_LIBRARY

template <const KernelByType& table>
Status run(const Call& c) {
    run_pieces(c, kernel_at(table, c.in[0].dtype));
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    TW_TRY(want_floating(c.in[0], "x"));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    r.flops = 40.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};

}  // namespace

extern const Entry op_sin = {"sin", kX, 1, nullptr, 0, infer, run<k_sin>, kElementwise};
extern const Entry op_cos = {"cos", kX, 1, nullptr, 0, infer, run<k_cos>, kElementwise};
extern const Entry op_tan = {"tan", kX, 1, nullptr, 0, infer, run<k_tan>, kElementwise};
extern const Entry op_asin = {"asin", kX, 1, nullptr, 0, infer, run<k_asin>, kElementwise};
extern const Entry op_acos = {"acos", kX, 1, nullptr, 0, infer, run<k_acos>, kElementwise};
extern const Entry op_atan = {"atan", kX, 1, nullptr, 0, infer, run<k_atan>, kElementwise};
extern const Entry op_sinh = {"sinh", kX, 1, nullptr, 0, infer, run<k_sinh>, kElementwise};
extern const Entry op_cosh = {"cosh", kX, 1, nullptr, 0, infer, run<k_cosh>, kElementwise};
extern const Entry op_asinh = {"asinh", kX, 1, nullptr, 0, infer, run<k_asinh>, kElementwise};
extern const Entry op_acosh = {"acosh", kX, 1, nullptr, 0, infer, run<k_acosh>, kElementwise};
extern const Entry op_atanh = {"atanh", kX, 1, nullptr, 0, infer, run<k_atanh>, kElementwise};

}  // namespace tw::TW_ISA
