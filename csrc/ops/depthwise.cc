// Depthwise convolution, one filter per channel: what conv runs when C/groups = 1.
//     y[k,p] = act(b[k] + sum_t w[k,t] x[c, p*stride + t*dilation - padding]),  c = k / (K/C)
//
// Method    kRows rows of y at once share the rows of x they see. Rows are read in place with strides of 1 and, for 3x3
//           taps, of 2; other strided rows from zero-padded copies, phase by phase of the stride (gemm/padded.h).
// Numerics  one running sum over t.
// Threads   rows of planes; sums are never split between threads.
#include "gemm/micro.h"
#include "gemm/padded.h"
#include "ops/conv_problem.h"
#include "simd/between.h"
#include "simd/units.h"

namespace tw::TW_ISA {
namespace {

constexpr int kRows = 4;

// Up to kRows rows of one result: where each begins, and the rows of x that the taps of the first one see.
template <class T>
struct Strip {
    const T* const* row;  // row[r * row_step + i] is what row i of the kernel sees of row r of the result
    int64_t row_step;
    const int64_t* offset;  // of every tap along a row
    int64_t before, in;  // a tap at offset o sees columns x + o - before of x, those in [0, in)
    int64_t kernel_rows, kernel_columns;
    const T* w;  // [kernel row][column]
    T bias;
    Activation activation;
    bool add_to_y;
    T* y;
    int64_t y_row;
};

// Lanes [low, high) of a vector of which the rest may lie outside.
struct Lanes {
    int64_t low, high;
};

template <class T>
TW_INLINE Lanes lanes_inside(const Strip<T>& s, int64_t x, int64_t offset, int64_t n) {
    const int64_t at = x + offset - s.before;
    return {max_of(0, -at), min_of(n, s.in - at)};
}

// Columns [first, last) of R rows, KH x KW taps with rows SH apart, all known when compiled. Edge: taps may fall outside.
template <class T, int R, int SH, int KH, int KW, bool Edge>
void strip_fixed(const Strip<T>& s, int64_t first, int64_t last) {
    constexpr int L = kLanes<T>, kSeen = (R - 1) * SH + KH;
    const bool clips = is_clip(s.activation);
    const Vec<T> limit = clip_limit<Vec<T>>(s.activation);
    Vec<T> w[KH][KW];
#pragma GCC unroll 8
    for (int i = 0; i < KH; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < KW; ++j) w[i][j] = splat(s.w[i * KW + j]);
    const T* row[kSeen];
    for (int i = 0; i < kSeen; ++i) row[i] = s.row[i];
    int64_t offset[KW];
    for (int j = 0; j < KW; ++j) offset[j] = s.offset[j];
    const auto at = [&](int64_t x, int64_t lanes) __attribute__((always_inline)) {
        Lanes inside[KW];
        for (int j = 0; Edge && j < KW; ++j) inside[j] = lanes_inside(s, x, offset[j], lanes);
        Vec<T> acc[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) acc[r] = s.add_to_y ? load_n(s.y + r * s.y_row + x, lanes) : splat(s.bias);
#pragma GCC unroll 16
        for (int i = 0; i < kSeen; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < KW; ++j) {
                const T* p = row[i] + offset[j] + x;
                Vec<T> v;
                if constexpr (Edge)
                    v = load_between(p, inside[j].low, inside[j].high);
                else
                    v = lanes == L ? load(p) : load_n(p, lanes);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r)
                    if (i - r * SH >= 0 && i - r * SH < KH) acc[r] += w[i - r * SH][j] * v;
            }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            if (clips) acc[r] = clipped(acc[r], limit);
            store_n(s.y + r * s.y_row + x, acc[r], lanes);
        }
    };
    if (s.add_to_y || last - first < L) {
        for (int64_t x = first; x < last; x += L) at(x, min_of(last - x, L));
        return;
    }
    for (int64_t x = first; x < last; x += L) at(min_of(x, last - L), L);  // the last vector may repeat columns
}

