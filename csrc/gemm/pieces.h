// Products of float numbers on tiles of bf16: each number is the exact sum of pieces of 8 bits, three for float, two for f16.
//
//   a = a1 + a2 + a3     a b ~ a1 b1 + (a1 b2 + a2 b1) + (a1 b3 + a2 b2 + a3 b1)      |ai| <= 2^-8 |a(i-1)|
//
// Method    A lies as [step of 32 terms][piece][32 rows][32 bf16], B as [step][piece][16][32 words]. Word w of a row or a
//           column holds terms w and w + 16 of a step, so that both are split by whole vectors and nothing is woven.
//           (Henry, Tang, Heinecke: Leveraging the bfloat16 artificial intelligence datatype for higher-precision
//           computations, 2019.)
// Numerics  products of pieces are exact; those left out are at most 2^-23 |a b|, a unit of a float product, and none where
//           a float holds the product. Inputs whose exponents `ranges_fit` refuses (infinities, NaN, numbers so small
//           that a piece or a product would be denormal, which tiles take for zero) are multiplied as the tier below does.
#pragma once
#include "gemm/tiles.h"
#include "simd/convert.h"

namespace tw::TW_ISA {

constexpr int64_t kPieceTerms = 32;  // of a step
constexpr int64_t kPieceBytes = kTallRows * kTileBytes;  // of 32 rows of A, or a panel of B, a step and a piece
static_assert(kPieceBytes == kPanelStep);

// The exponents of the numbers of an operand other than zero, as floats store them: 1 to 254 where all are ordinary.
struct ExponentRange {
    int least = 255, most = 0;
    bool rest = false;  // whether a second piece is not zero: this and `most` are all that is known of numbers in two
};

// Whether pieces multiply two such operands over k terms as well as float does.
inline bool ranges_fit(const ExponentRange& a, const ExponentRange& b, int64_t k) {
    const int depth = 64 - __builtin_clzll(static_cast<uint64_t>(k | 1));
    return a.least >= 27 && b.least >= 27 && a.least + b.least - 2 * 127 >= -100 && a.most < 254 && b.most < 254 &&
           a.most + b.most - 2 * 127 + depth + 2 < 127;
}

namespace {

typedef Vec<uint16_t> Halves;

// Finds the exponents of bf16 numbers.
struct Exponents {
    Halves least = ~Halves{}, most{};
    u32v left{};  // whose lower halves only numbers too small to be seen fill

    __attribute__((always_inline)) void see(Halves x) {
        const Halves doubled = x << 1, below = doubled - static_cast<uint16_t>(1);  // zero becomes the largest
        most = doubled > most ? doubled : most;
        least = below < least ? below : least;
    }
    // A power of two counts as the number below it, from which it may have been rounded.
    ExponentRange range() const {
        const Halves lost = bitcast<Halves>((left & 0xffffu) != 0 ? ~u32v{} : u32v{});
        return {reduce_min(least & ~lost) >> 8, reduce_max(most) >> 8};
    }
};

// The same of numbers in two pieces.
struct TwoPieces {
    Halves most{};
    u32v rest{};

