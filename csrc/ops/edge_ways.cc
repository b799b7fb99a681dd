// What edges are drawn along: at each pixel where the edge goes on, and whether it starts there.
//
//     ways        a byte, see lines/ways.h
//     pixels      the picture blurred, in a frame of its edge pixels, see lines/blurred.h
//
// They follow from dx and dy, the sums of 3 x 3 Sobel windows.
// heading is 0 right, 1 down, 2 left, 3 up: the way along the edge that has its brighter side on the right. An anchor is at
// least `anchor` above the neighbours across the edge, and above the first of them.
//
// Method    one pass over rows, as in canny.cc, of which each is looked at once more when the next one is there: of the
//           three neighbours ahead an edge goes on to the largest. Vectors in which nothing reaches the threshold, which
//           are most, are skipped.
// Numerics  integers throughout. Pixels outside repeat the edge; the blur mirrors.
// Threads   bands of rows, whose neighbours' rows are computed again. Same bits always.
// Source    C. Topal, C. Akinlar, "Edge Drawing: a combined real-time edge and segment detector", 2012.
#include "core/check.h"
#include "image/magnitude.h"
#include "image/window.h"
#include "lines/blurred.h"
#include "lines/ways.h"
#include "ops/ops.h"
#include "simd/bits.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;
constexpr int64_t L = kLanes<int16_t>;

// A size with a heading under it, and in between what tells neighbours apart.
constexpr int kSizeShift = 4, kMostSize = 2047;
constexpr int16_t kSize = kMostSize << kSizeShift, kHeading = 3, kUpright = 1;

enum { kSigma, kThreshold, kAnchorMargin };  // attributes

// Sizes with headings from halves a of dx + dy and b of dx - dy. An edge is upright unless these have opposite signs.
TW_INLINE i16v head(i16v a, i16v b, i16v half) {
    const i16v flat = mul_high(a, b) >> 15;
    const i16v back = (flat & a) | (~flat & ~(a + b));  // in the sign
    const i16v signs = bitcast<i16v>(bitcast<Vec<uint16_t>>(back) >> 14);
    return half << (kSizeShift + 1) | (signs & splat<int16_t>(2)) | (~flat & splat(kUpright));
}

// Of vectors of a row whether a size in them reaches the threshold: a bit each, so that what loops over them seldom branches.
constexpr int64_t kMarked = 64 * L;  // pixels of a word

// A row of the framed picture, and of the frame above and below.
void put_row(const Call& c, int64_t channel, int64_t y, const int16_t* row, uint8_t* kept) {
    const View& v = c.out[1];
    const int64_t width = v.shape[2], n = width - lines::kFrameColumns, last = v.shape[1] - 1;
    uint8_t* const to = v.as<uint8_t>() + channel * v.stride[0];
    const bool whole = v.stride[2] == 1;
    uint8_t* const at = whole ? to + (y + 1) * v.stride[1] : kept;
    for (int64_t x = 0; x + L <= n; x += L) store_pixels(at + 1 + x, load(row + x));
    for (int64_t x = n - n % L; x < n; ++x) at[1 + x] = static_cast<uint8_t>(row[x]);
    at[0] = at[1], at[n + 1] = at[n + 2] = at[n];
    const int64_t begin = y == 0 ? 0 : y + 1, end = y + 2 == last ? last : y + 1;
    for (int64_t k = begin; k <= end; ++k) {
        uint8_t* const line = to + k * v.stride[1];
        if (!whole)
            for (int64_t x = 0; x < width; ++x) line[x * v.stride[2]] = at[x];
        else if (line != at)
            __builtin_memcpy(line, at, static_cast<size_t>(width));
    }
}

// Where a step leads from pixels s: to the largest neighbour, of equals to that ahead, then to that before it.
TW_INLINE i16v way(i16v s, i16v ahead, i16v before, i16v behind, i16v least) {
    constexpr int16_t nowhere = lines::kNowhere << 2;
    const i16v to = max_any(
        max_any(ahead | splat<int16_t>(lines::kAhead << 2), before | splat<int16_t>(lines::kBefore << 2)), behind);
    const i16v turned = (to ^ s) & splat(kHeading);
    const i16v on = select(turned == splat<int16_t>(2), splat(nowhere), to & splat(nowhere));
    return select(to < least, splat(nowhere), on);
}

// Rows of sizes with headings, and which vectors of the middle one are marked.
struct Rows {
    const int16_t *above, *at, *below;
    const uint64_t* marks;
};

void ways_of(const Rows& r, int16_t threshold, int16_t margin, int64_t n, uint8_t* to) {
    const i16v least = splat(threshold), below = least - 1, margins = splat(margin), size = splat(kSize);
    const i16v margins_before = max_any(margins, splat<int16_t>(1 << kSizeShift));
    __builtin_memset(to, lines::kNoEdge, static_cast<size_t>(n));
    for (int64_t first = 0; first < n; first += kMarked) {
        for (uint64_t marks = r.marks[first / kMarked]; marks; marks &= marks - 1) {
            const int64_t x = first + L * __builtin_ctzll(marks);
            const i16v s = load(r.at + x);
            const i16v upright = (s & splat(kUpright)) != 0;
            const i16v north = load(r.above + x), south = load(r.below + x), west = load(r.at + x - 1);
            const i16v east = load(r.at + x + 1), north_east = load(r.above + x + 1),
                       south_west = load(r.below + x - 1);
            const i16v larger = way(s, select(upright, south, east), select(upright, south_west, north_east),
                                    load(r.below + x + 1), least);
            const i16v smaller = way(s, select(upright, north, west), load(r.above + x - 1),
                                     select(upright, north_east, south_west), least);
            const i16v own = s & size;
            const i16v rise = own - (select(upright, west, north) & size) - margins_before;
            const i16v fall = own - (select(upright, east, south) & size) - margins;
            const i16v anchor = select((rise | fall) < 0, i16v{}, splat<int16_t>(lines::kAnchor));
            const i16v byte = (s & splat(kHeading)) | larger | smaller << 2 | anchor;
            store_pixels(to + x, select(s > below, byte, splat<int16_t>(lines::kNoEdge)));
        }
    }
}

