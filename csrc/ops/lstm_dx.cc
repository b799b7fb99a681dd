// The gradients of an lstm, from what forward kept; h the state before a step, q = output(c'). f' is taken at what f gave.
//     ao = dh q gate'(o),  dc += dh o output'(q) + ao P_o, 0 where c' was clipped
//     ai = dc g gate'(i),  af = dc c gate'(f),  ag = dc i cell'(g);  of coupled gates ai = dc (g - c) gate'(i), af = 0
//     of the step before: dc = dc f + ai P_i + af P_f,  dh = da r;  behind a projection p, dh is that of p h', times p
//     dP = da^T c over all steps, dp = dh^T h'
//
// Method    recurrent_backward.h: one phase, but one for what needs all of dh (projection) or of ao (peephole matrices).
// Numerics  everything in the wide type; 16-bit gradients rounded once. Sums over steps in order.
// Threads   shares of sequences, units of a step, then panels of the products.
#include "ops/lstm_problem.h"
#include "ops/recurrent_backward.h"

namespace tw::TW_ISA {
namespace {

template <class T>
class LstmBack {
public:
    typedef Wide<T> W;
    typedef LstmOptions Options;
    static constexpr int64_t kMostPhases = 3;
    static constexpr bool kSeesState = false;

    static const View& first_cells(const Options& o) { return o.c0; }
    // What a projection is multiplied with: dh, and h' in front of it.
    static int64_t beside(const Layer& p, const Options& o) { return given(o.proj) ? p.outputs + p.hidden : 0; }
    static int64_t room(const Layer& p, const Options& o) {
        const int64_t seen = o.full() ? packed_units<W>(kSeen * p.hidden, p.hidden, 1) : kSeen * p.hidden;
        return packed_units<W>(4 * p.hidden, p.outputs, 1) + (given(o.peep) ? seen : 0) +
               (given(o.proj) ? packed_units<W>(p.outputs, p.hidden, 1) : 0);
    }
    LstmBack(const Layer& p, const Options& o, int64_t d, W* room)
        : o_(o), hidden_(p.hidden), outputs_(p.outputs), plain_(o.plain()) {
        r_ = packed(p.r, d, 0, 4 * hidden_, outputs_, room);
        if (o.full()) {
            seen_if_ = packed(o.peep, d, 0, 2 * hidden_, hidden_, room);
            seen_o_ = packed(o.peep, d, 2 * hidden_, hidden_, hidden_, room);
        } else if (given(o.peep)) {
            copy_row(room, 1, o.peep.as<const T>() + d * o.peep.stride[0], o.peep.stride[1], kSeen * hidden_);
            diagonal_ = room;
            room += kSeen * hidden_;
        }
        if (given(o.proj)) proj_ = packed(o.proj, d, 0, outputs_, hidden_, room);
    }

    bool in_place() const { return plain_; }
    int64_t phases() const { return 1 + projected() + full(); }
    int64_t units(int64_t phase) const { return phase == 0 ? outputs_ : hidden_; }

    void pull(const BackStep<W>& step, Units u) const {
        for (int64_t i = 0; i < step.later; ++i)
            if (step.went_on(i)) fill_zero(step.dh + i * outputs_ + u.begin, 1, u.end - u.begin);
        add_product(step.after, wide(), step.later, r_, u.begin, u.end, step.dh, outputs_, 0);
    }

    template <class RowOf>
    void run(int64_t phase, const BackStep<W>& step, Units u, const RowOf& row_of) const {
        const auto each_row = [&](const auto& f) {
            for (int64_t i = 0; i < step.active; ++i)
                if (step.goes_on(i)) f(i);
        };
        const int64_t n = u.end - u.begin;
        if (projected() && phase == 0)
            return each_row(
                [&](int64_t i) { copy_row(row_of(i).beside + u.begin, 1, step.dh + i * outputs_ + u.begin, 1, n); });
        if (phase == projected()) {
            if (projected()) {
                for (int64_t i = 0; i < step.active; ++i) fill_zero(step.made + i * hidden_ + u.begin, 1, n);
                add_product(step.dh, outputs_, step.active, proj_, u.begin, u.end, step.made, hidden_, 0);
            }
            if (plain_)
                return each_row([&](int64_t i) {
                    const BackRow<W> from = row_of(i);
                    const bool rows = from.gates_step == 1 && from.cell_step == 1 && from.before_step == 1;
                    rows ? pass_plain<true>(step, i, u, from) : pass_plain<false>(step, i, u, from);
                });
            if (full()) add_product(step.after, wide(), step.later, seen_if_, u.begin, u.end, step.dc, hidden_, 0);
            each_row([&](int64_t i) { pass_output(step, i, u, row_of(i)); });
        }
        if (phase == projected() + full()) {
            if (full())
                add_product(step.slopes + 3 * hidden_, wide(), step.active, seen_o_, u.begin, u.end, step.dc, hidden_,
                            0);
            each_row([&](int64_t i) { pass_cell(step, i, u, row_of(i)); });
        }
    }

