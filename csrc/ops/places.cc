// Places along lines (lines/places.h): where the gradient across a line is largest.
//
// Method    several places at once, gradients from bytes. Of five pixels across the line the largest gradient of the middle
//           three is taken, and the top of the parabola through it and its neighbours. Nothing branches on what is found.
// Numerics  integers. A course is followed exactly from block to block of 16 places, and in 1/65536 within one, so that
//           the number of lanes changes no bit. The top of a parabola is one division of floats.
// Threads   none; the caller fits lines one by one.
#include "lines/places.h"

#include "image/sobel_at.h"
#include "lines/ways.h"
#include "ops/ops.h"
#include "simd/bits.h"

namespace tw::TW_ISA {
namespace {

using lines::Blurred;
using lines::Course;
using lines::kPart;
using lines::Places;
using lines::Sums;

constexpr int64_t kBlock = 16;
constexpr int kStepBits = 16;  // of positions within a block
constexpr int64_t kMostStep = 1 << 20;  // steeper ones are no lines, and would overflow
constexpr int64_t L = kLanes<int32_t>;

// The lanes of places `first + from` on, of `n` places of a block that begins at `first`.
struct Lanes {
    i32v k, across;  // places from the block's first, and where the course is, from `whole` on, in 1/2^kStepBits
    i32v counts;
};

struct Block {
    int64_t first, n, whole;
    int32_t part, step;

    TW_INLINE Block of(const Course& c, int64_t first, int64_t last) {
        const int64_t n = last - first + 1, at = c.at0 + (first - c.origin) * c.step;
        const int64_t step = c.step >> (32 - kStepBits);
        return {first, n < kBlock ? n : kBlock, at >> 32,
                static_cast<int32_t>(static_cast<uint32_t>(at) >> (32 - kStepBits)),
                static_cast<int32_t>(step > kMostStep    ? kMostStep
                                     : step < -kMostStep ? -kMostStep
                                                         : step)};
    }
    TW_INLINE Lanes lanes(const Block& b, int64_t from) {
        const i32v k = iota<int32_t>() + splat(static_cast<int32_t>(from));
        return {k, k * splat(b.step) + splat(b.part), k < splat(static_cast<int32_t>(b.n))};
    }
};

TW_INLINE i32v within(i32v v, i32v low, i32v high) { return min_any(max_any(v, low), high); }

// The direction across a line as it meets words of dx and dy.
TW_INLINE i16v across_of(const Course& c) {
    int32_t both;
    __builtin_memcpy(&both, c.across, sizeof both);
    return bitcast<i16v>(splat(both));
}
TW_INLINE i32v squared(i32v words) { return dot_pairs(bitcast<i16v>(words), bitcast<i16v>(words)); }

// Whether gradients point across the line within 22.5 degrees, towards the brighter side.
TW_INLINE i32v is_aligned(i32v across, i32v words) {
    constexpr float limit = static_cast<float>(lines::kAligned * lines::kUnit * lines::kUnit);
    const f32v size = to_f32(across);
    return (across > 0) & (size * size >= to_f32(squared(words)) * limit);
}

// From the first block of sums to the last: 10 pixels off all of them fit 32 bits. Few registers hold those of a block.
constexpr int64_t kSummed = kVectorRegisters >= 32 ? 240 : 0;

// Of places within `stray` of the course, for positions from the first of several blocks on.
struct BlockSums {
    i32v n, k, kk, d, kd, sure;

