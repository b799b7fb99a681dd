// Rows of a table by index, y[i] = w[indices[i]], held to a norm where one is given (row_norm.h), and the gradient of the table, dw[r] = sum of dy[i] over indices[i] = r.
//
// Method    indices are checked and copied first, so that nothing is written if one is wrong. Gradient: places sorted by
//           row by counting; each row of dw is summed and written once.
// Numerics  copies are exact; a row of dw is a running sum in order of the places, rounded once if it is of 16 bits.
// Threads   rows of the result.
#include "core/check.h"
#include "core/walk.h"
#include "ops/row_norm.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

enum { kRows, kPaddingIdx, kByFrequency };
constexpr int kMost = 2;  // of the attributes of embedding

Status no_memory(int64_t n) {
    return fail(Status::memory, "", "no memory for %lld indices; want fewer", static_cast<long long>(n));
}

// copy[i] = index i in C order, each of them in [0, rows).
Status check_indices(const View& indices, int64_t rows, int64_t* copy) {
    View checked = result(DType::i64, indices.ndim, indices.shape);
    set_contiguous(checked);
    checked.data = copy;
    const View* views[] = {&checked, &indices};
    const Walk w = walk_over(views, 2, indices.ndim, indices.shape);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        int64_t* const to = reinterpret_cast<int64_t*>(at[0]);
        for (int64_t i = 0; i < count; ++i)
            to[i * w.stride[0]] = indices.dtype == DType::i32
                                      ? reinterpret_cast<const int32_t*>(at[1])[i * w.stride[1]]
                                      : reinterpret_cast<const int64_t*>(at[1])[i * w.stride[1]];
    });
    for (int64_t i = 0, n = numel(indices); i < n; ++i)
        if (copy[i] < 0 || copy[i] >= rows)
            return fail(Status::index, "indices", "indices has %lld at position %lld; want 0 to %lld",
                        static_cast<long long>(copy[i]), static_cast<long long>(i), static_cast<long long>(rows - 1));
    return Status::ok;
}

// A tensor whose last axis is that of the table, as rows.
struct TableRows {
    Axes lead;
    char* data;
    int64_t step;
};
TableRows rows_of(const View& v) {
    TableRows r{};
    r.lead.count = 1;
    for (int d = 0; d + 1 < v.ndim; ++d) append_axis(r.lead, v.shape[d], v.stride[d]);
    r.data = v.as<char>(), r.step = v.stride[v.ndim - 1];
    return r;
}
template <class T>
TW_INLINE T* row_at(const TableRows& r, int64_t i) {
    return reinterpret_cast<T*>(r.data) + offset_of(r.lead, i);
}

template <class T>
void look_up(const View& w, const View& y, const int64_t* indices, int64_t count, const Attr* attr) {
    typedef Wide<T> W;
    const TableRows to = rows_of(y), from = rows_of(w);
    const int64_t width = w.shape[1], per_chunk = max_of(1, kChunkElements / max_of(1, width));
    parallel(ceil_div(count, per_chunk), [&](int64_t chunk) {
        for (int64_t i = chunk * per_chunk, last = min_of(count, i + per_chunk); i < last; ++i)
            if (attr[kMost].is_none) {
                copy_row(row_at<T>(to, i), to.step, row_at<const T>(from, indices[i]), from.step, width);
            } else {
                const T* const row = row_at<const T>(from, indices[i]);
                const W by = held_to(row, from.step, width, attr[kMost], attr[kMost + 1]);
                each_vector<T>(width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
                    put(row_at<T>(to, i), to.step, j, n, take(row, from.step, j, n) * by);
                });
            }
    });
}

Status infer(Call& c, Inferred& r) {
    const View &w = c.in[0], &indices = c.in[1];
    TW_TRY(want_floating(w, "w"));
    TW_TRY(want_ndim(w, "w", 2, 2));
    if (indices.dtype != DType::i32 && indices.dtype != DType::i64)
        return fail(Status::dtype, "indices", "indices has dtype %s; want int32 or int64", name_of(indices.dtype));
    TW_TRY(want_ndim(indices, "indices", 0, kMaxDims - 1));
    Attr& padding = c.attr[0];
    if (!padding.is_none && (padding.i < 0 || padding.i >= w.shape[0]))
        return fail(Status::attr, "padding_idx", "padding_idx=%lld; want None or 0 to %lld",
                    static_cast<long long>(padding.i), static_cast<long long>(w.shape[0] - 1));
    TW_TRY(check_norm(c.attr[kMost], c.attr[kMost + 1]));
    r.n_out = 1;
    r.out[0] = result(w.dtype, indices.ndim + 1, indices.shape);
    r.out[0].shape[indices.ndim] = w.shape[1];
    return Status::ok;
}

Status run(const Call& c) {
    const int64_t count = numel(c.in[1]);
    Scratch copy(static_cast<size_t>(count + 1) * sizeof(int64_t));
    if (!copy.as<int64_t>()) return no_memory(count);
    TW_TRY(check_indices(c.in[1], c.in[0].shape[0], copy.as<int64_t>()));
    if (numel(c.out[0]) == 0) return Status::ok;
    for_floating(c.in[0].dtype, [&]<class T>() { look_up<T>(c.in[0], c.out[0], copy.as<int64_t>(), count, c.attr); });
    return Status::ok;
}

