// Pictures seen through an affine or a projective map of the plane.
//
//     y[i, j] = image at ((m00 j + m01 i + m02) / w, (m10 j + m11 i + m12) / w),   w = 1 or m20 j + m21 i + m22
//
// Method    places are computed in blocks of a row: of affine maps in steps of 64-bit integers, where these hold them, else
//           in doubles. The pixels around them are fetched one by one and mixed whole vectors at once. Pieces that lie
//           inside the picture are fetched without a check, pieces outside it not at all.
// Numerics  the matrix is rounded to whole numbers of at most 51 bits, scaled by a power of two, so that sums are exact as
//           doubles and as integers, on every tier and device; places are rounded to 1/128 pixel, and mixtures, exact
//           sums, once to a pixel, halves up. Floats are mixed in float64, along and then down, each rounded to float32.
//           Outside the picture all pixels are `border`.
// Threads   bands of rows. Same bits always.
#include "image/check.h"
#include "image/window.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBlock = 256, kMostPixels = 32767;
constexpr int64_t kPiece = 32;  // pixels that are fetched alike, at least a vector of any element
constexpr int kPlaceBits = 7, kBits = 51;
constexpr double kFarAway = 1 << 28;  // in 1/128 pixel: outside every picture
constexpr int kDoubles = kLanes<double>;

// The matrix in whole numbers, and what turns results into 1/128 pixel: a factor, where it divides by 2^32 or more also
// a shift of 64-bit integers.
struct Map {
    double m[3][3], scale;
    bool projective;
    int shift;  // 0: none
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
        for (int j = 0; j < 3; ++j)
            map.m[i][j] = finite ? __builtin_rint(__builtin_ldexp(m[i][j], kBits - exponent)) : 0;
    map.projective = matrix.shape[0] == 3 || !finite;
    map.scale = map.projective ? 1 << kPlaceBits : __builtin_ldexp(1, exponent - kBits + kPlaceBits);
    const int shift = kBits - kPlaceBits - exponent;
    map.shift = !map.projective && shift >= 32 && shift < 63 ? shift : 0;
}

// Upper halves of 64-bit integers.
template <int... I>
TW_INLINE i32v upper_halves(Vec<int64_t> a, Vec<int64_t> b, Seq<I...>) {
    return shuffle<(2 * I + 1)...>(bitcast<i32v>(a), bitcast<i32v>(b));
}

// Places (m x + base) / 2^shift, rounded, of whole vectors of pixels from column x on.
void step_along(double m, double base, int shift, int64_t x, int64_t n, int32_t* to) {
    constexpr int64_t lanes = kLanes<int64_t>;
    const int64_t step = static_cast<int64_t>(m);
    int64_t first[2 * lanes];
    for (int64_t i = 0; i < 2 * lanes; ++i)
        first[i] = static_cast<int64_t>(base) + (int64_t{1} << (shift - 1)) + (x + i) * step;
    Vec<int64_t> a = load(first), b = load(first + lanes);
    const Vec<int64_t> steps = splat(2 * lanes * step);
    for (int64_t i = 0; i < n; i += 2 * lanes, a += steps, b += steps)
        store(to + i, upper_halves(a, b, Indices<i32v>{}) >> (shift - 32));
}

// Places of n pixels of row y from column x on, in 1/128 pixel; n is rounded up to kPiece.
void find_places(const Map& map, int64_t x, int64_t y, int64_t n, int32_t* px, int32_t* py) {
    typedef VecOf<int32_t, kDoubles> Ints;
    double base[3];
    for (int i = 0; i < 3; ++i) base[i] = map.m[i][1] * static_cast<double>(y) + map.m[i][2];
    n = ceil_div(n, kPiece) * kPiece;
    if (map.shift) {
        step_along(map.m[0][0], base[0], map.shift, x, n, px);
        step_along(map.m[1][0], base[1], map.shift, x, n, py);
        return;
    }
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
            const f64v half = p * scale + 0.5, near = round_nearest(half);
            p = min_any(max_any(select(near > half, near - 1, near), -far), far);
            *reinterpret_cast<Ints::loose*>(to + i) = __builtin_convertvector(p, Ints::type);
        };
        put(px, u);
        put(py, v);
    }
}

template <class T>
struct SourceOf {
    const T* data;
    int64_t height, width, row, column;
    T border;
};
using Source = SourceOf<uint8_t>;

template <class T>
TW_INLINE T pixel(const SourceOf<T>& s, int64_t y, int64_t x) {
    return y >= 0 && y < s.height && x >= 0 && x < s.width ? s.data[y * s.row + x * s.column] : s.border;
}

enum class Where { inside, outside, across };

