// Blurs of pictures, each channel by itself.
//
//     gaussian  y[i, j] = round(sum over u, v of tap[u] tap[v] image[i + u - n/2, j + v - n/2] / 2^16),
//               n = round(6 sigma + 1) | 1
//     box       y[i, j] = round(sum over u < kh, v < kw of image[i + u - kh/2, j + v - kw/2] / (kh kw))
//
// Method    gaussian: rows are blurred along x into a ring, from which each row is blurred along y (image/rows.h). box:
//           sums of columns slide down, sums of those slide along the row: the time does not depend on the window.
// Numerics  taps in 1/256 of sum 256, sums exact, one rounding half up; the bits are those of OpenCV 5, of boxes with an
//           odd number of pixels. Pixels of 16 bits and floats are weighted by float32 numbers (image/separable.h). Outside
//           the picture pixels mirror at the edge without repeating it.
// Threads   bands of rows, whose windows overlap. Same bits always.
#include "image/separable.h"
#include "ops/ops.h"
#include "simd/convert.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;

Status infer_gaussian(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_any_picture(image));
    const double sigma = c.attr[0].f;
    if (!(sigma > 0 && sigma <= kMaxSigma))
        return fail(Status::attr, "sigma", "sigma=%g; want more than 0, at most %g pixels", sigma, kMaxSigma);
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, image.shape);
    r.flops = 4.0 * static_cast<double>(gaussian_width(sigma)) * static_cast<double>(numel(image));
    return Status::ok;
}

Status blur_deep(const Call& c) {
    float weights[kMaxTaps];
    const int64_t n = gaussian_width(c.attr[0].f);
    gaussian_weights(c.attr[0].f, n, weights);
    const Weights both = {weights, weights};
    return separable(c.in[0], c.out[0], {n, n, &both, 1, 1, 1, Outside::mirrors});
}

