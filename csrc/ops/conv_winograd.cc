// Convolution by a 3x3 kernel of stride 1 with fewer multiplications: what conv runs with algo="winograd" (results in
// tiles of 4x4) and algo="winograd_2x2" (of 2x2).
//     Y = A' [ sum_c (G w_c G') * (B' x_c B) ] A,   * element by element
//
// Method    Winograd's F(4x4, 3x3) and F(2x2, 3x3) (Lavin and Gray, 2016): 4 and 2.25 times fewer products. Tiles of the
//           image are the lanes of a panel; each of the 36 or 16 places of a tile is one product of weights by channels,
//           over the register tiles of the GEMM. The padded copy is stored phase by phase of the tile, see gemm/padded.h.
// Numerics  transforms and sums in the type of x; against the direct sums the largest error was measured up to 32 times
//           as large by 4x4 and 1.5 times by 2x2, and integers are not summed exactly. Sums over c are cut every KC terms.
// Threads   panels of tiles; sums are never split between threads.
#include "gemm/micro.h"
#include "gemm/padded.h"
#include "gemm/tiled.h"
#include "ops/conv_problem.h"

namespace tw::TW_ISA {
namespace {

// What the 1-D transforms do to vectors, M results a tile.
template <int M>
struct Transform;

template <>
struct Transform<2> {
    static constexpr int kIn = 4;
    template <class V>
    TW_INLINE void image(const V* d, V* to) {
        to[0] = d[0] - d[2], to[1] = d[1] + d[2], to[2] = d[2] - d[1], to[3] = d[1] - d[3];
    }
    template <class V>
    TW_INLINE void result(const V* m, V* to) {
        to[0] = m[0] + m[1] + m[2], to[1] = m[1] - m[2] - m[3];
    }
    template <class T>
    static void weights(const T* g, int64_t step, T* to, int64_t to_step) {
        const T sum = g[0] + g[2 * step];
        to[0] = g[0];
        to[to_step] = (sum + g[step]) / 2, to[2 * to_step] = (sum - g[step]) / 2;
        to[3 * to_step] = g[2 * step];
    }
};

template <>
struct Transform<4> {
    static constexpr int kIn = 6;
    template <class V>
    TW_INLINE void image(const V* d, V* to) {
        const V even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], far = d[4] - d[2], near = 2 * (d[3] - d[1]);
        to[0] = 4 * d[0] - 5 * d[2] + d[4];
        to[1] = even + odd, to[2] = even - odd, to[3] = far + near, to[4] = far - near;
        to[5] = 4 * d[1] - 5 * d[3] + d[5];
    }
    template <class V>
    TW_INLINE void result(const V* m, V* to) {
        const V s = m[1] + m[2], d = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
        to[0] = m[0] + s + s2, to[1] = d + 2 * d2, to[2] = s + 4 * s2, to[3] = d + 8 * d2 + m[5];
    }
    template <class T>
    static void weights(const T* g, int64_t step, T* to, int64_t to_step) {
        const T g0 = g[0], g1 = g[step], g2 = g[2 * step];
        to[0] = g0 / 4;
        to[to_step] = -(g0 + g1 + g2) / 6, to[2 * to_step] = (g1 - g0 - g2) / 6;
        to[3 * to_step] = (g0 + 2 * g1 + 4 * g2) / 24, to[4 * to_step] = (g0 - 2 * g1 + 4 * g2) / 24;
        to[5 * to_step] = g2;
    }
};

// The transformed weights, place by place, each as (K, C) in register tiles.
template <class T, int M>
bool transform_weights(const View& w, T* to) {
    constexpr int kIn = Transform<M>::kIn, kPlaces = kIn * kIn;
    const int64_t k = w.shape[0], c = w.shape[1], each = tiled_elements(k, c);
    Scratch given_scratch(run_bytes<T>(w, 1)), scratch(static_cast<size_t>(kPlaces * k * c) * sizeof(T));
    T* const places = scratch.as<T>();
    if (!given_scratch.as<T>() || !places) return false;
    const View rows = as_run<T>(w, 1, given_scratch, true);
    parallel(k, [&](int64_t i) {
        for (int64_t j = 0; j < c; ++j) {
            const T* g = rows.as<T>() + i * rows.stride[0] + j * 9;
            T half[kIn * 3], whole[kPlaces];
            for (int x = 0; x < 3; ++x) Transform<M>::weights(g + x, 3, half + x, 3);
            for (int y = 0; y < kIn; ++y) Transform<M>::weights(half + y * 3, 1, whole + y * kIn, 1);
            for (int p = 0; p < kPlaces; ++p) places[(p * k + i) * c + j] = whole[p];
        }
    });
    for (int64_t p = 0; p < kPlaces; ++p) pack_tiles(Matrix<T>{places + p * k * c, c, 1}, k, c, to + p * each);
    return true;
}

template <class T, int M>
struct Winograd {
    static constexpr int kIn = Transform<M>::kIn, kPlaces = kIn * kIn, NR = Blocking<T>::NR, L = kLanes<T>;
    static constexpr int64_t kFewPanels = 8, kShare = 16;  // channels or filters of a job where panels are few
    const ConvWinograd& q;
    const ConvAxes& s;
    int64_t channels, filters, down, across;  // tiles of an image
    Padded<T> layout;