// Columns [0, last) of R rows of 3x3 taps with strides of 2, read in place: the even and the odd elements of two loads
// are what the first two columns of the kernel see. Sums stay in units' order until they are stored.
template <class T, int R>
void strip_stride2(const Strip<T>& s, int64_t last) {
    constexpr int L = kLanes<T>, K = 3, kSeen = (R - 1) * 2 + K;
    const bool clips = is_clip(s.activation);
    const Vec<T> limit = clip_limit<Vec<T>>(s.activation);
    Vec<T> w[K][K];
#pragma GCC unroll 3
    for (int i = 0; i < K; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < K; ++j) w[i][j] = splat(s.w[i * K + j]);
    const T* row[kSeen];
    for (int i = 0; i < kSeen; ++i) row[i] = s.row[i];
    const auto at = [&](int64_t x, int64_t lanes, auto edge) __attribute__((always_inline)) {
        constexpr int64_t kFrom[] = {0, L, 2, L + 1};  // the last one begins early, to end with the last element seen
        Lanes inside[4];
        for (int k = 0; edge.value && k < 4; ++k) inside[k] = lanes_inside(s, 2 * x, kFrom[k], L);
        Vec<T> acc[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
            acc[r] = s.add_to_y ? in_units(load_n(s.y + r * s.y_row + x, lanes)) : splat(s.bias);
#pragma GCC unroll 16
        for (int i = 0; i < kSeen; ++i) {
            Vec<T> v[4];
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                const T* p = row[i] + 2 * x + kFrom[k];
                if constexpr (edge.value)
                    v[k] = load_between(p, inside[k].low, inside[k].high);
                else
                    v[k] = load(p);
            }
            const Vec<T> seen[K] = {halves_of_units<0, 0>(v[0], v[1]), halves_of_units<1, 1>(v[0], v[1]),
                                    halves_of_units<0, 1>(v[2], v[3])};
#pragma GCC unroll 3
            for (int j = 0; j < K; ++j)
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r)
                    if (i - r * 2 >= 0 && i - r * 2 < K) acc[r] += w[i - r * 2][j] * seen[j];
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            if (clips) acc[r] = clipped(acc[r], limit);
            store_n(s.y + r * s.y_row + x, from_units(acc[r]), lanes);
        }
    };
    for (int64_t x = 0; x < last; x += L) {
        // The last vector repeats columns, unless y was to be added to once.
        const int64_t from = s.add_to_y || last < L ? x : min_of(x, last - L), first = 2 * from - s.before;
        if (first >= 0 && first + 2 * L + 1 <= s.in)
            at(from, min_of(last - from, L), Known<false>{});
        else
            at(from, min_of(last - from, L), Known<true>{});
    }
}

// Columns [first, last) of one row, any taps.
template <class T, bool Edge>
void strip_any(const Strip<T>& s, int64_t first, int64_t last) {
    constexpr int L = kLanes<T>, V = 4;
    const bool clips = is_clip(s.activation);
    const Vec<T> limit = clip_limit<Vec<T>>(s.activation);
    for (int64_t x = first; x < last; x += V * L) {
        Vec<T> acc[V];
        const int64_t n = min_of(last - x, V * L);
        for (int v = 0; v < V; ++v)
            acc[v] = s.add_to_y ? load_n(s.y + x + v * L, max_of(0, min_of(L, n - v * L))) : splat(s.bias);
        for (int64_t i = 0; i < s.kernel_rows; ++i)
            for (int64_t j = 0; j < s.kernel_columns; ++j) {
                const T* p = s.row[i] + s.offset[j] + x;
                const Vec<T> w = splat(s.w[i * s.kernel_columns + j]);
                if (!Edge && n == V * L)
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) acc[v] += w * load(p + v * L);
                else
                    for (int v = 0; v * L < n; ++v) {
                        Lanes inside = {0, min_of(L, n - v * L)};
                        if (Edge) inside = lanes_inside(s, x + v * L, s.offset[j], inside.high);
                        acc[v] += w * load_between(p + v * L, inside.low, inside.high);
                    }
            }
        for (int v = 0; v * L < n; ++v) {
            if (clips) acc[v] = clipped(acc[v], limit);
            store_n(s.y + x + v * L, acc[v], min_of(L, n - v * L));
        }
    }
}

