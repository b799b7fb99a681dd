// Convolutions out of planes, floats in three pieces on tiles; what a tier with tiles lends ops/conv_dx.cc.
//
// Method    x is split once, into planes (gemm/planes.h) of words of two channels each, which tiles read in place, each tap from
//           its own offset: columns of B are places, its terms channels. Weights that stay in L2 are split ahead; others by
//           the job that multiplies a tile of their rows, a few channels at a time. Images are taken together as far as
//           their pieces stay in caches.
// Numerics  gemm/pieces.h; one running sum over (c, t), 32 channels at a time. All is refused if any exponent does not fit.
// Threads   tiles of the result; sums are never split between threads.
#include "gemm/window_pieces.h"

#if defined(TW_TILES)
#include "core/memory.h"
#include "core/parallel.h"
#include "core/profile.h"
#include "gemm/micro.h"
#include "gemm/split.h"
#include "gemm/tiled_pieces.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int kP = kPieces<float>;
constexpr int64_t L = kLanes<float>, MR = kTallRows, NR = kPanelColumns, kStepBytes = kP * kPieceBytes;
constexpr int64_t kImageBytes = 1 << 20, kMostImageBytes = 6 << 20;  // of pieces of images that are taken together
constexpr int64_t kBlockBytes = 768 << 10;  // of pieces of x that stay in L2 while tiles of rows pass
constexpr int64_t kStayingBytes = 4 << 20;  // of weights in pieces
constexpr int64_t kChunkSteps = 40, kLeastPanels = 8,
                  kMostPanels = 48;  // of weights split at a time; of the sums of a tile of rows
constexpr int64_t kMostTurned = 32;  // taps of weights that are turned as a whole
constexpr int64_t kShares = 4;  // of a thread, at least

// n lanes to every second place; those between, which are of another phase, are written as they are.
TW_INLINE void put_every_other(float* to, f32v v, int64_t n) {
    const auto even = (iota<int32_t>() & 1) == 0;
    const int64_t places = 2 * n - 1, low = min_of(places, L), high = places - low;
    store_n(to, even ? zip_low(v, v) : load_n(to, low), low);
    if (high > 0) store_n(to + L, even ? zip_high(v, v) : load_n(to + L, high), high);
}

struct Windows {
    const WindowsInPieces& job;
    const ConvAxes& s;
    Planes planes;
    int64_t together, tiles, c_steps;
    char* right = nullptr;
    ExponentRange of_x, of_w;

    explicit Windows(const WindowsInPieces& given) : job(given), s(given.axes), planes(given.axes, 1) {
        tiles = ceil_div(job.kg, MR), c_steps = ceil_div(job.cg, kPieceTerms);
        // Weights are split again for each group of images.
        const int64_t weights = job.groups * tiles * c_steps * taps_of(s) * kStepBytes;
        const int64_t most = max_of(kImageBytes, min_of(weights, kMostImageBytes));
        together = min_of(job.images, max_of(1, most / (job.groups * c_steps * step_bytes())));
        planes = Planes(s, together);
    }
    int64_t piece_bytes() const { return planes.size * 4; }
    int64_t step_bytes() const { return kTileRows * kP * piece_bytes(); }  // of 32 channels

    // What is multiplied: some images of a phase. `left`: all weights of the phase, if they stay.
    struct Part {
        const WindowPhase& phase;
        Planes p;
        int64_t image, images;
        const char* left;
        const int64_t* at;  // where the steps of a panel lie

        int64_t panels() const {
            int64_t last = (images - 1) * p.image;
            for (int a = 0; a < 3; ++a) last += (phase.out[a] - 1) * p.pitch[a];
            return last / NR + 1;
        }
    };

