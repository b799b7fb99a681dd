// Local correlation (cost volume): how well every place of one image matches the places of another around it. Over the
// displacements e of a grid of steps of `stride` within max_displacement,
//     local_correlation       y[n,e,p]   = sum_c a[n,c,p] b[n,c,p+e] [/ C], b being zero outside
//     local_correlation_dx    da[n,c,p]  = sum_e dy[n,e,p] b[n,c,p+e] [/ C]
//                             db[n,c,q]  = sum_e dy[n,e,q-e] a[n,c,q-e] [/ C]
//
// Method    what is read at shifted places is copied once, its rows of channels (or displacements) together and zeros on
//           both sides, so that no column is checked; a vector of places meets kAtOnce displacements, or channels.
// Numerics  one running sum over c, or over e.
// Threads   rows of the image; sums are never split between threads.
// Source    Fischer et al., "FlowNet: learning optical flow with convolutional networks", 2015, without the patches.
#include "ops/conv_problem.h"
#include "ops/in_float32.h"

namespace tw::TW_ISA {
namespace {

enum { kMaxDisplacement, kStride, kNormalize, kSide };
constexpr int kAxes = 3, kAtOnce = 8;

// The grid of displacements along three axes of the image.
struct Grid {
    int64_t in[kAxes], count[kAxes], reach[kAxes], stride[kAxes];  // displacement i of an axis: i * stride - reach

    int64_t total() const { return count[0] * count[1] * count[2]; }
    int64_t shift(int a, int64_t i) const { return i * stride[a] - reach[a]; }
};

Status resolve_grid(const View& image, Attr* attr, Grid& g) {
    const int rank = image.ndim - 2;
    TW_TRY(resolve_integers(attr[kMaxDisplacement], "max_displacement", rank, 0));
    TW_TRY(resolve_integers(attr[kStride], "stride", rank, 1));
    int64_t total = 1;
    for (int a = 0; a < kAxes; ++a) {
        const int d = a - (kAxes - rank);
        const int64_t steps = d >= 0 ? attr[kMaxDisplacement].list[d] / attr[kStride].list[d] : 0;
        g.in[a] = d >= 0 ? image.shape[2 + d] : 1;
        g.stride[a] = d >= 0 ? attr[kStride].list[d] : 1;
        g.count[a] = 2 * steps + 1;
        g.reach[a] = steps * g.stride[a];
        if (__builtin_mul_overflow(total, g.count[a], &total))
            return fail(Status::attr, "max_displacement",
                        "max_displacement=%s gives too many displacements; want fewer",
                        attr_text(attr[kMaxDisplacement]).text);
    }
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    const View &a = c.in[0], &b = c.in[1];
    TW_TRY(want_conv_float(a, "a"));
    TW_TRY(want_ndim(a, "a", 3, 5));
    TW_TRY(want_dtype_of(b, "b", a, "a"));
    TW_TRY(want_shape_of(b, "b", a, "a"));
    Grid g;
    TW_TRY(resolve_grid(a, c.attr, g));
    r.n_out = 1;
    r.out[0] = result(a.dtype, a.ndim, a.shape);
    r.out[0].shape[1] = g.total();
    r.flops = 2.0 * static_cast<double>(numel(a)) * static_cast<double>(g.total());
    return Status::ok;
}

Status infer_dx(Call& c, Inferred& r) {
    const View &dy = c.in[0], &other = c.in[1];
    TW_TRY(want_conv_float(dy, "dy"));
    TW_TRY(want_ndim(dy, "dy", 3, 5));
    TW_TRY(want_dtype_of(other, "other", dy, "dy"));
    TW_TRY(want_ndim(other, "other", dy.ndim, dy.ndim));
    Grid g;
    TW_TRY(resolve_grid(other, c.attr, g));
    View want = result(dy.dtype, dy.ndim, other.shape);
    want.shape[1] = g.total();
    TW_TRY(want_shape(dy, "dy", want.ndim, want.shape));
    r.n_out = 1;
    r.out[0] = result(other.dtype, other.ndim, other.shape);
    r.flops = 2.0 * static_cast<double>(numel(other)) * static_cast<double>(g.total());
    return Status::ok;
}

// The strides of the axes of an image of lower rank, outermost first.
struct Steps {
    int64_t channel, axis[kAxes];

