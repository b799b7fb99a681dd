// What a tier with few ops lends the ops of the tiers below it.
#pragma once
#include "core/isa.h"

namespace tw {

// Multiplies a Gemm, and has `below` multiply parts of it where tiles do not serve. False: no memory.
typedef bool TileProduct(const void* gemm, bool (*below)(const void* gemm));

// Null where the tier has nothing better (gemm/tile_kernels.cc). Operands as any tier declares them.
struct TileKernels {
    int (*tiled)(const void* job) = nullptr;  // of InPieces (gemm/tiled_pieces.h)
    void (*split_rows)(const void* job) = nullptr;  // of SplitRows
    int (*windows)(const void* job) = nullptr;  // of WindowsInPieces (gemm/window_pieces.h)
    int (*dw)(const void* job) = nullptr;  // of DwInPieces (gemm/gradient_pieces.h)
    // Of a Gemm of these types (gemm/tile_products.cc).
    TileProduct *f32 = nullptr, *f16 = nullptr, *bf16 = nullptr, *f32_f16 = nullptr, *f32_bf16 = nullptr;
    TileProduct* f16_whole = nullptr;  // takes the place of f16 where the CPU multiplies tiles of it
    void (*nibbles)(const void* row) = nullptr;  // of NibbleRow (gemm/nibbles.h); dot products of bytes are enough
};

const TileKernels& tile_kernels();  // of the active tier
bool tiles_take_f16();  // as it is, in the active tier

}  // namespace tw
