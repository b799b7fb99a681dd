// Votes of edge pixels for the lines that run through them.
//
//     y[k, R + r] += 1 for every edge pixel (i, j) and angle k,   r = (j c[k] + i s[k] + 2^15) >> 16
//     c[k] = rint(2^16 cos(pi k / angles) / rho), s[k] = rint(2^16 sin(pi k / angles) / rho)
//     R = ceil(sqrt((H - 1)^2 + (W - 1)^2) / rho) + 1
//
// Method    edge pixels become a list, which two angles read at once, so that it is read half as often. They take pixels
//           from four places of it in turn, so that neighbours, which vote for the same line, do not wait for each other.
// Numerics  exact integers.
// Threads   pairs of angles. Same bits always.
// Source    R. Duda and P. Hart, "Use of the Hough transformation to detect lines and curves in pictures", 1972.
#include "image/check.h"
#include "ops/ops.h"
#include "simd/bits.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kMostPixels = 16384, kMostAngles = 1 << 16, kMostBins = int64_t{1} << 28;
constexpr int kStreams = 4, kBlock = 64, kTogether = 2;

// x in the lower half of a word, y in the upper one. The list begins with four equal parts, which are read side by side;
// what is left over follows.
struct Points {
    uint32_t* at;
    int64_t n;
};

// Where the votes of an angle go.
struct Angle {
    int32_t c, s;
    int32_t* votes;
};

void vote(const Points& p, const Angle* angles, int32_t middle) {
    const int64_t part = p.n / kStreams / kBlock * kBlock;
    const i32v half = splat(1 << 15), at = splat(middle);
    alignas(64) int32_t bin[kTogether][kStreams][kBlock];
    for (int64_t i = 0; i < part; i += kBlock) {
        for (int64_t k = 0; k < kStreams; ++k)
            for (int64_t j = 0; j < kBlock; j += kLanes<int32_t>) {
                const u32v both = load(p.at + k * part + i + j);
                const i32v x = bitcast<i32v>(both & 0xffff), y = bitcast<i32v>(both >> 16);
#pragma GCC unroll 2
                for (int a = 0; a < kTogether; ++a)
                    store(bin[a][k] + j, ((x * splat(angles[a].c) + y * splat(angles[a].s) + half) >> 16) + at);
            }
        int32_t *const first = angles[0].votes, *const second = angles[1].votes;
        for (int64_t j = 0; j < kBlock; ++j)
#pragma GCC unroll 4
            for (int k = 0; k < kStreams; ++k) ++first[bin[0][k][j]], ++second[bin[1][k][j]];
    }
    for (int64_t i = kStreams * part; i < p.n; ++i)
        for (int a = 0; a < kTogether; ++a) {
            const int32_t x = static_cast<int32_t>(p.at[i] & 0xffff), y = static_cast<int32_t>(p.at[i] >> 16);
            ++angles[a].votes[((x * angles[a].c + y * angles[a].s + (1 << 15)) >> 16) + middle];
        }
}

