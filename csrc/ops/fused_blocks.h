// The instructions of `fused` on a block of elements in L1, and the way of blocks from memory and back.
#pragma once
#include "core/axes.h"
#include "core/instructions.h"
#include "ops/ops.h"
#include "simd/functions.h"
#include "simd/philox.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// A source is a pointer and how far it moves per vector: not at all where it is one number.
template <class W>
struct Operands {
    W* to;
    const W* from[3];
    int64_t by[3];
    int64_t count;  // a multiple of kLanes
    const Instruction* instruction;
};

template <class F, class W>
__attribute__((noinline)) void unary(const Operands<W>& o) {
    const W* a = o.from[0];
    for (int64_t i = 0; i < o.count; i += kLanes<W>, a += o.by[0]) store(o.to + i, F::of(load(a)));
}

template <class F, class W>
__attribute__((noinline)) void binary(const Operands<W>& o) {
    const W *a = o.from[0], *b = o.from[1];
    const int64_t by_a = o.by[0], by_b = o.by[1];
    int64_t i = 0;
    for (; i + 2 * kLanes<W> <= o.count; i += 2 * kLanes<W>, a += 2 * by_a, b += 2 * by_b) {
        const Vec<W> one = F::of(load(a), load(b)), two = F::of(load(a + by_a), load(b + by_b));
        store(o.to + i, one);
        store(o.to + i + kLanes<W>, two);
    }
    if (i < o.count) store(o.to + i, F::of(load(a), load(b)));
}

template <class W>
TW_INLINE Constants<Vec<W>> constants_of(const Operands<W>& o) {
    return {constant<Vec<W>>(o.instruction->constant[0]), constant<Vec<W>>(o.instruction->constant[1])};
}

template <class F, class W>
__attribute__((noinline)) void function(const Operands<W>& o) {
    const Constants<Vec<W>> c = constants_of(o);
    const W* a = o.from[0];
    for (int64_t i = 0; i < o.count; i += kLanes<W>, a += o.by[0]) store(o.to + i, F::of(load(a), c));
}

template <class F, class W>
__attribute__((noinline)) void slope(const Operands<W>& o) {
    const Constants<Vec<W>> c = constants_of(o);
    const W *dy = o.from[0], *x = o.from[1];
    for (int64_t i = 0; i < o.count; i += kLanes<W>, dy += o.by[0], x += o.by[1])
        store(o.to + i, load(dy) * F::slope(load(x), c));
}

struct Maximum {
    template <class V> TW_INLINE V of(V a, V b) { return max_nan(a, b); }
};
struct Minimum {
    template <class V> TW_INLINE V of(V a, V b) { return min_nan(a, b); }
};
template <class V>
TW_INLINE V truth(decltype(V{} < V{}) mask) {
    return select(mask, constant<V>(1), V{});
}
struct Equal {
    template <class V> TW_INLINE V of(V a, V b) { return truth<V>(a == b); }
};
struct NotEqual {
    template <class V> TW_INLINE V of(V a, V b) { return truth<V>(a != b); }
};
struct Less {
    template <class V> TW_INLINE V of(V a, V b) { return truth<V>(a < b); }
};
struct LessEqual {
    template <class V> TW_INLINE V of(V a, V b) { return truth<V>(a <= b); }
};
struct Greater {
    template <class V> TW_INLINE V of(V a, V b) { return truth<V>(a > b); }
};
struct GreaterEqual {
    template <class V> TW_INLINE V of(V a, V b) { return truth<V>(a >= b); }
};

template <class W>
void choose(const Operands<W>& o) {
    const W *c = o.from[0], *a = o.from[1], *b = o.from[2];
    for (int64_t i = 0; i < o.count; i += kLanes<W>, c += o.by[0], a += o.by[1], b += o.by[2])
        store(o.to + i, select(load(c) != 0, load(a), load(b)));
}

template <class T, class W>
void round_to(const Operands<W>& o) {
    const W* a = o.from[0];
    T narrow[kLanes<W>];
    for (int64_t i = 0; i < o.count; i += kLanes<W>, a += o.by[0]) {
        store_from(narrow, load(a));
        store(o.to + i, load_as<W>(narrow));
    }
}
struct Same {
    template <class V> TW_INLINE V of(V x) { return x; }
};
struct Truth {
    template <class V> TW_INLINE V of(V x) { return truth<V>(x != 0); }
};

template <class W>
void convert(const Operands<W>& o) {
    const DType dtype = o.instruction->dtype;
    if (dtype == DType::boolean) return unary<Truth, W>(o);
    if constexpr (__is_same(W, float)) {
        if (dtype == DType::f16) return round_to<f16, W>(o);
        if (dtype == DType::bf16) return round_to<bf16, W>(o);
    }
    unary<Same, W>(o);
}

// The draws of elements first .. first + count are those of the op dropout.
template <class W>
void drop(const Operands<W>& o, int64_t first) {
    const double p = o.instruction->constant[0];
    const auto limit = static_cast<uint64_t>(p * 0x1p32);
    const Vec<W> scale = constant<Vec<W>>(p < 1 ? 1 / (1 - p) : 0);
    const auto seed = static_cast<uint64_t>(o.instruction->draw[0]);
    const auto offset = static_cast<uint64_t>(o.instruction->draw[1]);
    alignas(kVecBytes) W passes[4 * kCounters + kLanes<W>];
    uint32_t words[4 * kCounters];
    const W* a = o.from[0];
    // Sixty-four draws at a time, from a multiple of four; the first may lie before this block.
    int64_t at = first / 4 * 4, skipped = first - at;
    for (int64_t i = 0; i < o.count; at += 4 * kCounters) {
        philox(words, static_cast<uint64_t>(at) / 4, offset, seed);
        for (int k = 0; k < 4 * kCounters; ++k) passes[k] = words[k] >= limit ? W{1} : W{0};
        int64_t k = skipped;
        for (; k + kLanes<W> <= 4 * kCounters && i < o.count; k += kLanes<W>, i += kLanes<W>, a += o.by[0])
            store(o.to + i, select(load(passes + k) != 0, load(a) * scale, Vec<W>{}));
        // What is left is drawn again, together with what follows.
        at -= 4 * kCounters - k / 4 * 4;
        skipped = k % 4;
    }
}

