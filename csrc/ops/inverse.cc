// Inverses and determinants of batches of square matrices.
//
//     inv        a^-1
//     det        the determinant
//     slogdet    its sign (0 if a is singular) and the logarithm of its size
//
// Method    P a = L U of linalg/; a^-1 = U^-1 (L^-1 P), where L^-1 is built by columns of blocks that skip its zeros. The
//           product of the diagonal of U is kept as mantissa and exponent, in double, so that it overflows at the end only.
// Numerics  |a x - 1| <= c eps sqrt(N) P^T |L| |U| |x| per element; the determinant is that of a matrix as near to a.
//           NaN throughout for a matrix with a NaN or an infinity. det and slogdet do not mind a singular matrix.
// Threads   matrices of a batch, else inside gemm; bits do not depend on their number.
// Source    Higham, "Accuracy and stability of numerical algorithms", 2nd edition, 2002, chapter 14.
#include "linalg/batch.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

// ---- inv ------------------------------------------------------------------------------------------------------------------

Status infer_inv(Call& c, Inferred& r) {
    const View& a = c.in[0];
    TW_TRY(want_square(a, "a"));
    r.n_out = 1;
    r.out[0] = result(a.dtype, a.ndim, a.shape);
    r.flops = 2.0 * static_cast<double>(numel(a)) * static_cast<double>(side_of(a));
    return Status::ok;
}

// Column swaps[k] of x is column k of the swapped one: rows pass through a buffer.
template <class T>
bool unswap_columns(T* x, int64_t row, int64_t n, const int32_t* swaps) {
    Scratch scratch(static_cast<size_t>(n) * sizeof(int32_t));
    int32_t* const place = scratch.template as<int32_t>();
    if (!place) return false;
    for (int64_t i = 0; i < n; ++i) place[i] = static_cast<int32_t>(i);
    for (int64_t k = 0; k < n; ++k) {
        const int32_t held = place[k];
        place[k] = place[swaps[k]];
        place[swaps[k]] = held;
    }
    constexpr int64_t kRows = 64;
    bool enough = true;
    parallel(ceil_div(n, kRows), [&](int64_t chunk) {
        Scratch buffer(static_cast<size_t>(n) * sizeof(T));
        T* const held = buffer.template as<T>();
        if (!held) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t i = chunk * kRows; i < min_of(n, chunk * kRows + kRows); ++i) {
            copy_row(held, 1, x + i * row, 1, n);
            for (int64_t j = 0; j < n; ++j) x[i * row + place[j]] = held[j];
        }
    });
    return enough;
}

template <class T>
int64_t invert(int64_t n, T* lu, T* x, int64_t row, int32_t* swaps) {
    constexpr int64_t kColumns = 4 * kBlock;
    if (const int64_t answer = factor_or_unknown(n, lu, row, swaps); answer != kRegular) return answer;
    const Matrix<T> t = {lu, row, 1};
    fill_matrix(x, row, n, n, T{0});
    for (int64_t i = 0; i < n; ++i) x[i * row + i] = 1;
    for (int64_t j = 0; j < n; j += kColumns) {
        const Matrix<T> corner = {lu + j * row + j, row, 1};
        if (!solve_lower(n - j, min_of(kColumns, n - j), corner, true, x + j * row + j, row)) return kNoMemory;
    }
    return solve_upper(n, n, t, false, x, row) && unswap_columns(x, row, n, swaps) ? kRegular : kNoMemory;
}

template <class T>
Status inv(const Call& c) {
    const View& a = c.in[0];
    const int64_t n = side_of(a);
    const View lead = leading(a, 2);
    const Stage<T> stage(numel(lead), n, n);
    FirstBad bad;
    if (!stage.data) return no_memory();
    const View* views[] = {&lead};
    each_matrix(walk_over(views, 1, lead.ndim, lead.shape), n * n * n, [&](int64_t i, char* const* at) {
        const size_t numbers = static_cast<size_t>(n * stage.row) * sizeof(T);
        Scratch scratch(numbers + static_cast<size_t>(n) * sizeof(int32_t));
        char* const memory = scratch.template as<char>();
        if (!memory) return note_bad(bad, i, kNoMemory);
        T* const lu = reinterpret_cast<T*>(memory);
        move_matrix(matrix_of<T>(a, at[0]), n, n, lu, stage.row, 1);
        note_bad(bad, i, invert(n, lu, stage[i], stage.row, reinterpret_cast<int32_t*>(memory + numbers)));
    });
    TW_TRY(error_of(bad, lead, lead, "a", "no pivot other than 0 in column", "an invertible matrix"));
    deliver_matrices(stage, c.out[0]);
    return Status::ok;
}

