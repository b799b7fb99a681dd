// A flow between two 8-bit pictures that keeps colours and gradients, and is smooth but for edges of its own.
//
//     minimise  sum of  5 r(I_t^2 / |grad I|^2) + 20 r(|grad I_t|^2, each part over its own) + 20 r(|grad u|^2 + |grad v|^2)
//     r(z) = sqrt(z + 10^-6),  I_t = second at (p + flow) - first,  I = (second at (p + flow) + first) / 2
//
// Method    `steps` times the second picture is warped, bilinear, and the energy made linear in a change of the flow, whose
//           equations five red-black sweeps of successive over-relaxation (1.6) approach. Both colours of a vector are
//           computed and one is kept. Derivatives are central differences.
// Numerics  float32; places outside the picture are those of its edge. Flows are limited to 2047 pixels, NaN becomes 0.
// Threads   rows; a sweep of one colour reads the other alone. One thread works on all stages of nearby rows. Same bits always.
// Source    T. Brox, A. Bruhn, N. Papenberg and J. Weickert, "High accuracy optical flow estimation based on a theory for
//           warping", 2004; the parts of the norm: H. Zimmer et al., "Complementary optic flow", 2009.
#include "image/check.h"
#include "ops/ops.h"
#include "ops/padded.h"
#include "simd/roots.h"

namespace tw::TW_ISA {
namespace {

constexpr float kColour = 5, kGradient = 20, kSmooth = 20, kSmall = 1e-6f, kOver = 1.6f, kLeastGradient = 0.01f;
constexpr float kAlone = 1e-20f;  // a pixel without neighbours stays where it is
constexpr int kSweeps = 5, kStages = 3 + 2 * kSweeps + 1;
constexpr int64_t kEdge = 16;  // elements before and behind a row
constexpr int64_t kMostPixels = 32767;
constexpr float kFarthest = 2047;

enum Plane { kU, kV, kDu, kDv, kMean, kChange, kIx, kIy, kSoft, kRight, kBelow, kA12, kB1, kB2, kInv1, kInv2, kPlanes };

TW_INLINE int64_t plane_pitch(int64_t width) { return ceil_div(width, 16) * 16 + 2 * kEdge; }

class Refiner {
public:
    Refiner(const Padded& first, const Padded& second, float* memory)
        : first_(first),
          second_(second),
          height_(first.height),
          width_(first.width),
          pitch_(plane_pitch(width_)),
          memory_(memory) {}

    static int64_t bytes(int64_t height, int64_t width) {
        return kPlanes * height * plane_pitch(width) * static_cast<int64_t>(sizeof(float));
    }

    void read(const View& flow) {
        rows([&](int64_t y) {
            for (int p = 0; p < kPlanes; ++p) {
                float* const outside = row(static_cast<Plane>(p), y);
                __builtin_memset(outside - kEdge, 0, kEdge * sizeof(float));
                __builtin_memset(outside + width_, 0, static_cast<size_t>(pitch_ - kEdge - width_) * sizeof(float));
            }
            if (y + 1 == height_) __builtin_memset(row(kBelow, y), 0, static_cast<size_t>(width_) * sizeof(float));
            const float* const from = flow.as<float>() + y * flow.stride[0];
            float *const u = row(kU, y), *const v = row(kV, y);
            const auto limited = [](float f) {
                return f < -kFarthest ? -kFarthest : f > kFarthest ? kFarthest : f == f ? f : 0;
            };
            for (int64_t x = 0; x < width_; ++x) {
                u[x] = limited(from[x * flow.stride[1]]);
                v[x] = limited(from[x * flow.stride[1] + flow.stride[2]]);
            }
            repeat(u), repeat(v);
        });
    }

    // Every stage reads rows that the one before has finished, and none that the one after has begun.
    void step() {
        const auto stage = [&](int k, int64_t y) {
            if (k == 0) warp(y), soften(y);
            if (k == 1) derive(y), weigh(y);
            if (k == 2) make_equations(y);
            if (k >= 3 && k < kStages - 1) sweep(y, (k - 3) % 2);
            if (k == kStages - 1) change(y);
        };
        if (num_threads() > 1) {
            for (int k = 0; k < kStages; ++k) rows([&](int64_t y) { stage(k, y); });
            return;
        }
        // On one thread each stage follows a row behind, so that rows are still in the cache.
        for (int64_t y = 0; y < height_ + kStages - 1; ++y)
            for (int k = 0; k < kStages; ++k)
                if (y - k >= 0 && y - k < height_) stage(k, y - k);
    }

