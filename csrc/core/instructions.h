// Programs of the op `fused`: instructions over whole arrays, one after another, written as text.
//
//   "mul $0 $1; gelu $2; add $3 0.5"    $0 and $1 are operands, $2 is what the first instruction makes, and so on
//   "...; return $2 $4"                 what comes out; without it, the last value
//
// An instruction names its sources, values or numbers, then its own numbers: "clip $3 -1 1", "cast $2 float16",
// "dropout $2 0.1 17 0" (p, seed, offset). "sum", "mean" and "max" fold the trailing axes: such a value has one number
// for each row, and broadcasts when it meets whole ones.
#pragma once
#include "core/status.h"
#include "core/types.h"

namespace tw {

enum class Kind : uint8_t { arithmetic, comparison, choice, conversion, draw, fold };

// name, sources, numbers of its own, kind. The names are those of the ops; f_dx is activation_dx of f.
#define TW_INSTRUCTIONS(X)               \
    X(add, 2, 0, arithmetic)             \
    X(sub, 2, 0, arithmetic)             \
    X(mul, 2, 0, arithmetic)             \
    X(div, 2, 0, arithmetic)             \
    X(maximum, 2, 0, arithmetic)         \
    X(minimum, 2, 0, arithmetic)         \
    X(relu, 1, 0, arithmetic)            \
    X(sigmoid, 1, 0, arithmetic)         \
    X(tanh, 1, 0, arithmetic)            \
    X(gelu, 1, 0, arithmetic)            \
    X(gelu_tanh, 1, 0, arithmetic)       \
    X(exp, 1, 0, arithmetic)             \
    X(log, 1, 0, arithmetic)             \
    X(erf, 1, 0, arithmetic)             \
    X(silu, 1, 0, arithmetic)            \
    X(softplus, 1, 0, arithmetic)        \
    X(mish, 1, 0, arithmetic)            \
    X(elu, 1, 1, arithmetic)             \
    X(leaky_relu, 1, 1, arithmetic)      \
    X(hard_sigmoid, 1, 2, arithmetic)    \
    X(hard_swish, 1, 0, arithmetic)      \
    X(clip, 1, 2, arithmetic)            \
    X(sqrt, 1, 0, arithmetic)            \
    X(rsqrt, 1, 0, arithmetic)           \
    X(abs, 1, 0, arithmetic)             \
    X(neg, 1, 0, arithmetic)             \
    X(relu_dx, 2, 0, arithmetic)         \
    X(sigmoid_dx, 2, 0, arithmetic)      \
    X(tanh_dx, 2, 0, arithmetic)         \
    X(gelu_dx, 2, 0, arithmetic)         \
    X(gelu_tanh_dx, 2, 0, arithmetic)    \
    X(silu_dx, 2, 0, arithmetic)         \
    X(softplus_dx, 2, 0, arithmetic)     \
    X(mish_dx, 2, 0, arithmetic)         \
    X(elu_dx, 2, 1, arithmetic)          \
    X(leaky_relu_dx, 2, 1, arithmetic)   \
    X(hard_sigmoid_dx, 2, 2, arithmetic) \
    X(hard_swish_dx, 2, 0, arithmetic)   \
    X(clip_dx, 2, 2, arithmetic)         \
    X(sqrt_dx, 2, 0, arithmetic)         \
    X(rsqrt_dx, 2, 0, arithmetic)        \
    X(abs_dx, 2, 0, arithmetic)          \
    X(neg_dx, 2, 0, arithmetic)          \
    X(equal, 2, 0, comparison)           \
    X(not_equal, 2, 0, comparison)       \
    X(less, 2, 0, comparison)            \
    X(less_equal, 2, 0, comparison)      \
    X(greater, 2, 0, comparison)         \
    X(greater_equal, 2, 0, comparison)   \
    X(where, 3, 0, choice)               \
    X(cast, 1, 0, conversion)            \
    X(dropout, 1, 3, draw)               \
    X(sum, 1, 0, fold)                   \
    X(mean, 1, 0, fold)                  \
    X(max, 1, 0, fold)

enum class Code : uint8_t {
#define TW_CODE(name, sources, numbers, kind) name,
    TW_INSTRUCTIONS(TW_CODE)
#undef TW_CODE
};

constexpr int kMaxInstructions = 128;
constexpr int kMaxValues = kMaxInputs + kMaxInstructions;
constexpr int kMaxFolds = 8;
constexpr int16_t kNumber = -1;  // in place of a source: number[k]

struct Instruction {
    Code code;
    Kind kind;
    DType dtype;  // of cast
    int8_t n_sources;
    int16_t source[3];
    double number[3];    // in place of sources
    double constant[2];  // its own
    int64_t draw[2];     // seed and offset of dropout
};

struct Program {
    int n_operands, n;
    Instruction instruction[kMaxInstructions];
    int n_results;
    int16_t result[kMaxOutputs];
};

// What every value is; a value per row has size 1 along the folded axes.
struct ProgramTypes {
    DType wide;  // what is computed in: f32, or f64 where the operands are
    DType dtype[kMaxValues];
    bool per_row[kMaxValues];
};

// The program of a text; it lives until the thread reads another.
Status read_program(const char* text, int64_t bytes, int n_operands, const Program*& program);
Status type_program(const Program& program, const View* operands, ProgramTypes& types);

}  // namespace tw
