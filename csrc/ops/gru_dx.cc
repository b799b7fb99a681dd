// The gradients of a gru, from what forward kept; h the state before a step. f' is taken at what f gave.
//     dn = dh (1 - z) cell'(n),  dz = dh (h - n) gate'(z),  dh of the step before: dh z and what da passes through r
//     where r scales the product m: dr = dn m gate'(r), and the slope of the product is dn r
//     where it scales the state: dr = (dn r_n) h gate'(r), and dh of the step before has (dn r_n) r beside
//
// Method    recurrent_backward.h: one phase, or two where a product waits for dn of all units.
// Numerics  everything in the wide type; 16-bit gradients rounded once. Sums over steps in order.
// Threads   shares of sequences, units of a step, then panels of the products.
#include "ops/gru_problem.h"
#include "ops/recurrent_backward.h"

namespace tw::TW_ISA {
namespace {

template <class T>
class GruBack {
public:
    typedef Wide<T> W;
    typedef GruOptions Options;
    static constexpr int64_t kMostPhases = 2;
    static constexpr bool kSeesState = false;

    static View first_cells(const Options&) { return absent(); }
    // What the last block of r is multiplied with: the slope of its product, or r h.
    static int64_t beside(const Layer& p, const Options&) { return p.hidden; }
    static int64_t room(const Layer& p, const Options& o) {
        const int64_t first = together(o) * p.hidden;
        return packed_units<W>(first, p.hidden, 1) + packed_units<W>(3 * p.hidden - first, p.hidden, 1);
    }
    GruBack(const Layer& p, const Options& o, int64_t d, W* room) : o_(o), hidden_(p.hidden) {
        const int64_t first = together(o) * hidden_, row = p.r.stride[1], step = p.r.stride[2];
        const T* const r = p.r.as<const T>() + d * p.r.stride[0];
        pack_units(Matrix<T>{r, row, step}, first, hidden_, 1, room);
        first_ = {room, first, hidden_, 1, 0, 1};
        if (o.reset_after) return;
        room += packed_units<W>(first, hidden_, 1);
        pack_units(Matrix<T>{r + first * row, row, step}, hidden_, hidden_, 1, room);
        last_ = {room, hidden_, hidden_, 1, 0, 1};
    }

    bool in_place() const { return false; }
    int64_t phases() const { return 1 + !o_.reset_after; }
    int64_t units(int64_t) const { return hidden_; }

    void pull(const BackStep<W>& step, Units u) const {
        add_product(step.after, 3 * hidden_, step.later, first_, u.begin, u.end, step.dh, hidden_, 0);
    }

    template <class RowOf>
    void run(int64_t phase, const BackStep<W>& step, Units u, const RowOf& row_of) const {
        if (phase == 1) {
            for (int64_t i = 0; i < step.active; ++i) fill_zero(step.made + i * hidden_ + u.begin, 1, u.end - u.begin);
            add_product(step.slopes + 2 * hidden_, 3 * hidden_, step.active, last_, u.begin, u.end, step.made, hidden_,
                        0);
        }
        for (int64_t i = 0; i < step.active; ++i) {
            if (!step.goes_on(i)) continue;
            const BackRow<W> from = row_of(i);
            if (o_.plain())
                from.gates_step == 1 ? pass_plain<true>(step, i, u, from) : pass_plain<false>(step, i, u, from);
            else
                phase == 0 ? pass_state(step, i, u, from) : pass_reset(step, i, u, from);
        }
    }

    bool finish(const Finish<T>& f) const {
        const int64_t first = 2 * hidden_, wide = 3 * hidden_;
        const Matrix<W> before = {f.left.before, hidden_, 1}, beside = {f.left.beside, hidden_, 1};
        const Matrix<W> last = {f.left.da + first, wide, 1};
        if (!write_product<T>(f.g.dr, f.d, 0, first, f.rows, {f.left.da, wide, 1}, before, f.room) ||
            !write_product<T>(f.g.dr, f.d, first, hidden_, f.rows, o_.reset_after ? beside : last,
                              o_.reset_after ? before : beside, f.room))
            return false;
        if (o_.reset_after) sum_columns(f.left.beside, hidden_, f.rows, hidden_, f.db + first);
        const View& drb = f.g.drb;
        copy_row(drb.as<T>() + f.d * drb.stride[0], drb.stride[1], f.db, 1, wide);
        return true;
    }

private:
    // Blocks of r whose products with da go to dh.
    static int64_t together(const Options& o) { return o.reset_after ? 3 : 2; }

    // All of a row of a plain cell, each number in registers once. Unit: the gates that forward kept lie in rows.
    template <bool Unit>
    void pass_plain(const BackStep<W>& step, int64_t row, Units u, const BackRow<W>& from) const {
        W *const da = step.slopes + row * 3 * hidden_ + u.begin, *const kept = from.da + u.begin;
        W *const dh = step.dh + row * hidden_ + u.begin, *const other = from.beside + u.begin;
        const int64_t step_of_gates = Unit ? 1 : from.gates_step;
        const W *const gates = from.gates + u.begin * step_of_gates, *const before = from.before + u.begin;
        each_vector<W>(u.end - u.begin, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const auto gate = [&](int64_t b) __attribute__((always_inline)) {
                return take(gates + b * hidden_ * step_of_gates, step_of_gates, k, lanes);
            };
            const Vec<W> r = gate(0), z = gate(1), fresh = gate(2), m = gate(3), slope = take(dh, 1, k, lanes);
            const Vec<W> dn = slope * (1 - z) * (1 - fresh * fresh), of_product = dn * r;
            const Vec<W> dz = slope * (take(before, 1, k, lanes) - fresh) * (z * (1 - z));
            const Vec<W> dr = dn * m * (r * (1 - r));
            put(da, 1, k, lanes, dr), put(kept, 1, k, lanes, dr);
            put(da + hidden_, 1, k, lanes, dz), put(kept + hidden_, 1, k, lanes, dz);
            put(da + 2 * hidden_, 1, k, lanes, of_product), put(kept + 2 * hidden_, 1, k, lanes, dn);
            put(other, 1, k, lanes, of_product);
            put(dh, 1, k, lanes, slope * z);
        });
    }