    void write(const View& y) {
        rows([&](int64_t i) {
            float* const to = y.as<float>() + i * y.stride[0];
            for (int64_t x = 0; x < width_; ++x) {
                to[x * y.stride[1]] = row(kU, i)[x];
                to[x * y.stride[1] + y.stride[2]] = row(kV, i)[x];
            }
        });
    }

private:
    static constexpr int64_t lanes = kLanes<float>;

    template <class Body>
    void rows(const Body& body) const {
        const int64_t band = max_of(1, kChunkElements / 4 / width_);
        parallel(ceil_div(height_, band), [&](int64_t i) {
            for (int64_t y = i * band; y < min_of((i + 1) * band, height_); ++y) body(y);
        });
    }

    float* row(Plane p, int64_t y) const { return memory_ + (p * height_ + y) * pitch_ + kEdge; }
    // The edge repeats.
    float* near(Plane p, int64_t y) const { return row(p, y < 0 ? 0 : y < height_ ? y : height_ - 1); }
    void repeat(float* row) const { row[-1] = row[0], row[width_] = row[width_ - 1]; }

    template <class Body>
    void vectors(const Body& body) const {
        for (int64_t x = 0; x < width_; x += lanes) body(x);
    }

    // A block of places at once: whole parts, then pixels one by one, then the mixture.
    void warp(int64_t y) const {
        constexpr int64_t kBlock = 256;
        alignas(64) int32_t px[kBlock], py[kBlock], upper[kBlock], lower[kBlock];
        alignas(64) float fx[kBlock], fy[kBlock];
        const float *const u = row(kU, y), *const v = row(kV, y);
        float *const mean = row(kMean, y), *const change = row(kChange, y);
        const uint8_t* const from = first_.at(y, 0);
        for (int64_t start = 0; start < width_; start += kBlock) {
            const int64_t n = min_of(kBlock, width_ - start);
            for (int64_t i = 0; i < n; i += lanes) {
                // Parts of the shift alone: beside a place its last bits would be lost.
                const auto part = [&](f32v place, f32v shift, int64_t size, int32_t* whole, float* rest)
                                      __attribute__((always_inline)) {
                    shift = min_any(max_any(shift, -place), splat(static_cast<float>(size - 1)) - place);
                    i32v floor = __builtin_convertvector(shift, i32v);
                    floor += to_f32(floor) > shift;
                    store(whole + i, floor + __builtin_convertvector(place, i32v));
                    store(rest + i, shift - to_f32(floor));
                };
                part(iota<float>() + splat(static_cast<float>(start + i)), load(u + start + i), width_, px, fx);
                part(splat(static_cast<float>(y)), load(v + start + i), height_, py, fy);
            }
            for (int64_t i = 0; i < n; ++i) {
                const uint8_t* const p = second_.at(py[i], px[i]);
                uint16_t pair;
                __builtin_memcpy(&pair, p, 2);
                upper[i] = pair;
                __builtin_memcpy(&pair, p + second_.pitch, 2);
                lower[i] = pair;
            }
            for (int64_t i = 0; i < n; i += lanes) {
                const auto along = [&](const int32_t* pairs) __attribute__((always_inline)) {
                    const i32v both = load(pairs + i);
                    const f32v left = to_f32(both & 255), right = to_f32(both >> 8 & 255);
                    return left + (right - left) * load(fx + i);
                };
                const f32v a = along(upper), seen = a + (along(lower) - a) * load(fy + i);
                const auto* const pixels =
                    reinterpret_cast<const typename VecOf<uint8_t, lanes>::loose*>(from + start + i);
                const f32v was = to_f32(__builtin_convertvector(*pixels, i32v));
                store(mean + start + i, 0.5f * (seen + was));
                store(change + start + i, seen - was);
            }
        }
        repeat(mean), repeat(change);
    }

    // Half of what lies before is taken from half of what lies behind.
    static f32v across(const float* row, int64_t x) { return 0.5f * (load(row + x + 1) - load(row + x - 1)); }
    static f32v down(const float* above, const float* below, int64_t x) {
        return 0.5f * (load(below + x) - load(above + x));
    }

