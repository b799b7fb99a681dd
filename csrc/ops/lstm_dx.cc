// The gradients of an LSTM layer, from the gates and cells that forward kept. Backward in time, with q = tanh(c):
//     do = dh q,  dc += dh o (1 - q^2),  da = (dc g i(1 - i), dc c' f(1 - f), dc i (1 - g^2), do o(1 - o))
//     dh' = da r + dy,  dc' = dc f;   then dx = da w,  dw = da^T x,  dr = da^T h',  db = sum da over all steps at once
//
// Method    shares of the sequences pass through time as in forward, with r packed the other way round; the gradients of
//           x and of the weights are products over all steps behind that.
// Numerics  everything in the wide type; 16-bit gradients rounded once. db is summed in order.
// Threads   shares of sequences, then panels of the products.
#include "ops/lstm_problem.h"

namespace tw::TW_ISA {
namespace {

struct Slopes {
    View dy, y, gates, cells, dh, dc;  // dh, dc: dtype none where not given
    View dx, dw, dr, db, dh0, dc0;
};

// da of one row, and dc of the step before, from dh and dc.
template <class W>
TW_INLINE void pass_slopes(const W* gates, int64_t step, const W* cell, int64_t cell_step, const W* before, const W* dh,
                           W* dc, W* da, int64_t hidden) {
    each_vector<W>(hidden, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        const auto gate = [&](int64_t k)
                              __attribute__((always_inline)) { return take(gates + k * hidden * step, step, u, n); };
        const Vec<W> i = gate(0), f = gate(1), g = gate(2), o = gate(3), q = tanh(take(cell, cell_step, u, n));
        const Vec<W> h = take(dh, 1, u, n), c = take(dc, 1, u, n) + h * o * (1 - q * q);
        put(da, 1, u, n, c * g * i * (1 - i));
        put(da + hidden, 1, u, n, c * take(before, 1, u, n) * f * (1 - f));
        put(da + 2 * hidden, 1, u, n, c * i * (1 - g * g));
        put(da + 3 * hidden, 1, u, n, h * q * o * (1 - o));
        put(dc, 1, u, n, c * f);
    });
}

// da and the state before each step of direction d, [steps][sequences], for the sequences of a share.
template <class T>
bool pass_share(const Lstm& p, const Slopes& g, int64_t d, Share share, const Wide<T>* panels, Wide<T>* da,
                Wide<T>* before) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, wide = 4 * hidden, state = share.rows * hidden;
    Scratch scratch(static_cast<size_t>(share.rows * wide + 4 * state + 1) * sizeof(W));
    W* const slopes = scratch.as<W>();
    if (!slopes) return false;
    W *const dh = slopes + share.rows * wide, *const dc = dh + state, *const h0 = dc + state, *const c0 = h0 + state;
    read_state<T>(p.h0, d, share, hidden, h0);
    read_state<T>(p.c0, d, share, hidden, c0);
    read_state<T>(g.dh, d, share, hidden, dh);
    read_state<T>(g.dc, d, share, hidden, dc);
    Scratch row_scratch(static_cast<size_t>(hidden) * sizeof(W));
    W* const cell_before = row_scratch.as<W>();
    if (!cell_before) return false;
    const auto y_at = [&](const View& y, int64_t t, int64_t n) {
        return y.as<const T>() + t * y.stride[0] + n * y.stride[1] + d * hidden * y.stride[2];
    };
    for (int64_t s = p.steps - 1; s >= 0; --s) {
        int64_t active = 0;
        for (int64_t i = 0; i < share.rows; ++i) {
            const int64_t n = share.first + i;
            W* const own = slopes + i * wide;
            if (s >= p.lengths[n]) {
                fill_zero(own, 1, wide);
                fill_zero(da + (s * p.sequences + n) * wide, 1, wide);  // d = 1: places behind the length, all the same
                fill_zero(before + (s * p.sequences + n) * hidden, 1, hidden);
                continue;
            }
            active = i + 1;
            const int64_t t = step_of(p, d, n, s), row = t * p.sequences + n;
            const T* const dy = y_at(g.dy, t, n);
            each_vector<T>(hidden, [&](int64_t u, int64_t lanes) __attribute__((always_inline)) {
                put(dh + i * hidden, 1, u, lanes,
                    take(dh + i * hidden, 1, u, lanes) + take(dy, g.dy.stride[2], u, lanes));
            });
            const W* was = c0 + i * hidden;
            if (s > 0) {
                const int64_t last = step_of(p, d, n, s - 1);
                copy_row(cell_before, 1, kept_at<const W>(g.cells, d, last, n), g.cells.stride[3], hidden);
                was = cell_before;
                copy_row(before + row * hidden, 1, y_at(g.y, last, n), g.y.stride[2], hidden);
            } else {
                copy_row(before + row * hidden, 1, h0 + i * hidden, 1, hidden);
            }
            pass_slopes(kept_at<const W>(g.gates, d, t, n), g.gates.stride[3], kept_at<const W>(g.cells, d, t, n),
                        g.cells.stride[3], was, dh + i * hidden, dc + i * hidden, own, hidden);
            copy_row(da + row * wide, 1, own, 1, wide);
            fill_zero(dh + i * hidden, 1, hidden);
        }
        if (active) add_step(slopes, wide, active, wide, panels, hidden, dh, hidden);
    }
    write_state<T>(g.dh0, d, share, hidden, dh);
    write_state<T>(g.dc0, d, share, hidden, dc);
    return true;
}

