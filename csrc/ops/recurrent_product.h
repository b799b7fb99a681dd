// The product of a step, a few rows times weights that stay: packed once, so that a share of the units has its own part.
// Weights lie there in the type that is computed in, in 16 bits, widened on the way, or as 8-bit codes with a scale per
// column, by which codes of the rows are multiplied: exact sums, scaled back.
#pragma once
#include "gemm/ahead.h"
#include "gemm/gemm.h"
#include "gemm/pack.h"
#include "gemm/quantized.h"
#include "ops/ops.h"
#include "simd/quantize.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kWidened = 128;  // terms of a panel in 16 bits that are widened at a time
// Terms of a panel, which rows of several register tiles pass over.
constexpr int64_t kTermsInL1 = kVectorRegisters >= 32 ? 256 : 512;

// b (terms, blocks H) as [panel of NR units][block][terms][NR]: all blocks of some units lie together. S is T's Wide, or
// what that is rounded to.
template <class S, class T>
void pack_units(const Matrix<T>& b, int64_t terms, int64_t units, int64_t blocks, S* to) {
    typedef Wide<T> W;
    constexpr int64_t NR = Blocking<W>::NR;
    parallel(ceil_div(units, NR) * blocks, [&](int64_t job) {
        const int64_t u = job / blocks * NR, column = job % blocks * units + u, width = min_of(NR, units - u);
        S* const panel = to + job * NR * terms;
        if constexpr (__is_same(S, W)) {
            pack_panel(b, 0, terms, column, width, panel);
        } else {
            alignas(kVecBytes) W wide[kWidened * NR];
            for (int64_t k = 0; k < terms; k += kWidened) {
                const int64_t some = min_of(kWidened, terms - k);
                pack_panel(b, k, some, column, width, wide);
                copy_row(panel + k * NR, 1, wide, 1, some * NR);
            }
        }
    });
}
template <class W>
TW_INLINE int64_t packed_units(int64_t terms, int64_t units, int64_t blocks) {
    constexpr int64_t NR = Blocking<W>::NR;
    return ceil_div(units, NR) * NR * terms * blocks;
}

// What pack_units made, or `count` of its blocks from `first` on; of codes, what pack_right made of each block.
template <class W>
struct Weights {
    const void* data;
    int64_t terms, units, blocks, first, count;
    DType dtype = DType::none;  // of what lies there: none for W, f16, bf16 or i8
    const float* scales = nullptr;  // of codes, [blocks][units]
};

// Codes of the rows that meet weights in 8 bits, left_stride(terms) apart.
struct CodedRows {
    DotLeft* codes;
    RowTerms* terms;
};
template <class W>
TW_INLINE Weights<W> some_blocks(Weights<W> w, int64_t first, int64_t count) {
    w.first = first, w.count = count;
    return w;
}

// A panel of b and the columns of c that it adds to.
template <class S>
struct Panel {
    const S* b;
    Wide<S>* c;
    int64_t width;
};

// R rows times P panels at once: with so few rows, more columns keep the multipliers busy.
template <int R, int P, class S>
TW_INLINE void few_rows(const Wide<S>* a, int64_t a_row, int64_t terms, const Panel<S>* panels, int64_t c_row) {
    typedef Wide<S> W;
    constexpr int64_t NR = Blocking<W>::NR, L = kLanes<W>;
    constexpr int NV = P * kNV;
    const S* b[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) b[p] = panels[p].b;
    Vec<W> sum[R][NV] = {};
    for (int64_t i = 0; i < terms; ++i) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
            const Vec<W> x = load_as<W>(b[v / kNV] + i * NR + v % kNV * L);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) sum[r][v] += splat(a[r * a_row + i]) * x;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
            const int64_t at = v % kNV * L, lanes = min_of(L, panels[v / kNV].width - at);
            if (lanes <= 0) continue;
            W* const c = panels[v / kNV].c + r * c_row + at;
            put(c, 1, 0, lanes, take(c, 1, 0, lanes) + sum[r][v]);
        }
}

template <class S>
TW_INLINE void few_rows(int64_t rows, const Wide<S>* a, int64_t a_row, int64_t terms, const Panel<S>* panels,
                        int64_t count, int64_t c_row) {
    if (rows == 2)
        return count == 2 ? few_rows<2, 2>(a, a_row, terms, panels, c_row)
                          : few_rows<2, 1>(a, a_row, terms, panels, c_row);
    switch (count) {
        case 4: return few_rows<1, 4>(a, a_row, terms, panels, c_row);
        case 3: return few_rows<1, 3>(a, a_row, terms, panels, c_row);
        case 2: return few_rows<1, 2>(a, a_row, terms, panels, c_row);
        default: return few_rows<1, 1>(a, a_row, terms, panels, c_row);
    }
}