    explicit Winograd(const ConvWinograd& conv) : q(conv), s(conv.axes) {
        channels = q.x.shape[1], filters = q.w.shape[0];
        down = ceil_div(s.out[1], M), across = ceil_div(s.out[2], M);
    }

    // The windows of tiles: pixels of stride M that see kIn x kIn.
    Window<T> window() const {
        Window<T> w{};
        w.channel_stride = q.x.stride[1];
        w.axis[0] = {1, 1, 0, 1, 1, nullptr};
        w.axis[1] = {s.in[1], down, s.x_stride[1], M, kIn, nullptr};
        w.axis[2] = {s.in[2], across, s.x_stride[2], M, kIn, nullptr};
        return w;
    }

    // seen[places of one channel][NR] to to[place * step].
    static void transform_image(const T* seen, T* to, int64_t step) {
        for (int v = 0; v < NR; v += L) {
            Vec<T> half[kPlaces];
#pragma GCC unroll 8
            for (int x = 0; x < kIn; ++x) {
                Vec<T> d[kIn], t[kIn];
#pragma GCC unroll 8
                for (int y = 0; y < kIn; ++y) d[y] = load(seen + (y * kIn + x) * NR + v);
                Transform<M>::image(d, t);
#pragma GCC unroll 8
                for (int y = 0; y < kIn; ++y) half[y * kIn + x] = t[y];
            }
            for (int y = 0; y < kIn; ++y) {
                Vec<T> t[kIn];
                Transform<M>::image(half + y * kIn, t);
#pragma GCC unroll 8
                for (int x = 0; x < kIn; ++x) store(to + (y * kIn + x) * step + v, t[x]);
            }
        }
    }

    // sums[place * step] of one filter to rows[M][M][NR]: results by row and phase of the tile.
    static void transform_result(const T* sums, int64_t step, T* rows) {
        for (int v = 0; v < NR; v += L) {
            Vec<T> half[M * kIn];
#pragma GCC unroll 8
            for (int x = 0; x < kIn; ++x) {
                Vec<T> m[kIn], t[M];
#pragma GCC unroll 8
                for (int y = 0; y < kIn; ++y) m[y] = load(sums + (y * kIn + x) * step + v);
                Transform<M>::result(m, t);
#pragma GCC unroll 4
                for (int y = 0; y < M; ++y) half[y * kIn + x] = t[y];
            }
            for (int y = 0; y < M; ++y) {
                Vec<T> t[M];
                Transform<M>::result(half + y * kIn, t);
#pragma GCC unroll 4
                for (int x = 0; x < M; ++x) store(rows + (y * M + x) * NR + v, t[x]);
            }
        }
    }

