// One step of an LSTM layer in one direction, and one step backward in time.
//
//     step_on   gates: x w^T + b of all steps, turned into the gates; then cell, state and y
//     step_dx   da of the gates, and dc of the step before; step -1 gives dh of the initial state
//
// Method    an item per sequence and unit; the product with the recurrent weights is summed by the item that needs it.
// Numerics  running sums, everything in the wide type.
//
// Defined by the launch:  DTYPE   of x and y
#include "types.clh"
#include "activation.clh"

typedef struct {
    long direction, directions, step, steps, count, hidden, some;
} Sizes;

// Sequence n and unit u of this item, and where a step of the sequence lies in time.
#define ENTER                                                                                    \
    const INDEX item = get_global_id(0), hidden = z.hidden, count = z.count, d = z.direction;    \
    if (item >= count * hidden) return;                                                          \
    const INDEX n = item / hidden, u = item - n * hidden, step = z.step;                         \
    const INDEX length = z.some ? (INDEX)lengths[n] : (INDEX)z.steps;                            \
    const INDEX all = d * (INDEX)z.steps * count, state = (d * count + n) * hidden;
#define TIME(s) (d ? length - 1 - (s) : (s))
#define ROW_OF(s) (all + TIME(s) * count + n)
#define Y_AT(s) ((TIME(s) * count + n) * (INDEX)z.directions * hidden + d * hidden + u)

__kernel void step_on(IN(long, lengths), IN(ACC, r), IN(ACC, h), OUT(ACC, h_next), OUT(ACC, c), OUT(ACC, gates),
                   OUT(ACC, cells), OUT(T, y), const Sizes z) {
    START(lengths);
    START(r);
    START(h);
    START(h_next);
    START(c);
    START(gates);
    START(cells);
    START(y);
    ENTER
    if (step >= length) {
        const INDEX row = all + step * count + n;  // places behind the length, in both directions
        h_next[state + u] = h[state + u];
        for (int k = 0; k < 4; ++k) gates[row * 4 * hidden + k * hidden + u] = 0;
        cells[row * hidden + u] = 0;
        STORE(y, (step * count + n) * (INDEX)z.directions * hidden + d * hidden + u, (ACC)0);
        return;
    }
    const INDEX row = ROW_OF(step);
    ACC gate[4];
    for (int k = 0; k < 4; ++k) {
        const INDEX at = (d * 4 + k) * hidden + u;
        ACC sum = gates[row * 4 * hidden + k * hidden + u];
        for (INDEX j = 0; j < hidden; ++j) sum = MAC(h[state + j], r[at * hidden + j], sum);
        gate[k] = k == 2 ? tanh(sum) : act_sigmoid(sum);
        gates[row * 4 * hidden + k * hidden + u] = gate[k];
    }
    const ACC cell = gate[1] * c[state + u] + gate[0] * gate[2], next = gate[3] * tanh(cell);
    c[state + u] = cell;
    cells[row * hidden + u] = cell;
    h_next[state + u] = next;
    STORE(y, Y_AT(step), next);
}

__kernel void step_dx(IN(long, lengths), IN(ACC, r), IN(ACC, gates), IN(ACC, cells), IN(T, dy), IN(T, y),
                      IN(ACC, h0), IN(ACC, c0), IN(ACC, last_h), OUT(ACC, dc), OUT(ACC, da), OUT(ACC, before),
                      OUT(ACC, start), const Sizes z) {
    START(lengths);
    START(r);
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
        const INDEX row = all + step * count + n;
        for (int k = 0; k < 4; ++k) da[row * 4 * hidden + k * hidden + u] = 0;
        before[row * hidden + u] = 0;
        return;
    }
    ACC dh = 0;
    if (step + 1 < length) {
        __global const ACC *next = da + ROW_OF(step + 1) * 4 * hidden;
        for (INDEX j = 0; j < 4 * hidden; ++j) dh = MAC(next[j], r[(d * 4 * hidden + j) * hidden + u], dh);
    } else {
        dh = last_h[state + u];
    }
    if (step < 0) {
        start[state + u] = dh;
        return;
    }
    const INDEX row = ROW_OF(step), first = row * 4 * hidden + u;
    const ACC i = gates[first], f = gates[first + hidden], g = gates[first + 2 * hidden], o = gates[first + 3 * hidden];
    const ACC q = tanh(cells[row * hidden + u]), was = step ? cells[ROW_OF(step - 1) * hidden + u] : c0[state + u];
    before[row * hidden + u] = step ? (ACC)LOAD(y, Y_AT(step - 1)) : h0[state + u];
    dh += LOAD(dy, Y_AT(step));
    const ACC cell = dc[state + u] + dh * o * (1 - q * q);
    da[first] = cell * g * i * (1 - i);
    da[first + hidden] = cell * was * f * (1 - f);
    da[first + 2 * hidden] = cell * i * (1 - g * g);
    da[first + 3 * hidden] = dh * q * o * (1 - o);
    dc[state + u] = cell * f;
}
