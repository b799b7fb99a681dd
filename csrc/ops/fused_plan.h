// The plan of a call of `fused`: its steps by stage, and where each value lives.
#pragma once
#include "core/axes.h"
#include "core/instructions.h"
#include "core/types.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

template <class W>
constexpr int64_t kBlock = 4096 / static_cast<int64_t>(sizeof(W));  // elements; a whole number of fold blocks
constexpr Code kSpread = static_cast<Code>(255);  // a number of each row -> every element of the row
constexpr int kMaxSlots = kMaxValues + 2 * kMaxInstructions;  // values, numbers in place of values, spread ones
constexpr int kMaxSteps = 2 * kMaxInstructions;
constexpr int kMaxStages = kMaxFolds + 1;

struct Step {
    const Instruction* instruction;  // null for kSpread
    Code code;
    int8_t fold;  // its number among the folds
    int16_t to, from[3];
};

struct Stage {
    int first, whole, last;  // steps: those on a number per row, then those on whole rows
    uint64_t operands;  // that it reads
};

struct Result {
    int16_t slot;
    int8_t stage;
    bool per_row;
    Axes axes;
};

struct Plan {
    int64_t rows, n, total;  // rows of n elements; without folds, blocks of one row that is everything
    int64_t group;  // rows that share a block; 0 where a row is longer than one
    bool folds;
    int n_slots, n_steps, n_stages, n_operands, n_results, n_numbers;
    Step step[kMaxSteps];
    Stage stage[kMaxStages];
    Axes axes[kMaxInputs];
    uint64_t filled;  // operands that must not stay one number: they are folded
    Result result[kMaxOutputs];
    double number[kMaxInstructions];  // slots first_number .. first_number + n_numbers
    int first_number;
    // Where a slot lives: a block buffer, a buffer of its own for a whole row, or a number per row.
    enum Place : uint8_t { operand, block, kept, per_row, one } place[kMaxSlots];
    int16_t index[kMaxSlots];  // among those of its place
    int n_blocks, n_kept, n_per_row;
};

Axes axes_over(const View& v, int ndim, const int64_t* shape) {
    Axes a;
    a.n = 0;
    a.count = 1;
    const int missing = ndim - v.ndim;
    for (int d = 0; d < ndim; ++d) {
        const bool own = d >= missing && v.shape[d - missing] != 1;
        append_axis(a, shape[d], own ? v.stride[d - missing] : 0);
    }
    return a;
}

// Gives every instruction its stage, and orders the steps by it.
void order_steps(const Program& p, const ProgramTypes& t, Plan& plan) {
    int8_t ready[kMaxValues], stage[kMaxInstructions];
    for (int k = 0; k < p.n_operands; ++k) ready[k] = 0;
    plan.n_stages = 1;
    int8_t folds = 0;
    int8_t fold[kMaxInstructions];
    for (int at = 0; at < p.n; ++at) {
        const Instruction& i = p.instruction[at];
        int8_t when = 0;
        for (int k = 0; k < i.n_sources; ++k)
            if (i.source[k] != kNumber && ready[i.source[k]] > when) when = ready[i.source[k]];
        stage[at] = when;
        fold[at] = i.kind == Kind::fold ? folds++ : int8_t{0};
        ready[p.n_operands + at] = static_cast<int8_t>(when + (i.kind == Kind::fold));
        if (when + 1 > plan.n_stages) plan.n_stages = when + 1;
    }
    plan.n_steps = 0;
    plan.filled = 0;
    plan.n_slots = p.n_operands + p.n;
    plan.first_number = plan.n_slots;
    plan.n_numbers = 0;
    for (int at = 0; at < p.n; ++at)
        for (int k = 0; k < p.instruction[at].n_sources; ++k)
            if (p.instruction[at].source[k] == kNumber) plan.number[plan.n_numbers++] = p.instruction[at].number[k];
    plan.n_slots += plan.n_numbers;
    int16_t first_number[kMaxInstructions], spread[kMaxValues];
    for (int at = 0, n = plan.first_number; at < p.n; ++at) {
        first_number[at] = static_cast<int16_t>(n);
        for (int k = 0; k < p.instruction[at].n_sources; ++k) n += p.instruction[at].source[k] == kNumber;
    }
    for (int v = 0; v < plan.first_number; ++v) spread[v] = -1;

    for (int s = 0; s < plan.n_stages; ++s) {
        Stage& now = plan.stage[s];
        now.first = plan.n_steps;
        now.operands = 0;
        for (int whole = 0; whole < 2; ++whole) {
            if (whole) now.whole = plan.n_steps;
            for (int at = 0; at < p.n; ++at) {
                const Instruction& i = p.instruction[at];
                const int value = p.n_operands + at;
                const bool on_rows = t.per_row[value] && i.kind != Kind::fold;
                if (stage[at] != s || on_rows == (whole != 0)) continue;
                Step made = {&i, i.code, fold[at], static_cast<int16_t>(value), {-1, -1, -1}};
                int16_t number = first_number[at];
                for (int k = 0; k < i.n_sources; ++k) {
                    int16_t from = i.source[k] == kNumber ? number++ : i.source[k];
                    if (from < p.n_operands) {
                        now.operands |= uint64_t{1} << from;
                        if (i.kind == Kind::fold) plan.filled |= uint64_t{1} << from;
                    } else if (whole && plan.group > 1 && from < plan.first_number && t.per_row[from]) {
                        if (spread[from] < 0) {
                            spread[from] = static_cast<int16_t>(plan.n_slots++);
                            plan.step[plan.n_steps++] = {nullptr, kSpread, 0, spread[from], {from, -1, -1}};
                        }
                        from = spread[from];
                    }
                    made.from[k] = from;
                }
                plan.step[plan.n_steps++] = made;
            }
        }
        now.last = plan.n_steps;
    }
    plan.n_results = p.n_results;
    for (int k = 0; k < p.n_results; ++k) {
        const int v = p.result[k];
        const bool per_row = t.per_row[v];
        plan.result[k].slot = static_cast<int16_t>(v);
        plan.result[k].per_row = per_row;
        plan.result[k].stage = stage[v - p.n_operands];
    }
}

