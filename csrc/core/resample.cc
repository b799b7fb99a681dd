#include "core/resample.h"

#include <algorithm>
#include <cmath>

namespace tw {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Keys' cubic with a = -3/4.
double cubic(double x) {
    x = std::fabs(x);
    if (x <= 1) return (1.25 * x - 2.25) * x * x + 1;
    return x < 2 ? ((-0.75 * x + 3.75) * x - 6) * x + 3 : 0;
}

// sinc(x) sinc(x / 4).
double lanczos(double x) {
    if (x == 0) return 1;
    return std::fabs(x) < 4 ? 4 * std::sin(kPi * x) * std::sin(kPi * x / 4) / (kPi * kPi * x * x) : 0;
}

double weight(Interpolation kind, double x) {
    switch (kind) {
        case Interpolation::linear: return std::max(0.0, 1 - std::fabs(x));
        case Interpolation::cubic: return cubic(x);
        case Interpolation::lanczos: return lanczos(x);
        default: return 1;
    }
}

// put(i, exact, total): what pixel first[i] + k weighs, and all of them.
template <class Put>
void each_result(Interpolation kind, int64_t from, int64_t to, int64_t taps, int32_t* first, const Put& put) {
    const double scale = 1 / (static_cast<double>(to) / static_cast<double>(from));  // as OpenCV has it
    for (int64_t i = 0; i < to; ++i) {
        const double start = static_cast<double>(i) * scale, stop = static_cast<double>(i + 1) * scale;
        const double middle = (static_cast<double>(i) + 0.5) * scale - 0.5;
        const bool whole = kind == Interpolation::nearest || kind == Interpolation::area;
        const int64_t at = static_cast<int64_t>(std::floor(whole ? start : middle)) - (whole ? 0 : taps / 2 - 1);
        const auto exact = [&](int64_t k) {
            const double place = static_cast<double>(at + k);
            if (kind == Interpolation::area) return std::max(0.0, std::min(place + 1, stop) - std::max(place, start));
            return weight(kind, place - middle);
        };
        double total = 0;
        for (int64_t k = 0; k < taps; ++k) total += exact(k);
        put(i, exact, total);
        first[i] = static_cast<int32_t>(std::min(at, from - 1));
    }
}

}  // namespace

int64_t resample_taps(Interpolation kind, int64_t from, int64_t to) {
    switch (kind) {
        case Interpolation::nearest: return 1;
        case Interpolation::linear: return 2;
        case Interpolation::cubic: return 4;
        case Interpolation::lanczos: return 8;
        default: return from % to == 0 ? from / to : from / to + 2;
    }
}

void resample_weights(Interpolation kind, int64_t from, int64_t to, int32_t* first, int16_t* weights) {
    const int64_t taps = resample_taps(kind, from, to);
    each_result(kind, from, to, taps, first, [&](int64_t i, const auto& exact, double total) {
        // What the weights up to here sum to is rounded, not each of them, so that all sum to one.
        double sum = 0, before = 0;
        for (int64_t k = 0; k < taps; ++k) {
            sum += exact(k);
            const double rounded = std::nearbyint(sum / total * (1 << kWeightBits));
            weights[i * taps + k] = static_cast<int16_t>(rounded - before);
            before = rounded;
        }
    });
}

void resample_shares(Interpolation kind, int64_t from, int64_t to, int32_t* first, float* shares) {
    const int64_t taps = resample_taps(kind, from, to);
    each_result(kind, from, to, taps, first, [&](int64_t i, const auto& exact, double total) {
        for (int64_t k = 0; k < taps; ++k) shares[i * taps + k] = static_cast<float>(exact(k) / total);
    });
}

}  // namespace tw
