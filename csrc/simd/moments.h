// Means and squares about the mean of contiguous rows, and stores that may go past the caches.
//
//   moments_of(x, n)          number, mean and sum of squares about it;  join(a, b) those of two rows end to end
//   square_of(x, n)           the sum of squares
//   sums_over<W>(n, a, b, f)  two sums at once: f(i, lanes, va, vb) adds to both vectors
//   emit<kStream>(y, i, n, v) put, or a non-temporal store of whole vectors
//
// Method: a block of kMomentBlock elements is read twice while it lies in L1, for its mean and for the squares about it;
// what the rounding of that mean leaves is summed along and corrected. Blocks are joined in double (Chan et al. 1983).
// Numerics: squares lose nothing to a large mean; the order is a function of n and the tier.
#pragma once
#include "simd/rows.h"

namespace tw::TW_ISA {

constexpr int64_t kMomentBlock = 4096;

struct Moments {
    double n, mean, square;
};

TW_INLINE Moments join(const Moments& a, const Moments& b) {
    if (a.n == 0) return b;
    const double n = a.n + b.n, apart = b.mean - a.mean;
    return {n, (a.mean * a.n + b.mean * b.n) / n, a.square + b.square + apart * apart * (a.n * b.n / n)};
}

TW_INLINE double inverse_root(double square, double eps) { return 1 / __builtin_sqrt(square + eps); }

template <class W, class F>
TW_INLINE void sums_over(int64_t n, double& first, double& second, const F& f) {
    constexpr int64_t step = kLanes<W>;
    double a = 0, b = 0;
    for (int64_t begin = 0; begin < n; begin += kFoldBlock<W>) {
        const int64_t end = n - begin < kFoldBlock<W> ? n : begin + kFoldBlock<W>;
        Vec<W> a0{}, a1{}, b0{}, b1{};
        int64_t i = begin;
        for (; i + 2 * step <= end; i += 2 * step) {
            f(i, step, a0, b0);
            f(i + step, step, a1, b1);
        }
        for (; i < end; i += step) f(i, end - i < step ? end - i : step, a0, b0);
        a += static_cast<double>(reduce_add(a0 + a1));
        b += static_cast<double>(reduce_add(b0 + b1));
    }
    first = a;
    second = b;
}

// Lanes beyond n are those of `fill`.
template <class T>
TW_INLINE Vec<Wide<T>> take_filled(const T* x, int64_t i, int64_t n, Vec<Wide<T>> fill) {
    const Vec<Wide<T>> v = take(x, 1, i, n);
    return n == kLanes<Wide<T>> ? v : first_lanes<Wide<T>>(v, fill, n);
}

// Functions of their own: among a caller's variables the sums would live on the stack.
template <class T>
__attribute__((noinline)) static Moments moments_of_block(const T* x, int64_t n) {
    typedef Wide<T> W;
    const double count = static_cast<double>(n);
    const W mean = static_cast<W>(
        sum_over<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) { return take(x, 1, i, k); }) / count);
    const Vec<W> m = splat<W>(mean);
    double square, rest;
    sums_over<W>(n, square, rest, [&](int64_t i, int64_t k, Vec<W>& s, Vec<W>& r) __attribute__((always_inline)) {
        const Vec<W> v = take_filled(x, i, k, m) - m;
        s += v * v;
        r += v;
    });
    const double off = rest / count;  // NaN about an infinite mean, which then is the mean
    const double about = square - rest * off;
    return {count, static_cast<double>(mean) + (off == off ? off : 0), about < 0 ? 0 : about};
}

template <class T>
static Moments moments_of(const T* x, int64_t n) {
    Moments all = {0, 0, 0};
    for (int64_t i = 0; i < n; i += kMomentBlock)
        all = join(all, moments_of_block(x + i, n - i < kMomentBlock ? n - i : kMomentBlock));
    return all;
}

