// What one thread needs to run a piece of a plan of `fused`: groups of short rows, or parts of long ones.
#pragma once
#include "ops/fused_blocks.h"
#include "ops/fused_plan.h"

namespace tw::TW_ISA {
namespace {

template <class W>
constexpr DType kWideType = __is_same(W, float) ? DType::f32 : DType::f64;

// What one thread needs to run a piece of a plan.
template <class W>
class Worker {
public:
    static size_t bytes(const Plan& plan) { return static_cast<size_t>(room(plan)) * sizeof(W); }

    Worker(const Plan& plan, const Call& call, W* memory) : plan_(plan), call_(call) {
        const int64_t row = kept_room(plan), block = block_room();
        W* const blocks = memory + plan.n_operands * block;
        W* const per_row = blocks + plan.n_blocks * block;
        W* const numbers = per_row + plan.n_per_row * block;
        W* const kept = numbers + plan.n_numbers * kLanes<W>;
        for (int v = 0; v < plan.n_slots; ++v) {
            const int64_t k = plan.index[v];
            by_[v] = kLanes<W>;
            switch (plan.place[v]) {
                case Plan::operand: home_[v] = memory + k * block; break;
                case Plan::block: home_[v] = blocks + k * block; break;
                case Plan::kept: home_[v] = kept + k * row; break;
                case Plan::per_row:
                    home_[v] = per_row + k * block;
                    if (plan.group <= 1) by_[v] = 0;
                    break;
                case Plan::one:
                    home_[v] = numbers + k * kLanes<W>;
                    store(home_[v], constant<Vec<W>>(plan.number[k]));
                    by_[v] = 0;
                    break;
            }
            at_[v] = home_[v];
        }
    }

    // Rows that share a block, or a block of everything where nothing is folded.
    void run_group(int64_t group) {
        const int64_t first = plan_.folds ? group * plan_.group * plan_.n : group * kBlock<W>;
        const int64_t rows = plan_.folds ? min_of(plan_.group, plan_.rows - group * plan_.group) : 1;
        const int64_t count = plan_.folds ? rows * plan_.n : min_of(kBlock<W>, plan_.total - first);
        for (int s = 0; s < plan_.n_stages; ++s) {
            run_on_rows(s, rows);
            run_block(s, first, 0, count, rows);
            put_row_results(s, group * plan_.group, rows);
        }
    }

    // A row of several blocks.
    void run_row(int64_t row) {
        for (int s = 0; s < plan_.n_stages; ++s) {
            run_on_rows(s, 1);
            fold_row_part(s, row * plan_.n, 0, plan_.n);
            for (int k = plan_.stage[s].whole; k < plan_.stage[s].last; ++k)
                if (is_fold(plan_.step[k])) close_fold(plan_.step[k], folded(plan_.step[k]));
            put_row_results(s, row, 1);
        }
    }

    // Elements begin .. end of a row through one stage; folds collect.
    void fold_row_part(int s, int64_t first, int64_t begin, int64_t end) {
        for (int f = 0; f < kMaxFolds; ++f) partial_[f].n = 0;
        for (int64_t i = begin; i < end; i += kBlock<W>) run_block(s, first + i, i, min_of(kBlock<W>, end - i), 0);
    }
    Vec<W> folded(const Step& step) const {
        return step.code == Code::max ? joined<Max>(partial_[step.fold], Max::identity<W>())
                                      : joined<Sum>(partial_[step.fold], Sum::identity<W>());
    }
    void close_fold(const Step& step, Vec<W> v) {
        const W whole = step.code == Code::max ? Max::lanes(v) : Sum::lanes(v);
        const W n = static_cast<W>(plan_.n);
        store(at_[step.to], splat<W>(step.code == Code::mean ? whole / n : whole));
    }
    // Stages behind one that was folded elsewhere: a number per row only.
    void finish_row(int64_t row) {
        put_row_results(0, row, 1);
        for (int s = 1; s < plan_.n_stages; ++s) {
            run_on_rows(s, 1);
            put_row_results(s, row, 1);
        }
    }

    static bool is_fold(const Step& step) { return step.code != kSpread && step.instruction->kind == Kind::fold; }

private:
    static int64_t block_room() { return kBlock<W> + kLanes<W>; }
    static int64_t kept_room(const Plan& plan) { return ceil_div(plan.n, kLanes<W>) * kLanes<W> + kLanes<W>; }
    static int64_t room(const Plan& plan) {
        return (plan.n_operands + plan.n_blocks + plan.n_per_row) * block_room() + plan.n_numbers * kLanes<W> +
               plan.n_kept * kept_room(plan);
    }

    void run_step(const Step& step, int64_t count, int64_t first) {
        Operands<W> o;
        o.to = at_[step.to];
        o.count = ceil_div(count, kLanes<W>) * kLanes<W>;
        o.instruction = step.instruction;
        for (int k = 0; k < 3 && step.from[k] >= 0; ++k) o.from[k] = at_[step.from[k]], o.by[k] = by_[step.from[k]];
        execute<W>(step.code, o, first);
    }

