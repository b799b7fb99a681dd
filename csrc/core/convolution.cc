#include "core/convolution.h"

namespace tw {

Status want_conv_float(const View& v, const char* name) {
    if (is_float(v.dtype)) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want float32, float64, float16 or bfloat16", name,
                name_of(v.dtype));
}

Status check_conv(const View& x, const View& w, Attr& stride, Attr& padding, Attr& dilation, const Attr& groups,
                  int64_t* out, const char* blame) {
    const int rank = x.ndim - 2;
    if (groups.i < 1)
        return fail(Status::attr, "groups", "groups=%lld; want at least 1", static_cast<long long>(groups.i));
    if (w.ndim != x.ndim)
        return fail(Status::shape, "w",
                    "w has shape %s but x has %d dimensions; want (K, C/groups, kernel...) with as many",
                    shape_text(w).text, x.ndim);
    if (x.shape[1] % groups.i || w.shape[0] % groups.i)
        return fail(Status::attr, "groups", "groups=%lld does not divide C=%lld and K=%lld; want a common divisor",
                    static_cast<long long>(groups.i), static_cast<long long>(x.shape[1]),
                    static_cast<long long>(w.shape[0]));
    if (w.shape[1] != x.shape[1] / groups.i)
        return fail(Status::shape, "w", "x has C=%lld but w has C/groups=%lld with groups=%lld; want C=%lld",
                    static_cast<long long>(x.shape[1]), static_cast<long long>(w.shape[1]),
                    static_cast<long long>(groups.i), static_cast<long long>(w.shape[1] * groups.i));
    for (int d = 0; d < rank; ++d)
        if (w.shape[2 + d] < 1)
            return fail(Status::shape, "w", "w has shape %s; want kernel sizes of at least 1", shape_text(w).text);
    TW_TRY(resolve_integers(stride, "stride", rank, 1));
    TW_TRY(resolve_integers(dilation, "dilation", rank, 1));
    return resolve_window(x.shape + 2, w.shape + 2, stride.list, dilation.list, padding, rank, false, out, blame);
}

Status check_bias(const View& b, const View& x, int64_t k) {
    if (!given(b)) return Status::ok;
    TW_TRY(want_dtype_of(b, "b", x, "x"));
    if (b.ndim == 1 && b.shape[0] == k) return Status::ok;
    return fail(Status::shape, "b", "b has shape %s but w has K=%lld; want (%lld,)", shape_text(b).text,
                static_cast<long long>(k), static_cast<long long>(k));
}

Status check_c(const View& c, const View& result, const char* model) {
    if (!given(c)) return Status::ok;
    TW_TRY(want_dtype_of(c, "c", result, model));
    return want_shape(c, "c", result.ndim, result.shape);
}

Status check_conv_dy(const View& dy, const View& x, const View& w, const int64_t* out) {
    bool same = dy.shape[0] == x.shape[0] && dy.shape[1] == w.shape[0];
    View want = result(dy.dtype, dy.ndim, x.shape);
    want.shape[1] = w.shape[0];
    for (int d = 2; d < dy.ndim; ++d) {
        want.shape[d] = out[d - 2];
        same = same && dy.shape[d] == out[d - 2];
    }
    if (same) return Status::ok;
    return fail(Status::shape, "dy", "dy has shape %s; want %s, the result of this convolution", shape_text(dy).text,
                shape_text(want).text);
}

double conv_flops(const View& y, const View& w) {
    double terms = 2.0;
    for (int d = 0; d < y.ndim; ++d) terms *= static_cast<double>(y.shape[d]);
    for (int d = 1; d < w.ndim; ++d) terms *= static_cast<double>(w.shape[d]);
    return terms;
}

ConvAxes conv_axes(const View& x, const View& w, const View& y, const Attr& stride, const Attr& padding,
                   const Attr& dilation) {
    ConvAxes s;
    constexpr int kAxes = 3;
    const int skip = kAxes - (x.ndim - 2);
    for (int a = 0; a < kAxes; ++a) {
        const int d = a - skip;
        const bool real = d >= 0;
        s.in[a] = real ? x.shape[2 + d] : 1;
        s.out[a] = real ? y.shape[2 + d] : 1;
        s.taps[a] = real ? w.shape[2 + d] : 1;
        s.stride[a] = real ? stride.list[d] : 1;
        s.dilation[a] = real ? dilation.list[d] : 1;
        s.before[a] = real ? padding.list[2 * d] : 0;
        s.x_stride[a] = real ? x.stride[2 + d] : 0;
        s.y_stride[a] = real ? y.stride[2 + d] : 0;
    }
    return s;
}

}  // namespace tw
