// One recurrent layer over time, in one or two directions. With a = x[t] w^T + b + h r^T, block by block:
//     rnn    h' = tanh(a) or relu(a)
//     lstm   c' = sigmoid(a_f) c + sigmoid(a_i) tanh(a_g),  h' = sigmoid(a_o) tanh(c');  gates in the order i, f, g, o;
//            peepholes add p_i c, p_f c and p_o c' to a; coupled gates are f = 1 - i; c' may be clipped
//     gru    r = sigmoid(a_r), z = sigmoid(a_z), h' = (1 - z) n + z h;  gates in the order r, z, n, with
//            n = tanh(x w_n^T + b_n + r (h r_n^T + rb_n)), or tanh(x w_n^T + b_n + rb_n + (r h) r_n^T)
//
// Method    x w^T of all steps is one product. Then shares of the sequences pass through time, each on one thread without
//           meeting another: h r^T by the register tile on panels of r packed once, the gates of a row while it is in L1.
// Numerics  everything in the wide type; 16-bit results rounded once, the state that passes on is not.
// Threads   panels of the product; then shares of sequences of each direction, cut by their number alone.
// Source    Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning to forget", 2000, and
//           "Learning precise timing with LSTM recurrent networks", 2002; Cho et
//           al., "Learning phrase representations using RNN encoder-decoder", 2014; Elman, "Finding structure in time",
//           1990.
#include "ops/recurrent_problem.h"

namespace tw::TW_ISA {
namespace {

struct Results {
    View y, h, c, gates, cells;  // c, gates and cells: dtype none where there are none
};

// ---- the cells: from the sums of a row its gates, in place, and the state of the next step ----------------------------------

template <class W>
TW_INLINE void pass_rnn(const W* a, W* h, int64_t hidden, bool relu) {
    each_vector<W>(hidden, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        const Vec<W> s = take(a, 1, u, n);
        put(h, 1, u, n, relu ? select(s <= 0, Vec<W>{}, s) : tanh(s));
    });
}

template <class W>
TW_INLINE void pass_lstm(W* a, W* h, W* c, int64_t hidden, const W* peep, W clip, bool coupled) {
    each_vector<W>(hidden, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        W *const ai = a + u, *const af = ai + hidden, *const ag = af + hidden, *const ao = ag + hidden;
        const Vec<W> before = take(c, 1, u, n);
        Vec<W> si = take(ai, 1, 0, n), sf = take(af, 1, 0, n), so = take(ao, 1, 0, n);
        if (peep) si += take(peep, 1, u, n) * before, sf += take(peep + hidden, 1, u, n) * before;
        const Vec<W> i = sigmoid(si), f = coupled ? 1 - i : sigmoid(sf), g = tanh(take(ag, 1, 0, n));
        Vec<W> cell = f * before + i * g;
        if (clip > 0) cell = select(cell > clip, splat(clip), select(cell < -clip, splat(-clip), cell));
        if (peep) so += take(peep + 2 * hidden, 1, u, n) * cell;
        const Vec<W> o = sigmoid(so);
        put(ai, 1, 0, n, i), put(af, 1, 0, n, f), put(ag, 1, 0, n, g), put(ao, 1, 0, n, o);
        put(c, 1, u, n, cell);
        put(h, 1, u, n, o * tanh(cell));
    });
}

// r and z of a gru; in the fourth block r h, unless the product that r scales is there.
template <class W>
TW_INLINE void pass_reset(W* a, const W* h, int64_t hidden, bool reset_after) {
    each_vector<W>(hidden, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        const Vec<W> r = sigmoid(take(a, 1, u, n));
        put(a, 1, u, n, r);
        put(a + hidden, 1, u, n, sigmoid(take(a + hidden, 1, u, n)));
        if (!reset_after) put(a + 3 * hidden, 1, u, n, r * take(h, 1, u, n));
    });
}
template <class W>
TW_INLINE void pass_gru(W* a, W* h, int64_t hidden, bool reset_after) {
    each_vector<W>(hidden, [&](int64_t u, int64_t lanes) __attribute__((always_inline)) {
        Vec<W> s = take(a + 2 * hidden, 1, u, lanes);
        if (reset_after) s += take(a, 1, u, lanes) * take(a + 3 * hidden, 1, u, lanes);
        const Vec<W> z = take(a + hidden, 1, u, lanes), n = tanh(s);
        put(a + 2 * hidden, 1, u, lanes, n);
        put(h, 1, u, lanes, (1 - z) * n + z * take(h, 1, u, lanes));
    });
}

