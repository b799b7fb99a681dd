// Method    from the steepest anchor on, a walk goes both ways along the edge in turn: at each pixel to the steepest of
//           the three neighbours its heading points at, until the gradient is too small, turns back, or the pixel is drawn
//           already. A heading has the brighter side on its right, so that a walk never has to choose between two ways;
//           what it leaves beside it is drawn from anchors of its own.
//           Where each pixel leads is known before (lines/ways.h). What lies above and below a band counts as drawn.
// Threads   one a band: a walk depends on those before it. Anchors of one size go in the order of rows, so the result is
//           one.
// Source    C. Topal, C. Akinlar, "Edge Drawing: a combined real-time edge and segment detector", 2012.
#include "lines/route.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "lines/places.h"
#include "lines/ways.h"

namespace tw::lines {
namespace {

constexpr int64_t kOnward = 8;  // anchors between asking for one and looking at it

// x in the lower half, y in the upper one. Both stay positive, so that no sum borrows.
constexpr int64_t packed(int64_t x, int64_t y) { return x + y * (int64_t{1} << 32); }

// A step by the way of a pixel: in places, and in pixels as one number. 0 where the edge ends: to a pixel that is drawn.
constexpr int kWays = 128;
struct Steps {
    int64_t place[kWays], pixel[kWays];
};

// Forward is the way of the headings, or else against it.
Steps steps_of(int64_t row, bool forward) {
    Steps s;
    for (int way = 0; way < kWays; ++way) {
        const bool upright = way & kUpright, larger = ((way & kHeading) < 2) == forward;
        const int to = way >> (larger ? 2 : 4) & kNowhere;
        const int64_t along = to == kNowhere ? 0 : larger ? 1 : -1, aside = to == kBefore ? -1 : to == kBehind ? 1 : 0;
        const int64_t x = upright ? aside : along, y = upright ? along : aside;
        s.place[way] = y * row + x, s.pixel[way] = packed(x, y);
    }
    return s;
}

constexpr int64_t kFurther = 8;  // steps that an edge likely goes straight on

// One end of an edge while it is drawn: a step waits for two loads.
class Walk {
public:
    Walk(uint8_t* ways, const Steps& steps, int64_t at, Pixel from, Pixel* out)
        : ways_(ways), steps_(steps), at_(at), pixel_(packed(from.x, from.y)), way_(ways[at] & ~kDrawn), out_(out) {}

    // Draws the next pixel; false where the edge ends.
    bool step() {
        const int64_t place = steps_.place[way_];
        at_ += place, pixel_ += steps_.pixel[way_];
        way_ = ways_[at_];
        __builtin_prefetch(ways_ + at_ + kFurther * place);
        if (way_ & kDrawn) return false;
        ways_[at_] = static_cast<uint8_t>(way_ | kDrawn);
        out_[n_++] = {static_cast<int32_t>(pixel_), static_cast<int32_t>(pixel_ >> 32)};
        return true;
    }
    int64_t pixels() const { return n_; }

private:
    uint8_t* const ways_;
    const Steps& steps_;
    int64_t at_, pixel_;
    unsigned way_;
    Pixel* const out_;
    int64_t n_ = 0;
};

// Both ends in turn, so that one does not wait for the other's loads; gives how many pixels they drew.
std::pair<int64_t, int64_t> walk_both(Walk a, Walk b) {
    bool on = true;
    while (on && a.step()) on = b.step();
    if (on)
        while (b.step()) {
        }
    else
        while (a.step()) {
        }
    return {a.pixels(), b.pixels()};
}

constexpr int64_t kBeyond = 16;  // rows that a walk may go beyond its band

// Anchors in the order of rows.
class Anchors {
public:
    Anchors(int32_t* place, int32_t* order) : place_(place), order_(order) {}

    // Those of row y, whose ways are copied.
    void add_row(const Planes& p, int64_t y, const uint8_t* held, bool upright, uint8_t* ways) {
        const auto place = static_cast<int32_t>(y * p.picture.row);
        n_ += line_kernels().anchors(p.ways + y * p.width, p.width, held, upright, place, ways, place_ + n_);
    }

