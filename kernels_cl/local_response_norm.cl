// Normalisation by neighbouring channels of (N, C, inner):  y = x b^-beta,  b[c] = k + share sum x[j]^2 around c, and
//     dx[c] = dy[c] b[c]^-beta - 2 beta share x[c] sum of dy[j] x[j] b[j]^(-beta - 1) over the windows that see c
//
// Method    one item per result; windows are summed anew, by the gradient those of its neighbours too.
// Numerics  sums in the order of the channels; powers are the device's pow.
#include "types.clh"

inline ACC base_of(__global const T *x, const INDEX c, const INDEX channels, const INDEX inner, const INDEX before,
                   const INDEX after, const ACC share, const ACC k) {
    ACC sum = 0;
    for (INDEX j = max(c - before, (INDEX)0); j <= min(c + after, channels - 1); ++j) {
        const ACC v = LOAD(x, j * inner);
        sum += v * v;
    }
    return k + share * sum;
}

// A window may be wider than any index.
#define ENTER                                                                                    \
    const INDEX i = get_global_id(0);                                                            \
    if (i >= (INDEX)count) return;                                                               \
    const INDEX C = (INDEX)channels, N = (INDEX)inner, c = i / N % C, place = i - c * N;          \
    const INDEX low = (INDEX)min(before, channels), high = (INDEX)min(after, channels);

__kernel void local_response_norm(IN(T, x), OUT(T, y), const long count, const long channels, const long inner,
                                  const long before, const long after, const ACC share, const ACC beta, const ACC k) {
    START(x);
    START(y);
    ENTER
    STORE(y, i, LOAD(x, i) * pow(base_of(x + place, c, C, N, low, high, share, k), -beta));
}

__kernel void local_response_norm_dx(IN(T, dy), IN(T, x), OUT(T, dx), const long count, const long channels,
                                     const long inner, const long before, const long after, const ACC share,
                                     const ACC beta, const ACC k) {
    START(dy);
    START(x);
    START(dx);
    ENTER
    ACC sum = 0, own = 0;
    for (INDEX j = max(c - high, (INDEX)0); j <= min(c + low, C - 1); ++j) {
        const ACC b = base_of(x + place, j, C, N, low, high, share, k), scaled = LOAD(dy, place + j * N) * pow(b, -beta);
        if (j == c) own = scaled;
        sum += scaled * (LOAD(x, place + j * N) * (share / b));
    }
    STORE(dx, i, own - 2 * beta * LOAD(x, i) * sum);
}
