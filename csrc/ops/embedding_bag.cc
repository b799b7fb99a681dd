// Bags of rows of a table, y[b] = sum over i in bag b of weights[i] w[indices[i]], or their mean, or the largest of each
// column; bag b is the places offsets[b] to offsets[b + 1], the last one up to the end. Indices of padding_idx count nothing.
//
// Method    indices and offsets are checked and copied first, so that nothing is written if one is wrong. A bag is summed
//           in registers, a vector of columns at a time. Gradient: places sorted by row by counting, each row of dw is
//           summed and written once; of the largest, columns in pieces pass over all bags.
// Numerics  running sums in the order of the places, in the wide type, rounded once; means divide the sum. An empty bag
//           is zero. Of equal numbers the first is the largest, a NaN before all.
// Threads   bags; rows of the gradient, or pieces of its columns.
#include "core/check.h"
#include "ops/row_norm.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

enum Mode { kSum, kMean, kMax };
constexpr int64_t kColumns = 64;  // of a piece
enum { kModeOf, kPadding, kFrequency, kMost };  // attributes

Status no_memory() { return fail(Status::memory, "", "no memory for the indices; want fewer"); }

struct Bags {
    const int64_t *indices, *offsets;  // copies; one offset more than there are bags
    int64_t places, count, rows, columns, padding;
    int mode;
    View weights;  // dtype none where there are none
};

TW_INLINE int64_t number_at(const View& v, int64_t i) {
    const int64_t at = i * v.stride[0];
    return v.dtype == DType::i32 ? v.as<int32_t>()[at] : v.as<int64_t>()[at];
}

// Copies of indices, each in [0, rows), and of offsets, from 0 up to the number of places.
Status copy_bags(const View& indices, const View& offsets, int64_t rows, int64_t* to) {
    const auto ll = [](int64_t n) { return static_cast<long long>(n); };
    const int64_t n = indices.shape[0], bags = offsets.shape[0];
    for (int64_t i = 0; i < n; ++i) {
        to[i] = number_at(indices, i);
        if (to[i] < 0 || to[i] >= rows)
            return fail(Status::index, "indices", "indices has %lld at position %lld; want 0 to %lld", ll(to[i]), ll(i),
                        ll(rows - 1));
    }
    int64_t* const start = to + n;
    for (int64_t b = 0; b < bags; ++b) {
        start[b] = number_at(offsets, b);
        const int64_t least = b ? start[b - 1] : 0, most = b ? n : 0;
        if (start[b] < least || start[b] > most)
            return fail(Status::index, "offsets", "offsets has %lld at position %lld; want %lld to %lld", ll(start[b]),
                        ll(b), ll(least), ll(most));
    }
    if (bags == 0 && n > 0)
        return fail(Status::index, "offsets", "offsets is empty but there are %lld indices; want bags for them", ll(n));
    start[bags] = n;
    return Status::ok;
}

Bags bags_of(const Call& c, const View& w, int first, const int64_t* copy) {
    const View &indices = c.in[first], &offsets = c.in[first + 1];
    return {copy,
            copy + indices.shape[0],
            indices.shape[0],
            offsets.shape[0],
            w.shape[0],
            w.shape[1],
            c.attr[1].is_none ? -1 : c.attr[1].i,
            c.attr[0].choice,
            c.in[first + 2]};
}

template <class T>
TW_INLINE Wide<T> weight_of(const Bags& g, int64_t place) {
    return given(g.weights) ? widened(g.weights.as<const T>()[place * g.weights.stride[0]]) : Wide<T>{1};
}
// By what a sum is multiplied: 1, or 1 over the places that count.
template <class W>
TW_INLINE W share_of(const Bags& g, int64_t bag) {
    int64_t n = 0;
    if (g.mode != kMean) return W{1};
    for (int64_t i = g.offsets[bag]; i < g.offsets[bag + 1]; ++i) n += g.indices[i] != g.padding;
    return n ? W{1} / static_cast<W>(n) : W{1};
}

