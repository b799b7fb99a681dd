#include "core/gaussian.h"

#include <cmath>

namespace tw {

int64_t gaussian_width(double sigma) { return static_cast<int64_t>(std::nearbyint(6 * sigma + 1)) | 1; }

namespace {

double exact_weights(double sigma, int64_t n, double* exact) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
        const double at = static_cast<double>(i - n / 2);
        total += exact[i] = std::exp(-at * at / (2 * sigma * sigma));
    }
    return total;
}

}  // namespace

void gaussian_weights(double sigma, int64_t n, float* weights) {
    double exact[kMaxTaps];
    const double total = exact_weights(sigma, n, exact);
    for (int64_t i = 0; i < n; ++i) weights[i] = static_cast<float>(exact[i] / total);
}

// From the outside in, each tap hands its rounding error on to the next; the middle one takes what is left.
void gaussian_taps(double sigma, int64_t n, int16_t* taps) {
    double exact[kMaxTaps];
    const int64_t half = n / 2;
    const double total = exact_weights(sigma, n, exact);
    double carried = 0;
    int outer = 0;
    for (int64_t i = 0; i < half; ++i) {
        const double want = exact[i] / total * 256 + carried, near = std::nearbyint(want);
        carried = want - near;
        taps[i] = taps[n - 1 - i] = static_cast<int16_t>(near);
        outer += 2 * static_cast<int>(near);
    }
    taps[half] = static_cast<int16_t>(256 - outer);
}

}  // namespace tw