    bool finish(const Finish<T>& f) const {
        if (!write_product<T>(f.g.dr, f.d, 0, wide(), f.rows, {f.left.da, wide(), 1}, {f.left.before, outputs_, 1},
                              f.room))
            return false;
        if (given(o_.peep) && !(full() ? matrices(f) : diagonals(f))) return false;
        const int64_t beside = outputs_ + hidden_;
        return !projected() || write_product<T>(o_.dproj, f.d, 0, outputs_, f.rows, {f.left.beside, beside, 1},
                                                {f.left.beside + outputs_, beside, 1}, f.room);
    }

private:
    bool full() const { return seen_o_.data; }
    bool projected() const { return proj_.data; }
    int64_t wide() const { return 4 * hidden_; }

    // Rows [first, first + terms) of direction d of v (D, rows, units) for a product from the left.
    static Weights<W> packed(const View& v, int64_t d, int64_t first, int64_t terms, int64_t units, W*& room) {
        const T* const from = v.as<const T>() + d * v.stride[0] + first * v.stride[1];
        pack_units(Matrix<T>{from, v.stride[1], v.stride[2]}, terms, units, 1, room);
        const Weights<W> made = {room, terms, units, 1, 0, 1};
        room += packed_units<W>(terms, units, 1);
        return made;
    }

    // All of a row of a plain cell, each number in registers once. Unit: whatever forward kept lies in rows.
    template <bool Unit>
    void pass_plain(const BackStep<W>& step, int64_t row, Units u, const BackRow<W>& from) const {
        W *const da = step.slopes + row * wide() + u.begin, *const kept = from.da + u.begin;
        W *const dc = step.dc + row * hidden_ + u.begin, *const made = from.beside + outputs_ + u.begin;
        const W* const dh = (projected() ? step.made + row * hidden_ : step.dh + row * outputs_) + u.begin;
        const int64_t step_of_gates = Unit ? 1 : from.gates_step, step_of_now = Unit ? 1 : from.cell_step;
        const int64_t step_of_before = Unit ? 1 : from.before_step;
        const W *const gates = from.gates + u.begin * step_of_gates, *const now = from.cell + u.begin * step_of_now;
        const W* const before = from.cell_before + u.begin * step_of_before;
        each_vector<W>(u.end - u.begin, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const auto gate = [&](int64_t b) __attribute__((always_inline)) {
                return take(gates + b * hidden_ * step_of_gates, step_of_gates, k, lanes);
            };
            const auto leave = [&](int64_t b, Vec<W> slope) __attribute__((always_inline)) {
                put(da + b * hidden_, 1, k, lanes, slope);
                if (kept != da) put(kept + b * hidden_, 1, k, lanes, slope);
            };
            const Vec<W> i = gate(0), f = gate(1), g = gate(2), o = gate(3), h = take(dh, 1, k, lanes);
            const Vec<W> q = tanh(take(now, step_of_now, k, lanes)), open = h * o;
            const Vec<W> c = take(dc, 1, k, lanes) + open * (1 - q * q);
            leave(0, c * g * (i * (1 - i)));
            leave(1, c * take(before, step_of_before, k, lanes) * (f * (1 - f)));
            leave(2, c * i * (1 - g * g));
            leave(3, h * q * (o * (1 - o)));
            put(dc, 1, k, lanes, c * f);
            if (projected()) put(made, 1, k, lanes, o * q);
        });
    }

