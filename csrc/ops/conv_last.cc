// Convolution of channels-last arrays, x (N, *spatial, C) and y (N, *spatial, K) with w (K, C/groups, *kernel): what conv
// runs with layout="NHWC".
//
// Method    implicit GEMM with pixels as rows: six pixels of a row times panels of filters, [panel][tap][c][NR], over
//           the runs of (column, c) that a row of the kernel sees. A padded image is copied once, zeros around it;
//           otherwise nothing of x is moved. Depthwise: channels are the lanes, and four pixels share what they load;
//           nothing is copied, taps beside the image read zeros.
// Numerics  one running sum over (tap, c), cut every KC terms; zeros of the border are multiplied.
// Threads   bands of rows by panels of filters; sums are never split between threads.
#include "gemm/micro.h"
#include "ops/conv_problem.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

template <class T>
int64_t panel_elements(const View& w, int64_t groups) {
    constexpr int64_t NR = Blocking<T>::NR;
    return groups * ceil_div(w.shape[0] / groups, NR) * NR * (numel(w) / w.shape[0]);
}

// w[group, filter][c][tap] as [group][panel][tap][c][NR], zeros beyond the last filter.
template <class T>
void pack_panels(const View& w, int64_t groups, T* to) {
    constexpr int64_t NR = Blocking<T>::NR;
    Scratch scratch(run_bytes<T>(w, 1));
    if (!scratch.as<T>()) return;
    const View rows = as_run<T>(w, 1, scratch, true);
    const int64_t kg = w.shape[0] / groups, cg = w.shape[1], depth = numel(w) / w.shape[0],
                  taps = depth / max_of(cg, 1);
    const int64_t panels = ceil_div(kg, NR);
    parallel(groups * panels, [&](int64_t job) {
        const int64_t k0 = job % panels * NR, n = min_of(NR, kg - k0);
        const T* from = rows.as<T>() + (job / panels * kg + k0) * rows.stride[0];
        T* panel = to + job * NR * depth;
        for (int64_t c = 0; c < cg; ++c)
            for (int64_t t = 0; t < taps; ++t)
                for (int64_t k = 0; k < NR; ++k)
                    panel[(t * cg + c) * NR + k] = k < n ? from[k * rows.stride[0] + c * taps + t] : T{};
    });
}

// x, or a copy of one image with its border of zeros: pixel (d, h, w) at data + d * step[0] + h * step[1] + w * step[2].
template <class T>
struct Image {
    const T* data;
    int64_t step[3];
};

// An image with its own border, pixel (d, h, w) as in Image.
template <class T>
struct Field {
    const T* data;
    int64_t step[3], in[3], before[3];
};

// A row of x under the kernel: where its column 0 is, and how far the next. Zeros are one pixel for all columns.
template <class T>
struct Seen {
    const T* data;
    int64_t step;
};

template <class T>
struct Last {
    static constexpr int64_t NR = Blocking<T>::NR;
    static constexpr int kPixels = 4;  // that share what they load, where channels are the lanes
    const ConvLast& q;
    const ConvAxes& s;
    int64_t channels, kg, cg, taps, size[3];  // size: of the padded image
    bool in_place;

    explicit Last(const ConvLast& conv) : q(conv), s(conv.axes) {
        channels = q.x.shape[1], kg = q.w.shape[0] / q.groups, cg = q.w.shape[1], taps = taps_of(s);
        in_place = q.x.stride[1] == 1;
        if (in_place && cg == 1 && kg == 1) return;
        for (int a = 0; a < 3; ++a) {
            size[a] = (s.out[a] - 1) * s.stride[a] + (s.taps[a] - 1) * s.dilation[a] + 1;
            in_place = in_place && s.before[a] == 0 && size[a] <= s.in[a];
        }
        // A run of (column, c) is read as one.
        in_place = in_place && (s.in[2] == 1 || s.x_stride[2] == channels);
    }

    size_t copy_bytes() const {
        return in_place ? 64 : static_cast<size_t>(size[0] * size[1] * size[2] * channels + 1) * sizeof(T);
    }

