// Products of matrices in tiles, of the types that each is named for (core/tile_kernels.h).
#pragma once
#include "core/tile_kernels.h"

namespace tw::TW_ISA {

TileProduct product_f32, product_f16, product_f16_whole, product_bf16, product_f32_f16, product_f32_bf16;

}  // namespace tw::TW_ISA
