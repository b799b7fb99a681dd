// Method    from the steepest anchor on, a walk goes both ways along the edge: at each pixel to the steepest of the three
//           neighbours its heading points at, until the gradient is too small, turns back, or the pixel is drawn already.
//           A heading has the brighter side on its right, so that a walk never has to choose between two ways; what it
//           leaves beside it is drawn from anchors of its own.
//           Where each pixel leads is looked at for whole rows before (lines/ways.h). What lies above and below a band
//           counts as drawn.
// Threads   one a band: a walk depends on those before it. Anchors of one size go in the order of rows, so the result is
//           one.
// Source    C. Topal, C. Akinlar, "Edge Drawing: a combined real-time edge and segment detector", 2012.
#include "lines/route.h"

#include <algorithm>
#include <cstring>

#include "lines/ways.h"

namespace tw::lines {
namespace {

constexpr int64_t kAhead = 8;  // anchors between asking for one and looking at it

// x in the lower half, y in the upper one. Both stay positive, so that no sum borrows.
constexpr int64_t packed(int64_t x, int64_t y) { return x + y * (int64_t{1} << 32); }

// A step by the way of a pixel: in places, and in pixels as one number. 0 where the edge ends: to a pixel that is drawn.
struct Steps {
    int64_t place[kWays], pixel[kWays];
};

// Forward is the way of the headings, or else against it.
Steps steps_of(int64_t width, bool forward) {
    Steps s;
    for (int way = 0; way < kWays; ++way) {
        const bool upright = way & kUpright, larger = ((way & kHeading) < 2) == forward;
        const int to = way >> (larger ? 2 : 4) & kNowhere;
        const int64_t along = to == kNowhere ? 0 : larger ? 1 : -1, aside = to == 1 ? -1 : to == 2 ? 1 : 0;
        const int64_t x = upright ? aside : along, y = upright ? along : aside;
        s.place[way] = y * width + x, s.pixel[way] = packed(x, y);
    }
    return s;
}

// Writes the pixels after `from`, at place `at`, which is drawn, to `out`, and gives how many. A step waits for two loads.
int64_t walk(uint8_t* ways, const Steps& steps, int64_t at, Pixel from, Pixel* out) {
    int64_t n = 0, pixel = packed(from.x, from.y);
    for (unsigned way = ways[at] & ~kDrawn;;) {
        at += steps.place[way], pixel += steps.pixel[way];
        way = ways[at];
        if (way & kDrawn) return n;
        ways[at] = static_cast<uint8_t>(way | kDrawn);
        out[n++] = {static_cast<int32_t>(pixel), static_cast<int32_t>(pixel >> 32)};
    }
}

constexpr int64_t kBeyond = 16;  // rows that a walk may go beyond its band

struct Anchor {
    int32_t place, order;
};

// Anchors in the order of rows.
class Anchors {
public:
    explicit Anchors(Anchor* found) : found_(found) {}

    void add(unsigned strength, int64_t place) {
        const int size = (strength & kSize) >> kSizeShift;
        found_[n_++] = {static_cast<int32_t>(place), kSizes - 1 - size};
        ++before_[kSizes - size];
    }

    // In falling order of size: a counting sort, so that those of a size stay in the order of rows. Gives how many.
    int64_t sorted(int32_t* to) {
        for (int i = 1; i <= kSizes; ++i) before_[i] += before_[i - 1];
        for (int64_t i = 0; i < n_; ++i) to[before_[found_[i].order]++] = found_[i].place;
        return n_;
    }

private:
    Anchor* const found_;
    int64_t n_ = 0, before_[kSizes + 1] = {};
};

// Looks at the rows of a band and around it: fills in ways, of which row 0 is the one before `first`, and anchors.
void survey(const Planes& p, const RouteOptions& options, int64_t first, int64_t past, uint8_t* ways,
            Anchors& anchors) {
    const WayKernels& kernels = way_kernels();
    const size_t row_bytes = static_cast<size_t>(p.width);
    const Buffer<uint16_t> columns(p.width);
    const Buffer<int32_t> at(p.width);
    for (int64_t x = 0; x < p.width; ++x) columns[x] = x % options.interval ? 0 : kAnchor;
    const int least = std::min(options.threshold, kSizes - 1) << kSizeShift;
    for (int64_t y = first - 1; y <= past; ++y, ways += p.width) {
        const bool beyond = y < first || y == past;
        if (beyond || y == 0 || y == p.height - 1) {
            std::memset(ways, beyond ? kDrawn : kNoEdge, row_bytes);
            continue;
        }
        const uint16_t* const row = p.strength + y * p.width;
        const uint16_t upright = y % options.interval ? 0 : kAnchor;
        const int64_t n = kernels.survey({row, p.width, least, upright, columns.data()}, ways, at.data());
        if (y < options.first || y >= options.past) continue;
        for (int64_t i = 0; i < n; ++i) anchors.add(row[at[i]], y * p.width + at[i]);
    }
}

}  // namespace

Chains draw_chains(const Planes& p, const RouteOptions& options) {
    const int64_t first = std::max<int64_t>(options.first - kBeyond, 0);
    const int64_t past = std::min(options.past + kBeyond, p.height), pixels = (past - first) * p.width;
    Chains chains = {Buffer<Pixel>(pixels), {0}};
    const Buffer<Pixel> back(pixels);
    const Buffer<int32_t> sorted(pixels);
    const Buffer<Anchor> found(pixels);
    const Buffer<uint8_t> memory(pixels + 2 * p.width);
    Anchors anchors(found.data());
    survey(p, options, first, past, memory.data(), anchors);
    const int64_t count = anchors.sorted(sorted.data());
    uint8_t* const ways = memory.data() - (first - 1) * p.width;
    const Steps forward = steps_of(p.width, true), backward = steps_of(p.width, false);
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count)
            for (int64_t k = -1; k <= 1; ++k) __builtin_prefetch(ways + sorted[i + kAhead] + k * p.width);
        const int64_t at = sorted[i];
        const int64_t across = ways[at] & kUpright ? 1 : p.width;
        if ((ways[at] | ways[at - across] | ways[at + across]) & kDrawn) continue;
        const Pixel anchor = {static_cast<int32_t>(at % p.width), static_cast<int32_t>(at / p.width)};
        ways[at] |= kDrawn;
        const int64_t before = walk(ways, backward, at, anchor, back.data());
        std::reverse_copy(back.data(), back.data() + before, chains.pixel.data() + n);
        chains.pixel[n + before] = anchor;
        const int64_t length = before + 1 + walk(ways, forward, at, anchor, chains.pixel.data() + n + before + 1);
        if (length < options.least) continue;
        n += length;
        chains.start.push_back(n);
    }
    return chains;
}

}  // namespace tw::lines
