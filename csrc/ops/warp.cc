// Pictures seen through an affine or a projective map of the plane.
//
//     y[i, j] = image at ((m00 j + m01 i + m02) / w, (m10 j + m11 i + m12) / w),   w = 1 or m20 j + m21 i + m22
//
// Method    tiles of the result see a piece of the picture. Where that is small and pixels have 8 bits, it is laid out anew
//           so that the four pixels around a place are one word (image/quads.h): places are steps of 64-bit integers, or
//           quotients in doubles of which those too near a half are divided again. Else places are computed in rows, the
//           pixels around them fetched one by one and mixed whole vectors at once; those that lie inside the picture are
//           fetched without a check, those outside it not at all.
// Numerics  the matrix is rounded to whole numbers of at most 51 bits, scaled by a power of two, so that sums are exact as
//           doubles and as integers, on every tier and device; places are rounded to 1/128 pixel, and mixtures, exact
//           sums, once to a pixel, halves up. Floats are mixed in float64, along and then down, each rounded to float32.
//           Outside the picture all pixels are `border`.
// Threads   rows of tiles. Same bits always.
#include "image/check.h"
#include "image/projection.h"
#include "image/window.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTilesAtOnce = 4, kMostPixels = 32767;

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
    alignas(64) int16_t parts_x[kTile], parts_y[kTile];
    alignas(64) uint16_t upper[kTile] = {}, lower[kTile] = {};
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

// ---- tiles of words ---------------------------------------------------------------------------------------------------

struct Tile {
    int64_t y, x, rows, columns;
};

// The piece of the picture that a tile sees: that of its corners, between which places rise or fall. False where it is not
// known, since w may be 0 in between. `bend` is what half a row changes w by, as a share of it.
bool find_piece(const Map& map, const Tile& t, Piece& piece, double& bend) {
    const int64_t ys[] = {t.y, t.y + t.rows - 1}, xs[] = {t.x, t.x + t.columns - 1};
    int64_t low[2] = {INT32_MAX, INT32_MAX}, high[2] = {INT32_MIN, INT32_MIN};
    int above = 0, below = 0;
    double least = __builtin_inf();
    for (const int64_t y : ys)
        for (const int64_t x : xs) {
            int32_t places[2][kPiece];  // of which one is looked at
            find_places(map, x, y, 1, places[0], places[1]);
            for (int i = 0; i < 2; ++i) low[i] = min_of(low[i], places[i][0]), high[i] = max_of(high[i], places[i][0]);
            const double w = map.m[2][0] * static_cast<double>(x) + map.m[2][1] * static_cast<double>(y) + map.m[2][2];
            above += w > 0, below += w < 0;
            if (__builtin_fabs(w) < least) least = __builtin_fabs(w);
        }
    piece.x = low[0] >> kPlaceBits, piece.columns = (high[0] >> kPlaceBits) - piece.x + 1;
    piece.y = low[1] >> kPlaceBits, piece.rows = (high[1] >> kPlaceBits) - piece.y + 1;
    bend = __builtin_fabs(map.m[2][0]) * (kTile / 2) / least;
    return !map.projective || ((above == 4 || below == 4) && bend < ProjectivePlaces::kMostBend);
}

template <class Walk>
void mix_tile(const Quads& quads, Walk&& walk, const Tile& t, uint8_t* to, int64_t row, int64_t column) {
    constexpr int64_t lanes = kLanes<int16_t>, half = kLanes<uint32_t>;
    const bool whole = column == 1 && t.columns == kTile;
    alignas(64) uint32_t x[kTile], y[kTile], at[kTile];
    uint8_t mixed[kTile];
    for (int64_t i = 0; i < t.rows; ++i, to += row) {
        // Apart from each other, as words are waited for longer than a processor looks ahead.
        Walk::start(walk, t.y + i);
        for (int64_t j = 0; j < t.columns; j += lanes) {
            Places p;
            Walk::next(walk, p);
#pragma GCC unroll 2
            for (int k = 0; k < 2; ++k) {
                store(x + j + k * half, p.x[k]);
                store(y + j + k * half, p.y[k]);
                store(at + j + k * half, Quads::words_at(quads, p.x[k], p.y[k]));
            }
        }
        for (int64_t j = 0; j < t.columns; j += lanes) {
            const auto vector = [&](int64_t k) __attribute__((always_inline)) {
                return Quads::mixed(quads, at + k, load(x + k), load(y + k));
            };
            store_pixels((whole ? to : mixed) + j, narrow_units(vector(j), vector(j + half)));
        }
        if (!whole)
            for (int64_t j = 0; j < t.columns; ++j) to[j * column] = mixed[j];
    }
}

