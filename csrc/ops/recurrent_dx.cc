// The gradients of a recurrent layer, from what forward kept; a' = da of the gates of a step, h the state before it.
//     rnn    da = dh (1 - h'^2), or dh where h' > 0
//     lstm   do = dh q,  dc += dh o (1 - q^2) with q = tanh(c'),
//            da = (dc g i(1 - i), dc c f(1 - f), dc i (1 - g^2), do o(1 - o)),  dc of the step before = dc f,
//            and what peepholes pass on of da; 0 where c' was clipped
//     gru    dn = dh (1 - z)(1 - n^2),  dz = dh (h - n) z(1 - z),  dr = m dn r(1 - r) where r scales the product m,
//            else dr = m h r(1 - r) with m = dn r_n
//     then dh of the step before from da r, dx = da w, dw = da^T x, dr = da^T h, db = sum da over all steps at once
//
// Method    shares of the sequences pass through time as in forward, with r packed the other way round; the gradients of
//           x and of the weights are products over all steps behind that.
// Numerics  everything in the wide type; 16-bit gradients rounded once. db is summed in order.
// Threads   shares of sequences, then panels of the products.
#include "ops/recurrent_problem.h"

namespace tw::TW_ISA {
namespace {

struct Slopes {
    View dy, y, gates, cells, dh, dc;  // cells, dh, dc: dtype none where there are none
    View dx, dw, dr, db, drb, dh0, dc0, dpeep;  // drb, dc0, dpeep: alike
};

// A strided row of gates as vectors of its blocks.
template <class W>
struct Gates {
    const W* data;
    int64_t step, hidden;
    inline __attribute__((always_inline)) Vec<W> at(int64_t block, int64_t u, int64_t n) const {
        return take(data + block * hidden * step, step, u, n);
    }
};

template <class W>
TW_INLINE void slopes_of_rnn(const W* state, const W* dh, W* da, int64_t hidden, bool relu) {
    each_vector<W>(hidden, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        const Vec<W> h = take(state, 1, u, n), g = take(dh, 1, u, n);
        put(da, 1, u, n, relu ? select(h > 0, g, Vec<W>{}) : g * (1 - h * h));
    });
}

// da of one row, and dc of the step before, from dh and dc.
template <class W>
TW_INLINE void slopes_of_lstm(const Gates<W>& gates, const W* cell, int64_t cell_step, const W* before, const W* dh,
                              W* dc, W* da, const W* peep, W clip, bool coupled) {
    const int64_t hidden = gates.hidden;
    each_vector<W>(hidden, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        const Vec<W> i = gates.at(0, u, n), f = gates.at(1, u, n), g = gates.at(2, u, n), o = gates.at(3, u, n);
        const Vec<W> now = take(cell, cell_step, u, n), was = take(before, 1, u, n), q = tanh(now);
        const Vec<W> h = take(dh, 1, u, n), ao = h * q * o * (1 - o);
        Vec<W> c = take(dc, 1, u, n) + h * o * (1 - q * q);
        if (peep) c += ao * take(peep + 2 * hidden, 1, u, n);
        if (clip > 0) c = select(abs(now) < clip, c, Vec<W>{});
        const Vec<W> ai = c * (coupled ? g - was : g) * i * (1 - i);
        const Vec<W> af = coupled ? Vec<W>{} : c * was * f * (1 - f);
        put(da, 1, u, n, ai);
        put(da + hidden, 1, u, n, af);
        put(da + 2 * hidden, 1, u, n, c * i * (1 - g * g));
        put(da + 3 * hidden, 1, u, n, ao);
        c *= f;
        if (peep) c += ai * take(peep, 1, u, n) + af * take(peep + hidden, 1, u, n);
        put(dc, 1, u, n, c);
    });
}