// c (rows, ...) += a (rows, terms) w of units [begin, end), begin a multiple of NR. In a row of c, unit u of the k-th block
// taken is at k c_block + u.
template <class S>
void add_panels(const Wide<S>* a, int64_t a_row, int64_t rows, const Weights<Wide<S>>& w, int64_t begin, int64_t end,
                Wide<S>* c, int64_t c_row, int64_t c_block) {
    typedef Wide<S> W;
    constexpr int64_t NR = Blocking<W>::NR;
    const int64_t total = ceil_div(end - begin, NR) * w.count, most = rows == 1 ? 4 : 2;
    const auto panel = [&](int64_t i) __attribute__((always_inline)) {
        const int64_t u = begin + i / w.count * NR, block = i % w.count;
        return Panel<S>{static_cast<const S*>(w.data) + (u / NR * w.blocks + w.first + block) * NR * w.terms,
                        c + block * c_block + u, min_of(NR, end - u)};
    };
    if (rows <= 2) {
        for (int64_t i = 0; i < total; i += most) {
            const int64_t some = min_of(most, total - i);
            Panel<S> panels[4];
            for (int64_t k = 0; k < some; ++k) panels[k] = panel(i + k);
            few_rows(rows, a, a_row, w.terms, panels, some, c_row);
        }
        return;
    }
    constexpr int64_t kStep = kIsNarrow<S> ? kWidened : kTermsInL1;
    const int64_t tiles = ceil_div(rows, kMR);
    for (int64_t i = 0; i < total; ++i) {
        const Panel<S> own = panel(i);
        for (int64_t from = 0; from < w.terms; from += kStep) {
            const int64_t some = min_of(kStep, w.terms - from);
            const W* b;
            alignas(kVecBytes) W wide[kIsNarrow<S> ? kWidened * NR : 1];
            if constexpr (kIsNarrow<S>)
                copy_row(wide, 1, own.b + from * NR, 1, some * NR), b = wide;
            else
                b = own.b + from * NR;
            Tile<W> t{};
            if constexpr (!kIsNarrow<S>) {
                if (from + some < w.terms)
                    fetch_meanwhile(t, b + some * NR, min_of(kStep, w.terms - from - some) * NR, tiles);
                else if (i + 1 < total)
                    fetch_meanwhile(t, panel(i + 1).b, min_of(kStep, w.terms) * NR, tiles);
            }
            for (int64_t k = 0, first = 0; k < tiles; ++k) {
                const int64_t count = (rows - first) / (tiles - k) + ((rows - first) % (tiles - k) != 0);
                t.kc = some, t.a = a + first * a_row + from, t.a_row = a_row, t.a_k = 1;
                t.b = b, t.b_k = NR, t.c = own.c + first * c_row, t.c_row = c_row, t.load_c = true;
                run_tile(t, static_cast<int>(count), static_cast<int>(own.width));
                if (t.ahead) t.ahead += t.ahead_lines * 64;
                first += count;
            }
        }
    }
}

// The same of codes: sums are exact, each is scaled by its row and column and added, one operation rounded at a time.
TW_INLINE void add_coded(const CodedRows& a, int64_t rows, const Weights<float>& w, int64_t begin, int64_t end,
                         float* c, int64_t c_row, int64_t c_block) {
    const int64_t stride = left_stride(w.terms), bytes = packed_right_bytes(w.terms, w.units);
    for (int64_t u = begin; u < end; u += kIntNR)
        for (int64_t block = 0; block < w.count; ++block) {
            const int8_t* const panels = static_cast<const int8_t*>(w.data) + (w.first + block) * bytes;
            const float* const scales = w.scales + (w.first + block) * w.units + u;
            for (int64_t first = 0; first < rows; first += kMR) {
                const int64_t some = min_of(kMR, rows - first);
                alignas(kVecBytes) int32_t sums[kMR * kIntNR];
                multiply_panel(a.codes + first * stride, a.terms + first, static_cast<int>(some), panels, w.terms,
                               w.units, u / kIntNR, sums);
                for (int64_t i = 0; i < some; ++i) {
                    float* const to = c + (first + i) * c_row + block * c_block + u;
                    const f32v by = splat(a.terms[first + i].scale);
                    each_vector<float>(min_of(kIntNR, end - u),
                                       [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
                        const f32v both = apart(by * take(scales, 1, j, lanes));
                        const f32v part = apart(to_f32(load(sums + i * kIntNR + j)) * both);
                        put(to, 1, j, lanes, take(to, 1, j, lanes) + part);
                    });
                }
            }
        }
}

template <class W>
void add_product(const W* a, int64_t a_row, int64_t rows, const Weights<W>& w, int64_t begin, int64_t end, W* c,
                 int64_t c_row, int64_t c_block, const CodedRows& codes = {}) {
    static_assert(kIntNR == Blocking<float>::NR);
    if (rows <= 0 || w.terms == 0 || begin >= end) return;
    if constexpr (__is_same(W, float)) {
        if (w.dtype == DType::f16) return add_panels<f16>(a, a_row, rows, w, begin, end, c, c_row, c_block);
        if (w.dtype == DType::bf16) return add_panels<bf16>(a, a_row, rows, w, begin, end, c, c_row, c_block);
        if (w.dtype == DType::i8) return add_coded(codes, rows, w, begin, end, c, c_row, c_block);
    }
    add_panels<W>(a, a_row, rows, w, begin, end, c, c_row, c_block);
}

}  // namespace
}  // namespace tw::TW_ISA
