// Floating numbers of any type, strided, as float32 side by side.
#pragma once
#include "simd/convert.h"

namespace tw::TW_ISA {

template <class T>
static void widen_row(float* to, const T* from, int64_t step, int64_t n) {
    int64_t i = 0;
    if constexpr (sizeof(T) <= sizeof(float))
        if (step == 1)
            for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, load_as<float>(from + i));
    for (; i < n; ++i)
        if constexpr (__is_same(T, double))
            to[i] = static_cast<float>(from[i * step]);
        else
            to[i] = to_float(from[i * step]);
}

}  // namespace tw::TW_ISA
