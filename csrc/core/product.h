// Matrix products by numpy's rules: which axes are rows, columns and terms, and what broadcasts.
#pragma once
#include "core/check.h"

namespace tw {

// Both operands as matrices: a 1-D a is a row, a 1-D b a column.
struct Product {
    int64_t m, n, k;
    int64_t a_row, a_col, b_row, b_col;
};
Product product_of(const View& a, const View& b);

// The shape rule: gives y its shape; dtypes are the caller's.
Status resolve_product(const View& a, const View& b, View& y);

// v seen with the shape of y: axes along which it is broadcast get stride 0. False if it does not broadcast to it.
bool broadcast_to(const View& y, View& v);

}  // namespace tw
