// What the LSTM kernels share: the call, its checks, states and what forward keeps.
#pragma once
#include "ops/recurrent.h"

namespace tw::TW_ISA {
namespace {

struct Lstm {
    View x, w, r, b, h0, c0;  // b, h0, c0: dtype none where not given
    const int64_t* lengths;  // steps of each sequence
    int64_t directions, steps, sequences, inputs, hidden;
};

// x (T, N, I), w (D, 4H, I), r (D, 4H, H), states (D, N, H) and lengths (N,).
Status check_lstm(const View& x, const View& w, const View& r, const View& h0, const View& c0, const View& lengths) {
    const auto ll = [](int64_t n) { return static_cast<long long>(n); };
    TW_TRY(want_floating(x, "x"));
    TW_TRY(want_ndim(x, "x", 3, 3));
    TW_TRY(want_dtype_of(w, "w", x, "x"));
    TW_TRY(want_ndim(w, "w", 3, 3));
    TW_TRY(want_dtype_of(r, "r", x, "x"));
    TW_TRY(want_ndim(r, "r", 3, 3));
    const int64_t directions = w.shape[0], hidden = r.shape[2];
    if (directions != 1 && directions != 2)
        return fail(Status::shape, "w", "w has D=%lld directions; want 1 or 2", ll(directions));
    if (w.shape[2] != x.shape[2])
        return fail(Status::shape, "w", "w has shape %s but x has I=%lld; want w (D, 4H, %lld)", shape_text(w).text,
                    ll(x.shape[2]), ll(x.shape[2]));
    if (r.shape[0] != directions || r.shape[1] != w.shape[1] || r.shape[1] != 4 * hidden)
        return fail(Status::shape, "r", "r has shape %s but w has %s; want r (D, 4H, H) and w (D, 4H, I)",
                    shape_text(r).text, shape_text(w).text);
    const int64_t state[] = {directions, x.shape[1], hidden};
    const View* const states[] = {&h0, &c0};
    for (const View* v : states) {
        if (!given(*v)) continue;
        const char* name = v == &h0 ? "h0" : "c0";
        TW_TRY(want_dtype_of(*v, name, x, "x"));
        TW_TRY(want_shape(*v, name, 3, state));
    }
    if (given(lengths)) {
        if (lengths.dtype != DType::i32 && lengths.dtype != DType::i64)
            return fail(Status::dtype, "lengths", "lengths has dtype %s; want int32 or int64", name_of(lengths.dtype));
        TW_TRY(want_shape(lengths, "lengths", 1, x.shape + 1));
    }
    return Status::ok;
}

Lstm lstm_of(const View& x, const View& w, const View& r, const View& b, const View& h0, const View& c0,
             const int64_t* lengths) {
    return {x, w, r, b, h0, c0, lengths, w.shape[0], x.shape[0], x.shape[1], x.shape[2], r.shape[2]};
}

TW_INLINE Status no_memory() {
    return fail(Status::memory, "", "no memory for the gates of all steps; want fewer steps at a time");
}
TW_INLINE View absent() {
    View v{};
    v.dtype = DType::none;
    return v;
}

// Where direction d stands at its s-th step of sequence n.
TW_INLINE int64_t step_of(const Lstm& p, int64_t d, int64_t n, int64_t s) { return d ? p.lengths[n] - 1 - s : s; }

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
template <class T>
TW_INLINE void write_state(const View& v, int64_t d, Share share, int64_t hidden, const Wide<T>* from) {
    for (int64_t i = 0; i < share.rows; ++i, from += hidden)
        copy_row(v.as<T>() + d * v.stride[0] + (share.first + i) * v.stride[1], v.stride[2], from, 1, hidden);
}

// Row (d, t, n) of gates or cells.
template <class W>
TW_INLINE W* kept_at(const View& v, int64_t d, int64_t t, int64_t n) {
    return v.as<W>() + d * v.stride[0] + t * v.stride[1] + n * v.stride[2];
}

}  // namespace
}  // namespace tw::TW_ISA
