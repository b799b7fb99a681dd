// Convolution by a 3x3 kernel of stride 1 with fewer multiplications: what conv runs with algo="winograd" (results in
// tiles of 4x4) and algo="winograd_2x2" (of 2x2).
//     Y = A' [ sum_c (G w_c G') * (B' x_c B) ] A,   * element by element
//
// Method    Winograd's F(4x4, 3x3) and F(2x2, 3x3) (Lavin and Gray, 2016): 4 and 2.25 times fewer products. Tiles of the
//           image are the lanes of a panel; each of the 36 or 16 places of a tile is one product of weights by channels,
//           over the register tiles of the GEMM. The image is copied once for each column of a tile, tile beside tile.
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

// The phases of M L neighbours: to[x] holds every M-th from x on.
template <class T, int M>
TW_INLINE void split(const T* from, Vec<T>* to) {
    constexpr int64_t L = kLanes<T>;
    typedef Indices<Vec<T>> All;
    const Vec<T> a = load(from), b = load(from + L), even = every_other<0>(a, b, All{}),
                 odd = every_other<1>(a, b, All{});
    if constexpr (M == 2) {
        to[0] = even, to[1] = odd;
    } else {
        const Vec<T> c = load(from + 2 * L), d = load(from + 3 * L);
        const Vec<T> even2 = every_other<0>(c, d, All{}), odd2 = every_other<1>(c, d, All{});
        to[0] = every_other<0>(even, even2, All{}), to[2] = every_other<1>(even, even2, All{});
        to[1] = every_other<0>(odd, odd2, All{}), to[3] = every_other<1>(odd, odd2, All{});
    }
}

template <class T, int M>
struct Winograd {
    static constexpr int kIn = Transform<M>::kIn, kPlaces = kIn * kIn, NR = Blocking<T>::NR, L = kLanes<T>;
    static constexpr int64_t kFewPanels = 8, kShare = 16;  // channels or filters of a job where panels are few
    const ConvWinograd& q;
    const ConvAxes& s;
    int64_t channels, filters, down, across;  // tiles of an image
    int64_t rows, phase, column, plane;  // of the copy: rows of a phase; elements of it, of a column, of a channel
    int64_t v_step, sums_step;  // from place to place: whole pages apart, they would share few lines of L1

    explicit Winograd(const ConvWinograd& conv) : q(conv), s(conv.axes) {
        channels = q.x.shape[1], filters = q.w.shape[0];
        down = ceil_div(s.out[1], M), across = ceil_div(s.out[2], M);
        rows = down + (kIn - 1) / M, phase = rows * across + L, column = M * phase, plane = kIn * column;
        v_step = (channels + 1) * NR, sums_step = (filters + 1) * NR;
    }

    // The copy of the image: [channel][x][y % M][y / M + row of tiles][tile], so that place (y, x) of neighbouring tiles
    // is one run, also across the ends of their rows.
    int64_t copy_elements() const { return channels * plane + NR; }
    int64_t place_at(int y, int x) const { return x * column + y % M * phase + y / M * across; }

    // A channel, by way of M zero-padded lines: a vector read back at once, across what two others stored, would wait.
    int64_t line() const { return ceil_div(across, L) * L * M + M; }
    void fill(const T* x, T* lines, T* to) const {
        const int64_t n = min_of(s.in[2], line() - s.before[2]);
        for (int64_t j = 0; j < M * line(); ++j) lines[j] = 0;
        for (int64_t r = 0; r < rows; ++r, to += across) {
            const int64_t h = r * M - s.before[1];
            const auto inside = [&](int64_t p) { return h + p >= 0 && h + p < s.in[1]; };
            for (int64_t p = 0; p < M; ++p)
                if (inside(p) && n > 0)
                    take_row(lines + p * line() + s.before[2], x + (h + p) * s.x_stride[1], s.x_stride[2], n);
            for (int64_t p = 0; p < M; ++p) fill_row(inside(p) ? lines + p * line() : nullptr, to + p * phase);
        }
    }

    // One row of tiles, zeros if there is none of the image. Vectors may reach into rows that are filled later.
    void fill_row(const T* from, T* to) const {
        for (int64_t i = 0; i < across; i += L, to += L) {
            Vec<T> here[M] = {}, right[M] = {};
            if (from) split<T, M>(from + i * M, here), split<T, M>(from + i * M + M, right);
#pragma GCC unroll 8
            for (int x = 0; x < kIn; ++x) store(to + x * column, x < M ? here[x % M] : right[x % M]);
        }
    }

