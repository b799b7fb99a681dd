// The products of gemm/tiled.h on tiles of bf16, in exact pieces (gemm/pieces.h): what gemm/tiled.cc asks of a tier that has them.
#pragma once
#include "gemm/pieces.h"
#include "gemm/tiled.h"

namespace tw::TW_ISA {

// A (m, k) in pieces: [row tile][step][piece][32 rows][32 bf16], zeros beyond its rows and terms. In floats, to be split later:
// [row tile][step][32 rows][32 floats].
struct SplitRows {
    Matrix<float> a;
    int64_t m, k;
    bool in_floats;
    char* to;
    ExponentRange* range;
};
inline int64_t split_bytes(int64_t m, int64_t k) {
    return (m + kTallRows - 1) / kTallRows * ((k + kPieceTerms - 1) / kPieceTerms) * 3 * kPieceBytes;
}

inline int64_t float_bytes(int64_t m, int64_t k) { return split_bytes(m, k) / 3 * 2; }

// Whether A in pieces, and a panel of B, stay in L2, for more than a few panels.
inline bool pieces_stay(int64_t m, int64_t n, int64_t k) {
    constexpr int64_t kStayingBytes = 1280 * 1024, kFewColumns = 15 * kPanelColumns;
    return n > kFewColumns && split_bytes(m + kTallRows, k) <= kStayingBytes;
}

enum class InPiecesResult : int { done, no_memory, refused };

struct InPieces {
    const Gemm<float>* g;
    Source<float> source;
    const char* a;  // as split_rows wrote it, of `range`, or
    const float* rows;  // the same in floats; both null: g->a is split on the way
    ExponentRange range;
    unsigned char* refused;  // one of each panel of kPanelColumns: 1 where C was left alone, for its numbers do not fit
};

int tiled_in_pieces(const void* job);
void split_rows(const void* job);

}  // namespace tw::TW_ISA
