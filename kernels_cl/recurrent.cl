// One step of a recurrent layer in one direction, and one step backward in time.
//
//     lstm_on, gru_gates + gru_on, rnn_on   sums: x w^T + b of all steps; turned into gates, state and y
//     lstm_dx, gru_dx + gru_reset, rnn_dx   da of the gates; step -1 gives dh of the initial state
//
// Method    an item per sequence and unit; the product with the recurrent weights is summed by the item that needs it.
//           A gru takes two launches where a product waits for the gate r of all units.
// Numerics  running sums, everything in the wide type.
//
// Defined by the launch:  DTYPE   of x and y
#include "types.clh"
#include "activation.clh"

typedef struct {
    long direction, directions, step, steps, count, hidden, some, flag;
    // flag: reset_after of a gru, relu of an rnn, coupled gates of an lstm
} Sizes;

// Sequence n and unit u of this item, and where a step of the sequence lies in time.
#define ENTER                                                                                    \
    START(lengths);                                                                              \
    const INDEX item = get_global_id(0), hidden = z.hidden, count = z.count, d = z.direction;    \
    if (item >= count * hidden) return;                                                          \
    const INDEX n = item / hidden, u = item - n * hidden, step = z.step;                         \
    const INDEX length = z.some ? (INDEX)lengths[n] : (INDEX)z.steps;                            \
    const INDEX all = d * (INDEX)z.steps * count, state = (d * count + n) * hidden;              \
    const INDEX behind = all + step * count + n;  /* places behind the length, in both directions */
#define TIME(s) (d ? length - 1 - (s) : (s))
#define ROW_OF(s) (all + TIME(s) * count + n)
#define Y_ROW(t) (((t) * count + n) * (INDEX)z.directions * hidden + d * hidden + u)
#define Y_AT(s) Y_ROW(TIME(s))

// start + the state in the wide type times row `row` of r, of `blocks` H rows a direction.
#define PRODUCT(sum, from, blocks, row)                                       \
    do {                                                                      \
        __global const ACC *weights = r + (d * (blocks) * hidden + (row)) * hidden; \
        for (INDEX j = 0; j < hidden; ++j) sum = MAC((from)[j], weights[j], sum); \
    } while (0)
// ... and times column u of `rows` rows of r from `row` on.
#define TURNED(sum, from, blocks, row, rows)                                       \
    do {                                                                           \
        __global const ACC *weights = r + (d * (blocks) * hidden + (row)) * hidden + u; \
        for (INDEX j = 0; j < (rows); ++j) sum = MAC((from)[j], weights[j * hidden], sum); \
    } while (0)

// x (T, N, I), zero behind the lengths: a NaN there would meet slopes of zero. `hidden` is I.
__kernel void rows_within(IN(long, lengths), IN(ACC, x), OUT(ACC, to), const Sizes z) {
    START(lengths);
    START(x);
    START(to);
    const INDEX item = get_global_id(0), count = z.count, width = z.hidden;
    if (item >= (INDEX)z.steps * count * width) return;
    const INDEX row = item / width, t = row / count;
    to[item] = t < (INDEX)lengths[row - t * count] ? x[item] : 0;
}

// ---- lstm: gates i f g o

__kernel void lstm_on(IN(long, lengths), IN(ACC, r), IN(ACC, h), OUT(ACC, h_next), OUT(ACC, c), IN(ACC, peep),
                      OUT(ACC, gates), OUT(ACC, cells), OUT(T, y), const ACC clip, const Sizes z) {
    START(r);
    START(h);
    START(h_next);
    START(c);
    START(peep);
    START(gates);
    START(cells);
    START(y);
    ENTER
    if (step >= length) {
        h_next[state + u] = h[state + u];
        for (int k = 0; k < 4; ++k) gates[(behind * 4 + k) * hidden + u] = 0;
        cells[behind * hidden + u] = 0;
        STORE(y, Y_ROW(step), (ACC)0);
        return;
    }
    const INDEX row = ROW_OF(step);
    __global const ACC *own = peep + d * 3 * hidden + u;
    const ACC was = c[state + u];
    ACC gate[4];
    for (int k = 0; k < 3; ++k) {
        ACC sum = gates[(row * 4 + k) * hidden + u];
        PRODUCT(sum, h + state, 4, k * hidden + u);
        if (k < 2) sum += own[k * hidden] * was;
        gate[k] = k == 2 ? tanh(sum) : act_sigmoid(sum);
    }
    if (z.flag) gate[1] = 1 - gate[0];
    ACC cell = gate[1] * was + gate[0] * gate[2];
    if (clip > 0) cell = cell > clip ? clip : cell < -clip ? -clip : cell;
    ACC last = gates[(row * 4 + 3) * hidden + u];
    PRODUCT(last, h + state, 4, 3 * hidden + u);
    gate[3] = act_sigmoid(last + own[2 * hidden] * cell);
    for (int k = 0; k < 4; ++k) gates[(row * 4 + k) * hidden + u] = gate[k];
    const ACC next = gate[3] * tanh(cell);
    c[state + u] = cell;
    cells[row * hidden + u] = cell;
    h_next[state + u] = next;
    STORE(y, Y_AT(step), next);
}

