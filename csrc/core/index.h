// Arithmetic of sizes and indices; static, so that no tier lends its copy to another.
#pragma once
#include <cstdint>

namespace tw {

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace tw