    // ao, and what dh brings to dc.
    void pass_output(const BackStep<W>& step, int64_t row, Units u, const BackRow<W>& from) const {
        const int64_t n = u.end - u.begin;
        W* const spare = step.slopes + row * wide() + u.begin;
        W *const q = spare + hidden_, *const ao = spare + 3 * hidden_, *const dc = step.dc + row * hidden_ + u.begin;
        const W* const dh = (projected() ? step.made + row * hidden_ : step.dh + row * outputs_) + u.begin;
        const Strided<W> o = gate_at(from, 3, hidden_, u.begin);
        copy_row(q, 1, from.cell + u.begin * from.cell_step, from.cell_step, n);
        pass_gate(q, n, o_.output);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> h = take(dh, 1, k, lanes), open = o.at(k, lanes), out = take(q, 1, k, lanes);
            put(ao, 1, k, lanes, h * out);
            put(spare, 1, k, lanes, h * open);
            if (projected()) put(from.beside + outputs_ + u.begin, 1, k, lanes, open * out);
        });
        pass_back(o.data, o.step, ao, n, o_.gate);
        pass_back(q, 1, spare, n, o_.output);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            put(dc, 1, k, lanes, take(dc, 1, k, lanes) + take(spare, 1, k, lanes));
        });
        copy_row(from.da + 3 * hidden_ + u.begin, 1, ao, 1, n);
    }

    // ai, af, ag, and dc of the step before.
    void pass_cell(const BackStep<W>& step, int64_t row, Units u, const BackRow<W>& from) const {
        const int64_t n = u.end - u.begin;
        W* const ai = step.slopes + row * wide() + u.begin;
        W *const af = ai + hidden_, *const ag = af + hidden_, *const ao = ag + hidden_;
        W* const dc = step.dc + row * hidden_ + u.begin;
        const W* const seen = diagonal_ ? diagonal_ + u.begin : nullptr;
        const W* const now = from.cell + u.begin * from.cell_step;
        const W* const before = from.cell_before + u.begin * from.before_step;
        const Strided<W> i = gate_at(from, 0, hidden_, u.begin), f = gate_at(from, 1, hidden_, u.begin);
        const Strided<W> g = gate_at(from, 2, hidden_, u.begin);
        const W clip = static_cast<W>(o_.clip);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> was = take(before, from.before_step, k, lanes), fresh = g.at(k, lanes);
            Vec<W> c = take(dc, 1, k, lanes);
            if (seen) c += take(ao, 1, k, lanes) * take(seen + 2 * hidden_, 1, k, lanes);
            if (clip > 0) c = select(abs(take(now, from.cell_step, k, lanes)) < clip, c, Vec<W>{});
            put(ai, 1, k, lanes, c * (o_.coupled ? fresh - was : fresh));
            put(af, 1, k, lanes, o_.coupled ? Vec<W>{} : c * was);
            put(ag, 1, k, lanes, c * i.at(k, lanes));
            put(dc, 1, k, lanes, c * f.at(k, lanes));
        });
        pass_back(i.data, i.step, ai, n, o_.gate);
        if (!o_.coupled) pass_back(f.data, f.step, af, n, o_.gate);
        pass_back(g.data, g.step, ag, n, o_.cell);
        if (seen)
            each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
                put(dc, 1, k, lanes,
                    take(dc, 1, k, lanes) + take(ai, 1, k, lanes) * take(seen, 1, k, lanes) +
                        take(af, 1, k, lanes) * take(seen + hidden_, 1, k, lanes));
            });
        for (int64_t b = 0; b < 3; ++b) copy_row(from.da + b * hidden_ + u.begin, 1, ai + b * hidden_, 1, n);
    }

    // Calls f(place, cell before, cell), rows of n numbers with their strides, of every step of every sequence in order.
    template <class F>
    void each_step(const Finish<T>& f, const F& call) const {
        const View &cells = f.g.cells, &c0 = o_.c0;
        for (int64_t n = 0; n < f.p.sequences; ++n)
            for (int64_t s = 0; s < f.p.lengths[n]; ++s) {
                const int64_t t = step_of(f.p, f.d, n, s);
                const Strided<W> now = {kept_at<const W>(cells, f.d, t, n), cells.stride[3]};
                const int64_t place = t * f.p.sequences + n;
                if (s > 0)
                    call(place, Strided<W>{kept_at<const W>(cells, f.d, step_of(f.p, f.d, n, s - 1), n), now.step},
                         now);
                else if (given(c0))
                    call(place, Strided<T>{c0.as<const T>() + f.d * c0.stride[0] + n * c0.stride[1], c0.stride[2]},
                         now);
                else
                    call(place, Strided<W>{&kNone, 0}, now);
            }
    }
    static constexpr W kNone = 0;

    bool diagonals(const Finish<T>& f) const {
        W* const to = f.room;
        fill_zero(to, 1, kSeen * hidden_);
        each_step(f, [&](int64_t place, const auto& before, const Strided<W>& now) {
            const W* const da = f.left.da + place * wide();
            each_vector<W>(hidden_, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
                for (int64_t b = 0; b < kSeen; ++b) {
                    const Vec<W> cell = b == 2 ? now.at(k, lanes) : before.at(k, lanes);
                    W* const own = to + b * hidden_;
                    const W* const slope = da + (b == 2 ? 3 : b) * hidden_;
                    put(own, 1, k, lanes, take(own, 1, k, lanes) + take(slope, 1, k, lanes) * cell);
                }
            });
        });
        copy_row(o_.dpeep.as<T>() + f.d * o_.dpeep.stride[0], o_.dpeep.stride[1], to, 1, kSeen * hidden_);
        return true;
    }
    bool matrices(const Finish<T>& f) const {
        Scratch scratch(static_cast<size_t>(2 * f.rows * hidden_ + 1) * sizeof(W));
        W* const before = scratch.as<W>();
        if (!before) return false;
        W* const now = before + f.rows * hidden_;
        __builtin_memset(before, 0, static_cast<size_t>(2 * f.rows * hidden_) * sizeof(W));
        each_step(f, [&](int64_t place, const auto& was, const Strided<W>& is) {
            copy_row(before + place * hidden_, 1, was.data, was.step, hidden_);
            copy_row(now + place * hidden_, 1, is.data, is.step, hidden_);
        });
        for (int64_t b = 0; b < kSeen; ++b)
            if (!write_product<T>(o_.dpeep, f.d, b * hidden_, hidden_, f.rows,
                                  {f.left.da + (b == 2 ? 3 : b) * hidden_, wide(), 1},
                                  {b == 2 ? now : before, hidden_, 1}, f.room))
                return false;
        return true;
    }

    Options o_;
    int64_t hidden_, outputs_;
    bool plain_;
    Weights<W> r_{}, seen_if_{}, seen_o_{}, proj_{};  // seen: peepholes that are matrices
    const W* diagonal_ = nullptr;  // those that are not
};

