// tril and triu: the part of each matrix on one side of a diagonal, zeros on the other.
//
//     tril    y[i, j] = x[i, j] if j - i <= diagonal, else 0
//     triu    y[i, j] = x[i, j] if j - i >= diagonal, else 0
//
// Method    a row is a copy and a fill.
// Numerics  exact; what is cut off is never read.
// Threads   rows in pieces of kChunkElements; elements are independent.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

Status infer(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_ndim(x, "x", 2, kMaxDims));
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    return Status::ok;
}

template <class T>
void zero_row(T* y, int64_t stride, int64_t n) {
    const T zero{};
    copy_row(y, stride, &zero, 0, n);
}

template <class T>
void triangle(const Call& c, bool lower) {
    const View &x = c.in[0], &y = c.out[0];
    const int64_t m = x.shape[x.ndim - 2], n = x.shape[x.ndim - 1];
    const int64_t diagonal = max_of(-m - 1, min_of(n + 1, c.attr[0].i));
    const int64_t xs = x.stride[x.ndim - 1], ys = y.stride[y.ndim - 1];
    const View from = without_axis(x, x.ndim - 1), to = without_axis(y, y.ndim - 1);
    int64_t rows = 1;
    for (int d = 0; d < from.ndim; ++d) rows *= from.shape[d];
    const int64_t group = kChunkElements / n + 1;
    parallel(ceil_div(rows, group), [&](int64_t chunk) {
        for (int64_t i = chunk * group; i < min_of(rows, chunk * group + group); ++i) {
            const T* source = x.as<T>();
            T* target = y.as<T>();
            for (int64_t d = from.ndim - 1, rest = i; d >= 0; rest /= from.shape[d], --d) {
                source += rest % from.shape[d] * from.stride[d];
                target += rest % from.shape[d] * to.stride[d];
            }
            // Columns [0, cut) are on or below the diagonal for tril, below it for triu.
            const int64_t cut = max_of(0, min_of(n, i % m + diagonal + lower));
            if (lower) {
                copy_row(target, ys, source, xs, cut);
                zero_row(target + cut * ys, ys, n - cut);
            } else {
                zero_row(target, ys, cut);
                copy_row(target + cut * ys, ys, source + cut * xs, xs, n - cut);
            }
        }
    });
}

Status run(const Call& c, bool lower) {
    if (numel(c.out[0]) == 0) return Status::ok;
    switch (item_size(c.in[0].dtype)) {
        case 1: triangle<uint8_t>(c, lower); break;
        case 2: triangle<uint16_t>(c, lower); break;
        case 4: triangle<uint32_t>(c, lower); break;
        default: triangle<uint64_t>(c, lower); break;
    }
    return Status::ok;
}

Status run_tril(const Call& c) { return run(c, true); }
Status run_triu(const Call& c) { return run(c, false); }

constexpr Operand kX[] = {{"x"}};
constexpr AttrSpec kDiagonal[] = {{.name = "diagonal", .kind = AttrKind::integer}};

}  // namespace

extern const Entry op_tril = {"tril", kX, 1, kDiagonal, 1, infer, run_tril};
extern const Entry op_triu = {"triu", kX, 1, kDiagonal, 1, infer, run_triu};

}  // namespace tw::TW_ISA