template <class W>
void execute(Code code, const Operands<W>& o, int64_t first) {
    switch (code) {
#define TW_UNARY(name, F) \
    case Code::name: return unary<F, W>(o);
#define TW_BINARY(name, F) \
    case Code::name: return binary<F, W>(o);
#define TW_FUNCTION(name, F)                   \
    case Code::name: return function<F, W>(o); \
    case Code::name##_dx: return slope<F, W>(o);
        TW_BINARY(add, Add)
        TW_BINARY(sub, Sub)
        TW_BINARY(mul, Mul)
        TW_BINARY(div, Div)
        TW_BINARY(maximum, Maximum)
        TW_BINARY(minimum, Minimum)
        TW_UNARY(relu, Relu)
        TW_UNARY(sigmoid, Sigmoid)
        TW_UNARY(tanh, Tanh)
        TW_UNARY(gelu, Gelu)
        TW_UNARY(gelu_tanh, GeluTanh)
        TW_UNARY(exp, Exp)
        TW_UNARY(log, Log)
        TW_UNARY(erf, Erf)
        TW_BINARY(relu_dx, ReluDx)
        TW_BINARY(sigmoid_dx, SigmoidDx)
        TW_BINARY(tanh_dx, TanhDx)
        TW_BINARY(gelu_dx, GeluDx)
        TW_BINARY(gelu_tanh_dx, GeluTanhDx)
        TW_FUNCTION(silu, Silu)
        TW_FUNCTION(softplus, Softplus)
        TW_FUNCTION(mish, Mish)
        TW_FUNCTION(elu, Elu)
        TW_FUNCTION(leaky_relu, LeakyRelu)
        TW_FUNCTION(hard_sigmoid, HardSigmoid)
        TW_FUNCTION(hard_swish, HardSwish)
        TW_FUNCTION(clip, Clip)
        TW_FUNCTION(sqrt, Sqrt)
        TW_FUNCTION(rsqrt, Rsqrt)
        TW_FUNCTION(abs, Abs)
        TW_FUNCTION(neg, Neg)
        TW_BINARY(equal, Equal)
        TW_BINARY(not_equal, NotEqual)
        TW_BINARY(less, Less)
        TW_BINARY(less_equal, LessEqual)
        TW_BINARY(greater, Greater)
        TW_BINARY(greater_equal, GreaterEqual)
        case Code::where: return choose<W>(o);
        case Code::cast: return convert<W>(o);
        case Code::dropout: return drop<W>(o, first);
        case Code::sum:
        case Code::mean:
        case Code::max: return;  // folds are not elementwise
#undef TW_UNARY
#undef TW_BINARY
#undef TW_FUNCTION
    }
}

// ---- memory <-> blocks ----------------------------------------------------------------------------------------------

template <class W, class T>
void gather(W* to, const T* x, const Axes& a, int64_t i, int64_t n) {
    for (int64_t k = 0; k < n;) {
        const int64_t run = min_of(run_of(a, i + k), n - k), step = step_of(a);
        const T* const from = x + offset_of(a, i + k);
        if constexpr (__is_same(T, uint8_t)) {
            for (int64_t j = 0; j < run; ++j) to[k + j] = from[j * step] != 0 ? W{1} : W{0};
        } else {
            copy_row(to + k, 1, from, step, run);
        }
        k += run;
    }
}

template <class W>
void gather_any(W* to, const View& x, const Axes& a, int64_t i, int64_t n) {
    if (x.dtype == DType::boolean) return gather(to, x.as<const uint8_t>(), a, i, n);
    if constexpr (__is_same(W, float)) {
        if (x.dtype == DType::f16) return gather(to, x.as<const f16>(), a, i, n);
        if (x.dtype == DType::bf16) return gather(to, x.as<const bf16>(), a, i, n);
    }
    gather(to, x.as<const W>(), a, i, n);
}

template <class T, class W>
void scatter(T* y, const Axes& a, int64_t i, const W* from, int64_t n) {
    for (int64_t k = 0; k < n;) {
        const int64_t run = min_of(run_of(a, i + k), n - k), step = step_of(a);
        T* const to = y + offset_of(a, i + k);
        if constexpr (__is_same(T, uint8_t)) {
            for (int64_t j = 0; j < run; ++j) to[j * step] = from[k + j] != 0;
        } else {
            copy_row(to, step, from + k, 1, run);
        }
        k += run;
    }
}

template <class W>
void scatter_any(const View& y, const Axes& a, int64_t i, const W* from, int64_t n) {
    if (y.dtype == DType::boolean) return scatter(y.as<uint8_t>(), a, i, from, n);
    if constexpr (__is_same(W, float)) {
        if (y.dtype == DType::f16) return scatter(y.as<f16>(), a, i, from, n);
        if (y.dtype == DType::bf16) return scatter(y.as<bf16>(), a, i, from, n);
    }
    scatter(y.as<W>(), a, i, from, n);
}

}  // namespace
}  // namespace tw::TW_ISA
