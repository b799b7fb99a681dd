// dw[k,c,t] = sum_{n,p} dy[n,k,p] x[n,c, p*stride + t*dilation - padding] on tiles, floats in three pieces; what a tier with
// tiles lends ops/conv_dw.cc.
//
// Method    x is split once, into planes (gemm/planes.h) whose rows tiles read in place, each tap from its own offset: rows of
//           A are channels, its terms pixels. B is dy, split in panels of 32 filters, with zeros where there are no pixels.
//           Images are taken together as far as their pieces stay in caches; sums stay in L2 while pixels pass.
// Numerics  gemm/pieces.h; one running sum over images and pixels. All is refused if any exponent does not fit.
// Threads   parts of the result; sums are never split between threads.
#include "gemm/gradient_pieces.h"

#if defined(TW_TILES)
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/split.h"
#include "gemm/tiled_pieces.h"

namespace tw::TW_ISA {
namespace {

constexpr int kP = kPieces<float>;
constexpr int64_t L = kLanes<float>, kStepBytes = kP * kPieceBytes;
constexpr int64_t kImageBytes = 1 << 20, kMostImageBytes = 6 << 20;  // of pieces of images that are taken together
constexpr int64_t kShares = 2;  // of a thread, at least
constexpr int64_t kPassingSteps = 32;  // of A and B that stay in L2 while taps pass
constexpr int64_t kFillElements = 1 << 15;  // of planes filled by one job
constexpr int64_t kFillTerms = 512;  // of dy laid out at a time

template <int Odd, class V, int... I>
TW_INLINE V every_other(V a, V b, Seq<I...>) {
    return shuffle<(2 * I + Odd)...>(a, b);
}

struct Engine {
    const DwInPieces& job;
    const ConvAxes& s;
    int64_t c_tiles, panels, taps, t_step, t_jobs;
    Planes planes;  // of as many images as are taken together
    int64_t together;
    char *left = nullptr, *right = nullptr;
    ExponentRange of_x, of_dy;

    explicit Engine(const DwInPieces& given) : job(given), s(given.axes), planes(given.axes, 1) {
        c_tiles = ceil_div(job.cg, kTallRows), panels = ceil_div(job.kg, kPanelColumns), taps = taps_of(s);
        const int64_t bytes = 2 * kP * (planes.size * job.cg + planes.image * job.kg) * job.groups;
        // Sums are met again by each group of images.
        const int64_t sums = 4 * job.groups * job.kg * job.cg * taps;
        together = min_of(job.images, max_of(1, max_of(kImageBytes, min_of(2 * sums, kMostImageBytes)) / bytes));
        planes = Planes(s, together);
        // Jobs pass over all pixels: as few as occupy all threads.
        const int64_t want = num_threads() > 1 ? kShares * num_threads() : 1;
        t_step = ceil_div(taps, min_of(taps, ceil_div(want, job.groups * panels * c_tiles)));
        t_jobs = ceil_div(taps, t_step);
    }

    int64_t a_row() const { return kP * planes.size * 2; }
    int64_t jobs() const { return job.groups * panels * c_tiles * t_jobs; }

    // Channels of x: [channel][piece][plane].
    bool split_x(const Planes& p, int64_t image, int64_t images) {
        const int64_t channels = job.groups * job.cg, each = min_of(8, max_of(1, kFillElements / p.size));
        bool enough = true;
        parallel(ceil_div(channels, each), [&](int64_t chunk) {
            Scratch scratch(static_cast<size_t>(p.size) * sizeof(float));
            float* const plane = scratch.as<float>();
            if (!plane) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            __builtin_memset(plane, 0, static_cast<size_t>(p.size) * sizeof(float));
            Exponents seen;
            for (int64_t c = chunk * each; c < min_of(chunk * each + each, channels); ++c) {
                p.fill(s, job.x + image * job.x_image + c * job.x_channel, images, job.x_image, plane);
                char* const to = left + c * a_row();
                for (int64_t i = 0; i < p.size; i += 2 * L) {
                    const f32v a = load(plane + i), b = load(plane + i + L);
                    u32v words[kP];
                    split_pairs(every_other<0>(a, b, Indices<f32v>{}), every_other<1>(a, b, Indices<f32v>{}), words,
                                seen);
                    for (int k = 0; k < kP; ++k)
                        store(reinterpret_cast<uint32_t*>(to + (k * planes.size + i) * 2), words[k]);
                }
            }
            join_shared(of_x, seen.range());
        });
        return enough;
    }

    // Terms [q0, q1) of one filter: its pixels, and zeros between them.
    void lay_row(const Planes& p, const float* dy, int64_t q0, int64_t q1, int64_t images, float* to) const {
        int64_t i = q0 / p.image, d = q0 % p.image / p.pitch[0], h = q0 % p.pitch[0] / p.pitch[1];
        for (int64_t q = q0; q < q1; ++h) {
            if (h * p.pitch[1] >= p.pitch[0]) h = 0, ++d;
            if (d * p.pitch[0] >= p.image) d = 0, ++i;
            const int64_t row = i * p.image + d * p.pitch[0] + h * p.pitch[1], end = min_of(row + p.pitch[1], q1);
            const bool there = i < images && d < s.out[0] && h < s.out[1];
            const int64_t last = there ? min_of(row + s.out[2], q1) : q, n = last - q;
            if (n > 0)
                Planes::copy_row(
                    dy + i * job.dy_image + d * s.y_stride[0] + h * s.y_stride[1] + (q - row) * s.y_stride[2],
                    s.y_stride[2], n, to + q - q0);
            for (q = max_of(q, last); q < end; ++q) to[q - q0] = 0;
        }
    }

