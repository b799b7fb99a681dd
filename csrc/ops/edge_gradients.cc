// What edges are drawn along: at each pixel the gradient, its size, where the edge goes on, and whether it starts there.
//
//     gradient    sums dx and dy of 3 x 3 Sobel windows
//     strength    0 where |dx| + |dy| < threshold and on the rim, else 8 (|dx| + |dy|) + 4 anchor + heading
//
// heading is 0 right, 1 down, 2 left, 3 up: the way along the edge that has its brighter side on the right. An anchor is at
// least `anchor` above the neighbours across the edge, and above the first of them.
//
// Method    one pass over rows, as in canny.cc. Blocks in which nothing reaches the threshold are skipped.
// Numerics  integers throughout. Pixels outside repeat the edge; the blur mirrors.
// Threads   bands of rows, whose neighbours' rows are computed again. Same bits always.
// Source    C. Topal, C. Akinlar, "Edge Drawing: a combined real-time edge and segment detector", 2012.
#include "core/check.h"
#include "image/magnitude.h"
#include "image/window.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;
constexpr int16_t kAnchor = 4;

enum { kSigma, kThreshold, kAnchorMargin };  // attributes

TW_INLINE i16v strength_of(const Around<int16_t>& w, int64_t x, i16v m, i16v over, i16v margin) {
    const i16v gx = load(w.dx + x), gy = load(w.dy + x);
    const auto upright = abs(gx) >= abs(gy);
    const i16v before = select(upright, load(w.at + x - 1), load(w.above + x));
    const i16v after = select(upright, load(w.at + x + 1), load(w.below + x));
    const auto anchor = (m > before) & (m - before >= margin) & (m - after >= margin);
    const auto back = select(upright, gx > 0, gy < 0);
    const i16v heading = (upright & splat<int16_t>(1)) | (back & splat<int16_t>(2));
    return over & (m << 3 | (anchor & splat(kAnchor)) | heading);
}

void strengths(const Around<int16_t>& w, int16_t threshold, int16_t margin, int64_t n, int16_t* to) {
    constexpr int64_t lanes = kLanes<int16_t>;
    const i16v least = splat(threshold), margins = splat(margin);
    for (int64_t x = 0; x < n; x += lanes) {
        const i16v m = load(w.at + x);
        const auto over = m >= least;
        const i16v s = any(over) ? strength_of(w, x, m, over, margins) : i16v{};
        x + lanes <= n ? store(to + x, s) : store_n(to + x, s, n - x);
    }
    to[0] = to[n - 1] = 0;
}

void run_band(const Call& c, const Picture& p, const Taps& taps, int64_t first, int64_t last, char* scratch) {
    const int64_t n = p.width, kept = History<int16_t>::bytes(n);
    History<int16_t> history(scratch, n);
    Gradients<Sobel<3>> gradients(p, taps, scratch + kept);
    int16_t* const spare = reinterpret_cast<int16_t*>(scratch + kept + Gradients<Sobel<3>>::bytes(p, taps.n));
    const int16_t threshold = static_cast<int16_t>(c.attr[kThreshold].i);
    const int16_t margin = static_cast<int16_t>(c.attr[kAnchorMargin].i);
    for (int64_t y = first - 1; y <= last; ++y) {
        if (y >= 0 && y < p.height) {
            gradients.template row<int16_t, false>(y, history.dx(y), history.dy(y), history.magnitudes(y));
            history.close(y);
        }
        if (y <= first) continue;
        const Around<int16_t> w = history.window(y - 1, p.height);
        int16_t* const to = begin_row<int16_t>(c.out[0], y - 1, spare);
        if (y == 1 || y == p.height)
            __builtin_memset(to, 0, static_cast<size_t>(n) * sizeof(int16_t));
        else
            strengths(w, threshold, margin, n, to);
        end_row(c.out[0], y - 1, spare);
        int16_t* const both = begin_row<int16_t>(c.out[1], y - 1, spare);
        for (int64_t x = 0; x < n; ++x) both[2 * x] = w.dx[x], both[2 * x + 1] = w.dy[x];
        end_row(c.out[1], y - 1, spare);
    }
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const Picture p = picture_of(c.in[0]);
    Taps taps;
    make_taps(c.attr[kSigma].f, taps);
    const int64_t bytes = History<int16_t>::bytes(p.width) + Gradients<Sobel<3>>::bytes(p, taps.n) +
                          row_pitch(2 * p.width) * static_cast<int64_t>(sizeof(int16_t));
    const int64_t band_rows = max_of(kBandRows, 4 * taps.n);
    bool enough = true;
    parallel(ceil_div(p.height, band_rows), [&](int64_t i) {
        Scratch scratch(static_cast<size_t>(bytes));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        run_band(c, p, taps, i * band_rows, min_of((i + 1) * band_rows, p.height), scratch.as<char>());
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(p.width));
}

Status infer(Call& c, Inferred& r) {
    const View& image = c.in[0];
    if (image.dtype != DType::u8)
        return fail(Status::dtype, "image", "image has dtype %s; want uint8", name_of(image.dtype));
    if (image.ndim != 2 && !(image.ndim == 3 && image.shape[2] == 3))
        return fail(Status::shape, "image", "image has shape %s; want (H, W) or (H, W, 3)", shape_text(image).text);
    const double sigma = c.attr[kSigma].f;
    if (!(sigma >= 0 && sigma <= kMaxSigma))
        return fail(Status::attr, "sigma", "sigma=%g; want 0 (no blur) to %g pixels", sigma, kMaxSigma);
    const int64_t threshold = c.attr[kThreshold].i, margin = c.attr[kAnchorMargin].i;
    if (threshold < 1 || threshold > INT16_MAX)
        return fail(Status::attr, "threshold", "threshold=%lld; want 1 to %d", static_cast<long long>(threshold),
                    INT16_MAX);
    if (margin < 0 || margin > INT16_MAX)
        return fail(Status::attr, "anchor", "anchor=%lld; want 0 to %d", static_cast<long long>(margin), INT16_MAX);
    const int64_t both[] = {image.shape[0], image.shape[1], 2};
    r.n_out = 2;
    r.out[0] = result(DType::u16, 2, both);
    r.out[1] = result(DType::i16, 3, both);
    r.flops = 30.0 * static_cast<double>(numel(image));
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "sigma", .kind = AttrKind::real, .f = 1},
    {.name = "threshold", .kind = AttrKind::integer, .i = 16},
    {.name = "anchor", .kind = AttrKind::integer},
};

}  // namespace

extern const OpDef op_edge_gradients = {"edge_gradients", kImage, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
