// Gradients of 8-bit pictures and their magnitudes, a row at a time: what edges are found by.
//
// Method    rows of pixels, blurred if asked for, in a window of a few rows; of three channels each pixel takes the one
//           with the largest magnitude, the first of equals. Three rows of magnitudes are kept. No plane of gradients exists.
// Numerics  integers. Outside the picture pixels repeat the edge, and magnitudes are 0.
#pragma once
#include "image/gradient.h"
#include "image/rows.h"

namespace tw::TW_ISA {
namespace {

TW_INLINE int64_t clamped(int64_t i, int64_t n) { return i < 0 ? 0 : i < n ? i : n - 1; }

// Numbers of 16 bits in lanes of M.
TW_INLINE i16v load_in(const int16_t* p, int16_t) { return load(p); }
TW_INLINE i32v load_in(const int16_t* p, int32_t) { return load_wide(p); }
TW_INLINE f32v load_in(const float* p, float) { return load(p); }

template <bool L2, class V>
TW_INLINE V magnitude(V dx, V dy) {
    if constexpr (!L2) return abs(dx) + abs(dy);
    const u32v sum = bitcast<u32v>(dx * dx) + bitcast<u32v>(dy * dy);
    return bitcast<V>(select(sum > splat<uint32_t>(INT32_MAX), splat<uint32_t>(INT32_MAX), sum));
}

template <class M, bool L2>
TW_INLINE void magnitudes(const int16_t* dx, const int16_t* dy, M* to, int64_t n) {
    for (int64_t x = 0; x < n; x += kLanes<M>) store(to + x, magnitude<L2>(load_in(dx + x, M{}), load_in(dy + x, M{})));
}

// Takes over what another channel has where its magnitude is larger.
template <class M, bool L2>
void keep_larger(const int16_t* other_dx, const int16_t* other_dy, int16_t* dx, int16_t* dy, M* best, int64_t n) {
    const auto keep = [](int16_t* to, i16v wins, const int16_t* from)
                          __attribute__((always_inline)) { store(to, select(wins, load(from), load(to))); };
    const auto keep_wide = [](int16_t* to, i32v wins, const int16_t* from) __attribute__((always_inline)) {
        store_narrow(to, select(wins, load_wide(from), load_wide(to)));
    };
    for (int64_t x = 0; x < n; x += kLanes<M>) {
        const Vec<M> m = magnitude<L2>(load_in(other_dx + x, M{}), load_in(other_dy + x, M{})), old = load(best + x);
        const auto wins = m > old;
        store(best + x, select(wins, m, old));
        if constexpr (sizeof(M) == 2) {
            keep(dx + x, wins, other_dx + x);
            keep(dy + x, wins, other_dy + x);
        } else {
            keep_wide(dx + x, wins, other_dx + x);
            keep_wide(dy + x, wins, other_dy + x);
        }
    }
}

// Three rows of magnitudes, 0 outside the picture, and the gradients of the middle one.
template <class M, class G = int16_t>
struct Around {
    const M *above, *at, *below;
    const G *dx, *dy;
};

// A rolling window of rows of magnitudes and gradients, and a row of zeros for what lies outside.
template <class M, class G = int16_t>
class History {
public:
    TW_INLINE int64_t bytes(int64_t width) {
        return row_pitch(width) * (5 * static_cast<int64_t>(sizeof(M)) + 4 * static_cast<int64_t>(sizeof(G)));
    }

    History(char* memory, int64_t width) : width_(width), pitch_(row_pitch(width)) {
        __builtin_memset(memory, 0, static_cast<size_t>(bytes(width)));
        magnitudes_ = reinterpret_cast<M*>(memory) + kMargin;
        gradients_ = reinterpret_cast<G*>(memory + 5 * pitch_ * static_cast<int64_t>(sizeof(M))) + kMargin;
    }

    M* magnitudes(int64_t y) { return magnitudes_ + (y & 3) * pitch_; }
    G* dx(int64_t y) { return gradients_ + (y & 1) * pitch_; }
    G* dy(int64_t y) { return gradients_ + (2 + (y & 1)) * pitch_; }

    // Zeros behind row y, as far as anyone looks.
    void close(int64_t y) {
        M *const end = magnitudes(y) + width_, *const last = magnitudes(y) + (pitch_ - kMargin) - kLanes<M>;
        for (M* at = end; at < last; at += kLanes<M>) store(at, Vec<M>{});
        store(last, Vec<M>{});
    }

