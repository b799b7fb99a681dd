// Dropout: y = x / (1 - p) where a draw lets x pass, else 0. Draw k passes with probability 1 - p: word k mod 4 of
// philox4x32-10, counter (k / 4, offset) and key seed, is at least p 2^32. `shared` axes take one draw for all.
//
// Method    draws first, one byte each, then one pass over x. Sixteen counters at a time, a lane each.
// Numerics  exact draws: the same on every device, tier and number of threads; y is rounded twice.
// Threads   draws and rows in pieces of fixed size.
// Source    Srivastava et al., "Dropout", 2014; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/philox.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kDraws = 1 << 14;  // in a piece

enum { kP, kSeed, kOffset, kShared };

// passes[k] = 1 or 0 for every draw; the room is a multiple of what philox makes at once.
void draw(uint8_t* passes, int64_t n, double p, uint64_t offset, uint64_t seed) {
    const double scaled = p * 0x1p32;
    const uint64_t limit = static_cast<uint64_t>(scaled);  // words below it are dropped
    parallel(ceil_div(n, kDraws), [&](int64_t piece) {
        uint32_t words[4 * kCounters];
        const int64_t last = min_of((piece + 1) * kDraws, n);
        for (int64_t k = piece * kDraws; k < last; k += 4 * kCounters) {
            philox(words, static_cast<uint64_t>(k) / 4, offset, seed);
            for (int i = 0; i < 4 * kCounters; ++i) passes[k + i] = words[i] >= limit;
        }
    });
}

// A byte per lane as 0 or 1.
template <class W>
TW_INLINE Vec<W> take_passes(const uint8_t* p, int64_t stride, int64_t i, int64_t n) {
    if (stride == 0) return splat<W>(static_cast<W>(*p));
    if constexpr (__is_same(W, float)) {
        if (stride == 1) return n == kLanes<W> ? load_as<W>(p + i) : load_as_n<W>(p + i, n);
    }
    alignas(kVecBytes) W lane[kLanes<W>] = {};
    for (int64_t k = 0; k < n; ++k) lane[k] = static_cast<W>(p[(i + k) * stride]);
    return load(lane);
}

template <class T>
Status dropout(const Call& c) {
    typedef Wide<T> W;
    const View &x = c.in[0], &y = c.out[0];
    const double p = c.attr[kP].f;
    View mask = result(DType::u8, x.ndim, x.shape);
    for (int k = 0; k < c.attr[kShared].n; ++k) mask.shape[c.attr[kShared].list[k]] = 1;
    set_contiguous(mask);
    const int64_t n = numel(mask);
    if (numel(x) == 0) return Status::ok;
    Scratch scratch(static_cast<size_t>(ceil_div(n, 4 * kCounters) * 4 * kCounters));
    mask.data = scratch.as<void>();
    if (!mask.data)
        return fail(Status::memory, "", "no memory for %lld draws; want a smaller x", static_cast<long long>(n));
    draw(scratch.as<uint8_t>(), n, p, static_cast<uint64_t>(c.attr[kOffset].i), static_cast<uint64_t>(c.attr[kSeed].i));
    const Vec<W> scale = splat<W>(p < 1 ? static_cast<W>(1 / (1 - p)) : 0);
    const View* views[] = {&y, &x, &mask};
    const Walk w = walk_over(views, 3, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* const to = reinterpret_cast<T*>(at[0]);
        const T* const from = reinterpret_cast<const T*>(at[1]);
        const uint8_t* const passes = reinterpret_cast<const uint8_t*>(at[2]);
        each_vector<T>(count, [&](int64_t i, int64_t k) __attribute__((always_inline)) {
            const Vec<W> v = take(from, w.stride[1], i, k) * scale;
            put(to, w.stride[0], i, k, select(take_passes<W>(passes, w.stride[2], i, k) != 0, v, Vec<W>{}));
        });
    });
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_floating(x, "x"));
    if (!(c.attr[kP].f >= 0 && c.attr[kP].f <= 1))
        return fail(Status::attr, "p", "p=%g; want a probability, 0 to 1", c.attr[kP].f);
    for (int k = kSeed; k <= kOffset; ++k)
        if (c.attr[k].i < 0)
            return fail(Status::attr, c.op->attrs[k].name, "%s=%lld; want 0 or more", c.op->attrs[k].name,
                        static_cast<long long>(c.attr[k].i));
    if (c.attr[kShared].is_none) {
        c.attr[kShared].is_none = false;
        c.attr[kShared].n = 0;
    }
    TW_TRY(resolve_axes(c.attr[kShared], "shared", x.ndim));
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    r.flops = 30.0 * static_cast<double>(numel(x));
    return Status::ok;
}

Status run(const Call& c) {
    return for_floating(c.in[0].dtype, [&]<class T>() { return dropout<T>(c); });
}

constexpr Operand kX[] = {{"x"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "p", .kind = AttrKind::real, .f = 0.5},
    {.name = "seed", .kind = AttrKind::integer, .required = true},
    {.name = "offset", .kind = AttrKind::integer},
    {.name = "shared", .kind = AttrKind::axes, .none_ok = true},
};

}  // namespace

extern const Entry op_dropout = {"dropout", kX, 1, kAttrs, 4, infer, run, kElementwise};

}  // namespace tw::TW_ISA
