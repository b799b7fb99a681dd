// The gradient of depthwise convolution in w: what conv_dw runs when C/groups = 1.
//     dw[k,t] = sum_{n,p} dy[n,k,p] x[n,c, p*stride + t*dilation - padding],  c = k / (K/C)
//
// Method    rows of dy against rows of x; two rows of 3x3 taps share the rows of x they see. With strides of 1 or 2 those
//           are read in place, else from a zero-padded copy of a plane of x, phase by phase of the stride (gemm/padded.h).
// Numerics  a sum per lane over the pixels, lanes added at the end.
// Threads   filters; sums are never split between threads.
#include "gemm/padded.h"
#include "ops/conv_problem.h"
#include "simd/between.h"
#include "simd/units.h"

namespace tw::TW_ISA {
namespace {

// ---- 3x3 taps, x in place -----------------------------------------------------------------------------------------------

constexpr int kTaps = 3;

// The rows of x that R rows of dy see, from column 0 on; each begins `before` columns of padding later.
template <class T>
struct Seen {
    const T* row[2 * kTaps];
    int64_t before, in;
};

// What the taps of a row of x see of `lanes` pixels from x on: with strides of 2 in units' order.
template <class T, int S, bool Edge>
TW_INLINE void see(const T* row, int64_t x, int64_t lanes, const Seen<T>& s, Vec<T>* taps) {
    constexpr int64_t L = kLanes<T>;
    const auto part = [&](int64_t from, int64_t n) __attribute__((always_inline)) {
        const int64_t at = S * x + from - s.before;
        if constexpr (Edge) return load_between(row + at, max_of(0, min_of(-at, L)), max_of(0, min_of(n, s.in - at)));
        return load(row + at);
    };
    if constexpr (S == 1) {
#pragma GCC unroll 3
        for (int j = 0; j < kTaps; ++j) taps[j] = part(j, lanes);
    } else {
        // The last one begins early, to end with the last element seen.
        const int64_t second = max_of(0, min_of(2 * lanes - L, L)), first = min_of(2 * lanes, L);
        const Vec<T> a = part(0, first), b = part(L, second), c = part(2, first), d = part(L + 1, second);
        taps[0] = halves_of_units<0, 0>(a, b);
        taps[1] = halves_of_units<1, 1>(a, b);
        taps[2] = halves_of_units<0, 1>(c, d);
    }
}

// Adds the products of R rows of dy, n pixels each, to sums[tap], a sum per lane.
template <class T, int R, int S>
void add_rows(const Seen<T>& s, const T* dy, int64_t dy_row, int64_t n, T* sums) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> acc[kTaps][kTaps];
#pragma GCC unroll 3
    for (int i = 0; i < kTaps; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < kTaps; ++j) acc[i][j] = load(sums + (i * kTaps + j) * L);
    const auto at = [&](int64_t x, int64_t lanes, auto edge) __attribute__((always_inline)) {
        Vec<T> d[R];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
            d[r] = lanes == L ? load(dy + r * dy_row + x) : load_n(dy + r * dy_row + x, lanes);
            if constexpr (S == 2) d[r] = in_units(d[r]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < (R - 1) * S + kTaps; ++i) {
            Vec<T> taps[kTaps];
            see<T, S, decltype(edge)::value>(s.row[i], x, lanes, s, taps);
#pragma GCC unroll 3
            for (int j = 0; j < kTaps; ++j)
#pragma GCC unroll 2
                for (int r = 0; r < R; ++r)
                    if (i - r * S >= 0 && i - r * S < kTaps) acc[i - r * S][j] += d[r] * taps[j];
        }
    };
    for (int64_t x = 0; x < n; x += L) {
        const int64_t first = S * x - s.before, end = first + (S == 1 ? L + 2 : 2 * L + 1);
        if (first >= 0 && end <= s.in && x + L <= n)
            at(x, L, Known<false>{});
        else
            at(x, min_of(n - x, L), Known<true>{});
    }
#pragma GCC unroll 3
    for (int i = 0; i < kTaps; ++i)
#pragma GCC unroll 3
        for (int j = 0; j < kTaps; ++j) store(sums + (i * kTaps + j) * L, acc[i][j]);
}

bool reads_in_place(const Depthwise& q) {
    const ConvAxes& s = q.axes;
    return s.in[0] == 1 && s.out[0] == 1 && s.taps[0] == 1 && s.before[0] == 0 && s.taps[1] == kTaps &&
           s.taps[2] == kTaps && s.dilation[1] == 1 && s.dilation[2] == 1 && s.stride[1] == s.stride[2] &&
           s.stride[1] <= 2;
}

// One plane of dy and of x.
template <class T, int S>
void add_plane(const ConvAxes& s, const T* dy, const T* x, const T* zeros, T* sums) {
    constexpr int R = 2;
    for (int64_t h = 0; h < s.out[1]; h += R) {
        const int64_t rows = min_of(R, s.out[1] - h);
        Seen<T> seen{{}, s.before[2], s.in[2]};
        for (int64_t i = 0; i < (rows - 1) * S + kTaps; ++i) {
            const int64_t place = h * S + i - s.before[1];
            seen.row[i] = place >= 0 && place < s.in[1] ? x + place * s.x_stride[1] : zeros;
        }
        (rows == R ? add_rows<T, R, S> : add_rows<T, 1, S>)(seen, dy + h * s.y_stride[1], s.y_stride[1], s.out[2],
                                                            sums);
    }
}

// An x whose rows are not runs is copied first: the same sums whatever its strides.
template <class T>
Status in_place(Depthwise q) {
    Scratch x_scratch(run_bytes<T>(q.x, 2));
    if (!x_scratch.as<T>()) return no_memory();
    q.x = as_run<T>(q.x, 2, x_scratch, true);
    run_strides(q.x, q.axes.x_stride);
    const ConvAxes& s = q.axes;
    const int64_t filters = q.y.shape[1], per_channel = filters / q.x.shape[1];
    constexpr int64_t kSums = kTaps * kTaps * kLanes<T>;
    bool enough = true;
    parallel(filters, [&](int64_t k) {
        Scratch scratch(static_cast<size_t>(kSums + s.in[2]) * sizeof(T));
        T* const sums = scratch.as<T>();
        if (!sums) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        T* const zeros = sums + kSums;
        for (int64_t i = 0; i < kSums + s.in[2]; ++i) sums[i] = 0;
        for (int64_t image = 0; image < q.x.shape[0]; ++image)
            (s.stride[1] == 1 ? add_plane<T, 1>
                              : add_plane<T, 2>)(s, q.y.as<T>() + image * q.y.stride[0] + k * q.y.stride[1],
                                                 q.x.as<T>() + image * q.x.stride[0] + k / per_channel * q.x.stride[1],
                                                 zeros, sums);
        T* const to = q.w.as<T>() + k * q.w.stride[0];
        for (int64_t t = 0; t < kTaps * kTaps; ++t) to[t] = reduce_add(load(sums + t * kLanes<T>));
    });
    return enough ? Status::ok : no_memory();
}

// ---- from a copy --------------------------------------------------------------------------------------------------------

// Adds dy[x] * seen[x] over columns [0, n) to a sum per lane.
template <class T>
void add_products(const T* dy, const T* seen, int64_t n, T* sum) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> acc = load(sum);
    int64_t x = 0;
    for (; x + L <= n; x += L) acc += load(dy + x) * load(seen + x);
    if (x < n) acc += load_n(dy + x, n - x) * load_n(seen + x, n - x);
    store(sum, acc);
}

