// Votes of edge pixels for the lines that run through them.
//
//     y[k, R + r] += 1 for every edge pixel (i, j) and angle k,   r = (j c[k] + i s[k] + 2^15) >> 16
//     c[k] = rint(2^16 cos(pi k / angles) / rho), s[k] = rint(2^16 sin(pi k / angles) / rho)
//     R = ceil(sqrt((H - 1)^2 + (W - 1)^2) / rho) + 1
//
// Method    edge pixels become lists: of those with a neighbour to the right, of those with one below, each with that
//           neighbour, and of the rest. Two neighbours vote at once, in a table by the sum of their bins, which are the
//           same or next to each other. Pixels are taken from four places of a list in turn, so that those that vote for
//           the same line do not wait for each other.
// Numerics  exact integers.
// Threads   angles. Same bits always.
// Source    R. Duda and P. Hart, "Use of the Hough transformation to detect lines and curves in pictures", 1972.
#include "image/check.h"
#include "ops/ops.h"
#include "simd/bits.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kMostPixels = 16384, kMostAngles = 1 << 16, kMostBins = int64_t{1} << 28;
constexpr int kStreams = 4, kBlock = 64;
constexpr int64_t kLanesOf = kLanes<uint8_t>;
constexpr uint64_t kAll = kLanesOf == 64 ? ~0ull : (1ull << kLanesOf % 64) - 1, kEven = 0x5555555555555555;

// x in the lower half of a word, y in the upper one. The list begins with four equal parts, which are read side by side;
// what is left over follows.
struct Points {
    uint32_t* at;
    int64_t n;

    // Those of one vector of columns, from x on.
    TW_INLINE void add(Points& p, uint64_t bits, int64_t x, int64_t y) {
        for (; bits; bits &= bits - 1) p.at[p.n++] = static_cast<uint32_t>((x + __builtin_ctzll(bits)) | y << 16);
    }
};

// Of neighbours those that are first, two by two from the first of a row of them on.
TW_INLINE uint64_t firsts_of(uint64_t bits) {
    const uint64_t begin = bits & ~(bits << 1), even = bits & ~(bits + (begin & kEven));
    return ((even & kEven) | (bits & ~even & ~kEven)) & bits >> 1;
}

// The bin of a pixel, or what those of two add up to, of which the second is `next` further.
template <bool Two>
TW_INLINE i32v bins_of(i32v at, i32v next) {
    if constexpr (Two) return (at >> 16) + ((at + next) >> 16);
    return at >> 16;
}

template <bool Two>
void vote(const Points& p, int32_t c, int32_t s, int32_t next, int32_t* votes) {
    const int64_t part = p.n / kStreams / kBlock * kBlock;
    alignas(64) int32_t bin[kStreams][kBlock];
    for (int64_t i = 0; i < part; i += kBlock) {
        for (int64_t k = 0; k < kStreams; ++k)
            for (int64_t j = 0; j < kBlock; j += kLanes<int32_t>) {
                const u32v both = load(p.at + k * part + i + j);
                const i32v x = bitcast<i32v>(both & 0xffff), y = bitcast<i32v>(both >> 16);
                store(bin[k] + j, bins_of<Two>(x * splat(c) + y * splat(s) + splat(1 << 15), splat(next)));
            }
        for (int64_t j = 0; j < kBlock; ++j)
#pragma GCC unroll 4
            for (int k = 0; k < kStreams; ++k) ++votes[bin[k][j]];
    }
    for (int64_t i = kStreams * part; i < p.n; ++i) {
        const int32_t at =
            static_cast<int32_t>(p.at[i] & 0xffff) * c + static_cast<int32_t>(p.at[i] >> 16) * s + (1 << 15);
        ++votes[Two ? (at >> 16) + ((at + next) >> 16) : at >> 16];
    }
}

