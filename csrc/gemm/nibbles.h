// One row of floats times rows of 4-bit codes, where a CPU sums products of bytes: what ops/linear_int4.cc asks of a tier that
// does (gemm/nibbles.cc).
#pragma once
#include "core/index.h"
#include "simd/convert.h"
#include "simd/dot.h"

namespace tw::TW_ISA {

constexpr int kCodes = 8;  // in a word
constexpr int kRanks = 3;
constexpr int kRanked = 32;  // x that share a unit
constexpr int kWords = kRanked / kCodes;
constexpr int kRankStep = kRanked * kLanes<float>;

// What kWords vectors of words meet, a unit to a lane: x are whole numbers of 24 bits, their bytes in each rank, the highest
// first, lie as even and as odd codes do; what sums begin with; the units.
struct RankStep {
    i32v x[kWords][kRanks][2], begin;
    f32v unit;
};

// Codes and scales lie as in ops/linear_int4.cc; outputs [first, end) of y.
struct NibbleRow {
    const RankStep* x;
    const uint8_t* w;
    const float* scales;
    int64_t in, group, groups, bytes, first, end;
    float* y;
};
constexpr bool kMultipliesNibbles = kDotDepth == 4 && kVecBytes == 64;
void multiply_nibbles(const void* row);

namespace {

// Lane 4 i + g of a vector in lane 4 g + i.
template <class V, int... I>
TW_INLINE V turn_lanes(V v, Seq<I...>) {
    constexpr int units = kCount<V> / 4;
    return shuffle<(I % units * 4 % kCount<V> + I / units % 4)...>(v, v);
}

}  // namespace
}  // namespace tw::TW_ISA
