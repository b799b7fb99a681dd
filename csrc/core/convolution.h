// The shape rules of convolution and its gradients, and the geometry that their kernels walk.
//
//     y[n,k,p] = b[k] + sum_{c,t} w[k,c,t] x[n,c, p*stride + t*dilation - padding]
#pragma once
#include "core/check.h"

namespace tw {

// x, w and the attributes, which are resolved; writes the spatial output sizes. An error about them names `blame`.
Status check_conv(const View& x, const View& w, Attr& stride, Attr& padding, Attr& dilation, const Attr& groups,
                  int64_t* out, const char* blame);
Status want_conv_float(const View& v, const char* name);  // float32, float64, float16 or bfloat16
Status check_bias(const View& b, const View& x, int64_t k);  // (K,) of the dtype of x, where given
Status check_c(const View& c, const View& result, const char* model);  // what is added to a gradient, where given
// dy against the output that x and w would give.
Status check_conv_dy(const View& dy, const View& x, const View& w, const int64_t* out);
double conv_flops(const View& y, const View& w);

// Axis `a` of 3 as seen by a tensor of lower rank: leading axes have size 1.
struct ConvAxes {
    int64_t in[3], out[3], taps[3], stride[3], dilation[3], before[3];
    int64_t x_stride[3], y_stride[3];
};
ConvAxes conv_axes(const View& x, const View& w, const View& y, const Attr& stride, const Attr& padding,
                   const Attr& dilation);

static inline int64_t taps_of(const ConvAxes& s) { return s.taps[0] * s.taps[1] * s.taps[2]; }
static inline int64_t pixels_of(const ConvAxes& s) { return s.out[0] * s.out[1] * s.out[2]; }

}  // namespace tw