Status run_gaussian(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    if (c.in[0].dtype != DType::u8) return blur_deep(c);
    const Picture p = picture_of(c.in[0]);
    const View& y = c.out[0];
    Taps taps;
    make_taps(c.attr[0].f, taps);
    const int64_t band_rows = max_of(kBandRows, 4 * taps.n), bands = ceil_div(p.height, band_rows);
    bool enough = true;
    parallel(bands * p.channels, [&](int64_t i) {
        const int64_t band = i / p.channels, channel = i % p.channels;
        Scratch scratch(static_cast<size_t>(row_pitch(p.width) + Channel::bytes(p.width, taps.n)));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        uint8_t* const row = scratch.as<uint8_t>();
        Channel from;
        from.start(p, channel, taps, scratch.as<char>() + row_pitch(p.width));
        for (int64_t at = band * band_rows; at < min_of((band + 1) * band_rows, p.height); ++at) {
            from.read(at, row);
            uint8_t* const to = y.as<uint8_t>() + at * y.stride[0] + (y.ndim == 3 ? channel * y.stride[2] : 0);
            if (y.stride[1] == 1)
                __builtin_memcpy(to, row, static_cast<size_t>(p.width));
            else
                for (int64_t x = 0; x < p.width; ++x) to[x * y.stride[1]] = row[x];
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for %lld rows; want a smaller sigma",
                         static_cast<long long>(taps.n));
}

// ---- box ------------------------------------------------------------------------------------------------------------

constexpr int64_t kLargestBox = 1023;  // so that twice a sum fits 32 bits

// Adds row y, or takes it away, in all columns.
template <bool Adds>
void add_row(const View& image, int64_t y, uint32_t* columns) {
    const uint8_t* const from = image.as<uint8_t>() + mirrored(y, image.shape[0]) * image.stride[0];
    const int64_t n = row_elements(image);
    const auto add = [&](int64_t i, uint8_t x) { columns[i] = Adds ? columns[i] + x : columns[i] - x; };
    if (!has_whole_rows(image)) return each_in_row(image, [&](int64_t i, int64_t j) { add(i, from[j]); });
    int64_t i = 0;
    for (; i + kLanes<uint32_t> <= n; i += kLanes<uint32_t>) {
        const u32v x = bitcast<u32v>(widen(load_part<Part<uint8_t>>(from + i)));
        store(columns + i, Adds ? load(columns + i) + x : load(columns + i) - x);
    }
    for (; i < n; ++i) add(i, from[i]);
}

// The rounded quotients of sums. The float quotient of numbers below 2^24 by a number up to 2^16 reaches no integer that
// the exact one does not reach.
void divide(const uint32_t* __restrict sums, uint32_t area, uint8_t* __restrict to, int64_t n) {
    if (area <= 1 << 15) {
        const float below = static_cast<float>(2 * area);
        for (int64_t x = 0; x < n; ++x)
            to[x] = static_cast<uint8_t>(
                static_cast<int32_t>(static_cast<float>(static_cast<int32_t>(2 * sums[x] + area)) / below));
    } else {
        for (int64_t x = 0; x < n; ++x) to[x] = static_cast<uint8_t>((2 * sums[x] + area) / (2 * area));
    }
}

Status run_box(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const View &image = c.in[0], &y = c.out[0];
    const int64_t kh = c.attr[0].list[0], kw = c.attr[0].list[1];
    if (image.dtype != DType::u8) {
        float ones[kMostWeights];
        for (float& one : ones) one = 1;
        const Weights both = {ones, ones};
        return separable(image, y, {kh, kw, &both, 1, static_cast<double>(kh * kw), 1, Outside::mirrors});
    }
    const int64_t height = image.shape[0], width = image.shape[1], step = row_channels(image), n = width * step;
    const int64_t band_rows = max_of(kBandRows, 2 * kh), left = kw / 2, right = kw - 1 - left;
    const int64_t pitch = n + (kw + 1) * step;
    bool enough = true;
    parallel(ceil_div(height, band_rows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>((pitch + n) * 4 + n));
        uint32_t* const padded = scratch.as<uint32_t>();
        if (!padded) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        uint32_t *const columns = padded + (left + 1) * step, *const sums = padded + pitch;
        uint8_t* const row = reinterpret_cast<uint8_t*>(sums + n);
        const int64_t first = band * band_rows;
        __builtin_memset(columns, 0, static_cast<size_t>(n) * 4);
        for (int64_t u = 0; u < kh - 1; ++u) add_row<true>(image, first + u - kh / 2, columns);
        for (int64_t i = first; i < min_of(first + band_rows, height); ++i) {
            add_row<true>(image, i + kh - 1 - kh / 2, columns);
            for (int64_t k = 1; k <= left; ++k)
                for (int64_t j = 0; j < step; ++j) columns[j - k * step] = columns[mirrored(-k, width) * step + j];
            for (int64_t k = 0; k < right; ++k)
                for (int64_t j = 0; j < step; ++j)
                    columns[n + k * step + j] = columns[mirrored(width + k, width) * step + j];
            for (int64_t j = 0; j < step; ++j) {
                uint32_t run = 0;
                for (int64_t k = -left; k < right; ++k) run += columns[k * step + j];
                columns[j - (left + 1) * step] = 0;
                for (int64_t x = j; x < n; x += step) {
                    run += columns[x + right * step] - columns[x - (left + 1) * step];
                    sums[x] = run;
                }
            }
            uint8_t* const to = begin_row(y, i, row);
            divide(sums, static_cast<uint32_t>(kh * kw), to, n);
            end_row(y, i, to);
            add_row<false>(image, i - kh / 2, columns);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

Status infer_box(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_any_picture(image));
    TW_TRY(resolve_integers(c.attr[0], "kernel", 2, 1));
    if (max_of(c.attr[0].list[0], c.attr[0].list[1]) > kLargestBox)
        return fail(Status::attr, "kernel", "kernel=%s; want 1 to %lld each", attr_text(c.attr[0]).text,
                    static_cast<long long>(kLargestBox));
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, image.shape);
    r.flops = 6.0 * static_cast<double>(numel(image));
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kKernel[] = {{.name = "kernel", .kind = AttrKind::integers, .i = 3}};
constexpr AttrSpec kSigma[] = {{.name = "sigma", .kind = AttrKind::real, .required = true}};

}  // namespace

extern const Entry op_gaussian_blur = {"gaussian_blur", kImage, 1, kSigma, 1, infer_gaussian, run_gaussian};
extern const Entry op_box_blur = {"box_blur", kImage, 1, kKernel, 1, infer_box, run_box};

}  // namespace tw::TW_ISA