// Blocks z and n of da, and what dh leaves to the step before past the gates. Where r scales the product, all of da, and
// the slope of the product in `other`; else r h in `other`.
template <class W>
TW_INLINE void slopes_of_gru(const Gates<W>& gates, const W* h, W* dh, W* da, W* other, bool reset_after) {
    const int64_t hidden = gates.hidden;
    each_vector<W>(hidden, [&](int64_t u, int64_t lanes) __attribute__((always_inline)) {
        const Vec<W> r = gates.at(0, u, lanes), z = gates.at(1, u, lanes), n = gates.at(2, u, lanes);
        const Vec<W> m = gates.at(3, u, lanes), slope = take(dh, 1, u, lanes);
        const Vec<W> dn = slope * (1 - z) * (1 - n * n);
        put(da + hidden, 1, u, lanes, slope * (take(h, 1, u, lanes) - n) * z * (1 - z));
        put(da + 2 * hidden, 1, u, lanes, dn);
        if (reset_after) put(da, 1, u, lanes, dn * m * r * (1 - r));
        put(other, 1, u, lanes, reset_after ? dn * r : m);
        put(dh, 1, u, lanes, slope * z);
    });
}
// Block r of da and its part of dh from dm, the slope of r h.
template <class W>
TW_INLINE void slopes_of_reset(const Gates<W>& gates, const W* h, const W* dm, W* dh, W* da) {
    each_vector<W>(gates.hidden, [&](int64_t u, int64_t n) __attribute__((always_inline)) {
        const Vec<W> r = gates.at(0, u, n), slope = take(dm, 1, u, n);
        put(da, 1, u, n, slope * take(h, 1, u, n) * r * (1 - r));
        put(dh, 1, u, n, take(dh, 1, u, n) + slope * r);
    });
}

// What a share leaves of a direction, [steps][sequences]: da, the state before each step, and of a gru `other`, with
// which the last block of r is multiplied: the slope of its product, or r h.
template <class W>
struct Left {
    W *da, *before, *other;
};

// Blocks of da whose product with r goes first.
TW_INLINE int64_t blocks_together(const Layer& p) { return p.cell == Cell::gru && !p.reset_after ? 2 : p.blocks; }

