// What a loop around register tiles needs next, fetched while it computes.
#pragma once
#include "gemm/gemm.h"

namespace tw::TW_ISA {
namespace {

// The n numbers from `next` on go into L2 with the next `tiles` tiles; whoever runs them in several calls moves t.ahead on.
template <class T>
TW_INLINE void fetch_meanwhile(Tile<T>& t, const T* next, int64_t n, int64_t tiles) {
    const int64_t lines = n * static_cast<int64_t>(sizeof(T)) / (64 * kStreams);
    t.ahead = lines > 0 ? reinterpret_cast<const char*>(next) : nullptr;
    t.ahead_step = lines * 64, t.ahead_lines = t.ahead ? (lines + tiles - 1) / tiles : 0;
}
template <class T>
TW_INLINE void fetch_nothing(Tile<T>& t) {
    t.ahead = nullptr, t.ahead_lines = 0;
}

}  // namespace
}  // namespace tw::TW_ISA
