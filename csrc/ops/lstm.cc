// An LSTM layer over time, in one or two directions. With a = x[t] w^T + b + h r^T, blocks in the order i, f, g, o:
//     c' = gate(a_f) c + gate(a_i) cell(a_g),  h' = gate(a_o) output(c')
// Peepholes add P_i c, P_f c and P_o c' to a, each P a matrix or a diagonal; coupled gates are f = 1 - i; c' may be clipped;
// a projection makes h' of fewer numbers, p h'. gate is sigmoid, cell and output are tanh unless chosen.
//
// Method    recurrent_forward.h: one phase, but one for what needs all of c (matrices), of c' (P_o) or of h' (projection).
// Numerics  everything in the wide type; 16-bit results rounded once, the state that passes on is not.
//           Sigmoids of a plain cell are 0 below x = -87.
//           Weights in 8 bits meet codes of their rows: exact sums, scaled back; recurrent_weights.h.
// Threads   panels of the product; shares of sequences, then units of a step, cut by shape alone.
// Source    Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning to forget", 2000, and
//           "Learning precise timing with LSTM recurrent networks", 2002; Sak et al., "Long short-term memory recurrent
//           neural network architectures for large scale acoustic modeling", 2014 (projection).
#include "ops/lstm_problem.h"
#include "ops/recurrent_forward.h"

namespace tw::TW_ISA {
namespace {

template <class T>
class LstmCell {
public:
    typedef Wide<T> W;
    typedef LstmOptions Options;
    static constexpr bool kInPlace = true;
    static constexpr int64_t kPlace[] = {0, 1, 2, 3}, kMostPhases = 4;

    static int64_t joined(const Layer&, const Options&) { return 0; }
    static int64_t room(const Layer& p, const Options& o) {
        const int64_t seen = o.full() ? packed_units<W>(p.hidden, p.hidden, kSeen) : kSeen * p.hidden;
        return (given(o.peep) ? seen : 0) + (given(o.proj) ? packed_units<W>(p.hidden, p.outputs, 1) : 0);
    }
    LstmCell(const Layer& p, const Options& o, int64_t d, const Weights<W>& r, W* room)
        : o_(o), d_(d), hidden_(p.hidden), outputs_(p.outputs), plain_(o.plain()), r_(r) {
        if (o.full()) {
            pack_units(Matrix<T>{of_direction(o.peep), o.peep.stride[2], o.peep.stride[1]}, hidden_, hidden_, kSeen,
                       room);
            seen_ = {room, hidden_, hidden_, kSeen, 0, kSeen};
            room += packed_units<W>(hidden_, hidden_, kSeen);
        } else if (given(o.peep)) {
            copy_row(room, 1, of_direction(o.peep), o.peep.stride[1], kSeen * hidden_);
            diagonal_ = room;
            room += kSeen * hidden_;
        }
        if (!given(o.proj)) return;
        pack_units(Matrix<T>{of_direction(o.proj), o.proj.stride[2], o.proj.stride[1]}, hidden_, outputs_, 1, room);
        proj_ = {room, hidden_, outputs_, 1, 0, 1};
    }

    void begin(const Step<W>& step, int64_t n, int64_t i) const {
        read_state<T>(o_.c0, d_, n, hidden_, step.cells + i * hidden_);
    }
    int64_t phases() const { return 1 + 2 * full() + projected(); }
    int64_t kept_phase() const { return 2 * full(); }
    int64_t units(int64_t phase) const { return phase > kept_phase() ? outputs_ : hidden_; }
    LeftRows<W> left(int64_t phase, const Step<W>& step) const { return {phase ? nullptr : step.before, outputs_}; }

    void run(int64_t phase, const Step<W>& step, Units u) const {
        if (phase == 0) {
            add_product(step.before, outputs_, step.active, r_, u.begin, u.end, step.gates, wide(), hidden_,
                        step.codes);
            if (full())
                add_product(step.cells, hidden_, step.active, some_blocks(seen_, 0, 2), u.begin, u.end, step.gates,
                            wide(), hidden_);
        }
        if (phase == 0 && plain_) return each_row(step, [&](int64_t i) { pass_plain(step, i, u); });
        if (phase == full()) each_row(step, [&](int64_t i) { pass_cell(step, i, u); });
        if (phase == kept_phase()) {
            if (full())
                add_product(step.cells, hidden_, step.active, some_blocks(seen_, 2, 1), u.begin, u.end,
                            step.gates + 3 * hidden_, wide(), hidden_);
            each_row(step, [&](int64_t i) { pass_output(step, i, u); });
        }
        if (phase > kept_phase()) project(step, u);
    }

private:
    bool full() const { return seen_.data; }
    bool projected() const { return proj_.data; }
    int64_t wide() const { return 4 * hidden_; }
    const T* of_direction(const View& v) const { return v.as<const T>() + d_ * v.stride[0]; }
    template <class F>
    static void each_row(const Step<W>& step, const F& f) {
        for (int64_t i = 0; i < step.active; ++i)
            if (step.goes_on(i)) f(i);
    }

    // All of a row of a plain cell, each number in registers once.
    void pass_plain(const Step<W>& step, int64_t row, Units u) const {
        W *const i = step.gates + row * wide() + u.begin, *const f = i + hidden_, *const g = f + hidden_;
        W *const o = g + hidden_, *const cells = step.cells + row * hidden_ + u.begin;
        W* const h = (projected() ? step.made : step.after) + row * hidden_ + u.begin;
        each_vector<W>(u.end - u.begin, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> open = opened(take(i, 1, k, lanes)), keep = opened(take(f, 1, k, lanes));
            const Vec<W> fresh = tanh(take(g, 1, k, lanes)), out = opened(take(o, 1, k, lanes));
            const Vec<W> cell = keep * take(cells, 1, k, lanes) + open * fresh;
            put(i, 1, k, lanes, open), put(f, 1, k, lanes, keep), put(g, 1, k, lanes, fresh), put(o, 1, k, lanes, out);
            put(cells, 1, k, lanes, cell);
            put(h, 1, k, lanes, out * tanh(cell));
        });
    }

