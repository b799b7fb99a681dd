// C = activation(alpha (bias + A B) + beta addend) for strided operands, packed operands and operands made by a packer.
//
// Method    GotoBLAS loops around a register tile (Goto and van de Geijn, 2008); B and A are read in place where they
//           stay in L2, else packed once per block; a packer callback replaces B for convolution, so no unfolded copy exists.
// Numerics  each C element is one running sum over k with FMA where the tier has it, cut every KC terms. 16-bit operands
//           are widened while they are packed, sums are float, and C is rounded once, at its store.
// Threads   tiles of C are independent; k is never split between threads, so bits do not depend on their number.
#pragma once
#include "core/types.h"
#include "gemm/blocking.h"
#include "simd/convert.h"

namespace tw::TW_ISA {

// In the order of the choices of an op's attribute.
enum class Activation : int { none, relu, relu6, sigmoid, tanh, gelu, silu, hard_swish };
#define TW_ACTIVATIONS "relu|relu6|sigmoid|tanh|gelu|silu|hard_swish"

// Element (i, j) at data[i * row + j * col].
template <class T>
struct Matrix {
    const T* data;
    int64_t row, col;
};

// C, and A and B where they differ from it, may be stored in 16 bits.
template <class C, class A = C, class B = C>
struct Gemm {
    typedef Wide<C> T;
    int64_t m, n, k;
    Matrix<A> a;
    Matrix<B> b;
    C* c;
    int64_t c_row, c_col;
    bool accumulate = false;  // add to C instead of overwriting it
    const T* bias_row = nullptr;  // one number per row of C
    const T* bias_col = nullptr;  // one number per column of C
    T alpha = 1, beta = 1;
    Matrix<C> addend = {};  // of C's shape; data null: none
    Activation activation = Activation::none;
    const B* packed_b = nullptr;  // all of B as pack_all wrote it
    // Instead of b: writes rows [k0, k0 + kc) of columns [n0, n0 + n) as [kc][NR], the columns from n on zero.
    void (*pack_b)(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, T* panel) = nullptr;
    // Instead of a: writes rows [m0, m0 + m), m <= kMR, of columns [k0, k0 + kc): as [m][kc], or [kc][kMR] if a.row is 1.
    void (*pack_a)(const void* context, int64_t m0, int m, int64_t k0, int64_t kc, T* panel) = nullptr;
    const void* context = nullptr;
};

bool gemm(const Gemm<float>& g);  // false: no memory for panels
bool gemm(const Gemm<double>& g);
bool gemm(const Gemm<f16>& g);
bool gemm(const Gemm<bf16>& g);
bool gemm(const Gemm<float, float, f16>& g);
bool gemm(const Gemm<float, float, bf16>& g);

// B packed ahead of time, in its own type, for every block the gemm will ask for: panels [k][NR]. Wide vectors take bf16 as
// tiles of hardware do: for every 32 terms, zero beyond k, four tiles of 16 words by 16 columns, a word two terms; behind
// a panel a line that begins with its ExponentRange (gemm/pieces.h).
template <class B>
constexpr bool kPackedTiles = __is_same(B, bf16) && kVecBytes == 64;
constexpr int64_t kPackedTerms = 32, kPackedTile = 512, kRangeLine = 32;  // numbers
// From panel to panel.
template <class B>
TW_INLINE int64_t packed_panel(int64_t k) {
    constexpr int NR = Blocking<Wide<B>>::NR;
    if (kPackedTiles<B>) return (k + kPackedTerms - 1) / kPackedTerms * kPackedTerms * NR + kRangeLine;
    return NR * (k ? k : 1);
}
template <class B>
TW_INLINE int64_t packed_elements(int64_t k, int64_t n) {
    constexpr int NR = Blocking<Wide<B>>::NR;
    return (n + NR - 1) / NR * packed_panel<B>(k);
}
void pack_all(const Matrix<float>& b, int64_t k, int64_t n, float* packed);
void pack_all(const Matrix<double>& b, int64_t k, int64_t n, double* packed);
void pack_all(const Matrix<f16>& b, int64_t k, int64_t n, f16* packed);
void pack_all(const Matrix<bf16>& b, int64_t k, int64_t n, bf16* packed);

constexpr int kStreams = 4;  // one stream alone does not fill the way to memory

// The register tile itself, for callers with their own loops: sums over `outer` x `kc` terms.
template <class T>
struct Tile {
    int64_t kc;
    const T* a;
    int64_t a_row, a_k;  // a_row == 1: the rows of a term are neighbours
    const T* b;
    int64_t b_k;
    int64_t outer = 1, a_outer = 0, b_outer = 0;
    T* c;
    int64_t c_row;
    const T* bias_row = nullptr;
    const T* bias_col = nullptr;
    bool load_c = false;  // add to what C holds, or to `start`
    const T* start = nullptr;
    int64_t start_row = 0;
    Activation activation = Activation::none;
    int64_t tiles = 1, a_tile = 0;  // how many tiles below each other, and how far apart they are in a
    // Instead of b: vector j of term k lies at vectors[j] + offset[k], and is kept in `keep`, [k][NR], for tiles to come.
    const T* const* vectors = nullptr;
    const int64_t* offset = nullptr;
    T* keep = nullptr;
    bool in_pairs = false;  // even and odd terms may be summed apart; a_row is 1 and rows of b are whole vectors
    // What is needed soon: with each tile, so many lines of each of kStreams places so many bytes apart go into L2.
    const char* ahead = nullptr;
    int64_t ahead_step = 0, ahead_lines = 0;
};
// m in 1..kMR rows, n in 1..NR columns; both whole, and a_row 1, where vectors are given.
void run_tile(const Tile<float>& t, int m, int n);
void run_tile(const Tile<double>& t, int m, int n);

}  // namespace tw::TW_ISA
