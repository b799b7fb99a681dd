// Method    1. Chains, drawn band by band, are cut into straight pieces. 2. From each of them a line is fitted to the
//           places where the gradient across it is largest, by a parabola in each column or row. 3. It grows both ways
//           while it finds such places where it leads, over gaps. 4. It ends where the gradient across it has fallen to
//           half. 5. Arcs are what surely bends as a small circle, and what bends less if its chain goes on to. 6. What
//           chance would explain is dropped: of n pixels at least k agree in direction within 22.5 degrees, p = 1/8.
//           7. Of lines on each other that of the longest piece stays.
// Numerics  places and their sums are integers, lines double precision. The same lines on every tier.
// Threads   bands and pieces are shared by all of them; which lines stay is decided in order by one.
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
#include "lines/claims.h"
#include "lines/pieces.h"
#include "lines/places.h"

namespace tw::lines {
namespace {

constexpr double kWeakest = 0.7;  // of the threshold, where a line leads there

// ---- lines on the gradients -----------------------------------------------------------------------------------------

constexpr double kRound = 80;  // radius in pixels: what bends more is an arc, however short a part of it is seen
constexpr double kArcTurn = 0.1;  // radians from end to end, of an arc whose chain goes on with it

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
        c_.picture = p.picture;
        c_.least = static_cast<int32_t>(kUnit * least), c_.contrary = static_cast<int32_t>(2 * least * least);
    }

