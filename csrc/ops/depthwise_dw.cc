// The gradient of depthwise convolution in w: what conv_dw runs when C/groups = 1.
//     dw[k,t] = sum_{n,p} dy[n,k,p] x[n,c, p*stride + t*dilation - padding],  c = k / (K/C)
//
// Method    rows of dy against a zero-padded copy of a plane of x, phase by phase of the stride (gemm/padded.h); two rows
//           of 3x3 taps share the rows of x they see.
// Numerics  a sum per lane over the pixels, lanes added at the end.
// Threads   filters; sums are never split between threads.
#include "gemm/padded.h"
#include "ops/conv_problem.h"

namespace tw::TW_ISA {
namespace {

// Adds dy[r][x] * seen[r * SH + i][offset[j] + x] over columns [0, n) of R rows to acc[i][j], a sum per lane.
template <class T, int R, int SH, int KH, int KW>
void add_products(const T* dy, int64_t dy_row, const T* x, int64_t x_row, const int64_t* offset, int64_t n, T* sums) {
    constexpr int L = kLanes<T>;
    Vec<T> acc[KH][KW];
#pragma GCC unroll 8
    for (int i = 0; i < KH; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < KW; ++j) acc[i][j] = load(sums + (i * KW + j) * L);
    const auto at = [&](int64_t p, int64_t lanes) __attribute__((always_inline)) {
        Vec<T> d[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) d[r] = lanes == L ? load(dy + r * dy_row + p) : load_n(dy + r * dy_row + p, lanes);
#pragma GCC unroll 16
        for (int i = 0; i < (R - 1) * SH + KH; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < KW; ++j) {
                const T* from = x + i * x_row + offset[j] + p;
                const Vec<T> v = lanes == L ? load(from) : load_n(from, lanes);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r)
                    if (i - r * SH >= 0 && i - r * SH < KH) acc[i - r * SH][j] += d[r] * v;
            }
    };
    int64_t p = 0;
    for (; p + L <= n; p += L) at(p, L);
    if (p < n) at(p, n - p);
#pragma GCC unroll 8
    for (int i = 0; i < KH; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < KW; ++j) store(sums + (i * KW + j) * L, acc[i][j]);
}

template <class T, int SH, int K>
void products(int64_t rows, const T* dy, int64_t dy_row, const T* x, int64_t x_row, const int64_t* offset, int64_t n,
              T* sums) {
    constexpr int R = 2;
    int64_t r = 0;
    for (; r + R <= rows; r += R)
        add_products<T, R, SH, K, K>(dy + r * dy_row, dy_row, x + r * SH * x_row, x_row, offset, n, sums);
    for (; r < rows; ++r)
        add_products<T, 1, SH, K, K>(dy + r * dy_row, dy_row, x + r * SH * x_row, x_row, offset, n, sums);
}

// One plane of dy against the padded copy of one plane of x.
template <class T>
void sum_plane(const ConvAxes& s, const T* dy, const Padded<T>& x, const int64_t* offset, T* sums) {
    const bool square = s.taps[0] == 1 && s.dilation[1] == 1 && s.taps[1] == 3 && s.taps[2] == 3;
    for (int64_t d = 0; d < s.out[0]; ++d) {
        const T* rows = dy + d * s.y_stride[0];
        const T* seen = x.data + d * s.stride[0] * x.size[1] * x.row;
        if (square && s.stride[1] == 1) {
            products<T, 1, 3>(s.out[1], rows, s.y_stride[1], seen, x.row, offset, s.out[2], sums);
        } else if (square && s.stride[1] == 2) {
            products<T, 2, 3>(s.out[1], rows, s.y_stride[1], seen, x.row, offset, s.out[2], sums);
        } else {
            for (int64_t h = 0; h < s.out[1]; ++h)
                for (int64_t t = 0; t < s.taps[0] * s.taps[1]; ++t)
                    for (int64_t j = 0; j < s.taps[2]; ++j)
                        add_products<T, 1, 1, 1, 1>(rows + h * s.y_stride[1], 0,
                                                    seen + (t / s.taps[1] * s.dilation[0] * x.size[1] +
                                                            h * s.stride[1] + t % s.taps[1] * s.dilation[1]) *
                                                               x.row,
                                                    0, offset + j, s.out[2], sums + (t * s.taps[2] + j) * kLanes<T>);
        }
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
    return q.x.dtype == DType::f32 ? gradient_w<float>(q) : gradient_w<double>(q);
}

}  // namespace tw::TW_ISA