// A wide matrix (rows, columns) into a view of two axes.
template <class T>
void write_matrix(const View& v, int64_t d, const Wide<T>* from) {
    const int64_t rows = v.shape[1], columns = v.shape[2];
    parallel(ceil_div(rows, 64), [&](int64_t job) {
        for (int64_t i = job * 64; i < min_of(rows, job * 64 + 64); ++i)
            copy_row(v.as<T>() + d * v.stride[0] + i * v.stride[1], v.stride[2], from + i * columns, 1, columns);
    });
}

template <class T>
bool pass(const Lstm& p, const Slopes& g) {
    typedef Wide<T> W;
    const int64_t wide = 4 * p.hidden, rows = p.steps * p.sequences;
    const int64_t of_panels = panel_elements<W>(wide, p.hidden), x_room = room_of(p.x, kIsNarrow<T>);
    const int64_t w_room = room_of(p.w, kIsNarrow<T>), r_room = room_of(p.r, kIsNarrow<T>);
    const int64_t of_weights = wide * max_of(p.inputs, p.hidden);
    Scratch scratch(static_cast<size_t>(x_room + w_room + r_room +
                                        p.directions * (of_panels + rows * (wide + p.hidden)) + of_weights +
                                        rows * p.inputs + wide + 1) *
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
    W *const panels = next(p.directions * of_panels), *const da = next(p.directions * rows * wide);
    W *const before = next(p.directions * rows * p.hidden), *const weights = next(of_weights);
    W *const dx = next(rows * p.inputs), *const db = next(wide);
    for (int64_t d = 0; d < p.directions; ++d)
        pack_panels_of(Matrix<W>{recurrent + d * wide * p.hidden, p.hidden, 1}, wide, p.hidden, panels + d * of_panels);
    bool enough = true;
    note_kernel("shares of sequences");
    const int64_t shares = shares_of(p.sequences);
    parallel(p.directions * shares, [&](int64_t job) {
        const int64_t d = job / shares;
        if (!pass_share<T>(p, g, d, share_at(p.sequences, job % shares), panels + d * of_panels, da + d * rows * wide,
                           before + d * rows * p.hidden))
            __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    });
    if (!enough) return false;
    // c (m, n) = a (m, k) b (k, n); a sum of no terms is zero.
    const auto product = [&](int64_t m, int64_t n, int64_t k, Matrix<W> a, Matrix<W> b, W* c, bool accumulate) {
        Gemm<W> q{};
        q.m = m, q.n = n, q.k = k, q.a = a, q.b = b, q.c = c, q.c_row = n, q.c_col = 1, q.accumulate = accumulate;
        return m == 0 || n == 0 || gemm(q);
    };
    for (int64_t d = 0; d < p.directions; ++d) {
        const W *const own = da + d * rows * wide, *const state = before + d * rows * p.hidden;
        const Matrix<W> turned = {own, 1, wide};
        if (!product(rows, p.inputs, wide, {own, wide, 1}, {w + d * wide * p.inputs, p.inputs, 1}, dx, d > 0) ||
            !product(wide, p.inputs, rows, turned, {x, p.inputs, 1}, weights, false))
            return false;
        write_matrix<T>(g.dw, d, weights);
        if (!product(wide, p.hidden, rows, turned, {state, p.hidden, 1}, weights, false)) return false;
        write_matrix<T>(g.dr, d, weights);
        fill_zero(db, 1, wide);
        for (int64_t i = 0; i < rows; ++i)
            each_vector<W>(wide, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
                put(db, 1, j, n, take(db, 1, j, n) + take(own + i * wide, 1, j, n));
            });
        copy_row(g.db.as<T>() + d * g.db.stride[0], g.db.stride[1], db, 1, wide);
    }
    for (int64_t t = 0; t < p.steps; ++t)
        for (int64_t n = 0; n < p.sequences; ++n)
            copy_row(g.dx.as<T>() + t * g.dx.stride[0] + n * g.dx.stride[1], g.dx.stride[2],
                     dx + (t * p.sequences + n) * p.inputs, 1, p.inputs);
    return true;
}

