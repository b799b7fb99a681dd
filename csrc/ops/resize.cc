// A picture of another size: each pixel is a weighted sum of those around its place in the given one.
//
//     t[i, q] = (sum over u of down[i, u] image[first(i) + u, q] + 2^7) >> 8
//     y[i, j] = (sum over v of along[j, v] t[i, first(j) + v] + 2^19) >> 20, saturated
//
// Method    separable: rows are summed downwards, whole vectors at once, then along, where pairs of neighbours are weighed as
//           vectors: shuffled from units of 16 bytes where these hold four results or three channels of one, else fetched
//           one by one. Half the size is the mean of four.
// Numerics  weights in 1/2^14 of sum 2^14 (core/resample.cc), exact sums, two roundings half up. Outside, the edge
//           repeats. Half the size, linear or by area, and nearest have the bits of OpenCV 5. Pixels of 16 bits and floats
//           are weighted by float32 numbers; sums are taken in float64, in order, and rounded to float32 each.
// Threads   bands of rows of the result. Same bits always.
// Source    R. Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -3/4.
#include "core/resample.h"
#include "image/separable.h"
#include "ops/ops.h"
#include "simd/fetch.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 32, kMostPixels = int64_t{1} << 30;

struct Axis {
    int64_t taps;
    int32_t* first;
    int16_t* weights;
};

TW_INLINE int64_t within(int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n - 1; }

// Sums of the rows of one result, kept in 1/64; of N rows, or of any number for N = 0.
template <int N>
void sum_down(const uint8_t* const* rows, const int16_t* weights, int64_t count, int16_t* to, int64_t n) {
    const i32v half = splat<int32_t>(1 << 7);
    const int64_t taps = N ? N : count;
    for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
        i32v low = half, high = half;
#pragma GCC unroll 4
        for (int64_t k = 0; k < taps; k += 2) {
            const bool two = k + 1 < taps;
            const i16v a = load_pixels(rows[k] + x), b = two ? load_pixels(rows[k + 1] + x) : i16v{};
            const int32_t pair = static_cast<int32_t>(static_cast<uint16_t>(weights[k]) |
                                                      static_cast<uint32_t>(two ? weights[k + 1] : 0) << 16);
            const i16v held = bitcast<i16v>(splat(pair));
            low += dot_pairs(interleave_low(a, b), held);
            high += dot_pairs(interleave_high(a, b), held);
        }
        store(to + x, narrow_units(low >> 8, high >> 8));
    }
}
void sum_down(const uint8_t* const* rows, const int16_t* weights, int64_t taps, int16_t* to, int64_t n) {
    taps == 2 ? sum_down<2>(rows, weights, taps, to, n) : sum_down<0>(rows, weights, taps, to, n);
}

// Weights along a row, two by two as they lie in 32 bits, the last with a zero: pair j of all pixels, then the next.
void pair_weights(const Axis& axis, int64_t width, int32_t* pairs) {
    for (int64_t j = 0; 2 * j < axis.taps; ++j)
        for (int64_t x = 0; x < width; ++x) {
            const int16_t* const weights = axis.weights + x * axis.taps + 2 * j;
            pairs[j * width + x] = static_cast<int32_t>(
                static_cast<uint16_t>(weights[0]) |
                static_cast<uint32_t>(static_cast<uint16_t>(2 * j + 1 < axis.taps ? weights[1] : 0)) << 16);
        }
}

// Of a row of one channel four results are made from a unit of 16 bytes, of one of three channels one, which lies in the
// first three lanes of 32 bits. Two vectors of units are in the order in which narrow_units makes them a row.
struct Near {
    int32_t* first;  // sums before each unit
    uint8_t* lanes;  // where in the unit each byte comes from
    int32_t* weights;  // pairs, four per unit, as in pair_weights
    int64_t units;
};
constexpr int64_t kUnitsAtOnce = 2 * kVecBytes / 16;

TW_INLINE int64_t results_in_unit(int64_t step) { return step == 1 ? 4 : 1; }
TW_INLINE int64_t units_of(int64_t width, int64_t step) {
    return ceil_div(width, results_in_unit(step) * kUnitsAtOnce) * kUnitsAtOnce;
}
TW_INLINE int64_t near_bytes(const Axis& axis, int64_t units) { return units * (4 + 16 + 16 * ceil_div(axis.taps, 2)); }