    Image<T> image(int64_t n, T* copy) const {
        const T* x = q.x.as<T>() + n * q.x.stride[0];
        if (in_place) return {x, {s.x_stride[0], s.x_stride[1], s.x_stride[2]}};
        const int64_t row = size[2] * channels;
        parallel(size[0] * size[1], [&](int64_t r) {
            const int64_t d = r / size[1] - s.before[0], h = r % size[1] - s.before[1];
            T* to = copy + r * row;
            const bool inside = d >= 0 && d < s.in[0] && h >= 0 && h < s.in[1];
            const T* from = x + d * s.x_stride[0] + h * s.x_stride[1];
            const T zero = 0;
            for (int64_t w = -s.before[2]; w < size[2] - s.before[2]; ++w, to += channels) {
                const bool here = inside && w >= 0 && w < s.in[2];
                copy_row(to, 1, here ? from + w * s.x_stride[2] : &zero, here ? q.x.stride[1] : 0, channels);
            }
        });
        return {copy, {size[1] * row, row, channels}};
    }

    // The image itself with the padding of the convolution, or its copy, which has that in it.
    Field<T> field_of(const Image<T>& x) const {
        Field<T> f{x.data, {}, {}, {}};
        for (int a = 0; a < 3; ++a) {
            f.step[a] = x.step[a], f.in[a] = in_place ? s.in[a] : size[a];
            f.before[a] = in_place ? s.before[a] : 0;
        }
        return f;
    }

    // Rows [r0, r1) of an image of y times panels [p0, p1) of a group.
    void multiply(const Image<T>& x, int64_t group, int64_t r0, int64_t r1, int64_t p0, int64_t p1, const T* panels,
                  const T* bias, T* y) const {
        const int64_t depth = cg * taps, tiles = ceil_div(s.out[2], kMR), m = s.out[2] / tiles, more = s.out[2] % tiles;
        // Columns of the kernel that lie side by side in x are one run; `along` is its length, `runs` how many there are.
        const bool merged = q.groups == 1 && s.dilation[2] == 1;
        const int64_t along = merged ? s.taps[2] * cg : cg, runs = taps * cg / max_of(along, 1);
        const int64_t cut = ceil_div(along, Blocking<T>::KC), piece = ceil_div(along, max_of(cut, 1));
        for (int64_t p = p0; p < p1; ++p) {
            const int64_t k0 = p * NR;
            const int n = static_cast<int>(min_of(NR, kg - k0));
            const T* b = panels + (group * ceil_div(kg, NR) + p) * NR * depth;
            for (int64_t run = 0; run < max_of(runs, 1);) {
                // Rows of the kernel next to each other go together, up to about KC terms.
                const int64_t inner = merged ? s.taps[1] : s.taps[2], from = run % inner;
                const int64_t together =
                    cut > 1 ? 1 : max_of(1, min_of(inner - from, Blocking<T>::KC / max_of(along, 1)));
                const int64_t tap = merged ? run * s.taps[2] : run;
                const int64_t td = tap / s.taps[2] / s.taps[1], th = tap / s.taps[2] % s.taps[1], tw = tap % s.taps[2];
                for (int64_t k = 0; k < max_of(along, 1); k += max_of(piece, 1)) {
                    Tile<T> t{};
                    t.kc = min_of(piece, along - k);
                    t.outer = together;
                    t.a_outer = merged ? s.dilation[1] * x.step[1] : s.dilation[2] * x.step[2];
                    t.b = b + (run * along + k) * NR, t.b_k = NR, t.b_outer = along * NR;
                    t.a_row = s.stride[2] * x.step[2], t.a_k = 1;
                    t.c_row = s.y_stride[2];
                    const bool first = run == 0 && k == 0, last = run + together >= runs && k + piece >= along;
                    t.load_c = !first || q.residual.data;
                    t.bias_col = bias && first ? bias + group * kg + k0 : nullptr;
                    t.activation = last ? q.activation : Activation::none;
                    for (int64_t r = r0; r < r1; ++r) {
                        const int64_t d = r / s.out[1], h = r % s.out[1];
                        t.a = x.data + (d * s.stride[0] + td * s.dilation[0]) * x.step[0] +
                              (h * s.stride[1] + th * s.dilation[1]) * x.step[1] + tw * s.dilation[2] * x.step[2] +
                              group * cg + k;
                        t.c = y + d * s.y_stride[0] + h * s.y_stride[1] + group * kg + k0;
                        t.tiles = more, t.a_tile = (m + 1) * t.a_row;
                        if (more) run_tile(t, static_cast<int>(m + 1), n);
                        t.a += more * t.a_tile, t.c += more * (m + 1) * t.c_row;
                        t.tiles = tiles - more, t.a_tile = m * t.a_row;
                        run_tile(t, static_cast<int>(m), n);
                    }
                }
                run += together;
            }
        }
    }

