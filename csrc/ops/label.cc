// Connected components: which pixels of a mask hang together.
//
//     labels[i, j] = 0 where mask[i, j] = 0, else the number of its component, from 1 in the order of their first pixels
//
// Method    a row becomes bits; where bits of two rows touch, the runs that they belong to join, in a forest whose roots
//           are the first runs of their components: which runs these are, counts of bits say. Bands of rows are joined by
//           themselves, then to each other. Roots are numbered in order; then each pixel takes the number of the run that
//           it lies in, eight at a time.
// Numerics  exact.
// Threads   runs are found and labels written in bands of rows; a root is the first run, whatever was joined before. Same
//           bits always.
#include "image/check.h"
#include "image/window.h"
#include "ops/ops.h"
#include "simd/bits.h"
#include "simd/gather.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kWordBits = 64, kFoundAtOnce = 4 * kChunkElements;

struct Runs {
    uint64_t* bits;  // `words` a row, set where the mask is
    int64_t words;
    int32_t* parent;  // of a run: itself, or one before it; later its number
    int64_t *first, *past;  // runs of a row are first[i] to past[i] - 1
};

// Bits of up to 64 pixels.
TW_INLINE uint64_t bits_of(const uint8_t* row, int64_t n) {
    constexpr int64_t lanes = kLanes<uint8_t>;
    uint64_t bits = 0;
#pragma GCC unroll 4
    for (int64_t x = 0; x < min_of(n, kWordBits); x += lanes) {
        const u8v v = x + lanes <= n ? load(row + x) : load_n(row + x, n - x);
        bits |= lane_bits(bitcast<u8v>(v != 0)) << x;
    }
    return bits;
}

// A word of a row, and what lies before it.
struct Word {
    uint64_t bits, shifted;

    TW_INLINE Word after(uint64_t bits, uint64_t& last) {
        const Word w = {bits, bits << 1 | last};
        last = bits >> (kWordBits - 1);
        return w;
    }
    TW_INLINE uint64_t begins(const Word& w) { return w.bits & ~w.shifted; }
    TW_INLINE uint64_t reaching(const Word& w, uint64_t reach) { return w.bits | (w.shifted & reach); }
};

// Fills in the bits of row i, and its runs, which are their own roots; the first is run k. Gives the one behind the last.
TW_INLINE int64_t find_runs(const Runs& r, const uint8_t* row, int64_t n, int64_t i, int64_t k) {
    uint64_t* const bits = r.bits + i * r.words;
    uint64_t last = 0;
    r.first[i] = k;
    for (int64_t w = 0; w < r.words; ++w) {
        bits[w] = bits_of(row + w * kWordBits, n - w * kWordBits);
        k += __builtin_popcountll(Word::begins(Word::after(bits[w], last)));
    }
    for (int64_t own = r.first[i]; own < k; ++own) r.parent[own] = static_cast<int32_t>(own);
    return r.past[i] = k;
}

// Few are more than two steps away: those are taken anyhow, so that nothing has to be predicted.
TW_INLINE int32_t root_of(int32_t* parent, int32_t k) {
    k = parent[parent[k]];
    while (parent[k] != k) k = parent[k] = parent[parent[k]];
    return k;
}
TW_INLINE void unite(int32_t* parent, int64_t a, int64_t b) {
    const int32_t p = root_of(parent, static_cast<int32_t>(a)), q = root_of(parent, static_cast<int32_t>(b));
    parent[max_of(p, q)] = static_cast<int32_t>(min_of(p, q));
}

// Joins runs of row i with those of the row above that they touch; `reach` is all ones where also at corners. Runs that
// go on for one more pixel touch where they meet. Each two meet once: where both are, but one began or both were not.
void join(const Runs& r, int64_t i, uint64_t reach) {
    const uint64_t *const above = r.bits + (i - 1) * r.words, *const here = above + r.words;
    uint64_t last_above = 0, last_here = 0, last_both = 0;
    int64_t p = r.first[i - 1] - 1, q = r.first[i] - 1;
    for (int64_t w = 0; w < r.words; ++w) {
        const Word a = Word::after(above[w], last_above), b = Word::after(here[w], last_here);
        const uint64_t begins_a = Word::begins(a), begins_b = Word::begins(b);
        const Word both = Word::after(Word::reaching(a, reach) & Word::reaching(b, reach), last_both);
        for (uint64_t meet = both.bits & (~both.shifted | begins_a | begins_b); meet; meet &= meet - 1) {
            const uint64_t upto = meet ^ (meet - 1);
            unite(r.parent, p + __builtin_popcountll(begins_a & upto), q + __builtin_popcountll(begins_b & upto));
        }
        p += __builtin_popcountll(begins_a), q += __builtin_popcountll(begins_b);
    }
}

// How many of the bits of i up to each place are set.
struct Counts {
    uint8_t of[256][8];
    constexpr Counts() : of() {
        for (int i = 0; i < 256; ++i)
            for (int bit = 0, n = 0; bit < 8; ++bit) of[i][bit] = static_cast<uint8_t>(n += i >> bit & 1);
    }
};
constexpr Counts kCounts;