    // Planes of x: [group][step of 32 channels][pair of channels][piece][words].
    bool split_x(int64_t image, int64_t images) {
        const Planes p(s, images);
        bool enough = true;
        parallel(job.groups * c_steps * kTileRows, [&](int64_t i) {
            const int64_t pair = i % kTileRows, step = i / kTileRows % c_steps, group = i / kTileRows / c_steps;
            Scratch scratch(static_cast<size_t>(2 * p.size) * sizeof(float));
            float* const plane = scratch.as<float>();
            if (!plane) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            __builtin_memset(plane, 0, static_cast<size_t>(2 * p.size) * sizeof(float));
            for (int half = 0; half < 2; ++half)
                if (const int64_t c = step * kPieceTerms + half * kTileRows + pair; c < job.cg)
                    p.fill(s, job.x + image * job.x_image + (group * job.cg + c) * job.x_channel, images, job.x_image,
                           plane + half * p.size);
            Exponents seen;
            char* const to = right + i * kP * piece_bytes();
            for (int64_t k = 0; k < p.size; k += L) {
                u32v words[kP];
                split_pairs(load(plane + k), load(plane + p.size + k), words, seen);
                for (int j = 0; j < kP; ++j) store(reinterpret_cast<uint32_t*>(to + j * piece_bytes()) + k, words[j]);
            }
            join_shared(of_x, seen.range());
        });
        return enough;
    }

    // Steps [c0, c1) of channels of a tile of rows, each with all taps of the phase.
    void split_w(const WindowPhase& phase, int64_t group, int64_t tile, int64_t c0, int64_t c1, char* to,
                 ExponentRange& range) const {
        const float* const from = job.w + group * job.w_group + tile * MR * job.w_row;
        const int64_t rows = min_of(MR, job.kg - tile * MR);
        for (int64_t c = c0; c < c1; ++c, to += phase.taps * kStepBytes) {
            const int64_t terms = min_of(kPieceTerms, job.cg - c * kPieceTerms);
            const float* const at = from + c * kPieceTerms * job.w_term;
            if (rows == MR && terms == kPieceTerms && job.w_row <= kMostTurned) {
                split_turned(phase, at, to, range);
                continue;
            }
            for (int64_t t = 0; t < phase.taps; ++t)
                split_floats_left(at + phase.tap[t], job.w_row, job.w_term, rows, terms, to + t * kStepBytes, range);
        }
    }

    // The same of a whole step whose rows lie close together, as those of a term do: w is read along them.
    void split_turned(const WindowPhase& phase, const float* from, char* to, ExponentRange& range) const {
        alignas(kVecBytes) float turned[MR * kMostTurned * kPieceTerms];
        const int64_t row = job.w_row;
        for (int64_t i = 0; i < MR * row; i += L)
            for (int64_t k = 0; k < kPieceTerms; k += L)
                transpose_tile(from + k * job.w_term + i, job.w_term, turned + i * kPieceTerms + k, kPieceTerms);
        Exponents seen;
        for (int64_t t = 0; t < phase.taps; ++t, to += kStepBytes)
            for (int64_t i = 0; i < MR; ++i) {
                const float* const at = turned + (i * row + phase.tap[t]) * kPieceTerms;
                u32v words[kP];
                f32v x = load(at), y = load(at + L);
                split_pairs(x, y, words, seen);
                for (int j = 0; j < kP; ++j)
                    store(reinterpret_cast<uint32_t*>(to + j * kPieceBytes + i * kTileBytes), words[j]);
            }
        join(range, seen.range());
    }

    // Runs of pixels of a panel: body(first lane, how many, image, place along each axis).
    template <class Body>
    __attribute__((always_inline)) static void each_run(const Part& part, int64_t panel, const Body& body) {
        const Planes& p = part.p;
        const int64_t* const out = part.phase.out;
        const int64_t q0 = panel * NR, q1 = q0 + NR;
        int64_t i = q0 / p.image, d = q0 % p.image / p.pitch[0], h = q0 % p.image % p.pitch[0] / p.pitch[1];
        for (int64_t q = q0; q < q1; ++h) {
            if (h * p.pitch[1] >= p.pitch[0]) h = 0, ++d;
            if (d * p.pitch[0] >= p.image) d = 0, ++i;
            const int64_t row = i * p.image + d * p.pitch[0] + h * p.pitch[1], w = q - row;
            const int64_t n = min_of(row + out[2], q1) - q;
            if (n > 0 && i < part.images && d < out[0] && h < out[1]) body(q - q0, n, i, d, h, w);
            q = min_of(row + p.pitch[1], q1);
        }
    }

