// Optimizer steps in place, along g' = scale g + weight_decay w + l1 sign(w).
//   sgd:      v = momentum v + (1 - dampening) g', w -= lr v, or lr (g' + momentum v) with nesterov; where velocity is
//             "steps", v sums lr g' and w -= v; where it is "moves", it is the negative of that
//   adam:     m = beta1 m + (1 - beta1) g', v = beta2 v + (1 - beta2) g'^2, w -= lr m' / (sqrt(v') + eps) with
//             m' = m / (1 - beta1^step), v' = v / (1 - beta2^step), of the largest v so far where vmax is given;
//             decoupled: w -= lr weight_decay w instead of the term in g'
//   rmsprop:  v = alpha v + (1 - alpha) g'^2, d = sqrt(v - mean^2) + eps with mean = alpha mean + (1 - alpha) g' where it
//             is given, else sqrt(v) + eps; speed = momentum speed + g' / d, w -= lr speed
//   lion:     w -= lr (sign(beta1 m + (1 - beta1) g') + weight_decay w), m = beta2 m + (1 - beta2) g'
//
// Method    one fused pass: each operand is read once, each updated array written once.
// Numerics  coefficients are formed in double and rounded once to the dtype; square root and division are IEEE's.
// Threads   pieces of kChunkElements; elements are independent.
// The rules are those of torch.optim, the kinds of velocity BNNS's. Kingma and Ba, "Adam", 2015; Loshchilov and Hutter,
// "Decoupled weight decay", 2019; Reddi et al., "On the convergence of Adam", 2018; Chen et al., "Lion", 2023.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/roots.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// ---- what all steps share ---------------------------------------------------------------------------------------------------

// a b + c. Left to the compiler, the two loops of a row might contract their sums in different ways.
template <class T>
TW_INLINE Vec<T> plus(T a, Vec<T> b, Vec<T> c) {
    return fma(splat<T>(a), b, c);
}

template <class T>
struct Slope {
    T scale, decay, l1;
    __attribute__((always_inline)) Vec<T> of(Vec<T> g, Vec<T> w) const {
        if (scale != 1) g = scale * g;
        if (decay != 0) g = plus(decay, w, g);
        if (l1 != 0) g = plus(l1, sign(w), g);
        return g;
    }
    __attribute__((always_inline)) static Vec<T> sign(Vec<T> x) {
        const Vec<T> one = splat<T>(1);
        return select(x > 0, one, select(x < 0, -one, x));  // NaN stays
    }
};

// Rows of the operands that are given, w first; Dense: they all lie in one run.
template <class T, bool Dense>
struct Rows {
    T* at[kMaxWalked];
    int64_t stride[kMaxWalked];
    __attribute__((always_inline)) Vec<T> get(int k, int64_t i, int64_t n) const {
        if constexpr (Dense) return n == kLanes<T> ? load(at[k] + i) : load_n(at[k] + i, n);
        return take(at[k], stride[k], i, n);
    }
    __attribute__((always_inline)) void set(int k, int64_t i, int64_t n, Vec<T> v) const {
        if constexpr (Dense)
            n == kLanes<T> ? store(at[k] + i, v) : store_n(at[k] + i, v, n);
        else
            put(at[k], stride[k], i, n, v);
    }
};

constexpr int64_t kAheadBytes = 1024;  // so many streams at once are too many for the hardware to see far ahead

