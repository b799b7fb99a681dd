// Arithmetic on two arrays beyond + - * /: powers, remainders, the larger and the smaller, bits and shifts.
//
//   pow a^b   mod a - b floor(a / b), or a - b trunc(a / b)   maximum   minimum
//   bitwise_and   bitwise_or   bitwise_xor   bitwise_not   shift_left   shift_right
//
// Method    one kernel per dtype (ops/pieces.h). Integer powers by squaring.
// Numerics  floats: pow is the C library's in double, rounded once more for narrower types; remainders are exact, but for
//           the one sum that gives them the sign of b; NaN wins in maximum and minimum. Integers wrap; a negative power of
//           one is its truncated value, a remainder of 0 is 0. Shifts by a negative count or by all bits leave the sign.
// Threads   rows are cut into pieces of kChunkElements; elements are independent, so bits never depend on the split.
#include "core/check.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

template <class T>
constexpr bool kIsSigned = static_cast<T>(-1) < static_cast<T>(0);

// An integer's own bits as an unsigned number that wraps, 32 bits at least.
template <int Size>
struct BitsOf {
    typedef uint32_t type;
};
template <>
struct BitsOf<8> {
    typedef uint64_t type;
};
template <class T>
using Bits = typename BitsOf<sizeof(T)>::type;

struct Pow {
    TW_INLINE double of(double a, double b) { return __builtin_pow(a, b); }
    TW_INLINE float of(float a, float b) { return static_cast<float>(__builtin_pow(a, b)); }
    template <class T>
    TW_INLINE T of(T a, T b) {
        if constexpr (kIsSigned<T>)
            if (b < 0) return a == 1 || (a == -1 && b % 2 == 0) ? T{1} : a == -1 ? a : T{0};
        Bits<T> y = 1, power = static_cast<Bits<T>>(a);
        for (auto rest = static_cast<Bits<T>>(b); rest; rest >>= 1, power *= power)
            if (rest & 1) y *= power;
        return static_cast<T>(y);
    }
};

// With the sign of b; and with that of a.
struct Mod {
    TW_INLINE double of(double a, double b) {
        const double r = __builtin_fmod(a, b);
        return r != 0 && (r < 0) != (b < 0) ? r + b : r;
    }
    TW_INLINE float of(float a, float b) {
        const float r = __builtin_fmodf(a, b);
        return r != 0 && (r < 0) != (b < 0) ? r + b : r;
    }
    template <class T>
    TW_INLINE T of(T a, T b) {
        if (b == 0 || (kIsSigned<T> && b == static_cast<T>(-1))) return 0;
        const T r = static_cast<T>(a % b);
        return r != 0 && (r < 0) != (b < 0) ? static_cast<T>(r + b) : r;
    }
};
struct TruncatedMod {
    TW_INLINE double of(double a, double b) { return __builtin_fmod(a, b); }
    TW_INLINE float of(float a, float b) { return __builtin_fmodf(a, b); }
    template <class T>
    TW_INLINE T of(T a, T b) {
        if (b == 0 || (kIsSigned<T> && b == static_cast<T>(-1))) return 0;
        return static_cast<T>(a % b);
    }
};

struct Maximum {
    template <class T> TW_INLINE T of(T a, T b) { return a > b || a != a ? a : b; }
};
struct Minimum {
    template <class T> TW_INLINE T of(T a, T b) { return a < b || a != a ? a : b; }
};
struct And {
    template <class T> TW_INLINE T of(T a, T b) { return a & b; }
};
struct Or {
    template <class T> TW_INLINE T of(T a, T b) { return a | b; }
};
struct Xor {
    template <class T> TW_INLINE T of(T a, T b) { return a ^ b; }
};
struct Not {
    template <class T> TW_INLINE T of(T a) { return static_cast<T>(~a); }
};

