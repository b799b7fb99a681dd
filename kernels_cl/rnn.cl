// One step of a plain recurrent layer in one direction, and one step backward in time.
//
//     rnn_on     sums x w^T + b turned into the state and y
//     rnn_dx     da; step -1 gives the slope of the initial state
//
// Method    an item per sequence and unit, which sums its product with the recurrent weights.
// Numerics  running sums, everything in the wide type.
//
// Defined by the launch:  DTYPE   of x and y
#include "recurrent.clh"

__kernel void rnn_on(IN(long, lengths), IN(ACC, r), IN(ACC, h), IN(ACC, met), OUT(ACC, h_next), IN(ACC, sums),
                     OUT(T, y), const Sizes z) {
    START(r);
    START(h);
    START(met);
    START(h_next);
    START(sums);
    START(y);
    ENTER(hidden)
    const INDEX state = place * hidden;
    if (over) {
        h_next[state + u] = h[state + u];
        return;
    }
    ACC sum = sums[ROW_OF(step) * hidden + u];
    PRODUCT(sum, met + state, r, d * hidden + u, hidden);
    const ACC next = gate_of(z.cell, sum);
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
    ENTER(hidden)
    if (over) return;
    const INDEX state = place * hidden;
    ACC dh = 0;
    if (step + 1 < length)
        TURNED(dh, da + ROW_OF(step + 1) * hidden, r, d * hidden, hidden, hidden);
    else
        dh = last_h[state + u];
    if (step < 0) {
        start[state + u] = dh;
        return;
    }
    const INDEX row = ROW_OF(step);
    before[row * hidden + u] = step ? (ACC)LOAD(y, Y_AT(step - 1)) : h0[state + u];
    dh += LOAD(dy, Y_AT(step));
    da[row * hidden + u] = dh * slope_of(z.cell, LOAD(y, Y_AT(step)));
}
