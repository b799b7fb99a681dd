// The gradient of convolution in x, or a transposed convolution, by folding:
//     dx[c,q] = act(b[c] + residual[c,q] + sum_t s[c,t,p] with p*stride + t*dilation - padding = q),  s = w^T dy
//
// Method    w^T dy of a few channels and a few rows of dy gives what each tap adds, [channel][tap][pixel]; every tap's
//           rows are then added to the places they meet. Weights pass once, no window is packed, and a band of dx stays
//           in cache. Small images of a batch lie side by side, as one image with an axis more.
// Numerics  sums over k, see gemm/gemm.h, then over t, band by band in the order of dy.
// Threads   bands of a block of channels of the result, each owned by one job.
#include "core/convolution.h"
#include "core/parallel.h"
#include "gemm/micro.h"
#include "gemm/pack.h"
#include "gemm/window.h"
#include "ops/conv_problem.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

// The pixels [begin, end) along axis a whose windows meet [first, last) of x.
void seen_by(const ConvAxes& s, int a, int64_t first, int64_t last, int64_t& begin, int64_t& end) {
    const int64_t least = first + s.before[a] - (s.taps[a] - 1) * s.dilation[a], most = last - 1 + s.before[a];
    begin = least > 0 ? min_of(ceil_div(least, s.stride[a]), s.out[a]) : 0;
    end = most < 0 ? 0 : min_of(most / s.stride[a] + 1, s.out[a]);
}

// The weights of folding: [group][block of channels][tile][k][kMR], whose rows are (channel, tap). A function of w alone.
struct FoldingWeights {
    static constexpr int64_t kRowsOfA = 128;
    int64_t groups, kg, cg, taps;
    int64_t channels, blocks;  // channels of a block

    FoldingWeights(const View& w, int64_t n_groups) : groups(n_groups) {
        kg = w.shape[0] / groups, cg = w.shape[1], taps = 1;
        for (int d = 2; d < w.ndim; ++d) taps *= w.shape[d];
        channels = cg * taps <= kRowsOfA * 3 / 2 ? cg : max_of(1, min_of(cg, kRowsOfA / taps));
        blocks = ceil_div(cg, channels);
    }
    int64_t first(int64_t block) const { return block * channels; }
    int64_t last(int64_t block) const { return min_of(first(block) + channels, cg); }
    int64_t elements_of(int64_t n) const { return ceil_div(n * taps, kMR) * kMR * kg; }
    int64_t at(int64_t group, int64_t block) const {
        const int64_t end = blocks - 1, whole = elements_of(channels);
        return group * (end * whole + elements_of(last(end) - first(end))) + block * whole;
    }
    int64_t elements() const { return at(groups, 0); }

    template <class T>
    void pack_block(const View& w, int64_t group, int64_t block, T* to) const {
        constexpr int64_t kTerms = 8, kLine = 64 / static_cast<int64_t>(sizeof(T));
        const int64_t m = (last(block) - first(block)) * taps, whole = m / kMR, row = w.stride[0];
        const T* from = w.as<T>() + group * kg * row + first(block) * taps;
        // A few terms at a time: places as far apart as tiles, or rows of w, often share their lines' sets in the caches.
        for (int64_t k0 = 0; k0 < kg; k0 += kTerms, from += kTerms * row, to += kTerms * kMR) {
            const int64_t terms = min_of(kTerms, kg - k0), next = min_of(kTerms, kg - k0 - terms);
            for (int64_t k = terms; k < terms + next; ++k)
                for (int64_t t = 0; t < m; t += kLine) __builtin_prefetch(from + k * row + t);
            for (int64_t t = 0; t < whole; ++t)
                for (int64_t k = 0; k < terms; ++k)
                    __builtin_memcpy(to + (t * kg + k) * kMR, from + k * row + t * kMR, kMR * sizeof(T));
            for (int64_t k = 0; k < terms; ++k)
                for (int64_t i = whole * kMR; i < m; ++i)
                    to[(whole * kg + k) * kMR + i - whole * kMR] = from[k * row + i];
        }
    }

    template <class T>
    void pack(const View& w, T* packed) const {
        parallel(groups * blocks,
                 [&](int64_t i) { pack_block(w, i / blocks, i % blocks, packed + at(i / blocks, i % blocks)); });
    }
};

