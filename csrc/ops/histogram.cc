// The histogram of 8-bit pictures, what a table makes of each value, and the table that spreads values evenly.
//
//     counts[v] = number of elements equal to v
//     y = table[x]
//     y = map[x],  map[v] = round(255 / (total - counts[v0]) * sum of counts over v0 < u <= v),  v0 the least that occurs
//
// Method    each chunk counts into eight tables in turn, so that equal neighbours do not wait for each other. Whole vectors
//           are looked up in tables of 16 by shuffles, or of 256 where bytes are permuted; any strides.
// Numerics  counts are exact. The map is one float32 product and one rounding, halves to even, as in OpenCV 5; a picture
//           of one value stays as it is.
// Threads   chunks are rows in pieces of kChunkElements, counted by themselves; sums of integers have no order.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/lookup.h"

namespace tw::TW_ISA {
namespace {

constexpr int kValues = 256;

constexpr int kTables = 8;
constexpr int64_t kCountedAtOnce = 4 * kChunkElements;  // so that adding up the tables costs little

void count_row(const uint8_t* x, int64_t step, int64_t n, uint32_t* counts) {
    uint32_t tables[kTables][kValues] = {};
    int64_t i = 0;
    for (; step == 1 && i + kTables <= n; i += kTables) {
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

void count(const View& image, uint32_t* counts) {
    __builtin_memset(counts, 0, kValues * sizeof(uint32_t));
    const View* views[] = {&image};
    const Walk w = walk_over(views, 1, image.ndim, image.shape);
    for_each_row(w, kCountedAtOnce, [&](char* const* at, int64_t n) {
        count_row(reinterpret_cast<const uint8_t*>(at[0]), w.stride[0], n, counts);
    });
}

Status run_histogram(const Call& c) {
    uint32_t counts[kValues];
    count(c.in[0], counts);
    const View& y = c.out[0];
    for (int v = 0; v < kValues; ++v) y.as<int32_t>()[v * y.stride[0]] = static_cast<int32_t>(counts[v]);
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

void look_up(const View& image, const uint8_t* map, const View& y) {
    const View* views[] = {&y, &image};
    const Walk w = walk_over(views, 2, y.ndim, y.shape);
    const Sixteens sixteens = sixteens_of(map);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t n) {
        uint8_t* const to = reinterpret_cast<uint8_t*>(at[0]);
        const uint8_t* const from = reinterpret_cast<const uint8_t*>(at[1]);
        int64_t i = 0;
        const bool whole = w.stride[0] == 1 && w.stride[1] == 1;
        if (whole && permutes_bytes()) return permute_row(map, from, to, n);
        if (whole)
            for (; i + 4 * kVecBytes <= n; i += 4 * kVecBytes) look_up_vectors<4>(sixteens, from + i, to + i);
        for (; i < n; ++i) to[i * w.stride[0]] = map[from[i * w.stride[1]]];
    });
}

Status run_look_up(const Call& c) {
    const View& table = c.in[1];
    uint8_t map[kValues];
    for (int v = 0; v < kValues; ++v) map[v] = table.as<uint8_t>()[v * table.stride[0]];
    look_up(c.in[0], map, c.out[0]);
    return Status::ok;
}

Status run_equalize(const Call& c) {
    const View &image = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    uint32_t counts[kValues];
    count(image, counts);
    int first = 0;
    while (!counts[first]) ++first;
    const int64_t spread = numel(image) - counts[first];
    uint8_t map[kValues] = {};
    map[first] = static_cast<uint8_t>(spread ? 0 : first);
    const float scale = spread ? 255.f / static_cast<float>(spread) : 0;
    int64_t sum = 0;
    for (int v = first + 1; v < kValues; ++v) {
        sum += counts[v];
        const float even = __builtin_rintf(static_cast<float>(sum) * scale);
        map[v] = static_cast<uint8_t>(even > 255 ? 255 : even);
    }
    look_up(image, map, y);
    return Status::ok;
}

Status want_image(const View& image) {
    if (image.dtype != DType::u8)
        return fail(Status::dtype, "image", "image has dtype %s; want uint8", name_of(image.dtype));
    if (numel(image) > INT32_MAX)
        return fail(Status::shape, "image", "image has shape %s; want less than 2^31 elements, so that counts fit",
                    shape_text(image).text);
    return Status::ok;
}

Status infer_histogram(Call& c, Inferred& r) {
    TW_TRY(want_image(c.in[0]));
    constexpr int64_t shape[] = {kValues};
    r.n_out = 1;
    r.out[0] = result(DType::i32, 1, shape);
    r.flops = static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status infer_equalize(Call& c, Inferred& r) {
    TW_TRY(want_image(c.in[0]));
    r.n_out = 1;
    r.out[0] = result(DType::u8, c.in[0].ndim, c.in[0].shape);
    r.flops = 2.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

Status infer_look_up(Call& c, Inferred& r) {
    const View &image = c.in[0], &table = c.in[1];
    if (image.dtype != DType::u8)
        return fail(Status::dtype, "image", "image has dtype %s; want uint8", name_of(image.dtype));
    if (table.dtype != DType::u8)
        return fail(Status::dtype, "table", "table has dtype %s; want uint8", name_of(table.dtype));
    constexpr int64_t shape[] = {kValues};
    TW_TRY(want_shape(table, "table", 1, shape));
    r.n_out = 1;
    r.out[0] = result(DType::u8, image.ndim, image.shape);
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr Operand kImageTable[] = {{"image"}, {"table"}};

}  // namespace

extern const OpDef op_histogram = {"histogram", kImage, 1, nullptr, 0, infer_histogram, run_histogram};
extern const OpDef op_look_up = {"look_up", kImageTable, 2, nullptr, 0, infer_look_up, run_look_up, kElementwise};
extern const OpDef op_equalize_hist = {"equalize_hist", kImage,       1,           nullptr, 0,
                                       infer_equalize,  run_equalize, kElementwise};

}  // namespace tw::TW_ISA
