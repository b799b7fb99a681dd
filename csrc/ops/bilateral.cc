// The bilateral filter of pictures: a mean weighted by how near a pixel is, in place and in value.
//
//     y = floor(sum w p / sum w + 1/2) over pixels p in a disc of diameter d around c,
//     w = rint(255 exp(-r^2 / (2 sigma_space^2) - |p - c|^2 / (2 sigma_color^2)))
//
// of 8 bits, and with weights of place and value rounded by themselves, to 1/255 and 1/(2^20 - 1), of 16. Of colours
// |p - c| is the sum over channels, which share their weights. Of floats
//
//     y = c + sum w (p - c) / sum w,  w = exp(-r^2 / (2 sigma_space^2) - |p - c|^2 / (2 sigma_color^2))
//
// Method    two pixels weigh each other alike: weights are found once for both, a row of one half of the disc at a time. A
//           weight is looked up by the distance in value, 16 entries of a table at a time, in registers: tables end where
//           weights round to nothing. Sums are kept by lane, so that nothing is shuffled. Colours are filtered plane by
//           plane; their distances, of up to 765, are looked up in three tables of 256.
//           Of 16 bits the weights of values are fetched from one table, of floats computed.
// Numerics  weights in whole numbers, exact sums, of 16 bits in float64, one rounding half up; floats in float32. Outside,
//           pixels mirror without repeating the edge.
// Threads   stripes of bands of rows, whose windows overlap. Same bits always.
// Source    C. Tomasi and R. Manduchi, "Bilateral filtering for gray and color images", 1998.
#include "image/disc.h"
#include "ops/ops.h"
#include "simd/inverse.h"
#include "simd/lookup.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;
constexpr int64_t kStripe = 480;  // columns at once, so that weights stay in L1
constexpr int64_t kLargest = 17;  // so that 16 bits hold a sum of weights
constexpr int64_t kHalf = kLargest / 2, kPitch = kStripe + 2 * kMargin + 32;
constexpr int kMostTaps = 112, kParts = 16, kVectors = 4, kValues = 256, kMostChannels = 3;
constexpr int64_t kTableBytes = kParts * kVecBytes + kValues;

// Rows that are kept in turn, a power of two of them.
TW_INLINE int64_t ring_of(int64_t rows) {
    int64_t ring = 1;
    while (ring < rows) ring *= 2;
    return ring;
}

// Of a pixel and the one `down` rows below and `along` columns to the right. Its weights of the last `down` + 1 rows are
// kept from row `kept` of all that are.
struct Tap {
    int64_t down, along, kept;
    const uint8_t* table;
};

// The pixels of a disc that follow its middle, as those before it are the same turned round.
struct Disc {
    Tap tap[kMostTaps];
    int n, channels;
    int64_t kept;
    int tables,
        parts[kMostChannels];  // that are looked into, and their sixteens, of which the last one ends in the last entry
};

// Tables by squared distance in place, one a channel: of distances up to 255, and of what 255 more each change. Entries 0-15
// in every unit of 16 bytes of a vector, then what entries 16-31 differ in, and so on; at 128 anew. Behind them all 256.
void make_disc(int64_t d, int channels, double sigma_color, double sigma_space, uint8_t* memory, Disc& disc) {
    const int64_t half = d / 2;
    const double color = -0.5 / (sigma_color * sigma_color), space = -0.5 / (sigma_space * sigma_space);
    disc.n = 0, disc.channels = channels, disc.kept = 0, disc.tables = 1;
    for (int& parts : disc.parts) parts = 1;
    for (int64_t square = 1; square <= half * half; ++square) {
        uint8_t* const tables = memory + square * channels * kTableBytes;
        for (int t = 0; t < channels; ++t) {
            uint8_t *const table = tables + t * kTableBytes, *const flat = table + kParts * kVecBytes;
            for (int v = 0; v < kValues; ++v) {
                const int apart = v + t * (kValues - 1);
                const double weight = static_cast<double>(square) * space + static_cast<double>(apart * apart) * color;
                flat[v] = static_cast<uint8_t>(__builtin_rint(255 * __builtin_exp(weight)));
            }
            for (int v = kValues - 1; t && v >= 0; --v) flat[v] ^= flat[0];
            for (int v = 0; v < kValues; ++v) {
                if (t && flat[v]) disc.tables = max_of(disc.tables, t + 1);
                if (flat[v] != flat[kValues - 1])
                    disc.parts[t] = min_of(max_of(disc.parts[t], (v + 1) / 16 + 1), kParts);
            }
            for (int part = 0; part < kParts; ++part)
                for (int i = 0; i < kVecBytes; ++i) {
                    const int v = part * 16 + i % 16;
                    table[part * kVecBytes + i] = static_cast<uint8_t>(flat[v] ^ (part % 8 ? flat[v - 16] : 0));
                }
        }
        for (int64_t y = 0; y <= half; ++y)
            for (int64_t x = -half; x <= half; ++x)
                if (y * y + x * x == square && (y > 0 || x > 0)) {
                    disc.tap[disc.n++] = {y, x, disc.kept, tables};
                    disc.kept += ring_of(y + 1);
                }
    }
}

