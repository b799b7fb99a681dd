// The Gaussian blur of 8-bit pictures, each channel by itself.
//
//     y[i, j] = round(sum over u, v of tap[u] tap[v] image[i + u - n/2, j + v - n/2] / 2^16),  n = round(6 sigma + 1) | 1
//
// Method    separable: rows are blurred along x into a ring, from which each row is blurred along y (image/rows.h).
// Numerics  taps in 1/256 of sum 256, sums exact, one rounding half up; the bits are those of OpenCV 5. Outside the
//           picture pixels mirror at the edge without repeating it.
// Threads   bands of rows, whose windows overlap. Same bits always.
#include "core/check.h"
#include "image/window.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kBandRows = 64;

Status infer(Call& c, Inferred& r) {
    const View& image = c.in[0];
    if (image.dtype != DType::u8)
        return fail(Status::dtype, "image", "image has dtype %s; want uint8", name_of(image.dtype));
    if (image.ndim != 2 && !(image.ndim == 3 && image.shape[2] == 3))
        return fail(Status::shape, "image", "image has shape %s; want (H, W) or (H, W, 3)", shape_text(image).text);
    const double sigma = c.attr[0].f;
    if (!(sigma > 0 && sigma <= kMaxSigma))
        return fail(Status::attr, "sigma", "sigma=%g; want more than 0, at most %g pixels", sigma, kMaxSigma);
    r.n_out = 1;
    r.out[0] = result(DType::u8, image.ndim, image.shape);
    r.flops = 4.0 * static_cast<double>(gaussian_width(sigma)) * static_cast<double>(numel(image));
    return Status::ok;
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const Picture p = picture_of(c.in[0]);
    const View& y = c.out[0];
    Taps taps;
    make_taps(c.attr[0].f, taps);
    const int64_t band_rows = max_of(kBandRows, 4 * taps.n), bands = ceil_div(p.height, band_rows);
    bool enough = true;
    parallel(bands * p.channels, [&](int64_t i) {
        const int64_t band = i / p.channels, channel = i % p.channels;
        Scratch scratch(static_cast<size_t>(row_pitch(p.width) + Channel::bytes(p.width, taps.n)));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        uint8_t* const row = scratch.as<uint8_t>();
        Channel from;
        from.start(p, channel, taps, scratch.as<char>() + row_pitch(p.width));
        for (int64_t at = band * band_rows; at < min_of((band + 1) * band_rows, p.height); ++at) {
            from.read(at, row);
            uint8_t* const to = y.as<uint8_t>() + at * y.stride[0] + (y.ndim == 3 ? channel * y.stride[2] : 0);
            if (y.stride[1] == 1)
                __builtin_memcpy(to, row, static_cast<size_t>(p.width));
            else
                for (int64_t x = 0; x < p.width; ++x) to[x * y.stride[1]] = row[x];
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "image", "no memory for %lld rows; want a smaller sigma",
                         static_cast<long long>(taps.n));
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kSigma[] = {{.name = "sigma", .kind = AttrKind::real, .required = true}};

}  // namespace

extern const OpDef op_gaussian_blur = {"gaussian_blur", kImage, 1, kSigma, 1, infer, run};

}  // namespace tw::TW_ISA
