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

// A step ahead and one to the side, by heading: in pixels and in places.
struct Steps {
    int32_t x[4], y[4], side_x[4], side_y[4];
    int64_t ahead[4], side[4];
};

// Forward is the way of the headings, -1 against it.
Steps steps_of(int64_t width, int forward) {
    Steps s;
    constexpr int x[] = {1, 0, -1, 0}, y[] = {0, 1, 0, -1};
    for (int h = 0; h < 4; ++h) {
        s.x[h] = forward * x[h], s.y[h] = forward * y[h];
        s.side_x[h] = h & 1, s.side_y[h] = ~h & 1;
        s.ahead[h] = s.y[h] * width + s.x[h];
        s.side[h] = h & 1 ? 1 : width;
    }
    return s;
}

// Writes the pixels after `from` to `out`, and gives how many. The rim is 0, so that no step leaves the picture.
int64_t walk(const Planes& p, const Steps& steps, unsigned least, Pixel from, Pixel* out) {
    constexpr int kTurn[] = {1, -1, 0};  // of equals first the one ahead, then the one on the left
    int64_t at = from.y * p.width + from.x, n = 0;
    unsigned heading = p.strength[at] & kHeading;
    while (true) {
        const int64_t side = steps.side[heading], ahead = at + steps.ahead[heading];
        __builtin_prefetch(p.strength + at + 4 * steps.ahead[heading]);
        const unsigned left = (p.strength[ahead - side] & kSize) + 1u, right = p.strength[ahead + side] & kSize;
        const unsigned best = std::max(std::max((p.strength[ahead] & kSize) + 2u, left), right);
        const int turn = kTurn[best & 3];
        at = ahead + turn * side;
        const unsigned there = p.strength[at];
        if (best < least || there & kDrawn || (there ^ heading) % 4 == 2) return n;
        p.strength[at] = static_cast<uint16_t>(there | kDrawn);
        from.x += steps.x[heading] + turn * steps.side_x[heading];
        from.y += steps.y[heading] + turn * steps.side_y[heading];
        out[n++] = from;
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
        if (size < options.threshold) return;
        found[n++] = {static_cast<int32_t>(place), kSizes - 1 - size};
        ++first[kSizes - size];
    };
    constexpr uint64_t anchors = kAnchor * 0x0001000100010001;
    for (int64_t y = 0; y < p.height; ++y) {
        const uint16_t* const row = p.strength + y * p.width;
        if (y % options.interval) {
            for (int64_t x = 0; x < p.width; x += options.interval)
                if ((row[x] & (kAnchor | 1)) == kAnchor) look(row[x], y * p.width + x);
            continue;
        }
        for (int64_t x = 0; x < p.width; x += 4) {
            uint64_t four = anchors;
            if (x + 4 <= p.width) std::memcpy(&four, row + x, sizeof four);
            if (!(four & anchors)) continue;
            for (int64_t i = x; i < std::min(x + 4, p.width); ++i)
                if (row[i] & kAnchor && (row[i] & 1 || i % options.interval == 0)) look(row[i], y * p.width + i);
        }
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
    const unsigned least = static_cast<unsigned>(std::min(options.threshold, kSizes - 1)) << kSizeShift;
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count) __builtin_prefetch(p.strength + anchors[i + kAhead]);
        const int64_t at = anchors[i];
        if (p.strength[at] & kDrawn) continue;
        const int64_t across = p.strength[at] & 1 ? 1 : p.width;
        if ((p.strength[at - across] | p.strength[at + across]) & kDrawn) continue;
        const Pixel anchor = {static_cast<int32_t>(at % p.width), static_cast<int32_t>(at / p.width)};
        p.strength[at] |= kDrawn;
        const int64_t before = walk(p, backward, least, anchor, back.data());
        std::reverse_copy(back.data(), back.data() + before, chains.pixel.data() + n);
        chains.pixel[n + before] = anchor;
        const int64_t length = before + 1 + walk(p, forward, least, anchor, chains.pixel.data() + n + before + 1);
        if (length < options.least) continue;
        n += length;
        chains.start.push_back(n);
    }
    return chains;
}

}  // namespace tw::lines
