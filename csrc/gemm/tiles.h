// The product of a few tiles: 32 or 16 rows of A, bytes along k, by a panel of 32 columns of B, words of 4 bytes of k.
//
// Method    two tiles of A by two of B: each of the four is loaded once for two products, which takes half of the time
//           that these need. A lies as it is, rows of 64 bytes of k at a time; a panel of B is [words of k][32]. 32 rows of A
//           of 1 KiB stay in L1 while panels pass that leave it to them.
// Numerics  simd/tiles.h. 16 rows alone are summed in even and odd steps of 64 bytes, added at the end, for a single product
//           after another would wait for its sums.
#pragma once
#include "simd/tiles.h"

namespace tw::TW_ISA {

constexpr int kTallRows = 2 * kTileRows, kPanelColumns = 2 * kTileRows;
constexpr int64_t kPanelStep = kPanelColumns * kTileBytes;  // bytes of a panel for 64 bytes of k

struct alignas(64) TileBlock {
    int64_t steps;  // of 64 bytes of k
    const void* a;
    int64_t a_row;  // bytes
    const void* b;
    void* c;  // words
    int64_t c_row;  // bytes
    bool load_c;
    const void* from = nullptr;  // if given: what c begins with, rows of the panel behind each other
    const char* ahead = nullptr;  // if given: fetched meanwhile, `lines` lines with each step
    int64_t lines = 0;
    int64_t b_row = 2 * kTileBytes, b_right = kTileBytes, b_step = kPanelStep;  // bytes; b_right: from tile to tile
};

#if defined(TW_TILES)
namespace {

TW_INLINE void fetch_ahead(const char*& at, int64_t lines) {
    for (int64_t l = 0; l < lines; ++l, at += 64) __builtin_prefetch(at);
}

struct Idle {
    __attribute__((always_inline)) void operator()(int64_t, int = 0) const {}
};

// beside(s) runs between the products of step s.
template <TileKind Kind, class Body = Idle>
__attribute__((noinline)) void multiply_tall(const TileBlock& t, const Body& beside = {}) {
    // Copies, for what a tile is stored to might be `t`.
    char* const c = static_cast<char*>(t.c);
    const int64_t steps = t.steps, a_row = t.a_row, c_row = t.c_row, lines = t.lines, a2 = kTileRows * a_row;
    const int64_t b_row = t.b_row, b_right = t.b_right, b_step = t.b_step;
    const char *a = static_cast<const char*>(t.a), *b = static_cast<const char*>(t.b), *ahead = t.ahead;
    char* const c2 = c + kTileRows * c_row;
    if (t.load_c) {
        const char* const from = t.from ? static_cast<const char*>(t.from) : c;
        const int64_t row = t.from ? 2 * kTileBytes : c_row;
        tile_load_once<0>(from, row), tile_load_once<1>(from + kTileBytes, row);
        tile_load_once<2>(from + kTileRows * row, row), tile_load_once<3>(from + kTileRows * row + kTileBytes, row);
    } else {
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    }
    for (int64_t s = 0; s < steps; ++s, a += kTileBytes, b += b_step) {
        tile_load_once<6>(b, b_row), tile_load<4>(a, a_row);
        tile_dot<Kind, 0, 4, 6>();
        tile_load_once<7>(b + b_right, b_row);
        tile_dot<Kind, 1, 4, 7>();
        beside(s);
        tile_load<5>(a + a2, a_row);
        tile_dot<Kind, 2, 5, 6>();
        tile_dot<Kind, 3, 5, 7>();
        fetch_ahead(ahead, lines);
    }
    tile_store<0>(c, c_row), tile_store<1>(c + kTileBytes, c_row);
    tile_store<2>(c2, c_row), tile_store<3>(c2 + kTileBytes, c_row);
}

template <TileKind Kind>
__attribute__((noinline)) void multiply_low(const TileBlock& t) {
    typedef Vec<int32_t> Ints;
    char* const c = static_cast<char*>(t.c);
    const int64_t steps = t.steps, a_row = t.a_row, c_row = t.c_row, lines = t.lines;
    const char *a = static_cast<const char*>(t.a), *b = static_cast<const char*>(t.b), *ahead = t.ahead;
    const int64_t b_row = t.b_row, b_right = t.b_right, b_step = t.b_step;
    const char* const from = t.from ? static_cast<const char*>(t.from) : c;
    const int64_t row = t.from ? 2 * kTileBytes : c_row;
    if (t.load_c)
        tile_load<0>(from, row), tile_load<1>(from + kTileBytes, row);
    else
        tile_zero<0>(), tile_zero<1>();
    tile_zero<2>(), tile_zero<3>();
    int64_t s = 0;
    for (; s + 2 <= steps; s += 2, a += 2 * kTileBytes, b += 2 * b_step) {
        tile_load<4>(a, a_row), tile_load<6>(b, b_row);
        tile_dot<Kind, 0, 4, 6>();
        tile_load<7>(b + b_right, b_row);
        tile_dot<Kind, 1, 4, 7>();
        fetch_ahead(ahead, lines);
        tile_load<5>(a + kTileBytes, a_row), tile_load<6>(b + b_step, b_row);
        tile_dot<Kind, 2, 5, 6>();
        tile_load<7>(b + b_step + b_right, b_row);
        tile_dot<Kind, 3, 5, 7>();
        fetch_ahead(ahead, lines);
    }
    if (s < steps) {
        tile_load<4>(a, a_row), tile_load<6>(b, b_row);
        tile_dot<Kind, 0, 4, 6>();
        tile_load<7>(b + b_right, b_row);
        tile_dot<Kind, 1, 4, 7>();
    }
    tile_store<0>(c, c_row), tile_store<1>(c + kTileBytes, c_row);
    if (steps < 2) return;
    alignas(64) int32_t odd[kTileRows * kPanelColumns];
    tile_store<2>(odd, 2 * kTileBytes), tile_store<3>(odd + kTileRows, 2 * kTileBytes);
    for (int i = 0; i < kTileRows; ++i)
        for (int j = 0; j < kPanelColumns; j += kLanes<int32_t>) {
            int32_t* const at = reinterpret_cast<int32_t*>(c + i * c_row) + j;
            const Ints x = load(at), y = load(odd + i * kPanelColumns + j);
            if constexpr (kSumsFloats<Kind>)
                store(at, bitcast<Ints>(bitcast<f32v>(x) + bitcast<f32v>(y)));
            else
                store(at, bitcast<Ints>(bitcast<u32v>(x) + bitcast<u32v>(y)));
        }
}

// Rows up to a multiple of 16 are read and written. Between tiles_begin() and tiles_end().
template <TileKind Kind>
TW_INLINE void multiply_tiles(const TileBlock& t, int rows) {
    rows > kTileRows ? multiply_tall<Kind>(t) : multiply_low<Kind>(t);
}

}  // namespace
#endif

}  // namespace tw::TW_ISA