// What a band keeps: rows of both gradients, of four sizes, and of results.
struct Kept {
    int64_t pitch;
    int16_t *dx, *dy, *sizes;
    uint8_t *ways, *pixels;
    uint64_t* marks;

    TW_INLINE int64_t marks_of_row(int64_t width) { return ceil_div(width, 8 * kMarked) * 8; }  // whole lines
    TW_INLINE int64_t bytes(int64_t width) {
        return row_pitch(width) * (6 * static_cast<int64_t>(sizeof(int16_t)) + 2) +
               4 * marks_of_row(width) * static_cast<int64_t>(sizeof(uint64_t));
    }
    TW_INLINE Kept at(char* memory, int64_t width) {
        const int64_t pitch = row_pitch(width);
        int16_t* const rows = reinterpret_cast<int16_t*>(memory);
        return {pitch,
                rows + kMargin,
                rows + pitch + kMargin,
                rows + 2 * pitch + kMargin,
                reinterpret_cast<uint8_t*>(rows + 6 * pitch),
                reinterpret_cast<uint8_t*>(rows + 6 * pitch) + pitch,
                reinterpret_cast<uint64_t*>(reinterpret_cast<uint8_t*>(rows + 6 * pitch) + 2 * pitch)};
    }
    TW_INLINE int16_t* row(const Kept& k, int64_t y) { return k.sizes + (y & 3) * k.pitch; }
    TW_INLINE uint64_t* marks_of(const Kept& k, int64_t y, int64_t width) {
        return k.marks + (y & 3) * marks_of_row(width);
    }
};

void run_band(const Call& c, const Picture& p, const Taps& taps, int64_t first, int64_t last, char* scratch) {
    const int64_t n = p.width;
    __builtin_memset(scratch, 0, static_cast<size_t>(Kept::bytes(n)));
    const Kept kept = Kept::at(scratch, n);
    Gradients<Sobel<3>> gradients(p, taps, scratch + Kept::bytes(n));
    const int16_t threshold = static_cast<int16_t>(min_of(c.attr[kThreshold].i, int64_t{kMostSize}) << kSizeShift);
    const int16_t margin = static_cast<int16_t>(min_of(c.attr[kAnchorMargin].i, int64_t{kMostSize}) << kSizeShift);
    const i16v most = splat<int16_t>(static_cast<int16_t>(((threshold >> kSizeShift) - 1) / 2));
    for (int64_t y = first - 1; y <= last; ++y) {
        if (y >= 0 && y < p.height) {
            int16_t* const sizes = Kept::row(kept, y);
            uint64_t* const marks = Kept::marks_of(kept, y, n);
            uint64_t bits = 0;
            const auto put = [&](int64_t x, i16v a, i16v b) __attribute__((always_inline)) {
                const i16v half = max_any(abs(a), abs(b));
                store(sizes + x, head(a, b, half));
                const auto i = static_cast<uint64_t>(x) / L;
                bits = (i % 64 ? bits : 0) | uint64_t{any_above(half, most)} << i % 64;
                marks[i / 64] = bits;
            };
            if (p.channels == 1) {
                gradients.each(y, put);
            } else {
                gradients.template row<int16_t, false>(y, kept.dx, kept.dy, sizes);
                for (int64_t x = 0; x < n; x += L) {
                    const i16v gx = load(kept.dx + x), gy = load(kept.dy + x);
                    put(x, (gx + gy) >> 1, (gx - gy) >> 1);
                }
            }
            if (y >= first && y < last)
                for (int64_t k = 0; k < p.channels; ++k) put_row(c, k, y, gradients.pixels(k, y), kept.pixels);
            sizes[0] = sizes[n - 1] = 0;
            if (y == 0 || y == p.height - 1) __builtin_memset(sizes, 0, static_cast<size_t>(n) * sizeof(int16_t));
        }
        if (y <= first) continue;
        const Rows rows = {Kept::row(kept, y - 2), Kept::row(kept, y - 1), Kept::row(kept, y),
                           Kept::marks_of(kept, y - 1, n)};
        ways_of(rows, threshold, margin, n, kept.ways);
        uint8_t* const to = begin_row(c.out[0], y - 1, kept.ways);
        if (to != kept.ways) __builtin_memcpy(to, kept.ways, static_cast<size_t>(n));
        end_row(c.out[0], y - 1, kept.ways);
    }
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const Picture p = picture_of(c.in[0]);
    Taps taps;
    make_taps(c.attr[kSigma].f, taps);
    const int64_t bytes = Kept::bytes(p.width) + Gradients<Sobel<3>>::bytes(p, taps.n);
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
    const auto framed = [](int64_t n, int64_t frame) { return n == 0 ? 0 : n + frame; };
    const int64_t pixels[] = {image.ndim == 3 ? int64_t{3} : int64_t{1}, framed(image.shape[0], lines::kFrameRows),
                              framed(image.shape[1], lines::kFrameColumns)};
    r.n_out = 2;
    r.out[0] = result(DType::u8, 2, image.shape);
    r.out[1] = result(DType::u8, 3, pixels);
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

extern const Entry op_edge_ways = {"edge_ways", kImage, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
