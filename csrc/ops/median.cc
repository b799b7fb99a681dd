// The median of a square window of pixels.
//
//     y[i, j] = the ((k^2 + 1) / 2)-th least of image[i + u - k/2, j + v - k/2],  u, v < k
//
// Method    3 and 5: exchanges of pairs, whole vectors of pixels at once; what columns share is sorted once. From 7 on
//           every column has a histogram of the window's rows, as running sums, which slides down: one of 16 sixteens of
//           values, and one of each sixteen. The coarse one of a window slides along the row; in it lies the sixteen of the
//           median, whose fine sums alone are added up over k columns, a vector each. Up to 15 nothing branches on pixels.
//           Those of 16 bits and floats are found by the order of pixels (image/order.h).
// Numerics  exact; a NaN in a window is its median. Outside the picture the edge pixels repeat; the bits are those of
//           OpenCV 5, which has none of 7 and more of 16 bits and floats.
// Threads   bands of rows, whose windows overlap. Same bits always.
// Source    the median of 3 rows of 3: J. L. Smith, "Implementing median filters in XC4000E FPGAs", 1996; histograms of
//           columns: S. Perreault and P. Hebert, "Median filtering in constant time", 2007.
#include "image/order.h"
#include "ops/ops.h"
#include "simd/pixels.h"
#include "simd/ranks.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;
constexpr int64_t kLargest = 181;  // so that a window has less than 2^15 pixels

TW_INLINE int64_t within(int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n - 1; }

// Row y of the endless picture with its edge pixels repeated, `half` of them at either end and more of any value behind.
template <class T>
void take_row(const View& image, int64_t y, int64_t half, T* to) {
    const int64_t step = row_channels(image), width = image.shape[1];
    const T* const from = image.as<T>() + within(y, image.shape[0]) * image.stride[0];
    T* const row = to + half * step;
    if (has_whole_rows(image))
        __builtin_memcpy(row, from, static_cast<size_t>(width * step) * sizeof(T));
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

template <class V>
TW_INLINE void exchange(V& a, V& b) {
    const V low = min_any(a, b);
    b = max_any(a, b);
    a = low;
}

// ---- 3 and 5 --------------------------------------------------------------------------------------------------------

// The median of nine is that of the largest of the least, the middle one of the middle ones and the least of the largest
// of three sorted columns.
template <class V>
TW_INLINE V middle_of(V a, V b, V c) {
    return max_any(min_any(a, b), min_any(max_any(a, b), c));
}

// Of a column with a NaN the largest is one. Writes up to a vector more than n.
template <class T>
void sort_columns(const T* const* rows, T* low, T* middle, T* high, int64_t n) {
    const auto sort = [&](int64_t x, Vec<T> a, Vec<T> b, Vec<T> c) __attribute__((always_inline)) {
        [[maybe_unused]] const auto known = (a == a) & (b == b) & (c == c);
        exchange(a, b);
        exchange(b, c);
        exchange(a, b);
        if constexpr (kIsFloating<T>) c = select(known, c, splat<T>(__builtin_nanf("")));
        store(low + x, a);
        store(middle + x, b);
        store(high + x, c);
    };
    int64_t x = 0;
    for (; x + kLanes<T> <= n; x += kLanes<T>) sort(x, load(rows[0] + x), load(rows[1] + x), load(rows[2] + x));
    if (x < n) sort(x, load_n(rows[0] + x, n - x), load_n(rows[1] + x, n - x), load_n(rows[2] + x, n - x));
}

template <class T>
void median_of_nine(const T* low, const T* middle, const T* high, int64_t step, T* to, int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<T>) {
        const auto three = [&](const T* p, int k) __attribute__((always_inline)) { return load(p + x + k * step); };
        const Vec<T> a = max_any(max_any(three(low, 0), three(low, 1)), three(low, 2));
        const Vec<T> b = middle_of(three(middle, 0), three(middle, 1), three(middle, 2));
        const Vec<T> c = min_any(min_any(three(high, 0), three(high, 1)), three(high, 2));
        Vec<T> found = middle_of(a, b, c);
        if constexpr (kIsFloating<T>) {
            const auto known = (three(high, 0) == three(high, 0)) & (three(high, 1) == three(high, 1)) &
                               (three(high, 2) == three(high, 2));
            found = select(known, found, splat<T>(__builtin_nanf("")));
        }
        store_n(to + x, found, min_of(n - x, kLanes<T>));
    }
}

