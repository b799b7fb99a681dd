// The median of a square window of 8-bit pixels.
//
//     y[i, j] = the ((k^2 + 1) / 2)-th least of image[i + u - k/2, j + v - k/2],  u, v < k
//
// Method    3 and 5: exchanges of pairs, whole vectors of pixels at once; what columns share is sorted once. From 7 on a
//           tile counts, level by level, how many pixels of each window do not exceed the level: column counts slide
//           down, sums along the row double. The median is the number of levels at which that is less than half. Levels
//           that no window of the tile can part are left out, so the time grows with the range of the tile, not with k.
// Numerics  exact. Outside the picture the edge pixels repeat; the bits are those of OpenCV 5.
// Threads   bands of rows, whose windows overlap. Same bits always.
// Source    the median of 3 rows of 3: J. L. Smith, "Implementing median filters in XC4000E FPGAs", 1996.
#include "image/check.h"
#include "image/window.h"
#include "ops/ops.h"
#include "simd/bits.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;
constexpr int64_t kLargest = 181;  // so that a window has less than 2^15 pixels

TW_INLINE int64_t within(int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n - 1; }

// Row y of the endless picture with its edge pixels repeated, `half` of them at either end and more of any value behind.
void take_row(const View& image, int64_t y, int64_t half, uint8_t* to) {
    const int64_t step = row_channels(image), width = image.shape[1];
    const uint8_t* const from = image.as<uint8_t>() + within(y, image.shape[0]) * image.stride[0];
    uint8_t* const row = to + half * step;
    if (has_whole_rows(image))
        __builtin_memcpy(row, from, static_cast<size_t>(width * step));
    else
        each_in_row(image, [&](int64_t i, int64_t j) { row[i] = from[j]; });
    for (int64_t k = 0; k < half; ++k)
        for (int64_t c = 0; c < step; ++c) {
            to[k * step + c] = row[c];
            row[(width + k) * step + c] = row[(width - 1) * step + c];
        }
}

// Element j of row y, its channels interleaved.
TW_INLINE uint8_t& element(const View& v, int64_t y, int64_t j) {
    const int64_t step = row_channels(v);
    return v.as<uint8_t>()[y * v.stride[0] + j / step * v.stride[1] + (v.ndim == 3 ? j % step * v.stride[2] : 0)];
}

TW_INLINE void exchange(u8v& a, u8v& b) {
    const u8v low = min_any(a, b);
    b = max_any(a, b);
    a = low;
}

// ---- 3 and 5 --------------------------------------------------------------------------------------------------------

// The median of nine is that of the largest of the least, the middle one of the middle ones and the least of the largest
// of three sorted columns.
TW_INLINE u8v middle_of(u8v a, u8v b, u8v c) { return max_any(min_any(a, b), min_any(max_any(a, b), c)); }

void sort_columns(const uint8_t* const* rows, uint8_t* low, uint8_t* middle, uint8_t* high, int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<uint8_t>) {
        u8v a = load(rows[0] + x), b = load(rows[1] + x), c = load(rows[2] + x);
        exchange(a, b);
        exchange(b, c);
        exchange(a, b);
        store(low + x, a);
        store(middle + x, b);
        store(high + x, c);
    }
}

void median_of_nine(const uint8_t* low, const uint8_t* middle, const uint8_t* high, int64_t step, uint8_t* to,
                    int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<uint8_t>) {
        const auto three = [&](const uint8_t* p, int k)
                               __attribute__((always_inline)) { return load(p + x + k * step); };
        const u8v a = max_any(max_any(three(low, 0), three(low, 1)), three(low, 2));
        const u8v b = middle_of(three(middle, 0), three(middle, 1), three(middle, 2));
        const u8v c = min_any(min_any(three(high, 0), three(high, 1)), three(high, 2));
        store_n(to + x, middle_of(a, b, c), min_of(n - x, kLanes<uint8_t>));
    }
}

// The least of v[0..N) comes first and the largest last.
template <int N>
TW_INLINE void part_ends(u8v* v) {
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) exchange(v[i], v[N - 1 - i]);
#pragma GCC unroll 16
    for (int i = 1; i < (N + 1) / 2; ++i) exchange(v[0], v[i]);
#pragma GCC unroll 16
    for (int i = N / 2; i < N - 1; ++i) exchange(v[i], v[N - 1]);
}

// Of 14 of the 25 neither the least nor the largest is the median: both go, the next pixel comes, until three are left.
template <int N, class Next>
TW_INLINE u8v forget_ends(u8v* v, const Next& next, int taken) {
    part_ends<N>(v);
    if constexpr (N == 3) {
        return v[1];
    } else {
        v[0] = next(taken);
        return forget_ends<N - 1>(v, next, taken + 1);
    }
}

void median_of_25(const uint8_t* const* rows, int64_t step, uint8_t* to, int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<uint8_t>) {
        const auto pixel = [&](int k) __attribute__((always_inline)) { return load(rows[k / 5] + x + k % 5 * step); };
        u8v v[14];
#pragma GCC unroll 14
        for (int k = 0; k < 14; ++k) v[k] = pixel(k);
        store_n(to + x, forget_ends<14>(v, pixel, 14), min_of(n - x, kLanes<uint8_t>));
    }
}

