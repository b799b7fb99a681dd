// Method    the largest term of the binomial tail by logarithms of factorials; from it the others by their ratios,
//           which fall, until they no longer count.
#include "lines/chance.h"

#include <cmath>
#include <vector>

namespace tw::lines {
namespace {

constexpr double kP = 0.125;

constexpr int64_t kTable = 1024;

// ln n!, after Stirling where the table ends.
double log_factorial(int64_t n) {
    static const std::vector<double> table = [] {
        std::vector<double> sums(kTable);
        for (size_t i = 1; i < sums.size(); ++i) sums[i] = sums[i - 1] + std::log(static_cast<double>(i));
        return sums;
    }();
    if (n < kTable) return table[static_cast<size_t>(n)];
    const double x = static_cast<double>(n) + 1, y = 1 / (x * x);
    return (x - 0.5) * std::log(x) - x + 0.918938533204672742 +
           (1.0 / 12 - y * (1.0 / 360 - y * (1.0 / 1260 - y / 1680))) / x;
}

}  // namespace

double log10_of_chance(int64_t n, int64_t k) {
    if (k <= 0) return 0;
    const double start = log_factorial(n) - log_factorial(k) - log_factorial(n - k) +
                         static_cast<double>(k) * std::log(kP) + static_cast<double>(n - k) * std::log1p(-kP);
    double sum = 1, term = 1;
    for (int64_t i = k; i < n && term > 1e-12 * sum; ++i) {
        term *= static_cast<double>(n - i) / static_cast<double>(i + 1) * (kP / (1 - kP));
        sum += term;
    }
    const double answer = (start + std::log(sum)) / std::log(10.0);
    return answer < 0 ? answer : 0;
}

}  // namespace tw::lines
