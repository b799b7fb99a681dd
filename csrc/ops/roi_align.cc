// Pooling of boxes of x (N, C, H, W) into cells of a grid of size (P, Q), and the gradient of the mean in x:
//   a box (x1, y1, x2, y2) in units of x / scale has P x Q cells of grid_y x grid_x samples in their middles; a sample is
//   interpolated linearly between its four neighbours, the border continued; beyond one element outside it is 0
//   y = mean or maximum of a cell's samples, or the maximum of their weighted neighbours, max_corner, which ONNX has
//
// Method    samples lie on a grid, so that means are rows times columns: weights of the rows of x per cell, those of the
//           columns alike, once per box; then per channel the rows are summed as vectors. The maximum interpolates the
//           rows of each line of samples, then its columns.
// Numerics  places in double, sums in the type of x, for 16-bit types in float32 and rounded once; what has weight 0 does
//           not count. A box with a NaN or an infinity gives NaN. Samples outside cost nothing, so no box takes longer than
//           one about the size of x.
// Threads   by boxes and groups of channels, the gradient by groups of channels of a sample.
// Source    He et al., "Mask R-CNN", 2017; ONNX RoiAlign.
#include "core/check.h"
#include "core/pooling.h"
#include "ops/in_float32.h"
#include "ops/ops.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

enum { kSize, kScale, kSampling, kMode, kAligned };
enum Mode { kMean, kMax, kMaxCorner };
enum { kShape, kDxScale, kDxSampling, kDxAligned };

constexpr int64_t kMostCells = 1 << 15, kMostSamples = 1 << 10;

Status no_memory() { return fail(Status::memory, "", "no memory for the weights of a box; want a smaller size"); }

// The samples of a box along one axis of x.
struct Along {
    double start, cell, step;  // of the box, of a cell, from sample to sample
    int64_t cells, size;  // along the box; of x
    int64_t grid;  // samples of a cell
};

Along along(double from, double to, double scale, bool aligned, int64_t cells, int64_t size, int64_t sampling) {
    Along a;
    a.start = from * scale - (aligned ? 0.5 : 0);
    double length = (to - from) * scale;
    if (!aligned && length < 1) length = 1;
    a.cells = cells;
    a.size = size;
    a.cell = length / static_cast<double>(cells);
    const double grid = sampling ? static_cast<double>(sampling) : __builtin_ceil(a.cell);
    a.grid = grid > 0 ? (grid < 0x1p60 ? static_cast<int64_t>(grid) : int64_t{1} << 60) : 0;  // NaN: none
    a.step = a.cell / static_cast<double>(a.grid);
    return a;
}
bool is_finite(const Along& a) { return __builtin_isfinite(a.start) && __builtin_isfinite(a.cell * 0x1p20); }

double place_of(const Along& a, int64_t cell, int64_t i) {
    return a.start + static_cast<double>(cell) * a.cell + (static_cast<double>(i) + 0.5) * a.step;
}

// The samples of a cell that may not be 0: those between -1 and size, give or take one.
Taps samples_of(const Along& a, int64_t cell) {
    const double first = place_of(a, cell, 0), size = static_cast<double>(a.size), grid = static_cast<double>(a.grid);
    if (!(a.step > 0)) return {0, a.grid};
    const double from = (-1 - first) / a.step - 1, to = (size - first) / a.step + 2;
    const double low = from > 0 ? (from < grid ? from : grid) : 0, high = to < grid ? (to > 0 ? to : 0) : grid;
    return {static_cast<int64_t>(low), static_cast<int64_t>(high)};
}

// Neighbours and the weight of the second, both the same where that is 0; false outside.
struct Between {
    int64_t low, high;
    double part;
};
bool between(const Along& a, double at, Between& b) {
    if (!(at >= -1 && at <= static_cast<double>(a.size))) return false;
    if (at < 0) at = 0;
    b.low = static_cast<int64_t>(at);
    if (b.low >= a.size - 1) {
        b = {a.size - 1, a.size - 1, 0};
    } else {
        b.part = at - static_cast<double>(b.low);
        b.high = b.low + (b.part > 0);
    }
    return true;
}

