// Half and twice the size of pictures, smoothed by 1 4 6 4 1.
//
//     down   y[i, j] = round(sum over u, v of w[u] w[v] image[2i + u - 2, 2j + v - 2] / 256),    w = 1 4 6 4 1
//     up     the same of a picture with zeros between its pixels, four times as bright
//
// Method    rows are summed downwards into 16 bits, then along; of the sums along every second one is kept, or those at
//           even and at odd places are shuffled together. Pixels of 16 bits and floats: image/separable.h.
// Numerics  exact sums, one rounding half up; the bits are those of OpenCV 5. Outside, pixels mirror at the edge without
//           repeating it, but behind the last of a picture that grows the edge repeats.
// Threads   bands of rows, whose windows overlap. Same bits always.
// Source    P. Burt and E. Adelson, "The Laplacian pyramid as a compact image code", 1983.
#include "image/separable.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 32;

// Sums of a row with what is outside: before the first pixel it mirrors, behind the last it mirrors or repeats.
void widen(int16_t* sums, int64_t width, int64_t step, bool mirror) {
    for (int64_t k = 1; k <= 2; ++k)
        for (int64_t c = 0; c < step; ++c) {
            const int64_t last = mirror ? mirrored(width - 1 + k, width) : width - 1;
            sums[-k * step + c] = sums[mirrored(-k, width) * step + c];
            sums[(width - 1 + k) * step + c] = sums[last * step + c];
        }
}

// (shift and round) of five sums along a row; `kind` 0: 1 4 6 4 1, 1: 1 6 1, 2: 4 4.
template <int Kind>
void sum_along(const int16_t* sums, int64_t step, uint8_t* to, int64_t n) {
    typedef Vec<uint16_t> V;
    for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
        const auto at = [&](int64_t k) __attribute__((always_inline)) { return bitcast<V>(load(sums + x + k * step)); };
        V total;
        if constexpr (Kind == 0)
            total = (at(-2) + at(2) + 4 * (at(-1) + at(1)) + 6 * at(0) + 128) >> 8;
        else if constexpr (Kind == 1)
            total = (at(-1) + at(1) + 6 * at(0) + 32) >> 6;
        else
            total = (4 * (at(0) + at(1)) + 32) >> 6;
        store_pixels(to + x, bitcast<i16v>(total));
    }
}

// Pixels of `step` channels, from every second place or to it.
template <class T, class From>
TW_INLINE void put_pixels(const View& y, int64_t row, const From* from, int64_t from_step, int64_t first,
                          int64_t to_step, int64_t count) {
    const int64_t channels = row_channels(y), channel = y.ndim == 3 ? y.stride[2] : 0;
    T* const to = y.as<T>() + row * y.stride[0];
    for (int64_t x = 0; x < count; ++x)
        for (int64_t c = 0; c < channels; ++c)
            to[(first + x * to_step) * y.stride[1] + c * channel] = static_cast<T>(from[x * from_step * channels + c]);
}

