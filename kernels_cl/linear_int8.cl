// What linear_int8 does around the product of its codes in matmul.cl: rows of x to codes, and sums to y.
//
// Method    row_codes: one item per row finds its range. quantize_rows and scale_sums: one item per element.
// Numerics  float32, operation by operation: the CPU's bits, up to the activation.
//
// Defined by the launch:  DTYPE   of x and y;  SCALE   dtype of w_scale;  BIAS, ACTIVATION   if there is one
#include "types.clh"
#include "activation.clh"
#include "quantize.clh"

#ifdef SCALE

__kernel void scale_sums(IN(int, sums), IN(float, row_scale), IN(CAT(storage_, SCALE), w_scale),
#ifdef BIAS
                         IN(T, bias),
#endif
                         OUT(T, y), const long count, const long n, const long scale_step) {
    START(sums);
    START(row_scale);
    START(w_scale);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX m = i / (INDEX)n, o = i - m * (INDEX)n;
    const float scale = row_scale[m] * (float)CAT(load_, SCALE)(w_scale, o * (INDEX)scale_step);
    float v = convert_float(sums[i]) * scale;
#ifdef BIAS
    bias += bias_start;
    v = v + (float)LOAD(bias, o);
#endif
    STORE(y, i, (float)ACTIVATE(v));
}

#else

__kernel void row_codes(IN(T, x), OUT(float, scale), OUT(float, inverse), OUT(uchar, zero), const long m, const long k) {
    START(x);
    START(scale);
    START(inverse);
    START(zero);
    const INDEX row = get_global_id(0);
    if (row >= (INDEX)m) return;
    x += row * (INDEX)k;
    float low = 0, high = 0;
    bool strange = false;
    for (INDEX i = 0; i < (INDEX)k; ++i) {
        const float v = (float)LOAD(x, i);
        strange = strange || isnan(v);
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    const float part = 1.0f / 255.0f;
    const float top = high * part, bottom = low * part;
    const float by = top - bottom;
    const float used = strange || isinf(by) ? NAN : fmax(by, 0x1p-126f);
    scale[row] = used;
    inverse[row] = 1.0f / used;
    zero[row] = (uchar)code_of(-low * (1.0f / used), 0.0f, 0.0f);
}

__kernel void quantize_rows(IN(T, x), IN(float, inverse), IN(uchar, zero), OUT(uchar, q), const long count, const long k) {
    START(x);
    START(inverse);
    START(zero);
    START(q);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX row = i / (INDEX)k;
    q[i] = (uchar)code_of((float)LOAD(x, i) * inverse[row], (float)zero[row], 0.0f);
}

#endif
