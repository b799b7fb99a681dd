// Method    from the steepest anchor on, a walk goes both ways along the edge: at each pixel to the steepest of the three
//           neighbours its heading points at, until the gradient is too small, turns back, or the pixel is drawn already.
//           A heading has the brighter side on its right, so that a walk never has to choose between two ways; what it
//           leaves beside it is drawn from anchors of its own.
//           Which pixels of a band are drawn is a bit each; those of the rows above and below it are set from the start.
// Threads   one a band: a walk depends on those before it. Anchors of one size go in the order of rows, so the result is
//           one.
// Source    C. Topal, C. Akinlar, "Edge Drawing: a combined real-time edge and segment detector", 2012.
#include "lines/route.h"

#include <algorithm>
#include <cstring>

namespace tw::lines {
namespace {

constexpr uint16_t kHeading = 3, kUpright = 1, kAnchor = 4;
constexpr int kSizeShift = 3, kSizes = 2048;
constexpr uint16_t kSize = (kSizes - 1) << kSizeShift;  // |dx| + |dy| in place
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

// Which places are drawn; those before the first and behind the last cannot be asked for.
class Drawn {
public:
    Drawn(int64_t first, int64_t places) : first_(first), bits_(places / kBits + 1) {
        std::memset(bits_.data(), 0, static_cast<size_t>(places / kBits + 1) * sizeof(uint64_t));
    }
    bool has(int64_t at) const { return word(at) >> ((at - first_) & (kBits - 1)) & 1; }
    void mark(int64_t at) { word(at) |= uint64_t{1} << ((at - first_) & (kBits - 1)); }
    void mark_from(int64_t at, int64_t places) {
        for (const int64_t past = at + places; at < past; ++at) mark(at);
    }

private:
    static constexpr int64_t kBits = 64;

    uint64_t& word(int64_t at) const { return bits_.data()[static_cast<uint64_t>(at - first_) / kBits]; }

    int64_t first_;
    Buffer<uint64_t> bits_;
};

// Writes the pixels after `from`, at place `at`, to `out`, and gives how many. The rim is 0, so that no step leaves the
// picture. While the heading stays, which it mostly does, a step waits for three loads and two comparisons only.
int64_t walk(const uint16_t* strength, Drawn& drawn, const Steps& steps, int least, int64_t at, Pixel from,
             Pixel* out) {
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
            if ((there & kSize) < least || drawn.has(at) || (there ^ heading) % 4 == 2) return n;
            drawn.mark(at);
            pixel += ahead_pixel + (side_pixel & to_right) - (side_pixel & to_left & ~to_right);
            out[n++] = {static_cast<int32_t>(pixel), static_cast<int32_t>(pixel >> 32)};
        } while ((there & kHeading) == heading);
        heading = there & kHeading;
    }
}

constexpr int64_t kBeyond = 16;  // rows that a walk may go beyond its band

struct Anchor {
    int32_t place, order;
};

// Anchors in the order of rows.
class Anchors {
public:
    Anchors(const RouteOptions& options, int64_t width, Anchor* found)
        : found_(found), options_(options), width_(width), columns_(width) {
        for (int64_t x = 0; x < width; ++x) columns_[x] = x % options.interval ? 0 : kAnchor;
    }

    void look(const uint16_t* row, int64_t y, int64_t place) {
        if (y % options_.interval == 0) return look_closely(row, place);
        for (int64_t x = 0; x < width_; x += options_.interval)
            if ((row[x] & (kAnchor | kUpright)) == kAnchor) add(row[x], place + x);
    }

    // In falling order of size: a counting sort, so that those of a size stay in the order of rows. Gives how many.
    int64_t sorted(int32_t* to) {
        for (int i = 1; i <= kSizes; ++i) before_[i] += before_[i - 1];
        for (int64_t i = 0; i < n_; ++i) to[before_[found_[i].order]++] = found_[i].place;
        return n_;
    }

private:
    void add(unsigned strength, int64_t place) {
        const int size = (strength & kSize) >> kSizeShift;
        found_[n_] = {static_cast<int32_t>(place), kSizes - 1 - size};
        const bool counts = size >= options_.threshold;
        n_ += counts;
        before_[kSizes - size] += counts;
    }

    // A row that holds anchors of upright edges too. Four pixels in a word.
    void look_closely(const uint16_t* row, int64_t place) {
        const int64_t whole = width_ / 4 * 4;
        constexpr uint64_t anchors = kAnchor * 0x0001000100010001;
        for (int64_t x = 0; x < whole; x += 4) {
            uint64_t four, flat;
            std::memcpy(&four, row + x, sizeof four);
            std::memcpy(&flat, columns_.data() + x, sizeof flat);
            for (uint64_t held = four & anchors & (flat | four << 2); held; held &= held - 1) {
                const int64_t i = x + __builtin_ctzll(held) / 16;
                add(row[i], place + i);
            }
        }
        for (int64_t x = whole; x < width_; ++x)
            if (row[x] & kAnchor && (row[x] & kUpright || columns_[x])) add(row[x], place + x);
    }

    Anchor* const found_;
    const RouteOptions& options_;
    const int64_t width_;
    Buffer<uint16_t> columns_;  // kAnchor where one holds anchors of flat edges
    int64_t n_ = 0, before_[kSizes + 1] = {};
};

}  // namespace

Chains draw_chains(const Planes& p, const RouteOptions& options) {
    const int64_t first = std::max<int64_t>(options.first - kBeyond, 0);
    const int64_t past = std::min(options.past + kBeyond, p.height), pixels = (past - first) * p.width;
    Chains chains = {Buffer<Pixel>(pixels), {0}};
    const Buffer<Pixel> back(pixels);
    const Buffer<int32_t> sorted(pixels);
    const Buffer<Anchor> found(pixels);
    Anchors anchors(options, p.width, found.data());
    for (int64_t y = options.first; y < options.past; ++y) anchors.look(p.strength + y * p.width, y, y * p.width);
    const int64_t count = anchors.sorted(sorted.data());
    const uint16_t* const strength = p.strength;
    Drawn drawn((first - 1) * p.width, pixels + 2 * p.width);
    drawn.mark_from((first - 1) * p.width, p.width);
    drawn.mark_from(past * p.width, p.width);
    const Steps forward = steps_of(p.width, 1), backward = steps_of(p.width, -1);
    const int least = std::min(options.threshold, kSizes - 1) << kSizeShift;
    int64_t n = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (i + kAhead < count)
            for (int64_t k = -1; k <= 1; ++k) __builtin_prefetch(strength + sorted[i + kAhead] + k * p.width);
        const int64_t at = sorted[i];
        const int64_t across = strength[at] & kUpright ? 1 : p.width;
        if (drawn.has(at) || drawn.has(at - across) || drawn.has(at + across)) continue;
        const Pixel anchor = {static_cast<int32_t>(at % p.width), static_cast<int32_t>(at / p.width)};
        drawn.mark(at);
        const int64_t before = walk(strength, drawn, backward, least, at, anchor, back.data());
        std::reverse_copy(back.data(), back.data() + before, chains.pixel.data() + n);
        chains.pixel[n + before] = anchor;
        const int64_t length =
            before + 1 + walk(strength, drawn, forward, least, at, anchor, chains.pixel.data() + n + before + 1);
        if (length < options.least) continue;
        n += length;
        chains.start.push_back(n);
    }
    return chains;
}

}  // namespace tw::lines
