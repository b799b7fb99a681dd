// The work of `inverted_residual` on one image: bands of rows, slices of channels filtered as soon as they are widened, and
// runs of pixels that are narrowed. Weights lie in panels of kNR filters, [panel][k][NR].
#pragma once
#include "gemm/micro.h"
#include "ops/conv_problem.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kRowBytes = 64 << 10;  // of e, for one slice
constexpr int64_t kBandBytes = 448 << 10;  // of d
constexpr int64_t kStayingBytes = 192 << 10;  // of weights, in L2
// Rows of a band, where threads could have more of them; in a band of its own no thread reads what another wrote.
constexpr bool kOwnBands = kVectorRegisters >= 32;
constexpr int64_t kTallRows = kOwnBands ? 6 : 8;
constexpr int64_t kRun = 48;  // pixels that are narrowed together
constexpr int64_t kFewRuns = 8;  // below, threads share panels
constexpr int kPixels = 4;  // filtered together: they share what they load

// Two vectors: rows of a slice stay in L1, and there are slices and panels for several threads.
template <class T>
constexpr int64_t kNR = 2 * kLanes<T>;

template <class T>
struct Block {
    static constexpr int64_t NR = kNR<T>;
    static constexpr int L = kLanes<T>;
    ConvAxes s;
    int64_t in, channels, filters, panels;  // panels: of the wide channels
    int64_t x_plane, y_plane, residual_plane;
    const T *wide, *w, *narrow, *wide_b, *b, *narrow_b, *zeros;  // zeros: a row of e
    Activation activation, last;

    // Tiles of C (m rows) = A (by `t`, whose a, c and rows are set) times a panel of `depth` rows, cut every KC; the panel
    // at `next`, where it is given, is fetched meanwhile.
    void multiply(Tile<T> t, int64_t m, int n, int64_t depth, const T* panel, const T* next, const T* bias,
                  Activation act) const {
        const int64_t cuts = max_of(1, ceil_div(depth, Blocking<T>::KC)), piece = ceil_div(depth, cuts);
        const int64_t tiles = ceil_div(m, kMR), rows = m / tiles, more = m % tiles;
        const T* const a = t.a;
        T* const c = t.c;
        t.b_k = NR;
        const int64_t lines = ceil_div(piece * NR * static_cast<int64_t>(sizeof(T)), 64 * kStreams);
        if (next) t.ahead_step = 64 * lines, t.ahead_lines = ceil_div(lines, tiles);
        for (int64_t cut = 0; cut < cuts; ++cut) {
            const int64_t k = cut * piece;
            t.kc = min_of(piece, depth - k);
            t.b = panel + k * NR;
            t.ahead = next ? reinterpret_cast<const char*>(next + k * NR) : nullptr;
            t.load_c = cut > 0;
            t.bias_col = cut == 0 ? bias : nullptr;
            t.activation = cut == cuts - 1 ? act : Activation::none;
            t.a = a + k * t.a_k, t.c = c;
            t.tiles = more, t.a_tile = (rows + 1) * t.a_row;
            if (more) run_tile(t, static_cast<int>(rows + 1), n);
            t.a += more * t.a_tile, t.c += more * (rows + 1) * t.c_row;
            if (next) t.ahead += more * 64 * t.ahead_lines;
            t.tiles = tiles - more, t.a_tile = rows * t.a_row;
            run_tile(t, static_cast<int>(rows), n);
        }
    }

    // The panel that this thread, probably, multiplies by next, where all of them do not stay in L2.
    static const T* next_panel(const T* panels, int64_t panel, int64_t count, int64_t depth) {
        const int64_t each = depth * NR, at = panel + num_threads();
        const bool stay = count * each * static_cast<int64_t>(sizeof(T)) <= kStayingBytes;
        return stay || at >= count ? nullptr : panels + at * each;
    }

    // Vectors of a slice that hold channels.
    int vectors_of(int64_t slice) const { return static_cast<int>(ceil_div(min_of(NR, channels - slice * NR), L)); }

    // Pixels [from, from + count) of e of a slice, [pixel][NR].
    void widen(const T* x, int64_t slice, int64_t from, int64_t count, T* e) const {
        if (count <= 0) return;
        if (!wide) return turn_in(x + slice * NR * x_plane + from, min_of(NR, channels - slice * NR), count, e);
        Tile<T> t{};
        t.a = x + from, t.a_row = 1, t.a_k = x_plane;
        t.c = e, t.c_row = NR;
        multiply(t, count, vectors_of(slice) * L, in, wide + slice * NR * in, next_panel(wide, slice, panels, in),
                 wide_b ? wide_b + slice * NR : nullptr, activation);
    }

