// How far each pixel of a mask is from the nearest zero, exactly.
//
//     y[i, j] = sqrt(min over zeros (u, v) of (i - u)^2 + (j - v)^2)
//
// Method    down the columns first: the distance g to the nearest zero above or below, whole vectors of columns. Then
//           along the rows: the least of g[v]^2 + (j - v)^2. Vectors of pixels look at neighbours ever farther away until
//           none can be nearer; a row with a pixel farther than kNear takes the lower envelope of its parabolas instead.
// Numerics  exact integers; the root is rounded once. Infinity where there is no zero.
// Threads   strips of columns, then rows. Same bits always.
// Source    P. Felzenszwalb and D. Huttenlocher, "Distance transforms of sampled functions", 2012, for the envelope.
#include "image/check.h"
#include "image/window.h"
#include "ops/ops.h"
#include "simd/bits.h"
#include "simd/roots.h"

namespace tw::TW_ISA {
namespace {

typedef Vec<uint16_t> Far;

constexpr int64_t kMostPixels = 32767;  // along an axis, so that squares of distances fit 32 bits
constexpr int64_t kStrip = 256;
constexpr int kNone = 65535;  // no zero in this column
constexpr int kNear = 255;  // squares of which fit 16 bits

// Distances in columns x to x + n of a strip, one row further from the row before.
TW_INLINE void step_down(const uint8_t* mask, const uint16_t* before, uint16_t* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const int further = before[i] == kNone ? kNone : before[i] + 1;
        to[i] = static_cast<uint16_t>(mask[i] ? further : 0);
    }
}
TW_INLINE void step_up(const uint16_t* before, uint16_t* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const int further = before[i] == kNone ? kNone : before[i] + 1;
        to[i] = static_cast<uint16_t>(further < to[i] ? further : to[i]);
    }
}

void columns(const View& mask, uint16_t* far, int64_t pitch, int64_t x, int64_t n) {
    const int64_t height = mask.shape[0];
    uint16_t none[kStrip];
    uint8_t copy[kStrip];
    for (int64_t i = 0; i < n; ++i) none[i] = kNone;
    const uint16_t* before = none;
    for (int64_t y = 0; y < height; ++y) {
        const uint8_t* row = mask.as<uint8_t>() + y * mask.stride[0] + x * mask.stride[1];
        if (mask.stride[1] != 1) {
            for (int64_t i = 0; i < n; ++i) copy[i] = row[i * mask.stride[1]];
            row = copy;
        }
        step_down(row, before, far + y * pitch + x, n);
        before = far + y * pitch + x;
    }
    for (int64_t y = height - 2; y >= 0; --y) step_up(far + (y + 1) * pitch + x, far + y * pitch + x, n);
}

constexpr int kGroup = 16;  // steps that are taken at once where they may find a nearer zero
constexpr int kBeyond = 65535 - kGroup * kGroup;  // in place of squares of distances beyond kNear

void square(const uint16_t* far, uint16_t* squares, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t d = far[i];
        squares[i] = static_cast<uint16_t>(d <= kNear ? d * d : kBeyond);
    }
}

// A row of squares and, once asked for, the least ones of three groups of columns from each group on.
struct Squares {
    uint16_t *at, *least;  // both begin kNear + 1 columns before the row
    int64_t groups;
    bool known;
};

void find_least(Squares& s) {
    typedef VecOf<uint16_t, kGroup> Group;
    for (int64_t k = 0; k < s.groups; ++k)
        s.least[k] =
            reduce_min(typename Group::type(*reinterpret_cast<const typename Group::loose*>(s.at + k * kGroup)));
    for (int64_t k = 0; k + 2 < s.groups; ++k) {
        const uint16_t two = s.least[k] < s.least[k + 1] ? s.least[k] : s.least[k + 1];
        s.least[k] = two < s.least[k + 2] ? two : s.least[k + 2];
    }
    s.known = true;
}

TW_INLINE Far step_both(const uint16_t* squares, int step) {
    return min_any(load(squares - step), load(squares + step));
}

// Goes on behind the first group of steps: a group is left out where not even its least square, at its first step, is
// less than what is known already.
Far search_far(Squares& s, int64_t x, Far best) {
    if (!s.known) find_least(s);
    const uint16_t *const squares = s.at + kNear + 1 + x, *const least = s.least + (kNear + 1 + x) / kGroup;
    int most = reduce_max(best);
    for (int k = 1; k <= kNear / kGroup; ++k) {
        const int first = k * kGroup + 1, left = least[-k - 1], right = least[k];
        if (first * first >= most) break;
        if (min_of(left, right) + first * first >= most) continue;
        for (int step = first; step <= min_of(first + kGroup - 1, kNear); ++step)
            best = min_any(best, add_saturating(step_both(squares, step), splat(static_cast<uint16_t>(step * step))));
        most = reduce_max(best);
    }
    return best;
}

