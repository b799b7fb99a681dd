// The gradient of a convolution in its weights on tiles of bf16, in exact pieces: what ops/conv_dw.cc asks of a tier that has
// them.
#pragma once
#include "gemm/planes.h"

namespace tw::TW_ISA {

// What one job sums: filters of one panel, channels [c0, c1) and taps [t0, t1) of one group.
struct Share {
    int64_t group, panel, c0, c1, t0, t1;
};

struct DwInPieces {
    ConvAxes axes;
    const float *x, *dy;
    int64_t x_image, x_channel, dy_image, dy_channel;  // strides
    int64_t images, groups, kg, cg;
    // Takes sums[channel][tap][kPanelColumns filters].
    void (*write)(const void* context, const Share& share, const float* sums);
    const void* context;
};

int dw_in_pieces(const void* job);  // an InPiecesResult; where it is not `done`, nothing was written

}  // namespace tw::TW_ISA
