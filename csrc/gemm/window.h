// The packer of convolution: B[(c, tap)][pixel] read straight from a strided n-d image, zeros at the border.
//
// Along each axis, pixel p and tap t meet at position p * step + offset[t]. With that one rule the same packer serves
// the forward pass (offset = t * dilation - padding) and each phase of the gradient with respect to the image.
#pragma once
#include "gemm/gemm.h"

namespace tw::TW_ISA {

constexpr int kMaxRank = 3;

struct WindowAxis {
    int64_t in, out;        // sizes of the image and of the pixel grid
    int64_t stride;         // of the image, in elements
    int64_t step;           // image positions per pixel
    int64_t taps;
    const int64_t* offset;  // one per tap
};

// Axes outermost first; a 1-D or 2-D image has leading axes of size 1.
template <class T>
struct Window {
    const T* image;
    int64_t channel_stride;
    WindowAxis axis[kMaxRank];

    int64_t taps() const { return axis[0].taps * axis[1].taps * axis[2].taps; }
    int64_t pixels() const { return axis[0].out * axis[1].out * axis[2].out; }
};

namespace {

// A run of pixels of one panel that share their row.
struct Run {
    int64_t at[kMaxRank];  // pixel coordinates of its first
    int64_t count, to;     // to: column in the panel
};

TW_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The part [low, high) of `count` pixels whose position p0 + i * step lies in [0, in).
TW_INLINE void clip(int64_t p0, int64_t step, int64_t in, int64_t count, int64_t& low, int64_t& high) {
    low = 0, high = count;
    if (p0 >= 0 && p0 + (count - 1) * step < in) return;  // the inside of the image, without a division
    if (p0 < 0) low = least((-p0 + step - 1) / step, count);
    high = p0 >= in ? 0 : least((in - 1 - p0) / step + 1, count);
    if (high < low) high = low;
}

template <class T, int Step>
TW_INLINE Vec<T> take_run(const T* p, int64_t stride) {
    if constexpr (Step == 1)
        return load(p);
    else if constexpr (Step == 2)
        return load_stride2(p);
    else
        return load_strided(p, stride, kLanes<T>);
}

template <class T, int Step>
TW_INLINE Vec<T> take_rest(const T* p, int64_t stride, int64_t n) {
    if constexpr (Step == 1)
        return load_n(p, n);
    else if constexpr (Step == 2)
        return load_stride2_n(p, n);
    else
        return load_strided(p, stride, n);
}

// Whole: vectors before the rest, known at compile time so that the channel loop is straight code.
template <class T, int Step, int Whole>
void copy_channels(const T* src, int64_t stride, int64_t channel_stride, T* dst, int64_t panel_step, int64_t rest,
                   int64_t channels) {
    constexpr int L = kLanes<T>;
    for (int64_t c = 0; c < channels; ++c, src += channel_stride, dst += panel_step) {
#pragma GCC unroll 4
        for (int v = 0; v < Whole; ++v) store(dst + v * L, take_run<T, Step>(src + v * L * stride, stride));
        if (rest) store_n(dst + Whole * L, take_rest<T, Step>(src + Whole * L * stride, stride, rest), rest);
    }
}

// `count` elements at distance `stride` from src, for every one of `channels`.
template <class T, int Step>
void copy_run(const T* src, int64_t stride, int64_t channel_stride, T* dst, int64_t panel_step, int64_t count,
              int64_t channels) {
    const int64_t rest = count % kLanes<T>;
    switch (count / kLanes<T>) {
        case 0: return copy_channels<T, Step, 0>(src, stride, channel_stride, dst, panel_step, rest, channels);
        case 1: return copy_channels<T, Step, 1>(src, stride, channel_stride, dst, panel_step, rest, channels);
        case 2: return copy_channels<T, Step, 2>(src, stride, channel_stride, dst, panel_step, rest, channels);
        case 3: return copy_channels<T, Step, 3>(src, stride, channel_stride, dst, panel_step, rest, channels);
        default: return copy_channels<T, Step, 4>(src, stride, channel_stride, dst, panel_step, rest, channels);
    }
}

template <class T>
TW_INLINE void zero_run(T* dst, int64_t panel_step, int64_t count, int64_t channels) {
    for (int64_t c = 0; c < channels && count > 0; ++c, dst += panel_step)
        for (int64_t i = 0; i < count; ++i) dst[i] = 0;
}

// Matches Gemm::pack_b: rows k = (channel, tap) of [k0, k0 + kc), pixels [n0, n0 + n).
template <class T>
void pack_window(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, T* panel) {
    constexpr int NR = Blocking<T>::NR;
    const auto& w = *static_cast<const Window<T>*>(context);
    const WindowAxis &d = w.axis[0], &h = w.axis[1], &v = w.axis[2];
    const int64_t taps = w.taps();
    if (taps == 0) return;  // a phase of the stride that no tap reaches
    Run runs[NR];
    int n_runs = 0;
    for (int64_t done = 0; done < n;) {
        const int64_t pixel = n0 + done, x = pixel % v.out;
        Run& run = runs[n_runs++];
        run = {{pixel / v.out / h.out, pixel / v.out % h.out, x}, least(v.out - x, n - done), done};
        done += run.count;
    }
    const int64_t step = v.step * v.stride, row_step = taps * NR;
    const auto copy = step == 1 ? copy_run<T, 1> : step == 2 ? copy_run<T, 2> : copy_run<T, 0>;
    // Row (channel, tap) is in this block for channels [first, end): these two, one later for the taps before the cut.
    const int64_t first_cut = k0 % taps, first_base = k0 / taps, end_cut = (k0 + kc) % taps,
                  end_base = (k0 + kc) / taps;
    for (int i = 0; i < n_runs; ++i) {
        const Run& run = runs[i];
        int64_t tap = 0;
        for (int64_t td = 0; td < d.taps; ++td) {
            const int64_t pd = run.at[0] * d.step + d.offset[td];
            for (int64_t th = 0; th < h.taps; ++th) {
                const int64_t ph = run.at[1] * h.step + h.offset[th];
                const bool inside = pd >= 0 && pd < d.in && ph >= 0 && ph < h.in;
                const T* const image_row = w.image + pd * d.stride + ph * h.stride;
                for (int64_t tw = 0; tw < v.taps; ++tw, ++tap) {
                    const int64_t first = first_base + (tap < first_cut), channels = end_base + (tap < end_cut) - first;
                    if (channels <= 0) continue;
                    T* const to = panel + (first * taps + tap - k0) * NR + run.to;
                    const int64_t pv = run.at[2] * v.step + v.offset[tw];
                    int64_t low = 0, high = 0;
                    if (inside) clip(pv, v.step, v.in, run.count, low, high);
                    if (high > low)
                        copy(image_row + first * w.channel_stride + (pv + low * v.step) * v.stride, step,
                             w.channel_stride, to + low, row_step, high - low, channels);
                    if (high - low == run.count) continue;
                    zero_run(to, row_step, low, channels);
                    zero_run(to + high, row_step, run.count - high, channels);
                }
            }
        }
    }
    if (n < NR) zero_run(panel + n, NR, NR - n, kc);
}

}  // namespace
}  // namespace tw::TW_ISA
