// Linear systems: of triangular matrices, of factored ones, and of square ones.
//
//     triangular_solve    t x = b, or x t = b if not `left`, t = a or a^T, the named triangle of a
//     lu_solve            a x = b, or a^T x = b, for the factors of a that lu gives
//     cholesky_solve      a x = b for the factor of a that cholesky gives
//     solve               a x = b
//
// Method    b is copied, substituted in place by linalg/, and staged; right sides are the columns of vectors.
// Numerics  |t x - b| <= c eps sqrt(N) |t| |x| per element; the others alike, with |L| |U| in place of |t|.
//           NaN and infinities in b and in triangles go where substitution takes them; solve with such an a gives NaN.
// Threads   matrices of a batch, else inside gemm; bits do not depend on their number.
// Source    Higham, "Accuracy and stability of numerical algorithms", 2nd edition, 2002, chapters 8 to 10.
#include "linalg/batch.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

// ---- shapes: a (..., N, N) and b (..., N, K), whose leading axes broadcast, or b (N,) ------------------------------------

Status infer_system(const View& a, const char* a_name, const View& b, bool left, Inferred& r) {
    TW_TRY(want_dtype_of(b, "b", a, a_name));
    TW_TRY(want_ndim(b, "b", 1, kMaxDims));
    const int64_t n = side_of(a), nb = b.shape[b.ndim > 1 && left ? b.ndim - 2 : b.ndim - 1];
    if (n != nb)
        return fail(Status::shape, "b", "%s has N=%lld but b has shape %s; want b of shape (N,) or (..., %s)", a_name,
                    static_cast<long long>(n), shape_text(b).text, left ? "N, K" : "K, N");
    const int la = a.ndim - 2, lb = b.ndim > 2 ? b.ndim - 2 : 0;
    View x{};
    x.dtype = a.dtype;
    for (int d = la > lb ? la : lb; d > 0; --d) {
        const int64_t m = d <= la ? a.shape[la - d] : 1, k = d <= lb ? b.shape[lb - d] : 1;
        if (m != k && m != 1 && k != 1)
            return fail(Status::shape, "b", "%s has shape %s and b has %s; want leading axes that broadcast", a_name,
                        shape_text(a).text, shape_text(b).text);
        x.shape[x.ndim++] = m == 1 ? k : m;
    }
    if (b.ndim > 1) x.shape[x.ndim++] = b.shape[b.ndim - 2];
    x.shape[x.ndim++] = b.shape[b.ndim - 1];
    r.n_out = 1;
    r.out[0] = x;
    r.flops = 2.0 * static_cast<double>(numel(x)) * static_cast<double>(n);
    return Status::ok;
}

// The right sides as a matrix of N rows, whichever way they stand, and the result likewise.
struct System {
    int64_t n, m;
    bool vector;
    View lead_a, lead_b, lead_x, x;
    int64_t b_row, b_col;
};

System system_of(const View& a, const View& b, const View& out, bool left) {
    System s{};
    s.n = side_of(a);
    s.vector = b.ndim == 1;
    s.x = out;
    s.lead_a = leading(a, 2), s.lead_b = leading(b, 2), s.lead_x = leading(out, s.vector ? 1 : 2);
    if (s.vector) {
        s.lead_b.ndim = 0;
        s.m = 1, s.b_row = b.stride[0], s.b_col = 1;
        return s;
    }
    const int last = b.ndim - 1, row = left ? last - 1 : last, column = left ? last : last - 1;
    s.m = b.shape[column];
    s.b_row = b.stride[row], s.b_col = b.stride[column];
    if (!left) {
        s.x.shape[out.ndim - 2] = s.n, s.x.shape[out.ndim - 1] = s.m;
        s.x.stride[out.ndim - 2] = out.stride[out.ndim - 1];
        s.x.stride[out.ndim - 1] = out.stride[out.ndim - 2];
    }
    return s;
}

// Copies every b into the stage, runs one(i, at, x) on it, and delivers; at[0] and at[1] are a and `other`.
template <class T, class One>
Status solve_systems(const System& s, int64_t work, const View& other, const char* name, const char* what,
                     const char* want, const One& one) {
    const Stage<T> stage(numel(s.lead_x), s.n, s.m);
    FirstBad bad;
    if (!stage.data) return no_memory();
    const View* views[] = {&s.lead_x, &s.lead_a, &s.lead_b, &other};
    each_matrix(walk_over(views, 4, s.lead_x.ndim, s.lead_x.shape), work, [&](int64_t i, char* const* at) {
        T* const x = stage[i];
        const T* const b = reinterpret_cast<const T*>(at[2]);
        if (s.m == 1)
            move_matrix({b, 0, s.b_row}, 1, s.n, x, 0, 1);
        else
            move_matrix({b, s.b_row, s.b_col}, s.n, s.m, x, stage.row, 1);
        note_bad(bad, i, one(at[1], at[3], x, stage.row));
    });
    TW_TRY(error_of(bad, s.lead_x, s.lead_a, name, what, want));
    s.vector ? deliver_vectors(stage, s.x) : deliver_matrices(stage, s.x);
    return Status::ok;
}

