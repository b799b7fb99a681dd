// Deformable convolution: each tap of each window samples x where an offset says, times a mask:
//     s(c,t,p)                 = mask[g,t,p] x(c, p*stride + t*dilation - padding + offset[g,t,p])   g: offset group of c
//     deform_conv              y[k,p] = b[k] + sum_{c,t} w[k,c,t] s(c,t,p)
//     deform_unfold            y[(c,t),p] = s(c,t,p)
//     deform_fold              x[c,q] = sum over (t,p) of y[(c,t),p] ds/dx
//     deform_unfold_doffset    doffset[g,t,axis,p] = sum over c of dy[(c,t),p] ds/doffset;  deform_unfold_dmask alike
//
// Method    x(c, .) is bilinear between four pixels, zeros outside. One pass over the offsets gives every sample its place
//           in a zero-bordered copy of x and four factors, which all channels share. deform_conv samples while it packs
//           B of a matrix product; nothing is unfolded in memory.
// Numerics  the shares of two pixels come from the offset alone, so they lose nothing far from 0.
//           Sums over k = (c,t) as gemm/gemm.h; over c one running sum; deform_fold adds in the order of (t,p).
// Threads   tiles of y, rows of columns, channels of deform_fold; sums are never split between threads.
// Source    Zhu et al., "Deformable ConvNets v2: more deformable, better results", 2019.
#include "ops/conv_problem.h"
#include "ops/in_float32.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int kCorners = 4;
constexpr View kNone = {nullptr, {}, {}, 0, DType::none};
constexpr int64_t kBefore = 2, kBorder = 3;  // zeros in front of a row of the copy, and in all

// The windows over one image, and what lies where.
struct Windows {
    int64_t in[2], out[2], taps[2], stride[2], dilation[2], before[2];
    int64_t channels, offset_groups;

    int64_t pixels() const { return out[0] * out[1]; }
    int64_t all_taps() const { return taps[0] * taps[1]; }
    int64_t rows() const { return offset_groups * all_taps(); }  // of samples that share places
    int64_t row() const { return in[1] + kBorder; }
    int64_t plane() const { return (in[0] + kBorder) * row(); }
    int64_t sample_row(int64_t c, int64_t t) const { return c / (channels / offset_groups) * all_taps() + t; }
};

// Attributes in the order of every table here, after those that only some have.
enum { kStride, kPadding, kDilation, kOffsetGroups };

Status resolve(const int64_t* image, int64_t channels, const int64_t* kernel, Attr* attr, const View& offset,
               const View& mask, int64_t batch, const char* blame, Windows& s) {
    TW_TRY(resolve_integers(attr[kStride], "stride", 2, 1));
    TW_TRY(resolve_integers(attr[kDilation], "dilation", 2, 1));
    TW_TRY(resolve_window(image, kernel, attr[kStride].list, attr[kDilation].list, attr[kPadding], 2, false, s.out,
                          blame));
    const int64_t groups = attr[kOffsetGroups].i;
    if (groups < 1 || channels % groups)
        return fail(Status::attr, "offset_groups", "offset_groups=%lld does not divide C=%lld; want a divisor",
                    static_cast<long long>(groups), static_cast<long long>(channels));
    for (int a = 0; a < 2; ++a) {
        s.in[a] = image[a], s.taps[a] = kernel[a];
        s.stride[a] = attr[kStride].list[a], s.dilation[a] = attr[kDilation].list[a];
        s.before[a] = attr[kPadding].list[2 * a];
    }
    s.channels = channels, s.offset_groups = groups;
    int64_t rows;
    if (__builtin_mul_overflow(kernel[0], kernel[1], &rows) || __builtin_mul_overflow(rows, 2 * groups, &rows))
        return fail(Status::attr, "offset_groups",
                    "offset_groups=%lld times the taps is too large; want less than 2^63",
                    static_cast<long long>(groups));
    int64_t want[] = {batch, rows, s.out[0], s.out[1]};
    TW_TRY(want_shape(offset, "offset", 4, want));
    want[1] = rows / 2;
    return given(mask) ? want_shape(mask, "mask", 4, want) : Status::ok;
}