template <class T>
bool pass_share(const Layer& p, const Slopes& g, int64_t d, Share share, const Wide<T>* panels,
                const Left<Wide<T>>& to) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, wide = p.blocks * hidden, state = share.rows * hidden;
    const int64_t together = blocks_together(p) * hidden;
    Scratch scratch(static_cast<size_t>(share.rows * wide + 5 * state + 4 * hidden + 1) * sizeof(W));
    if (!scratch.as<W>()) return false;
    Room<W> room{scratch.as<W>()};
    W *const slopes = room.next(share.rows * wide), *const dh = room.next(state), *const dc = room.next(state);
    W *const h0 = room.next(state), *const c0 = room.next(state), *const dm = room.next(state);
    W* const cell_before = room.next(hidden);
    const W* const peep = read_peepholes<T>(p, d, room.next(3 * hidden));
    read_state<T>(p.h0, d, share, hidden, h0);
    read_state<T>(p.c0, d, share, hidden, c0);
    read_state<T>(g.dh, d, share, hidden, dh);
    read_state<T>(g.dc, d, share, hidden, dc);
    const auto gates_at = [&](int64_t t, int64_t n) {
        return given(g.gates) ? Gates<W>{kept_at<const W>(g.gates, d, t, n), g.gates.stride[3], hidden} : Gates<W>{};
    };
    for (int64_t s = p.steps - 1; s >= 0; --s) {
        int64_t active = 0;
        for (int64_t i = 0; i < share.rows; ++i) {
            const int64_t n = share.first + i;
            W *const own = slopes + i * wide, *const slope = dh + i * hidden;
            if (s >= p.lengths[n]) {
                const int64_t behind = s * p.sequences + n;  // places behind the length, the same in both directions
                fill_zero(own, 1, wide);
                fill_zero(dm + i * hidden, 1, hidden);
                fill_zero(to.da + behind * wide, 1, wide);
                fill_zero(to.before + behind * hidden, 1, hidden);
                if (to.other) fill_zero(to.other + behind * hidden, 1, hidden);
                continue;
            }
            active = i + 1;
            const int64_t t = step_of(p, d, n, s), row = t * p.sequences + n;
            const int64_t last = s > 0 ? step_of(p, d, n, s - 1) : 0;
            W *const da = to.da + row * wide, *const before = to.before + row * hidden;
            const T* const dy = row_of_y<const T>(g.dy, d, t, n, hidden);
            each_vector<T>(hidden, [&](int64_t u, int64_t lanes) __attribute__((always_inline)) {
                put(slope, 1, u, lanes, take(slope, 1, u, lanes) + take(dy, g.dy.stride[2], u, lanes));
            });
            if (s > 0)
                copy_row(before, 1, row_of_y<const T>(g.y, d, last, n, hidden), g.y.stride[2], hidden);
            else
                copy_row(before, 1, h0 + i * hidden, 1, hidden);
            switch (p.cell) {
                case Cell::rnn: {
                    W* const now = dm + i * hidden;
                    copy_row(now, 1, row_of_y<const T>(g.y, d, t, n, hidden), g.y.stride[2], hidden);
                    slopes_of_rnn(now, slope, own, hidden, p.relu);
                    break;
                }
                case Cell::lstm: {
                    const W* was = c0 + i * hidden;
                    if (s > 0) {
                        copy_row(cell_before, 1, kept_at<const W>(g.cells, d, last, n), g.cells.stride[3], hidden);
                        was = cell_before;
                    }
                    slopes_of_lstm(gates_at(t, n), kept_at<const W>(g.cells, d, t, n), g.cells.stride[3], was, slope,
                                   dc + i * hidden, own, peep, static_cast<W>(p.clip), p.coupled);
                    break;
                }
                case Cell::gru: {
                    W* const other = to.other + row * hidden;
                    slopes_of_gru(gates_at(t, n), before, slope, own, other, p.reset_after);
                    copy_row(da, 1, own, 1, wide);
                    if (p.reset_after)
                        copy_row(own + 2 * hidden, 1, other, 1, hidden);
                    else
                        fill_zero(dm + i * hidden, 1, hidden);
                    continue;
                }
            }
            copy_row(da, 1, own, 1, wide);
            fill_zero(slope, 1, hidden);
        }
        if (active == 0) continue;
        if (together < wide) {
            const W* const last_panels = panels + panel_elements<W>(together, hidden);
            add_step(slopes + together, wide, active, hidden, last_panels, hidden, dm, hidden);
            for (int64_t i = 0; i < active; ++i) {
                const int64_t n = share.first + i;
                if (s >= p.lengths[n]) continue;
                const int64_t t = step_of(p, d, n, s), row = t * p.sequences + n;
                slopes_of_reset(gates_at(t, n), to.before + row * hidden, dm + i * hidden, dh + i * hidden,
                                slopes + i * wide);
                copy_row(to.da + row * wide, 1, slopes + i * wide, 1, hidden);
            }
        }
        add_step(slopes, wide, active, together, panels, hidden, dh, hidden);
    }
    write_state<T>(g.dh0, d, share, hidden, dh);
    write_state<T>(g.dc0, d, share, hidden, dc);
    return true;
}

// A wide matrix into rows [first, first + rows) of a view of (D, rows, columns).
template <class T>
void write_matrix(const View& v, int64_t d, int64_t first, int64_t rows, const Wide<T>* from) {
    const int64_t columns = v.shape[2];
    parallel(ceil_div(rows, 64), [&](int64_t job) {
        for (int64_t i = job * 64; i < min_of(rows, job * 64 + 64); ++i)
            copy_row(v.as<T>() + d * v.stride[0] + (first + i) * v.stride[1], v.stride[2], from + i * columns, 1,
                     columns);
    });
}