__kernel void lstm_dx(IN(long, lengths), IN(ACC, r), IN(ACC, gates), IN(ACC, cells), IN(T, dy), IN(T, y),
                      IN(ACC, h0), IN(ACC, c0), IN(ACC, last_h), OUT(ACC, dc), IN(ACC, peep), OUT(ACC, da),
                      OUT(ACC, before), OUT(ACC, start), const ACC clip, const Sizes z) {
    START(r);
    START(peep);
    START(gates);
    START(cells);
    START(dy);
    START(y);
    START(h0);
    START(c0);
    START(last_h);
    START(dc);
    START(da);
    START(before);
    START(start);
    ENTER
    if (step >= length) {
        for (int k = 0; k < 4; ++k) da[(behind * 4 + k) * hidden + u] = 0;
        before[behind * hidden + u] = 0;
        return;
    }
    ACC dh = 0;
    if (step + 1 < length)
        TURNED(dh, da + ROW_OF(step + 1) * 4 * hidden, 4, 0, 4 * hidden);
    else
        dh = last_h[state + u];
    if (step < 0) {
        start[state + u] = dh;
        return;
    }
    const INDEX row = ROW_OF(step), first = row * 4 * hidden + u;
    const ACC i = gates[first], f = gates[first + hidden], g = gates[first + 2 * hidden], o = gates[first + 3 * hidden];
    const ACC now = cells[row * hidden + u], was = step ? cells[ROW_OF(step - 1) * hidden + u] : c0[state + u];
    const ACC q = tanh(now);
    __global const ACC *own = peep + d * 3 * hidden + u;
    before[row * hidden + u] = step ? (ACC)LOAD(y, Y_AT(step - 1)) : h0[state + u];
    dh += LOAD(dy, Y_AT(step));
    const ACC ao = dh * q * o * (1 - o);
    ACC cell = dc[state + u] + dh * o * (1 - q * q) + ao * own[2 * hidden];
    if (clip > 0 && !(fabs(now) < clip)) cell = 0;
    const ACC ai = cell * (z.flag ? g - was : g) * i * (1 - i), af = z.flag ? 0 : cell * was * f * (1 - f);
    da[first] = ai;
    da[first + hidden] = af;
    da[first + 2 * hidden] = cell * i * (1 - g * g);
    da[first + 3 * hidden] = ao;
    dc[state + u] = cell * f + ai * own[0] + af * own[hidden];
}

