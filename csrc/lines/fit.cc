// Method    1. A chain is cut where it leaves its least-squares line. 2. From the longest piece on, a line is fitted to the
//           places where the gradient across it is largest, by a parabola in each column or row. 3. It grows both ways while
//           it finds such places where it leads, over gaps. Pieces that it comes across are dropped. 4. It ends where the
//           gradient across it has fallen to half. 5. Lines whose middle bends away from their ends are arcs. 6. What
//           chance would explain is dropped: of n pixels at least k agree in direction within 22.5 degrees, p = 1/8.
// Numerics  double precision, in one order. The same lines on every tier.
// Source    C. Akinlar, C. Topal, "EDLines: a real-time line segment detector with a false detection control", 2011;
//           A. Desolneux, L. Moisan, J. Morel, "Meaningful alignments", 2000; growth along the line after I. Suarez et
//           al., "ELSED: enhanced line segment drawing", 2022.
#include "lines/fit.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "lines/chance.h"

namespace tw::lines {
namespace {

constexpr double kWeakest = 0.7;  // of the threshold, where a line leads there
constexpr int32_t kUnit = 1024;  // of gradients across a line
constexpr double kAligned = 0.853553390593274;  // the squared cosine of 22.5 degrees

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

// y on x, where x are places along a line.
struct Slope {
    double n = 0, x = 0, y = 0, xx = 0, xy = 0;

