// Softmax and its kin along any axes, lines of n elements, and the gradients from the results y:
//   softmax      y = exp(x - max x) / sum exp(x - max x)                 dx = y (dy - sum dy y)
//   log_softmax  y = x - max x - log(sum exp(x - max x))                 dx = dy - exp(y) sum dy
//   logsumexp    y = max x + log(sum exp(x - max x)), one of a line
//
// Method    along.h: a row stays in cache for its passes (maximum, exponentials and their sum, scaling), large results go
//           past it; columns of a tile are lanes. x - max x is never rounded before the exponential (simd/exp_under.h).
// Numerics  row sums are joined in double, column sums in blocks of 256 rows, those of gradients in blocks of 16. softmax
//           of a line of -Inf, with +Inf or NaN is NaN (a NaN that the maximum loses comes back in the sum); logsumexp is
//           the infinity, or NaN.
// Threads   by rows or column tiles; each line is computed by itself, so bits never depend on the split.
#include "ops/along.h"
#include "simd/exp_under.h"
#include "simd/moments.h"

namespace tw::TW_ISA {
namespace {

// `soon` and `to` are asked for on the way, unless null: rows of a page are no stream that the hardware would foresee.
// each(i, k) is what else is done at i.
template <class W, class Each>
TW_INLINE double sum_of_powers(const W* x, int64_t n, const Shift<W>& shift, W* powers, const W* soon, const W* to,
                               const Each& each) {
    return sum_over<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        if (soon) __builtin_prefetch(soon + i);
        if (to) __builtin_prefetch(to + i, 1);
        each(i, k);
        const Vec<W> power = exp_under(tw::TW_ISA::take(x, 1, i, k), shift);
        if (powers) put(powers, 1, i, k, power);
        return k == kLanes<W> ? power : first_lanes<W>(power, Vec<W>{}, k);
    });
}

constexpr auto kNothing = [](int64_t, int64_t) {};

// kept[0]: the maxima; it may lose a NaN.
template <class Op, class W>
TW_INLINE void take_maxima(const W* tile, int64_t rows, int64_t width, W* top, bool begun) {
    each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
        Vec<W> m = begun ? load(top + j) : Max::identity<W>();
        for (int64_t r = 0; r < rows; ++r) m = Op::of(m, load(tile + r * width + j));
        store(top + j, m);
    });
}

// sum[j] = the sum of exp_under(x, top[j]), which replaces x where it is kept.
template <bool kKeep, class W>
TW_INLINE void sum_powers(W* tile, int64_t n, int64_t width, const W* top, W* sum) {
    for (int64_t first = 0; first < n; first += kBlockRows) {
        const int64_t last = min_of(first + kBlockRows, n);
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            const Shift<W> shift = shift_to(load(top + j));
            Vec<W> part{};
            for (int64_t r = first; r < last; ++r) {
                const Vec<W> power = exp_under(load(tile + r * width + j), shift);
                if constexpr (kKeep) store(tile + r * width + j, power);
                part += power;
            }
            store(sum + j, load(sum + j) + part);
        });
    }
}

template <bool kLog>
struct Softmax {
    static constexpr int kInputs = 1, kTiles = 1, kKept = 3;  // maxima, sums, whether rows were taken
    static constexpr bool kRows = true, kGroups = true;
    static constexpr int64_t kGroupedElements = 4096;

    // The same in registers.
    template <class W>
    TW_INLINE void short_row(W* y, const W* x, int64_t n) {
        const Vec<W> v = load_as_n<W>(x, n), top = splat<W>(Max::lanes(first_lanes<W>(v, Max::identity<W>(), n)));
        const Shift<W> shift = shift_to(top);
        const Vec<W> e = first_lanes<W>(exp_under(v, shift), Vec<W>{}, n);
        const Vec<W> total = splat<W>(reduce_add(e));
        if constexpr (kLog)
            put(y, 1, 0, n, v - top - log_of_sum(total, shift));
        else
            put(y, 1, 0, n, e / total);
    }

