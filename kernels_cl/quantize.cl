// Linear quantisation: q = clamp(rint(x / scale) + zero), x = (q - zero) scale, and the scale and zero of x's range.
//
// Method    one item per element. Seen along the quantised axis, x is (outer, axis, inner); the scale of an element is at
//           outer * outer_step + (axis / block) * axis_step + inner * inner_step, steps of 0 where it is shared.
//           requantize turns the sums of an 8-bit product into codes: one scale per row of a and column of b.
// Numerics  float32, operation by operation: the CPU's bits.
//
// Defined by the launch:  DTYPE   of x (of y for dequantize and requantize, which has SUMS);  SCALE (quantize alone), CODE   dtypes;  ZERO   if there are any
#include "types.clh"
#include "quantize.clh"

#ifdef CODE

#define Q CAT(storage_, CODE)
#ifdef SCALE
#define S CAT(storage_, SCALE)
#endif

typedef struct {
    long n, axis, inner, block, outer_step, axis_step, inner_step;
} Shared;

inline INDEX scale_at(const Shared s, const INDEX i) {
    const INDEX row = i / (INDEX)s.inner, outer = row / (INDEX)s.axis;
    return outer * (INDEX)s.outer_step + (row - outer * (INDEX)s.axis) / (INDEX)s.block * (INDEX)s.axis_step +
           (i - row * (INDEX)s.inner) * (INDEX)s.inner_step;
}

#ifdef ZERO
#define ZERO_PARAMETER IN(Q, zero),
#define ZERO_AT(i) zero[zero_start + (i)]
#else
#define ZERO_PARAMETER
#define ZERO_AT(i) 0
#endif

#ifdef SCALE

__kernel void quantize(IN(T, x), IN(S, scale), ZERO_PARAMETER OUT(Q, q), const Shared shared) {
    START(x);
    START(scale);
    START(q);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)shared.n) return;
    const INDEX at = scale_at(shared, i);
    const float quotient = LOAD(x, i) / CAT(load_, SCALE)(scale, at);
    q[i] = (Q)code_of(quotient, (float)ZERO_AT(at), CAT(least_, CODE));
}

#else

// int32 wraps on the way, as on the CPU.
__kernel void dequantize(IN(Q, x), IN(T, scale), ZERO_PARAMETER OUT(T, y), const Shared shared) {
    START(x);
    START(scale);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)shared.n) return;
    const INDEX at = scale_at(shared, i);
    const int whole = as_int((uint)(int)x[i] - (uint)(int)ZERO_AT(at));
    STORE(y, i, convert_float(whole) * LOAD(scale, at));
}

#endif

#elif defined(SUMS)

__kernel void requantize(IN(int, sums), IN(float, a_scale), IN(float, b_scale), IN(float, y_scale), IN(T, y_zero),
                         OUT(T, y), const long count, const long m, const long n) {
    START(sums);
    START(a_scale);
    START(b_scale);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX row = i / (INDEX)n, column = row / (INDEX)m * (INDEX)n + (i - row * (INDEX)n);
    const float both = a_scale[row] * b_scale[column];
    const float v = convert_float(sums[i]) * (both / y_scale[y_scale_start]);
    y[i] = (T)code_of(v, (float)y_zero[y_zero_start], CAT(least_, DTYPE));
}

#else

__kernel void range(IN(T, x), OUT(float, ranges), const long n, const long items) {
    START(x);
    START(ranges);
    const INDEX first = get_global_id(0);
    if (first >= (INDEX)items) return;
    float low = 0, high = 0;
    bool strange = false;
    for (INDEX i = first; i < (INDEX)n; i += (INDEX)items) {
        const float v = LOAD(x, i);
        strange = strange || isnan(v);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    ranges[2 * first] = strange ? NAN : low;
    ranges[2 * first + 1] = high;
}

// One item per row: codes of -127..127 and their scale.
__kernel void quantize_rows(IN(T, x), OUT(char, q), OUT(float, scale), const long rows, const long k) {
    START(x);
    START(q);
    START(scale);
    const INDEX row = get_global_id(0);
    if (row >= (INDEX)rows) return;
    x += row * (INDEX)k;
    q += row * (INDEX)k;
    float largest = 0;
    bool strange = false;
    for (INDEX i = 0; i < (INDEX)k; ++i) {
        const float v = LOAD(x, i);
        strange = strange || isnan(v);
        largest = fmax(largest, fabs(v));
    }
    const float size = largest * (1.0f / 127.0f), by = strange || isinf(size) ? NAN : fmax(size, 0x1p-126f);
    const float inverse = 1.0f / by;
    scale[row] = by;
    for (INDEX i = 0; i < (INDEX)k; ++i) {
        const float v = LOAD(x, i) * inverse;
        q[i] = (char)convert_int(fmin(fmax(isnan(v) ? 0.0f : rint(v), -127.0f), 127.0f));
    }
}

__kernel void range_code(IN(float, ranges), OUT(float, scale), OUT(uchar, zero), const long items) {
    START(ranges);
    START(scale);
    START(zero);
    if (get_global_id(0) > 0) return;
    float low = 0, high = 0;
    for (INDEX i = 0; i < (INDEX)items; ++i) {
        const float v = ranges[2 * i], w = ranges[2 * i + 1];
        low = v < low || isnan(v) ? v : low;
        high = w > high ? w : high;
    }
    if (isnan(low)) high = low;
    const float by = (low == high ? 1.0f : high - low) / 255.0f;
    scale[0] = by;
    zero[0] = (uchar)code_of(fmin(fmax(0.0f - low / by, 0.0f), 255.0f), 0.0f, 0.0f);
}

#endif
