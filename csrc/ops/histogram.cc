// The histogram of pictures of 8 and 16 bits, what a table makes of each value, and the table that spreads values evenly.
//
//     counts[v] = number of elements equal to v
//     y = table[x]
//     y = map[x],  map[v] = round(top / (total - counts[v0]) * sum of counts over v0 < u <= v),  v0 the least that occurs
//
// top is 255 of 8 bits and 65535 of 16.
//
// Method    each chunk counts into eight tables in turn, so that equal neighbours do not wait for each other. In the widest
//           tiers long rows are counted in pairs of pixels, by bytes, as a processor stores to one line at a time; blocks of
//           64 pixels that lie near each other by bits of vectors. Whole vectors are looked up in tables of 16 by shuffles,
//           or of 256 where bytes are permuted; any strides. Of 16 bits long rows are counted by themselves, others where
//           the counts are.
// Numerics  counts are exact. The map is one product and one rounding, halves to even: of 8 bits in float32, as in OpenCV
//           5, of 16 in float64. A picture of one value stays as it is.
// Threads   each counts its share by itself, rows in pieces; sums of integers have no order.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/bits.h"
#include "simd/lookup.h"
#include "simd/tally.h"

namespace tw::TW_ISA {
namespace {

constexpr int kValues = 256;

Status no_memory(int64_t values) {
    return fail(Status::memory, "image", "no memory for %lld counts", static_cast<long long>(values));
}

constexpr bool kCountsPairs = kVecBytes == 64;
constexpr int64_t kCountedAtOnce = 4 * kChunkElements;  // or a thread's whole share, as adding up tables takes time
constexpr int64_t kFewPairs = 1 << 16;

// Counts 64 pixels in pairs, of which bytes wrap: what they lose, `sums` have.
TW_INLINE void count_pairs(const uint8_t* x, uint8_t* pairs, uint32_t* sums) {
#pragma GCC unroll 32
    for (int k = 0; k < 64; k += 2)
        if (__builtin_expect(count_pair(pairs, x + k), false)) sums[x[k]] += kValues, sums[x[k + 1]] += kValues;
}

// Blocks of 64 pixels; those of equal pairs apart, since one count would wait for the other.
void count_blocks(const uint8_t* x, int64_t n, uint8_t* pairs, uint32_t* sums) {
    typedef Vec<uint16_t> Pairs;
    for (int64_t i = 0; i < n; i += 64) {
        const Pairs vector = bitcast<Pairs>(load(x + i)), first = splat(static_cast<uint16_t>(x[i] | x[i + 1] << 8));
        if (any_above(vector ^ first, Pairs{}))
            count_pairs(x + i, pairs, sums);
        else
            sums[x[i]] += 32, sums[x[i + 1]] += 32;
    }
}

// The same where blocks of pixels near each other are tallied; last ones first, so that the first remain in caches.
TW_TALLIES void count_near_blocks(const uint8_t* x, int64_t n, uint8_t* pairs, uint32_t* sums) {
    const Windows windows = Windows::of();
    Tally tally{};
    for (int64_t i = n - 64; i >= 0; i -= 64) {
        __builtin_prefetch(x + i - 1024);
        if (!tally_near(windows, x + i, tally)) count_pairs(x + i, pairs, sums);
    }
    add_tally(tally, sums);
}

// False: no memory.
bool count_in_pairs(const uint8_t* x, int64_t n, uint32_t* sums) {
    Scratch scratch(kPairs);
    uint8_t* const pairs = scratch.as<uint8_t>();
    if (!pairs) return false;
    __builtin_memset(pairs, 0, kPairs);
    const int64_t whole = n / 64 * 64;
    if (tallies())
        count_near_blocks(x, whole, pairs, sums);
    else
        count_blocks(x, whole, pairs, sums);
    for (int64_t i = whole; i < n; ++i) ++sums[x[i]];
    uint16_t lower[kValues] = {};
    for (int v = 0; v < kValues; ++v) {
        i16v upper{};
        for (int k = 0; k < kValues; k += kLanes<int16_t>) {
            const i16v some = load_pixels(pairs + v * kValues + k);
            upper += some;
            store(lower + k, load(lower + k) + bitcast<Vec<uint16_t>>(some));
        }
        sums[v] += static_cast<uint32_t>(reduce_add(dot_pairs(upper, splat<int16_t>(1))));
    }
    for (int v = 0; v < kValues; ++v) sums[v] += lower[v];
    return true;
}

constexpr int64_t kFew = 512;  // pixels, beside which clearing tables and adding them up takes long

template <int kTables>
void count_in_tables(const uint8_t* x, int64_t step, int64_t n, uint32_t* counts) {
    uint32_t tables[kTables][kValues] = {};
    int64_t i = kCountsPairs && kTables > 1 && step == 1 && n >= kFewPairs && count_in_pairs(x, n, tables[0]) ? n : 0;
    for (; kTables == 8 && step == 1 && i + kTables <= n; i += kTables) {
        uint64_t word;  // one load, since there is a load and a store for each element already
        __builtin_memcpy(&word, x + i, sizeof word);
#pragma GCC unroll 8
        for (int k = 0; k < kTables; ++k) ++tables[k][word >> 8 * k & 255];
    }
    for (; i < n; ++i) ++tables[0][x[i * step]];
    for (int v = 0; v < kValues; ++v) {
        uint32_t sum = 0;
        for (int k = 0; k < kTables; ++k) sum += tables[k][v];
        if (sum) __atomic_fetch_add(counts + v, sum, __ATOMIC_RELAXED);
    }
}

void count_row(const uint8_t* x, int64_t step, int64_t n, uint32_t* counts) {
    if (n < kFew) return count_in_tables<1>(x, step, n, counts);
    count_in_tables<8>(x, step, n, counts);
}

// A row of at least kLongRow elements has counts of its own, if there is memory.
constexpr int64_t kLongRow = 1 << 17, kCountedWords = 1 << 20;

void count_row(const uint16_t* x, int64_t step, int64_t n, uint32_t* counts) {
    constexpr int values = kValues * kValues;
    Scratch scratch(n < kLongRow ? 0 : values * sizeof(uint32_t));
    uint32_t* const own = n < kLongRow ? nullptr : scratch.as<uint32_t>();
    if (!own) {
        for (int64_t i = 0; i < n; ++i) __atomic_fetch_add(counts + x[i * step], 1u, __ATOMIC_RELAXED);
        return;
    }
    __builtin_memset(own, 0, values * sizeof(uint32_t));
    for (int64_t i = 0; i < n; ++i) ++own[x[i * step]];
    for (int v = 0; v < values; ++v)
        if (own[v]) __atomic_fetch_add(counts + v, own[v], __ATOMIC_RELAXED);
}

template <class T>
void count(const View& image, uint32_t* counts) {
    __builtin_memset(counts, 0, (size_t{1} << 8 * sizeof(T)) * sizeof(uint32_t));
    const View* views[] = {&image};
    const Walk w = walk_over(views, 1, image.ndim, image.shape);
    const int64_t share = ceil_div(numel(image), num_threads());
    for_each_row(w, sizeof(T) == 1 ? max_of(kCountedAtOnce, share) : kCountedWords, [&](char* const* at, int64_t n) {
        count_row(reinterpret_cast<const T*>(at[0]), w.stride[0], n, counts);
    });
}

template <class T>
Status run_histogram(const Call& c) {
    constexpr int values = 1 << 8 * sizeof(T);
    Scratch scratch(values * sizeof(uint32_t));
    uint32_t* const counts = scratch.as<uint32_t>();
    if (!counts) return no_memory(values);
    count<T>(c.in[0], counts);
    const View& y = c.out[0];
    for (int v = 0; v < values; ++v) y.as<int32_t>()[v * y.stride[0]] = static_cast<int32_t>(counts[v]);
    return Status::ok;
}

// A table of 256 as 16 of 16, of which a value looks into at most 8 and joins what it finds by exclusive or.
struct Sixteens {
    u8v part[16];
};

Sixteens sixteens_of(const uint8_t* map) {
    Sixteens s;
    for (int k = 0; k < 16; ++k) {
        alignas(kVecBytes) uint8_t lanes[kVecBytes];
        for (int i = 0; i < kVecBytes; ++i)
            lanes[i] = static_cast<uint8_t>(map[16 * k + i % 16] ^ (k % 8 ? map[16 * k - 16 + i % 16] : 0));
        s.part[k] = load_aligned(lanes);
    }
    return s;
}

// map[x] for N vectors: half by half, each part adds its change to what lies at or above it. Lanes of 128 and more give 0.
template <int N>
TW_INLINE void look_up_vectors(const Sixteens& s, const uint8_t* from, uint8_t* to) {
    typedef Vec<int8_t> Signed;
    u8v found[N] = {};
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        u8v left[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
            left[v] = load(from + v * kVecBytes) ^ splat(static_cast<uint8_t>(half ? 128 : 0));
            left[v] |= bitcast<u8v>(bitcast<Signed>(left[v]) < 0);  // stays negative
        }
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) {
            const u8v part = s.part[8 * half + k];
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
                found[v] ^= look_up16(part, left[v]);
                left[v] -= 16;
            }
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) store(to + v * kVecBytes, found[v]);
}

