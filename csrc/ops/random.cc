// Random numbers from words of philox4x32-10, counter (k, offset) and key seed, four words a counter.
//
//   random_uniform   y = low + (high - low) u
//   random_normal    y = mean + std sqrt(-2 ln(1 - u)) cos(2 pi v), and sin(2 pi v), for elements 2 k and 2 k + 1
//   bernoulli        y = 1 where word < p 2^32, else 0
//
// u and v are the words' upper bits, as many as the element type has digits; those of float64 take two words.
//
// Method    draws first, from 16 counters at a time, then one pass that rounds and stores them; in float32 and float64
//           one pass where the result is contiguous. Angles are reduced to an eighth of a turn exactly.
// Numerics  the words are the same on every device, tier and number of threads; uniform is rounded twice, normal within
//           6 ULP. bernoulli is exact.
// Threads   draws and rows in pieces of fixed size.
// Source    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011; Box and Muller, 1958.
#include "core/check.h"
#include "core/walk.h"
#include "ops/ops.h"
#include "simd/math.h"
#include "simd/philox.h"
#include "simd/roots.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

constexpr int kWords = 4 * kCounters;
constexpr int64_t kPiece = 1 << 12;  // draws

template <class W>
constexpr int kUnits = kWords * 4 / static_cast<int>(sizeof(W));  // that the words of one philox make

// Digits of the numbers in [0, 1) that an element type gets.
template <class T>
constexpr int kDigits = __is_same(T, bf16)  ? 8
                        : __is_same(T, f16) ? 11
                                            : 24;

template <class W>
TW_INLINE void units(W* u, const uint32_t* words, int digits) {
    const float unit = 1 / static_cast<float>(1 << digits);
    for (int i = 0; i < kUnits<W>; ++i)
        if constexpr (sizeof(W) == 4)
            u[i] = static_cast<float>(static_cast<int32_t>(words[i] >> (32 - digits))) * unit;
        else
            u[i] = (static_cast<double>(words[2 * i] >> 5) * 0x1p26 + static_cast<double>(words[2 * i + 1] >> 6)) *
                   0x1p-53;
}

// cos and sin of half a turn times t, |t| <= 1/4: the series, in t pi.
TW_INLINE void cos_sin(f32v t, f32v& c, f32v& s) {
    const f32v x = t * 3.14159265f, q = x * x;
    s = x + x * q * poly(q, -1.f / 6, 1.f / 120, -1.f / 5040, 1.f / 362880);
    c = poly(q, 1.f, -1.f / 2, 1.f / 24, -1.f / 720, 1.f / 40320, -1.f / 3628800);
}
TW_INLINE void cos_sin(f64v t, f64v& c, f64v& s) {
    const f64v x = t * 3.14159265358979323846;
    c = each_lane(x, [](double a) { return __builtin_cos(a); });
    s = each_lane(x, [](double a) { return __builtin_sin(a); });
}

// Pairs of numbers in [0, 1) become pairs of normal ones.
template <class W>
TW_INLINE void normal(W* u, W mean, W std) {
    constexpr int n = kUnits<W> / 2;
    const Vec<W> zero = {}, half = splat<W>(static_cast<W>(0.5));
    alignas(kVecBytes) W size[n], turn[n];
    for (int i = 0; i < n; ++i) size[i] = 1 - u[2 * i], turn[i] = u[2 * i + 1];
    for (int i = 0; i < n; i += kLanes<W>) {
        const Vec<W> v = load(turn + i) * 4;
        const Vec<W> quarter = select(
            v < half, zero,
            select(v < half + 1, zero + 1, select(v < half + 2, zero + 2, select(v < half + 3, zero + 3, zero + 4))));
        Vec<W> c, s;
        cos_sin((v - quarter) * half, c, s);
        const auto odd = quarter == 1 || quarter == 3;
        const Vec<W> cosine = select(odd, -s, c), sine = select(odd, c, s);
        const Vec<W> sign = select(quarter == 2 || quarter == 3, zero - 1, zero + 1);
        const Vec<W> radius = sign * sqrt(-2 * log(load(size + i)));
        store(size + i, mean + std * (radius * cosine));
        store(turn + i, mean + std * (radius * sine));
    }
    for (int i = 0; i < n; ++i) u[2 * i] = size[i], u[2 * i + 1] = turn[i];
}

enum { kSeed, kOffset };  // what follows the two numbers, or none

struct Key {
    uint64_t offset, seed;
};

