// Derivatives of pictures: separable filters of 3, 5 or 7 pixels, or sums of two such filters.
//
//     y[i, j] = sum over terms, u, v of down[u] along[v] image[i + u - K/2, j + v - K/2]
//
// Method    a window of rows slides down the picture; each term is summed down the window, then along the row.
// Numerics  8 bits: exact integers, saturated to int16; else float32 (image/separable.h). Outside the picture pixels mirror at the edge without repeating it.
// Threads   bands of kBandRows rows, whose windows overlap. Same bits always.
// Source    H. Scharr, "Optimal operators in digital image processing", 2000, for the weights 3, 10, 3.
#include "image/separable.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;

struct Term {
    int16_t along[7], down[7];
};

// ---- one row --------------------------------------------------------------------------------------------------------

template <int K>
TW_INLINE void sum_down(const uint8_t* const* rows, const int16_t* taps, int16_t* to, int64_t n) {
    i16v held[K];
    const uint8_t* own[K];
    for (int k = 0; k < K; ++k) held[k] = splat(taps[k]), own[k] = rows[k];
    for (int64_t x = 0; x < n; x += kLanes<int16_t>) {
        i16v total = load_pixels(own[0] + x) * held[0];
#pragma GCC unroll 7
        for (int k = 1; k < K; ++k) total += load_pixels(own[k] + x) * held[k];
        store(to + x, total);
    }
}

TW_INLINE i16v load_in(const int16_t* p, int16_t) { return load(p); }
TW_INLINE i32v load_in(const int16_t* p, int32_t) { return load_wide(p); }
TW_INLINE i16v take_in(const int16_t* p, int64_t n, int16_t) { return load_n(p, n); }
TW_INLINE i32v take_in(const int16_t* p, int64_t n, int32_t) {
    i32v v{};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
}
TW_INLINE void put(int16_t* p, i16v v, int64_t n) { store_n(p, v, n); }
TW_INLINE void put(int16_t* p, i32v v, int64_t n) {
    v = min_any(max_any(v, splat<int32_t>(INT16_MIN)), splat<int32_t>(INT16_MAX));
    if (n == kLanes<int32_t>) return store_narrow(p, v);
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<int16_t>(v[i]);
}

// What sums along a row are held in: those of 7 pixels take 32 bits.
template <int K>
struct WideOf {
    typedef int16_t type;
};
template <>
struct WideOf<7> {
    typedef int32_t type;
};

template <int K>
TW_INLINE void sum_along(const int16_t* sums, const int16_t* taps, int64_t step, bool more, int16_t* to, int64_t n) {
    typedef typename WideOf<K>::type W;
    Vec<W> held[K];
    for (int k = 0; k < K; ++k) held[k] = splat<W>(taps[k]);
    for (int64_t x = 0; x < n; x += kLanes<W>) {
        const int64_t count = min_of(n - x, kLanes<W>);
        Vec<W> total{};
#pragma GCC unroll 7
        for (int k = 0; k < K; ++k) total += load_in(sums + x + (k - K / 2) * step, W{}) * held[k];
        if (more) total += take_in(to + x, count, W{});
        put(to + x, total, count);
    }
}

// ---- a picture ------------------------------------------------------------------------------------------------------

