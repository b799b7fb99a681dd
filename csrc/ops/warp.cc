// Pictures seen through an affine or a projective map of the plane.
//
//     y[i, j] = image at ((m00 j + m01 i + m02) / w, (m10 j + m11 i + m12) / w),   w = 1 or m20 j + m21 i + m22
//
// Method    places are computed in blocks of a row, whole vectors of doubles; the pixels around them are fetched one by
//           one and mixed whole vectors at once. A block that lies inside the picture is fetched without a check.
// Numerics  the matrix is rounded to whole numbers of at most 50 bits, scaled by a power of two, so that sums of doubles
//           are exact on every tier and device; places are rounded to 1/128 pixel, halves to even; mixtures are exact
//           sums with one rounding half up. Outside the picture all pixels are `border`.
// Threads   bands of rows. Same bits always.
#include "image/check.h"
#include "image/window.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBlock = 256, kMostPixels = 32767;
constexpr int kPlaceBits = 7;
constexpr double kFarAway = 1 << 28;  // in 1/128 pixel: outside every picture
constexpr int kDoubles = kLanes<double>;

// The matrix in whole numbers, and what turns results into 1/128 pixel.
struct Map {
    double m[3][3], scale;
    bool projective;
};

// A matrix that is not finite puts every place where w is 0: outside.
void make_map(const View& matrix, int64_t height, int64_t width, Map& map) {
    double m[3][3] = {{0, 0, 0}, {0, 0, 0}, {0, 0, 1}};
    double largest = 0;
    bool finite = true;
    for (int64_t i = 0; i < matrix.shape[0]; ++i)
        for (int64_t j = 0; j < 3; ++j) {
            m[i][j] = matrix.as<double>()[i * matrix.stride[0] + j * matrix.stride[1]];
            const double reach = j == 0 ? static_cast<double>(width) : j == 1 ? static_cast<double>(height) : 1;
            const double size = __builtin_fabs(m[i][j]) * reach;
            finite &= size < __builtin_inf();
            largest = size > largest ? size : largest;
        }
    int exponent = 0;
    if (largest > 0 && finite) __builtin_frexp(largest, &exponent);
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) map.m[i][j] = finite ? __builtin_rint(__builtin_ldexp(m[i][j], 50 - exponent)) : 0;
    map.projective = matrix.shape[0] == 3 || !finite;
    map.scale = map.projective ? 1 << kPlaceBits : __builtin_ldexp(1, exponent - 50 + kPlaceBits);
}

// Places of n pixels of row y from column x on, in 1/128 pixel; n is rounded up to whole vectors.
void find_places(const Map& map, int64_t x, int64_t y, int64_t n, int32_t* px, int32_t* py) {
    typedef VecOf<int32_t, kDoubles> Ints;
    double base[3];
    for (int i = 0; i < 3; ++i) base[i] = map.m[i][1] * static_cast<double>(y) + map.m[i][2];
    const f64v far = splat(kFarAway), scale = splat(map.scale);
    for (int64_t i = 0; i < n; i += kDoubles) {
        const f64v at = iota<double>() + splat(static_cast<double>(x + i));
        f64v u = at * splat(map.m[0][0]) + splat(base[0]), v = at * splat(map.m[1][0]) + splat(base[1]);
        if (map.projective) {
            const f64v w = at * splat(map.m[2][0]) + splat(base[2]);
            const auto nowhere = w == 0;
            u = select(nowhere, far, u / w);
            v = select(nowhere, far, v / w);
        }
        const auto put = [&](int32_t* to, f64v p) __attribute__((always_inline)) {
            p = min_any(max_any(round_nearest(p * scale), -far), far);
            *reinterpret_cast<Ints::loose*>(to + i) = __builtin_convertvector(p, Ints::type);
        };
        put(px, u);
        put(py, v);
    }
}

struct Source {
    const uint8_t* data;
    int64_t height, width, row, column;
    int border;
};

TW_INLINE int pixel(const Source& s, int64_t y, int64_t x) {
    return y >= 0 && y < s.height && x >= 0 && x < s.width ? s.data[y * s.row + x * s.column] : s.border;
}

