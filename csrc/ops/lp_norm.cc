// Division by a p-norm along any axes:  y = x / N,  N = max(||x||, eps),  ||x|| = (sum |x|^p)^(1/p),  and its gradient
//   dx = (dy - sign(x) |x / N|^(p - 1) sum(dy x) / N) / N where ||x|| > eps, else dy / eps
//
// Method    along.h: the norm and, for the gradient, sum(dy x) in one pass over a line, then the results.
// Numerics  row sums are joined in double, column sums in blocks of 16 rows. Powers other than 1 and 2 are exp(p log),
//           a few ULP times the size of p log|x|. sum |x|^p must be a number of the type that sums.
// Threads   by rows or column tiles; each line is computed by itself, so bits never depend on the split.
#include "ops/along.h"
#include "simd/power.h"

namespace tw::TW_ISA {
namespace {

struct Norm {
    double p, eps;

    template <class V>
    TW_INLINE V term(V v, double p) {
        return raised(abs(v), p);
    }
    double norm_of(double sum) const { return p == 1 ? sum : p == 2 ? __builtin_sqrt(sum) : __builtin_pow(sum, 1 / p); }
};

struct LpNorm : Norm {
    static constexpr int kInputs = 1, kTiles = 1, kKept = 1;  // sums
    static constexpr bool kRows = true, kGroups = false;

    template <class W>
    void row(W* y, const W* const* in, int64_t n, const After<W>*) const {
        const W* x = in[0];
        const double q = p, sum = sum_over<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            return term(tw::TW_ISA::take(x, 1, i, k), q);
        });
        const double norm = norm_of(sum);
        const Vec<W> by = splat<W>(static_cast<W>(norm < eps ? eps : norm));
        each_vector<W>(n, [&](int64_t i, int64_t k)
                              __attribute__((always_inline)) { put(y, 1, i, k, tw::TW_ISA::take(x, 1, i, k) / by); });
    }
    template <class W>
    void take(W* const* tile, int64_t rows, int64_t width, W* sum) const {
        const double q = p;
        add_rows(sum, rows, width,
                 [&](int64_t i) __attribute__((always_inline)) { return term(load(tile[0] + i), q); });
    }
    template <class W>
    void close(W* const*, int64_t, int64_t width, W* sum) const {
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            const Vec<W> norm = raised(load(sum + j), 1 / p), least = splat<W>(static_cast<W>(eps));
            store(sum + j, select(norm < least, least, norm));
        });
    }
    template <class W>
    void result(W* y, const W* const* tile, int64_t r, int64_t, int64_t width, const W* by) const {
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            store(y + j, load(tile[0] + r * width + j) / load(by + j));
        });
    }
};

struct LpNormDx : Norm {
    static constexpr int kInputs = 2, kTiles = 2, kKept = 2;  // sums of powers, of dy x
    static constexpr bool kRows = true, kGroups = false;

    template <class W>
    TW_INLINE Vec<W> gradient(Vec<W> dy, Vec<W> x, Vec<W> by, Vec<W> dot, double p) {
        return (dy - power_slope(x / by, p) * dot) / by;
    }
    template <class W>
    void row(W* dx, const W* const* in, int64_t n, const After<W>*) const {
        const W *dy = in[0], *x = in[1];
        const double q = p;
        const auto at = [](const W* from, int64_t i, int64_t k)
                            __attribute__((always_inline)) { return tw::TW_ISA::take(from, 1, i, k); };
        const double sum =
            sum_over<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) { return term(at(x, i, k), q); });
        const double dot = sum_over<W>(
            n, [&](int64_t i, int64_t k) __attribute__((always_inline)) { return at(dy, i, k) * at(x, i, k); });
        const double norm = norm_of(sum), size = norm < eps ? eps : norm;
        const Vec<W> by = splat<W>(static_cast<W>(size)), along = splat<W>(static_cast<W>(norm < eps ? 0 : dot / size));
        each_vector<W>(n, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            put(dx, 1, i, k, gradient<W>(at(dy, i, k), at(x, i, k), by, along, q));
        });
    }
    template <class W>
    void take(W* const* tile, int64_t rows, int64_t width, W* kept) const {
        const double q = p;
        add_rows(kept, rows, width,
                 [&](int64_t i) __attribute__((always_inline)) { return term(load(tile[1] + i), q); });
        add_rows(kept + width, rows, width,
                 [&](int64_t i) __attribute__((always_inline)) { return load(tile[0] + i) * load(tile[1] + i); });
    }
    template <class W>
    void close(W* const*, int64_t, int64_t width, W* kept) const {
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            const Vec<W> norm = raised(load(kept + j), 1 / p), least = splat<W>(static_cast<W>(eps));
            const Vec<W> by = select(norm < least, least, norm), dot = load(kept + width + j) / by;
            store(kept + j, by);
            store(kept + width + j, select(norm < least, Vec<W>{}, dot));
        });
    }
    template <class W>
    void result(W* dx, const W* const* tile, int64_t r, int64_t, int64_t width, const W* kept) const {
        const double q = p;
        each_column<W>(width, [&](int64_t j) __attribute__((always_inline)) {
            store(dx + j, gradient<W>(load(tile[0] + r * width + j), load(tile[1] + r * width + j), load(kept + j),
                                      load(kept + width + j), q));
        });
    }
};

enum { kP, kAxes, kEps };

template <class Kernel>
Status run(const Call& c) {
    Kernel kernel;
    kernel.p = c.attr[kP].f;
    kernel.eps = c.attr[kEps].f;
    return run_along(kernel, c, c.attr[kAxes]);
}

Status infer(Call& c, Inferred& r) {
    const View& first = c.in[0];
    const char* name = c.op->operands[0].name;
    TW_TRY(want_floating(first, name));
    for (int k = 1; k < c.n_in; ++k) {
        TW_TRY(want_dtype_of(c.in[k], c.op->operands[k].name, first, name));
        TW_TRY(want_shape_of(c.in[k], c.op->operands[k].name, first, name));
    }
    const double p = c.attr[kP].f, eps = c.attr[kEps].f;
    if (!(p > 0 && p <= 16)) return fail(Status::attr, "p", "p=%g; want a number above 0, at most 16", p);
    if (!(eps >= 0 && eps < static_cast<double>(__builtin_inff())))
        return fail(Status::attr, "eps", "eps=%g; want a finite number, 0 or more", eps);
    TW_TRY(resolve_axes(c.attr[kAxes], "axes", first.ndim));
    r.n_out = 1;
    r.out[0] = result(first.dtype, first.ndim, first.shape);
    r.flops = 4.0 * static_cast<double>(numel(first));
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kDyX[] = {{"dy"}, {"x"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "p", .kind = AttrKind::real, .f = 2},
    {.name = "axes", .kind = AttrKind::axes, .i = -1},
    {.name = "eps", .kind = AttrKind::real, .f = 1e-12},
};

}  // namespace

extern const Entry op_lp_norm = {"lp_norm", kX, 1, kAttrs, 3, infer, run<LpNorm>};
extern const Entry op_lp_norm_dx = {"lp_norm_dx", kDyX, 2, kAttrs, 3, infer, run<LpNormDx>};

}  // namespace tw::TW_ISA