    void run_on_rows(int s, int64_t rows) {
        for (int k = plan_.stage[s].first; k < plan_.stage[s].whole; ++k)
            if (plan_.step[k].code != kSpread) run_step(plan_.step[k], rows, 0);
    }

    // Elements first .. first + count, which lie from `inside` on in their row; rows = 0 within a longer row.
    void run_block(int s, int64_t first, int64_t inside, int64_t count, int64_t rows) {
        const Stage& stage = plan_.stage[s];
        if (stage.whole == stage.last) return;
        const bool vectors = count % kLanes<W> == 0;
        for (uint64_t rest = stage.operands; rest; rest &= rest - 1) take_operand(__builtin_ctzll(rest), first, count);
        if (plan_.n_kept)
            for (int v = 0; v < plan_.n_slots; ++v)
                if (plan_.place[v] == Plan::kept) at_[v] = home_[v] + inside;
        bool direct[kMaxOutputs];
        for (int k = 0; k < plan_.n_results; ++k) {
            const Result& r = plan_.result[k];
            const bool here = r.stage == s && !r.per_row;
            direct[k] = here && vectors && plan_.place[r.slot] == Plan::block && call_.out[k].dtype == kWideType<W> &&
                        is_one_row(r.axes);
            if (here && plan_.place[r.slot] == Plan::block)
                at_[r.slot] = direct[k] ? call_.out[k].as<W>() + first : home_[r.slot];
        }
        for (int k = stage.whole; k < stage.last; ++k) {
            const Step& step = plan_.step[k];
            if (step.code == kSpread)
                spread(step, rows);
            else if (step.instruction->kind == Kind::fold)
                fold(step, count, rows);
            else
                run_step(step, count, first);
        }
        for (int k = 0; k < plan_.n_results; ++k) {
            const Result& r = plan_.result[k];
            if (r.stage == s && !r.per_row && !direct[k])
                scatter_any<W>(call_.out[k], r.axes, first, at_[r.slot], count);
        }
    }

    // Where it lies if it can be read there, else into its buffer; one vector where it is one number.
    void take_operand(int k, int64_t first, int64_t count) {
        const View& x = call_.in[k];
        const Axes& a = plan_.axes[k];
        at_[k] = home_[k];
        by_[k] = kLanes<W>;
        if (count == 0) return;
        const int64_t run = run_of(a, first), step = step_of(a);
        if (run >= count && step == 0 && !(plan_.filled >> k & 1)) {
            gather_any(home_[k], x, a, first, 1);
            store(home_[k], splat<W>(home_[k][0]));
            by_[k] = 0;
        } else if (x.dtype == kWideType<W> && run >= count && step == 1 && count % kLanes<W> == 0) {
            at_[k] = x.as<W>() + offset_of(a, first);
        } else {
            gather_any(home_[k], x, a, first, count);
            clear_lanes(home_[k], count);
        }
    }

    // Lanes behind the last element are computed too: nothing odd may lie there.
    static void clear_lanes(W* x, int64_t n) {
        for (; n % kLanes<W>; ++n) x[n] = 0;
    }

    void spread(const Step& step, int64_t rows) {
        const W* const from = at_[step.from[0]];
        W* const to = at_[step.to];
        // The last vector of a row may reach into the next, which comes after.
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t i = 0; i < plan_.n; i += kLanes<W>) store(to + r * plan_.n + i, splat<W>(from[r]));
    }

    template <class Op>
    void fold_with(const Step& step, int64_t count, int64_t rows) {
        const W* const from = at_[step.from[0]];
        if (rows == 0) {
            for (int64_t i = 0; i < count; i += kFoldBlock<W>)
                join<Op>(partial_[step.fold], fold_block<Op>(from + i, min_of(kFoldBlock<W>, count - i)));
        } else if (plan_.group <= 1) {
            close_fold(step, fold_row<Op>(from, plan_.n));
        } else {
            W* const to = at_[step.to];
            const W n = static_cast<W>(plan_.n);
            for (int64_t r = 0; r < rows; ++r) {
                const W whole = Op::lanes(fold_row<Op>(from + r * plan_.n, plan_.n));
                to[r] = step.code == Code::mean ? whole / n : whole;
            }
            clear_lanes(to, rows);
        }
    }
    void fold(const Step& step, int64_t count, int64_t rows) {
        if (step.code == Code::max)
            fold_with<Max>(step, count, rows);
        else
            fold_with<Sum>(step, count, rows);
    }

    void put_row_results(int s, int64_t row, int64_t rows) {
        for (int k = 0; k < plan_.n_results; ++k) {
            const Result& r = plan_.result[k];
            if (r.stage == s && r.per_row) scatter_any<W>(call_.out[k], r.axes, row, at_[r.slot], rows);
        }
    }

    const Plan& plan_;
    const Call& call_;
    W *home_[kMaxSlots], *at_[kMaxSlots];
    int64_t by_[kMaxSlots];
    Pairwise<Vec<W>> partial_[kMaxFolds];
};

}  // namespace
}  // namespace tw::TW_ISA
