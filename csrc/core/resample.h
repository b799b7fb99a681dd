// Which pixels a resized row is made of, and how much of each: compiled once, so that every tier has the same weights.
#pragma once
#include <cstdint>

namespace tw {

enum class Interpolation : int { linear, nearest, area, cubic, lanczos };

constexpr int kWeightBits = 14;  // weights are in 1/2^14 and sum to 2^14

// Pixels that one result is made of.
int64_t resample_taps(Interpolation kind, int64_t from, int64_t to);

// first[i]: the first pixel of result i, which may lie outside, where the edge repeats. weights[i * taps + k]: of pixel
// first[i] + k.
void resample_weights(Interpolation kind, int64_t from, int64_t to, int32_t* first, int16_t* weights);

// The same as shares of 1, each rounded by itself.
void resample_shares(Interpolation kind, int64_t from, int64_t to, int32_t* first, float* shares);

}  // namespace tw
