// The gradient of convolution in x:
//     dx[n,c,q] = c[n,c,q] + sum of w[k,c,t] dy[n,k,p] over all k, t, p with p*stride + t*dilation - padding = q
//
// Method    by phases: one implicit GEMM per phase of the stride, over windows of dy; nothing is added to twice, and what no
//           tap reaches is cleared. Where weights would be moved for too few pixels: by folding, conv_folding.cc. On a
//           tier that lends tiles, all phases at once in exact pieces, if there are enough products: gemm/window_pieces.cc.
// Numerics  phases: one running sum over (k, t), see gemm/gemm.h; c comes last. In pieces: gemm/pieces.h.
// Threads   tiles of the result; sums are never split between threads.
#include "core/convolution.h"
#include "core/tile_kernels.h"
#include "gemm/tiled_pieces.h"
#include "gemm/window.h"
#include "gemm/window_pieces.h"
#include "ops/conv_problem.h"
#include "ops/in_float32.h"

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
bool pack_phase(const View& w, int64_t groups, const ConvAxes& s, const Phase* p, int64_t pixels, char* to) {
    const int64_t kg = w.shape[0] / groups, cg = w.shape[1], taps = p[0].taps * p[1].taps * p[2].taps;
    Scratch rows_scratch(static_cast<size_t>(cg * kg * taps + 1) * sizeof(T)),
        table(static_cast<size_t>(taps + 1) * sizeof(int32_t));
    T* const rows = rows_scratch.as<T>();
    if (!rows || !table.as<int32_t>()) return false;
    for (int64_t group = 0; group < groups; ++group) {
        gather_weights(w, group * kg, kg, cg, s, p, table.as<int32_t>(), rows);
        lay_out(Matrix<T>{rows, kg * taps, 1}, cg, kg * taps, pixels,
                to + group * laid_bytes<T>(cg, kg * taps, pixels));
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
    bool point = kVectorRegisters >= 32 && taps == 1 && is_run(r.dy, 2);  // dy is the matrix
    for (int a = 0; a < kMaxRank; ++a) point = point && p[a].count == s.out[a] && p[a].offset[0] == 0;
    const bool prepared = r.packed && taps == taps_of(s);  // one phase has all taps, the others, if any, have none
    Scratch bias_scratch(static_cast<size_t>(groups * cg + 1) * sizeof(T)),
        laid_scratch(prepared ? 64 : static_cast<size_t>(groups * laid_bytes<T>(cg, kg * taps, count)) + 64),
        start_scratch(whole && r.residual.data ? run_bytes<T>(r.residual, 2) : 64);
    T* const bias = bias_scratch.as<T>();
    const void* const laid = prepared ? r.packed : laid_scratch.as<char>();
    if (!laid || !bias || !start_scratch.as<T>()) return false;
    if (!prepared && !pack_phase<T>(r.w, groups, s, p, count, laid_scratch.as<char>())) return false;
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
        if (point) {
            g.b = {window.image, window.channel_stride, 1};
        } else {
            g.pack_b = pack_window<T>;
            g.context = &window;
        }
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
        if (!gemm_tiled(g, laid_at<T>(laid, cg, kg * taps, group))) return false;
        if (!whole)
            each_phase_row(block.as<T>(), to, s.x_stride, s, p, cg, dx.stride[1],
                           [&](const T* row, T* into, int64_t step) {
                for (int64_t l = 0; l < p[2].count; ++l) into[l * step] = row[l];
            });
        return true;
    }) == Status::ok;
}

// Zeros everywhere, whole blocks of memory at once where dx is one.
template <class T>
void clear(const GradX& r) {
    const View& dx = r.dx;
    const ConvAxes& s = r.axes;
    if (is_run(dx, 0) || is_run(channels_last(dx), 0)) {
        const int64_t n = numel(dx);
        parallel(ceil_div(n, kChunkElements), [&](int64_t chunk) {
            const int64_t at = chunk * kChunkElements, count = min_of(kChunkElements, n - at);
            __builtin_memset(dx.as<T>() + at, 0, static_cast<size_t>(count) * sizeof(T));
        });
        return;
    }
    const int64_t channels = dx.shape[1];
    parallel(dx.shape[0] * channels, [&](int64_t i) {
        T* const plane = dx.as<T>() + i / channels * dx.stride[0] + i % channels * dx.stride[1];
        for (int64_t h = 0; h < s.in[0] * s.in[1]; ++h)
            for (int64_t l = 0; l < s.in[2]; ++l)
                plane[h / s.in[1] * s.x_stride[0] + h % s.in[1] * s.x_stride[1] + l * s.x_stride[2]] = 0;
    });
}

