// The gradients of a plain recurrent layer from its result: da = dh activation'(h'), and dh of the step before is da r.
//
// Method    recurrent_backward.h, in one phase.
// Numerics  everything in the wide type; 16-bit gradients rounded once. Sums over steps in order.
// Threads   shares of sequences, units of a step, then panels of the products.
#include "ops/recurrent_backward.h"
#include "ops/recurrent_gates.h"

namespace tw::TW_ISA {
namespace {

struct RnnOptions {
    Gate activation;
};

template <class T>
class RnnBack {
public:
    typedef Wide<T> W;
    typedef RnnOptions Options;
    static constexpr int64_t kMostPhases = 1;
    static constexpr bool kSeesState = true;

    static View first_cells(const Options&) { return absent(); }
    static int64_t beside(const Layer&, const Options&) { return 0; }
    static int64_t room(const Layer& p, const Options&) { return packed_units<W>(p.hidden, p.hidden, 1); }
    RnnBack(const Layer& p, const Options& o, int64_t d, W* room)
        : o_(o), hidden_(p.hidden), r_{room, p.hidden, p.hidden, 1, 0, 1} {
        pack_units(Matrix<T>{p.r.as<const T>() + d * p.r.stride[0], p.r.stride[1], p.r.stride[2]}, hidden_, hidden_, 1,
                   room);
    }

    bool in_place() const { return false; }
    int64_t phases() const { return 1; }
    int64_t units(int64_t) const { return hidden_; }

    void pull(const BackStep<W>& step, Units u) const {
        for (int64_t i = 0; i < step.later; ++i)
            if (step.went_on(i)) fill_zero(step.dh + i * hidden_ + u.begin, 1, u.end - u.begin);
        add_product(step.after, hidden_, step.later, r_, u.begin, u.end, step.dh, hidden_, 0);
    }
    template <class RowOf>
    void run(int64_t, const BackStep<W>& step, Units u, const RowOf& row_of) const {
        const int64_t n = u.end - u.begin;
        for (int64_t i = 0; i < step.active; ++i) {
            if (!step.goes_on(i)) continue;
            const BackRow<W> row = row_of(i);
            W* const da = step.slopes + i * hidden_ + u.begin;
            copy_row(da, 1, step.dh + i * hidden_ + u.begin, 1, n);
            pass_back(row.state + u.begin, 1, da, n, o_.activation);
            copy_row(row.da + u.begin, 1, da, 1, n);
        }
    }
    bool finish(const Finish<T>& f) const {
        return write_product<T>(f.g.dr, f.d, 0, hidden_, f.rows, {f.left.da, hidden_, 1}, {f.left.before, hidden_, 1},
                                f.room);
    }

private:
    Options o_;
    int64_t hidden_;
    Weights<W> r_;
};

Status infer(Call& c, Inferred& r) {
    TW_TRY(check_layer(c.in[1], c.in[2], c.in[3], 1, c.in[6]));
    const Layer p = layer_of(1, 1, c.in[1], c.in[2], c.in[3]);
    TW_TRY(check_state(p, c.in[5], "h0", p.hidden));
    TW_TRY(check_ends(p, c.in[0], c.in[4], r));
    TW_TRY(check_state(p, c.in[7], "dh", p.hidden));
    add_state(p, r, p.hidden);
    return Status::ok;
}
Status run(const Call& c) {
    Layer p = layer_of(1, 1, c.in[1], c.in[2], c.in[3]);
    p.h0 = c.in[5];
    const Slopes g{c.in[0],  c.in[4],  absent(), absent(), c.in[7],  absent(), c.out[0],
                   c.out[1], c.out[2], c.out[3], absent(), c.out[4], absent()};
    return run_layer<RnnBack>(p, RnnOptions{gate_of(c.attr[0])}, g, c.in[6]);
}

constexpr Operand kOperands[] = {
    {"dy"}, {"x"}, {"w"}, {"r"}, {"y"}, {"h0", Role::optional}, {"lengths", Role::optional}, {"dh", Role::optional}};
constexpr AttrSpec kAttrs[] = {{.name = "activation", .kind = AttrKind::choice, .choices = kGates, .i = 1}};

}  // namespace

extern const Entry op_rnn_dx = {"rnn_dx", kOperands, TW_COUNT(kOperands), kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
