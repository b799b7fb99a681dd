// Ops element by element on vectors of a floating type: y[i] = f(x[i]) and y[i] = f(a[i], b[i]), broadcast to y.
//
// f is compiled once, in a loop over whole vectors of neighbours; ops/mapped_rows.cc brings it rows of any strides.
#pragma once
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/onward.h"
#include "simd/rows.h"

namespace tw::TW_ISA {

// n elements, a multiple of `lanes`, of neighbours: results first, then operands, of which a result may be one.
typedef void MapKernel(char* const* at, int64_t n, const void* f);

// Calls `kernel` for all that the first view has; the others are broadcast to it.
void map_rows(const View* const* views, int n, int results, int64_t lanes, MapKernel* kernel, const void* f);

// Elements of `size` bytes: 1, 2, 4 or 8.
void copy_items(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t size, int64_t n);

template <class T>
TW_INLINE T* row_at(char* at) {
    return reinterpret_cast<T*>(at);
}

template <class T, class F>
static void map_one_row(char* const* at, int64_t n, const void* of) {
    typedef Wide<T> W;
    const F f = *static_cast<const F*>(of);
    T* const y = row_at<T>(at[0]);
    const T* const x = row_at<T>(at[1]);
    for (int64_t i = 0; i < n; i += kLanes<W>) {
        expect_store(y + i);
        store_from(y + i, f(load_as<W>(x + i)));
    }
}

// kLight: f is so little that loads decide.
template <class T, bool kLight, class F>
static void map_two_rows(char* const* at, int64_t n, const void* of) {
    typedef Wide<T> W;
    const F f = *static_cast<const F*>(of);
    T* const y = row_at<T>(at[0]);
    const T *const a = row_at<T>(at[1]), *const b = row_at<T>(at[2]);
    if constexpr (kLight && kVecBytes == 64 && !kIsNarrow<T>) {
        if (crosses_lines(a) || crosses_lines(b)) {
            Onward<T> from_a = onward(a), from_b = onward(b);
            for (int64_t i = 0; i < n; i += kLanes<T>) {
                expect_store(y + i);
                store(y + i, f(next(from_a), next(from_b)));
            }
            return;
        }
    }
    for (int64_t i = 0; i < n; i += kLanes<W>) {
        expect_store(y + i);
        store_from(y + i, f(load_as<W>(a + i), load_as<W>(b + i)));
    }
}

template <class T, class F>
TW_INLINE void map_one(const View& y, const View& x, F f) {
    const View* views[] = {&y, &x};
    map_rows(views, 2, 1, kLanes<Wide<T>>, map_one_row<T, F>, &f);
}

template <class T, bool kLight = false, class F>
TW_INLINE void map_two(const View& y, const View& a, const View& b, F f) {
    const View* views[] = {&y, &a, &b};
    map_rows(views, 3, 1, kLanes<Wide<T>>, map_two_rows<T, kLight, F>, &f);
}

}  // namespace tw::TW_ISA
