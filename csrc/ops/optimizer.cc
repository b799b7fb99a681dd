// Optimizer steps in place.
//   sgd:   g += decay w;  v = momentum v + (1 - dampening) g;  w -= lr v,  or lr (g + momentum v) with nesterov
//   adam:  g += decay w;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
//          w -= lr m' / (sqrt(v') + eps),  m' = m / (1 - beta1^step), v' = v / (1 - beta2^step)
//
// Method    one fused pass: each operand is read once, each updated array written once.
// Numerics  coefficients are formed in double and rounded once to the dtype; square root and division are IEEE's.
// Threads   pieces of kChunkElements; elements are independent.
// The rules are those of torch.optim.SGD and Adam; Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// ---- sgd ----------------------------------------------------------------------------------------------------------------

enum SgdAttr { kLr, kMomentum, kDampening, kNesterov, kDecay };

template <class T>
struct Sgd {
    T lr, momentum, keep, decay;  // keep = 1 - dampening
    bool nesterov;
};

template <class T>
TW_INLINE Vec<T> decayed(Vec<T> g, Vec<T> w, T decay) {
    return decay != 0 ? g + decay * w : g;
}

template <class T>
void sgd_plain(const Call& c, const Sgd<T>& s) {
    const View* views[] = {&c.in[0], &c.in[1]};
    const Walk walk = walk_over(views, 2, c.in[0].ndim, c.in[0].shape);
    const int64_t sw = walk.stride[0], sg = walk.stride[1];
    for_each_row(walk, kChunkElements, [&](char* const* at, int64_t count) {
        T* w = reinterpret_cast<T*>(at[0]);
        const T* g = reinterpret_cast<const T*>(at[1]);
        for (int64_t i = 0; i < count; i += kLanes<T>) {
            const int64_t n = min_of(count - i, kLanes<T>);
            const Vec<T> wi = take(w, sw, i, n);
            put(w, sw, i, n, wi - s.lr * decayed(take(g, sg, i, n), wi, s.decay));
        }
    });
}

template <class T>
void sgd_momentum(const Call& c, const Sgd<T>& s) {
    const View* views[] = {&c.in[0], &c.in[1], &c.in[2]};
    const Walk walk = walk_over(views, 3, c.in[0].ndim, c.in[0].shape);
    const int64_t sw = walk.stride[0], sg = walk.stride[1], sv = walk.stride[2];
    for_each_row(walk, kChunkElements, [&](char* const* at, int64_t count) {
        T* w = reinterpret_cast<T*>(at[0]);
        const T* g = reinterpret_cast<const T*>(at[1]);
        T* v = reinterpret_cast<T*>(at[2]);
        for (int64_t i = 0; i < count; i += kLanes<T>) {
            const int64_t n = min_of(count - i, kLanes<T>);
            const Vec<T> wi = take(w, sw, i, n), gi = decayed(take(g, sg, i, n), wi, s.decay);
            const Vec<T> vi = s.momentum * take(v, sv, i, n) + s.keep * gi;
            put(v, sv, i, n, vi);
            put(w, sw, i, n, wi - s.lr * (s.nesterov ? gi + s.momentum * vi : vi));
        }
    });
}

template <class T>
Status sgd(const Call& c) {
    const Attr* a = c.attr;
    const Sgd<T> s = {static_cast<T>(a[kLr].f), static_cast<T>(a[kMomentum].f), static_cast<T>(1 - a[kDampening].f),
                      static_cast<T>(a[kDecay].f), a[kNesterov].i != 0};
    if (a[kMomentum].f == 0)
        sgd_plain(c, s);
    else
        sgd_momentum(c, s);
    return Status::ok;
}

// ---- adam ---------------------------------------------------------------------------------------------------------------

enum AdamAttr { kStep, kAdamLr, kBeta1, kBeta2, kEps, kAdamDecay };

template <class T>
struct Adam {
    T rate, root, eps, decay;  // rate = lr / (1 - beta1^step), root = 1 / sqrt(1 - beta2^step)
    T beta1, rest1, beta2, rest2;
};

