// A piece of an 8-bit picture, laid out so that the four pixels around a place are one word of 32 bits.
//
//     pairs (y, x)     pixel (y, x) in the low byte and (y + 1, x) in the high one, each less 128, 16 bits apart
//     word (y, x)      pairs (y, x) and (y, x + 1)
//
// Pixels outside of the picture are `border`, so that whoever reads a word need not ask.
#pragma once
#include "image/rows.h"
#include "simd/fetch.h"

namespace tw::TW_ISA {
namespace {

constexpr int kPlaceBits = 7;  // places are in 1/128 pixel,
constexpr int kFineBits = 16;  // those in a piece in 1/2^23
constexpr int64_t kMostAcross = 384, kMostPairs = 32768;

template <class T>
struct SourceOf {
    const T* data;
    int64_t height, width, row, column;
    T border;
};

// Rows y to y + rows - 1 and columns x to x + columns - 1 of words.
struct Piece {
    int64_t y, x, rows, columns;
};
TW_INLINE int64_t pitch_of(const Piece& p) {
    constexpr int64_t lanes = kLanes<int16_t>;
    return (p.columns + lanes) / lanes * lanes;  // a pair more than columns, at least
}
TW_INLINE bool is_small(const Piece& p) {
    return p.rows <= kMostAcross && p.columns < kMostAcross && p.rows * pitch_of(p) <= kMostPairs;
}

class Quads {
public:
    static constexpr int64_t kPitch = kMostAcross + kMargin;
    static constexpr int64_t kBytes = 2 * kMostPairs + 2 * kPitch;

    // memory has kBytes.
    explicit Quads(uint8_t* memory) : pairs_(reinterpret_cast<uint16_t*>(memory)), rows_(memory + 2 * kMostPairs) {}

    void take(const SourceOf<uint8_t>& s, const Piece& piece) {
        const int64_t pitch = pitch_of(piece);
        pitch_ = splat(static_cast<uint32_t>(pitch));
        last_ = splat(static_cast<uint32_t>(piece.rows * pitch - 2));
        const uint8_t* above = pixels(s, piece.y, piece.x, pitch);
        uint16_t* to = pairs_;
        for (int64_t y = piece.y + 1; y <= piece.y + piece.rows; ++y, to += pitch) {
            prefetch(s, y + kRowsAhead, piece.x, pitch);
            const uint8_t* const below = pixels(s, y, piece.x, pitch);
            for (int64_t x = 0; x < pitch; x += kLanes<int16_t>) {
                const Vec<uint16_t> high = bitcast<Vec<uint16_t>>(load_pixels(below + x)) << 8;
                store(to + x, (bitcast<Vec<uint16_t>>(load_pixels(above + x)) | high) ^ splat<uint16_t>(0x8080));
            }
            above = below;
        }
    }

    // Which words the places in the piece are in; of places elsewhere any.
    TW_INLINE u32v words_at(const Quads& q, u32v x, u32v y) {
        constexpr int whole = kPlaceBits + kFineBits;
        const i32v rows = dot_pairs(bitcast<i16v>(y >> whole), bitcast<i16v>(q.pitch_));  // quicker than products
        return min_any(bitcast<u32v>(rows) + (x >> whole), q.last_);
    }

    // The mixtures of pixels around places in these words.
    TW_INLINE i32v mixed(const Quads& q, const uint32_t* at, u32v x, u32v y) {
        const Vec<int8_t> words = bitcast<Vec<int8_t>>(load_words_at(q.pairs_, at));
        // 128 - part and part of every two lanes.
        const u8v down =
            ((third_bytes(y) & 127) ^ bitcast<u8v>(splat<uint16_t>(255))) + bitcast<u8v>(splat<uint16_t>(129));
        const i16v along = ((upper_halves(x) & 127) ^ bitcast<i16v>(splat(0xffff))) + bitcast<i16v>(splat(129));
        return (dot_pairs(dot_bytes(down, words), along) + ((128 << 14) + (1 << 13))) >> 14;
    }

private:
    static constexpr int64_t kRowsAhead = 12;  // no pattern that the processor knows leads from row to row

    TW_INLINE void prefetch(const SourceOf<uint8_t>& s, int64_t y, int64_t x, int64_t n) {
        const int64_t first = x < 0 ? 0 : x, last = x + n < s.width ? x + n : s.width;
        if (y < 0 || y >= s.height || first >= last) return;
        __builtin_prefetch(s.data + y * s.row + first * s.column);
        __builtin_prefetch(s.data + y * s.row + (last - 1) * s.column);
    }

    // n pixels of row y from column x on: where they lie, or with border around them.
    const uint8_t* pixels(const SourceOf<uint8_t>& s, int64_t y, int64_t x, int64_t n) {
        const bool is_row = y >= 0 && y < s.height;
        const int64_t first = x < 0 ? 0 : x, last = x + n < s.width ? x + n : s.width;
        const uint8_t* const from = s.data + (is_row ? y * s.row : 0);
        if (is_row && s.column == 1 && first == x && last == x + n) return from + x;
        uint8_t* const to = rows_ + (y & 1) * kPitch;
        __builtin_memset(to, s.border, static_cast<size_t>(n));
        if (is_row && first < last) copy_row(to + (first - x), from + first * s.column, s.column, last - first);
        return to;
    }

    uint16_t* const pairs_;
    uint8_t* const rows_;
    u32v pitch_, last_;
};

}  // namespace
}  // namespace tw::TW_ISA