    // n planes of x as pixels beside each other; what is beyond the last plane is zero.
    void turn_in(const T* x, int64_t n, int64_t count, T* e) const {
        for (int64_t c = 0; c < NR; c += L)
            for (int64_t p = 0; p < count; p += L) {
                if (c + L <= n && p + L <= count) {
                    transpose_tile(x + c * x_plane + p, x_plane, e + p * NR + c, NR);
                    continue;
                }
                for (int64_t i = p; i < min_of(p + L, count); ++i)
                    for (int64_t k = c; k < c + L; ++k) e[i * NR + k] = k < n ? x[k * x_plane + i] : T{};
            }
    }

    // Rows [first, last) of d of a slice: e is made a few rows ahead.
    void filter(const T* x, int64_t slice, int64_t first, int64_t last, T* d, T* e, int64_t room,
                const T** seen) const {
        const int64_t row = s.in[2] * NR, reach = (s.taps[1] - 1) * s.dilation[1] + 1;
        const bool pairs = is_pairwise();
        const auto inside = [&](int64_t h) { return max_of(0, min_of(h, s.in[1])); };
        int64_t high = 0;  // rows of e before it were made; row r lies at r % room
        for (int64_t h = first; h < last;) {
            const int64_t low = inside(h * s.stride[1] - s.before[1]);
            high = max_of(high, low);
            // As many rows of d as there is room for what they see.
            int64_t end = h + 1;
            while (end < last && inside(end * s.stride[1] - s.before[1] + reach) - low <= room) ++end;
            const int64_t needed = max_of(high, inside((end - 1) * s.stride[1] - s.before[1] + reach));
            while (high < needed) {
                const int64_t at = high % room, rows = min_of(needed - high, room - at);
                widen(x, slice, high * s.in[2], rows * s.in[2], e + at * row);
                high += rows;
            }
            while (h < end) {
                const bool two = pairs && h + 2 <= end;
                for (int64_t i = 0; i < s.taps[1] + two; ++i) {
                    const int64_t at = h * s.stride[1] + i * s.dilation[1] - s.before[1];
                    seen[i] = at >= 0 && at < s.in[1] ? e + at % room * row : zeros;
                }
                filter_rows(slice, seen, two, d + ((h - first) * s.out[2] * panels + slice) * NR);
                h += 1 + two;
            }
        }
    }

    // Whether two rows of d are made at once, which share rows of e.
    bool is_pairwise() const {
        return s.taps[1] == 3 && s.taps[2] == 3 && s.stride[1] == 1 && s.stride[2] == 1 && s.dilation[1] == 1 &&
               s.dilation[2] == 1 && s.out[2] >= kPixels;
    }

    // One row of d, or two.
    void filter_rows(int64_t slice, const T* const* seen, bool two, T* d) const {
        const int64_t end = s.out[2];
        const bool side_by_side = s.dilation[2] == 1 && end >= kPixels;
        const int64_t taps = s.taps[2], stride = s.stride[2];
        if (two)
            columns<2, 3, 1>(slice, seen, d);
        else if (side_by_side && taps == 3 && stride == 1)
            columns<1, 3, 1>(slice, seen, d);
        else if (side_by_side && taps == 3 && stride == 2)
            columns<1, 3, 2>(slice, seen, d);
        else if (side_by_side && taps == 5 && stride == 1)
            columns<1, 5, 1>(slice, seen, d);
        else if (side_by_side && taps == 5 && stride == 2)
            columns<1, 5, 2>(slice, seen, d);
        else
            for (int64_t p = 0; p < end; ++p) pixel(slice, seen, p, d + p * panels * NR);
        if (activation > Activation::relu6)
            activate_tile(d, panels * NR, static_cast<int>(end * (1 + two)), vectors_of(slice) * L, activation);
    }

    // Pixels in groups; the last one may repeat some.
    template <int R, int KW, int SW>
    void columns(int64_t slice, const T* const* seen, T* d) const {
        const int64_t end = s.out[2];
        for (int64_t x = 0; x < end; x += kPixels) {
            const int64_t p = min_of(x, end - kPixels), column = p * SW - s.before[2];
            if (column >= 0 && column + (kPixels - 1) * SW + KW <= s.in[2])
                pixels<R, KW, SW, false>(slice, seen, column, d + p * panels * NR);
            else
                pixels<R, KW, SW, true>(slice, seen, column, d + p * panels * NR);
        }
    }