Status run(const Call& c) {
    const View &edges = c.in[0], &y = c.out[0];
    const int64_t height = edges.shape[0], width = edges.shape[1], angles = y.shape[0], bins = y.shape[1];
    const auto each_vector = [&](const auto& body) {
        constexpr int64_t lanes = kLanes<uint8_t>;
        uint8_t copy[lanes];
        for (int64_t i = 0; i < height; ++i)
            for (int64_t j = 0; j < width; j += lanes) {
                const int64_t count = min_of(width - j, lanes), step = edges.stride[1];
                const uint8_t* from = edges.as<uint8_t>() + i * edges.stride[0] + j * step;
                if (step != 1) {
                    for (int64_t k = 0; k < count; ++k) copy[k] = from[k * step];
                    from = copy;
                }
                body(i, j, lane_bits(bitcast<u8v>(load_n(from, count) != 0)));
            }
    };
    int64_t n = 0;
    each_vector([&](int64_t, int64_t, uint64_t bits) { n += __builtin_popcountll(bits); });
    Scratch scratch(static_cast<size_t>(4 * (n + 64)));
    if (!scratch.as<char>())
        return fail(Status::memory, "edges", "no memory for %lld edge pixels; want a smaller picture",
                    static_cast<long long>(n));
    Points p = {scratch.as<uint32_t>(), 0};
    each_vector([&](int64_t i, int64_t j, uint64_t bits) {
        for (; bits; bits &= bits - 1) p.at[p.n++] = static_cast<uint32_t>((j + __builtin_ctzll(bits)) | i << 16);
    });
    bool enough = true;
    parallel(ceil_div(angles, kTogether), [&](int64_t pair) {
        const int64_t first = pair * kTogether, here = min_of(kTogether, angles - first);
        Scratch own(static_cast<size_t>(kTogether * bins * 4));
        int32_t* const votes = own.as<int32_t>();
        if (!votes) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        __builtin_memset(votes, 0, static_cast<size_t>(kTogether * bins * 4));
        Angle found[kTogether];
        for (int64_t a = 0; a < kTogether; ++a) {
            const double angle = 3.14159265358979323846 * static_cast<double>(first + a) / static_cast<double>(angles);
            const double one = 65536 / c.attr[0].f;
            found[a] = {static_cast<int32_t>(__builtin_rint(__builtin_cos(angle) * one)),
                        static_cast<int32_t>(__builtin_rint(__builtin_sin(angle) * one)), votes + a * bins};
        }
        vote(p, found, static_cast<int32_t>(bins / 2));
        for (int64_t a = 0; a < here; ++a) {
            int32_t* const to = y.as<int32_t>() + (first + a) * y.stride[0];
            for (int64_t r = 0; r < bins; ++r) to[r * y.stride[1]] = found[a].votes[r];
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "edges", "no memory for %lld bins; want a larger rho",
                         static_cast<long long>(bins));
}

Status infer(Call& c, Inferred& r) {
    const View& edges = c.in[0];
    TW_TRY(want_plane(edges, "edges"));
    const double rho = c.attr[0].f;
    const int64_t angles = c.attr[1].i;
    if (max_of(edges.shape[0], edges.shape[1]) > kMostPixels)
        return fail(Status::shape, "edges", "edges has shape %s; want at most %lld rows and columns",
                    shape_text(edges).text, static_cast<long long>(kMostPixels));
    if (!(rho >= 1 && rho <= 1e6)) return fail(Status::attr, "rho", "rho=%g; want 1 pixel or more, at most 1e6", rho);
    if (angles < 1 || angles > kMostAngles)
        return fail(Status::attr, "angles", "angles=%lld; want 1 to %lld", static_cast<long long>(angles),
                    static_cast<long long>(kMostAngles));
    const double h = static_cast<double>(max_of(edges.shape[0] - 1, 0)),
                 w = static_cast<double>(max_of(edges.shape[1] - 1, 0));
    const int64_t reach = static_cast<int64_t>(__builtin_ceil(__builtin_sqrt(h * h + w * w) / rho)) + 1;
    const int64_t shape[] = {angles, 2 * reach + 1};
    if (shape[0] * shape[1] > kMostBins)
        return fail(Status::attr, "angles", "angles=%lld and rho=%g make %lld bins; want at most 2^28",
                    static_cast<long long>(angles), rho, static_cast<long long>(shape[0] * shape[1]));
    r.n_out = 1;
    r.out[0] = result(DType::i32, 2, shape);
    r.flops = static_cast<double>(angles) * static_cast<double>(numel(edges));
    return Status::ok;
}

constexpr Operand kEdges[] = {{"edges"}};
constexpr AttrSpec kAttrs[] = {{.name = "rho", .kind = AttrKind::real, .f = 1.0},
                               {.name = "angles", .kind = AttrKind::integer, .i = 180}};

}  // namespace

extern const OpDef op_hough_votes = {"hough_votes", kEdges, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