Status run(const Call& c) {
    const View &edges = c.in[0], &y = c.out[0];
    const int64_t height = edges.shape[0], width = edges.shape[1], angles = y.shape[0], bins = y.shape[1];
    const auto each_vector = [&](const auto& body) {
        uint8_t copy[kLanesOf];
        for (int64_t i = 0; i < height; ++i)
            for (int64_t j = 0; j < width; j += kLanesOf) {
                const int64_t count = min_of(width - j, kLanesOf), step = edges.stride[1];
                const uint8_t* from = edges.as<uint8_t>() + i * edges.stride[0] + j * step;
                if (step != 1) {
                    for (int64_t k = 0; k < count; ++k) copy[k] = from[k * step];
                    from = copy;
                }
                body(i, j, lane_bits(bitcast<u8v>(load_n(from, count) != 0)) & kAll);
            }
    };
    int64_t n = 0;
    each_vector([&](int64_t, int64_t, uint64_t bits) { n += __builtin_popcountll(bits); });
    const int64_t words = ceil_div(width, kLanesOf);
    Scratch scratch(static_cast<size_t>(8 * words + 4 * (2 * n + 64)));
    if (!scratch.as<char>())
        return fail(Status::memory, "edges", "no memory for %lld edge pixels; want a smaller picture",
                    static_cast<long long>(n));
    uint64_t* const above = scratch.as<uint64_t>();  // of the row before, what has no neighbour yet
    __builtin_memset(above, 0, static_cast<size_t>(8 * words));
    uint32_t* const memory = reinterpret_cast<uint32_t*>(above + words);
    Points beside = {memory, 0}, below = {memory + n / 2, 0}, single = {memory + n, 0};
    each_vector([&](int64_t i, int64_t j, uint64_t bits) {
        uint64_t& before = above[j / kLanesOf];
        const uint64_t firsts = firsts_of(bits), rest = bits & ~(firsts | firsts << 1);
        Points::add(beside, firsts, j, i);
        Points::add(below, rest & before, j, i - 1);
        Points::add(single, before & ~rest, j, i - 1);
        before = rest & ~before;
    });
    for (int64_t k = 0; k < words; ++k) Points::add(single, above[k], k * kLanesOf, height - 1);
    bool enough = true;
    constexpr int64_t lanes = kLanes<int32_t>;
    const int64_t pitch = ceil_div(bins, lanes) * lanes, all = 3 * pitch + 2 * lanes;
    parallel(angles, [&](int64_t k) {
        Scratch own(static_cast<size_t>(4 * all));
        int32_t *const votes = own.as<int32_t>(), *const twos = votes + pitch + lanes;
        if (!votes) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        __builtin_memset(votes, 0, static_cast<size_t>(4 * all));
        const double angle = 3.14159265358979323846 * static_cast<double>(k) / static_cast<double>(angles);
        const double one = 65536 / c.attr[0].f;
        const int32_t cosine = static_cast<int32_t>(__builtin_rint(__builtin_cos(angle) * one));
        const int32_t sine = static_cast<int32_t>(__builtin_rint(__builtin_sin(angle) * one));
        const int64_t middle = bins / 2;
        vote<false>(single, cosine, sine, 0, votes + middle);
        vote<true>(beside, cosine, sine, cosine, twos + 2 * middle);
        vote<true>(below, cosine, sine, sine, twos + 2 * middle);
        for (int64_t r = 0; r < bins; r += lanes) {
            const int32_t* const at = twos + 2 * r;
            const i32v same = load_stride2(at), apart = load_stride2(at - 1) + load_stride2(at + 1);
            store(votes + r, load(votes + r) + same + same + apart);
        }
        int32_t* const to = y.as<int32_t>() + k * y.stride[0];
        if (y.stride[1] == 1)
            __builtin_memcpy(to, votes, static_cast<size_t>(4 * bins));
        else
            for (int64_t r = 0; r < bins; ++r) to[r * y.stride[1]] = votes[r];
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

extern const Entry op_hough_votes = {"hough_votes", kEdges, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
