// Conversions between any two element types, of values and of bits: cast, bitcast.
//
// Method    rows, strided ones through a small buffer. Of the numbers of 8 to 64 bits that are computed with, every pair but
//           those of uint32 and uint64 has a loop in a table, with 16-bit floats by way of float32. Everything else passes
//           through int64, where both sides are whole, or float64.
// Numerics  to floats rounds once, halves to even; from floats to integers truncates, saturates, and takes NaN to 0;
//           integers saturate; to bool everything but 0 is true. With saturate=False whole numbers keep their low bits, and
//           float8 overflows. What takes 8 bits or fewer: core/small.h.
// Threads   pieces of kChunkElements; elements are independent.
// Source    ONNX Cast-25.
#include "core/small.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

struct boolean {
    uint8_t byte;
};

template <class T>
constexpr bool kIsHalf = __is_same(T, f16) || __is_same(T, bf16);

template <class To, class From>
TW_INLINE To float_as_integer(From x) {
    constexpr int bits = 8 * static_cast<int>(sizeof(To));
    constexpr bool is_signed = static_cast<To>(-1) < 0;
    constexpr From bound = static_cast<From>(uint64_t{1} << (bits - 1)) * (is_signed ? 1 : 2);
    constexpr From low = is_signed ? -bound : 0;
    constexpr To least = is_signed ? static_cast<To>(uint64_t{1} << (bits - 1)) : 0, most = static_cast<To>(~least);
    typedef decltype(To{} + 0) Wide;
    const From inside = x > low && x < bound ? x : 0;  // NaN is not inside
    const To whole = static_cast<To>(static_cast<Wide>(inside));
    return x >= bound ? most : x <= low ? least : whole;
}

template <class To, class From>
TW_INLINE To integer_as_integer(From x) {
    constexpr int bits = 8 * static_cast<int>(sizeof(To));
    constexpr bool is_signed = static_cast<To>(-1) < 0;
    constexpr To least = is_signed ? static_cast<To>(uint64_t{1} << (bits - 1)) : 0, most = static_cast<To>(~least);
    typedef decltype(To{} + From{}) Wide;
    const Wide v = x;
    return static_cast<To>(v < Wide{least} ? Wide{least} : v > Wide{most} ? Wide{most} : v);
}

template <class To, class From>
TW_INLINE To number_as(From x) {
    if constexpr (__is_same(From, boolean)) {
        return number_as<To>(static_cast<uint8_t>(x.byte != 0));
    } else if constexpr (__is_same(To, boolean)) {
        return boolean{static_cast<uint8_t>(x != 0)};
    } else if constexpr (kIsFloating<To>) {
        return static_cast<To>(x);
    } else if constexpr (kIsFloating<From>) {
        return float_as_integer<To>(x);
    } else {
        return integer_as_integer<To>(x);
    }
}

// A double that rounds to any float of fewer digits as x does: beyond 2^53 the low bits only matter as being 0 or not.
TW_INLINE double sticky_double(double x) { return x; }
TW_INLINE double sticky_double(int32_t x) { return x; }
TW_INLINE double sticky_double(int64_t x) {
    const bool large = x >= int64_t{1} << 53 || x <= -(int64_t{1} << 53);
    return static_cast<double>(large ? (x >> 12 | ((x & 4095) != 0)) * 4096 : x);
}
TW_INLINE double sticky_double(uint64_t x) {
    return static_cast<double>(x >> 53 ? (x >> 12 | ((x & 4095) != 0)) * 4096 : x);
}

constexpr int64_t kBuffer = 512;

// ---- the table ------------------------------------------------------------------------------------------------------------

template <class To, class From>
void cast_part(To* to, const From* from, int64_t n);

// Rows from half floats, and to half floats from types wider than float, pass through a buffer of floats.
template <class To, class From>
void cast_buffered(To* to, const From* from, int64_t n) {
    alignas(64) float part[kBuffer];
    for (int64_t i = 0; i < n; i += kBuffer) {
        const int64_t m = min_of(kBuffer, n - i);
        if constexpr (__is_same(From, double) || __is_same(From, int32_t) || __is_same(From, int64_t)) {
            for (int64_t k = 0; k < m; ++k) part[k] = to_odd_float(sticky_double(from[i + k]));
        } else {
            cast_part(part, from + i, m);
        }
        cast_part(to + i, part, m);
    }
}

template <class To, class From>
void cast_part(To* to, const From* from, int64_t n) {
    constexpr bool narrow_from =
        kIsHalf<From> || __is_same(From, float) || (sizeof(From) == 1 && !__is_same(From, boolean));
    if constexpr ((kIsHalf<From> && (__is_same(To, float) || kIsHalf<To>)) || (kIsHalf<To> && narrow_from)) {
        int64_t i = 0;
        for (; i + kLanes<float> <= n; i += kLanes<float>) store_from(to + i, load_as<float>(from + i));
        if (i < n) store_from_n(to + i, load_as_n<float>(from + i, n - i), n - i);
    } else if constexpr (kIsHalf<From> || kIsHalf<To>) {
        cast_buffered(to, from, n);
    } else {
        for (int64_t i = 0; i < n; ++i) to[i] = number_as<To>(from[i]);
    }
}