// How far apart vectors of pixels are, all channels together: by the first table, by the second where that ends, and so on.
template <class T, int Channels>
TW_INLINE void find_distances(const uint8_t* a, const uint8_t* b, u8v (&apart)[Channels]) {
#pragma GCC unroll 3
    for (int c = 0; c < Channels; ++c) {
        const auto p = bitcast<Vec<T>>(load(b + c * kPitch)), q = bitcast<Vec<T>>(load(a + c * kPitch));
        apart[c] = bitcast<u8v>(max_any(p, q) - min_any(p, q));
    }
    // Into p what bytes hold of p + q, and the rest into q.
    const auto carry = [](u8v& p, u8v& q) __attribute__((always_inline)) {
        const u8v room = min_any(~p, q);
        p += room, q -= room;
    };
    if constexpr (Channels == 3) carry(apart[0], apart[1]), carry(apart[0], apart[2]), carry(apart[1], apart[2]);
}

// Weights of n pairs of pixels, and up to kVectors vectors more.
template <int Channels>
void find_weights(const uint8_t* a, const uint8_t* b, const uint8_t* tables, const Disc& disc, uint8_t* to, int64_t n) {
    typedef Vec<int8_t> Signed;
    const int used = Channels == 1 ? 1 : disc.tables;
    int parts[Channels];
    u8v most[Channels];
    for (int t = 0; t < Channels; ++t)
        parts[t] = disc.parts[t], most[t] = splat(static_cast<uint8_t>(16 * disc.parts[t] - 1));
    for (int64_t x = 0; x < n; x += kVectors * kVecBytes) {
        u8v apart[kVectors][Channels], found[kVectors] = {};
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
            find_distances<uint8_t>(a + x + v * kVecBytes, b + x + v * kVecBytes, apart[v]);
        // Each part adds its change to what lies at or above it; lanes of 128 and more find 0 and stay there.
        const auto look_up = [&](int t, int first, int last) __attribute__((always_inline)) {
            const uint8_t* const table = tables + t * kTableBytes;
            u8v left[kVectors];
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
                left[v] = min_any(apart[v][t], most[t]) ^ splat(static_cast<uint8_t>(first * 16));
                left[v] |= bitcast<u8v>(bitcast<Signed>(left[v]) < 0);
            }
#pragma GCC unroll 1
            for (int part = first; part < last; ++part) {
                const u8v entries = load(table + part * kVecBytes);
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) {
                    found[v] ^= look_up16(entries, left[v]);
                    left[v] -= 16;
                }
            }
        };
        for (int t = 0; t < used; ++t) {
            look_up(t, 0, min_of(parts[t], 8));
            if (parts[t] > 8) look_up(t, 8, parts[t]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) store(to + x + v * kVecBytes, found[v]);
    }
}