// Weights of the elements of x per cell: those of cell k are weight[begin[k] ..] for elements first[k] and on.
template <class W>
struct Weights {
    int64_t *first, *begin;  // begin has one more
    W* weight;
};
// Numbers of room: neighbouring cells share an element at most twice.
int64_t room_of(int64_t cells, int64_t size) { return size + 4 * cells + size / 2; }

template <class W>
void weigh(const Along& a, const Weights<W>& w) {
    int64_t at = 0;
    for (int64_t k = 0; k < a.cells; ++k) {
        w.begin[k] = at;
        w.first[k] = 0;
        int64_t end = at;
        const Taps taps = samples_of(a, k);
        Between b;
        for (int64_t i = taps.first; i < taps.last; ++i) {
            const int64_t rising = a.step < 0 ? taps.first + taps.last - 1 - i : i;
            if (!between(a, place_of(a, k, rising), b)) continue;
            if (end == at) w.first[k] = b.low;
            for (; end <= at + b.high - w.first[k]; ++end) w.weight[end] = 0;
            w.weight[at + b.low - w.first[k]] += static_cast<W>((1 - b.part) / static_cast<double>(a.grid));
            w.weight[at + b.high - w.first[k]] += static_cast<W>(b.part / static_cast<double>(a.grid));
        }
        at = end;
    }
    w.begin[a.cells] = at;
}

// A box in x: its axes, and the columns that any of its cells reads.
template <class T>
struct Box {
    Along y, x;
    Weights<T> rows, columns;
    int64_t left, right;
    bool finite;
};

struct Problem {
    View image, boxes, images;  // images: the number of each box's sample
    double scale;
    int64_t sampling;
    bool aligned;
    int64_t cells[2];
};

template <class T>
int64_t scratch_bytes(const Problem& p) {
    const int64_t h = p.image.shape[2], w = p.image.shape[3], cells = p.cells[0] + p.cells[1];
    return (2 * cells + 2) * 8 +
           (room_of(p.cells[0], h) + room_of(p.cells[1], w) + w + 2 * kLanes<T>)*static_cast<int64_t>(sizeof(T));
}

template <class T>
T box_number(const Problem& p, int64_t box, int k) {
    return p.boxes.as<const T>()[box * p.boxes.stride[0] + k * p.boxes.stride[1]];
}

// Lays out a box in scratch; `row` gets a row of x.
template <class T>
Box<T> box_of(const Problem& p, int64_t r, char* scratch, T*& row, bool weighs) {
    Box<T> b;
    const double x1 = static_cast<double>(box_number<T>(p, r, 0)), y1 = static_cast<double>(box_number<T>(p, r, 1)),
                 x2 = static_cast<double>(box_number<T>(p, r, 2)), y2 = static_cast<double>(box_number<T>(p, r, 3));
    b.y = along(y1, y2, p.scale, p.aligned, p.cells[0], p.image.shape[2], p.sampling);
    b.x = along(x1, x2, p.scale, p.aligned, p.cells[1], p.image.shape[3], p.sampling);
    b.finite = is_finite(b.y) && is_finite(b.x);
    int64_t* const whole = reinterpret_cast<int64_t*>(scratch);
    b.rows.first = whole;
    b.rows.begin = b.rows.first + p.cells[0];
    b.columns.first = b.rows.begin + p.cells[0] + 1;
    b.columns.begin = b.columns.first + p.cells[1];
    row = reinterpret_cast<T*>(b.columns.begin + p.cells[1] + 1);
    b.rows.weight = row + p.image.shape[3] + 2 * kLanes<T>;
    b.columns.weight = b.rows.weight + room_of(p.cells[0], p.image.shape[2]);
    b.left = p.image.shape[3];
    b.right = 0;
    if (!b.finite || !weighs) return b;
    weigh(b.y, b.rows);
    weigh(b.x, b.columns);
    for (int64_t k = 0; k < p.cells[1]; ++k) {
        const int64_t n = b.columns.begin[k + 1] - b.columns.begin[k];
        if (n == 0) continue;
        b.left = min_of(b.left, b.columns.first[k]);
        b.right = max_of(b.right, b.columns.first[k] + n);
    }
    return b;
}

