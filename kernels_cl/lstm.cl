// One step of an LSTM in one direction, and one step backward in time; gates i f g o.
//
//     lstm_on, lstm_out, lstm_project      sums x w^T + b turned into gates, cells and the state; lstm_out only if peepholes
//                                          are matrices, lstm_project only behind a projection
//     lstm_dh, lstm_dx, lstm_dc            da of the gates: lstm_dh only behind a projection, lstm_dc only if peepholes are
//                                          matrices; step -1 gives the slopes of the initial states
//
// Method    an item per sequence and unit; a product is summed by the item that needs it. A launch more for each product
//           that waits for all units of the one before.
// Numerics  running sums, everything in the wide type.
//
// Defined by the launch:  DTYPE   of x and y
#include "recurrent.clh"

// What a peephole sees of the cells of a sequence.
inline ACC seen(__global const ACC *peep, __global const ACC *cells, const INDEX d, const INDEX k, const INDEX u,
                const ACC own, const Sizes z) {
    const INDEX hidden = z.hidden, row = (d * 3 + k) * hidden + u;
    if (!z.full) return peep[row] * own;
    ACC sum = 0;
    PRODUCT(sum, cells, peep, row, hidden);
    return sum;
}

__kernel void lstm_on(IN(long, lengths), IN(ACC, r), IN(ACC, h), IN(ACC, met), OUT(ACC, h_next), IN(ACC, c),
                      OUT(ACC, c_next), IN(ACC, peep), OUT(ACC, gates), OUT(ACC, cells), OUT(ACC, made), OUT(T, y), const ACC clip,
                      const Sizes z) {
    START(r);
    START(h);
    START(met);
    START(h_next);
    START(c);
    START(c_next);
    START(peep);
    START(gates);
    START(cells);
    START(made);
    START(y);
    ENTER(hidden)
    const INDEX state = place * hidden + u;
    const ACC was = c[state];
    if (over) {  // the sums of a step that the sequence does not have are there nevertheless
        for (int k = 0; k < 4; ++k) gates[(((d * (INDEX)z.steps + step) * count + n) * 4 + k) * hidden + u] = 0;
        c_next[state] = was;
        if (!z.projected) h_next[state] = h[state];
        return;
    }
    const INDEX first = ROW_OF(step) * 4 * hidden + u;
    ACC gate[4];
    for (int k = 0; k < 4; ++k) {
        ACC sum = gates[first + k * hidden];
        PRODUCT(sum, met + place * outputs, r, (d * 4 + k) * hidden + u, outputs);
        if (k < 2) sum += seen(peep, c + place * hidden, d, k, u, was, z);
        gate[k] = k == 3 ? sum : gate_of(k == 2 ? z.cell : z.gate, sum);
    }
    if (z.flag) gate[1] = 1 - gate[0];
    ACC cell = gate[1] * was + gate[0] * gate[2];
    if (clip > 0) cell = cell > clip ? clip : cell < -clip ? -clip : cell;
    if (!z.full) gate[3] = gate_of(z.gate, gate[3] + seen(peep, c, d, 2, u, cell, z));
    for (int k = 0; k < 4; ++k) gates[first + k * hidden] = gate[k];
    c_next[state] = cells[ROW_OF(step) * hidden + u] = cell;
    if (z.full) return;
    const ACC next = gate[3] * gate_of(z.output, cell);
    made[state] = next;
    if (!z.projected) {
        h_next[state] = next;
        STORE(y, Y_AT(step), next);
    }
}

// The gate o, whose peephole sees all cells of this step.
__kernel void lstm_out(IN(long, lengths), IN(ACC, c_next), IN(ACC, peep), OUT(ACC, gates), OUT(ACC, h_next),
                       OUT(ACC, made), OUT(T, y), const Sizes z) {
    START(c_next);
    START(peep);
    START(gates);
    START(h_next);
    START(made);
    START(y);
    ENTER(hidden)
    if (over) return;
    const INDEX state = place * hidden + u, at = (ROW_OF(step) * 4 + 3) * hidden + u;
    const ACC cell = c_next[state];
    const ACC open = gate_of(z.gate, gates[at] + seen(peep, c_next + place * hidden, d, 2, u, cell, z));
    const ACC next = open * gate_of(z.output, cell);
    gates[at] = open;
    made[state] = next;
    if (!z.projected) {
        h_next[state] = next;
        STORE(y, Y_AT(step), next);
    }
}

