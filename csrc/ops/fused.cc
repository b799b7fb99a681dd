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
#include "core/axes.h"
#include "core/check.h"
#include "core/instructions.h"
#include "ops/ops.h"
#include "simd/functions.h"
#include "simd/philox.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

enum FusedAttr { kProgram, kTrailing };

template <class W>
constexpr int64_t kBlock = 4096 / static_cast<int64_t>(sizeof(W));  // elements; a whole number of fold blocks
constexpr Code kSpread = static_cast<Code>(255);  // a number of each row -> every element of the row
constexpr int kMaxSlots = kMaxValues + 2 * kMaxInstructions;  // values, numbers in place of values, spread ones
constexpr int kMaxSteps = 2 * kMaxInstructions;
constexpr int kMaxStages = kMaxFolds + 1;

// ---- the plan of a call ---------------------------------------------------------------------------------------------

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

// ---- instructions on a block ----------------------------------------------------------------------------------------

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

// ---- running a plan -------------------------------------------------------------------------------------------------

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

extern const OpDef op_fused = {"fused", kOperands, 1, kAttrs, TW_COUNT(kAttrs), infer, run, kLeadingText};

}  // namespace tw::TW_ISA
