// How 8-bit operands become codes in panels of B and rows of A: what quantized.h packs with.
//
//   a panel    [words of k][kIntNR columns][kDotDepth codes]
#pragma once
#include "core/index.h"
#include "gemm/quantized.h"

namespace tw::TW_ISA {

// Tiles take 64 bytes of k at once; what is beyond the last is 0 in A.
constexpr int64_t kStep = kHasTiles ? kTileBytes : kDotDepth;
constexpr int64_t kStepWords = kStep / kDotDepth, kWordBytes = 4;
TW_INLINE int64_t words_of(int64_t k) { return ceil_div(k, kStep) * kStepWords; }

// Panels that are packed at once, so that lines of the rows of B are read whole.
constexpr int64_t kPanelsAtOnce = kHasTiles ? 4 : 1;
// All words of the panels of columns [n0, n0 + n), at most kPanelsAtOnce; what columns beyond them hold does not matter.
void pack_panels(const Bytes& b, int64_t k, int64_t n0, int64_t n, int8_t* to);
// One panel by a callback, which knows nothing of words beyond k.
void pack_panel(void (*pack_b)(const void* context, int64_t n0, int64_t n, int8_t* panel), const void* context,
                int64_t k, int64_t n0, int64_t n, int8_t* to);
// The sum of each column of a panel: its product with ones.
void sum_panel(const int8_t* panel, int64_t words, bool is_unsigned, int32_t* sums);

}  // namespace tw::TW_ISA
