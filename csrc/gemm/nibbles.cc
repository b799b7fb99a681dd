// Method: four words of a row are 32 codes of a group. Vectors of words are turned so that those four meet in a lane, and
// become bytes once a mask has taken their half; each rank has sums of its own, scaled together.
// Numerics: sums are exact, for a whole one fits 32 bits; they are scaled and added up in float32.
#include "gemm/nibbles.h"

namespace tw::TW_ISA {
namespace {

template <int Size, int High, int... I>
TW_INLINE u32v zip_words(u32v a, u32v b, Seq<I...>) {
    constexpr int L = kLanes<uint32_t>;
    return shuffle<(I / 4 * 4 + High * 2 + (Size == 1 ? I % 4 / 2 + I % 2 * L : I % 2 + I % 4 / 2 * L))...>(a, b);
}

// Word w of each 16 bytes as vector w: of the four of lane 4 g + i, the first is vector i's.
TW_INLINE void turn_words(u32v (&v)[kWords]) {
    constexpr auto kAll = Indices<u32v>{};
    const u32v a = zip_words<1, 0>(v[0], v[1], kAll), b = zip_words<1, 0>(v[2], v[3], kAll);
    const u32v c = zip_words<1, 1>(v[0], v[1], kAll), d = zip_words<1, 1>(v[2], v[3], kAll);
    v[0] = zip_words<2, 0>(a, b, kAll), v[1] = zip_words<2, 1>(a, b, kAll);
    v[2] = zip_words<2, 0>(c, d, kAll), v[3] = zip_words<2, 1>(c, d, kAll);
}

// The scale of each lane of a step.
template <int Group, int... I>
TW_INLINE f32v lane_scales(const float* scales, int64_t step, int64_t groups, Seq<I...>) {
    constexpr int L = kLanes<float>, Share = Group / kRanked;
    const int64_t first = step * L / Share, count = groups - first;
    const f32v own = count >= L ? load(scales + first) : load_n(scales + first, count);
    return shuffle<((I % 4 * 4 + I / 4 % 4) / Share)...>(own, own);
}

// y[n] of N outputs from o on.
template <int Group, int N>
void multiply(const NibbleRow& r, int64_t o) {
    constexpr int64_t L = kLanes<float>;
    const auto* const words = reinterpret_cast<const uint32_t*>(r.w + o * r.bytes);
    const float* const scales = r.scales + o * r.groups;
    const int64_t row = r.bytes / 4, steps = ceil_div(r.in, kRankStep);
    f32v total[N] = {};
    for (int64_t s = 0; s < steps; ++s) {
        const RankStep& x = r.x[s];
        const int64_t first = s * kWords * L;
        u32v code[N][kWords];
        i32v sum[N][kRanks];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
            for (int i = 0; i < kWords; ++i) {
                const uint32_t* const at = words + n * row + first + i * L;
                const int64_t left = row - first - i * L;
                __builtin_prefetch(at + 4 * row);  // the next rows are no stream yet
                code[n][i] = left >= L ? load(at) : left > 0 ? load_n(at, left) : u32v{};
            }
            turn_words(code[n]);
#pragma GCC unroll 3
            for (int rank = 0; rank < kRanks; ++rank) sum[n][rank] = rank == kRanks - 1 ? x.begin : i32v{};
        }
#pragma GCC unroll 4
        for (int i = 0; i < kWords; ++i)
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                const i32v even = bitcast<i32v>(code[n][i] & 0x0f0f0f0fu);
                const i32v odd = bitcast<i32v>(code[n][i] >> 4 & 0x0f0f0f0fu);
                sum[n][0] = dot(dot(sum[n][0], even, x.x[i][0][0]), odd, x.x[i][0][1]);
                sum[n][1] = dot(dot(sum[n][1], x.x[i][1][0], even), x.x[i][1][1], odd);
                sum[n][2] = dot(dot(sum[n][2], x.x[i][2][0], even), x.x[i][2][1], odd);
            }
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const i32v all = (((sum[n][0] << 8) + sum[n][1]) << 8) + sum[n][2];
            total[n] +=
                to_f32(all) * (lane_scales<Group>(scales + n * r.groups, s, r.groups, Indices<f32v>{}) * x.unit);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) r.y[o + n] = reduce_add(total[n]);
}

template <int Group>
void multiply_rows(const NibbleRow& r) {
    constexpr int N = 2;
    int64_t o = r.first;
    for (; r.end - o >= N; o += N) multiply<Group, N>(r, o);
    for (; o < r.end; ++o) multiply<Group, 1>(r, o);
}

}  // namespace

void multiply_nibbles(const void* row) {
    const auto& r = *static_cast<const NibbleRow*>(row);
    if constexpr (kMultipliesNibbles)
        r.group == 32 ? multiply_rows<32>(r) : r.group == 64 ? multiply_rows<64>(r) : multiply_rows<128>(r);
}

}  // namespace tw::TW_ISA