// ---- forward ----------------------------------------------------------------------------------------------------------------

template <class T>
void mean_of_plane(const Box<T>& b, const T* x, int64_t down, int64_t across, T* row, T* y, int64_t y_down,
                   int64_t y_across) {
    for (int64_t i = 0; i < b.y.cells; ++i) {
        const int64_t rows = b.rows.begin[i + 1] - b.rows.begin[i];
        for (int64_t j = b.left; j < b.right; j += kLanes<T>) {
            const int64_t n = min_of(b.right - j, kLanes<T>);
            Vec<T> v{};
            for (int64_t k = 0; k < rows; ++k) {
                const T weight = b.rows.weight[b.rows.begin[i] + k];
                if (weight != 0) v += take(x + (b.rows.first[i] + k) * down, across, j, n) * weight;
            }
            store(row + j, v);
        }
        for (int64_t q = 0; q < b.x.cells; ++q) {
            const T* const from = row + b.columns.first[q];
            T sum = 0;
            for (int64_t k = b.columns.begin[q]; k < b.columns.begin[q + 1]; ++k)
                if (b.columns.weight[k] != 0) sum += b.columns.weight[k] * from[k - b.columns.begin[q]];
            y[i * y_down + q * y_across] = sum;
        }
    }
}

template <class T>
T larger(T best, T v, bool& begun) {
    const bool better = !begun || (best == best && !(v <= best));
    begun = true;
    return better ? v : best;
}

template <class T>
T share(T value, T weight) {
    return weight != 0 ? value * weight : 0;
}

// Samples outside are zeros, and there are some where fewer than all lie inside.
template <class T>
void top_of_plane(const Box<T>& b, const T* x, int64_t down, int64_t across, T* y, int64_t y_down, int64_t y_across,
                  bool corners) {
    for (int64_t i = 0; i < b.y.cells; ++i)
        for (int64_t q = 0; q < b.x.cells; ++q) {
            const Taps ty = samples_of(b.y, i), tx = samples_of(b.x, q);
            bool begun = false;
            T best = 0;
            const bool all = ty.last - ty.first == b.y.grid && tx.last - tx.first == b.x.grid;
            if (!all) best = larger<T>(best, 0, begun);
            for (int64_t s = ty.first; s < ty.last; ++s) {
                Between v = {}, h = {};
                const bool inside = between(b.y, place_of(b.y, i, s), v);
                for (int64_t t = tx.first; t < tx.last; ++t) {
                    T value = 0;
                    if (inside && between(b.x, place_of(b.x, q, t), h)) {
                        const T part = static_cast<T>(h.part), low = static_cast<T>(v.part);
                        const T *top = x + v.low * down, *bottom = x + v.high * down;
                        const T left = 1 - part, up = 1 - low;
                        if (corners) {
                            bool any = false;
                            value = larger(value, share(top[h.low * across], left * up), any);
                            value = larger(value, share(top[h.high * across], part * up), any);
                            value = larger(value, share(bottom[h.low * across], left * low), any);
                            value = larger(value, share(bottom[h.high * across], part * low), any);
                        } else {
                            const T above = top[h.low * across] * left + top[h.high * across] * part;
                            const T below = bottom[h.low * across] * left + bottom[h.high * across] * part;
                            value = above * up + below * low;
                        }
                    }
                    best = larger(best, value, begun);
                }
            }
            y[i * y_down + q * y_across] = best;
        }
}

