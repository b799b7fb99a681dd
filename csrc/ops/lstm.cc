// One LSTM layer over time, in one or two directions; gates in the order i, f, g, o:
//     a = x[t] w^T + h r^T + b,  c' = sigmoid(a_f) c + sigmoid(a_i) tanh(a_g),  h' = sigmoid(a_o) tanh(c')
//
// Method    x w^T of all steps is one product. Then shares of the sequences pass through time, each on one thread without
//           meeting another: h r^T by the register tile on panels of r packed once, the gates of a row while it is in L1.
// Numerics  everything in the wide type; 16-bit results rounded once, the state that passes on is not.
// Threads   panels of the product; then shares of sequences of each direction, cut by their number alone.
// Source    Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning to forget", 2000.
#include "ops/lstm_problem.h"

namespace tw::TW_ISA {
namespace {

struct Results {
    View y, h, c, gates, cells;  // gates and cells: dtype none if they are not kept
};

// Gates of one row from their sums, in place; c and h become those of the next step.
template <class W>
TW_INLINE void pass_gates(W* a, W* h, W* c, int64_t hidden) {
    each_vector<W>(hidden, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        W *const ai = a + u, *const af = ai + hidden, *const ag = af + hidden, *const ao = ag + hidden;
        const Vec<W> i = sigmoid(take(ai, 1, 0, n)), f = sigmoid(take(af, 1, 0, n)), g = tanh(take(ag, 1, 0, n));
        const Vec<W> o = sigmoid(take(ao, 1, 0, n)), cell = f * take(c, 1, u, n) + i * g;
        put(ai, 1, 0, n, i), put(af, 1, 0, n, f), put(ag, 1, 0, n, g), put(ao, 1, 0, n, o);
        put(c, 1, u, n, cell);
        put(h, 1, u, n, o * tanh(cell));
    });
}

// The sequences of a share through all steps of direction d; `sums` are x w^T + b of that direction, [steps][sequences].
template <class T>
bool pass_share(const Lstm& p, const Results& r, int64_t d, Share share, const Wide<T>* sums, const Wide<T>* panels) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, wide = 4 * hidden;
    Scratch scratch(static_cast<size_t>(share.rows * (wide + 2 * hidden) + 1) * sizeof(W));
    W* const a = scratch.as<W>();
    if (!a) return false;
    W *const h = a + share.rows * wide, *const c = h + share.rows * hidden;
    read_state<T>(p.h0, d, share, hidden, h);
    read_state<T>(p.c0, d, share, hidden, c);
    for (int64_t s = 0; s < p.steps; ++s) {
        int64_t active = 0;  // rows up to the last whose sequence goes on
        for (int64_t i = 0; i < share.rows; ++i) {
            if (s >= p.lengths[share.first + i]) continue;
            active = i + 1;
            const int64_t row = step_of(p, d, share.first + i, s) * p.sequences + share.first + i;
            copy_row(a + i * wide, 1, sums + row * wide, 1, wide);
        }
        if (active == 0) break;
        add_step(h, hidden, active, hidden, panels, wide, a, wide);
        for (int64_t i = 0; i < active; ++i) {
            const int64_t n = share.first + i;
            if (s >= p.lengths[n]) continue;
            const int64_t t = step_of(p, d, n, s);
            pass_gates(a + i * wide, h + i * hidden, c + i * hidden, hidden);
            copy_row(r.y.as<T>() + t * r.y.stride[0] + n * r.y.stride[1] + d * hidden * r.y.stride[2], r.y.stride[2],
                     h + i * hidden, 1, hidden);
            if (!given(r.gates)) continue;
            copy_row(kept_at<W>(r.gates, d, t, n), r.gates.stride[3], a + i * wide, 1, wide);
            copy_row(kept_at<W>(r.cells, d, t, n), r.cells.stride[3], c + i * hidden, 1, hidden);
        }
    }
    for (int64_t i = 0; i < share.rows; ++i) {
        const int64_t n = share.first + i;
        for (int64_t t = p.lengths[n]; t < p.steps; ++t) {
            fill_zero(r.y.as<T>() + t * r.y.stride[0] + n * r.y.stride[1] + d * hidden * r.y.stride[2], r.y.stride[2],
                      hidden);
            if (!given(r.gates)) continue;
            fill_zero(kept_at<W>(r.gates, d, t, n), r.gates.stride[3], wide);
            fill_zero(kept_at<W>(r.cells, d, t, n), r.cells.stride[3], hidden);
        }
    }
    write_state<T>(r.h, d, share, hidden, h);
    write_state<T>(r.c, d, share, hidden, c);
    return true;
}