TW_PERMUTES_BYTES void permute_row(const uint8_t* map, const uint8_t* from, uint8_t* to, int64_t n) {
    const ByteTable table = ByteTable::of(map);
    for (int64_t i = 0; i < n; i += kVecBytes) {
        const int64_t count = min_of(n - i, kVecBytes);
        store_n(to + i, look_up256(table, load_n(from + i, count)), count);
    }
}

void look_up_row(const Sixteens* sixteens, const uint8_t* map, const uint8_t* from, uint8_t* to, int64_t n) {
    if (permutes_bytes()) return permute_row(map, from, to, n);
    int64_t i = 0;
    for (; i + 4 * kVecBytes <= n; i += 4 * kVecBytes) look_up_vectors<4>(*sixteens, from + i, to + i);
    for (; i < n; ++i) to[i] = map[from[i]];
}

template <class T>
void look_up(const View& image, const T* map, const View& y) {
    const View* views[] = {&y, &image};
    const Walk w = walk_over(views, 2, y.ndim, y.shape);
    Sixteens sixteens;
    if constexpr (sizeof(T) == 1) sixteens = sixteens_of(map);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t n) {
        T* const to = reinterpret_cast<T*>(at[0]);
        const T* const from = reinterpret_cast<const T*>(at[1]);
        if constexpr (sizeof(T) == 1)
            if (w.stride[0] == 1 && w.stride[1] == 1) return look_up_row(&sixteens, map, from, to, n);
        for (int64_t i = 0; i < n; ++i) to[i * w.stride[0]] = map[from[i * w.stride[1]]];
    });
}

