// Correlation of a picture with any small kernel.
//
//     y[i, j] = sum over u, v of kernel[u, v] image[i + u - kh/2, j + v - kw/2]
//
// Method    rows go once into a ring of float rows with their mirrored margins; four vectors of a row are summed at once.
// Numerics  float32 sums over u, then v. Outside the picture pixels mirror at the edge without repeating it.
// Threads   bands of rows, whose windows overlap. Same bits always.
#include "image/separable.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64, kLargest = 255;

// Blocks of vectors of one row of the result.
template <int Block>
TW_INLINE void sum_block(const float* const* rows, const float* taps, int64_t kh, int64_t kw, int64_t step, int64_t x,
                         float* to, int64_t n) {
    f32v total[Block] = {};
    for (int64_t u = 0; u < kh; ++u)
        for (int64_t v = 0; v < kw; ++v) {
            const f32v tap = splat(taps[u * kw + v]);
            const float* const from = rows[u] + x + v * step;
#pragma GCC unroll 4
            for (int b = 0; b < Block; ++b) total[b] = fma(tap, load(from + b * kLanes<float>), total[b]);
        }
#pragma GCC unroll 4
    for (int b = 0; b < Block; ++b) {
        const int64_t at = x + b * kLanes<float>;
        store_n(to + at, total[b], min_of(n - at, kLanes<float>));
    }
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const View &image = c.in[0], &kernel = c.in[1], &y = c.out[0];
    const int64_t height = image.shape[0], n = row_elements(image), step = row_channels(image);
    const int64_t kh = kernel.shape[0], kw = kernel.shape[1];
    const int64_t pitch = row_pitch(n + (kw + 1) * step), floats = kh * kw + (kh + 1) * pitch;
    bool enough = true;
    parallel(ceil_div(height, kBandRows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>(floats * 4));
        float* const ring = scratch.as<float>();
        if (!ring) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        float *const row = ring + kh * pitch, *const taps = row + pitch;
        for (int64_t u = 0; u < kh; ++u)
            for (int64_t v = 0; v < kw; ++v)
                taps[u * kw + v] = kernel.as<float>()[u * kernel.stride[0] + v * kernel.stride[1]];
        const auto place = [&](int64_t i) { return ring + (i % kh + kh) % kh * pitch; };
        // Of an even window one more lies before the pixel than behind it; rows hold as many on both sides.
        const int64_t first = band * kBandRows, up = kh / 2, down = kh - 1 - up;
        for (int64_t i = first - up; i < first + down; ++i) take_floats(image, i, kw / 2, Outside::mirrors, place(i));
        for (int64_t i = first; i < min_of(first + kBandRows, height); ++i) {
            take_floats(image, i + down, kw / 2, Outside::mirrors, place(i + down));
            const float* rows[kLargest];
            for (int64_t u = 0; u < kh; ++u) rows[u] = place(i + u - up);
            float* const to = begin_row(y, i, row);
            constexpr int64_t block = 4 * kLanes<float>;
            int64_t x = 0;
            for (; x + block <= n; x += block) sum_block<4>(rows, taps, kh, kw, step, x, to, n);
            for (; x < n; x += kLanes<float>) sum_block<1>(rows, taps, kh, kw, step, x, to, n);
            end_row(y, i, to);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for %lld rows of %lld; want a smaller kernel",
                         static_cast<long long>(kh), static_cast<long long>(n));
}

Status infer(Call& c, Inferred& r) {
    const View &image = c.in[0], &kernel = c.in[1];
    TW_TRY(want_any_picture(image));
    if (kernel.dtype != DType::f32)
        return fail(Status::dtype, "kernel", "kernel has dtype %s; want float32", name_of(kernel.dtype));
    if (kernel.ndim != 2 || kernel.shape[0] < 1 || kernel.shape[0] > kLargest || kernel.shape[1] < 1 ||
        kernel.shape[1] > kLargest)
        return fail(Status::shape, "kernel", "kernel has shape %s; want (kh, kw) of 1 to %lld each",
                    shape_text(kernel).text, static_cast<long long>(kLargest));
    r.n_out = 1;
    r.out[0] = result(DType::f32, image.ndim, image.shape);
    r.flops = 2.0 * static_cast<double>(numel(kernel)) * static_cast<double>(numel(image));
    return Status::ok;
}

constexpr Operand kOperands[] = {{"image"}, {"kernel"}};

}  // namespace

extern const Entry op_filter2d = {"filter2d", kOperands, 2, nullptr, 0, infer, run};

}  // namespace tw::TW_ISA