__kernel void lstm_project(IN(long, lengths), IN(ACC, proj), IN(ACC, made), IN(ACC, h), OUT(ACC, h_next), OUT(T, y),
                           const Sizes z) {
    START(proj);
    START(made);
    START(h);
    START(h_next);
    START(y);
    ENTER(outputs)
    const INDEX state = place * outputs + u;
    if (over) {
        h_next[state] = h[state];
        return;
    }
    ACC next = 0;
    PRODUCT(next, made + place * hidden, proj, d * outputs + u, hidden);
    h_next[state] = next;
    STORE(y, Y_AT(step), next);
}

// ---- backward

// The slope of the state that a step made, from da of the step behind, or the last state's own; dy comes on top.
#define SLOPE_OF_STATE(dh)                                                                         \
    ACC dh = step + 1 < length ? (ACC)0 : last_h[place * outputs + u];                             \
    if (step + 1 < length)                                                                         \
        TURNED(dh, da + ROW_OF(step + 1) * 4 * hidden, r, d * 4 * hidden, 4 * hidden, outputs);    \
    if (step < 0) {                                                                                \
        start[place * outputs + u] = dh;                                                           \
    } else {                                                                                       \
        before[ROW_OF(step) * outputs + u] = step ? (ACC)LOAD(y, Y_AT(step - 1)) : h0[place * outputs + u]; \
        dh += LOAD(dy, Y_AT(step));                                                                \
    }

// Of the projected state, (D, T, N, P).
__kernel void lstm_dh(IN(long, lengths), IN(ACC, r), IN(T, dy), IN(T, y), IN(ACC, h0), IN(ACC, last_h), IN(ACC, da),
                      OUT(ACC, before), OUT(ACC, start), OUT(ACC, slopes), const Sizes z) {
    START(r);
    START(dy);
    START(y);
    START(h0);
    START(last_h);
    START(da);
    START(before);
    START(start);
    START(slopes);
    ENTER(outputs)
    if (over) return;
    SLOPE_OF_STATE(dh)
    if (step >= 0) slopes[ROW_OF(step) * outputs + u] = dh;
}

// da of i, f and g, and dc of the step before, from dc of this one.
inline void lstm_slopes(__global const ACC *gates, __global const ACC *peep, __global ACC *da, __global ACC *dc,
                        const ACC now, const ACC was, ACC slope, const ACC ao, const ACC clip, const INDEX hidden,
                        const Sizes z) {
    const ACC i = gates[0], f = gates[hidden], g = gates[2 * hidden];
    if (!z.full) slope += ao * peep[2 * hidden];
    if (clip > 0 && !(fabs(now) < clip)) slope = 0;
    const ACC ai = slope * (z.flag ? g - was : g) * slope_of(z.gate, i);
    const ACC af = z.flag ? 0 : slope * was * slope_of(z.gate, f);
    da[0] = ai;
    da[hidden] = af;
    da[2 * hidden] = slope * i * slope_of(z.cell, g);
    *dc = slope * f + (z.full ? 0 : ai * peep[0] + af * peep[hidden]);
}

#define CELLS                                                                              \
    const INDEX row = ROW_OF(step), first = row * 4 * hidden + u;                          \
    const ACC now = cells[row * hidden + u];                                               \
    const ACC was = step ? cells[ROW_OF(step - 1) * hidden + u] : c0[place * hidden + u];