    // Tiles [n0, n0 + n) of filter k, from rows as transform_result left them, with bias, residual and activation.
    void write(const T* rows, int64_t n0, int64_t n, T bias, const T* residual, T* y) const {
        for (int64_t i = 0; i < n;) {
            const int64_t tile = n0 + i, th = tile / across, tw = tile % across, run = min_of(across - tw, n - i);
            const int64_t width = min_of(run * M, s.out[2] - tw * M);
            for (int64_t r = 0; r < min_of(M, s.out[1] - th * M); ++r) {
                const int64_t at = (th * M + r) * s.out[2] + tw * M;
                T line[NR * M + L];
                interleave(rows + r * M * NR + i, run, line);
                for (int64_t j = 0; j < width; j += L) {
                    const int64_t lanes = min_of(L, width - j);
                    Vec<T> v = load(line + j) + splat<T>(bias);
                    if (residual) v += load_n(residual + at + j, lanes);
                    if (is_clip(q.activation)) v = clipped(v, clip_limit<Vec<T>>(q.activation));
                    store_n(y + at + j, v, lanes);
                }
                if (q.activation > Activation::relu6)
                    activate_tile(y + at, s.out[2], 1, static_cast<int>(width), q.activation);
            }
            i += run;
        }
    }

    // M phases, NR apart, of `run` tiles to one line.
    static void interleave(const T* from, int64_t run, T* line) {
        for (int64_t i = 0; i < run; i += L, from += L, line += M * L) {
            if (i + L > run) {
                for (int64_t j = 0; j < run - i; ++j)
                    for (int x = 0; x < M; ++x) line[j * M + x] = from[x * NR + j];
                return;
            }
            if constexpr (M == 2) {
                const Vec<T> a = load(from), b = load(from + NR);
                store(line, zip_low(a, b)), store(line + L, zip_high(a, b));
            } else {
                const Vec<T> a = load(from), b = load(from + NR), c = load(from + 2 * NR), d = load(from + 3 * NR);
                const Vec<T> ac = zip_low(a, c), ac2 = zip_high(a, c), bd = zip_low(b, d), bd2 = zip_high(b, d);
                store(line, zip_low(ac, bd)), store(line + L, zip_high(ac, bd));
                store(line + 2 * L, zip_low(ac2, bd2)), store(line + 3 * L, zip_high(ac2, bd2));
            }
        }
    }

    // What one panel of tiles needs: seen[place][NR], v[place][channel][NR], sums[place][filter][NR].
    struct Panel {
        T *seen, *v, *sums;
    };
    int64_t panel_elements() const { return kPlaces * (channels + filters + 1) * NR; }
    Panel panel_at(T* scratch, int64_t i) const {
        T* const seen = scratch + i * panel_elements();
        return {seen, seen + kPlaces * NR, seen + kPlaces * (channels + 1) * NR};
    }

    void see(const Padded<T>& x, int64_t panel, int64_t c0, int64_t c1, T* seen, T* v) const {
        const int64_t n0 = panel * NR, n = min_of(NR, down * across - n0);
        for (int64_t c = c0; c < c1; ++c) {
            pack_padded<T>(&x, c * kPlaces, kPlaces, n0, n, seen);
            transform_image(seen, v + c * NR, channels * NR);
        }
    }

    void multiply(const Panel& p, int64_t place, const T* weights) const {
        multiply_tiles(weights + place * tiled_elements(filters, channels), filters, channels,
                       p.v + place * channels * NR, p.sums + place * filters * NR);
    }

    void give(const Panel& p, int64_t panel, int64_t k0, int64_t k1, const T* bias, const T* residual, T* y) const {
        const int64_t n0 = panel * NR, n = min_of(NR, down * across - n0);
        T rows[M * M * NR];
        for (int64_t k = k0; k < k1; ++k) {
            transform_result(p.sums + k * NR, filters * NR, rows);
            write(rows, n0, n, bias ? bias[k] : T(0), residual ? residual + k * q.residual.stride[1] : nullptr,
                  y + k * q.y.stride[1]);
        }
    }

