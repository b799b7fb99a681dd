// Where the pixels of one 8-bit picture went in another: a search for patches of 8 x 8 pixels, spread over all pixels.
//
//     d      = second at (patch + flow) - first at patch,  in 1/16 grey level, flow in 1/16 pixel, bilinear
//     cost   = 64 sum of d^2 - (sum of d)^2
//     flow  <- flow - H^-1 g,  H = 64 sum of g g' - (sum of g) (sum of g)',  g = 64 sum of (g d) - (sum of g) (sum of d)
//     y[p]   = sum of weight flow / sum of weight over the patches that cover p,  weight = 8192 / max(16, |d at p|)
//
// Method    patches lie on a grid, `stride` apart. Each starts with the best of the five flows given at its middle and 8
//           pixels beside it and descends while that lowers the cost, `steps` times at most. In every round each patch
//           looks at what its eight neighbours had found, takes the best, and descends again.
// Numerics  integers; a step is one float64 quotient, rounded. Outside the pictures pixels repeat the edge. A weight is
//           rounded down, y is one float64 quotient rounded to float32: the same bits on every tier and device.
// Threads   rows of patches; a round reads what the one before wrote. Same bits always.
// Source    T. Kroeger, R. Timofte, D. Dai and L. Van Gool, "Fast optical flow using dense inverse search", 2016; sharing
//           with neighbours: C. Barnes et al., "PatchMatch", 2009.
#include "image/check.h"
#include "ops/ops.h"
#include "ops/padded.h"

namespace tw::TW_ISA {
namespace {

constexpr int kPatch = kLeast, kPixels = kPatch * kPatch;
constexpr int kUnit = 16;  // of a pixel, and of a grey level
constexpr int64_t kMostPixels = 32767;
constexpr int kFarthest = 32767;  // in 1/16 pixel

typedef VecOf<int16_t, kPatch> Row;

// The grid: corners of patches, the last one against the edge.
struct Grid {
    int64_t rows, columns, stride, height, width;
    int64_t y(int64_t i) const { return min_of(i * stride, max_of(height - kPatch, 0)); }
    int64_t x(int64_t j) const { return min_of(j * stride, max_of(width - kPatch, 0)); }
};
TW_INLINE int64_t corners(int64_t n, int64_t stride) { return n <= kPatch ? 1 : ceil_div(n - kPatch, stride) + 1; }

struct Flow {
    int32_t u, v;  // along x and y, in 1/16 pixel
};

TW_INLINE int32_t limited(int64_t flow, int64_t corner, int64_t n) {
    const int64_t low = max_of(-kFarthest, -kUnit * (kPatch + corner)), high = min_of(kFarthest, kUnit * (n - corner));
    return static_cast<int32_t>(min_of(max_of(flow, low), high));
}

// Keeps a patch within its own size of the picture.
TW_INLINE Flow limited(const Grid& g, int64_t u, int64_t v, int64_t y, int64_t x) {
    return {limited(u, x, g.width), limited(v, y, g.height)};
}

TW_INLINE int64_t dot(const int16_t* a, const int16_t* b) {
    i32v sum{};
#pragma GCC unroll 8
    for (int i = 0; i < kPixels; i += kLanes<int16_t>) sum += dot_pairs(load(a + i), load(b + i));
    return reduce_add(sum);
}

alignas(64) constexpr int16_t kOnes[kPixels] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                                1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                                1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

TW_INLINE Row::type row_of(const uint8_t* p) {
    return __builtin_convertvector(*reinterpret_cast<const VecOf<uint8_t, kPatch>::loose*>(p), Row::type);
}
TW_INLINE void put_row(int16_t* to, int r, Row::type v) { *reinterpret_cast<Row::exact*>(to + r * kPatch) = v; }
TW_INLINE Row::type get_row(const int16_t* from, int r) {
    return *reinterpret_cast<const Row::exact*>(from + r * kPatch);
}

// A patch of the first picture: its pixels in 1/16, and twice its gradients.
class Patch {
public:
    Patch(const Padded& first, const Padded& second, int64_t y, int64_t x) : second_(second), y_(y), x_(x) {
        for (int r = 0; r < kPatch; ++r) {
            const uint8_t* const p = first.at(y + r, x);
            put_row(pixels_, r, row_of(p) * kUnit);
            put_row(gx_, r, row_of(p + 1) - row_of(p - 1));
            put_row(gy_, r, row_of(p + first.pitch) - row_of(p - first.pitch));
        }
    }

