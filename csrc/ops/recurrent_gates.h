// The functions that gates and states of recurrent layers may pass through, by row and in place, and their slopes.
//
// A slope is a function of the result alone, so that forward keeps nothing but gates. The constants are those of ONNX.
#pragma once
#include "ops/ops.h"
#include "simd/functions.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

enum class Gate : int { sigmoid, tanh, relu, hard_sigmoid, leaky_relu, elu, softsign, softplus, identity };
constexpr const char* kGates = "sigmoid|tanh|relu|hard_sigmoid|leaky_relu|elu|softsign|softplus|identity";
TW_INLINE Gate gate_of(const Attr& a) { return static_cast<Gate>(a.choice); }

// The usual gate, for loops that take a cell at a time: 1 / (1 + exp(-x)), and 0 below x = -87, where exp(-x) may be anything.
TW_INLINE f32v opened(f32v x) {
    if constexpr (kVecBytes == 64) return sigmoid(x);
    return select(x < -87.f, f32v{}, 1.f / (1.f + normal_value_of(exp_parts(at_least(-x, -87.f)))));
}
TW_INLINE f64v opened(f64v x) { return sigmoid(x); }

template <class V>
TW_INLINE Constants<V> constants_of(Gate gate) {
    const double alpha = gate == Gate::hard_sigmoid ? 0.2 : gate == Gate::leaky_relu ? 0.01 : 1;
    return {constant<V>(alpha), constant<V>(0.5)};
}

// row[0, n) = f(row).
template <class W>
void pass_gate(W* row, int64_t n, Gate gate) {
    typedef Vec<W> V;
    const Constants<V> c = constants_of<V>(gate);
    const auto each = [&](const auto& f) __attribute__((always_inline)) {
        each_vector<W>(n, [&](int64_t u, int64_t lanes)
                              __attribute__((always_inline)) { put(row, 1, u, lanes, f(take(row, 1, u, lanes))); });
    };
    switch (gate) {
        case Gate::sigmoid: return each([](V x) __attribute__((always_inline)) { return sigmoid(x); });
        case Gate::tanh: return each([](V x) __attribute__((always_inline)) { return tanh(x); });
        case Gate::relu: return each([](V x) __attribute__((always_inline)) { return Relu::of(x); });
        case Gate::hard_sigmoid: return each([&](V x) __attribute__((always_inline)) { return HardSigmoid::of(x, c); });
        case Gate::leaky_relu: return each([&](V x) __attribute__((always_inline)) { return LeakyRelu::of(x, c); });
        case Gate::elu: return each([&](V x) __attribute__((always_inline)) { return Elu::of(x, c); });
        case Gate::softsign: return each([](V x) __attribute__((always_inline)) { return x / (1 + abs(x)); });
        case Gate::softplus: return each([&](V x) __attribute__((always_inline)) { return Softplus::of(x, c); });
        case Gate::identity: return;
    }
}

// slope[0, n) *= f', from what f gave: y, of any stride.
template <class W>
void pass_back(const W* y, int64_t step, W* slope, int64_t n, Gate gate) {
    typedef Vec<W> V;
    const Constants<V> c = constants_of<V>(gate);  // products with 0, so that a NaN stays
    const auto each = [&](const auto& f) __attribute__((always_inline)) {
        each_vector<W>(n, [&](int64_t u, int64_t lanes) __attribute__((always_inline)) {
            put(slope, 1, u, lanes, f(take(slope, 1, u, lanes), take(y, step, u, lanes)));
        });
    };
    switch (gate) {
        case Gate::sigmoid: return each([](V s, V v) __attribute__((always_inline)) { return SigmoidDx::of(s, v); });
        case Gate::tanh: return each([](V s, V v) __attribute__((always_inline)) { return TanhDx::of(s, v); });
        case Gate::relu:
            return each([&](V s, V v) __attribute__((always_inline)) { return s * select(v > 0, c.alpha, V{}); });
        case Gate::hard_sigmoid:
            return each([&](V s, V v)
                            __attribute__((always_inline)) { return s * select((v > 0) & (v < 1), c.alpha, V{}); });
        case Gate::leaky_relu:
            return each([&](V s, V v) __attribute__((always_inline)) { return select(v > 0, s, s * c.alpha); });
        case Gate::elu:
            return each([](V s, V v) __attribute__((always_inline)) { return select(v > 0, s, s * (v + 1)); });
        case Gate::softsign:
            return each([](V s, V v) __attribute__((always_inline)) { return s * (1 - abs(v)) * (1 - abs(v)); });
        case Gate::softplus: return each([](V s, V v) __attribute__((always_inline)) { return -s * expm1(-v); });
        case Gate::identity: return;
    }
}

}  // namespace
}  // namespace tw::TW_ISA
