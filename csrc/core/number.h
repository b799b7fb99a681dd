// One number as an element of a floating type: rounded once, halves to even; too large ones become infinite.
#pragma once
#include "core/types.h"

namespace tw {

void put_number(double value, DType dtype, void* to);

}  // namespace tw
