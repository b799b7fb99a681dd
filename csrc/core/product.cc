#include "core/product.h"

namespace tw {

Product product_of(const View& a, const View& b) {
    Product p;
    const int ma = a.ndim - 1, mb = b.ndim - 1;
    p.k = a.shape[ma];
    p.m = ma ? a.shape[ma - 1] : 1;
    p.n = mb ? b.shape[mb] : 1;
    p.a_col = a.stride[ma];
    p.a_row = ma ? a.stride[ma - 1] : 0;
    p.b_row = mb ? b.stride[mb - 1] : b.stride[mb];
    p.b_col = mb ? b.stride[mb] : 0;
    return p;
}

Status resolve_product(const View& a, const View& b, View& y) {
    TW_TRY(want_ndim(a, "a", 1, kMaxDims));
    TW_TRY(want_ndim(b, "b", 1, kMaxDims));
    const Product p = product_of(a, b);
    const int64_t kb = b.shape[b.ndim > 1 ? b.ndim - 2 : 0];
    if (p.k != kb)
        return fail(Status::shape, "b", "a has shape %s, K=%lld, but b has shape %s, K=%lld; want equal K",
                    shape_text(a).text, static_cast<long long>(p.k), shape_text(b).text, static_cast<long long>(kb));
    const int la = a.ndim > 2 ? a.ndim - 2 : 0, lb = b.ndim > 2 ? b.ndim - 2 : 0, lead = la > lb ? la : lb;
    y.ndim = 0;
    for (int d = lead; d > 0; --d) {
        const int64_t m = d <= la ? a.shape[la - d] : 1, n = d <= lb ? b.shape[lb - d] : 1;
        if (m != n && m != 1 && n != 1)
            return fail(Status::shape, "b", "a has shape %s and b has %s; want leading axes that broadcast",
                        shape_text(a).text, shape_text(b).text);
        y.shape[y.ndim++] = m == 1 ? n : m;
    }
    if (a.ndim > 1) y.shape[y.ndim++] = p.m;
    if (b.ndim > 1) y.shape[y.ndim++] = p.n;
    return Status::ok;
}

bool broadcast_to(const View& y, View& v) {
    if (v.ndim > y.ndim) return false;
    View wide = v;
    wide.ndim = y.ndim;
    for (int d = 0; d < y.ndim; ++d) {
        const int own = d - (y.ndim - v.ndim);
        const int64_t size = own < 0 ? 1 : v.shape[own];
        if (size != y.shape[d] && size != 1) return false;
        wide.shape[d] = y.shape[d];
        wide.stride[d] = size == 1 ? 0 : v.stride[own];
    }
    v = wide;
    return true;
}

}  // namespace tw