// The same by permutes of bytes, of pixels less 128. Up to 8 parts a table of 128 holds.
template <int Channels>
TW_PERMUTES_BYTES void permute_weights(const uint8_t* a, const uint8_t* b, const uint8_t* tables, const Disc& disc,
                                       uint8_t* to, int64_t n) {
    const int parts = disc.parts[0], used = disc.tables;
    const u8v most = splat(static_cast<uint8_t>(16 * parts - 1));
    const ByteTable weights = ByteTable::of(tables + kParts * kVecBytes);
    for (int64_t x = 0; x < n; x += kVecBytes) {
        u8v apart[Channels];
        find_distances<int8_t>(a + x, b + x, apart);
        const u8v first = min_any(apart[0], most);
        u8v found = parts <= 8 ? look_up128(weights, first) : look_up256(weights, first);
        for (int t = 1; Channels > 1 && t < used; ++t)
            found ^= look_up256(ByteTable::of(tables + t * kTableBytes + kParts * kVecBytes), apart[t]);
        store(to + x, found);
    }
}

// floor(sum / weight + 1/2) of lanes of 32 bits, both below 2^25. The quotient of floats that are whole reaches no integer
// that the exact one does not reach.
TW_INLINE i32v quotient(u32v sum, u32v weight) {
    const i32v n = bitcast<i32v>(2 * sum + weight), d = bitcast<i32v>(2 * weight);
    i32v q = __builtin_convertvector(to_f32(n) * about_inverse(to_f32(d)), i32v);
    const i32v rest = n - q * d;
    q += bitcast<i32v>(rest < 0);  // of at most 255, that of floats may be one off
    return q - bitcast<i32v>(rest >= d);
}

// The same of sums of pixels less 128: what both roundings take or add is less than the 1 / (2 weight) that the result is away
// from the next integer.
constexpr int64_t kFew = 124;  // others, so that a weight is below 2^15
TW_INLINE i32v quotient_of_few(i32v sum, i32v weight) {
    return __builtin_convertvector(to_f32(sum) / to_f32(weight) + 128.5f, i32v);
}

struct Weighed {
    const uint8_t *weights, *pixels;
};

// Means of n pixels.
void find_means(const uint8_t* middle, const Weighed* others, int64_t count, uint8_t* to, int64_t n) {
    typedef Vec<uint16_t> Pairs;
    // Of even or odd bytes: sums of weights, and of products, whole but for multiples of 2^16 and of their upper bytes.
    struct Sums {
        Pairs weights, products, upper;
        TW_INLINE void add(Sums& s, Pairs weight, Pairs pixel) {
            const Pairs product = weight * pixel;
            s.weights += weight;
            s.products += product;
            s.upper += product >> 8;
        }
        // Means of every other lane, in the low bytes of 32 bits.
        TW_INLINE i32v mean(const Sums& s, bool odd) {
            const Pairs lower = s.products - (s.upper << 8);  // sums of lower bytes, which 16 bits hold
            const auto half = [=](Pairs v) __attribute__((always_inline)) {
                return odd ? bitcast<u32v>(v) >> 16 : bitcast<u32v>(v) & 0xffff;
            };
            return quotient((half(s.upper) << 8) + half(lower), half(s.weights));
        }
    };
    for (int64_t x = 0; x < n; x += kLanes<uint8_t>) {
        Sums even{}, odd{};
        const auto add = [&](u8v weight, u8v pixel) __attribute__((always_inline)) {
            const Pairs w = bitcast<Pairs>(weight), p = bitcast<Pairs>(pixel);
            Sums::add(even, w & 255, p & 255);
            Sums::add(odd, w >> 8, p >> 8);
        };
        add(splat<uint8_t>(255), load(middle + x));
#pragma GCC unroll 2
        for (int64_t k = 0; k < count; ++k) add(load(others[k].weights + x), load(others[k].pixels + x));
        const i32v y = Sums::mean(even, false) | Sums::mean(odd, false) << 8 | Sums::mean(even, true) << 16 |
                       Sums::mean(odd, true) << 24;
        store_n(to + x, bitcast<u8v>(y), min_of(n - x, kLanes<uint8_t>));
    }
}

// Four vectors of bytes as bytes of four of 32-bit lanes: of each unit lanes 0-3, 4-7 and so on.
TW_INLINE void quads_of(const u8v (&from)[4], u8v (&to)[4]) {
    typedef Vec<int16_t> Pairs;
    const Pairs low_a = bitcast<Pairs>(interleave_low(from[0], from[1]));
    const Pairs low_b = bitcast<Pairs>(interleave_low(from[2], from[3]));
    const Pairs high_a = bitcast<Pairs>(interleave_high(from[0], from[1]));
    const Pairs high_b = bitcast<Pairs>(interleave_high(from[2], from[3]));
    to[0] = bitcast<u8v>(interleave_low(low_a, low_b)), to[1] = bitcast<u8v>(interleave_high(low_a, low_b));
    to[2] = bitcast<u8v>(interleave_low(high_a, high_b)), to[3] = bitcast<u8v>(interleave_high(high_a, high_b));
}

