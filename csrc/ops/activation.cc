// Activation functions and roots, y[i] = f(x[i]), and the gradient of any of them, dx = dy f'(x).
//
//   silu x / (1 + exp(-x))    softplus log(1 + exp(x))    mish x tanh(softplus(x))    elu x or alpha (exp(x) - 1)
//   leaky_relu x or alpha x   hard_sigmoid clip(alpha x + beta, 0, 1)   hard_swish x clip(x / 6 + 1/2, 0, 1)
//   clip   sqrt   rsqrt   abs   neg
//
// Method    one pass over merged axes, whole vectors with an exact tail; any strides.
// Numerics  exponentials of -|x| alone, so that nothing overflows; NaN stays NaN. At a kink the slope is the left one.
//           abs and neg of integers wrap.
// Threads   rows are cut into pieces of kChunkElements; elements are independent, so bits never depend on the split.
#include "core/check.h"
#include "ops/map.h"
#include "ops/pieces.h"
#include "simd/functions.h"

namespace tw::TW_ISA {
namespace {

template <class F, class T>
void each(const Call& c, double alpha, double beta) {
    typedef Vec<Wide<T>> V;
    const Constants<V> with = {constant<V>(alpha), constant<V>(beta)};
    map_one<T>(c.out[0], c.in[0], [with](V x) __attribute__((always_inline)) { return F::of(x, with); });
}

template <class F, class T>
void each_slope(const Call& c, double alpha, double beta) {
    typedef Vec<Wide<T>> V;
    const Constants<V> with = {constant<V>(alpha), constant<V>(beta)};
    map_two<T>(c.out[0], c.in[0], c.in[1],
               [with](V dy, V x) __attribute__((always_inline)) { return dy * F::slope(x, with); });
}

template <class F>
Status run(const Call& c) {
    const double alpha = c.op->n_attrs > 0 ? c.attr[0].f : 0, beta = c.op->n_attrs > 1 ? c.attr[1].f : 0;
    for_floating(c.in[0].dtype, [&]<class T>() { each<F, T>(c, alpha, beta); });
    return Status::ok;
}

struct WrappedAbs {
    template <class T>
    TW_INLINE T of(T a) {
        return a < 0 ? static_cast<T>(uint64_t{0} - static_cast<uint64_t>(a)) : a;
    }
};
struct WrappedNeg {
    template <class T> TW_INLINE T of(T a) { return static_cast<T>(T{0} - a); }
};
constexpr KernelByType kAbs = {{TW_NO_FLOATS, TW_INTEGER_KERNELS(each_one, WrappedAbs, nullptr)}},
                       kNeg = {{TW_NO_FLOATS, TW_WIDTH_KERNELS(each_one, WrappedNeg, nullptr)}};

template <class F, const KernelByType& integers>
Status run_on_any(const Call& c) {
    if (is_float(c.in[0].dtype)) return run<F>(c);
    run_pieces(c, kernel_at(integers, c.in[0].dtype));
    return Status::ok;
}

// The functions by name, in the order of activation_dx's choices.
#define TW_FUNCTIONS(X)          \
    X(silu, Silu)                \
    X(softplus, Softplus)        \
    X(mish, Mish)                \
    X(elu, Elu)                  \
    X(leaky_relu, LeakyRelu)     \
    X(hard_sigmoid, HardSigmoid) \
    X(hard_swish, HardSwish)     \
    X(clip, Clip)                \
    X(sqrt, Sqrt)                \
    X(rsqrt, Rsqrt)              \
    X(abs, Abs)                  \
    X(neg, Neg)

enum class Function {
#define TW_NAME(name, F) name,
    TW_FUNCTIONS(TW_NAME)
#undef TW_NAME
};

Status run_dx(const Call& c) {
    const double alpha = c.attr[1].f, beta = c.attr[2].f;
    for_floating(c.in[0].dtype, [&]<class T>() {
        switch (static_cast<Function>(c.attr[0].choice)) {
#define TW_CASE(name, F) \
    case Function::name: return each_slope<F, T>(c, alpha, beta);
            TW_FUNCTIONS(TW_CASE)
#undef TW_CASE
        }
    });
    return Status::ok;
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status want_numbers(const Call& c) {
    for (int k = 0; k < c.op->n_attrs; ++k)
        if (c.op->attrs[k].kind == AttrKind::real && c.attr[k].f != c.attr[k].f)
            return fail(Status::attr, c.op->attrs[k].name, "%s=nan; want a number", c.op->attrs[k].name);
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    TW_TRY(want_floating(c.in[0], "x"));
    TW_TRY(want_numbers(c));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    r.flops = 8.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status infer_any(Call& c, Inferred& r) {
    TW_TRY(want_number(c.in[0], "x"));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}

Status infer_clip(Call& c, Inferred& r) {
    TW_TRY(infer(c, r));
    if (c.attr[0].f <= c.attr[1].f) return Status::ok;
    return fail(Status::attr, "low", "low=%g is above high=%g; want low <= high", c.attr[0].f, c.attr[1].f);
}

Status infer_dx(Call& c, Inferred& r) {
    TW_TRY(want_floating(c.in[0], "dy"));
    TW_TRY(want_dtype_of(c.in[1], "x", c.in[0], "dy"));
    TW_TRY(want_shape_of(c.in[1], "x", c.in[0], "dy"));
    TW_TRY(want_numbers(c));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    r.flops = 10.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kDyX[] = {{"dy"}, {"x"}};
constexpr AttrSpec kEluAlpha[] = {{.name = "alpha", .kind = AttrKind::real, .f = 1}};
constexpr AttrSpec kLeakyAlpha[] = {{.name = "alpha", .kind = AttrKind::real, .f = 0.01}};
constexpr AttrSpec kHardSigmoid[] = {
    {.name = "alpha", .kind = AttrKind::real, .f = 1.0 / 6},
    {.name = "beta", .kind = AttrKind::real, .f = 0.5},
};
constexpr AttrSpec kClip[] = {
    {.name = "low", .kind = AttrKind::real, .f = -__builtin_inf()},
    {.name = "high", .kind = AttrKind::real, .f = __builtin_inf()},
};
#define TW_OR_NAME(name, F) "|" #name
constexpr const char* kNames = &(TW_FUNCTIONS(TW_OR_NAME))[1];
#undef TW_OR_NAME
constexpr AttrSpec kDx[] = {
    {.name = "function", .kind = AttrKind::choice, .choices = kNames, .required = true},
    {.name = "alpha", .kind = AttrKind::real},
    {.name = "beta", .kind = AttrKind::real},
};

}  // namespace

extern const Entry op_silu = {"silu", kX, 1, nullptr, 0, infer, run<Silu>, kElementwise};
extern const Entry op_softplus = {"softplus", kX, 1, nullptr, 0, infer, run<Softplus>, kElementwise};
extern const Entry op_mish = {"mish", kX, 1, nullptr, 0, infer, run<Mish>, kElementwise};
extern const Entry op_elu = {"elu", kX, 1, kEluAlpha, 1, infer, run<Elu>, kElementwise};
extern const Entry op_leaky_relu = {"leaky_relu", kX, 1, kLeakyAlpha, 1, infer, run<LeakyRelu>, kElementwise};
extern const Entry op_hard_sigmoid = {"hard_sigmoid", kX, 1, kHardSigmoid, 2, infer, run<HardSigmoid>, kElementwise};
extern const Entry op_hard_swish = {"hard_swish", kX, 1, nullptr, 0, infer, run<HardSwish>, kElementwise};
extern const Entry op_clip = {"clip", kX, 1, kClip, 2, infer_clip, run<Clip>, kElementwise};
extern const Entry op_sqrt = {"sqrt", kX, 1, nullptr, 0, infer, run<Sqrt>, kElementwise};
extern const Entry op_rsqrt = {"rsqrt", kX, 1, nullptr, 0, infer, run<Rsqrt>, kElementwise};
extern const Entry op_abs = {"abs", kX, 1, nullptr, 0, infer_any, run_on_any<Abs, kAbs>, kElementwise};
extern const Entry op_neg = {"neg", kX, 1, nullptr, 0, infer_any, run_on_any<Neg, kNeg>, kElementwise};
extern const Entry op_activation_dx = {"activation_dx", kDyX, 2, kDx, 3, infer_dx, run_dx, kElementwise};

}  // namespace tw::TW_ISA