// Distances of a row, or false where one is farther than kNear.
bool near_row(Squares& s, float* to, int64_t n) {
    constexpr int64_t lanes = kLanes<uint16_t>, half = kLanes<int32_t>;
    for (int64_t x = 0; x < n; x += lanes) {
        const uint16_t* const squares = s.at + kNear + 1 + x;
        Far best = load(squares);
        int step = 1;
        for (; step <= kGroup; ++step) {
            const Far reach = splat(static_cast<uint16_t>(step * step));
            if (!any_above(best, reach)) break;
            best = min_any(best, step_both(squares, step) + reach);
        }
        if (step > kGroup) {
            best = search_far(s, x, best);
            if (any_above(best, splat(static_cast<uint16_t>(kNear * kNear)))) return false;
        }
        uint16_t found[lanes];
        store(found, best);
        const int64_t count = min_of(n - x, lanes);
        store_n(to + x, sqrt(to_f32(load_wide(found))), min_of(count, half));
        if (count > half) store_n(to + x + half, sqrt(to_f32(load_wide(found + half))), count - half);
    }
    return true;
}

// Of parabola k: its column, and the height at column 0 of what remains without x^2.
struct Parabola {
    int64_t at, height;
};

void any_row(const uint16_t* far, Parabola* p, float* to, int64_t n) {
    int64_t count = 0;
    for (int64_t x = 0; x < n; ++x) {
        if (far[x] == kNone) continue;
        const Parabola next = {x, int64_t{far[x]} * far[x] + x * x};
        // The last one is nowhere lowest if the next one passes below it before it passes below the one before it.
        while (count >= 2) {
            const Parabola &a = p[count - 2], &b = p[count - 1];
            if ((b.height - a.height) * (next.at - b.at) < (next.height - b.height) * (b.at - a.at)) break;
            --count;
        }
        p[count++] = next;
    }
    for (int64_t x = 0, k = 0; x < n; ++x) {
        if (count == 0) {
            to[x] = __builtin_inff();
            continue;
        }
        const auto low = [&](int64_t i) { return p[i].height - 2 * x * p[i].at; };
        while (k + 1 < count && low(k + 1) <= low(k)) ++k;
        to[x] = static_cast<float>(__builtin_sqrt(static_cast<double>(low(k) + x * x)));
    }
}

Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const View &mask = c.in[0], &y = c.out[0];
    const int64_t height = mask.shape[0], n = mask.shape[1], pitch = (n + 31) / 32 * 32;
    Scratch scratch(static_cast<size_t>(height * pitch * 2));
    uint16_t* const far = scratch.as<uint16_t>();
    if (!far)
        return fail(Status::memory, "mask", "no memory for %lld x %lld distances; want a smaller picture",
                    static_cast<long long>(height), static_cast<long long>(n));
    parallel(ceil_div(n, kStrip),
             [&](int64_t strip) { columns(mask, far, pitch, strip * kStrip, min_of(kStrip, n - strip * kStrip)); });
    const int64_t rows = max_of(1, kChunkElements / n), wide = ceil_div(n, kVecBytes) * kVecBytes + 2 * (kNear + 1);
    bool enough = true;
    parallel(ceil_div(height, rows), [&](int64_t band) {
        Scratch own(
            static_cast<size_t>(n * static_cast<int64_t>(sizeof(Parabola)) + n * 4 + wide * 2 + wide / kGroup * 2));
        Parabola* const parabolas = own.as<Parabola>();
        if (!parabolas) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        float* const row = reinterpret_cast<float*>(parabolas + n);
        uint16_t* const padded = reinterpret_cast<uint16_t*>(row + n);
        for (int64_t x = 0; x < wide; ++x) padded[x] = kBeyond;
        for (int64_t i = band * rows; i < min_of((band + 1) * rows, height); ++i) {
            float* const to = begin_row(y, i, row);
            square(far + i * pitch, padded + kNear + 1, n);
            Squares squares = {padded, padded + wide, wide / kGroup, false};
            if (!near_row(squares, to, n)) any_row(far + i * pitch, parabolas, to, n);
            end_row(y, i, to);
        }
    });
    return enough ? Status::ok
                  : fail(Status::memory, "mask", "no memory for a row of %lld; want a smaller picture",
                         static_cast<long long>(n));
}

Status infer(Call& c, Inferred& r) {
    const View& mask = c.in[0];
    TW_TRY(want_plane(mask, "mask"));
    if (max_of(mask.shape[0], mask.shape[1]) > kMostPixels)
        return fail(Status::shape, "mask", "mask has shape %s; want at most %lld rows and columns",
                    shape_text(mask).text, static_cast<long long>(kMostPixels));
    r.n_out = 1;
    r.out[0] = result(DType::f32, 2, mask.shape);
    r.flops = 20.0 * static_cast<double>(numel(mask));
    return Status::ok;
}

constexpr Operand kMask[] = {{"mask"}};

}  // namespace

extern const Entry op_distance_transform = {"distance_transform", kMask, 1, nullptr, 0, infer, run};

}  // namespace tw::TW_ISA