template <class T>
using StripKernel = void (*)(const Strip<T>&, int64_t, int64_t);

// The kernel of kRows rows for these taps, or null.
template <class T, bool Edge>
StripKernel<T> strip_kernel(const ConvAxes& s) {
    if (s.taps[0] != 1 || s.dilation[1] != 1 || s.taps[1] != s.taps[2]) return nullptr;
    if (s.taps[1] == 3 && s.stride[1] == 1) return strip_fixed<T, kRows, 1, 3, 3, Edge>;
    if (s.taps[1] == 3 && s.stride[1] == 2) return strip_fixed<T, kRows, 2, 3, 3, Edge>;
    if (s.taps[1] == 5 && s.stride[1] == 1) return strip_fixed<T, kRows, 1, 5, 5, Edge>;
    if (s.taps[1] == 5 && s.stride[1] == 2) return strip_fixed<T, kRows, 2, 5, 5, Edge>;
    return nullptr;
}

// 3x3 taps with strides of 2 along rows that lie in one run: no copy.
inline bool reads_stride2(const ConvAxes& s) {
    return s.taps[0] == 1 && s.taps[1] == 3 && s.taps[2] == 3 && s.stride[1] == 2 && s.stride[2] == 2 &&
           s.dilation[1] == 1 && s.dilation[2] == 1 && s.x_stride[2] == 1;
}

// One plane of x and the plane of y that one filter makes of it.
template <class T>
struct Plane {
    const ConvAxes& s;
    const T* x;
    T bias, *y;
    const T* w;
    Activation activation;
    bool add_to_y;
    StripKernel<T> kernel, edge_kernel;
    Padded<T> copy;  // of x where rows of it cannot be read in place
    int64_t* offset;  // of every tap along a row
    const T** row;  // of one strip
    T* zeros;  // a row of them
    bool in_place, stride2;

    // All of a plane of 3x3 taps with strides of 1, a vector of columns at a time, so that its edges are found once.
    void down() const {
        constexpr int L = kLanes<T>, K = 3;
        const bool clips = is_clip(activation);
        const Vec<T> limit = clip_limit<Vec<T>>(activation);
        Vec<T> taps[K][K];
#pragma GCC unroll 3
        for (int i = 0; i < K; ++i)
#pragma GCC unroll 3
            for (int j = 0; j < K; ++j) taps[i][j] = splat(w[i * K + j]);
        const int64_t end = s.out[2], y_row = s.y_stride[1];
        for (int64_t at = 0; at < end; at += L) {
            const int64_t from = end < L ? 0 : min_of(at, end - L), lanes = min_of(L, end - from);
            Lanes inside[K];
            for (int64_t j = 0; j < K; ++j)
                inside[j] = {max_of(0, s.before[2] - from - j), min_of(lanes, s.in[2] + s.before[2] - from - j)};
            for (int64_t top = 0; top < s.out[1]; top += kRows) {
                const int64_t h = min_of(top, s.out[1] - kRows);
                Vec<T> acc[kRows];
                for (int r = 0; r < kRows; ++r) acc[r] = splat(bias);
#pragma GCC unroll 6
                for (int i = 0; i < kRows + K - 1; ++i) {
                    const int64_t seen = h + i - s.before[1];
                    const T* const row_at =
                        (seen >= 0 && seen < s.in[1] ? x + seen * s.x_stride[1] : zeros) + from - s.before[2];
#pragma GCC unroll 3
                    for (int j = 0; j < K; ++j) {
                        const Vec<T> v = load_between(row_at + j, inside[j].low, inside[j].high);
#pragma GCC unroll 4
                        for (int r = 0; r < kRows; ++r)
                            if (i - r >= 0 && i - r < K) acc[r] += taps[i - r][j] * v;
                    }
                }
                for (int r = 0; r < kRows; ++r) {
                    if (clips) acc[r] = clipped(acc[r], limit);
                    store_n(y + (h + r) * y_row + from, acc[r], lanes);
                }
            }
        }
        if (activation > Activation::relu6)
            activate_tile(y, y_row, static_cast<int>(s.out[1]), static_cast<int>(end), activation);
    }