// One plane of dy against the padded copy of one plane of x.
template <class T>
void sum_plane(const ConvAxes& s, const T* dy, const Padded<T>& x, const int64_t* offset, T* sums) {
    for (int64_t d = 0; d < s.out[0]; ++d)
        for (int64_t h = 0; h < s.out[1]; ++h)
            for (int64_t t = 0; t < s.taps[0] * s.taps[1]; ++t) {
                const int64_t at_d = d * s.stride[0] + t / s.taps[1] * s.dilation[0],
                              at_h = h * s.stride[1] + t % s.taps[1] * s.dilation[1];
                for (int64_t j = 0; j < s.taps[2]; ++j)
                    add_products(dy + d * s.y_stride[0] + h * s.y_stride[1],
                                 x.data + (at_d * x.size[1] + at_h) * x.row + offset[j], s.out[2],
                                 sums + (t * s.taps[2] + j) * kLanes<T>);
            }
}

template <class T>
Status gradient_w(const Depthwise& q) {
    const ConvAxes& s = q.axes;
    const int64_t filters = q.y.shape[1], per_channel = filters / q.x.shape[1], taps = taps_of(s);
    bool enough = true;
    parallel(filters, [&](int64_t k) {
        Window<T> window{};
        for (int a = 0; a < kMaxRank; ++a)
            window.axis[a] = {s.in[a], s.out[a], s.x_stride[a], s.stride[a], s.taps[a], nullptr};
        Padded<T> copy = padded_for(window, s.dilation);
        Scratch floats(static_cast<size_t>(copy.elements(1) + taps * kLanes<T>) * sizeof(T)),
            offsets(static_cast<size_t>(s.taps[2]) * sizeof(int64_t));
        T* sums = floats.as<T>();
        if (!sums || !offsets.as<int64_t>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        copy.data = sums + taps * kLanes<T>;
        for (int64_t i = 0; i < taps * kLanes<T>; ++i) sums[i] = 0;
        for (int64_t t = 0; t < s.taps[2]; ++t)
            offsets.as<int64_t>()[t] = t * s.dilation[2] % copy.step * copy.phase + t * s.dilation[2] / copy.step;
        for (int64_t image = 0; image < q.x.shape[0]; ++image) {
            window.image = q.x.as<T>() + image * q.x.stride[0] + k / per_channel * q.x.stride[1];
            fill_padded(copy, window, 0, 0, copy.size[0] * copy.size[1], s.before);
            sum_plane(s, q.y.as<T>() + image * q.y.stride[0] + k * q.y.stride[1], copy, offsets.as<int64_t>(), sums);
        }
        T* to = q.w.as<T>() + k * q.w.stride[0];
        for (int64_t t = 0; t < taps; ++t) to[t] = reduce_add(load(sums + t * kLanes<T>));
    });
    return enough ? Status::ok : no_memory();
}

}  // namespace

Status depthwise_dw(const Depthwise& q) {
    if (reads_in_place(q)) return q.x.dtype == DType::f32 ? in_place<float>(q) : in_place<double>(q);
    return q.x.dtype == DType::f32 ? gradient_w<float>(q) : gradient_w<double>(q);
}

}  // namespace tw::TW_ISA
