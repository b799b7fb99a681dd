// Method    1. A chain is cut where it leaves its least-squares line. 2. From the longest piece on, a line is fitted to the
//           places where the gradient across it is largest, by a parabola in each column or row. 3. It grows both ways while
//           it finds such places where it leads, over gaps. Pieces that it comes across are dropped. 4. It ends where the
//           gradient across it has fallen to half. 5. Lines whose middle bends away from their ends are arcs. 6. What
//           chance would explain is dropped: of n pixels at least k agree in direction within 22.5 degrees, p = 1/8.
// Numerics  places and their sums are integers, lines double precision. The same lines on every tier.
// Threads   pieces are cut and fitted by all of them; which lines stay is decided in order by one.
// Source    C. Akinlar, C. Topal, "EDLines: a real-time line segment detector with a false detection control", 2011;
//           A. Desolneux, L. Moisan, J. Morel, "Meaningful alignments", 2000; growth along the line after I. Suarez et
//           al., "ELSED: enhanced line segment drawing", 2022.
#include "lines/fit.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <tuple>

#include "core/parallel.h"
#include "lines/chance.h"
#include "lines/places.h"

namespace tw::lines {
namespace {

constexpr double kWeakest = 0.7;  // of the threshold, where a line leads there

// ---- least squares --------------------------------------------------------------------------------------------------

struct Moments {
    double n = 0, x = 0, y = 0, xx = 0, xy = 0, yy = 0;

    void add(double px, double py, double times = 1) {
        n += times, x += times * px, y += times * py;
        xx += times * px * px, xy += times * px * py, yy += times * py * py;
    }
};

// The line that is nearest to points in the mean square.
struct Axis {
    double x, y, ux, uy, error;
};

Axis axis_of(const Moments& m) {
    const double x = m.x / m.n, y = m.y / m.n;
    const double xx = m.xx / m.n - x * x, yy = m.yy / m.n - y * y, xy = m.xy / m.n - x * y;
    const double half = (xx - yy) / 2, root = std::sqrt(half * half + xy * xy);
    double ux = half + root, uy = xy;
    if (half < 0) ux = xy, uy = root - half;
    const double length = std::sqrt(ux * ux + uy * uy);
    if (length == 0) return {x, y, 1, 0, 0};
    return {x, y, ux / length, uy / length, std::max((xx + yy) / 2 - root, 0.0)};
}

// Whether the root mean square distance from that line is at most `error`: a matrix less error^2 is not positive.
bool straight(const Moments& m, double error) {
    const double e = error * error * m.n * m.n, xx = m.n * m.xx - m.x * m.x - e, yy = m.n * m.yy - m.y * m.y - e;
    const double xy = m.n * m.xy - m.x * m.y;
    return xx <= 0 || yy <= 0 || xx * yy <= xy * xy;
}

// ---- pieces of chains -----------------------------------------------------------------------------------------------

struct Piece {
    int64_t begin, end;  // of the chains' pixels
};

constexpr int64_t kSeed = 12;  // pixels that a piece starts from
constexpr double kSeedError = 0.45;  // of them, root mean square
constexpr int32_t kRows = 16;  // of a picture, from which pieces are fitted together
constexpr int kStrays = 2;  // pixels in a row that may lie beside a piece

// The pieces of chains `first` to `past` - 1.
void cut(const Chains& chains, int64_t first, int64_t past, double fit_error, int64_t least, std::vector<Piece>& out) {
    for (int64_t k = first; k < past; ++k) {
        const int64_t end = chains.start[static_cast<size_t>(k) + 1];
        int64_t i = chains.start[static_cast<size_t>(k)];
        const Pixel from = chains.pixel[i];
        const auto x = [&](int64_t at) { return chains.pixel[at].x - from.x; };
        const auto y = [&](int64_t at) { return chains.pixel[at].y - from.y; };
        while (i + kSeed <= end) {
            Moments m;
            for (int64_t j = i; j < i + kSeed; ++j) m.add(x(j), y(j));
            while (!straight(m, kSeedError) && i + kSeed < end) {
                m.add(x(i), y(i), -1);
                m.add(x(i + kSeed), y(i + kSeed));
                ++i;
            }
            if (!straight(m, kSeedError)) break;
            Axis line = axis_of(m);
            int64_t last = i + kSeed, again = last + 2;
            for (int64_t j = last; j < end && j <= last + kStrays; ++j) {
                if (std::abs((x(j) - line.x) * line.uy - (y(j) - line.y) * line.ux) > fit_error) continue;
                m.add(x(j), y(j));
                last = j + 1;
                if (last >= again) line = axis_of(m), again = last + std::max<int64_t>(2, (last - i) / 8);
            }
            if (last - i >= least) out.push_back({i, last});
            i = last;
        }
    }
}

// ---- lines on the gradients -----------------------------------------------------------------------------------------

constexpr double kArcTurn = 0.1;  // radians from end to end

// Standard errors by which a turn must be seen: the larger it is, the fewer.
constexpr double arc_sigmas(double turn) { return turn > 3 * kArcTurn ? 1 : turn > 1.5 * kArcTurn ? 2 : 3; }

// How far a line turns from end to end, in radians and in standard errors.
struct Bend {
    double turn, sigmas;
    bool is_arc() const { return turn > kArcTurn && sigmas > arc_sigmas(turn); }
};

constexpr int64_t kOne = int64_t{1} << 32;  // of positions on a course
constexpr double kSteepest = 1.5;

int64_t fixed_at(const Course& c, int64_t i) { return c.at0 + (i - c.origin) * c.step; }

// What a piece leads to: places low to high of a course, and a line unless it is an arc, or short, or chance.
struct Found {
    Course course;
    int64_t low, high;
    bool is_line;
    Line line;
};

class Fitter {
public:
    Fitter(const Planes& p, const LineOptions& o, double least)
        : p_(p), o_(o), kernels_(line_kernels()), memory_(5 * std::max(p.height, p.width) + kProfile) {
        const int64_t n = std::max(p.height, p.width);
        places_ = {memory_.data(), memory_.data() + n, memory_.data() + 2 * n, memory_.data() + 3 * n};
        profile_ = memory_.data() + 4 * n;
        tests_ = 2 * std::log10(static_cast<double>(p.width) * static_cast<double>(p.height));
        c_.gradient = p.gradient;
        c_.least = static_cast<int32_t>(kUnit * least), c_.contrary = static_cast<int32_t>(2 * least * least);
    }