constexpr int64_t kChannels = 32;  // of a chunk

Status check_images(const View& images, int64_t n) {
    for (int64_t r = 0; r < images.shape[0]; ++r) {
        const int64_t image = images.as<const int64_t>()[r * images.stride[0]];
        if (image < 0 || image >= n)
            return fail(Status::index, "images", "images has %lld at position %lld; want 0 to %lld, samples of x",
                        static_cast<long long>(image), static_cast<long long>(r), static_cast<long long>(n - 1));
    }
    return Status::ok;
}
int64_t image_of(const Problem& p, int64_t box) {
    const int64_t i = p.images.as<const int64_t>()[box * p.images.stride[0]];
    return i < 0 || i >= p.image.shape[0] ? 0 : i;  // another thread may write to the array meanwhile
}

template <class T>
Status forward(const Problem& p, const View& y, int mode) {
    const int64_t boxes = y.shape[0], channels = y.shape[1], groups = ceil_div(channels, kChannels);
    bool enough = true;
    const bool mean = mode == kMean;
    note_kernel(mean ? "mean" : "maximum");
    parallel(boxes * groups, [&](int64_t chunk) {
        const int64_t r = chunk / groups, first = chunk % groups * kChannels;
        Scratch scratch(static_cast<size_t>(scratch_bytes<T>(p)));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        T* row;
        const Box<T> b = box_of<T>(p, r, scratch.as<char>(), row, mean);
        const T* const image = p.image.as<const T>() + image_of(p, r) * p.image.stride[0];
        for (int64_t c = first; c < min_of(first + kChannels, channels); ++c) {
            const T* const x = image + c * p.image.stride[1];
            T* const to = y.as<T>() + r * y.stride[0] + c * y.stride[1];
            if (!b.finite) {
                for (int64_t i = 0; i < p.cells[0]; ++i)
                    for (int64_t q = 0; q < p.cells[1]; ++q)
                        to[i * y.stride[2] + q * y.stride[3]] = static_cast<T>(__builtin_nanf(""));
            } else if (mean) {
                mean_of_plane(b, x, p.image.stride[2], p.image.stride[3], row, to, y.stride[2], y.stride[3]);
            } else {
                top_of_plane(b, x, p.image.stride[2], p.image.stride[3], to, y.stride[2], y.stride[3],
                             mode == kMaxCorner);
            }
        }
    });
    return enough ? Status::ok : no_memory();
}

// ---- backward ---------------------------------------------------------------------------------------------------------------

template <class T>
void spread_plane(const Box<T>& b, const T* dy, int64_t down, int64_t across, T* row, T* dx, int64_t dx_down,
                  int64_t dx_across) {
    for (int64_t i = 0; i < b.y.cells; ++i) {
        for (int64_t j = b.left; j < b.right; ++j) row[j] = 0;
        for (int64_t q = 0; q < b.x.cells; ++q) {
            const T g = dy[i * down + q * across];
            for (int64_t k = b.columns.begin[q]; k < b.columns.begin[q + 1]; ++k)
                if (b.columns.weight[k] != 0)
                    row[b.columns.first[q] + k - b.columns.begin[q]] += g * b.columns.weight[k];
        }
        for (int64_t k = b.rows.begin[i]; k < b.rows.begin[i + 1]; ++k) {
            T* const to = dx + (b.rows.first[i] + k - b.rows.begin[i]) * dx_down;
            const T weight = b.rows.weight[k];
            if (weight == 0) continue;
            if (dx_across == 1)
                for (int64_t j = b.left; j < b.right; ++j) to[j] += weight * row[j];
            else
                for (int64_t j = b.left; j < b.right; ++j) to[j * dx_across] += weight * row[j];
        }
    }
}

