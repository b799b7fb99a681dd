// What the convolution kernels share: operands as runs, and the loop over images and groups.
#pragma once
#include "core/convolution.h"
#include "core/walk.h"
#include "gemm/gemm.h"
#include "ops/ops.h"

#define TW_CONV_ATTRS                                                                                               \
    {.name = "stride", .kind = AttrKind::integers, .i = 1}, {.name = "padding", .kind = AttrKind::padding, .i = 0}, \
        {.name = "dilation", .kind = AttrKind::integers, .i = 1},                                                   \
        {.name = "groups", .kind = AttrKind::integer, .i = 1}
#define TW_CONV_LAYOUT {.name = "layout", .kind = AttrKind::choice, .choices = "NCHW|NHWC"}

namespace tw::TW_ISA {

// The gradient in x, which is also what a transposed convolution computes, there with bias, residual and activation.
struct GradX {
    View dy, w, dx;
    View bias, residual;  // no data: none
    ConvAxes axes;
    int64_t groups;
    Activation activation;
    const void* packed;  // what sum_to_x_pack wrote, or null
};
Status sum_to_x(const GradX& r);
// Of weights whose groups divide them; `strided`: a stride above 1.
int64_t sum_to_x_packed_size(const View& w, int64_t groups, bool strided);
void sum_to_x_pack(const View& w, int64_t groups, bool strided, void* packed);

// The same by folding; filters of w are runs.
Status fold_to_x(const GradX& r);
int64_t fold_to_x_packed_size(const View& w, int64_t groups);
void fold_to_x_pack(const View& w, int64_t groups, void* packed);

// One filter per channel, or a few: x is dx, y is dy and w is dw for the gradients. Rows of x (for dx), y and dy are
// runs, and so is each filter; dx takes one filter per channel.
struct Depthwise {
    View x, w, y;
    View bias;
    ConvAxes axes;
    Activation activation;
    bool flip;      // taps in reverse
    bool add_to_y;  // y = act(y + ...)
};
constexpr int64_t kDepthwiseFilters = 2;  // more per channel fill a register tile
Status depthwise(const Depthwise& q);
Status depthwise_dx(const Depthwise& q);  // at most 64 taps
Status depthwise_dw(const Depthwise& q);

// The convolution of arrays whose channels are neighbours in memory (layout="NHWC"). Views are in the order of NCHW.
struct ConvLast {
    View x, w, y;
    View bias, residual;  // no data: none
    ConvAxes axes;
    int64_t groups;
    Activation activation;
    const void* packed;  // what conv_last_pack wrote, or null
};
Status conv_last(const ConvLast& q);
int64_t conv_last_packed_size(const View& w, int64_t groups);
void conv_last_pack(const View& w, int64_t groups, void* packed);

// A 3x3 kernel of stride 1 over two axes, by tiles of 2x2 or 4x4 results. y and residual are runs from axis 2 on.
struct ConvWinograd {
    View x, w, y;
    View bias, residual;  // no data: none
    ConvAxes axes;
    Activation activation;
    int tile;
    const void* packed;  // what conv_winograd_pack wrote, or null
};
Status conv_winograd(const ConvWinograd& q);
int64_t conv_winograd_packed_size(const View& w, int tile);
void conv_winograd_pack(const View& w, int tile, void* packed);

namespace {

// Known when compiled, also as an argument.
template <bool V>
struct Known {
    static constexpr bool value = V;
};

// (N, *spatial, C) seen as (N, C, *spatial).
inline View channels_first(const View& v) {
    View r = v;
    r.shape[1] = v.shape[v.ndim - 1], r.stride[1] = v.stride[v.ndim - 1];
    for (int d = 2; d < v.ndim; ++d) r.shape[d] = v.shape[d - 1], r.stride[d] = v.stride[d - 1];
    return r;
}

// The inverse.
inline View channels_last(const View& v) {
    View r = v;
    for (int d = 2; d < v.ndim; ++d) r.shape[d - 1] = v.shape[d], r.stride[d - 1] = v.stride[d];
    r.shape[v.ndim - 1] = v.shape[1], r.stride[v.ndim - 1] = v.stride[1];
    return r;
}

enum { kNchw, kNhwc };  // of the attribute `layout`
inline View in_order(const View& v, const Attr& layout) { return layout.choice == kNhwc ? channels_first(v) : v; }
inline View in_layout(const View& v, const Attr& layout) { return layout.choice == kNhwc ? channels_last(v) : v; }

inline Activation activation_of(const Attr& a) {
    return a.is_none ? Activation::none : static_cast<Activation>(a.choice + 1);
}

// The images of a batch as one image with one more axis, outermost and of one tap: (N, C, *spatial) as (1, C, N, *spatial).
inline View side_by_side(const View& v) {
    View r = v;
    r.ndim = v.ndim + 1;
    r.shape[0] = 1, r.shape[2] = v.shape[0], r.stride[2] = v.stride[0];
    for (int d = 2; d < v.ndim; ++d) r.shape[d + 1] = v.shape[d], r.stride[d + 1] = v.stride[d];
    return r;
}

// The axes of x and y, (N, C, *spatial), as they will be side by side.
inline ConvAxes side_by_side(const ConvAxes& s, const View& x, const View& y) {
    ConvAxes r = s;
    const int a = 4 - x.ndim;  // in front of those that x has
    r.in[a] = r.out[a] = x.shape[0];
    r.x_stride[a] = x.stride[0], r.y_stride[a] = y.stride[0];
    return r;
}

// Pixels p of one axis with 0 <= p * stride + offset < in: [begin, end).
inline void reach(const ConvAxes& s, int a, int64_t tap, int64_t& begin, int64_t& end) {
    const int64_t offset = tap * s.dilation[a] - s.before[a];
    begin = offset >= 0 ? 0 : min_of(ceil_div(-offset, s.stride[a]), s.out[a]);
    end = offset >= s.in[a] ? 0 : min_of((s.in[a] - 1 - offset) / s.stride[a] + 1, s.out[a]);
    if (end < begin) end = begin;
}

// Whether the axes from `first` on are laid out as one run of neighbours.
inline bool is_run(const View& v, int first) {
    int64_t want = 1;
    for (int d = v.ndim - 1; d >= first; --d) {
        if (v.shape[d] != 1 && v.stride[d] != want) return false;
        want *= v.shape[d];
    }
    return true;
}

template <class T>
void copy(const View& to, const View& from) {
    const View* views[] = {&to, &from};
    const Walk w = walk_over(views, 2, to.ndim, to.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* dst = reinterpret_cast<T*>(at[0]);
        const T* src = reinterpret_cast<const T*>(at[1]);
        for (int64_t i = 0; i < count; ++i) dst[i * w.stride[0]] = src[i * w.stride[1]];
    });
}

// to += from.
template <class T>
void add(const View& to, const View& from) {
    const View* views[] = {&to, &from};
    const Walk w = walk_over(views, 2, to.ndim, to.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* dst = reinterpret_cast<T*>(at[0]);
        const T* src = reinterpret_cast<const T*>(at[1]);
        for (int64_t i = 0; i < count; ++i) dst[i * w.stride[0]] += src[i * w.stride[1]];
    });
}