Windows windows_of(const View& x, const int64_t* kernel, const View& offset, const Attr* attr) {
    Windows s;
    for (int a = 0; a < 2; ++a) {
        s.in[a] = x.shape[2 + a], s.out[a] = offset.shape[2 + a], s.taps[a] = kernel[a];
        s.stride[a] = attr[kStride].list[a], s.dilation[a] = attr[kDilation].list[a];
        s.before[a] = attr[kPadding].list[2 * a];
    }
    s.channels = x.shape[1], s.offset_groups = attr[kOffsetGroups].i;
    return s;
}

// ---- places ---------------------------------------------------------------------------------------------------------------

// What a sample is a sum of four pixels with: its value, or its slope along an axis.
enum class Factors { slope_h, slope_w, value };

// The samples of one row: the first of their four pixels in the copy, and factor[corner * n + sample].
template <class T>
struct Places {
    int64_t n;
    int64_t* at;
    T* factor;

    Places row(int64_t r) const { return {n, at + r * n, factor + r * kCorners * n}; }
};

// Where along an axis an offset leads: the pixel before it, or -2 if none is near, and the shares of it and of the next.
template <class T>
TW_INLINE int64_t pixel_before(int64_t window, T offset, int64_t in, T* share) {
    constexpr T kFar = static_cast<T>(kMaxSize);
    const T whole = static_cast<T>(__builtin_floor(static_cast<double>(offset)));
    const bool between = whole != offset;  // of NaN too
    share[0] = between ? whole + 1 - offset : T{1};
    share[1] = between ? offset - whole : T{0};
    if (!(whole > -kFar && whole < kFar)) return -kBefore;
    const int64_t pixel = window + static_cast<int64_t>(whole);
    return pixel >= -1 && pixel < in ? pixel : -kBefore;
}

// Row r = (offset group, tap) of one image. No mask: ones.
template <class T>
void find_places(const Windows& s, const View& offset, const View& mask, int64_t image, int64_t r, Factors kind,
                 const Places<T>& to) {
    const int64_t t = r % s.all_taps(), th = t / s.taps[1], tw = t % s.taps[1];
    const T* off_h = offset.as<T>() + image * offset.stride[0] + 2 * r * offset.stride[1];
    const T* off_w = off_h + offset.stride[1];
    const T* factor = given(mask) ? mask.as<T>() + image * mask.stride[0] + r * mask.stride[1] : nullptr;
    for (int64_t i = 0, p = 0; i < s.out[0]; ++i)
        for (int64_t j = 0; j < s.out[1]; ++j, ++p) {
            const int64_t o = i * offset.stride[2] + j * offset.stride[3];
            T h[2], w[2];
            int64_t at_h = pixel_before(i * s.stride[0] + th * s.dilation[0] - s.before[0], off_h[o], s.in[0], h);
            int64_t at_w = pixel_before(j * s.stride[1] + tw * s.dilation[1] - s.before[1], off_w[o], s.in[1], w);
            if (at_h == -kBefore || at_w == -kBefore) at_h = at_w = -kBefore;
            if (h[0] != h[0] || w[0] != w[0]) h[0] = h[1] = w[0] = w[1] = h[0] + w[0];
            const T m = factor ? factor[i * mask.stride[2] + j * mask.stride[3]] : T{1};
            to.at[p] = (at_h + kBefore) * s.row() + at_w + kBefore;
            for (int corner = 0; corner < kCorners; ++corner) {
                const int down = corner / 2, right = corner % 2;
                to.factor[corner * to.n + p] = m * (kind == Factors::value     ? h[down] * w[right]
                                                    : kind == Factors::slope_h ? (down ? w[right] : -w[right])
                                                                               : (right ? h[down] : -h[down]));
            }
        }
}

size_t places_bytes(int64_t samples, size_t item) {
    return static_cast<size_t>(samples) * (sizeof(int64_t) + kCorners * item);
}
template <class T>
Places<T> places_in(const Scratch& scratch, int64_t rows, int64_t n) {
    int64_t* at = scratch.as<int64_t>();
    return {n, at, reinterpret_cast<T*>(at + rows * n)};
}

// The places of all rows of one image.
template <class T>
void find_all(const Windows& s, const View& offset, const View& mask, int64_t image, const Places<T>& to) {
    parallel(s.rows(), [&](int64_t r) { find_places(s, offset, mask, image, r, Factors::value, to.row(r)); });
}