    // Panels of dy: [group][panel][step][piece][16 pairs of pixels][32 filters].
    bool split_dy(const Planes& p, int64_t image, int64_t images) {
        const int64_t chunks = ceil_div(p.steps() * kPieceTerms, kFillTerms), steps = planes.steps();
        bool enough = true;
        parallel(job.groups * panels * chunks, [&](int64_t i) {
            const int64_t panel = i / chunks, group = panel / panels, k0 = panel % panels * kPanelColumns;
            const int64_t q0 = i % chunks * kFillTerms, q1 = min_of(q0 + kFillTerms, p.steps() * kPieceTerms);
            const int64_t filters = min_of(kPanelColumns, job.kg - k0);
            constexpr int64_t row = kFillTerms + L;
            Scratch scratch(static_cast<size_t>(kPanelColumns * row) * sizeof(float));
            float* const rows = scratch.as<float>();
            if (!rows) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            const float* const from = job.dy + image * job.dy_image + (group * job.kg + k0) * job.dy_channel;
            for (int64_t k = 0; k < filters; ++k) lay_row(p, from + k * job.dy_channel, q0, q1, images, rows + k * row);
            Exponents seen;
            char* to = right + (panel * steps + q0 / kPieceTerms) * kStepBytes;
            for (int64_t q = q0; q < q1; q += kPieceTerms, to += kStepBytes) {
                alignas(kVecBytes) float block[kPieceTerms * kPanelColumns];
                take_block<kPieceTerms, kPanelColumns>(rows + q - q0, 1, row, kPieceTerms, filters, block);
                for (int64_t r = 0; r < kTileRows; ++r)
                    for (int64_t j = 0; j < kPanelColumns; j += L) {
                        u32v words[kP];
                        f32v x = load(block + 2 * r * kPanelColumns + j),
                             y = load(block + (2 * r + 1) * kPanelColumns + j);
                        split_pairs(x, y, words, seen);
                        for (int k = 0; k < kP; ++k)
                            store(reinterpret_cast<uint32_t*>(to + k * kPieceBytes) + r * kPanelColumns + j, words[k]);
                    }
            }
            join_shared(of_dy, seen.range());
        });
        return enough;
    }

    void multiply(const Planes& p, const Share& q, float* sums, bool first) const {
        const int64_t steps = p.steps(), panel = q.group * panels + q.panel;
        const char* const a = left + (q.group * job.cg + q.c0) * a_row();
        const char* const b = right + panel * planes.steps() * kStepBytes;
        PieceBlock t{};
        t.a_row = a_row(), t.a_piece = planes.size * 2, t.a_step = kTileBytes;
        t.c_row = (q.t1 - q.t0) * kPanelColumns;
        const auto a_at = [&](int64_t s0, int64_t tap) { return a + (p.offset(s, tap) + s0 * kPieceTerms) * 2; };
        tiles_begin();
        for (int64_t s0 = 0; s0 < steps; s0 += kPassingSteps) {
            t.steps = min_of(kPassingSteps, steps - s0), t.load_c = !first || s0 > 0;
            t.b = t.next_b = b + s0 * kStepBytes;
            for (int64_t tap = q.t0; tap < q.t1; ++tap) {
                t.a = a_at(s0, tap), t.c = sums + (tap - q.t0) * kPanelColumns;
                const bool last = tap + 1 == q.t1;
                const int64_t next = last ? s0 + t.steps : s0;
                t.next_a = next < steps ? a_at(next, last ? q.t0 : tap + 1) : t.a;
                if (last && next < steps) t.next_b = b + next * kStepBytes;
                multiply_floats(t, q.c1 - q.c0);
            }
        }
        tiles_end();
    }

    InPiecesResult run() {
        note_kernel("conv_dw in pieces");
        const int64_t channels = job.groups * job.cg, kept = kTallRows * t_step * kPanelColumns;
        const bool once = together == job.images;
        Scratch left_scratch(static_cast<size_t>((channels + kTallRows) * a_row())),
            right_scratch(static_cast<size_t>(job.groups * panels * planes.steps() * kStepBytes)),
            sum_scratch(once ? 64 : static_cast<size_t>(jobs() * kept) * sizeof(float));
        left = left_scratch.as<char>(), right = right_scratch.as<char>();
        if (!left || !right || !sum_scratch.as<float>()) return InPiecesResult::no_memory;
        bool enough = true;
        for (int64_t image = 0; image < job.images; image += together) {
            const int64_t images = min_of(together, job.images - image);
            const bool last = image + images == job.images;
            const Planes p(s, images);
            if (!split_x(p, image, images) || !split_dy(p, image, images)) return InPiecesResult::no_memory;
            if (!ranges_fit(of_x, of_dy, p.steps() * kPieceTerms * job.images)) return InPiecesResult::refused;
            parallel(jobs(), [&](int64_t i) {
                Share q;
                q.t0 = i % t_jobs * t_step, q.t1 = min_of(q.t0 + t_step, taps);
                q.c0 = i / t_jobs % c_tiles * kTallRows, q.c1 = min_of(q.c0 + kTallRows, job.cg);
                q.panel = i / t_jobs / c_tiles % panels, q.group = i / t_jobs / c_tiles / panels;
                Scratch own(once ? static_cast<size_t>(kept) * sizeof(float) : 64);
                if (!own.as<float>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
                float* const sums = once ? own.as<float>() : sum_scratch.as<float>() + i * kept;
                multiply(p, q, sums, image == 0);
                if (last) job.write(job.context, q, sums);
            });
        }
        return enough ? InPiecesResult::done : InPiecesResult::no_memory;
    }
};

}  // namespace

int dw_in_pieces(const void* job) { return static_cast<int>(Engine(*static_cast<const DwInPieces*>(job)).run()); }

}  // namespace tw::TW_ISA
#endif
