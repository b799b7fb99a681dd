// The steps of an LSTM in 16 bits on matrix instructions: the product with the state, gates and cells in one kernel.
//
//     lstm_steps     steps [first, last) of a direction: gates from sums x w^T + b, cells, y
//
// Method    a group has 4 FRAGMENTS units, 16 FRAGMENTS rows of r, which stay in registers from step to step, and 64
//           sequences. Its warps share the product's terms: each reads its own pieces of the state, y of the step before,
//           straight from memory, in an order of terms in which 16 neighbouring bytes are operands of two instructions.
//           Partial sums meet in local memory. With TOGETHER all groups are on the device at once and wait for each
//           other behind every step; else a launch is one step.
// Numerics  products exact, sums in float; the state is rounded to 16 bits before it meets r. Cells are float.
//
// Defined by the launch:  DTYPE;  WARPS, FRAGMENTS;  TERMS   pieces of 32 terms a warp takes;  TOGETHER
#include "recurrent.clh"
#define FRAGMENT_ITEMS (32 * WARPS)
#define FRAGMENTS_M FRAGMENTS
#define FRAGMENTS_N 8
#include "fragments.clh"

#define UNITS (4 * FRAGMENTS)
#define ROWS (16 * FRAGMENTS)
#define OWN (UNITS * 64 / (32 * WARPS))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

#if defined(NVIDIA) && NVIDIA >= 80
// Past the first cache: other groups have written it.
inline uint4 fresh16(__global const T *from) {
    uint4 r;
    ASM volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.s0), "=r"(r.s1), "=r"(r.s2), "=r"(r.s3) : "l"(from) : "memory");
    return r;
}
#define seen_by_all() ASM volatile("membar.gl;" : : : "memory")
#else
inline uint4 fresh16(__global const T *from) { return *(__global const uint4 *)from; }
#define seen_by_all() mem_fence(CLK_GLOBAL_MEM_FENCE)
#endif

// Partial sums of half of the warps are added by the other half, then all items read what is left.
#define HALF (WARPS / 2)
#define PARTIAL(w, row, n) partial[((w) * ROWS + (row)) * 64 + (n)]
#define SPREAD(name)                                                                              \
    UNROLL for (int i = 0; i < FRAGMENTS; ++i)                                                    \
        UNROLL for (int j = 0; j < 8; ++j) {                                                      \
            __local float *at = &PARTIAL(warp % HALF, 16 * i + lane / 4, 8 * j + 2 * (lane % 4)); \
            name(at[0], sum[i][j].s0)                                                             \
            name(at[1], sum[i][j].s1)                                                             \
            name(at[8 * 64], sum[i][j].s2)                                                        \
            name(at[8 * 64 + 1], sum[i][j].s3)                                                    \
        }
#define SET(place, v) place = v;
#define ADD(place, v) place += v;

