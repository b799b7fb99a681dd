// Contractions as loops over vectors: products without a depth, thin and small ones, sums, copies.
#pragma once
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/axes.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kLoopWork = 1 << 15;   // multiply-adds, or elements moved, per chunk
constexpr int64_t kLoopPiece = 1 << 14;  // terms of a long sum that are added up by themselves

TW_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
TW_INLINE int64_t fewest(int64_t a, int64_t b) { return a < b ? a : b; }

// How a tensor runs along the axis of the vectors.
enum Run { kStill, kAlong, kStrided };
TW_INLINE Run run_of(int64_t stride) { return stride == 0 ? kStill : stride == 1 ? kAlong : kStrided; }

template <Run R, class T>
TW_INLINE Vec<T> read(const T* p, int64_t stride, int64_t i, int64_t n) {
    if constexpr (R == kStill) return splat<T>(*p);
    if constexpr (R == kAlong) return n == kLanes<T> ? load(p + i) : load_n(p + i, n);
    return load_strided(p + i * stride, stride, n);
}

// Calls f with how A and B run as compile-time constants: f(RunConstant<...>, RunConstant<...>).
template <Run R>
struct RunConstant {
    static constexpr Run value = R;
};
template <class F>
TW_INLINE void with_runs(int64_t a, int64_t b, const F& f) {
    const Run ra = run_of(a), rb = run_of(b);
    if (ra == kAlong && rb == kAlong) return f(RunConstant<kAlong>{}, RunConstant<kAlong>{});
    if (ra == kAlong && rb == kStill) return f(RunConstant<kAlong>{}, RunConstant<kStill>{});
    if (ra == kStill && rb == kAlong) return f(RunConstant<kStill>{}, RunConstant<kAlong>{});
    if (ra == kStill && rb == kStill) return f(RunConstant<kStill>{}, RunConstant<kStill>{});
    if (ra == kStill) return f(RunConstant<kStill>{}, RunConstant<kStrided>{});
    if (rb == kStill) return f(RunConstant<kStrided>{}, RunConstant<kStill>{});
    return f(RunConstant<kStrided>{}, RunConstant<kStrided>{});
}

template <class T>
struct Loops {
    const T *a, *b;
    T* c;
    Axes rows;    // kept axes but that of the vectors
    Axes summed;  // summed axes but that of the vectors
    Axis vector;
    bool accumulate;

    // Rows [first, last) as runs along the last axis of rows: body(a, b, c, count, axis).
    template <class Body>
    void each_run(int64_t first, int64_t last, const Body& body) const {
        static constexpr Axis kOne = {1, 0, 0, 0};
        Place p;
        seek(rows, first, p);
        for (int64_t i = first; i < last;) {
            const int64_t count = fewest(run_length(rows, p), last - i);
            body(a + p.a, b + p.b, c + p.c, count, rows.n ? rows.at[rows.n - 1] : kOne);
            advance(rows, p, count);
            i += count;
        }
    }

    // sum over the summed axes of term(a, b, inner): inner is the last of them, or one step.
    template <class Term>
    __attribute__((always_inline)) void each_term(const T* pa, const T* pb, const Term& term) const {
        static constexpr Axis kOne = {1, 0, 0, 0};
        if (summed.n <= 1) return term(pa, pb, summed.n ? summed.at[0] : kOne);
        const int64_t n = summed.at[summed.n - 1].size, outer = product(summed) / n;
        Place p;
        seek(summed, 0, p);
        for (int64_t i = 0; i < outer; ++i) {
            term(pa + p.a, pb + p.b, summed.at[summed.n - 1]);
            advance(summed, p, n);
        }
    }

    // ---- vectors of C ----------------------------------------------------------------------------------------------

