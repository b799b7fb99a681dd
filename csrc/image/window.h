// A window of rows that slides down an 8-bit picture. A row is its channels interleaved, contiguous.
//
// Method    rows are copied once into a ring, so that whole vectors may be read past their ends. Rows outside mirror at
//           the edge without repeating it.
#pragma once
#include "image/rows.h"

namespace tw::TW_ISA {
namespace {

// (H, W) or (H, W, C): elements of a row, and how far apart neighbouring pixels are in it.
TW_INLINE int64_t row_elements(const View& v) { return v.shape[1] * (v.ndim == 3 ? v.shape[2] : 1); }
TW_INLINE int64_t row_channels(const View& v) { return v.ndim == 3 ? v.shape[2] : 1; }
TW_INLINE bool has_whole_rows(const View& v) {
    return v.ndim == 3 ? v.stride[2] == 1 && v.stride[1] == v.shape[2] : v.stride[1] == 1;
}

// body(i, j): element i of the row lies at j.
template <class Body>
TW_INLINE void each_in_row(const View& v, const Body& body) {
    const int64_t channels = row_channels(v), step = v.ndim == 3 ? v.stride[2] : 0;
    for (int64_t x = 0; x < v.shape[1]; ++x)
        for (int64_t c = 0; c < channels; ++c) body(x * channels + c, x * v.stride[1] + c * step);
}

// Where results of row y go: to their place, or to `row` until they are put there.
template <class T>
TW_INLINE T* begin_row(const View& v, int64_t y, T* row) {
    return has_whole_rows(v) ? v.as<T>() + y * v.stride[0] : row;
}
template <class T>
TW_INLINE void end_row(const View& v, int64_t y, const T* row) {
    T* const to = v.as<T>() + y * v.stride[0];
    if (!has_whole_rows(v)) each_in_row(v, [&](int64_t i, int64_t j) { to[j] = row[i]; });
}

// K rows, of which row y is the middle one; y rises by at most one from call to call.
template <int K>
class Window {
    static constexpr int64_t kRing = K < 4 ? 4 : 8;  // a power of two

public:
    TW_INLINE int64_t bytes(const View& image) { return kRing * row_pitch(row_elements(image)); }

    Window(const View& image, char* scratch)
        : image_(image),
          pitch_(row_pitch(row_elements(image))),
          next_(-1),
          ring_(reinterpret_cast<uint8_t*>(scratch) + kMargin) {}

    const uint8_t* const* at(int64_t y) {
        constexpr int64_t half = K / 2;
        const int64_t height = image_.shape[0];
        if (next_ < 0) next_ = y > half ? y - half : 0;
        for (; next_ < height && next_ <= y + half; ++next_) copy(next_);
        for (int64_t k = 0; k < K; ++k) rows_[k] = row(mirrored(y + k - half, height));
        return rows_;
    }

private:
    uint8_t* row(int64_t y) { return ring_ + (y & (kRing - 1)) * pitch_; }

    void copy(int64_t y) {
        const uint8_t* const from = image_.as<uint8_t>() + y * image_.stride[0];
        uint8_t* const to = row(y);
        if (has_whole_rows(image_))
            __builtin_memcpy(to, from, static_cast<size_t>(row_elements(image_)));
        else
            each_in_row(image_, [&](int64_t i, int64_t j) { to[i] = from[j]; });
    }

    const View& image_;
    const int64_t pitch_;
    int64_t next_;
    uint8_t* const ring_;
    const uint8_t* rows_[K];
};

}  // namespace
}  // namespace tw::TW_ISA
