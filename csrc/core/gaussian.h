// Taps of a Gaussian filter, exact and in fixed point.
#pragma once
#include <cstdint>

namespace tw {

constexpr double kMaxSigma = 100;
constexpr int64_t kMaxTaps = 601;  // of kMaxSigma

int64_t gaussian_width(double sigma);                   // round(6 sigma + 1), made odd
void gaussian_weights(double sigma, int64_t n, float* weights);  // n of them, of sum 1
void gaussian_taps(double sigma, int64_t n, int16_t* taps);  // n of them in 1/256, of sum 256

}  // namespace tw