    void columns(const Strip<T>& q, int64_t rows, int64_t first, int64_t last, bool edge) const {
        if (first >= last) return;
        if (rows == kRows && kernel) return (edge ? edge_kernel : kernel)(q, first, last);
        Strip<T> one = q;
        for (int64_t r = 0; r < rows; ++r, one.row += q.row_step, one.y += q.y_row)
            edge ? strip_any<T, true>(one, first, last) : strip_any<T, false>(one, first, last);
    }

    // Rows [h, h + rows) of y at depth d.
    void strip(int64_t d, int64_t h, int64_t rows) const {
        const bool fixed = kernel && rows == kRows;
        int64_t seen = 0;
        for (int64_t r = 0; r < (fixed ? 1 : rows); ++r)
            for (int64_t td = 0; td < s.taps[0]; ++td)
                for (int64_t i = 0; i < (fixed ? (kRows - 1) * s.stride[1] + s.taps[1] : s.taps[1]); ++i) {
                    const int64_t at_d = d * s.stride[0] + td * s.dilation[0],
                                  at_h = (h + r) * s.stride[1] + i * s.dilation[1];
                    if (!in_place) {
                        row[seen++] = copy.data + (at_d * copy.size[1] + at_h) * copy.row;
                        continue;
                    }
                    const int64_t xd = at_d - s.before[0], xh = at_h - s.before[1];
                    const bool inside = xd >= 0 && xd < s.in[0] && xh >= 0 && xh < s.in[1];
                    row[seen++] = (inside ? x + xd * s.x_stride[0] + xh * s.x_stride[1] : zeros) - s.before[2];
                }
        const Strip<T> q{row,          s.taps[0] * s.taps[1],
                         offset,       s.before[2],
                         s.in[2],      s.taps[0] * s.taps[1],
                         s.taps[2],    w,
                         bias,         activation,
                         add_to_y,     y + d * s.y_stride[0] + h * s.y_stride[1],
                         s.y_stride[1]};
        const int64_t end = s.out[2];
        if (stride2) {
            Strip<T> one = q;
            if (rows == kRows)
                strip_stride2<T, kRows>(q, end);
            else
                for (int64_t r = 0; r < rows; ++r, one.row += q.row_step, one.y += q.y_row)
                    strip_stride2<T, 1>(one, end);
        } else if (in_place) {
            // The columns whose taps all lie inside, from a whole vector on.
            const int64_t reach = (s.taps[2] - 1) * s.dilation[2];
            const int64_t low = min_of(ceil_div(max_of(s.before[2], 0), kLanes<T>) * kLanes<T>, end);
            const int64_t high = max_of(low, min_of(s.in[2] + s.before[2] - reach, end));
            const bool some = high - low >= kLanes<T>;
            columns(q, rows, 0, some ? low : end, true);
            if (some) columns(q, rows, low, high, false);
            if (some) columns(q, rows, high, end, true);
        } else {
            columns(q, rows, 0, end, false);
        }
        if (activation > Activation::relu6)
            activate_tile(q.y, s.y_stride[1], static_cast<int>(rows), static_cast<int>(end), activation);
    }
};