// The least of v[0..N) comes first and the largest last.
template <int N, class V>
TW_INLINE void part_ends(V* v) {
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) exchange(v[i], v[N - 1 - i]);
#pragma GCC unroll 16
    for (int i = 1; i < (N + 1) / 2; ++i) exchange(v[0], v[i]);
#pragma GCC unroll 16
    for (int i = N / 2; i < N - 1; ++i) exchange(v[i], v[N - 1]);
}

// Of 14 of the 25 neither the least nor the largest is the median: both go, the next pixel comes, until three are left.
template <int N, class V, class Next>
TW_INLINE V forget_ends(V* v, const Next& next, int taken) {
    part_ends<N>(v);
    if constexpr (N == 3) {
        return v[1];
    } else {
        v[0] = next(taken);
        return forget_ends<N - 1>(v, next, taken + 1);
    }
}

template <class T>
void median_of_25(const T* const* rows, int64_t step, T* to, int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<T>) {
        const auto pixel = [&](int k) __attribute__((always_inline)) { return load(rows[k / 5] + x + k % 5 * step); };
        Vec<T> v[14];
#pragma GCC unroll 14
        for (int k = 0; k < 14; ++k) v[k] = pixel(k);
        Vec<T> found = forget_ends<14>(v, pixel, 14);
        if constexpr (kIsFloating<T>) {
            auto known = pixel(0) == pixel(0);
            for (int k = 1; k < 25; ++k) known &= pixel(k) == pixel(k);
            found = select(known, found, splat<T>(__builtin_nanf("")));
        }
        store_n(to + x, found, min_of(n - x, kLanes<T>));
    }
}

