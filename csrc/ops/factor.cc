// LU with partial pivoting and Cholesky, of batches of square matrices.
//
//     lu          P a = L U, L and U in one matrix, P as the row that step k swapped with row k
//     cholesky    a = L L^T, or U^T U if `upper`; only that triangle of a is read, the other one of the result is 0
//
// Method    linalg/: recursive halves over gemm; a batch of small matrices is split by matrix.
// Numerics  |P^T L U - a| <= c eps sqrt(N) P^T |L| |U| and |L L^T - a| <= c eps sqrt(N) |L| |L^T| per element. A matrix
//           with a NaN or an infinity gives NaN throughout, and pivots that swap nothing.
// Threads   matrices of a batch, else inside gemm; bits do not depend on their number.
// Source    Toledo, "Locality of reference in LU decomposition with partial pivoting", 1997.
#include "linalg/batch.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

double cubes(const View& a, double share) {
    const double n = static_cast<double>(side_of(a));
    return static_cast<double>(numel(a)) * n * share;
}

// ---- lu -------------------------------------------------------------------------------------------------------------------

Status infer_lu(Call& c, Inferred& r) {
    const View& a = c.in[0];
    TW_TRY(want_square(a, "a"));
    r.n_out = 2;
    r.out[0] = result(a.dtype, a.ndim, a.shape);
    r.out[1] = result(DType::i32, a.ndim - 1, a.shape);
    r.flops = cubes(a, 2.0 / 3.0);
    return Status::ok;
}

template <class T>
Status lu(const Call& c) {
    const View& a = c.in[0];
    const int64_t n = side_of(a);
    const View lead = leading(a, 2);
    const Stage<T> stage(numel(lead), n, n);
    const Stage<int32_t> pivots(numel(lead), n, 1);
    FirstBad bad;
    if (!stage.data || !pivots.data) return no_memory();
    const View* views[] = {&lead};
    each_matrix(walk_over(views, 1, lead.ndim, lead.shape), n * n * n / 3, [&](int64_t i, char* const* at) {
        const Matrix<T> from = matrix_of<T>(a, at[0]);
        move_matrix(from, n, n, stage[i], stage.row, 1);
        note_bad(bad, i, factor_or_unknown(n, stage[i], stage.row, pivots[i]));
    });
    TW_TRY(error_of(bad, lead, lead, "a", "no pivot other than 0 in column", "an invertible matrix"));
    deliver_matrices(stage, c.out[0]);
    deliver_vectors(pivots, c.out[1]);
    return Status::ok;
}

Status run_lu(const Call& c) {
    if (numel(c.in[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? lu<float>(c) : lu<double>(c);
}

// ---- cholesky -------------------------------------------------------------------------------------------------------------

Status infer_cholesky(Call& c, Inferred& r) {
    const View& a = c.in[0];
    TW_TRY(want_square(a, "a"));
    r.n_out = 1;
    r.out[0] = result(a.dtype, a.ndim, a.shape);
    r.flops = cubes(a, 1.0 / 3.0);
    return Status::ok;
}

template <class T>
Status cholesky(const Call& c) {
    const View& a = c.in[0];
    const bool upper = c.attr[0].i != 0;
    const int64_t n = side_of(a);
    const View lead = leading(a, 2);
    const Stage<T> stage(numel(lead), n, n);
    FirstBad bad;
    if (!stage.data) return no_memory();
    const View* views[] = {&lead};
    each_matrix(walk_over(views, 1, lead.ndim, lead.shape), n * n * n / 6, [&](int64_t i, char* const* at) {
        Matrix<T> from = matrix_of<T>(a, at[0]);
        if (!upper) from = {from.data, from.col, from.row};
        T* const u = stage[i];
        move_matrix(from, n, n, u, stage.row, 1);
        if (all_finite(u, stage.row, n, [](int64_t k) { return k; }))
            note_bad(bad, i, factor_cholesky(n, u, stage.row));
        else
            for (int64_t k = 0; k < n; ++k) fill_matrix(u + k * stage.row + k, stage.row, 1, n - k, kUnknown<T>);
        for (int64_t k = 0; k < n; ++k) fill_matrix(u + k * stage.row, stage.row, 1, k, T{0});
    });
    TW_TRY(error_of(bad, lead, lead, "a", "no positive pivot in column", "a positive definite matrix"));
    View out = c.out[0];
    if (!upper) {
        out.stride[out.ndim - 2] = c.out[0].stride[out.ndim - 1];
        out.stride[out.ndim - 1] = c.out[0].stride[out.ndim - 2];
    }
    deliver_matrices(stage, out);
    return Status::ok;
}

Status run_cholesky(const Call& c) {
    if (numel(c.in[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? cholesky<float>(c) : cholesky<double>(c);
}

constexpr Operand kA[] = {{"a"}};
constexpr AttrSpec kUpper[] = {{.name = "upper", .kind = AttrKind::boolean}};

}  // namespace

extern const Entry op_lu = {"lu", kA, 1, nullptr, 0, infer_lu, run_lu};
extern const Entry op_cholesky = {"cholesky", kA, 1, kUpper, 1, infer_cholesky, run_cholesky};

}  // namespace tw::TW_ISA