    // False where nothing straight leads through the piece.
    bool fit(const Piece& piece, double least_length, Found& found);

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
    bool goes_round(const Piece& piece, double top) const;
    bool is_arc(const Piece& piece, double errors) const;

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
constexpr int64_t kLooks = 16;  // places looked at together
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

// Whether the chain before or behind a piece lies where the line's parabola leads: what bends alone is no part of a circle.
bool Fitter::goes_round(const Piece& piece, double top) const {
    const int64_t span = high_ - low_;
    const auto along = [&](const Pixel& p) { return flat_ ? p.x : p.y; };
    const auto beyond = [&](const Pixel& p) { return std::abs(2 * along(p) - low_ - high_); };  // span at an end
    for (const int64_t way : {-1, 1}) {
        const Pixel* at = way < 0 ? piece.pixel : piece.pixel + piece.n - 1;
        int64_t left = std::min(way < 0 ? piece.before : piece.after, span), far = beyond(*at);
        while (left > 0 && far < 2 * span) {  // a pixel leads on by one place at most
            const int64_t n = std::min(left, span - far / 2);
            at += way * n, left -= n, far = beyond(*at);
        }
        if (2 * far < 3 * span) continue;
        const double t = static_cast<double>(far) / static_cast<double>(span);
        const double want = top * (t * t - 1.0 / 3);  // the line lies in the mean of its parabola
        const double like = want * (static_cast<double>(flat_ ? at->y : at->x) - across_at(along(*at)));
        if (like > 0.5 * want * want && like < 2 * want * want) return true;
    }
    return false;
}

// Whether a parabola through the places found bends too much by more than so many standard errors.
bool Fitter::is_arc(const Piece& piece, double errors) const {
    const double step = static_cast<double>(c_.step) / static_cast<double>(kOne), stretch = 1 + step * step;
    const double half = static_cast<double>(high_ - low_) / 2;
    const Curve sums = kernels_.curve(c_, low_ + 1, high_ - 1, places_);
    const double unit = static_cast<double>(int64_t{1} << sums.shift) / (2 * half), square = unit * unit, n = sums.n;
    const double t2 = square * sums.uu, t4 = square * square * sums.u4;
    const double r0 = sums.r / kPart, r2 = square * sums.ruu / kPart, rr = sums.rr / kPart / kPart;
    const double spread = n * t4 - t2 * t2, joint = n * r2 - r0 * t2;
    if (n < 6 || !(spread > 0)) return false;
    const double top = joint / spread;  // beside the ends
    const double rest = std::max(n * rr - r0 * r0 - top * joint, 0.0025 * n * n);
    const double error = std::sqrt(2 * rest / (n * spread));  // neighbours share their noise
    const double sure = 4 * (std::abs(top) - errors * error), whole = half * stretch;  // it turns by sure / whole
    if (kRound * sure > 2 * half * std::sqrt(stretch) * whole) return true;
    return sure > kArcTurn * whole && goes_round(piece, top);
}

bool Fitter::fit(const Piece& piece, double least_length, Found& found) {
    const Pixel first = piece.pixel[0], last = piece.pixel[piece.n - 1];
    const Axis& axis = piece.axis;
    flat_ = std::abs(axis.ux) >= std::abs(axis.uy);
    const bool rising = (flat_ ? axis.ux : axis.uy) > 0;
    face(-axis.uy, axis.ux);
    c_.along = flat_ ? 1 : p_.picture.row, c_.beside = flat_ ? p_.picture.row : 1;
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
    bool arc = is_arc(piece, 1);
    if (arc && (low_ != start_low || high_ != start_high)) {  // it may have grown round a corner
        low_ = start_low, high_ = start_high, c_ = start;
        refit(kClose);
        arc = is_arc(piece, 0);
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

// Asks for what a piece will be fitted to, and for what lies beyond its ends.
void prefetch(const Planes& p, const Piece& piece) {
    const Axis& axis = piece.axis;
    const bool flat = std::abs(axis.ux) >= std::abs(axis.uy);
    const int64_t step = flat ? 16 : 1, reach = flat ? 3 : 0;
    const auto ask = [&](int64_t x, int64_t y) {
        for (int64_t row = y - reach; row <= y + reach; ++row) __builtin_prefetch(p.picture.at(x, row));
    };
    for (int64_t i = 0; i < piece.n; i += step) ask(piece.pixel[i].x, piece.pixel[i].y);
    const double unit = 1 / std::max(std::abs(axis.ux), std::abs(axis.uy));
    const int64_t dx = std::llrint(axis.ux * unit * 65536), dy = std::llrint(axis.uy * unit * 65536);
    const Pixel first = piece.pixel[0], last = piece.pixel[piece.n - 1];
    for (int64_t k = 1; k <= kLooks; k += step) {
        const int64_t x = k * dx >> 16, y = k * dy >> 16;
        ask(first.x - x, first.y - y);
        ask(last.x + x, last.y + y);
    }
}

bool is_claimed(const Claims& claims, const Piece& piece) {
    int64_t taken = 0;
    for (int64_t i = 0; i < piece.n; ++i) taken += claims.has(piece.pixel[i].x, piece.pixel[i].y);
    return 2 * taken > piece.n;
}

// body(i, across): places of a line, and the pixels across it, at least `rim` from the rim.
template <class Body>
void each_place(const Found& found, int64_t rim, const Body& body) {
    const Course& c = found.course;
    int64_t want = fixed_at(c, found.low) + kOne / 2;
    for (int64_t i = found.low; i <= found.high; ++i, want += c.step)
        body(i, std::clamp<int64_t>(c.base + (want >> 32), rim, c.n_beside - 1 - rim));
}

// Whether another piece has led to this line before.
bool exists(const Claims& claims, const Found& found) {
    const bool flat = found.course.along == 1;
    int64_t taken = 0;
    if (flat)
        each_place(found, 0, [&](int64_t x, int64_t y) { taken += claims.has(x, y); });
    else
        each_place(found, 0, [&](int64_t y, int64_t x) { taken += claims.has(x, y); });
    return 2 * taken > found.high - found.low;
}

void claim(Claims& claims, const Found& found) {
    if (found.course.along == 1)
        each_place(found, 1, [&](int64_t x, int64_t y) { claims.claim_above(x, y); });
    else
        each_place(found, 1, [&](int64_t y, int64_t x) { claims.claim_beside(x, y); });
}

// body(i) for i below n; false where it was interrupted. Memory may be exhausted in any of them.
template <class Body>
bool each(size_t n, const Body& body) {
    std::atomic<bool> enough = true;
    const bool done = parallel(static_cast<int64_t>(n), [&](int64_t i) {
        try {
            body(static_cast<size_t>(i));
        } catch (const std::bad_alloc&) {
            enough = false;
        }
    });
    if (!enough) throw std::bad_alloc();
    return done;
}

constexpr int64_t kBandPixels = 1 << 18;  // whose ways stay in the cache
constexpr int64_t kBandRows = 32;  // at least
constexpr size_t kTogether = 16;  // pieces that one thread takes at a time
constexpr size_t kBatch = 128, kBatches = 8;  // pieces of a batch at least, and batches at most

// Rows of a band: of an even number of bands, where one is not enough.
int64_t rows_of_band(const Planes& p) {
    const int64_t pixels = p.height * p.width;
    if (pixels <= kBandPixels) return p.height;
    const int64_t bands = (pixels + 2 * kBandPixels - 1) / (2 * kBandPixels) * 2;
    return std::max((p.height + bands - 1) / bands, kBandRows);
}

constexpr int32_t kRows = 16;  // of a picture, from which pieces are taken together
constexpr int kLeastThreshold = 30;
constexpr int64_t kSampledRows = 512;  // where a picture has more, noise is taken from no more rows

// The order in which pieces claim their pixels: the longest first, in classes of a quarter more each; in a class rows in
// order, so that neighbours follow each other.
std::vector<size_t> order_of(const std::vector<Piece>& pieces) {
    std::vector<std::pair<uint64_t, size_t>> keys;  // 8 bits of class, 26 of rows, 30 of columns; places in turn
    keys.reserve(pieces.size());
    for (const Piece& piece : pieces) {
        const auto n = static_cast<uint32_t>(piece.n), row = static_cast<uint32_t>(piece.pixel->y / kRows);
        const auto power = static_cast<uint32_t>(std::bit_width(n));
        const uint64_t size_class = 4 * power + (n << 2 >> (power - 1) & 3);
        keys.emplace_back(~size_class << 56 | uint64_t{row} << 30 | static_cast<uint32_t>(piece.pixel->x), keys.size());
    }
    std::sort(keys.begin(), keys.end());
    std::vector<size_t> order;
    order.reserve(pieces.size());
    for (const auto& key : keys) order.push_back(key.second);
    return order;
}

}  // namespace

// The gradient of noise alone: in white noise a quarter of all sizes lies below 0.9 of its standard deviation.
int auto_threshold(const Planes& p) {
    constexpr int kFaint = 9;  // up to which a quarter makes no threshold of more than the least one
    static_assert(static_cast<int>(3 * kFaint / 0.9) == kLeastThreshold);
    const int64_t apart = 4 * std::max<int64_t>(p.height / kSampledRows, 1);
    const int64_t rows = p.height > 2 ? (p.height - 3) / apart + 1 : 0, total = rows * ((p.width + 1) / 4);
    int64_t faint = 0;
    for (int64_t i = rows - 1; i >= 0 && 4 * faint < total; --i)
        faint += line_kernels().count_faint(p.picture, p.picture.at(0, 1 + i * apart), p.width - 1, kFaint);
    if (4 * faint >= total) return kLeastThreshold;
    std::vector<int64_t> count(4096);
    std::vector<int32_t> at, size(static_cast<size_t>((p.width + 1) / 4));
    for (int64_t x = 1; x < p.width - 1; x += 4) at.push_back(static_cast<int32_t>(x));
    for (int64_t y = 1; y < p.height - 1; y += apart) {
        line_kernels().sizes(p.picture, p.picture.at(0, y), at.data(), static_cast<int64_t>(at.size()), size.data());
        for (size_t i = 0; i < at.size(); ++i) ++count[static_cast<size_t>(size[i])];
    }
    int64_t below = 0;
    size_t quarter = 0;
    while (quarter < count.size() - 1 && (below += count[quarter]) * 4 < total) ++quarter;
    return std::clamp(static_cast<int>(3 * static_cast<double>(quarter) / 0.9), kLeastThreshold, 400);
}

std::vector<Line> find_lines(const Planes& p, const LineOptions& options) {
    LineOptions o = options;
    const double pixels = std::max(static_cast<double>(p.width) * static_cast<double>(p.height), 2.0);
    if (o.least_length == 0) o.least_length = std::max(2 * std::log(pixels) / std::log(8) - 1, 8.0);
    const int64_t least = std::min<int64_t>(kSeed, static_cast<int64_t>(o.least_length));
    const int64_t band = rows_of_band(p);
    std::vector<Chains> chains(static_cast<size_t>((p.height + band - 1) / band));
    std::vector<std::vector<Piece>> parts(chains.size());
    // From below: the planes were written from above, and what was written last is still in the cache.
    if (!each(chains.size(), [&](size_t part) {
        const size_t i = chains.size() - 1 - part;
        const int64_t first = static_cast<int64_t>(i) * band;
        const int64_t past = std::min(first + band, p.height);
        chains[i] = draw_chains(p, {o.interval, std::max<int64_t>(least, 2), first, past});
        cut(chains[i], o.fit_error, least, parts[i]);
    }))
        return {};
    std::vector<Piece> pieces;
    for (const std::vector<Piece>& part : parts) pieces.insert(pieces.end(), part.begin(), part.end());
    const std::vector<size_t> order = order_of(pieces);
    std::vector<Line> lines;
    Claims claims(p.height, p.width);
    const auto settle = [&](const Found& found) {
        if (exists(claims, found)) return;
        claim(claims, found);
        if (found.is_line) lines.push_back(found.line);
    };
    const double least_gradient = kWeakest * o.threshold;
    if (num_threads() == 1) {
        Fitter fitter(p, o, least_gradient);
        Found found;
        for (size_t i = 0; i < order.size(); ++i) {
            if (i + 1 < order.size()) prefetch(p, pieces[order[i + 1]]);
            const Piece& piece = pieces[order[i]];
            if (!is_claimed(claims, piece) && fitter.fit(piece, o.least_length, found)) settle(found);
        }
    } else {
        // Of a batch, what lies on lines found before is left out, and all else is fitted by all threads.
        struct Led {
            bool anywhere = false;
            Found to;
        };
        std::vector<Led> led(std::max(kBatch, order.size() / kBatches));
        for (size_t first = 0; first < order.size(); first += led.size()) {
            const size_t n = std::min(led.size(), order.size() - first);
            const auto piece = [&](size_t i) -> const Piece& { return pieces[order[first + i]]; };
            if (!each((n + kTogether - 1) / kTogether, [&](size_t part) {
                Fitter fitter(p, o, least_gradient);
                for (size_t i = part * kTogether; i < std::min(n, (part + 1) * kTogether); ++i) {
                    if (i + 1 < n) prefetch(p, piece(i + 1));
                    led[i].anywhere = !is_claimed(claims, piece(i)) && fitter.fit(piece(i), o.least_length, led[i].to);
                }
            }))
                return {};
            for (size_t i = 0; i < n; ++i)
                if (led[i].anywhere && !is_claimed(claims, piece(i))) settle(led[i].to);
        }
    }
    const auto key = [](const Line& l) { return std::tuple(-l.log_nfa, l.y1, l.x1, l.y2, l.x2); };
    std::sort(lines.begin(), lines.end(), [&](const Line& a, const Line& b) { return key(a) < key(b); });
    return lines;
}

}  // namespace tw::lines
