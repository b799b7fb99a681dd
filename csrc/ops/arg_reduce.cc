// Where the largest and smallest elements are: argmax, argmin, and the k largest or smallest in order.
//
// Method    a line along the axis at a time. top_k keeps a heap of the k best seen, its worst on top, and sorts it last.
// Numerics  exact; NaN counts as larger than all. Of equal elements the first wins, or the last with last=True (arg), and
//           the one of the lower index comes first (top_k).
// Threads   lines.
#include "core/axes.h"
#include "core/check.h"
#include "ops/pieces.h"

namespace tw::TW_ISA {
namespace {

// body.operator()<T>() for the number type of a dtype.
template <class Body>
void for_number(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::i8: return body.template operator()<int8_t>();
        case DType::u8: return body.template operator()<uint8_t>();
        case DType::i16: return body.template operator()<int16_t>();
        case DType::u16: return body.template operator()<uint16_t>();
        case DType::i32: return body.template operator()<int32_t>();
        case DType::u32: return body.template operator()<uint32_t>();
        case DType::i64: return body.template operator()<int64_t>();
        case DType::u64: return body.template operator()<uint64_t>();
        default: return for_floating(dtype, body);
    }
}

// a is above b; NaN is above every number.
template <class W>
TW_INLINE bool above(W a, W b) {
    return a > b || (a != a && b == b);
}

// The lines of v along an axis.
Axes lines_of(const View& v, int axis) {
    Axes a{};
    a.count = 1;
    for (int d = 0; d < v.ndim; ++d)
        if (d != axis) append_axis(a, v.shape[d], v.stride[d]);
    return a;
}

Status want_comparable(const View& x) {
    TW_TRY(want_number(x, "x"));
    return want_ndim(x, "x", 1, kMaxDims);
}

// ---- argmax, argmin -----------------------------------------------------------------------------------------------------

enum ArgAttr { kArgAxis, kKeepdims, kLast };

Status infer_arg(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_comparable(x));
    TW_TRY(resolve_axis(c.attr[kArgAxis], "axis", x.ndim));
    const int axis = static_cast<int>(c.attr[kArgAxis].i);
    if (x.shape[axis] == 0)
        return fail(Status::shape, "x", "x has shape %s, no elements along axis %d; want at least one",
                    shape_text(x).text, axis);
    View y = result(DType::i64, 0, x.shape);
    for (int d = 0; d < x.ndim; ++d)
        if (d != axis || c.attr[kKeepdims].i) y.shape[y.ndim++] = d == axis ? 1 : x.shape[d];
    r.n_out = 1;
    r.out[0] = y;
    return Status::ok;
}

template <class T, bool Largest>
int64_t best_of(const T* x, int64_t step, int64_t n, bool last) {
    int64_t best = 0;
    Wide<T> top = widened(x[0]);
    for (int64_t i = 1; i < n; ++i) {
        const Wide<T> v = widened(x[i * step]);
        const bool better = (Largest ? v > top : v < top) || (v != v && top == top);
        const bool tied = v == top || (v != v && top != top);
        if (better || (last && tied)) best = i, top = v;
    }
    return best;
}

template <bool Largest>
Status run_arg(const Call& c) {
    const View &x = c.in[0], &y = c.out[0];
    const int axis = static_cast<int>(c.attr[kArgAxis].i);
    const Axes lines = lines_of(x, axis), to = lines_of(y, c.attr[kKeepdims].i ? axis : -1);
    const int64_t n = x.shape[axis], per_chunk = max_of(1, kChunkElements / n);
    for_number(x.dtype, [&]<class T>() {
        parallel(ceil_div(lines.count, per_chunk), [&](int64_t chunk) {
            for (int64_t i = chunk * per_chunk, end = min_of(lines.count, i + per_chunk); i < end; ++i)
                y.as<int64_t>()[offset_of(to, i)] =
                    best_of<T, Largest>(x.as<const T>() + offset_of(lines, i), x.stride[axis], n, c.attr[kLast].i != 0);
        });
    });
    return Status::ok;
}

// ---- top_k ------------------------------------------------------------------------------------------------------------

enum TopAttr { kK, kTopAxis, kLargest };

