// What products on tiles leave the vector units time for: storing sums, splitting rows (gemm/tile_products.cc).
#pragma once
#include "gemm/split.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTileSums = kTallRows * kPanelColumns;

// What is done between products: the sums of the tile before become numbers of C, the next rows of A are split.
template <class C, class A, int P>
struct Beside {
    // Rows of sums, from row_of_c on.
    const float* sums = nullptr;
    C* c = nullptr;
    int64_t c_row = 0, row_of_c = 0, rows_of_c = 0, rows_each = 0;
    // Rows of steps of A, from row_of_a and step on.
    const A* from = nullptr;
    char* to = nullptr;
    int64_t from_row = 0, to_row = 0, to_step = 0, steps = 0, step = 0, row_of_a = 0, rows_of_a = 0, steps_each = 0;
    Seen<P> seen;
    PieceBlock pieces = {0, nullptr, nullptr, nullptr, kPanelColumns, false};

    void store_rows(int64_t count) {
        constexpr int L = kLanes<float>;
        const int64_t end = min_of(rows_of_c, row_of_c + count);
        for (int64_t i = row_of_c; i < end; ++i)
            for (int64_t j = 0; j < kPanelColumns; j += L)
                store_from(c + i * c_row + j, load(sums + i * kPanelColumns + j));
        row_of_c = end;
    }
    // kTogether steps of one row after another.
    static constexpr int64_t kTogether = P == 1 ? 4 : 2;
    void split_steps(int64_t count) {
        Seen<P> own = seen;  // in registers
        const A* at = from + row_of_a * from_row + step * kPieceTerms;
        char* words = to + row_of_a * to_row + step * to_step;
        int64_t s = step, i = row_of_a;
        while (count > 0 && i < rows_of_a) {
            const auto one = [&](const A* x, char* word) __attribute__((always_inline)) {
                if constexpr (P == 1) {
                    const Halves v = load(reinterpret_cast<const uint16_t*>(x));
                    own.see(v);
                    store(reinterpret_cast<uint16_t*>(word), v);
                } else {
                    u32v some[P];
                    if (P == 2) __builtin_prefetch(x + 8 * from_row, 0, 2);
                    if (P == 3) __builtin_prefetch(x + from_row), __builtin_prefetch(x + from_row + kLanes<float>);
                    split_pairs(load_as<float>(x), load_as<float>(x + kLanes<float>), some, own);
                    for (int p = 0; p < P; ++p) store(reinterpret_cast<uint32_t*>(word + p * kPieceBytes), some[p]);
                }
            };
            if (s + kTogether <= steps) {
#pragma GCC unroll 4
                for (int q = 0; q < kTogether; ++q) one(at + q * kPieceTerms, words + q * to_step);
                s += kTogether, count -= kTogether, at += kTogether * kPieceTerms, words += kTogether * to_step;
            } else {
                one(at, words);
                ++s, --count, at += kPieceTerms, words += to_step;
            }
            if (s == steps) s = 0, ++i, at = from + i * from_row, words = to + i * to_row;
        }
        if constexpr (P == 1)
            seen.least = own.least, seen.most = own.most;
        else
            seen = own;
        step = s, row_of_a = i;
    }
    __attribute__((noinline)) void work() {
        if (row_of_c < rows_of_c) store_rows(rows_each);
        if (row_of_a < rows_of_a) split_steps(steps_each);
    }
};

}  // namespace
}  // namespace tw::TW_ISA