    void soften(int64_t y) const {
        float* const soft = row(kSoft, y);
        vectors([&](int64_t x) {
            f32v sum = splat(kSmall);
            constexpr Plane both[] = {kU, kV};
            for (const Plane p : both) {
                const f32v dx = across(row(p, y), x), dy = down(near(p, y - 1), near(p, y + 1), x);
                sum += dx * dx + dy * dy;
            }
            store(soft + x, kSmooth / sqrt(sum));
        });
        repeat(soft);
    }

    void derive(int64_t y) const {
        float *const ix = row(kIx, y), *const iy = row(kIy, y);
        vectors([&](int64_t x) {
            store(ix + x, across(row(kMean, y), x));
            store(iy + x, down(near(kMean, y - 1), near(kMean, y + 1), x));
        });
        repeat(ix), repeat(iy);
    }

    // How strongly neighbours hold each other; nothing holds what is outside.
    void weigh(int64_t y) const {
        const float *const soft = row(kSoft, y), *const next = near(kSoft, y + 1);
        float *const right = row(kRight, y), *const below = row(kBelow, y);
        const float inside = y + 1 < height_ ? 0.5f : 0;
        vectors([&](int64_t x) {
            store(right + x, 0.5f * (load(soft + x) + load(soft + x + 1)));
            store(below + x, inside * (load(soft + x) + load(next + x)));
        });
        right[-1] = right[width_ - 1] = 0;
    }

    // What neighbours give to x, weighted.
    struct Neighbours {
        const float *right, *above, *below;
        f32v sum(f32v left, const float* here, const float* up, const float* down, int64_t x) const {
            return load(right + x) * load(here + x + 1) + load(right + x - 1) * left +
                   load(below + x) * load(down + x) + load(above + x) * load(up + x);
        }
        f32v total(int64_t x) const {
            return load(right + x) + load(right + x - 1) + load(below + x) + load(above + x);
        }
    };
    // Above the first row there is nothing, as below the last.
    Neighbours neighbours(int64_t y) const {
        return {row(kRight, y), row(kBelow, y > 0 ? y - 1 : height_ - 1), row(kBelow, y)};
    }

    void make_equations(int64_t y) const {
        const float *const ix = row(kIx, y), *const iy = row(kIy, y), *const it = row(kChange, y);
        const Neighbours n = neighbours(y);
        const f32v small = splat(kSmall), least = splat(kLeastGradient);
        vectors([&](int64_t x) {
            const f32v gx = load(ix + x), gy = load(iy + x), gt = load(it + x);
            const f32v gxx = across(ix, x), gyy = down(near(kIy, y - 1), near(kIy, y + 1), x);
            const f32v gxy = down(near(kIx, y - 1), near(kIx, y + 1), x);
            const f32v gxt = across(it, x), gyt = down(near(kChange, y - 1), near(kChange, y + 1), x);
            const f32v unit = 1 / (gx * gx + gy * gy + least);
            const f32v unit_x = 1 / (gxx * gxx + gxy * gxy + least), unit_y = 1 / (gxy * gxy + gyy * gyy + least);
            const f32v colour = kColour * unit / sqrt(gt * gt * unit + small);
            const f32v gradient = kGradient / sqrt(gxt * gxt * unit_x + gyt * gyt * unit_y + small);
            const f32v wx = gradient * unit_x, wy = gradient * unit_y, total = n.total(x);
            const f32v a11 = colour * gx * gx + wx * gxx * gxx + wy * gxy * gxy;
            const f32v a22 = colour * gy * gy + wx * gxy * gxy + wy * gyy * gyy;
            store(row(kA12, y) + x, colour * gx * gy + gxy * (wx * gxx + wy * gyy));
            const auto pull = [&](Plane p) __attribute__((always_inline)) {
                const float* const here = row(p, y);
                return n.sum(load(here + x - 1), here, near(p, y - 1), near(p, y + 1), x) - total * load(here + x);
            };
            store(row(kB1, y) + x, pull(kU) - (colour * gx * gt + wx * gxx * gxt + wy * gxy * gyt));
            store(row(kB2, y) + x, pull(kV) - (colour * gy * gt + wx * gxy * gxt + wy * gyy * gyt));
            store(row(kInv1, y) + x, kOver / (a11 + total + kAlone));
            store(row(kInv2, y) + x, kOver / (a22 + total + kAlone));
        });
        __builtin_memset(row(kDu, y), 0, static_cast<size_t>(width_) * sizeof(float));
        __builtin_memset(row(kDv, y), 0, static_cast<size_t>(width_) * sizeof(float));
    }