template <class T>
void sum_bags(const Bags& g, const View& w, const View& y, const Wide<T>* held) {
    typedef Wide<T> W;
    const int64_t per_chunk = max_of(1, kChunkElements / max_of(1, g.columns) / 8);
    parallel(ceil_div(g.count, per_chunk), [&](int64_t chunk) {
        for (int64_t b = chunk * per_chunk, last = min_of(g.count, b + per_chunk); b < last; ++b) {
            T* const to = y.as<T>() + b * y.stride[0];
            const W share = share_of<W>(g, b);
            each_vector<T>(g.columns, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
                Vec<W> sum{};
                bool any = false;
                for (int64_t i = g.offsets[b]; i < g.offsets[b + 1]; ++i) {
                    if (g.indices[i] == g.padding) continue;
                    Vec<W> row = take(w.as<const T>() + g.indices[i] * w.stride[0], w.stride[1], j, n);
                    if (held) row *= held[i];
                    if (g.mode == kMax)
                        sum = any ? max_nan(sum, row) : row;
                    else
                        sum += row * weight_of<T>(g, i);
                    any = true;
                }
                put(to, y.stride[1], j, n, g.mode == kMean ? sum * share : sum);
            });
        }
    });
}

Status check(const View& w, const View& indices, const View& offsets, const View& weights, const Attr* attr) {
    TW_TRY(want_floating(w, "w"));
    TW_TRY(want_ndim(w, "w", 2, 2));
    const View* const numbers[] = {&indices, &offsets};
    for (const View* v : numbers) {
        const char* const name = v == &indices ? "indices" : "offsets";
        if (v->dtype != DType::i32 && v->dtype != DType::i64)
            return fail(Status::dtype, name, "%s has dtype %s; want int32 or int64", name, name_of(v->dtype));
        TW_TRY(want_ndim(*v, name, 1, 1));
    }
    if (given(weights)) {
        if (attr[0].choice != kSum)
            return fail(Status::attr, "mode", "mode is not \"sum\" but weights are given; want \"sum\"");
        TW_TRY(want_dtype_of(weights, "weights", w, "w"));
        TW_TRY(want_shape(weights, "weights", 1, indices.shape));
    }
    if (attr[kFrequency].i && attr[kModeOf].choice == kMax)
        return fail(Status::attr, "scale_by_frequency",
                    "scale_by_frequency with mode=\"max\"; want \"sum\" or \"mean\"");
    if (!attr[1].is_none && (attr[1].i < 0 || attr[1].i >= w.shape[0]))
        return fail(Status::attr, "padding_idx", "padding_idx=%lld; want None or 0 to %lld",
                    static_cast<long long>(attr[1].i), static_cast<long long>(w.shape[0] - 1));
    return Status::ok;
}

Status infer(Call& c, Inferred& r) {
    TW_TRY(check(c.in[0], c.in[1], c.in[2], c.in[3], c.attr));
    TW_TRY(check_norm(c.attr[kMost], c.attr[kMost + 1]));
    const int64_t shape[] = {c.in[2].shape[0], c.in[0].shape[1]};
    r.n_out = 1;
    r.out[0] = result(c.in[0].dtype, 2, shape);
    r.flops = 2.0 * static_cast<double>(c.in[1].shape[0]) * static_cast<double>(c.in[0].shape[1]);
    return Status::ok;
}

