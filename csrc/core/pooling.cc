#include "core/pooling.h"

namespace tw {
namespace {

constexpr PoolAxis kAbsent = {1, 1, 1, 1, 1, 0, 0, 0, 0};

// Whether two axes of `wide` can be walked as one.
bool joins(const PoolAxis& outer, const PoolAxis& inner) {
    return outer.size == 1 || inner.size == 1 || outer.wide_step == inner.size * inner.wide_step;
}

// With a dilation beyond the size of x all taps of a window may fall beside it.
Status want_taps(const PoolAxis& a, int d) {
    for (int64_t o = 0; a.size < a.dilation && o < a.out; ++o) {
        const Taps t = taps_of(a, o);
        if (t.first >= t.last)
            return fail(Status::attr, "dilation",
                        "dilation=%lld puts window %lld along spatial axis %d beside x; want taps inside",
                        static_cast<long long>(a.dilation), static_cast<long long>(o), d);
    }
    return Status::ok;
}

}  // namespace

Windows windows_over(const View& wide, const View& small, const WindowAttrs& a) {
    Windows w{};
    const int rank = wide.ndim - 2;
    w.channels = wide.shape[1];
    w.planes = wide.shape[0] * wide.shape[1];
    w.plane_size = 1;
    w.wide_batch = wide.stride[0];
    w.wide_channel = wide.stride[1];
    w.small_batch = small.stride[0];
    w.small_channel = small.stride[1];
    for (int d = 0; d < 3; ++d) {
        const int k = d - 3 + rank;
        w.axis[d] = kAbsent;
        if (k < 0) continue;
        w.axis[d] = {wide.shape[k + 2],
                     small.shape[k + 2],
                     a.kernel ? a.kernel[k] : 1,
                     a.stride ? a.stride[k] : 1,
                     a.dilation ? a.dilation[k] : 1,
                     a.padding ? a.padding[2 * k] : 0,
                     a.padding ? a.padding[2 * k + 1] : 0,
                     wide.stride[k + 2],
                     small.stride[k + 2]};
        w.plane_size *= wide.shape[k + 2];
    }
    return w;
}

bool spans(const PoolAxis& a) { return a.kernel == a.size && a.before == 0 && a.after == 0 && a.out == 1; }

bool merge_spanned(Windows& w) {
    bool near = true;
    for (int k = 0; k < 2; ++k) {
        PoolAxis &outer = w.axis[1], &inner = w.axis[2];
        if (!spans(inner) || outer.dilation != 1) break;
        near = near && joins(outer, inner);
        const int64_t n = inner.size;
        inner = {outer.size * n,
                 outer.out,
                 outer.kernel * n,
                 outer.stride * n,
                 1,
                 outer.before * n,
                 outer.after * n,
                 n == 1 ? outer.wide_step : inner.wide_step,
                 outer.small_step};
        outer = w.axis[0];
        w.axis[0] = kAbsent;
    }
    return near;
}

bool is_dense(const Windows& w) {
    int64_t step = 1;
    for (int d = 2; d >= 0; --d) {
        if (w.axis[d].size != 1 && w.axis[d].wide_step != step) return false;
        step *= w.axis[d].size;
    }
    return true;
}

Attr sizes_attr(int n, const int64_t* values) {
    Attr a = {};
    a.is_pairs = values == nullptr;
    a.n = values ? n : 2 * n;
    for (int d = 0; values && d < n; ++d) a.list[d] = values[d];
    return a;
}

Status want_divisor(const Attr& divisor) {
    if (divisor.is_none || (divisor.i >= 1 && divisor.i <= kMaxSize)) return Status::ok;
    return fail(Status::attr, "divisor", "divisor=%lld; want None, or a number from 1 to 2^40",
                static_cast<long long>(divisor.i));
}

Status want_planes(const View& v, const char* name) {
    TW_TRY(want_floating(v, name));
    if (v.ndim >= 3 && v.ndim <= 5) return Status::ok;
    return fail(Status::shape, name, "%s has shape %s; want (N, C, ...) with 1 to 3 spatial axes", name,
                shape_text(v).text);
}

View planes_like(const View& v, int rank, const int64_t* sizes) {
    View r = result(v.dtype, 2 + rank, v.shape);
    for (int d = 0; d < rank; ++d) r.shape[2 + d] = sizes[d];
    return r;
}

Status resolve_pooling(int rank, const int64_t* sizes, Attr& kernel, Attr& stride, Attr& padding, Attr* dilation,
                       bool ceil_mode, int64_t* out, const char* blame) {
    constexpr int64_t ones[3] = {1, 1, 1};
    for (int d = 0; d < rank; ++d)
        if (sizes[d] < 1)
            return fail(Status::shape, blame, "%s has no elements along spatial axis %d; want at least one", blame, d);
    TW_TRY(resolve_integers(kernel, "kernel", rank, 1));
    if (stride.is_none) stride = kernel;
    TW_TRY(resolve_integers(stride, "stride", rank, 1));
    if (dilation) TW_TRY(resolve_integers(*dilation, "dilation", rank, 1));
    const int64_t* const step = dilation ? dilation->list : ones;
    const AttrText given_padding = padding.choice ? AttrText{} : attr_text(padding);
    TW_TRY(resolve_window(sizes, kernel.list, stride.list, step, padding, rank, ceil_mode, out, blame));
    for (int d = 0; d < rank; ++d) {
        const PoolAxis a = {
            sizes[d], out[d], kernel.list[d], stride.list[d], step[d], padding.list[2 * d], padding.list[2 * d + 1],
            0,        0};
        const int64_t half = (reach_of(a) + 1) / 2;
        if (a.before > half || a.after > half)
            return fail(Status::attr, "padding",
                        "padding=%s is more than half of kernel=%lld along spatial axis %d; want at most %lld",
                        given_padding.text, static_cast<long long>(a.kernel), d, static_cast<long long>(half));
        TW_TRY(want_taps(a, d));
    }
    return Status::ok;
}

}  // namespace tw