// Where the four pixels around kPiece places are.
template <class T>
Where where(const SourceOf<T>& s, const int32_t* px, const int32_t* py) {
    i32v low_x = load(px), high_x = low_x, low_y = load(py), high_y = low_y;
    for (int64_t i = kLanes<int32_t>; i < kPiece; i += kLanes<int32_t>) {
        const i32v x = load(px + i), y = load(py + i);
        low_x = min_any(low_x, x), high_x = max_any(high_x, x);
        low_y = min_any(low_y, y), high_y = max_any(high_y, y);
    }
    const int32_t left = reduce_min(low_x) >> kPlaceBits, right = reduce_max(high_x) >> kPlaceBits;
    const int32_t top = reduce_min(low_y) >> kPlaceBits, bottom = reduce_max(high_y) >> kPlaceBits;
    if (right < -1 || bottom < -1 || left >= s.width || top >= s.height) return Where::outside;
    return left >= 0 && top >= 0 && right < s.width - 1 && bottom < s.height - 1 ? Where::inside : Where::across;
}

// Pairs of neighbours, the upper and the lower two around each of kPiece places, the left one in the low byte.
void fetch(const Source& s, const int32_t* px, const int32_t* py, uint16_t* upper, uint16_t* lower) {
    for (int64_t i = 0; i < kPiece; ++i) {
        const int64_t x = px[i] >> kPlaceBits, y = py[i] >> kPlaceBits;
        upper[i] = static_cast<uint16_t>(pixel(s, y, x) | pixel(s, y, x + 1) << 8);
        lower[i] = static_cast<uint16_t>(pixel(s, y + 1, x) | pixel(s, y + 1, x + 1) << 8);
    }
}

// The same where all are in the picture, at offsets that 32 bits hold.
void fetch_inside(const Source& s, const int32_t* px, const int32_t* py, uint16_t* upper, uint16_t* lower) {
    alignas(64) int32_t offset[kPiece];
    const i32v row = splat(static_cast<int32_t>(s.row)), column = splat(static_cast<int32_t>(s.column));
    for (int64_t i = 0; i < kPiece; i += kLanes<int32_t>)
        store(offset + i, (load(py + i) >> kPlaceBits) * row + (load(px + i) >> kPlaceBits) * column);
    const uint8_t *const above = s.data, *const below = s.data + s.row;
    if (s.column == 1) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < kPiece; ++i) {
            __builtin_memcpy(upper + i, above + offset[i], 2);
            __builtin_memcpy(lower + i, below + offset[i], 2);
        }
        return;
    }
    for (int64_t i = 0; i < kPiece; ++i) {
        upper[i] = static_cast<uint16_t>(above[offset[i]] | above[offset[i] + s.column] << 8);
        lower[i] = static_cast<uint16_t>(below[offset[i]] | below[offset[i] + s.column] << 8);
    }
}

