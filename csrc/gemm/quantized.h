// C = A B of 8-bit operands, exact in int32. A is packed, and quantised where it is float, row by row; B is packed block by
// block or ahead of time; what becomes of the sums is the caller's.
//
// Method    the loops of gemm.h around a register tile of simd/dot.h. Codes are what is packed: a' unsigned or 16 bits
//           wide, b' signed. With zero points a0 and b0 of the codes,
//           sum (a' - a0)(b' - b0) = sum a'b' - b0 sum a' - a0 (sum b' - k b0),
//           and the two rank-one terms are taken off the finished tile. 16-bit codes have a0 = 0. Tiles multiply bytes of
//           any sign: codes are then the values themselves.
// Numerics  int32 that wraps: exact where the result fits, whatever the order; so all tiers and devices agree bit for bit.
// Threads   tiles of C are independent.
#pragma once
#include "gemm/blocking.h"
#include "simd/dot.h"
#include "simd/tiles.h"

namespace tw::TW_ISA {

// What packing leaves of a row of A.
struct RowTerms {
    int32_t zero;  // a0
    int32_t sum;  // of the codes; only if asked for
    float scale;
};

// 8-bit element (i, j) at data[i * row + j * col].
struct Bytes {
    const void* data;
    int64_t row, col;
    bool is_unsigned;
};

// A finished tile: m x n sums, kIntNR apart.
struct IntTile {
    const int32_t* sums;
    const RowTerms* rows;
    int64_t m0, n0;
    int m, n;
};
constexpr int kIntMR = kHasTiles ? 2 * kTileRows : kMR;
constexpr int kIntNV = kHasTiles ? 2 : kNV;
constexpr int kIntNR = kIntNV * kLanes<int32_t>;

struct IntGemm {
    int64_t m, n, k;
    // Writes the codes of rows [first, first + rows), `stride` apart, and their terms; zeros up to a whole word.
    void (*pack_a)(const void* context, int64_t first, int64_t rows, bool sums, DotLeft* to, int64_t stride,
                   RowTerms* terms);
    const void* a;
    Bytes b;  // is_unsigned also where b is packed
    bool a_unsigned = true;
    bool a_centred = false;  // all of a0 are 0
    const int8_t* packed_b = nullptr;  // instead of b: all of it as pack_right wrote it
    // Instead of b: writes columns [n0, n0 + n) as codes, [words of k][kIntNR][kDotDepth], zeros behind k; what columns from
    // n on hold does not matter.
    void (*pack_b)(const void* context, int64_t n0, int64_t n, int8_t* panel) = nullptr;
    const void* b_context = nullptr;
    // Instead of pack_a: all rows, a_row or else left_stride(k) apart, and their terms, if they have any.
    const DotLeft* packed_a = nullptr;
    int64_t a_row = 0;
    const RowTerms* a_terms = nullptr;
    const int32_t* b_zero = nullptr;  // b0 of each column; null: all 0
    int32_t* c = nullptr;  // the sums themselves, or
    int64_t c_row = 0, c_col = 1;
    void (*finish)(const void* context, const IntTile& tile) = nullptr;  // what is called with each tile of them
    const void* context = nullptr;
    // Where finish writes to, if it is known, and bytes from row to row and from column to column: fetched in time.
    const char* y = nullptr;
    int64_t y_row = 0, y_col = 0;
};

bool int_gemm(const IntGemm& g);  // false: no memory for panels

// B packed ahead of time: panels of kIntNR columns, words of kDotDepth codes along k; then the sum of each column.
int64_t packed_right_bytes(int64_t k, int64_t n);
void pack_right(const Bytes& b, int64_t k, int64_t n, int8_t* packed);
// The same where `pack_b` of IntGemm writes the panels.
void pack_right(void (*pack_b)(const void* context, int64_t n0, int64_t n, int8_t* panel), const void* context,
                int64_t k, int64_t n, int8_t* packed);
// But for tiles: one panel of it by m rows of codes, at most kMR, left_stride(k) apart: their sums, kIntNR apart, zero points taken off.
void multiply_panel(const DotLeft* a, const RowTerms* rows, int m, const int8_t* packed, int64_t k, int64_t n,
                    int64_t panel, int32_t* sums);

// The code of an 8-bit value of B: but for tiles signed, so 128 less if it was unsigned.
TW_INLINE int32_t right_zero(bool is_unsigned, int32_t zero) { return zero - (is_unsigned && !kHasTiles ? 128 : 0); }
TW_INLINE uint8_t right_flip(bool is_unsigned) { return is_unsigned && !kHasTiles ? 0x80 : 0; }

// Codes between the rows of an A packed ahead of time, and the rows to make room for.
int64_t left_stride(int64_t k);
TW_INLINE int64_t left_rows(int64_t m) { return kHasTiles ? (m + kTileRows - 1) / kTileRows * kTileRows : m; }
// Whether the values of A lie as codes do, but for their terms: then its rows are a packed A. Many rows a multiple of 2 KiB
// apart would drive each other out of L1.
TW_INLINE bool left_in_place(const Bytes& a, int64_t m, int64_t k) {
    return kHasTiles && (a.row % 2048 != 0 || m <= 128) && a.col == 1 && a.row >= k && m % kTileRows == 0 &&
           k % kTileBytes == 0 && k > 0;
}
// A row of 8-bit values as codes of A.
void pack_left_row(const Bytes& a, int64_t row, int64_t k, int32_t zero, bool sums, DotLeft* to, RowTerms* terms);
// The same for a row of floats, quantised to 0..255 by its own range: see quantize_row in simd/quantize.h.
void quantize_left_row(const float* x, int64_t k, bool sums, DotLeft* to, RowTerms* terms);

}  // namespace tw::TW_ISA