    int64_t cost(Flow f) {
        differ(f);
        sum_ = dot(apart_, kOnes);
        return kPixels * dot(apart_, apart_) - sum_ * sum_;
    }

    // From f, whose cost is `best`, downhill.
    void descend(const Grid& g, int64_t steps, Flow& f, int64_t& best) {
        const int64_t sx = dot(gx_, kOnes), sy = dot(gy_, kOnes);
        const int64_t xx = kPixels * dot(gx_, gx_) - sx * sx, yy = kPixels * dot(gy_, gy_) - sy * sy;
        const int64_t xy = kPixels * dot(gx_, gy_) - sx * sy, det = xx * yy - xy * xy;
        if (det <= 0 || steps == 0) return;
        cost(f);
        for (int64_t k = 0; k < steps; ++k) {
            const int64_t bx = kPixels * dot(gx_, apart_) - sx * sum_, by = kPixels * dot(gy_, apart_) - sy * sum_;
            const Flow next =
                limited(g, f.u - step_of(yy * bx - xy * by, det), f.v - step_of(xx * by - xy * bx, det), y_, x_);
            const int64_t found = cost(next);
            if (found >= best) return;
            f = next, best = found;
        }
    }

    // Row r of the differences at f, of the last cost or by itself.
    Row::type difference(Flow f, int r) const {
        const uint8_t* const p = second_.at(y_ + (f.v >> 4) + r, x_ + (f.u >> 4));
        return mixed(along(p, f.u & 15), along(p + second_.pitch, f.u & 15), f.v & 15) - get_row(pixels_, r);
    }

private:
    static Row::type along(const uint8_t* p, int part) {
        const Row::type left = row_of(p);
        return left * kUnit + (row_of(p + 1) - left) * static_cast<int16_t>(part);
    }
    // In 16 bits without a sign the mixture fits.
    static Row::type mixed(Row::type upper, Row::type lower, int part) {
        typedef VecOf<uint16_t, kPatch>::type Unsigned;
        const auto low = static_cast<uint16_t>(part), high = static_cast<uint16_t>(kUnit - part);
        return bitcast<Row::type>((bitcast<Unsigned>(upper) * high + bitcast<Unsigned>(lower) * low) >> 4);
    }

    void differ(Flow f) {
        const uint8_t* p = second_.at(y_ + (f.v >> 4), x_ + (f.u >> 4));
        Row::type above = along(p, f.u & 15);
#pragma GCC unroll 8
        for (int r = 0; r < kPatch; ++r) {
            p += second_.pitch;
            const Row::type below = along(p, f.u & 15);
            put_row(apart_, r, mixed(above, below, f.v & 15) - get_row(pixels_, r));
            above = below;
        }
    }

    // Of differences in 1/16 and doubled gradients, in 1/16 pixel.
    static int64_t step_of(int64_t b, int64_t det) {
        const double step = __builtin_rint(2 * static_cast<double>(b) / static_cast<double>(det));
        return static_cast<int64_t>(step < -128 ? -128 : step > 128 ? 128 : step);
    }

    alignas(64) int16_t pixels_[kPixels], gx_[kPixels], gy_[kPixels], apart_[kPixels];
    const Padded& second_;
    const int64_t y_, x_;
    int64_t sum_ = 0;
};

// What is known of a patch after a round.
struct Found {
    Flow flow;
    int64_t cost;
};

// The flow given at a pixel, in 1/16 pixel; of a picture of half the size it is half of it.
TW_INLINE Flow given_at(const View& flow, const Grid& g, int64_t y, int64_t x) {
    const int64_t half = flow.shape[0] != g.height || flow.shape[1] != g.width;
    const float* const p = flow.as<float>() + (min_of(max_of(y, 0), g.height - 1) >> half) * flow.stride[0] +
                           (min_of(max_of(x, 0), g.width - 1) >> half) * flow.stride[1];
    const float unit = static_cast<float>(kUnit << half);
    const auto whole = [&](float f) {
        constexpr float most = kFarthest / kUnit;
        return static_cast<int32_t>(__builtin_rintf((f < -most ? -most : f > most ? most : f == f ? f : 0) * unit));
    };
    return {whole(p[0]), whole(p[flow.stride[2]])};
}

// Takes what costs less than anything before.
TW_INLINE bool better(Patch& patch, Flow f, Found& found) {
    const int64_t cost = patch.cost(f);
    if (cost >= found.cost) return false;
    found = {f, cost};
    return true;
}

class Search {
public:
    Search(const Padded& first, const Padded& second, const Grid& grid, int64_t steps)
        : first_(first), second_(second), g_(grid), steps_(steps) {}

