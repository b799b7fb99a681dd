// The packer of convolutions of few channels: B[(c, tap)][pixel] out of a zero-padded copy of the image.
//
// In the copy every row is stored phase by phase of the stride, so that the pixels of a row are neighbours under every
// tap, and no tap falls outside: a panel is one straight copy per row of B, at an offset from a table.
//
//     row of x          a b c d e f g        stride 2, padding 1
//     row of the copy   0 b d f | a c e g
#pragma once
#include "gemm/tiled.h"
#include "gemm/window.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

template <class T>
struct Padded {
    static constexpr int64_t kSlack = Blocking<T>::NR;  // a panel may read beyond the last pixel of a row
    int64_t size[2], row, phase, step;                  // rows of the copy; elements of a row and of a phase of it
    int64_t out[kMaxRank], move[2];                     // pixels, and rows from one to the next
    T* data;
    int64_t* offset;                                    // of every (c, tap)

    int64_t elements(int64_t channels) const { return channels * size[0] * size[1] * row + kSlack; }
};

// dilation and before as in the window; the copy's memory and table are the caller's.
template <class T>
Padded<T> padded_for(const Window<T>& w, const int64_t* dilation) {
    Padded<T> p{};
    for (int a = 0; a < kMaxRank; ++a) p.out[a] = w.axis[a].out;
    for (int a = 0; a < 2; ++a) {
        p.move[a] = w.axis[a].step;
        p.size[a] = (p.out[a] - 1) * p.move[a] + (w.axis[a].taps - 1) * dilation[a] + 1;
    }
    p.step = w.axis[2].step;
    p.phase = (p.out[2] - 1) + ((w.axis[2].taps - 1) * dilation[2]) / p.step + 1;
    p.row = p.phase * p.step;
    return p;
}

template <class T>
void padded_offsets(const Padded<T>& p, const Window<T>& w, int64_t channels, const int64_t* dilation) {
    int64_t* to = p.offset;
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t td = 0; td < w.axis[0].taps; ++td)
            for (int64_t th = 0; th < w.axis[1].taps; ++th)
                for (int64_t tw = 0; tw < w.axis[2].taps; ++tw) {
                    const int64_t at = tw * dilation[2];
                    *to++ = ((c * p.size[0] + td * dilation[0]) * p.size[1] + th * dilation[1]) * p.row +
                            at % p.step * p.phase + at / p.step;
                }
}

// n zeros; often one, for which a call of memset is dear.
template <class T>
TW_INLINE void zero_few(T* to, int64_t n) {
    if (n == 1) {
        *to = 0;
        return;
    }
    for (int64_t i = 0; i < n; ++i) to[i] = 0;
}

// n elements at distance `far`.
template <class T>
TW_INLINE void take_row(T* to, const T* x, int64_t far, int64_t n) {
    constexpr int64_t L = kLanes<T>;
    // A last vector that would not be whole repeats some elements instead.
    if (far == 1 && n >= L)
        for (int64_t i = 0; i < n; i += L) store(to + least(i, n - L), load(x + least(i, n - L)));
    else if (far == 2 && n >= L)
        for (int64_t i = 0; i < n; i += L) store(to + least(i, n - L), load_stride2(x + 2 * least(i, n - L)));
    else if (far == 1 && n > 0 && kVecBytes == 64)  // whose vectors have masks
        store_n(to, load_n(x, n), n);
    else
        for (int64_t i = 0; i < n; ++i) to[i] = x[i * far];
}

template <int Odd, class V, int... I>
TW_INLINE V every_other(V a, V b, Seq<I...>) {
    return shuffle<(2 * I + Odd)...>(a, b);
}

// A row of stride 2 in one pass: the even and the odd places of x go to the two phases.
template <class T>
void split_row(T* to, int64_t phase, const T* x, int64_t in, int64_t before) {
    constexpr int64_t L = kLanes<T>;
    const int64_t at[] = {before / 2, (before + 1) / 2};
    T* const start[] = {to + before % 2 * phase, to + (before + 1) % 2 * phase};
    const int64_t even = least((in + 1) / 2, phase - at[0]), odd = least(in / 2, phase - at[1]);
    const int64_t count[] = {even > 0 ? even : 0, odd > 0 ? odd : 0}, pairs = least(count[0], count[1]);
    for (int64_t i = 0; pairs >= L && i < pairs; i += L) {
        const int64_t j = least(i, pairs - L);  // the last vectors may repeat some elements
        const Vec<T> a = load(x + 2 * j), b = load(x + 2 * j + L);
        store(start[0] + at[0] + j, every_other<0>(a, b, Indices<Vec<T>>{}));
        store(start[1] + at[1] + j, every_other<1>(a, b, Indices<Vec<T>>{}));
    }
    int64_t done = pairs >= L ? pairs : 0;
    if (done == 0 && pairs > 0 && kVecBytes == 64) {
        const Vec<T> a = load_n(x, least(in, L)), b = load_n(x + L, in > L ? least(in - L, L) : 0);
        store_n(start[0] + at[0], every_other<0>(a, b, Indices<Vec<T>>{}), count[0]);
        store_n(start[1] + at[1], every_other<1>(a, b, Indices<Vec<T>>{}), count[1]);
        done = L;
    }
    for (int k = 0; k < 2; ++k) {
        for (int64_t i = done; i < count[k]; ++i) start[k][at[k] + i] = x[2 * i + k];
        zero_few(start[k], least(at[k], phase));
        zero_few(start[k] + at[k] + count[k], phase - at[k] - count[k]);
    }
}