// ---- a share of the sequences through all steps of a direction ---------------------------------------------------------------

// `sums` are x w^T + b of that direction, [steps][sequences]; `bias` is added to what r of a gru scales.
template <class T>
bool pass_share(const Layer& p, const Results& r, int64_t d, Share share, const Wide<T>* sums, const Wide<T>* panels,
                const Wide<T>* bias) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, of_sums = p.blocks * hidden, wide = p.kept * hidden;
    const int64_t first = first_blocks(p) * hidden;
    Scratch scratch(static_cast<size_t>(share.rows * (wide + 2 * hidden) + 3 * hidden + 1) * sizeof(W));
    W* const a = scratch.as<W>();
    if (!a) return false;
    W *const h = a + share.rows * wide, *const c = h + share.rows * hidden;
    const W* const peep = read_peepholes<T>(p, d, c + share.rows * hidden);
    read_state<T>(p.h0, d, share, hidden, h);
    read_state<T>(p.c0, d, share, hidden, c);
    for (int64_t s = 0; s < p.steps; ++s) {
        int64_t active = 0;  // rows up to the last whose sequence goes on
        for (int64_t i = 0; i < share.rows; ++i) {
            if (s >= p.lengths[share.first + i]) continue;
            active = i + 1;
            const int64_t row = step_of(p, d, share.first + i, s) * p.sequences + share.first + i;
            copy_row(a + i * wide, 1, sums + row * of_sums, 1, of_sums);
            if (of_sums < wide) copy_row(a + i * wide + of_sums, 1, bias, 1, hidden);
        }
        if (active == 0) break;
        const auto goes_on = [&](int64_t i) { return s < p.lengths[share.first + i]; };
        add_step(h, hidden, active, hidden, panels, first, a, wide);
        if (p.cell == Cell::gru) {
            for (int64_t i = 0; i < active; ++i)
                if (goes_on(i)) pass_reset(a + i * wide, h + i * hidden, hidden, p.reset_after);
            const W* const last = panels + panel_elements<W>(hidden, first);
            if (p.reset_after)
                add_step(h, hidden, active, hidden, last, hidden, a + 3 * hidden, wide);
            else
                add_step(a + 3 * hidden, wide, active, hidden, last, hidden, a + 2 * hidden, wide);
        }
        for (int64_t i = 0; i < active; ++i) {
            if (!goes_on(i)) continue;
            const int64_t n = share.first + i, t = step_of(p, d, n, s);
            W *const own = a + i * wide, *const state = h + i * hidden, *const cell = c + i * hidden;
            switch (p.cell) {
                case Cell::rnn: pass_rnn(own, state, hidden, p.relu); break;
                case Cell::lstm: pass_lstm(own, state, cell, hidden, peep, static_cast<W>(p.clip), p.coupled); break;
                case Cell::gru: pass_gru(own, state, hidden, p.reset_after); break;
            }
            copy_row(row_of_y<T>(r.y, d, t, n, hidden), r.y.stride[2], state, 1, hidden);
            if (given(r.gates)) copy_row(kept_at<W>(r.gates, d, t, n), r.gates.stride[3], own, 1, wide);
            if (given(r.cells)) copy_row(kept_at<W>(r.cells, d, t, n), r.cells.stride[3], cell, 1, hidden);
        }
    }
    for (int64_t i = 0; i < share.rows; ++i) {
        const int64_t n = share.first + i;
        for (int64_t t = p.lengths[n]; t < p.steps; ++t) {
            fill_zero(row_of_y<T>(r.y, d, t, n, hidden), r.y.stride[2], hidden);
            if (given(r.gates)) fill_zero(kept_at<W>(r.gates, d, t, n), r.gates.stride[3], wide);
            if (given(r.cells)) fill_zero(kept_at<W>(r.cells, d, t, n), r.cells.stride[3], hidden);
        }
    }
    write_state<T>(r.h, d, share, hidden, h);
    write_state<T>(r.c, d, share, hidden, c);
    return true;
}

