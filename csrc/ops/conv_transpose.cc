// Transposed convolution over 1, 2 or 3 spatial axes, x (N, C, *spatial) with w (C, K/groups, *kernel):
//     y[n,k,q] = act(b[k] + residual[n,k,q] + sum of w[c,k,t] x[n,c,p] over all c, t, p
//                    with p*stride + t*dilation - padding = q)
//
// Method    the gradient of a convolution in its input, see conv_dx.cc, which starts from bias and residual.
// Numerics  as conv_dx.
// Threads   as conv_dx.
#include "ops/conv_problem.h"
#include "ops/in_float32.h"

namespace tw::TW_ISA {
namespace {

enum { kStride, kPadding, kDilation, kGroups, kOutputPadding, kActivation, kLayout };

// The size of y along one axis: the smallest that a convolution would take to x, and output_padding more.
Status size_along(int axis, int64_t in, int64_t kernel, Attr* attr, int64_t& out) {
    const int64_t stride = attr[kStride].list[axis], dilation = attr[kDilation].list[axis],
                  more = attr[kOutputPadding].list[axis], before = attr[kPadding].list[2 * axis],
                  after = attr[kPadding].list[2 * axis + 1];
    if (more >= stride && more >= dilation)
        return fail(Status::attr, "output_padding",
                    "output_padding=%lld along spatial axis %d; want less than stride=%lld or dilation=%lld",
                    static_cast<long long>(more), axis, static_cast<long long>(stride),
                    static_cast<long long>(dilation));
    if (in < 1) return fail(Status::shape, "x", "x has no elements along spatial axis %d; want at least 1", axis);
    int64_t reach, steps;
    if (__builtin_mul_overflow(dilation, kernel - 1, &reach) || reach >= kMaxSize)
        return fail(Status::attr, "dilation", "dilation=%lld times kernel size %lld is too large; want less than 2^40",
                    static_cast<long long>(dilation), static_cast<long long>(kernel));
    if (__builtin_mul_overflow(stride, in - 1, &steps) || steps >= kMaxSize)
        return fail(Status::attr, "stride", "stride=%lld times %lld elements of x is too large; want less than 2^40",
                    static_cast<long long>(stride), static_cast<long long>(in - 1));
    out = steps + reach + 1 + more - before - after;
    if (out >= 1) return Status::ok;
    return fail(Status::attr, "padding",
                "padding=(%lld, %lld) along spatial axis %d leaves nothing of %lld elements; want less",
                static_cast<long long>(before), static_cast<long long>(after), axis,
                static_cast<long long>(steps + reach + 1 + more));
}

Status infer(Call& c, Inferred& r) {
    const View &w = c.in[1], &b = c.in[2], &residual = c.in[3];
    const Attr& groups = c.attr[kGroups];
    Attr& padding = c.attr[kPadding];
    TW_TRY(want_conv_float(c.in[0], "x"));
    TW_TRY(want_ndim(c.in[0], "x", 3, 5));
    const View x = in_order(c.in[0], c.attr[kLayout]);
    TW_TRY(want_dtype_of(w, "w", x, "x"));
    const int rank = x.ndim - 2;
    if (w.ndim != x.ndim)
        return fail(Status::shape, "w",
                    "w has shape %s but x has %d dimensions; want (C, K/groups, kernel...) with as many",
                    shape_text(w).text, x.ndim);
    if (groups.i < 1 || groups.i >= kMaxSize)
        return fail(Status::attr, "groups", "groups=%lld; want at least 1", static_cast<long long>(groups.i));
    if (w.shape[0] != x.shape[1])
        return fail(Status::shape, "w", "x has C=%lld but w has C=%lld; want the same",
                    static_cast<long long>(x.shape[1]), static_cast<long long>(w.shape[0]));
    if (x.shape[1] % groups.i)
        return fail(Status::attr, "groups", "groups=%lld does not divide C=%lld; want a divisor",
                    static_cast<long long>(groups.i), static_cast<long long>(x.shape[1]));
    for (int d = 2; d < w.ndim; ++d)
        if (w.shape[d] < 1)
            return fail(Status::shape, "w", "w has shape %s; want kernel sizes of at least 1", shape_text(w).text);
    TW_TRY(resolve_integers(c.attr[kStride], "stride", rank, 1));
    TW_TRY(resolve_integers(c.attr[kDilation], "dilation", rank, 1));
    TW_TRY(resolve_integers(c.attr[kOutputPadding], "output_padding", rank, 0));
    if (padding.choice == 1)
        return fail(Status::attr, "padding",
                    "padding='same' says nothing of a transposed convolution; want numbers or 'valid'");
    TW_TRY(resolve_padding(padding, "padding", rank));
    View y = result(x.dtype, x.ndim, x.shape);
    if (__builtin_mul_overflow(w.shape[1], groups.i, &y.shape[1]))
        return fail(Status::attr, "groups", "groups=%lld is too large; want a divisor of C=%lld",
                    static_cast<long long>(groups.i), static_cast<long long>(x.shape[1]));
    for (int d = 0; d < rank; ++d) TW_TRY(size_along(d, x.shape[2 + d], w.shape[2 + d], c.attr, y.shape[2 + d]));
    TW_TRY(check_bias(b, x, y.shape[1]));
    y = in_layout(y, c.attr[kLayout]);
    if (given(residual)) {
        TW_TRY(want_dtype_of(residual, "residual", x, "x"));
        TW_TRY(want_shape(residual, "residual", y.ndim, y.shape));
    }
    r.n_out = 1;
    r.out[0] = y;
    r.flops = conv_flops(x, w);
    return Status::ok;
}

Status run_f32_f64(const Call& c) {
    GradX r{};
    r.dy = in_order(c.in[0], c.attr[kLayout]), r.w = c.in[1], r.dx = in_order(c.out[0], c.attr[kLayout]);
    if (given(c.in[2])) r.bias = c.in[2];
    if (given(c.in[3])) r.residual = in_order(c.in[3], c.attr[kLayout]);
    r.axes = conv_axes(r.dx, r.w, r.dy, c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
    r.groups = c.attr[kGroups].i;
    r.activation = activation_of(c.attr[kActivation]);
    r.packed = c.packed;
    return sum_to_x(r);
}

Status run(const Call& c) { return in_float32(c, run_f32_f64); }

// ---- prepared weights ------------------------------------------------------------------------------------------------------

// Whether a stride is above 1; false also where the attribute cannot be one of w, which the call then says.
bool can_pack(const Call& c, bool& strided) {
    const View& w = c.in[1];
    const int64_t groups = c.attr[kGroups].i;
    if (!given(w) || w.ndim < 3 || w.ndim > 5 || numel(w) == 0 || groups < 1 || w.shape[0] % groups) return false;
    Attr stride = c.attr[kStride];
    if (resolve_integers(stride, "stride", w.ndim - 2, 1) != Status::ok) return false;
    strided = false;
    for (int d = 0; d < w.ndim - 2; ++d) strided = strided || stride.list[d] > 1;
    return w.dtype == DType::f32 || w.dtype == DType::f64;
}

int64_t packed_size(const Call& c) {
    bool strided;
    return can_pack(c, strided) ? sum_to_x_packed_size(c.in[1], c.attr[kGroups].i, strided) : 0;
}

void pack(const Call& c, void* packed) {
    bool strided;
    if (can_pack(c, strided)) sum_to_x_pack(c.in[1], c.attr[kGroups].i, strided, packed);
}

constexpr Operand kOperands[] = {{"x"}, {"w"}, {"b", Role::optional}, {"residual", Role::optional}};
constexpr AttrSpec kAttrs[] = {
    TW_CONV_ATTRS,
    {.name = "output_padding", .kind = AttrKind::integers, .i = 0},
    {.name = "activation", .kind = AttrKind::choice, .choices = TW_ACTIVATIONS, .none_ok = true},
    TW_CONV_LAYOUT};

}  // namespace

extern const Entry op_conv_transpose = {"conv_transpose", kOperands, 4, kAttrs, TW_COUNT(kAttrs), infer, run, 0,
                                        packed_size,      pack};

}  // namespace tw::TW_ISA
