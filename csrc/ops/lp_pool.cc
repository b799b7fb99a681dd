// The p-norm over windows of x (N, C, spatial), and its gradient:
//   y[o] = (sum |x[i]|^p over window o)^(1/p)         dx[i] = sign(x[i]) |x[i]|^(p - 1) sum of dy[o] y[o]^(1 - p)
//
// Method    powers of all elements, avg_pool with divisor 1, roots; backwards avg_pool_dx. Powers lie in scratch.
// Numerics  sums as avg_pool's, in float for 16-bit types; powers: simd/power.h. Where y is 0, dy has no share.
// Threads   rows of elements, then as avg_pool; bits never depend on the split.
#include "core/check.h"
#include "core/op_table.h"
#include "core/pooling.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/power.h"
#include "simd/rows.h"

namespace tw::TW_ISA {

namespace {

enum { kP, kKernel, kStride, kPadding, kCeil };

Status no_memory() { return fail(Status::memory, "", "no memory for the powers of x; want a smaller x"); }

// A contiguous array of Wide numbers in scratch, of the shape of v.
template <class W>
View dense_like(const View& v, W* data) {
    View d = result(sizeof(W) == sizeof(float) ? DType::f32 : DType::f64, v.ndim, v.shape);
    d.data = data;
    set_contiguous(d);
    return d;
}

// to = f(vectors of a and b), where `to` and b may be of another type than a.
template <class To, class A, class B, class F>
void map(const View& to, const View& a, const View& b, const F& f) {
    const View* views[] = {&to, &a, &b};
    const Walk w = walk_over(views, 3, to.ndim, to.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        each_vector<To>(count, [&](int64_t i, int64_t n) {
            put(reinterpret_cast<To*>(at[0]), w.stride[0], i, n,
                f(take(reinterpret_cast<const A*>(at[1]), w.stride[1], i, n),
                  take(reinterpret_cast<const B*>(at[2]), w.stride[2], i, n)));
        });
    });
}

template <class T>
Status forward(const Call& c) {
    typedef Wide<T> W;
    typedef Vec<W> V;
    const View &x = c.in[0], &y = c.out[0];
    const double p = c.attr[kP].f;
    Scratch powers(static_cast<size_t>(numel(x)) * sizeof(W)), sums(static_cast<size_t>(numel(y)) * sizeof(W));
    if (!powers.as<W>() || !sums.as<W>()) return no_memory();
    View raw = dense_like(x, powers.as<W>()), sum = dense_like(y, sums.as<W>());
    map<W, T, T>(raw, x, x, [&](V v, V) { return raised(abs(v), p); });
    Attr a[kAvgPoolAttrs] = {};
    a[kAvgKernel] = c.attr[kKernel];
    a[kAvgStride] = c.attr[kStride];
    a[kAvgPadding] = c.attr[kPadding];
    a[kAvgCeil] = c.attr[kCeil];
    a[kAvgDivisor].i = 1;
    const Call inner = {op_table(active_tier(), OpId::avg_pool), &raw, 1, &sum, 1, a, nullptr};
    TW_TRY(inner.op->run(inner));
    map<T, W, W>(y, sum, sum, [&](V v, V) { return raised(v, 1 / p); });
    return Status::ok;
}

template <class T>
Status backward(const Call& c) {
    typedef Wide<T> W;
    typedef Vec<W> V;
    const View &dy = c.in[0], &x = c.in[1], &y = c.in[2];
    const double p = c.attr[kP].f;
    Scratch shares(static_cast<size_t>(numel(dy)) * sizeof(W)), sums(static_cast<size_t>(numel(x)) * sizeof(W));
    if (!shares.as<W>() || !sums.as<W>()) return no_memory();
    View share = dense_like(dy, shares.as<W>()), sum = dense_like(x, sums.as<W>());
    map<W, T, T>(share, dy, y, [&](V g, V v) { return select(v == V{}, V{}, p == 1 ? g : g * raised(abs(v), 1 - p)); });
    Attr a[kAvgPoolDxAttrs] = {};
    a[kDxShape] = sizes_attr(x.ndim - 2, x.shape + 2);
    a[kDxKernel] = c.attr[kKernel];
    a[kDxStride] = c.attr[kStride];
    a[kDxPadding] = c.attr[kPadding];
    a[kDxCeil] = c.attr[kCeil];
    a[kDxDivisor].i = 1;
    const Call inner = {op_table(active_tier(), OpId::avg_pool_dx), &share, 1, &sum, 1, a, nullptr};
    TW_TRY(inner.op->run(inner));
    map<T, T, W>(c.out[0], x, sum, [&](V v, V s) { return power_slope(v, p) * s; });
    return Status::ok;
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return forward<T>(c); });
}
Status run_dx(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return backward<T>(c); });
}

Status resolve(Call& c, const View& x, View& y) {
    TW_TRY(want_planes(x, "x"));
    Attr* a = c.attr;
    const double p = a[kP].f;
    if (!(p > 0 && p <= 16)) return fail(Status::attr, "p", "p=%g; want a number above 0, at most 16", p);
    int64_t out[3];
    TW_TRY(
        resolve_pooling(x.ndim - 2, x.shape + 2, a[kKernel], a[kStride], a[kPadding], nullptr, a[kCeil].i != 0, out));
    y = planes_like(x, x.ndim - 2, out);
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    r.n_out = 1;
    return resolve(c, c.in[0], r.out[0]);
}

Status infer_dx(Call& c, Inferred& r) {
    const View& x = c.in[1];
    View y;
    TW_TRY(resolve(c, x, y));
    for (int k = 0; k < 3; k += 2) {
        TW_TRY(want_dtype_of(c.in[k], c.op->operands[k].name, x, "x"));
        TW_TRY(want_shape(c.in[k], c.op->operands[k].name, y.ndim, y.shape));
    }
    r.n_out = 1;
    r.out[0] = planes_like(x, x.ndim - 2, x.shape + 2);
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kDyXY[] = {{"dy"}, {"x"}, {"y"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "p", .kind = AttrKind::real, .f = 2},
    {.name = "kernel", .kind = AttrKind::integers, .required = true},
    {.name = "stride", .kind = AttrKind::integers, .none_ok = true},
    {.name = "padding", .kind = AttrKind::padding},
    {.name = "ceil_mode", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_lp_pool = {"lp_pool", kX, 1, kAttrs, TW_COUNT(kAttrs), infer, run};
extern const Entry op_lp_pool_dx = {"lp_pool_dx", kDyXY, 3, kAttrs, TW_COUNT(kAttrs), infer_dx, run_dx};

}  // namespace tw::TW_ISA
