// What recurrent layers share: sequences in shares, lengths, wide copies, and the product of a step.
#pragma once
#include "core/check.h"
#include "gemm/gemm.h"
#include "gemm/pack.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kShareRows = 8;  // sequences that pass through time together, on one thread

struct Share {
    int64_t first, rows;
};
// Sequences in even shares: by their number alone, so that a row meets the same register tile on any machine.
TW_INLINE int64_t shares_of(int64_t sequences) { return ceil_div(sequences, kShareRows); }
TW_INLINE Share share_at(int64_t sequences, int64_t i) {
    const int64_t count = shares_of(sequences), base = sequences / count, extra = sequences % count;
    return {i * base + min_of(i, extra), base + (i < extra)};
}

// to[n] = lengths[n], or steps where none are given; an IndexError names the first outside [0, steps].
TW_INLINE Status copy_lengths(const View& lengths, int64_t sequences, int64_t steps, int64_t* to) {
    for (int64_t n = 0; n < sequences; ++n) {
        to[n] = steps;
        if (!given(lengths)) continue;
        const int64_t at = n * lengths.stride[0];
        to[n] = lengths.dtype == DType::i32 ? lengths.as<int32_t>()[at] : lengths.as<int64_t>()[at];
        if (to[n] < 0 || to[n] > steps)
            return fail(Status::index, "lengths", "lengths has %lld at position %lld; want 0 to T=%lld",
                        static_cast<long long>(to[n]), static_cast<long long>(n), static_cast<long long>(steps));
    }
    return Status::ok;
}

// A (A, B, C) tensor as [A * B][C] in the wide type: where it lies, or copied to `room`, of A B C elements.
template <class T>
const Wide<T>* wide_rows(const View& v, Wide<T>* room) {
    if constexpr (!kIsNarrow<T>)
        if (is_contiguous(v)) return v.as<T>();
    const int64_t inner = v.shape[2];
    parallel(v.shape[0], [&](int64_t i) {
        for (int64_t j = 0; j < v.shape[1]; ++j)
            copy_row(room + (i * v.shape[1] + j) * inner, 1, v.as<const T>() + i * v.stride[0] + j * v.stride[1],
                     v.stride[2], inner);
    });
    return room;
}
TW_INLINE int64_t room_of(const View& v, bool narrow) { return narrow || !is_contiguous(v) ? numel(v) : 0; }

// ---- the product of a step --------------------------------------------------------------------------------------------------

// b (k, n) as [panel][k][NR].
template <class T>
void pack_panels_of(const Matrix<T>& b, int64_t k, int64_t n, Wide<T>* to) {
    constexpr int64_t NR = Blocking<Wide<T>>::NR;
    parallel(ceil_div(n, NR),
             [&](int64_t panel) { pack_panel(b, 0, k, panel * NR, min_of(NR, n - panel * NR), to + panel * NR * k); });
}
template <class W>
TW_INLINE int64_t panel_elements(int64_t k, int64_t n) {
    constexpr int64_t NR = Blocking<W>::NR;
    return ceil_div(n, NR) * NR * k;
}

// R rows times P panels at once: with so few rows, more columns keep the multipliers busy.
template <int R, int P, class W>
TW_INLINE void few_rows(const W* a, int64_t a_row, int64_t k, const W* panels, int64_t n, W* c, int64_t c_row) {
    constexpr int64_t NR = Blocking<W>::NR, L = kLanes<W>;
    constexpr int NV = P * kNV;
    Vec<W> sum[R][NV] = {};
    for (int64_t i = 0; i < k; ++i) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
            const Vec<W> b = load(panels + v / kNV * NR * k + i * NR + v % kNV * L);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][v] += splat(a[r * a_row + i]) * b;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
            const int64_t lanes = min_of(L, n - v * L);
            if (lanes <= 0) continue;
            W* const at = c + r * c_row + v * L;
            put(at, 1, 0, lanes, take(at, 1, 0, lanes) + sum[r][v]);
        }
}

// c (rows, n) += a (rows, k) b, b in panels.
template <class W>
void add_step(const W* a, int64_t a_row, int64_t rows, int64_t k, const W* panels, int64_t n, W* c, int64_t c_row) {
    constexpr int64_t NR = Blocking<W>::NR;
    if (rows <= 2) {
        int64_t j = 0;
        for (; rows == 1 && j + 3 * NR < n; j += 4 * NR)
            few_rows<1, 4>(a, a_row, k, panels + j * k, n - j, c + j, c_row);
        for (; rows == 2 && j + NR < n; j += 2 * NR) few_rows<2, 2>(a, a_row, k, panels + j * k, n - j, c + j, c_row);
        for (; j < n; j += NR)
            rows == 1 ? few_rows<1, 1>(a, a_row, k, panels + j * k, n - j, c + j, c_row)
                      : few_rows<2, 1>(a, a_row, k, panels + j * k, n - j, c + j, c_row);
        return;
    }
    const int64_t tiles = ceil_div(rows, kMR);
    for (int64_t j = 0; j < n; j += NR)
        for (int64_t i = 0, first = 0; i < tiles; ++i) {
            const int64_t count = (rows - first) / (tiles - i) + ((rows - first) % (tiles - i) != 0);
            Tile<W> t{};
            t.kc = k, t.a = a + first * a_row, t.a_row = a_row, t.a_k = 1;
            t.b = panels + j * k, t.b_k = NR, t.c = c + first * c_row + j, t.c_row = c_row, t.load_c = true;
            run_tile(t, static_cast<int>(count), static_cast<int>(min_of(NR, n - j)));
            first += count;
        }
}

}  // namespace
}  // namespace tw::TW_ISA