// Channels of one image, two rows and columns of zeros in front and one behind.
template <class T>
void copy_image(const Windows& s, const View& x, int64_t image, T* to) {
    parallel(s.channels, [&](int64_t c) {
        const T* from = x.as<T>() + image * x.stride[0] + c * x.stride[1];
        T* plane = to + c * s.plane();
        for (int64_t i = 0; i < s.plane(); ++i) plane[i] = 0;
        for (int64_t h = 0; h < s.in[0]; ++h)
            copy_row(plane + (h + kBefore) * s.row() + kBefore, 1, from + h * x.stride[2], x.stride[3], s.in[1]);
    });
}

template <class T>
TW_INLINE T sample_at(const Places<T>& from, int64_t p, const T* plane, int64_t row) {
    const T* x = plane + from.at[p];
    const T* f = from.factor + p;
    return f[0] * x[0] + f[from.n] * x[1] + f[2 * from.n] * x[row] + f[3 * from.n] * x[row + 1];
}

template <class T>
struct Image {
    Scratch copy, table;
    T* data;
    Places<T> places;

    explicit Image(const Windows& s)
        : copy(static_cast<size_t>(s.channels * s.plane() + 1) * sizeof(T)),
          table(places_bytes(s.rows() * s.pixels(), sizeof(T))),
          data(copy.as<T>()),
          places(places_in<T>(table, s.rows(), s.pixels())) {}
    bool has_memory() const { return data && places.at; }
};

// ---- deform_conv ------------------------------------------------------------------------------------------------------------

Status infer_conv(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &offset = c.in[2], &b = c.in[3], &mask = c.in[4];
    TW_TRY(want_conv_float(x, "x"));
    TW_TRY(want_ndim(x, "x", 4, 4));
    TW_TRY(want_dtype_of(w, "w", x, "x"));
    TW_TRY(want_dtype_of(offset, "offset", x, "x"));
    if (given(mask)) TW_TRY(want_dtype_of(mask, "mask", x, "x"));
    View y = result(x.dtype, 4, x.shape);
    TW_TRY(check_conv(x, w, c.attr[kStride], c.attr[kPadding], c.attr[kDilation], c.attr[kOffsetGroups + 1],
                      y.shape + 2, "x"));
    y.shape[1] = w.shape[0];
    TW_TRY(check_bias(b, x, w.shape[0]));
    Windows s;
    TW_TRY(resolve(x.shape + 2, x.shape[1], w.shape + 2, c.attr, offset, mask, x.shape[0], "x", s));
    r.n_out = 1;
    r.out[0] = y;
    r.flops = conv_flops(y, w);
    return Status::ok;
}

template <class T>
struct Sampler {
    const Windows& s;
    const Image<T>& image;
    int64_t first;  // channel
};

// Matches Gemm::pack_b: rows (channel, tap), columns pixels.
template <class T>
void pack_samples(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, T* panel) {
    constexpr int64_t NR = Blocking<T>::NR;
    const auto& q = *static_cast<const Sampler<T>*>(context);
    for (int64_t k = k0; k < k0 + kc; ++k, panel += NR) {
        const int64_t c = q.first + k / q.s.all_taps(), t = k % q.s.all_taps();
        const Places<T> places = q.image.places.row(q.s.sample_row(c, t));
        const T* plane = q.image.data + c * q.s.plane();
        for (int64_t i = 0; i < n; ++i) panel[i] = sample_at(places, n0 + i, plane, q.s.row());
        for (int64_t i = n; i < NR; ++i) panel[i] = 0;
    }
}