    template <Run A, Run B, int N>
    __attribute__((always_inline)) void sum_vectors(const T* pa, const T* pb, T* pc, int64_t i, int64_t lanes) const {
        constexpr int64_t L = kLanes<T>;
        Vec<T> sum[N];
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) sum[v] = accumulate ? take<T>(pc, vector.c, i + v * L, lanes) : Vec<T>{};
        each_term(pa, pb, [&](const T* ta, const T* tb, const Axis& inner) __attribute__((always_inline)) {
            for (int64_t k = 0; k < inner.size; ++k, ta += inner.a, tb += inner.b) {
#pragma GCC unroll 8
                for (int v = 0; v < N; ++v)
                    sum[v] += read<A>(ta, vector.a, i + v * L, lanes) * read<B>(tb, vector.b, i + v * L, lanes);
            }
        });
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) put<T>(pc, vector.c, i + v * L, lanes, sum[v]);
    }

    template <Run A, Run B>
    void vectors(const T* pa, const T* pb, T* pc, int64_t count, const Axis& step, int64_t begin, int64_t end) const {
        constexpr int64_t L = kLanes<T>;
        const bool plain = summed.n == 0 && !accumulate && vector.c == 1;
        for (int64_t r = 0; r < count; ++r, pa += step.a, pb += step.b, pc += step.c) {
            int64_t i = begin;
            if (plain) {
                for (; i + L <= end; i += L) store(pc + i, read<A>(pa, vector.a, i, L) * read<B>(pb, vector.b, i, L));
            } else {
                for (; i + 8 * L <= end; i += 8 * L) sum_vectors<A, B, 8>(pa, pb, pc, i, L);
                for (; i + L <= end; i += L) sum_vectors<A, B, 1>(pa, pb, pc, i, L);
            }
            if (i < end) sum_vectors<A, B, 1>(pa, pb, pc, i, end - i);
        }
    }

    void run_vectors() const {
        note_kernel("contract vectors");
        const int64_t n_rows = product(rows), terms = product(summed), n = vector.size;
        const int64_t whole = 8 * kLanes<T>;
        const int64_t piece = most(whole, (kLoopWork / terms + whole - 1) / whole * whole);
        const int64_t pieces = (n + piece - 1) / piece;
        const int64_t tall = pieces > 1 ? 1 : most(1, kLoopWork / (n * terms));
        const int64_t groups = (n_rows + tall - 1) / tall;
        with_runs(vector.a, vector.b, [&](auto A, auto B) {
            parallel(groups * pieces, [&](int64_t chunk) {
                const int64_t first = chunk / pieces * tall, begin = chunk % pieces * piece;
                each_run(first, fewest(first + tall, n_rows),
                         [&](const T* pa, const T* pb, T* pc, int64_t count, const Axis& step) {
                    vectors<decltype(A)::value, decltype(B)::value>(pa, pb, pc, count, step, begin,
                                                                    fewest(begin + piece, n));
                });
            });
        });
    }

    // ---- dot products ----------------------------------------------------------------------------------------------

    template <Run A, Run B>
    __attribute__((always_inline)) T dot(const T* pa, const T* pb, int64_t n) const {
        constexpr int64_t L = kLanes<T>;
        Vec<T> sum[4] = {};
        int64_t i = 0;
        for (; i + 4 * L <= n; i += 4 * L) {
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v)
                sum[v] += read<A>(pa, vector.a, i + v * L, L) * read<B>(pb, vector.b, i + v * L, L);
        }
        for (; i + L <= n; i += L) sum[0] += read<A>(pa, vector.a, i, L) * read<B>(pb, vector.b, i, L);
        if (i < n) {
            // A still operand would fill the lanes beyond the end.
            const Vec<T> last = read<A>(pa, vector.a, i, n - i) * read<B>(pb, vector.b, i, n - i);
            sum[1] += first_lanes<T>(last, Vec<T>{}, n - i);
        }
        return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
    }

    // One element of C, long runs in pieces.
    template <Run A, Run B>
    __attribute__((always_inline)) T sum_of(const T* pa, const T* pb) const {
        T total = 0;
        each_term(pa, pb, [&](const T* ta, const T* tb, const Axis& inner) __attribute__((always_inline)) {
            for (int64_t k = 0; k < inner.size; ++k, ta += inner.a, tb += inner.b)
                for (int64_t i = 0; i < vector.size; i += kLoopPiece)
                    total += dot<A, B>(ta + i * vector.a, tb + i * vector.b, fewest(kLoopPiece, vector.size - i));
        });
        return total;
    }

    bool run_dots() const {
        const int64_t n_rows = product(rows), terms = product(summed) * vector.size;
        if (n_rows < 16 && terms >= 8 * kLoopPiece) return run_long_dots();
        note_kernel("contract dots");
        const int64_t tall = most(1, kLoopWork / terms);
        with_runs(vector.a, vector.b, [&](auto A, auto B) {
            parallel((n_rows + tall - 1) / tall, [&](int64_t chunk) {
                each_run(chunk * tall, fewest(chunk * tall + tall, n_rows),
                         [&](const T* pa, const T* pb, T* pc, int64_t count, const Axis& step) {
                    for (int64_t r = 0; r < count; ++r, pa += step.a, pb += step.b, pc += step.c) {
                        const T sum = sum_of<decltype(A)::value, decltype(B)::value>(pa, pb);
                        *pc = accumulate ? *pc + sum : sum;
                    }
                });
            });
        });
        return true;
    }

    // Few results: each is the sum of shares, a fixed number of pieces each.
    bool run_long_dots() const {
        note_kernel("contract long dots");
        const int64_t n_rows = product(rows), per_term = (vector.size + kLoopPiece - 1) / kLoopPiece;
        const int64_t pieces = product(summed) * per_term, share = (pieces + 63) / 64;
        const int64_t shares = (pieces + share - 1) / share;
        Scratch scratch(static_cast<size_t>(n_rows * shares) * sizeof(T));
        T* const sums = scratch.template as<T>();
        if (!sums) return false;
        with_runs(vector.a, vector.b, [&](auto A, auto B) {
            parallel(n_rows * shares, [&](int64_t chunk) {
                Place row, term;
                seek(rows, chunk / shares, row);
                T total = 0;
                const int64_t first = chunk % shares * share;
                for (int64_t piece = first; piece < fewest(first + share, pieces); ++piece) {
                    seek(summed, piece / per_term, term);
                    const int64_t i = piece % per_term * kLoopPiece;
                    total += dot<decltype(A)::value, decltype(B)::value>(a + row.a + term.a + i * vector.a,
                                                                         b + row.b + term.b + i * vector.b,
                                                                         fewest(kLoopPiece, vector.size - i));
                }
                sums[chunk] = total;
            });
        });
        for (int64_t r = 0; r < n_rows; ++r) {
            Place row;
            seek(rows, r, row);
            T total = 0;
            for (int64_t s = 0; s < shares; ++s) total += sums[r * shares + s];
            c[row.c] = accumulate ? c[row.c] + total : total;
        }
        return true;
    }

    // ---- transposed copies -----------------------------------------------------------------------------------------

    // Tiles of `across`, along which A runs, and `vector`, along which C runs; rows are all other axes.
    void run_tiles(const Axis& across) const {
        note_kernel("contract tiles");
        constexpr int64_t L = kLanes<T>, kBand = 8 * L;
        const int64_t bands = (across.size + kBand - 1) / kBand;
        parallel(product(rows) * bands, [&](int64_t chunk) {
            Place p;
            seek(rows, chunk / bands, p);
            const int64_t first = chunk % bands * kBand, last = fewest(first + kBand, across.size);
            const T* const from = a + p.a;
            T* const to = c + p.c;
            int64_t i = 0;
            for (; i + L <= vector.size; i += L) {
                int64_t j = first;
                for (; j + L <= last; j += L)
                    transpose_tile(from + i * vector.a + j, vector.a, to + j * across.c + i, across.c);
                for (; j < last; ++j) store(to + j * across.c + i, load_strided(from + i * vector.a + j, vector.a, L));
            }
            for (int64_t j = first; i < vector.size && j < last; ++j)
                store_n(to + j * across.c + i, load_strided(from + i * vector.a + j, vector.a, vector.size - i),
                        vector.size - i);
        });
    }
};

