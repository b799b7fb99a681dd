// Elementwise ops: y[i] = f(x[i]) and y[i] = f(a[i], b[i]) with numpy broadcasting, and the gradients of the unary ones.
//
// Method    one pass over merged axes, whole vectors with an exact tail; strided and broadcast operands in place.
// Numerics  + - * / and relu are exact to one rounding; the functions are those of simd/math.h with their stated ULP.
//           16-bit floats are computed in float and rounded once more when stored. + - * of integers wrap; / truncates,
//           and is 0 where b is.
// Threads   rows are cut into pieces of kChunkElements; elements are independent, so bits never depend on the split.
#include "core/check.h"
#include "ops/map.h"
#include "ops/pieces.h"
#include "simd/functions.h"

namespace tw::TW_ISA {
namespace {

template <class T, class F>
void unary(const Call& c) {
    map_one<T>(c.out[0], c.in[0], [](auto x) __attribute__((always_inline)) { return F::of(x); });
}

template <class T, class F, bool kLight = false>
void binary(const Call& c) {
    map_two<T, kLight>(c.out[0], c.in[0], c.in[1],
                       [](auto a, auto b) __attribute__((always_inline)) { return F::of(a, b); });
}

template <class F>
Status run_unary(const Call& c) {
    for_floating(c.in[0].dtype, [&]<class T>() { unary<T, F>(c); });
    return Status::ok;
}

// ---- integers: sums and products by their size alone, on unsigned numbers that wrap ---------------------------------------

struct WrappedSum {
    template <class T> TW_INLINE T of(T a, T b) { return static_cast<T>(a + b); }
};
struct WrappedDifference {
    template <class T> TW_INLINE T of(T a, T b) { return static_cast<T>(a - b); }
};
struct WrappedProduct {
    template <class T> TW_INLINE T of(T a, T b) { return static_cast<T>((a + 0u) * b); }
};
struct Quotient {
    template <class T>
    TW_INLINE T of(T a, T b) {
        if (b == 0) return 0;
        return static_cast<T>(-1) < 0 && b == static_cast<T>(-1)
                   ? static_cast<T>(uint64_t{0} - static_cast<uint64_t>(a))
                   : static_cast<T>(a / b);
    }
};
constexpr KernelByType kSum = {{TW_NO_FLOATS, TW_WIDTH_KERNELS(each_two, WrappedSum, nullptr)}},
                       kDifference = {{TW_NO_FLOATS, TW_WIDTH_KERNELS(each_two, WrappedDifference, nullptr)}},
                       kProduct = {{TW_NO_FLOATS, TW_WIDTH_KERNELS(each_two, WrappedProduct, nullptr)}},
                       kQuotient = {{TW_NO_FLOATS, TW_INTEGER_KERNELS(each_two, Quotient, nullptr)}};

template <class F, const KernelByType& integers>
Status run_arithmetic(const Call& c) {
    if (is_float(c.in[0].dtype))
        for_floating(c.in[0].dtype, [&]<class T>() { binary<T, F, true>(c); });
    else
        run_pieces(c, kernel_at(integers, c.in[0].dtype));
    return Status::ok;
}

template <class F>
Status run_binary(const Call& c) {
    for_floating(c.in[0].dtype, [&]<class T>() { binary<T, F>(c); });
    return Status::ok;
}

// ---- shape rules --------------------------------------------------------------------------------------------------------

Status infer_unary(Call& c, Inferred& r) {
    TW_TRY(want_floating(c.in[0], c.op->operands[0].name));
    r.n_out = 1;
    r.out[0] = c.in[0];
    r.out[0].data = nullptr;
    r.flops = 10.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status infer_binary(Call& c, Inferred& r) { return infer_two(c, r, want_number); }

Status infer_gradient(Call& c, Inferred& r) {
    TW_TRY(want_floating(c.in[0], "dy"));
    TW_TRY(want_dtype_of(c.in[1], c.op->operands[1].name, c.in[0], "dy"));
    TW_TRY(want_shape_of(c.in[1], c.op->operands[1].name, c.in[0], "dy"));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}

Status run_gelu(const Call& c) { return c.attr[0].choice ? run_unary<GeluTanh>(c) : run_unary<Gelu>(c); }
Status run_gelu_dx(const Call& c) { return c.attr[0].choice ? run_binary<GeluTanhDx>(c) : run_binary<GeluDx>(c); }

constexpr Operand kX[] = {{"x"}};
constexpr Operand kAB[] = {{"a"}, {"b"}};
constexpr Operand kDyX[] = {{"dy"}, {"x"}};
constexpr Operand kDyY[] = {{"dy"}, {"y"}};
constexpr AttrSpec kApproximate[] = {{.name = "approximate", .kind = AttrKind::choice, .choices = "none|tanh"}};

}  // namespace

extern const Entry op_add = {
    "add", kAB, 2, nullptr, 0, infer_binary, run_arithmetic<Add, kSum>, kElementwise | kWeakScalars};
extern const Entry op_sub = {
    "sub", kAB, 2, nullptr, 0, infer_binary, run_arithmetic<Sub, kDifference>, kElementwise | kWeakScalars};
extern const Entry op_mul = {
    "mul", kAB, 2, nullptr, 0, infer_binary, run_arithmetic<Mul, kProduct>, kElementwise | kWeakScalars};
extern const Entry op_div = {
    "div", kAB, 2, nullptr, 0, infer_binary, run_arithmetic<Div, kQuotient>, kElementwise | kWeakScalars};
extern const Entry op_relu = {"relu", kX, 1, nullptr, 0, infer_unary, run_unary<Relu>, kElementwise};
extern const Entry op_sigmoid = {"sigmoid", kX, 1, nullptr, 0, infer_unary, run_unary<Sigmoid>, kElementwise};
extern const Entry op_tanh = {"tanh", kX, 1, nullptr, 0, infer_unary, run_unary<Tanh>, kElementwise};
extern const Entry op_gelu = {"gelu", kX, 1, kApproximate, 1, infer_unary, run_gelu, kElementwise};
extern const Entry op_exp = {"exp", kX, 1, nullptr, 0, infer_unary, run_unary<Exp>, kElementwise};
extern const Entry op_log = {"log", kX, 1, nullptr, 0, infer_unary, run_unary<Log>, kElementwise};
extern const Entry op_erf = {"erf", kX, 1, nullptr, 0, infer_unary, run_unary<Erf>, kElementwise};
extern const Entry op_relu_dx = {"relu_dx", kDyX, 2, nullptr, 0, infer_gradient, run_binary<ReluDx>, kElementwise};
extern const Entry op_sigmoid_dx = {"sigmoid_dx",          kDyY,        2, nullptr, 0, infer_gradient,
                                    run_binary<SigmoidDx>, kElementwise};
extern const Entry op_tanh_dx = {"tanh_dx", kDyY, 2, nullptr, 0, infer_gradient, run_binary<TanhDx>, kElementwise};
extern const Entry op_gelu_dx = {"gelu_dx", kDyX, 2, kApproximate, 1, infer_gradient, run_gelu_dx, kElementwise};

}  // namespace tw::TW_ISA