Status run_inv(const Call& c) {
    if (numel(c.in[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? inv<float>(c) : inv<double>(c);
}

// ---- det, slogdet -----------------------------------------------------------------------------------------------------------

Status infer_det(Call& c, Inferred& r) {
    const View& a = c.in[0];
    TW_TRY(want_square(a, "a"));
    r.n_out = c.op->name[0] == 'd' ? 1 : 2;
    for (int k = 0; k < r.n_out; ++k) r.out[k] = result(a.dtype, a.ndim - 2, a.shape);
    r.flops = 2.0 / 3.0 * static_cast<double>(numel(a)) * static_cast<double>(side_of(a));
    return Status::ok;
}

// mantissa * 2^exponent, 0.5 <= |mantissa| < 1, 0 or NaN.
struct Product {
    double mantissa;
    int64_t exponent;
};

template <class T>
Product diagonal_product(int64_t n, const T* lu, int64_t row, const int32_t* swaps) {
    Product p = {1, 0};
    for (int64_t i = 0; i < n; ++i) {
        const double value = static_cast<double>(lu[i * row + i]);
        int exponent = 0;
        p.mantissa = __builtin_frexp(p.mantissa * (swaps[i] == i ? value : -value), &exponent);
        p.exponent += exponent;
    }
    return p;
}

// Calls store(at, product) for every matrix, where at[1] and at[2] are the results.
template <class T, class Save>
Status each_determinant(const Call& c, const Save& save) {
    const View& a = c.in[0];
    const int64_t n = side_of(a), row = padded<T>(n);
    const View lead = leading(a, 2);
    const View* views[] = {&lead, &c.out[0], &c.out[c.n_out - 1]};
    FirstBad bad;
    each_matrix(walk_over(views, 3, lead.ndim, lead.shape), n * n * n / 3, [&](int64_t i, char* const* at) {
        const size_t numbers = static_cast<size_t>(n * row) * sizeof(T);
        Scratch scratch(numbers + static_cast<size_t>(n + 1) * sizeof(int32_t));
        char* const memory = scratch.template as<char>();
        if (!memory) return note_bad(bad, i, kNoMemory);
        T* const lu = reinterpret_cast<T*>(memory);
        int32_t* const swaps = reinterpret_cast<int32_t*>(memory + numbers);
        move_matrix(matrix_of<T>(a, at[0]), n, n, lu, row, 1);
        const int64_t answer = factor_or_unknown(n, lu, row, swaps);
        if (answer == kNoMemory) return note_bad(bad, i, answer);
        save(at, answer == kRegular ? diagonal_product(n, lu, row, swaps) : Product{0, 0});
    });
    return bad.enough ? Status::ok : no_memory();
}

template <class T>
Status det(const Call& c) {
    return each_determinant<T>(c, [](char* const* at, const Product& p) {
        const int64_t limit = 1 << 20;  // beyond any exponent
        const int exponent = static_cast<int>(p.exponent > limit ? limit : max_of(p.exponent, -limit));
        *reinterpret_cast<T*>(at[1]) = static_cast<T>(__builtin_ldexp(p.mantissa, exponent));
    });
}

template <class T>
Status slogdet(const Call& c) {
    return each_determinant<T>(c, [](char* const* at, const Product& p) {
        constexpr double kLog2 = 0.693147180559945309417;
        const double size = p.mantissa < 0 ? -p.mantissa : p.mantissa;
        const double sign = p.mantissa < 0 ? -1 : p.mantissa > 0 ? 1 : p.mantissa;
        *reinterpret_cast<T*>(at[1]) = static_cast<T>(sign);
        *reinterpret_cast<T*>(at[2]) = static_cast<T>(__builtin_log(size) + kLog2 * static_cast<double>(p.exponent));
    });
}

Status run_det(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? det<float>(c) : det<double>(c);
}

Status run_slogdet(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return c.in[0].dtype == DType::f32 ? slogdet<float>(c) : slogdet<double>(c);
}

constexpr Operand kA[] = {{"a"}};

}  // namespace

extern const Entry op_inv = {"inv", kA, 1, nullptr, 0, infer_inv, run_inv};
extern const Entry op_det = {"det", kA, 1, nullptr, 0, infer_det, run_det};
extern const Entry op_slogdet = {"slogdet", kA, 1, nullptr, 0, infer_det, run_slogdet};

}  // namespace tw::TW_ISA