// b + rb of direction d; of a gru that resets after the product, rb of the last block behind them.
template <class T>
void read_biases(const Layer& p, int64_t d, Wide<T>* to) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, n = p.blocks * hidden;
    fill_zero(to, 1, n + hidden);
    if (given(p.b)) copy_row(to, 1, p.b.as<const T>() + d * p.b.stride[0], p.b.stride[1], n);
    if (!given(p.rb)) return;
    const int64_t step = p.rb.stride[1], joined = p.reset_after ? n - hidden : n;
    const T* const from = p.rb.as<const T>() + d * p.rb.stride[0];
    each_vector<W>(joined, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        put(to, 1, i, lanes, take(to, 1, i, lanes) + take(from, step, i, lanes));
    });
    if (p.reset_after) copy_row(to + n, 1, from + joined * step, step, hidden);
}

// r of all directions as panels, a product of first_blocks, then one of the rest.
template <class W>
TW_INLINE int64_t panels_of_r(const Layer& p) {
    const int64_t first = first_blocks(p) * p.hidden;
    return panel_elements<W>(p.hidden, first) + panel_elements<W>(p.hidden, p.blocks * p.hidden - first);
}
template <class T>
void pack_r(const Layer& p, Wide<T>* to) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, first = first_blocks(p) * hidden, row = p.r.stride[1], step = p.r.stride[2];
    for (int64_t d = 0; d < p.directions; ++d, to += panels_of_r<W>(p)) {
        const T* const r = p.r.as<const T>() + d * p.r.stride[0];
        pack_panels_of(Matrix<T>{r, step, row}, hidden, first, to);
        pack_panels_of(Matrix<T>{r + first * row, step, row}, hidden, p.blocks * hidden - first,
                       to + panel_elements<W>(hidden, first));
    }
}

template <class T>
bool pass(const Layer& p, const Results& r) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, wide = p.blocks * hidden, rows = p.steps * p.sequences;
    const int64_t of_panels = panels_of_r<W>(p), of_bias = wide + hidden;
    const int64_t x_room = room_of(p.x, kIsNarrow<T>), w_room = room_of(p.w, kIsNarrow<T>);
    const int64_t own_panels = p.packed ? 0 : p.directions * of_panels;
    Scratch scratch(static_cast<size_t>(x_room + w_room + own_panels + p.directions * (of_bias + rows * wide) + 1) *
                    sizeof(W));
    if (!scratch.as<W>()) return false;
    Room<W> room{scratch.as<W>()};
    const W* const x = wide_rows<T>(p.x, room.next(x_room));
    const W* const w = wide_rows<T>(p.w, room.next(w_room));
    W *const bias = room.next(p.directions * of_bias), *const sums = room.next(p.directions * rows * wide);
    const W* panels = static_cast<const W*>(p.packed);
    if (!panels) {
        W* const own = room.next(own_panels);
        pack_r<T>(p, own);
        panels = own;
    }
    for (int64_t d = 0; d < p.directions; ++d) {
        read_biases<T>(p, d, bias + d * of_bias);
        Gemm<W> g{};
        g.m = rows, g.n = wide, g.k = p.inputs;
        g.a = {x, p.inputs, 1}, g.b = {w + d * wide * p.inputs, 1, p.inputs};
        g.c = sums + d * rows * wide, g.c_row = wide, g.c_col = 1, g.bias_col = bias + d * of_bias;
        if (rows && !gemm(g)) return false;
    }
    bool enough = true;
    note_kernel("shares of sequences");
    const int64_t shares = shares_of(p.sequences);
    parallel(p.directions * shares, [&](int64_t job) {
        const int64_t d = job / shares;
        if (!pass_share<T>(p, r, d, share_at(p.sequences, job % shares), sums + d * rows * wide, panels + d * of_panels,
                           bias + d * of_bias + wide))
            __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    });
    return enough;
}