    void pass_state(const BackStep<W>& step, int64_t row, Units u, const BackRow<W>& from) const {
        const int64_t n = u.end - u.begin;
        W *const dr = step.slopes + row * 3 * hidden_ + u.begin, *const dz = dr + hidden_, *const dn = dz + hidden_;
        W *const dh = step.dh + row * hidden_ + u.begin, *const other = from.beside + u.begin;
        const W* const h = from.before + u.begin;
        const Strided<W> r = gate_at(from, 0, hidden_, u.begin), z = gate_at(from, 1, hidden_, u.begin);
        const Strided<W> fresh = gate_at(from, 2, hidden_, u.begin), m = gate_at(from, 3, hidden_, u.begin);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> slope = take(dh, 1, k, lanes), keep = z.at(k, lanes);
            put(dn, 1, k, lanes, slope * (1 - keep));
            put(dz, 1, k, lanes, slope * (take(h, 1, k, lanes) - fresh.at(k, lanes)));
            put(dh, 1, k, lanes, slope * keep);
        });
        pass_back(fresh.data, fresh.step, dn, n, o_.cell);
        pass_back(z.data, z.step, dz, n, o_.gate);
        copy_row(from.da + hidden_ + u.begin, 1, dz, 1, n);
        copy_row(from.da + 2 * hidden_ + u.begin, 1, dn, 1, n);
        if (!o_.reset_after) return copy_row(other, 1, m.data, m.step, n);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> slope = take(dn, 1, k, lanes), of_product = slope * r.at(k, lanes);
            put(dr, 1, k, lanes, slope * m.at(k, lanes));
            put(other, 1, k, lanes, of_product);
            put(dn, 1, k, lanes, of_product);
        });
        pass_back(r.data, r.step, dr, n, o_.gate);
        copy_row(from.da + u.begin, 1, dr, 1, n);
    }

    // Where r scales the state: its slope, and its part of dh.
    void pass_reset(const BackStep<W>& step, int64_t row, Units u, const BackRow<W>& from) const {
        const int64_t n = u.end - u.begin;
        W *const dr = step.slopes + row * 3 * hidden_ + u.begin, *const dh = step.dh + row * hidden_ + u.begin;
        const W *const dm = step.made + row * hidden_ + u.begin, *const h = from.before + u.begin;
        const Strided<W> r = gate_at(from, 0, hidden_, u.begin);
        each_vector<W>(n, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
            const Vec<W> slope = take(dm, 1, k, lanes);
            put(dr, 1, k, lanes, slope * take(h, 1, k, lanes));
            put(dh, 1, k, lanes, take(dh, 1, k, lanes) + slope * r.at(k, lanes));
        });
        pass_back(r.data, r.step, dr, n, o_.gate);
        copy_row(from.da + u.begin, 1, dr, 1, n);
    }

    Options o_;
    int64_t hidden_;
    Weights<W> first_{}, last_{};
};

Status infer(Call& c, Inferred& r) {
    TW_TRY(check_layer(c.in[1], c.in[2], c.in[3], 3, c.in[7]));
    const Layer p = layer_of(3, 4, c.in[1], c.in[2], c.in[3]);
    TW_TRY(check_state(p, c.in[6], "h0", p.hidden));
    TW_TRY(check_ends(p, c.in[0], c.in[4], r));
    TW_TRY(check_kept(p, c.in[5], "gates", 4));
    TW_TRY(check_state(p, c.in[8], "dh", p.hidden));
    r.out[r.n_out++] = result(p.x.dtype, 2, p.w.shape);
    add_state(p, r, p.hidden);
    return Status::ok;
}
Status run(const Call& c) {
    Layer p = layer_of(3, 4, c.in[1], c.in[2], c.in[3]);
    p.h0 = c.in[6];
    const Slopes g{c.in[0],  c.in[4],  c.in[5],  absent(), c.in[8],  absent(), c.out[0],
                   c.out[1], c.out[2], c.out[3], c.out[4], c.out[5], absent()};
    return run_layer<GruBack>(p, gru_options(c.attr), g, c.in[7]);
}

constexpr Operand kOperands[] = {{"dy"},
                                 {"x"},
                                 {"w"},
                                 {"r"},
                                 {"y"},
                                 {"gates"},
                                 {"h0", Role::optional},
                                 {"lengths", Role::optional},
                                 {"dh", Role::optional}};
constexpr AttrSpec kAttrs[] = {kResetAfter, kGateActivation, kCellActivation};

}  // namespace

extern const Entry op_gru_dx = {"gru_dx", kOperands, TW_COUNT(kOperands), kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