// body(rows, i, n) for lanes [i, i + n) of all rows.
template <class T, class Body>
Status each_step(const Call& c, const int* operands, int count, const Body& body) {
    const View* views[kMaxWalked];
    for (int k = 0; k < count; ++k) views[k] = &c.in[operands[k]];
    const Walk walk = walk_over(views, count, c.in[0].ndim, c.in[0].shape);
    bool dense = true;
    for (int k = 0; k < count; ++k) dense = dense && walk.stride[k] == 1;
    const auto run = [&](auto rows, char* const* at, int64_t elements) __attribute__((always_inline)) {
        for (int k = 0; k < count; ++k) rows.at[k] = reinterpret_cast<T*>(at[k]), rows.stride[k] = walk.stride[k];
        each_vector<T>(elements, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            for (int k = 0; k < count; ++k)
                __builtin_prefetch(reinterpret_cast<const char*>(rows.at[k] + i * rows.stride[k]) + kAheadBytes);
            body(rows, i, n);
        });
    };
    for_each_row(walk, kChunkElements, [&](char* const* at, int64_t elements) {
        if (dense)
            run(Rows<T, true>{}, at, elements);
        else
            run(Rows<T, false>{}, at, elements);
    });
    return Status::ok;
}

// ---- sgd --------------------------------------------------------------------------------------------------------------------

enum SgdAttr { kLr, kMomentum, kDampening, kNesterov, kDecay, kVelocity, kScale, kL1 };
enum Velocity { kGradients, kSteps, kMoves };

template <class T>
Status sgd(const Call& c) {
    const Attr* a = c.attr;
    const Slope<T> slope = {static_cast<T>(a[kScale].f), static_cast<T>(a[kDecay].f), static_cast<T>(a[kL1].f)};
    const T lr = static_cast<T>(a[kLr].f), momentum = static_cast<T>(a[kMomentum].f);
    if (momentum == 0) {
        const int operands[] = {0, 1};
        return each_step<T>(c, operands, 2, [&](const auto& r, int64_t i, int64_t n) __attribute__((always_inline)) {
            const Vec<T> w = r.get(0, i, n);
            r.set(0, i, n, plus(-lr, slope.of(r.get(1, i, n), w), w));
        });
    }
    const int operands[] = {0, 1, 2};
    const bool nesterov = a[kNesterov].i != 0;
    const T keep = static_cast<T>(1 - a[kDampening].f);
    const T sign = a[kVelocity].choice == kMoves ? T{-1} : T{1};
    // The rate goes in before the velocity or behind it.
    const bool late = a[kVelocity].choice == kGradients;
    const T in = late ? keep : sign * static_cast<T>(a[kLr].f * (1 - a[kDampening].f)), out = late ? lr : sign;
    return each_step<T>(c, operands, 3, [&](const auto& r, int64_t i, int64_t n) __attribute__((always_inline)) {
        const Vec<T> w = r.get(0, i, n), g = slope.of(r.get(1, i, n), w);
        const Vec<T> along = in * g, v = plus(momentum, r.get(2, i, n), along);
        r.set(2, i, n, v);
        r.set(0, i, n, plus(-out, nesterov ? plus(momentum, v, along) : v, w));
    });
}

// ---- adam -------------------------------------------------------------------------------------------------------------------

enum AdamAttr { kStep, kAdamLr, kBeta1, kBeta2, kEps, kAdamDecay, kDecoupled, kAdamScale, kAdamL1 };

template <class T>
Status adam(const Call& c) {
    const Attr* a = c.attr;
    const double step = static_cast<double>(a[kStep].i), b1 = a[kBeta1].f, b2 = a[kBeta2].f;
    const bool decoupled = a[kDecoupled].i != 0, largest = given(c.in[4]);
    const Slope<T> slope = {static_cast<T>(a[kAdamScale].f), static_cast<T>(decoupled ? 0 : a[kAdamDecay].f),
                            static_cast<T>(a[kAdamL1].f)};
    const T rate = static_cast<T>(a[kAdamLr].f / (1 - __builtin_pow(b1, step)));
    const T root = static_cast<T>(1 / __builtin_sqrt(1 - __builtin_pow(b2, step)));
    const T left = static_cast<T>(decoupled ? 1 - a[kAdamLr].f * a[kAdamDecay].f : 1), eps = static_cast<T>(a[kEps].f);
    const T beta1 = static_cast<T>(b1), rest1 = static_cast<T>(1 - b1);
    const T beta2 = static_cast<T>(b2), rest2 = static_cast<T>(1 - b2);
    const int operands[] = {0, 1, 2, 3, 4};
    return each_step<T>(c, operands, largest ? 5 : 4,
                        [&](const auto& r, int64_t i, int64_t n) __attribute__((always_inline)) {
        const Vec<T> w = r.get(0, i, n), g = slope.of(r.get(1, i, n), w);
        const Vec<T> m = plus(beta1, r.get(2, i, n), rest1 * g);
        const Vec<T> v = plus(beta2, r.get(3, i, n), rest2 * g * g);
        Vec<T> size = v;
        r.set(2, i, n, m);
        r.set(3, i, n, v);
        if (largest) {
            size = max_nan(r.get(4, i, n), v);
            r.set(4, i, n, size);
        }
        const Vec<T> move = rate * m / plus(root, sqrt(size), splat<T>(eps));
        r.set(0, i, n, decoupled ? plus(left, w, -move) : w - move);
    });
}

