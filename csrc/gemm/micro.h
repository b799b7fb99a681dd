// The register tile: MR rows by NV vectors of C in registers, one broadcast per row and one FMA per accumulator a term.
#pragma once
#include "gemm/gemm.h"
#include "simd/accumulate.h"
#include "simd/convert.h"
#include "simd/math.h"

namespace tw::TW_ISA {
namespace {

// relu and relu6: cheap enough for sums that are still in registers. NaN stays NaN.
TW_INLINE bool is_clip(Activation a) { return a == Activation::relu || a == Activation::relu6; }
template <class V>
TW_INLINE V clip_limit(Activation a) {
    return splat<Elem<V>>(a == Activation::relu6 ? Elem<V>(6) : Elem<V>(__builtin_inf()));
}
template <class V>
TW_INLINE V clipped(V v, V limit) {
    return min_any(limit, select(v <= V{}, V{}, v));
}

template <class V>
TW_INLINE V activate(V v, Activation activation) {
    switch (activation) {
        case Activation::none: return v;
        case Activation::relu:
        case Activation::relu6: return clipped(v, clip_limit<V>(activation));
        case Activation::sigmoid: return sigmoid(v);
        case Activation::tanh: return tanh(v);
        case Activation::gelu: return gelu(v);
        case Activation::silu: return silu(v);
        case Activation::hard_swish: return v * clipped(v + 3, clip_limit<V>(Activation::relu6)) / 6;
    }
    return v;
}

// More costly functions run over the finished tile, out of the way of the register allocator.
template <class T>
__attribute__((noinline)) void activate_tile(T* c, int64_t c_row, int m, int n, Activation activation) {
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; j += kLanes<T>) {
            T* at = c + i * c_row + j;
            const int lanes = n - j < kLanes<T> ? n - j : kLanes<T>;
            store_n(at, activate(load_n(at, lanes), activation), lanes);
        }
}

// N neighbours, wherever the bounds of cache lines lie.
template <class T, int N>
TW_INLINE void fetch_line(const T* p) {
    for (int i = 0; i < N; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(p + i);
    __builtin_prefetch(p + N - 1);
}

template <int N>
struct Constant {
    static constexpr int value = N;
};

// Columns: one pointer, the MR numbers of a term are neighbours. Otherwise one pointer per row. Gathered: B by vectors.
// kSets: sums of every kSets-th term, where a few sums alone would wait for each other; vectors of B are then whole.
// kStepA, kStepB: a_k and b_k where they are known, which are then part of the loads; 0: each costs an instruction a term.
// Vectors of B are whole too where kStepB is known.
template <class T, int MR, int NV, bool Columns, bool Masked, int kStepA = 0, int kStepB = 0, bool Gathered = false,
          int kSets = 1>
void micro(const Tile<T>& t, int n) {
    typedef Vec<T> V;
    constexpr int L = kLanes<T>;
    const int last = Masked ? n - (NV - 1) * L : L;
    const T* a_tile = t.a;
    T* c_tile = t.c;
    const int64_t kc = t.kc, a_k = t.a_k, b_k = t.b_k, c_row = t.c_row;
    const T* start = t.start ? t.start : c_tile;
    const int64_t start_row = t.start ? t.start_row : c_row;
    const T* bias_row = t.bias_row;
    const T* const bias_col = t.bias_col;
    constexpr bool kWholeB = !Masked || kSets == 2 || kStepB != 0;
    const bool load_c = t.load_c, clips = is_clip(t.activation);
    const char* ahead = t.ahead;
    const int64_t ahead_each = kc < 4 ? 0 : (4 * t.ahead_lines + kc - 1) / kc;
    const auto part = [&](const T* p, int j) __attribute__((always_inline)) {
        return Masked && j == NV - 1 ? load_n(p + j * L, last) : load(p + j * L);
    };
    const auto fetch_c = [&](const T* c, const T* from) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i, c += c_row) fetch_line<T, NV * L>(c);
        if (t.start)
            for (int i = 0; i < MR; ++i, from += start_row) fetch_line<T, NV * L>(from);
    };
    for (int64_t below = 0; below < t.tiles;
         ++below, a_tile += t.a_tile, c_tile += MR * c_row, start += MR * start_row) {
        // C is met only after the sums are complete: its lines, those of the tile below and some of the next panel
        // arrive meanwhile.
        if (below == 0) fetch_c(c_tile, start);
        // Row by row, where there is time: all at once they would hold up what the sums wait for.
        const bool row_by_row = kVectorRegisters >= 32 && (!Masked || kSets == 2) && kc >= 16 * MR;
        const T *next_c = c_tile + MR * c_row, *next_start = start + MR * start_row;
        int64_t rows_to_fetch = row_by_row && below + 1 < t.tiles ? MR : 0;
        if (!row_by_row && below + 1 < t.tiles) fetch_c(next_c, next_start);
        const char* const ahead_end = ahead + 64 * t.ahead_lines;
        V acc[kSets][MR][NV] = {};
        const int64_t* offset = t.offset;
        T* keep = t.keep;
        const T* vectors[NV];
#pragma GCC unroll 4
        for (int j = 0; Gathered && j < NV; ++j) vectors[j] = t.vectors[j];
        for (int64_t outer = 0; outer < t.outer; ++outer) {
            const T* b = t.b + outer * t.b_outer;
            const T* rows[Columns ? 1 : MR];
#pragma GCC unroll 8
            for (int i = 0; i < (Columns ? 1 : MR); ++i) rows[i] = a_tile + outer * t.a_outer + i * t.a_row;
            int64_t at = 0;
            // Term `nth` of those that share a step.
            const auto term = [&](auto set, auto nth) __attribute__((always_inline)) {
                V bv[NV];
                if constexpr (Gathered) {
                    const int64_t at_b = *offset;
                    // The next panel is next to this one; rows far apart are no stream that the hardware sees.
                    __builtin_prefetch(vectors[0] + at_b + NV * L, 0, 2);
#pragma GCC unroll 4
                    for (int j = 0; j < NV; ++j) bv[j] = load(vectors[j] + at_b), store(keep + j * L, bv[j]);
                    offset = stepped(offset, 1), keep = stepped(keep, NV * L);
                } else {
#pragma GCC unroll 4
                    for (int j = 0; j < NV; ++j) {
                        const int far = nth.value * kStepB;
                        bv[j] = kWholeB ? load(b + far + j * L) : part(b + far, j);
                    }
                    if constexpr (kStepB == 0) b = stepped(b, b_k);
                }
#pragma GCC unroll 8
                for (int i = 0; i < MR; ++i) {
                    const V av = splat<T>(rows[Columns ? 0 : i][at + nth.value * kStepA + (Columns ? i : 0)]);
#pragma GCC unroll 4
                    for (int j = 0; j < NV; ++j) accumulate(acc[set.value][i][j], av, bv[j]);
                }
                if constexpr (kStepA == 0) at = stepped(at, a_k);
            };
            const auto step = [&](int terms) __attribute__((always_inline)) {
                if constexpr (kStepA != 0) at = stepped(at, terms * kStepA);
                if constexpr (kStepB != 0) b = stepped(b, terms * kStepB);
            };
            constexpr Constant<0> even{}, first{};
            constexpr Constant<kSets - 1> odd{};
            constexpr Constant<1> second{};
            int64_t k = 0;
            if constexpr (kWholeB)
                for (; k + 4 <= kc; k += 4) {
                    if (kVectorRegisters >= 32 && k % 16 == 0 && rows_to_fetch > 0) {
                        fetch_line<T, NV * L>(next_c);
                        if (t.start) fetch_line<T, NV * L>(next_start);
                        next_c += c_row, next_start += start_row, --rows_to_fetch;
                    }
                    for (int64_t i = 0; i < ahead_each && ahead != ahead_end; ++i, ahead += 64)
#pragma GCC unroll 4
                        for (int s = 0; s < kStreams; ++s) __builtin_prefetch(ahead + s * t.ahead_step, 0, 2);
                    term(even, first), term(odd, second), term(even, Constant<2>{}), term(odd, Constant<3>{});
                    step(4);
                }
            if constexpr (kSets == 2)
                for (; k + 2 <= kc; k += 2) term(even, first), term(odd, second), step(2);
            for (; k < kc; ++k) term(even, first), step(1);
        }
        V(&sum)[MR][NV] = acc[0];
        if constexpr (kSets == 2)
#pragma GCC unroll 8
            for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < NV; ++j) sum[i][j] += acc[1][i][j];
        ahead = ahead_end;
        if (load_c)
#pragma GCC unroll 8
            for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < NV; ++j) sum[i][j] += part(start + i * start_row, j);
        if (bias_row) {
#pragma GCC unroll 8
            for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < NV; ++j) sum[i][j] += splat<T>(bias_row[i]);
            bias_row += MR;
        }
        if (bias_col)
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) {
                const V bias = part(bias_col, j);
#pragma GCC unroll 8
                for (int i = 0; i < MR; ++i) sum[i][j] += bias;
            }
        if (clips) {
            const V limit = clip_limit<V>(t.activation);
#pragma GCC unroll 8
            for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < NV; ++j) sum[i][j] = clipped(sum[i][j], limit);
        }
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < NV; ++j) {
                if (Masked && j == NV - 1)
                    store_n(c_tile + i * c_row + j * L, sum[i][j], last);
                else
                    store(c_tile + i * c_row + j * L, sum[i][j]);
            }
        if (t.activation > Activation::relu6) activate_tile(c_tile, c_row, MR, n, t.activation);
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