Status infer(Call& c, Inferred& r) {
    const View &dy = c.in[0], &x = c.in[1], &w = c.in[2], &recurrent = c.in[3], &y = c.in[4];
    const View &gates = c.in[5], &cells = c.in[6];
    TW_TRY(check_lstm(x, w, recurrent, c.in[7], c.in[8], c.in[9]));
    const int64_t directions = w.shape[0], hidden = recurrent.shape[2], steps = x.shape[0], sequences = x.shape[1];
    const int64_t shape[] = {steps, sequences, directions * hidden}, state[] = {directions, sequences, hidden};
    const int64_t four[] = {directions, steps, sequences, 4 * hidden}, one[] = {directions, steps, sequences, hidden};
    TW_TRY(want_dtype_of(dy, "dy", x, "x"));
    TW_TRY(want_shape(dy, "dy", 3, shape));
    TW_TRY(want_dtype_of(y, "y", x, "x"));
    TW_TRY(want_shape(y, "y", 3, shape));
    const DType wide = x.dtype == DType::f64 ? DType::f64 : DType::f32;
    const View* const kept[] = {&gates, &cells};
    for (const View* v : kept)
        if (v->dtype != wide) {
            const char* name = v == &gates ? "gates" : "cells";
            return fail(Status::dtype, name, "%s has dtype %s; want %s", name, name_of(v->dtype), name_of(wide));
        }
    TW_TRY(want_shape(gates, "gates", 4, four));
    TW_TRY(want_shape(cells, "cells", 4, one));
    for (int k = 10; k < 12; ++k) {
        if (!given(c.in[k])) continue;
        TW_TRY(want_dtype_of(c.in[k], c.op->operands[k].name, x, "x"));
        TW_TRY(want_shape(c.in[k], c.op->operands[k].name, 3, state));
    }
    r.n_out = 6;
    r.out[0] = result(x.dtype, 3, x.shape);
    r.out[1] = result(x.dtype, 3, w.shape);
    r.out[2] = result(x.dtype, 3, recurrent.shape);
    r.out[3] = result(x.dtype, 2, w.shape);
    r.out[4] = r.out[5] = result(x.dtype, 3, state);
    r.flops = 16.0 * static_cast<double>(steps * sequences) * static_cast<double>(directions * hidden) *
              static_cast<double>(x.shape[2] + hidden);
    return Status::ok;
}

Status run(const Call& c) {
    Scratch lengths(static_cast<size_t>(c.in[1].shape[1] + 1) * sizeof(int64_t));
    if (!lengths.as<int64_t>()) return no_memory();
    TW_TRY(copy_lengths(c.in[9], c.in[1].shape[1], c.in[1].shape[0], lengths.as<int64_t>()));
    const Lstm p = lstm_of(c.in[1], c.in[2], c.in[3], absent(), c.in[7], c.in[8], lengths.as<int64_t>());
    const Slopes g{c.in[0],  c.in[4],  c.in[5],  c.in[6],  c.in[10], c.in[11],
                   c.out[0], c.out[1], c.out[2], c.out[3], c.out[4], c.out[5]};
    const bool enough = for_floating(p.x.dtype, [&]<class T>() { return pass<T>(p, g); });
    return enough ? Status::ok : no_memory();
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
                                 {"dc", Role::optional}};

}  // namespace

extern const OpDef op_lstm_dx = {"lstm_dx", kOperands, 12, nullptr, 0, infer, run};

}  // namespace tw::TW_ISA