    TW_INLINE void add(BlockSums& s, i32v counts, i32v sure, i32v k, i32v d) {
        const i32v own_k = counts & k, own_d = counts & d;
        s.n -= counts, s.k += own_k, s.kk += own_k * k, s.d += own_d, s.kd += own_d * k, s.sure -= sure;
    }
    // Places are counted from `x0` on.
    TW_INLINE void put(const BlockSums& s, int64_t x0, Sums& total) {
        const int64_t n = reduce_add(s.n), k = reduce_add(s.k), d = reduce_add(s.d);
        total.n += n, total.k += n * x0 + k, total.kk += (n * x0 + 2 * k) * x0 + reduce_add(s.kk);
        total.d += d, total.kd += d * x0 + reduce_add(s.kd), total.sure += reduce_add(s.sure);
    }
};

// N words as one(offset of the channel, to) makes them, each of the channel where its size is largest.
template <int N, class One>
TW_INLINE void steepest(const Blurred& b, i32v* w, const One& one) {
    for (int64_t c = 0;;) {
        i32v other[N];
        one(c * b.channel, other);
#pragma GCC unroll 5
        for (int k = 0; k < N; ++k)
            w[k] = c == 0 ? other[k] : select(size_of(other[k]) > size_of(w[k]), other[k], w[k]);
        if (++c >= b.channels) return;
    }
}

TW_INLINE i32v word_at(const Blurred& picture, const uint8_t* from, i32v at) {
    i32v w[1];
    steepest<1>(picture, w, [&](int64_t channel, i32v* to) __attribute__((always_inline)) {
        sobel_at(from + channel, picture.row, at, to);
    });
    return w[0];
}

Sums look(const Course& c, int64_t first, int64_t last, int32_t stray, const Places& to) {
    Sums total = {};
    const i16v direction = across_of(c);
    const bool flat = c.along == 1;
    const int32_t beside = static_cast<int32_t>(c.beside), along = static_cast<int32_t>(c.along);
    BlockSums sums = {};
    for (int64_t at = first, start = first; at <= last; at += kBlock) {
        const Block b = Block::of(c, at, last);
        const i32v past = splat(static_cast<int32_t>(at - start));
        const i32v low = splat(static_cast<int32_t>(2 - b.whole - c.base));
        const i32v high = splat(static_cast<int32_t>(c.n_beside - 3 - b.whole - c.base));
        const uint8_t* const pixel = c.picture.pixel + (at * c.along + (b.whole + c.base) * c.beside);
        for (int64_t from = 0; from < b.n; from += L) {
            const Lanes lane = Block::lanes(b, from);
            const i32v near = (lane.across + (1 << (kStepBits - 1))) >> kStepBits;
            const i32v inside = lane.counts & (near >= low) & (near <= high);
            if (!any(inside)) {
                store_n(to.look + at + from, i32v{}, b.n - from);
                continue;
            }
            // Lanes that do not count look at the nearest place that may be looked at.
            const i32v safe =
                min_any(lane.k, splat(static_cast<int32_t>(b.n - 1))) * along + within(near, low, high) * beside;
            i32v w[5];
            steepest<5>(c.picture, w, [&](int64_t channel, i32v* to) __attribute__((always_inline)) {
                if (flat)
                    sobels_down<5, 2>(pixel + channel, c.picture.row, safe, to);
                else
                    five_sobels_along(pixel + channel, c.picture.row, safe, to);
            });
            const auto size = [&](int k)
                                  __attribute__((always_inline)) { return dot_pairs(bitcast<i16v>(w[k]), direction); };
            const i32v s0 = size(0), s1 = size(1), s2 = size(2), s3 = size(3), s4 = size(4);
            const i32v up = (s3 > s2) & (s3 >= s1), down = (s1 > s2) & ~up;
            const auto pick = [&](i32v a, i32v same, i32v z)
                                  __attribute__((always_inline)) { return select(up, z, select(down, a, same)); };
            const i32v before = pick(s0, s1, s2), here = pick(s1, s2, s3), after = pick(s2, s3, s4);
            const i32v bend = here + here - before - after;
            const i32v peak = (here >= splat(c.least)) & (bend > 0) & (here >= before) & (here >= after);
            const f32v top = to_f32(peak & (after - before)) / to_f32(select(peak, bend, splat(1)));
            const i32v whole = near - up + down;
            const i32v across = whole * kPart + to_i32(top * (0.5f * kPart));
            const i32v off = across - (lane.across >> (kStepBits - lines::kPartBits));
            const i32v found = inside & peak & (abs(off) <= splat(stray));
            const i32v sure = found & is_aligned(here, pick(w[1], w[2], w[3]));
            const i32v other = splat<int32_t>(lines::weak) - (squared(w[2]) >= splat(c.contrary));
            const i32v seen = (found & (splat<int32_t>(lines::near_it) - sure)) | (inside & ~found & other);
            BlockSums::add(sums, found, sure, lane.k + past, off);
            const int64_t i = at + from, n = b.n - from;
            store_n(to.at + i, across + splat(static_cast<int32_t>(b.whole * kPart)), n);
            store_n(to.size + i, here, n);
            store_n(to.bend + i, bend, n);
            store_n(to.look + i, seen, n);
        }
        if (at + kBlock > last || at - start == kSummed) {
            BlockSums::put(sums, start - c.origin, total);
            sums = BlockSums{}, start = at + kBlock;
        }
    }
    return total;
}

// Where the course is, in 1/kPart.
TW_INLINE i32v course_of(const Block& b, const Lanes& lane) {
    return (lane.across >> (kStepBits - lines::kPartBits)) + splat(static_cast<int32_t>(b.whole * kPart));
}

Sums sum(const Course& c, int64_t first, int64_t last, int32_t stray, const Places& p) {
    Sums total = {};
    BlockSums sums = {};
    for (int64_t at = first, start = first; at <= last; at += kBlock) {
        const Block b = Block::of(c, at, last);
        const i32v past = splat(static_cast<int32_t>(at - start));
        for (int64_t from = 0; from < b.n; from += L) {
            const int64_t i = at + from, n = b.n - from;
            const Lanes lane = Block::lanes(b, from);
            const i32v off = load_n(p.at + i, n) - course_of(b, lane), seen = load_n(p.look + i, n);
            const i32v found = lane.counts & (seen >= splat<int32_t>(lines::near_it)) & (abs(off) <= splat(stray));
            BlockSums::add(sums, found, found & (seen == splat<int32_t>(lines::on_it)), lane.k + past, off);
        }
        if (at + kBlock > last || at - start == kSummed) {
            BlockSums::put(sums, start - c.origin, total);
            sums = BlockSums{}, start = at + kBlock;
        }
    }
    return total;
}

constexpr int64_t kMostU = 512;  // so that sums of its fourth power are exact in double precision

TW_INLINE f64v load_wide(const int32_t* p) {
    return __builtin_convertvector(*reinterpret_cast<const VecOf<int32_t, kLanes<double>>::loose*>(p), f64v);
}

lines::Curve curve(const Course& c, int64_t first, int64_t last, const Places& p) {
    int shift = 0;
    while ((last - first) >> shift > kMostU) ++shift;
    i32v n{};
    f64v uu{}, u4{}, r{}, ruu{}, rr{};
    for (int64_t at = first; at <= last; at += kBlock) {
        const Block b = Block::of(c, at, last);
        const i32v middle = splat(static_cast<int32_t>(2 * at - first - last));
        int32_t off[kBlock], place[kBlock];
        for (int64_t from = 0; from < b.n; from += L) {
            const int64_t i = at + from, rest = b.n - from;
            const Lanes lane = Block::lanes(b, from);
            const i32v counts = lane.counts & (load_n(p.look + i, rest) >= splat<int32_t>(lines::near_it));
            n -= counts;
            store(off + from, counts & (load_n(p.at + i, rest) - course_of(b, lane)));
            store(place + from, counts & ((lane.k + lane.k + middle) >> shift));
        }
        for (int64_t from = 0; from < b.n; from += kLanes<double>) {
            const f64v d = load_wide(off + from), u = load_wide(place + from), square = u * u;
            uu += square, u4 += square * square, r += d, ruu += d * square, rr += d * d;
        }
    }
    return {static_cast<double>(reduce_add(n)),
            reduce_add(uu),
            reduce_add(u4),
            reduce_add(r),
            reduce_add(ruu),
            reduce_add(rr),
            shift};
}

void profile(const Course& c, int64_t first, int64_t last, int32_t* to) {
    const i16v direction = across_of(c);
    const bool flat = c.along == 1;
    const int32_t beside = static_cast<int32_t>(c.beside), along = static_cast<int32_t>(c.along);
    for (int64_t at = first; at <= last; at += kBlock) {
        const Block b = Block::of(c, at, last);
        const i32v low = splat(static_cast<int32_t>(1 - b.whole - c.base));
        const i32v high = splat(static_cast<int32_t>(c.n_beside - 4 - b.whole - c.base));
        const int64_t before = -at < 0 ? 0 : -at, behind = c.n_along - at;
        const i32v begin = splat(static_cast<int32_t>(before < kBlock ? before : kBlock));
        const i32v end = splat(static_cast<int32_t>(behind < 0 ? 0 : behind < kBlock ? behind : kBlock));
        const uint8_t* const pixel = c.picture.pixel + (at * c.along + (b.whole + c.base) * c.beside);
        for (int64_t from = 0; from < b.n; from += L) {
            const Lanes lane = Block::lanes(b, from);
            const i32v floor = lane.across >> kStepBits;
            const i32v inside = lane.counts & (floor >= low) & (floor <= high) & (lane.k >= begin) & (lane.k < end);
            i32v level{};
            if (any(inside)) {
                const i32v safe = within(lane.k, begin, end - 1) * along + within(floor, low, high) * beside;
                i32v w[2];
                steepest<2>(c.picture, w, [&](int64_t channel, i32v* to) __attribute__((always_inline)) {
                    if (flat)
                        sobels_down<2, 0>(pixel + channel, c.picture.row, safe, to);
                    else
                        two_sobels_along(pixel + channel, c.picture.row, safe, to);
                });
                const i32v here = dot_pairs(bitcast<i16v>(w[0]), direction);
                const i32v next = dot_pairs(bitcast<i16v>(w[1]), direction);
                const i32v part = lane.across >> (kStepBits - 8) & splat(255);
                level = inside & (here * 256 + (next - here) * part);
            }
            store_n(to + at - first + from, level, b.n - from);
        }
    }
}

lines::Agreement agree(const Course& c, int64_t first, int64_t last) {
    lines::Agreement total = {};
    const i16v direction = across_of(c);
    const int32_t beside = static_cast<int32_t>(c.beside), along = static_cast<int32_t>(c.along);
    for (int64_t at = first; at <= last; at += kBlock) {
        const Block b = Block::of(c, at, last);
        const i32v low = splat(static_cast<int32_t>(-b.whole - c.base));
        const i32v high = splat(static_cast<int32_t>(c.n_beside - 1 - b.whole - c.base));
        const uint8_t* const pixel = c.picture.pixel + (at * c.along + (b.whole + c.base) * c.beside);
        i32v aligned{}, size{};
        for (int64_t from = 0; from < b.n; from += L) {
            const Lanes lane = Block::lanes(b, from);
            const i32v near = within((lane.across + (1 << (kStepBits - 1))) >> kStepBits, low, high);
            const i32v k = min_any(lane.k, splat(static_cast<int32_t>(b.n - 1)));
            const i32v words = word_at(c.picture, pixel, k * along + near * beside);
            const i32v across = dot_pairs(bitcast<i16v>(words), direction);
            aligned -= lane.counts & is_aligned(across, words);
            size += lane.counts & across;
        }
        total.aligned += reduce_add(aligned), total.size += reduce_add(size);
    }
    return total;
}

int64_t count_faint(const Blurred& picture, const uint8_t* first, int64_t n, int32_t most) {
    i32v total{};
    for (int64_t x = 0; 4 * x + 1 < n; x += L) {
        const int64_t rest = min_of((n + 2) / 4 - x, L);
        i32v w[1];
        steepest<1>(picture, w, [&](int64_t channel, i32v* to) __attribute__((always_inline)) {
            const auto terms = [&](int64_t away) __attribute__((always_inline)) {
                return row_terms(load_n(reinterpret_cast<const int32_t*>(first + channel + away) + x, rest));
            };
            const i16v middle = terms(0);
            to[0] = sobel_of(terms(-picture.row) + middle, middle + terms(picture.row));
        });
        const i32v here = iota<int32_t>() < splat(static_cast<int32_t>(rest));
        total -= here & (size_of(w[0]) <= splat(most));
    }
    return reduce_add(total);
}

int64_t anchors(const uint8_t* ways, int64_t n, const uint8_t* held, bool upright, int32_t place, uint8_t* copy,
                int32_t* to) {
    static_assert(lines::kAnchor == 64 && lines::kUpright == 1 && lines::kDrawn == 128);
    constexpr int64_t lanes = kLanes<uint8_t>;
    const u8v here = splat(upright ? lines::kDrawn : uint8_t{0});
    int64_t count = 0;
    for (int64_t x = 0; x < n; x += lanes) {
        const int64_t rest = min_of(n - x, lanes);
        const u8v way = load_n(ways + x, rest);
        store_n(copy + x, way, rest);
        // Bit 7 becomes what is asked for.
        const u8v is_upright = bitcast<u8v>(bitcast<Vec<uint16_t>>(way) << 7);
        const u8v wanted = (is_upright & here) | (load_n(held + x, rest) & ~is_upright);
        for (uint64_t found = lane_bits((way + way) & wanted); found; found &= found - 1)
            to[count++] = place + static_cast<int32_t>(x + __builtin_ctzll(found));
    }
    return count;
}

// n numbers of a vector at most, the first one in lanes beyond them.
TW_INLINE i32v load_first(const int32_t* p, int64_t n) {
    const i32v here = iota<int32_t>() < splat(static_cast<int32_t>(n));
    return select(here, load_n(p, n), splat(*p));
}

void sizes(const Blurred& picture, const uint8_t* from, const int32_t* at, int64_t n, int32_t* to) {
    for (int64_t i = 0; i < n; i += L) {
        const int64_t rest = min_of(n - i, L);
        store_n(to + i, size_of(word_at(picture, from, load_first(at + i, rest))), rest);
    }
}

}  // namespace

extern const lines::LineKernels kLineKernels;
const lines::LineKernels kLineKernels = {look, sum, curve, profile, agree, count_faint, anchors, sizes};

}  // namespace tw::TW_ISA
