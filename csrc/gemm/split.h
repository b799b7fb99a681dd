// Operands of products in tiles: numbers split into pieces, as gemm/pieces.h lays them out; one piece as pairs along k.
#pragma once
#include "core/index.h"
#include "gemm/pack.h"
#include "gemm/pieces.h"

#if defined(TW_TILES)
namespace tw::TW_ISA {

// Up to 32 columns of k terms of B (tile_products.cc).
void pack_pairs(const uint16_t* b, int64_t row, int64_t col, int64_t k, int64_t n, uint32_t* to, ExponentRange& range);

namespace {

template <class S>
constexpr int kPieces = __is_same(S, float) ? 3
                        : __is_same(S, f16) ? 2
                                            : 1;
constexpr int64_t kPairColumns = 2 * kPanelColumns, kMostPairs = 8;  // panels are split two at a time

// `Rows` x `Columns` of a matrix, of which rows x columns are there, widened, zeros beyond.
template <int64_t Rows, int64_t Columns, class S>
void take_block(const S* from, int64_t row, int64_t col, int64_t rows, int64_t columns, float* to) {
    constexpr int64_t L = kLanes<float>;
    const int64_t whole_rows = row == 1 ? rows / L * L : 0, whole_columns = row == 1 ? columns / L * L : 0;
    for (int64_t i = 0; i < whole_rows; i += L)
        for (int64_t j = 0; j < whole_columns; j += L)
            transpose_wide(from + i + j * col, col, to + i * Columns + j, Columns);
    for (int64_t i = 0; i < Rows; ++i)
        for (int64_t j = i < whole_rows ? whole_columns : 0; j < Columns; j += L) {
            const int64_t n = i < rows ? min_of(columns - j, L) : 0;
            store(to + i * Columns + j, n > 0 ? take_wide<float>(from + i * row + j * col, col, n) : f32v{});
        }
}

// Up to 32 rows of k terms of A, as steps of pieces. `Bare`: what is not there is left as it was, but for k.
template <int P, bool Bare = false, class S>
void split_left(const S* from, int64_t row, int64_t col, int64_t rows, int64_t k, char* to, ExponentRange& range) {
    constexpr int64_t L = kLanes<float>;
    Seen<P> seen;
    const auto split = [&](f32v x, f32v y, char* at) __attribute__((always_inline)) {
        u32v words[P];
        split_pairs(x, y, words, seen);
        for (int p = 0; p < P; ++p) store(reinterpret_cast<uint32_t*>(at + p * kPieceBytes), words[p]);
    };
    const bool in_place = col == 1 && (Bare || rows == kTallRows);
    const int64_t steps = ceil_div(k, kPieceTerms), whole = in_place ? k / kPieceTerms : 0;
    for (int64_t i = 0; i < (in_place ? rows : 0); ++i) {
        for (int64_t s = 0; s < whole; ++s) {
            const S* const at = from + i * row + s * kPieceTerms;
            __builtin_prefetch(at + row), __builtin_prefetch(at + row + L);
            split(load_as<float>(at), load_as<float>(at + L), to + s * P * kPieceBytes + i * kTileBytes);
        }
        if (Bare && whole < steps) {
            const S* const at = from + i * row + whole * kPieceTerms;
            const int64_t rest = k - whole * kPieceTerms;
            split(load_as_n<float>(at, min_of(rest, L)), rest > L ? load_as_n<float>(at + L, rest - L) : f32v{},
                  to + whole * P * kPieceBytes + i * kTileBytes);
        }
    }
    for (int64_t s = whole; s < (Bare && in_place ? 0 : steps); ++s) {
        alignas(kVecBytes) float block[kTallRows * kPieceTerms];
        take_block<kTallRows, kPieceTerms>(from + s * kPieceTerms * col, row, col, rows,
                                           min_of(k - s * kPieceTerms, kPieceTerms), block);
        for (int64_t i = 0; i < kTallRows; ++i)
            split(load(block + i * kPieceTerms), load(block + i * kPieceTerms + L),
                  to + s * P * kPieceBytes + i * kTileBytes);
    }
    join(range, seen.range());
}

template <int64_t N>
struct Columns {};

// Columns of k terms of B, as steps of pieces of panels `panel` bytes apart: two from each of `pairs` places, `pair` numbers
// apart, n columns in all. Rows are read in whole. `Bare`: what is not there is left as it was, but for k.
template <int P, bool Bare = false, class S>
void split_right(const S* from, int64_t row, int64_t col, int64_t pair, int64_t pairs, int64_t k, int64_t n, char* to,
                 int64_t panel, ExponentRange* ranges) {
    constexpr int64_t L = kLanes<float>;
    const auto split = [&]<class F>(const F* at, int64_t line, char* word, Seen<P>& seen)
                           __attribute__((always_inline)) {
        u32v words[P];
        split_pairs(load_as<float>(at), load_as<float>(at + kTileRows * line), words, seen);
        for (int p = 0; p < P; ++p) store(reinterpret_cast<uint32_t*>(word + p * kPieceBytes), words[p]);
    };
    const auto split_row = [&]<int64_t N, class F>(Columns<N>, const F* at, int64_t line, char* word, Seen<P>& seen)
                               __attribute__((always_inline)) {
        Seen<P> own = seen;
        for (int64_t j = 0; j < N; j += L)
            split(at + j, line, word + j / kPanelColumns * panel + j % kPanelColumns * 4, own);
        seen = own;
    };
    Seen<P> seen[kMostPairs];
    const int64_t steps = ceil_div(k, kPieceTerms), whole_steps = col == 1 ? k / kPieceTerms : 0;
    const int64_t bare_steps = Bare && col == 1 ? steps : 0;
    const auto split_block = [&]<int64_t N>(Columns<N> columns, int64_t s, int64_t p) __attribute__((always_inline)) {
        alignas(kVecBytes) float block[kPieceTerms * N];
        take_block<kPieceTerms, N>(from + s * kPieceTerms * row + p * pair, row, col,
                                   min_of(k - s * kPieceTerms, kPieceTerms), min_of(n - p * kPairColumns, N), block);
        for (int64_t w = 0; w < kTileRows; ++w)
            split_row(columns, block + w * N, N, to + s * P * kPieceBytes + 2 * p * panel + w * kPanelColumns * 4,
                      seen[p]);
    };
    // The columns of a pair in word w of a step; rows beyond k are zeros.
    const auto split_rest = [&](int64_t s, int64_t w, int64_t p, int64_t columns) __attribute__((always_inline)) {
        const int64_t term = s * kPieceTerms + w;
        const S* const at = from + term * row + p * pair;
        for (int64_t j = 0; j < columns; j += L) {
            const int64_t here = min_of(columns - j, L);
            u32v words[P];
            split_pairs(term < k ? load_as_n<float>(at + j, here) : f32v{},
                        term + kTileRows < k ? load_as_n<float>(at + kTileRows * row + j, here) : f32v{}, words,
                        seen[p]);
            char* const word = to + s * P * kPieceBytes + (2 * p + j / kPanelColumns) * panel +
                               (w * kPanelColumns + j % kPanelColumns) * 4;
            for (int q = 0; q < P; ++q) store(reinterpret_cast<uint32_t*>(word + q * kPieceBytes), words[q]);
        }
    };
    for (int64_t s = 0; s < steps; ++s) {
        const S* const at = from + s * kPieceTerms * row;
        char* const step = to + s * P * kPieceBytes;
        const int64_t whole = s < whole_steps ? n / kPairColumns : 0;
        for (int64_t w = 0; w < (whole || s < bare_steps ? kTileRows : 0); ++w) {
            char* const word = step + w * kPanelColumns * 4;
            for (int64_t p = 0; p < whole; ++p) {
                const S *const here = at + w * row + p * pair, *const next = here + kPieceTerms * row;
                for (int64_t j = 0; P == 2 && j < kPairColumns; j += kPanelColumns)
                    __builtin_prefetch(next + j, 0, 2), __builtin_prefetch(next + kTileRows * row + j, 0, 2);
                split_row(Columns<kPairColumns>{}, here, row, word + 2 * p * panel, seen[p]);
            }
            for (int64_t p = whole; Bare && s < bare_steps && p < pairs; ++p)
                split_rest(s, w, p, min_of(n - p * kPairColumns, kPairColumns));
        }
        for (int64_t p = s < bare_steps ? pairs : whole; p < pairs; ++p)
            if (Bare && n - p * kPairColumns <= kPanelColumns)
                split_block(Columns<kPanelColumns>{}, s, p);
            else
                split_block(Columns<kPairColumns>{}, s, p);
    }
    for (int64_t p = 0; p < pairs; ++p) join(ranges[p], seen[p].range());
}

// ---- one piece, pairs along k ---------------------------------------------------------------------------------------

// Up to 32 rows of k terms of A, seen and, if `to` is given, copied as whole steps, rows to_row apart if that is given.
inline void copy_left(const uint16_t* from, int64_t row, int64_t col, int64_t rows, int64_t k, uint16_t* to,
                      ExponentRange& range, int64_t to_row = 0) {
    constexpr int64_t L = kLanes<uint16_t>;
    static_assert(L == kPieceTerms);
    Exponents seen;
    if (to_row == 0) to_row = ceil_div(k, L) * L;
    const int64_t whole = col == 1 ? k / L * L : 0;
    for (int64_t i = 0; i < rows; ++i, from += row) {
        uint16_t* const at = to ? to + i * to_row : nullptr;
        Exponents own = seen;  // in registers
        for (int64_t j = 0; j < whole; j += L) {
            const Halves x = load(from + j);
            __builtin_prefetch(from + kTallRows * row + j, 0, 2);  // of the rows below
            own.see(x);
            if (at) store(at + j, x);
        }
        seen = own;
        for (int64_t j = whole; j < k; j += L) {
            const int64_t n = min_of(k - j, L);
            const Halves x = col != 1 ? load_strided(from + j * col, col, n) : load_n(from + j, n);
            seen.see(x);
            if (at) store(at + j, x);
        }
    }
    join(range, seen.range());
}

// Whole panels of k terms of B, whose columns are neighbours, `panel` bytes apart. Rows are read in whole.
inline void pack_pairs_along(const uint16_t* b, int64_t row, int64_t k, int64_t panels, char* to, int64_t panel,
                             ExponentRange* ranges) {
    constexpr int64_t kWords = kTileRows;
    const int64_t words = ceil_div(k, kPieceTerms) * kTileRows;
    Exponents seen[kMostPairs];
    for (int64_t w0 = 0; w0 < words; w0 += kWords)
        for (int64_t p = 0; p < panels; ++p) {
            const uint16_t* const from = b + 2 * w0 * row + p * kPanelColumns;
            char* const at = to + p * panel + w0 * kPanelColumns * 4;
            Exponents own = seen[p / 2];  // in registers
            for (int64_t w = 0; w < kWords; ++w) {
                const int64_t rows = k - 2 * (w0 + w);
                const Halves x = rows > 0 ? load(from + 2 * w * row) : Halves{};
                const Halves y = rows > 1 ? load(from + (2 * w + 1) * row) : Halves{};
                own.see(x), own.see(y);
                store(reinterpret_cast<uint16_t*>(at + w * kPanelColumns * 4), zip_low(x, y));
                store(reinterpret_cast<uint16_t*>(at + w * kPanelColumns * 4 + 64), zip_high(x, y));
            }
            seen[p / 2] = own;
        }
    for (int64_t p = 0; p < panels; p += 2) join(ranges[p / 2], seen[p / 2].range());
}

}  // namespace
}  // namespace tw::TW_ISA
#endif