// Writes the numbers of the runs of a row, the first of which is number[0]: each pixel looks up how many have begun.
// Eight pixels hold four runs at most; nothing branches on where they lie.
void write_row(const uint8_t* row, int64_t n, const int32_t* number, int32_t* to) {
    const int32_t* begun = number - 1;
    uint64_t last = 0;
    const auto eight = [&](const uint8_t* pixels) __attribute__((always_inline)) {
        const i32x8 mask = widen8(pixels) != 0;
        const uint64_t set = lane_bits8(mask);
        const uint8_t* const counts = kCounts.of[set & ~(set << 1 | last)];
        const i32x8 labels = pick(load8(begun), widen8(counts)) & mask;
        begun += counts[7];
        last = set >> 7;
        return labels;
    };
    int64_t x = 0;
    for (; x + 8 <= n; x += 8) {
        const i32x8 labels = eight(row + x);
        __builtin_memcpy(to + x, &labels, sizeof labels);
    }
    if (x == n) return;
    uint8_t rest[8] = {};
    copy_part<8>(rest, row + x, n - x);
    const i32x8 labels = eight(rest);
    copy_part<sizeof labels>(to + x, &labels, (n - x) * 4);
}

Status run(const Call& c) {
    const View &mask = c.in[0], &labels = c.out[0];
    const int64_t height = mask.shape[0], n = mask.shape[1], per_row = (n + 1) / 2;
    // A column is one band, so that its runs are numbered in 32 bits.
    const int64_t rows_found = n > 1 ? max_of(1, kFoundAtOnce / n) : max_of(height, 1);
    const int64_t bands = ceil_div(height, rows_found), per_band = rows_found * per_row;
    const int64_t most = bands * per_band, words = ceil_div(n, kWordBits);
    const uint64_t reach = c.attr[0].i == 8 ? ~uint64_t{0} : 0;
    Scratch scratch(static_cast<size_t>((words + 2) * height * 8 + most * 4 + 64));
    bool enough = scratch.as<char>() != nullptr;
    if (!enough)
        return fail(Status::memory, "mask", "no memory for %lld runs; want a smaller mask",
                    static_cast<long long>(most));
    Runs r = {scratch.as<uint64_t>(), words, nullptr, nullptr, nullptr};
    r.first = reinterpret_cast<int64_t*>(r.bits + words * height);
    r.past = r.first + height;
    r.parent = reinterpret_cast<int32_t*>(r.past + height);
    const bool found = parallel(bands, [&](int64_t band) {
        Scratch copy(static_cast<size_t>(n));
        if (!copy.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        const int64_t begin = band * rows_found;
        int64_t k = band * per_band;
        for (int64_t i = begin; i < min_of(begin + rows_found, height); ++i) {
            const uint8_t* row = mask.as<uint8_t>() + i * mask.stride[0];
            if (mask.stride[1] != 1) {
                copy_row(copy.as<uint8_t>(), row, mask.stride[1], n);
                row = copy.as<uint8_t>();
            }
            k = find_runs(r, row, n, i, k);
            if (i > begin) join(r, i, reach);
        }
    });
    if (!found) return Status::ok;
    if (!enough)
        return fail(Status::memory, "mask", "no memory for a row of %lld; want a smaller mask",
                    static_cast<long long>(n));
    for (int64_t i = rows_found; i < height; i += rows_found) join(r, i, reach);
    // A run's parent comes before it, and has its number already.
    int32_t count = 0;
    for (int64_t i = 0; i < height; ++i)
        for (int64_t k = r.first[i]; k < r.past[i]; ++k) {
            const int32_t parent = r.parent[k], number = r.parent[parent];
            count += parent == k;
            r.parent[k] = parent == k ? count : number;
        }
    *c.out[1].as<int32_t>() = count;
    if (numel(labels) == 0) return Status::ok;
    const int64_t rows = max_of(1, kChunkElements / n);
    parallel(ceil_div(height, rows), [&](int64_t band) {
        Scratch own(static_cast<size_t>(n * 5));
        if (!own.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        uint8_t* const pixels = own.as<uint8_t>() + 4 * n;
        for (int64_t i = band * rows; i < min_of((band + 1) * rows, height); ++i) {
            int32_t* const to = begin_row(labels, i, own.as<int32_t>());
            const uint8_t* row = mask.as<uint8_t>() + i * mask.stride[0];
            if (mask.stride[1] != 1) {
                copy_row(pixels, row, mask.stride[1], n);
                row = pixels;
            }
            write_row(row, n, r.parent + r.first[i], to);
            end_row(labels, i, to);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "mask", "no memory for a row of %lld; want a smaller mask",
                         static_cast<long long>(n));
}

Status infer(Call& c, Inferred& r) {
    const View& mask = c.in[0];
    TW_TRY(want_plane(mask, "mask"));
    const int64_t connectivity = c.attr[0].i;
    if (connectivity != 4 && connectivity != 8)
        return fail(Status::attr, "connectivity", "connectivity=%lld; want 4 or 8",
                    static_cast<long long>(connectivity));
    if (numel(mask) >= INT32_MAX)
        return fail(Status::shape, "mask", "mask has shape %s; want less than 2^31 - 1 elements, so that labels fit",
                    shape_text(mask).text);
    r.n_out = 2;
    r.out[0] = result(DType::i32, 2, mask.shape);
    r.out[1] = result(DType::i32, 0, nullptr);
    return Status::ok;
}

constexpr Operand kMask[] = {{"mask"}};
constexpr AttrSpec kAttrs[] = {{.name = "connectivity", .kind = AttrKind::integer, .i = 8}};

}  // namespace

extern const Entry op_label = {"label", kMask, 1, kAttrs, 1, infer, run};

}  // namespace tw::TW_ISA