// t x = b, of which `t` may lie transposed: t^T is the other triangle.
template <class T>
bool solve_triangle(int64_t n, int64_t m, Matrix<T> t, bool upper, bool transpose, bool unit, T* x, int64_t x_row) {
    if (transpose) t = {t.data, t.col, t.row};
    return upper != transpose ? solve_upper(n, m, t, unit, x, x_row) : solve_lower(n, m, t, unit, x, x_row);
}

// ---- triangular_solve -----------------------------------------------------------------------------------------------------

Status infer_triangular_solve(Call& c, Inferred& r) {
    TW_TRY(want_square(c.in[0], "a"));
    TW_TRY(infer_system(c.in[0], "a", c.in[1], c.attr[3].i != 0, r));
    r.flops /= 2;
    return Status::ok;
}

template <class T>
int64_t zero_on_diagonal(const Matrix<T>& t, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if (t.data[i * (t.row + t.col)] == 0) return i;
    return kRegular;
}

template <class T>
Status triangular_solve(const Call& c) {
    const View &a = c.in[0], &b = c.in[1];
    const bool left = c.attr[3].i != 0, upper = c.attr[0].i != 0, unit = c.attr[2].i != 0;
    const bool transpose = (c.attr[1].i != 0) == left;  // x t = b is t^T x^T = b^T
    const System s = system_of(a, b, c.out[0], left);
    return solve_systems<T>(s, s.n * s.n * s.m / 2, s.lead_a, "a", "a zero on the diagonal, in column",
                            "a triangle that can be inverted", [&](const char* at, const char*, T* x, int64_t x_row) {
        const Matrix<T> t = matrix_of<T>(a, at);
        const int64_t zero = unit ? kRegular : zero_on_diagonal(t, s.n);
        if (zero != kRegular) return zero;
        return solve_triangle(s.n, s.m, t, upper, transpose, unit, x, x_row) ? kRegular : kNoMemory;
    });
}

Status run_triangular_solve(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? triangular_solve<float>(c) : triangular_solve<double>(c);
}

// ---- lu_solve -------------------------------------------------------------------------------------------------------------

Status infer_lu_solve(Call& c, Inferred& r) {
    const View &lu = c.in[0], &pivots = c.in[1];
    TW_TRY(want_square(lu, "lu"));
    if (pivots.dtype != DType::i32)
        return fail(Status::dtype, "pivots", "pivots has dtype %s; want int32, as lu gives them",
                    name_of(pivots.dtype));
    TW_TRY(want_shape(pivots, "pivots", lu.ndim - 1, lu.shape));
    return infer_system(lu, "lu", c.in[2], true, r);
}

Status check_pivots(const View& pivots) {
    const int64_t n = pivots.shape[pivots.ndim - 1], count = numel(pivots);
    View flat = pivots;
    const View* views[] = {&flat};
    const Walk w = walk_over(views, 1, pivots.ndim, pivots.shape);
    for (int64_t i = 0; i < count; ++i) {
        char* at[kMaxWalked];
        if (i % w.row == 0) walk_seek(w, i / w.row, at);
        const int32_t pivot = reinterpret_cast<const int32_t*>(at[0])[i % w.row * w.stride[0]];
        if (pivot < 0 || pivot >= n)
            return fail(Status::index, "pivots", "pivots has %d at position %lld; want 0 to %lld", pivot,
                        static_cast<long long>(i), static_cast<long long>(n - 1));
    }
    return Status::ok;
}

template <class T>
Status lu_solve(const Call& c) {
    const View &lu = c.in[0], &pivots = c.in[1];
    const bool transpose = c.attr[0].i != 0;
    const System s = system_of(lu, c.in[2], c.out[0], true);
    TW_TRY(check_pivots(pivots));
    const int64_t pivot_step = pivots.stride[pivots.ndim - 1];
    return solve_systems<T>(s, s.n * s.n * s.m, leading(pivots, 1), "lu", "a zero on the diagonal, in column",
                            "factors of lu", [&](const char* at, const char* pivot_at, T* x, int64_t x_row) {
        const Matrix<T> t = matrix_of<T>(lu, at);
        if (const int64_t zero = zero_on_diagonal(t, s.n); zero != kRegular) return zero;
        Scratch scratch(static_cast<size_t>(s.n) * sizeof(int32_t));
        int32_t* const swaps = scratch.template as<int32_t>();
        if (!swaps) return kNoMemory;
        copy_row(swaps, 1, reinterpret_cast<const int32_t*>(pivot_at), pivot_step, s.n);
        if (!transpose) swap_rows(x, x_row, s.m, swaps, s.n);
        if (!solve_triangle(s.n, s.m, t, transpose, transpose, !transpose, x, x_row) ||
            !solve_triangle(s.n, s.m, t, !transpose, transpose, transpose, x, x_row))
            return kNoMemory;
        if (transpose) swap_rows(x, x_row, s.m, swaps, s.n, true);
        return kRegular;
    });
}

