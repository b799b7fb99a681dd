// Forward through time: x w^T + b of all steps is one product; then shares of the sequences pass through time, the units of
// a step shared out to the threads of a chain. A cell says how a step goes on from there.
//
// A Cell<T> has
//     Options                     operands and attributes of its own
//     kInPlace                    whether sums become the gates where they lie: as many blocks, in the same order
//     kPlace[b]                   where in a row of gates, in blocks of H, block b of the sums and of what is kept lies
//     room(p, o)                  numbers that it works with beside, and ...
//     Cell(p, o, d, r, room)      ... the cell of direction d from them; r as pack_units made it
//     begin(step, n, i)           before the first step of sequence n, in row i
//     left(phase, step)           the rows that a phase multiplies by r, data null where it does not
//     phases(), units(phase)      of a step: each needs the one before complete; the first one is of the H units
//     run(phase, step, units)     units [begin, end) of a phase; the last one leaves h
//     kept_phase()                behind which gates and cells of its units are complete
#pragma once
#include "core/chain.h"
#include "ops/recurrent_problem.h"
#include "ops/recurrent_product.h"
#include "ops/recurrent_weights.h"

namespace tw::TW_ISA {
namespace {

struct Results {
    View y, h, c, gates, cells;  // c, gates and cells: dtype none where there are none
    const void* gates_of(int64_t d) const {
        return static_cast<const char*>(gates.data) + d * gates.stride[0] * item_size(gates.dtype);
    }
};

// Rows of a product, and how far they are apart.
template <class W>
struct LeftRows {
    const W* data;
    int64_t row;
};

// A share of the sequences at one step.
template <class W>
struct Step {
    int64_t s, rows, active;  // active: rows up to the last whose sequence goes on
    const int64_t* lengths;  // of the rows
    W* gates;  // rows of `kept` blocks of H
    const W* before;  // states, rows of `outputs` numbers
    W* after;
    W* cells;  // rows of H
    W* made;  // rows of H, of `outputs` behind a projection: room for what the cell likes
    W* projected;
    CodedRows codes;  // the member's own, of the rows that meet weights in 8 bits
    bool goes_on(int64_t i) const { return s < lengths[i]; }
};

// The room of a share.
template <class W>
Step<W> step_of_share(const Layer& p, Share share, Room<W>& room, W* (&states)[2]) {
    Step<W> step{};
    step.rows = share.rows, step.lengths = p.lengths + share.first;
    step.gates = room.next(share.rows * p.kept * p.hidden);
    for (W*& state : states) state = room.next(share.rows * p.outputs);
    step.cells = room.next(share.rows * p.hidden);
    step.made = room.next(share.rows * p.hidden), step.projected = room.next(share.rows * p.outputs);
    return step;
}

// One member's part of a direction of a share. `sums` are x w^T + b of that direction, [steps][sequences]; `bias` is where
// the block that no sum has begins.
template <class T, class Cell>
void pass_share(const Layer& p, const Results& r, int64_t d, Share share, const Cell& cell, Step<Wide<T>> step,
                Wide<T>* const (&states)[2], Wide<T>* sums, const Wide<T>* bias, Chain& chain, int64_t member) {
    typedef Wide<T> W;
    constexpr int64_t NR = Blocking<W>::NR;
    const int64_t hidden = p.hidden, wide = p.kept * hidden, outputs = p.outputs, phases = cell.phases();
    const bool in_place = Cell::kInPlace && in_time(p, d), keeps = given(r.gates) && sums != r.gates_of(d);
    for (step.s = 0; step.s < p.steps; ++step.s) {
        step.active = 0;
        for (int64_t i = 0; i < share.rows; ++i)
            if (step.goes_on(i)) step.active = i + 1;
        if (step.active == 0) break;
        step.before = states[step.s % 2], step.after = states[(step.s + 1) % 2];
        if (in_place) step.gates = sums + ((d ? p.steps - 1 - step.s : step.s) * p.sequences + share.first) * wide;
        const auto each_row = [&](const auto& f) __attribute__((always_inline)) {
            for (int64_t i = 0; i < step.active; ++i)
                if (step.goes_on(i)) f(i, share.first + i, step_of(p, d, share.first + i, step.s));
        };
        for (int64_t phase = 0; phase < phases; ++phase) {
            // Links are complete when the next one begins: what they left is there for all members.
            if constexpr (__is_same(W, float))
                if (p.stored == DType::i8)
                    if (const LeftRows<W> rows = cell.left(phase, step); rows.data)
                        code_rows(rows.data, rows.row, step.active, outputs, step.codes);
            run_link(chain, step.s * phases + phase, member, step.s % 2 != 0, [&](int64_t chunk) {
                const Units u = units_of(chunk, chain.chunks, cell.units(phase), NR);
                const int64_t count = u.end - u.begin;
                if (count <= 0) return;
                if (phase == 0 && !in_place)
                    each_row([&](int64_t i, int64_t n, int64_t t) __attribute__((always_inline)) {
                        const W* const from = sums + (t * p.sequences + n) * p.blocks * hidden + u.begin;
                        W* const to = step.gates + i * wide + u.begin;
                        for (int64_t b = 0; b < p.blocks; ++b)
                            copy_row(to + Cell::kPlace[b] * hidden, 1, from + b * hidden, 1, count);
                        if (p.blocks < p.kept)
                            copy_row(to + Cell::kPlace[p.blocks] * hidden, 1, bias + u.begin, 1, count);
                    });
                cell.run(phase, step, u);
                each_row([&](int64_t i, int64_t n, int64_t t) __attribute__((always_inline)) {
                    if (phase == cell.kept_phase() && keeps)
                        for (int64_t b = 0; b < p.kept; ++b)
                            copy_row(kept_at<W>(r.gates, d, t, n) + (b * hidden + u.begin) * r.gates.stride[3],
                                     r.gates.stride[3], step.gates + i * wide + Cell::kPlace[b] * hidden + u.begin, 1,
                                     count);
                    if (phase == cell.kept_phase() && given(r.cells))
                        copy_row(kept_at<W>(r.cells, d, t, n) + u.begin * r.cells.stride[3], r.cells.stride[3],
                                 step.cells + i * hidden + u.begin, 1, count);
                    if (phase == phases - 1)
                        copy_row(row_of_y<T>(r.y, d, t, n, outputs) + u.begin * r.y.stride[2], r.y.stride[2],
                                 step.after + i * outputs + u.begin, 1, count);
                });
            });
        }
    }
    if (member != 0) return;
    for (int64_t i = 0; i < share.rows; ++i) {
        const int64_t n = share.first + i;
        for (int64_t t = p.lengths[n]; t < p.steps; ++t) {
            fill_zero(row_of_y<T>(r.y, d, t, n, outputs), r.y.stride[2], outputs);
            if (given(r.gates)) fill_zero(kept_at<W>(r.gates, d, t, n), r.gates.stride[3], wide);
            if (given(r.cells)) fill_zero(kept_at<W>(r.cells, d, t, n), r.cells.stride[3], hidden);
        }
        write_state<T>(r.h, d, n, outputs, states[p.lengths[n] % 2] + i * outputs);
        write_state<T>(r.c, d, n, hidden, step.cells + i * hidden);
    }
}

// b + rb of direction d, and behind them the last block of rb where `joined` leaves it out of the sum.
template <class T>
void read_biases(const Layer& p, int64_t d, int64_t joined, Wide<T>* to) {
    typedef Wide<T> W;
    const int64_t hidden = p.hidden, n = p.blocks * hidden;
    fill_zero(to, 1, n + hidden);
    if (given(p.b)) copy_row(to, 1, p.b.as<const T>() + d * p.b.stride[0], p.b.stride[1], n);
    if (!given(p.rb)) return;
    const int64_t step = p.rb.stride[1], some = joined * hidden;
    const T* const from = p.rb.as<const T>() + d * p.rb.stride[0];
    each_vector<W>(some, [&](int64_t i, int64_t lanes) __attribute__((always_inline)) {
        put(to, 1, i, lanes, take(to, 1, i, lanes) + take(from, step, i, lanes));
    });
    if (joined < p.blocks) copy_row(to + n, 1, from + some * step, step, hidden);
}

// Everything that a call works in.
template <class T, class Cell>
struct Work {
    typedef Wide<T> W;
    W *x, *w, *weights, *bias, *sums, *cells, *shares, *codes;
    // Elsewhere: sums need no room of their own.
    Work(const Layer& p, const typename Cell::Options& o, int64_t members, bool elsewhere, Room<W>& room) {
        const int64_t wide = p.blocks * p.hidden, packed = p.directions * places_of<W>(p).bytes;
        weights = room.next(p.packed ? 0 : packed / static_cast<int64_t>(sizeof(W)));
        x = room.next(room_of(p.x, kIsNarrow<T>));
        w = room.next(p.stored == DType::none && !p.w_too ? room_of(p.w, kIsNarrow<T>) : 0);
        bias = room.next(p.directions * (wide + p.hidden));
        sums = room.next(elsewhere ? 0 : p.directions * p.steps * p.sequences * wide);
        cells = room.next(p.directions * Cell::room(p, o));
        shares = room.next(p.directions * p.sequences * of_row(p));
        codes = room.next(members * p.directions * p.sequences * of_codes(p));
    }
    static int64_t of_codes(const Layer& p) { return p.stored == DType::i8 ? coded_row(p.outputs) : 0; }
    static int64_t of_row(const Layer& p) { return (p.kept + 2) * p.hidden + 3 * p.outputs; }
};

template <class T, class Cell>
bool pass(const Layer& p, const typename Cell::Options& o, const Results& results) {
    typedef Wide<T> W;
    constexpr int64_t NR = Blocking<W>::NR;
    const int64_t hidden = p.hidden, wide = p.blocks * hidden, rows = p.steps * p.sequences;
    const int64_t shares = shares_of(p.sequences), jobs = p.directions * shares, links = p.steps * Cell::kMostPhases;
    const int64_t chunks = max_of(1, min_of(kChunks, ceil_div(hidden, NR)));
    const int64_t members = members_of(p, jobs, chunks);
    // Where gates are kept as they are computed, the sums that become them lie there from the start.
    bool in_gates = Cell::kInPlace && given(results.gates) && is_contiguous(results.gates);
    for (int64_t d = 0; d < p.directions; ++d) in_gates = in_gates && in_time(p, d);
    Room<W> counted{};
    Work<T, Cell>(p, o, members, in_gates, counted);
    Scratch scratch(static_cast<size_t>(counted.used + 1) * sizeof(W));
    Scratch meeting(static_cast<size_t>(jobs) * (sizeof(Chain) + static_cast<size_t>(links) * sizeof(uint32_t)) + 64);
    if (!scratch.as<W>() || !meeting.as<char>()) return false;
    Room<W> room{scratch.as<W>(), 0};
    const Work<T, Cell> own(p, o, members, in_gates, room);
    W* const all_sums = in_gates ? results.gates.as<W>() : own.sums;
    const W* const x = wide_rows<T>(p.x, own.x);
    const W* const w = p.stored == DType::none && !p.w_too ? wide_rows<T>(p.w, own.w) : own.w;
    if (!p.packed) pack_weights<T>(p, reinterpret_cast<char*>(own.weights));
    const char* const weights = static_cast<const char*>(p.packed ? p.packed : own.weights);
    for (int64_t d = 0; d < p.directions; ++d) {
        W* const bias = own.bias + d * (wide + hidden);
        read_biases<T>(p, d, Cell::joined(p, o), bias);
        W* const sums = all_sums + d * rows * wide;
        if constexpr (__is_same(W, float))
            if (p.stored != DType::none) {
                if (rows && !multiply_inputs(p, rows, x, weights, d, bias, sums)) return false;
                continue;
            }
        Gemm<W> g{};
        g.m = rows, g.n = wide, g.k = p.inputs;
        g.a = {x, p.inputs, 1}, g.b = {w + d * wide * p.inputs, 1, p.inputs};
        if constexpr (!kIsNarrow<T>)
            if (p.w_too) {
                const Places at = places_of<W>(p);
                g.b = {p.w.as<const T>() + d * p.w.stride[0], p.w.stride[2], p.w.stride[1]};
                g.packed_b = reinterpret_cast<const W*>(weights + d * at.bytes + at.w);
            }
        g.c = sums, g.c_row = wide, g.c_col = 1, g.bias_col = bias;
        if (rows && !gemm(g)) return false;
    }
    const auto cell_of = [&](int64_t d) {
        return Cell(p, o, d, weights_of<W>(p, weights, d), own.cells + d * Cell::room(p, o));
    };
    const Cell cells[] = {cell_of(0), cell_of(p.directions - 1)};
    Chain* const chains = meeting.as<Chain>();
    uint32_t* const taken = reinterpret_cast<uint32_t*>(chains + jobs);
    __builtin_memset(taken, 0, static_cast<size_t>(jobs * links) * sizeof(uint32_t));
    for (int64_t job = 0; job < jobs; ++job)
        chains[job] = {taken + job * links, static_cast<int32_t>(chunks), static_cast<int32_t>(members), 0};
    for (int64_t job = 0; job < jobs; ++job) {
        const Share share = share_at(p.sequences, job % shares);
        const int64_t d = job / shares;
        Room<W> at{own.shares + (d * p.sequences + share.first) * own.of_row(p), 0};
        W* states[2];
        const Step<W> step = step_of_share(p, share, at, states);
        for (int64_t i = 0; i < share.rows; ++i) {
            for (W* state : states) read_state<T>(p.h0, d, share.first + i, p.outputs, state + i * p.outputs);
            cells[d].begin(step, share.first + i, i);
        }
    }
    note_kernel("shares of sequences");
    parallel(jobs * members, [&](int64_t job) {
        const int64_t d = job / members / shares;
        const Share share = share_at(p.sequences, job / members % shares);
        Room<W> at{own.shares + (d * p.sequences + share.first) * own.of_row(p), 0};
        W* states[2];
        Step<W> step = step_of_share(p, share, at, states);
        if constexpr (__is_same(W, float)) {
            const int64_t before = (job % members * p.directions + d) * p.sequences + share.first;
            step.codes = coded_rows(own.codes + before * own.of_codes(p), share.rows, p.outputs);
        }
        pass_share<T>(p, results, d, share, cells[d], step, states, all_sums + d * rows * wide,
                      own.bias + d * (wide + hidden) + wide, chains[job / members], job % members);
    });
    return true;
}

// ---- calls ----------------------------------------------------------------------------------------------------------

// y, h, and for a layer with cells c; then what is kept.
void add_results(Inferred& r, const Layer& p, bool cells, bool saved) {
    const DType dtype = p.x.dtype, wide = dtype == DType::f64 ? DType::f64 : DType::f32;
    const int64_t y[] = {p.steps, p.sequences, p.directions * p.outputs};
    const int64_t h[] = {p.directions, p.sequences, p.outputs}, c[] = {p.directions, p.sequences, p.hidden};
    const int64_t kept_gates[] = {p.directions, p.steps, p.sequences, p.kept * p.hidden};
    const int64_t kept_cells[] = {p.directions, p.steps, p.sequences, p.hidden};
    r.n_out = 0;
    r.out[r.n_out++] = result(dtype, 3, y);
    r.out[r.n_out++] = result(dtype, 3, h);
    if (cells) r.out[r.n_out++] = result(dtype, 3, c);
    if (saved) r.out[r.n_out++] = result(wide, 4, kept_gates);
    if (saved && cells) r.out[r.n_out++] = result(wide, 4, kept_cells);
    r.flops = flops_of(p.x, p.w, p.r);
}

// What of a layer is prepared, as far as it is given and in order: r, and w where both are kept in other types.
bool prepared_layer(const Call& c, int64_t blocks, const Attr& dtype, Layer& p) {
    const View &w = c.in[1], &r = c.in[2];
    if (!given(r) || r.ndim != 3 || !is_float(r.dtype) || r.shape[1] % blocks != 0) return false;
    p = layer_of(blocks, blocks, r, r, r);
    p.stored = stored_as(r, dtype);
    const bool both =
        given(w) && w.ndim == 3 && w.dtype == r.dtype && w.shape[0] == r.shape[0] && w.shape[1] == r.shape[1];
    if (p.hidden == 0 || (!both && p.stored != DType::none)) return false;
    if (both) p.w = w, p.inputs = w.shape[2];
    p.w_too = both && p.inputs > 0 && p.stored == DType::none;
    return p.stored == DType::none || check_stored(r, w, r, dtype) == Status::ok;
}

// Before prepared weights stands whether w is among them.
constexpr int64_t kHead = 64;

template <int64_t Blocks, int Dtype>
int64_t packed_size(const Call& c) {
    Layer p;
    if (!prepared_layer(c, Blocks, c.attr[Dtype], p)) return 0;
    return kHead + p.directions * (p.r.dtype == DType::f64 ? places_of<double>(p).bytes : places_of<float>(p).bytes);
}
template <int64_t Blocks, int Dtype>
void pack(const Call& c, void* to) {
    Layer p;
    if (!prepared_layer(c, Blocks, c.attr[Dtype], p)) return;
    *static_cast<int64_t*>(to) = p.w_too;
    for_floating(p.r.dtype, [&]<class T>() { pack_weights<T>(p, static_cast<char*>(to) + kHead); });
}

template <template <class> class Cell, class Options>
Status run_layer(Layer p, const Options& o, const Results& r, const View& lengths) {
    Scratch copy(static_cast<size_t>(p.sequences + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory();
    TW_TRY(copy_lengths(lengths, p.sequences, p.steps, copy.as<int64_t>()));
    p.lengths = copy.as<int64_t>();
    if (p.sequences == 0 || p.hidden == 0 || p.directions == 0) return Status::ok;
    if (p.packed) {
        p.w_too = *static_cast<const int64_t*>(p.packed) != 0;
        p.packed = static_cast<const char*>(p.packed) + kHead;
    }
    const bool enough = for_floating(p.x.dtype, [&]<class T>() { return pass<T, Cell<T>>(p, o, r); });
    return enough ? Status::ok : no_memory();
}

}  // namespace
}  // namespace tw::TW_ISA