// The same by products of four bytes at a time. A disc has four times as many others as a quarter of it.
TW_PERMUTES_BYTES void find_means_by_quads(const uint8_t* middle, const Weighed* others, int64_t count, uint8_t* to,
                                           int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<uint8_t>) {
        i32v products[4], weights[4];
        u8v pixels[4] = {load(middle + x)}, some[4], weight_quads[4], pixel_quads[4];
        quads_of(pixels, pixel_quads);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            weights[v] = splat<int32_t>(255);
            products[v] = add_quads(i32v{}, splat<uint8_t>(255), bitcast<Vec<int8_t>>(pixel_quads[v]));
        }
        for (int64_t k = 0; k < count; k += 4) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                some[i] = load(others[k + i].weights + x);
                pixels[i] = load(others[k + i].pixels + x);
            }
            quads_of(some, weight_quads);
            quads_of(pixels, pixel_quads);
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
                products[v] = add_quads(products[v], weight_quads[v], bitcast<Vec<int8_t>>(pixel_quads[v]));
                weights[v] = add_quads(weights[v], weight_quads[v], splat<int8_t>(1));
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
            products[v] = count <= kFew
                              ? quotient_of_few(products[v], weights[v])
                              : quotient(bitcast<u32v>(products[v] + (weights[v] << 7)), bitcast<u32v>(weights[v]));
        const u8v y = narrow_units(narrow_units(products[0], products[1]), narrow_units(products[2], products[3]));
        store_n(to + x, y, min_of(n - x, kLanes<uint8_t>));
    }
}

// Columns x to x + n - 1 of rows first to last - 1.
void filter_stripe(const View& image, const View& y, const Disc& disc, int64_t half, int64_t first, int64_t last,
                   int64_t x, int64_t n, uint8_t* memory) {
    const int64_t height = image.shape[0], width = image.shape[1], ring = ring_of(2 * half + 1);
    const int channels = disc.channels;
    const int64_t from_plane = channels > 1 ? image.stride[2] : 0, to_plane = channels > 1 ? y.stride[2] : 0;
    const auto pixels = [&](int64_t i) { return memory + (i & (ring - 1)) * channels * kPitch + kMargin; };
    const auto weights = [&](const Tap& tap, int64_t i) {
        return memory + (ring * channels + tap.kept + (i & (ring_of(tap.down + 1) - 1))) * kPitch + kMargin;
    };
    const auto take = [&](int64_t i) {
        const bool is_signed = permutes_bytes();  // pixels are less 128 then
        const uint8_t* from = image.as<uint8_t>() + mirrored(i, height) * image.stride[0];
        uint8_t* to = pixels(i);
        const int64_t begin = max_of(x - half, 0), end = min_of(x + n + half, width), step = image.stride[1];
        const uint8_t sign = is_signed ? 128 : 0;
        const bool splits = is_signed && step == 3 && from_plane == 1;
        if (splits) split_channels(from + begin * step, sign, to + begin - x, kPitch, end - begin);
        for (int c = 0; c < channels; ++c, from += from_plane, to += kPitch) {
            if (!splits) (is_signed ? copy_signed : copy_row)(to + begin - x, from + begin * step, step, end - begin);
            for (int64_t k = x - half; k < begin; ++k) to[k - x] = from[mirrored(k, width) * step] ^ sign;
            for (int64_t k = end; k < x + n + half; ++k) to[k - x] = from[mirrored(k, width) * step] ^ sign;
        }
    };
    const auto find = channels == 1      ? permutes_bytes() ? permute_weights<1> : find_weights<1>
                      : permutes_bytes() ? permute_weights<3>
                                         : find_weights<3>;
    Weighed others[2 * kMostTaps];
    uint8_t row[kMostChannels][kStripe + kVecBytes];
    for (int64_t i = first - 2 * half; i < first; ++i) take(i + half);
    for (int64_t i = first - half; i < last; ++i) {
        if (i >= first) take(i + half);
        for (int t = 0; t < disc.n; ++t) {
            const Tap& tap = disc.tap[t];
            if (i + tap.down < first) continue;
            const int64_t before = max_of(tap.along, 0), after = max_of(-tap.along, 0);
            find(pixels(i) - before, pixels(i + tap.down) + tap.along - before, tap.table, disc,
                 weights(tap, i) - before, n + before + after);
        }
        if (i < first) continue;
        for (int t = 0; t < disc.n; ++t) {
            const Tap& tap = disc.tap[t];
            others[2 * t] = {weights(tap, i), pixels(i + tap.down) + tap.along};
            others[2 * t + 1] = {weights(tap, i - tap.down) - tap.along, pixels(i - tap.down) - tap.along};
        }
        uint8_t* to = y.as<uint8_t>() + i * y.stride[0] + x * y.stride[1];
        const bool whole = y.stride[1] == 1, joins = permutes_bytes() && y.stride[1] == 3 && to_plane == 1;
        const uint8_t* middle = pixels(i);
        for (int c = 0; c < channels; ++c, to += to_plane, middle += kPitch) {
            (permutes_bytes() ? find_means_by_quads : find_means)(middle, others, 2 * disc.n, whole ? to : row[c], n);
            for (int64_t k = 0; !whole && !joins && k < n; ++k) to[k * y.stride[1]] = row[c][k];
            for (int t = 0; c + 1 < channels && t < 2 * disc.n; ++t) others[t].pixels += kPitch;
        }
        if (joins) join_channels(row[0], sizeof row[0], to - channels * to_plane, n);
    }
}

