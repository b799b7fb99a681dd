// Sums over all pixels above and left of a place, of pixels or of their squares.
//
//     y[i, j] = sum over u < i, v < j of image[u, v]   or its square,   (H + 1, W + 1)
//
// Method    the sums of a row, one vector after the other, are added to the row above. Where a band of rows begins comes from
//           sums of columns of the rows before it, a part of them at a time.
// Numerics  int32 sums of 8-bit pixels wrap, so that the difference of four corners is right wherever the sum of the window
//           fits; other sums are float64, those of integers exact below 2^53. The bits are those of OpenCV 5.
// Threads   bands of rows, of integers one for each thread: their sums have no order. Same bits always.
#include "image/check.h"
#include "image/window.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64, kPartRows = 32;  // of floats; of integers, of which a band has many parts

// Lanes that are summed up together: units of 16 bytes, two where 32-bit lanes of a vector are as many.
constexpr int kGroup = kLanes<int32_t> > 8 ? kLanes<int32_t> : 8;

// Lanes of units moved up by N, zeros below; the last lane of the lower of two units in all lanes of the upper.
template <int N, int... I>
TW_INLINE i16v moved_up(i16v v, Seq<I...>) {
    return shuffle<(I % 8 < N ? kLanes<int16_t> + I : I - N)...>(v, i16v{});
}
template <int... I>
TW_INLINE i16v from_lower_unit(i16v v, Seq<I...>) {
    return shuffle<(I % 16 < 8 ? kLanes<int16_t> + I : I / 8 * 8 - 1)...>(v, i16v{});
}

// Lane i becomes the sum of the lanes of its group up to i: at most 16 pixels, which 16 bits hold.
TW_INLINE i16v summed_up(i16v v) {
    constexpr Indices<i16v> lanes;
    v += moved_up<1>(v, lanes);
    v += moved_up<2>(v, lanes);
    v += moved_up<4>(v, lanes);
    if constexpr (kGroup > 8) v += from_lower_unit(v, lanes);
    return v;
}

// to[x + 1] = above[x + 1] + the pixels up to x.
void sum_row(const uint8_t* x, const int32_t* above, int32_t* to, int64_t n) {
    constexpr int64_t lanes = kLanes<int16_t>, step = kLanes<int32_t>;
    uint32_t run = 0;
    int64_t i = 0;
    to[0] = 0;
    for (; i + lanes <= n; i += lanes) {
        alignas(kVecBytes) int16_t sums[lanes];
        store(sums, summed_up(load_pixels(x + i)));
#pragma GCC unroll 2
        for (int64_t group = 0; group < lanes; group += kGroup) {
            const i32v before = bitcast<i32v>(splat(run));
#pragma GCC unroll 2
            for (int64_t k = group; k < group + kGroup; k += step)
                store(to + i + 1 + k, load(above + i + 1 + k) + (before + load_wide(sums + k)));
            run += static_cast<uint32_t>(sums[group + kGroup - 1]);
        }
    }
    for (; i < n; ++i) {
        run += x[i];
        to[i + 1] = static_cast<int32_t>(static_cast<uint32_t>(above[i + 1]) + run);
    }
}

// What a pixel adds to a sum, and what holds the sums of a row: 64 bits those of 2^31 squares of 16.
template <class T>
struct RunOf {
    typedef uint64_t type;
};
template <>
struct RunOf<float> {
    typedef double type;
};
template <bool Squares, class T>
TW_INLINE typename RunOf<T>::type term(T x) {
    const typename RunOf<T>::type v = x;
    return Squares ? v * v : v;
}
template <bool Squares, class T>
void sum_row(const T* x, const double* above, double* to, int64_t n) {
    typename RunOf<T>::type run = 0;
    to[0] = 0;
    for (int64_t i = 0; i < n; ++i) {
        run += term<Squares>(x[i]);
        to[i + 1] = above[i + 1] + static_cast<double>(run);
    }
}
template <bool Squares>
void sum_row(const uint8_t* x, const int32_t* above, int32_t* to, int64_t n) {
    sum_row(x, above, to, n);
}

template <bool Squares>
TW_INLINE void add_pixel(int32_t& sum, uint8_t x) {
    sum = static_cast<int32_t>(static_cast<uint32_t>(sum) + x);
}
template <bool Squares, class T>
TW_INLINE void add_pixel(double& sum, T x) {
    sum += static_cast<double>(term<Squares>(x));
}
TW_INLINE void add_sum(int32_t& sum, int32_t x) {
    sum = static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(x));
}
TW_INLINE void add_sum(double& sum, double x) { sum += x; }

// Rows first to last - 1 of a picture, after `above`, the sums above row `first`; rows of the result that are not
// contiguous are made in two rows of `spare`.
template <bool Squares, class P, class T>
void sum_band(const View& image, const View& y, int64_t first, int64_t last, const T* above, T* spare, P* pixels) {
    const int64_t n = image.shape[1];
    for (int64_t i = first; i < last; ++i) {
        const P* from = image.as<P>() + i * image.stride[0];
        if (image.stride[1] != 1) {
            for (int64_t x = 0; x < n; ++x) pixels[x] = from[x * image.stride[1]];
            from = pixels;
        }
        T* const to = begin_row(y, i + 1, spare + (i & 1) * ((n + 16) / 8 * 8));
        sum_row<Squares>(from, above, to, n);
        end_row(y, i + 1, to);
        above = to;
    }
}

