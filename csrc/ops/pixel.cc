// One result per pixel of pictures: colours to grey, and how far two pictures are apart.
//
//     rgb_to_gray  y = (9798 r + 19235 g + 3735 b + 2^14) >> 15
//     absdiff      y = |a - b|
//
// Method    one pass; absdiff over merged axes, any strides.
// Numerics  exact integers, grey with one rounding half up; the bits are those of OpenCV 5. Of floats the same numbers are
//           weights in 1/2^15, and the sum is taken in float64 and rounded.
// Threads   rows, or pieces of kChunkElements; pixels are independent, so bits never depend on the split.
#include "core/walk.h"
#include "image/check.h"
#include "ops/ops.h"
#include "simd/pixels.h"

namespace tw::TW_ISA {
namespace {

// Sums of 16-bit pixels are just below 2^31.
template <class T>
TW_INLINE T grey(T r, T g, T b) {
    if constexpr (kIsFloating<T>)
        return static_cast<T>((9798.0 * r + 19235.0 * g + 3735.0 * b) * (1.0 / (1 << 15)));
    else
        return static_cast<T>((9798 * r + 19235 * g + 3735 * b + (1 << 14)) >> 15);
}

template <class T>
void grey_row(const T* __restrict x, T* __restrict y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] = grey(x[3 * i], x[3 * i + 1], x[3 * i + 2]);
}

template <class T>
Status run_grey_of(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = y.shape[0], width = y.shape[1];
    const int64_t rows = max_of(1, kChunkElements / width);
    const bool packed = image.stride[2] == 1 && image.stride[1] == 3 && y.stride[1] == 1;
    parallel(ceil_div(height, rows), [&](int64_t band) {
        for (int64_t i = band * rows; i < min_of((band + 1) * rows, height); ++i) {
            const T* const from = image.as<T>() + i * image.stride[0];
            T* const to = y.as<T>() + i * y.stride[0];
            if (packed) {
                grey_row(from, to, width);
                continue;
            }
            for (int64_t x = 0; x < width; ++x) {
                const T* const p = from + x * image.stride[1];
                to[x * y.stride[1]] = grey(p[0], p[image.stride[2]], p[2 * image.stride[2]]);
            }
        }
    });
    return Status::ok;
}

Status run_grey(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return with_pixels(c.in[0].dtype, [&](auto pixel) { return run_grey_of<decltype(pixel)>(c); });
}

template <class T>
Status run_absdiff_of(const Call& c) {
    const View* views[] = {&c.out[0], &c.in[0], &c.in[1]};
    const Walk w = walk_over(views, 3, c.out[0].ndim, c.out[0].shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* const y = reinterpret_cast<T*>(at[0]);
        const T* const a = reinterpret_cast<const T*>(at[1]);
        const T* const b = reinterpret_cast<const T*>(at[2]);
        int64_t i = 0;
        if (w.stride[0] == 1 && w.stride[1] == 1 && w.stride[2] == 1)
            for (; i + kLanes<T> <= count; i += kLanes<T>) {
                const Vec<T> u = load(a + i), v = load(b + i);
                if constexpr (kIsFloating<T>)
                    store(y + i, abs(u - v));
                else
                    store(y + i, max_any(u, v) - min_any(u, v));
            }
        for (; i < count; ++i) {
            const auto apart = a[i * w.stride[1]] - b[i * w.stride[2]];
            y[i * w.stride[0]] = static_cast<T>(apart < 0 ? -apart : apart);
        }
    });
    return Status::ok;
}

Status run_absdiff(const Call& c) {
    return with_pixels(c.in[0].dtype, [&](auto pixel) { return run_absdiff_of<decltype(pixel)>(c); });
}

Status infer_grey(Call& c, Inferred& r) {
    TW_TRY(want_any_picture(c.in[0]));
    if (c.in[0].ndim != 3)
        return fail(Status::shape, "image", "image has shape %s; want (H, W, 3)", shape_text(c.in[0]).text);
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, 2, c.in[0].shape);
    r.flops = 6.0 * static_cast<double>(c.in[0].shape[0]) * static_cast<double>(c.in[0].shape[1]);
    return Status::ok;
}

Status infer_absdiff(Call& c, Inferred& r) {
    TW_TRY(want_pixel_type(c.in[0], "a"));
    TW_TRY(want_dtype_of(c.in[1], "b", c.in[0], "a"));
    TW_TRY(want_shape_of(c.in[1], "b", c.in[0], "a"));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr Operand kAB[] = {{"a"}, {"b"}};

}  // namespace

extern const Entry op_rgb_to_gray = {"rgb_to_gray", kImage, 1, nullptr, 0, infer_grey, run_grey};
extern const Entry op_absdiff = {"absdiff", kAB, 2, nullptr, 0, infer_absdiff, run_absdiff, kElementwise};

}  // namespace tw::TW_ISA
