// The gradient of depthwise convolution in x: what conv_dx runs when C/groups = 1.
//     dx[c,q] = sum of w[c,t] dy[c,p] over all t, p with p*stride + t*dilation - padding = q
//
// Method    stride 1: the convolution of dy with the taps in reverse. 3x3 taps with strides of 2: a row of dx is made of
//           one or two rows of dy in place, its even and odd places zipped in registers. Other strides: by phases, from a
//           zero-padded copy of dy.
// Numerics  one running sum over t.
// Threads   planes; sums are never split between threads.
#include "gemm/padded.h"
#include "gemm/tile.h"
#include "ops/conv_problem.h"
#include "simd/between.h"

namespace tw::TW_ISA {
namespace {

// ---- any stride -------------------------------------------------------------------------------------------------------

// A stride leaves each phase of dx its own taps; with stride 1 the gradient is the convolution with w turned around.
constexpr int64_t kMaxTaps = 64;

// What one phase of a row of dx adds up: rows of the padded dy, and weights.
template <class T>
struct Terms {
    int64_t n;
    const T* from[kMaxTaps];
    T w[kMaxTaps];
};

// For the places r, r + stride, ... along each axis; the pointers are those of the first.
template <class T>
Terms<T> terms_of(const ConvAxes& s, const T* w, const int64_t* r, const int64_t* front, const int64_t* size,
                  const T* dy) {
    Terms<T> terms;
    terms.n = 0;
    for (int64_t t = 0; t < taps_of(s); ++t) {
        const int64_t tap[] = {t / s.taps[2] / s.taps[1], t / s.taps[2] % s.taps[1], t % s.taps[2]};
        int64_t at[kMaxRank];
        bool met = true;
        for (int a = 0; a < kMaxRank; ++a) {
            const int64_t far = r[a] + s.before[a] - tap[a] * s.dilation[a];
            met = met && far % s.stride[a] == 0;
            at[a] = far / s.stride[a] + front[a];
        }
        if (!met) continue;
        terms.from[terms.n] = dy + (at[0] * size[1] + at[1]) * size[2] + at[2];
        terms.w[terms.n++] = w[t];
    }
    return terms;
}

template <class T>
void sum_terms(const Terms<T>& terms, int64_t shift, int64_t n, T* to) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t i = 0; i < n; i += L) {
        const int64_t x = n < L ? 0 : min_of(i, n - L), lanes = min_of(n, L);  // the last vector may repeat columns
        Vec<T> acc{};
        for (int64_t t = 0; t < terms.n; ++t) {
            const T* p = terms.from[t] + shift + x;
            acc += splat(terms.w[t]) * (lanes == L ? load(p) : load_n(p, lanes));
        }
        store_n(to + x, acc, lanes);
    }
}