template <class T>
Status backward(const Problem& p, const View& dy) {
    const View& dx = p.image;
    const int64_t channels = dx.shape[1], groups = ceil_div(channels, kChannels);
    bool enough = true;
    note_kernel("mean");
    parallel(dx.shape[0] * groups, [&](int64_t chunk) {
        const int64_t n = chunk / groups, first = chunk % groups * kChannels,
                      last = min_of(first + kChannels, channels);
        Scratch scratch(static_cast<size_t>(scratch_bytes<T>(p)));
        if (!scratch.as<char>()) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        T* const image = dx.as<T>() + n * dx.stride[0];
        for (int64_t c = first; c < last; ++c)
            for (int64_t i = 0; i < dx.shape[2]; ++i)
                for (int64_t j = 0; j < dx.shape[3]; ++j)
                    image[c * dx.stride[1] + i * dx.stride[2] + j * dx.stride[3]] = 0;
        for (int64_t r = 0; r < dy.shape[0]; ++r) {
            if (image_of(p, r) != n) continue;
            T* row;
            const Box<T> b = box_of<T>(p, r, scratch.as<char>(), row, true);
            for (int64_t c = first; b.finite && c < last; ++c)
                spread_plane(b, dy.as<const T>() + r * dy.stride[0] + c * dy.stride[1], dy.stride[2], dy.stride[3], row,
                             image + c * dx.stride[1], dx.stride[2], dx.stride[3]);
        }
    });
    return enough ? Status::ok : no_memory();
}

// ---- the ops ----------------------------------------------------------------------------------------------------------------

Status run_f32_f64(const Call& c) {
    const View& y = c.out[0];
    const Attr* a = c.attr;
    TW_TRY(check_images(c.in[2], c.in[0].shape[0]));
    const Problem p = {
        c.in[0], c.in[1], c.in[2], a[kScale].f, a[kSampling].i, a[kAligned].i != 0, {y.shape[2], y.shape[3]}};
    const int mode = a[kMode].choice;
    return y.dtype == DType::f32 ? forward<float>(p, y, mode) : forward<double>(p, y, mode);
}

Status run_dx_f32_f64(const Call& c) {
    const View &dy = c.in[0], &dx = c.out[0];
    const Attr* a = c.attr;
    TW_TRY(check_images(c.in[2], dx.shape[0]));
    const Problem p = {
        dx, c.in[1], c.in[2], a[kDxScale].f, a[kDxSampling].i, a[kDxAligned].i != 0, {dy.shape[2], dy.shape[3]}};
    return dy.dtype == DType::f32 ? backward<float>(p, dy) : backward<double>(p, dy);
}

Status run(const Call& c) { return in_float32(c, run_f32_f64); }
Status run_dx(const Call& c) { return in_float32(c, run_dx_f32_f64); }

Status want_boxes(const View& boxes, const View& images, const View& model, const char* name, double scale,
                  int64_t sampling) {
    TW_TRY(want_dtype_of(boxes, "boxes", model, name));
    if (boxes.ndim != 2 || boxes.shape[1] != 4)
        return fail(Status::shape, "boxes", "boxes has shape %s; want (R, 4), x1 y1 x2 y2", shape_text(boxes).text);
    if (images.dtype != DType::i64)
        return fail(Status::dtype, "images", "images has dtype %s; want int64", name_of(images.dtype));
    TW_TRY(want_shape(images, "images", 1, boxes.shape));
    if (!(scale > 0 && scale <= 0x1p20))
        return fail(Status::attr, "scale", "scale=%g; want a number above 0, at most 2^20", scale);
    if (sampling < 0 || sampling > kMostSamples)
        return fail(Status::attr, "sampling_ratio", "sampling_ratio=%lld; want 0 to 1024 samples",
                    static_cast<long long>(sampling));
    return Status::ok;
}
Status want_image(const View& x, const char* name) {
    TW_TRY(want_floating(x, name));
    return want_ndim(x, name, 4, 4);
}

