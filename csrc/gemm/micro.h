// The register tile: MR rows by NV vectors of C in registers, one broadcast per row and one FMA per accumulator a term.
#pragma once
#include "gemm/gemm.h"
#include "simd/convert.h"
#include "simd/math.h"

namespace tw::TW_ISA {
namespace {

template <class V>
TW_INLINE V activate(V v, Activation activation) {
    switch (activation) {
        case Activation::none: return v;
        case Activation::relu: return select(v <= V{}, V{}, v);
        case Activation::sigmoid: return sigmoid(v);
        case Activation::tanh: return tanh(v);
        case Activation::gelu: return gelu(v);
    }
    return v;
}

// Functions more costly than relu run over the finished tile, out of the way of the register allocator.
template <class T>
__attribute__((noinline)) void activate_tile(T* c, int64_t c_row, int m, int n, Activation activation) {
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; j += kLanes<T>) {
            T* at = c + i * c_row + j;
            const int lanes = n - j < kLanes<T> ? n - j : kLanes<T>;
            store_n(at, activate(load_n(at, lanes), activation), lanes);
        }
}

// Columns: one pointer, the MR numbers of a term are neighbours. Otherwise one pointer per row.
template <class T, int MR, int NV, bool Columns, bool Masked>
void micro(const Tile<T>& t, int n) {
    typedef Vec<T> V;
    constexpr int L = kLanes<T>;
    const int last = Masked ? n - (NV - 1) * L : L;
    const bool relu = t.activation == Activation::relu;
    const T* a_tile = t.a;
    T* c_tile = t.c;
    const T* bias_row = t.bias_row;
    for (int64_t below = 0; below < t.tiles; ++below, a_tile += t.a_tile, c_tile += MR * t.c_row) {
        V acc[MR][NV];
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) {
                const int lanes = Masked && j == NV - 1 ? last : L;
                const T* c = c_tile + i * t.c_row + j * L;
                V v = V{};
                if (t.load_c)
                    v = lanes == L ? load(c) : load_n(c, lanes);
                else if (bias_row)
                    v = splat<T>(bias_row[i]);
                else if (t.bias_col)
                    v = lanes == L ? load(t.bias_col + j * L) : load_n(t.bias_col + j * L, lanes);
                acc[i][j] = v;
            }
        for (int64_t outer = 0; outer < t.outer; ++outer) {
            const T* b = t.b + outer * t.b_outer;
            const T* rows[Columns ? 1 : MR];
#pragma GCC unroll 8
            for (int i = 0; i < (Columns ? 1 : MR); ++i) rows[i] = a_tile + outer * t.a_outer + i * t.a_row;
            int64_t at = 0;
            for (int64_t k = 0; k < t.kc; ++k, b += t.b_k, at += t.a_k) {
                V bv[NV];
#pragma GCC unroll 4
                for (int j = 0; j < NV; ++j) bv[j] = Masked && j == NV - 1 ? load_n(b + j * L, last) : load(b + j * L);
#pragma GCC unroll 8
                for (int i = 0; i < MR; ++i) {
                    const V av = splat<T>(Columns ? rows[0][at + i] : rows[Columns ? 0 : i][at]);
#pragma GCC unroll 4
                    for (int j = 0; j < NV; ++j) acc[i][j] += av * bv[j];
                }
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) {
                V v = acc[i][j];
                if (relu) v = activate(v, Activation::relu);
                T* c = c_tile + i * t.c_row + j * L;
                if (Masked && j == NV - 1)
                    store_n(c, v, last);
                else
                    store(c, v);
            }
        if (t.activation > Activation::relu) activate_tile(c_tile, t.c_row, MR, n, t.activation);
        if (bias_row) bias_row += MR;
    }
}

// MR rows of A times R columns of B where both run along k: sums kept per lane, added up at the end.
template <class T, int MR, int R, class A, class B>
TW_INLINE void dots(const A* a, int64_t a_row, const B* b, int64_t b_col, int64_t kc, T* sums) {
    constexpr int L = kLanes<T>;
    Vec<T> acc[MR][R] = {};
    const auto add = [&](int64_t k, int64_t lanes) __attribute__((always_inline)) {
        Vec<T> bv[R];
#pragma GCC unroll 4
        for (int j = 0; j < R; ++j)
            bv[j] = lanes == L ? load_as<T>(b + j * b_col + k) : load_as_n<T>(b + j * b_col + k, lanes);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) {
            const Vec<T> av = lanes == L ? load_as<T>(a + i * a_row + k) : load_as_n<T>(a + i * a_row + k, lanes);
#pragma GCC unroll 4
            for (int j = 0; j < R; ++j) acc[i][j] += av * bv[j];
        }
    };
    int64_t k = 0;
    for (; k + L <= kc; k += L) add(k, L);
    if (k < kc) add(k, kc - k);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < R; ++j) sums[i * R + j] = reduce_add(acc[i][j]);
}

}  // namespace
}  // namespace tw::TW_ISA