// The gradient of the peepholes of a direction: an item per number sums over sequences and steps.
__kernel void peep_dx(IN(long, lengths), IN(ACC, r), IN(ACC, cells), IN(ACC, c0), IN(ACC, da), OUT(ACC, slopes),
                      const Sizes z) {
    START(lengths);
    START(cells);
    START(c0);
    START(da);
    START(slopes);
    const INDEX item = get_global_id(0), hidden = z.hidden, count = z.count, d = z.direction;
    if (item >= 3 * hidden) return;
    const INDEX k = item / hidden, u = item - k * hidden, all = d * (INDEX)z.steps * count;
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

// ---- gru: gates r z n, and r h or the product that r scales

// r, z and the fourth block; sums (D, T, N, 3H), bias (D, H) of the product that r scales.
__kernel void gru_gates(IN(long, lengths), IN(ACC, r), IN(ACC, h), IN(ACC, sums), IN(ACC, bias), OUT(ACC, gates),
                        const Sizes z) {
    START(r);
    START(h);
    START(sums);
    START(bias);
    START(gates);
    ENTER
    if (step >= length) {
        for (int k = 0; k < 4; ++k) gates[(behind * 4 + k) * hidden + u] = 0;
        return;
    }
    const INDEX row = ROW_OF(step);
    ACC gate[2];
    for (int k = 0; k < 2; ++k) {
        ACC sum = sums[(row * 3 + k) * hidden + u];
        PRODUCT(sum, h + state, 3, k * hidden + u);
        gates[(row * 4 + k) * hidden + u] = gate[k] = act_sigmoid(sum);
    }
    ACC last = gate[0] * h[state + u];
    if (z.flag) {
        last = bias[d * hidden + u];
        PRODUCT(last, h + state, 3, 2 * hidden + u);
    }
    gates[(row * 4 + 3) * hidden + u] = last;
}

__kernel void gru_on(IN(long, lengths), IN(ACC, r), IN(ACC, h), OUT(ACC, h_next), IN(ACC, sums), OUT(ACC, gates),
                     OUT(T, y), const Sizes z) {
    START(r);
    START(h);
    START(h_next);
    START(sums);
    START(gates);
    START(y);
    ENTER
    if (step >= length) {
        h_next[state + u] = h[state + u];
        STORE(y, Y_ROW(step), (ACC)0);
        return;
    }
    const INDEX row = ROW_OF(step), first = row * 4 * hidden;
    ACC sum = sums[(row * 3 + 2) * hidden + u];
    if (z.flag)
        sum += gates[first + u] * gates[first + 3 * hidden + u];
    else
        PRODUCT(sum, gates + first + 3 * hidden, 3, 2 * hidden + u);
    const ACC gate = gates[first + hidden + u], fresh = tanh(sum), next = (1 - gate) * fresh + gate * h[state + u];
    gates[first + 2 * hidden + u] = fresh;
    h_next[state + u] = next;
    STORE(y, Y_AT(step), next);
}

// da (D, T, N, 3H) of r, z, n; other (D, T, N, H): the slope of the product that r scales, or r h; `past` is what dh leaves
// to the step before past the gates.
__kernel void gru_dx(IN(long, lengths), IN(ACC, r), IN(ACC, gates), IN(T, dy), IN(T, y), IN(ACC, h0), OUT(ACC, past),
                     OUT(ACC, da), OUT(ACC, other), OUT(ACC, before), OUT(ACC, start), const Sizes z) {
    START(r);
    START(gates);
    START(dy);
    START(y);
    START(h0);
    START(past);
    START(da);
    START(other);
    START(before);
    START(start);
    ENTER
    if (step >= length) {
        for (int k = 0; k < 3; ++k) da[(behind * 3 + k) * hidden + u] = 0;
        before[behind * hidden + u] = 0;
        other[behind * hidden + u] = 0;
        return;
    }
    ACC dh = past[state + u];
    if (step + 1 < length) {
        const INDEX next = ROW_OF(step + 1);
        TURNED(dh, da + next * 3 * hidden, 3, 0, 2 * hidden);
        if (z.flag) TURNED(dh, other + next * hidden, 3, 2 * hidden, hidden);
    }
    if (step < 0) {
        start[state + u] = dh;
        return;
    }
    const INDEX row = ROW_OF(step), first = row * 4 * hidden + u, to = row * 3 * hidden + u;
    const ACC reset = gates[first], gate = gates[first + hidden], fresh = gates[first + 2 * hidden];
    const ACC last = gates[first + 3 * hidden], was = step ? (ACC)LOAD(y, Y_AT(step - 1)) : h0[state + u];
    before[row * hidden + u] = was;
    dh += LOAD(dy, Y_AT(step));
    const ACC dn = dh * (1 - gate) * (1 - fresh * fresh);
    if (z.flag) da[to] = dn * last * reset * (1 - reset);
    da[to + hidden] = dh * (was - fresh) * gate * (1 - gate);
    da[to + 2 * hidden] = dn;
    other[row * hidden + u] = z.flag ? dn * reset : last;
    past[state + u] = dh * gate;
}

// Block r of da where r h is multiplied, and its part of dh.
__kernel void gru_reset(IN(long, lengths), IN(ACC, r), IN(ACC, gates), IN(ACC, before), OUT(ACC, past), OUT(ACC, da),
                        const Sizes z) {
    START(r);
    START(gates);
    START(before);
    START(past);
    START(da);
    ENTER
    if (step >= length) return;
    const INDEX row = ROW_OF(step);
    const ACC reset = gates[row * 4 * hidden + u];
    ACC slope = 0;
    TURNED(slope, da + (row * 3 + 2) * hidden, 3, 2 * hidden, hidden);
    da[row * 3 * hidden + u] = slope * before[row * hidden + u] * reset * (1 - reset);
    past[state + u] += slope * reset;
}

// ---- rnn

__kernel void rnn_on(IN(long, lengths), IN(ACC, r), IN(ACC, h), OUT(ACC, h_next), IN(ACC, sums), OUT(T, y),
                     const Sizes z) {
    START(r);
    START(h);
    START(h_next);
    START(sums);
    START(y);
    ENTER
    if (step >= length) {
        h_next[state + u] = h[state + u];
        STORE(y, Y_ROW(step), (ACC)0);
        return;
    }
    ACC sum = sums[ROW_OF(step) * hidden + u];
    PRODUCT(sum, h + state, 1, u);
    const ACC next = z.flag ? act_relu(sum) : tanh(sum);
    h_next[state + u] = next;
    STORE(y, Y_AT(step), next);
}

__kernel void rnn_dx(IN(long, lengths), IN(ACC, r), IN(T, dy), IN(T, y), IN(ACC, h0), IN(ACC, last_h), OUT(ACC, da),
                     OUT(ACC, before), OUT(ACC, start), const Sizes z) {
    START(r);
    START(dy);
    START(y);
    START(h0);
    START(last_h);
    START(da);
    START(before);
    START(start);
    ENTER
    if (step >= length) {
        da[behind * hidden + u] = 0;
        before[behind * hidden + u] = 0;
        return;
    }
    ACC dh = 0;
    if (step + 1 < length)
        TURNED(dh, da + ROW_OF(step + 1) * hidden, 1, 0, hidden);
    else
        dh = last_h[state + u];
    if (step < 0) {
        start[state + u] = dh;
        return;
    }
    const INDEX row = ROW_OF(step);
    const ACC now = LOAD(y, Y_AT(step));
    before[row * hidden + u] = step ? (ACC)LOAD(y, Y_AT(step - 1)) : h0[state + u];
    dh += LOAD(dy, Y_AT(step));
    da[row * hidden + u] = z.flag ? (now > 0 ? dh : (ACC)0) : dh * (1 - now * now);
}