// ---- calls ------------------------------------------------------------------------------------------------------------------

// y, h, and for an lstm c; then what is kept.
void add_results(Inferred& r, const Layer& p, bool saved) {
    const DType dtype = p.x.dtype, wide = dtype == DType::f64 ? DType::f64 : DType::f32;
    const int64_t y[] = {p.steps, p.sequences, p.directions * p.hidden};
    const int64_t state[] = {p.directions, p.sequences, p.hidden};
    const int64_t gates[] = {p.directions, p.steps, p.sequences, p.kept * p.hidden};
    const int64_t cells[] = {p.directions, p.steps, p.sequences, p.hidden};
    r.n_out = 0;
    r.out[r.n_out++] = result(dtype, 3, y);
    r.out[r.n_out++] = result(dtype, 3, state);
    if (p.cell == Cell::lstm) r.out[r.n_out++] = result(dtype, 3, state);
    if (saved) r.out[r.n_out++] = result(wide, 4, gates);
    if (saved && p.cell == Cell::lstm) r.out[r.n_out++] = result(wide, 4, cells);
    r.flops = flops_of(p.x, p.w, p.r);
}

// r alone, as far as it is given and in order: a layer of which only the panels can be asked.
template <Cell C>
bool prepared_layer(const Call& c, Layer& p) {
    const View& r = c.in[2];
    if (!given(r) || r.ndim != 3 || !is_float(r.dtype)) return false;
    p = layer_of(C, absent(), r, r);
    return r.shape[1] == p.blocks * p.hidden && p.hidden > 0;
}
template <Cell C>
int64_t packed_size(const Call& c) {
    Layer p;
    if (!prepared_layer<C>(c, p)) return 0;
    return p.directions * (p.r.dtype == DType::f64 ? 8 * panels_of_r<double>(p) : 4 * panels_of_r<float>(p));
}
template <Cell C>
void pack(const Call& c, void* to) {
    Layer p;
    if (!prepared_layer<C>(c, p)) return;
    for_floating(p.r.dtype, [&]<class T>() { pack_r<T>(p, static_cast<Wide<T>*>(to)); });
}

Status run_layer(Layer p, const Results& r, const View& lengths) {
    Scratch copy(static_cast<size_t>(p.sequences + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory();
    TW_TRY(copy_lengths(lengths, p.sequences, p.steps, copy.as<int64_t>()));
    p.lengths = copy.as<int64_t>();
    if (p.sequences == 0 || p.hidden == 0 || p.directions == 0) return Status::ok;
    const bool enough = for_floating(p.x.dtype, [&]<class T>() { return pass<T>(p, r); });
    return enough ? Status::ok : no_memory();
}

Status infer_lstm(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1];
    TW_TRY(check_layer(x, w, c.in[2], 4, c.in[6]));
    const Layer p = layer_of(Cell::lstm, x, w, c.in[2]);
    const int64_t state[] = {p.directions, p.sequences, p.hidden};
    TW_TRY(check_optional(c.in[3], "b", x, 2, w.shape));
    TW_TRY(check_optional(c.in[4], "h0", x, 3, state));
    TW_TRY(check_optional(c.in[5], "c0", x, 3, state));
    TW_TRY(check_cells(c.in[7], w, c.attr[0]));
    add_results(r, p, c.attr[2].i != 0);
    return Status::ok;
}
Status run_lstm(const Call& c) {
    Layer p = layer_of(Cell::lstm, c.in[0], c.in[1], c.in[2]);
    p.packed = c.packed;
    p.b = c.in[3], p.h0 = c.in[4], p.c0 = c.in[5], p.peep = c.in[7];
    p.clip = c.attr[0].f, p.coupled = c.attr[1].i != 0;
    Results r{c.out[0], c.out[1], c.out[2], absent(), absent()};
    if (c.n_out > 3) r.gates = c.out[3], r.cells = c.out[4];
    return run_layer(p, r, c.in[6]);
}

Status infer_gru(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1];
    TW_TRY(check_layer(x, w, c.in[2], 3, c.in[6]));
    const Layer p = layer_of(Cell::gru, x, w, c.in[2]);
    const int64_t state[] = {p.directions, p.sequences, p.hidden};
    TW_TRY(check_optional(c.in[3], "b", x, 2, w.shape));
    TW_TRY(check_optional(c.in[4], "rb", x, 2, w.shape));
    TW_TRY(check_optional(c.in[5], "h0", x, 3, state));
    add_results(r, p, c.attr[1].i != 0);
    return Status::ok;
}
Status run_gru(const Call& c) {
    Layer p = layer_of(Cell::gru, c.in[0], c.in[1], c.in[2]);
    p.packed = c.packed;
    p.b = c.in[3], p.rb = c.in[4], p.h0 = c.in[5], p.reset_after = c.attr[0].i != 0;
    return run_layer(p, {c.out[0], c.out[1], absent(), c.n_out > 2 ? c.out[2] : absent(), absent()}, c.in[6]);
}