// A view whose axes from `first` on are one run: `v` itself, or scratch of the same shape, copied if `load`.
template <class T>
View as_run(const View& v, int first, const Scratch& scratch, bool load) {
    if (is_run(v, first)) return v;
    View r = v;
    set_contiguous(r);
    r.data = scratch.template as<T>();
    if (load) copy<T>(r, v);
    return r;
}

// Far padding or wide strides may make a padded copy much larger than the image.
inline bool padded_copy_fits(const ConvAxes& s) {
    double copy = 1, image = 1;
    for (int a = 0; a < 3; ++a) {
        copy *= static_cast<double>((s.out[a] - 1) * s.stride[a] + (s.taps[a] - 1) * s.dilation[a] + 1);
        image *= static_cast<double>(s.in[a]);
    }
    return copy <= 4 * image + 4096;
}

// The strides of the three axes of ConvAxes.
inline void run_strides(const View& v, int64_t* stride) {
    for (int a = 0; a < 3; ++a) {
        const int d = v.ndim - 3 + a;
        stride[a] = d >= 2 ? v.stride[d] : 0;
    }
}

template <class T>
size_t run_bytes(const View& v, int first) {
    return is_run(v, first) ? 64 : static_cast<size_t>(numel(v)) * sizeof(T);
}

// Phases of the stride, `wide` elements each, to the `count` places of a row.
template <class T>
void write_phases(const T* from, int64_t wide, int64_t stride, int64_t count, T* to, int64_t to_stride) {
    constexpr int L = kLanes<T>;
    if (stride == 2 && to_stride == 1) {
        int64_t i = 0;
        for (; 2 * (i + L) <= count; i += L) {
            const Vec<T> even = load(from + i), odd = load(from + wide + i);
            store(to + 2 * i, zip_low(even, odd));
            store(to + 2 * i + L, zip_high(even, odd));
        }
        for (i *= 2; i < count; ++i) to[i] = from[i % 2 * wide + i / 2];
        return;
    }
    for (int64_t phase = 0; phase < stride && phase < count; ++phase, from += wide) {
        const int64_t n = (count - phase + stride - 1) / stride;
        for (int64_t i = 0; i < n; ++i) to[(phase + i * stride) * to_stride] = from[i];
    }
}

inline Status no_memory() { return fail(Status::memory, "", "no memory for packed panels; want smaller operands"); }

// Runs `kernel` and adds the operand c, which may be the result itself, where it is given.
template <class T>
Status plus_c(const Call& call, const View& c, Status (*kernel)(const Call&)) {
    if (!given(c)) return kernel(call);
    if (c.data != call.out[0].data) {
        TW_TRY(kernel(call));
        add<T>(call.out[0], c);
        return Status::ok;
    }
    View sum = call.out[0];
    Scratch scratch(static_cast<size_t>(numel(sum)) * sizeof(T));
    set_contiguous(sum);
    sum.data = scratch.as<T>();
    if (!sum.data) return no_memory();
    Call apart = call;
    apart.out = &sum;
    TW_TRY(kernel(apart));
    add<T>(call.out[0], sum);
    return Status::ok;
}

// Runs job(image, group) for all; small ones side by side, large ones one after the other with threads inside.
template <class Job>
Status for_images(int64_t images, int64_t groups, double flops, const Job& job) {
    bool enough = true;
    const auto one = [&](int64_t i) {
        if (!job(i / groups, i % groups)) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
    };
    const int64_t jobs = images * groups;
    if (jobs >= 8 && flops / static_cast<double>(jobs) < 2e7)
        parallel(jobs, one);
    else
        for (int64_t i = 0; i < jobs; ++i) one(i);
    return enough ? Status::ok : no_memory();
}

}  // namespace
}  // namespace tw::TW_ISA
