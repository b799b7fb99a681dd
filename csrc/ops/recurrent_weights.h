// Weights of a recurrent layer as its products want them. In the type that is computed in: r in panels, w where it lies or,
// prepared with it, behind r as the GEMM packs it. Stored in 16 bits or 8: both in panels, each direction
//
//     16 bits    w as pack_units makes it of one block, r of all
//     8 bits     w as pack_right makes it, then each block of r; scales of the columns of w, then of r
//
// A weight in 8 bits is scale code with scale = largest of its row / 127; what meets it is coded row by row as in
// linear_int8. 16-bit weights are rounded to nearest.
#pragma once
#include "ops/recurrent_problem.h"
#include "ops/recurrent_product.h"

namespace tw::TW_ISA {
namespace {

TW_INLINE int64_t round_up(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// Where what belongs to a direction lies, in bytes from its start.
struct Places {
    int64_t w, r, w_scales, r_scales, bytes;
};
template <class W>
TW_INLINE Places places_of(const Layer& p) {
    const int64_t wide = p.blocks * p.hidden;
    const int64_t panels = packed_units<W>(p.outputs, p.hidden, p.blocks);
    if (p.stored == DType::none) {
        const int64_t w = round_up(panels * static_cast<int64_t>(sizeof(W)));
        const int64_t own = packed_elements<W>(p.inputs, wide) * static_cast<int64_t>(sizeof(W));
        return {w, 0, 0, 0, w + (p.w_too ? round_up(own) : 0)};
    }
    if (p.stored != DType::i8) {
        const int64_t r = round_up(2 * packed_units<W>(p.inputs, wide, 1));
        return {0, r, 0, 0, r + round_up(2 * panels)};
    }
    const int64_t r = round_up(packed_right_bytes(p.inputs, wide));
    const int64_t w_scales = r + round_up(p.blocks * packed_right_bytes(p.outputs, p.hidden));
    const int64_t scales = round_up(wide * static_cast<int64_t>(sizeof(float)));
    return {0, r, w_scales, w_scales + scales, w_scales + 2 * scales};
}

// ---- packing ----------------------------------------------------------------------------------------------------------------

template <class T>
struct Coded {
    Matrix<T> b;
    int64_t terms;
    float* scales;
};
// Columns [n0, n0 + n) of b as codes, [words of k][kIntNR][kDotDepth], and their scales.
template <class T>
void code_columns(const void* context, int64_t n0, int64_t n, int8_t* panel) {
    constexpr int64_t D = kDotDepth, kPiece = 256;
    const auto& own = *static_cast<const Coded<T>*>(context);
    __builtin_memset(panel, 0, static_cast<size_t>(ceil_div(own.terms, D) * D * kIntNR));
    for (int64_t j = 0; j < n; ++j) {
        const T* const x = own.b.data + (n0 + j) * own.b.col;
        float piece[kPiece];
        int8_t codes[kPiece];
        Range all = {0, 0};
        for (int64_t k = 0; k < own.terms && all.low == all.low; k += kPiece) {
            const int64_t some = min_of(kPiece, own.terms - k);
            copy_row(piece, 1, x + k * own.b.row, own.b.row, some);
            const Range here = range_of(piece, some);
            if (!(here.low >= all.low)) all.low = here.low;
            if (here.high > all.high) all.high = here.high;
        }
        const RowScale by = row_scale(all);
        own.scales[n0 + j] = by.scale;
        for (int64_t k = 0; k < own.terms; k += kPiece) {
            const int64_t some = min_of(kPiece, own.terms - k);
            copy_row(piece, 1, x + k * own.b.row, own.b.row, some);
            code_row(piece, some, by, codes);
            for (int64_t i = k; i < k + some; ++i) panel[i / D * D * kIntNR + j * D + i % D] = codes[i - k];
        }
    }
}

template <class S, class T>
void pack_narrow(const Layer& p, const Matrix<T>& w, const Matrix<T>& r, const Places& at, char* to) {
    pack_units(w, p.inputs, p.blocks * p.hidden, 1, reinterpret_cast<S*>(to));
    pack_units(r, p.outputs, p.hidden, p.blocks, reinterpret_cast<S*>(to + at.r));
}

// Weights of all directions, `bytes` of places_of each.
template <class T>
void pack_weights(const Layer& p, char* to) {
    typedef Wide<T> W;
    const Places at = places_of<W>(p);
    for (int64_t d = 0; d < p.directions; ++d, to += at.bytes) {
        const Matrix<T> w = {p.w.as<const T>() + d * p.w.stride[0], p.w.stride[2], p.w.stride[1]};
        const Matrix<T> r = {p.r.as<const T>() + d * p.r.stride[0], p.r.stride[2], p.r.stride[1]};
        if constexpr (!kIsNarrow<T>) {
            if (p.stored == DType::none) pack_units(r, p.outputs, p.hidden, p.blocks, reinterpret_cast<W*>(to));
            if (p.w_too) pack_all(w, p.inputs, p.blocks * p.hidden, reinterpret_cast<W*>(to + at.w));
        }
        if constexpr (__is_same(W, float)) {
            if (p.stored == DType::f16) pack_narrow<f16>(p, w, r, at, to);
            if (p.stored == DType::bf16) pack_narrow<bf16>(p, w, r, at, to);
            if (p.stored != DType::i8) continue;
            const int64_t block = packed_right_bytes(p.outputs, p.hidden);
            const Coded<T> of_w = {w, p.inputs, reinterpret_cast<float*>(to + at.w_scales)};
            pack_right(code_columns<T>, &of_w, p.inputs, p.blocks * p.hidden, reinterpret_cast<int8_t*>(to));
            for (int64_t b = 0; b < p.blocks; ++b) {
                const Matrix<T> rows = {r.data + b * p.hidden * r.col, r.row, r.col};
                const Coded<T> of_r = {rows, p.outputs, reinterpret_cast<float*>(to + at.r_scales) + b * p.hidden};
                pack_right(code_columns<T>, &of_r, p.outputs, p.hidden,
                           reinterpret_cast<int8_t*>(to + at.r) + b * block);
            }
        }
    }
}

template <class W>
TW_INLINE Weights<W> weights_of(const Layer& p, const char* packed, int64_t d) {
    const Places at = places_of<W>(p);
    const char* const own = packed + d * at.bytes;
    return {own + at.r, p.outputs, p.hidden, p.blocks,
            0,          p.blocks,  p.stored, reinterpret_cast<const float*>(own + at.r_scales)};
}

// ---- rows that meet codes ---------------------------------------------------------------------------------------------------

// Numbers of room for the codes of rows of `terms`.
TW_INLINE int64_t coded_row(int64_t terms) {
    return (left_stride(terms) * static_cast<int64_t>(sizeof(DotLeft)) + static_cast<int64_t>(sizeof(RowTerms))) /
           static_cast<int64_t>(sizeof(float));
}
TW_INLINE CodedRows coded_rows(float* room, int64_t rows, int64_t terms) {
    DotLeft* const codes = reinterpret_cast<DotLeft*>(room);
    return {codes, reinterpret_cast<RowTerms*>(codes + rows * left_stride(terms))};
}
TW_INLINE void code_rows(const float* x, int64_t row, int64_t rows, int64_t terms, const CodedRows& to) {
    for (int64_t i = 0; i < rows; ++i)
        quantize_left_row(x + i * row, terms, false, to.codes + i * left_stride(terms), to.terms + i);
}

// ---- the product of all steps -----------------------------------------------------------------------------------------------

struct Inputs {
    const float* x;
    int64_t terms;
    const float *scales, *bias;
    float* sums;
    int64_t wide;
    const void* panels;  // of 16-bit weights
};

void code_inputs(const void* context, int64_t first, int64_t rows, bool, DotLeft* to, int64_t, RowTerms* terms) {
    const auto& own = *static_cast<const Inputs*>(context);
    code_rows(own.x + first * own.terms, own.terms, rows, own.terms, {to, terms});
}
void finish_inputs(const void* context, const IntTile& t) {
    const auto& own = *static_cast<const Inputs*>(context);
    for (int i = 0; i < t.m; ++i)
        each_vector<float>(t.n, [&](int64_t j, int64_t lanes) __attribute__((always_inline)) {
            const f32v both = apart(splat(t.rows[i].scale) * take(own.scales + t.n0, 1, j, lanes));
            const f32v part = apart(to_f32(load(t.sums + i * kIntNR + j)) * both);
            put(own.sums + (t.m0 + i) * own.wide + t.n0, 1, j, lanes, part + take(own.bias + t.n0, 1, j, lanes));
        });
}
template <class S>
void widen_inputs(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t, float* panel) {
    constexpr int64_t NR = Blocking<float>::NR;
    const auto& own = *static_cast<const Inputs*>(context);
    copy_row(panel, 1, static_cast<const S*>(own.panels) + (n0 / NR * own.terms + k0) * NR, 1, kc * NR);
}

// sums (rows, blocks H) = bias + x w^T of a direction with stored weights.
TW_INLINE bool multiply_inputs(const Layer& p, int64_t rows, const float* x, const char* packed, int64_t d,
                               const float* bias, float* sums) {
    constexpr int64_t NR = Blocking<float>::NR;
    const Places at = places_of<float>(p);
    const char* const own = packed + d * at.bytes;
    const int64_t wide = p.blocks * p.hidden;
    const Inputs context = {x, p.inputs, reinterpret_cast<const float*>(own + at.w_scales), bias, sums, wide, own};
    if (p.stored == DType::i8) {
        IntGemm g{};
        g.m = rows, g.n = wide, g.k = p.inputs;
        g.pack_a = code_inputs, g.a = &context;
        g.packed_b = reinterpret_cast<const int8_t*>(own);
        g.finish = finish_inputs, g.context = &context;
        return int_gemm(g);
    }
    if (rows <= 2) {  // widened in registers
        const Weights<float> w = {own, p.inputs, wide, 1, 0, 1, p.stored};
        const int64_t chunks = min_of(kChunks, ceil_div(wide, NR));
        for (int64_t i = 0; i < rows; ++i) copy_row(sums + i * wide, 1, bias, 1, wide);
        return parallel(chunks, [&](int64_t chunk) {
            const Units u = units_of(chunk, chunks, wide, NR);
            add_product(x, p.inputs, rows, w, u.begin, u.end, sums, wide, 0);
        });
    }
    Gemm<float> g{};
    g.m = rows, g.n = wide, g.k = p.inputs;
    g.a = {x, p.inputs, 1}, g.c = sums, g.c_row = wide, g.c_col = 1, g.bias_col = bias;
    g.pack_b = p.stored == DType::f16 ? widen_inputs<f16> : widen_inputs<bf16>, g.context = &context;
    return gemm(g);
}

}  // namespace
}  // namespace tw::TW_ISA