Status infer_rnn(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1];
    TW_TRY(check_layer(x, w, c.in[2], 1, c.in[5]));
    const Layer p = layer_of(Cell::rnn, x, w, c.in[2]);
    const int64_t state[] = {p.directions, p.sequences, p.hidden};
    TW_TRY(check_optional(c.in[3], "b", x, 2, w.shape));
    TW_TRY(check_optional(c.in[4], "h0", x, 3, state));
    add_results(r, p, false);
    return Status::ok;
}
Status run_rnn(const Call& c) {
    Layer p = layer_of(Cell::rnn, c.in[0], c.in[1], c.in[2]);
    p.packed = c.packed;
    p.b = c.in[3], p.h0 = c.in[4], p.relu = c.attr[0].choice == 1;
    return run_layer(p, {c.out[0], c.out[1], absent(), absent(), absent()}, c.in[5]);
}

constexpr Operand kLstm[] = {{"x"},
                             {"w"},
                             {"r"},
                             {"b", Role::optional},
                             {"h0", Role::optional},
                             {"c0", Role::optional},
                             {"lengths", Role::optional},
                             {"peep", Role::optional}};
constexpr Operand kGru[] = {{"x"},
                            {"w"},
                            {"r"},
                            {"b", Role::optional},
                            {"rb", Role::optional},
                            {"h0", Role::optional},
                            {"lengths", Role::optional}};
constexpr Operand kRnn[] = {
    {"x"}, {"w"}, {"r"}, {"b", Role::optional}, {"h0", Role::optional}, {"lengths", Role::optional}};
constexpr AttrSpec kLstmAttrs[] = {{.name = "clip", .kind = AttrKind::real},
                                   {.name = "coupled", .kind = AttrKind::boolean},
                                   {.name = "return_saved", .kind = AttrKind::boolean}};
constexpr AttrSpec kGruAttrs[] = {{.name = "reset_after", .kind = AttrKind::boolean, .i = 1},
                                  {.name = "return_saved", .kind = AttrKind::boolean}};
constexpr AttrSpec kRnnAttrs[] = {{.name = "activation", .kind = AttrKind::choice, .choices = "tanh|relu"}};

}  // namespace

extern const OpDef op_lstm = {
    "lstm",   kLstm, TW_COUNT(kLstm),         kLstmAttrs,      TW_COUNT(kLstmAttrs), infer_lstm,
    run_lstm, 0,     packed_size<Cell::lstm>, pack<Cell::lstm>};
extern const OpDef op_gru = {"gru",   kGru, TW_COUNT(kGru),         kGruAttrs,      TW_COUNT(kGruAttrs), infer_gru,
                             run_gru, 0,    packed_size<Cell::gru>, pack<Cell::gru>};
extern const OpDef op_rnn = {"rnn",   kRnn, TW_COUNT(kRnn),         kRnnAttrs,      TW_COUNT(kRnnAttrs), infer_rnn,
                             run_rnn, 0,    packed_size<Cell::rnn>, pack<Cell::rnn>};

}  // namespace tw::TW_ISA