// Whether an operand may be read a vector at a time along an axis.
TW_INLINE bool smooth(int64_t stride) { return stride == 0 || stride == 1; }

template <class T>
bool run_loops(const T* a, const T* b, T* c, Axes& kept, Axes& summed, bool accumulate) {
    static constexpr T kOne = 1;
    const bool alone = b == nullptr;
    sort(kept, [](const Axis& x) { return magnitude(x.c); });
    sort(summed, [](const Axis& x) { return magnitude(x.a) + magnitude(x.b); });
    fuse(kept);
    fuse(summed);
    const int last = kept.n - 1;
    const bool dense = last >= 0 && kept.at[last].c == 1;
    int along = summed.n - 1;
    while (along >= 0 && !(smooth(summed.at[along].a) && smooth(summed.at[along].b))) --along;
    Loops<T> loops;
    loops.a = a, loops.b = alone ? &kOne : b, loops.c = c;
    loops.accumulate = accumulate;
    loops.rows = kept, loops.summed = summed;
    const bool smooth_columns = dense && smooth(kept.at[last].a) && smooth(kept.at[last].b);
    if (last < 0 || (!smooth_columns && along >= 0)) {
        const int s = along >= 0 ? along : summed.n - 1;
        loops.vector = s >= 0 ? summed.at[s] : Axis{1, 0, 0, 0};
        if (s >= 0) remove(loops.summed, s);
        return loops.run_dots();
    }
    loops.vector = kept.at[last];
    remove(loops.rows, last);
    if (alone && dense && !accumulate && summed.n == 0 && !smooth_columns)
        for (int i = 0; i < loops.rows.n; ++i)
            if (const Axis across = loops.rows.at[i]; across.a == 1) {
                remove(loops.rows, i);
                loops.run_tiles(across);
                return true;
            }
    loops.run_vectors();
    return true;
}

}  // namespace
}  // namespace tw::TW_ISA