// x as [steps][sequences][inputs], zero behind the lengths: a NaN there would meet slopes of zero.
template <class T>
const Wide<T>* rows_within(const Layer& p, Wide<T>* to) {
    parallel(p.steps, [&](int64_t t) {
        for (int64_t n = 0; n < p.sequences; ++n) {
            Wide<T>* const own = to + (t * p.sequences + n) * p.inputs;
            if (t < p.lengths[n])
                copy_row(own, 1, p.x.as<const T>() + t * p.x.stride[0] + n * p.x.stride[1], p.x.stride[2], p.inputs);
            else
                fill_zero(own, 1, p.inputs);
        }
    });
    return to;
}

// to[j] = sum of column j, in order.
template <class W>
void sum_columns(const W* from, int64_t row, int64_t rows, int64_t n, W* to) {
    fill_zero(to, 1, n);
    for (int64_t i = 0; i < rows; ++i)
        each_vector<W>(n, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
            put(to, 1, j, lanes, take(to, 1, j, lanes) + take(from + i * row, 1, j, lanes));
        });
}

// dpeep (3H) of direction d: da of i and f times the cell before, of o times the cell, in order of sequences and steps.
template <class T>
void slopes_of_peepholes(const Layer& p, const Slopes& g, int64_t d, const Wide<T>* da, Wide<T>* to) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden;
    fill_zero(to, 1, 3 * hidden);
    for (int64_t n = 0; n < p.sequences; ++n)
        for (int64_t s = 0; s < p.lengths[n]; ++s) {
            const int64_t t = step_of(p, d, n, s);
            const W* const own = da + (t * p.sequences + n) * 4 * hidden;
            const W* const now = kept_at<const W>(g.cells, d, t, n);
            const W* const last = s ? kept_at<const W>(g.cells, d, step_of(p, d, n, s - 1), n) : nullptr;
            const T* const c0 = given(p.c0) ? p.c0.as<const T>() + d * p.c0.stride[0] + n * p.c0.stride[1] : nullptr;
            each_vector<W>(hidden, [&](int64_t u, int64_t k) __attribute__((always_inline)) {
                Vec<W> was{};
                if (last)
                    was = take(last, g.cells.stride[3], u, k);
                else if (c0)
                    was = take(c0, p.c0.stride[2], u, k);
                put(to, 1, u, k, take(to, 1, u, k) + take(own, 1, u, k) * was);
                put(to + hidden, 1, u, k, take(to + hidden, 1, u, k) + take(own + hidden, 1, u, k) * was);
                put(to + 2 * hidden, 1, u, k,
                    take(to + 2 * hidden, 1, u, k) +
                        take(own + 3 * hidden, 1, u, k) * take(now, g.cells.stride[3], u, k));
            });
        }
}