    void finish(const Part& part, int64_t group, int64_t tile, int64_t panel, const float* sums) const {
        const int64_t m0 = group * job.kg + tile * MR, m = min_of(MR, job.kg - tile * MR), step = s.y_stride[2];
        const Activation activation = job.activation;
        each_run(part, panel, [&](int64_t lane, int64_t n, int64_t i, int64_t d, int64_t h, int64_t w) {
            float* y = part.phase.y + (part.image + i) * job.y_image + m0 * job.y_channel + d * s.y_stride[0] +
                       h * s.y_stride[1] + w * step;
            const int64_t* const far = job.residual_stride;
            const float* r = part.phase.residual;
            if (r)
                r += (part.image + i) * job.residual_image + m0 * job.residual_channel + d * far[0] + h * far[1] +
                     w * far[2];
            for (int64_t k = 0; k < m; ++k, y += job.y_channel) {
                const f32v bias = splat(job.bias ? job.bias[m0 + k] : 0.f);
                for (int64_t j = 0; j < n; j += L) {
                    const int64_t lanes = min_of(L, n - j);
                    f32v v = load_n(sums + k * NR + lane + j, lanes) + bias;
                    if (r) v += take<float>(r + k * job.residual_channel, far[2], j, lanes);
                    if (activation != Activation::none) v = activate(v, activation);
                    if (step == 2)
                        put_every_other(y + 2 * j, v, lanes);
                    else
                        put<float>(y, step, j, lanes, v);
                }
            }
        });
    }

    // Tile rows [t0, t1) of a group by panels [j0, j1).
    bool run_block(const Part& part, int64_t group, int64_t t0, int64_t t1, int64_t j0, int64_t j1) {
        const char* const left = part.left;
        const int64_t taps = part.phase.taps, steps = c_steps * taps;
        const int64_t most = left ? c_steps : max_of(1, kChunkSteps / taps);
        const int64_t kept = most < c_steps ? j1 - j0 : 1;
        Scratch scratch(static_cast<size_t>(kept * MR * NR * 4 + (left ? 0 : most * taps * kStepBytes)));
        float* const sums = scratch.as<float>();
        if (!sums) return false;
        char* const own = reinterpret_cast<char*>(sums + kept * MR * NR);
        const char* const b = right + group * c_steps * step_bytes();
        ExponentRange seen;
        PieceBlock t{};
        t.c_row = NR, t.b_row = kP * piece_bytes(), t.b_piece = piece_bytes();
        tiles_begin();
        for (int64_t tile = t0; tile < t1; ++tile)
            for (int64_t c0 = 0; c0 < c_steps; c0 += most) {
                const int64_t c1 = min_of(c0 + most, c_steps);
                if (!left) split_w(part.phase, group, tile, c0, c1, own, seen);
                t.steps = (c1 - c0) * taps, t.load_c = c0 > 0;
                t.a = t.next_a = left ? left + (group * tiles + tile) * steps * kStepBytes : own;
                t.b_at = part.at + c0 * taps;
                for (int64_t j = j0; j < j1; ++j) {
                    t.b = b + j * NR * 4, t.next_b = b + min_of(j + 1, j1 - 1) * NR * 4 + t.b_at[0];
                    t.c = sums + (kept > 1 ? j - j0 : 0) * MR * NR;
                    multiply_floats(t, job.kg - tile * MR);
                    if (c1 == c_steps) finish(part, group, tile, j, t.c);
                }
            }
        tiles_end();
        if (!left) join_shared(of_w, seen);
        return true;
    }

