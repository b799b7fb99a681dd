// C = activation(bias + addend + A B) for an A that lies in register tiles and a B that a packer makes, panel by panel:
// the product of convolution, where A is the weights and B the windows of the image.
//
// Method    A lies as [block of k][tile][k][kMR], one stream for the register tile however far apart its rows were; it
//           is laid out once ahead, or piece by piece on the way. An A that stays in L2: each thread packs panels of B
//           and runs all of A over them. A larger one: B is packed by all threads, a few blocks of k at a time, and
//           every thread runs its share of A over all of it, so that A passes from memory once. Where whole vectors of
//           B can be read in place, the first tile of A does so, and stores them as the panel of the others. One or two
//           columns beyond whole vectors are summed with rows of A as the lanes. On a tier that lends tiles, large products
//           of floats are made of exact pieces (gemm/tiled_pieces.cc), but for columns whose exponents do not fit.
// Numerics  one running sum over k, cut every few hundred terms, by k alone; see gemm/gemm.h.
// Threads   panels of C, or tiles of rows by panels.
#pragma once
#include "gemm/gemm.h"

namespace tw::TW_ISA {

inline int64_t tiled_elements(int64_t m, int64_t k) { return (m + kMR - 1) / kMR * kMR * k; }

// A laid out ahead of time, as it multiplies n columns best; an unknown n is kManyColumns. Other n are multiplied all the same.
constexpr int64_t kManyColumns = int64_t{1} << 20;
int64_t laid_float_bytes(int64_t m, int64_t k, int64_t n);
template <class T>
TW_INLINE int64_t laid_bytes(int64_t m, int64_t k, int64_t n) {
    return sizeof(T) == 4 ? laid_float_bytes(m, k, n) : tiled_elements(m, k) * static_cast<int64_t>(sizeof(T));
}
void lay_out(const Matrix<float>& a, int64_t m, int64_t k, int64_t n, void* to);
void lay_out(const Matrix<double>& a, int64_t m, int64_t k, int64_t n, void* to);
// One of several of one shape, each laid_bytes() long when it was laid out; of none, none.
const void* laid_floats(const void* laid, int64_t m, int64_t k, int64_t index);
template <class T>
TW_INLINE const void* laid_at(const void* laid, int64_t m, int64_t k, int64_t index) {
    if (sizeof(T) == 4) return laid_floats(laid, m, k, index);
    return laid ? static_cast<const T*>(laid) + index * tiled_elements(m, k) : nullptr;
}

// What rows that a last, thinner tile lacks hold is never seen in C.
void pack_tiles(const Matrix<float>& a, int64_t m, int64_t k, float* tiles);
void pack_tiles(const Matrix<double>& a, int64_t m, int64_t k, double* tiles);

// A vector of columns in up to four parts: lanes up to end[i] are those of the vector at from[i] that no part before it has.
// Further parts are like the last, which ends where the columns do.
template <class T>
struct VectorParts {
    static constexpr int kMost = 4;
    const T* from[kMost];
    int64_t end[kMost];
    int count;
};

// Where a packer reads: term k of a vector of columns lies at its address + offset[k]. `vectors` finds those of columns
// [n0, n0 + NR) and says whether all are whole.
template <class T>
struct Source {
    const int64_t* offset;
    bool (*vectors)(const void* context, int64_t n0, const T** vector);
    // The same of n columns, at most a vector. False: more parts.
    bool (*parts)(const void* context, int64_t n0, int64_t n, VectorParts<T>& parts);
};

// laid null: g.a is laid out on the way. Without pack_b, b is a matrix. Not looked at: packed_b, bias_col, alpha, beta;
// c_col and addend.col are 1. pack_b need not write zeros beyond its columns. False: no memory.
bool gemm_tiled(const Gemm<float>& g, const void* laid, const Source<float>& source = {});
bool gemm_tiled(const Gemm<double>& g, const void* laid, const Source<double>& source = {});

// The same by FMA alone, of tiles as pack_tiles wrote them.
bool multiply_tiled(const Gemm<float>& g, const float* tiles, const Source<float>& source);
bool multiply_tiled(const Gemm<double>& g, const double* tiles, const Source<double>& source);

// c (m, n) = tiles of (m, k) times one panel [k][n], on this thread; n is NR or the lanes of one vector. `next`: as many
// tiles that are needed soon, or null.
void multiply_tiles(const float* tiles, int64_t m, int64_t n, int64_t k, const float* panel, float* c,
                    const float* next);
void multiply_tiles(const double* tiles, int64_t m, int64_t n, int64_t k, const double* panel, double* c,
                    const double* next);

}  // namespace tw::TW_ISA