Status run(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    if (image.dtype != DType::u8) return weigh_disc(image, y, c.attr[0].i / 2, c.attr[1].f, c.attr[2].f);
    const int64_t d = c.attr[0].i, half = d / 2, height = image.shape[0], n = image.shape[1];
    const int channels = static_cast<int>(row_channels(image));
    Scratch scratch(static_cast<size_t>((kHalf * kHalf + 1) * channels * kTableBytes));
    if (!scratch.as<char>()) return fail(Status::memory, "d", "no memory for the weights; want a smaller d");
    Disc disc;
    make_disc(d, channels, c.attr[1].f, c.attr[2].f, scratch.as<uint8_t>(), disc);
    const int64_t stripes = ceil_div(n, kStripe);
    bool enough = true;
    parallel(ceil_div(height, kBandRows) * stripes, [&](int64_t chunk) {
        Scratch own(static_cast<size_t>((ring_of(2 * half + 1) * channels + disc.kept) * kPitch));
        if (!own.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const int64_t first = chunk / stripes * kBandRows, x = chunk % stripes * kStripe;
        filter_stripe(image, y, disc, half, first, min_of(first + kBandRows, height), x, min_of(kStripe, n - x),
                      own.as<uint8_t>());
    });
    return enough ? Status::ok
                  : fail(Status::memory, "d", "no memory for %lld rows of weights; want a smaller d",
                         static_cast<long long>(disc.kept));
}

Status want_sigma(const Attr& a, const char* name) {
    if (a.f >= 1e-3 && a.f <= 1e6) return Status::ok;
    return fail(Status::attr, name, "%s=%g; want 0.001 to 1e6", name, a.f);
}

Status infer(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_any_picture(image));
    const int64_t d = c.attr[0].i;
    if (d < 1 || d > kLargest || d % 2 == 0)
        return fail(Status::attr, "d", "d=%lld; want an odd number of 1 to %lld", static_cast<long long>(d),
                    static_cast<long long>(kLargest));
    TW_TRY(want_sigma(c.attr[1], "sigma_color"));
    TW_TRY(want_sigma(c.attr[2], "sigma_space"));
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, image.shape);
    r.flops = 6.0 * static_cast<double>(d * d) * static_cast<double>(numel(image));
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kAttrs[] = {{.name = "d", .kind = AttrKind::integer, .required = true},
                               {.name = "sigma_color", .kind = AttrKind::real, .required = true},
                               {.name = "sigma_space", .kind = AttrKind::real, .required = true}};

}  // namespace

extern const Entry op_bilateral = {"bilateral", kImage, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
