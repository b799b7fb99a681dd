// Walking several strided views of one shape together: axes that can be merged are merged, rows go to the kernel.
#pragma once
#include "core/parallel.h"
#include "core/types.h"

namespace tw {

constexpr int kMaxWalked = 6;

struct Walk {
    int ndim;                                 // merged axes before the row
    int64_t shape[kMaxDims];                  // of those axes
    int64_t step[kMaxWalked][kMaxDims];       // bytes
    int64_t row;                              // elements in a row
    int64_t stride[kMaxWalked];               // along the row, in elements
    int64_t size[kMaxWalked];                 // bytes of an element
    char* data[kMaxWalked];
    int n;
};

// Views broadcast to `shape` (missing or size-1 axes get stride 0). The first view decides which axis becomes the row.
Walk walk_over(const View* const* views, int n, int ndim, const int64_t* shape);

// The view at index 0 of one axis, which the caller walks itself.
static inline View without_axis(View v, int axis) {
    --v.ndim;
    for (int d = axis; d < v.ndim; ++d) {
        v.shape[d] = v.shape[d + 1];
        v.stride[d] = v.stride[d + 1];
    }
    return v;
}

int64_t walk_rows(const Walk& w);
void walk_seek(const Walk& w, int64_t row, char** at);  // addresses of the first element of a row

// Calls body(char* const* at, int64_t count) for pieces of rows, in parallel; what belongs to a piece depends on shape alone.
template <class Body>
static inline void for_each_row(const Walk& w, int64_t elements_per_chunk, const Body& body) {
    const int64_t rows = walk_rows(w);
    if (rows == 0 || w.row == 0) return;
    const int64_t pieces = (w.row + elements_per_chunk - 1) / elements_per_chunk;
    const int64_t rows_per_chunk = pieces > 1 ? 1 : (elements_per_chunk + w.row - 1) / w.row;
    const int64_t groups = (rows + rows_per_chunk - 1) / rows_per_chunk;
    parallel(groups * pieces, [&](int64_t chunk) {
        const int64_t first = chunk / pieces * rows_per_chunk, piece = chunk % pieces;
        const int64_t begin = piece * elements_per_chunk;
        const int64_t count =
            pieces == 1 ? w.row : (w.row - begin < elements_per_chunk ? w.row - begin : elements_per_chunk);
        const int64_t last = first + rows_per_chunk < rows ? first + rows_per_chunk : rows;
        const int inner = w.ndim - 1;
        const int64_t run = w.ndim ? w.shape[inner] : 1;
        char* at[kMaxWalked];
        int64_t left = 0;  // rows that are one step each from where `at` is
        for (int64_t row = first; row < last; ++row, --left) {
            if (left == 0) {
                walk_seek(w, row, at);
                for (int k = 0; k < w.n; ++k) at[k] += begin * w.stride[k] * w.size[k];
                left = run - row % run;
            } else {
                for (int k = 0; k < w.n; ++k) at[k] += w.step[k][inner];
            }
            body(static_cast<char* const*>(at), count);
        }
    });
}

}  // namespace tw