// Fills rows [first, last) of the size[0] * size[1] of channel c. `before` is the padding in front.
template <class T>
void fill_padded(const Padded<T>& p, const Window<T>& w, int64_t c, int64_t first, int64_t last,
                 const int64_t* before) {
    const WindowAxis &u = w.axis[1], &v = w.axis[2];
    constexpr int kPhases = 4;
    int64_t low[kPhases], high[kPhases];
    for (int64_t phase = 0; phase < p.step && phase < kPhases; ++phase)
        clip(phase - before[2], p.step, v.in, p.phase, low[phase], high[phase]);
    int64_t d = first / p.size[1] - before[0], h = first % p.size[1] - before[1];
    T* to = p.data + (c * p.size[0] * p.size[1] + first) * p.row;
    for (int64_t r = first; r < last; ++r) {
        const bool inside = d >= 0 && d < w.axis[0].in && h >= 0 && h < u.in;
        const T* x = w.image + c * w.channel_stride + d * w.axis[0].stride + h * u.stride - before[2] * v.stride;
        if (inside && p.step == 2 && v.stride == 1 && before[2] >= 0) {
            split_row(to, p.phase, x + before[2], v.in, before[2]);
            to += p.row;
        } else
            for (int64_t phase = 0; phase < p.step; ++phase, to += p.phase) {
                int64_t begin = 0, end = 0;
                if (inside && phase < kPhases)
                    begin = low[phase], end = high[phase];
                else if (inside)
                    clip(phase - before[2], p.step, v.in, p.phase, begin, end);
                zero_few(to, begin);
                take_row(to + begin, x + (phase + begin * p.step) * v.stride, p.step * v.stride, end - begin);
                zero_few(to + end, p.phase - end);
            }
        if (++h == p.size[1] - before[1]) h = -before[1], ++d;
    }
}

// Where a pixel lies, beyond the offset of a row of B.
template <class T>
TW_INLINE int64_t place(const Padded<T>& p, int64_t pixel) {
    const int64_t row = pixel / p.out[2];
    return (row / p.out[1] * p.move[0] * p.size[1] + row % p.out[1] * p.move[1]) * p.row + pixel % p.out[2];
}

// A vector of a panel: its first lanes from one row of pixels, the others from where they lie in the next.
struct Seam {
    int64_t from, next, lanes;
};

template <class T>
void copy_seams(const T* data, const int64_t* offset, int64_t kc, const Seam* seam, T* panel) {
    for (int64_t k = 0; k < kc; ++k, panel += Blocking<T>::NR) {
        const T* const at = data + offset[k];
        // The next panel is next to this one; rows far apart are no stream that the hardware sees.
        __builtin_prefetch(at + seam[0].from + Blocking<T>::NR);
#pragma GCC unroll 4
        for (int v = 0; v < kNV; ++v)
            store(panel + v * kLanes<T>,
                  first_lanes<T>(load(at + seam[v].from), load(at + seam[v].next), seam[v].lanes));
    }
}

// Runs of a panel whose rows of pixels are shorter than vectors: what one writes too far, those after it overwrite.
template <class T>
void copy_short_rows(const Padded<T>& p, const int64_t* offset, int64_t kc, int64_t n0, int64_t n, T* panel) {
    constexpr int NR = Blocking<T>::NR;
    for (int64_t done = 0, count; done < n; done += count) {
        count = least(p.out[2] - (n0 + done) % p.out[2], n - done);
        const int64_t lanes = least(kLanes<T>, NR - done);
        const T* const from = p.data + place(p, n0 + done);
        for (int64_t k = 0; k < kc; ++k) store_n(panel + k * NR + done, load_n(from + offset[k], lanes), lanes);
    }
}

// Matches Gemm::pack_b, but may leave anything in columns from n on.
template <class T>
void pack_padded(const void* context, int64_t k0, int64_t kc, int64_t n0, int64_t n, T* panel) {
    constexpr int64_t L = kLanes<T>;
    const auto& p = *static_cast<const Padded<T>*>(context);
    if (p.out[2] < L - 1) return copy_short_rows(p, p.offset + k0, kc, n0, n, panel);
    Seam seam[kNV];
    for (int64_t v = 0; v < kNV; ++v) {
        const int64_t pixel = n0 + least(v * L, (n - 1) / L * L), lanes = p.out[2] - pixel % p.out[2];
        const int64_t from = place(p, pixel);
        seam[v] = {from, lanes < least(L, n0 + n - pixel) ? place(p, pixel + lanes) - lanes : from, least(L, lanes)};
    }
    copy_seams(p.data, p.offset + k0, kc, seam, panel);
}

// Matches Source::vectors.
template <class T>
bool padded_vectors(const void* context, int64_t n0, const T** vector) {
    constexpr int64_t L = kLanes<T>;
    const auto& p = *static_cast<const Padded<T>*>(context);
    for (int v = 0; v < kNV; ++v, n0 += L) {
        if (n0 % p.out[2] + L > p.out[2]) return false;
        vector[v] = p.data + place(p, n0);
    }
    return true;
}

// Matches Source::parts.
template <class T>
bool padded_parts(const void* context, int64_t n0, int64_t n, VectorParts<T>& parts) {
    const auto& p = *static_cast<const Padded<T>*>(context);
    constexpr int kMost = VectorParts<T>::kMost;
    parts.count = 0;
    for (int64_t done = 0; done < n || parts.count == 0;) {
        if (parts.count == kMost) return false;
        parts.from[parts.count] = p.data + (n ? place(p, n0 + done) - done : 0);
        done = least(done + p.out[2] - (n0 + done) % p.out[2], n);
        parts.end[parts.count++] = done;
    }
    for (int i = parts.count; i < kMost; ++i) parts.from[i] = parts.from[i - 1], parts.end[i] = parts.end[i - 1];
    return true;
}

}  // namespace
}  // namespace tw::TW_ISA