    // powers: where the exponentials wait for their sum.
    template <bool kStream, class W>
    TW_INLINE void long_row(W* y, const W* x, int64_t n, W* powers, const After<W>* after) {
        const Vec<W> top = splat<W>(Max::lanes(fold_row<NumberMax>(x, n)));
        const Shift<W> shift = shift_to(top);
        const double total = sum_of_powers<W>(x, n, shift, kLog ? nullptr : powers, after ? after->in[0] : nullptr,
                                              !kStream && after ? after->y : nullptr, kNothing);
        finish_row<kStream>(y, x, n, powers, top, shift, total);
    }

    template <bool kStream, class W>
    TW_INLINE void finish_row(W* y, const W* x, int64_t n, const W* powers, Vec<W> top, const Shift<W>& shift,
                              double total) {
        if constexpr (kLog) {
            const bool grouped = kVectorRegisters >= 32 && __is_same(W, float) && n <= kShortElements;  // its bits
            const Vec<W> below = grouped ? log_of_sum(splat<W>(static_cast<W>(total)), shift)
                                         : splat<W>(static_cast<W>(log_of_sum(total, shift)));
            each_vector<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
                emit<kStream>(y, i, k, tw::TW_ISA::take(x, 1, i, k) - top - below);
            });
        } else {
            const Vec<W> scale = splat<W>(static_cast<W>(1 / total));
            each_vector<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
                emit<kStream>(y, i, k, tw::TW_ISA::take(powers, 1, i, k) * scale);
            });
        }
    }

    template <class W>
    void row(W* y, const W* const* in, int64_t n, const After<W>* after) const {
        constexpr int64_t kWaiting = (int64_t{1} << 14) / static_cast<int64_t>(sizeof(W));  // stay in L1 beside x
        const W* x = in[0];
        if (n <= kLanes<W>) return short_row(y, x, n);
        if (!after || !after->past || !may_stream(y) || (!kLog && n > kWaiting))
            return long_row<false>(y, x, n, y, after);
        Scratch powers(kLog ? 0 : static_cast<size_t>(n) * sizeof(W));
        if (!kLog && !powers.as<W>()) return long_row<false>(y, x, n, y, after);
        long_row<true>(y, x, n, powers.as<W>(), after);
    }

    // Exponentials are worth so many instructions that the maximum of the row after them comes along for nothing.
    template <class W>
    void long_group(W* y, int64_t y_step, const W* x, int64_t x_step, int64_t rows, int64_t n) const {
        Vec<W> tops = fold_row<NumberMax>(x, n);
        for (int64_t r = 0; r < rows; ++r, y += y_step, x += x_step) {
            const W* const next = r + 1 < rows ? x + x_step : x;
            const Vec<W> top = splat<W>(Max::lanes(tops));
            const Shift<W> shift = shift_to(top);
            tops = Max::identity<W>();
            const double total =
                sum_of_powers<W>(x, n, shift, kLog ? nullptr : y, read_soon(x, x_step), written_soon(y),
                                 [&](int64_t i, int64_t k) __attribute__((always_inline)) {
                const Vec<W> v = tw::TW_ISA::take(next, 1, i, k);
                tops = NumberMax::of(tops, k == kLanes<W> ? v : first_lanes<W>(v, tops, k));
            });
            finish_row<false>(y, x, n, y, top, shift, total);
        }
    }

    // Maxima and sums of short lines are joined in the lanes of one vector, so that no line waits for its own.
    template <class W>
    void group(W* y, int64_t y_step, const W* const* in, const int64_t* in_step, int64_t rows, int64_t n) const {
        constexpr int64_t lanes = kLanes<W>;
        const W* const x = in[0];
        const int64_t x_step = in_step[0];
        if (n > kShortElements) return long_group(y, y_step, x, x_step, rows, n);
        alignas(kVecBytes) W folded[lanes * lanes] = {}, top[lanes], from[lanes], rest[lanes], power[lanes], end[lanes];
        for (int64_t r = 0; r < rows; ++r) store(folded + r * lanes, fold_row<NumberMax>(x + r * x_step, n));
        const Vec<W> tops = fold_lanes_of<Max>(folded);
        const Shift<W> shift = shift_to(tops);
        store(top, tops), store(from, shift.from), store(rest, shift.rest), store(power, shift.power);
        for (int64_t r = 0; r < rows; ++r) {
            const Shift<W> own = {splat(from[r]), splat(rest[r]), splat(power[r])};
            const W* const line = x + r * x_step;
            W* const to = y + r * y_step;
            Vec<W> sum[2] = {};
            const auto add = [&](int k, int64_t i, int64_t m) __attribute__((always_inline)) {
                const Vec<W> e = exp_under(tw::TW_ISA::take(line, 1, i, m), own);
                if constexpr (!kLog) put(to, 1, i, m, e);
                sum[k] += m == lanes ? e : first_lanes<W>(e, Vec<W>{}, m);
            };
            int64_t i = 0;
            for (; i + 2 * lanes <= n; i += 2 * lanes) add(0, i, lanes), add(1, i + lanes, lanes);
            for (; i < n; i += lanes) add(0, i, min_of(n - i, lanes));
            store(folded + r * lanes, sum[0] + sum[1]);
        }
        const Vec<W> sums = fold_lanes_of<Sum>(folded);
        store(end, kLog ? log_of_sum(sums, shift) : 1 / sums);
        for (int64_t r = 0; r < rows; ++r)
            each_vector<W>(n, [&](int64_t i, int64_t m) __attribute__((always_inline)) {
                W* const to = y + r * y_step;
                if constexpr (kLog)
                    put(to, 1, i, m, tw::TW_ISA::take(x + r * x_step, 1, i, m) - splat(top[r]) - splat(end[r]));
                else
                    put(to, 1, i, m, tw::TW_ISA::take(static_cast<const W*>(to), 1, i, m) * splat(end[r]));
            });
    }

    template <class W>
    void take(W* const* tile, int64_t rows, int64_t width, W* kept) const {
        W* const begun = kept + 2 * width;
        take_maxima<NumberMax>(tile[0], rows, width, kept, *begun != 0);
        *begun = 1;
    }
    template <class W>
    void close(W* const* tile, int64_t n, int64_t width, W* kept) const {
        W *const top = kept, *const sum = kept + width;
        sum_powers<!kLog>(tile[0], n, width, top, sum);
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            if constexpr (kLog)
                store(sum + j, log_of_sum(load(sum + j), shift_to(load(top + j))));
            else
                store(sum + j, 1 / load(sum + j));
        });
    }
    template <class W>
    void result(W* y, const W* const* tile, int64_t r, int64_t, int64_t width, const W* kept) const {
        const W *const from = tile[0] + r * width, *const top = kept, *const sum = kept + width;
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            if constexpr (kLog)
                store(y + j, load(from + j) - load(top + j) - load(sum + j));
            else
                store(y + j, load(from + j) * load(sum + j));
        });
    }
};

