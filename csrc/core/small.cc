#include "core/small.h"

#include <limits>

namespace tw {
namespace {

// Bits of the mantissa, the exponent's bias, and codes: the sign bit, the largest number, what it overflows to, and NaN.
struct Format {
    int mantissa, bias;
    uint8_t sign, most, infinity, nan;
};

constexpr Format kE4M3 = {3, 7, 0x80, 0x7e, 0x7f, 0x7f}, kE4M3Z = {3, 8, 0x80, 0x7f, 0x80, 0x80},
                 kE5M2 = {2, 15, 0x80, 0x7b, 0x7c, 0x7e}, kE5M2Z = {2, 16, 0x80, 0x7f, 0x80, 0x80},
                 kE2M1 = {1, 1, 0x08, 0x07, 0x07, 0x08};

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

// ---- bytes to floats ------------------------------------------------------------------------------------------------------

struct Values {
    float of[256];
};

constexpr float power_of_two(int n) {
    float x = 1;
    for (; n > 0; --n) x *= 2;
    for (; n < 0; ++n) x *= 0.5f;
    return x;
}

constexpr float magnitude_of(const Format& f, int code) {
    if (code > f.most) return code == f.infinity && f.infinity < f.nan ? kInfinity : kNaN;
    const int exponent = code >> f.mantissa, digits = code & ((1 << f.mantissa) - 1);
    const int lead = exponent ? 1 << f.mantissa : 0;  // a subnormal number has the exponent of the smallest normal one
    return static_cast<float>(lead + digits) * power_of_two((exponent ? exponent : 1) - f.bias - f.mantissa);
}

constexpr Values floats_of(const Format& f) {
    Values v = {};
    const bool one_nan = f.nan == f.sign && f.sign == 0x80;  // and no -0
    for (int code = 0; code < 256; ++code) {
        const float x = magnitude_of(f, code & (f.sign - 1));
        v.of[code] = one_nan && code == f.nan ? kNaN : code & f.sign ? -x : x;
    }
    return v;
}

constexpr Values powers_of_two() {
    Values v = {};
    for (int code = 0; code < 255; ++code) v.of[code] = power_of_two(code - 127);
    v.of[255] = kNaN;
    return v;
}

constexpr Values integers_of(int bits, bool is_signed) {
    Values v = {};
    for (int code = 0; code < 256; ++code) {
        const int x = code & ((1 << bits) - 1);
        v.of[code] = static_cast<float>(is_signed && x >> (bits - 1) ? x - (1 << bits) : x);
    }
    return v;
}

// In the order of DType from f8e4m3 on.
constexpr Values kValues[kDTypes - kNumberTypes] = {
    floats_of(kE4M3), floats_of(kE4M3Z),    floats_of(kE5M2),      floats_of(kE5M2Z),    powers_of_two(),
    floats_of(kE2M1), integers_of(4, true), integers_of(4, false), integers_of(2, true), integers_of(2, false),
};

// ---- floats to bytes ------------------------------------------------------------------------------------------------------

inline uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }

template <const Format& f>
uint8_t code_of(float x, bool saturate) {
    constexpr bool one_nan = f.nan == f.sign && f.sign == 0x80;
    constexpr int shift = 23 - f.mantissa;
    // A number whose last place is the unit of the subnormal ones: in the sum the units are counted, and rounded.
    constexpr auto large = static_cast<uint32_t>(151 - f.bias - f.mantissa) << 23;
    const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
    const auto sign = static_cast<uint8_t>(bits_of(x) >> 31 ? f.sign : 0);
    const uint32_t units = bits_of(__builtin_bit_cast(float, magnitude) + __builtin_bit_cast(float, large)) - large;
    const uint32_t rounded = (magnitude + (1u << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift;
    const uint32_t normal = rounded - (static_cast<uint32_t>(127 - f.bias) << f.mantissa);
    uint32_t code = magnitude < static_cast<uint32_t>(128 - f.bias) << 23 ? units : normal;
    code = code > f.most ? (saturate ? f.most : f.infinity) : code;
    if (magnitude > 0x7f800000u) code = f.nan;
    const bool alone = (one_nan && (code == 0 || code == f.nan)) || (f.nan == f.sign && code == f.nan);
    return static_cast<uint8_t>(alone ? code : code | sign);
}

// The next power of two.
uint8_t power_code_of(float x, bool saturate) {
    const uint32_t bits = bits_of(x), exponent = bits >> 23 & 255, digits = bits & 0x7fffffu;
    if (exponent == 255 || (bits >> 31 && bits << 1)) return 255;
    const bool up = exponent == 0 ? digits > 0x400000u : digits != 0;  // 2^-127 is a subnormal float
    return static_cast<uint8_t>(exponent + (up && !(saturate && exponent == 254)));
}

template <int low, int high>
uint8_t integer_code_of(float x) {
    const float inside = x > low ? (x < high ? x : high) : x == x ? low : 0;
    return static_cast<uint8_t>(static_cast<int>(inside) & (high - low));
}

}  // namespace

void decode_small(DType dtype, float* to, const void* from, int64_t n) {
    const float* const values = kValues[static_cast<int>(dtype) - kNumberTypes].of;
    const auto* const codes = static_cast<const uint8_t*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = values[codes[i]];
}

void encode_small(DType dtype, void* to, const float* from, int64_t n, bool saturate) {
    auto* const y = static_cast<uint8_t*>(to);
    const auto each = [&](auto code) {
        for (int64_t i = 0; i < n; ++i) y[i] = code(from[i]);
    };
    switch (dtype) {
        case DType::f8e4m3: return each([=](float x) { return code_of<kE4M3>(x, saturate); });
        case DType::f8e4m3z: return each([=](float x) { return code_of<kE4M3Z>(x, saturate); });
        case DType::f8e5m2: return each([=](float x) { return code_of<kE5M2>(x, saturate); });
        case DType::f8e5m2z: return each([=](float x) { return code_of<kE5M2Z>(x, saturate); });
        case DType::f8e8m0: return each([=](float x) { return power_code_of(x, saturate); });
        case DType::f4e2m1: return each([=](float x) { return code_of<kE2M1>(x, saturate); });
        case DType::i4: return each(integer_code_of<-8, 7>);
        case DType::u4: return each(integer_code_of<0, 15>);
        case DType::i2: return each(integer_code_of<-2, 1>);
        case DType::u2: return each(integer_code_of<0, 3>);
        default: return;
    }
}

}  // namespace tw
