// The bilateral filter of 8-bit pictures: a mean weighted by how near a pixel is, in place and in value.
//
//     y = floor(sum w p / sum w + 1/2) over pixels p in a disc of diameter d around c,
//     w = rint(255 exp(-r^2 / (2 sigma_space^2) - (p - c)^2 / (2 sigma_color^2)))
//
// Method    a weight is looked up by the distance in value, 16 entries of a table at a time, in registers: tables end
//           where weights round to nothing. Pixels of one distance share a table. Sums are kept by lane, so that nothing
//           is shuffled.
// Numerics  weights in whole numbers, exact sums, one rounding half up. Outside, pixels mirror without repeating the edge.
// Threads   bands of rows, whose windows overlap. Same bits always.
// Source    C. Tomasi and R. Manduchi, "Bilateral filtering for gray and color images", 1998.
#include "image/check.h"
#include "image/window.h"
#include "ops/ops.h"
#include "simd/pixels.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 32;
constexpr int64_t kLargest = 17;  // so that 16 bits hold a sum of weights
constexpr int kMostPixels = 225, kHalf = kLargest / 2;

struct Tap {
    int64_t row, column;
    const uint8_t* table;  // entries 0-15 in every unit of 16 bytes of a vector, then 16-31, ...
};

struct Disc {
    Tap tap[kMostPixels];
    int n, parts;  // vectors in a table
};

// Weights by squared distance in place and by distance in value; `memory` takes kHalf^2 + 1 tables of 16 vectors.
void make_disc(int64_t d, double sigma_color, double sigma_space, uint8_t* memory, Disc& disc) {
    const int64_t half = d / 2;
    const double color = -0.5 / (sigma_color * sigma_color), space = -0.5 / (sigma_space * sigma_space);
    uint8_t flat[256];
    disc.n = 0, disc.parts = 1;
    for (int64_t square = 0; square <= half * half; ++square) {
        uint8_t* const table = memory + square * 16 * kVecBytes;
        for (int v = 0; v < 256; ++v) {
            const double weight = static_cast<double>(square) * space + static_cast<double>(v * v) * color;
            flat[v] = static_cast<uint8_t>(__builtin_rint(255 * __builtin_exp(weight)));
            if (flat[v] && v / 16 >= disc.parts) disc.parts = v / 16 + 1;
        }
        for (int part = 0; part < 16; ++part)
            for (int i = 0; i < kVecBytes; ++i) table[part * kVecBytes + i] = flat[part * 16 + i % 16];
        for (int64_t y = -half; y <= half; ++y)
            for (int64_t x = -half; x <= half; ++x)
                if (y * y + x * x == square) disc.tap[disc.n++] = {y + half, x, table};
    }
}

// floor(sum / weight + 1/2) of lanes of 32 bits, both below 2^25.
TW_INLINE i32v quotient(u32v sum, u32v weight) {
    const i32v n = bitcast<i32v>(2 * sum + weight), d = bitcast<i32v>(2 * weight);
    i32v q = __builtin_convertvector(to_f32(n) / to_f32(d), i32v);
    const i32v rest = n - q * d;
    q += bitcast<i32v>(rest < 0);  // the float quotient may be one off
    return q - bitcast<i32v>(rest >= d);
}