    // Rows [first, last) of an image of y, one filter per channel: w as [tap][channel].
    void depthwise_rows(const Field<T>& x, int64_t first, int64_t last, const T* w, const T* bias, const T* zeros,
                        Seen<T>* seen, T* y) const {
        const bool three = s.taps[2] == 3 && s.dilation[2] == 1;
        const auto block = three && s.stride[2] == 1   ? &Last::depthwise_pixels<kPixels, 3, 1>
                           : three && s.stride[2] == 2 ? &Last::depthwise_pixels<kPixels, 3, 2>
                                                       : &Last::depthwise_pixels<kPixels, 0, 0>;
        const auto one = three ? &Last::depthwise_pixels<1, 3, 1> : &Last::depthwise_pixels<1, 0, 0>;
        // Pixels [low, high) have all their columns inside.
        const int64_t reach = (s.taps[2] - 1) * s.dilation[2], room = x.in[2] - 1 - reach + x.before[2];
        const int64_t low = min_of(ceil_div(x.before[2], s.stride[2]), s.out[2]);
        const int64_t high = max_of(low, room < 0 ? 0 : min_of(room / s.stride[2] + 1, s.out[2]));
        for (int64_t r = first; r < last; ++r) {
            const int64_t d = r / s.out[1], h = r % s.out[1];
            for (int64_t i = 0; i < s.taps[0] * s.taps[1]; ++i) {
                const int64_t at_d = d * s.stride[0] + i / s.taps[1] * s.dilation[0] - x.before[0];
                const int64_t at_h = h * s.stride[1] + i % s.taps[1] * s.dilation[1] - x.before[1];
                const bool inside = at_d >= 0 && at_d < x.in[0] && at_h >= 0 && at_h < x.in[1];
                if (inside)
                    seen[i] = {x.data + at_d * x.step[0] + at_h * x.step[1], x.step[2]};
                else
                    seen[i] = {zeros, 0};
            }
            T* to = y + d * s.y_stride[0] + h * s.y_stride[1];
            int64_t p = 0;
            for (; p < low; ++p) depthwise_edge(x, seen, p, w, bias, zeros, to);
            for (; p + kPixels <= high; p += kPixels) (this->*block)(x, seen, p, w, bias, to);
            for (; p < high; ++p) (this->*one)(x, seen, p, w, bias, to);
            for (; p < s.out[2]; ++p) depthwise_edge(x, seen, p, w, bias, zeros, to);
            if (q.activation > Activation::relu6)
                activate_tile(to, s.y_stride[2], static_cast<int>(s.out[2]), static_cast<int>(channels), q.activation);
        }
    }

    // Calls body(c, lanes, whole) for all channels, whole vectors first.
    template <class Body>
    TW_INLINE void each_channels(int64_t n, const Body& body) {
        int64_t c = 0;
        for (; c + kLanes<T> <= n; c += kLanes<T>) body(c, kLanes<T>, Known<true>{});
        if (c < n) body(c, n - c, Known<false>{});
    }