template <class T>
bool pass(const Layer& p, const Slopes& g) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, wide = p.blocks * hidden, rows = p.steps * p.sequences;
    const int64_t together = blocks_together(p) * hidden, of_first = panel_elements<W>(together, hidden);
    const int64_t of_panels = of_first + panel_elements<W>(wide - together, hidden);
    const int64_t of_other = p.cell == Cell::gru ? rows * hidden : 0, of_left = rows * (wide + hidden) + of_other;
    bool ragged = false;
    for (int64_t n = 0; n < p.sequences; ++n) ragged |= p.lengths[n] < p.steps;
    const int64_t x_room = ragged ? rows * p.inputs : room_of(p.x, kIsNarrow<T>), w_room = room_of(p.w, kIsNarrow<T>);
    const int64_t of_weights = wide * max_of(p.inputs, hidden);
    Scratch scratch(static_cast<size_t>(x_room + w_room + p.directions * (of_panels + of_left) + of_weights +
                                        rows * p.inputs + wide + 1) *
                    sizeof(W));
    if (!scratch.as<W>()) return false;
    Room<W> room{scratch.as<W>()};
    W* const own_x = room.next(x_room);
    const W* const x = ragged ? rows_within<T>(p, own_x) : wide_rows<T>(p.x, own_x);
    const W* const w = wide_rows<T>(p.w, room.next(w_room));
    W *const panels = room.next(p.directions * of_panels), *const weights = room.next(of_weights);
    W *const dx = room.next(rows * p.inputs), *const db = room.next(wide), *const left = room.next(0);
    const auto left_of = [&](int64_t d) {
        W* const at = left + d * of_left;
        return Left<W>{at, at + rows * wide, of_other ? at + rows * (wide + hidden) : nullptr};
    };
    for (int64_t d = 0; d < p.directions; ++d) {
        const int64_t row = p.r.stride[1], step = p.r.stride[2];
        const T* const own = p.r.as<const T>() + d * p.r.stride[0];
        pack_panels_of(Matrix<T>{own, row, step}, together, hidden, panels + d * of_panels);
        pack_panels_of(Matrix<T>{own + together * row, row, step}, wide - together, hidden,
                       panels + d * of_panels + of_first);
    }
    bool enough = true;
    note_kernel("shares of sequences");
    const int64_t shares = shares_of(p.sequences);
    parallel(p.directions * shares, [&](int64_t job) {
        const int64_t d = job / shares;
        if (!pass_share<T>(p, g, d, share_at(p.sequences, job % shares), panels + d * of_panels, left_of(d)))
            __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    });
    if (!enough) return false;
    // c (m, n) = a (m, k) b (k, n); a sum of no terms is zero.
    const auto product = [&](int64_t m, int64_t n, int64_t k, Matrix<W> a, Matrix<W> b, W* c, bool accumulate) {
        Gemm<W> q{};
        q.m = m, q.n = n, q.k = k, q.a = a, q.b = b, q.c = c, q.c_row = n, q.c_col = 1, q.accumulate = accumulate;
        return m == 0 || n == 0 || gemm(q);
    };
    const int64_t first = first_blocks(p) * hidden;
    for (int64_t d = 0; d < p.directions; ++d) {
        const Left<W> own = left_of(d);
        const Matrix<W> turned = {own.da, 1, wide};
        if (!product(rows, p.inputs, wide, {own.da, wide, 1}, {w + d * wide * p.inputs, p.inputs, 1}, dx, d > 0) ||
            !product(wide, p.inputs, rows, turned, {x, p.inputs, 1}, weights, false))
            return false;
        write_matrix<T>(g.dw, d, 0, wide, weights);
        if (!product(first, hidden, rows, turned, {own.before, hidden, 1}, weights, false)) return false;
        write_matrix<T>(g.dr, d, 0, first, weights);
        if (first < wide) {
            const Matrix<W> last = {own.da + first, 1, wide}, other = {own.other, 1, hidden};
            const W* const right = p.reset_after ? own.before : own.other;
            if (!product(hidden, hidden, rows, p.reset_after ? other : last, {right, hidden, 1}, weights, false))
                return false;
            write_matrix<T>(g.dr, d, first, hidden, weights);
        }
        sum_columns(own.da, wide, rows, wide, db);
        copy_row(g.db.as<T>() + d * g.db.stride[0], g.db.stride[1], db, 1, wide);
        if (given(g.dpeep)) {
            slopes_of_peepholes<T>(p, g, d, own.da, db);
            copy_row(g.dpeep.as<T>() + d * g.dpeep.stride[0], g.dpeep.stride[1], db, 1, 3 * hidden);
        }
        if (!given(g.drb)) continue;
        if (p.reset_after) sum_columns(own.other, hidden, rows, hidden, db + first);
        copy_row(g.drb.as<T>() + d * g.drb.stride[0], g.drb.stride[1], db, 1, wide);
    }
    for (int64_t t = 0; t < p.steps; ++t)
        for (int64_t n = 0; n < p.sequences; ++n) {
            T* const to = g.dx.as<T>() + t * g.dx.stride[0] + n * g.dx.stride[1];
            if (t < p.lengths[n])
                copy_row(to, g.dx.stride[2], dx + (t * p.sequences + n) * p.inputs, 1, p.inputs);
            else
                fill_zero(to, g.dx.stride[2], p.inputs);
        }
    return true;
}

// ---- calls ------------------------------------------------------------------------------------------------------------------