Status infer_top(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_comparable(x));
    TW_TRY(resolve_axis(c.attr[kTopAxis], "axis", x.ndim));
    const int64_t k = c.attr[kK].i, n = x.shape[c.attr[kTopAxis].i];
    if (k < 0 || k > n)
        return fail(Status::attr, "k", "k=%lld; want 0 to %lld, the size of axis %lld", static_cast<long long>(k),
                    static_cast<long long>(n), static_cast<long long>(c.attr[kTopAxis].i));
    r.n_out = 2;
    r.out[0] = result(x.dtype, x.ndim, x.shape);
    r.out[0].shape[c.attr[kTopAxis].i] = k;
    r.out[1] = r.out[0];
    r.out[1].dtype = DType::i64;
    return Status::ok;
}

template <class T>
struct Line {
    const T* x;
    int64_t step;
    bool largest;
    // Whether element a comes behind element b.
    bool behind(int64_t a, int64_t b) const {
        const Wide<T> va = widened(x[a * step]), vb = widened(x[b * step]);
        if (largest ? above(vb, va) : above(va, vb)) return true;
        if (largest ? above(va, vb) : above(vb, va)) return false;
        return a > b;
    }
};

// Element 0 of a heap comes behind all others; `i` may be out of order.
template <class T>
void sift(const Line<T>& line, int64_t* heap, int64_t n, int64_t i) {
    for (;;) {
        int64_t last = i;
        for (int64_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; ++child)
            if (line.behind(heap[child], heap[last])) last = child;
        if (last == i) return;
        const int64_t held = heap[i];
        heap[i] = heap[last], heap[last] = held;
        i = last;
    }
}

template <class T>
void best_k(const Line<T>& line, int64_t n, int64_t* heap, int64_t k) {
    for (int64_t i = 0; i < k; ++i) heap[i] = i;
    for (int64_t i = k / 2 - 1; i >= 0; --i) sift(line, heap, k, i);
    for (int64_t i = k; i < n; ++i)
        if (line.behind(heap[0], i)) heap[0] = i, sift(line, heap, k, 0);
    for (int64_t size = k - 1; size > 0; --size) {
        const int64_t held = heap[0];
        heap[0] = heap[size], heap[size] = held;
        sift(line, heap, size, 0);
    }
}

Status run_top(const Call& c) {
    const View &x = c.in[0], &values = c.out[0], &places = c.out[1];
    const int axis = static_cast<int>(c.attr[kTopAxis].i);
    const int64_t k = c.attr[kK].i, n = x.shape[axis];
    const Axes lines = lines_of(x, axis), to = lines_of(values, axis), where = lines_of(places, axis);
    if (k == 0) return Status::ok;
    const int64_t per_chunk = max_of(1, kChunkElements / n);
    bool enough = true;
    for_number(x.dtype, [&]<class T>() {
        parallel(ceil_div(lines.count, per_chunk), [&](int64_t chunk) {
            Scratch scratch(static_cast<size_t>(k) * sizeof(int64_t));
            int64_t* const heap = scratch.as<int64_t>();
            if (!heap) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
            for (int64_t i = chunk * per_chunk, end = min_of(lines.count, i + per_chunk); i < end; ++i) {
                const Line<T> line = {x.as<const T>() + offset_of(lines, i), x.stride[axis], c.attr[kLargest].i != 0};
                best_k(line, n, heap, k);
                for (int64_t j = 0; j < k; ++j) {
                    values.as<T>()[offset_of(to, i) + j * values.stride[axis]] = line.x[heap[j] * line.step];
                    places.as<int64_t>()[offset_of(where, i) + j * places.stride[axis]] = heap[j];
                }
            }
        });
    });
    if (enough) return Status::ok;
    return fail(Status::memory, "", "no memory for %lld places; want a smaller k", static_cast<long long>(k));
}

constexpr Operand kX[] = {{"x"}};
constexpr AttrSpec kArg[] = {
    {.name = "axis", .kind = AttrKind::integer, .i = -1},
    {.name = "keepdims", .kind = AttrKind::boolean},
    {.name = "last", .kind = AttrKind::boolean},
};
constexpr AttrSpec kTop[] = {
    {.name = "k", .kind = AttrKind::integer, .required = true},
    {.name = "axis", .kind = AttrKind::integer, .i = -1},
    {.name = "largest", .kind = AttrKind::boolean, .i = 1},
};

}  // namespace

extern const Entry op_argmax = {"argmax", kX, 1, kArg, 3, infer_arg, run_arg<true>};
extern const Entry op_argmin = {"argmin", kX, 1, kArg, 3, infer_arg, run_arg<false>};
extern const Entry op_top_k = {"top_k", kX, 1, kTop, 3, infer_top, run_top};

}  // namespace tw::TW_ISA