// ---- rmsprop ----------------------------------------------------------------------------------------------------------------

enum RmsAttr { kRmsLr, kAlpha, kRmsEps, kRmsMomentum, kRmsDecay, kRmsScale, kRmsL1 };

template <class T>
Status rmsprop(const Call& c) {
    const Attr* a = c.attr;
    const Slope<T> slope = {static_cast<T>(a[kRmsScale].f), static_cast<T>(a[kRmsDecay].f),
                            static_cast<T>(a[kRmsL1].f)};
    const T lr = static_cast<T>(a[kRmsLr].f), eps = static_cast<T>(a[kRmsEps].f);
    const T momentum = static_cast<T>(a[kRmsMomentum].f);
    const T alpha = static_cast<T>(a[kAlpha].f), rest = static_cast<T>(1 - a[kAlpha].f);
    int operands[5] = {0, 1, 2}, count = 3, mean_at = 0, speed_at = 0;
    if (given(c.in[3])) operands[mean_at = count++] = 3;
    if (a[kRmsMomentum].f != 0) operands[speed_at = count++] = 4;
    return each_step<T>(c, operands, count, [&](const auto& r, int64_t i, int64_t n) __attribute__((always_inline)) {
        const Vec<T> w = r.get(0, i, n), g = slope.of(r.get(1, i, n), w);
        const Vec<T> v = plus(alpha, r.get(2, i, n), rest * g * g);
        r.set(2, i, n, v);
        Vec<T> size = v;
        if (mean_at) {
            const Vec<T> mean = plus(alpha, r.get(mean_at, i, n), rest * g);
            r.set(mean_at, i, n, mean);
            size = fma(-mean, mean, v);
        }
        Vec<T> speed = g / (sqrt(size) + eps);
        if (speed_at) {
            speed = plus(momentum, r.get(speed_at, i, n), speed);
            r.set(speed_at, i, n, speed);
        }
        r.set(0, i, n, plus(-lr, speed, w));
    });
}

// ---- lion -------------------------------------------------------------------------------------------------------------------

enum LionAttr { kLionLr, kLionBeta1, kLionBeta2, kLionDecay, kLionScale, kLionL1 };

