// A GRU layer over time, in one or two directions. With a = x[t] w^T + b, blocks in the order r, z, n:
//     r, z = gate(a + h r^T + rb),  h' = (1 - z) n + z h
//     n = cell(a_n + r (h r_n^T + rb_n)), or with the reset before the product cell(a_n + rb_n + (r h) r_n^T)
// gate is sigmoid and cell tanh unless chosen.
//
// Method    recurrent_forward.h: one phase, or two where a product waits for r of all units. A row of gates is r, z, then
//           r h or the product that r scales, then n.
// Numerics  everything in the wide type; 16-bit results rounded once, the state that passes on is not.
//           Sigmoids of a plain cell are 0 below x = -87.
//           Weights in 8 bits meet codes of their rows: exact sums, scaled back; recurrent_weights.h.
// Threads   panels of the product; shares of sequences, then units of a step, cut by shape alone.
// Source    Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014.
#include "ops/gru_problem.h"

#include "ops/recurrent_forward.h"

namespace tw::TW_ISA {
namespace {

template <class T>
class GruCell {
public:
    typedef Wide<T> W;
    typedef GruOptions Options;
    static constexpr bool kInPlace = false;
    static constexpr int64_t kPlace[] = {0, 1, 3, 2}, kMostPhases = 2;

    static int64_t joined(const Layer&, const Options& o) { return o.reset_after ? 2 : 3; }
    static int64_t room(const Layer&, const Options&) { return 0; }
    GruCell(const Layer& p, const Options& o, int64_t, const Weights<W>& r, W*) : o_(o), hidden_(p.hidden), r_(r) {}

    void begin(const Step<W>&, int64_t, int64_t) const {}
    int64_t phases() const { return 1 + !o_.reset_after; }
    int64_t kept_phase() const { return phases() - 1; }
    int64_t units(int64_t) const { return hidden_; }
    LeftRows<W> left(int64_t phase, const Step<W>& step) const {
        if (phase) return {step.gates + 2 * hidden_, 4 * hidden_};
        return {step.before, hidden_};
    }

    void run(int64_t phase, const Step<W>& step, Units u) const {
        if (phase == 0) {
            add_product(step.before, hidden_, step.active, o_.reset_after ? r_ : some_blocks(r_, 0, 2), u.begin, u.end,
                        step.gates, 4 * hidden_, hidden_, step.codes);
            if (o_.plain())
                return each_row(step, u, [&](W* a, const W* h, W* next, int64_t n) { pass_plain(a, h, next, n); });
            each_row(step, u, [&](W* a, const W* h, W*, int64_t n) { pass_reset(a, h, n); });
        }
        if (phase != kept_phase()) return;
        if (!o_.reset_after)
            add_product(step.gates + 2 * hidden_, 4 * hidden_, step.active, some_blocks(r_, 2, 1), u.begin, u.end,
                        step.gates + 3 * hidden_, 4 * hidden_, hidden_, step.codes);
        each_row(step, u, [&](W* a, const W* h, W* next, int64_t n) { pass_state(a, h, next, n); });
    }

private:
    template <class F>
    void each_row(const Step<W>& step, Units u, const F& f) const {
        for (int64_t i = 0; i < step.active; ++i)
            if (step.goes_on(i))
                f(step.gates + i * 4 * hidden_ + u.begin, step.before + i * hidden_ + u.begin,
                  step.after + i * hidden_ + u.begin, u.end - u.begin);
    }
    // All of a row of a plain cell, each number in registers once.
    void pass_plain(W* r, const W* h, W* next, int64_t n) const {
        W *const z = r + hidden_, *const m = z + hidden_, *const fresh = m + hidden_;
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> reset = opened(take(r, 1, k, lanes)), keep = opened(take(z, 1, k, lanes));
            const Vec<W> made = tanh(take(fresh, 1, k, lanes) + reset * take(m, 1, k, lanes));
            put(r, 1, k, lanes, reset), put(z, 1, k, lanes, keep), put(fresh, 1, k, lanes, made);
            put(next, 1, k, lanes, (1 - keep) * made + keep * take(h, 1, k, lanes));
        });
    }
    void pass_reset(W* r, const W* h, int64_t n) const {
        pass_gate(r, n, o_.gate);
        pass_gate(r + hidden_, n, o_.gate);
        if (o_.reset_after) return;
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            put(r + 2 * hidden_, 1, k, lanes, take(r, 1, k, lanes) * take(h, 1, k, lanes));
        });
    }
    void pass_state(W* r, const W* h, W* next, int64_t n) const {
        W *const z = r + hidden_, *const m = z + hidden_, *const fresh = m + hidden_;
        if (o_.reset_after)
            each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
                put(fresh, 1, k, lanes, take(fresh, 1, k, lanes) + take(r, 1, k, lanes) * take(m, 1, k, lanes));
            });
        pass_gate(fresh, n, o_.cell);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> keep = take(z, 1, k, lanes);
            put(next, 1, k, lanes, (1 - keep) * take(fresh, 1, k, lanes) + keep * take(h, 1, k, lanes));
        });
    }

    Options o_;
    int64_t hidden_;
    Weights<W> r_;
};

constexpr int kDtype = 4;  // of the attributes

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1];
    TW_TRY(check_layer(x, w, c.in[2], 3, c.in[6]));
    const Layer p = layer_of(3, 4, x, w, c.in[2]);
    TW_TRY(check_optional(c.in[3], "b", x, 2, w.shape));
    TW_TRY(check_optional(c.in[4], "rb", x, 2, w.shape));
    TW_TRY(check_state(p, c.in[5], "h0", p.hidden));
    TW_TRY(check_stored(x, w, c.in[2], c.attr[kDtype]));
    add_results(r, p, false, c.attr[3].i != 0);
    return Status::ok;
}
Status run(const Call& c) {
    Layer p = layer_of(3, 4, c.in[0], c.in[1], c.in[2]);
    p.stored = stored_as(p.r, c.attr[kDtype]), p.packed = c.packed;
    p.b = c.in[3], p.rb = c.in[4], p.h0 = c.in[5];
    const Results r{c.out[0], c.out[1], absent(), c.n_out > 2 ? c.out[2] : absent(), absent()};
    return run_layer<GruCell>(p, gru_options(c.attr), r, c.in[6]);
}

constexpr Operand kOperands[] = {{"x"},
                                 {"w"},
                                 {"r"},
                                 {"b", Role::optional},
                                 {"rb", Role::optional},
                                 {"h0", Role::optional},
                                 {"lengths", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    kResetAfter, kGateActivation, kCellActivation, {.name = "return_saved", .kind = AttrKind::boolean}, kStoredAs};

}  // namespace

extern const Entry op_gru = {"gru", kOperands, TW_COUNT(kOperands),    kAttrs,         TW_COUNT(kAttrs), infer,
                             run,   0,         packed_size<3, kDtype>, pack<3, kDtype>};

}  // namespace tw::TW_ISA