// False where the tile must be made another way.
bool tile_of_words(const Map& map, const Source& s, const Tile& t, uint8_t* memory, uint8_t* to, int64_t row,
                   int64_t column) {
    Piece piece;
    double bend;
    if (!(map.projective || (map.shift && map.shift <= 32 + kFineBits)) || !find_piece(map, t, piece, bend))
        return false;
    if (piece.x >= s.width || piece.y >= s.height || piece.x + piece.columns < 0 || piece.y + piece.rows < 0) {
        for (int64_t i = 0; i < t.rows; ++i)
            for (int64_t j = 0; j < t.columns; ++j) to[i * row + j * column] = s.border;
        return true;
    }
    if (!is_small(piece)) return false;
    Quads quads(memory);
    quads.take(s, piece);
    if (map.projective)
        mix_tile(quads, ProjectivePlaces(map, t.x, t.y, t.columns, t.rows, bend, piece), t, to, row, column);
    else
        mix_tile(quads, AffinePlaces(map, t.x, piece), t, to, row, column);
    return true;
}

template <class T>
void tile_of_rows(const Map& map, const SourceOf<T>& s, const Tile& t, bool nearest, T* to, int64_t row,
                  int64_t column) {
    alignas(64) int32_t px[kTile] = {}, py[kTile] = {};
    T mixed[kTile];
    for (int64_t i = 0; i < t.rows; ++i, to += row) {
        find_places(map, t.x, t.y + i, ceil_div(t.columns, kPiece) * kPiece, px, py);
        if (nearest)
            for (int64_t j = 0; j < t.columns; ++j)
                mixed[j] = pixel(s, (py[j] + 64) >> kPlaceBits, (px[j] + 64) >> kPlaceBits);
        else
            mix_all(s, px, py, t.columns, mixed);
        for (int64_t j = 0; j < t.columns; ++j) to[j * column] = mixed[j];
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
    const int64_t wide = kTilesAtOnce * kTile, across = ceil_div(width, wide);
    bool enough = true;
    parallel(ceil_div(height, kTile) * across, [&](int64_t chunk) {
        Scratch scratch(static_cast<size_t>(Quads::kBytes));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const int64_t top = chunk / across * kTile, left = chunk % across * wide;
        for (int64_t x = left; x < min_of(left + wide, width); x += kTile) {
            const Tile t = {top, x, min_of(kTile, height - top), min_of(kTile, width - x)};
            for (int64_t k = 0; k < channels; ++k) {
                const SourceOf<T> s = {image.as<T>() + (channels > 1 ? k * image.stride[2] : 0),
                                       image.shape[0],
                                       image.shape[1],
                                       image.stride[0],
                                       image.stride[1],
                                       static_cast<T>(c.attr[2].f)};
                T* const to = y.as<T>() + top * y.stride[0] + x * y.stride[1] + (channels > 1 ? k * y.stride[2] : 0);
                if constexpr (sizeof(T) == 1)
                    if (!nearest && tile_of_words(map, s, t, scratch.as<uint8_t>(), to, y.stride[0], y.stride[1]))
                        continue;
                tile_of_rows(map, s, t, nearest, to, y.stride[0], y.stride[1]);
            }
        }
    });
    return enough ? Status::ok : fail(Status::memory, "image", "no memory for a piece of the picture; want some free");
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

extern const Entry op_warp_affine = {"warp_affine", kOperands, 2, kAttrs, TW_COUNT(kAttrs), infer<2>, run};
extern const Entry op_warp_perspective = {"warp_perspective", kOperands, 2, kAttrs, TW_COUNT(kAttrs), infer<3>, run};

}  // namespace tw::TW_ISA