// Bands of rows of windows of 3, whose columns are sorted where they lie.
template <class T>
Status run_three(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = image.shape[0], n = row_elements(image), step = row_channels(image);
    const int64_t pitch = row_pitch(n);
    const bool whole = has_whole_rows(image);
    bool enough = true;
    parallel(ceil_div(height, kBandRows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>(7 * pitch) * sizeof(T));
        T* const ring = scratch.as<T>();
        if (!ring) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const auto row = [&](int64_t i) -> const T* {
            if (whole) return image.as<T>() + within(i, height) * image.stride[0];
            return ring + (i + 3) % 3 * pitch;
        };
        const auto take = [&](int64_t i) {
            if (!whole) take_row(image, i, 0, ring + (i + 3) % 3 * pitch);
        };
        T *const sorted = ring + 3 * pitch + kMargin, *const spare = ring + 6 * pitch;
        const int64_t first = band * kBandRows;
        take(first - 1);
        take(first);
        for (int64_t i = first; i < min_of(first + kBandRows, height); ++i) {
            take(i + 1);
            const T* const rows[] = {row(i - 1), row(i), row(i + 1)};
            sort_columns(rows, sorted, sorted + pitch, sorted + 2 * pitch, n);
            for (int64_t k = 0; k < 3; ++k)
                for (int64_t j = 0; j < step; ++j) {
                    T* const columns = sorted + k * pitch;
                    columns[j - step] = columns[j];
                    columns[n + j] = columns[n - step + j];
                }
            T* const to = begin_row(y, i, spare);
            median_of_nine(sorted - step, sorted + pitch - step, sorted + 2 * pitch - step, step, to, n);
            end_row(y, i, spare);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

// Of windows of 5.
template <class T>
Status run_five(const Call& c) {
    constexpr int64_t K = 5;
    const View &image = c.in[0], &y = c.out[0];
    const int64_t height = image.shape[0], n = row_elements(image), step = row_channels(image);
    const int64_t pitch = row_pitch(n + (K - 1) * step);
    bool enough = true;
    parallel(ceil_div(height, kBandRows), [&](int64_t band) {
        Scratch scratch(static_cast<size_t>((K + 1) * pitch) * sizeof(T));
        T* const ring = scratch.as<T>();
        if (!ring) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const int64_t first = band * kBandRows;
        for (int64_t i = first - K / 2; i < first + K / 2; ++i) take_row(image, i, K / 2, ring + (i + K) % K * pitch);
        for (int64_t i = first; i < min_of(first + kBandRows, height); ++i) {
            take_row(image, i + K / 2, K / 2, ring + (i + K / 2 + K) % K * pitch);
            const T* rows[K];
            for (int64_t k = 0; k < K; ++k) rows[k] = ring + (i + k - K / 2 + K) % K * pitch;
            T* const row = ring + K * pitch;
            T* const to = begin_row(y, i, row);
            median_of_25(rows, step, to, n);
            end_row(y, i, row);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for rows of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

// ---- larger windows -------------------------------------------------------------------------------------------------

constexpr int64_t kStripe = 256;  // elements of a row at once, so that the histograms of their columns stay in L2

constexpr int64_t kBins = 16, kValues = 256;

// How many pixels of a column of the window's rows do not exceed a value: by sixteens of values, the last of each, then of
// each sixteen those that are in it. Equal sixteens of neighbours are not a power of two apart, for the cache's sake.
constexpr int64_t kColumn = kBins + kValues;
constexpr int64_t kSlack = 4;  // columns behind the last one that are read, to no avail

struct Columns {
    int64_t n;
    uint8_t* sums;
};

TW_INLINE int64_t columns_bytes(int64_t n) { return (n + kSlack) * kColumn; }

// One from lane i on, and none before it.
TW_INLINE Bins<uint8_t> ones_from(int i) {
    alignas(32) static constexpr uint8_t steps[2 * kBins] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                                             1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    return load_bins<uint8_t>(steps + kBins - i);
}

// A row comes into the window; one leaves it, if there is one.
void slide(const Columns& c, const uint8_t* comes, const uint8_t* leaves) {
    uint8_t* coarse = c.sums;
    const auto add = [](uint8_t* to, Bins<uint8_t> v)
                         __attribute__((always_inline)) { store_bins(to, load_bins<uint8_t>(to) + v); };
    for (int64_t j = 0; j < c.n; ++j, coarse += kColumn) {
        uint8_t* const fine = coarse + kBins;
        const int in = comes[j];
        Bins<uint8_t> change = ones_from(in / kBins);
        add(fine + in / kBins * kBins, ones_from(in % kBins));
        if (leaves) {
            const int out = leaves[j];
            change -= ones_from(out / kBins);
            add(fine + out / kBins * kBins, -ones_from(out % kBins));
        }
        add(coarse, change);
    }
}

// Sixteen sums of n columns, `step` bytes apart.
template <class Count>
TW_INLINE Bins<Count> add_columns(const uint8_t* bins, int64_t step, int64_t n) {
    Bins<Count> one{}, two{};
    int64_t i = 0;
#pragma GCC unroll 4
    for (; i + 4 <= n; i += 4, bins += 4 * step) {
        one += load_bins<Count>(bins) + load_bins<Count>(bins + step);
        two += load_bins<Count>(bins + 2 * step) + load_bins<Count>(bins + 3 * step);
    }
#pragma GCC unroll 3
    for (; i < n; ++i, bins += step) one += load_bins<Count>(bins);
    return one + two;
}

// The fine sums of each sixteen, in the window where they were last asked for.
template <class Count>
class Fine {
public:
    Fine(const uint8_t* columns, int64_t k, int64_t step) : columns_(columns), step_(step * kColumn), k_(k) {
        for (int64_t& at : at_) at = -k;
    }

    // Those of the window that starts at column x.
    Bins<Count> of(int bin, int64_t x) {
        const uint8_t* const bins = columns_ + bin * kBins;
        // Few pixels: anew is faster than to see whether it must be.
        if constexpr (sizeof(Count) == 1) return add_columns<Count>(bins + x * step_, step_, k_);
        if (x - at_[bin] > k_ / 2) {
            counts_[bin] = add_columns<Count>(bins + x * step_, step_, k_);
        } else {
            for (int64_t i = at_[bin]; i < x; ++i)
                counts_[bin] += load_bins<Count>(bins + (i + k_) * step_) - load_bins<Count>(bins + i * step_);
        }
        at_[bin] = x;
        return counts_[bin];
    }

private:
    const uint8_t* columns_;
    const int64_t step_, k_;
    Bins<Count> counts_[kBins];
    int64_t at_[kBins];
};

// Medians of a row of windows of K, or of any number for K = 0, of Step channels. Count holds the pixels of a window.
template <class Count, int K, int64_t Step>
void find_medians(const Columns& c, int64_t size, uint8_t* to, int64_t n) {
    const int64_t k = K ? K : size;
    constexpr int64_t step = Step;
    const int need = static_cast<int>((k * k + 1) / 2);
    Count below[kBins + 1] = {};  // how many pixels are in the sixteens before each
    for (int64_t channel = 0; channel < step; ++channel) {
        const uint8_t* coarse = c.sums + channel * kColumn;
        Fine<Count> fine(coarse + kBins, k, step);
        Bins<Count> window = add_columns<Count>(coarse, step * kColumn, k);
        for (int64_t x = 0; x < n / step; ++x, coarse += step * kColumn) {
            __builtin_memcpy(below + 1, &window, sizeof window);
            const int bin = bins_below(window, need);
            const int rank = bins_below(fine.of(bin, x), need - below[bin]);
            to[x * step + channel] = static_cast<uint8_t>(bin * kBins + rank);
            window += load_bins<Count>(coarse + k * step * kColumn) - load_bins<Count>(coarse);
        }
    }
}

template <int64_t Step>
void find_medians(const Columns& c, int64_t k, uint8_t* to, int64_t n) {
    switch (k) {
        case 7: return find_medians<uint8_t, 7, Step>(c, k, to, n);
        case 9: return find_medians<uint8_t, 9, Step>(c, k, to, n);
        case 11: return find_medians<uint8_t, 11, Step>(c, k, to, n);
        case 13: return find_medians<uint8_t, 13, Step>(c, k, to, n);
        case 15: return find_medians<uint8_t, 15, Step>(c, k, to, n);
        default: return find_medians<uint16_t, 0, Step>(c, k, to, n);
    }
}

Status by_columns(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    const int64_t k = c.attr[0].i, half = k / 2, step = row_channels(image);
    const int64_t height = image.shape[0], n = row_elements(image), stripe = kStripe / step * step;
    const int64_t band_rows = min_of(max_of(2 * kBandRows, 2 * k), height), rows = band_rows + k - 1;
    const int64_t pitch = row_pitch(n + (k - 1) * step), most = min_of(stripe, n) + (k - 1) * step;
    bool enough = true;
    parallel(ceil_div(height, band_rows), [&](int64_t band) {
        const int64_t first = band * band_rows, here = min_of(band_rows, height - first);
        Scratch scratch(static_cast<size_t>(pitch * rows + stripe + columns_bytes(most)));
        uint8_t* const pixels = scratch.as<uint8_t>();
        if (!pixels) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        uint8_t *const medians = pixels + pitch * rows, *const counts = medians + stripe;
        for (int64_t r = 0; r < here + k - 1; ++r) take_row(image, first + r - half, half, pixels + r * pitch);
        for (int64_t x = 0; x < n; x += stripe) {
            const int64_t width = min_of(stripe, n - x), columns = width + (k - 1) * step;
            const Columns all = {columns, counts};
            __builtin_memset(counts, 0, static_cast<size_t>(columns_bytes(columns)));
            for (int64_t r = 0; r < k - 1; ++r) slide(all, pixels + r * pitch + x, nullptr);
            for (int64_t r = 0; r < here; ++r) {
                slide(all, pixels + (r + k - 1) * pitch + x, r ? pixels + (r - 1) * pitch + x : nullptr);
                uint8_t* const to = has_whole_rows(y) ? y.as<uint8_t>() + (first + r) * y.stride[0] + x : medians;
                step == 1 ? find_medians<1>(all, k, to, width) : find_medians<3>(all, k, to, width);
                if (to == medians)
                    for (int64_t j = 0; j < width; ++j) element(y, first + r, x + j) = medians[j];
            }
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for windows of %lld; want a smaller ksize",
                         static_cast<long long>(k));
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const int64_t k = c.attr[0].i;
    if (k <= 5)
        return with_pixels(c.in[0].dtype, [&](auto pixel) {
            typedef decltype(pixel) T;
            return k == 3 ? run_three<T>(c) : run_five<T>(c);
        });
    if (c.in[0].dtype == DType::u16) return medians_by_order<uint16_t>(c.in[0], c.out[0], k);
    if (c.in[0].dtype == DType::f32) return medians_by_order<float>(c.in[0], c.out[0], k);
    return by_columns(c);
}

Status infer(Call& c, Inferred& r) {
    TW_TRY(want_any_picture(c.in[0]));
    const int64_t k = c.attr[0].i;
    if (k < 3 || k > kLargest || k % 2 == 0)
        return fail(Status::attr, "ksize", "ksize=%lld; want an odd number of 3 to %lld", static_cast<long long>(k),
                    static_cast<long long>(kLargest));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    r.flops = static_cast<double>(k * k) * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kSize[] = {{.name = "ksize", .kind = AttrKind::integer, .i = 3}};

}  // namespace

extern const Entry op_median_blur = {"median_blur", kImage, 1, kSize, 1, infer, run};

}  // namespace tw::TW_ISA