    // P pixels of a row, all of whose taps lie inside. KW, SW: taps and stride along a row, 0 if known at run time alone.
    template <int P, int KW, int SW>
    void depthwise_pixels(const Field<T>& x, const Seen<T>* seen, int64_t p, const T* w, const T* bias, T* to) const {
        const int64_t column = p * s.stride[2] - x.before[2];
        each_channels(channels, [&](int64_t c, int64_t lanes, auto whole) __attribute__((always_inline)) {
            const auto take = [&](const T* from) __attribute__((always_inline)) {
                if constexpr (whole.value) return load(from);
                return load_n(from, lanes);
            };
            Vec<T> acc[P];
            for (int i = 0; i < P; ++i)
                acc[i] = q.residual.data ? take(to + (p + i) * s.y_stride[2] + c) : bias ? take(bias + c) : Vec<T>{};
            const T* tap = w + c;
            for (int64_t row = 0; row < s.taps[0] * s.taps[1]; ++row) {
                const int64_t step = seen[row].step;
                const T* from = seen[row].data + column * step + c;
                if constexpr (KW > 0) {
                    constexpr int kSeen = (P - 1) * SW + KW;
                    Vec<T> v[kSeen];
#pragma GCC unroll 16
                    for (int j = 0; j < kSeen; ++j) v[j] = take(from + j * step);
#pragma GCC unroll 4
                    for (int j = 0; j < KW; ++j, tap += channels) {
                        const Vec<T> factor = take(tap);
#pragma GCC unroll 4
                        for (int i = 0; i < P; ++i) acc[i] += factor * v[i * SW + j];
                    }
                } else {
                    for (int64_t j = 0; j < s.taps[2]; ++j, tap += channels) {
                        const Vec<T> factor = take(tap);
#pragma GCC unroll 4
                        for (int i = 0; i < P; ++i)
                            acc[i] += factor * take(from + (i * s.stride[2] + j * s.dilation[2]) * step);
                    }
                }
            }
            for (int i = 0; i < P; ++i) put(to + (p + i) * s.y_stride[2] + c, acc[i], lanes);
        });
    }

    // A pixel that sees columns beside the image.
    void depthwise_edge(const Field<T>& x, const Seen<T>* seen, int64_t p, const T* w, const T* bias, const T* zeros,
                        T* to) const {
        to += p * s.y_stride[2];
        each_channels(channels, [&](int64_t c, int64_t lanes, auto) __attribute__((always_inline)) {
            Vec<T> acc = q.residual.data ? load_n(to + c, lanes) : bias ? load_n(bias + c, lanes) : Vec<T>{};
            const T* tap = w + c;
            for (int64_t row = 0; row < s.taps[0] * s.taps[1]; ++row)
                for (int64_t j = 0; j < s.taps[2]; ++j, tap += channels) {
                    const int64_t column = p * s.stride[2] + j * s.dilation[2] - x.before[2];
                    const bool inside = column >= 0 && column < x.in[2];
                    const T* from = inside ? seen[row].data + column * seen[row].step : zeros;
                    acc += load_n(tap, lanes) * load_n(from + c, lanes);
                }
            put(to + c, acc, lanes);
        });
    }

    void put(T* to, Vec<T> v, int64_t lanes) const {
        store_n(to, is_clip(q.activation) ? clipped(v, clip_limit<Vec<T>>(q.activation)) : v, lanes);
    }