    // Enough panels: each is one thread's. Few: all threads take part in each step.
    bool run_image(const Padded<T>& x, const T* weights, const T* bias, const T* residual, T* y) const {
        const int64_t panels = ceil_div(down * across, NR), bytes = panel_elements() * static_cast<int64_t>(sizeof(T));
        if (panels >= kFewPanels) {
            bool enough = true;
            parallel(panels, [&](int64_t i) {
                Scratch scratch(static_cast<size_t>(bytes));
                if (!scratch.template as<T>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                const Panel p = panel_at(scratch.template as<T>(), 0);
                see(x, i, 0, channels, p.seen, p.v);
                for (int place = 0; place < kPlaces; ++place) multiply(p, place, weights);
                give(p, i, 0, filters, bias, residual, y);
            });
            return enough;
        }
        Scratch scratch(static_cast<size_t>(panels * bytes));
        T* const all = scratch.template as<T>();
        if (!all) return false;
        const int64_t c_jobs = ceil_div(channels, kShare), k_jobs = ceil_div(filters, kShare);
        parallel(panels * c_jobs, [&](int64_t job) {
            alignas(64) T seen[kPlaces * NR];
            const int64_t c0 = job % c_jobs * kShare;
            see(x, job / c_jobs, c0, min_of(c0 + kShare, channels), seen, panel_at(all, job / c_jobs).v);
        });
        parallel(kPlaces, [&](int64_t place) {
            for (int64_t i = 0; i < panels; ++i) multiply(panel_at(all, i), place, weights);
        });
        parallel(panels * k_jobs, [&](int64_t job) {
            const int64_t k0 = job % k_jobs * kShare;
            give(panel_at(all, job / k_jobs), job / k_jobs, k0, min_of(k0 + kShare, filters), bias, residual, y);
        });
        return true;
    }

    Status run() const {
        const int64_t taps = channels * kPlaces;
        Scratch made(q.packed ? 64 : static_cast<size_t>(kPlaces * tiled_elements(filters, channels)) * sizeof(T)),
            table(static_cast<size_t>(taps + 1) * sizeof(int64_t)),
            bias_scratch(static_cast<size_t>(filters + 1) * sizeof(T));
        if (!made.as<T>() || !table.as<int64_t>() || !bias_scratch.as<T>()) return no_memory();
        const T* weights = static_cast<const T*>(q.packed);
        if (!weights) {
            if (!transform_weights<T, M>(q.w, made.as<T>())) return no_memory();
            weights = made.as<T>();
        }
        T* const bias = q.bias.data ? bias_scratch.as<T>() : nullptr;
        for (int64_t k = 0; bias && k < filters; ++k) bias[k] = q.bias.as<T>()[k * q.bias.stride[0]];
        static constexpr int64_t kOnes[] = {1, 1, 1};
        Window<T> from = window();
        Padded<T> x = padded_for(from, kOnes);
        x.offset = table.as<int64_t>();
        padded_offsets(x, from, channels, kOnes);
        Scratch copy_scratch(static_cast<size_t>(x.elements(channels)) * sizeof(T));
        x.data = copy_scratch.as<T>();
        if (!x.data) return no_memory();
        bool enough = true;
        note_kernel(M == 4 ? "winograd 4x4" : "winograd 2x2");
        for (int64_t image = 0; image < q.x.shape[0]; ++image) {
            from.image = q.x.as<T>() + image * q.x.stride[0];
            parallel(channels, [&](int64_t c) { fill_padded(x, from, c, 0, x.size[0] * x.size[1], s.before); });
            const T* residual = q.residual.data ? q.residual.as<T>() + image * q.residual.stride[0] : nullptr;
            T* const y = q.y.as<T>() + image * q.y.stride[0];
            enough = enough && run_image(x, weights, bias, residual, y);
        }
        return enough ? Status::ok : no_memory();
    }
};

template <class T>
Status winograd(const ConvWinograd& q) {
    return q.tile == 4 ? Winograd<T, 4>(q).run() : Winograd<T, 2>(q).run();
}

}  // namespace

Status conv_winograd(const ConvWinograd& q) {
    return q.x.dtype == DType::f32 ? winograd<float>(q) : winograd<double>(q);
}

int64_t conv_winograd_packed_size(const View& w, int tile) {
    return (tile + 2) * (tile + 2) * tiled_elements(w.shape[0], w.shape[1]) * item_size(w.dtype);
}

void conv_winograd_pack(const View& w, int tile, void* packed) {
    if (w.dtype == DType::f32)
        (tile == 4 ? transform_weights<float, 4> : transform_weights<float, 2>)(w, static_cast<float*>(packed));
    else
        (tile == 4 ? transform_weights<double, 4> : transform_weights<double, 2>)(w, static_cast<double*>(packed));
}

}  // namespace tw::TW_ISA