Status infer(Call& c, Inferred& r) {
    TW_TRY(check_layer(c.in[1], c.in[2], c.in[3], 4, c.in[9], given(c.in[13])));
    const Layer p = layer_of(4, 4, c.in[1], c.in[2], c.in[3]);
    TW_TRY(check_state(p, c.in[7], "h0", p.outputs));
    TW_TRY(check_state(p, c.in[8], "c0", p.hidden));
    TW_TRY(check_ends(p, c.in[0], c.in[4], r));
    TW_TRY(check_kept(p, c.in[5], "gates", 4));
    TW_TRY(check_kept(p, c.in[6], "cells", 1));
    TW_TRY(check_state(p, c.in[10], "dh", p.outputs));
    TW_TRY(check_state(p, c.in[11], "dc", p.hidden));
    TW_TRY(check_lstm(p, c.in[12], c.in[13], c.attr[0]));
    add_state(p, r, p.outputs);
    add_state(p, r, p.hidden);
    for (int k = 12; k <= 13; ++k)
        if (given(c.in[k])) r.out[r.n_out++] = result(p.x.dtype, c.in[k].ndim, c.in[k].shape);
    return Status::ok;
}
Status run(const Call& c) {
    Layer p = layer_of(4, 4, c.in[1], c.in[2], c.in[3]);
    p.h0 = c.in[7];
    LstmOptions o = lstm_options(c.in[8], c.in[12], c.in[13], c.attr);
    int next = 6;
    if (given(o.peep)) o.dpeep = c.out[next++];
    if (given(o.proj)) o.dproj = c.out[next++];
    const Slopes g{c.in[0],  c.in[4],  c.in[5],  c.in[6],  c.in[10], c.in[11], c.out[0],
                   c.out[1], c.out[2], c.out[3], absent(), c.out[4], c.out[5]};
    return run_layer<LstmBack>(p, o, g, c.in[9]);
}

constexpr Operand kOperands[] = {{"dy"},
                                 {"x"},
                                 {"w"},
                                 {"r"},
                                 {"y"},
                                 {"gates"},
                                 {"cells"},
                                 {"h0", Role::optional},
                                 {"c0", Role::optional},
                                 {"lengths", Role::optional},
                                 {"dh", Role::optional},
                                 {"dc", Role::optional},
                                 {"peep", Role::optional},
                                 {"proj", Role::optional}};
constexpr AttrSpec kAttrs[] = {kClip, kCoupled, kGateActivation, kCellActivation, kOutputActivation};

}  // namespace

extern const Entry op_lstm_dx = {"lstm_dx", kOperands, TW_COUNT(kOperands), kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