template <class T>
Status convolve(const Call& c) {
    const View &x = c.in[0], &w_given = c.in[1], &offset = c.in[2], &b = c.in[3], &mask = c.in[4], &y_given = c.out[0];
    const Windows s = windows_of(x, w_given.shape + 2, offset, c.attr);
    const int64_t groups = c.attr[kOffsetGroups + 1].i, kg = w_given.shape[0] / groups, cg = w_given.shape[1];
    Scratch w_scratch(run_bytes<T>(w_given, 1)), y_scratch(run_bytes<T>(y_given, 2)),
        bias_scratch(static_cast<size_t>(w_given.shape[0] + 1) * sizeof(T));
    const Image<T> image(s);
    T* const bias = bias_scratch.as<T>();
    if (!w_scratch.as<T>() || !y_scratch.as<T>() || !bias || !image.has_memory()) return no_memory();
    const View w = as_run<T>(w_given, 1, w_scratch, true), y = as_run<T>(y_given, 2, y_scratch, false);
    for (int64_t k = 0; k < w.shape[0]; ++k) bias[k] = given(b) ? b.as<T>()[k * b.stride[0]] : T{0};
    for (int64_t n = 0; n < x.shape[0]; ++n) {
        copy_image(s, x, n, image.data);
        find_all(s, offset, mask, n, image.places);
        for (int64_t group = 0; group < groups; ++group) {
            const Sampler<T> sampler{s, image, group * cg};
            Gemm<T> g{};
            g.m = kg, g.n = s.pixels(), g.k = cg * s.all_taps();
            g.a = {w.as<T>() + group * kg * w.stride[0], w.stride[0], 1};
            g.pack_b = pack_samples<T>, g.context = &sampler;
            g.c = y.as<T>() + n * y.stride[0] + group * kg * y.stride[1];
            g.c_row = y.stride[1], g.c_col = 1;
            g.bias_row = bias + group * kg;
            if (!gemm(g)) return no_memory();
        }
    }
    if (y.data != y_given.data) copy<T>(y_given, y);
    return Status::ok;
}

// ---- columns -----------------------------------------------------------------------------------------------------------------

// Attributes from `kernel` on. Writes the shape of the columns.
Status check_columns(const View& offset, const View& mask, Attr* attr, int64_t batch, int64_t channels,
                     const int64_t* image, const char* blame, int64_t* shape) {
    TW_TRY(resolve_integers(attr[0], "kernel", 2, 1));
    Windows s;
    TW_TRY(resolve(image, channels, attr[0].list, attr + 1, offset, mask, batch, blame, s));
    shape[0] = batch, shape[2] = s.pixels();
    if (__builtin_mul_overflow(channels, s.all_taps(), &shape[1]))
        return fail(Status::attr, "kernel", "kernel=%s gives more than 2^63 columns; want fewer",
                    attr_text(attr[0]).text);
    return Status::ok;
}

Status infer_unfold(Call& c, Inferred& r) {
    const View &x = c.in[0], &offset = c.in[1], &mask = c.in[2];
    TW_TRY(want_conv_float(x, "x"));
    TW_TRY(want_ndim(x, "x", 4, 4));
    TW_TRY(want_dtype_of(offset, "offset", x, "x"));
    if (given(mask)) TW_TRY(want_dtype_of(mask, "mask", x, "x"));
    int64_t shape[3];
    TW_TRY(check_columns(offset, mask, c.attr, x.shape[0], x.shape[1], x.shape + 2, "x", shape));
    r.n_out = 1;
    r.out[0] = result(x.dtype, 3, shape);
    return Status::ok;
}

Status infer_fold(Call& c, Inferred& r) {
    const View &y = c.in[0], &offset = c.in[1], &mask = c.in[2];
    Attr &sizes = c.attr[0], &kernel = c.attr[1];
    TW_TRY(want_conv_float(y, "y"));
    TW_TRY(want_ndim(y, "y", 3, 3));
    TW_TRY(want_dtype_of(offset, "offset", y, "y"));
    if (given(mask)) TW_TRY(want_dtype_of(mask, "mask", y, "y"));
    TW_TRY(resolve_integers(sizes, "shape", 2, 0));
    TW_TRY(resolve_integers(kernel, "kernel", 2, 1));
    int64_t taps;
    if (__builtin_mul_overflow(kernel.list[0], kernel.list[1], &taps) || y.shape[1] % taps)
        return fail(Status::shape, "y", "y has %lld rows and kernel=%s; want C times as many rows as taps",
                    static_cast<long long>(y.shape[1]), attr_text(kernel).text);
    int64_t shape[3];
    TW_TRY(check_columns(offset, mask, c.attr + 1, y.shape[0], y.shape[1] / taps, sizes.list, "shape", shape));
    TW_TRY(want_shape(y, "y", 3, shape));
    const int64_t image[] = {y.shape[0], y.shape[1] / taps, sizes.list[0], sizes.list[1]};
    r.n_out = 1;
    r.out[0] = result(y.dtype, 4, image);
    return Status::ok;
}

