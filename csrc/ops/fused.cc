// A program of elementwise instructions over operands that broadcast together, and folds of the trailing axes, in one
// pass over memory: core/instructions.h has the notation.
//
// Method    an interpreter: each instruction is a loop over a block of kBlock elements, so that what lies between the
//           instructions stays in L1; a block's buffer is reused as soon as its value is dead. Contiguous operands and
//           results are read and written where they lie, others pass through buffers. Folds cut the program into stages:
//           a stage runs over a whole row before the next begins. Short rows share a block, and what later stages need
//           of a row longer than a block is kept.
// Numerics  the functions of the single ops (simd/functions.h) and the sums of reduce.cc, on float or double; 16-bit
//           values are rounded where they are stored or cast, not in between.
// Threads   groups of rows of about kChunkElements; a single row that is only folded is cut into such pieces, joined in
//           order. Bits never depend on the split.
#include "core/check.h"
#include "core/memory.h"
#include "core/parallel.h"
#include "ops/fused_worker.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

enum FusedAttr { kProgram, kTrailing };

// ---- running a plan -------------------------------------------------------------------------------------------------

Status no_memory(const Plan& plan) {
    return fail(Status::memory, "", "no memory for %d rows of %lld elements; want fewer `trailing` axes",
                plan.n_kept + plan.n_blocks, static_cast<long long>(plan.n));
}

// Rows that are folded in pieces, each by whoever comes, and joined in order.
template <class W>
Status run_split(const Plan& plan, const Call& c) {
    const int64_t pieces = ceil_div(plan.n, kChunkElements);
    const Stage& stage = plan.stage[0];
    Scratch sums(static_cast<size_t>(plan.rows * pieces * kMaxFolds) * sizeof(Vec<W>));
    Vec<W>* const sum = sums.as<Vec<W>>();
    if (!sum) return no_memory(plan);
    bool enough = true;
    parallel(plan.rows * pieces, [&](int64_t chunk) {
        Scratch scratch(Worker<W>::bytes(plan));
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        Worker<W> worker(plan, c, scratch.as<W>());
        const int64_t row = chunk / pieces, begin = chunk % pieces * kChunkElements;
        worker.fold_row_part(0, row * plan.n, begin, min_of(begin + kChunkElements, plan.n));
        for (int k = stage.whole; k < stage.last; ++k)
            if (Worker<W>::is_fold(plan.step[k]))
                sum[chunk * kMaxFolds + plan.step[k].fold] = worker.folded(plan.step[k]);
    });
    Scratch scratch(Worker<W>::bytes(plan));
    if (!enough || !scratch.as<W>()) return no_memory(plan);
    Worker<W> worker(plan, c, scratch.as<W>());
    for (int64_t row = 0; row < plan.rows; ++row) {
        for (int k = stage.whole; k < stage.last; ++k) {
            const Step& step = plan.step[k];
            if (!Worker<W>::is_fold(step)) continue;
            Pairwise<Vec<W>> all;
            all.n = 0;
            for (int64_t i = 0; i < pieces; ++i) {
                const Vec<W> v = sum[(row * pieces + i) * kMaxFolds + step.fold];
                if (step.code == Code::max)
                    join<Max>(all, v);
                else
                    join<Sum>(all, v);
            }
            worker.close_fold(step, step.code == Code::max ? joined<Max>(all, Max::identity<W>())
                                                           : joined<Sum>(all, Sum::identity<W>()));
        }
        worker.finish_row(row);
    }
    return Status::ok;
}

