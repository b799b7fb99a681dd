#include "core/check.h"

#include <cstdio>

namespace tw {
namespace {

long long ll(int64_t v) { return static_cast<long long>(v); }

}  // namespace

ShapeText shape_text(int ndim, const int64_t* shape) {
    ShapeText s;
    int n = std::snprintf(s.text, sizeof s.text, "(");
    for (int d = 0; d < ndim; ++d)
        n += std::snprintf(s.text + n, sizeof s.text - static_cast<size_t>(n), d ? ", %lld" : "%lld", ll(shape[d]));
    std::snprintf(s.text + n, sizeof s.text - static_cast<size_t>(n), ndim == 1 ? ",)" : ")");
    return s;
}

ShapeText shape_text(const View& v) { return shape_text(v.ndim, v.shape); }

AttrText attr_text(const Attr& a) {
    AttrText t;
    if (a.is_none || a.is_scalar) {
        std::snprintf(t.text, sizeof t.text, a.is_none ? "None" : "%lld", ll(a.list[0]));
        return t;
    }
    const int step = a.is_pairs ? 2 : 1;
    size_t n = 1;
    t.text[0] = '(';
    for (int k = 0; k < a.n && n + 60 < sizeof t.text; k += step) {
        const char* comma = k ? ", " : "";
        n += static_cast<size_t>(a.is_pairs
                                     ? std::snprintf(t.text + n, sizeof t.text - n, "%s(%lld, %lld)", comma,
                                                     ll(a.list[k]), ll(a.list[k + 1]))
                                     : std::snprintf(t.text + n, sizeof t.text - n, "%s%lld", comma, ll(a.list[k])));
    }
    std::snprintf(t.text + n, sizeof t.text - n, a.n == step ? ",)" : ")");
    return t;
}

Status want_real(const View& v, const char* name) {
    if (v.dtype == DType::f32 || v.dtype == DType::f64) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want float32 or float64", name, name_of(v.dtype));
}

Status want_floating(const View& v, const char* name) {
    if (is_float(v.dtype)) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want float32, float64, float16 or bfloat16", name,
                name_of(v.dtype));
}

Status want_dtype_of(const View& v, const char* name, const View& model, const char* model_name) {
    if (v.dtype == model.dtype) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s but %s has %s; want the same", name, name_of(v.dtype), model_name,
                name_of(model.dtype));
}

Status want_shape_of(const View& v, const char* name, const View& model, const char* model_name) {
    bool same = v.ndim == model.ndim;
    for (int d = 0; same && d < v.ndim; ++d) same = v.shape[d] == model.shape[d];
    if (same) return Status::ok;
    return fail(Status::shape, name, "%s has shape %s but %s has %s; want the same", name, shape_text(v).text,
                model_name, shape_text(model).text);
}

Status want_shape(const View& v, const char* name, int ndim, const int64_t* shape) {
    bool same = v.ndim == ndim;
    for (int d = 0; same && d < ndim; ++d) same = v.shape[d] == shape[d];
    if (same) return Status::ok;
    return fail(Status::shape, name, "%s has shape %s; want %s", name, shape_text(v).text,
                shape_text(ndim, shape).text);
}

Status want_ndim(const View& v, const char* name, int least, int most) {
    if (v.ndim >= least && v.ndim <= most) return Status::ok;
    if (least == most) return fail(Status::shape, name, "%s has %d dimensions; want %d", name, v.ndim, least);
    return fail(Status::shape, name, "%s has %d dimensions; want %d to %d", name, v.ndim, least, most);
}

Status resolve_axis(Attr& a, const char* name, int ndim) {
    if (a.i < -ndim || a.i >= ndim)
        return fail(Status::attr, name, "%s=%lld is out of range for %d dimensions; want %d to %d", name, ll(a.i), ndim,
                    -ndim, ndim - 1);
    if (a.i < 0) a.i += ndim;
    return Status::ok;
}

Status resolve_axes(Attr& a, const char* name, int ndim) {
    if (a.n == 1 && !a.is_none && a.list[0] >= -ndim && a.list[0] < ndim) {  // nearly always
        a.is_scalar = a.is_pairs = false;
        a.list[0] += a.list[0] < 0 ? ndim : 0;
        return Status::ok;
    }
    bool chosen[kMaxDims] = {};
    if (a.is_none) {
        for (int d = 0; d < ndim; ++d) chosen[d] = true;
    } else {
        for (int k = 0; k < a.n; ++k) {
            const int64_t axis = a.list[k];
            if (axis < -ndim || axis >= ndim)
                return fail(Status::attr, name, "%s=%s is out of range for %d dimensions; want %d to %d", name,
                            attr_text(a).text, ndim, -ndim, ndim - 1);
            bool& flag = chosen[axis < 0 ? axis + ndim : axis];
            if (flag)
                return fail(Status::attr, name, "%s=%s names axis %lld twice; want distinct axes", name,
                            attr_text(a).text, ll(axis));
            flag = true;
        }
    }
    a.is_none = a.is_scalar = a.is_pairs = false;
    a.n = 0;
    for (int d = 0; d < ndim; ++d)
        if (chosen[d]) a.list[a.n++] = d;
    return Status::ok;
}