    // `wide` tiles of one channel to to[place * v_step].
    void transform_image(const T* seen, T* to, int64_t wide) const {
        for (int64_t v = 0; v < wide; v += L) {
            Vec<T> half[kPlaces];
#pragma GCC unroll 8
            for (int x = 0; x < kIn; ++x) {
                Vec<T> d[kIn], t[kIn];
#pragma GCC unroll 8
                for (int y = 0; y < kIn; ++y) {
                    const T* const at = seen + place_at(y, x) + v;
                    __builtin_prefetch(at + plane);  // of the next channel: no stream that the hardware sees
                    d[y] = load(at);
                }
                Transform<M>::image(d, t);
#pragma GCC unroll 8
                for (int y = 0; y < kIn; ++y) half[y * kIn + x] = t[y];
            }
            for (int y = 0; y < kIn; ++y) {
                Vec<T> t[kIn];
                Transform<M>::image(half + y * kIn, t);
#pragma GCC unroll 8
                for (int x = 0; x < kIn; ++x) store(to + (y * kIn + x) * v_step + v, t[x]);
            }
        }
    }

    // sums[place * sums_step] of one filter to rows[M][M][NR]: results by row and phase of the tile.
    void transform_result(const T* sums, int64_t wide, T* to) const {
        for (int64_t v = 0; v < wide; v += L) {
            Vec<T> half[M * kIn];
#pragma GCC unroll 8
            for (int x = 0; x < kIn; ++x) {
                Vec<T> m[kIn], t[M];
#pragma GCC unroll 8
                for (int y = 0; y < kIn; ++y) m[y] = load(sums + (y * kIn + x) * sums_step + v);
                Transform<M>::result(m, t);
#pragma GCC unroll 4
                for (int y = 0; y < M; ++y) half[y * kIn + x] = t[y];
            }
            for (int y = 0; y < M; ++y) {
                Vec<T> t[M];
                Transform<M>::result(half + y * kIn, t);
#pragma GCC unroll 4
                for (int x = 0; x < M; ++x) store(to + (y * M + x) * NR + v, t[x]);
            }
        }
    }

    // Tiles [n0, n0 + n) of a filter, from rows as transform_result left them, with bias, residual and activation.
    void write(const T* made, int64_t n0, int64_t n, T bias, const T* residual, T* y) const {
        for (int64_t i = 0; i < n;) {
            const int64_t tile = n0 + i, th = tile / across, tw = tile % across, run = min_of(across - tw, n - i);
            const int64_t width = min_of(run * M, s.out[2] - tw * M);
            for (int64_t r = 0; r < min_of(M, s.out[1] - th * M); ++r) {
                const int64_t at = (th * M + r) * s.out[2] + tw * M;
                T line[NR * M];
                interleave(made + r * M * NR + i, run, line);
                write_row(line, width, bias, residual ? residual + at : nullptr, y + at);
            }
            i += run;
        }
    }

    // The last vector may repeat some elements, and is read before they are written: y may be the residual.
    void write_row(const T* line, int64_t width, T bias, const T* residual, T* y) const {
        const auto value = [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
            Vec<T> v = load_n(line + j, lanes) + splat<T>(bias);
            if (residual) v += load_n(residual + j, lanes);
            return is_clip(q.activation) ? clipped(v, clip_limit<Vec<T>>(q.activation)) : v;
        };
        if (width < L) {
            store_n(y, value(0, width), width);
        } else {
            const Vec<T> last = value(width - L, L);
            for (int64_t j = 0; j < width - L; j += L) store(y + j, value(j, L));
            store(y + width - L, last);
        }
        if (q.activation > Activation::relu6) activate_tile(y, s.out[2], 1, static_cast<int>(width), q.activation);
    }

    // M phases, NR apart, of `run` tiles to one line, whose last vectors may hold anything.
    static void interleave(const T* from, int64_t run, T* line) {
        for (int64_t i = 0; i < run; i += L, from += L, line += M * L) {
            const Vec<T> a = load(from), b = load(from + NR);
            if constexpr (M == 2) {
                store(line, zip_low(a, b)), store(line + L, zip_high(a, b));
            } else {
                const Vec<T> c = load(from + 2 * NR), d = load(from + 3 * NR);
                const Vec<T> ac = zip_low(a, c), ac2 = zip_high(a, c), bd = zip_low(b, d), bd2 = zip_high(b, d);
                store(line, zip_low(ac, bd)), store(line + L, zip_high(ac, bd));
                store(line + 2 * L, zip_low(ac2, bd2)), store(line + 3 * L, zip_high(ac2, bd2));
            }
        }
    }

    // A panel of tiles, one vector or NR wide: v[place][channel][wide] and sums[place][filter][wide].
    struct Panel {
        int64_t n0, n, wide;
        T *v, *sums;
    };
    int64_t panel_elements() const { return kPlaces * (v_step + sums_step); }
    Panel panel_at(T* scratch, int64_t i) const {
        const int64_t n0 = i * NR, n = min_of(NR, down * across - n0);
        return {n0, n, n <= L ? L : NR, scratch, scratch + kPlaces * v_step};
    }