    void begin(const View* flow, Found* to) const {
        rows([&](int64_t i, int64_t j, Patch& patch, int64_t y, int64_t x) {
            Found found = {{0, 0}, INT64_MAX};
            constexpr int64_t half = kPatch / 2, near = kPatch;
            constexpr int64_t beside[][2] = {{0, 0}, {0, -near}, {-near, 0}, {0, near}, {near, 0}};
            for (const auto& b : beside) {
                const Flow f = flow ? given_at(*flow, g_, y + half + b[0], x + half + b[1]) : Flow{0, 0};
                better(patch, limited(g_, f.u, f.v, y, x), found);
                if (!flow) break;
            }
            patch.descend(g_, steps_, found.flow, found.cost);
            to[i * g_.columns + j] = found;
        });
    }

    void share(const Found* from, Found* to) const {
        rows([&](int64_t i, int64_t j, Patch& patch, int64_t y, int64_t x) {
            constexpr int64_t beside[][2] = {{0, -1}, {-1, 0}, {0, 1}, {1, 0}, {-1, -1}, {-1, 1}, {1, -1}, {1, 1}};
            const Found own = from[i * g_.columns + j];
            Found found = own;
            bool changed = false;
            for (const auto& b : beside) {
                const int64_t k = i + b[0], l = j + b[1];
                if (k < 0 || k >= g_.rows || l < 0 || l >= g_.columns) continue;
                const Flow f = from[k * g_.columns + l].flow;
                if (f.u != own.flow.u || f.v != own.flow.v)
                    changed |= better(patch, limited(g_, f.u, f.v, y, x), found);
            }
            if (changed) patch.descend(g_, steps_, found.flow, found.cost);
            to[i * g_.columns + j] = found;
        });
    }

private:
    template <class Body>
    void rows(const Body& body) const {
        parallel(g_.rows, [&](int64_t i) {
            for (int64_t j = 0; j < g_.columns; ++j) {
                Patch patch(first_, second_, g_.y(i), g_.x(j));
                body(i, j, patch, g_.y(i), g_.x(j));
            }
        });
    }

