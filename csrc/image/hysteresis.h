// Hysteresis: weak pixels that touch a strong one, directly or through other weak ones, become strong. 8-connected.
//
// Method    a pixel is a bit. A word of 64 pixels is filled along its row at once; its neighbours take what touches them
//           and wait on a stack, each at most once. Only words beside a strong pixel are ever looked at twice. Bands are
//           flooded by themselves, then across their borders.
// Threads   the result is a closure, so neither the bands nor the order changes a bit.
#pragma once
#include "simd/bits.h"

namespace tw::TW_ISA {
namespace {

struct EdgeMap {
    uint64_t* weak;  // all candidates, strong ones included
    uint64_t* strong;  // grows
    uint32_t* stack;  // as many entries as there are words
    uint8_t* waits;  // whether a word is on the stack
    int64_t height, words;  // words in a row
};

TW_INLINE int64_t edge_map_bytes(int64_t height, int64_t words) { return height * words * (8 + 8 + 4 + 1); }

TW_INLINE EdgeMap edge_map_at(void* memory, int64_t height, int64_t words) {
    const int64_t n = height * words;
    auto* weak = static_cast<uint64_t*>(memory);
    auto* stack = reinterpret_cast<uint32_t*>(weak + 2 * n);
    return {weak, weak + n, stack, reinterpret_cast<uint8_t*>(stack + n), height, words};
}

// All of each run of `open` that holds a seed. A sum carries upwards from the lowest seed to the end of its run.
TW_INLINE uint64_t filled(uint64_t seeds, uint64_t open) {
    uint64_t run = open & (~(open + seeds) | seeds);
    if (!(run >> 1 & open & ~run)) return run;
#pragma GCC unroll 6
    for (int step = 1; step < 64; step *= 2) {
        run |= run >> step & open;
        open &= open >> step;
    }
    return run;
}

class Flood {
public:
    Flood(const EdgeMap& map, int64_t first, int64_t last)
        : m_(map), first_(first), last_(last), stack_(map.stack + first * map.words) {}

    // All of the band, from its strong pixels on.
    void run() {
        for (int64_t y = first_; y < last_; ++y) row(y);
    }

    // What rows y - 1 and y hand each other.
    void join(int64_t y) {
        row(y - 1);
        row(y);
    }

private:
    // A word and the pixels to both sides of it, each spread by one pixel along the row.
    uint64_t widened(const uint64_t* strong, int64_t i) const {
        const uint64_t s = strong[i];
        uint64_t wide = s | s << 1 | s >> 1;
        if (i > 0) wide |= strong[i - 1] >> 63;
        if (i + 1 < m_.words) wide |= strong[i + 1] << 63;
        return wide;
    }

    void row(int64_t y) {
        const int64_t words = m_.words;
        const uint64_t* const here = m_.strong + y * words;
        const uint64_t* const above = y > first_ ? here - words : here;
        const uint64_t* const below = y + 1 < last_ ? here + words : here;
        for (int64_t i = 0; i < words; ++i) {
            const int64_t at = y * words + i;
            const uint64_t open = m_.weak[at] & ~m_.strong[at];
            if (!open) continue;
            take(at, widened(above, i) | widened(here, i) | widened(below, i));
            while (depth_) {
                const int64_t next = stack_[--depth_];
                m_.waits[next] = 0;
                spread(next);
            }
        }
    }

    void take(int64_t at, uint64_t touched) {
        const uint64_t added = touched & m_.weak[at] & ~m_.strong[at];
        if (!added) return;
        m_.strong[at] |= added;
        if (m_.waits[at]) return;
        m_.waits[at] = 1;
        stack_[depth_++] = static_cast<uint32_t>(at);
    }

    void spread(int64_t at) {
        const int64_t y = at / m_.words, i = at % m_.words;
        const uint64_t s = m_.strong[at] = filled(m_.strong[at], m_.weak[at]);
        const uint64_t beside = s | s << 1 | s >> 1;
        const bool up = y > first_, down = y + 1 < last_;
        if (up) take(at - m_.words, beside);
        if (down) take(at + m_.words, beside);
        if (s & 1 && i > 0) take_column(at - 1, uint64_t{1} << 63, up, down);
        if (s >> 63 && i + 1 < m_.words) take_column(at + 1, 1, up, down);
    }

    void take_column(int64_t at, uint64_t bit, bool up, bool down) {
        take(at, bit);
        if (up) take(at - m_.words, bit);
        if (down) take(at + m_.words, bit);
    }

    const EdgeMap m_;
    const int64_t first_, last_;
    uint32_t* const stack_;
    int64_t depth_ = 0;
};

// Row y as bytes, 255 on edges.
TW_INLINE void write_edges(const EdgeMap& m, int64_t y, int64_t width, uint8_t* to, int64_t step) {
    constexpr int64_t lanes = kLanes<uint8_t>;
    const uint64_t* const row = m.strong + y * m.words;
    if (step != 1) {
        for (int64_t x = 0; x < width; ++x) to[x * step] = row[x / 64] >> x % 64 & 1 ? 255 : 0;
        return;
    }
    int64_t x = 0;
    for (; x + lanes <= width; x += lanes) store(to + x, bytes_of_bits(row[x / 64] >> x % 64));
    if (x < width) store_n(to + x, bytes_of_bits(row[x / 64] >> x % 64), width - x);
}

}  // namespace
}  // namespace tw::TW_ISA
