// Convolutions of 8-bit codes: sums in int32, and what becomes of them in qlinear_conv and conv_int8.
//
// Method    conv_codes: one item per sum, taps that fall outside skipped, since the border is the zero point. The
//           others: one item per element of y (N, K, *out).
// Numerics  exact sums; float32 operation by operation: the CPU's bits, up to an activation.
//
// Defined by the launch:  CODE, WEIGHT   dtypes of x and w, for conv_codes alone;  else DTYPE   of y, with REQUANTIZE or
//                         SCALE   dtype of w_scale;  BIAS, ACTIVATION   if there is one
#include "types.clh"
#ifdef SCALE
#include "activation.clh"
#endif
#include "quantize.clh"

#ifdef CODE

typedef struct {
    long count, groups, c, k;  // sums; channels and filters per group
    long in[3], out[3], window[3], stride[3], dilation[3], before[3];
    long x_zero_step, w_zero_step;  // along images and filters; 0: one number for all
} Conv;

__kernel void conv_codes(IN(CAT(storage_, CODE), x), IN(CAT(storage_, WEIGHT), w), IN(CAT(storage_, CODE), x_zero),
                         IN(CAT(storage_, WEIGHT), w_zero), OUT(int, y), const Conv s) {
    START(x);
    START(w);
    START(x_zero);
    START(w_zero);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)s.count) return;
    const INDEX v = i % (INDEX)s.out[2], u = i / (INDEX)s.out[2] % (INDEX)s.out[1];
    const INDEX plane = i / (INDEX)s.out[2] / (INDEX)s.out[1], t = plane % (INDEX)s.out[0];
    const INDEX all = (INDEX)s.k * (INDEX)s.groups, filter = plane / (INDEX)s.out[0] % all;
    const INDEX image = plane / (INDEX)s.out[0] / all;
    const INDEX channel = image * (INDEX)s.c * (INDEX)s.groups + filter / (INDEX)s.k * (INDEX)s.c;
    const int less = x_zero[image * (INDEX)s.x_zero_step], w_less = w_zero[filter * (INDEX)s.w_zero_step];
    w += filter * (INDEX)s.c * (INDEX)s.window[0] * (INDEX)s.window[1] * (INDEX)s.window[2];
    int sum = 0;
    for (INDEX c = 0; c < (INDEX)s.c; ++c)
        for (INDEX a = 0; a < (INDEX)s.window[0]; ++a)
            for (INDEX b = 0; b < (INDEX)s.window[1]; ++b)
                for (INDEX e = 0; e < (INDEX)s.window[2]; ++e, ++w) {
                    const INDEX d = t * (INDEX)s.stride[0] + a * (INDEX)s.dilation[0] - (INDEX)s.before[0];
                    const INDEX h = u * (INDEX)s.stride[1] + b * (INDEX)s.dilation[1] - (INDEX)s.before[1];
                    const INDEX z = v * (INDEX)s.stride[2] + e * (INDEX)s.dilation[2] - (INDEX)s.before[2];
                    if (d < 0 || d >= (INDEX)s.in[0] || h < 0 || h >= (INDEX)s.in[1] || z < 0 || z >= (INDEX)s.in[2])
                        continue;
                    const INDEX at =
                        (((channel + c) * (INDEX)s.in[0] + d) * (INDEX)s.in[1] + h) * (INDEX)s.in[2] + z;
                    sum += ((int)x[at] - less) * ((int)w[0] - w_less);
                }
    y[i] = sum;
}

#elif defined(REQUANTIZE)

// int32 wraps where the bias is added, as on the CPU.
__kernel void requantize(IN(int, sums), IN(float, x_scale), IN(float, w_scale), IN(float, y_scale), IN(T, y_zero),
#ifdef BIAS
                         IN(int, bias),
#endif
                         OUT(T, y), const long count, const long filters, const long pixels, const long scale_step) {
    START(sums);
    START(w_scale);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX k = i / (INDEX)pixels % (INDEX)filters;
    uint sum = as_uint(sums[i]);
#ifdef BIAS
    sum += as_uint(bias[bias_start + k]);
#endif
    const float both = x_scale[x_scale_start] * w_scale[k * (INDEX)scale_step];
    const float v = convert_float(as_int(sum)) * (both / y_scale[y_scale_start]);
    y[i] = (T)code_of(v, (float)y_zero[y_zero_start], CAT(least_, DTYPE));
}

#else

__kernel void scale_sums(IN(int, sums), IN(float, image_scale), IN(CAT(storage_, SCALE), w_scale),
#ifdef BIAS
                         IN(T, bias),
#endif
                         OUT(T, y), const long count, const long filters, const long pixels, const long scale_step) {
    START(sums);
    START(image_scale);
    START(w_scale);
    START(y);
    const INDEX i = get_global_id(0);
    if (i >= (INDEX)count) return;
    const INDEX k = i / (INDEX)pixels % (INDEX)filters, image = i / (INDEX)pixels / (INDEX)filters;
    const float scale = image_scale[image] * (float)CAT(load_, SCALE)(w_scale, k * (INDEX)scale_step);
    float v = convert_float(sums[i]) * scale;
#ifdef BIAS
    bias += bias_start;
    v = v + (float)LOAD(bias, k);
#endif
    STORE(y, i, (float)ACTIVATE(v));
}

#endif
