// Where edges go on (lines/ways.h): of the three neighbours ahead the steepest, for all pixels before any walk.
//
// Method    a vector of pixels and their eight neighbours at once. Of equals the neighbour ahead is taken first, then the
//           one before it. Vectors without an edge, which are most, are skipped.
// Numerics  integers.
// Threads   none; the caller draws bands side by side.
#include "lines/ways.h"

#include "ops/ops.h"
#include "simd/bits.h"

namespace tw::TW_ISA {
namespace {

using lines::EdgeRow;

constexpr int64_t L = kLanes<int16_t>;

// Where a step leads that has these neighbours ahead and beside, from pixels of strength s.
TW_INLINE i16v way(i16v s, i16v ahead, i16v before, i16v behind, i16v least) {
    const i16v size = splat<int16_t>(lines::kSize), a = ahead & size, b = before & size;
    const i16v to_before = b > a, to_behind = (behind & size) > max_any(a, b);
    const i16v there = select(to_behind, behind, select(to_before, before, ahead));
    const i16v ends = (there < least) | (((there ^ s) & splat<int16_t>(lines::kHeading)) == splat<int16_t>(2));
    return select(to_behind, splat<int16_t>(2), to_before & splat<int16_t>(1)) |
           (ends & splat<int16_t>(lines::kNowhere));
}

// The bytes of pixels at p, in rows `width` apart, of which `edge` are on edges.
TW_INLINE i16v ways_of(const uint16_t* p, int64_t width, i16v s, i16v edge, i16v least) {
    const auto at = [&](int64_t step) __attribute__((always_inline)) { return bitcast<i16v>(load(p + step)); };
    const i16v upright = (s & splat<int16_t>(lines::kUpright)) != 0;
    const i16v south = at(width), south_west = at(width - 1), east = at(1), north_east = at(1 - width);
    const i16v larger =
        way(s, select(upright, south, east), select(upright, south_west, north_east), at(width + 1), least);
    const i16v smaller =
        way(s, select(upright, at(-width), at(-1)), at(-width - 1), select(upright, north_east, south_west), least);
    return select(edge, (s & splat<int16_t>(lines::kHeading)) | larger << 2 | smaller << 4,
                  splat<int16_t>(lines::kNoEdge));
}

// A vector of pixels at x; of its anchors those from `from` on.
TW_INLINE int64_t survey_at(const EdgeRow& row, int64_t x, int64_t from, uint8_t* ways, int32_t* anchors) {
    const uint16_t* const p = row.strength + x;
    const i16v s = bitcast<i16v>(load(p)), least = splat(static_cast<int16_t>(row.least)), edge = s >= least;
    if (!any(edge)) {
        store_pixels(ways + x, splat<int16_t>(lines::kNoEdge));
        return 0;
    }
    store_pixels(ways + x, ways_of(p, row.width, s, edge, least));
    const i16v upright = (s & splat<int16_t>(lines::kUpright)) != 0;
    const i16v held =
        select(upright, splat(static_cast<int16_t>(row.upright_anchors)), bitcast<i16v>(load(row.flat_anchors + x)));
    uint64_t bits = lane_bits((edge & held & s & splat<int16_t>(lines::kAnchor)) != 0, i16v{});
    int64_t n = 0;
    for (bits = bits >> (from - x) << (from - x); bits; bits &= bits - 1)
        anchors[n++] = static_cast<int32_t>(x + __builtin_ctzll(bits));
    return n;
}

int64_t survey(const EdgeRow& row, uint8_t* ways, int32_t* anchors) {
    const int64_t last = row.width - 1;  // the rim is no edge
    ways[0] = ways[last] = lines::kNoEdge;
    int64_t n = 0, x = 1;
    if (last - 1 >= L) {
        for (; x + L <= last; x += L) n += survey_at(row, x, x, ways, anchors + n);
        if (x < last) n += survey_at(row, last - L, x, ways, anchors + n);
        return n;
    }
    constexpr int64_t pitch = L + 2;
    uint16_t rows[3 * pitch] = {}, columns[pitch] = {};
    uint8_t found[pitch];
    for (int64_t i = 0; i <= last; ++i) {
        for (int64_t k = 0; k < 3; ++k) rows[k * pitch + i] = row.strength[(k - 1) * row.width + i];
        columns[i] = row.flat_anchors[i];
    }
    const EdgeRow copy = {rows + pitch, pitch, row.least, row.upright_anchors, columns};
    n = survey_at(copy, 1, 1, found, anchors);
    for (; x < last; ++x) ways[x] = found[x];
    return n;
}

int64_t count_faint(const int16_t* gradient, int64_t n, int32_t most) {
    const int32_t* const words = reinterpret_cast<const int32_t*>(gradient);
    const i32v counted = (iota<int32_t>() & splat<int32_t>(3)) == splat<int32_t>(1);
    i32v total{};
    for (int64_t i = 0; i < n; i += kLanes<int32_t>) {
        const i16v both = abs(bitcast<i16v>(load_n(words + i, n - i)));
        const i32v here = iota<int32_t>() < splat(static_cast<int32_t>(n - i));
        total -= counted & here & (dot_pairs(both, splat<int16_t>(1)) <= splat(most));
    }
    return reduce_add(total);
}

}  // namespace

extern const lines::WayKernels kWayKernels;
const lines::WayKernels kWayKernels = {survey, count_faint};

}  // namespace tw::TW_ISA