void filter_row(const uint8_t* const* rows, const Disc& disc, int64_t half, uint8_t* to, int64_t n) {
    typedef Vec<uint16_t> Pairs;
    for (int64_t x = 0; x < n; x += kLanes<uint8_t>) {
        const u8v center = load(rows[half] + x);
        // Bytes 0, 1, 2 and 3 of every four, and weights of even and odd bytes.
        u32v sum[4] = {};
        Pairs even{}, odd{};
        for (int t = 0; t < disc.n; ++t) {
            const Tap& tap = disc.tap[t];
            const u8v pixel = load(rows[tap.row] + x + tap.column);
            u8v apart = max_any(pixel, center) - min_any(pixel, center), weight{};
            for (int part = 0; part < disc.parts; ++part, apart -= 16)
                weight |= look_up16(load(tap.table + part * kVecBytes), min_any(apart, splat<uint8_t>(16)) + 112);
            const Pairs w = bitcast<Pairs>(weight), p = bitcast<Pairs>(pixel);
            const Pairs low = w & 255, high = w >> 8;
            even += low;
            odd += high;
            const u32v a = bitcast<u32v>(low * (p & 255)), b = bitcast<u32v>(high * (p >> 8));
            sum[0] += a & 0xffff;
            sum[2] += a >> 16;
            sum[1] += b & 0xffff;
            sum[3] += b >> 16;
        }
        const u32v w0 = bitcast<u32v>(even), w1 = bitcast<u32v>(odd);
        const i32v y = quotient(sum[0], w0 & 0xffff) | quotient(sum[1], w1 & 0xffff) << 8 |
                       quotient(sum[2], w0 >> 16) << 16 | quotient(sum[3], w1 >> 16) << 24;
        store_n(to + x, bitcast<u8v>(y), min_of(n - x, kLanes<uint8_t>));
    }
}

Status run(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    const int64_t d = c.attr[0].i, half = d / 2, height = image.shape[0], n = image.shape[1];
    Scratch scratch(static_cast<size_t>((kHalf * kHalf + 1) * 16 * kVecBytes));
    if (!scratch.as<char>()) return fail(Status::memory, "d", "no memory for the weights; want a smaller d");
    Disc disc;
    make_disc(d, c.attr[1].f, c.attr[2].f, scratch.as<uint8_t>(), disc);
    const int64_t pitch = row_pitch(n);
    bool enough = true;
    parallel(ceil_div(height, kBandRows), [&](int64_t band) {
        Scratch own(static_cast<size_t>((d + 1) * pitch));
        uint8_t* const ring = own.as<uint8_t>();
        if (!ring) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        uint8_t* const row = ring + d * pitch;
        const auto place = [&](int64_t i) { return ring + (i % d + d) % d * pitch + kMargin; };
        const auto take = [&](int64_t i) {
            uint8_t* const to = place(i);
            copy_row(to, image.as<uint8_t>() + mirrored(i, height) * image.stride[0], image.stride[1], n);
            for (int64_t k = 1; k <= half; ++k)
                to[-k] = to[mirrored(-k, n)], to[n - 1 + k] = to[mirrored(n - 1 + k, n)];
        };
        const int64_t first = band * kBandRows;
        for (int64_t i = first - half; i < first + half; ++i) take(i);
        for (int64_t i = first; i < min_of(first + kBandRows, height); ++i) {
            take(i + half);
            const uint8_t* rows[kLargest];
            for (int64_t k = 0; k < 2 * half + 1; ++k) rows[k] = place(i + k - half);
            uint8_t* const to = begin_row(y, i, row);
            filter_row(rows, disc, half, to, n);
            end_row(y, i, to);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

Status want_sigma(const Attr& a, const char* name) {
    if (a.f >= 1e-3 && a.f <= 1e6) return Status::ok;
    return fail(Status::attr, name, "%s=%g; want 0.001 to 1e6", name, a.f);
}

Status infer(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_plane(image, "image"));
    const int64_t d = c.attr[0].i;
    if (d < 1 || d > kLargest || d % 2 == 0)
        return fail(Status::attr, "d", "d=%lld; want an odd number of 1 to %lld", static_cast<long long>(d),
                    static_cast<long long>(kLargest));
    TW_TRY(want_sigma(c.attr[1], "sigma_color"));
    TW_TRY(want_sigma(c.attr[2], "sigma_space"));
    r.n_out = 1;
    r.out[0] = result(DType::u8, 2, image.shape);
    r.flops = 6.0 * static_cast<double>(d * d) * static_cast<double>(numel(image));
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kAttrs[] = {{.name = "d", .kind = AttrKind::integer, .required = true},
                               {.name = "sigma_color", .kind = AttrKind::real, .required = true},
                               {.name = "sigma_space", .kind = AttrKind::real, .required = true}};

}  // namespace

extern const OpDef op_bilateral = {"bilateral", kImage, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