Status infer(Call& c, Inferred& r) {
    const View& x = c.in[0];
    Attr* a = c.attr;
    TW_TRY(want_image(x, "x"));
    if (x.shape[2] < 1 || x.shape[3] < 1)
        return fail(Status::shape, "x", "x has shape %s; want at least one row and column", shape_text(x).text);
    TW_TRY(want_boxes(c.in[1], c.in[2], x, "x", a[kScale].f, a[kSampling].i));
    TW_TRY(resolve_integers(a[kSize], "size", 2, 1));
    if (a[kSize].list[0] > kMostCells || a[kSize].list[1] > kMostCells)
        return fail(Status::attr, "size", "size=%s; want at most 32768 cells along an axis", attr_text(a[kSize]).text);
    const int64_t shape[] = {c.in[1].shape[0], x.shape[1], a[kSize].list[0], a[kSize].list[1]};
    r.n_out = 1;
    r.out[0] = result(x.dtype, 4, shape);
    r.flops = 16.0 * static_cast<double>(numel(r.out[0]));
    return Status::ok;
}

Status infer_dx(Call& c, Inferred& r) {
    const View& dy = c.in[0];
    Attr* a = c.attr;
    TW_TRY(want_image(dy, "dy"));
    TW_TRY(want_boxes(c.in[1], c.in[2], dy, "dy", a[kDxScale].f, a[kDxSampling].i));
    if (dy.shape[0] != c.in[1].shape[0])
        return fail(Status::shape, "dy", "dy has shape %s but boxes has shape %s; want (R, C, P, Q) and (R, 4)",
                    shape_text(dy).text, shape_text(c.in[1]).text);
    if (dy.shape[2] < 1 || dy.shape[3] < 1 || dy.shape[2] > kMostCells || dy.shape[3] > kMostCells)
        return fail(Status::shape, "dy", "dy has shape %s; want 1 to 32768 cells along an axis", shape_text(dy).text);
    TW_TRY(resolve_integers(a[kShape], "shape", 4, 0));
    const int64_t* shape = a[kShape].list;
    if (shape[1] != dy.shape[1] || shape[2] < 1 || shape[3] < 1)
        return fail(Status::shape, "shape",
                    "shape=%s for dy of shape %s; want (N, C, H, W) with C=%lld, H and W above 0",
                    attr_text(a[kShape]).text, shape_text(dy).text, static_cast<long long>(dy.shape[1]));
    r.n_out = 1;
    r.out[0] = result(dy.dtype, 4, shape);
    r.flops = 16.0 * static_cast<double>(numel(dy));
    return Status::ok;
}

constexpr Operand kXBoxes[] = {{"x"}, {"boxes"}, {"images"}};
constexpr Operand kDyBoxes[] = {{"dy"}, {"boxes"}, {"images"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "size", .kind = AttrKind::integers, .required = true},
    {.name = "scale", .kind = AttrKind::real, .f = 1},
    {.name = "sampling_ratio", .kind = AttrKind::integer},
    {.name = "mode", .kind = AttrKind::choice, .choices = "avg|max|max_corner"},
    {.name = "aligned", .kind = AttrKind::boolean, .i = 1},
};
constexpr AttrSpec kDxAttrs[] = {
    {.name = "shape", .kind = AttrKind::integers, .required = true},
    {.name = "scale", .kind = AttrKind::real, .f = 1},
    {.name = "sampling_ratio", .kind = AttrKind::integer},
    {.name = "aligned", .kind = AttrKind::boolean, .i = 1},
};

}  // namespace

extern const Entry op_roi_align = {"roi_align", kXBoxes, 3, kAttrs, TW_COUNT(kAttrs), infer, run};
extern const Entry op_roi_align_dx = {"roi_align_dx", kDyBoxes, 3, kDxAttrs, TW_COUNT(kDxAttrs), infer_dx, run_dx};

}  // namespace tw::TW_ISA