bool has_empty_phase(const ConvAxes& s) {
    for (int a = 0; a < kMaxRank; ++a)
        for (int64_t phase = 0; phase < min_of(s.stride[a], s.in[a]); ++phase) {
            Phase p;
            phase_of(s, a, phase, p);
            if (p.taps == 0) return true;
        }
    return false;
}

// Calls body(phase) for all phases of the stride until one returns false.
template <class Body>
bool each_phase(const ConvAxes& s, const Body& body) {
    for (int64_t i = 0; i < min_of(s.stride[0], s.in[0]); ++i)
        for (int64_t j = 0; j < min_of(s.stride[1], s.in[1]); ++j)
            for (int64_t l = 0; l < min_of(s.stride[2], s.in[2]); ++l) {
                Phase p[kMaxRank];
                phase_of(s, 0, i, p[0]), phase_of(s, 1, j, p[1]), phase_of(s, 2, l, p[2]);
                if (!body(p)) return false;
            }
    return true;
}

template <class T>
Status by_phases(const GradX& r) {
    const ConvAxes& s = r.axes;
    const bool plain = !r.bias.data && !r.residual.data && r.activation == Activation::none;
    const bool cleared = plain && has_empty_phase(s);
    if (cleared) clear<T>(r);
    const bool enough = each_phase(s, [&](const Phase* p) {
        const bool empty = p[0].taps * p[1].taps * p[2].taps == 0;
        return (cleared && empty) || run_phase<T>(r, p);
    });
    return enough ? Status::ok : no_memory();
}

// ---- in pieces, on tiles -------------------------------------------------------------------------------------------------------

constexpr int64_t kMostPhases = 16;

// All phases of the stride as convolutions of dy, whose taps run the other way.
struct Turned {
    ConvAxes axes{};  // of a window that has the taps of all
    WindowPhase phase[kMostPhases];
    int64_t phases = 0;
    bool empty = false;  // no tap reaches some places
    int32_t tables[2 * kMostPhases * kPhaseTaps];

    bool make(const GradX& r) {
        const ConvAxes& s = r.axes;
        int64_t least[kMaxRank], taps = 0;
        for (int a = 0; a < kMaxRank; ++a) {
            if (s.taps[a] > kPhaseTaps || s.stride[a] > kMostPhases) return false;
            int64_t most = -kMaxSize;
            least[a] = kMaxSize;
            for (int64_t f = 0; f < min_of(s.stride[a], s.in[a]); ++f) {
                Phase p;
                phase_of(s, a, f, p);
                if (p.taps == 0) continue;
                least[a] = min_of(least[a], p.offset[p.taps - 1]), most = max_of(most, p.offset[0]);
            }
            axes.in[a] = s.out[a], axes.out[a] = ceil_div(s.in[a], s.stride[a]), axes.taps[a] = most - least[a] + 1;
            axes.stride[a] = axes.dilation[a] = 1, axes.before[a] = -least[a];
            axes.x_stride[a] = s.y_stride[a], axes.y_stride[a] = s.stride[a] * s.x_stride[a];
        }
        if (s.stride[0] * s.stride[1] * s.stride[2] > kMostPhases || taps_of(s) > kMostPhases * kPhaseTaps)
            return false;
        return each_phase(s, [&](const Phase* p) {
            WindowPhase& q = phase[phases];
            q.taps = p[0].taps * p[1].taps * p[2].taps;
            if (q.taps == 0) return empty = true;
            int32_t* const place = tables + 2 * taps;
            q.place = place, q.tap = place + q.taps;
            q.y = r.dx.as<float>(), q.residual = r.residual.as<float>();
            int64_t far[kMaxRank] = {}, n = 0;
            if (q.residual) run_strides(r.residual, far);
            for (int a = 0; a < kMaxRank; ++a) {
                q.out[a] = p[a].count, q.y += p[a].begin * s.x_stride[a];
                if (q.residual) q.residual += p[a].begin * far[a];
            }
            for (int64_t i = p[0].taps; i-- > 0;)
                for (int64_t j = p[1].taps; j-- > 0;)
                    for (int64_t l = p[2].taps; l-- > 0; ++n) {
                        const auto at = [&](const int64_t* size, int64_t d, int64_t h, int64_t w) {
                            return static_cast<int32_t>((d * size[1] + h) * size[2] + w);
                        };
                        place[n] = at(axes.taps, p[0].offset[i] - least[0], p[1].offset[j] - least[1],
                                      p[2].offset[l] - least[2]);
                        place[q.taps + n] = at(s.taps, p[0].tap[i], p[1].tap[j], p[2].tap[l]);
                    }
            taps += q.taps, ++phases;
            return true;
        });
    }
};