template <class W>
Status run_plan(const Plan& plan, const Call& c) {
    bool one_pass = plan.group == 0;
    for (int s = 1; s < plan.n_stages; ++s) one_pass &= plan.stage[s].whole == plan.stage[s].last;
    if (one_pass && plan.n > kChunkElements) return note_kernel("pieces of rows"), run_split<W>(plan, c);
    const int64_t size = plan.group == 0 ? plan.n : plan.folds ? plan.group * plan.n : kBlock<W>;
    const int64_t groups = plan.group == 0 ? plan.rows
                           : plan.folds    ? ceil_div(plan.rows, plan.group)
                                           : ceil_div(plan.total, kBlock<W>);
    const int64_t per_chunk = max_of(1, kChunkElements / max_of(size, 1));
    note_kernel(plan.group == 0 ? "long rows" : plan.folds ? "rows" : "blocks");
    bool enough = true;
    parallel(ceil_div(groups, per_chunk), [&](int64_t chunk) {
        Scratch scratch(Worker<W>::bytes(plan));
        if (!scratch.as<W>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        Worker<W> worker(plan, c, scratch.as<W>());
        const int64_t last = min_of((chunk + 1) * per_chunk, groups);
        for (int64_t g = chunk * per_chunk; g < last; ++g) plan.group ? worker.run_group(g) : worker.run_row(g);
    });
    return enough ? Status::ok : no_memory(plan);
}

// ---- shape rule -----------------------------------------------------------------------------------------------------

Status broadcast(const View* operands, int n, View& whole) {
    whole = {};
    for (int k = 0; k < n; ++k) {
        const View& x = operands[k];
        const View before = whole;
        if (x.ndim > whole.ndim) {
            for (int d = x.ndim - 1; d >= 0; --d)
                whole.shape[d] = d >= x.ndim - before.ndim ? before.shape[d - (x.ndim - before.ndim)] : 1;
            whole.ndim = x.ndim;
        }
        for (int d = 1; d <= x.ndim; ++d) {
            int64_t& size = whole.shape[whole.ndim - d];
            const int64_t own = x.shape[x.ndim - d];
            if (own != size && own != 1 && size != 1)
                return fail(Status::shape, "operands",
                            "operands[%d] has shape %s, those before it %s; want shapes that broadcast", k,
                            shape_text(x).text, shape_text(before).text);
            if (size == 1) size = own;
        }
    }
    double total = 1;
    for (int d = 0; d < whole.ndim; ++d) total *= static_cast<double>(whole.shape[d]);
    if (total <= static_cast<double>(kMaxSize)) return Status::ok;
    return fail(Status::shape, "operands", "operands broadcast to %s; want fewer than 2^40 elements",
                shape_text(whole).text);
}

bool has_folds(const Program& p) {
    for (int at = 0; at < p.n; ++at)
        if (p.instruction[at].kind == Kind::fold) return true;
    return false;
}

Status infer(Call& c, Inferred& r) {
    const Program* p;
    ProgramTypes types;
    TW_TRY(read_program(c.attr[kProgram].text, c.attr[kProgram].n, c.n_in, p));
    TW_TRY(type_program(*p, c.in, types));
    View whole;
    TW_TRY(broadcast(c.in, c.n_in, whole));
    const int64_t trailing = c.attr[kTrailing].i;
    const bool folds = has_folds(*p);
    if (folds && whole.ndim == 0)
        return fail(Status::shape, "operands",
                    "operands have no axes and the program folds some; want at least 1 axis");
    if (trailing < 1 || (folds && trailing > whole.ndim))
        return fail(Status::attr, "trailing", "trailing=%lld; want 1 to %d, the last axes of shape %s",
                    static_cast<long long>(trailing), whole.ndim > 1 ? whole.ndim : 1, shape_text(whole).text);
    int64_t n = 1;
    for (int64_t d = whole.ndim - trailing; folds && d < whole.ndim; ++d) n *= whole.shape[d];
    for (int at = 0; at < p->n; ++at)
        if (p->instruction[at].code == Code::max && n == 0)
            return fail(Status::shape, "operands",
                        "operands broadcast to %s, where max has nothing to fold; want a size "
                        "of at least 1",
                        shape_text(whole).text);
    r.n_out = p->n_results;
    for (int k = 0; k < p->n_results; ++k) {
        r.out[k] = result(types.dtype[p->result[k]], whole.ndim, whole.shape);
        if (types.per_row[p->result[k]])
            for (int64_t d = whole.ndim - trailing; d < whole.ndim; ++d) r.out[k].shape[d] = 1;
    }
    r.flops = 4.0 * p->n * static_cast<double>(numel(whole));
    return Status::ok;
}

Status run(const Call& c) {
    const Program* p;
    ProgramTypes types;
    View whole;
    TW_TRY(read_program(c.attr[kProgram].text, c.attr[kProgram].n, c.n_in, p));
    TW_TRY(type_program(*p, c.in, types));
    TW_TRY(broadcast(c.in, c.n_in, whole));
    Plan plan;
    plan.folds = has_folds(*p);
    plan.n_operands = p->n_operands;
    plan.total = numel(whole);
    const int kept_axes = plan.folds ? whole.ndim - static_cast<int>(c.attr[kTrailing].i) : 0;
    plan.rows = plan.n = 1;
    for (int d = 0; d < whole.ndim; ++d) (d < kept_axes ? plan.rows : plan.n) *= whole.shape[d];
    if (plan.rows == 0 || (plan.total == 0 && !plan.folds)) return Status::ok;
    const int64_t block = types.wide == DType::f64 ? kBlock<double> : kBlock<float>;
    plan.group = plan.folds ? block / max_of(plan.n, 1) : 1;
    for (int k = 0; k < c.n_in; ++k) plan.axes[k] = axes_over(c.in[k], whole.ndim, whole.shape);
    order_steps(*p, types, plan);
    place_slots(*p, types, plan);
    for (int k = 0; k < p->n_results; ++k) plan.result[k].axes = axes_over(c.out[k], c.out[k].ndim, c.out[k].shape);
    return types.wide == DType::f64 ? run_plan<double>(plan, c) : run_plan<float>(plan, c);
}

constexpr Operand kOperands[] = {{"operands", Role::variadic}};
constexpr AttrSpec kAttrs[] = {
    {.name = "program", .kind = AttrKind::text, .required = true},
    {.name = "trailing", .kind = AttrKind::integer, .i = 1},
};

}  // namespace

extern const Entry op_fused = {"fused", kOperands, 1, kAttrs, TW_COUNT(kAttrs), infer, run, kLeadingText};

}  // namespace tw::TW_ISA