    // kPixels pixels of R rows, whose first tap is at `column`; of two rows the taps are 3x3. Edge: columns may lie beside
    // the image.
    template <int R, int KW, int SW, bool Edge>
    void pixels(int64_t slice, const T* const* seen, int64_t column, T* d) const {
        constexpr int kSeen = (kPixels - 1) * SW + KW;
        const bool clips = is_clip(activation);
        const Vec<T> limit = clip_limit<Vec<T>>(activation);
        const T* const taps = w + slice * NR * s.taps[1] * KW;
        const int lanes = vectors_of(slice) * L;
        for (int c = 0; c < lanes; c += L) {
            Vec<T> acc[R][kPixels];
            const Vec<T> start = b ? load(b + slice * NR + c) : Vec<T>{};
#pragma GCC unroll 2
            for (int k = 0; k < R; ++k)
#pragma GCC unroll 4
                for (int i = 0; i < kPixels; ++i) acc[k][i] = start;
            const auto add = [&](int64_t r) __attribute__((always_inline)) {
                const T* const from = seen[r] + column * NR + c;
                Vec<T> v[kSeen];
#pragma GCC unroll 16
                for (int j = 0; j < kSeen; ++j) {
                    const bool here = !Edge || (column + j >= 0 && column + j < s.in[2]);
                    v[j] = load(here ? from + j * NR : zeros);
                }
#pragma GCC unroll 8
                for (int j = 0; j < KW; ++j)
#pragma GCC unroll 2
                    for (int k = 0; k < R; ++k) {
                        if (R > 1 && (r < k || r >= k + 3)) continue;
                        const Vec<T> factor = load(taps + ((r - k) * KW + j) * NR + c);
#pragma GCC unroll 4
                        for (int i = 0; i < kPixels; ++i) acc[k][i] += factor * v[i * SW + j];
                    }
            };
            if constexpr (R == 2)
#pragma GCC unroll 4
                for (int r = 0; r < 4; ++r) add(r);
            else
                for (int64_t r = 0; r < s.taps[1]; ++r) add(r);
#pragma GCC unroll 2
            for (int k = 0; k < R; ++k)
#pragma GCC unroll 4
                for (int i = 0; i < kPixels; ++i)
                    store(d + (k * s.out[2] + i) * panels * NR + c, clips ? clipped(acc[k][i], limit) : acc[k][i]);
        }
    }

    // One pixel, any taps.
    void pixel(int64_t slice, const T* const* seen, int64_t p, T* d) const {
        const int lanes = vectors_of(slice) * L;
        for (int c = 0; c < lanes; c += L) {
            Vec<T> acc = b ? load(b + slice * NR + c) : Vec<T>{};
            const T* tap = w + slice * NR * s.taps[1] * s.taps[2] + c;
            for (int64_t r = 0; r < s.taps[1]; ++r)
                for (int64_t j = 0; j < s.taps[2]; ++j, tap += NR) {
                    const int64_t column = p * s.stride[2] + j * s.dilation[2] - s.before[2];
                    const bool here = column >= 0 && column < s.in[2];
                    acc += load(tap) * load(here ? seen[r] + column * NR + c : zeros);
                }
            store(d + c, is_clip(activation) ? clipped(acc, clip_limit<Vec<T>>(activation)) : acc);
        }
    }

    // `count` pixels of y of a panel of filters: d at their first one, y and residual at the first filter's.
    void narrow_run(const T* d, int64_t panel, const T* next, int64_t count, T* y, const T* residual, T* made) const {
        const int64_t n = min_of(NR, filters - panel * NR), lanes = ceil_div(n, L) * L;
        Tile<T> t{};
        t.a = d, t.a_row = panels * NR, t.a_k = 1;
        t.c = made, t.c_row = NR;
        multiply(t, count, static_cast<int>(lanes), channels, narrow + panel * NR * channels, next,
                 narrow_b ? narrow_b + panel * NR : nullptr, residual ? Activation::none : last);
        for (int64_t c = 0; c < n; c += L)
            for (int64_t p = 0; p < count; p += L)
                turn_out(made + p * NR + c, min_of(L, n - c), min_of(L, count - p), y + c * y_plane + p,
                         residual ? residual + c * residual_plane + p : nullptr);
    }

    // Pixels by filters into planes of y.
    void turn_out(const T* made, int64_t n, int64_t count, T* y, const T* residual) const {
        if (n == L && count == L && !residual) return transpose_tile(made, NR, y, y_plane);
        alignas(kVecBytes) T turned[L * L];
        transpose_tile(made, NR, turned, L);
        for (int64_t k = 0; k < n; ++k, y += y_plane) {
            Vec<T> v = load(turned + k * L);
            if (residual) v += load_n(residual + k * residual_plane, count);
            if (residual && is_clip(last)) v = clipped(v, clip_limit<Vec<T>>(last));
            store_n(y, v, count);
            if (residual && last > Activation::relu6) activate_tile(y, y_plane, 1, static_cast<int>(count), last);
        }
    }

