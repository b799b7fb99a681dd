// What the recurrent kernels share: a layer, its checks, sequences in shares, states, and the rows that forward keeps.
#pragma once
#include "core/check.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kShareRows = 36;  // sequences that pass through time together

struct Share {
    int64_t first, rows;
};
// Sequences in even shares: by their number alone, so that a row meets the same register tile on any machine.
TW_INLINE int64_t shares_of(int64_t sequences) { return ceil_div(sequences, kShareRows); }
TW_INLINE Share share_at(int64_t sequences, int64_t i) {
    const int64_t count = shares_of(sequences), base = sequences / count, extra = sequences % count;
    return {i * base + min_of(i, extra), base + (i < extra)};
}

struct Layer {
    View x, w, r, b, rb, h0;  // b, rb, h0: dtype none where not given
    const int64_t* lengths;  // steps of each sequence
    int64_t directions, steps, sequences, inputs, hidden;
    int64_t outputs;  // numbers of a state: H, or fewer behind a projection
    int64_t blocks;  // of H rows in w and r
    int64_t kept;  // of H numbers in a row of gates
    DType stored;  // how weights lie in memory: none as they are computed with, f16, bf16 or i8
    const void* packed;  // weights as pack_weights made them, or null
    bool w_too;  // of weights that lie as they are computed with: whether w is packed beside r
};

constexpr AttrSpec kStoredAs = {.name = "dtype", .kind = AttrKind::dtype, .none_ok = true};

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

Status check_lengths_of(const View& lengths, const View& x) {
    if (!given(lengths)) return Status::ok;
    if (lengths.dtype != DType::i32 && lengths.dtype != DType::i64)
        return fail(Status::dtype, "lengths", "lengths has dtype %s; want int32 or int64", name_of(lengths.dtype));
    return want_shape(lengths, "lengths", 1, x.shape + 1);
}

// x (T, N, I), w (D, blocks H, I), r (D, blocks H, H) or, behind a projection, (D, blocks H, P), and lengths (N,).
Status check_layer(const View& x, const View& w, const View& r, int64_t blocks, const View& lengths,
                   bool projected = false) {
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
    const bool fits = projected ? r.shape[1] % blocks == 0 : r.shape[1] == blocks * r.shape[2];
    if (r.shape[0] != w.shape[0] || r.shape[1] != w.shape[1] || !fits)
        return fail(Status::shape, "r", "r has shape %s but w has %s; want r (D, %s, %s) and w (D, %s, I)",
                    shape_text(r).text, shape_text(w).text, rows, projected ? "P" : "H", rows);
    return check_lengths_of(lengths, x);
}