// Of n places.
void fetch_all(const Source& s, const int32_t* px, const int32_t* py, int64_t n, uint16_t* upper, uint16_t* lower) {
    const auto reach = [](int64_t size, int64_t step) { return size * (step < 0 ? -step : step); };
    const bool near = reach(s.height, s.row) + reach(s.width, s.column) <= INT32_MAX;
    for (int64_t i = 0; i < n; i += kPiece) {
        const Where at = where(s, px + i, py + i);
        if (at == Where::outside) {
            for (int64_t j = i; j < i + kPiece; ++j) upper[j] = lower[j] = static_cast<uint16_t>(s.border * 257);
        } else {
            (at == Where::inside && near ? fetch_inside : fetch)(s, px + i, py + i, upper + i, lower + i);
        }
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

// Pixels of 8 bits.
void mix_all(const Source& s, const int32_t* px, const int32_t* py, int64_t n, uint8_t* to) {
    alignas(64) int16_t parts_x[kBlock], parts_y[kBlock];
    alignas(64) uint16_t upper[kBlock] = {}, lower[kBlock] = {};
    find_parts(px, n, parts_x);
    find_parts(py, n, parts_y);
    fetch_all(s, px, py, n, upper, lower);
    mix(upper, lower, parts_x, parts_y, to, n);
}

// Other pixels, one by one.
template <class T>
TW_INLINE T mixed_at(T a, T b, T c, T d, int32_t fx, int32_t fy) {
    constexpr int one = 1 << kPlaceBits;
    if constexpr (kIsFloating<T>) {
        const auto mix = [](T u, T v, int part) {
            return static_cast<double>(u) * (one - part) + static_cast<double>(v) * part;
        };
        const T upper = static_cast<T>(mix(a, b, fx)), lower = static_cast<T>(mix(c, d, fx));
        return static_cast<T>(mix(upper, lower, fy) / (one * one));
    } else {
        const int32_t upper = a * (one - fx) + b * fx, lower = c * (one - fx) + d * fx;
        return static_cast<T>((upper * (one - fy) + lower * fy + one * one / 2) >> (2 * kPlaceBits));
    }
}
template <class T>
void mix_all(const SourceOf<T>& s, const int32_t* px, const int32_t* py, int64_t n, T* to) {
    for (int64_t first = 0; first < n; first += kPiece) {
        const int64_t last = min_of(first + kPiece, n);
        const Where at = where(s, px + first, py + first);
        if (at == Where::outside) {
            for (int64_t i = first; i < last; ++i) to[i] = s.border;
            continue;
        }
        for (int64_t i = first; i < last; ++i) {
            const int64_t x = px[i] >> kPlaceBits, y = py[i] >> kPlaceBits;
            const int32_t fx = px[i] & 127, fy = py[i] & 127;
            if (at == Where::inside) {
                const T* const p = s.data + y * s.row + x * s.column;
                to[i] = mixed_at(p[0], p[s.column], p[s.row], p[s.row + s.column], fx, fy);
            } else {
                to[i] =
                    mixed_at(pixel(s, y, x), pixel(s, y, x + 1), pixel(s, y + 1, x), pixel(s, y + 1, x + 1), fx, fy);
            }
        }
    }
}

template <class T>
Status run_as(const Call& c) {
    const View &image = c.in[0], &matrix = c.in[1], &y = c.out[0];
    const int64_t height = y.shape[0], width = y.shape[1], channels = row_channels(image);
    Map map;
    make_map(matrix, height, width, map);
    if (numel(y) == 0) return Status::ok;
    const bool nearest = c.attr[1].choice == 1;
    const int64_t rows = max_of(1, kChunkElements / width);
    parallel(ceil_div(height, rows), [&](int64_t band) {
        alignas(64) int32_t px[kBlock] = {}, py[kBlock] = {};
        T mixed[kBlock];
        for (int64_t i = band * rows; i < min_of((band + 1) * rows, height); ++i)
            for (int64_t x = 0; x < width; x += kBlock) {
                const int64_t n = min_of(kBlock, width - x);
                find_places(map, x, i, n, px, py);
                for (int64_t k = 0; k < channels; ++k) {
                    const int64_t channel = channels > 1 ? k * image.stride[2] : 0;
                    const SourceOf<T> s = {image.as<T>() + channel, image.shape[0],  image.shape[1],
                                           image.stride[0],         image.stride[1], static_cast<T>(c.attr[2].f)};
                    if (nearest)
                        for (int64_t j = 0; j < n; ++j)
                            mixed[j] = pixel(s, (py[j] + 64) >> kPlaceBits, (px[j] + 64) >> kPlaceBits);
                    else
                        mix_all(s, px, py, n, mixed);
                    T* const to = y.as<T>() + i * y.stride[0] + x * y.stride[1] + (channels > 1 ? k * y.stride[2] : 0);
                    if (y.stride[1] == 1)
                        __builtin_memcpy(to, mixed, static_cast<size_t>(n) * sizeof(T));
                    else
                        for (int64_t j = 0; j < n; ++j) to[j * y.stride[1]] = mixed[j];
                }
            }
    });
    return Status::ok;
}

Status run(const Call& c) {
    return with_pixels(c.in[0].dtype, [&](auto pixel) { return run_as<decltype(pixel)>(c); });
}

template <int64_t Rows>
Status infer(Call& c, Inferred& r) {
    const View &image = c.in[0], &matrix = c.in[1];
    TW_TRY(want_any_picture(image));
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
    TW_TRY(want_value(c.attr[2].f, image.dtype, "border"));
    const int64_t shape[] = {size.list[0], size.list[1], 3};
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, shape);
    r.flops = 20.0 * static_cast<double>(numel(r.out[0]));
    return Status::ok;
}

constexpr Operand kOperands[] = {{"image"}, {"matrix"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "size", .kind = AttrKind::integers, .none_ok = true},
    {.name = "interpolation", .kind = AttrKind::choice, .choices = "linear|nearest"},
    {.name = "border", .kind = AttrKind::real},
};

}  // namespace

extern const OpDef op_warp_affine = {"warp_affine", kOperands, 2, kAttrs, TW_COUNT(kAttrs), infer<2>, run};
extern const OpDef op_warp_perspective = {"warp_perspective", kOperands, 2, kAttrs, TW_COUNT(kAttrs), infer<3>, run};

}  // namespace tw::TW_ISA