// dy and y; then the gradients of x, w, r and the biases.
Status check_ends(const Layer& p, const View& dy, const View& y, Inferred& r) {
    const int64_t shape[] = {p.steps, p.sequences, p.directions * p.hidden};
    TW_TRY(want_dtype_of(dy, "dy", p.x, "x"));
    TW_TRY(want_shape(dy, "dy", 3, shape));
    TW_TRY(want_dtype_of(y, "y", p.x, "x"));
    TW_TRY(want_shape(y, "y", 3, shape));
    r.n_out = 0;
    r.out[r.n_out++] = result(p.x.dtype, 3, p.x.shape);
    r.out[r.n_out++] = result(p.x.dtype, 3, p.w.shape);
    r.out[r.n_out++] = result(p.x.dtype, 3, p.r.shape);
    r.out[r.n_out++] = result(p.x.dtype, 2, p.w.shape);
    r.flops = 2 * flops_of(p.x, p.w, p.r);
    return Status::ok;
}

// (D, T, N, blocks H) of the wide type, as forward kept it.
Status check_kept(const Layer& p, const View& v, const char* name, int64_t blocks) {
    const DType wide = p.x.dtype == DType::f64 ? DType::f64 : DType::f32;
    const int64_t shape[] = {p.directions, p.steps, p.sequences, blocks * p.hidden};
    if (v.dtype != wide)
        return fail(Status::dtype, name, "%s has dtype %s; want %s", name, name_of(v.dtype), name_of(wide));
    return want_shape(v, name, 4, shape);
}

// A state, or the gradient of one.
Status check_state(const Layer& p, const View& v, const char* name) {
    const int64_t shape[] = {p.directions, p.sequences, p.hidden};
    return check_optional(v, name, p.x, 3, shape);
}
void add_state(const Layer& p, Inferred& r) {
    const int64_t shape[] = {p.directions, p.sequences, p.hidden};
    r.out[r.n_out++] = result(p.x.dtype, 3, shape);
}