// The dtype in which w and r are kept, for x of 32 bits or fewer.
inline Status check_stored(const View& x, const View& w, const View& r, const Attr& dtype) {
    constexpr int64_t kMostTerms = 0x7fffffff / (255 * 128);
    if (dtype.is_none) return Status::ok;
    const DType stored = static_cast<DType>(dtype.choice);
    if (stored != DType::f16 && stored != DType::bf16 && stored != DType::i8)
        return fail(Status::attr, "dtype", "dtype=%s; want None, float16, bfloat16 or int8", name_of(stored));
    if (x.dtype == DType::f64)
        return fail(Status::attr, "dtype", "dtype=%s but x has float64; want None", name_of(stored));
    const int64_t terms = max_of(w.shape[2], r.shape[2]);
    if (stored == DType::i8 && terms > kMostTerms)
        return fail(Status::shape, "w", "sums of %lld terms could leave int32; want %lld or fewer",
                    static_cast<long long>(terms), static_cast<long long>(kMostTerms));
    return Status::ok;
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

// Weights of 16 bits are kept in as many unless `dtype` says otherwise.
TW_INLINE DType stored_as(const View& r, const Attr& dtype) {
    if (!dtype.is_none) return static_cast<DType>(dtype.choice);
    return r.dtype == DType::f16 || r.dtype == DType::bf16 ? r.dtype : DType::none;
}

Layer layer_of(int64_t blocks, int64_t kept, const View& x, const View& w, const View& r) {
    Layer p{};
    p.stored = DType::none, p.x = x, p.w = w, p.r = r, p.b = p.rb = p.h0 = absent();
    p.directions = w.shape[0], p.steps = x.shape[0], p.sequences = x.shape[1], p.inputs = x.shape[2];
    p.hidden = r.shape[1] / blocks, p.outputs = r.shape[2], p.blocks = blocks, p.kept = kept;
    return p;
}

// A state (D, N, H), or the gradient of one; that of h behind a projection is (D, N, P).
Status check_state(const Layer& p, const View& v, const char* name, int64_t width) {
    const int64_t shape[] = {p.directions, p.sequences, width};
    return check_optional(v, name, p.x, 3, shape);
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

// Whether all sequences of a direction are at the same time at each step.
TW_INLINE bool in_time(const Layer& p, int64_t d) {
    for (int64_t n = 0; d && n < p.sequences; ++n)
        if (p.lengths[n] < p.steps) return false;
    return true;
}

template <class T>
TW_INLINE void fill_zero(T* p, int64_t stride, int64_t n) {
    const T none{};
    copy_row(p, stride, &none, 0, n);
}

// Row (d, n) of a state (D, N, H), zero where it is not given.
template <class T>
TW_INLINE void read_state(const View& v, int64_t d, int64_t n, int64_t width, Wide<T>* to) {
    if (given(v))
        copy_row(to, 1, v.as<const T>() + d * v.stride[0] + n * v.stride[1], v.stride[2], width);
    else
        fill_zero(to, 1, width);
}
// The same back, where the state is asked for.
template <class T>
TW_INLINE void write_state(const View& v, int64_t d, int64_t n, int64_t width, const Wide<T>* from) {
    if (given(v)) copy_row(v.as<T>() + d * v.stride[0] + n * v.stride[1], v.stride[2], from, 1, width);
}

// Row (t, n) of direction d of y or dy (T, N, D H).
template <class T>
TW_INLINE T* row_of_y(const View& v, int64_t d, int64_t t, int64_t n, int64_t width) {
    return v.as<T>() + t * v.stride[0] + n * v.stride[1] + d * width * v.stride[2];
}
// Row (d, t, n) of gates or cells.
template <class W>
TW_INLINE W* kept_at(const View& v, int64_t d, int64_t t, int64_t n) {
    return v.as<W>() + d * v.stride[0] + t * v.stride[1] + n * v.stride[2];
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

// Scratch that is handed out piece by piece; without memory it only counts.
template <class W>
struct Room {
    W* start;
    int64_t used;
    W* next(int64_t n) {
        W* const here = start ? start + used : nullptr;
        used += n;
        return here;
    }
};

// ---- the threads of a walk through time ----------------------------------------------------------------------------

constexpr int64_t kChunks = 8;  // of the units of a step, at most
constexpr double kWorthSharing = 3e4;  // multiplications of a step; below, meeting costs more than it brings

// How many threads share the steps of a direction of one share. Results do not depend on it.
TW_INLINE int64_t members_of(const Layer& p, int64_t jobs, int64_t chunks) {
    const double each = static_cast<double>(min_of(p.sequences, kShareRows) * p.blocks) *
                        static_cast<double>(p.hidden) * static_cast<double>(p.outputs);
    return each < kWorthSharing ? 1 : max_of(min_of(num_threads() / max_of(jobs, 1), chunks), 1);
}

// Chunk `chunk` of `units`, in whole panels of `panel` units.
struct Units {
    int64_t begin, end;
};
TW_INLINE Units units_of(int64_t chunk, int64_t chunks, int64_t units, int64_t panel) {
    const int64_t panels = ceil_div(units, panel);
    return {min_of(chunk * panels / chunks * panel, units), min_of((chunk + 1) * panels / chunks * panel, units)};
}

}  // namespace
}  // namespace tw::TW_ISA