// Of the gradients in offset and in mask: the same operands, but for the mask.
Status infer_slope(Call& c, Inferred& r) {
    const View &dy = c.in[0], &x = c.in[1], &offset = c.in[2];
    const bool of_offset = c.n_in == 4;
    const View& mask = of_offset ? c.in[3] : kNone;
    TW_TRY(want_conv_float(dy, "dy"));
    TW_TRY(want_dtype_of(x, "x", dy, "dy"));
    TW_TRY(want_ndim(x, "x", 4, 4));
    TW_TRY(want_dtype_of(offset, "offset", dy, "dy"));
    if (given(mask)) TW_TRY(want_dtype_of(mask, "mask", dy, "dy"));
    int64_t shape[3];
    TW_TRY(check_columns(offset, mask, c.attr, x.shape[0], x.shape[1], x.shape + 2, "x", shape));
    TW_TRY(want_shape(dy, "dy", 3, shape));
    r.n_out = 1;
    r.out[0] = result(offset.dtype, 4, offset.shape);
    if (!of_offset) r.out[0].shape[1] /= 2;
    return Status::ok;
}

template <class T>
Status unfold(const Call& c) {
    const View &x = c.in[0], &offset = c.in[1], &mask = c.in[2], &y = c.out[0];
    const Windows s = windows_of(x, c.attr[0].list, offset, c.attr + 1);
    const Image<T> image(s);
    if (!image.has_memory()) return no_memory();
    for (int64_t n = 0; n < x.shape[0]; ++n) {
        copy_image(s, x, n, image.data);
        find_all(s, offset, mask, n, image.places);
        parallel(s.channels * s.all_taps(), [&](int64_t row) {
            const int64_t channel = row / s.all_taps(), t = row % s.all_taps();
            const Places<T> places = image.places.row(s.sample_row(channel, t));
            T* to = y.as<T>() + n * y.stride[0] + row * y.stride[1];
            for (int64_t p = 0; p < s.pixels(); ++p)
                to[p * y.stride[2]] = sample_at(places, p, image.data + channel * s.plane(), s.row());
        });
    }
    return Status::ok;
}

template <class T>
Status fold(const Call& c) {
    const View &y = c.in[0], &offset = c.in[1], &mask = c.in[2], &x = c.out[0];
    const Windows s = windows_of(x, c.attr[1].list, offset, c.attr + 2);
    const Image<T> image(s);  // the copy holds the sums
    if (!image.has_memory()) return no_memory();
    for (int64_t n = 0; n < x.shape[0]; ++n) {
        find_all(s, offset, mask, n, image.places);
        parallel(s.channels, [&](int64_t channel) {
            T* const sums = image.data + channel * s.plane();
            const int64_t row = s.row();
            for (int64_t i = 0; i < s.plane(); ++i) sums[i] = 0;
            for (int64_t t = 0; t < s.all_taps(); ++t) {
                const Places<T> places = image.places.row(s.sample_row(channel, t));
                const T* from = y.as<T>() + n * y.stride[0] + (channel * s.all_taps() + t) * y.stride[1];
                for (int64_t p = 0; p < s.pixels(); ++p) {
                    T* const to = sums + places.at[p];
                    const T* const f = places.factor + p;
                    const T v = from[p * y.stride[2]];
                    to[0] += f[0] * v, to[1] += f[places.n] * v;
                    to[row] += f[2 * places.n] * v, to[row + 1] += f[3 * places.n] * v;
                }
            }
            T* to = x.as<T>() + n * x.stride[0] + channel * x.stride[1];
            for (int64_t h = 0; h < s.in[0]; ++h)
                copy_row(to + h * x.stride[2], x.stride[3], sums + (h + kBefore) * row + kBefore, 1, s.in[1]);
        });
    }
    return Status::ok;
}