    InPiecesResult run_phase(const WindowPhase& phase, const char* left, int64_t image, int64_t images) {
        const int64_t taps = phase.taps, steps = c_steps * taps;
        Scratch at(static_cast<size_t>(steps) * sizeof(int64_t));
        if (!at.as<int64_t>()) return InPiecesResult::no_memory;
        const Part part = {phase, Planes(s, images), image, images, left, at.as<int64_t>()};
        for (int64_t i = 0; i < steps; ++i)
            at.as<int64_t>()[i] = i / taps * step_bytes() + part.p.offset(s, phase.place[i % taps]) * 4;
        if (left && !ranges_fit(of_x, of_w, job.cg * taps)) return InPiecesResult::refused;
        const int64_t panels = part.panels(), want = num_threads() == 1 ? 1 : kShares * num_threads();
        const int64_t tall = !left ? 1 : panels >= want ? tiles : ceil_div(tiles, ceil_div(want, panels));
        const int64_t down = ceil_div(tiles, tall);
        const int64_t fit = kBlockBytes / (c_steps * kStepBytes * 2);
        const int64_t wide =
            min_of(min_of(kMostPanels, max_of(fit, kLeastPanels)), ceil_div(panels, ceil_div(want, job.groups * down)));
        const int64_t across = ceil_div(panels, wide);
        bool enough = true;
        parallel(job.groups * down * across, [&](int64_t i) {
            const int64_t t0 = i / across % down * tall, j0 = i % across * wide;
            if (!run_block(part, i / across / down, t0, min_of(t0 + tall, tiles), j0, min_of(j0 + wide, panels)))
                __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        });
        if (!enough) return InPiecesResult::no_memory;
        return ranges_fit(of_x, of_w, job.cg * taps) ? InPiecesResult::done : InPiecesResult::refused;
    }

    // All phases of some images, with planes of their own.
    InPiecesResult run_images(int64_t image, const char* left) {
        const int64_t images = min_of(together, job.images - image);
        Scratch scratch(static_cast<size_t>(job.groups * c_steps * step_bytes()));
        right = scratch.as<char>();
        if (!right || !split_x(image, images)) return InPiecesResult::no_memory;
        for (int64_t i = 0; i < job.phases; ++i) {
            const auto result = run_phase(job.phase[i], left, image, images);
            if (result != InPiecesResult::done) return result;
            if (left) left += phase_bytes(i);
        }
        return InPiecesResult::done;
    }

    int64_t phase_bytes(int64_t i) const { return job.groups * tiles * c_steps * job.phase[i].taps * kStepBytes; }

    InPiecesResult run() {
        note_kernel("windows in pieces");
        int64_t bytes = 0;
        for (int64_t i = 0; i < job.phases; ++i) bytes += phase_bytes(i);
        const bool ahead = bytes <= kStayingBytes;
        Scratch left(ahead ? static_cast<size_t>(bytes) : 64);
        char* to = left.as<char>();
        if (!to) return InPiecesResult::no_memory;
        for (int64_t p = 0; p < job.phases && ahead; to += phase_bytes(p++))
            parallel(job.groups * tiles * c_steps, [&](int64_t i) {
                const int64_t c = i % c_steps, tile = i / c_steps % tiles;
                ExponentRange seen;
                split_w(job.phase[p], i / c_steps / tiles, tile, c, c + 1, to + i * job.phase[p].taps * kStepBytes,
                        seen);
                join_shared(of_w, seen);
            });
        // Images enough for all threads are left to one thread each, whose caches hold their planes.
        const int64_t turns = ceil_div(job.images, together);
        const bool alone = num_threads() > 1 && turns >= 2 * num_threads();
        int result = 0;
        const auto turn = [&](int64_t i) {
            Windows own = *this;
            const auto ended = own.run_images(i * together, ahead ? left.as<char>() : nullptr);
            if (ended != InPiecesResult::done) __atomic_store_n(&result, static_cast<int>(ended), __ATOMIC_RELAXED);
        };
        if (alone) parallel(turns, turn);
        for (int64_t i = 0; i < turns && !alone && result == 0; ++i) turn(i);
        return static_cast<InPiecesResult>(result);
    }
};

}  // namespace

int windows_in_pieces(const void* job) {
    return static_cast<int>(Windows(*static_cast<const WindowsInPieces*>(job)).run());
}

}  // namespace tw::TW_ISA
#endif
