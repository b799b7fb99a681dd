// Truth, element by element: comparisons, logic, what is NaN or infinite, and a choice between two arrays.
//
//   equal   not_equal   less   less_equal   greater   greater_equal
//   logical_and   logical_or   logical_xor   logical_not   isnan   isinf   where condition ? a : b
//
// Method    one kernel per dtype (ops/pieces.h); integers are equal by their bits, and a choice moves bits.
// Numerics  IEEE comparisons: NaN is equal to nothing. A bool is 0 or 1 where it is written, and true if not 0 where read.
// Threads   rows are cut into pieces of kChunkElements; elements are independent, so bits never depend on the split.
#include "core/check.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

struct Equal {
    template <class T> TW_INLINE bool of(T a, T b) { return a == b; }
};
struct NotEqual {
    template <class T> TW_INLINE bool of(T a, T b) { return a != b; }
};
struct Less {
    template <class T> TW_INLINE bool of(T a, T b) { return a < b; }
};
struct LessEqual {
    template <class T> TW_INLINE bool of(T a, T b) { return a <= b; }
};
struct Greater {
    template <class T> TW_INLINE bool of(T a, T b) { return a > b; }
};
struct GreaterEqual {
    template <class T> TW_INLINE bool of(T a, T b) { return a >= b; }
};
struct And {
    template <class T> TW_INLINE bool of(T a, T b) { return (a != 0) & (b != 0); }
};
struct Or {
    template <class T> TW_INLINE bool of(T a, T b) { return (a != 0) | (b != 0); }
};
struct Xor {
    template <class T> TW_INLINE bool of(T a, T b) { return (a != 0) != (b != 0); }
};
struct Not {
    template <class T> TW_INLINE bool of(T a) { return a == 0; }
};
struct IsNan {
    template <class T> TW_INLINE bool of(T a) { return a != a; }
};
struct IsPlusInf {
    template <class T> TW_INLINE bool of(T a) { return a == static_cast<T>(__builtin_inf()); }
};
struct IsMinusInf {
    template <class T> TW_INLINE bool of(T a) { return a == -static_cast<T>(__builtin_inf()); }
};
struct IsInf {
    template <class T> TW_INLINE bool of(T a) { return IsPlusInf::of(a) | IsMinusInf::of(a); }
};
struct Never {
    template <class T> TW_INLINE bool of(T) { return false; }
};

#define TW_ORDER(F)                                                               \
    {                                                                             \
        {                                                                         \
            TW_FLOAT_KERNELS(are_two, F), TW_INTEGER_KERNELS(are_two, F, nullptr) \
        }                                                                         \
    }
#define TW_FLOATS(F)                    \
    {                                   \
        {                               \
            TW_FLOAT_KERNELS(is_one, F) \
        }                               \
    }
constexpr KernelByType kEqual = {
    {TW_FLOAT_KERNELS(are_two, Equal), TW_WIDTH_KERNELS(are_two, Equal, (are_two<Equal, uint8_t>))}};
constexpr KernelByType kNotEqual = {
    {TW_FLOAT_KERNELS(are_two, NotEqual), TW_WIDTH_KERNELS(are_two, NotEqual, (are_two<NotEqual, uint8_t>))}};
constexpr KernelByType kLess = TW_ORDER(Less), kLessEqual = TW_ORDER(LessEqual), kGreater = TW_ORDER(Greater),
                       kGreaterEqual = TW_ORDER(GreaterEqual), kIsNan = TW_FLOATS(IsNan), kIsInf = TW_FLOATS(IsInf),
                       kIsPlusInf = TW_FLOATS(IsPlusInf), kIsMinusInf = TW_FLOATS(IsMinusInf),
                       kNever = TW_FLOATS(Never);
#undef TW_ORDER
#undef TW_FLOATS

template <const KernelByType& table>
Status run(const Call& c) {
    run_pieces(c, kernel_at(table, c.in[0].dtype));
    return Status::ok;
}
template <Kernel* kernel>
Status run_logic(const Call& c) {
    run_pieces(c, kernel);
    return Status::ok;
}

Status run_isinf(const Call& c) {
    const bool plus = c.attr[0].i, minus = c.attr[1].i;
    return plus && minus ? run<kIsInf>(c) : plus ? run<kIsPlusInf>(c) : minus ? run<kIsMinusInf>(c) : run<kNever>(c);
}