    const Padded &first_, &second_;
    const Grid& g_;
    const int64_t steps_;
};

// Sums over the patches that cover a row of pixels.
struct Sums {
    int32_t *weight, *u, *v;
};

void spread_patch(const Patch& patch, Flow f, int r, const Sums& s) {
    typedef VecOf<int32_t, kPatch>::type Wide;
    typedef VecOf<int32_t, kPatch>::loose Loose;
    typedef VecOf<float, kPatch>::type Floats;
    const Row::type d = patch.difference(f, r);
    const Row::type size = d < 0 ? -d : d;
    const Wide apart = __builtin_convertvector(size > kUnit ? size : Row::type{} + int16_t{kUnit}, Wide);
    const Wide weight = __builtin_convertvector(8192 / __builtin_convertvector(apart, Floats), Wide);
    *reinterpret_cast<Loose*>(s.weight) += weight;
    *reinterpret_cast<Loose*>(s.u) += weight * f.u;
    *reinterpret_cast<Loose*>(s.v) += weight * f.v;
}

constexpr int64_t kBandRows = 16;

bool spread(const Padded& first, const Padded& second, const Grid& g, const Found* found, const View& y) {
    const int64_t pitch = row_pitch(max_of(g.width, kPatch));
    bool enough = true;
    parallel(ceil_div(g.height, kBandRows), [&](int64_t band) {
        const int64_t top = band * kBandRows, bottom = min_of(top + kBandRows, g.height);
        Scratch scratch(static_cast<size_t>(3 * kBandRows * pitch) * sizeof(int32_t));
        int32_t* const sums = scratch.as<int32_t>();
        if (!sums) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        __builtin_memset(sums, 0, static_cast<size_t>(3 * kBandRows * pitch) * sizeof(int32_t));
        for (int64_t i = 0; i < g.rows; ++i) {
            const int64_t from = g.y(i);
            if (from >= bottom || from + kPatch <= top) continue;
            for (int64_t j = 0; j < g.columns; ++j) {
                const Patch patch(first, second, from, g.x(j));
                for (int64_t row = max_of(from, top); row < min_of(from + kPatch, bottom); ++row) {
                    int32_t* const at = sums + 3 * (row - top) * pitch + g.x(j);
                    spread_patch(patch, found[i * g.columns + j].flow, static_cast<int>(row - from),
                                 {at, at + pitch, at + 2 * pitch});
                }
            }
        }
        for (int64_t row = top; row < bottom; ++row) {
            const int32_t* const weight = sums + 3 * (row - top) * pitch;
            float* const to = y.as<float>() + row * y.stride[0];
            for (int64_t x = 0; x < g.width; ++x) {
                const double all = kUnit * static_cast<double>(weight[x]);
                to[x * y.stride[1]] = static_cast<float>(weight[pitch + x] / all);
                to[x * y.stride[1] + y.stride[2]] = static_cast<float>(weight[2 * pitch + x] / all);
            }
        }
    });
    return enough;
}

Status run(const Call& c) {
    const View &a = c.in[0], &b = c.in[1], &flow = c.in[2], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    const int64_t stride = c.attr[0].i, steps = c.attr[1].i, rounds = c.attr[2].i;
    const Grid g = {corners(a.shape[0], stride), corners(a.shape[1], stride), stride, a.shape[0], a.shape[1]};
    const int64_t patches = g.rows * g.columns, found_bytes = 2 * patches * static_cast<int64_t>(sizeof(Found));
    Scratch scratch(static_cast<size_t>(found_bytes + 2 * padded_bytes(a)));
    if (!scratch.as<char>())
        return fail(Status::memory, "first", "no memory for %lld patches; want a larger stride",
                    static_cast<long long>(patches));
    Found *from = scratch.as<Found>(), *to = from + patches;
    uint8_t* const pixels = reinterpret_cast<uint8_t*>(scratch.as<char>() + found_bytes);
    const Padded first = padded(a, pixels), second = padded(b, pixels + padded_bytes(a));
    const Search search(first, second, g, steps);
    search.begin(given(flow) ? &flow : nullptr, from);
    for (int64_t k = 0; k < rounds; ++k) {
        search.share(from, to);
        Found* const swapped = from;
        from = to, to = swapped;
    }
    return spread(first, second, g, from, y)
               ? Status::ok
               : fail(Status::memory, "first", "no memory for rows of %lld; want a smaller picture",
                      static_cast<long long>(g.width));
}

Status want_between(const Attr& a, const char* name, int64_t low, int64_t high) {
    if (a.i >= low && a.i <= high) return Status::ok;
    return fail(Status::attr, name, "%s=%lld; want %lld to %lld", name, static_cast<long long>(a.i),
                static_cast<long long>(low), static_cast<long long>(high));
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
    if (given(flow)) {
        if (flow.dtype != DType::f32)
            return fail(Status::dtype, "flow", "flow has dtype %s; want float32", name_of(flow.dtype));
        const int64_t half[] = {(shape[0] + 1) / 2, (shape[1] + 1) / 2, 2};
        const auto is = [&](const int64_t* want) {
            return flow.ndim == 3 && flow.shape[0] == want[0] && flow.shape[1] == want[1] && flow.shape[2] == 2;
        };
        if (!is(shape) && !is(half))
            return fail(Status::shape, "flow", "flow has shape %s; want %s or %s", shape_text(flow).text,
                        shape_text(3, shape).text, shape_text(3, half).text);
    }
    TW_TRY(want_between(c.attr[0], "stride", 1, kPatch));
    TW_TRY(want_between(c.attr[1], "steps", 0, 256));
    TW_TRY(want_between(c.attr[2], "rounds", 0, 64));
    r.n_out = 1;
    r.out[0] = result(DType::f32, 3, shape);
    const double patches =
        static_cast<double>(corners(shape[0], c.attr[0].i)) * static_cast<double>(corners(shape[1], c.attr[0].i));
    r.flops = patches * 600.0 * (5 + 0.5 * static_cast<double>(c.attr[1].i) + 8.0 * static_cast<double>(c.attr[2].i));
    return Status::ok;
}

constexpr Operand kOperands[] = {{"first"}, {"second"}, {"flow", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    {.name = "stride", .kind = AttrKind::integer, .i = 4},
    {.name = "steps", .kind = AttrKind::integer, .i = 12},
    {.name = "rounds", .kind = AttrKind::integer, .i = 2},
};

}  // namespace

extern const Entry op_flow_search = {"flow_search", kOperands, 3, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
