// Normalisation by the neighbouring channels of x (N, C, ...), and its gradient:
//   y[c] = x[c] b[c]^-beta,  b[c] = k + alpha / size sum of x[j]^2 over j in [c - size / 2, c + (size - 1) / 2]
//   dx[c] = dy[c] b[c]^-beta - 2 beta alpha / size x[c] sum of dy[j] x[j] b[j]^(-beta - 1) over the windows that see c
//
// Method    along.h: a tile of places, its rows the channels; sums over a window are taken anew.
// Numerics  sums of `size` terms in order. Powers by roots for beta 0.5, 0.75 and 1, else exp(-beta log b).
// Threads   by tiles of places; bits never depend on the split.
// Source    Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012.
#include "ops/along.h"
#include "simd/power.h"

namespace tw::TW_ISA {
namespace {

enum { kSize, kAlpha, kBeta, kK };

struct Window {
    double k, share, beta;  // share: alpha / size
    int64_t before, after;

    // b of row r, columns j and on.
    template <class W>
    Vec<W> base(const W* x, int64_t r, int64_t n, int64_t width, int64_t j) const {
        Vec<W> sum{};
        for (int64_t i = max_of(r - before, 0); i <= min_of(r + after, n - 1); ++i) {
            const Vec<W> v = load(x + i * width + j);
            sum += v * v;
        }
        return sum * static_cast<W>(share) + static_cast<W>(k);
    }
};

struct Forward : Window {
    static constexpr int kInputs = 1, kTiles = 1, kKept = 0;
    static constexpr bool kRows = false;

    template <class W>
    void take(W* const*, int64_t, int64_t, W*) const {}
    template <class W>
    void close(W* const*, int64_t, int64_t, W*) const {}
    template <class W>
    void result(W* y, const W* const* tile, int64_t r, int64_t n, int64_t width, const W*) const {
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            store(y + j, load(tile[0] + r * width + j) * raised(base(tile[0], r, n, width, j), -beta));
        });
    }
};

struct Backward : Window {
    static constexpr int kInputs = 2, kTiles = 3, kKept = 0;
    static constexpr bool kRows = false;

    template <class W>
    void take(W* const*, int64_t, int64_t, W*) const {}
    // Leaves dy b^-beta, and that times share x / b.
    template <class W>
    void close(W* const* tile, int64_t n, int64_t width, W*) const {
        for (int64_t r = 0; r < n; ++r)
            each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
                const int64_t at = r * width + j;
                const Vec<W> b = base(static_cast<const W*>(tile[1]), r, n, width, j);
                const Vec<W> scaled = load(tile[0] + at) * raised(b, -beta);
                store(tile[0] + at, scaled);
                store(tile[2] + at, scaled * (load(tile[1] + at) * (static_cast<W>(share) / b)));
            });
    }
    template <class W>
    void result(W* dx, const W* const* tile, int64_t r, int64_t n, int64_t width, const W*) const {
        const W factor = static_cast<W>(-2 * beta);
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            Vec<W> sum{};
            for (int64_t i = max_of(r - after, 0); i <= min_of(r + before, n - 1); ++i)
                sum += load(tile[2] + i * width + j);
            store(dx + j, load(tile[0] + r * width + j) + factor * load(tile[1] + r * width + j) * sum);
        });
    }
};

template <class Kernel>
Status run(const Call& c) {
    const Attr* a = c.attr;
    Kernel kernel;
    kernel.k = a[kK].f;
    kernel.share = a[kAlpha].f / static_cast<double>(a[kSize].i);
    kernel.beta = a[kBeta].f;
    kernel.before = a[kSize].i / 2;
    kernel.after = (a[kSize].i - 1) / 2;
    Attr channels = {};
    channels.n = 1;
    channels.list[0] = 1;
    return run_along(kernel, c, channels);
}

Status infer(Call& c, Inferred& r) {
    const View& first = c.in[0];
    const char* name = c.op->operands[0].name;
    TW_TRY(want_floating(first, name));
    for (int k = 1; k < c.n_in; ++k) {
        TW_TRY(want_dtype_of(c.in[k], c.op->operands[k].name, first, name));
        TW_TRY(want_shape_of(c.in[k], c.op->operands[k].name, first, name));
    }
    if (first.ndim < 2)
        return fail(Status::shape, name, "%s has shape %s; want (N, C, ...)", name, shape_text(first).text);
    const int64_t size = c.attr[kSize].i;
    if (size < 1 || size > kMaxSize)
        return fail(Status::attr, "size", "size=%lld; want 1 to 2^40 channels", static_cast<long long>(size));
    for (int i = kAlpha; i <= kK; ++i) {
        const double most = i == kBeta ? 16 : static_cast<double>(kMaxSize), v = c.attr[i].f;
        if (!(v >= 0 && v <= most))
            return fail(Status::attr, c.op->attrs[i].name, "%s=%g; want a number from 0 to %g", c.op->attrs[i].name, v,
                        most);
    }
    r.n_out = 1;
    r.out[0] = result(first.dtype, first.ndim, first.shape);
    r.flops = 2.0 * static_cast<double>(min_of(size, first.shape[1]) + 4) * static_cast<double>(numel(first));
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kDyX[] = {{"dy"}, {"x"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "size", .kind = AttrKind::integer, .required = true},
    {.name = "alpha", .kind = AttrKind::real, .f = 1e-4},
    {.name = "beta", .kind = AttrKind::real, .f = 0.75},
    {.name = "k", .kind = AttrKind::real, .f = 1},
};

}  // namespace

extern const Entry op_local_response_norm = {"local_response_norm", kX, 1, kAttrs, 4, infer, run<Forward>};
extern const Entry op_local_response_norm_dx = {"local_response_norm_dx", kDyX, 2, kAttrs, 4, infer, run<Backward>};

}  // namespace tw::TW_ISA