template <bool kLog>
struct SoftmaxDx {
    static constexpr int kInputs = 2, kTiles = 2, kKept = 1;  // sums
    static constexpr bool kRows = true, kGroups = true;
    static constexpr int64_t kGroupedElements = kShortElements;

    template <class V>
    TW_INLINE V term(V dy, V y) {
        if constexpr (kLog)
            return dy;
        else
            return dy * y;
    }
    template <class V>
    TW_INLINE V gradient(V dy, V y, V sum) {
        if constexpr (kLog)
            return dy - exp(y) * sum;
        else
            return y * (dy - sum);
    }

    template <bool kStream, class W>
    TW_INLINE void gradient_row(W* dx, const W* dy, const W* y, int64_t n, const After<W>* after) {
        const double total = sum_over<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            return term<Vec<W>>(tw::TW_ISA::take(dy, 1, i, k), tw::TW_ISA::take(y, 1, i, k));
        });
        const Vec<W> sum = splat<W>(static_cast<W>(total));
        each_vector<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            if (after) {
                __builtin_prefetch(after->in[0] + i);
                __builtin_prefetch(after->in[1] + i);
                if constexpr (!kStream) __builtin_prefetch(after->y + i, 1);
            }
            emit<kStream>(dx, i, k, gradient<Vec<W>>(tw::TW_ISA::take(dy, 1, i, k), tw::TW_ISA::take(y, 1, i, k), sum));
        });
    }
    template <class W>
    void row(W* dx, const W* const* in, int64_t n, const After<W>* after) const {
        if (after && after->past && may_stream(dx)) return gradient_row<true>(dx, in[0], in[1], n, after);
        gradient_row<false>(dx, in[0], in[1], n, after);
    }

    // Sums of the lines are joined in the lanes of one vector.
    template <class W>
    void group(W* dx, int64_t dx_step, const W* const* in, const int64_t* in_step, int64_t rows, int64_t n) const {
        constexpr int64_t lanes = kLanes<W>;
        alignas(kVecBytes) W folded[lanes * lanes] = {}, sums[lanes];
        for (int64_t r = 0; r < rows; ++r) {
            const W *const dy = in[0] + r * in_step[0], *const y = in[1] + r * in_step[1];
            Vec<W> sum[2] = {};
            const auto add = [&](int k, int64_t i, int64_t m) __attribute__((always_inline)) {
                sum[k] += term<Vec<W>>(tw::TW_ISA::take(dy, 1, i, m), tw::TW_ISA::take(y, 1, i, m));
            };
            int64_t i = 0;
            for (; i + 2 * lanes <= n; i += 2 * lanes) add(0, i, lanes), add(1, i + lanes, lanes);
            for (; i < n; i += lanes) add(0, i, min_of(n - i, lanes));
            store(folded + r * lanes, sum[0] + sum[1]);
        }
        store(sums, fold_lanes_of<Sum>(folded));
        for (int64_t r = 0; r < rows; ++r) {
            const W *const dy = in[0] + r * in_step[0], *const y = in[1] + r * in_step[1];
            const Vec<W> sum = splat(sums[r]);
            each_vector<W>(n, [&](int64_t i, int64_t m) __attribute__((always_inline)) {
                put(dx + r * dx_step, 1, i, m,
                    gradient<Vec<W>>(tw::TW_ISA::take(dy, 1, i, m), tw::TW_ISA::take(y, 1, i, m), sum));
            });
        }
    }

    template <class W>
    void take(W* const* tile, int64_t rows, int64_t width, W* sum) const {
        add_rows(sum, rows, width, [&](int64_t i) __attribute__((always_inline)) {
            return term<Vec<W>>(load(tile[0] + i), load(tile[1] + i));
        });
    }
    template <class W>
    void close(W* const*, int64_t, int64_t, W*) const {}
    template <class W>
    void result(W* dx, const W* const* tile, int64_t r, int64_t, int64_t width, const W* sum) const {
        const W *const dy = tile[0] + r * width, *const y = tile[1] + r * width;
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            store(dx + j, gradient<Vec<W>>(load(dy + j), load(y + j), load(sum + j)));
        });
    }
};