template <class T>
Status gradient_x(const Depthwise& q) {
    const ConvAxes& s = q.axes;  // x is dx, y is dy
    const int64_t channels = q.x.shape[1], wide = ceil_div(s.in[2], s.stride[2]);
    int64_t front[kMaxRank], size[kMaxRank];
    for (int a = 0; a < kMaxRank; ++a) {
        front[a] = max_of(0, ((s.taps[a] - 1) * s.dilation[a] - s.before[a]) / s.stride[a] + 1);
        size[a] = front[a] + max_of((s.in[a] - 1 + s.before[a]) / s.stride[a] + 1, s.out[a]);
    }
    bool enough = true;
    parallel(q.x.shape[0] * channels, [&](int64_t job) {
        const int64_t image = job / channels, c = job % channels;
        Window<T> window{};
        window.image = q.y.as<T>() + image * q.y.stride[0] + c * q.y.stride[1];
        for (int a = 0; a < kMaxRank; ++a) window.axis[a] = {s.out[a], size[a], s.y_stride[a], 1, 1, nullptr};
        constexpr int64_t ones[] = {1, 1, 1};
        Padded<T> copy = padded_for(window, ones);
        Scratch floats(static_cast<size_t>(copy.elements(1) + s.in[0] * s.in[1] * s.stride[2] * wide) * sizeof(T));
        copy.data = floats.as<T>();
        if (!copy.data) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        T* const phases = copy.data + copy.elements(1);
        fill_padded(copy, window, 0, 0, size[0] * size[1], front);
        const T* w = q.w.as<T>() + c * q.w.stride[0];
        int64_t r[kMaxRank];
        for (r[0] = 0; r[0] < min_of(s.stride[0], s.in[0]); ++r[0])
            for (r[1] = 0; r[1] < min_of(s.stride[1], s.in[1]); ++r[1])
                for (r[2] = 0; r[2] < min_of(s.stride[2], s.in[2]); ++r[2]) {
                    const Terms<T> terms = terms_of(s, w, r, front, size, copy.data);
                    const int64_t n = (s.in[2] - r[2] + s.stride[2] - 1) / s.stride[2];
                    for (int64_t d = r[0], i = 0; d < s.in[0]; d += s.stride[0], ++i)
                        for (int64_t h = r[1], j = 0; h < s.in[1]; h += s.stride[1], ++j)
                            sum_terms(terms, (i * size[1] + j) * size[2], n,
                                      phases + ((d * s.in[1] + h) * s.stride[2] + r[2]) * wide);
                }
        T* const dx = q.x.as<T>() + image * q.x.stride[0] + c * q.x.stride[1];
        for (int64_t row = 0; row < s.in[0] * s.in[1]; ++row)
            write_phases(phases + row * s.stride[2] * wide, wide, s.stride[2], s.in[2],
                         dx + row / s.in[1] * s.x_stride[0] + row % s.in[1] * s.x_stride[1], s.x_stride[2]);
    });
    return enough ? Status::ok : no_memory();
}

// ---- 3x3 taps, strides of 2 --------------------------------------------------------------------------------------------
//
//     q + padding = 2 p + t: with padding 1, place 2 y is w1 dy[y], and place 2 y + 1 is w2 dy[y] + w0 dy[y + 1];
//     with padding 0, they are w0 dy[y] + w2 dy[y - 1] and w1 dy[y]. Rows follow the same rule.

// n places of a row of dx, out of R rows of `seen` pixels of dy with three taps each.
template <class T, int R, int Before>
void spread_rows(const T* const* dy, const T* const* w, int64_t seen, int64_t n, T* dx) {
    constexpr int64_t L = kLanes<T>;
    Vec<T> tap[R][3];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 3
        for (int t = 0; t < 3; ++t) tap[r][t] = splat(w[r][t]);
    const auto at = [&](int64_t y, auto edge) __attribute__((always_inline)) {
        const auto pixels = [&](int r, int64_t from) __attribute__((always_inline)) {
            if constexpr (decltype(edge)::value)
                return load_between(dy[r] + from, max_of(0, min_of(-from, L)), max_of(0, min_of(seen - from, L)));
            else
                return load(dy[r] + from);
        };
        Vec<T> even{}, odd{};
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) {
            const Vec<T> here = pixels(r, y), beside = pixels(r, Before ? y + 1 : y - 1);
            if constexpr (Before) {
                even += tap[r][1] * here;
                odd += tap[r][2] * here + tap[r][0] * beside;
            } else {
                even += tap[r][0] * here + tap[r][2] * beside;
                odd += tap[r][1] * here;
            }
        }
        const int64_t left = n - 2 * y;
        store_n(dx + 2 * y, zip_low(even, odd), min_of(left, L));
        store_n(dx + 2 * y + L, zip_high(even, odd), max_of(0, min_of(left - L, L)));
    };
    const int64_t pairs = (n + 1) / 2;
    for (int64_t y = 0; y < pairs; y += L) {
        // The last vector repeats places where that makes it whole.
        const int64_t from = n % 2 == 0 && pairs >= L ? min_of(y, pairs - L) : y;
        if (from + Before - 1 >= 0 && from + Before + L <= seen)
            at(from, Known<false>{});
        else
            at(from, Known<true>{});
    }
}

bool spreads(const Depthwise& q) {
    const ConvAxes& s = q.axes;
    return s.taps[0] == 1 && s.stride[0] == 1 && s.before[0] == 0 && s.in[0] == s.out[0] && s.taps[1] == 3 &&
           s.taps[2] == 3 && s.stride[1] == 2 && s.stride[2] == 2 && s.dilation[1] == 1 && s.dilation[2] == 1 &&
           s.before[1] >= 0 && (s.before[2] == 0 || s.before[2] == 1);
}