// Rows of y in strips of kRows, whole planes to a job where they are small.
template <class T>
Status forward(const Depthwise& q) {
    const ConvAxes& s = q.axes;
    const StripKernel<T> kernel = strip_kernel<T, false>(s), edge_kernel = strip_kernel<T, true>(s);
    const int64_t strip_rows = kernel ? kRows : 1;
    const int64_t seen = max_of((kRows - 1) * s.stride[1] + s.taps[1], kRows * s.taps[0] * s.taps[1]);
    const int64_t filters = q.y.shape[1], per_channel = filters / q.x.shape[1];
    const bool stride2 = reads_stride2(s);
    const bool in_place = stride2 || (s.stride[2] == 1 && (s.x_stride[2] == 1 || s.in[2] == 1));
    // Bands of a plane, where planes alone are too few for all threads or too large for the cache.
    const int64_t strips = ceil_div(s.out[1], strip_rows) * s.out[0];
    const int64_t band = in_place ? max_of(1, min_of(strips, 16384 / (s.out[2] * strip_rows))) : strips;
    const int64_t bands = ceil_div(strips, band);
    // Small planes share a job, and what it sets up.
    const int64_t planes = q.x.shape[0] * filters, together = bands > 1 ? 1 : max_of(1, 1024 / (s.out[1] * s.out[2]));
    const bool by_columns = in_place && bands == 1 && kernel && s.taps[1] == 3 && s.stride[1] == 1 &&
                            s.stride[2] == 1 && s.dilation[2] == 1 && s.in[0] == 1 && s.out[0] == 1 &&
                            s.out[1] >= kRows && !q.add_to_y;
    bool enough = true;
    parallel(ceil_div(planes, together) * bands, [&](int64_t job) {
        Window<T> window{};
        for (int a = 0; a < kMaxRank; ++a)
            window.axis[a] = {s.in[a], s.out[a], s.x_stride[a], s.stride[a], s.taps[a], nullptr};
        Padded<T> copy = padded_for(window, s.dilation);
        const int64_t taps = taps_of(s);
        Scratch floats(static_cast<size_t>((in_place ? s.in[2] : copy.elements(1)) + taps) * sizeof(T)),
            offsets(static_cast<size_t>(s.taps[2]) * sizeof(int64_t)), rows(static_cast<size_t>(seen) * sizeof(T*));
        T* const w = floats.as<T>();
        if (!w || !offsets.as<int64_t>() || !rows.as<const T*>())
            return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        T* const rest = w + taps;  // zeros, or the copy
        copy.data = rest;
        for (int64_t t = 0; t < s.taps[2]; ++t) {
            const int64_t at = t * s.dilation[2];
            offsets.as<int64_t>()[t] = in_place ? at : at % copy.step * copy.phase + at / copy.step;
        }
        for (int64_t i = 0; in_place && i < s.in[2]; ++i) rest[i] = 0;
        const int64_t first = job / bands * together;
        for (int64_t p = first; p < min_of(first + together, planes); ++p) {
            const int64_t image = p / filters, k = p % filters, c = k / per_channel;
            window.image = q.x.as<T>() + image * q.x.stride[0] + c * q.x.stride[1];
            for (int64_t t = 0; t < taps; ++t) w[t] = q.w.as<T>()[k * q.w.stride[0] + (q.flip ? taps - 1 - t : t)];
            if (!in_place) fill_padded(copy, window, 0, 0, copy.size[0] * copy.size[1], s.before);
            const T bias = q.bias.data ? q.bias.as<T>()[k * q.bias.stride[0]] : T{};
            const Plane<T> plane{s,
                                 window.image,
                                 bias,
                                 q.y.as<T>() + image * q.y.stride[0] + k * q.y.stride[1],
                                 w,
                                 q.activation,
                                 q.add_to_y,
                                 kernel,
                                 edge_kernel,
                                 copy,
                                 offsets.as<int64_t>(),
                                 rows.as<const T*>(),
                                 rest,
                                 in_place,
                                 stride2};
            if (by_columns) {
                plane.down();
                continue;
            }
            const int64_t per_depth = strips / s.out[0], begin = job % bands * band;
            for (int64_t i = begin; i < min_of(begin + band, strips); ++i) {
                int64_t h = i % per_depth * strip_rows;
                // The last strip of a plane may repeat rows of the one before it, where that is this job's too.
                if (kernel && !q.add_to_y && i > begin && h > 0) h = min_of(h, s.out[1] - kRows);
                plane.strip(i / per_depth, h, min_of(strip_rows, s.out[1] - h));
            }
        }
    });
    return enough ? Status::ok : no_memory();
}

}  // namespace

Status depthwise(const Depthwise& q) { return q.x.dtype == DType::f32 ? forward<float>(q) : forward<double>(q); }

}  // namespace tw::TW_ISA