    // Rows [h0, h0 + rows) of an image.
    bool band(const T* x, T* y, const T* residual, int64_t h0, int64_t rows) const {
        const int64_t wide_row = s.out[2] * panels * NR, reach = (s.taps[1] - 1) * s.dilation[1] + 1;
        const int64_t row_bytes = max_of(1, s.in[2] * NR * static_cast<int64_t>(sizeof(T)));
        const int64_t room = min_of(s.in[1], max_of(min_of(reach, s.in[1]), kRowBytes / row_bytes));
        Scratch d_scratch(static_cast<size_t>(rows * wide_row + 1) * sizeof(T));
        T* const d = d_scratch.as<T>();
        if (!d) return false;
        bool enough = true;
        const auto failed = [&] { __atomic_store_n(&enough, false, __ATOMIC_RELAXED); };
        // A few jobs for every thread; parts of a slice make some rows twice.
        const int64_t parts = min_of(ceil_div(8, panels), max_of(1, rows / 16)), tall = ceil_div(rows, parts);
        parallel(panels * parts, [&](int64_t job) {
            Scratch e(static_cast<size_t>(room * row_bytes + 64)),
                seen(static_cast<size_t>(s.taps[1] + 1) * sizeof(T*));
            if (!e.as<T>() || !seen.template as<const T*>()) return failed();
            const int64_t first = job % parts * tall, end = min_of(first + tall, rows);
            if (first < end)
                filter(x, job / parts, h0 + first, h0 + end, d + first * wide_row, e.as<T>(), room,
                       seen.template as<const T*>());
        });
        if (!enough) return false;
        const int64_t pixels = rows * s.out[2], runs = ceil_div(pixels, kRun), each = ceil_div(pixels, max_of(runs, 1));
        const int64_t narrow_panels = ceil_div(filters, NR), at = h0 * s.out[2];
        const bool by_runs = runs >= kFewRuns;
        parallel(by_runs ? runs : narrow_panels, [&](int64_t job) {
            Scratch made(static_cast<size_t>((kRun + L) * NR) * sizeof(T));
            if (!made.as<T>()) return failed();
            const int64_t first_run = by_runs ? job : 0, last_run = by_runs ? job + 1 : runs;
            const int64_t first_panel = by_runs ? 0 : job, last_panel = by_runs ? narrow_panels : job + 1;
            for (int64_t r = first_run; r < last_run; ++r)
                for (int64_t p = first_panel; p < last_panel; ++p) {
                    const int64_t from = r * each, count = min_of(each, pixels - from);
                    if (count <= 0) continue;
                    const T* const next = by_runs || r > 0 ? nullptr : next_panel(narrow, p, narrow_panels, channels);
                    narrow_run(d + from * panels * NR, p, next, count, y + p * NR * y_plane + at + from,
                               residual ? residual + p * NR * residual_plane + at + from : nullptr, made.as<T>());
                }
        });
        return enough;
    }

    // All images: threads take bands, where there are as many for each, or share the work in one.
    bool run(const View& x, const View& y, const View& residual) const {
        const int64_t bytes = s.out[2] * panels * NR * static_cast<int64_t>(sizeof(T)), threads = num_threads();
        const int64_t least = ceil_div(s.out[1], max_of(1, kBandBytes / max_of(bytes, 1)));
        int64_t bands = ceil_div(least * x.shape[0], threads) * threads / max_of(x.shape[0], 1);
        if ((least == 1 && !kOwnBands) || bands < least || s.out[1] / bands < kTallRows) bands = least;
        const int64_t tall = ceil_div(s.out[1], bands), jobs = bands * x.shape[0];
        bool enough = true;
        const auto one = [&](int64_t job) {
            const int64_t n = job / bands, h0 = job % bands * tall, rows = min_of(tall, s.out[1] - h0);
            const T* const added = residual.data ? residual.as<T>() + n * residual.stride[0] : nullptr;
            if (rows > 0 && !band(x.as<T>() + n * x.stride[0], y.as<T>() + n * y.stride[0], added, h0, rows))
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        };
        if (jobs % threads == 0 || jobs >= 4 * threads)
            parallel(jobs, one);
        else
            for (int64_t job = 0; job < jobs && enough; ++job) one(job);
        return enough;
    }
};

}  // namespace
}  // namespace tw::TW_ISA