typedef void Caster(void* to, const void* from, int64_t n);
template <class To, class From>
void cast_row(void* to, const void* from, int64_t n) {
    if constexpr (__is_same(To, From))
        __builtin_memcpy(to, from, static_cast<size_t>(n) * sizeof(To));
    else
        cast_part(static_cast<To*>(to), static_cast<const From*>(from), n);
}

constexpr int kInTable = 11;  // up to uint16
#define TW_ROW(To)                                                                               \
    {cast_row<To, float>,   cast_row<To, double>,  cast_row<To, f16>,     cast_row<To, bf16>,    \
     cast_row<To, int8_t>,  cast_row<To, uint8_t>, cast_row<To, int32_t>, cast_row<To, int64_t>, \
     cast_row<To, boolean>, cast_row<To, int16_t>, cast_row<To, uint16_t>}
constexpr Caster* kCasters[kInTable][kInTable] = {TW_ROW(float),   TW_ROW(double),  TW_ROW(f16),     TW_ROW(bf16),
                                                  TW_ROW(int8_t),  TW_ROW(uint8_t), TW_ROW(int32_t), TW_ROW(int64_t),
                                                  TW_ROW(boolean), TW_ROW(int16_t), TW_ROW(uint16_t)};
#undef TW_ROW

bool in_table(DType t) { return static_cast<int>(t) < kInTable; }
Caster* caster(DType to, DType from) { return kCasters[static_cast<int>(to)][static_cast<int>(from)]; }

// ---- everything else: at most kBuffer elements at a time ---------------------------------------------------------------

template <class From, class To, class F>
TW_INLINE void each_as(void* to, const void* from, int64_t n, const F& f) {
    for (int64_t i = 0; i < n; ++i) static_cast<To*>(to)[i] = f(static_cast<const From*>(from)[i]);
}

struct Casting {
    DType to, from;
    bool saturate;

    bool is_whole() const { return is_whole(to) && (is_whole(from) || (!saturate && is_small(to))); }
    bool wraps() const { return !saturate && to != DType::boolean && is_whole(); }
    bool by_table() const { return in_table(to) && in_table(from) && !wraps(); }

private:
    static bool is_whole(DType t) { return is_integer(t) || t == DType::boolean || is_small_integer(t); }
};

void read_whole(int64_t* to, const Casting& c, const void* from, int64_t n) {
    if (in_table(c.from)) return caster(DType::i64, c.from)(to, from, n);
    if (is_small(c.from)) {
        alignas(64) float part[kBuffer];
        decode_small(c.from, part, from, n);
        return cast_part(to, part, n);
    }
    if (c.from == DType::u32) return each_as<uint32_t, int64_t>(to, from, n, [](uint32_t x) { return x; });
    const uint64_t most = c.wraps() ? ~uint64_t{0} : ~uint64_t{0} >> 1;
    each_as<uint64_t, int64_t>(to, from, n, [=](uint64_t x) { return static_cast<int64_t>(x < most ? x : most); });
}

template <class T>
void keep_low_bits(void* to, const int64_t* from, int64_t n, int64_t mask) {
    each_as<int64_t, T>(to, from, n, [=](int64_t x) { return static_cast<T>(x & mask); });
}

void write_whole(const Casting& c, void* to, const int64_t* from, int64_t n) {
    if (c.wraps()) {
        const int64_t mask = is_small(c.to) ? (1 << bits_of_small(c.to)) - 1 : -1;
        switch (item_size(c.to)) {
            case 1: return keep_low_bits<uint8_t>(to, from, n, mask);
            case 2: return keep_low_bits<uint16_t>(to, from, n, mask);
            case 4: return keep_low_bits<uint32_t>(to, from, n, mask);
            default: return keep_low_bits<uint64_t>(to, from, n, mask);
        }
    }
    if (in_table(c.to)) return caster(c.to, DType::i64)(to, from, n);
    if (is_small(c.to)) {
        alignas(64) float part[kBuffer];
        cast_part(part, from, n);
        return encode_small(c.to, to, part, n, true);
    }
    if (c.to == DType::u64)
        return each_as<int64_t, uint64_t>(to, from, n, [](int64_t x) { return static_cast<uint64_t>(x > 0 ? x : 0); });
    each_as<int64_t, uint32_t>(to, from, n, [](int64_t x) { return integer_as_integer<uint32_t>(x); });
}