    // In falling order of size: a counting sort, so that those of a size stay in the order of rows. Gives how many.
    int64_t sorted(const Blurred& picture, int32_t* to) {
        line_kernels().sizes(picture, picture.pixel, place_, n_, order_);
        for (int64_t i = 0; i < n_; ++i) ++before_[kSizes - (order_[i] /= 2)];
        for (int i = 1; i <= kSizes; ++i) before_[i] += before_[i - 1];
        for (int64_t i = 0; i < n_; ++i) to[before_[kSizes - 1 - order_[i]]++] = place_[i];
        return n_;
    }

private:
    static constexpr int kSizes = 3 * 255 + 1;  // of |dx| + |dy|, which is even

    int32_t *const place_, *const order_;
    int64_t n_ = 0;
    int32_t before_[kSizes + 1] = {};
};

// Takes over the ways of a band and around it, of which row 0 is the one before `first`, and finds anchors.
void survey(const Planes& p, const RouteOptions& options, int64_t first, int64_t past, uint8_t* ways,
            Anchors& anchors) {
    const auto width = static_cast<size_t>(p.width);
    const Buffer<uint8_t> held(p.width);  // kDrawn in columns that hold anchors of flat edges
    std::memset(held.data(), 0, width);
    for (int64_t x = 0; x < p.width; x += options.interval) held[x] = kDrawn;
    for (int64_t y = first - 1; y <= past; ++y, ways += p.picture.row) {
        if (y < first || y == past)
            std::memset(ways, kDrawn, width);
        else if (y < options.first || y >= options.past)
            std::memcpy(ways, p.ways + y * p.width, width);
        else
            anchors.add_row(p, y, held.data(), y % options.interval == 0, ways);
    }
}

}  // namespace

Chains draw_chains(const Planes& p, const RouteOptions& options) {
    const int64_t first = std::max<int64_t>(options.first - kBeyond, 0);
    const int64_t past = std::min(options.past + kBeyond, p.height), pixels = (past - first) * p.width;
    Chains chains = {Buffer<Pixel>(pixels), {0}};
    const Buffer<Pixel> back(pixels), ahead(pixels);
    const Buffer<int32_t> sorted(pixels), found(pixels), order(pixels);
    const int64_t row = p.picture.row;  // of ways too, so that places are the same
    const Buffer<uint8_t> memory((past - first + 2) * row);
    Anchors anchors(found.data(), order.data());
    survey(p, options, first, past, memory.data(), anchors);
    const int64_t count = anchors.sorted(p.picture, sorted.data());
    uint8_t* const ways = memory.data() - (first - 1) * row;
    const Steps forward = steps_of(row, true), backward = steps_of(row, false);
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kOnward < count)
            for (int64_t k = -1; k <= 1; ++k) __builtin_prefetch(ways + sorted[i + kOnward] + k * row);
        const int64_t at = sorted[i];
        const int64_t across = ways[at] & kUpright ? 1 : row;
        if ((ways[at] | ways[at - across] | ways[at + across]) & kDrawn) continue;
        const auto place = static_cast<uint32_t>(at), width = static_cast<uint32_t>(row);
        const Pixel anchor = {static_cast<int32_t>(place % width), static_cast<int32_t>(place / width)};
        ways[at] |= kDrawn;
        const auto [after, before] =
            walk_both(Walk(ways, forward, at, anchor, ahead.data()), Walk(ways, backward, at, anchor, back.data()));
        const int64_t length = before + 1 + after;
        if (length < options.least) continue;
        Pixel* const to = std::reverse_copy(back.data(), back.data() + before, chains.pixel.data() + n);
        *to = anchor;
        std::copy_n(ahead.data(), after, to + 1);
        n += length;
        chains.start.push_back(n);
    }
    return chains;
}

}  // namespace tw::lines
