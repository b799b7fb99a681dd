#include "core/number.h"

#include <cmath>
#include <cstring>

#include "core/small.h"

namespace tw {
namespace {

// A 16-bit float with `digits` bits of mantissa, the leading one included, and 2^least as its smallest number.
uint16_t narrow_bits(double value, int digits, int least) {
    const int sign = std::signbit(value) ? 0x8000 : 0, infinity = 0x8000 - (1 << (digits - 1));
    if (std::isnan(value)) return static_cast<uint16_t>(sign | infinity | 1 << (digits - 2));
    const double magnitude = std::fabs(value);
    if (std::isinf(value)) return static_cast<uint16_t>(sign | infinity);
    if (magnitude == 0) return static_cast<uint16_t>(sign);
    int exponent;
    std::frexp(magnitude, &exponent);
    const int unit = exponent - digits > least ? exponent - digits : least;
    const double units = std::nearbyint(std::ldexp(magnitude, -unit));
    if (unit - least >= infinity >> (digits - 1)) return static_cast<uint16_t>(sign | infinity);
    // The leading one of a normal number adds 1 to the exponent field, and a carry out of the mantissa another.
    return static_cast<uint16_t>(sign | (((unit - least) << (digits - 1)) + static_cast<int>(units)));
}

// A float that rounds on to fewer digits as the value does: its last bit says that more were cut off.
float odd_float(double value) {
    auto near = static_cast<float>(value);
    if (std::fabs(static_cast<double>(near)) > std::fabs(value)) near = std::nextafter(near, 0.0f);
    const bool exact = static_cast<double>(near) == value || std::isnan(value);
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, near) | (exact ? 0u : 1u));
}

bool is_signed(DType t) { return t == DType::i8 || t == DType::i16 || t == DType::i32 || t == DType::i64; }
int digits_of(DType integer) { return 8 * static_cast<int>(item_size(integer)) - is_signed(integer); }

}  // namespace

void put_number(double value, DType dtype, void* to) {
    if (dtype == DType::f64) {
        std::memcpy(to, &value, sizeof value);
    } else if (dtype == DType::f32) {
        const auto narrow = static_cast<float>(value);
        std::memcpy(to, &narrow, sizeof narrow);
    } else {
        const uint16_t bits = dtype == DType::f16 ? narrow_bits(value, 11, -24) : narrow_bits(value, 8, -133);
        std::memcpy(to, &bits, sizeof bits);
    }
}

void put_element(double value, DType dtype, void* to) {
    if (is_float(dtype)) return put_number(value, dtype, to);
    if (is_small(dtype)) {
        const float near = odd_float(value);
        return encode_small(dtype, to, &near, 1, true);
    }
    uint64_t whole = value != 0;
    if (dtype != DType::boolean) {
        const int bits = digits_of(dtype);
        const double bound = std::ldexp(1.0, bits);
        if (value >= bound)
            whole = ~uint64_t{0} >> (64 - bits);
        else if (value < 0 && is_signed(dtype))
            whole = value <= -bound ? uint64_t{1} << bits : static_cast<uint64_t>(static_cast<int64_t>(value));
        else
            whole = value > 0 ? static_cast<uint64_t>(value) : 0;  // NaN is not
    }
    std::memcpy(to, &whole, static_cast<size_t>(item_size(dtype)));  // the low bytes come first
}

bool put_integer(int64_t value, DType dtype, void* to) {
    const auto bytes = static_cast<size_t>(item_size(dtype));
    const int bits = digits_of(dtype);
    if (value < 0 ? !is_signed(dtype) || (bits < 63 && value < -(int64_t{1} << bits)) : bits < 63 && value >> bits != 0)
        return false;
    std::memcpy(to, &value, bytes);  // the low bytes come first
    return true;
}

}  // namespace tw
