// Dilation and erosion of pictures by a rectangle: the largest or smallest pixel of a window.
//
//     y[i, j] = max or min over u < kh, v < kw of image[i + u - kh/2, j + v - kw/2]
//
// Method    separable; a window of k is covered by windows of powers of two, each made of two of the half before, so that
//           the time grows with the logarithm of k. Rows first, then whole bands of rows downwards, in place. Of windows
//           of 3 by 3 each row is joined from three rows of the picture, then with itself.
// Numerics  exact; a NaN in a window is its result. Outside the picture there are no pixels.
// Threads   bands of rows, whose windows overlap. Same bits always.
#include "image/check.h"
#include "image/window.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;

template <bool Max, class V>
TW_INLINE V join(V a, V b) {
    if constexpr (kIsFloating<Elem<V>>) return Max ? max_nan(a, b) : min_nan(a, b);
    return Max ? max_any(a, b) : min_any(a, b);
}

// What no pixel loses to.
template <bool Max, class T>
TW_INLINE T none() {
    if constexpr (kIsFloating<T>) return static_cast<T>(Max ? -__builtin_inf() : __builtin_inf());
    return static_cast<T>(Max ? 0 : -1);
}
template <class T>
TW_INLINE void fill(T* p, T v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = v;
}

// to[i] = join(a[i], b[i]) for i < n and up to a vector more; to may be a, and b lies behind it.
template <bool Max, class T>
TW_INLINE void join_rows(T* to, const T* a, const T* b, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes<T>) store(to + i, join<Max>(load(a + i), load(b + i)));
}

// Calls pair(p, count): element i becomes the join of elements i and i + p, for i < count; then each covers k of them.
template <class Pair>
TW_INLINE void cover(int64_t k, int64_t n, const Pair& pair) {
    int64_t covered = 1;
    for (; 2 * covered <= k; covered *= 2) pair(covered, n + k - 2 * covered);
    if (covered < k) pair(k - covered, n);
}

// Windows of 3 by 3 on pictures with whole rows.
template <bool Max, class T>
Status run_three(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = image.shape[0], step = row_channels(image), n = row_elements(image);
    constexpr int64_t lanes = kLanes<T>;
    bool enough = true;
    parallel(ceil_div(height, kBandRows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>(row_pitch(n)) * sizeof(T));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        fill(scratch.as<T>(), none<Max, T>(), row_pitch(n));
        T* const row = scratch.as<T>() + kMargin;
        for (int64_t i = band * kBandRows; i < min_of((band + 1) * kBandRows, height); ++i) {
            const T* const at = image.as<T>() + i * image.stride[0];
            const T* const above = i > 0 ? at - image.stride[0] : at;
            const T* const below = i + 1 < height ? at + image.stride[0] : at;
            int64_t x = 0;
            for (; x + lanes <= n; x += lanes)
                store(row + x, join<Max>(join<Max>(load(above + x), load(below + x)), load(at + x)));
            if (const int64_t rest = n - x; rest > 0) {
                const Vec<T> beside = join<Max>(load_n(above + x, rest), load_n(below + x, rest));
                store_n(row + x, join<Max>(beside, load_n(at + x, rest)), rest);
            }
            T* const to = y.as<T>() + i * y.stride[0];
            for (x = 0; x < n; x += lanes) {
                const Vec<T> v = join<Max>(join<Max>(load(row + x - step), load(row + x + step)), load(row + x));
                if (x + lanes <= n)
                    store(to + x, v);
                else
                    store_n(to + x, v, n - x);
            }
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for a row of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

template <bool Max, class T>
Status run_as(const Call& c) {
    if (c.attr[0].list[0] == 3 && c.attr[0].list[1] == 3 && has_whole_rows(c.in[0]) && has_whole_rows(c.out[0]))
        return run_three<Max, T>(c);
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = image.shape[0], step = row_channels(image), n = row_elements(image);
    const int64_t kh = min_of(c.attr[0].list[0], 2 * height + 1),
                  kw = min_of(c.attr[0].list[1], 2 * image.shape[1] + 1);
    const int64_t left = kw / 2 * step, right = (kw - 1) * step - left, pitch = row_pitch(n + left + right);
    const int64_t band_rows = max_of(kBandRows, 2 * kh);
    bool enough = true;
    parallel(ceil_div(height, band_rows), [&](int64_t band) {
        const int64_t first = band * band_rows, count = min_of(band_rows, height - first);
        Scratch scratch(static_cast<size_t>((count + kh) * pitch) * sizeof(T));
        T* const rows = scratch.as<T>();
        if (!rows) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t r = 0; r < count + kh - 1; ++r) {
            const int64_t from = first + r - kh / 2;
            T* const row = rows + r * pitch;
            fill(row, none<Max, T>(), pitch);
            if (from < 0 || from >= height) continue;
            const T* const pixels = image.as<T>() + from * image.stride[0];
            if (has_whole_rows(image))
                __builtin_memcpy(row + left, pixels, static_cast<size_t>(n) * sizeof(T));
            else
                each_in_row(image, [&](int64_t i, int64_t j) { row[left + i] = pixels[j]; });
            cover(kw, n / step, [&](int64_t p, int64_t k) { join_rows<Max>(row, row, row + p * step, k * step); });
        }
        cover(kh, count, [&](int64_t p, int64_t k) {
            for (int64_t r = 0; r < k; ++r)
                join_rows<Max>(rows + r * pitch, rows + r * pitch, rows + (r + p) * pitch, n);
        });
        for (int64_t r = 0; r < count; ++r) {
            const T* const row = rows + r * pitch;
            if (has_whole_rows(y))
                __builtin_memcpy(y.as<T>() + (first + r) * y.stride[0], row, static_cast<size_t>(n) * sizeof(T));
            else
                end_row(y, first + r, row);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for %lld rows; want a smaller kernel",
                         static_cast<long long>(band_rows + kh));
}

template <bool Max>
Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return with_pixels(c.in[0].dtype, [&](auto pixel) { return run_as<Max, decltype(pixel)>(c); });
}

Status infer(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_any_picture(image));
    TW_TRY(resolve_integers(c.attr[0], "kernel", 2, 1));
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, image.shape);
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kKernel[] = {{.name = "kernel", .kind = AttrKind::integers, .i = 3}};

}  // namespace

extern const Entry op_dilate = {"dilate", kImage, 1, kKernel, 1, infer, run<true>};
extern const Entry op_erode = {"erode", kImage, 1, kKernel, 1, infer, run<false>};

}  // namespace tw::TW_ISA
