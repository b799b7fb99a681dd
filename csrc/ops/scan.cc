// Running sums and products along one axis: y[i] = x[0] + ... + x[i], and the same with *.
//
// Method    lines along the axis one after another; where the axis is not the last, whole rows of neighbouring lines
//           advance together, as vectors.
// Numerics  the order of the line, in float for 16-bit floats; integers wrap. `exclusive` leaves x[i] itself out.
// Threads   lines, or pieces of rows of lines; a line is never cut, so bits never depend on the split.
#include "core/axes.h"
#include "core/check.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

enum ScanAttr { kAxis, kExclusive, kReverse };

struct Plus {
    static constexpr int start = 0;
    template <class T> TW_INLINE T of(T a, T b) { return static_cast<T>(a + b); }
};
struct Times {
    static constexpr int start = 1;
    template <class T> TW_INLINE T of(T a, T b) { return static_cast<T>((a + T{0}) * b); }
};

constexpr int64_t kLines = 64;  // that advance together

// `lines` neighbouring lines of n elements.
template <class F, class T>
void scan_lines(T* y, int64_t y_along, int64_t y_across, const T* x, int64_t x_along, int64_t x_across, int64_t n,
                int64_t lines, bool exclusive) {
    typedef Wide<T> W;
    W total[kLines];
    for (int64_t k = 0; k < lines; ++k) total[k] = static_cast<W>(F::start);
    for (int64_t i = 0; i < n; ++i, y += y_along, x += x_along)
        for (int64_t k = 0; k < lines; ++k) {
            const W next = F::of(total[k], widened(x[k * x_across]));
            y[k * y_across] = narrowed<T>(exclusive ? total[k] : next);
            total[k] = next;
        }
}

template <class F, class T>
void scan(const Call& c) {
    const View &x = c.in[0], &y = c.out[0];
    const int axis = static_cast<int>(c.attr[kAxis].i);
    const bool exclusive = c.attr[kExclusive].i, reverse = c.attr[kReverse].i;
    Axes from{}, to{};
    from.count = to.count = 1;
    for (int d = 0; d < x.ndim; ++d)
        if (d != axis) append_axis(from, x.shape[d], x.stride[d]), append_axis(to, x.shape[d], y.stride[d]);
    const int64_t n = x.shape[axis], sign = reverse ? -1 : 1, first = reverse ? n - 1 : 0;
    const int64_t per_chunk = max_of(1, kChunkElements / max_of(1, n) / kLines) * kLines;
    parallel(ceil_div(from.count, per_chunk), [&](int64_t chunk) {
        for (int64_t i = chunk * per_chunk, last = min_of(from.count, i + per_chunk); i < last;) {
            const int64_t lines = min_of(min_of(kLines, last - i), min_of(run_of(from, i), run_of(to, i)));
            scan_lines<F>(y.as<T>() + offset_of(to, i) + first * y.stride[axis], sign * y.stride[axis], step_of(to),
                          x.as<const T>() + offset_of(from, i) + first * x.stride[axis], sign * x.stride[axis],
                          step_of(from), n, lines, exclusive);
            i += lines;
        }
    });
}

// Integers are scanned as unsigned numbers of their size, which wrap.
template <class F>
Status run(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    const DType dtype = c.in[0].dtype;
    if (is_float(dtype)) return for_floating(dtype, [&]<class T>() { scan<F, T>(c); }), Status::ok;
    switch (item_size(dtype)) {
        case 1: scan<F, uint8_t>(c); break;
        case 2: scan<F, uint16_t>(c); break;
        case 4: scan<F, uint32_t>(c); break;
        default: scan<F, uint64_t>(c); break;
    }
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_number(x, "x"));
    TW_TRY(want_ndim(x, "x", 1, kMaxDims));
    TW_TRY(resolve_axis(c.attr[kAxis], "axis", x.ndim));
    r.n_out = 1;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "axis", .kind = AttrKind::integer, .i = -1},
    {.name = "exclusive", .kind = AttrKind::boolean},
    {.name = "reverse", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_cumsum = {"cumsum", kX, 1, kAttrs, 3, infer, run<Plus>};
extern const Entry op_cumprod = {"cumprod", kX, 1, kAttrs, 3, infer, run<Times>};

}  // namespace tw::TW_ISA