// The results are the sums of `terms` terms each.
template <int K>
Status filter(const Call& c, const Term* term, int terms) {
    const View& image = c.in[0];
    const int64_t n = row_elements(image), step = row_channels(image), height = image.shape[0];
    const int64_t sums_bytes = row_pitch(n) * static_cast<int64_t>(sizeof(int16_t));
    bool enough = true;
    parallel(ceil_div(height, kBandRows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>(2 * sums_bytes + Window<K>::bytes(image)));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        int16_t* const sums = scratch.as<int16_t>() + kMargin;
        int16_t* const row = scratch.as<int16_t>() + row_pitch(n);
        Window<K> window(image, scratch.as<char>() + 2 * sums_bytes);
        for (int64_t y = band * kBandRows; y < min_of((band + 1) * kBandRows, height); ++y) {
            const uint8_t* const* const rows = window.at(y);
            for (int i = 0; i < c.n_out; ++i) {
                int16_t* const to = begin_row(c.out[i], y, row);
                for (int t = 0; t < terms; ++t) {
                    const Term& of = term[i * terms + t];
                    sum_down<K>(rows, of.down, sums, n);
                    for (int64_t k = 1; k <= K / 2; ++k)
                        for (int64_t j = 0; j < step; ++j) {
                            sums[j - k * step] = sums[mirrored(-k, image.shape[1]) * step + j];
                            sums[n + (k - 1) * step + j] =
                                sums[mirrored(image.shape[1] - 1 + k, image.shape[1]) * step + j];
                        }
                    sum_along<K>(sums, of.along, step, t > 0, to, n);
                }
                end_row(c.out[i], y, row);
            }
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

// Of pictures of 16-bit integers and floats.
Status filter_deep(const Call& c, int size, const Term* term, int terms) {
    float down[2][7], along[2][7];
    const Weights weights[] = {{down[0], along[0]}, {down[1], along[1]}};
    for (int i = 0; i < c.n_out; ++i) {
        for (int t = 0; t < terms; ++t)
            for (int k = 0; k < size; ++k)
                down[t][k] = term[i * terms + t].down[k], along[t][k] = term[i * terms + t].along[k];
        TW_TRY(separable(c.in[0], c.out[i], {size, size, weights, terms, 1, 1, Outside::mirrors}));
    }
    return Status::ok;
}

Status filter_any(const Call& c, int size, const Term* term, int terms) {
    if (numel(c.out[0]) == 0) return Status::ok;
    if (c.in[0].dtype != DType::u8) return filter_deep(c, size, term, terms);
    return size == 3 ? filter<3>(c, term, terms) : size == 5 ? filter<5>(c, term, terms) : filter<7>(c, term, terms);
}

// Weights of the derivative of an order: binomial smoothing, differenced `order` times.
void derive(int size, int64_t order, int16_t* taps) {
    for (int i = 0; i < 7; ++i) taps[i] = i == 0;
    for (int i = 1; i < size; ++i) {
        const int sign = i >= size - order ? -1 : 1;  // the last ones difference
        for (int j = i; j > 0; --j) taps[j] = static_cast<int16_t>(taps[j - 1] + sign * taps[j]);
        taps[0] = static_cast<int16_t>(sign * taps[0]);
    }
}

Term sobel_term(int size, int64_t dx, int64_t dy) {
    Term t;
    derive(size, dx, t.along);
    derive(size, dy, t.down);
    return t;
}

constexpr Term kScharr[] = {{{-1, 0, 1}, {3, 10, 3}}, {{3, 10, 3}, {-1, 0, 1}}};
constexpr Term kCross[] = {{{1, -2, 1}, {0, 1, 0}}, {{0, 1, 0}, {1, -2, 1}}};

Status run_sobel(const Call& c) {
    const int size = static_cast<int>(c.attr[2].i);
    const Term term = sobel_term(size, c.attr[0].i, c.attr[1].i);
    return filter_any(c, size, &term, 1);
}

Status run_scharr(const Call& c) { return filter_any(c, 3, &kScharr[c.attr[0].i ? 0 : 1], 1); }

Status run_both(const Call& c) {
    const Term terms[] = {sobel_term(3, 1, 0), sobel_term(3, 0, 1)};
    return filter_any(c, 3, terms, 1);
}

Status run_laplacian(const Call& c) {
    const Term terms[] = {sobel_term(3, 2, 0), sobel_term(3, 0, 2)};
    return filter_any(c, 3, c.attr[0].i == 1 ? kCross : terms, 2);
}

// ---- checks ---------------------------------------------------------------------------------------------------------

Status infer_filter(Call& c, Inferred& r, int results, double size) {
    const View& image = c.in[0];
    TW_TRY(want_any_picture(image));
    const DType dtype = image.dtype == DType::u8 ? DType::i16 : DType::f32;
    r.n_out = results;
    for (int i = 0; i < results; ++i) r.out[i] = result(dtype, image.ndim, image.shape);
    r.flops = 4 * size * results * static_cast<double>(numel(image));
    return Status::ok;
}

Status want_order(const Attr& a, const char* name, int64_t most) {
    if (a.i >= 0 && a.i <= most) return Status::ok;
    return fail(Status::attr, name, "%s=%lld; want a derivative of order 0 to %lld", name, static_cast<long long>(a.i),
                static_cast<long long>(most));
}

Status want_some(const Call& c) {
    if (c.attr[0].i + c.attr[1].i > 0) return Status::ok;
    return fail(Status::attr, "dx", "dx=0 and dy=0; want a derivative along x or y");
}

Status infer_sobel(Call& c, Inferred& r) {
    TW_TRY(infer_filter(c, r, 1, static_cast<double>(c.attr[2].i)));
    const int64_t size = c.attr[2].i;
    if (size != 3 && size != 5 && size != 7)
        return fail(Status::attr, "ksize", "ksize=%lld; want 3, 5 or 7", static_cast<long long>(size));
    TW_TRY(want_order(c.attr[0], "dx", 2));
    TW_TRY(want_order(c.attr[1], "dy", 2));
    return want_some(c);
}

Status infer_scharr(Call& c, Inferred& r) {
    TW_TRY(infer_filter(c, r, 1, 3));
    TW_TRY(want_order(c.attr[0], "dx", 1));
    TW_TRY(want_order(c.attr[1], "dy", 1));
    TW_TRY(want_some(c));
    if (c.attr[0].i + c.attr[1].i == 1) return Status::ok;
    return fail(Status::attr, "dy", "dx=1 and dy=1; want a derivative along one of x and y");
}

Status infer_both(Call& c, Inferred& r) { return infer_filter(c, r, 2, 3); }

Status infer_laplacian(Call& c, Inferred& r) {
    TW_TRY(infer_filter(c, r, 1, 6));
    const int64_t size = c.attr[0].i;
    if (size == 1 || size == 3) return Status::ok;
    return fail(Status::attr, "ksize", "ksize=%lld; want 1 or 3", static_cast<long long>(size));
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kSobel[] = {{.name = "dx", .kind = AttrKind::integer, .required = true},
                               {.name = "dy", .kind = AttrKind::integer, .required = true},
                               {.name = "ksize", .kind = AttrKind::integer, .i = 3}};
constexpr AttrSpec kLaplacian[] = {{.name = "ksize", .kind = AttrKind::integer, .i = 1}};

}  // namespace

extern const Entry op_sobel = {"sobel", kImage, 1, kSobel, 3, infer_sobel, run_sobel};
extern const Entry op_scharr = {"scharr", kImage, 1, kSobel, 2, infer_scharr, run_scharr};
extern const Entry op_spatial_gradient = {"spatial_gradient", kImage, 1, nullptr, 0, infer_both, run_both};
extern const Entry op_laplacian = {"laplacian", kImage, 1, kLaplacian, 1, infer_laplacian, run_laplacian};

}  // namespace tw::TW_ISA