template <class T>
struct Folding {
    static constexpr int NR = Blocking<T>::NR, L = kLanes<T>;
    static constexpr int64_t kPanels = 4;  // of dy side by side, in longer runs of its rows
    static constexpr int64_t kColumns = 256, kBandElements = 65536;
    const GradX& g;
    const ConvAxes& s;
    const FoldingWeights weights;
    const T* tiles = nullptr;
    const int64_t kg, cg, taps;
    int band;  // the axis that is cut into bands
    int64_t bands, step;  // rows of a band
    int64_t columns, phase_width;  // pixels of dy at a time; places of one phase in a row of dx
    bool enough = true;

    explicit Folding(const GradX& grad)
        : g(grad), s(grad.axes), weights(grad.w, grad.groups), kg(weights.kg), cg(weights.cg), taps(weights.taps) {
        band = s.in[0] > 1 ? 0 : 1;
        columns = s.out[2] >= kColumns ? kColumns : max_of(1, kColumns / s.out[2]) * s.out[2];
        phase_width = ceil_div(s.in[2], s.stride[2]);
        const int64_t plane = s.in[0] * s.in[1] * s.stride[2] * phase_width;
        // Neighbouring bands compute the rows of dy between them twice: at most one in eight.
        const int64_t halo = max_of(1, (s.taps[band] - 1) * s.dilation[band] / s.stride[band]);
        const int64_t jobs = g.dx.shape[0] * g.groups * weights.blocks;
        bands = max_of(1, min_of(ceil_div(8, jobs), s.out[band] / (8 * halo)));
        bands = min_of(max_of(bands, ceil_div(weights.channels * plane, kBandElements)), s.in[band]);
        step = ceil_div(s.in[band], bands);
    }

    // A job: a block of channels, [c0, c1) of a group, places [first[a], last[a]) along the outer axes.
    struct Job {
        int64_t image, group, block, c0, c1;
        int64_t first[2], last[2];
        int64_t rows() const { return (last[0] - first[0]) * (last[1] - first[1]); }
    };

    // sums[channel, tap][pixel] of `n` pixels from `dy` on.
    void multiply(const T* a, int64_t m, const T* dy, int64_t n, T* panels, T* sums) const {
        const Matrix<T> pixels{dy, g.dy.stride[1], 1};
        Tile<T> t{};
        t.kc = kg;
        t.a_row = 1, t.a_k = kMR, t.a_tile = kMR * kg;
        t.c_row = round_up(columns);
        t.in_pairs = true;
        for (int64_t n0 = 0; n0 < n; n0 += kPanels * NR) {
            const int64_t whole = min_of(kPanels, (n - n0) / NR), rest = min_of(kPanels * NR, n - n0) - whole * NR;
            T* const last = panels + whole * kg * NR;
            pack_panels(pixels, 0, kg, n0, whole, panels);
            if (rest > 0) pack_panel(pixels, 0, kg, n0 + whole * NR, rest, last);
            for (int64_t k = 1; rest > 0 && rest <= L && k < kg; ++k) store(last + k * L, load(last + k * NR));
            for (int64_t j = 0; j < whole + (rest > 0); ++j) {
                const int here = static_cast<int>(j < whole ? NR : rest);
                t.b = panels + j * kg * NR, t.b_k = here <= L ? L : NR;
                t.a = a, t.c = sums + n0 + j * NR;
                t.tiles = m / kMR;
                if (t.tiles > 0) run_tile(t, kMR, here);
                t.a += t.tiles * t.a_tile, t.c += t.tiles * kMR * t.c_row;
                t.tiles = 1;
                if (m % kMR) run_tile(t, static_cast<int>(m % kMR), here);
            }
        }
    }

    static int64_t round_up(int64_t n) { return ceil_div(n, NR) * NR; }

    // n neighbours of every channel, in whole vectors: zeros are added to what lies beyond.
    static void add_rows(int64_t channels, int64_t n, T* to, int64_t to_step, const T* from, int64_t from_step) {
        const int64_t whole = n / L * L;
        for (int64_t c = 0; c < channels; ++c, to += to_step, from += from_step) {
            for (int64_t i = 0; i < whole; i += L) store(to + i, load(to + i) + load(from + i));
            if (whole < n)
                store(to + whole, load(to + whole) + first_lanes<T>(load(from + whole), Vec<T>{}, n - whole));
        }
    }

