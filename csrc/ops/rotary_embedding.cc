// Rotary position embedding of x (B, H, T, D): pairs of the first R elements of a row are turned by the angles of its place,
//     y1 = x1 cos - x2 sin,  y2 = x1 sin + x2 cos,   pairs (i, i + R/2), or (2i, 2i + 1) if interleaved; the rest is copied.
//
// Method    a pass over rows; neighbours that are pairs are parted and joined by shuffles. Places are checked first, so
//           that nothing is written if one is outside the tables.
// Numerics  in the wide type: a product, then a multiply-add, in any layout.
// Threads   rows in pieces; rows are independent.
// Source    Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021.
#include "core/check.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

enum { kInterleaved, kInverse };

// Every second lane of (a, b) laid end to end, from `First` on.
template <int First, class V, int... I>
TW_INLINE V every_second(V a, V b, Seq<I...>) {
    return shuffle<(2 * I + First)...>(a, b);
}

template <class V>
struct Pair {
    V first, second;
};
template <class V>
TW_INLINE Pair<V> turned(Pair<V> x, V c, V s) {
    return {fma(x.first, c, -(x.second * s)), fma(x.first, s, x.second * c)};
}

// One row: `half` pairs, then `rest` elements that stay.
template <class T>
struct Row {
    const T* x;
    T* y;
    int64_t x_step, y_step;
    const Wide<T>*cos, *sin;
    int64_t cos_step, sin_step;
};

template <class T>
TW_INLINE void turn_halves(const Row<T>& r, int64_t half, Wide<T> sign) {
    typedef Vec<Wide<T>> V;
    each_vector<T>(half, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
        const V c = take(r.cos, r.cos_step, i, n), s = take(r.sin, r.sin_step, i, n) * sign;
        const Pair<V> x = {take(r.x, r.x_step, i, n), take(r.x + half * r.x_step, r.x_step, i, n)};
        const Pair<V> y = turned(x, c, s);
        put(r.y, r.y_step, i, n, y.first);
        put(r.y + half * r.y_step, r.y_step, i, n, y.second);
    });
}

template <class T>
TW_INLINE void turn_neighbours(const Row<T>& r, int64_t half, Wide<T> sign) {
    typedef Wide<T> W;
    typedef Vec<W> V;
    constexpr int64_t L = kLanes<W>;
    int64_t i = 0;
    if (r.x_step == 1 && r.y_step == 1)
        for (; i + L <= half; i += L) {
            const V a = load_as<W>(r.x + 2 * i), b = load_as<W>(r.x + 2 * i + L);
            const V c = take(r.cos, r.cos_step, i, L), s = take(r.sin, r.sin_step, i, L) * sign;
            const Pair<V> y =
                turned(Pair<V>{every_second<0>(a, b, Indices<V>{}), every_second<1>(a, b, Indices<V>{})}, c, s);
            store_from(r.y + 2 * i, zip_low(y.first, y.second));
            store_from(r.y + 2 * i + L, zip_high(y.first, y.second));
        }
    for (; i < half; i += L) {
        const int64_t n = min_of(L, half - i);
        const V c = take(r.cos, r.cos_step, i, n), s = take(r.sin, r.sin_step, i, n) * sign;
        const Pair<V> x = {take(r.x, 2 * r.x_step, i, n), take(r.x + r.x_step, 2 * r.x_step, i, n)};
        const Pair<V> y = turned(x, c, s);
        put(r.y, 2 * r.y_step, i, n, y.first);
        put(r.y + r.y_step, 2 * r.y_step, i, n, y.second);
    }
}

int64_t place_of(const View& positions, int64_t b, int64_t t) {
    if (!given(positions)) return t;
    const int64_t at =
        positions.ndim == 1 ? t * positions.stride[0] : b * positions.stride[0] + t * positions.stride[1];
    return positions.dtype == DType::i32 ? positions.as<int32_t>()[at] : positions.as<int64_t>()[at];
}

