// The gradient of convolution in x:
//     dx[n,c,q] = c[n,c,q] + sum of w[k,c,t] dy[n,k,p] over all k, t, p with p*stride + t*dilation - padding = q
//
// Method    by phases: one implicit GEMM per phase of the stride, over windows of dy; nothing is added to twice. By
//           folding: w^T dy, then each tap's rows are added where they belong, inside a band of dx that one job owns.
// Numerics  phases: one running sum over (k, t), see gemm/gemm.h; folding: sums over k, then over t in order. c comes last.
// Threads   tiles or bands of the result; sums are never split between threads.
#include "core/convolution.h"
#include "gemm/micro.h"
#include "gemm/pack.h"
#include "gemm/tiled.h"
#include "gemm/window.h"
#include "ops/conv_problem.h"

namespace tw::TW_ISA {
namespace {

enum { kSize, kStride, kPadding, kDilation, kGroups, kLayout };

Status infer(Call& c, Inferred& r) {
    TW_TRY(want_conv_float(c.in[0], "dy"));
    TW_TRY(want_ndim(c.in[0], "dy", 3, 5));
    const View dy = in_order(c.in[0], c.attr[kLayout]), &w = c.in[1];
    TW_TRY(want_dtype_of(w, "w", dy, "dy"));
    TW_TRY(want_ndim(w, "w", dy.ndim, dy.ndim));
    Attr& shape = c.attr[kSize];
    const Attr& groups = c.attr[kGroups];
    TW_TRY(resolve_integers(shape, "shape", dy.ndim - 2, 0));
    View x = result(dy.dtype, dy.ndim, dy.shape);
    if (groups.i < 1 || groups.i >= kMaxSize)
        return fail(Status::attr, "groups", "groups=%lld; want at least 1", static_cast<long long>(groups.i));
    if (__builtin_mul_overflow(w.shape[1], groups.i, &x.shape[1]))
        return fail(Status::attr, "groups", "groups=%lld is too large; want a divisor of K=%lld",
                    static_cast<long long>(groups.i), static_cast<long long>(w.shape[0]));
    for (int d = 2; d < x.ndim; ++d) x.shape[d] = shape.list[d - 2];
    int64_t out[kMaxDims];
    TW_TRY(check_conv(x, w, c.attr[kStride], c.attr[kPadding], c.attr[kDilation], groups, out, "shape"));
    TW_TRY(check_conv_dy(dy, x, w, out));
    x = in_layout(x, c.attr[kLayout]);
    TW_TRY(check_c(c.in[2], x, "dy"));
    r.n_out = 1;
    r.out[0] = x;
    r.flops = conv_flops(dy, w);
    return Status::ok;
}

// ---- by phases -------------------------------------------------------------------------------------------------------------------

constexpr int kPhaseTaps = 64;

// The taps along one axis that reach the positions q = phase, phase + stride, ... and the pixels of dy they come from.
struct Phase {
    int64_t begin, count;  // first q and how many
    int64_t taps;
    int64_t tap[kPhaseTaps], offset[kPhaseTaps];
};

void phase_of(const ConvAxes& s, int a, int64_t phase, Phase& p) {
    p.begin = phase;
    p.count = phase < s.in[a] ? (s.in[a] - phase + s.stride[a] - 1) / s.stride[a] : 0;
    p.taps = 0;
    for (int64_t t = 0; t < s.taps[a]; ++t) {
        const int64_t distance = phase + s.before[a] - t * s.dilation[a];
        if (distance % s.stride[a]) continue;
        p.tap[p.taps] = t;
        p.offset[p.taps++] = distance / s.stride[a];
    }
}

// w[k, c, taps of the phase] of one group as rows of c: [cg][kg * taps].
template <class T>
void gather_weights(const View& w, int64_t k0, int64_t kg, int64_t cg, const ConvAxes& s, const Phase* p,
                    int32_t* table, T* to) {
    const int64_t all = taps_of(s);
    int64_t taps = 0;
    for (int64_t i = 0; i < p[0].taps; ++i)
        for (int64_t j = 0; j < p[1].taps; ++j)
            for (int64_t l = 0; l < p[2].taps; ++l)
                table[taps++] = static_cast<int32_t>((p[0].tap[i] * s.taps[1] + p[1].tap[j]) * s.taps[2] + p[2].tap[l]);
    constexpr int64_t kRows = 16;  // channels at a time: w is read in runs of kRows * all
    parallel(ceil_div(cg, kRows), [&](int64_t chunk) {
        for (int64_t k = 0; k < kg; ++k)
            for (int64_t c = chunk * kRows; c < min_of(chunk * kRows + kRows, cg); ++c) {
                const T* from = w.as<T>() + (k0 + k) * w.stride[0] + c * all;
                T* row = to + (c * kg + k) * taps;
                for (int64_t t = 0; t < taps; ++t) row[t] = from[table[t]];
            }
    });
}

// Calls body(row of one phase in a block [cg][count], the same in an array of x's shape, how far apart its places are).
template <class T, class Body>
void each_phase_row(T* block, T* x, const int64_t* x_stride, const ConvAxes& s, const Phase* p, int64_t channels,
                    int64_t channel_stride, const Body& body) {
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < p[0].count; ++i)
            for (int64_t j = 0; j < p[1].count; ++j, block += p[2].count)
                body(block,
                     x + c * channel_stride + (p[0].begin + i * s.stride[0]) * x_stride[0] +
                         (p[1].begin + j * s.stride[1]) * x_stride[1] + p[2].begin * x_stride[2],
                     s.stride[2] * x_stride[2]);
}

// The weights of a phase as gemm/tiled.h reads them, group after group.
template <class T>
bool pack_phase(const View& w, int64_t groups, const ConvAxes& s, const Phase* p, T* tiles) {
    const int64_t kg = w.shape[0] / groups, cg = w.shape[1], taps = p[0].taps * p[1].taps * p[2].taps;
    Scratch rows_scratch(static_cast<size_t>(cg * kg * taps + 1) * sizeof(T)),
        table(static_cast<size_t>(taps + 1) * sizeof(int32_t));
    T* const rows = rows_scratch.as<T>();
    if (!rows || !table.as<int32_t>()) return false;
    for (int64_t group = 0; group < groups; ++group) {
        gather_weights(w, group * kg, kg, cg, s, p, table.as<int32_t>(), rows);
        pack_tiles(Matrix<T>{rows, kg * taps, 1}, cg, kg * taps, tiles + group * tiled_elements(cg, kg * taps));
    }
    return true;
}

template <class T>
bool run_phase(const GradX& r, const Phase* p) {
    const ConvAxes& s = r.axes;
    const View& dx = r.dx;
    const int64_t groups = r.groups, kg = r.w.shape[0] / groups, cg = r.w.shape[1];
    const int64_t taps = p[0].taps * p[1].taps * p[2].taps, count = p[0].count * p[1].count * p[2].count;
    const bool whole = s.stride[0] * s.stride[1] * s.stride[2] == 1 && is_run(dx, 2);
    const bool prepared = r.packed && taps == taps_of(s);  // one phase has all taps, the others, if any, have none
    const int64_t each = tiled_elements(cg, kg * taps);
    Scratch bias_scratch(static_cast<size_t>(groups * cg + 1) * sizeof(T)),
        tile_scratch(prepared ? 64 : static_cast<size_t>(groups * each + 1) * sizeof(T)),
        start_scratch(whole && r.residual.data ? run_bytes<T>(r.residual, 2) : 64);
    T* const bias = bias_scratch.as<T>();
    const T* const tiles = prepared ? static_cast<const T*>(r.packed) : tile_scratch.as<T>();
    if (!tiles || !bias || !start_scratch.as<T>()) return false;
    if (!prepared && !pack_phase(r.w, groups, s, p, tile_scratch.as<T>())) return false;
    for (int64_t c = 0; r.bias.data && c < groups * cg; ++c) bias[c] = r.bias.as<T>()[c * r.bias.stride[0]];
    View start = r.residual;
    if (whole && start.data) start = as_run<T>(start, 2, start_scratch, true);
    int64_t start_stride[kMaxRank] = {};
    if (start.data) run_strides(start, start_stride);
    return for_images(dx.shape[0], groups,
                      2.0 * static_cast<double>(dx.shape[0] * groups * cg * kg * taps) * static_cast<double>(count),
                      [&](int64_t image, int64_t group) {
        Scratch block(whole ? 64 : static_cast<size_t>(cg * count) * sizeof(T));
        if (!block.as<T>()) return false;
        T* const to = dx.as<T>() + image * dx.stride[0] + group * cg * dx.stride[1];
        T* const added = start.data ? start.as<T>() + image * start.stride[0] + group * cg * start.stride[1] : nullptr;
        Window<T> window{};
        window.image = r.dy.as<T>() + image * r.dy.stride[0] + group * kg * r.dy.stride[1];
        window.channel_stride = r.dy.stride[1];
        for (int a = 0; a < kMaxRank; ++a)
            window.axis[a] = {s.out[a], p[a].count, s.y_stride[a], 1, p[a].taps, p[a].offset};
        Gemm<T> g{};
        g.m = cg, g.n = count, g.k = kg * taps;
        g.pack_b = pack_window<T>;
        g.context = &window;
        g.bias_row = r.bias.data ? bias + group * cg : nullptr;
        g.activation = r.activation;
        g.c = whole ? to : block.as<T>();
        g.c_row = whole ? dx.stride[1] : count;
        g.c_col = 1;
        if (added && whole) g.addend = {added, start.stride[1], 1};
        if (added && !whole) {
            g.addend = {block.as<T>(), count, 1};
            each_phase_row(block.as<T>(), added, start_stride, s, p, cg, start.stride[1],
                           [&](T* row, const T* from, int64_t step) {
                for (int64_t l = 0; l < p[2].count; ++l) row[l] = from[l * step];
            });
        }
        if (!gemm_tiled(g, tiles + group * each)) return false;
        if (!whole)
            each_phase_row(block.as<T>(), to, s.x_stride, s, p, cg, dx.stride[1],
                           [&](const T* row, T* into, int64_t step) {
                for (int64_t l = 0; l < p[2].count; ++l) into[l * step] = row[l];
            });
        return true;
    }) == Status::ok;
}

template <class T>
Status by_phases(const GradX& r) {
    const ConvAxes& s = r.axes;
    for (int64_t i = 0; i < min_of(s.stride[0], s.in[0]); ++i)
        for (int64_t j = 0; j < min_of(s.stride[1], s.in[1]); ++j)
            for (int64_t l = 0; l < min_of(s.stride[2], s.in[2]); ++l) {
                Phase p[kMaxRank];
                phase_of(s, 0, i, p[0]), phase_of(s, 1, j, p[1]), phase_of(s, 2, l, p[2]);
                if (!run_phase<T>(r, p)) return no_memory();
            }
    return Status::ok;
}

// ---- by folding ------------------------------------------------------------------------------------------------------------------
//
// w^T dy of a few channels and a few rows of dy gives what each tap adds, [channel][tap][pixel]; every tap's rows are
// then added to the places they meet. No weight is moved and no window is packed; a band of dx stays in cache.

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
    void pack(const View& w, T* packed) const {
        parallel(groups * blocks, [&](int64_t i) {
            const int64_t group = i / blocks, block = i % blocks;
            const int64_t m = (last(block) - first(block)) * taps, whole = m / kMR;
            T* const to = packed + at(group, block);
            for (int64_t k = 0; k < kg; ++k) {
                const T* from = w.as<T>() + (group * kg + k) * w.stride[0] + first(block) * taps;
                T* tile = to + k * kMR;
                for (int64_t t = 0; t < whole; ++t, from += kMR, tile += kMR * kg)
                    __builtin_memcpy(tile, from, kMR * sizeof(T));
                for (int64_t t = 0; t < m - whole * kMR; ++t) tile[t] = from[t];
            }
        });
    }
};

