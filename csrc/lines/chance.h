// How likely chance is to line pixels up.
#pragma once
#include <cstdint>

namespace tw::lines {

// log10 of the probability that at least k of n pixels point within 22.5 degrees of a line, each with p = 1/8.
double log10_of_chance(int64_t n, int64_t k);

}  // namespace tw::lines
