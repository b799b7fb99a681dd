// C[kept axes] = sum over the summed axes of A B, for two strided tensors as they lie in memory.
//
// Method    axes that one stride runs through are fused. Axes of A and C alone are the rows of a GEMM, of B and C alone
//           its columns, of A and B alone its depth, all others a batch; groups that do not fuse are walked by packers,
//           so no operand is copied or transposed as a whole. Small, thin, elementwise and outer products and plain sums
//           run as loops over vectors, transposed copies as tiles.
// Numerics  see gemm/gemm.h; in loops, one running sum per element of C, or 4 vectors of them for a dot product, long
//           ones cut into pieces by their length.
// Threads   a batch is split by product, a single product inside gemm, loops by rows of C; long sums into few results in
//           pieces that are added in order. Bits never depend on the split.
// Source    Matthews, "High-performance tensor contraction without transposition", SIAM J. Sci. Comput., 2018.
#pragma once
#include "core/subscripts.h"
#include "gemm/gemm.h"

namespace tw::TW_ISA {

// Strides in elements, 0 where the tensor lacks the axis; an axis that C lacks is summed.
struct Axis {
    int64_t size, a, b, c;
};

struct Axes {
    int n = 0;
    Axis at[kMaxLabels];
};

template <class T>
struct Contraction {
    const T* a;
    const T* b;  // null: A alone
    T* c;
    Axes axes;
    bool accumulate = false;  // add to C instead of overwriting it
};

bool contract(const Contraction<float>& x);  // false: no memory for panels
bool contract(const Contraction<double>& x);

}  // namespace tw::TW_ISA