    // i, f, g and the cell of a row.
    void pass_cell(const Step<W>& step, int64_t row, Units u) const {
        const int64_t n = u.end - u.begin;
        W *const i = step.gates + row * wide() + u.begin, *const f = i + hidden_, *const g = f + hidden_;
        W* const o = g + hidden_;
        W* const c = step.cells + row * hidden_ + u.begin;
        const W* const seen = diagonal_ ? diagonal_ + u.begin : nullptr;
        if (seen) add_seen(i, seen, c, n), add_seen(f, seen + hidden_, c, n);
        pass_gate(i, n, o_.gate);
        if (!o_.coupled) pass_gate(f, n, o_.gate);
        pass_gate(g, n, o_.cell);
        const W clip = static_cast<W>(o_.clip);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> open = take(i, 1, k, lanes), keep = o_.coupled ? 1 - open : take(f, 1, k, lanes);
            Vec<W> cell = keep * take(c, 1, k, lanes) + open * take(g, 1, k, lanes);
            if (clip > 0) cell = select(cell > clip, splat(clip), select(cell < -clip, splat(-clip), cell));
            if (o_.coupled) put(f, 1, k, lanes, keep);
            put(c, 1, k, lanes, cell);
        });
        if (seen) add_seen(o, seen + 2 * hidden_, c, n);
    }
    static void add_seen(W* to, const W* seen, const W* cells, int64_t n) {
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            put(to, 1, k, lanes, take(to, 1, k, lanes) + take(seen, 1, k, lanes) * take(cells, 1, k, lanes));
        });
    }

    // o and what it lets out, the state itself or what is projected.
    void pass_output(const Step<W>& step, int64_t row, Units u) const {
        const int64_t n = u.end - u.begin;
        W* const o = step.gates + row * wide() + 3 * hidden_ + u.begin;
        W* const h = (projected() ? step.made : step.after) + row * hidden_ + u.begin;
        pass_gate(o, n, o_.gate);
        copy_row(h, 1, step.cells + row * hidden_ + u.begin, 1, n);
        pass_gate(h, n, o_.output);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            put(h, 1, k, lanes, take(h, 1, k, lanes) * take(o, 1, k, lanes));
        });
    }

    // Rows whose sequence has ended keep their state: they are projected, but not taken over.
    void project(const Step<W>& step, Units u) const {
        const int64_t n = u.end - u.begin;
        for (int64_t i = 0; i < step.active; ++i) fill_zero(step.projected + i * outputs_ + u.begin, 1, n);
        add_product(step.made, hidden_, step.active, proj_, u.begin, u.end, step.projected, outputs_, 0);
        each_row(step, [&](int64_t i) {
            const int64_t at = i * outputs_ + u.begin;
            copy_row(step.after + at, 1, step.projected + at, 1, n);
        });
    }

    Options o_;
    int64_t d_, hidden_, outputs_;
    bool plain_;
    Weights<W> r_, seen_{}, proj_{};  // seen_: peepholes that are matrices
    const W* diagonal_ = nullptr;  // those that are not
};

constexpr int kDtype = 6;  // of the attributes

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1];
    TW_TRY(check_layer(x, w, c.in[2], 4, c.in[6], given(c.in[8])));
    const Layer p = layer_of(4, 4, x, w, c.in[2]);
    TW_TRY(check_optional(c.in[3], "b", x, 2, w.shape));
    TW_TRY(check_state(p, c.in[4], "h0", p.outputs));
    TW_TRY(check_state(p, c.in[5], "c0", p.hidden));
    TW_TRY(check_lstm(p, c.in[7], c.in[8], c.attr[0]));
    TW_TRY(check_stored(x, w, c.in[2], c.attr[kDtype]));
    add_results(r, p, true, c.attr[5].i != 0);
    return Status::ok;
}
Status run(const Call& c) {
    Layer p = layer_of(4, 4, c.in[0], c.in[1], c.in[2]);
    p.stored = stored_as(p.r, c.attr[kDtype]), p.packed = c.packed, p.b = c.in[3], p.h0 = c.in[4];
    Results r{c.out[0], c.out[1], c.out[2], absent(), absent()};
    if (c.n_out > 3) r.gates = c.out[3], r.cells = c.out[4];
    return run_layer<LstmCell>(p, lstm_options(c.in[5], c.in[7], c.in[8], c.attr), r, c.in[6]);
}

constexpr Operand kOperands[] = {{"x"},
                                 {"w"},
                                 {"r"},
                                 {"b", Role::optional},
                                 {"h0", Role::optional},
                                 {"c0", Role::optional},
                                 {"lengths", Role::optional},
                                 {"peep", Role::optional},
                                 {"proj", Role::optional}};
constexpr AttrSpec kAttrs[] = {kClip,           kCoupled,          kGateActivation,
                               kCellActivation, kOutputActivation, {.name = "return_saved", .kind = AttrKind::boolean},
                               kStoredAs};

}  // namespace

extern const Entry op_lstm = {"lstm", kOperands, TW_COUNT(kOperands),    kAttrs,         TW_COUNT(kAttrs), infer,
                              run,    0,         packed_size<4, kDtype>, pack<4, kDtype>};

}  // namespace tw::TW_ISA
