// The walk of every op that goes element by element (ops/map.h).
//
// Method    one pass over merged axes. A kernel sees neighbours alone: what does not lie so, and the end of a row, passes
//           through buffers that stay in L1; one number is spread there once for a row.
// Threads   rows are cut into pieces of kChunkElements.
#include "ops/map.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kMapped = 256, kLargest = 8;  // elements of a buffer, bytes of one

}  // namespace

void copy_items(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t size, int64_t n) {
    const auto as = [&]<class T>(T) {
        T* const y = static_cast<T*>(to);
        const T* const x = static_cast<const T*>(from);
        to_stride == 1 ? copy_row(y, 1, x, from_stride, n) : copy_row(y, to_stride, x, from_stride, n);
    };
    switch (size) {
        case 1: return as(uint8_t{});
        case 2: return as(uint16_t{});
        case 4: return as(uint32_t{});
        default: return as(uint64_t{});
    }
}

void map_rows(const View* const* views, int n, int results, int64_t lanes, MapKernel* kernel, const void* f) {
    const Walk w = walk_over(views, n, views[0]->ndim, views[0]->shape);
    bool dense = true;
    for (int k = 0; k < n; ++k) dense = dense && w.stride[k] == 1;
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        const int64_t whole = dense ? count / lanes * lanes : 0;
        if (whole) kernel(at, whole, f);
        if (whole == count) return;
        alignas(64) char buffer[kMaxWalked][kMapped * kLargest];
        char* part[kMaxWalked];
        for (int64_t i = whole; i < count; i += kMapped) {
            const int64_t m = min_of(count - i, kMapped), padded = ceil_div(m, lanes) * lanes;
            for (int k = 0; k < n; ++k) {
                const int64_t stride = w.stride[k], size = w.size[k];
                char* const there = at[k] + i * stride * size;
                part[k] = stride == 1 && m == padded ? there : buffer[k];
                if (part[k] == there || k < results || (stride == 0 && i != whole)) continue;
                copy_items(buffer[k], 1, there, stride, size, m);
                __builtin_memset(buffer[k] + m * size, 0, static_cast<size_t>((padded - m) * size));
            }
            kernel(part, padded, f);
            for (int k = 0; k < results; ++k) {
                const int64_t stride = w.stride[k], size = w.size[k];
                if (part[k] == buffer[k]) copy_items(at[k] + i * stride * size, stride, buffer[k], 1, size, m);
            }
        }
    });
}

}  // namespace tw::TW_ISA