// Bands of rows of windows of K; work(rows, scratch rows, result, n).
template <int64_t K, class Work>
Status by_rows(const Call& c, int spare, const Work& work) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = image.shape[0], n = row_elements(image), step = row_channels(image);
    const int64_t pitch = row_pitch(n + (K - 1) * step);
    bool enough = true;
    parallel(ceil_div(height, kBandRows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>((K + spare + 1) * pitch));
        uint8_t* const ring = scratch.as<uint8_t>();
        if (!ring) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const int64_t first = band * kBandRows;
        for (int64_t i = first - K / 2; i < first + K / 2; ++i) take_row(image, i, K / 2, ring + (i + K) % K * pitch);
        for (int64_t i = first; i < min_of(first + kBandRows, height); ++i) {
            take_row(image, i + K / 2, K / 2, ring + (i + K / 2 + K) % K * pitch);
            const uint8_t* rows[K];
            for (int64_t k = 0; k < K; ++k) rows[k] = ring + (i + k - K / 2 + K) % K * pitch;
            uint8_t* const row = ring + (K + spare) * pitch;
            uint8_t* const to = begin_row(y, i, row);
            work(rows, ring + K * pitch, pitch, to, n);
            end_row(y, i, row);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

// ---- larger windows -------------------------------------------------------------------------------------------------

constexpr int64_t kTile = 128;  // elements along a row
constexpr int kDoublings = 8;  // sums of 1, 2, 4 ... 128 columns

// What a tile works on. Behind a row of pixels there are zeros, which every level covers.
template <class Count>
struct Tile {
    const uint8_t* pixels;  // rows + k - 1 rows of the tile and its surroundings
    int64_t pitch, rows, width, step, k;
    Count* counts;  // kDoublings rows of them
    int64_t counts_pitch;
    Count* levels;  // per pixel of the tile, how many levels are below its median
};

// What mask lanes are added to: 8-bit lanes up to 255 pixels, else 16-bit ones.
TW_INLINE u8v pixels_at(const uint8_t* p, uint8_t) { return load(p); }
TW_INLINE i16v pixels_at(const uint8_t* p, int16_t) { return load_pixels(p); }

template <class Count>
TW_INLINE Vec<Count> covered_by(const uint8_t* p, Vec<Count> level) {
    return bitcast<Vec<Count>>(pixels_at(p, Count{}) <= level);
}

// Counts a row that comes into the window and, where there is one, takes back a row that leaves it.
template <class Count>
TW_INLINE void slide(const uint8_t* comes, const uint8_t* leaves, Vec<Count> level, Count* counts, int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<Count>) {
        Vec<Count> total = load(counts + x) - covered_by<Count>(comes + x, level);
        if (leaves) total += covered_by<Count>(leaves + x, level);
        store(counts + x, total);
    }
}

// Adds one level to every pixel whose window has less than `half` pixels that do not exceed the level; was there any?
template <class Count>
bool count_level(const Tile<Count>& t, int number, Count half) {
    typedef Vec<Count> V;
    constexpr int64_t lanes = kLanes<Count>;
    const int64_t wide = t.width + (t.k - 1) * t.step;
    const V level = splat(static_cast<Count>(number)), need = splat(half);
    Count* const columns = t.counts;
    __builtin_memset(columns, 0, static_cast<size_t>(t.counts_pitch) * sizeof(Count));
    for (int64_t r = 0; r < t.k - 1; ++r) slide<Count>(t.pixels + r * t.pitch, nullptr, level, columns, wide);
    V some{};
    for (int64_t r = 0; r < t.rows; ++r) {
        const uint8_t* const last = t.pixels + (r + t.k - 1) * t.pitch;
        slide<Count>(last, r ? t.pixels + (r - 1) * t.pitch : nullptr, level, columns, wide);
        // The window is made of the sums of as many columns as k has bits.
        const Count* parts[kDoublings];
        int n = 0;
        int64_t reached = 0, left = wide;
        const Count* sums = columns;
        for (int64_t covered = 1;; covered *= 2) {
            if (t.k & covered) {
                parts[n++] = sums + reached * t.step;
                reached += covered;
            }
            if (2 * covered > t.k) break;
            left -= covered * t.step;
            Count* const twice = const_cast<Count*>(sums) + t.counts_pitch;
            for (int64_t x = 0; x < left; x += lanes)
                store(twice + x, load(sums + x) + load(sums + x + covered * t.step));
            sums = twice;
        }
        Count* const levels = t.levels + r * kTile;
        for (int64_t x = 0; x < t.width; x += lanes) {
            V total = load(parts[0] + x);
            for (int i = 1; i < n; ++i) total += load(parts[i] + x);
            const V less = bitcast<V>(total < need);
            some |= less;
            store(levels + x, load(levels + x) - less);
        }
    }
    return any(some);
}

// Pixels of the tile and its surroundings that do not exceed a level.
template <class Count>
int64_t covered_pixels(const Tile<Count>& t, int level) {
    const u8v limit = splat(static_cast<uint8_t>(level));
    int64_t sum = 0;
    for (int64_t r = 0; r < t.rows + t.k - 1; ++r)
        for (int64_t x = 0; x < t.width + (t.k - 1) * t.step; x += kLanes<uint8_t>)
            sum += __builtin_popcountll(lane_bits(bitcast<u8v>(load(t.pixels + r * t.pitch + x) <= limit)));
    return sum;
}

template <class Count>
void median_tile(const Tile<Count>& t) {
    const int64_t half = (t.k * t.k + 1) / 2;
    // Below this level no window can have half of its pixels, as the whole tile has not as many.
    int level = 0;
    for (int step = 128; step; step /= 2)
        if (covered_pixels(t, level + step - 1) < half) level += step;
    for (int64_t i = 0; i < t.rows * kTile; ++i) t.levels[i] = static_cast<Count>(level);
    while (level < 255 && count_level(t, level, static_cast<Count>(half))) ++level;
}

template <class Count>
Status by_tiles(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t k = c.attr[0].i, half = k / 2, step = row_channels(image);
    const int64_t height = image.shape[0], n = row_elements(image);
    const int64_t band_rows = min_of(max_of(kBandRows, k), height), rows = band_rows + k - 1;
    const int64_t filled = n + (k - 1) * step, pitch = row_pitch(filled + kTile);
    const int64_t counts_pitch = row_pitch(kTile + (k - 1) * step);
    bool enough = true;
    parallel(ceil_div(height, band_rows), [&](int64_t band) {
        const int64_t first = band * band_rows, here = min_of(band_rows, height - first);
        const int64_t counts = kDoublings * counts_pitch + band_rows * kTile;
        Scratch scratch(static_cast<size_t>(pitch * (rows + 1) + counts * static_cast<int64_t>(sizeof(Count))));
        uint8_t* const pixels = scratch.as<uint8_t>();
        if (!pixels) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        for (int64_t r = 0; r < here + k - 1; ++r) {
            take_row(image, first + r - half, half, pixels + r * pitch);
            __builtin_memset(pixels + r * pitch + filled, 0, static_cast<size_t>(pitch - filled));
        }
        uint8_t* const row = pixels + rows * pitch;
        Count* const memory = reinterpret_cast<Count*>(row + pitch);
        for (int64_t x = 0; x < n; x += kTile) {
            const Tile<Count> t = {pixels + x,
                                   pitch,
                                   here,
                                   min_of(kTile, n - x),
                                   step,
                                   k,
                                   memory,
                                   counts_pitch,
                                   memory + kDoublings * counts_pitch};
            median_tile(t);
            for (int64_t r = 0; r < here; ++r) {
                const Count* const levels = t.levels + r * kTile;
                if (has_whole_rows(y)) {
                    uint8_t* const to = y.as<uint8_t>() + (first + r) * y.stride[0] + x;
                    for (int64_t j = 0; j < t.width; ++j) to[j] = static_cast<uint8_t>(levels[j]);
                } else {
                    for (int64_t j = x; j < x + t.width; ++j)
                        element(y, first + r, j) = static_cast<uint8_t>(levels[j - x]);
                }
            }
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for windows of %lld; want a smaller ksize",
                         static_cast<long long>(k));
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const int64_t k = c.attr[0].i, step = row_channels(c.in[0]);
    if (k == 3)
        return by_rows<3>(c, 3, [&](const uint8_t* const* rows, uint8_t* spare, int64_t pitch, uint8_t* to, int64_t n) {
            sort_columns(rows, spare, spare + pitch, spare + 2 * pitch, n + 2 * step);
            median_of_nine(spare, spare + pitch, spare + 2 * pitch, step, to, n);
        });
    if (k == 5)
        return by_rows<5>(c, 0, [&](const uint8_t* const* rows, uint8_t*, int64_t, uint8_t* to, int64_t n) {
            median_of_25(rows, step, to, n);
        });
    return k <= 15 ? by_tiles<uint8_t>(c) : by_tiles<int16_t>(c);
}

Status infer(Call& c, Inferred& r) {
    TW_TRY(want_picture(c.in[0]));
    const int64_t k = c.attr[0].i;
    if (k < 3 || k > kLargest || k % 2 == 0)
        return fail(Status::attr, "ksize", "ksize=%lld; want an odd number of 3 to %lld", static_cast<long long>(k),
                    static_cast<long long>(kLargest));
    r.n_out = 1;
    r.out[0] = result(DType::u8, c.in[0].ndim, c.in[0].shape);
    r.flops = static_cast<double>(k * k) * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kSize[] = {{.name = "ksize", .kind = AttrKind::integer, .i = 3}};

}  // namespace

extern const OpDef op_median_blur = {"median_blur", kImage, 1, kSize, 1, infer, run};

}  // namespace tw::TW_ISA
