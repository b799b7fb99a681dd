// Method    the first pixels of a chain that lie along a line start a piece, which goes on while pixels stay near its
//           least-squares line. The line follows them: after each two of the first, later after an eighth more.
// Numerics  sums of coordinates: of the first pixels modulo 2^32, of a piece from its first pixel on in double precision.
//           Both are exact.
// Source    C. Akinlar, C. Topal, "EDLines: a real-time line segment detector with a false detection control", 2011.
#include "lines/pieces.h"

#include <algorithm>
#include <cmath>

namespace tw::lines {
namespace {

constexpr double kSeedError = 0.45;  // of the first pixels, root mean square
constexpr int64_t kStrays = 2;  // pixels in a row that may lie beside a piece

struct Moments {
    double n = 0, x = 0, y = 0, xx = 0, xy = 0, yy = 0;

    void add(double px, double py) { n += 1, x += px, y += py, xx += px * px, xy += px * py, yy += py * py; }
};

Axis axis_of(const Moments& m) {
    const double x = m.x / m.n, y = m.y / m.n;
    const double xx = m.xx / m.n - x * x, yy = m.yy / m.n - y * y, xy = m.xy / m.n - x * y;
    const double half = (xx - yy) / 2, root = std::sqrt(half * half + xy * xy);
    double ux = half + root, uy = xy;
    if (half < 0) ux = xy, uy = root - half;
    const double length = std::sqrt(ux * ux + uy * uy);
    if (length == 0) return {x, y, 1, 0};
    return {x, y, ux / length, uy / length};
}

// The same without a quotient: u is longer than 1, and a point strays if the square of its cross product exceeds `most`.
struct Lead {
    double n, x, y, ux, uy, most;

    bool near(double px, double py) const {
        const double off = (n * px - x) * uy - (n * py - y) * ux;
        return off * off <= most;
    }
};

inline __attribute__((always_inline)) Lead lead_of(const Moments& m, double error) {
    const double xx = m.n * m.xx - m.x * m.x, yy = m.n * m.yy - m.y * m.y, xy = m.n * m.xy - m.x * m.y;
    const double half = (xx - yy) / 2, root = std::sqrt(half * half + xy * xy), longer = std::abs(half) + root;
    const double ux = half < 0 ? xy : longer, uy = half < 0 ? longer : xy, reach = error * m.n;
    return {m.n, m.x, m.y, ux, uy, reach * reach * (longer * longer + xy * xy)};
}

// Of the first pixels, neighbours of each other: sums wrap, what is said of their spread is small.
struct Start {
    uint32_t x = 0, y = 0, xx = 0, xy = 0, yy = 0;

    void add(Pixel p) { change(static_cast<uint32_t>(p.x), static_cast<uint32_t>(p.y), 1); }
    void drop(Pixel p) { change(static_cast<uint32_t>(p.x), static_cast<uint32_t>(p.y), ~uint32_t{0}); }

    // Whether the root mean square distance from their line is at most `error`: a matrix less error^2 is not positive.
    bool is_straight(double error) const {
        const double e = error * error * kSeed * kSeed, a = spread(xx, x, x) - e, b = spread(yy, y, y) - e;
        const double both = spread(xy, x, y);
        return a <= 0 || b <= 0 || a * b <= both * both;
    }
    // Sums of places counted from a pixel on.
    Moments from(Pixel p) const {
        const auto px = static_cast<uint32_t>(p.x), py = static_cast<uint32_t>(p.y);
        const uint32_t n = kSeed, mx = x - n * px, my = y - n * py;
        return {kSeed,
                whole(mx),
                whole(my),
                whole(xx - px * (x + mx)),
                whole(xy - px * y - py * mx),
                whole(yy - py * (y + my))};
    }

private:
    static double whole(uint32_t sum) { return static_cast<int32_t>(sum); }
    static double spread(uint32_t ab, uint32_t a, uint32_t b) { return whole(uint32_t{kSeed} * ab - a * b); }

    void change(uint32_t px, uint32_t py, uint32_t times) {
        const uint32_t ax = times * px, ay = times * py;
        x += ax, y += ay, xx += ax * px, xy += ax * py, yy += ay * py;
    }
};

void cut_chain(const Pixel* pixel, int64_t n, double fit_error, int64_t least, std::vector<Piece>& pieces) {
    int64_t i = 0;
    while (i + kSeed <= n) {
        Start start;
        for (int64_t j = i; j < i + kSeed; ++j) start.add(pixel[j]);
        bool is_straight = start.is_straight(kSeedError);
        for (; !is_straight && i + kSeed < n; ++i) {
            start.drop(pixel[i]);
            start.add(pixel[i + kSeed]);
            is_straight = start.is_straight(kSeedError);
        }
        if (!is_straight) break;
        const Pixel first = pixel[i];
        const auto x = [&](int64_t at) { return static_cast<double>(pixel[at].x - first.x); };
        const auto y = [&](int64_t at) { return static_cast<double>(pixel[at].y - first.y); };
        Moments m = start.from(first);
        Lead lead = lead_of(m, fit_error);
        int64_t past = i + kSeed, again = past + 2;
        for (int64_t j = past; j < n && j <= past + kStrays; ++j) {
            if (!lead.near(x(j), y(j))) continue;
            m.add(x(j), y(j));
            past = j + 1;
            if (past >= again) lead = lead_of(m, fit_error), again = past + std::max<int64_t>(2, (past - i) / 8);
        }
        if (past - i >= least) {
            Axis line = axis_of(m);
            if (line.ux * x(past - 1) + line.uy * y(past - 1) < 0) line.ux = -line.ux, line.uy = -line.uy;
            pieces.push_back({pixel + i, past - i, line, i, n - past});
        }
        i = past;
    }
}

}  // namespace

void cut(const Chains& chains, double fit_error, int64_t least, std::vector<Piece>& pieces) {
    for (size_t k = 0; k + 1 < chains.start.size(); ++k) {
        const int64_t start = chains.start[k];
        cut_chain(chains.pixel.data() + start, chains.start[k + 1] - start, fit_error, least, pieces);
    }
}

}  // namespace tw::lines