    explicit Steps(const View& v) : channel(v.stride[1]) {
        for (int a = 0; a < kAxes; ++a) axis[a] = v.ndim - kAxes + a >= 2 ? v.stride[v.ndim - kAxes + a] : 0;
    }
};

// One image as [row][channel][margin, columns, margin]. Beyond a margin as wide as the image there are zeros alone.
template <class T>
struct Rows {
    int64_t channels, columns, margin, wide;
    T* data;

    Rows(const Grid& g, int64_t n_channels, bool shifted) {
        channels = n_channels, columns = g.in[2];
        margin = shifted ? min_of(g.reach[2], columns) : 0;
        wide = columns + 2 * margin;
        data = nullptr;
    }
    size_t bytes(const Grid& g) const {
        return static_cast<size_t>(g.in[0] * g.in[1] * channels * wide + kLanes<T>) * sizeof(T);
    }
    // Channel 0 of a row, column 0 shifted by so many.
    const T* at(int64_t row, int64_t shift) const {
        return data + row * channels * wide + margin + max_of(-margin, min_of(margin, shift));
    }
};

template <class T>
void fill_rows(const Rows<T>& rows, const Grid& g, const View& v, int64_t image) {
    const Steps s(v);
    const T* from = v.as<T>() + image * v.stride[0];
    parallel(g.in[0] * g.in[1], [&](int64_t row) {
        const T* x = from + row / g.in[1] * s.axis[0] + row % g.in[1] * s.axis[1];
        T* to = rows.data + row * rows.channels * rows.wide;
        for (int64_t c = 0; c < rows.channels; ++c, x += s.channel) {
            for (int64_t i = 0; i < rows.margin; ++i) *to++ = 0;
            for (int64_t i = 0; i < rows.columns; ++i) *to++ = x[i * s.axis[2]];
            for (int64_t i = 0; i < rows.margin; ++i) *to++ = 0;
        }
    });
}

// acc[k] += sum over `terms` of x[t * x_step] * y[k][t * y_step], for K sums; the lanes of a vector are places.
template <class T, int K>
TW_INLINE void add_terms(const T* x, int64_t x_step, const T* const* y, int64_t y_step, int64_t terms, int64_t n,
                         Vec<T>* acc) {
    for (int64_t t = 0; t < terms; ++t) {
        const Vec<T> v = n == kLanes<T> ? load(x + t * x_step) : load_n(x + t * x_step, n);
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k)
            acc[k] += v * (n == kLanes<T> ? load(y[k] + t * y_step) : load_n(y[k] + t * y_step, n));
    }
}

// Writes `n` places of a row of y, or of a gradient.
template <class T>
TW_INLINE void put_sum(Vec<T> sum, T divisor, T* to, int64_t step, int64_t n) {
    sum = sum / splat(divisor);
    if (step == 1) return store_n(to, sum, n);
    for (int64_t i = 0; i < n; ++i) to[i * step] = sum[i];
}

// Displacements [i, i + K) along the row `from_b`, whose column 0 stands for that of a.
template <class T, int K>
void correlate(const Rows<T>& a, const T* from_a, const Rows<T>& b, int64_t b_row, const Grid& g, int64_t i, T divisor,
               T* to, int64_t displacement_step, int64_t step) {
    constexpr int64_t L = kLanes<T>;
    const T* shifted[K];
    for (int k = 0; k < K; ++k) shifted[k] = b.at(b_row, g.shift(2, i + k));
    for (int64_t p = 0; p < a.columns; p += L) {
        const int64_t n = min_of(L, a.columns - p);
        const T* y[K];
        for (int k = 0; k < K; ++k) y[k] = shifted[k] + p;
        Vec<T> acc[K] = {};
        add_terms<T, K>(from_a + p, a.wide, y, b.wide, a.channels, n, acc);
        for (int k = 0; k < K; ++k) put_sum(acc[k], divisor, to + k * displacement_step + p * step, step, n);
    }
}

template <class T>
Status forward(const Call& c) {
    const View &a = c.in[0], &b = c.in[1], &y = c.out[0];
    Grid g;
    TW_TRY(resolve_grid(a, c.attr, g));
    const int64_t channels = a.shape[1], rows = g.in[0] * g.in[1];
    Rows<T> of_a(g, channels, false), of_b(g, channels, true);
    Scratch a_scratch(of_a.bytes(g)), b_scratch(of_b.bytes(g));
    of_a.data = a_scratch.as<T>(), of_b.data = b_scratch.as<T>();
    if (!of_a.data || !of_b.data) return no_memory();
    const T divisor = c.attr[kNormalize].i ? static_cast<T>(channels) : T{1};
    const Steps s(y);
    for (int64_t image = 0; image < a.shape[0]; ++image) {
        fill_rows(of_a, g, a, image), fill_rows(of_b, g, b, image);
        parallel(rows * g.count[0] * g.count[1], [&](int64_t job) {
            const int64_t e = job % (g.count[0] * g.count[1]), row = job / (g.count[0] * g.count[1]);
            const int64_t d = row / g.in[1], h = row % g.in[1];
            const int64_t b_d = d + g.shift(0, e / g.count[1]), b_h = h + g.shift(1, e % g.count[1]);
            T* to = y.as<T>() + image * y.stride[0] + e * g.count[2] * s.channel + d * s.axis[0] + h * s.axis[1];
            if (b_d < 0 || b_d >= g.in[0] || b_h < 0 || b_h >= g.in[1]) {
                for (int64_t i = 0; i < g.count[2]; ++i)
                    for (int64_t p = 0; p < g.in[2]; ++p) to[i * s.channel + p * s.axis[2]] = T{0} / divisor;
                return;
            }
            const int64_t b_row = b_d * g.in[1] + b_h;
            int64_t i = 0;
            for (; i + kAtOnce <= g.count[2]; i += kAtOnce)
                correlate<T, kAtOnce>(of_a, of_a.at(row, 0), of_b, b_row, g, i, divisor, to + i * s.channel, s.channel,
                                      s.axis[2]);
            for (; i < g.count[2]; ++i)
                correlate<T, 1>(of_a, of_a.at(row, 0), of_b, b_row, g, i, divisor, to + i * s.channel, s.channel,
                                s.axis[2]);
        });
    }
    return Status::ok;
}

// ---- gradients -----------------------------------------------------------------------------------------------------------

// K channels of one row of da, or of db: there both factors are read at q - e.
template <class T, int K>
void gradient_row(const Rows<T>& dy, const Rows<T>& other, const Grid& g, bool of_b, int64_t row, int64_t channel,
                  T divisor, T* to, const Steps& s) {
    constexpr int64_t L = kLanes<T>;
    const int64_t d = row / g.in[1], h = row % g.in[1], sign = of_b ? -1 : 1;
    for (int64_t p = 0; p < g.in[2]; p += L) {
        const int64_t n = min_of(L, g.in[2] - p);
        Vec<T> acc[K] = {};
        for (int64_t e = 0; e < g.count[0] * g.count[1]; ++e) {
            const int64_t at_d = d + sign * g.shift(0, e / g.count[1]), at_h = h + sign * g.shift(1, e % g.count[1]);
            if (at_d < 0 || at_d >= g.in[0] || at_h < 0 || at_h >= g.in[1]) continue;
            const int64_t there = at_d * g.in[1] + at_h;
            for (int64_t i = 0; i < g.count[2]; ++i) {
                const int64_t shift = sign * g.shift(2, i);
                const T* x = (of_b ? dy.at(there, shift) : dy.at(row, 0)) + (e * g.count[2] + i) * dy.wide + p;
                const T* y[K];
                for (int k = 0; k < K; ++k) y[k] = other.at(there, shift) + (channel + k) * other.wide + p;
                add_terms<T, K>(x, 0, y, 0, 1, n, acc);
            }
        }
        for (int k = 0; k < K; ++k) put_sum(acc[k], divisor, to + k * s.channel + p * s.axis[2], s.axis[2], n);
    }
}

template <class T>
Status gradient(const Call& c) {
    const View &dy = c.in[0], &other = c.in[1], &dx = c.out[0];
    Grid g;
    TW_TRY(resolve_grid(other, c.attr, g));
    const bool of_b = c.attr[kSide].choice == 1;
    const int64_t channels = other.shape[1], rows = g.in[0] * g.in[1];
    Rows<T> of_dy(g, g.total(), of_b), of_other(g, channels, true);
    Scratch dy_scratch(of_dy.bytes(g)), other_scratch(of_other.bytes(g));
    of_dy.data = dy_scratch.as<T>(), of_other.data = other_scratch.as<T>();
    if (!of_dy.data || !of_other.data) return no_memory();
    const T divisor = c.attr[kNormalize].i ? static_cast<T>(channels) : T{1};
    const Steps s(dx);
    for (int64_t image = 0; image < dx.shape[0]; ++image) {
        fill_rows(of_dy, g, dy, image), fill_rows(of_other, g, other, image);
        const int64_t blocks = ceil_div(channels, kAtOnce);
        parallel(rows * blocks, [&](int64_t job) {
            const int64_t row = job / blocks, c0 = job % blocks * kAtOnce;
            T* to = dx.as<T>() + image * dx.stride[0] + row / g.in[1] * s.axis[0] + row % g.in[1] * s.axis[1];
            if (c0 + kAtOnce <= channels)
                return gradient_row<T, kAtOnce>(of_dy, of_other, g, of_b, row, c0, divisor, to + c0 * s.channel, s);
            for (int64_t k = c0; k < channels; ++k)
                gradient_row<T, 1>(of_dy, of_other, g, of_b, row, k, divisor, to + k * s.channel, s);
        });
    }
    return Status::ok;
}

Status forward_f32_f64(const Call& c) { return c.in[0].dtype == DType::f32 ? forward<float>(c) : forward<double>(c); }
Status gradient_f32_f64(const Call& c) {
    return c.in[0].dtype == DType::f32 ? gradient<float>(c) : gradient<double>(c);
}
Status run(const Call& c) { return in_float32(c, forward_f32_f64); }
Status run_dx(const Call& c) { return in_float32(c, gradient_f32_f64); }

constexpr Operand kAB[] = {{"a"}, {"b"}};
constexpr Operand kDyOther[] = {{"dy"}, {"other"}};
#define TW_GRID_ATTRS                                                           \
    {.name = "max_displacement", .kind = AttrKind::integers, .required = true}, \
        {.name = "stride", .kind = AttrKind::integers, .i = 1}, {               \
        .name = "normalize", .kind = AttrKind::boolean                          \
    }
constexpr AttrSpec kAttrs[] = {TW_GRID_ATTRS};
constexpr AttrSpec kDxAttrs[] = {TW_GRID_ATTRS,
                                 {.name = "side", .kind = AttrKind::choice, .choices = "a|b", .required = true}};

}  // namespace

extern const Entry op_local_correlation = {"local_correlation", kAB, 2, kAttrs, TW_COUNT(kAttrs), infer, run};
extern const Entry op_local_correlation_dx = {"local_correlation_dx", kDyOther, 2,     kDxAttrs,
                                              TW_COUNT(kDxAttrs),     infer_dx, run_dx};

}  // namespace tw::TW_ISA