// False where four results do not fit.
bool find_near(const Axis& axis, const int32_t* pairs, int64_t width, int64_t step, Near& near) {
    constexpr int64_t half = kUnitsAtOnce / 2;
    constexpr uint8_t none = 128;
    for (int64_t u = 0; u < near.units; ++u) {
        const int64_t inside = u % kUnitsAtOnce, place = u - inside + inside % half * 2 + inside / half;
        const int64_t x = place * results_in_unit(step), at = axis.first[min_of(x, width - 1)];
        near.first[u] = static_cast<int32_t>(at * step);
        for (int64_t i = 0; i < 4; ++i) {
            const int64_t from = step == 1 ? x + i : x, away = axis.first[min_of(from, width - 1)] - at;
            if (away < 0 || away > 6) return false;
            const bool is_one = from < width && (step == 1 || i < step);
            for (int64_t b = 0; b < 4; ++b) {
                const int64_t byte = step == 1 ? 2 * away + b : 2 * i + b % 2 + b / 2 * 2 * step;
                near.lanes[16 * u + 4 * i + b] = is_one ? static_cast<uint8_t>(byte) : none;
            }
            for (int64_t j = 0; 2 * j < axis.taps; ++j)
                near.weights[(j * near.units + u) * 4 + i] = is_one ? pairs[j * width + from] : 0;
        }
    }
    return true;
}

// Results that are near; of N weights, or of any number for N = 0.
template <int N>
void sum_along(const int16_t* sums, const Near& near, int64_t count, int64_t step, uint8_t* to, int64_t n) {
    constexpr int64_t half = kUnitsAtOnce / 2, lanes = kLanes<int16_t>;
    const int64_t taps = N ? N : count;
    for (int64_t u = 0, x = 0; u < near.units; u += kUnitsAtOnce, x += step == 1 ? lanes : lanes / 4 * step) {
        i32v total[2] = {splat(1 << 19), splat(1 << 19)};
#pragma GCC unroll 4
        for (int64_t j = 0; 2 * j < taps; ++j)
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
                const int64_t at = u + v * half;
                const u8v from = bitcast<u8v>(load_units_at(sums + 2 * j * step, near.first + at));
                const i16v both = bitcast<i16v>(look_up16(from, load(near.lanes + 16 * at)));
                total[v] += dot_pairs(both, bitcast<i16v>(load(near.weights + (j * near.units + at) * 4)));
            }
        i16v sum = narrow_units(total[0] >> 20, total[1] >> 20);
        sum = min_any(max_any(sum, i16v{}), splat<int16_t>(255));
        if (step == 1 && x + lanes <= n) {
            store_pixels(to + x, sum);
            continue;
        }
        uint8_t pixels[lanes];
        store_pixels(pixels, sum);
        if (step == 1)
            __builtin_memcpy(to + x, pixels, static_cast<size_t>(n - x));
        else
            for (int64_t i = 0; i < lanes / 4 && x + 3 * i < n; ++i)
                __builtin_memcpy(to + x + 3 * i, pixels + 4 * i, 3);
    }
}
void sum_along(const int16_t* sums, const Near& near, int64_t taps, int64_t step, uint8_t* to, int64_t n) {
    taps == 2 ? sum_along<2>(sums, near, taps, step, to, n) : sum_along<0>(sums, near, taps, step, to, n);
}

