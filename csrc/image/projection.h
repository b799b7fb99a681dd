// Where the pixels of a picture lie in another one, through an affine or a projective map of the plane.
//
//     place (x, y) = ((m00 x + m01 y + m02) / w, (m10 x + m11 y + m12) / w),   w = 1 or m20 x + m21 y + m22
//
// Method    of a row whole vectors of places: steps of 64-bit integers, or quotients. In a piece of a picture places are in
//           1/2^23 pixel: steps again, or series around the middle of a row, of which those too near a half are divided.
// Numerics  the matrix is rounded to whole numbers of at most 51 bits, scaled by a power of two, so that sums are exact as
//           doubles and as integers, on every tier; places are rounded to 1/128 pixel.
#pragma once
#include "core/index.h"
#include "core/types.h"
#include "image/quads.h"
#include "simd/units.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kTile = 64;  // rows and columns of the result that see a piece of the picture
constexpr int64_t kPiece = 32;  // pixels that are fetched alike, at least a vector of any element
constexpr int kBits = 51;
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
    map.shift = !map.projective && shift > 0 && shift < 63 ? shift : 0;
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

// Places of n pixels of row y from column x on, in 1/128 pixel; n is rounded up to whole vectors, of steps to kPiece.
void find_places(const Map& map, int64_t x, int64_t y, int64_t n, int32_t* px, int32_t* py) {
    typedef VecOf<int32_t, kDoubles> Ints;
    double base[3];
    for (int i = 0; i < 3; ++i) base[i] = map.m[i][1] * static_cast<double>(y) + map.m[i][2];
    if (map.shift >= 32) {
        n = ceil_div(n, kPiece) * kPiece;
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

// ---- in a piece of a picture -----------------------------------------------------------------------------------------

// Columns of the result that lane I of one of four vectors of 64 bits stands for: in this order their 32-bit halves, put
// together by units, are two vectors that narrow_units brings into the order of a row.
template <class T, int... I>
TW_INLINE Vec<T> columns_of(Seq<I...>) {
    return Vec<T>{static_cast<T>(I / 2 * 8 + I % 2)...};
}
template <int Odd, class V>
TW_INLINE u32v halves(V a, V b) {
    return bitcast<u32v>(halves_of_units<Odd, Odd>(bitcast<f32v>(a), bitcast<f32v>(b)));  // one shuffle, of floats
}

struct Places {
    u32v x[2], y[2];  // in 1/2^23 pixel of a piece
};

// Steps of one axis: integers in 1/2^48 of 1/128 pixel, which wrap where no place of the tile is.
class Steps {
public:
    Steps(const double* m, int shift, int64_t x, int64_t origin)
        : along_(whole(m[0])),
          down_(whole(m[1])),
          first_(whole(m[2]) + along_ * static_cast<uint64_t>(x) + (uint64_t{1} << (shift - 1)) -
                 (static_cast<uint64_t>(origin * (1 << kPlaceBits)) << shift)),
          shift_(32 + kFineBits - shift) {
        const uint64_t step = along_ << shift_;
        columns_ = columns_of<uint64_t>(Indices<Vec<uint64_t>>{}) * splat(step);
        for (int k = 0; k < 4; ++k) steps_[k] = splat(step * (k < 3 ? 2 * (k + 1) : kLanes<int16_t>));
    }

    TW_INLINE void start(Steps& s, int64_t y) {
        s.at_ = s.columns_ + splat((s.first_ + s.down_ * static_cast<uint64_t>(y)) << s.shift_);
    }
    TW_INLINE void next(Steps& s, u32v (&to)[2]) {
        to[0] = halves<1>(s.at_, s.at_ + s.steps_[0]);
        to[1] = halves<1>(s.at_ + s.steps_[1], s.at_ + s.steps_[2]);
        s.at_ += s.steps_[3];
    }

private:
    TW_INLINE uint64_t whole(double v) { return static_cast<uint64_t>(static_cast<int64_t>(v)); }

    uint64_t along_, down_, first_;
    int shift_;
    Vec<uint64_t> columns_, at_, steps_[4];
};

class AffinePlaces {
public:
    AffinePlaces(const Map& map, int64_t x, const Piece& piece)
        : x_(map.m[0], map.shift, x, piece.x), y_(map.m[1], map.shift, x, piece.y) {}

    TW_INLINE void start(AffinePlaces& p, int64_t y) {
        Steps::start(p.x_, y);
        Steps::start(p.y_, y);
    }
    TW_INLINE void next(AffinePlaces& p, Places& to) {
        Steps::next(p.x_, to.x);
        Steps::next(p.y_, to.y);
    }

private:
    Steps x_, y_;
};

// Of rows of a tile, from the quotient in its middle column on. `bend` is the share of w, at most, that half a row changes it
// by, so that 1 / (1 - t) of such a share t is (1 + t) (1 + t^2) (1 + t^4) ... Places are less than 2/2^23 of a pixel off:
// the low half of a double to which 1.5 2^52 is added. Where that may end in another 1/128 they are divided.
class ProjectivePlaces {
public:
    static constexpr double kMostBend = 0x1p-3, kLittleBend = 0x1p-9;

    ProjectivePlaces(const Map& map, int64_t x, int64_t y, int64_t columns, int64_t rows, double bend,
                     const Piece& piece)
        : map_(map), piece_(piece), x_(x), first_row_(y), bends_(bend >= kLittleBend) {
        constexpr double scale = int64_t{1} << (kPlaceBits + kFineBits);
        const double middle = static_cast<double>(columns / 2);
        for (int k = 0; k < kGroups; ++k)
            columns_[k] = columns_of<double>(Indices<f64v>{}) +
                          splat(static_cast<double>(k / 4 * kLanes<int16_t> + k % 4 * 2) - middle);
        const f64v column = splat(static_cast<double>(x) + middle);
        for (int64_t i = 0; i < rows; i += kDoubles) {
            const f64v row = iota<double>() + splat(static_cast<double>(y + i));
            const auto at = [&](int k) {
                return column * splat(map.m[k][0]) + row * splat(map.m[k][1]) + splat(map.m[k][2]);
            };
            const f64v over = 1 / at(2);
            store(bend_ + i, over * splat(-map.m[2][0]));
            for (int k = 0; k < 2; ++k) {
                const f64v place = at(k) * over;
                const double origin = static_cast<double>(k ? piece.y : piece.x);
                store(place_[k] + i, (place - origin) * scale + (0x1.8p52 + ((1 << (kFineBits - 1)) + kNear / 2)));
                store(slope_[k] + i, (splat(map.m[k][0]) - place * splat(map.m[2][0])) * over * scale);
            }
        }
    }

    TW_INLINE void start(ProjectivePlaces& p, int64_t y) { p.row_ = y - p.first_row_, p.group_ = 0; }
    TW_INLINE void next(ProjectivePlaces& p, Places& to) {
        const f64v bend = splat(p.bend_[p.row_]);
        f64v x[4], y[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const f64v column = p.columns_[p.group_ + k], t = column * bend;
            f64v square = t * t, over = 1 + t;
            over += over * square;
            for (int more = 0; p.bends_ && more < 2; ++more) square *= square, over += over * square;
            const f64v along = column * over;
            x[k] = along * splat(p.slope_[0][p.row_]) + splat(p.place_[0][p.row_]);
            y[k] = along * splat(p.slope_[1][p.row_]) + splat(p.place_[1][p.row_]);
        }
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k) {
            to.x[k] = halves<0>(x[2 * k], x[2 * k + 1]);
            to.y[k] = halves<0>(y[2 * k], y[2 * k + 1]);
        }
        const u32v part = splat<uint32_t>((1 << kFineBits) - kNear);
        const auto parts = [&](const u32v(&v)[2])
                               __attribute__((always_inline)) { return min_any(v[0] & part, v[1] & part); };
        if (any(min_any(parts(to.x), parts(to.y)) == 0))
            to = divided(p.map_, p.piece_, p.x_ + p.group_ / 4 * kLanes<int16_t>, p.first_row_ + p.row_);
        p.group_ += 4;
    }

private:
    __attribute__((noinline)) static Places divided(const Map& map, const Piece& piece, int64_t x, int64_t y) {
        constexpr int64_t lanes = kLanes<int32_t>;
        int32_t px[kPiece], py[kPiece];
        find_places(map, x, y, kPiece, px, py);
        const auto in_piece = [](const int32_t* places, int64_t origin, u32v(&v)[2]) {
            for (int64_t i = 0; i < 2 * lanes; ++i) {
                const int64_t column = i % lanes / 4 * 8 + i / lanes * 4 + i % 4;
                v[i / lanes][i % lanes] = static_cast<uint32_t>(places[column] - origin * (1 << kPlaceBits))
                                          << kFineBits;
            }
        };
        Places to;
        in_piece(px, piece.x, to.x);
        in_piece(py, piece.y, to.y);
        return to;
    }

    static constexpr int kNear = 4;  // places that are in less than half as many of 1/2^23 pixel another one
    static constexpr int64_t kGroups = kTile / kLanes<int16_t> * 4;

    const Map& map_;
    const Piece& piece_;
    const int64_t x_, first_row_;
    const bool bends_;
    int64_t row_ = 0, group_ = 0;
    f64v columns_[kGroups];
    double bend_[kTile], place_[2][kTile], slope_[2][kTile];
};

}  // namespace
}  // namespace tw::TW_ISA