    void see(const T* copy, const Panel& p, int64_t c0, int64_t c1) const {
        for (int64_t c = c0; c < c1; ++c) transform_image(copy + c * plane + p.n0, p.v + c * p.wide, p.wide);
    }

    // `next`: the place, kPlaces for none, that this thread, probably, multiplies by next: its weights are fetched.
    void multiply(const Panel& p, int64_t place, int64_t next, const T* weights) const {
        const int64_t each = tiled_elements(filters, channels);
        multiply_tiles(weights + place * each, filters, p.wide, channels, p.v + place * v_step,
                       p.sums + place * sums_step, next < kPlaces ? weights + next * each : nullptr);
    }

    void give(const Panel& p, int64_t k0, int64_t k1, const T* bias, const T* residual, T* y) const {
        T made[M * M * NR + L] = {};
        for (int64_t k = k0; k < k1; ++k) {
            transform_result(p.sums + k * p.wide, p.wide, made);
            write(made, p.n0, p.n, bias ? bias[k] : T(0), residual ? residual + k * q.residual.stride[1] : nullptr,
                  y + k * q.y.stride[1]);
        }
    }

    // Enough panels: each is one thread's. Few: all threads take part in each step.
    bool run_image(const T* copy, const T* weights, const T* bias, const T* residual, T* y) const {
        const int64_t panels = ceil_div(down * across, NR), bytes = panel_elements() * static_cast<int64_t>(sizeof(T));
        if (panels >= kFewPanels) {
            bool enough = true;
            parallel(panels, [&](int64_t i) {
                Scratch scratch(static_cast<size_t>(bytes));
                if (!scratch.template as<T>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                const Panel p = panel_at(scratch.template as<T>(), i);
                see(copy, p, 0, channels);
                for (int place = 0; place < kPlaces; ++place) multiply(p, place, kPlaces, weights);
                give(p, 0, filters, bias, residual, y);
            });
            return enough;
        }
        Scratch scratch(static_cast<size_t>(panels * bytes));
        T* const all = scratch.template as<T>();
        if (!all) return false;
        const auto panel = [&](int64_t i) { return panel_at(all + i * panel_elements(), i); };
        const int64_t c_jobs = ceil_div(channels, kShare), k_jobs = ceil_div(filters, kShare);
        parallel(panels * c_jobs, [&](int64_t job) {
            const int64_t c0 = job % c_jobs * kShare;
            see(copy, panel(job / c_jobs), c0, min_of(c0 + kShare, channels));
        });
        parallel(kPlaces, [&](int64_t place) {
            for (int64_t i = 0; i < panels; ++i)
                multiply(panel(i), place, i + 1 < panels ? kPlaces : place + num_threads(), weights);
        });
        parallel(panels * k_jobs, [&](int64_t job) {
            const int64_t k0 = job % k_jobs * kShare;
            give(panel(job / k_jobs), k0, min_of(k0 + kShare, filters), bias, residual, y);
        });
        return true;
    }

    Status run() const {
        Scratch made(q.packed ? 64 : static_cast<size_t>(kPlaces * tiled_elements(filters, channels)) * sizeof(T)),
            copy_scratch(static_cast<size_t>(copy_elements()) * sizeof(T)),
            bias_scratch(static_cast<size_t>(filters + 1) * sizeof(T));
        T* const copy = copy_scratch.as<T>();
        if (!made.as<T>() || !copy || !bias_scratch.as<T>()) return no_memory();
        const T* weights = static_cast<const T*>(q.packed);
        if (!weights) {
            if (!transform_weights<T, M>(q.w, made.as<T>())) return no_memory();
            weights = made.as<T>();
        }
        T* const bias = q.bias.data ? bias_scratch.as<T>() : nullptr;
        for (int64_t k = 0; bias && k < filters; ++k) bias[k] = q.bias.as<T>()[k * q.bias.stride[0]];
        bool enough = true;
        note_kernel(M == 4 ? "winograd 4x4" : "winograd 2x2");
        for (int64_t image = 0; image < q.x.shape[0]; ++image) {
            const T* const x = q.x.as<T>() + image * q.x.stride[0];
            parallel(channels, [&](int64_t c) {
                Scratch lines(static_cast<size_t>(M * line()) * sizeof(T));
                if (!lines.template as<T>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                fill(x + c * q.x.stride[1], lines.template as<T>(), copy + c * plane);
            });
            const T* residual = q.residual.data ? q.residual.as<T>() + image * q.residual.stride[0] : nullptr;
            T* const y = q.y.as<T>() + image * q.y.stride[0];
            enough = enough && run_image(copy, weights, bias, residual, y);
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
