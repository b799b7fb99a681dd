// A plain recurrent layer over time, in one or two directions: h' = activation(x[t] w^T + b + h r^T).
//
// Method    recurrent_forward.h, in one phase.
// Numerics  everything in the wide type; 16-bit results rounded once, the state that passes on is not.
//           Weights in 8 bits meet codes of their rows: exact sums, scaled back; recurrent_weights.h.
// Threads   panels of the product; shares of sequences, then units of a step, cut by shape alone.
// Source    Elman, "Finding structure in time", 1990.
#include "ops/recurrent_forward.h"
#include "ops/recurrent_gates.h"

namespace tw::TW_ISA {
namespace {

struct RnnOptions {
    Gate activation;
};

template <class T>
class RnnCell {
public:
    typedef Wide<T> W;
    typedef RnnOptions Options;
    static constexpr bool kInPlace = false;
    static constexpr int64_t kPlace[] = {0, 0}, kMostPhases = 1;

    static int64_t joined(const Layer&, const Options&) { return 0; }
    static int64_t room(const Layer&, const Options&) { return 0; }
    RnnCell(const Layer& p, const Options& o, int64_t, const Weights<W>& r, W*) : o_(o), hidden_(p.hidden), r_(r) {}

    void begin(const Step<W>&, int64_t, int64_t) const {}
    int64_t phases() const { return 1; }
    int64_t kept_phase() const { return 0; }
    int64_t units(int64_t) const { return hidden_; }
    LeftRows<W> left(int64_t, const Step<W>& step) const { return {step.before, hidden_}; }

    void run(int64_t, const Step<W>& step, Units u) const {
        const int64_t n = u.end - u.begin;
        add_product(step.before, hidden_, step.active, r_, u.begin, u.end, step.gates, hidden_, hidden_, step.codes);
        for (int64_t i = 0; i < step.active; ++i) {
            if (!step.goes_on(i)) continue;
            const int64_t at = i * hidden_ + u.begin;
            copy_row(step.after + at, 1, step.gates + at, 1, n);
            pass_gate(step.after + at, n, o_.activation);
        }
    }

private:
    Options o_;
    int64_t hidden_;
    Weights<W> r_;
};

constexpr int kDtype = 1;  // of the attributes

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1];
    TW_TRY(check_layer(x, w, c.in[2], 1, c.in[5]));
    const Layer p = layer_of(1, 1, x, w, c.in[2]);
    TW_TRY(check_optional(c.in[3], "b", x, 2, w.shape));
    TW_TRY(check_state(p, c.in[4], "h0", p.hidden));
    TW_TRY(check_stored(x, w, c.in[2], c.attr[kDtype]));
    add_results(r, p, false, false);
    return Status::ok;
}
Status run(const Call& c) {
    Layer p = layer_of(1, 1, c.in[0], c.in[1], c.in[2]);
    p.stored = stored_as(p.r, c.attr[kDtype]), p.packed = c.packed, p.b = c.in[3], p.h0 = c.in[4];
    return run_layer<RnnCell>(p, RnnOptions{gate_of(c.attr[0])}, {c.out[0], c.out[1], absent(), absent(), absent()},
                              c.in[5]);
}

constexpr Operand kOperands[] = {
    {"x"}, {"w"}, {"r"}, {"b", Role::optional}, {"h0", Role::optional}, {"lengths", Role::optional}};
constexpr AttrSpec kAttrs[] = {{.name = "activation", .kind = AttrKind::choice, .choices = kGates, .i = 1}, kStoredAs};

}  // namespace

extern const Entry op_rnn = {"rnn", kOperands, TW_COUNT(kOperands),    kAttrs,         TW_COUNT(kAttrs), infer,
                             run,   0,         packed_size<1, kDtype>, pack<1, kDtype>};

}  // namespace tw::TW_ISA