__kernel void lstm_steps(IN(T, r), IN(ACC, bias), IN(T, h0), IN(ACC, c0), ANY(ACC, gates), ANY(ACC, cells), ANY(T, y),
                         OUT(ACC, c_last), ANY(int, arrived), const long first, const long last, const Sizes z) {
    START(r);
    START(bias);
    START(h0);
    START(c0);
    START(gates);
    START(cells);
    START(y);
    START(c_last);
    START(arrived);
    __local float partial[HALF * ROWS * 64];
    const int item = get_local_id(0), warp = item / 32, lane = item % 32;
    FRAGMENT_MEMORY
    const int hidden = z.hidden, count = z.count, steps = z.steps, d = z.direction, directions = z.directions;
    const int slices = hidden / UNITS, unit = get_group_id(0) % slices * UNITS, n0 = get_group_id(0) / slices * 64;
    r += (INDEX)d * 4 * hidden * hidden;

    // Row 4 k + i of a fragment is gate k of its unit i.
    uint4 upper[TERMS][FRAGMENTS], lower[TERMS][FRAGMENTS];
    UNROLL for (int p = 0; p < TERMS; ++p) {
        const int k = (p * WARPS + warp) * 32 + lane % 4 * 8;
        UNROLL for (int i = 0; i < FRAGMENTS; ++i) {
            const int row = lane / 16 * hidden + unit + 4 * i + lane / 4 % 4;
            upper[p][i] = lower[p][i] = 0;
            if (k < hidden) {
                upper[p][i] = *(__global const uint4 *)(r + (INDEX)row * hidden + k);
                lower[p][i] = *(__global const uint4 *)(r + (INDEX)(row + 2 * hidden) * hidden + k);
            }
        }
    }

    // A number of this item: sequence n and a unit, whose sums of x and last cell wait in registers.
    const int own_unit = unit + item % UNITS, u = item % UNITS;
    ACC ahead[OWN][4], kept[OWN], levels[4];
    UNROLL for (int k = 0; k < 4; ++k) levels[k] = bias[(d * 4 + k) * hidden + own_unit];
#define OWN_N(i) (n0 + (item + (i) * 32 * WARPS) / UNITS)
#define ROW_AT(time, n) (((INDEX)d * steps + (time)) * count + (n))
    UNROLL for (int i = 0; i < OWN; ++i) {
        const int n = MIN(OWN_N(i), count - 1), before = d ? steps - (int)first : (int)first - 1;
        kept[i] = first ? cells[ROW_AT(before, n) * hidden + own_unit] : c0[((INDEX)d * count + n) * hidden + own_unit];
    }
    for (int step = first; step < (int)last; ++step) {
        const int time = d ? steps - 1 - step : step, before = d ? time + 1 : time - 1;
        __global const T *state = step ? y + ((INDEX)before * count * directions + d) * hidden : h0 + (INDEX)d * count * hidden;
        const INDEX stride = step ? (INDEX)directions * hidden : hidden;
        UNROLL for (int i = 0; i < OWN; ++i)
            UNROLL for (int k = 0; k < 4; ++k)
                ahead[i][k] = gates[ROW_AT(time, MIN(OWN_N(i), count - 1)) * 4 * hidden + (INDEX)k * hidden + own_unit];
        ACC4 sum[FRAGMENTS][8];
        UNROLL for (int i = 0; i < FRAGMENTS; ++i)
            UNROLL for (int j = 0; j < 8; ++j) sum[i][j] = 0;
        UNROLL for (int p = 0; p < TERMS; ++p) {
            const int k = (p * WARPS + warp) * 32 + lane % 4 * 8;
            uint4 words[8];
            UNROLL for (int j = 0; j < 8; ++j) {
                const int n = n0 + 8 * j + lane / 4;
                words[j] = 0;
                if (k < hidden && n < count) words[j] = fresh16(state + n * stride + k);
            }
            UNROLL for (int part = 0; part < 2; ++part) {
                uint4 left[FRAGMENTS];
                uint2 right[8];
                UNROLL for (int i = 0; i < FRAGMENTS; ++i)
                    left[i] = part ? (uint4)(upper[p][i].s2, lower[p][i].s2, upper[p][i].s3, lower[p][i].s3)
                                    : (uint4)(upper[p][i].s0, lower[p][i].s0, upper[p][i].s1, lower[p][i].s1);
                UNROLL for (int j = 0; j < 8; ++j) right[j] = part ? words[j].s23 : words[j].s01;
                MULTIPLY(sum, 0, left, right, FRAGMENTS, 8)
            }
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (warp >= HALF) { SPREAD(SET) }
        barrier(CLK_LOCAL_MEM_FENCE);
        if (warp < HALF) { SPREAD(ADD) }
        barrier(CLK_LOCAL_MEM_FENCE);
        UNROLL for (int i = 0; i < OWN; ++i) {
            const int n = OWN_N(i), column = n - n0;
            ACC gate[4];
            UNROLL for (int k = 0; k < 4; ++k) {
                ACC all = ahead[i][k] + levels[k];
                UNROLL for (int w = 0; w < HALF; ++w) all += PARTIAL(w, u / 4 * 16 + 4 * k + u % 4, column);
                gate[k] = k == 2 ? TANH(all) : act_sigmoid(all);
            }
            kept[i] = gate[1] * kept[i] + gate[0] * gate[2];
            if (n < count) {
                const INDEX at = ROW_AT(time, n);
                UNROLL for (int k = 0; k < 4; ++k) gates[at * 4 * hidden + (INDEX)k * hidden + own_unit] = gate[k];
                cells[at * hidden + own_unit] = kept[i];
                STORE(y, (((INDEX)time * count + n) * directions + d) * hidden + own_unit, gate[3] * TANH(kept[i]));
                if (step == steps - 1) c_last[((INDEX)d * count + n) * hidden + own_unit] = kept[i];
            }
        }
#ifdef TOGETHER
        seen_by_all();
        barrier(CLK_GLOBAL_MEM_FENCE | CLK_LOCAL_MEM_FENCE);
        if (item == 0) {
            const int wanted = (step - (int)first + 1) * (int)get_num_groups(0);
            atomic_inc((volatile __global int *)arrived);
            while (atomic_add((volatile __global int *)arrived, 0) < wanted) {
            }
            seen_by_all();
        }
        barrier(CLK_GLOBAL_MEM_FENCE | CLK_LOCAL_MEM_FENCE);
#endif
    }
}
