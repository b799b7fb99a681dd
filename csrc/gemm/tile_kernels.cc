// The table of what this tier lends (core/tile_kernels.h).
#include "core/tile_kernels.h"

#include "gemm/gradient_pieces.h"
#include "gemm/nibbles.h"
#include "gemm/tile_products.h"
#include "gemm/tiled_pieces.h"
#include "gemm/window_pieces.h"
#include "simd/tiles.h"

namespace tw::TW_ISA {

extern const TileKernels kTileKernels;
#if defined(TW_TILES)
const TileKernels kTileKernels = {tiled_in_pieces,  split_rows,        windows_in_pieces, dw_in_pieces,
                                  product_f32,      product_f16,       product_bf16,      product_f32_f16,
                                  product_f32_bf16, product_f16_whole, multiply_nibbles};
#else
const TileKernels kTileKernels = {.nibbles = kMultipliesNibbles ? multiply_nibbles : nullptr};
#endif

}  // namespace tw::TW_ISA