// The sums of columns of at most kPartRows rows, which 16 bits hold, several vectors at once in registers.
void add_columns(const uint8_t* from, int64_t row, int64_t rows, int64_t n, int32_t* sums) {
    constexpr int64_t lanes = kLanes<int16_t>, step = kLanes<int32_t>, vectors = 4;
    int64_t x = 0;
    for (; x + vectors * lanes <= n; x += vectors * lanes) {
        i16v total[vectors] = {};
        for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int64_t v = 0; v < vectors; ++v) total[v] += load_pixels(from + i * row + x + v * lanes);
        alignas(kVecBytes) int16_t all[vectors * lanes];
        for (int64_t v = 0; v < vectors; ++v) store(all + v * lanes, total[v]);
        for (int64_t k = 0; k < vectors * lanes; k += step)
            store(sums + x + k, load(sums + x + k) + load_wide(all + k));
    }
    for (; x < n; ++x)
        for (int64_t i = 0; i < rows; ++i) sums[x] += from[i * row + x];
}

// The sums of whole columns of a part, running along the row: what its last row adds to the first.
template <bool Squares, class P, class T>
void sum_columns(const View& image, int64_t first, int64_t last, T* sums) {
    const int64_t n = image.shape[1], step = image.stride[1];
    for (int64_t x = 0; x <= n; ++x) sums[x] = 0;
    static_assert(kPartRows * 255 <= INT16_MAX);
    if constexpr (!Squares && sizeof(P) == 1 && sizeof(T) == 4) {
        if (step == 1) {
            add_columns(image.as<P>() + first * image.stride[0], image.stride[0], last - first, n, sums + 1);
            first = last;
        }
    }
    for (int64_t i = first; i < last; ++i) {
        const P* const from = image.as<P>() + i * image.stride[0];
        if (step == 1)
            for (int64_t x = 0; x < n; ++x) add_pixel<Squares>(sums[x + 1], from[x]);
        else
            for (int64_t x = 0; x < n; ++x) add_pixel<Squares>(sums[x + 1], from[x * step]);
    }
    for (int64_t x = 0; x < n; ++x) add_sum(sums[x + 1], sums[x]);
}

template <class T, bool Squares, class P>
Status run_as(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = image.shape[0], n = image.shape[1];
    constexpr int64_t part = kIsFloating<P> ? kBandRows : kPartRows;
    const int64_t each = kIsFloating<P> ? 1 : max_of(1, ceil_div(ceil_div(height, part), num_threads()));  // parts
    const int64_t rows = each * part, bands = max_of(1, ceil_div(height, rows)), parts = (bands - 1) * each;
    const int64_t pitch = (n + 16) / 8 * 8, bytes = (parts + 3) * pitch * static_cast<int64_t>(sizeof(T));
    Scratch scratch(static_cast<size_t>(bytes));
    T* const starts = scratch.as<T>();
    if (!starts)
        return fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                    static_cast<long long>(n));
    for (int64_t x = 0; x <= n; ++x) starts[x] = 0;
    parallel(parts,
             [&](int64_t i) { sum_columns<Squares, P>(image, i * part, (i + 1) * part, starts + (i + 1) * pitch); });
    for (int64_t i = 1; i <= parts; ++i)
        for (int64_t x = 0; x <= n; ++x) add_sum(starts[i * pitch + x], starts[(i - 1) * pitch + x]);
    for (int64_t x = 0; x <= n; ++x) y.as<T>()[x * y.stride[1]] = 0;
    bool enough = true;
    parallel(bands, [&](int64_t band) {
        Scratch own(
            static_cast<size_t>(2 * pitch * static_cast<int64_t>(sizeof(T)) + n * static_cast<int64_t>(sizeof(P))));
        T* const spare = own.as<T>();
        if (!spare) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        sum_band<Squares>(image, y, band * rows, min_of((band + 1) * rows, height), starts + band * each * pitch, spare,
                          reinterpret_cast<P*>(spare + 2 * pitch));
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

Status run_sums(const Call& c) {
    return with_pixels(c.in[0].dtype, [&](auto pixel) {
        typedef decltype(pixel) P;
        if constexpr (sizeof(P) == 1)
            return run_as<int32_t, false, P>(c);
        else
            return run_as<double, false, P>(c);
    });
}
Status run_squares(const Call& c) {
    return with_pixels(c.in[0].dtype, [&](auto pixel) { return run_as<double, true, decltype(pixel)>(c); });
}

template <bool Squares>
Status infer(Call& c, Inferred& r) {
    TW_TRY(want_pixel_type(c.in[0], "image"));
    if (c.in[0].ndim != 2)
        return fail(Status::shape, "image", "image has shape %s; want (H, W)", shape_text(c.in[0]).text);
    const int64_t shape[] = {c.in[0].shape[0] + 1, c.in[0].shape[1] + 1};
    r.n_out = 1;
    r.out[0] = result(Squares || c.in[0].dtype != DType::u8 ? DType::f64 : DType::i32, 2, shape);
    r.flops = 2.0 * static_cast<double>(shape[0]) * static_cast<double>(shape[1]);
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};

}  // namespace

extern const Entry op_integral = {"integral", kImage, 1, nullptr, 0, infer<false>, run_sums};
extern const Entry op_integral_squares = {"integral_squares", kImage, 1, nullptr, 0, infer<true>, run_squares};

}  // namespace tw::TW_ISA
