// 16-bit types in an op whose kernels are of float32.
#pragma once
#include "ops/ops.h"

namespace tw::TW_ISA {

// Runs `kernel` on float32 copies of 16-bit operands and rounds its result once; all else goes straight to it.
Status in_float32(const Call& c, Status (*kernel)(const Call&));

}  // namespace tw::TW_ISA