template <class T>
struct Folding {
    static constexpr int NR = Blocking<T>::NR;
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
    void multiply(const T* a, int64_t m, const T* dy, int64_t n, T* panel, T* sums) const {
        Tile<T> t{};
        t.kc = kg;
        t.a_row = 1, t.a_k = kMR, t.a_tile = kMR * kg;
        t.b = panel, t.b_k = NR;
        t.c_row = round_up(columns);
        for (int64_t n0 = 0; n0 < n; n0 += NR) {
            const int here = static_cast<int>(min_of(NR, n - n0));
            pack_panel(Matrix<T>{dy, g.dy.stride[1], 1}, 0, kg, n0, here, panel);
            t.a = a, t.c = sums + n0;
            t.tiles = m / kMR;
            if (t.tiles > 0) run_tile(t, kMR, here);
            t.a += t.tiles * t.a_tile, t.c += t.tiles * kMR * t.c_row;
            t.tiles = 1;
            if (m % kMR) run_tile(t, static_cast<int>(m % kMR), here);
        }
    }

    static int64_t round_up(int64_t n) { return ceil_div(n, NR) * NR; }

    static void add_run(T* to, const T* from, int64_t n) {
        constexpr int L = kLanes<T>;
        int64_t i = 0;
        for (; i + L <= n; i += L) store(to + i, load(to + i) + load(from + i));
        if (i < n) store_n(to + i, load_n(to + i, n - i) + load_n(from + i, n - i), n - i);
    }