template <class T>
Status run_look_up(const Call& c) {
    constexpr int values = 1 << 8 * sizeof(T);
    const View& table = c.in[1];
    Scratch scratch(values * sizeof(T));
    T* const map = scratch.as<T>();
    if (!map) return no_memory(values);
    for (int v = 0; v < values; ++v) map[v] = table.as<T>()[v * table.stride[0]];
    look_up(c.in[0], map, c.out[0]);
    return Status::ok;
}

template <class T>
struct Precision {
    typedef double Real;
};
template <>
struct Precision<uint8_t> {
    typedef float Real;
};

template <class T>
Status run_equalize(const Call& c) {
    typedef typename Precision<T>::Real Real;
    constexpr int values = 1 << 8 * sizeof(T);
    constexpr Real top = values - 1;
    const View &image = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    Scratch scratch(values * (sizeof(uint32_t) + sizeof(T)));
    uint32_t* const counts = scratch.as<uint32_t>();
    if (!counts) return no_memory(values);
    T* const map = reinterpret_cast<T*>(counts + values);
    count<T>(image, counts);
    int first = 0;
    while (!counts[first]) ++first;
    const int64_t spread = numel(image) - counts[first];
    __builtin_memset(map, 0, values * sizeof(T));
    map[first] = static_cast<T>(spread ? 0 : first);
    const Real scale = spread ? top / static_cast<Real>(spread) : 0;
    int64_t sum = 0;
    for (int v = first + 1; v < values; ++v) {
        sum += counts[v];
        const Real even = static_cast<Real>(__builtin_rint(static_cast<double>(static_cast<Real>(sum) * scale)));
        map[v] = static_cast<T>(even > top ? top : even);
    }
    look_up(image, map, y);
    return Status::ok;
}

Status run_histogram_of(const Call& c) {
    return c.in[0].dtype == DType::u8 ? run_histogram<uint8_t>(c) : run_histogram<uint16_t>(c);
}
Status run_look_up_of(const Call& c) {
    return c.in[0].dtype == DType::u8 ? run_look_up<uint8_t>(c) : run_look_up<uint16_t>(c);
}
Status run_equalize_of(const Call& c) {
    return c.in[0].dtype == DType::u8 ? run_equalize<uint8_t>(c) : run_equalize<uint16_t>(c);
}

Status want_image(const View& image) {
    if (image.dtype != DType::u8 && image.dtype != DType::u16)
        return fail(Status::dtype, "image", "image has dtype %s; want uint8 or uint16", name_of(image.dtype));
    if (numel(image) > INT32_MAX)
        return fail(Status::shape, "image", "image has shape %s; want less than 2^31 elements, so that counts fit",
                    shape_text(image).text);
    return Status::ok;
}

Status infer_histogram(Call& c, Inferred& r) {
    TW_TRY(want_image(c.in[0]));
    const int64_t shape[] = {c.in[0].dtype == DType::u8 ? kValues : kValues * kValues};
    r.n_out = 1;
    r.out[0] = result(DType::i32, 1, shape);
    r.flops = static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status infer_equalize(Call& c, Inferred& r) {
    TW_TRY(want_image(c.in[0]));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    r.flops = 2.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status infer_look_up(Call& c, Inferred& r) {
    const View &image = c.in[0], &table = c.in[1];
    if (image.dtype != DType::u8 && image.dtype != DType::u16)
        return fail(Status::dtype, "image", "image has dtype %s; want uint8 or uint16", name_of(image.dtype));
    if (table.dtype != image.dtype)
        return fail(Status::dtype, "table", "table has dtype %s but image has %s; want one type", name_of(table.dtype),
                    name_of(image.dtype));
    const int64_t shape[] = {image.dtype == DType::u8 ? kValues : kValues * kValues};
    TW_TRY(want_shape(table, "table", 1, shape));
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, image.shape);
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr Operand kImageTable[] = {{"image"}, {"table"}};

}  // namespace

extern const Entry op_histogram = {"histogram", kImage, 1, nullptr, 0, infer_histogram, run_histogram_of};
extern const Entry op_look_up = {"look_up", kImageTable, 2, nullptr, 0, infer_look_up, run_look_up_of, kElementwise};
extern const Entry op_equalize_hist = {"equalize_hist", kImage,          1,           nullptr, 0,
                                       infer_equalize,  run_equalize_of, kElementwise};

}  // namespace tw::TW_ISA
