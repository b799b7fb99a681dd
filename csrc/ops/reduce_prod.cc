// Products and minima over any axes.
//
// Method    an output at a time: its elements along the reduced axes, runs of equal steps at once.
// Numerics  products of floats in double, in C order, rounded once; those of integers wrap. Min: NaN wins; of no elements
//           it is the largest number there is, infinity for floats, and their product is 1.
// Threads   outputs; the order within one is a function of shape alone.
#include "core/axes.h"
#include "core/check.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

template <class T>
struct TotalOf {
    typedef uint64_t type;
};
template <> struct TotalOf<float> {
    typedef double type;
};
template <> struct TotalOf<double> {
    typedef double type;
};

struct Product {
    template <class W> using Total = typename TotalOf<W>::type;
    template <class W> TW_INLINE Total<W> start() { return 1; }
    template <class W> TW_INLINE Total<W> of(Total<W> a, W b) { return a * static_cast<Total<W>>(b); }
};
struct Least {
    template <class W> using Total = W;
    template <class W>
    TW_INLINE W start() {
        if constexpr (kIsFloating<W>) return static_cast<W>(__builtin_inff());
        constexpr bool is_signed = static_cast<W>(-1) < W{1};
        return static_cast<W>(~uint64_t{0} >> (64 - 8 * sizeof(W) + is_signed));
    }
    template <class W> TW_INLINE W of(W a, W b) { return a < b || a != a ? a : b; }
};

template <class F, class T>
void fold(const Call& c) {
    typedef Wide<T> W;
    const View &x = c.in[0], &y = c.out[0];
    const Attr& axes = c.attr[0];
    Axes kept{}, to{}, reduced{};
    kept.count = to.count = reduced.count = 1;
    for (int d = 0, k = 0, out = 0; d < x.ndim; ++d) {
        const bool gone = k < axes.n && axes.list[k] == d;
        k += gone;
        if (gone) {
            append_axis(reduced, x.shape[d], x.stride[d]);
            out += c.attr[1].i != 0;
        } else {
            append_axis(kept, x.shape[d], x.stride[d]);
            append_axis(to, x.shape[d], y.stride[out++]);
        }
    }
    const int64_t per_chunk = max_of(1, kChunkElements / max_of(1, reduced.count));
    parallel(ceil_div(kept.count, per_chunk), [&](int64_t chunk) {
        for (int64_t o = chunk * per_chunk, last = min_of(kept.count, o + per_chunk); o < last; ++o) {
            auto total = F::template start<W>();
            for (int64_t i = 0; i < reduced.count;) {
                const T* const from = x.as<const T>() + offset_of(kept, o) + offset_of(reduced, i);
                const int64_t run = min_of(run_of(reduced, i), reduced.count - i), step = step_of(reduced);
                for (int64_t j = 0; j < run; ++j) total = F::template of<W>(total, widened(from[j * step]));
                i += run;
            }
            y.as<T>()[offset_of(to, o)] = narrowed<T>(static_cast<W>(total));
        }
    });
}

template <class F>
Status run(const Call& c) {
    switch (c.in[0].dtype) {
        case DType::i8: fold<F, int8_t>(c); break;
        case DType::u8: fold<F, uint8_t>(c); break;
        case DType::i16: fold<F, int16_t>(c); break;
        case DType::u16: fold<F, uint16_t>(c); break;
        case DType::i32: fold<F, int32_t>(c); break;
        case DType::u32: fold<F, uint32_t>(c); break;
        case DType::i64: fold<F, int64_t>(c); break;
        case DType::u64: fold<F, uint64_t>(c); break;
        default: for_floating(c.in[0].dtype, [&]<class T>() { fold<F, T>(c); });
    }
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_number(x, "x"));
    Attr& axes = c.attr[0];
    TW_TRY(resolve_axes(axes, "axes", x.ndim));
    View y = result(x.dtype, 0, x.shape);
    for (int d = 0, k = 0; d < x.ndim; ++d) {
        const bool gone = k < axes.n && axes.list[k] == d;
        k += gone;
        if (!gone || c.attr[1].i) y.shape[y.ndim++] = gone ? 1 : x.shape[d];
    }
    r.n_out = 1;
    r.out[0] = y;
    return Status::ok;
}

constexpr Operand kX[] = {{"x"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "axes", .kind = AttrKind::axes, .none_ok = true},
    {.name = "keepdims", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_reduce_min = {"reduce_min", kX, 1, kAttrs, 2, infer, run<Least>};
extern const Entry op_reduce_prod = {"reduce_prod", kX, 1, kAttrs, 2, infer, run<Product>};

}  // namespace tw::TW_ISA