    // Adds the pixels [w0, w1) of rows [h0, h1) at depth d: sums holds them from `sums` on, row after row.
    void fold(const Job& j, const T* sums, int64_t d, int64_t h0, int64_t h1, int64_t w0, int64_t w1, T* dx) const {
        const int64_t pitch = round_up(columns), row = s.stride[2] * phase_width, high = j.last[1] - j.first[1];
        for (int64_t td = 0; td < s.taps[0]; ++td) {
            const int64_t at_d = d * s.stride[0] + td * s.dilation[0] - s.before[0];
            if (at_d < j.first[0] || at_d >= j.last[0]) continue;
            for (int64_t th = 0; th < s.taps[1]; ++th)
                for (int64_t tw = 0; tw < s.taps[2]; ++tw) {
                    const int64_t tap = (td * s.taps[1] + th) * s.taps[2] + tw;
                    const int64_t offset = tw * s.dilation[2] - s.before[2];
                    int64_t begin, end;
                    reach(s, 2, tw, begin, end);
                    begin = max_of(begin, w0), end = min_of(end, w1);
                    if (begin >= end) continue;
                    const int64_t place = begin * s.stride[2] + offset;
                    const int64_t at_w = place % s.stride[2] * phase_width + place / s.stride[2];
                    for (int64_t h = h0; h < h1; ++h) {
                        const int64_t at_h = h * s.stride[1] + th * s.dilation[1] - s.before[1];
                        if (at_h < j.first[1] || at_h >= j.last[1]) continue;
                        T* to = dx + ((at_d - j.first[0]) * high + at_h - j.first[1]) * row + at_w;
                        const T* from = sums + tap * pitch + (h - h0) * (w1 - w0) + begin - w0;
                        for (int64_t c = j.c0; c < j.c1; ++c, to += j.rows() * row, from += taps * pitch)
                            add_run(to, from, end - begin);
                    }
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
        Scratch panel(static_cast<size_t>(kg * NR + 1) * sizeof(T)),
            sums(static_cast<size_t>(m * round_up(columns) + 1) * sizeof(T)),
            dx(static_cast<size_t>(size + 1) * sizeof(T));
        if (!panel.as<T>() || !sums.as<T>() || !dx.as<T>()) return false;
        const T* const a = tiles + weights.at(j.group, j.block);
        start(j, dx.as<T>());
        int64_t d0, d1, h0, h1;
        seen_by(s, 0, j.first[0], j.last[0], d0, d1);
        seen_by(s, 1, j.first[1], j.last[1], h0, h1);
        const int64_t rows = max_of(1, columns / s.out[2]), wide = min_of(columns, s.out[2]);
        for (int64_t d = d0; d < d1; ++d)
            for (int64_t h = h0; h < h1; h += rows)
                for (int64_t w = 0; w < s.out[2]; w += wide) {
                    const int64_t h_end = min_of(h + rows, h1), w_end = min_of(w + wide, s.out[2]);
                    const T* dy = g.dy.as<T>() + j.image * g.dy.stride[0] + j.group * kg * g.dy.stride[1] +
                                  (d * s.out[1] + h) * s.out[2] + w;
                    multiply(a, m, dy, (h_end - h) * (w_end - w), panel.as<T>(), sums.as<T>());
                    fold(j, sums.as<T>(), d, h, h_end, w, w_end, dx.as<T>());
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
        Scratch packed(g.packed ? 64 : static_cast<size_t>(weights.elements() + 1) * sizeof(T));
        if (!packed.as<T>()) return false;
        tiles = g.packed ? static_cast<const T*>(g.packed) : packed.as<T>();
        if (!g.packed) weights.pack(g.w, packed.as<T>());
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

// ---- which of the two ------------------------------------------------------------------------------------------------------------

// Whether folding takes weights: moving those of many filters, or packing windows for few channels or for one phase of
// many, costs more.
bool folds(const View& w, int64_t groups, bool strided) {
    int64_t taps = 1;
    for (int d = 2; d < w.ndim; ++d) {
        if (w.shape[d] > kPhaseTaps) return true;
        taps *= w.shape[d];
    }
    return taps > 1 && (strided || w.shape[1] < 2 * kMR || w.shape[0] / groups >= 128);
}

bool is_depthwise(const View& w, int64_t groups) { return groups > 1 && w.shape[0] == groups && w.shape[1] == 1; }

template <class T>
Status choose(GradX r) {
    ConvAxes& s = r.axes;
    const bool strided = s.stride[0] > 1 || s.stride[1] > 1 || s.stride[2] > 1;
    for (int a = 0; a < kMaxRank; ++a)
        if (s.out[a] == 1) s.stride[a] = 1;  // never taken; however large, it has no phases
    Scratch w_scratch(run_bytes<T>(r.w, 1));
    if (!w_scratch.as<T>()) return no_memory();
    r.w = as_run<T>(r.w, 1, w_scratch, true);
    const bool plain = !r.bias.data && !r.residual.data && r.activation == Activation::none;
    if (is_depthwise(r.w, r.groups) && taps_of(s) <= 64 && plain) {
        Scratch dx_scratch(run_bytes<T>(r.dx, 2));
        if (!dx_scratch.as<T>()) return no_memory();
        Depthwise q{};
        q.x = as_run<T>(r.dx, 2, dx_scratch, false), q.w = r.w, q.y = r.dy, q.axes = s;
        run_strides(q.x, q.axes.x_stride);
        const Status status = depthwise_dx(q);
        if (q.x.data != r.dx.data) copy<T>(r.dx, q.x);
        return status;
    }
    if (!folds(r.w, r.groups, strided)) return by_phases<T>(r);
    Scratch dy_scratch(run_bytes<T>(r.dy, 2));
    if (!dy_scratch.as<T>()) return no_memory();
    r.dy = as_run<T>(r.dy, 2, dy_scratch, true);
    return Folding<T>(r).run() ? Status::ok : no_memory();
}

template <class T>
void pack_weights(const View& w_given, int64_t groups, bool strided, T* packed) {
    Scratch w_scratch(run_bytes<T>(w_given, 1));
    if (!w_scratch.as<T>()) return;
    const View w = as_run<T>(w_given, 1, w_scratch, true);
    if (folds(w, groups, strided)) return FoldingWeights(w, groups).pack(w, packed);
    ConvAxes s{};
    Phase p[kMaxRank];
    for (int a = 0; a < kMaxRank; ++a) {
        const int d = w.ndim - kMaxRank + a;
        p[a].taps = s.taps[a] = d >= 2 ? w.shape[d] : 1;
        for (int64_t t = 0; t < p[a].taps; ++t) p[a].tap[t] = t;
    }
    pack_phase(w, groups, s, p, packed);
}

Status run_alone(const Call& c) {
    GradX r{};
    r.dy = in_order(c.in[0], c.attr[kLayout]), r.w = c.in[1], r.dx = in_order(c.out[0], c.attr[kLayout]);
    r.axes = conv_axes(r.dx, r.w, r.dy, c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
    r.groups = c.attr[kGroups].i;
    return sum_to_x(r);
}

Status run_f32_f64(const Call& c) {
    return c.in[0].dtype == DType::f32 ? plus_c<float>(c, c.in[2], run_alone) : plus_c<double>(c, c.in[2], run_alone);
}

Status run(const Call& c) { return in_float32(c, run_f32_f64); }

constexpr Operand kDyW[] = {{"dy"}, {"w"}, {"c", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "shape", .kind = AttrKind::integers, .required = true}, TW_CONV_ATTRS, TW_CONV_LAYOUT};

}  // namespace

Status sum_to_x(const GradX& r) {
    if (numel(r.dx) == 0) return Status::ok;
    return r.dx.dtype == DType::f32 ? choose<float>(r) : choose<double>(r);
}

int64_t sum_to_x_packed_size(const View& w, int64_t groups, bool strided) {
    if (is_depthwise(w, groups)) return 0;
    const int64_t depth = numel(w) / w.shape[1] / groups;
    return item_size(w.dtype) * (folds(w, groups, strided) ? FoldingWeights(w, groups).elements()
                                                           : groups * tiled_elements(w.shape[1], depth));
}

void sum_to_x_pack(const View& w, int64_t groups, bool strided, void* packed) {
    w.dtype == DType::f32 ? pack_weights(w, groups, strided, static_cast<float*>(packed))
                          : pack_weights(w, groups, strided, static_cast<double*>(packed));
}

extern const OpDef op_conv_dx = {"conv_dx", kDyW, 3, kAttrs, TW_COUNT(kAttrs), infer, run, kOutIsLast};

}  // namespace tw::TW_ISA
