// Numbers as elements.
#pragma once
#include "core/types.h"

namespace tw {

// Of a floating type: rounded once, halves to even; too large ones become infinite.
void put_number(double value, DType dtype, void* to);

// Of any type, as cast converts a float64.
void put_element(double value, DType dtype, void* to);

// Whether an element type is one of integers, bool excluded.
static inline bool is_integer(DType t) { return t > DType::bf16 && t <= DType::u64 && t != DType::boolean; }

// A whole number as an element of an integer type; false where it does not fit.
bool put_integer(int64_t value, DType dtype, void* to);

}  // namespace tw
