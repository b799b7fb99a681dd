// Method    from the steepest anchor on, a walk goes both ways along the edge: at each pixel to the steepest of the three
//           neighbours its heading points at, until the gradient is too small, turns back, or the pixel is drawn already.
//           A heading has the brighter side on its right, so that a walk never has to choose between two ways; what it
//           leaves beside it is drawn from anchors of its own.
// Threads   one: a walk depends on those before it. Anchors of one size go in the order of rows, so the result is one.
// Source    C. Topal, C. Akinlar, "Edge Drawing: a combined real-time edge and segment detector", 2012.
#include "lines/route.h"

#include <algorithm>
#include <cstring>

namespace tw::lines {
namespace {

constexpr int kSizes = 2048;
constexpr int64_t kAhead = 8;  // anchors between asking for one and looking at it

// A step ahead and one to the side, by heading: in places, and in pixels as one number.
struct Steps {
    int64_t ahead[4], side[4], ahead_pixel[4], side_pixel[4];
};

// x in the lower half, y in the upper one. Both stay positive, so that no sum borrows.
constexpr int64_t packed(int64_t x, int64_t y) { return x + y * (int64_t{1} << 32); }

// Forward is the way of the headings, -1 against it.
Steps steps_of(int64_t width, int forward) {
    Steps s;
    constexpr int x[] = {1, 0, -1, 0}, y[] = {0, 1, 0, -1};
    for (int h = 0; h < 4; ++h) {
        s.ahead[h] = forward * (y[h] * width + x[h]);
        s.ahead_pixel[h] = packed(forward * x[h], forward * y[h]);
        s.side[h] = h & 1 ? 1 : width;
        s.side_pixel[h] = h & 1 ? packed(1, 0) : packed(0, 1);
    }
    return s;
}

// Writes the pixels after `from`, at place `at`, to `out`, and gives how many. The rim is 0, so that no step leaves the
// picture. While the heading stays, which it mostly does, a step waits for three loads and two comparisons only.
int64_t walk(const Planes& p, const Steps& steps, int least, int64_t at, Pixel from, Pixel* out) {
    uint16_t* const strength = p.strength;
    int64_t n = 0, pixel = packed(from.x, from.y);
    int heading = strength[at] & kHeading;
    while (true) {
        const int64_t ahead = steps.ahead[heading], side = steps.side[heading];
        const int64_t ahead_pixel = steps.ahead_pixel[heading], side_pixel = steps.side_pixel[heading];
        int there;
        do {
            const uint16_t* const next = strength + at + ahead;
            __builtin_prefetch(next + 3 * ahead);
            // Of equals first the one ahead, then the one on the left. Signs as masks: no branch could be predicted.
            const int left = next[-side], right = next[side];
            there = next[0];
            const int64_t to_left = ((there & kSize) - (left & kSize)) >> 31;
            there ^= (there ^ left) & static_cast<int>(to_left);
            const int64_t to_right = ((there & kSize) - (right & kSize)) >> 31;
            there ^= (there ^ right) & static_cast<int>(to_right);
            at += ahead + (side & to_right) - (side & to_left & ~to_right);
            if ((there & kSize) < least || there & kDrawn || (there ^ heading) % 4 == 2) return n;
            strength[at] = static_cast<uint16_t>(there | kDrawn);
            pixel += ahead_pixel + (side_pixel & to_right) - (side_pixel & to_left & ~to_right);
            out[n++] = {static_cast<int32_t>(pixel), static_cast<int32_t>(pixel >> 32)};
        } while ((there & kHeading) == heading);
        heading = there & kHeading;
    }
}

struct Anchor {
    int32_t place, order;
};

// Anchors in falling order of size: a counting sort, rows in order within a size. Gives how many there are.
int64_t sorted_anchors(const Planes& p, const RouteOptions& options, int32_t* sorted) {
    const Buffer<Anchor> found(p.height * p.width);
    int64_t n = 0, first[kSizes + 1] = {};
    const auto look = [&](unsigned s, int64_t place) {
        const int size = (s & kSize) >> kSizeShift;
        found[n] = {static_cast<int32_t>(place), kSizes - 1 - size};
        const bool counts = size >= options.threshold;
        n += counts;
        first[kSizes - size] += counts;
    };
    // Four pixels in a word. Of a column that holds anchors of flat edges kAnchor is set.
    const int64_t whole = p.width / 4 * 4;
    Buffer<uint16_t> columns(p.width);
    for (int64_t x = 0; x < p.width; ++x) columns[x] = x % options.interval ? 0 : kAnchor;
    constexpr uint64_t anchors = kAnchor * 0x0001000100010001;
    for (int64_t y = 0; y < p.height; ++y) {
        const uint16_t* const row = p.strength + y * p.width;
        const bool holds_upright = y % options.interval == 0;
        for (int64_t x = 0; x < whole; x += 4) {
            uint64_t four, flat;
            std::memcpy(&four, row + x, sizeof four);
            std::memcpy(&flat, columns.data() + x, sizeof flat);
            const uint64_t upright = four << 2;
            uint64_t held = four & anchors & (holds_upright ? flat | upright : flat & ~upright);
            for (; held; held &= held - 1) {
                const int64_t i = x + __builtin_ctzll(held) / 16;
                look(row[i], y * p.width + i);
            }
        }
        for (int64_t x = whole; x < p.width; ++x)
            if (row[x] & kAnchor && (row[x] & 1 ? holds_upright : columns[x] != 0)) look(row[x], y * p.width + x);
    }
    for (int i = 1; i <= kSizes; ++i) first[i] += first[i - 1];
    for (int64_t i = 0; i < n; ++i) sorted[first[found[i].order]++] = found[i].place;
    return n;
}

}  // namespace

Chains draw_chains(const Planes& p, const RouteOptions& options) {
    const int64_t pixels = p.height * p.width;
    Chains chains = {Buffer<Pixel>(pixels), {0}};
    const Buffer<Pixel> back(pixels);
    const Buffer<int32_t> anchors(pixels);
    const int64_t count = sorted_anchors(p, options, anchors.data());
    const Steps forward = steps_of(p.width, 1), backward = steps_of(p.width, -1);
    const int least = std::min(options.threshold, kSizes - 1) << kSizeShift;
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count)
            for (int64_t k = -1; k <= 1; ++k) __builtin_prefetch(p.strength + anchors[i + kAhead] + k * p.width);
        const int64_t at = anchors[i];
        if (p.strength[at] & kDrawn) continue;
        const int64_t across = p.strength[at] & 1 ? 1 : p.width;
        if ((p.strength[at - across] | p.strength[at + across]) & kDrawn) continue;
        const Pixel anchor = {static_cast<int32_t>(at % p.width), static_cast<int32_t>(at / p.width)};
        p.strength[at] |= kDrawn;
        const int64_t before = walk(p, backward, least, at, anchor, back.data());
        std::reverse_copy(back.data(), back.data() + before, chains.pixel.data() + n);
        chains.pixel[n + before] = anchor;
        const int64_t length = before + 1 + walk(p, forward, least, at, anchor, chains.pixel.data() + n + before + 1);
        if (length < options.least) continue;
        n += length;
        chains.start.push_back(n);
    }
    return chains;
}

}  // namespace tw::lines
