#include "core/walk.h"

namespace tw {

Walk walk_over(const View* const* views, int n, int ndim, const int64_t* shape) {
    Walk w;
    w.n = n;
    int64_t stride[kMaxWalked][kMaxDims];
    for (int k = 0; k < n; ++k) {
        const View& v = *views[k];
        w.size[k] = item_size(v.dtype);
        w.data[k] = v.as<char>();
        const int offset = ndim - v.ndim;
        for (int d = 0; d < ndim; ++d) stride[k][d] = d < offset || v.shape[d - offset] == 1 ? 0 : v.stride[d - offset];
    }
    // Drop axes of size 1, then merge an axis into the next inner one where every view allows it.
    int kept[kMaxDims], count = 0;
    for (int d = 0; d < ndim; ++d)
        if (shape[d] != 1) kept[count++] = d;
    int64_t size[kMaxDims];
    int merged = 0;
    for (int i = 0; i < count; ++i) {
        const int d = kept[i];
        bool join = merged > 0;
        for (int k = 0; join && k < n; ++k) join = stride[k][merged - 1] == shape[d] * stride[k][d];
        const int to = join ? merged - 1 : merged++;
        size[to] = join ? size[to] * shape[d] : shape[d];
        for (int k = 0; k < n; ++k) stride[k][to] = stride[k][d];
    }
    w.row = merged ? size[merged - 1] : 1;
    for (int k = 0; k < n; ++k) w.stride[k] = merged ? stride[k][merged - 1] : 0;
    w.ndim = merged ? merged - 1 : 0;
    for (int d = 0; d < w.ndim; ++d) {
        w.shape[d] = size[d];
        for (int k = 0; k < n; ++k) w.step[k][d] = stride[k][d] * w.size[k];
    }
    return w;
}

int64_t walk_rows(const Walk& w) {
    int64_t rows = 1;
    for (int d = 0; d < w.ndim; ++d) rows *= w.shape[d];
    return rows;
}

void walk_seek(const Walk& w, int64_t row, char** at) {
    for (int k = 0; k < w.n; ++k) at[k] = w.data[k];
    for (int d = w.ndim - 1; d >= 0; --d) {
        const int64_t i = row % w.shape[d];
        row /= w.shape[d];
        for (int k = 0; k < w.n; ++k) at[k] += i * w.step[k][d];
    }
}

}  // namespace tw