Status resolve_integers(Attr& a, const char* name, int n, int64_t least) {
    if (!a.is_scalar && a.n != n)
        return fail(Status::attr, name, "%s=%s has %d numbers; want one or %d", name, attr_text(a).text, a.n, n);
    for (int d = 0; d < a.n; ++d)
        if (a.list[d] < least || a.list[d] >= kMaxSize)
            return fail(Status::attr, name, "%s=%s; want %lld or more, below 2^40", name, attr_text(a).text, ll(least));
    if (a.is_scalar) {
        for (int d = 1; d < n; ++d) a.list[d] = a.list[0];
        a.n = n;
        a.is_scalar = false;
    }
    return Status::ok;
}

Status resolve_padding(Attr& a, const char* name, int n) {
    if (a.choice == 2) {
        a.choice = 0;
        a.is_scalar = true;
        a.n = 1;
        a.list[0] = 0;
    }
    if (!a.is_pairs) {
        TW_TRY(resolve_integers(a, name, n, 0));
        for (int d = n - 1; d >= 0; --d) a.list[2 * d] = a.list[2 * d + 1] = a.list[d];
        a.n = 2 * n;
        a.is_pairs = true;
        return Status::ok;
    }
    if (a.n != 2 * n)
        return fail(Status::attr, name, "%s=%s has %d pairs; want %d, one per axis", name, attr_text(a).text, a.n / 2,
                    n);
    for (int k = 0; k < 2 * n; ++k)
        if (a.list[k] < 0 || a.list[k] >= kMaxSize)
            return fail(Status::attr, name, "%s=%s; want 0 or more, below 2^40", name, attr_text(a).text);
    return Status::ok;
}

Status resolve_window(const int64_t* shape, const int64_t* kernel, const int64_t* stride, const int64_t* dilation,
                      Attr& padding, int n, bool ceil_mode, int64_t* out, const char* blame) {
    int64_t reach[kMaxDims];  // from the first to the last tap
    for (int d = 0; d < n; ++d)
        if (__builtin_mul_overflow(dilation[d], kernel[d] - 1, &reach[d]) || reach[d] >= kMaxSize)
            return fail(Status::attr, "dilation",
                        "dilation=%lld times kernel size %lld is too large; want less than 2^40", ll(dilation[d]),
                        ll(kernel[d]));
    if (padding.choice == 1) {
        padding.choice = 0;
        padding.is_pairs = true;
        padding.is_scalar = false;
        padding.n = 2 * n;
        for (int d = 0; d < n; ++d) {
            const int64_t windows = (shape[d] + stride[d] - 1) / stride[d];
            const int64_t total = (windows - 1) * stride[d] + reach[d] + 1 - shape[d];
            padding.list[2 * d] = total > 0 ? total / 2 : 0;
            padding.list[2 * d + 1] = total > 0 ? total - total / 2 : 0;
        }
    }
    TW_TRY(resolve_padding(padding, "padding", n));
    for (int d = 0; d < n; ++d) {
        const int64_t padded = shape[d] + padding.list[2 * d] + padding.list[2 * d + 1];
        if (padded < reach[d] + 1)
            return fail(Status::shape, blame,
                        "%s gives %lld elements with padding along spatial axis %d but kernel=%lld covers %lld; want "
                        "at least that many",
                        blame, ll(padded), d, ll(kernel[d]), ll(reach[d] + 1));
        const int64_t room = padded - reach[d] - 1;
        out[d] = room / stride[d] + 1;
        if (ceil_mode && room % stride[d] && out[d] * stride[d] < shape[d] + padding.list[2 * d]) ++out[d];
    }
    return Status::ok;
}

View result(DType dtype, int ndim, const int64_t* shape) {
    View v;  // what it has no axes for is left as it is: to clear that takes longer than all the rest
    v.data = nullptr;
    v.dtype = dtype;
    v.ndim = ndim;
    for (int d = 0; d < ndim; ++d) v.shape[d] = shape[d];
    return v;
}

}  // namespace tw