// Whether tiles are faster, in cycles: six products of each step of a tile, and the splitting of dy and of weights; by FMA, a
// panel of pixels at a time.
bool pieces_pay(const GradX& r, const Turned& t) {
    const int64_t kg = r.w.shape[0] / r.groups, cg = r.w.shape[1], images = r.dx.shape[0], taps = taps_of(r.axes);
    if (cg < 12 || kg < 12 || t.phases == 0) return false;
    const Planes planes(t.axes, 1);
    const double tiles = static_cast<double>(ceil_div(cg, kTileRows) * ceil_div(planes.image * images, kPanelColumns));
    const double split = static_cast<double>(2 * kg * planes.size * images + 3 * cg * kg * taps / 2);
    constexpr int64_t NR = Blocking<float>::NR;
    return tiles * static_cast<double>((ceil_div(kg, kPieceTerms) * taps + t.phases) * 200) + split <
           static_cast<double>(cg * kg * taps) * static_cast<double>(ceil_div(pixels_of(r.axes) * images, NR) * NR) /
               22;
}

bool in_pieces(const GradX& r, bool plain, Status& status) {
    if (kVectorRegisters < 32 || !tile_kernels().windows) return false;
    Scratch turned_scratch(sizeof(Turned)), bias_scratch(static_cast<size_t>(r.groups * r.w.shape[1] + 1) * 4);
    Turned* const turned = turned_scratch.as<Turned>();
    float* const bias = bias_scratch.as<float>();
    if (!turned || !bias) return status = no_memory(), true;
    *turned = {};
    if (!turned->make(r) || !pieces_pay(r, *turned) || (turned->empty && !plain)) return false;
    if (turned->empty) clear<float>(r);
    WindowsInPieces job{};
    job.axes = turned->axes;
    job.images = r.dx.shape[0], job.groups = r.groups, job.kg = r.w.shape[1], job.cg = r.w.shape[0] / r.groups;
    job.x = r.dy.as<float>(), job.x_image = r.dy.stride[0], job.x_channel = r.dy.stride[1];
    job.w = r.w.as<float>(), job.w_group = job.cg * r.w.stride[0], job.w_row = taps_of(r.axes);
    job.w_term = r.w.stride[0];
    job.y_image = r.dx.stride[0], job.y_channel = r.dx.stride[1];
    job.activation = r.activation;
    for (int64_t c = 0; r.bias.data && c < r.groups * job.kg; ++c) bias[c] = r.bias.as<float>()[c * r.bias.stride[0]];
    job.bias = r.bias.data ? bias : nullptr;
    if (r.residual.data) {
        int64_t far[kMaxRank];
        run_strides(r.residual, far);
        job.residual_image = r.residual.stride[0], job.residual_channel = r.residual.stride[1];
        for (int a = 0; a < kMaxRank; ++a) job.residual_stride[a] = r.axes.stride[a] * far[a];
    }
    job.phase = turned->phase, job.phases = turned->phases;
    const auto result = static_cast<InPiecesResult>(tile_kernels().windows(&job));
    status = result == InPiecesResult::no_memory ? no_memory() : Status::ok;
    return result != InPiecesResult::refused;
}

// ---- which of them ------------------------------------------------------------------------------------------------------------

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
    if constexpr (sizeof(T) == 4)
        if (Status status; in_pieces(r, plain, status)) return status;
    return folds(r.w, r.groups, strided) ? fold_to_x(r) : by_phases<T>(r);
}

template <class T>
void pack_weights(const View& w_given, int64_t groups, bool strided, void* packed) {
    Scratch w_scratch(run_bytes<T>(w_given, 1));
    if (!w_scratch.as<T>()) return;
    const View w = as_run<T>(w_given, 1, w_scratch, true);
    if (folds(w, groups, strided)) return fold_to_x_pack(w, groups, packed);
    ConvAxes s{};
    Phase p[kMaxRank];
    for (int a = 0; a < kMaxRank; ++a) {
        const int d = w.ndim - kMaxRank + a;
        p[a].taps = s.taps[a] = d >= 2 ? w.shape[d] : 1;
        for (int64_t t = 0; t < p[a].taps; ++t) p[a].tap[t] = t;
    }
    pack_phase<T>(w, groups, s, p, kManyColumns, static_cast<char*>(packed));
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
    if (folds(w, groups, strided)) return fold_to_x_packed_size(w, groups);
    return groups * (w.dtype == DType::f32 ? laid_bytes<float>(w.shape[1], depth, kManyColumns)
                                           : laid_bytes<double>(w.shape[1], depth, kManyColumns));
}

void sum_to_x_pack(const View& w, int64_t groups, bool strided, void* packed) {
    (w.dtype == DType::f32 ? pack_weights<float> : pack_weights<double>)(w, groups, strided, packed);
}

extern const Entry op_conv_dx = {"conv_dx", kDyW, 3, kAttrs, TW_COUNT(kAttrs), infer, run, kOutIsLast};

}  // namespace tw::TW_ISA