Status run(const Call& c) {
    const int64_t places = c.in[1].shape[0], numbers = places + c.in[2].shape[0] + 1;
    const bool holds = !c.attr[kMost].is_none;
    Scratch copy(static_cast<size_t>(numbers + (holds ? places : 0)) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory();
    TW_TRY(copy_bags(c.in[1], c.in[2], c.in[0].shape[0], copy.as<int64_t>()));
    if (numel(c.out[0]) == 0) return Status::ok;
    const Bags g = bags_of(c, c.in[0], 1, copy.as<int64_t>());
    for_floating(c.in[0].dtype, [&]<class T>() {
        const View& w = c.in[0];
        Wide<T>* const held = holds ? reinterpret_cast<Wide<T>*>(copy.as<int64_t>() + numbers) : nullptr;
        const int64_t per_chunk = max_of(1, kChunkElements / max_of(1, g.columns));
        parallel(holds ? ceil_div(places, per_chunk) : 0, [&](int64_t chunk) {
            for (int64_t i = chunk * per_chunk, last = min_of(places, i + per_chunk); i < last; ++i)
                held[i] = held_to(w.as<const T>() + g.indices[i] * w.stride[0], w.stride[1], g.columns, c.attr[kMost],
                                  c.attr[kMost + 1]);
        });
        sum_bags<T>(g, w, c.out[0], held);
    });
    return Status::ok;
}

// ---- gradients --------------------------------------------------------------------------------------------------------------

// Places of row r are order[start[r]] to order[start[r + 1]], ascending; bag[i] is the bag of place i.
void sort_places(const Bags& g, int64_t* start, int64_t* order, int64_t* bag) {
    for (int64_t b = 0; b < g.count; ++b)
        for (int64_t i = g.offsets[b]; i < g.offsets[b + 1]; ++i) bag[i] = b;
    for (int64_t r = 0; r <= g.rows; ++r) start[r] = 0;
    for (int64_t i = 0; i < g.places; ++i) ++start[g.indices[i] + 1];
    for (int64_t r = 0; r < g.rows; ++r) start[r + 1] += start[r];
    for (int64_t i = 0; i < g.places; ++i) order[start[g.indices[i]]++] = i;
    for (int64_t r = g.rows; r > 0; --r) start[r] = start[r - 1];
    start[0] = 0;
}

// Rows of dw from the sorted places: each times its weight and the share of its bag.
template <class T>
void slopes_of_rows(const Bags& g, const View& dy, const View& dw, const int64_t* start, const int64_t* order,
                    const int64_t* bag, const Wide<T>* shares, bool by_frequency) {
    typedef Wide<T> W;
    const int64_t per_chunk = max_of(1, kChunkElements / max_of(1, g.columns) / 4);
    parallel(ceil_div(g.rows, per_chunk), [&](int64_t chunk) {
        for (int64_t r = chunk * per_chunk, last = min_of(g.rows, r + per_chunk); r < last; ++r) {
            const int64_t begin = start[r], end = r == g.padding ? begin : start[r + 1];
            const W share = by_frequency && end > begin ? W{1} / static_cast<W>(end - begin) : W{1};
            each_vector<T>(g.columns, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
                Vec<W> sum{};
                for (int64_t i = begin; i < end; ++i) {
                    const int64_t b = bag[order[i]];
                    const W by = weight_of<T>(g, order[i]) * shares[b];
                    sum += take(dy.as<const T>() + b * dy.stride[0], dy.stride[1], j, n) * by;
                }
                put(dw.as<T>() + r * dw.stride[0], dw.stride[1], j, n, sum * share);
            });
        }
    });
}

// dw of the largest: in each column dy goes to the first place that holds the largest number of the bag.
template <class T>
void slopes_of_largest(const Bags& g, const View& dy, const View& w, const View& dw, Wide<T>* sums) {
    typedef Wide<T> W;
    parallel(ceil_div(g.columns, kColumns), [&](int64_t piece) {
        const int64_t first = piece * kColumns, last = min_of(g.columns, first + kColumns);
        for (int64_t j = first; j < last; ++j) {
            W* const own = sums + j * g.rows;
            for (int64_t r = 0; r < g.rows; ++r) own[r] = 0;
            for (int64_t b = 0; b < g.count; ++b) {
                int64_t best = -1;
                W top = 0;
                for (int64_t i = g.offsets[b]; i < g.offsets[b + 1]; ++i) {
                    if (g.indices[i] == g.padding) continue;
                    const W v = widened(w.as<const T>()[g.indices[i] * w.stride[0] + j * w.stride[1]]);
                    if (best < 0 || v > top || (v != v && top == top)) best = g.indices[i], top = v;
                }
                if (best >= 0) own[best] += widened(dy.as<const T>()[b * dy.stride[0] + j * dy.stride[1]]);
            }
            for (int64_t r = 0; r < g.rows; ++r) dw.as<T>()[r * dw.stride[0] + j * dw.stride[1]] = narrowed<T>(own[r]);
        }
    });
}