Key key_of(const Call& c, int first) {
    return {static_cast<uint64_t>(c.attr[first + kOffset].i), static_cast<uint64_t>(c.attr[first + kSeed].i)};
}

// What turns the words of kCounters counters into draws.
template <class W>
struct Uniform {
    W low, size;
    int digits;
    __attribute__((always_inline)) void operator()(W* to, const uint32_t* words) const {
        units(to, words, digits);
        for (int i = 0; i < kUnits<W>; ++i) to[i] = low + size * to[i];
    }
};
template <class W>
struct Normal {
    W mean, std;
    __attribute__((always_inline)) void operator()(W* to, const uint32_t* words) const {
        units(to, words, 24);
        normal(to, mean, std);
    }
};
struct Words {
    __attribute__((always_inline)) void operator()(uint32_t* to, const uint32_t* words) const {
        __builtin_memcpy(to, words, kWords * 4);
    }
};

// draws[k] for k < n. Once for every type that W serves.
template <class W, class Make>
__attribute__((noinline)) void draw(W* draws, int64_t n, Key key, const Make& make) {
    constexpr int made = kUnits<W>;
    parallel(ceil_div(n, kPiece), [&](int64_t piece) {
        uint32_t words[kWords];
        alignas(kVecBytes) W ready[made];
        const int64_t last = min_of((piece + 1) * kPiece, n);
        for (int64_t k = piece * kPiece; k < last; k += made) {
            philox(words, static_cast<uint64_t>(k) * sizeof(W) / 16, key.offset, key.seed);
            make(ready, words);
            __builtin_memcpy(draws + k, ready, static_cast<size_t>(min_of(last - k, int64_t{made})) * sizeof(W));
        }
    });
}

Status no_memory(int64_t n) {
    return fail(Status::memory, "", "no memory for %lld draws; want fewer", static_cast<long long>(n));
}

template <class T>
void copy(const View& y, const View& wide) {
    typedef Wide<T> W;
    const View* views[] = {&y, &wide};
    const Walk w = walk_over(views, 2, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* const to = reinterpret_cast<T*>(at[0]);
        const W* const from = reinterpret_cast<const W*>(at[1]);
        each_vector<T>(count, [&](int64_t i, int64_t k) { put(to, w.stride[0], i, k, take(from, w.stride[1], i, k)); });
    });
}

// Draws of type W into y, through memory of our own where y lies otherwise or is narrower.
template <class T, class Make>
Status spread(const View& y, Key key, const Make& make) {
    typedef Wide<T> W;
    const int64_t n = numel(y);
    const bool in_place = !kIsNarrow<T> && is_contiguous(y);
    Scratch scratch(in_place ? 0 : static_cast<size_t>(n) * sizeof(W));
    if (n != 0 && !in_place && !scratch.as<void>()) return no_memory(n);
    View wide = result(sizeof(W) == 8 ? DType::f64 : DType::f32, y.ndim, y.shape);
    set_contiguous(wide);
    wide.data = in_place ? y.data : scratch.as<void>();
    draw(wide.as<W>(), n, key, make);
    if (!in_place) copy<T>(y, wide);
    return Status::ok;
}

Status run_uniform(const Call& c) {
    return for_floating(c.out[0].dtype, [&]<class T>() {
        typedef Wide<T> W;
        const W low = static_cast<W>(c.attr[0].f), size = static_cast<W>(c.attr[1].f - c.attr[0].f);
        return spread<T>(c.out[0], key_of(c, 3), Uniform<W>{low, size, kDigits<T>});
    });
}

Status run_normal(const Call& c) {
    return for_floating(c.out[0].dtype, [&]<class T>() {
        typedef Wide<T> W;
        return spread<T>(c.out[0], key_of(c, 3), Normal<W>{static_cast<W>(c.attr[0].f), static_cast<W>(c.attr[1].f)});
    });
}

template <class T>
Status bernoulli(const Call& c) {
    const View &p = c.in[0], &y = c.out[0];
    const int64_t n = numel(y);
    Scratch scratch(static_cast<size_t>(n) * 4);
    if (n != 0 && !scratch.as<void>()) return no_memory(n);
    View words = result(DType::i32, y.ndim, y.shape);
    set_contiguous(words);
    words.data = scratch.as<void>();
    draw(scratch.as<uint32_t>(), n, key_of(c, 0), Words{});
    const View* views[] = {&y, &p, &words};
    const Walk w = walk_over(views, 3, y.ndim, y.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* const to = reinterpret_cast<T*>(at[0]);
        const T* const chance = reinterpret_cast<const T*>(at[1]);
        const uint32_t* const word = reinterpret_cast<const uint32_t*>(at[2]);
        for (int64_t i = 0; i < count; ++i) {
            const double limit = static_cast<double>(widened(chance[i * w.stride[1]])) * 0x1p32;
            to[i * w.stride[0]] = narrowed<T>(static_cast<double>(word[i * w.stride[2]]) < limit ? 1 : 0);
        }
    });
    return Status::ok;
}