template <class T>
bool pass(const Lstm& p, const Results& r) {
    typedef Wide<T> W;
    const int64_t wide = 4 * p.hidden, rows = p.steps * p.sequences;
    const int64_t of_panels = panel_elements<W>(p.hidden, wide), x_room = room_of(p.x, kIsNarrow<T>);
    const int64_t w_room = room_of(p.w, kIsNarrow<T>), r_room = room_of(p.r, kIsNarrow<T>);
    Scratch scratch(
        static_cast<size_t>(x_room + w_room + r_room + p.directions * (of_panels + wide + rows * wide) + 1) *
        sizeof(W));
    W* at = scratch.as<W>();
    if (!at) return false;
    const auto next = [&](int64_t n) {
        W* const here = at;
        at += n;
        return here;
    };
    const W* const x = wide_rows<T>(p.x, next(x_room));
    const W *const w = wide_rows<T>(p.w, next(w_room)), *const recurrent = wide_rows<T>(p.r, next(r_room));
    W *const panels = next(p.directions * of_panels), *const bias = next(p.directions * wide);
    W* const sums = next(p.directions * rows * wide);
    for (int64_t d = 0; d < p.directions; ++d) {
        if (given(p.b))
            copy_row(bias + d * wide, 1, p.b.as<const T>() + d * p.b.stride[0], p.b.stride[1], wide);
        else
            fill_zero(bias + d * wide, 1, wide);
        pack_panels_of(Matrix<W>{recurrent + d * wide * p.hidden, 1, p.hidden}, p.hidden, wide, panels + d * of_panels);
        Gemm<W> g{};
        g.m = rows, g.n = wide, g.k = p.inputs;
        g.a = {x, p.inputs, 1}, g.b = {w + d * wide * p.inputs, 1, p.inputs};
        g.c = sums + d * rows * wide, g.c_row = wide, g.c_col = 1, g.bias_col = bias + d * wide;
        if (rows && !gemm(g)) return false;
    }
    bool enough = true;
    note_kernel("shares of sequences");
    const int64_t shares = shares_of(p.sequences);
    parallel(p.directions * shares, [&](int64_t job) {
        const int64_t d = job / shares;
        if (!pass_share<T>(p, r, d, share_at(p.sequences, job % shares), sums + d * rows * wide,
                           panels + d * of_panels))
            __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    });
    return enough;
}

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &recurrent = c.in[2];
    TW_TRY(check_lstm(x, w, recurrent, c.in[4], c.in[5], c.in[6]));
    const int64_t directions = w.shape[0], hidden = recurrent.shape[2], steps = x.shape[0], sequences = x.shape[1];
    if (given(c.in[3])) {
        TW_TRY(want_dtype_of(c.in[3], "b", x, "x"));
        TW_TRY(want_shape(c.in[3], "b", 2, w.shape));
    }
    const DType wide = x.dtype == DType::f64 ? DType::f64 : DType::f32;
    const int64_t y[] = {steps, sequences, directions * hidden}, state[] = {directions, sequences, hidden};
    const int64_t gates[] = {directions, steps, sequences, 4 * hidden},
                  cells[] = {directions, steps, sequences, hidden};
    r.n_out = 3;
    r.out[0] = result(x.dtype, 3, y);
    r.out[1] = result(x.dtype, 3, state);
    r.out[2] = result(x.dtype, 3, state);
    if (c.attr[0].i) {
        r.out[r.n_out++] = result(wide, 4, gates);
        r.out[r.n_out++] = result(wide, 4, cells);
    }
    r.flops = 8.0 * static_cast<double>(steps * sequences) * static_cast<double>(directions * hidden) *
              static_cast<double>(x.shape[2] + hidden);
    return Status::ok;
}

Status run(const Call& c) {
    Scratch lengths(static_cast<size_t>(c.in[0].shape[1] + 1) * sizeof(int64_t));
    if (!lengths.as<int64_t>()) return no_memory();
    TW_TRY(copy_lengths(c.in[6], c.in[0].shape[1], c.in[0].shape[0], lengths.as<int64_t>()));
    const Lstm p = lstm_of(c.in[0], c.in[1], c.in[2], c.in[3], c.in[4], c.in[5], lengths.as<int64_t>());
    Results r{c.out[0], c.out[1], c.out[2], absent(), absent()};
    if (c.n_out > 3) r.gates = c.out[3], r.cells = c.out[4];
    if (p.sequences == 0 || p.hidden == 0 || p.directions == 0) return Status::ok;
    const bool enough = for_floating(p.x.dtype, [&]<class T>() { return pass<T>(p, r); });
    return enough ? Status::ok : no_memory();
}

constexpr Operand kOperands[] = {{"x"},
                                 {"w"},
                                 {"r"},
                                 {"b", Role::optional},
                                 {"h0", Role::optional},
                                 {"c0", Role::optional},
                                 {"lengths", Role::optional}};
constexpr AttrSpec kAttrs[] = {{.name = "return_saved", .kind = AttrKind::boolean}};

}  // namespace

extern const OpDef op_lstm = {"lstm", kOperands, 7, kAttrs, 1, infer, run};

}  // namespace tw::TW_ISA