template <class T>
Status slope(const Call& c) {
    const View &dy = c.in[0], &x = c.in[1], &offset = c.in[2], &to = c.out[0];
    const bool of_offset = c.n_in == 4;
    const View& mask = of_offset ? c.in[3] : kNone;
    const Windows s = windows_of(x, c.attr[0].list, offset, c.attr + 1);
    const int64_t kinds = of_offset ? 2 : 1, per_group = s.channels / s.offset_groups, pixels = s.pixels();
    Scratch copy(static_cast<size_t>(s.channels * s.plane() + 1) * sizeof(T));
    T* const data = copy.as<T>();
    if (!data) return no_memory();
    bool enough = true;
    for (int64_t n = 0; n < x.shape[0]; ++n) {
        copy_image(s, x, n, data);
        parallel(s.rows() * kinds, [&](int64_t job) {
            const int64_t row = job / kinds, t = row % s.all_taps(), first = row / s.all_taps() * per_group;
            Scratch table(places_bytes(pixels, sizeof(T))), scratch(static_cast<size_t>(pixels) * sizeof(T));
            const Places<T> places = places_in<T>(table, 1, pixels);
            T* const sums = scratch.as<T>();
            if (!places.at || !sums) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            find_places(s, offset, mask, n, row, of_offset ? static_cast<Factors>(job % 2) : Factors::value, places);
            for (int64_t p = 0; p < pixels; ++p) sums[p] = 0;
            for (int64_t channel = first; channel < first + per_group; ++channel) {
                const T* from = dy.as<T>() + n * dy.stride[0] + (channel * s.all_taps() + t) * dy.stride[1];
                const T* plane = data + channel * s.plane();
                for (int64_t p = 0; p < pixels; ++p)
                    sums[p] += from[p * dy.stride[2]] * sample_at(places, p, plane, s.row());
            }
            T* row_of = to.as<T>() + n * to.stride[0] + job * to.stride[1];
            for (int64_t i = 0; i < s.out[0]; ++i)
                copy_row(row_of + i * to.stride[2], to.stride[3], sums + i * s.out[1], 1, s.out[1]);
        });
    }
    return enough ? Status::ok : no_memory();
}

#define TW_RUN(name)                                                                                                \
    Status name##_f32_f64(const Call& c) { return c.in[0].dtype == DType::f32 ? name<float>(c) : name<double>(c); } \
    Status run_##name(const Call& c) { return in_float32(c, name##_f32_f64); }
TW_RUN(convolve)
TW_RUN(unfold)
TW_RUN(fold)
TW_RUN(slope)

constexpr Operand kConv[] = {{"x"}, {"w"}, {"offset"}, {"b", Role::optional}, {"mask", Role::optional}};
constexpr Operand kUnfold[] = {{"x"}, {"offset"}, {"mask", Role::optional}};
constexpr Operand kFold[] = {{"y"}, {"offset"}, {"mask", Role::optional}};
constexpr Operand kSlope[] = {{"dy"}, {"x"}, {"offset"}, {"mask", Role::optional}};
#define TW_PLACE_ATTRS                                                                                              \
    {.name = "stride", .kind = AttrKind::integers, .i = 1}, {.name = "padding", .kind = AttrKind::padding, .i = 0}, \
        {.name = "dilation", .kind = AttrKind::integers, .i = 1},                                                   \
        {.name = "offset_groups", .kind = AttrKind::integer, .i = 1}
#define TW_KERNEL_ATTR {.name = "kernel", .kind = AttrKind::integers, .required = true}
constexpr AttrSpec kConvAttrs[] = {TW_PLACE_ATTRS, {.name = "groups", .kind = AttrKind::integer, .i = 1}};
constexpr AttrSpec kAttrs[] = {TW_KERNEL_ATTR, TW_PLACE_ATTRS};
constexpr AttrSpec kFoldAttrs[] = {
    {.name = "shape", .kind = AttrKind::integers, .required = true}, TW_KERNEL_ATTR, TW_PLACE_ATTRS};

}  // namespace

extern const Entry op_deform_conv = {"deform_conv",        kConv,      5,           kConvAttrs,
                                     TW_COUNT(kConvAttrs), infer_conv, run_convolve};
extern const Entry op_deform_unfold = {"deform_unfold", kUnfold, 3, kAttrs, TW_COUNT(kAttrs), infer_unfold, run_unfold};
extern const Entry op_deform_fold = {"deform_fold", kFold, 3, kFoldAttrs, TW_COUNT(kFoldAttrs), infer_fold, run_fold};
extern const Entry op_deform_unfold_doffset = {"deform_unfold_doffset", kSlope,      4,        kAttrs,
                                               TW_COUNT(kAttrs),        infer_slope, run_slope};
extern const Entry op_deform_unfold_dmask = {"deform_unfold_dmask", kSlope,      3,        kAttrs,
                                             TW_COUNT(kAttrs),      infer_slope, run_slope};

}  // namespace tw::TW_ISA