// Whether all four pixels around every place are in the picture, at offsets that 32 bits hold.
TW_INLINE bool all_inside(const Source& s, const int32_t* px, const int32_t* py, int64_t n) {
    int32_t low = INT32_MAX, high_x = INT32_MIN, high_y = INT32_MIN;
    for (int64_t i = 0; i < n; ++i) {
        low = px[i] < low ? px[i] : low, low = py[i] < low ? py[i] : low;
        high_x = px[i] > high_x ? px[i] : high_x, high_y = py[i] > high_y ? py[i] : high_y;
    }
    const auto reach = [](int64_t size, int64_t step) { return size * (step < 0 ? -step : step); };
    return low >= 0 && high_x >> kPlaceBits < s.width - 1 && high_y >> kPlaceBits < s.height - 1 &&
           reach(s.height, s.row) + reach(s.width, s.column) <= INT32_MAX;
}

// Pairs of neighbours, the upper and the lower two around each place, the left one in the low byte.
void fetch(const Source& s, const int32_t* px, const int32_t* py, int64_t n, uint16_t* upper, uint16_t* lower) {
    for (int64_t i = 0; i < n; ++i) {
        const int64_t x = px[i] >> kPlaceBits, y = py[i] >> kPlaceBits;
        upper[i] = static_cast<uint16_t>(pixel(s, y, x) | pixel(s, y, x + 1) << 8);
        lower[i] = static_cast<uint16_t>(pixel(s, y + 1, x) | pixel(s, y + 1, x + 1) << 8);
    }
}

// The same where all are in the picture.
void fetch_inside(const Source& s, const int32_t* px, const int32_t* py, int64_t n, uint16_t* upper, uint16_t* lower) {
    alignas(64) int32_t offset[kBlock];
    const i32v row = splat(static_cast<int32_t>(s.row)), column = splat(static_cast<int32_t>(s.column));
    for (int64_t i = 0; i < n; i += kLanes<int32_t>)
        store(offset + i, (load(py + i) >> kPlaceBits) * row + (load(px + i) >> kPlaceBits) * column);
    const uint8_t *const above = s.data, *const below = s.data + s.row;
    if (s.column == 1) {
        for (int64_t i = 0; i < n; ++i) {
            __builtin_memcpy(upper + i, above + offset[i], 2);
            __builtin_memcpy(lower + i, below + offset[i], 2);
        }
        return;
    }
    for (int64_t i = 0; i < n; ++i) {
        upper[i] = static_cast<uint16_t>(above[offset[i]] | above[offset[i] + s.column] << 8);
        lower[i] = static_cast<uint16_t>(below[offset[i]] | below[offset[i] + s.column] << 8);
    }
}

// Weights of second neighbours: the last bits of places.
void find_parts(const int32_t* places, int64_t n, int16_t* parts) {
    for (int64_t i = 0; i < n; i += kLanes<int32_t>) store_narrow(parts + i, load(places + i) & 127);
}

void mix(const uint16_t* upper, const uint16_t* lower, const int16_t* parts_x, const int16_t* parts_y, uint8_t* to,
         int64_t n) {
    const i16v one = splat<int16_t>(128);
    const i32v half = splat<int32_t>(1 << 13);
    for (int64_t i = 0; i < n; i += kLanes<int16_t>) {
        const i16v fx = load(parts_x + i), fy = load(parts_y + i);
        const auto along = [&](const uint16_t* pairs) __attribute__((always_inline)) {
            const Vec<uint16_t> both = load(pairs + i);
            const i16v left = bitcast<i16v>(both & 255), right = bitcast<i16v>(both >> 8);
            return left * one + (right - left) * fx;
        };
        const i16v a = along(upper), b = along(lower), rest = one - fy;
        const i32v low = dot_pairs(interleave_low(a, b), interleave_low(rest, fy)) + half;
        const i32v high = dot_pairs(interleave_high(a, b), interleave_high(rest, fy)) + half;
        store_pixels(to + i, narrow_units(low >> 14, high >> 14));
    }
}

