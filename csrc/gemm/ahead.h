// What a loop around register tiles needs next, fetched while it computes.
#pragma once
#include "core/index.h"
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

// So many lines of each of kStreams places so many bytes apart.
struct Ahead {
    const char* at = nullptr;
    int64_t step = 0, lines = 0;
};

// While a group of kStreams panels of n numbers is multiplied, panel by panel, a share of each of the next group.
template <class T>
Ahead next_group(const T* first, int64_t step, int64_t n, int64_t panel) {
    const int64_t size = static_cast<int64_t>(sizeof(T)), lines = ceil_div(n * size, 64 * kStreams);
    return {reinterpret_cast<const char*>(first) + panel % kStreams * lines * 64, step * size, lines};
}

// Wide panels fill L2 one by one: of the next one, each stream fetches a part.
template <class T>
Ahead next_panel(const T* panel, int64_t n) {
    const int64_t lines = n * static_cast<int64_t>(sizeof(T)) / (64 * kStreams);
    return {reinterpret_cast<const char*>(panel), lines * 64, lines};
}

}  // namespace
}  // namespace tw::TW_ISA