template <class T>
TW_INLINE bool is_shift(T b) {
    return b >= 0 && b < static_cast<T>(8 * sizeof(T));
}
struct Left {
    template <class T>
    TW_INLINE T of(T a, T b) {
        return is_shift(b) ? static_cast<T>(static_cast<Bits<T>>(a) << b) : T{0};
    }
};
struct Right {
    template <class T>
    TW_INLINE T of(T a, T b) {
        return is_shift(b) ? static_cast<T>(a >> b) : a < 0 ? static_cast<T>(-1) : T{0};
    }
};

#define TW_NUMBERS(F)                                                               \
    {                                                                               \
        {                                                                           \
            TW_FLOAT_KERNELS(each_two, F), TW_INTEGER_KERNELS(each_two, F, nullptr) \
        }                                                                           \
    }
#define TW_BITS(K, F)                                     \
    {                                                     \
        {                                                 \
            TW_NO_FLOATS, TW_WIDTH_KERNELS(K, F, nullptr) \
        }                                                 \
    }
constexpr KernelByType kPow = TW_NUMBERS(Pow), kMod = TW_NUMBERS(Mod), kTruncatedMod = TW_NUMBERS(TruncatedMod),
                       kMaximum = TW_NUMBERS(Maximum), kMinimum = TW_NUMBERS(Minimum), kAnd = TW_BITS(each_two, And),
                       kOr = TW_BITS(each_two, Or), kXor = TW_BITS(each_two, Xor), kNot = TW_BITS(each_one, Not);
constexpr KernelByType kLeft = {{TW_NO_FLOATS, TW_INTEGER_KERNELS(each_two, Left, nullptr)}},
                       kRight = {{TW_NO_FLOATS, TW_INTEGER_KERNELS(each_two, Right, nullptr)}};
#undef TW_NUMBERS
#undef TW_BITS

template <const KernelByType& table>
Status run(const Call& c) {
    run_pieces(c, kernel_at(table, c.in[0].dtype));
    return Status::ok;
}

Status run_mod(const Call& c) { return c.attr[0].i ? run<kTruncatedMod>(c) : run<kMod>(c); }

Status infer_numbers(Call& c, Inferred& r) { return infer_two(c, r, want_number); }
Status infer_integers(Call& c, Inferred& r) { return infer_two(c, r, want_integer); }
Status infer_not(Call& c, Inferred& r) {
    TW_TRY(want_integer(c.in[0], "x"));
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kAB[] = {{"a"}, {"b"}};
constexpr AttrSpec kTruncated[] = {{.name = "truncated", .kind = AttrKind::boolean}};
constexpr uint32_t kFlags = kElementwise | kWeakScalars;

}  // namespace

extern const Entry op_pow = {"pow", kAB, 2, nullptr, 0, infer_numbers, run<kPow>, kFlags};
extern const Entry op_mod = {"mod", kAB, 2, kTruncated, 1, infer_numbers, run_mod, kFlags};
extern const Entry op_maximum = {"maximum", kAB, 2, nullptr, 0, infer_numbers, run<kMaximum>, kFlags};
extern const Entry op_minimum = {"minimum", kAB, 2, nullptr, 0, infer_numbers, run<kMinimum>, kFlags};
extern const Entry op_bitwise_and = {"bitwise_and", kAB, 2, nullptr, 0, infer_integers, run<kAnd>, kFlags};
extern const Entry op_bitwise_or = {"bitwise_or", kAB, 2, nullptr, 0, infer_integers, run<kOr>, kFlags};
extern const Entry op_bitwise_xor = {"bitwise_xor", kAB, 2, nullptr, 0, infer_integers, run<kXor>, kFlags};
extern const Entry op_bitwise_not = {"bitwise_not", kX, 1, nullptr, 0, infer_not, run<kNot>, kElementwise};
extern const Entry op_shift_left = {"shift_left", kAB, 2, nullptr, 0, infer_integers, run<kLeft>, kFlags};
extern const Entry op_shift_right = {"shift_right", kAB, 2, nullptr, 0, infer_integers, run<kRight>, kFlags};

}  // namespace tw::TW_ISA