template <class T>
void rotate(const Call& c) {
    typedef Wide<T> W;
    const View &x = c.in[0], &cos = c.in[1], &sin = c.in[2], &y = c.out[0];
    const int64_t heads = x.shape[1], length = x.shape[2], width = x.shape[3], half = cos.shape[1];
    const int64_t rows = x.shape[0] * heads * length, per_chunk = max_of(1, kChunkElements / max_of(1, width));
    const bool neighbours = c.attr[kInterleaved].i != 0;
    const W sign = c.attr[kInverse].i ? -1 : 1;
    parallel(ceil_div(rows, per_chunk), [&](int64_t chunk) {
        for (int64_t i = chunk * per_chunk, last = min_of(rows, i + per_chunk); i < last; ++i) {
            const int64_t t = i % length, h = i / length % heads, b = i / length / heads;
            const int64_t place = place_of(c.in[3], b, t);
            const Row<T> r = {x.as<const T>() + b * x.stride[0] + h * x.stride[1] + t * x.stride[2],
                              y.as<T>() + b * y.stride[0] + h * y.stride[1] + t * y.stride[2],
                              x.stride[3],
                              y.stride[3],
                              cos.as<const W>() + place * cos.stride[0],
                              sin.as<const W>() + place * sin.stride[0],
                              cos.stride[1],
                              sin.stride[1]};
            neighbours ? turn_neighbours(r, half, sign) : turn_halves(r, half, sign);
            copy_row(r.y + 2 * half * r.y_step, r.y_step, r.x + 2 * half * r.x_step, r.x_step, width - 2 * half);
        }
    });
}

Status infer(Call& c, Inferred& r) {
    const View &x = c.in[0], &cos = c.in[1], &sin = c.in[2], &positions = c.in[3];
    TW_TRY(want_floating(x, "x"));
    TW_TRY(want_ndim(x, "x", 4, 4));
    const DType wide = x.dtype == DType::f64 ? DType::f64 : DType::f32;
    if (cos.dtype != wide)
        return fail(Status::dtype, "cos", "cos has dtype %s; want %s", name_of(cos.dtype), name_of(wide));
    TW_TRY(want_ndim(cos, "cos", 2, 2));
    TW_TRY(want_dtype_of(sin, "sin", cos, "cos"));
    TW_TRY(want_shape_of(sin, "sin", cos, "cos"));
    if (2 * cos.shape[1] > x.shape[3])
        return fail(Status::shape, "cos", "cos has shape %s but x has D=%lld; want (P, R/2) with R of D or less",
                    shape_text(cos).text, static_cast<long long>(x.shape[3]));
    if (given(positions)) {
        if (positions.dtype != DType::i32 && positions.dtype != DType::i64)
            return fail(Status::dtype, "positions", "positions has dtype %s; want int32 or int64",
                        name_of(positions.dtype));
        TW_TRY(want_ndim(positions, "positions", 1, 2));
        const int64_t shape[] = {x.shape[0], x.shape[2]};
        TW_TRY(want_shape(positions, "positions", positions.ndim, shape + 2 - positions.ndim));
    } else if (x.shape[2] > cos.shape[0]) {
        return fail(Status::shape, "cos", "cos has P=%lld places but x has T=%lld; want at least that many",
                    static_cast<long long>(cos.shape[0]), static_cast<long long>(x.shape[2]));
    }
    r.n_out = 1;
    r.out[0] = result(x.dtype, 4, x.shape);
    r.flops = 3.0 * static_cast<double>(numel(x));
    return Status::ok;
}

Status run(const Call& c) {
    const View &x = c.in[0], &cos = c.in[1], &positions = c.in[3];
    if (given(positions))
        for (int64_t i = 0, n = numel(positions); i < n; ++i) {
            const int64_t place = place_of(positions, i / x.shape[2], i % x.shape[2]);
            if (place < 0 || place >= cos.shape[0])
                return fail(Status::index, "positions", "positions has %lld at position %lld; want 0 to %lld",
                            static_cast<long long>(place), static_cast<long long>(i),
                            static_cast<long long>(cos.shape[0] - 1));
        }
    if (numel(x)) for_floating(x.dtype, [&]<class T>() { rotate<T>(c); });
    return Status::ok;
}

constexpr Operand kOperands[] = {{"x"}, {"cos"}, {"sin"}, {"positions", Role::optional}};
constexpr AttrSpec kAttrs[] = {{.name = "interleaved", .kind = AttrKind::boolean},
                               {.name = "inverse", .kind = AttrKind::boolean}};

}  // namespace

extern const Entry op_rotary_embedding = {"rotary_embedding", kOperands, 4, kAttrs, 2, infer, run};

}  // namespace tw::TW_ISA