// The maximum watches for NaN: an infinite one is the result.
struct LogSumExp {
    static constexpr int kInputs = 1, kTiles = 1, kKept = 3;  // maxima, sums, whether rows were taken
    static constexpr bool kRows = true, kGroups = false;

    template <class W>
    void row(W* y, const W* const* in, int64_t n, const After<W>*) const {
        const Vec<W> top = splat<W>(Max::lanes(fold_row<Max>(in[0], n)));
        const Shift<W> shift = shift_to(top);
        const double total = sum_of_powers<W>(in[0], n, shift, nullptr, nullptr, nullptr, kNothing);
        const double sum = static_cast<double>(top[0]) + log_of_sum(total, shift);
        y[0] = __builtin_isinf(top[0]) ? top[0] : static_cast<W>(sum);
    }

    template <class W>
    void take(W* const* tile, int64_t rows, int64_t width, W* kept) const {
        W* const begun = kept + 2 * width;
        take_maxima<Max>(tile[0], rows, width, kept, *begun != 0);
        *begun = 1;
    }
    template <class W>
    void close(W* const* tile, int64_t n, int64_t width, W* kept) const {
        W *const top = kept, *const sum = kept + width;
        if (n == 0) take_maxima<Max>(tile[0], 0, width, kept, false);
        sum_powers<false>(tile[0], n, width, top, sum);
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            const Vec<W> m = load(top + j), v = m + log_of_sum(load(sum + j), shift_to(m));
            store(sum + j, select(abs(m) == splat<W>(static_cast<W>(__builtin_inff())), m, v));
        });
    }
    template <class W>
    void result(W* y, const W* const*, int64_t, int64_t, int64_t width, const W* kept) const {
        __builtin_memcpy(y, kept + width, static_cast<size_t>(width) * sizeof(W));
    }
};