    Status run() const {
        const bool depthwise = cg == 1 && kg == 1;
        const int64_t rows = s.out[0] * s.out[1], panels = ceil_div(kg, NR);
        Scratch weights(
            q.packed ? 64
                     : static_cast<size_t>(depthwise ? taps * channels + 1 : panel_elements<T>(q.w, q.groups) + 1) *
                           sizeof(T)),
            bias_scratch(static_cast<size_t>(q.w.shape[0] + 1) * sizeof(T)), copy(copy_bytes());
        Scratch zeros(depthwise ? static_cast<size_t>(channels + 1) * sizeof(T) : 64);
        if (!weights.as<T>() || !bias_scratch.as<T>() || !copy.as<T>() || !zeros.as<T>()) return no_memory();
        const T* w = static_cast<const T*>(q.packed);
        if (!w) {
            conv_last_pack(q.w, q.groups, weights.as<T>());
            w = weights.as<T>();
        }
        T* bias = q.bias.data ? bias_scratch.as<T>() : nullptr;
        for (int64_t k = 0; bias && k < q.w.shape[0]; ++k) bias[k] = q.bias.as<T>()[k * q.bias.stride[0]];
        // About 16 chunks: bands of rows, and of panels where rows are few.
        const int64_t band = ceil_div(rows, 16), bands = ceil_div(rows, band);
        const int64_t wide = bands >= 8 ? panels : ceil_div(panels, ceil_div(8, bands)),
                      across = ceil_div(panels, wide);
        bool enough = true;
        for (int64_t c = 0; depthwise && c < channels; ++c) zeros.as<T>()[c] = 0;
        for (int64_t n = 0; n < q.x.shape[0]; ++n) {
            const Image<T> x = image(n, copy.as<T>());
            T* y = q.y.as<T>() + n * q.y.stride[0];
            if (depthwise) {
                const Field<T> field = field_of(x);
                parallel(bands, [&](int64_t job) {
                    Scratch seen(static_cast<size_t>(s.taps[0] * s.taps[1]) * sizeof(Seen<T>));
                    if (!seen.as<Seen<T>>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                    depthwise_rows(field, job * band, min_of(job * band + band, rows), w, bias, zeros.as<T>(),
                                   seen.as<Seen<T>>(), y);
                });
                continue;
            }
            parallel(q.groups * bands * across, [&](int64_t job) {
                const int64_t r = job / across % bands * band, p = job % across * wide;
                multiply(x, job / across / bands, r, min_of(r + band, rows), p, min_of(p + wide, panels), w, bias, y);
            });
        }
        return enough ? Status::ok : no_memory();
    }
};

// Adds b to every pixel of y, whose channels are neighbours.
template <class T>
void start_from(const ConvLast& q) {
    copy<T>(q.y, q.residual);
    if (!q.bias.data) return;
    const int64_t row = q.axes.out[2], rows = q.axes.out[0] * q.axes.out[1];
    parallel(q.y.shape[0] * rows, [&](int64_t i) {
        T* to = q.y.as<T>() + i / rows * q.y.stride[0] + i % rows / q.axes.out[1] * q.axes.y_stride[0] +
                i % rows % q.axes.out[1] * q.axes.y_stride[1];
        for (int64_t p = 0; p < row; ++p, to += q.axes.y_stride[2])
            for (int64_t k = 0; k < q.y.shape[1]; ++k) to[k] += q.bias.as<T>()[k * q.bias.stride[0]];
    });
}

template <class T>
Status last(ConvLast q) {
    const View given_y = q.y;
    Scratch y_scratch(q.y.stride[1] == 1 ? 64 : static_cast<size_t>(numel(q.y)) * sizeof(T));
    if (!y_scratch.as<T>()) return no_memory();
    if (q.y.stride[1] != 1) {
        q.y.data = y_scratch.as<T>();
        int64_t step = q.y.shape[1];
        for (int d = q.y.ndim - 1; d >= 2; step *= q.y.shape[d--]) q.y.stride[d] = step;
        q.y.stride[1] = 1, q.y.stride[0] = step;
        run_strides(q.y, q.axes.y_stride);
    }
    if (q.residual.data) {
        start_from<T>(q);
        q.bias.data = nullptr;
    }
    const Status status = Last<T>(q).run();
    if (q.y.data != given_y.data) copy<T>(given_y, q.y);
    return status;
}

// w[channel][tap] as [tap][channel].
template <class T>
void pack_depthwise(const View& w, T* to) {
    Scratch scratch(run_bytes<T>(w, 1));
    if (!scratch.as<T>()) return;
    const View rows = as_run<T>(w, 1, scratch, true);
    const int64_t channels = w.shape[0], taps = numel(w) / channels;
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t t = 0; t < taps; ++t) to[t * channels + c] = rows.as<T>()[c * rows.stride[0] + t];
}

template <class T>
void pack(const View& w, int64_t groups, T* to) {
    w.shape[1] == 1 && w.shape[0] == groups ? pack_depthwise(w, to) : pack_panels(w, groups, to);
}

}  // namespace

Status conv_last(const ConvLast& q) { return q.x.dtype == DType::f32 ? last<float>(q) : last<double>(q); }

int64_t conv_last_packed_size(const View& w, int64_t groups) {
    if (w.shape[1] == 1 && w.shape[0] == groups) return numel(w) * item_size(w.dtype);
    return w.dtype == DType::f32 ? 4 * panel_elements<float>(w, groups) : 8 * panel_elements<double>(w, groups);
}

void conv_last_pack(const View& w, int64_t groups, void* packed) {
    w.dtype == DType::f32 ? pack(w, groups, static_cast<float*>(packed))
                          : pack(w, groups, static_cast<double*>(packed));
}

}  // namespace tw::TW_ISA
