// What the recurrent kernels share: a layer, its checks, states, the rows that forward keeps, and r in panels.
#pragma once
#include "ops/recurrent.h"

namespace tw::TW_ISA {
namespace {

enum class Cell : int { rnn, lstm, gru };

struct Layer {
    Cell cell;
    bool reset_after, relu;  // of a gru; of an rnn, in place of tanh
    bool coupled;  // an lstm whose f is 1 - i
    double clip;  // cells of an lstm stay in [-clip, clip]; 0: anywhere
    View x, w, r, b, rb, h0, c0, peep;  // b, rb, h0, c0, peep: dtype none where not given
    const int64_t* lengths;  // steps of each sequence
    int64_t directions, steps, sequences, inputs, hidden;
    int64_t blocks;  // of H rows in w and r
    const void* packed;  // panels of r, or null: see pack
    int64_t kept;  // of H numbers in a row of gates: those of a gru are r, z, n and r h, or the product that r scales
};

// Blocks of r whose product with h comes first; the last one of a gru goes by itself.
TW_INLINE int64_t first_blocks(const Layer& p) { return p.cell == Cell::gru ? 2 : p.blocks; }

Status check_lengths_of(const View& lengths, const View& x) {
    if (!given(lengths)) return Status::ok;
    if (lengths.dtype != DType::i32 && lengths.dtype != DType::i64)
        return fail(Status::dtype, "lengths", "lengths has dtype %s; want int32 or int64", name_of(lengths.dtype));
    return want_shape(lengths, "lengths", 1, x.shape + 1);
}

// x (T, N, I), w (D, blocks H, I), r (D, blocks H, H) and lengths (N,).
Status check_layer(const View& x, const View& w, const View& r, int64_t blocks, const View& lengths) {
    const auto ll = [](int64_t n) { return static_cast<long long>(n); };
    const char* const rows = blocks == 1 ? "H" : blocks == 3 ? "3H" : "4H";
    TW_TRY(want_floating(x, "x"));
    TW_TRY(want_ndim(x, "x", 3, 3));
    TW_TRY(want_dtype_of(w, "w", x, "x"));
    TW_TRY(want_ndim(w, "w", 3, 3));
    TW_TRY(want_dtype_of(r, "r", x, "x"));
    TW_TRY(want_ndim(r, "r", 3, 3));
    if (w.shape[0] != 1 && w.shape[0] != 2)
        return fail(Status::shape, "w", "w has D=%lld directions; want 1 or 2", ll(w.shape[0]));
    if (w.shape[2] != x.shape[2])
        return fail(Status::shape, "w", "w has shape %s but x has I=%lld; want w (D, %s, %lld)", shape_text(w).text,
                    ll(x.shape[2]), rows, ll(x.shape[2]));
    if (r.shape[0] != w.shape[0] || r.shape[1] != w.shape[1] || r.shape[1] != blocks * r.shape[2])
        return fail(Status::shape, "r", "r has shape %s but w has %s; want r (D, %s, H) and w (D, %s, I)",
                    shape_text(r).text, shape_text(w).text, rows, rows);
    return check_lengths_of(lengths, x);
}

// An optional operand of the dtype of x.
Status check_optional(const View& v, const char* name, const View& x, int ndim, const int64_t* shape) {
    if (!given(v)) return Status::ok;
    TW_TRY(want_dtype_of(v, name, x, "x"));
    return want_shape(v, name, ndim, shape);
}

TW_INLINE View absent() {
    View v{};
    v.dtype = DType::none;
    return v;
}

Layer layer_of(Cell cell, const View& x, const View& w, const View& r) {
    Layer p{};
    p.cell = cell, p.x = x, p.w = w, p.r = r;
    p.b = p.rb = p.h0 = p.c0 = p.peep = absent();
    p.directions = w.shape[0], p.steps = x.shape[0], p.sequences = x.shape[1];
    p.inputs = x.shape[2], p.hidden = r.shape[2];
    p.blocks = cell == Cell::rnn ? 1 : cell == Cell::gru ? 3 : 4;
    p.kept = cell == Cell::rnn ? 1 : 4;
    return p;
}

// What an lstm sees of its cells: peepholes (D, 3H) to i, f and o, whether i and f are coupled, and the clip.
Status check_cells(const View& peep, const View& w, const Attr& clip) {
    const int64_t shape[] = {w.shape[0], w.shape[1] / 4 * 3};
    if (!(clip.f >= 0)) return fail(Status::attr, "clip", "clip=%g; want 0 for none, or a largest cell", clip.f);
    return check_optional(peep, "peep", w, 2, shape);
}

// Peepholes of direction d in the wide type; null where there are none.
template <class T>
const Wide<T>* read_peepholes(const Layer& p, int64_t d, Wide<T>* to) {
    if (!given(p.peep)) return nullptr;
    copy_row(to, 1, p.peep.as<const T>() + d * p.peep.stride[0], p.peep.stride[1], 3 * p.hidden);
    return to;
}

// Two operations per weight, input, direction and step.
TW_INLINE double flops_of(const View& x, const View& w, const View& r) {
    return 2.0 * static_cast<double>(x.shape[0] * x.shape[1]) * static_cast<double>(w.shape[0] * w.shape[1]) *
           static_cast<double>(x.shape[2] + r.shape[2]);
}

TW_INLINE Status no_memory() {
    return fail(Status::memory, "", "no memory for the gates of all steps; want fewer steps at a time");
}

// Where direction d stands at its s-th step of sequence n.
TW_INLINE int64_t step_of(const Layer& p, int64_t d, int64_t n, int64_t s) { return d ? p.lengths[n] - 1 - s : s; }

template <class T>
TW_INLINE void fill_zero(T* p, int64_t stride, int64_t n) {
    const T none{};
    copy_row(p, stride, &none, 0, n);
}

// Rows of a share of a state (D, N, H), zero where it is not given.
template <class T>
TW_INLINE void read_state(const View& v, int64_t d, Share share, int64_t hidden, Wide<T>* to) {
    for (int64_t i = 0; i < share.rows; ++i, to += hidden)
        if (given(v))
            copy_row(to, 1, v.as<const T>() + d * v.stride[0] + (share.first + i) * v.stride[1], v.stride[2], hidden);
        else
            fill_zero(to, 1, hidden);
}
// The same back, where the state is asked for.
template <class T>
TW_INLINE void write_state(const View& v, int64_t d, Share share, int64_t hidden, const Wide<T>* from) {
    if (!given(v)) return;
    for (int64_t i = 0; i < share.rows; ++i, from += hidden)
        copy_row(v.as<T>() + d * v.stride[0] + (share.first + i) * v.stride[1], v.stride[2], from, 1, hidden);
}

// Row (t, n) of direction d of y or dy (T, N, D H).
template <class T>
TW_INLINE T* row_of_y(const View& v, int64_t d, int64_t t, int64_t n, int64_t hidden) {
    return v.as<T>() + t * v.stride[0] + n * v.stride[1] + d * hidden * v.stride[2];
}
// Row (d, t, n) of gates or cells.
template <class W>
TW_INLINE W* kept_at(const View& v, int64_t d, int64_t t, int64_t n) {
    return v.as<W>() + d * v.stride[0] + t * v.stride[1] + n * v.stride[2];
}

// Scratch that is handed out piece by piece.
template <class W>
struct Room {
    W* at;
    W* next(int64_t n) {
        W* const here = at;
        at += n;
        return here;
    }
};

}  // namespace
}  // namespace tw::TW_ISA