    __attribute__((always_inline)) void see(const u32v (&words)[2]) {
        const Halves doubled = bitcast<Halves>(words[0]) << 1;
        most = doubled > most ? doubled : most;
        rest |= words[1];
    }
    ExponentRange range() const {
        ExponentRange r;
        for (int i = 0; i < kLanes<uint16_t>; ++i) r.most = most[i] >> 8 > r.most ? most[i] >> 8 : r.most;
        for (int i = 0; i < kLanes<uint32_t>; ++i) r.rest |= (rest[i] & 0x7fff7fffu) != 0;
        return r;
    }
};
template <int P>
struct SeenOf {
    typedef Exponents Type;
};
template <>
struct SeenOf<2> {
    typedef TwoPieces Type;
};
template <int P>
using Seen = typename SeenOf<P>::Type;

TW_INLINE void join(ExponentRange& r, const ExponentRange& other) {
    r.rest |= other.rest;
    r.least = other.least < r.least ? other.least : r.least;
    r.most = other.most > r.most ? other.most : r.most;
}

// Several threads join what they saw.
TW_INLINE void join_shared(ExponentRange& to, const ExponentRange& own) {
    for (int was = __atomic_load_n(&to.least, __ATOMIC_RELAXED); own.least < was;)
        if (__atomic_compare_exchange_n(&to.least, &was, own.least, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
    for (int was = __atomic_load_n(&to.most, __ATOMIC_RELAXED); own.most > was;)
        if (__atomic_compare_exchange_n(&to.most, &was, own.most, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
}

}  // namespace

#if defined(TW_TILES)
namespace {

// Words of (x, y): the pieces of x in the low halves, those of y in the high ones. The first piece is rounded, so that the
// rest has either sign; a NaN whose first piece is none has one in its second.
template <int P>
TW_INLINE void split_words(f32v& x, f32v& y, u32v (&words)[P]) {
    for (int p = 0; p < P; ++p) {
        u32v low = bitcast<u32v>(x), high = bitcast<u32v>(y);
        if (p + 1 < P) {
            if (p == 0) low += 0x8000u, high += 0x8000u;
            low &= 0xffff0000u, high &= 0xffff0000u;
            x -= bitcast<f32v>(low), y -= bitcast<f32v>(high);
        }
        words[p] = (low >> 16) | (high & 0xffff0000u);
    }
}
// All of them: nothing is left behind the last.
template <int P>
TW_INLINE void split_pairs(f32v x, f32v y, u32v (&words)[P], Seen<P>& seen) {
    split_words(x, y, words);
    if constexpr (P == 2) {
        seen.see(words);
    } else {
        seen.see(bitcast<Halves>(words[0]));
        seen.left |= bitcast<u32v>(x) | bitcast<u32v>(y);
    }
}

}  // namespace

// What one product needs, and where the next will begin: its first step is fetched with the last of this one. Between
// products only what changes is written, as what was written wider than it is read may wait for all tiles before it.
struct alignas(64) PieceBlock {
    int64_t steps;
    const void *a, *b;
    float* c;
    int64_t c_row;
    bool load_c;
    const void *next_a = nullptr, *next_b = nullptr;
    int64_t a_row = kTileBytes, a_step = 0;  // bytes, where A lies in place; a_step 0: packed
    float* to = nullptr;  // if given, what becomes of c goes there
    int64_t to_row = 0;
    int64_t a_piece = kPieceBytes, b_row = 2 * kTileBytes, b_piece = kPieceBytes;  // bytes, in place
    const int64_t* b_at = nullptr;  // if given: where each step of B lies, from b on
};

namespace {

// c (32 x 32 floats, or 16 x 32) = or += the steps of a by those of a panel b. Between tiles_begin() and tiles_end().
// Loads stand between products, and one operand changes at a time. with_part(s, i) runs beside quarter i of the
// products of step s. `Once`: b comes from L2, and next_a and next_b do not matter.
template <int P, bool Tall, bool Once = false, class Body>
__attribute__((noinline)) void multiply_steps(const PieceBlock& t, const Body& with_part) {
    constexpr int64_t step = P * kPieceBytes;
    const int64_t steps = t.steps, a_row = t.a_row, a_piece = t.a_piece, a_step = t.a_step ? t.a_step : step,
                  half = kTileRows * a_row;
    const int64_t c_row = 4 * t.c_row, to_row = t.to ? 4 * t.to_row : c_row;
    const char *const top = reinterpret_cast<const char*>(t.c), *const low = top + kTileRows * c_row;
    char *const to_top = reinterpret_cast<char*>(t.to ? t.to : t.c), *const to_low = to_top + kTileRows * to_row;
    if (t.load_c) {
        tile_load<0>(top, c_row), tile_load<1>(top + kTileBytes, c_row);
        if (Tall) tile_load<2>(low, c_row), tile_load<3>(low + kTileBytes, c_row);
    } else {
        tile_zero<0>(), tile_zero<1>();
        if (Tall) tile_zero<2>(), tile_zero<3>();
    }
    const char *a = static_cast<const char*>(t.a), *b = static_cast<const char*>(t.b);
    const char *const b0 = b, *fetch_a = a, *fetch_b = b;
    const int64_t b_row = t.b_row, b_piece = t.b_piece;
    const int64_t* const b_at = t.b_at;
    const auto a_top = [&](int piece) { tile_load<4>(a + piece * a_piece, a_row); };
    const auto a_low = [&](int piece) {
        if (Tall) tile_load<5>(a + piece * a_piece + half, a_row);
    };
    const auto b_left = [&](int piece) {
        const char* const at = b + piece * b_piece;
        Once ? tile_load_once<6>(at, b_row) : tile_load<6>(at, b_row);
    };
    const auto b_right = [&](int piece) {
        const char* const at = b + piece * b_piece + kTileBytes;
        Once ? tile_load_once<7>(at, b_row) : tile_load<7>(at, b_row);
    };
    const auto dot_0 = [] { tile_dot<TileKind::bf16, 0, 4, 6>(); };
    const auto dot_1 = [] { tile_dot<TileKind::bf16, 1, 4, 7>(); };
    const auto dot_2 = [] {
        if (Tall) tile_dot<TileKind::bf16, 2, 5, 6>();
    };
    const auto dot_3 = [] {
        if (Tall) tile_dot<TileKind::bf16, 3, 5, 7>();
    };
    // A quarter of a piece of each operand; one piece of A alone stays in L1. The last number of a tile's row, for it may
    // begin a line.
    int fetched = 0;
    const auto fetch = [&] {
        for (int line = 0; !Once && line < 8; ++line) {
            if (P > 1) __builtin_prefetch(fetch_a + kTileBytes - 2), fetch_a += a_row;
            __builtin_prefetch(fetch_b + (line % 2 + 1) * kTileBytes - 2), fetch_b += line % 2 ? b_row : 0;
        }
        if (++fetched % 4 == 0) fetch_a += a_piece - 2 * half, fetch_b += b_piece - kTileRows * b_row;
    };
    for (int64_t s = 0; s < steps; ++s, a += a_step, b += step) {
        const bool last = s + 1 == steps;
        if (b_at) b = b0 + b_at[s];
        fetch_a = last ? static_cast<const char*>(t.next_a) : a + a_step;
        fetch_b = last ? static_cast<const char*>(t.next_b) : b_at ? b0 + b_at[s + 1] : b + step;
        fetched = 0;
        with_part(s, 0);
        if constexpr (P == 3) {
            b_left(0), a_top(2), dot_0(), fetch(), b_right(0), dot_1(), a_low(2), dot_2(), fetch(), dot_3();
            a_top(0), dot_0(), dot_1(), with_part(s, 1), fetch(), a_low(0), dot_2(), dot_3(), fetch();
            a_top(1), dot_0(), fetch(), a_low(1), dot_2(), fetch(), dot_1(), dot_3(), with_part(s, 2);
            b_left(1), dot_0(), fetch(), b_right(1), dot_1(), dot_2(), fetch(), dot_3(), with_part(s, 3);
            a_top(0), dot_0(), fetch(), a_low(0), dot_2(), fetch(), dot_1(), dot_3();
            b_left(2), dot_0(), fetch(), dot_2(), b_right(2), dot_1(), fetch(), dot_3();
        } else if constexpr (P == 2) {
            b_left(1), a_top(1), dot_0(), fetch(), a_low(1), dot_2(), fetch(), b_right(1), dot_1(), dot_3();
            with_part(s, 1), b_left(0), dot_0(), fetch(), b_right(0), dot_1(), dot_2(), fetch(), dot_3();
            with_part(s, 2), a_top(0), dot_0(), fetch(), a_low(0), dot_2(), fetch(), dot_1(), dot_3(), with_part(s, 3);
            b_left(1), dot_0(), fetch(), dot_2(), b_right(1), dot_1(), fetch(), dot_3();
        } else {
            b_left(0), a_top(0), dot_0(), fetch(), with_part(s, 1), b_right(0), dot_1(), fetch(), with_part(s, 2);
            a_low(0), dot_2(), fetch(), with_part(s, 3), dot_3(), fetch();
        }
    }
    tile_store<0>(to_top, to_row), tile_store<1>(to_top + kTileBytes, to_row);
    if (Tall) tile_store<2>(to_low, to_row), tile_store<3>(to_low + kTileBytes, to_row);
}

// The first 16 or all 32 rows.
template <int P, bool Once = false, class Body = Idle>
TW_INLINE void multiply_pieces(const PieceBlock& t, int64_t rows, const Body& with_part = {}) {
    rows > kTileRows ? multiply_steps<P, true, Once>(t, with_part) : multiply_steps<P, false, Once>(t, with_part);
}

// 32 rows of A in two pieces, or 16, by panels of B, for results of 16 bits.
struct PanelRow {
    int64_t steps, panels;
    const char *a, *b;
    int64_t b_panel;  // bytes from panel to panel
    float* c;  // of each panel 32 x 32, one behind the other
    bool load_c;
    bool a_rest, b_rest;  // whether any second piece is not zero
};

// Without the products of two second pieces, and of second pieces that are zero. with_part() runs beside each step,
// after(p) behind each panel. What the next panel needs first is loaded before the sums are stored, for a load waits for
// stores before it that end in the same 12 bits.
template <bool Tall, class Body, class After>
__attribute__((noinline)) void multiply_panels(const PanelRow& t, const Body& with_part, const After& after) {
    constexpr int64_t step = 2 * kPieceBytes, half = kPieceBytes / 2, c_row = kPanelColumns * sizeof(float);
    const int64_t steps = t.steps, panels = t.panels, b_panel = t.b_panel, lead = t.a_rest ? kPieceBytes : 0;
    const bool load_c = t.load_c, a_rest = t.a_rest, b_rest = t.b_rest;
    const char *const a_first = t.a, *const b_first = t.b, *a = a_first, *b = b_first;
    char* c = reinterpret_cast<char*>(t.c);
    const auto a_top = [&](int64_t piece) { tile_load<4>(a + piece, kTileBytes); };
    const auto a_low = [&](int64_t piece) {
        if (Tall) tile_load<5>(a + piece + half, kTileBytes);
    };
    const auto b_left = [&](int64_t piece) { tile_load_once<6>(b + piece, 2 * kTileBytes); };
    const auto b_right = [&](int64_t piece) { tile_load_once<7>(b + piece + kTileBytes, 2 * kTileBytes); };
    const auto dot_0 = [] { tile_dot<TileKind::bf16, 0, 4, 6>(); };
    const auto dot_1 = [] { tile_dot<TileKind::bf16, 1, 4, 7>(); };
    const auto dot_2 = [] {
        if (Tall) tile_dot<TileKind::bf16, 2, 5, 6>();
    };
    const auto dot_3 = [] {
        if (Tall) tile_dot<TileKind::bf16, 3, 5, 7>();
    };
    b_left(0), a_top(lead), b_right(0), a_low(lead);
    for (int64_t p = 0; p < panels; ++p, c += kTallRows * c_row) {
        char* const low = c + kTileRows * c_row;
        if (load_c) {
            tile_load<0>(c, c_row), tile_load<1>(c + kTileBytes, c_row);
            if (Tall) tile_load<2>(low, c_row), tile_load<3>(low + kTileBytes, c_row);
        } else {
            tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
        }
        for (int64_t s = 0; s < steps; ++s) {
            dot_0(), dot_1(), dot_2(), dot_3();
            with_part();
            if (a_rest) a_top(0), dot_0(), dot_1(), a_low(0), dot_2(), dot_3();
            if (b_rest) b_left(kPieceBytes), dot_0(), dot_2(), b_right(kPieceBytes), dot_1();
            // The last panel has none behind it: its own is as good.
            if (s + 1 < steps)
                a += step, b += step;
            else
                a = a_first, b = b_first + (p + 1 < panels ? p + 1 : p) * b_panel;
            b_left(0), a_top(lead);
            if (b_rest) dot_3();
            b_right(0), a_low(lead);
        }
        tile_store<0>(c, c_row), tile_store<1>(c + kTileBytes, c_row);
        if (Tall) tile_store<2>(low, c_row), tile_store<3>(low + kTileBytes, c_row);
        after(p);
    }
}

}  // namespace

// Floats, compiled once (gemm/tile_products.cc).
void multiply_floats(const PieceBlock& t, int64_t rows);
void split_floats_left(const float* from, int64_t row, int64_t col, int64_t rows, int64_t k, char* to,
                       ExponentRange& range);
#endif

}  // namespace tw::TW_ISA
