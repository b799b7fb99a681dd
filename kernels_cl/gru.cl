// One step of a GRU in one direction, and one step backward in time; gates r z n, and r h or the product that r scales.
//
//     gru_gates, gru_on     sums x w^T + b turned into gates, the state and y
//     gru_dx, gru_reset     da of the gates; step -1 gives the slope of the initial state
//
// Method    an item per sequence and unit; a product is summed by the item that needs it. Two launches where a product waits
//           for the gate r of all units.
// Numerics  running sums, everything in the wide type.
//
// Defined by the launch:  DTYPE   of x and y
#include "recurrent.clh"

// r, z and the fourth block; sums (D, T, N, 3H), bias (D, H) of the product that r scales.
__kernel void gru_gates(IN(long, lengths), IN(ACC, r), IN(ACC, h), IN(ACC, met), IN(ACC, sums), IN(ACC, bias),
                        OUT(ACC, gates), OUT(ACC, scaled), const Sizes z) {
    START(r);
    START(h);
    START(met);
    START(sums);
    START(bias);
    START(gates);
    START(scaled);
    ENTER(hidden)
    if (over) return;
    const INDEX row = ROW_OF(step), state = place * hidden;
    ACC gate[2];
    for (int k = 0; k < 2; ++k) {
        ACC sum = sums[(row * 3 + k) * hidden + u];
        PRODUCT(sum, met + state, r, (d * 3 + k) * hidden + u, hidden);
        gates[(row * 4 + k) * hidden + u] = gate[k] = gate_of(z.gate, sum);
    }
    ACC last = scaled[state + u] = gate[0] * h[state + u];
    if (z.flag) {
        last = bias[d * hidden + u];
        PRODUCT(last, met + state, r, (d * 3 + 2) * hidden + u, hidden);
    }
    gates[(row * 4 + 3) * hidden + u] = last;
}

__kernel void gru_on(IN(long, lengths), IN(ACC, r), IN(ACC, h), OUT(ACC, h_next), IN(ACC, met), IN(ACC, sums),
                     OUT(ACC, gates), OUT(T, y), const Sizes z) {
    START(r);
    START(h);
    START(h_next);
    START(met);
    START(sums);
    START(gates);
    START(y);
    ENTER(hidden)
    const INDEX state = place * hidden;
    if (over) {
        h_next[state + u] = h[state + u];
        return;
    }
    const INDEX row = ROW_OF(step), first = row * 4 * hidden;
    ACC sum = sums[(row * 3 + 2) * hidden + u];
    if (z.flag)
        sum += gates[first + u] * gates[first + 3 * hidden + u];
    else
        PRODUCT(sum, met + state, r, (d * 3 + 2) * hidden + u, hidden);
    const ACC gate = gates[first + hidden + u], fresh = gate_of(z.cell, sum);
    const ACC next = (1 - gate) * fresh + gate * h[state + u];
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
    ENTER(hidden)
    if (over) return;
    const INDEX state = place * hidden;
    ACC dh = past[state + u];
    if (step + 1 < length) {
        const INDEX next = ROW_OF(step + 1);
        TURNED(dh, da + next * 3 * hidden, r, d * 3 * hidden, 2 * hidden, hidden);
        if (z.flag) TURNED(dh, other + next * hidden, r, (d * 3 + 2) * hidden, hidden, hidden);
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
    const ACC dn = dh * (1 - gate) * slope_of(z.cell, fresh);
    if (z.flag) da[to] = dn * last * slope_of(z.gate, reset);
    da[to + hidden] = dh * (was - fresh) * slope_of(z.gate, gate);
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
    ENTER(hidden)
    if (over) return;
    const INDEX row = ROW_OF(step);
    const ACC reset = gates[row * 4 * hidden + u];
    ACC slope = 0;
    TURNED(slope, da + (row * 3 + 2) * hidden, r, (d * 3 + 2) * hidden, hidden, hidden);
    da[row * 3 * hidden + u] = slope * before[row * hidden + u] * slope_of(z.gate, reset);
    past[place * hidden + u] += slope * reset;
}
