// Numbers as elements: one of a floating type: rounded once, halves to even; too large ones become infinite.
#pragma once
#include "core/types.h"

namespace tw {

void put_number(double value, DType dtype, void* to);

// Whether an element type is one of integers, bool excluded.
static inline bool is_integer(DType t) { return t > DType::bf16 && t != DType::boolean && t != DType::none; }

// A whole number as an element of an integer type; false where it does not fit.
bool put_integer(int64_t value, DType dtype, void* to);

}  // namespace tw
