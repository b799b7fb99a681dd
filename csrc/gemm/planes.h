// A padded image as planes, in which every tap of a convolution is an offset: term q of tap t lies at q + offset(t).
//
//     row of x    a b c d e      padding 1, stride 1: a zero behind a row is also the one before the next
//     the plane   0 a b c d e | 0 f g h i j | 0 ...        pixels q: 0 1 2 3 4 _ 6 7 8 ...
//
// Places of different phases of the stride lie in parts of the plane of their own. Images of a batch follow each other.
// Places q between rows of pixels, and behind the last, are no pixels: what is multiplied there must be zero, or left out.
#pragma once
#include "core/convolution.h"
#include "core/index.h"
#include "gemm/pieces.h"

namespace tw::TW_ISA {
namespace {

struct Planes {
    static constexpr int64_t kSlack = 2 * kPieceTerms;
    int64_t phases[3], pitch[3];  // pitch: from one place along an axis to the next
    int64_t image, part, size;  // elements of an image and of all images, in one phase; of the plane
    int64_t terms;  // from the first pixel to the last

    __attribute__((noinline)) Planes(const ConvAxes& s, int64_t images) {
        int64_t along[3], overlap[3], tail = 0;
        for (int a = 0; a < 3; ++a) {
            const int64_t more = (s.taps[a] - 1) * s.dilation[a];
            phases[a] = min_of(s.stride[a], more + 1);
            const int64_t all = s.out[a] + more / s.stride[a];
            overlap[a] = more / s.stride[a];
            for (int64_t f = 0; f < phases[a]; ++f) {
                int64_t first, last;
                inside(s, a, f, all, first, last);
                overlap[a] = max_of(0, min_of(overlap[a], min_of(first, all - last)));
            }
            along[a] = all - overlap[a];
        }
        pitch[2] = 1, pitch[1] = along[2], pitch[0] = along[1] * along[2], image = along[0] * pitch[0];
        for (int a = 0; a < 3; ++a) tail += overlap[a] * pitch[a];
        part = images * image + tail;
        size = ceil_div(phases[0] * phases[1] * phases[2] * part + kSlack, kPieceTerms) * kPieceTerms;
        if (size / kPieceTerms % 2 == 0)
            size += kPieceTerms;  // an odd number of lines of bf16: planes in different sets
        terms = (images - 1) * image + 1;
        for (int a = 0; a < 3; ++a) terms += (s.out[a] - 1) * pitch[a];
    }

    int64_t steps() const { return ceil_div(terms, kPieceTerms); }

    __attribute__((noinline)) int64_t offset(const ConvAxes& s, int64_t tap) const {
        const int64_t t[3] = {tap / s.taps[2] / s.taps[1], tap / s.taps[2] % s.taps[1], tap % s.taps[2]};
        int64_t phase = 0, at = 0;
        for (int a = 0; a < 3; ++a) {
            phase = phase * phases[a] + t[a] * s.dilation[a] % s.stride[a];
            at += t[a] * s.dilation[a] / s.stride[a] * pitch[a];
        }
        return phase * part + at;
    }

    // The places [first, last) of a phase, of `all`, that are of the image.
    static void inside(const ConvAxes& s, int a, int64_t f, int64_t all, int64_t& first, int64_t& last) {
        const int64_t before = s.before[a] - f, end = before + s.in[a];
        first = before > 0 ? min_of(ceil_div(before, s.stride[a]), all) : 0;
        last = end > 0 ? min_of(ceil_div(end, s.stride[a]), all) : 0;
        last = max_of(first, last);
    }

    // Writes one channel's places that are of the image; all others are zero already.
    void fill(const ConvAxes& s, const float* x, int64_t images, int64_t image_stride, float* plane) const {
        for (int64_t f = 0; f < phases[0] * phases[1] * phases[2]; ++f, plane += part) {
            const int64_t phase[3] = {f / phases[2] / phases[1], f / phases[2] % phases[1], f % phases[2]};
            int64_t first[3], last[3];
            const float* corner = x;
            for (int a = 0; a < 3; ++a) {
                inside(s, a, phase[a], s.out[a] + (s.taps[a] - 1) * s.dilation[a] / s.stride[a], first[a], last[a]);
                corner += (first[a] * s.stride[a] + phase[a] - s.before[a]) * s.x_stride[a];
            }
            const int64_t far = s.stride[2] * s.x_stride[2], n = last[2] - first[2];
            for (int64_t i = 0; i < images; ++i)
                for (int64_t d = first[0]; d < last[0]; ++d)
                    for (int64_t h = first[1]; h < last[1]; ++h)
                        copy_row(corner + i * image_stride + (d - first[0]) * s.stride[0] * s.x_stride[0] +
                                     (h - first[1]) * s.stride[1] * s.x_stride[1],
                                 far, n, plane + i * image + d * pitch[0] + h * pitch[1] + first[2]);
        }
    }

    static void copy_row(const float* from, int64_t far, int64_t n, float* to) {
        constexpr int64_t L = kLanes<float>;
        int64_t i = 0;
        if (far == 1)
            for (; i < n; i += L) store_n(to + i, load_n(from + i, min_of(L, n - i)), min_of(L, n - i));
        else if (far == 2)
            for (; i < n; i += L) store_n(to + i, load_stride2_n(from + 2 * i, min_of(L, n - i)), min_of(L, n - i));
        for (; i < n; ++i) to[i] = from[i * far];
    }
};

}  // namespace
}  // namespace tw::TW_ISA