// dweights[i] = dy of its bag times its row.
template <class T>
void slopes_of_weights(const Bags& g, const View& dy, const View& w, const View& to, const int64_t* bag) {
    typedef Wide<T> W;
    const int64_t per_chunk = max_of(1, kChunkElements / max_of(1, g.columns));
    parallel(ceil_div(g.places, per_chunk), [&](int64_t chunk) {
        for (int64_t i = chunk * per_chunk, last = min_of(g.places, i + per_chunk); i < last; ++i) {
            const T* const row = w.as<const T>() + g.indices[i] * w.stride[0];
            const T* const slope = dy.as<const T>() + bag[i] * dy.stride[0];
            Vec<W> sum{};
            each_vector<T>(g.columns, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
                const Vec<W> part = take(row, w.stride[1], j, n) * take(slope, dy.stride[1], j, n);
                sum += n == kLanes<W> ? part : first_lanes<W>(part, Vec<W>{}, n);
            });
            to.as<T>()[i * to.stride[0]] = narrowed<T>(g.indices[i] == g.padding ? W{0} : reduce_add(sum));
        }
    });
}

Status infer_dw(Call& c, Inferred& r) {
    const View &dy = c.in[0], &w = c.in[1];
    TW_TRY(check(w, c.in[2], c.in[3], c.in[4], c.attr));
    const int64_t shape[] = {c.in[3].shape[0], w.shape[1]};
    TW_TRY(want_dtype_of(dy, "dy", w, "w"));
    TW_TRY(want_shape(dy, "dy", 2, shape));
    r.n_out = 1;
    r.out[0] = result(w.dtype, 2, w.shape);
    if (given(c.in[4])) r.out[r.n_out++] = result(w.dtype, 1, c.in[2].shape);
    r.flops = 2.0 * static_cast<double>(c.in[2].shape[0]) * static_cast<double>(w.shape[1]);
    return Status::ok;
}

Status run_dw(const Call& c) {
    const View &dy = c.in[0], &w = c.in[1];
    const int64_t places = c.in[2].shape[0], bags = c.in[3].shape[0], rows = w.shape[0], columns = w.shape[1];
    const int64_t numbers = 3 * places + bags + rows + 3;
    const int64_t wide = bags + (c.attr[0].choice == kMax ? rows * columns : 0) + 1;
    Scratch scratch(static_cast<size_t>(numbers) * sizeof(int64_t) + static_cast<size_t>(wide) * sizeof(double));
    int64_t* const copy = scratch.as<int64_t>();
    if (!copy) return no_memory();
    TW_TRY(copy_bags(c.in[2], c.in[3], rows, copy));
    const Bags g = bags_of(c, w, 2, copy);
    int64_t *const order = copy + places + bags + 1, *const bag = order + places, *const start = bag + places;
    sort_places(g, start, order, bag);
    for_floating(w.dtype, [&]<class T>() {
        typedef Wide<T> W;
        W* const shares = reinterpret_cast<W*>(copy + numbers);
        for (int64_t b = 0; b < bags; ++b) shares[b] = share_of<W>(g, b);
        if (numel(w) && g.mode == kMax)
            slopes_of_largest<T>(g, dy, w, c.out[0], shares + bags);
        else if (numel(w))
            slopes_of_rows<T>(g, dy, c.out[0], start, order, bag, shares, c.attr[kFrequency].i != 0);
        if (c.n_out > 1) slopes_of_weights<T>(g, dy, w, c.out[1], bag);
    });
    return Status::ok;
}

constexpr Operand kForward[] = {{"w"}, {"indices"}, {"offsets"}, {"weights", Role::optional}};
constexpr Operand kGradient[] = {{"dy"}, {"w"}, {"indices"}, {"offsets"}, {"weights", Role::optional}};
constexpr AttrSpec kAttrs[] = {{.name = "mode", .kind = AttrKind::choice, .choices = "sum|mean|max"},
                               {.name = "padding_idx", .kind = AttrKind::integer, .none_ok = true},
                               {.name = "scale_by_frequency", .kind = AttrKind::boolean},
                               kMaxNorm,
                               kNormType};

}  // namespace

extern const Entry op_embedding_bag = {"embedding_bag", kForward, 4, kAttrs, TW_COUNT(kAttrs), infer, run};
extern const Entry op_embedding_bag_dw = {"embedding_bag_dw", kGradient, 5, kAttrs, kMost, infer_dw, run_dw};

}  // namespace tw::TW_ISA
