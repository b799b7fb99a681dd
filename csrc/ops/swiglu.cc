// Gated units: y = act(gate) x with act = silu (swiglu) or gelu (geglu), and their gradients
//     dgate = dy x act'(gate),  dx = dy act(gate).
//
// Method    one pass over merged axes; any strides.
// Numerics  the activation of simd/math.h and a rounding or two more.
// Threads   rows in pieces; elements are independent.
// Source    Shazeer, "GLU variants improve transformer", 2020.
#include "core/check.h"
#include "ops/map.h"

namespace tw::TW_ISA {
namespace {

struct Silu {
    template <class V> TW_INLINE V of(V v) { return silu(v); }
    template <class V> TW_INLINE V slope(V v) { return silu_grad(v); }
};
struct Gelu {
    template <class V> TW_INLINE V of(V v) { return gelu(v); }
    template <class V> TW_INLINE V slope(V v) { return gelu_grad(v); }
};
struct GeluTanh {
    template <class V> TW_INLINE V of(V v) { return gelu_tanh(v); }
    template <class V> TW_INLINE V slope(V v) { return gelu_tanh_grad(v); }
};

template <class Act, class T>
void gated(const Call& c) {
    map_two<T>(c.out[0], c.in[0], c.in[1],
               [](auto gate, auto x) __attribute__((always_inline)) { return Act::of(gate) * x; });
}

template <class Act, class T>
void gated_dx_rows(char* const* at, int64_t n, const void*) {
    typedef Wide<T> W;
    T *const dgate = row_at<T>(at[0]), *const dx = row_at<T>(at[1]);
    const T *const dy = row_at<T>(at[2]), *const gate = row_at<T>(at[3]), *const x = row_at<T>(at[4]);
    for (int64_t i = 0; i < n; i += kLanes<W>) {
        const Vec<W> d = load_as<W>(dy + i), g = load_as<W>(gate + i), v = load_as<W>(x + i);
        store_from(dgate + i, d * v * Act::slope(g));
        store_from(dx + i, d * Act::of(g));
    }
}

template <class Act, class T>
void gated_dx(const Call& c) {
    const View* views[] = {&c.out[0], &c.out[1], &c.in[0], &c.in[1], &c.in[2]};
    map_rows(views, 5, 2, kLanes<Wide<T>>, gated_dx_rows<Act, T>, nullptr);
}

// The last two operands are gate and x; as many results, of their shape.
Status infer_any(Call& c, Inferred& r) {
    const int first = c.n_in - 2;
    const View& gate = c.in[first];
    TW_TRY(want_floating(gate, "gate"));
    for (int k = 0; k < c.n_in; ++k) {
        if (k == first) continue;
        const char* name = c.op->operands[k].name;
        TW_TRY(want_dtype_of(c.in[k], name, gate, "gate"));
        TW_TRY(want_shape_of(c.in[k], name, gate, "gate"));
    }
    r.n_out = first + 1;
    for (int k = 0; k < r.n_out; ++k) r.out[k] = result(gate.dtype, gate.ndim, gate.shape);
    r.flops = 15.0 * r.n_out * static_cast<double>(numel(gate));
    return Status::ok;
}

template <class Act>
Status run(const Call& c) {
    for_floating(c.out[0].dtype, [&]<class T>() { c.n_in == 2 ? gated<Act, T>(c) : gated_dx<Act, T>(c); });
    return Status::ok;
}
Status run_geglu(const Call& c) { return c.attr[0].choice ? run<GeluTanh>(c) : run<Gelu>(c); }

constexpr Operand kForward[] = {{"gate"}, {"x"}};
constexpr Operand kGradient[] = {{"dy"}, {"gate"}, {"x"}};
constexpr AttrSpec kApproximate[] = {{.name = "approximate", .kind = AttrKind::choice, .choices = "none|tanh"}};

}  // namespace

extern const Entry op_swiglu = {"swiglu", kForward, 2, nullptr, 0, infer_any, run<Silu>, kElementwise};
extern const Entry op_swiglu_dx = {"swiglu_dx", kGradient, 3, nullptr, 0, infer_any, run<Silu>};
extern const Entry op_geglu = {"geglu", kForward, 2, kApproximate, 1, infer_any, run_geglu, kElementwise};
extern const Entry op_geglu_dx = {"geglu_dx", kGradient, 3, kApproximate, 1, infer_any, run_geglu};

}  // namespace tw::TW_ISA
