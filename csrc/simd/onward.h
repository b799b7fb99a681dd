// Vectors of neighbours one after another, where a loop does little and the caches decide.
//
//   expect_store(p)                          p is written so far on that its line may be asked for before: see kStoresAhead
//   read_soon(p, step), written_soon(p)      what to ask for while p of one of many rows is read or written
//   write_row(to, from, step, n)             copy_row to contiguous memory that may be far; step 0 or 1
//   Onward<T> a = onward(p);  next(a)        the vectors at p, at p + kLanes<T>, ...
//   crosses_lines(p)                         whether vectors at p lie in two lines each, so that next() is the quicker load
//
// A load of a whole line that lies in two takes both from L2, and so does its neighbour; next() reads every line once and
// joins two. All it touches are lines in which the array has elements, some of them beyond its ends.
#pragma once
#include "simd/rows.h"

namespace tw::TW_ISA {

constexpr int64_t kStoresAhead = 512;  // bytes

// Lines that are written whole are fetched all the same, and only once a store waits for them.
template <class T>
TW_INLINE void expect_store(T* p) {
    if constexpr (kVecBytes == 64) __builtin_prefetch(reinterpret_cast<char*>(p) + kStoresAhead, 1);
}

constexpr int64_t kLoadsAhead = 1024;  // bytes; and of stores beside few loads

template <class T>
TW_INLINE T* bytes_beyond(T* p, int64_t bytes) {  // perhaps outside of the array
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes));
}

// memcpy and memset ask for a line only when they write it.
template <class T>
static void write_row(T* to, const T* from, int64_t step, int64_t n) {
    constexpr int64_t lanes = kLanes<T>, size = static_cast<int64_t>(sizeof(T));
    if (kVecBytes < 32 || n * size < kLoadsAhead) return copy_row(to, 1, from, step, n);
    int64_t i = -static_cast<int64_t>(reinterpret_cast<uintptr_t>(to)) % kVecBytes / size;
    if (i < 0) i += lanes;
    copy_row(to, 1, from, step, i);
    const Vec<T> value = splat<T>(*from);
    for (; i + lanes <= n; i += lanes) {
        __builtin_prefetch(bytes_beyond(to + i, kLoadsAhead), 1);
        store(to + i, step ? load(from + i) : value);
    }
    copy_row(to + i, 1, from + i * step, step, n - i);
}

// Rows begin `step` elements apart and are read several times: in the first pass over a row the next one is near, so it is
// asked for in the last pass, and a little more. Lines that are written come all along the way, or they would wait together.
template <class T>
TW_INLINE T* read_soon(T* p, int64_t step) {
    return bytes_beyond(p, step * static_cast<int64_t>(sizeof(T)) + kLoadsAhead);
}
template <class T>
TW_INLINE T* written_soon(T* p) {
    return bytes_beyond(p, kStoresAhead);
}

#if defined(__AVX512F__)
template <class T>
struct Onward {
    const char* line;  // the one that ends the next vector
    f32v before;
    i32v index;
};

template <class T>
TW_INLINE bool crosses_lines(const T* p) {
    const uint64_t at = reinterpret_cast<uintptr_t>(p) % kVecBytes;
    return sizeof(T) >= 4 && at != 0 && at % 4 == 0;
}

// Not seen by the address sanitizer, which knows of bytes and not of lines.
TW_INLINE f32v load_line(const char* p) { return (f32v)_mm512_maskz_loadu_epi32(0xffff, p); }

template <class T>
TW_INLINE Onward<T> onward(const T* p) {
    const int64_t inside = static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) % kVecBytes);
    const int64_t skipped = inside ? inside : kVecBytes;  // a vector that is a line is the second of the two
    const char* const first = reinterpret_cast<const char*>(p) - skipped;
    return {first + kVecBytes, inside ? load_line(first) : f32v{}, iota<int32_t>() + static_cast<int32_t>(skipped / 4)};
}

template <class T>
TW_INLINE Vec<T> next(Onward<T>& a) {
    const f32v line = load_line(a.line), joined = _mm512_permutex2var_ps(a.before, (__m512i)a.index, line);
    a.before = line;
    a.line += kVecBytes;
    return bitcast<Vec<T>>(joined);
}
#else
template <class T>
struct Onward {
    const T* at;
};
template <class T>
TW_INLINE bool crosses_lines(const T*) {
    return false;
}
template <class T>
TW_INLINE Onward<T> onward(const T* p) {
    return {p};
}
template <class T>
TW_INLINE Vec<T> next(Onward<T>& a) {
    const Vec<T> v = load(a.at);
    a.at += kLanes<T>;
    return v;
}
#endif

}  // namespace tw::TW_ISA