    void add(double px, double py) { n += 1, x += px, y += py, xx += px * px, xy += px * py; }
    bool solve(double& at0, double& per_step) const {
        const double spread = n * xx - x * x;
        if (n < 2 || !(spread > 0)) return false;
        per_step = (n * xy - x * y) / spread;
        at0 = (y - per_step * x) / n;
        return true;
    }
};

// ---- pieces of chains -----------------------------------------------------------------------------------------------

struct Piece {
    int64_t begin, end;  // of the chains' pixels
};

constexpr int64_t kSeed = 12;  // pixels that a piece starts from
constexpr double kSeedError = 0.45;  // of them, root mean square
constexpr int kStrays = 2;  // pixels in a row that may lie beside a piece

void cut(const Chains& chains, double fit_error, int64_t least, std::vector<Piece>& out) {
    for (size_t k = 0; k + 1 < chains.start.size(); ++k) {
        const int64_t end = chains.start[k + 1];
        int64_t i = chains.start[k];
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

enum class Look : uint8_t { nothing, weak, contrary, near_it, on_it };

struct Place {
    float at, size, bend;  // across, the gradient there, and how sharply it falls beside it
    Look look;
};

constexpr double kArcTurn = 0.1;  // radians from end to end
constexpr double kArcSigmas = 3;  // standard errors; one less where the turn is twice as large

// How far a line turns from end to end, in radians and in standard errors.
struct Bend {
    double turn, sigmas;
    bool is_arc() const { return turn > kArcTurn && sigmas > (turn > 2 * kArcTurn ? kArcSigmas - 1 : kArcSigmas); }
};

class Fitter {
public:
    Fitter(const Planes& p, const LineOptions& o, double least)
        : p_(p),
          o_(o),
          least_(static_cast<int32_t>(kUnit * least)),
          contrary_(static_cast<int32_t>(2 * least * least)),
          places_(static_cast<size_t>(std::max(p.height, p.width))) {}

    bool fit(const Chains& chains, Piece piece, double least_length, Line& line);
    void prefetch(const Chains& chains, Piece piece) const;

private:
    double across_at(double i) const { return at0_ + per_step_ * (i - origin_); }
    int32_t dx(int64_t place) const { return p_.gradient[2 * place]; }
    int32_t dy(int64_t place) const { return p_.gradient[2 * place + 1]; }
    int32_t gradient_at(int64_t place) const { return inx_ * dx(place) + iny_ * dy(place); }
    void face(double nx, double ny);
    Place look(int64_t i, double tolerance) const;
    bool refit(double tolerance);
    void grow(int way);
    double smooth_at(int64_t i) const;
    double end_of(int way) const;
    Bend bend() const;
    bool exists() const;
    bool claimed(const Chains& chains, Piece piece) const;
    void claim() const;

    const Planes& p_;
    const LineOptions& o_;
    const int32_t least_;  // gradient of an edge, in 1 / kUnit
    const int32_t contrary_;  // square of a gradient that speaks for another edge
    std::vector<Place> places_;
    // The line: across = at0 + per_step (i - origin), for i from low to high along x (flat) or y.
    bool flat_ = false;
    int64_t along_ = 0, beside_ = 0, n_along_ = 0, n_beside_ = 0;
    int64_t low_ = 0, high_ = 0;
    double origin_ = 0, at0_ = 0, per_step_ = 0, nx_ = 0, ny_ = 0;
    int32_t inx_ = 0, iny_ = 0;  // the direction across the line, towards the brighter side, in 1 / kUnit
};

// Pieces lie anywhere in the picture: the gradients of one are on their way while another is fitted.
void Fitter::prefetch(const Chains& chains, Piece piece) const {
    for (int64_t i = piece.begin; i < piece.end; i += 2) {
        const Pixel at = chains.pixel[i];
        __builtin_prefetch(p_.gradient + 2 * (at.y * p_.width + at.x));
    }
}

// Most lines are found whole, so that pieces mostly lie on lines that exist.
bool Fitter::claimed(const Chains& chains, Piece piece) const {
    int64_t taken = 0;
    for (int64_t i = piece.begin; i < piece.end; ++i) {
        const Pixel at = chains.pixel[i];
        taken += (p_.strength[at.y * p_.width + at.x] & kClaimed) != 0;
    }
    return 2 * taken > piece.end - piece.begin;
}

void Fitter::claim() const {
    double want = across_at(static_cast<double>(low_)) + 0.5;
    for (int64_t i = low_; i <= high_; ++i, want += per_step_) {
        const int64_t c = std::clamp<int64_t>(static_cast<int64_t>(want), 1, n_beside_ - 2);
        uint16_t* const at = p_.strength + i * along_ + c * beside_;
        at[-beside_] |= kClaimed;
        at[0] |= kClaimed;
        at[beside_] |= kClaimed;
    }
}

void Fitter::face(double nx, double ny) {
    nx_ = nx, ny_ = ny;
    inx_ = static_cast<int32_t>(std::lrint(nx * kUnit)), iny_ = static_cast<int32_t>(std::lrint(ny * kUnit));
}

// Whether a gradient points across the line within 22.5 degrees, towards the brighter side.
bool aligned(int32_t across, int32_t gx, int32_t gy) {
    const int64_t size = int64_t{gx} * gx + int64_t{gy} * gy;
    return across > 0 && int64_t{across} * across >= static_cast<int64_t>(kAligned * kUnit * kUnit) * size;
}

Place Fitter::look(int64_t i, double tolerance) const {
    const double want = across_at(static_cast<double>(i));
    Place found = {0, 0, 0, Look::nothing};
    if (!(want >= 2 && want <= static_cast<double>(n_beside_ - 3))) return found;
    const int64_t c = static_cast<int64_t>(want + 0.5), middle = i * along_ + c * beside_;
    int32_t size[5];
    for (int k = 0; k < 5; ++k) size[k] = gradient_at(middle + (k - 2) * beside_);
    // The largest of three, without a branch that nobody could predict.
    const int up = (size[3] > size[2]) & (size[3] >= size[1]), down = (size[1] > size[2]) & ~up;
    const int k = 2 + up - down;
    const int64_t place = middle + (up - down) * beside_;
    const int32_t before = size[k - 1], here = size[k], after = size[k + 1];
    const int32_t gx = dx(middle), gy = dy(middle);
    const int32_t bend = 2 * here - before - after;
    found.look = gx * gx + gy * gy >= contrary_ ? Look::contrary : Look::weak;
    if (here < least_ || bend <= 0 || here < before || here < after) return found;
    const double at = static_cast<double>(c + up - down) + static_cast<double>(after - before) / (2.0 * bend);
    if (!(std::abs(at - want) <= tolerance)) return found;
    found.at = static_cast<float>(at), found.size = static_cast<float>(here), found.bend = static_cast<float>(bend);
    found.look = aligned(here, dx(place), dy(place)) ? Look::on_it : Look::near_it;
    return found;
}

bool Fitter::refit(double tolerance) {
    Slope slope;
    for (int64_t i = low_; i <= high_; ++i) {
        const Place& found = places_[static_cast<size_t>(i)];
        if (found.look < Look::near_it) continue;
        if (std::abs(found.at - across_at(static_cast<double>(i))) > tolerance) continue;
        slope.add(static_cast<double>(i) - origin_, found.at);
    }
    return slope.solve(at0_, per_step_);
}

constexpr double kStray = 1;  // pixels from where a line leads
constexpr double kClose = 0.7;  // the same, of what a line is fitted to in the end
constexpr int64_t kSure = 5;  // pixels on the line that show that it goes on behind a gap
constexpr int64_t kContrary = 3;  // pixels in a row at which another edge crosses

void Fitter::grow(int way) {
    int64_t& end = way > 0 ? high_ : low_;
    int64_t weak = 0, contrary = 0, hits = 0, again = end + way * 8;
    for (int64_t i = end + way; i >= 0 && i < n_along_; i += way) {
        const Place found = places_[static_cast<size_t>(i)] = look(i, kStray);
        if (found.look == Look::nothing) return;
        if (found.look == Look::on_it) {
            ++hits;
            const int64_t jumped = std::abs(i - end) - hits;
            if (hits < std::min<int64_t>(1 + jumped, kSure)) continue;
            end = i, weak = contrary = hits = 0;
            if (way * (i - again) < 0) continue;
            refit(kStray);
            again = i + way * std::max<int64_t>(8, (high_ - low_) / 8);
        } else {
            hits = 0;
            if (found.look == Look::weak)
                ++weak;
            else
                ++contrary;
            if (weak + contrary > std::min(o_.gap, (high_ - low_) / 2) || contrary > kContrary) return;
        }
    }
}

// The gradient across the line, on it.
double Fitter::smooth_at(int64_t i) const {
    if (i < 0 || i >= n_along_) return 0;
    const double want = across_at(static_cast<double>(i));
    if (!(want >= 1 && want <= static_cast<double>(n_beside_ - 3))) return 0;
    const int64_t c = static_cast<int64_t>(want), place = i * along_ + c * beside_;
    const double part = want - static_cast<double>(c);
    return (1 - part) * gradient_at(place) + part * gradient_at(place + beside_);
}

double Fitter::end_of(int way) const {
    const int64_t end = way > 0 ? high_ : low_, span = high_ - low_;
    const auto level = [&](int64_t i) { return (smooth_at(i - 1) + 2 * smooth_at(i) + smooth_at(i + 1)) / 4; };
    const int64_t some = std::clamp<int64_t>(span / 3, 2, 10);
    double half = 0;
    for (int64_t k = 3; k < 3 + some; ++k) half += smooth_at(end - way * k);
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
    const double slant = 1 / std::sqrt(1 + per_step_ * per_step_);
    const double middle = static_cast<double>(low_ + high_) / 2, half = static_cast<double>(high_ - low_) / 2;
    double n = 0, t2 = 0, t4 = 0, r0 = 0, r2 = 0, rr = 0;
    for (int64_t i = low_ + 1; i < high_; ++i) {
        const Place& found = places_[static_cast<size_t>(i)];
        if (found.look < Look::near_it) continue;
        const double t = (static_cast<double>(i) - middle) / half, r = found.at - across_at(static_cast<double>(i));
        n += 1, t2 += t * t, t4 += t * t * t * t, r0 += r, r2 += r * t * t, rr += r * r;
    }
    if (n < 6) return {0, 0};
    const double spread = t4 / n - t2 / n * (t2 / n), joint = r2 / n - r0 / n * (t2 / n);
    if (!(spread > 0)) return {0, 0};
    const double top = joint / spread;
    const double rest = std::max(rr / n - r0 / n * (r0 / n) - top * joint, 0.0025);
    const double error = std::sqrt(2 * rest / (n * spread));  // neighbours share their noise
    return {4 * std::abs(top) * slant / (half / slant), std::abs(top) / error};
}

// Whether another piece has led to this line before.
bool Fitter::exists() const {
    int64_t taken = 0;
    double want = across_at(static_cast<double>(low_)) + 0.5;
    for (int64_t i = low_; i <= high_; ++i, want += per_step_) {
        const int64_t c = std::clamp<int64_t>(static_cast<int64_t>(want), 0, n_beside_ - 1);
        taken += (p_.strength[i * along_ + c * beside_] & kClaimed) != 0;
    }
    return 2 * taken > high_ - low_;
}

bool Fitter::fit(const Chains& chains, Piece piece, double least_length, Line& line) {
    if (claimed(chains, piece)) return false;
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
    along_ = flat_ ? 1 : p_.width, beside_ = flat_ ? p_.width : 1;
    n_along_ = flat_ ? p_.width : p_.height, n_beside_ = flat_ ? p_.height : p_.width;
    const int32_t a = flat_ ? first.x : first.y, b = flat_ ? last.x : last.y;
    low_ = std::min(a, b), high_ = std::max(a, b);
    origin_ = flat_ ? axis.x + first.x : axis.y + first.y;
    at0_ = flat_ ? axis.y + first.y : axis.x + first.x;
    per_step_ = flat_ ? axis.uy / axis.ux : axis.ux / axis.uy;

    int64_t sure = 0;
    Slope slope;
    for (int64_t i = low_; i <= high_; ++i) {
        const Place found = places_[static_cast<size_t>(i)] = look(i, o_.fit_error);
        sure += found.look == Look::on_it;
        if (found.look >= Look::near_it) slope.add(static_cast<double>(i) - origin_, found.at);
    }
    if (2 * sure < high_ - low_ || !slope.solve(at0_, per_step_) || !refit(kStray)) return false;
    const double start0 = at0_, start_step = per_step_;
    const int64_t start_low = low_, start_high = high_;
    grow(1);
    grow(-1);
    refit(kClose);
    Bend bend_of = bend();
    bool arc = bend_of.is_arc();
    if (arc && (low_ != start_low || high_ != start_high)) {  // it may have grown round a corner
        low_ = start_low, high_ = start_high, at0_ = start0, per_step_ = start_step;
        refit(kClose);
        bend_of = bend();
        arc = bend_of.is_arc() || bend_of.turn > kArcTurn;
    }
    if (!(std::abs(per_step_) < 1.5) || exists()) return false;
    claim();
    if (arc) return false;
    const double slant = 1 / std::sqrt(1 + per_step_ * per_step_);
    const double nx = flat_ ? -per_step_ * slant : slant, ny = flat_ ? slant : -per_step_ * slant;
    const double way = nx * -axis.uy + ny * axis.ux < 0 ? -1 : 1;
    face(way * nx, way * ny);
    double begin = end_of(-1), end = end_of(1);
    if ((end - begin) / slant < least_length) return false;

    int64_t n = 0, k = 0;
    double size = 0, fall = 0, peak = 0;
    for (int64_t i = static_cast<int64_t>(std::ceil(begin)); i <= static_cast<int64_t>(end); ++i) {
        const int64_t c = std::clamp<int64_t>(std::lrint(across_at(static_cast<double>(i))), 0, n_beside_ - 1);
        const int64_t place = i * along_ + c * beside_;
        const int32_t across = gradient_at(place);
        ++n;
        k += aligned(across, dx(place), dy(place));
        size += across;
        const Place& found = places_[static_cast<size_t>(i)];
        if (i >= low_ && i <= high_ && found.look >= Look::near_it) fall += found.bend, peak += found.size;
    }
    line.log_nfa = static_cast<float>(-log10_of_chance(n, k) -
                                      2 * std::log10(static_cast<double>(p_.width) * static_cast<double>(p_.height)));
    if (o_.validate && line.log_nfa < -o_.log_eps) return false;
    line.strength = static_cast<float>(size / static_cast<double>(n * kUnit));
    // A Gaussian falls by bend / size beside its top; between its halves lie 2.355 sigma.
    line.width = static_cast<float>(fall > 0 ? 2.354820045 * std::sqrt(peak / fall) * slant : 0);
    if (!o_.subpixel) begin = std::rint(begin), end = std::rint(end);
    if (!rising) std::swap(begin, end);
    double c1 = across_at(begin), c2 = across_at(end);
    if (!o_.subpixel) c1 = std::rint(c1), c2 = std::rint(c2);
    line.x1 = static_cast<float>(flat_ ? begin : c1), line.y1 = static_cast<float>(flat_ ? c1 : begin);
    line.x2 = static_cast<float>(flat_ ? end : c2), line.y2 = static_cast<float>(flat_ ? c2 : end);
    return true;
}

constexpr int kLeastThreshold = 30;

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
    std::vector<Piece> pieces;
    cut(chains, o.fit_error, least, pieces);
    std::stable_sort(pieces.begin(), pieces.end(),
                     [](const Piece& a, const Piece& b) { return a.end - a.begin > b.end - b.begin; });
    std::vector<Line> lines;
    Fitter fitter(p, o, kWeakest * o.threshold);
    Line line;
    for (size_t i = 0; i < pieces.size(); ++i) {
        if (i + 1 < pieces.size()) fitter.prefetch(chains, pieces[i + 1]);
        if (fitter.fit(chains, pieces[i], o.least_length, line)) lines.push_back(line);
    }
    const auto key = [](const Line& l) { return std::tuple(-l.log_nfa, l.y1, l.x1, l.y2, l.x2); };
    std::sort(lines.begin(), lines.end(), [&](const Line& a, const Line& b) { return key(a) < key(b); });
    return lines;
}

}  // namespace tw::lines