    void sweep(int64_t y, int64_t colour) const {
        const Neighbours n = neighbours(y);
        float *const du = row(kDu, y), *const dv = row(kDv, y);
        const float *const up_u = near(kDu, y - 1), *const down_u = near(kDu, y + 1);
        const float *const up_v = near(kDv, y - 1), *const down_v = near(kDv, y + 1);
        const float *const a12 = row(kA12, y), *const b1 = row(kB1, y), *const b2 = row(kB2, y);
        const float *const inv1 = row(kInv1, y), *const inv2 = row(kInv2, y);
        const auto mine = (iota<int32_t>() & 1) == static_cast<int32_t>((y + colour) & 1);
        // What lies left of a vector is loaded before its neighbour is stored: a load across a fresh store waits for it.
        f32v left_u = load(du - 1), left_v = load(dv - 1);
        for (int64_t x = 0; x < width_; x += lanes) {
            const f32v u = load(du + x), v = load(dv + x), mixed = load(a12 + x);
            const f32v to_u =
                (1 - kOver) * u + load(inv1 + x) * (load(b1 + x) - mixed * v + n.sum(left_u, du, up_u, down_u, x));
            const f32v to_v =
                (1 - kOver) * v + load(inv2 + x) * (load(b2 + x) - mixed * to_u + n.sum(left_v, dv, up_v, down_v, x));
            left_u = load(du + x + lanes - 1), left_v = load(dv + x + lanes - 1);
            const int64_t here = min_of(lanes, width_ - x);
            store_n(du + x, select(mine, to_u, u), here);
            store_n(dv + x, select(mine, to_v, v), here);
        }
    }

    void change(int64_t y) const {
        const auto add = [&](float* at, const float* by) {
            vectors([&](int64_t x) {
                const f32v sum = load(at + x) + load(by + x);
                store(at + x, min_any(max_any(sum, splat(-kFarthest)), splat(kFarthest)));
            });
            repeat(at);
        };
        add(row(kU, y), row(kDu, y));
        add(row(kV, y), row(kDv, y));
    }

    const Padded &first_, &second_;
    const int64_t height_, width_, pitch_;
    float* const memory_;
};

Status run(const Call& c) {
    const View &first = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    const int64_t planes = Refiner::bytes(first.shape[0], first.shape[1]);
    Scratch scratch(static_cast<size_t>(planes + 2 * padded_bytes(first)));
    if (!scratch.as<char>())
        return fail(Status::memory, "first", "no memory for %d planes of %s; want a smaller picture", kPlanes,
                    shape_text(first).text);
    uint8_t* const pixels = scratch.as<uint8_t>() + planes;
    const Padded a = padded(first, pixels), b = padded(c.in[1], pixels + padded_bytes(first));
    Refiner refiner(a, b, scratch.as<float>());
    refiner.read(c.in[2]);
    for (int64_t k = 0; k < c.attr[0].i; ++k) refiner.step();
    refiner.write(y);
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    const View &first = c.in[0], &second = c.in[1], &flow = c.in[2];
    TW_TRY(want_plane(first, "first"));
    TW_TRY(want_plane(second, "second"));
    TW_TRY(want_shape_of(second, "second", first, "first"));
    if (max_of(first.shape[0], first.shape[1]) > kMostPixels)
        return fail(Status::shape, "first", "first has shape %s; want at most %lld rows and columns",
                    shape_text(first).text, static_cast<long long>(kMostPixels));
    const int64_t shape[] = {first.shape[0], first.shape[1], 2};
    if (flow.dtype != DType::f32)
        return fail(Status::dtype, "flow", "flow has dtype %s; want float32", name_of(flow.dtype));
    TW_TRY(want_shape(flow, "flow", 3, shape));
    if (c.attr[0].i < 0 || c.attr[0].i > 1000)
        return fail(Status::attr, "steps", "steps=%lld; want 0 to 1000", static_cast<long long>(c.attr[0].i));
    r.n_out = 1;
    r.out[0] = result(DType::f32, 3, shape);
    r.flops = 400.0 * static_cast<double>(numel(first)) * static_cast<double>(c.attr[0].i);
    return Status::ok;
}

constexpr Operand kOperands[] = {{"first"}, {"second"}, {"flow"}};
constexpr AttrSpec kAttrs[] = {{.name = "steps", .kind = AttrKind::integer, .i = 5}};

}  // namespace

extern const Entry op_flow_refine = {"flow_refine", kOperands, 3, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