Status run(const Call& c) {
    const View &image = c.in[0], &matrix = c.in[1], &y = c.out[0];
    const int64_t height = y.shape[0], width = y.shape[1], channels = row_channels(image);
    Map map;
    make_map(matrix, height, width, map);
    if (numel(y) == 0) return Status::ok;
    const bool nearest = c.attr[1].choice == 1;
    const int64_t rows = max_of(1, kChunkElements / width);
    parallel(ceil_div(height, rows), [&](int64_t band) {
        alignas(64) int32_t px[kBlock] = {}, py[kBlock] = {};
        alignas(64) int16_t parts_x[kBlock], parts_y[kBlock];
        alignas(64) uint16_t upper[kBlock] = {}, lower[kBlock] = {};
        uint8_t mixed[kBlock];
        for (int64_t i = band * rows; i < min_of((band + 1) * rows, height); ++i)
            for (int64_t x = 0; x < width; x += kBlock) {
                const int64_t n = min_of(kBlock, width - x);
                find_places(map, x, i, n, px, py);
                find_parts(px, n, parts_x);
                find_parts(py, n, parts_y);
                for (int64_t k = 0; k < channels; ++k) {
                    const int64_t channel = channels > 1 ? k * image.stride[2] : 0;
                    const Source s = {
                        image.as<uint8_t>() + channel, image.shape[0], image.shape[1], image.stride[0], image.stride[1],
                        static_cast<int>(c.attr[2].i)};
                    if (nearest)
                        for (int64_t j = 0; j < n; ++j)
                            mixed[j] =
                                static_cast<uint8_t>(pixel(s, (py[j] + 64) >> kPlaceBits, (px[j] + 64) >> kPlaceBits));
                    else {
                        (all_inside(s, px, py, n) ? fetch_inside : fetch)(s, px, py, n, upper, lower);
                        mix(upper, lower, parts_x, parts_y, mixed, n);
                    }
                    uint8_t* const to =
                        y.as<uint8_t>() + i * y.stride[0] + x * y.stride[1] + (channels > 1 ? k * y.stride[2] : 0);
                    if (y.stride[1] == 1)
                        __builtin_memcpy(to, mixed, static_cast<size_t>(n));
                    else
                        for (int64_t j = 0; j < n; ++j) to[j * y.stride[1]] = mixed[j];
                }
            }
    });
    return Status::ok;
}

template <int64_t Rows>
Status infer(Call& c, Inferred& r) {
    const View &image = c.in[0], &matrix = c.in[1];
    TW_TRY(want_picture(image));
    if (matrix.dtype != DType::f64)
        return fail(Status::dtype, "matrix", "matrix has dtype %s; want float64", name_of(matrix.dtype));
    constexpr int64_t want[] = {Rows, 3};
    TW_TRY(want_shape(matrix, "matrix", 2, want));
    if (max_of(image.shape[0], image.shape[1]) > kMostPixels)
        return fail(Status::shape, "image", "image has shape %s; want at most %lld rows and columns",
                    shape_text(image).text, static_cast<long long>(kMostPixels));
    Attr& size = c.attr[0];
    if (size.is_none) {
        size.is_none = size.is_scalar = false;
        size.n = 2;
        size.list[0] = image.shape[0], size.list[1] = image.shape[1];
    }
    TW_TRY(resolve_integers(size, "size", 2, 0));
    if (max_of(size.list[0], size.list[1]) > kMostPixels)
        return fail(Status::attr, "size", "size=%s; want at most %lld rows and columns", attr_text(size).text,
                    static_cast<long long>(kMostPixels));
    if (c.attr[2].i < 0 || c.attr[2].i > 255)
        return fail(Status::attr, "border", "border=%lld; want 0 to 255", static_cast<long long>(c.attr[2].i));
    const int64_t shape[] = {size.list[0], size.list[1], 3};
    r.n_out = 1;
    r.out[0] = result(DType::u8, image.ndim, shape);
    r.flops = 20.0 * static_cast<double>(numel(r.out[0]));
    return Status::ok;
}

constexpr Operand kOperands[] = {{"image"}, {"matrix"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "size", .kind = AttrKind::integers, .none_ok = true},
    {.name = "interpolation", .kind = AttrKind::choice, .choices = "linear|nearest"},
    {.name = "border", .kind = AttrKind::integer, .i = 0},
};

}  // namespace

extern const OpDef op_warp_affine = {"warp_affine", kOperands, 2, kAttrs, TW_COUNT(kAttrs), infer<2>, run};
extern const OpDef op_warp_perspective = {"warp_perspective", kOperands, 2, kAttrs, TW_COUNT(kAttrs), infer<3>, run};

}  // namespace tw::TW_ISA