    // False where nothing straight leads through the piece.
    bool fit(const Chains& chains, Piece piece, double least_length, Found& found);

private:
    static constexpr int64_t kProfile = 32;  // places beyond an end of a line that its profile may reach

    double across_at(double i) const {
        return static_cast<double>(c_.base) +
               (static_cast<double>(c_.at0) + (i - static_cast<double>(c_.origin)) * static_cast<double>(c_.step)) /
                   static_cast<double>(kOne);
    }
    void lead(double at0, double per_step);
    void face(double nx, double ny);
    bool solve(const Sums& sums);
    bool refit(int32_t stray) { return solve(kernels_.sum(c_, low_, high_, stray, places_)); }
    void grow(int way);
    double end_of(int way);
    Bend bend() const;

    const Planes& p_;
    const LineOptions& o_;
    const LineKernels& kernels_;
    Buffer<int32_t> memory_;
    Places places_;
    int32_t* profile_;
    double tests_;  // log10 of how many lines there could be
    Course c_ = {};
    bool flat_ = false;  // along x
    int64_t low_ = 0, high_ = 0;  // the first and the last place on the line
};

void Fitter::lead(double at0, double per_step) {
    c_.at0 = std::llrint(at0 * static_cast<double>(kOne));
    c_.step = std::llrint(std::clamp(per_step, -16.0, 16.0) * static_cast<double>(kOne));
}

void Fitter::face(double nx, double ny) {
    c_.across[0] = static_cast<int16_t>(std::lrint(nx * kUnit)),
    c_.across[1] = static_cast<int16_t>(std::lrint(ny * kUnit));
}

// Leads the line to where places lie beside it in the mean square.
bool Fitter::solve(const Sums& s) {
    const double n = static_cast<double>(s.n), k = static_cast<double>(s.k), d = static_cast<double>(s.d);
    const double spread = n * static_cast<double>(s.kk) - k * k;
    if (s.n < 2 || !(spread > 0)) return false;
    const double turn = (n * static_cast<double>(s.kd) - k * d) / spread, shift = (d - turn * k) / n;
    lead(static_cast<double>(c_.at0) / static_cast<double>(kOne) + shift / kPart,
         static_cast<double>(c_.step) / static_cast<double>(kOne) + turn / kPart);
    return true;
}

constexpr int32_t kStray = kPart;  // from where a line leads, in 1/kPart pixel
constexpr int32_t kClose = kPart * 7 / 10;  // the same, of what a line is fitted to in the end
constexpr int64_t kLooks = 8;  // places looked at together
constexpr int64_t kSure = 5;  // pixels on the line that show that it goes on behind a gap
constexpr int64_t kContrary = 3;  // pixels in a row at which another edge crosses

void Fitter::grow(int way) {
    int64_t& end = way > 0 ? high_ : low_;
    int64_t weak_ones = 0, contrary_ones = 0, hits = 0, again = end + way * 8, seen = end;
    for (int64_t i = end + way; i >= 0 && i < c_.n_along; i += way) {
        if (way * (i - seen) > 0) {
            seen = std::clamp<int64_t>(i + way * (kLooks - 1), 0, c_.n_along - 1);
            kernels_.look(c_, std::min(i, seen), std::max(i, seen), kStray, places_);
        }
        const int32_t found = places_.look[i];
        if (found == nothing) return;
        if (found == on_it) {
            ++hits;
            const int64_t jumped = std::abs(i - end) - hits;
            if (hits < std::min<int64_t>(1 + jumped, kSure)) continue;
            end = i, weak_ones = contrary_ones = hits = 0;
            if (way * (i - again) < 0) continue;
            refit(kStray);
            again = i + way * std::max<int64_t>(8, (high_ - low_) / 8);
            seen = i;
        } else {
            hits = 0;
            if (found == weak)
                ++weak_ones;
            else
                ++contrary_ones;
            if (weak_ones + contrary_ones > std::min(o_.gap, (high_ - low_) / 2) || contrary_ones > kContrary) return;
        }
    }
}

// Where the gradient on the line has fallen to half of what it is inside.
double Fitter::end_of(int way) {
    const int64_t end = way > 0 ? high_ : low_, span = high_ - low_;
    const int64_t inside = std::max<int64_t>(span / 3, 13) + 2, outside = 10;
    const int64_t first = way > 0 ? end - inside : end - outside;
    kernels_.profile(c_, first, first + inside + outside, profile_);
    const auto at = [&](int64_t i) { return static_cast<double>(profile_[i - first]); };
    const auto level = [&](int64_t i) { return (at(i - 1) + 2 * at(i) + at(i + 1)) / 4; };
    const int64_t some = std::clamp<int64_t>(span / 3, 2, 10);
    double half = 0;
    for (int64_t k = 3; k < 3 + some; ++k) half += at(end - way * k);
    half /= static_cast<double>(2 * some);
    if (!(half > 0)) return static_cast<double>(end);
    // From inside the line outwards to where it has fallen to half.
    int64_t i = end - way * std::min<int64_t>(3, span / 3);
    double before = level(i);
    while (before < half && std::abs(i - end) < span / 3) before = level(i -= way);
    for (int64_t k = 0; k < 8; ++k) {
        const double next = level(i + way);
        if (next < half)
            return static_cast<double>(i) + way * (before > next ? std::max(before - half, 0.0) / (before - next) : 0);
        i += way, before = next;
    }
    return static_cast<double>(end);
}

// A parabola through the places found, whose top lies beside the ends.
Bend Fitter::bend() const {
    const double step = static_cast<double>(c_.step) / static_cast<double>(kOne),
                 slant = 1 / std::sqrt(1 + step * step);
    const double middle = static_cast<double>(low_ + high_) / 2, half = static_cast<double>(high_ - low_) / 2;
    const double unit = 1 / half;
    double n = 0, t2 = 0, t4 = 0, r0 = 0, r2 = 0, rr = 0;
    for (int64_t i = low_ + 1; i < high_; ++i) {
        const bool counts = places_.look[i] >= near_it;  // what does not adds 0
        const int64_t off = places_.at[i] - (fixed_at(c_, i) >> (32 - kPartBits));
        const double t = counts ? (static_cast<double>(i) - middle) * unit : 0, tt = t * t;
        const double r = counts ? static_cast<double>(off) / kPart : 0;
        n += counts, t2 += tt, t4 += tt * tt, r0 += r, r2 += r * tt, rr += r * r;
    }
    if (n < 6) return {0, 0};
    const double spread = t4 / n - t2 / n * (t2 / n), joint = r2 / n - r0 / n * (t2 / n);
    if (!(spread > 0)) return {0, 0};
    const double top = joint / spread;
    const double rest = std::max(rr / n - r0 / n * (r0 / n) - top * joint, 0.0025);
    const double error = std::sqrt(2 * rest / (n * spread));  // neighbours share their noise
    return {4 * std::abs(top) * slant / (half / slant), std::abs(top) / error};
}

bool Fitter::fit(const Chains& chains, Piece piece, double least_length, Found& found) {
    Moments m;
    const Pixel first = chains.pixel[piece.begin], last = chains.pixel[piece.end - 1];
    for (int64_t i = piece.begin; i < piece.end; ++i) {
        const Pixel at = chains.pixel[i];
        m.add(at.x - first.x, at.y - first.y);
    }
    Axis axis = axis_of(m);
    if (axis.ux * (last.x - first.x) + axis.uy * (last.y - first.y) < 0) axis.ux = -axis.ux, axis.uy = -axis.uy;
    flat_ = std::abs(axis.ux) >= std::abs(axis.uy);
    const bool rising = (flat_ ? axis.ux : axis.uy) > 0;
    face(-axis.uy, axis.ux);
    c_.along = flat_ ? 1 : p_.width, c_.beside = flat_ ? p_.width : 1;
    c_.n_along = flat_ ? p_.width : p_.height, c_.n_beside = flat_ ? p_.height : p_.width;
    const int32_t a = flat_ ? first.x : first.y, b = flat_ ? last.x : last.y;
    low_ = std::min(a, b), high_ = std::max(a, b);
    c_.origin = a, c_.base = flat_ ? first.y : first.x;
    const double per_step = flat_ ? axis.uy / axis.ux : axis.ux / axis.uy;
    lead(flat_ ? axis.y - per_step * axis.x : axis.x - per_step * axis.y, per_step);

    const Sums seen = kernels_.look(c_, low_, high_, static_cast<int32_t>(kPart * o_.fit_error), places_);
    if (3 * seen.sure < 2 * (high_ - low_) || !solve(seen) || !refit(kStray)) return false;
    const Course start = c_;
    const int64_t start_low = low_, start_high = high_;
    grow(1);
    grow(-1);
    refit(kClose);
    Bend bend_of = bend();
    bool arc = bend_of.is_arc();
    if (arc && (low_ != start_low || high_ != start_high)) {  // it may have grown round a corner
        low_ = start_low, high_ = start_high, c_ = start;
        refit(kClose);
        bend_of = bend();
        arc = bend_of.is_arc() || bend_of.turn > kArcTurn;
    }
    const double step = static_cast<double>(c_.step) / static_cast<double>(kOne);
    if (!(std::abs(step) < kSteepest)) return false;
    found = {c_, low_, high_, false, {}};
    if (arc) return true;
    const double slant = 1 / std::sqrt(1 + step * step);
    const double nx = flat_ ? -step * slant : slant, ny = flat_ ? slant : -step * slant;
    const double way = nx * -axis.uy + ny * axis.ux < 0 ? -1 : 1;
    face(way * nx, way * ny);
    double begin = end_of(-1), end = end_of(1);
    if ((end - begin) / slant < least_length) return true;

    const int64_t from = std::max<int64_t>(static_cast<int64_t>(std::ceil(begin)), 0);
    const int64_t to = std::min(static_cast<int64_t>(end), c_.n_along - 1), n = to - from + 1;
    if (n < 1) return true;
    const Agreement agreed = kernels_.agree(c_, from, to);
    int64_t fall = 0, peak = 0;
    for (int64_t i = std::max(from, low_); i <= std::min(to, high_); ++i) {
        const int32_t counts = places_.look[i] >= near_it;
        fall += counts * places_.bend[i], peak += counts * places_.size[i];
    }
    Line& line = found.line;
    line.log_nfa = static_cast<float>(-log10_of_chance(n, agreed.aligned) - tests_);
    found.is_line = !o_.validate || line.log_nfa >= -o_.log_eps;
    if (!found.is_line) return true;
    line.strength = static_cast<float>(static_cast<double>(agreed.size) / static_cast<double>(n * kUnit));
    // A Gaussian falls by bend / size beside its top; between its halves lie 2.355 sigma.
    line.width = static_cast<float>(
        fall > 0 ? 2.354820045 * std::sqrt(static_cast<double>(peak) / static_cast<double>(fall)) * slant : 0);
    if (!o_.subpixel) begin = std::rint(begin), end = std::rint(end);
    if (!rising) std::swap(begin, end);
    double c1 = across_at(begin), c2 = across_at(end);
    if (!o_.subpixel) c1 = std::rint(c1), c2 = std::rint(c2);
    line.x1 = static_cast<float>(flat_ ? begin : c1), line.y1 = static_cast<float>(flat_ ? c1 : begin);
    line.x2 = static_cast<float>(flat_ ? end : c2), line.y2 = static_cast<float>(flat_ ? c2 : end);
    return true;
}

// ---- which of them stay ---------------------------------------------------------------------------------------------

// Most lines are found whole, so that pieces mostly lie on lines that exist.
bool is_claimed(const Planes& p, const Chains& chains, Piece piece) {
    int64_t taken = 0;
    for (int64_t i = piece.begin; i < piece.end; ++i) {
        const Pixel at = chains.pixel[i];
        taken += (p.strength[at.y * p.width + at.x] & kClaimed) != 0;
    }
    return 2 * taken > piece.end - piece.begin;
}

// Whether another piece has led to this line before.
bool exists(const Planes& p, const Found& found) {
    const Course& c = found.course;
    int64_t taken = 0, want = fixed_at(c, found.low) + kOne / 2;
    for (int64_t i = found.low; i <= found.high; ++i, want += c.step) {
        const int64_t at = std::clamp<int64_t>(c.base + (want >> 32), 0, c.n_beside - 1);
        taken += (p.strength[i * c.along + at * c.beside] & kClaimed) != 0;
    }
    return 2 * taken > found.high - found.low;
}

void claim(const Planes& p, const Found& found) {
    const Course& c = found.course;
    int64_t want = fixed_at(c, found.low) + kOne / 2;
    for (int64_t i = found.low; i <= found.high; ++i, want += c.step) {
        const int64_t middle = std::clamp<int64_t>(c.base + (want >> 32), 1, c.n_beside - 2);
        uint16_t* const at = p.strength + i * c.along + middle * c.beside;
        at[-c.beside] |= kClaimed;
        at[0] |= kClaimed;
        at[c.beside] |= kClaimed;
    }
}

constexpr int64_t kTogether = 32;  // pieces, or chains, that one thread takes at a time

// body(i, first, last) for parts of n things; false where it was interrupted. Memory may be exhausted in any part.
template <class Body>
bool in_parts(int64_t n, const Body& body) {
    std::atomic<bool> enough = true;
    const bool done = parallel((n + kTogether - 1) / kTogether, [&](int64_t i) {
        try {
            body(i, i * kTogether, std::min(n, (i + 1) * kTogether));
        } catch (const std::bad_alloc&) {
            enough = false;
        }
    });
    if (!enough) throw std::bad_alloc();
    return done;
}

constexpr int kLeastThreshold = 30;

// The longest first, in classes of a quarter more each; in a class rows in order, so that neighbours follow each other.
void sort_pieces(const Chains& chains, std::vector<Piece>& pieces) {
    const auto key = [&](const Piece& piece) {
        const auto n = static_cast<uint64_t>(piece.end - piece.begin);
        const int power = static_cast<int>(std::bit_width(n));
        const uint64_t size_class = static_cast<uint64_t>(4 * power) + (n << 2 >> (power - 1) & 3);
        const Pixel at = chains.pixel[piece.begin];
        return std::tuple(~size_class, at.y / kRows, at.x);
    };
    std::sort(pieces.begin(), pieces.end(), [&](const Piece& a, const Piece& b) { return key(a) < key(b); });
}

}  // namespace

// The gradient of noise alone: in white noise a quarter of all sizes lies below 0.9 of its standard deviation.
int auto_threshold(const Planes& p) {
    std::vector<int64_t> count(4096);
    int64_t total = 0;
    for (int64_t y = 1; y < p.height - 1; y += 4)
        for (int64_t x = 1; x < p.width - 1; x += 4) {
            const int64_t at = y * p.width + x;
            ++count[static_cast<size_t>(
                std::min(std::abs(p.gradient[2 * at]) + std::abs(p.gradient[2 * at + 1]), 4095))];
            ++total;
        }
    int64_t below = 0;
    size_t quarter = 0;
    while (quarter < count.size() - 1 && (below += count[quarter]) * 4 < total) ++quarter;
    return std::clamp(static_cast<int>(3 * static_cast<double>(quarter) / 0.9), kLeastThreshold, 400);
}

std::vector<Line> find_lines(const Planes& p, const LineOptions& options) {
    LineOptions o = options;
    if (o.threshold == 0) o.threshold = auto_threshold(p);
    const double pixels = std::max(static_cast<double>(p.width) * static_cast<double>(p.height), 2.0);
    if (o.least_length == 0) o.least_length = std::max(2 * std::log(pixels) / std::log(8) - 1, 8.0);
    const int64_t least = std::min<int64_t>(kSeed, static_cast<int64_t>(o.least_length));
    const Chains chains = draw_chains(p, {o.threshold, o.interval, std::max<int64_t>(least, 2)});
    const int64_t n_chains = static_cast<int64_t>(chains.start.size()) - 1;
    std::vector<std::vector<Piece>> parts(static_cast<size_t>((n_chains + kTogether - 1) / kTogether));
    if (!in_parts(n_chains, [&](int64_t i, int64_t first, int64_t past) {
        cut(chains, first, past, o.fit_error, least, parts[static_cast<size_t>(i)]);
    }))
        return {};
    std::vector<Piece> pieces;
    for (const std::vector<Piece>& part : parts) pieces.insert(pieces.end(), part.begin(), part.end());
    sort_pieces(chains, pieces);
    // Few pieces lie on lines of others: all are fitted, by all threads, before one after the other claims its pixels.
    struct Led {
        bool anywhere = false;
        Found to;
    };
    std::vector<Led> led(pieces.size());
    if (!in_parts(static_cast<int64_t>(pieces.size()), [&](int64_t, int64_t first, int64_t past) {
        Fitter fitter(p, o, kWeakest * o.threshold);
        for (auto k = static_cast<size_t>(first); k < static_cast<size_t>(past); ++k)
            led[k].anywhere = fitter.fit(chains, pieces[k], o.least_length, led[k].to);
    }))
        return {};
    std::vector<Line> lines;
    for (size_t k = 0; k < pieces.size(); ++k) {
        if (!led[k].anywhere || is_claimed(p, chains, pieces[k]) || exists(p, led[k].to)) continue;
        claim(p, led[k].to);
        if (led[k].to.is_line) lines.push_back(led[k].to.line);
    }
    const auto key = [](const Line& l) { return std::tuple(-l.log_nfa, l.y1, l.x1, l.y2, l.x2); };
    std::sort(lines.begin(), lines.end(), [&](const Line& a, const Line& b) { return key(a) < key(b); });
    return lines;
}

}  // namespace tw::lines