    Around<M, G> window(int64_t y, int64_t height) {
        const M* const outside = magnitudes_ + 4 * pitch_;
        return {y > 0 ? magnitudes(y - 1) : outside, magnitudes(y), y + 1 < height ? magnitudes(y + 1) : outside, dx(y),
                dy(y)};
    }

private:
    int64_t width_, pitch_;
    M* magnitudes_;
    G* gradients_;
};

// Rows of pixels of each channel of a band, as many as the filter S sees, and the gradients of the row in their middle.
template <class S>
class Gradients {
    static constexpr int kHistory = S::size < 4 ? 4 : 8;  // rows of pixels that are kept, a power of two

public:
    TW_INLINE int64_t bytes(const Picture& p, int64_t taps) {
        const int64_t pitch = row_pitch(p.width);
        return 4 * pitch * static_cast<int64_t>(sizeof(int16_t)) +
               p.channels * (kHistory * pitch * static_cast<int64_t>(sizeof(int16_t)) + Channel::bytes(p.width, taps));
    }

    Gradients(const Picture& p, const Taps& taps, char* scratch) : p_(p), pitch_(row_pitch(p.width)), next_(-1) {
        smooth_ = reinterpret_cast<int16_t*>(scratch) + kMargin;
        change_ = smooth_ + pitch_;
        dx_ = change_ + pitch_;
        dy_ = dx_ + pitch_;
        char* rest = scratch + 4 * pitch_ * static_cast<int64_t>(sizeof(int16_t));
        for (int64_t c = 0; c < p.channels; ++c, rest += Channel::bytes(p.width, taps.n)) {
            rows_[c] = reinterpret_cast<int16_t*>(rest) + kMargin;
            rest += kHistory * pitch_ * static_cast<int64_t>(sizeof(int16_t));
            channel_[c].start(p, c, taps, rest);
        }
    }

    // Row y of a channel, of those that its gradients were taken from.
    const int16_t* pixels(int64_t c, int64_t y) const { return rows_[c] + (y & (kHistory - 1)) * pitch_; }

    // body(x, a, b) of the vectors of row y, of the first channel, of which dx is a + b and dy a - b; y never falls from
    // one call to the next.
    template <class Body>
    void each(int64_t y, const Body& body) {
        advance(y);
        const int16_t* rows[S::size];
        around(0, y, rows);
        sobel3(rows, p_.width, body);
    }

    // Row y, of three channels the larger gradient; y never falls from one call to the next.
    template <class M, bool L2>
    void row(int64_t y, int16_t* dx, int16_t* dy, M* m) {
        if constexpr (S::size == 3 && sizeof(M) == 2) {
            each(y, [&](int64_t x, i16v a, i16v b) __attribute__((always_inline)) {
                const i16v gx = a + b, gy = a - b;
                store(dx + x, gx);
                store(dy + x, gy);
                store(m + x, magnitude<false>(gx, gy));
            });
        } else {
            advance(y);
            channel(0, y, dx, dy);
            magnitudes<M, L2>(dx, dy, m, p_.width);
        }
        for (int64_t c = 1; c < p_.channels; ++c) {
            channel(c, y, dx_, dy_);
            keep_larger<M, L2>(dx_, dy_, dx, dy, m, p_.width);
        }
    }

private:
    void advance(int64_t y) {
        constexpr int64_t half = S::size / 2;
        if (next_ < 0) next_ = y > half ? y - half : 0;
        for (; next_ < p_.height && next_ <= y + half; ++next_)
            for (int64_t c = 0; c < p_.channels; ++c) read(c, next_);
    }

    void read(int64_t c, int64_t y) {
        constexpr int half = S::size / 2;
        int16_t* const row = rows_[c] + (y & (kHistory - 1)) * pitch_;
        channel_[c].read(y, row);
        for (int i = 1; i <= half; ++i) row[-i] = row[0], row[p_.width - 1 + i] = row[p_.width - 1];
    }

    void around(int64_t c, int64_t y, const int16_t** rows) const {
        constexpr int64_t half = S::size / 2;
        for (int64_t k = 0; k < S::size; ++k)
            rows[k] = rows_[c] + (clamped(y + k - half, p_.height) & (kHistory - 1)) * pitch_;
    }

    void channel(int64_t c, int64_t y, int16_t* dx, int16_t* dy) {
        constexpr int64_t half = S::size / 2;
        const int16_t* rows[S::size];
        around(c, y, rows);
        sums_down<S>(rows, smooth_, change_, -kLanes<int16_t>, p_.width + half);
        sums_along<S>(smooth_, change_, dx, dy, p_.width);
    }

    const Picture& p_;
    const int64_t pitch_;
    int64_t next_;
    int16_t* rows_[3];
    int16_t *smooth_, *change_, *dx_, *dy_;
    Channel channel_[3];
};

}  // namespace
}  // namespace tw::TW_ISA