template <class Rows>
Status by_bands(const Call& c, const Rows& rows) {
    const View& image = c.in[0];
    const int64_t height = c.out[0].shape[0], n = row_elements(image);
    bool enough = true;
    parallel(ceil_div(height, kBandRows), [&](int64_t band) {
        const int64_t sums_bytes = row_pitch(n) * static_cast<int64_t>(sizeof(int16_t));
        Scratch scratch(static_cast<size_t>(sums_bytes + row_pitch(n) + Window<5>::bytes(image)));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        int16_t* const sums = scratch.as<int16_t>() + kMargin;
        uint8_t* const row = reinterpret_cast<uint8_t*>(scratch.as<char>() + sums_bytes);
        Window<5> window(image, scratch.as<char>() + sums_bytes + row_pitch(n));
        for (int64_t i = band * kBandRows; i < min_of((band + 1) * kBandRows, height); ++i) rows(window, i, sums, row);
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

constexpr float kSmooth[] = {1, 4, 6, 4, 1};

Status run_down(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    constexpr Weights smooth = {kSmooth, kSmooth};
    if (c.in[0].dtype != DType::u8) return separable(c.in[0], c.out[0], {5, 5, &smooth, 1, 256, 2, Outside::mirrors});
    const View &image = c.in[0], &y = c.out[0];
    const int64_t n = row_elements(image), step = row_channels(image);
    return by_bands(c, [&](Window<5>& window, int64_t i, int16_t* sums, uint8_t* row) {
        const uint8_t* const* const rows = window.at(2 * i);
        for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
            const auto at = [&](int k) __attribute__((always_inline)) { return load_pixels(rows[k] + x); };
            store(sums + x, at(0) + at(4) + 4 * (at(1) + at(3)) + 6 * at(2));
        }
        widen(sums, image.shape[1], step, true);
        sum_along<0>(sums, step, row, n);
        put_pixels<uint8_t>(y, i, row, 2, 0, 1, y.shape[1]);
    });
}

// Pixels of 16 bits and floats: at even places 1 6 1, at odd ones 4 4, of three rows and then of three columns.
template <class T>
Status up_deep(const Call& c) {
    static constexpr float even[] = {1, 6, 1}, odd[] = {4, 4};
    const View &image = c.in[0], &y = c.out[0];
    const int64_t n = row_elements(image), step = row_channels(image), width = image.shape[1], height = image.shape[0];
    const int64_t pitch = row_pitch(n + 2 * step);
    bool enough = true;
    parallel(ceil_div(y.shape[0], kBandRows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>(5 * pitch) * sizeof(float));
        float* const taken = scratch.as<float>();
        if (!taken) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        float *const sums = taken + 3 * pitch, *const row = sums + pitch;
        for (int64_t i = band * kBandRows; i < min_of((band + 1) * kBandRows, y.shape[0]); ++i) {
            const float* rows[3];
            for (int64_t k = i % 2; k < 3; ++k) {
                const int64_t at = i / 2 + k - 1;
                take_floats(image, at < 0 ? min_of(1, height - 1) : at, 0, Outside::repeats, taken + k * pitch);
                rows[k] = taken + k * pitch;
            }
            const bool whole = !kIsFloating<T>;
            sum_rows(rows + i % 2, i % 2 ? odd : even, 3 - i % 2, 1, false, sums + step, n);
            for (int64_t j = 0; j < step; ++j) {
                sums[j] = sums[(1 + min_of(1, width - 1)) * step + j];
                sums[n + step + j] = sums[n + j];
            }
            const float* const places[] = {sums, sums + step, sums + 2 * step};
            sum_rows(places, even, 3, 64, whole, row, n);
            put_pixels<T>(y, i, row, 1, 0, 2, width);
            sum_rows(places + 1, odd, 2, 64, whole, row, n);
            put_pixels<T>(y, i, row, 1, 1, 2, width);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

Status run_up(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    if (c.in[0].dtype == DType::u16) return up_deep<uint16_t>(c);
    if (c.in[0].dtype == DType::f32) return up_deep<float>(c);
    const View &image = c.in[0], &y = c.out[0];
    const int64_t n = row_elements(image), step = row_channels(image), height = image.shape[0];
    return by_bands(c, [&](Window<5>& window, int64_t i, int16_t* sums, uint8_t* row) {
        const int64_t from = i / 2;
        const uint8_t* const* const rows = window.at(from);
        const uint8_t *const above = rows[1], *const at = rows[2], *const below = from + 1 < height ? rows[3] : rows[2];
        for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
            const i16v here = load_pixels(at + x), next = load_pixels(below + x);
            store(sums + x, i % 2 ? 4 * (here + next) : load_pixels(above + x) + next + 6 * here);
        }
        widen(sums, image.shape[1], step, false);
        sum_along<1>(sums, step, row, n);
        put_pixels<uint8_t>(y, i, row, 1, 0, 2, image.shape[1]);
        sum_along<2>(sums, step, row, n);
        put_pixels<uint8_t>(y, i, row, 1, 1, 2, image.shape[1]);
    });
}

template <bool Down>
Status infer(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_any_picture(image));
    int64_t shape[3] = {0, 0, 3};
    for (int d = 0; d < 2; ++d) shape[d] = Down ? (image.shape[d] + 1) / 2 : 2 * image.shape[d];
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, shape);
    r.flops = 10.0 * static_cast<double>(numel(Down ? image : r.out[0]));
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};

}  // namespace

extern const Entry op_pyramid_down = {"pyramid_down", kImage, 1, nullptr, 0, infer<true>, run_down};
extern const Entry op_pyramid_up = {"pyramid_up", kImage, 1, nullptr, 0, infer<false>, run_up};

}  // namespace tw::TW_ISA
