// Backward through time: shares of the sequences pass from the last step to the first, the units of a step shared out to the
// threads of a chain, and leave da, the slopes of the sums of every step. The gradients of x and of the weights are products
// over all steps behind that: dx = da w, dw = da^T x, db = sum da, and dr = da^T h in one way or another.
//
// A Cell<T> has
//     Options                        operands and attributes of its own
//     kSeesState                     whether it wants the state that the step made
//     beside(p, o)                   numbers per row that it leaves for products over all steps, beside da
//     room(p, o)                     numbers that it works with, and ...
//     Cell(p, o, g, d, room)         ... the cell of direction d from them
//     phases(), units(phase)         of a step: each needs the one before complete; the first one is of the outputs
//     in_place()                     whether it leaves in da the very slopes that the step before meets
//     pull(step, units)              dh of `units` from da of the step behind
//     run(phase, step, units, row)   units of a phase; row(i) is what there is of row i
//     finish(left, weights)          the gradients of r and of what it has beside
#pragma once
#include "core/chain.h"
#include "ops/recurrent_problem.h"
#include "ops/recurrent_product.h"

namespace tw::TW_ISA {
namespace {

struct Slopes {
    View dy, y, gates, cells, dh, dc;  // gates, cells, dh, dc: dtype none where there are none
    View dx, dw, dr, db, drb, dh0, dc0;  // dx, drb, dc0: alike
};

// A share of the sequences at one step; step -1 only pulls.
template <class W>
struct BackStep {
    int64_t s, rows, active, later;  // active: rows up to the last that has this step; later: that has the step behind
    const int64_t* lengths;  // of the rows
    W* slopes;  // da of this step, rows of `blocks` blocks of H; 0 where a row does not have it
    const W* after;  // of the step behind
    W* dh;  // rows of `outputs`: of the state that the step made, with dy
    W* dc;  // rows of H
    W* start;  // the first cells, rows of H
    W* made;  // rows of H: room for what the cell likes
    bool goes_on(int64_t i) const { return s >= 0 && s < lengths[i]; }
    bool went_on(int64_t i) const { return s + 1 < lengths[i]; }
};

// What forward kept of one row at one step, and what is left of it for products over all steps.
template <class W>
struct BackRow {
    const W* gates;
    int64_t gates_step;
    const W *cell, *cell_before;
    int64_t cell_step, before_step;
    const W* state;  // that the step made, if the cell sees it
    W *da, *before, *beside;
};

// A strided block of gates.
template <class W>
struct Strided {
    const W* data;
    int64_t step;
    inline __attribute__((always_inline)) Vec<Wide<W>> at(int64_t u, int64_t n) const { return take(data, step, u, n); }
};
template <class W>
TW_INLINE Strided<W> gate_at(const BackRow<W>& row, int64_t block, int64_t hidden, int64_t u) {
    return {row.gates + (block * hidden + u) * row.gates_step, row.gates_step};
}

// Fetches units of the gates and the cell before.
template <class W>
TW_INLINE void fetch_row(const BackRow<W>& row, int64_t blocks, int64_t hidden, Units u) {
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(W));
    for (int64_t k = u.begin; k < u.end; k += line) {
        for (int64_t b = 0; row.gates && row.gates_step == 1 && b < blocks; ++b)
            __builtin_prefetch(row.gates + b * hidden + k);
        if (row.cell_before && row.before_step == 1) __builtin_prefetch(row.cell_before + k);
    }
}

// What a direction leaves, rows [steps][sequences].
template <class W>
struct Left {
    W *da, *before, *beside;
};

// The room of a share.
template <class W>
BackStep<W> back_step_of_share(const Layer& p, Share share, Room<W>& room, W* (&slopes)[2], W*& state) {
    BackStep<W> step{};
    step.rows = share.rows, step.lengths = p.lengths + share.first;
    for (W*& own : slopes) own = room.next(share.rows * p.blocks * p.hidden);
    step.dh = room.next(share.rows * p.outputs), step.dc = room.next(share.rows * p.hidden);
    step.start = room.next(share.rows * p.hidden), step.made = room.next(share.rows * p.hidden);
    state = room.next(share.rows * p.outputs);
    return step;
}

// One member's part of a direction of a share.
template <class T, class Cell>
void pass_share(const Layer& p, const Slopes& g, int64_t d, Share share, const Cell& cell, BackStep<Wide<T>> step,
                Wide<T>* const (&slopes)[2], Wide<T>* state, const Left<Wide<T>>& left, int64_t beside, Chain& chain,
                int64_t member) {
    typedef Wide<T> W;
    constexpr int64_t NR = Blocking<W>::NR;
    const int64_t hidden = p.hidden, wide = p.blocks * hidden, outputs = p.outputs, phases = cell.phases();
    const auto row_of = [&](int64_t i) {
        const int64_t n = share.first + i, t = step_of(p, d, n, step.s), at = t * p.sequences + n;
        BackRow<W> row{};
        if (given(g.gates)) row.gates = kept_at<const W>(g.gates, d, t, n), row.gates_step = g.gates.stride[3];
        if (given(g.cells)) {
            row.cell = kept_at<const W>(g.cells, d, t, n), row.cell_step = g.cells.stride[3];
            row.cell_before = step.start + i * hidden, row.before_step = 1;
            if (step.s > 0)
                row.cell_before = kept_at<const W>(g.cells, d, step_of(p, d, n, step.s - 1), n),
                row.before_step = row.cell_step;
        }
        row.state = state + i * outputs;
        row.da = left.da + at * wide, row.before = left.before + at * outputs, row.beside = left.beside + at * beside;
        return row;
    };
    const bool in_place = cell.in_place() && in_time(p, d);
    const auto da_of = [&](int64_t s) {  // of a step that there is, or else anywhere
        const int64_t t = max_of(min_of(d ? p.steps - 1 - s : s, p.steps - 1), 0);
        return left.da + (t * p.sequences + share.first) * wide;
    };
    for (step.s = p.steps - 1; step.s >= -1; --step.s) {
        step.later = step.active, step.active = 0;
        for (int64_t i = 0; i < share.rows; ++i)
            if (step.goes_on(i)) step.active = i + 1;
        step.slopes = slopes[step.s & 1], step.after = slopes[~step.s & 1];
        if (in_place) step.slopes = da_of(step.s), step.after = da_of(step.s + 1);
        for (int64_t phase = 0; phase < phases; ++phase)
            run_link(chain, (p.steps - 1 - step.s) * phases + phase, member, step.s % 2 != 0, [&](int64_t chunk) {
                const Units u = units_of(chunk, chain.chunks, cell.units(phase), NR);
                if (u.begin >= u.end) return;
                if (phase == 0) {
                    // What forward kept is far away by now: it arrives while the product runs.
                    for (int64_t i = 0; i < step.active; ++i)
                        if (step.goes_on(i)) fetch_row(row_of(i), p.kept, hidden, u);
                    cell.pull(step, u);
                }
                for (int64_t i = 0; phase == 0 && i < step.active; ++i) {
                    if (!step.goes_on(i)) continue;
                    const int64_t n = share.first + i, t = step_of(p, d, n, step.s), count = u.end - u.begin;
                    const T* const dy = row_of_y<const T>(g.dy, d, t, n, outputs) + u.begin * g.dy.stride[2];
                    W *const dh = step.dh + i * outputs + u.begin, *const before = row_of(i).before + u.begin;
                    each_vector<T>(count, [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
                        put(dh, 1, k, lanes, take(dh, 1, k, lanes) + take(dy, g.dy.stride[2], k, lanes));
                    });
                    const auto y_at = [&](int64_t time) {
                        return row_of_y<const T>(g.y, d, time, n, outputs) + u.begin * g.y.stride[2];
                    };
                    if (step.s > 0)
                        copy_row(before, 1, y_at(step_of(p, d, n, step.s - 1)), g.y.stride[2], count);
                    else if (given(p.h0))
                        copy_row(
                            before, 1,
                            p.h0.as<const T>() + d * p.h0.stride[0] + n * p.h0.stride[1] + u.begin * p.h0.stride[2],
                            p.h0.stride[2], count);
                    else
                        fill_zero(before, 1, count);
                    if constexpr (Cell::kSeesState)
                        copy_row(state + i * outputs + u.begin, 1, y_at(t), g.y.stride[2], count);
                }
                cell.run(phase, step, u, row_of);
            });
    }
    if (member != 0) return;
    for (int64_t i = 0; i < share.rows; ++i) {
        write_state<T>(g.dh0, d, share.first + i, outputs, step.dh + i * outputs);
        write_state<T>(g.dc0, d, share.first + i, hidden, step.dc + i * hidden);
    }
}

// ---- products over all steps ----------------------------------------------------------------------------------------

// c (m, n), rows c_row apart, = a (m, k) b (k, n), or added; a sum of no terms is zero.
template <class W>
bool multiply(int64_t m, int64_t n, int64_t k, Matrix<W> a, Matrix<W> b, W* c, int64_t c_row, bool accumulate = false) {
    Gemm<W> q{};
    q.m = m, q.n = n, q.k = k, q.a = a, q.b = b, q.c = c, q.c_row = c_row, q.c_col = 1, q.accumulate = accumulate;
    return m == 0 || n == 0 || gemm(q);
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

// Rows [first, first + m) of a gradient of weights: slopes (rows, m)^T times states (rows, n), by way of `room` where they
// cannot be written at once.
template <class T>
bool write_product(const View& v, int64_t d, int64_t first, int64_t m, int64_t rows, Matrix<Wide<T>> slopes,
                   Matrix<Wide<T>> states, Wide<T>* room) {
    const int64_t n = v.shape[2];
    const Matrix<Wide<T>> turned = {slopes.data, slopes.col, slopes.row};
    if constexpr (!kIsNarrow<T>)
        if (v.stride[2] == 1)
            return multiply(m, n, rows, turned, states, v.as<T>() + d * v.stride[0] + first * v.stride[1], v.stride[1]);
    if (!multiply(m, n, rows, turned, states, room, n)) return false;
    write_matrix<T>(v, d, first, m, room);
    return true;
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

// Rows of products over all steps of a direction: what a cell finishes its gradients from.
template <class T>
struct Finish {
    const Layer& p;
    const Slopes& g;
    int64_t d, rows;
    Left<Wide<T>> left;
    Wide<T>* room;  // for the gradient of any weights
    Wide<T>* db;  // of this direction, already written
};

// ---- a call -----------------------------------------------------------------------------------------------------------

template <class T, class Cell>
struct BackWork {
    typedef Wide<T> W;
    W *x, *w, *cells, *left, *shares, *weights, *dx, *db;
    int64_t beside, of_left;
    BackWork(const Layer& p, const typename Cell::Options& o, bool ragged, Room<W>& room) {
        const int64_t rows = p.steps * p.sequences, wide = p.blocks * p.hidden;
        beside = Cell::beside(p, o), of_left = rows * (wide + p.outputs + beside);
        x = room.next(ragged ? rows * p.inputs : room_of(p.x, kIsNarrow<T>));
        w = room.next(room_of(p.w, kIsNarrow<T>));
        cells = room.next(p.directions * Cell::room(p, o));
        left = room.next(p.directions * of_left);
        shares = room.next(p.directions * p.sequences * of_row(p));
        weights = room.next(wide * max_of(p.inputs, max_of(p.outputs, p.hidden)));
        dx = room.next(rows * p.inputs), db = room.next(wide);
    }
    static int64_t of_row(const Layer& p) { return (2 * p.blocks + 3) * p.hidden + 2 * p.outputs; }
    Left<W> left_of(const Layer& p, int64_t d) const {
        W* const at = left + d * of_left;
        const int64_t rows = p.steps * p.sequences, wide = p.blocks * p.hidden;
        return {at, at + rows * wide, at + rows * (wide + p.outputs)};
    }
};

template <class T, class Cell>
bool pass(const Layer& p, const typename Cell::Options& o, const Slopes& g) {
    typedef Wide<T> W;
    constexpr int64_t NR = Blocking<W>::NR;
    const int64_t hidden = p.hidden, wide = p.blocks * hidden, rows = p.steps * p.sequences;
    const int64_t shares = shares_of(p.sequences), jobs = p.directions * shares;
    const int64_t links = (p.steps + 1) * Cell::kMostPhases;
    bool ragged = false;
    for (int64_t n = 0; n < p.sequences; ++n) ragged |= p.lengths[n] < p.steps;
    Room<W> counted{};
    BackWork<T, Cell>(p, o, ragged, counted);
    Scratch scratch(static_cast<size_t>(counted.used + 1) * sizeof(W));
    Scratch meeting(static_cast<size_t>(jobs) * (sizeof(Chain) + static_cast<size_t>(links) * sizeof(uint32_t)) + 64);
    if (!scratch.as<W>() || !meeting.as<char>()) return false;
    Room<W> room{scratch.as<W>(), 0};
    const BackWork<T, Cell> own(p, o, ragged, room);
    const W* const x = ragged ? rows_within<T>(p, own.x) : wide_rows<T>(p.x, own.x);
    const W* const w = wide_rows<T>(p.w, own.w);
    const auto cell_of = [&](int64_t d) { return Cell(p, o, d, own.cells + d * Cell::room(p, o)); };
    const Cell cells[] = {cell_of(0), cell_of(p.directions - 1)};
    const int64_t chunks = max_of(1, min_of(kChunks, ceil_div(hidden, NR))), members = members_of(p, jobs, chunks);
    Chain* const chains = meeting.as<Chain>();
    uint32_t* const taken = reinterpret_cast<uint32_t*>(chains + jobs);
    __builtin_memset(taken, 0, static_cast<size_t>(jobs * links) * sizeof(uint32_t));
    const auto share_of = [&](int64_t job, W*(&slopes)[2], W*& state) {
        const Share share = share_at(p.sequences, job % shares);
        Room<W> at{own.shares + (job / shares * p.sequences + share.first) * own.of_row(p), 0};
        return back_step_of_share(p, share, at, slopes, state);
    };
    W* slopes[2];
    W* state;
    for (int64_t job = 0; job < jobs; ++job) {
        const Share share = share_at(p.sequences, job % shares);
        const int64_t d = job / shares;
        const BackStep<W> step = share_of(job, slopes, state);
        const Left<W> left = own.left_of(p, d);
        chains[job] = {taken + job * links, static_cast<int32_t>(chunks), static_cast<int32_t>(members), 0};
        for (W* each : slopes) fill_zero(each, 1, share.rows * wide);
        for (int64_t i = 0; i < share.rows; ++i) {
            const int64_t n = share.first + i;
            read_state<T>(g.dh, d, n, p.outputs, step.dh + i * p.outputs);
            read_state<T>(g.dc, d, n, hidden, step.dc + i * hidden);
            read_state<T>(Cell::first_cells(o), d, n, hidden, step.start + i * hidden);
            for (int64_t t = p.lengths[n]; t < p.steps; ++t) {
                const int64_t at = t * p.sequences + n;
                fill_zero(left.da + at * wide, 1, wide);
                fill_zero(left.before + at * p.outputs, 1, p.outputs);
                fill_zero(left.beside + at * own.beside, 1, own.beside);
            }
        }
    }
    note_kernel("shares of sequences");
    parallel(jobs * members, [&](int64_t job) {
        const int64_t d = job / members / shares;
        W* own_slopes[2];
        W* own_state;
        const BackStep<W> step = share_of(job / members, own_slopes, own_state);
        pass_share<T>(p, g, d, share_at(p.sequences, job / members % shares), cells[d], step, own_slopes, own_state,
                      own.left_of(p, d), own.beside, chains[job / members], job % members);
    });
    W* dx = own.dx;
    if constexpr (!kIsNarrow<T>)
        if (given(g.dx) && !ragged && is_contiguous(g.dx)) dx = g.dx.as<T>();
    for (int64_t d = 0; d < p.directions; ++d) {
        const Left<W> left = own.left_of(p, d);
        if ((given(g.dx) && !multiply(rows, p.inputs, wide, Matrix<W>{left.da, wide, 1},
                                      Matrix<W>{w + d * wide * p.inputs, p.inputs, 1}, dx, p.inputs, d > 0)) ||
            !write_product<T>(g.dw, d, 0, wide, rows, {left.da, wide, 1}, {x, p.inputs, 1}, own.weights))
            return false;
        sum_columns(left.da, wide, rows, wide, own.db);
        copy_row(g.db.as<T>() + d * g.db.stride[0], g.db.stride[1], own.db, 1, wide);
        if (!cells[d].finish(Finish<T>{p, g, d, rows, left, own.weights, own.db})) return false;
    }
    for (int64_t t = 0; given(g.dx) && dx == own.dx && t < p.steps; ++t)
        for (int64_t n = 0; n < p.sequences; ++n) {
            T* const to = g.dx.as<T>() + t * g.dx.stride[0] + n * g.dx.stride[1];
            if (t < p.lengths[n])
                copy_row(to, g.dx.stride[2], own.dx + (t * p.sequences + n) * p.inputs, 1, p.inputs);
            else
                fill_zero(to, g.dx.stride[2], p.inputs);
        }
    return true;
}

// ---- calls ----------------------------------------------------------------------------------------------------------

// dy and y; then the gradients of x, w, r and the biases.
Status check_ends(const Layer& p, const View& dy, const View& y, Inferred& r) {
    const int64_t shape[] = {p.steps, p.sequences, p.directions * p.outputs};
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
TW_INLINE Status check_kept(const Layer& p, const View& v, const char* name, int64_t blocks) {
    const DType wide = p.x.dtype == DType::f64 ? DType::f64 : DType::f32;
    const int64_t shape[] = {p.directions, p.steps, p.sequences, blocks * p.hidden};
    if (v.dtype != wide)
        return fail(Status::dtype, name, "%s has dtype %s; want %s", name, name_of(v.dtype), name_of(wide));
    return want_shape(v, name, 4, shape);
}

void add_state(const Layer& p, Inferred& r, int64_t width) {
    const int64_t shape[] = {p.directions, p.sequences, width};
    r.out[r.n_out++] = result(p.x.dtype, 3, shape);
}

template <template <class> class Cell, class Options>
Status run_layer(Layer p, const Options& o, const Slopes& g, const View& lengths) {
    Scratch copy(static_cast<size_t>(p.sequences + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory();
    TW_TRY(copy_lengths(lengths, p.sequences, p.steps, copy.as<int64_t>()));
    p.lengths = copy.as<int64_t>();
    const bool enough = for_floating(p.x.dtype, [&]<class T>() { return pass<T, Cell<T>>(p, o, g); });
    return enough ? Status::ok : no_memory();
}

}  // namespace
}  // namespace tw::TW_ISA