Status run_lu_solve(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? lu_solve<float>(c) : lu_solve<double>(c);
}

// ---- cholesky_solve -------------------------------------------------------------------------------------------------------

Status infer_cholesky_solve(Call& c, Inferred& r) {
    TW_TRY(want_square(c.in[1], "factor"));
    return infer_system(c.in[1], "factor", c.in[0], true, r);
}

template <class T>
Status cholesky_solve(const Call& c) {
    const View &b = c.in[0], &factor = c.in[1];
    const bool upper = c.attr[0].i != 0;
    const System s = system_of(factor, b, c.out[0], true);
    return solve_systems<T>(s, s.n * s.n * s.m, s.lead_a, "factor", "a zero on the diagonal, in column",
                            "a factor of cholesky", [&](const char* at, const char*, T* x, int64_t x_row) {
        const Matrix<T> t = matrix_of<T>(factor, at);
        const int64_t zero = zero_on_diagonal(t, s.n);
        if (zero != kRegular) return zero;
        return solve_triangle(s.n, s.m, t, upper, upper, false, x, x_row) &&
                       solve_triangle(s.n, s.m, t, upper, !upper, false, x, x_row)
                   ? kRegular
                   : kNoMemory;
    });
}

Status run_cholesky_solve(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? cholesky_solve<float>(c) : cholesky_solve<double>(c);
}

// ---- solve ----------------------------------------------------------------------------------------------------------------

Status infer_solve(Call& c, Inferred& r) {
    TW_TRY(want_square(c.in[0], "a"));
    TW_TRY(infer_system(c.in[0], "a", c.in[1], true, r));
    const double n = static_cast<double>(side_of(c.in[0]));
    r.flops += 2.0 / 3.0 * n * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

template <class T>
Status solve(const Call& c) {
    const View &a = c.in[0], &b = c.in[1];
    const System s = system_of(a, b, c.out[0], true);
    const int64_t row = padded<T>(s.n);
    return solve_systems<T>(s, s.n * s.n * (s.n / 3 + s.m), s.lead_a, "a", "no pivot other than 0 in column",
                            "an invertible matrix", [&](const char* at, const char*, T* x, int64_t x_row) {
        Scratch scratch(static_cast<size_t>(s.n * row) * sizeof(T) + static_cast<size_t>(s.n) * sizeof(int32_t));
        T* const lu = scratch.template as<T>();
        if (!lu) return kNoMemory;
        int32_t* const swaps = reinterpret_cast<int32_t*>(lu + s.n * row);
        move_matrix(matrix_of<T>(a, at), s.n, s.n, lu, row, 1);
        if (const int64_t answer = factor_or_unknown(s.n, lu, row, swaps); answer != kRegular) return answer;
        swap_rows(x, x_row, s.m, swaps, s.n);
        const Matrix<T> t = {lu, row, 1};
        return solve_lower(s.n, s.m, t, true, x, x_row) && solve_upper(s.n, s.m, t, false, x, x_row) ? kRegular
                                                                                                     : kNoMemory;
    });
}

Status run_solve(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? solve<float>(c) : solve<double>(c);
}

constexpr Operand kAB[] = {{"a"}, {"b"}};
constexpr Operand kLuPivotsB[] = {{"lu"}, {"pivots"}, {"b"}};
constexpr Operand kBFactor[] = {{"b"}, {"factor"}};
constexpr AttrSpec kTriangle[] = {{.name = "upper", .kind = AttrKind::boolean, .required = true},
                                  {.name = "transpose", .kind = AttrKind::boolean},
                                  {.name = "unit_diagonal", .kind = AttrKind::boolean},
                                  {.name = "left", .kind = AttrKind::boolean, .i = 1}};
constexpr AttrSpec kTranspose[] = {{.name = "transpose", .kind = AttrKind::boolean}};
constexpr AttrSpec kUpper[] = {{.name = "upper", .kind = AttrKind::boolean}};

}  // namespace

extern const Entry op_triangular_solve = {"triangular_solve",  kAB, 2, kTriangle, 4, infer_triangular_solve,
                                          run_triangular_solve};
extern const Entry op_lu_solve = {"lu_solve", kLuPivotsB, 3, kTranspose, 1, infer_lu_solve, run_lu_solve};
extern const Entry op_cholesky_solve = {"cholesky_solve",     kBFactor,          2, kUpper, 1,
                                        infer_cholesky_solve, run_cholesky_solve};
extern const Entry op_solve = {"solve", kAB, 2, nullptr, 0, infer_solve, run_solve};

}  // namespace tw::TW_ISA