__kernel void lstm_dx(IN(long, lengths), IN(ACC, r), IN(ACC, gates), IN(ACC, cells), IN(T, dy), IN(T, y), IN(ACC, h0),
                      IN(ACC, c0), IN(ACC, last_h), OUT(ACC, dc), IN(ACC, peep), OUT(ACC, da), OUT(ACC, before),
                      OUT(ACC, start), IN(ACC, proj), IN(ACC, slopes), OUT(ACC, made), const ACC clip, const Sizes z) {
    START(r);
    START(gates);
    START(cells);
    START(dy);
    START(y);
    START(h0);
    START(c0);
    START(last_h);
    START(dc);
    START(peep);
    START(da);
    START(before);
    START(start);
    START(proj);
    START(slopes);
    START(made);
    ENTER(hidden)
    if (over) return;
    ACC sum = dc[place * hidden + u], slope = 0;
    if (z.full && step + 1 < length)
        TURNED(sum, da + ROW_OF(step + 1) * 4 * hidden, peep, d * 3 * hidden, 2 * hidden, hidden);
    if (step < 0) dc[place * hidden + u] = sum;
    if (z.projected) {
        if (step >= 0) TURNED(slope, slopes + ROW_OF(step) * outputs, proj, d * outputs, outputs, hidden);
    } else {
        SLOPE_OF_STATE(dh)
        slope = dh;
    }
    if (step < 0) return;
    CELLS
    const ACC o = gates[first + 3 * hidden], q = gate_of(z.output, now), ao = slope * q * slope_of(z.gate, o);
    sum += slope * o * slope_of(z.output, q);
    da[first + 3 * hidden] = ao;
    if (z.projected) made[row * hidden + u] = o * q;
    if (z.full)
        dc[place * hidden + u] = sum;
    else
        lstm_slopes(gates + first, peep + d * 3 * hidden + u, da + first, dc + place * hidden + u, now, was, sum, ao,
                    clip, hidden, z);
}

// The rest of a step whose dc waits for ao of all units.
__kernel void lstm_dc(IN(long, lengths), IN(ACC, gates), IN(ACC, cells), IN(ACC, c0), OUT(ACC, dc), IN(ACC, peep),
                      OUT(ACC, da), const ACC clip, const Sizes z) {
    START(gates);
    START(cells);
    START(c0);
    START(dc);
    START(peep);
    START(da);
    ENTER(hidden)
    if (over) return;
    CELLS
    ACC sum = dc[place * hidden + u];
    TURNED(sum, da + row * 4 * hidden + 3 * hidden, peep, (d * 3 + 2) * hidden, hidden, hidden);
    lstm_slopes(gates + first, peep, da + first, dc + place * hidden + u, now, was, sum, 0, clip, hidden, z);
}

// The cells before each step, (D, T, N, H).
__kernel void cells_before(IN(long, lengths), IN(ACC, cells), IN(ACC, c0), OUT(ACC, to), const Sizes z) {
    START(cells);
    START(c0);
    START(to);
    ENTER(hidden)
    if (over) return;
    CELLS
    to[row * hidden + u] = was;
}

// The gradient of peepholes that are no matrices: an item per number sums over sequences and steps.
__kernel void peep_dx(IN(long, lengths), IN(ACC, cells), IN(ACC, c0), IN(ACC, da), OUT(ACC, slopes), const Sizes z) {
    START(lengths);
    START(cells);
    START(c0);
    START(da);
    START(slopes);
    const INDEX item = get_global_id(0), hidden = z.hidden, count = z.count, d = z.direction;
    if (item >= 3 * hidden) return;
    const INDEX k = item / hidden, u = item - k * hidden;
    ACC sum = 0;
    for (INDEX n = 0; n < count; ++n) {
        const INDEX length = z.some ? (INDEX)lengths[n] : (INDEX)z.steps;
        for (INDEX s = 0; s < length; ++s) {
            const INDEX row = ROW_OF(s), gate = k == 2 ? 3 : k;
            const ACC cell = k == 2 ? cells[row * hidden + u]
                             : s    ? cells[ROW_OF(s - 1) * hidden + u]
                                    : c0[(d * count + n) * hidden + u];
            sum = MAC(da[(row * 4 + gate) * hidden + u], cell, sum);
        }
    }
    slopes[d * 3 * hidden + item] = sum;
}