template <class T>
void choose(void* y, const void* const* x, int64_t n) {
    T* const to = static_cast<T*>(y);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) to[i] = item<uint8_t>(x, 0, i) ? item<T>(x, 1, i) : item<T>(x, 2, i);
}
Status run_where(const Call& c) {
    switch (item_size(c.out[0].dtype)) {
        case 1: run_pieces(c, choose<uint8_t>); break;
        case 2: run_pieces(c, choose<uint16_t>); break;
        case 4: run_pieces(c, choose<uint32_t>); break;
        default: run_pieces(c, choose<uint64_t>); break;
    }
    return Status::ok;
}

Status infer_order(Call& c, Inferred& r) {
    TW_TRY(infer_two(c, r, want_number));
    r.out[0].dtype = DType::boolean;
    return Status::ok;
}
Status infer_equal(Call& c, Inferred& r) {
    TW_TRY(infer_two(c, r, [](const View& a, const char* name) {
        return a.dtype == DType::boolean ? Status::ok : want_number(a, name);
    }));
    r.out[0].dtype = DType::boolean;
    return Status::ok;
}
Status infer_logic(Call& c, Inferred& r) { return infer_two(c, r, want_bool); }

Status infer_of_x(const Call& c, Inferred& r) {
    r.n_out = 1;
    r.out[0] = result(DType::boolean, c.in[0].ndim, c.in[0].shape);
    return Status::ok;
}
Status infer_not(Call& c, Inferred& r) {
    TW_TRY(want_bool(c.in[0], "x"));
    return infer_of_x(c, r);
}
Status infer_is(Call& c, Inferred& r) {
    TW_TRY(want_floating(c.in[0], "x"));
    return infer_of_x(c, r);
}

Status infer_where(Call& c, Inferred& r) {
    const View &condition = c.in[0], &a = c.in[1], &b = c.in[2];
    TW_TRY(want_bool(condition, "condition"));
    TW_TRY(want_dtype_of(b, "b", a, "a"));
    r.n_out = 1;
    r.out[0] = result(a.dtype, a.ndim, a.shape);
    TW_TRY(broadcast_with(r.out[0], b, "b", a, "a"));
    return broadcast_with(r.out[0], condition, "condition", a, "a");
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kAB[] = {{"a"}, {"b"}};
constexpr Operand kWhere[] = {{"condition"}, {"a"}, {"b"}};
constexpr AttrSpec kSigns[] = {
    {.name = "positive", .kind = AttrKind::boolean, .i = 1},
    {.name = "negative", .kind = AttrKind::boolean, .i = 1},
};

}  // namespace

extern const Entry op_equal = {"equal", kAB, 2, nullptr, 0, infer_equal, run<kEqual>, kWeakScalars};
extern const Entry op_not_equal = {"not_equal", kAB, 2, nullptr, 0, infer_equal, run<kNotEqual>, kWeakScalars};
extern const Entry op_less = {"less", kAB, 2, nullptr, 0, infer_order, run<kLess>, kWeakScalars};
extern const Entry op_less_equal = {"less_equal", kAB, 2, nullptr, 0, infer_order, run<kLessEqual>, kWeakScalars};
extern const Entry op_greater = {"greater", kAB, 2, nullptr, 0, infer_order, run<kGreater>, kWeakScalars};
extern const Entry op_greater_equal = {"greater_equal",    kAB,         2, nullptr, 0, infer_order,
                                       run<kGreaterEqual>, kWeakScalars};
extern const Entry op_logical_and = {"logical_and", kAB, 2, nullptr, 0, infer_logic, run_logic<are_two<And, uint8_t>>,
                                     kElementwise};
extern const Entry op_logical_or = {"logical_or", kAB, 2, nullptr, 0, infer_logic, run_logic<are_two<Or, uint8_t>>,
                                    kElementwise};
extern const Entry op_logical_xor = {"logical_xor", kAB, 2, nullptr, 0, infer_logic, run_logic<are_two<Xor, uint8_t>>,
                                     kElementwise};
extern const Entry op_logical_not = {"logical_not", kX, 1, nullptr, 0, infer_not, run_logic<is_one<Not, uint8_t>>,
                                     kElementwise};
extern const Entry op_isnan = {"isnan", kX, 1, nullptr, 0, infer_is, run<kIsNan>};
extern const Entry op_isinf = {"isinf", kX, 1, kSigns, 2, infer_is, run_isinf};
extern const Entry op_where = {"where", kWhere, 3, nullptr, 0, infer_where, run_where};

}  // namespace tw::TW_ISA
