// A convolution, or a phase of the gradient in its image, on tiles of bf16, in exact pieces: what the ops ask of a tier that has
// them.
#pragma once
#include "gemm/gemm.h"
#include "gemm/planes.h"

namespace tw::TW_ISA {

// One result of several that read the same x, as the phases of a stride do.
struct WindowPhase {
    int64_t out[3];
    int64_t taps;
    const int32_t *place, *tap;  // of each tap: in the window of `axes`, and in w
    float* y;
    const float* residual;  // or null
};

// y[n,k,p] = act(bias[k] + residual[n,k,p] + sum_{c,t} w[k,c,t] x[n,c, p*stride + t*dilation - before])
struct WindowsInPieces {
    ConvAxes
        axes;  // of the largest phase and of a window with all taps, with strides of x and y; before may be negative
    int64_t images, groups, kg, cg;
    const float* x;
    int64_t x_image, x_channel;
    const float* w;  // w[group][k][c][t] at group * w_group + k * w_row + c * w_term + tap[t]
    int64_t w_group, w_row, w_term;
    int64_t y_image, y_channel;
    const float* bias;  // or null; a run
    int64_t residual_image, residual_channel, residual_stride[3];
    Activation activation;
    const WindowPhase* phase;
    int64_t phases;
};

int windows_in_pieces(const void* job);  // an InPiecesResult; where it is not `done`, parts of y may have been written

}  // namespace tw::TW_ISA