    // Adds the pixels [w0, w1) of rows [r0, r1) of all planes of dy, which `sums` holds row after row.
    void fold(const Job& j, const T* sums, int64_t r0, int64_t r1, int64_t w0, int64_t w1, T* dx) const {
        const int64_t pitch = round_up(columns), row = s.stride[2] * phase_width, high = j.last[1] - j.first[1];
        for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t tw = tap % s.taps[2], th = tap / s.taps[2] % s.taps[1], td = tap / s.taps[2] / s.taps[1];
            const int64_t up_d = td * s.dilation[0] - s.before[0], up_h = th * s.dilation[1] - s.before[1];
            int64_t begin, end;
            reach(s, 2, tw, begin, end);
            begin = max_of(begin, w0), end = min_of(end, w1);
            if (begin >= end) continue;
            const int64_t place = begin * s.stride[2] + tw * s.dilation[2] - s.before[2];
            const int64_t at_w = place % s.stride[2] * phase_width + place / s.stride[2];
            int64_t d = r0 / s.out[1], h = r0 % s.out[1];
            for (int64_t r = r0; r < r1; ++r) {
                const int64_t at_d = d * s.stride[0] + up_d, at_h = h * s.stride[1] + up_h;
                if (++h == s.out[1]) h = 0, ++d;
                if (at_d < j.first[0] || at_d >= j.last[0] || at_h < j.first[1] || at_h >= j.last[1]) continue;
                add_rows(j.c1 - j.c0, end - begin, dx + ((at_d - j.first[0]) * high + at_h - j.first[1]) * row + at_w,
                         j.rows() * row, sums + tap * pitch + (r - r0) * (w1 - w0) + begin - w0, taps * pitch);
            }
        }
    }

    // What the sums start from: bias and residual, phases side by side.
    void start(const Job& j, T* band_sums) const {
        int64_t from_stride[kMaxRank] = {};
        if (g.residual.data) run_strides(g.residual, from_stride);
        T* to = band_sums;
        for (int64_t c = j.group * cg + j.c0; c < j.group * cg + j.c1; ++c) {
            const T bias = g.bias.data ? g.bias.as<T>()[c * g.bias.stride[0]] : T{};
            for (int64_t d = j.first[0]; d < j.last[0]; ++d)
                for (int64_t h = j.first[1]; h < j.last[1]; ++h, to += s.stride[2] * phase_width) {
                    for (int64_t i = 0; i < s.stride[2] * phase_width; ++i) to[i] = bias;
                    if (!g.residual.data) continue;
                    const T* const from = g.residual.as<T>() + j.image * g.residual.stride[0] +
                                          c * g.residual.stride[1] + d * from_stride[0] + h * from_stride[1];
                    for (int64_t i = 0; i < s.in[2]; ++i)
                        to[i % s.stride[2] * phase_width + i / s.stride[2]] += from[i * from_stride[2]];
                }
        }
    }

    // The band, phases side by side, to the places of dx.
    void write(const Job& j, const T* band_sums) const {
        const T* from = band_sums;
        for (int64_t c = j.c0; c < j.c1; ++c)
            for (int64_t d = j.first[0]; d < j.last[0]; ++d)
                for (int64_t h = j.first[1]; h < j.last[1]; ++h) {
                    T* row = g.dx.as<T>() + j.image * g.dx.stride[0] + (j.group * cg + c) * g.dx.stride[1] +
                             d * s.x_stride[0] + h * s.x_stride[1];
                    write_phases(from, phase_width, s.stride[2], s.in[2], row, s.x_stride[2]);
                    from += s.stride[2] * phase_width;
                }
    }

    bool run_job(const Job& j) const {
        const int64_t m = (j.c1 - j.c0) * taps, size = (j.c1 - j.c0) * j.rows() * s.stride[2] * phase_width;
        Scratch panels(static_cast<size_t>(kPanels * kg * NR + 1) * sizeof(T)),
            sums(static_cast<size_t>(m * round_up(columns) + L) * sizeof(T)),
            dx(static_cast<size_t>(size + L) * sizeof(T)),
            own(tiles ? 64 : static_cast<size_t>(weights.elements_of(weights.channels) + 1) * sizeof(T));
        if (!panels.as<T>() || !sums.as<T>() || !dx.as<T>() || !own.as<T>()) return false;
        if (!tiles) weights.pack_block(g.w, j.group, j.block, own.as<T>());
        const T* const a = tiles ? tiles + weights.at(j.group, j.block) : own.as<T>();
        start(j, dx.as<T>());
        int64_t d0, d1, h0, h1;
        seen_by(s, 0, j.first[0], j.last[0], d0, d1);
        seen_by(s, 1, j.first[1], j.last[1], h0, h1);
        const int64_t rows = max_of(1, columns / s.out[2]), wide = min_of(columns, s.out[2]);
        const int64_t first = d0 * s.out[1] + h0, last = d1 > d0 && h1 > h0 ? (d1 - 1) * s.out[1] + h1 : first;
        const T* const dy = g.dy.as<T>() + j.image * g.dy.stride[0] + j.group * kg * g.dy.stride[1];
        for (int64_t r = first; r < last; r += rows)
            for (int64_t w = 0; w < s.out[2]; w += wide) {
                const int64_t r_end = min_of(r + rows, last), w_end = min_of(w + wide, s.out[2]);
                multiply(a, m, dy + r * s.out[2] + w, (r_end - r) * (w_end - w), panels.as<T>(), sums.as<T>());
                fold(j, sums.as<T>(), r, r_end, w, w_end, dx.as<T>());
            }
        if (g.activation != Activation::none)
            for (int64_t i = 0; i < size; i += kLanes<T>) {
                const int64_t lanes = min_of(kLanes<T>, size - i);
                store_n(dx.as<T>() + i, activate(load_n(dx.as<T>() + i, lanes), g.activation), lanes);
            }
        write(j, dx.as<T>());
        return true;
    }

    bool run() {
        // Weights that one job alone reads are laid out by that job.
        const bool ahead = !g.packed && g.dx.shape[0] * bands > 1;
        Scratch packed(ahead ? static_cast<size_t>(weights.elements() + 1) * sizeof(T) : 64);
        if (!packed.as<T>()) return false;
        tiles = ahead ? packed.as<T>() : static_cast<const T*>(g.packed);
        if (ahead) weights.pack(g.w, packed.as<T>());
        parallel(g.dx.shape[0] * g.groups * weights.blocks * bands, [&](int64_t i) {
            Job j{};
            const int64_t r = i % bands * step;
            j.first[1 - band] = 0, j.last[1 - band] = s.in[1 - band];
            j.first[band] = r, j.last[band] = min_of(r + step, s.in[band]);
            if (j.last[band] <= r) return;
            j.block = i / bands % weights.blocks;
            j.c0 = weights.first(j.block), j.c1 = weights.last(j.block);
            j.group = i / bands / weights.blocks % g.groups;
            j.image = i / bands / weights.blocks / g.groups;
            if (!run_job(j)) __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
        return enough;
    }
};

constexpr int64_t kSidePixels = 256;  // of images side by side, at most

template <class T>
Status run_folding(GradX r) {
    if (r.dx.shape[0] > 1 && r.dx.ndim < 5 && numel(r.dx) / r.dx.shape[0] / r.dx.shape[1] <= kSidePixels) {
        r.axes = side_by_side(r.axes, r.dx, r.dy);
        r.dx = side_by_side(r.dx), r.dy = side_by_side(r.dy);
        if (r.residual.data) r.residual = side_by_side(r.residual);
    }
    Scratch dy_scratch(run_bytes<T>(r.dy, 2));
    if (!dy_scratch.as<T>()) return no_memory();
    r.dy = as_run<T>(r.dy, 2, dy_scratch, true);
    return Folding<T>(r).run() ? Status::ok : no_memory();
}

}  // namespace

Status fold_to_x(const GradX& r) { return r.dx.dtype == DType::f32 ? run_folding<float>(r) : run_folding<double>(r); }

int64_t fold_to_x_packed_size(const View& w, int64_t groups) {
    return item_size(w.dtype) * FoldingWeights(w, groups).elements();
}

void fold_to_x_pack(const View& w, int64_t groups, void* packed) {
    const FoldingWeights weights(w, groups);
    w.dtype == DType::f32 ? weights.pack(w, static_cast<float*>(packed))
                          : weights.pack(w, static_cast<double*>(packed));
}

}  // namespace tw::TW_ISA
