// Hysteresis: weak pixels that touch a strong one, directly or through other weak ones, become strong. 8-connected.
//
// Method    a pixel is a bit. Rows hand what is strong down, then up, several words at a time and a few pixels along; that
//           is most of it. What is left is flooded: a word of 64 pixels is filled along its row at once; its neighbours
//           take what touches them and wait on a stack, each at most once. Bands are flooded by themselves, then across
//           their borders.
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
    int64_t pitch;  // from one row to the next; what lies between, and before the first one, is 0
};

TW_INLINE int64_t edge_map_bytes(int64_t height, int64_t words) { return (height * (words + 1) + 1) * (8 + 8 + 4 + 1); }

TW_INLINE EdgeMap edge_map_at(void* memory, int64_t height, int64_t words) {
    const int64_t pitch = words + 1, n = height * pitch + 1;
    auto* weak = static_cast<uint64_t*>(memory);
    auto* stack = reinterpret_cast<uint32_t*>(weak + 2 * n);
    const EdgeMap map = {weak + 1, weak + n + 1, stack, reinterpret_cast<uint8_t*>(stack + n), height, words, pitch};
    __builtin_memset(map.waits, 0, static_cast<size_t>(n));
    for (int64_t y = 0; y <= height; ++y) map.weak[y * pitch - 1] = map.strong[y * pitch - 1] = 0;
    return map;
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

typedef Vec<uint64_t> Words;

// Pixels of words, and those beside them.
TW_INLINE Words widened(const uint64_t* at) {
    const Words s = load(at);
    return s | s << 1 | s >> 1 | load(at - 1) >> 63 | load(at + 1) << 63;
}

// Seeds, and up to 7 pixels on either side of their runs of `open`.
TW_INLINE Words grown(Words seeds, Words open) {
    Words up = seeds, down = seeds, open_up = open, open_down = open;
#pragma GCC unroll 3
    for (int step = 1; step < 8; step *= 2) {
        up |= up << step & open_up;
        down |= down >> step & open_down;
        open_up &= open_up << step;
        open_down &= open_down >> step;
    }
    return up | down;
}

class Flood {
public:
    Flood(const EdgeMap& map, int64_t first, int64_t last)
        : m_(map), first_(first), last_(last), stack_(map.stack + first * map.pitch) {}

    // All of the band, from its strong pixels on.
    void run() {
        const int64_t begin = first_ * m_.pitch, end = last_ * m_.pitch, pitch = m_.pitch;
        for (int64_t at = begin + pitch; at + L < end; at += L) hand(at, -pitch);
        for (int64_t at = end - pitch - 1 - L; at >= begin; at -= L) hand(at, pitch);
        int64_t at = begin + pitch;
        row(first_);
        for (; at + L < end - pitch; at += L) {
            const Words touched =
                            widened(m_.strong + at - pitch) | widened(m_.strong + at) | widened(m_.strong + at + pitch),
                        added = touched & load(m_.weak + at) & ~load(m_.strong + at);
            if (!any(added != 0)) continue;
            uint64_t word[L];
            store(word, added);
            for (int64_t k = 0; k < L; ++k) flood(at + k, word[k]);
        }
        for (; at < end - pitch; ++at) look(at, true, true);
        if (last_ - first_ > 1) row(last_ - 1);
    }

    // What rows y - 1 and y hand each other.
    void join(int64_t y) {
        row(y - 1);
        row(y);
    }

private:
    static constexpr int64_t L = kLanes<uint64_t>;

    // Words from `at` on take what is strong beside them in their own row and in the one `other` words on.
    void hand(int64_t at, int64_t other) {
        const Words weak = load(m_.weak + at), strong = load(m_.strong + at);
        const Words seeds = (widened(m_.strong + at) | widened(m_.strong + at + other)) & weak;
        if (any((seeds & ~strong) != 0)) store(m_.strong + at, grown(seeds, weak));
    }

    void row(int64_t y) {
        for (int64_t i = 0; i < m_.words; ++i) look(y * m_.pitch + i, y > first_, y + 1 < last_);
    }

    void look(int64_t at, bool up, bool down) {
        if (!(m_.weak[at] & ~m_.strong[at])) return;
        const uint64_t* const here = m_.strong + at;
        const uint64_t *const above = up ? here - m_.pitch : here, *const below = down ? here + m_.pitch : here;
        const auto column = [&](int64_t i) __attribute__((always_inline)) { return above[i] | here[i] | below[i]; };
        const uint64_t s = column(0);
        flood(at, s | s << 1 | s >> 1 | column(-1) >> 63 | column(1) << 63);
    }

    void flood(int64_t at, uint64_t touched) {
        take(at, touched);
        while (depth_) {
            const int64_t next = stack_[--depth_];
            m_.waits[next] = 0;
            spread(next);
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
        const uint64_t s = m_.strong[at] = filled(m_.strong[at], m_.weak[at]);
        const uint64_t beside = s | s << 1 | s >> 1;
        const bool up = at >= (first_ + 1) * m_.pitch, down = at < (last_ - 1) * m_.pitch;
        if (up) take(at - m_.pitch, beside);
        if (down) take(at + m_.pitch, beside);
        if (s & 1) take_column(at - 1, uint64_t{1} << 63, up, down);
        if (s >> 63) take_column(at + 1, 1, up, down);
    }

    void take_column(int64_t at, uint64_t bit, bool up, bool down) {
        take(at, bit);
        if (up) take(at - m_.pitch, bit);
        if (down) take(at + m_.pitch, bit);
    }

    const EdgeMap m_;
    const int64_t first_, last_;
    uint32_t* const stack_;
    int64_t depth_ = 0;
};

// Row y as bytes, 255 on edges.
TW_INLINE void write_edges(const EdgeMap& m, int64_t y, int64_t width, uint8_t* to, int64_t step) {
    constexpr int64_t lanes = kLanes<uint8_t>;
    const uint64_t* const row = m.strong + y * m.pitch;
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