// ---- the gradient -----------------------------------------------------------------------------------------------------------

// Places of row r are order[start[r]] to order[start[r + 1]], ascending.
void sort_places(const int64_t* indices, int64_t count, int64_t rows, int64_t* start, int64_t* order) {
    for (int64_t r = 0; r <= rows; ++r) start[r] = 0;
    for (int64_t i = 0; i < count; ++i) ++start[indices[i] + 1];
    for (int64_t r = 0; r < rows; ++r) start[r + 1] += start[r];
    for (int64_t i = 0; i < count; ++i) order[start[indices[i]]++] = i;
    for (int64_t r = rows; r > 0; --r) start[r] = start[r - 1];
    start[0] = 0;
}

template <class T>
void sum_rows(const Call& c, const int64_t* start, const int64_t* order) {
    typedef Wide<T> W;
    const View &dy = c.in[0], &dw = c.out[0];
    const TableRows from = rows_of(dy), to = rows_of(dw);
    const int64_t rows = dw.shape[0], width = dw.shape[1], per_chunk = max_of(1, kChunkElements / max_of(1, width) / 4);
    const int64_t padding = c.attr[kPaddingIdx].is_none ? -1 : c.attr[kPaddingIdx].i;
    parallel(ceil_div(rows, per_chunk), [&](int64_t chunk) {
        for (int64_t r = chunk * per_chunk, last = min_of(rows, r + per_chunk); r < last; ++r) {
            const int64_t begin = start[r], end = r == padding ? begin : start[r + 1];
            const W share = c.attr[kByFrequency].i && end > begin ? W{1} / static_cast<W>(end - begin) : W{1};
            T* const at = row_at<T>(to, r);
            each_vector<T>(width, [&](int64_t j, int64_t n) __attribute__((always_inline)) {
                Vec<W> sum{};
                for (int64_t i = begin; i < end; ++i) sum += take(row_at<const T>(from, order[i]), from.step, j, n);
                put(at, to.step, j, n, sum * share);
            });
        }
    });
}

Status infer_dw(Call& c, Inferred& r) {
    const View &dy = c.in[0], &indices = c.in[1];
    const int64_t rows = c.attr[kRows].i;
    TW_TRY(want_floating(dy, "dy"));
    if (indices.dtype != DType::i32 && indices.dtype != DType::i64)
        return fail(Status::dtype, "indices", "indices has dtype %s; want int32 or int64", name_of(indices.dtype));
    TW_TRY(want_ndim(indices, "indices", 0, kMaxDims - 1));
    TW_TRY(want_ndim(dy, "dy", indices.ndim + 1, indices.ndim + 1));
    for (int d = 0; d < indices.ndim; ++d)
        if (dy.shape[d] != indices.shape[d])
            return fail(Status::shape, "dy", "dy has shape %s but indices has %s; want that and one axis more",
                        shape_text(dy).text, shape_text(indices).text);
    if (rows < 0 || rows >= kMaxSize)
        return fail(Status::attr, "rows", "rows=%lld; want 0 or more, below 2^40", static_cast<long long>(rows));
    const Attr& padding = c.attr[kPaddingIdx];
    if (!padding.is_none && (padding.i < 0 || padding.i >= rows))
        return fail(Status::attr, "padding_idx", "padding_idx=%lld; want None or 0 to %lld",
                    static_cast<long long>(padding.i), static_cast<long long>(rows - 1));
    const int64_t shape[] = {rows, dy.shape[dy.ndim - 1]};
    r.n_out = 1;
    r.out[0] = result(dy.dtype, 2, shape);
    r.flops = static_cast<double>(numel(dy));
    return Status::ok;
}

Status run_dw(const Call& c) {
    const int64_t count = numel(c.in[1]), rows = c.attr[kRows].i;
    Scratch scratch(static_cast<size_t>(2 * count + rows + 2) * sizeof(int64_t));
    int64_t* const copy = scratch.as<int64_t>();
    if (!copy) return no_memory(count);
    TW_TRY(check_indices(c.in[1], rows, copy));
    if (numel(c.out[0]) == 0) return Status::ok;
    int64_t *const order = copy + count, *const start = order + count;
    sort_places(copy, count, rows, start, order);
    for_floating(c.in[0].dtype, [&]<class T>() { sum_rows<T>(c, start, order); });
    return Status::ok;
}

constexpr Operand kForward[] = {{"w"}, {"indices"}};
constexpr Operand kGradient[] = {{"dy"}, {"indices"}};
constexpr AttrSpec kAttrs[] = {{.name = "padding_idx", .kind = AttrKind::integer, .none_ok = true},
                               {.name = "scale_by_frequency", .kind = AttrKind::boolean},
                               kMaxNorm,
                               kNormType};
constexpr AttrSpec kGradientAttrs[] = {{.name = "rows", .kind = AttrKind::integer, .required = true},
                                       {.name = "padding_idx", .kind = AttrKind::integer, .none_ok = true},
                                       {.name = "scale_by_frequency", .kind = AttrKind::boolean}};

}  // namespace

extern const Entry op_embedding = {"embedding", kForward, 2, kAttrs, TW_COUNT(kAttrs), infer, run};
extern const Entry op_embedding_dw = {"embedding_dw", kGradient, 2, kGradientAttrs, 3, infer_dw, run_dw};

}  // namespace tw::TW_ISA