template <class T>
Status adam(const Call& c) {
    const Attr* a = c.attr;
    const double step = static_cast<double>(a[kStep].i), beta1 = a[kBeta1].f, beta2 = a[kBeta2].f;
    const Adam<T> s = {static_cast<T>(a[kAdamLr].f / (1 - __builtin_pow(beta1, step))),
                       static_cast<T>(1 / __builtin_sqrt(1 - __builtin_pow(beta2, step))),
                       static_cast<T>(a[kEps].f),
                       static_cast<T>(a[kAdamDecay].f),
                       static_cast<T>(beta1),
                       static_cast<T>(1 - beta1),
                       static_cast<T>(beta2),
                       static_cast<T>(1 - beta2)};
    const View* views[] = {&c.in[0], &c.in[1], &c.in[2], &c.in[3]};
    const Walk walk = walk_over(views, 4, c.in[0].ndim, c.in[0].shape);
    const int64_t sw = walk.stride[0], sg = walk.stride[1], sm = walk.stride[2], sv = walk.stride[3];
    for_each_row(walk, kChunkElements, [&](char* const* at, int64_t count) {
        T* w = reinterpret_cast<T*>(at[0]);
        const T* g = reinterpret_cast<const T*>(at[1]);
        T *m = reinterpret_cast<T*>(at[2]), *v = reinterpret_cast<T*>(at[3]);
        for (int64_t i = 0; i < count; i += kLanes<T>) {
            const int64_t n = min_of(count - i, kLanes<T>);
            const Vec<T> wi = take(w, sw, i, n), gi = decayed(take(g, sg, i, n), wi, s.decay);
            const Vec<T> mi = s.beta1 * take(m, sm, i, n) + s.rest1 * gi;
            const Vec<T> vi = s.beta2 * take(v, sv, i, n) + s.rest2 * gi * gi;
            put(m, sm, i, n, mi);
            put(v, sv, i, n, vi);
            put(w, sw, i, n, wi - s.rate * mi / (sqrt(vi) * s.root + s.eps));
        }
    });
    return Status::ok;
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status want_like_w(const Call& c, int k) {
    TW_TRY(want_dtype_of(c.in[k], c.op->operands[k].name, c.in[0], "w"));
    return want_shape(c.in[k], c.op->operands[k].name, c.in[0].ndim, c.in[0].shape);
}

// NaN fails every comparison, so ranges are asked for, never excluded.
Status want_range(const Call& c, int k, double least, double below, const char* want) {
    const double v = c.attr[k].f;
    if (v >= least && v < below) return Status::ok;
    const char* name = c.op->attrs[k].name;
    return fail(Status::attr, name, "%s=%g; want %s", name, v, want);
}

Status infer_sgd(Call& c, Inferred& r) {
    TW_TRY(want_real(c.in[0], "w"));
    TW_TRY(want_like_w(c, 1));
    const double inf = __builtin_inf();
    TW_TRY(want_range(c, kLr, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kMomentum, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kDampening, -__DBL_MAX__, inf, "a finite number"));
    TW_TRY(want_range(c, kDecay, 0, inf, "a finite number >= 0"));
    const double momentum = c.attr[kMomentum].f, dampening = c.attr[kDampening].f;
    if (c.attr[kNesterov].i && (momentum == 0 || dampening != 0))
        return fail(Status::attr, "nesterov",
                    "nesterov=True with momentum=%g and dampening=%g; want momentum > 0 and dampening=0", momentum,
                    dampening);
    if (given(c.in[2]))
        TW_TRY(want_like_w(c, 2));
    else if (momentum != 0)
        return fail(Status::shape, "v", "v is not given but momentum=%g; want v of the shape of w, zeros at first",
                    momentum);
    r.n_out = 0;
    return Status::ok;
}

Status infer_adam(Call& c, Inferred& r) {
    TW_TRY(want_real(c.in[0], "w"));
    for (int k = 1; k < 4; ++k) TW_TRY(want_like_w(c, k));
    if (c.attr[kStep].i < 1)
        return fail(Status::attr, "step", "step=%lld; want at least 1", static_cast<long long>(c.attr[kStep].i));
    const double inf = __builtin_inf();
    TW_TRY(want_range(c, kAdamLr, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kBeta1, 0, 1, "0 <= beta1 < 1"));
    TW_TRY(want_range(c, kBeta2, 0, 1, "0 <= beta2 < 1"));
    TW_TRY(want_range(c, kEps, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kAdamDecay, 0, inf, "a finite number >= 0"));
    r.n_out = 0;
    r.flops = 20.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status run_sgd(const Call& c) { return c.in[0].dtype == DType::f32 ? sgd<float>(c) : sgd<double>(c); }
Status run_adam(const Call& c) { return c.in[0].dtype == DType::f32 ? adam<float>(c) : adam<double>(c); }

constexpr Operand kSgdOperands[] = {{"w", Role::inout}, {"g"}, {"v", Role::optional_inout}};
constexpr AttrSpec kSgdAttrs[] = {
    {.name = "lr", .kind = AttrKind::real, .required = true},
    {.name = "momentum", .kind = AttrKind::real},
    {.name = "dampening", .kind = AttrKind::real},
    {.name = "nesterov", .kind = AttrKind::boolean},
    {.name = "weight_decay", .kind = AttrKind::real},
};
constexpr Operand kAdamOperands[] = {{"w", Role::inout}, {"g"}, {"m", Role::inout}, {"v", Role::inout}};
constexpr AttrSpec kAdamAttrs[] = {
    {.name = "step", .kind = AttrKind::integer, .required = true},
    {.name = "lr", .kind = AttrKind::real, .f = 1e-3},
    {.name = "beta1", .kind = AttrKind::real, .f = 0.9},
    {.name = "beta2", .kind = AttrKind::real, .f = 0.999},
    {.name = "eps", .kind = AttrKind::real, .f = 1e-8},
    {.name = "weight_decay", .kind = AttrKind::real},
};

}  // namespace

extern const OpDef op_sgd_step = {"sgd_step", kSgdOperands, 3, kSgdAttrs, TW_COUNT(kSgdAttrs), infer_sgd, run_sgd};
extern const OpDef op_adam_step = {"adam_step",          kAdamOperands, 4,       kAdamAttrs,
                                   TW_COUNT(kAdamAttrs), infer_adam,    run_adam};

}  // namespace tw::TW_ISA