void read_real(double* to, const Casting& c, const void* from, int64_t n) {
    if (is_small(c.from)) {
        alignas(64) float part[kBuffer];
        decode_small(c.from, part, from, n);
        return cast_part(to, part, n);
    }
    if (c.from == DType::u32) return each_as<uint32_t, double>(to, from, n, [](uint32_t x) { return x; });
    if (c.from == DType::u64 && c.to == DType::f64)
        return each_as<uint64_t, double>(to, from, n, [](uint64_t x) { return static_cast<double>(x); });
    if (c.from == DType::u64)
        return each_as<uint64_t, double>(to, from, n, [](uint64_t x) { return sticky_double(x); });
    if (c.from == DType::i64) return each_as<int64_t, double>(to, from, n, [](int64_t x) { return sticky_double(x); });
    caster(DType::f64, c.from)(to, from, n);
}

void write_real(const Casting& c, void* to, const double* from, int64_t n) {
    if (is_small(c.to)) {
        alignas(64) float part[kBuffer];
        each_as<double, float>(part, from, n, [](double x) { return to_odd_float(x); });
        return encode_small(c.to, to, part, n, c.saturate);
    }
    if (c.to == DType::u32)
        return each_as<double, uint32_t>(to, from, n, [](double x) { return float_as_integer<uint32_t>(x); });
    if (c.to == DType::u64)
        return each_as<double, uint64_t>(to, from, n, [](double x) { return float_as_integer<uint64_t>(x); });
    caster(c.to, DType::f64)(to, from, n);
}

void cast_block(const Casting& c, void* to, const void* from, int64_t n) {
    if (c.is_whole()) {
        alignas(64) int64_t whole[kBuffer];
        read_whole(whole, c, from, n);
        write_whole(c, to, whole, n);
    } else {
        alignas(64) double real[kBuffer];
        read_real(real, c, from, n);
        write_real(c, to, real, n);
    }
}

void cast_elements(const Casting& c, char* to, const char* from, int64_t n) {
    if (c.by_table()) return caster(c.to, c.from)(to, from, n);
    for (int64_t i = 0; i < n; i += kBuffer)
        cast_block(c, to + i * item_size(c.to), from + i * item_size(c.from), min_of(kBuffer, n - i));
}

// ---- the ops --------------------------------------------------------------------------------------------------------------

Status infer_cast(Call& c, Inferred& r) {
    r.n_out = 1;
    r.out[0] = result(static_cast<DType>(c.attr[0].choice), c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}

Status infer_bitcast(Call& c, Inferred& r) {
    TW_TRY(infer_cast(c, r));
    const DType to = r.out[0].dtype, from = c.in[0].dtype;
    if (item_size(to) == item_size(from)) return Status::ok;
    return fail(Status::attr, "dtype", "dtype=%s has %lld bytes but x, of %s, has %lld; want as many", name_of(to),
                static_cast<long long>(item_size(to)), name_of(from), static_cast<long long>(item_size(from)));
}

Status run_bitcast(const Call& c) {
    const View* views[] = {&c.out[0], &c.in[0]};
    const Walk w = walk_over(views, 2, c.out[0].ndim, c.out[0].shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        copy_items(at[0], w.stride[0], at[1], w.stride[1], w.size[0], count);
    });
    return Status::ok;
}

Status run_cast(const Call& c) {
    if (c.out[0].dtype == c.in[0].dtype) return run_bitcast(c);
    const View &y = c.out[0], &x = c.in[0];
    const Casting casting = {y.dtype, x.dtype, c.attr[1].i != 0};
    const View* views[] = {&y, &x};
    const Walk w = walk_over(views, 2, y.ndim, y.shape);
    const int64_t sy = w.stride[0], sx = w.stride[1];
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        if (sy == 1 && sx == 1) return cast_elements(casting, at[0], at[1], count);
        alignas(64) char from[kBuffer * 8], to[kBuffer * 8];
        for (int64_t i = 0; i < count; i += kBuffer) {
            const int64_t n = min_of(kBuffer, count - i);
            copy_items(from, 1, at[1] + i * sx * w.size[1], sx, w.size[1], n);
            cast_elements(casting, to, from, n);
            copy_items(at[0] + i * sy * w.size[0], sy, to, 1, w.size[0], n);
        }
    });
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr AttrSpec kDType[] = {{.name = "dtype", .kind = AttrKind::dtype, .required = true}};
constexpr AttrSpec kCast[] = {
    {.name = "dtype", .kind = AttrKind::dtype, .required = true},
    {.name = "saturate", .kind = AttrKind::boolean, .i = 1},
};

}  // namespace

extern const Entry op_cast = {"cast", kX, 1, kCast, 2, infer_cast, run_cast};
extern const Entry op_bitcast = {"bitcast", kX, 1, kDType, 1, infer_bitcast, run_bitcast};

}  // namespace tw::TW_ISA