// One channel: pairs of neighbours are fetched one by one, and weighed whole vectors at once.
void sum_along(const int16_t* sums, const Axis& axis, const int32_t* pairs, uint8_t* to, int64_t width) {
    constexpr int64_t block = 256, lanes = kLanes<int32_t>;
    alignas(64) int32_t fetched[block] = {}, totals[block];
    for (int64_t start = 0; start < width; start += block) {
        const int64_t n = min_of(block, width - start);
        for (int64_t i = 0; i < block; ++i) totals[i] = 1 << 19;
        for (int64_t j = 0; 2 * j < axis.taps; ++j) {
            const int32_t *const first = axis.first + start, *const weights = pairs + j * width + start;
#pragma GCC unroll 4
            for (int64_t i = 0; i < n; ++i) __builtin_memcpy(fetched + i, sums + first[i] + 2 * j, sizeof(int32_t));
            for (int64_t i = 0; i < n; i += lanes) {
                const i32v both = load_n(weights + i, min_of(n - i, lanes));
                store(totals + i, load(totals + i) + dot_pairs(bitcast<i16v>(load(fetched + i)), bitcast<i16v>(both)));
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            const int32_t sum = totals[i] >> 20;
            to[start + i] = static_cast<uint8_t>(sum < 0 ? 0 : sum > 255 ? 255 : sum);
        }
    }
}

Status resample(const Call& c, Interpolation kind) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = image.shape[0], width = image.shape[1], step = row_channels(image), n = width * step;
    const int64_t rows = y.shape[0], columns = y.shape[1];
    Axis down = {resample_taps(kind, height, rows), nullptr, nullptr};
    Axis along = {resample_taps(kind, width, columns), nullptr, nullptr};
    const int64_t pairs_bytes = ceil_div(along.taps, 2) * columns * static_cast<int64_t>(sizeof(int32_t));
    const int64_t units = units_of(columns, step), near_size = near_bytes(along, units);
    Scratch scratch(static_cast<size_t>(near_size + 4 * (rows + columns) + pairs_bytes +
                                        2 * (down.taps * rows + along.taps * columns)));
    if (!scratch.as<char>()) return fail(Status::memory, "size", "no memory for the weights; want a smaller size");
    Near near = {nullptr, nullptr, scratch.as<int32_t>(), units};
    near.first = near.weights + 4 * units * ceil_div(along.taps, 2);
    near.lanes = reinterpret_cast<uint8_t*>(near.first + units);
    down.first = reinterpret_cast<int32_t*>(scratch.as<char>() + near_size), along.first = down.first + rows;
    int32_t* const pairs = along.first + columns;
    down.weights = reinterpret_cast<int16_t*>(reinterpret_cast<char*>(pairs) + pairs_bytes),
    along.weights = down.weights + down.taps * rows;
    resample_weights(kind, height, rows, down.first, down.weights);
    resample_weights(kind, width, columns, along.first, along.weights);
    pair_weights(along, columns, pairs);
    const bool is_near = find_near(along, pairs, columns, step, near);
    // Rows end with room for whole vectors; rows of sums begin and end with the edge, as far as weights reach.
    const int64_t reach = along.taps, pitch = row_pitch(n), sums_pitch = row_pitch(n + 2 * reach * step);
    const bool whole = has_whole_rows(image);
    bool enough = true;
    parallel(ceil_div(rows, kBandRows), [&](int64_t band) {
        const int64_t held = down.taps * pitch;
        Scratch own(static_cast<size_t>(2 * sums_pitch + held + columns * step + 64 +
                                        down.taps * static_cast<int64_t>(sizeof(const uint8_t*))));
        if (!own.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const uint8_t** const from = own.as<const uint8_t*>();
        int16_t* const sums = reinterpret_cast<int16_t*>(from + down.taps) + reach * step;
        uint8_t* const copies = reinterpret_cast<uint8_t*>(sums + sums_pitch - reach * step);
        uint8_t* const row = copies + held;
        for (int64_t i = band * kBandRows; i < min_of((band + 1) * kBandRows, rows); ++i) {
            for (int64_t k = 0; k < down.taps; ++k) {
                const int64_t at = within(down.first[i] + k, height);
                const uint8_t* const pixels = image.as<uint8_t>() + at * image.stride[0];
                // Only behind the last row may a vector not be read whole.
                if (whole && at + 1 < height && image.stride[0] >= n && n >= kMargin) {
                    from[k] = pixels;
                    continue;
                }
                uint8_t* const copy = copies + k * pitch;
                if (whole)
                    __builtin_memcpy(copy, pixels, static_cast<size_t>(n));
                else
                    each_in_row(image, [&](int64_t e, int64_t j) { copy[e] = pixels[j]; });
                from[k] = copy;
            }
            sum_down(from, down.weights + i * down.taps, down.taps, sums, n);
            for (int64_t k = 1; k <= reach; ++k)
                for (int64_t j = 0; j < step; ++j) {
                    sums[-k * step + j] = sums[j];
                    sums[n + (k - 1) * step + j] = sums[n - step + j];
                }
            uint8_t* const to = begin_row(y, i, row);
            if (is_near)
                sum_along(sums, near, along.taps, step, to, columns * step);
            else
                sum_along(sums, along, pairs, to, columns);
            end_row(y, i, to);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for %lld rows of %lld; want a smaller picture",
                         static_cast<long long>(down.taps), static_cast<long long>(n));
}

// Sums down of a result's rows, each read anew, then along, pixel by pixel.
Status resample_deep(const Call& c, Interpolation kind) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = image.shape[0], width = image.shape[1], step = row_channels(image), n = width * step;
    const int64_t rows = y.shape[0], columns = y.shape[1];
    const int64_t down = resample_taps(kind, height, rows), along = resample_taps(kind, width, columns);
    Scratch scratch(static_cast<size_t>(4 * (rows + columns + down * rows + along * columns)));
    if (!scratch.as<char>()) return fail(Status::memory, "size", "no memory for the weights; want a smaller size");
    int32_t *const top = scratch.as<int32_t>(), *const left = top + rows;
    float *const shares = reinterpret_cast<float*>(left + columns), *const shares_along = shares + down * rows;
    resample_shares(kind, height, rows, top, shares);
    resample_shares(kind, width, columns, left, shares_along);
    const int64_t pitch = row_pitch(n + 2 * along * step);
    bool enough = true;
    parallel(ceil_div(rows, kBandRows), [&](int64_t band) {
        Scratch own(static_cast<size_t>(2 * n + 2 * pitch + columns * step) * sizeof(float));
        double* const totals = own.as<double>();
        if (!totals) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        float *const row = reinterpret_cast<float*>(totals + n), *const sums = row + pitch + along * step;
        float* const to = row + 2 * pitch;
        for (int64_t i = band * kBandRows; i < min_of((band + 1) * kBandRows, rows); ++i) {
            __builtin_memset(totals, 0, static_cast<size_t>(n) * sizeof(double));
            for (int64_t k = 0; k < down; ++k) {
                take_floats(image, top[i] + k, 0, Outside::repeats, row);
                const double share = shares[i * down + k];
                for (int64_t x = 0; x < n; ++x) totals[x] += share * static_cast<double>(row[x]);
            }
            for (int64_t x = 0; x < n; ++x) sums[x] = static_cast<float>(totals[x]);
            add_margins(sums, width, step, along, Outside::repeats);
            for (int64_t x = 0; x < columns; ++x)
                for (int64_t j = 0; j < step; ++j) {
                    const float* const from = sums + left[x] * step + j;
                    double total = 0;
                    for (int64_t k = 0; k < along; ++k)
                        total += static_cast<double>(shares_along[x * along + k]) * static_cast<double>(from[k * step]);
                    if (y.dtype == DType::u16) total = __builtin_floor(total + 0.5);
                    to[x * step + j] = static_cast<float>(total);
                }
            put_floats(y, i, to, 1);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

// The mean of two by two pixels.
Status halve(const Call& c) {
    typedef Vec<uint16_t> Pairs;
    const View &image = c.in[0], &y = c.out[0];
    const int64_t rows = y.shape[0], n = y.shape[1];
    const int64_t band_rows = max_of(1, kChunkElements / n);
    parallel(ceil_div(rows, band_rows), [&](int64_t band) {
        for (int64_t i = band * band_rows; i < min_of((band + 1) * band_rows, rows); ++i) {
            const uint8_t *const a = image.as<uint8_t>() + 2 * i * image.stride[0], *const b = a + image.stride[0];
            uint8_t* const to = y.as<uint8_t>() + i * y.stride[0];
            int64_t x = 0;
            for (; x + kLanes<int16_t> <= n; x += kLanes<int16_t>) {
                const Pairs u = bitcast<Pairs>(load(a + 2 * x)), v = bitcast<Pairs>(load(b + 2 * x));
                const Pairs sum = (u & 255) + (u >> 8) + (v & 255) + (v >> 8);
                store_pixels(to + x, bitcast<i16v>((sum + 2) >> 2));
            }
            for (; x < n; ++x)
                to[x] = static_cast<uint8_t>((a[2 * x] + a[2 * x + 1] + b[2 * x] + b[2 * x + 1] + 2) >> 2);
        }
    });
    return Status::ok;
}

Status run(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    const auto kind = static_cast<Interpolation>(c.attr[1].choice);
    if (numel(y) == 0) return Status::ok;
    if (image.dtype != DType::u8) return resample_deep(c, kind);
    const bool half = image.shape[0] == 2 * y.shape[0] && image.shape[1] == 2 * y.shape[1];
    const bool even = kind == Interpolation::linear || kind == Interpolation::area;
    if (half && even && image.ndim == 2 && image.stride[1] == 1 && y.stride[1] == 1) return halve(c);
    return resample(c, kind);
}

Status infer(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_any_picture(image));
    TW_TRY(resolve_integers(c.attr[0], "size", 2, 0));
    const int64_t shape[] = {c.attr[0].list[0], c.attr[0].list[1], 3};
    if (max_of(shape[0], shape[1]) > kMostPixels)
        return fail(Status::attr, "size", "size=%s; want at most 2^30 rows and columns", attr_text(c.attr[0]).text);
    const bool nothing = numel(image) == 0 && min_of(shape[0], shape[1]) > 0;
    if (nothing || max_of(image.shape[0], image.shape[1]) > kMostPixels)
        return fail(Status::shape, "image", "image has shape %s; want 1 to 2^30 rows and columns",
                    shape_text(image).text);
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, shape);
    r.flops = 8.0 * static_cast<double>(numel(r.out[0]));
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "size", .kind = AttrKind::integers, .required = true},
    {.name = "interpolation", .kind = AttrKind::choice, .choices = "linear|nearest|area|cubic|lanczos"},
};

}  // namespace

extern const Entry op_resize = {"resize", kImage, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