Status run_layer(Layer p, const Slopes& g, const View& lengths) {
    Scratch copy(static_cast<size_t>(p.sequences + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory();
    TW_TRY(copy_lengths(lengths, p.sequences, p.steps, copy.as<int64_t>()));
    p.lengths = copy.as<int64_t>();
    const bool enough = for_floating(p.x.dtype, [&]<class T>() { return pass<T>(p, g); });
    return enough ? Status::ok : no_memory();
}

Status infer_lstm(Call& c, Inferred& r) {
    TW_TRY(check_layer(c.in[1], c.in[2], c.in[3], 4, c.in[9]));
    const Layer p = layer_of(Cell::lstm, c.in[1], c.in[2], c.in[3]);
    TW_TRY(check_state(p, c.in[7], "h0"));
    TW_TRY(check_state(p, c.in[8], "c0"));
    TW_TRY(check_ends(p, c.in[0], c.in[4], r));
    TW_TRY(check_kept(p, c.in[5], "gates", 4));
    TW_TRY(check_kept(p, c.in[6], "cells", 1));
    TW_TRY(check_state(p, c.in[10], "dh"));
    TW_TRY(check_state(p, c.in[11], "dc"));
    TW_TRY(check_cells(c.in[12], c.in[2], c.attr[0]));
    add_state(p, r);
    add_state(p, r);
    if (given(c.in[12])) r.out[r.n_out++] = result(p.x.dtype, 2, c.in[12].shape);
    return Status::ok;
}
Status run_lstm(const Call& c) {
    Layer p = layer_of(Cell::lstm, c.in[1], c.in[2], c.in[3]);
    p.h0 = c.in[7], p.c0 = c.in[8], p.peep = c.in[12];
    p.clip = c.attr[0].f, p.coupled = c.attr[1].i != 0;
    const Slopes g{c.in[0],  c.in[4],  c.in[5],  c.in[6],  c.in[10], c.in[11], c.out[0],
                   c.out[1], c.out[2], c.out[3], absent(), c.out[4], c.out[5], c.n_out > 6 ? c.out[6] : absent()};
    return run_layer(p, g, c.in[9]);
}

Status infer_gru(Call& c, Inferred& r) {
    TW_TRY(check_layer(c.in[1], c.in[2], c.in[3], 3, c.in[7]));
    const Layer p = layer_of(Cell::gru, c.in[1], c.in[2], c.in[3]);
    TW_TRY(check_state(p, c.in[6], "h0"));
    TW_TRY(check_ends(p, c.in[0], c.in[4], r));
    TW_TRY(check_kept(p, c.in[5], "gates", 4));
    TW_TRY(check_state(p, c.in[8], "dh"));
    r.out[r.n_out++] = result(p.x.dtype, 2, p.w.shape);
    add_state(p, r);
    return Status::ok;
}
Status run_gru(const Call& c) {
    Layer p = layer_of(Cell::gru, c.in[1], c.in[2], c.in[3]);
    p.h0 = c.in[6], p.reset_after = c.attr[0].i != 0;
    const Slopes g{c.in[0],  c.in[4],  c.in[5],  absent(), c.in[8],  absent(), c.out[0],
                   c.out[1], c.out[2], c.out[3], c.out[4], c.out[5], absent(), absent()};
    return run_layer(p, g, c.in[7]);
}

Status infer_rnn(Call& c, Inferred& r) {
    TW_TRY(check_layer(c.in[1], c.in[2], c.in[3], 1, c.in[6]));
    const Layer p = layer_of(Cell::rnn, c.in[1], c.in[2], c.in[3]);
    TW_TRY(check_state(p, c.in[5], "h0"));
    TW_TRY(check_ends(p, c.in[0], c.in[4], r));
    TW_TRY(check_state(p, c.in[7], "dh"));
    add_state(p, r);
    return Status::ok;
}
Status run_rnn(const Call& c) {
    Layer p = layer_of(Cell::rnn, c.in[1], c.in[2], c.in[3]);
    p.h0 = c.in[5], p.relu = c.attr[0].choice == 1;
    const Slopes g{c.in[0],  c.in[4],  absent(), absent(), c.in[7],  absent(), c.out[0],
                   c.out[1], c.out[2], c.out[3], absent(), c.out[4], absent(), absent()};
    return run_layer(p, g, c.in[6]);
}

constexpr Operand kLstm[] = {{"dy"},
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
                             {"peep", Role::optional}};
constexpr Operand kGru[] = {{"dy"},
                            {"x"},
                            {"w"},
                            {"r"},
                            {"y"},
                            {"gates"},
                            {"h0", Role::optional},
                            {"lengths", Role::optional},
                            {"dh", Role::optional}};
constexpr Operand kRnn[] = {
    {"dy"}, {"x"}, {"w"}, {"r"}, {"y"}, {"h0", Role::optional}, {"lengths", Role::optional}, {"dh", Role::optional}};
constexpr AttrSpec kLstmAttrs[] = {{.name = "clip", .kind = AttrKind::real},
                                   {.name = "coupled", .kind = AttrKind::boolean}};
constexpr AttrSpec kGruAttrs[] = {{.name = "reset_after", .kind = AttrKind::boolean, .i = 1}};
constexpr AttrSpec kRnnAttrs[] = {{.name = "activation", .kind = AttrKind::choice, .choices = "tanh|relu"}};

}  // namespace

extern const OpDef op_lstm_dx = {"lstm_dx",  kLstm,   TW_COUNT(kLstm), kLstmAttrs, TW_COUNT(kLstmAttrs),
                                 infer_lstm, run_lstm};
extern const OpDef op_gru_dx = {"gru_dx", kGru, TW_COUNT(kGru), kGruAttrs, TW_COUNT(kGruAttrs), infer_gru, run_gru};
extern const OpDef op_rnn_dx = {"rnn_dx", kRnn, TW_COUNT(kRnn), kRnnAttrs, TW_COUNT(kRnnAttrs), infer_rnn, run_rnn};

}  // namespace tw::TW_ISA