template <class T>
__attribute__((noinline)) static double square_of(const T* x, int64_t n) {
    typedef Wide<T> W;
    return sum_over<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        const Vec<W> v = take(x, 1, i, k);
        return v * v;
    });
}

// ---- stores past the caches -------------------------------------------------------------------------------------------------

template <bool kStream, class T>
TW_INLINE void emit(T* y, int64_t i, int64_t n, Vec<Wide<T>> v) {
    if constexpr (kStream) {
        if (n == kLanes<Wide<T>>) return stream_from(y + i, v);
    }
    put(y, 1, i, n, v);
}

template <class T>
TW_INLINE bool may_stream(const T* y) {
    return (reinterpret_cast<uintptr_t>(y) & (sizeof(T) * kLanes<Wide<T>> - 1)) == 0;
}

// y = scale (x - mean) + shift, 0 where that is negative with kRelu.
template <bool kStream, bool kRelu = false, class T, class S>
TW_INLINE void scaled_row(T* y, const S* x, int64_t n, Wide<T> mean, Wide<T> scale, Wide<T> shift) {
    typedef Wide<T> W;
    const Vec<W> m = splat<W>(mean), a = splat<W>(scale), b = splat<W>(shift);
    each_vector<T>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        const Vec<W> v = fma(take(x, 1, i, k) - m, a, b);
        emit<kStream>(y, i, k, kRelu ? select(v <= Vec<W>{}, Vec<W>{}, v) : v);
    });
}

// ---- segments: a channel's share of each sample, or a group's share of each channel ----------------------------------------

// `parts` contiguous runs of `size` elements, `pitch` apart.
template <class T>
struct Segments {
    T* at;
    int64_t parts, pitch, size;
};

template <class T>
static Moments moments_of(const Segments<T>& x) {
    Moments all = {0, 0, 0};
    for (int64_t p = 0; p < x.parts; ++p) all = join(all, moments_of<T>(x.at + p * x.pitch, x.size));
    return all;
}

// dy, of which with kMasked only that counts where y, the result behind a relu, is not 0.
template <bool kMasked, class T>
TW_INLINE Vec<Wide<T>> counted(const T* dy, const T* y, int64_t i, int64_t k) {
    const Vec<Wide<T>> d = take(dy, 1, i, k);
    if constexpr (kMasked) return select(take(y, 1, i, k) <= Vec<Wide<T>>{}, Vec<Wide<T>>{}, d);
    return d;
}

// Sums of dy and of dy u, u = (x - mean) rstd, over one segment.
template <class T, bool kMasked = false>
__attribute__((noinline)) static void gradient_sums(const T* dy, const T* x, int64_t n, Wide<T> mean, Wide<T> rstd,
                                                    double& all, double& along, const T* y = nullptr) {
    typedef Wide<T> W;
    const Vec<W> m = splat<W>(mean);
    sums_over<W>(n, all, along, [&](int64_t i, int64_t k, Vec<W>& a, Vec<W>& u) __attribute__((always_inline)) {
        const Vec<W> d = counted<kMasked>(dy, y, i, k);
        a += d;
        u = fma(d, take_filled(x, i, k, m) - m, u);
    });
    along = n ? along * static_cast<double>(rstd) : 0;
}

// dx = scale dy - slope (x - mean) - level.
template <bool kStream, bool kMasked = false, class T>
TW_INLINE void gradient_segment(T* dx, const T* dy, const T* x, int64_t n, Wide<T> mean, Wide<T> scale, Wide<T> slope,
                                Wide<T> level, const T* y = nullptr) {
    typedef Wide<T> W;
    const Vec<W> m = splat<W>(mean), a = splat<W>(scale), b = splat<W>(-slope), c = splat<W>(-level);
    each_vector<T>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
        emit<kStream>(dx, i, k, fma(counted<kMasked>(dy, y, i, k), a, fma(take(x, 1, i, k) - m, b, c)));
    });
}

}  // namespace tw::TW_ISA