// Gives every slot its place; a block buffer is free again behind the last step that reads it.
void place_slots(const Program& p, const ProgramTypes& t, Plan& plan) {
    int16_t last_use[kMaxSlots];
    int8_t made_in[kMaxSlots];
    for (int v = 0; v < plan.n_slots; ++v) last_use[v] = -1, made_in[v] = 0;
    plan.n_blocks = plan.n_kept = plan.n_per_row = 0;
    for (int v = 0; v < plan.n_slots; ++v) {
        const bool number = v >= plan.first_number && v < plan.first_number + plan.n_numbers;
        const bool row = v >= p.n_operands && v < plan.first_number && t.per_row[v];
        plan.place[v] = v < p.n_operands ? Plan::operand : number ? Plan::one : row ? Plan::per_row : Plan::block;
        plan.index[v] = static_cast<int16_t>(v < p.n_operands ? v : number ? v - plan.first_number : 0);
        if (row) plan.index[v] = static_cast<int16_t>(plan.n_per_row++);
    }
    for (int s = 0; s < plan.n_stages; ++s)
        for (int k = plan.stage[s].first; k < plan.stage[s].last; ++k) {
            made_in[plan.step[k].to] = static_cast<int8_t>(s);
            last_use[plan.step[k].to] = static_cast<int16_t>(k);
            for (const int16_t from : plan.step[k].from) {
                if (from < 0) continue;
                last_use[from] = static_cast<int16_t>(k);
                if (plan.group == 0 && plan.place[from] == Plan::block && made_in[from] != s)
                    plan.place[from] = Plan::kept;
            }
        }
    for (int k = 0; k < plan.n_results; ++k) {
        const Result& r = plan.result[k];
        const int end = plan.stage[r.stage].last;  // behind the stage, when it is stored
        if (last_use[r.slot] < end) last_use[r.slot] = static_cast<int16_t>(end);
    }
    for (int v = 0; v < plan.n_slots; ++v)
        if (plan.place[v] == Plan::kept) plan.index[v] = static_cast<int16_t>(plan.n_kept++);
    int16_t free[kMaxSlots];
    int n_free = 0;
    uint8_t released[kMaxSlots] = {};
    for (int k = 0; k < plan.n_steps; ++k) {
        const Step& step = plan.step[k];
        for (const int16_t from : step.from)
            if (from >= 0 && plan.place[from] == Plan::block && last_use[from] == k && !released[from]) {
                released[from] = 1;
                free[n_free++] = plan.index[from];
            }
        if (plan.place[step.to] != Plan::block) continue;
        plan.index[step.to] = n_free ? free[--n_free] : static_cast<int16_t>(plan.n_blocks++);
    }
}

}  // namespace
}  // namespace tw::TW_ISA
