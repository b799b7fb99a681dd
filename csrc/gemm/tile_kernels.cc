// The table of what this tier lends (core/tile_kernels.h).
#include "core/tile_kernels.h"

#include "gemm/tiled_pieces.h"
#include "simd/tiles.h"

namespace tw::TW_ISA {

extern const TileKernels kTileKernels;
#if defined(TW_TILES)
const TileKernels kTileKernels = {tiled_in_pieces, split_rows};
#else
const TileKernels kTileKernels = {nullptr, nullptr};
#endif

}  // namespace tw::TW_ISA