// Row h of dx at one depth: rows p of dy and t of the taps with 2 p + t = h + padding.
template <class T>
void spread_row(const ConvAxes& s, const T* dy, const T* w, const T* zeros, int64_t h, T* dx) {
    const T *rows[2] = {zeros, zeros}, *taps[2] = {w, w};
    const int64_t place = h + s.before[1];
    int found = 0;
    for (int64_t t = place % 2; t < 3; t += 2) {
        const int64_t p = (place - t) / 2;
        if (place < t || p >= s.out[1]) continue;
        rows[found] = dy + p * s.y_stride[1];
        taps[found++] = w + 3 * t;
    }
    const auto run = found == 2 ? (s.before[2] ? spread_rows<T, 2, 1> : spread_rows<T, 2, 0>)
                                : (s.before[2] ? spread_rows<T, 1, 1> : spread_rows<T, 1, 0>);
    run(rows, taps, s.out[2], s.in[2], dx);
}

// A dy whose rows are not runs is copied first: the same sums whatever its strides.
template <class T>
Status spread_planes(Depthwise q) {
    Scratch dy_scratch(run_bytes<T>(q.y, 2));
    if (!dy_scratch.as<T>()) return no_memory();
    q.y = as_run<T>(q.y, 2, dy_scratch, true);
    run_strides(q.y, q.axes.y_stride);
    const ConvAxes& s = q.axes;
    const int64_t channels = q.x.shape[1], planes = q.x.shape[0] * channels;
    const int64_t together = max_of(1, 4096 / max_of(1, s.in[0] * s.in[1] * s.in[2]));
    bool enough = true;
    parallel(ceil_div(planes, together), [&](int64_t job) {
        Scratch scratch(static_cast<size_t>(s.out[2] + 1) * sizeof(T));
        T* const zeros = scratch.as<T>();
        if (!zeros) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t i = 0; i < s.out[2]; ++i) zeros[i] = 0;
        for (int64_t p = job * together; p < min_of((job + 1) * together, planes); ++p) {
            const int64_t image = p / channels, c = p % channels;
            const T* const dy = q.y.as<T>() + image * q.y.stride[0] + c * q.y.stride[1];
            T* const dx = q.x.as<T>() + image * q.x.stride[0] + c * q.x.stride[1];
            for (int64_t d = 0; d < s.in[0]; ++d)
                for (int64_t h = 0; h < s.in[1]; ++h)
                    spread_row(s, dy + d * s.y_stride[0], q.w.as<T>() + c * q.w.stride[0], zeros, h,
                               dx + d * s.x_stride[0] + h * s.x_stride[1]);
        }
    });
    return enough ? Status::ok : no_memory();
}

template <class T>
Status strided(const Depthwise& q) {
    return spreads(q) ? spread_planes<T>(q) : gradient_x<T>(q);
}

// ---- stride 1 -----------------------------------------------------------------------------------------------------------

// The same sums as a convolution of dy, with the taps in reverse.
Depthwise turned(const Depthwise& q) {
    Depthwise t = q;
    t.x = q.y, t.y = q.x, t.flip = true;
    for (int a = 0; a < kMaxRank; ++a) {
        t.axes.in[a] = q.axes.out[a], t.axes.out[a] = q.axes.in[a];
        t.axes.x_stride[a] = q.axes.y_stride[a], t.axes.y_stride[a] = q.axes.x_stride[a];
        t.axes.before[a] = (q.axes.taps[a] - 1) * q.axes.dilation[a] - q.axes.before[a];
    }
    return t;
}

}  // namespace

Status depthwise_dx(const Depthwise& q) {
    const ConvAxes& s = q.axes;
    if (s.stride[0] * s.stride[1] * s.stride[2] == 1) return depthwise(turned(q));
    return q.x.dtype == DType::f32 ? strided<float>(q) : strided<double>(q);
}

}  // namespace tw::TW_ISA
