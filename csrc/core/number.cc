#include "core/number.h"

#include <cmath>
#include <cstring>

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

bool put_integer(int64_t value, DType dtype, void* to) {
    const auto bytes = static_cast<size_t>(item_size(dtype));
    const bool is_signed = dtype == DType::i8 || dtype == DType::i16 || dtype == DType::i32 || dtype == DType::i64;
    const int bits = 8 * static_cast<int>(bytes) - is_signed;
    if (value < 0 ? !is_signed || (bits < 63 && value < -(int64_t{1} << bits)) : bits < 63 && value >> bits != 0)
        return false;
    std::memcpy(to, &value, bytes);  // the low bytes come first
    return true;
}

}  // namespace tw