template <class Kernel>
Status run(const Call& c) {
    return run_along(Kernel{}, c, c.attr[0]);
}

// ---- shape rules ------------------------------------------------------------------------------------------------------------

Status infer_any(Call& c, Inferred& r) {
    const View& first = c.in[0];
    const char* name = c.op->operands[0].name;
    TW_TRY(want_floating(first, name));
    for (int k = 1; k < c.n_in; ++k) {
        TW_TRY(want_dtype_of(c.in[k], c.op->operands[k].name, first, name));
        TW_TRY(want_shape_of(c.in[k], c.op->operands[k].name, first, name));
    }
    if (first.ndim == 0) return fail(Status::shape, name, "%s has shape (); want at least one dimension", name);
    TW_TRY(resolve_axes(c.attr[0], "axis", first.ndim));
    r.n_out = 1;
    r.out[0] = first;
    r.out[0].data = nullptr;
    r.flops = 12.0 * static_cast<double>(numel(first));
    return Status::ok;
}

Status infer_logsumexp(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_floating(x, "x"));
    Attr& axes = c.attr[0];
    TW_TRY(resolve_axes(axes, "axes", x.ndim));
    View& y = r.out[0];
    y = result(x.dtype, 0, x.shape);
    for (int d = 0, k = 0; d < x.ndim; ++d) {
        const bool gone = k < axes.n && axes.list[k] == d;
        k += gone;
        if (!gone || c.attr[1].i) y.shape[y.ndim++] = gone ? 1 : x.shape[d];
    }
    r.n_out = 1;
    r.flops = 12.0 * static_cast<double>(numel(x));
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kDyY[] = {{"dy"}, {"y"}};
constexpr AttrSpec kAxis[] = {{.name = "axis", .kind = AttrKind::axes, .i = -1}};
constexpr AttrSpec kAxes[] = {
    {.name = "axes", .kind = AttrKind::axes, .none_ok = true},
    {.name = "keepdims", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_softmax = {"softmax", kX, 1, kAxis, 1, infer_any, run<Softmax<false>>};
extern const Entry op_log_softmax = {"log_softmax", kX, 1, kAxis, 1, infer_any, run<Softmax<true>>};
extern const Entry op_softmax_dx = {"softmax_dx", kDyY, 2, kAxis, 1, infer_any, run<SoftmaxDx<false>>};
extern const Entry op_log_softmax_dx = {"log_softmax_dx", kDyY, 2, kAxis, 1, infer_any, run<SoftmaxDx<true>>};
extern const Entry op_logsumexp = {"logsumexp", kX, 1, kAxes, 2, infer_logsumexp, run<LogSumExp>};

}  // namespace tw::TW_ISA
