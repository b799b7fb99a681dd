// What a tier with few ops lends the ops of the tiers below it.
#pragma once
#include "core/isa.h"

namespace tw {

// Null where the tier has nothing better (gemm/tile_kernels.cc). Operands as any tier declares them.
struct TileKernels {
    int (*tiled)(const void* job);  // of InPieces (gemm/tiled_pieces.h)
    void (*split_rows)(const void* job);  // of SplitRows
};

const TileKernels& tile_kernels();  // of the active tier

}  // namespace tw