Status run_bernoulli(const Call& c) {
    return for_floating(c.in[0].dtype, [&]<class T>() { return bernoulli<T>(c); });
}

Status want_key(const Call& c, int first) {
    for (int k = first + kSeed; k <= first + kOffset; ++k)
        if (c.attr[k].i < 0)
            return fail(Status::attr, c.op->attrs[k].name, "%s=%lld; want 0 or more", c.op->attrs[k].name,
                        static_cast<long long>(c.attr[k].i));
    return Status::ok;
}

Status infer_alike(Call& c, Inferred& r) {
    const View& like = c.in[0];
    for (int k = 0; k < 2; ++k)
        if (!(c.attr[k].f - c.attr[k].f == 0))
            return fail(Status::attr, c.op->attrs[k].name, "%s=%g; want a number", c.op->attrs[k].name, c.attr[k].f);
    Attr& dtype = c.attr[2];
    if (dtype.is_none) {
        TW_TRY(want_floating(like, "like"));
        dtype.is_none = false;
        dtype.choice = static_cast<int>(like.dtype);
    }
    const View want = result(static_cast<DType>(dtype.choice), like.ndim, like.shape);
    if (want.dtype != DType::f32 && want.dtype != DType::f64 && want.dtype != DType::f16 && want.dtype != DType::bf16)
        return fail(Status::attr, "dtype", "dtype=%s; want float32, float64, float16 or bfloat16", name_of(want.dtype));
    TW_TRY(want_key(c, 3));
    r.n_out = 1;
    r.out[0] = want;
    r.flops = 40.0 * static_cast<double>(numel(want));
    return Status::ok;
}

Status infer_uniform(Call& c, Inferred& r) {
    if (!(c.attr[0].f <= c.attr[1].f))
        return fail(Status::attr, "high", "low=%g and high=%g; want low <= high", c.attr[0].f, c.attr[1].f);
    return infer_alike(c, r);
}

Status infer_normal(Call& c, Inferred& r) {
    if (!(c.attr[1].f >= 0)) return fail(Status::attr, "std", "std=%g; want 0 or more", c.attr[1].f);
    return infer_alike(c, r);
}

Status infer_bernoulli(Call& c, Inferred& r) {
    TW_TRY(want_floating(c.in[0], "p"));
    TW_TRY(want_key(c, 0));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    r.flops = 30.0 * static_cast<double>(numel(c.in[0]));
    return Status::ok;
}

constexpr Operand kLike[] = {{"like"}}, kP[] = {{"p"}};
constexpr AttrSpec kUniform[] = {
    {.name = "low", .kind = AttrKind::real},
    {.name = "high", .kind = AttrKind::real, .f = 1},
    {.name = "dtype", .kind = AttrKind::dtype, .none_ok = true},
    {.name = "seed", .kind = AttrKind::integer, .required = true},
    {.name = "offset", .kind = AttrKind::integer},
};
constexpr AttrSpec kNormal[] = {
    {.name = "mean", .kind = AttrKind::real},
    {.name = "std", .kind = AttrKind::real, .f = 1},
    {.name = "dtype", .kind = AttrKind::dtype, .none_ok = true},
    {.name = "seed", .kind = AttrKind::integer, .required = true},
    {.name = "offset", .kind = AttrKind::integer},
};
constexpr AttrSpec kDrawn[] = {
    {.name = "seed", .kind = AttrKind::integer, .required = true},
    {.name = "offset", .kind = AttrKind::integer},
};

}  // namespace

extern const Entry op_random_uniform = {"random_uniform", kLike, 1, kUniform, 5, infer_uniform, run_uniform};
extern const Entry op_random_normal = {"random_normal", kLike, 1, kNormal, 5, infer_normal, run_normal};
extern const Entry op_bernoulli = {"bernoulli", kP, 1, kDrawn, 2, infer_bernoulli, run_bernoulli, kElementwise};

}  // namespace tw::TW_ISA