template <class T>
Status lion(const Call& c) {
    const Attr* a = c.attr;
    const Slope<T> slope = {static_cast<T>(a[kLionScale].f), T{0}, static_cast<T>(a[kLionL1].f)};
    const T lr = static_cast<T>(a[kLionLr].f), decay = static_cast<T>(a[kLionDecay].f);
    const T beta1 = static_cast<T>(a[kLionBeta1].f), rest1 = static_cast<T>(1 - a[kLionBeta1].f);
    const T beta2 = static_cast<T>(a[kLionBeta2].f), rest2 = static_cast<T>(1 - a[kLionBeta2].f);
    const int operands[] = {0, 1, 2};
    return each_step<T>(c, operands, 3, [&](const auto& r, int64_t i, int64_t n) __attribute__((always_inline)) {
        const Vec<T> w = r.get(0, i, n), g = slope.of(r.get(1, i, n), w), m = r.get(2, i, n);
        r.set(0, i, n, plus(-lr, plus(decay, w, Slope<T>::sign(plus(beta1, m, rest1 * g))), w));
        r.set(2, i, n, plus(beta2, m, rest2 * g));
    });
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

// The last two attributes of every step.
Status want_slope(const Call& c, int scale) {
    TW_TRY(want_range(c, scale, -__DBL_MAX__, __builtin_inf(), "a finite number"));
    return want_range(c, scale + 1, 0, __builtin_inf(), "a finite number >= 0");
}

Status infer_sgd(Call& c, Inferred& r) {
    TW_TRY(want_real(c.in[0], "w"));
    TW_TRY(want_like_w(c, 1));
    const double inf = __builtin_inf();
    TW_TRY(want_range(c, kLr, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kMomentum, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kDampening, -__DBL_MAX__, inf, "a finite number"));
    TW_TRY(want_range(c, kDecay, 0, inf, "a finite number >= 0"));
    TW_TRY(want_slope(c, kScale));
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
    for (int k = 1; k < 5; ++k)
        if (k < 4 || given(c.in[k])) TW_TRY(want_like_w(c, k));
    if (c.attr[kStep].i < 1)
        return fail(Status::attr, "step", "step=%lld; want at least 1", static_cast<long long>(c.attr[kStep].i));
    const double inf = __builtin_inf();
    TW_TRY(want_range(c, kAdamLr, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kBeta1, 0, 1, "0 <= beta1 < 1"));
    TW_TRY(want_range(c, kBeta2, 0, 1, "0 <= beta2 < 1"));
    TW_TRY(want_range(c, kEps, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kAdamDecay, 0, inf, "a finite number >= 0"));
    TW_TRY(want_slope(c, kAdamScale));
    r.n_out = 0;
    r.flops = 20.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status infer_rmsprop(Call& c, Inferred& r) {
    TW_TRY(want_real(c.in[0], "w"));
    for (int k = 1; k < 5; ++k)
        if (k < 3 || given(c.in[k])) TW_TRY(want_like_w(c, k));
    const double inf = __builtin_inf();
    TW_TRY(want_range(c, kRmsLr, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kAlpha, 0, 1, "0 <= alpha < 1"));
    TW_TRY(want_range(c, kRmsEps, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kRmsMomentum, 0, inf, "a finite number >= 0"));
    TW_TRY(want_range(c, kRmsDecay, 0, inf, "a finite number >= 0"));
    TW_TRY(want_slope(c, kRmsScale));
    if (c.attr[kRmsMomentum].f != 0 && !given(c.in[4]))
        return fail(Status::shape, "speed",
                    "speed is not given but momentum=%g; want speed of the shape of w, zeros at first",
                    c.attr[kRmsMomentum].f);
    r.n_out = 0;
    r.flops = 20.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status infer_lion(Call& c, Inferred& r) {
    TW_TRY(want_real(c.in[0], "w"));
    for (int k = 1; k < 3; ++k) TW_TRY(want_like_w(c, k));
    TW_TRY(want_range(c, kLionLr, 0, __builtin_inf(), "a finite number >= 0"));
    TW_TRY(want_range(c, kLionBeta1, 0, 1, "0 <= beta1 < 1"));
    TW_TRY(want_range(c, kLionBeta2, 0, 1, "0 <= beta2 < 1"));
    TW_TRY(want_range(c, kLionDecay, 0, __builtin_inf(), "a finite number >= 0"));
    TW_TRY(want_slope(c, kLionScale));
    r.n_out = 0;
    r.flops = 10.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status run_sgd(const Call& c) { return c.in[0].dtype == DType::f32 ? sgd<float>(c) : sgd<double>(c); }
Status run_adam(const Call& c) { return c.in[0].dtype == DType::f32 ? adam<float>(c) : adam<double>(c); }
Status run_rmsprop(const Call& c) { return c.in[0].dtype == DType::f32 ? rmsprop<float>(c) : rmsprop<double>(c); }
Status run_lion(const Call& c) { return c.in[0].dtype == DType::f32 ? lion<float>(c) : lion<double>(c); }

constexpr Operand kSgdOperands[] = {{"w", Role::inout}, {"g"}, {"v", Role::optional_inout}};
constexpr AttrSpec kSgdAttrs[] = {
    {.name = "lr", .kind = AttrKind::real, .required = true},
    {.name = "momentum", .kind = AttrKind::real},
    {.name = "dampening", .kind = AttrKind::real},
    {.name = "nesterov", .kind = AttrKind::boolean},
    {.name = "weight_decay", .kind = AttrKind::real},
    {.name = "velocity", .kind = AttrKind::choice, .choices = "gradients|steps|moves"},
    {.name = "scale", .kind = AttrKind::real, .f = 1},
    {.name = "l1", .kind = AttrKind::real},
};
constexpr Operand kAdamOperands[] = {
    {"w", Role::inout}, {"g"}, {"m", Role::inout}, {"v", Role::inout}, {"vmax", Role::optional_inout}};
constexpr AttrSpec kAdamAttrs[] = {
    {.name = "step", .kind = AttrKind::integer, .required = true},
    {.name = "lr", .kind = AttrKind::real, .f = 1e-3},
    {.name = "beta1", .kind = AttrKind::real, .f = 0.9},
    {.name = "beta2", .kind = AttrKind::real, .f = 0.999},
    {.name = "eps", .kind = AttrKind::real, .f = 1e-8},
    {.name = "weight_decay", .kind = AttrKind::real},
    {.name = "decoupled", .kind = AttrKind::boolean},
    {.name = "scale", .kind = AttrKind::real, .f = 1},
    {.name = "l1", .kind = AttrKind::real},
};
constexpr Operand kRmsOperands[] = {
    {"w", Role::inout}, {"g"}, {"v", Role::inout}, {"mean", Role::optional_inout}, {"speed", Role::optional_inout}};
constexpr AttrSpec kRmsAttrs[] = {
    {.name = "lr", .kind = AttrKind::real, .f = 1e-2},
    {.name = "alpha", .kind = AttrKind::real, .f = 0.99},
    {.name = "eps", .kind = AttrKind::real, .f = 1e-8},
    {.name = "momentum", .kind = AttrKind::real},
    {.name = "weight_decay", .kind = AttrKind::real},
    {.name = "scale", .kind = AttrKind::real, .f = 1},
    {.name = "l1", .kind = AttrKind::real},
};
constexpr Operand kLionOperands[] = {{"w", Role::inout}, {"g"}, {"m", Role::inout}};
constexpr AttrSpec kLionAttrs[] = {
    {.name = "lr", .kind = AttrKind::real, .f = 1e-4},    {.name = "beta1", .kind = AttrKind::real, .f = 0.9},
    {.name = "beta2", .kind = AttrKind::real, .f = 0.99}, {.name = "weight_decay", .kind = AttrKind::real},
    {.name = "scale", .kind = AttrKind::real, .f = 1},    {.name = "l1", .kind = AttrKind::real},
};

}  // namespace

extern const Entry op_sgd_step = {"sgd_step", kSgdOperands, 3, kSgdAttrs, TW_COUNT(kSgdAttrs), infer_sgd, run_sgd};
extern const Entry op_adam_step = {"adam_step",          kAdamOperands, 5,       kAdamAttrs,
                                   TW_COUNT(kAdamAttrs), infer_adam,    run_adam};
extern const Entry op_rmsprop_step = {"rmsprop_step",      kRmsOperands,  5,          kRmsAttrs,
                                      TW_COUNT(kRmsAttrs), infer_rmsprop, run_rmsprop};
extern const Entry op_lion_step = {"lion_step",          kLionOperands, 3,       kLionAttrs,
                                   TW_COUNT(kLionAttrs), infer_lion,    run_lion};

}  // namespace tw::TW_ISA
