// Non-maximum suppression of boxes (N, K, 4) by scores (N, C, K): from the best score down, a box is selected unless it
// overlaps one that was, of the same sample and class, by more than a part of their union.
//
//     selected   (N C M, 3), sample, class and box, M = min(most, K); the best first, rows behind the count are -1
//     count      how many rows there are
//
// Method    a heap of the candidates of a sample and class; the next best is held against the selected ones.
// Numerics  areas in double; where scores are equal the first box is better. A score of NaN is no candidate.
// Threads   by samples and classes, then one joins what they selected.
// Source    ONNX NonMaxSuppression; Neubeck and Van Gool, "Efficient non-maximum suppression", 2006.
#include "core/check.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

enum { kMost, kIou, kScore, kCenters };

struct Box {
    double x0, y0, x1, y1, area;
};

double lower(double a, double b) { return b < a ? b : a; }
double upper(double a, double b) { return b > a ? b : a; }

template <class T>
Box box_at(const View& boxes, int64_t n, int64_t k, bool centers) {
    const T* const at = boxes.as<T>() + n * boxes.stride[0] + k * boxes.stride[1];
    double v[4];
    for (int i = 0; i < 4; ++i) v[i] = static_cast<double>(at[i * boxes.stride[2]]);
    Box b;
    if (centers) {
        b = {v[0] - v[2] / 2, v[1] - v[3] / 2, v[0] + v[2] / 2, v[1] + v[3] / 2, 0};
    } else {
        b = {lower(v[1], v[3]), lower(v[0], v[2]), upper(v[1], v[3]), upper(v[0], v[2]), 0};
    }
    b.area = (b.x1 - b.x0) * (b.y1 - b.y0);
    return b;
}

// The minimum keeps the product from being part of a multiply-add: one tier would decide otherwise than another.
bool overlap(const Box& a, const Box& b, double threshold) {
    const double width = lower(a.x1, b.x1) - upper(a.x0, b.x0), height = lower(a.y1, b.y1) - upper(a.y0, b.y0);
    if (!(width > 0 && height > 0)) return false;
    const double shared = lower(width * height, lower(a.area, b.area));
    return shared > 0 && shared / (a.area + b.area - shared) > threshold;
}

struct Candidate {
    double score;
    int64_t box;
};

bool better(const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.box < b.box);
}

// The best of heap[0 .. n) goes to the top; `i` may be out of order.
void sift(Candidate* heap, int64_t n, int64_t i) {
    for (;;) {
        int64_t top = i;
        for (int64_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; ++child)
            if (better(heap[child], heap[top])) top = child;
        if (top == i) return;
        const Candidate held = heap[i];
        heap[i] = heap[top], heap[top] = held;
        i = top;
    }
}

// Boxes of sample n that class k of it selects, best first; their number.
template <class T>
int64_t select_boxes(const Call& c, int64_t n, int64_t k, int64_t most, Candidate* heap, Box* kept, int64_t* selected) {
    const View &boxes = c.in[0], &scores = c.in[1];
    const bool all = c.attr[kScore].is_none;
    const T* const score = scores.as<T>() + n * scores.stride[0] + k * scores.stride[1];
    int64_t left = 0, found = 0;
    for (int64_t i = 0; i < boxes.shape[1]; ++i) {
        const double s = static_cast<double>(score[i * scores.stride[2]]);
        if (all ? s == s : s > c.attr[kScore].f) heap[left++] = {s, i};
    }
    for (int64_t i = left / 2 - 1; i >= 0; --i) sift(heap, left, i);
    while (left > 0 && found < most) {
        const int64_t next = heap[0].box;
        heap[0] = heap[--left];
        sift(heap, left, 0);
        const Box box = box_at<T>(boxes, n, next, c.attr[kCenters].i != 0);
        bool free = true;
        for (int64_t i = 0; i < found && free; ++i) free = !overlap(kept[i], box, c.attr[kIou].f);
        if (free) kept[found] = box, selected[found++] = next;
    }
    return found;
}

template <class T>
Status suppress(const Call& c) {
    const View &rows = c.out[0], &count = c.out[1];
    const int64_t classes = c.in[1].shape[1], parts = c.in[0].shape[0] * classes, boxes = c.in[0].shape[1];
    const int64_t most = min_of(c.attr[kMost].i, boxes);
    Scratch scratch(static_cast<size_t>(parts * (most + 1)) * 8);
    int64_t *const selected = scratch.as<int64_t>(), *const counts = selected + parts * most;
    if (parts != 0 && !selected)
        return fail(Status::memory, "boxes", "no memory for %lld selections; want fewer",
                    static_cast<long long>(parts * most));
    bool failed = false;
    parallel(parts, [&](int64_t part) {
        Scratch own(static_cast<size_t>(boxes) * sizeof(Candidate) + static_cast<size_t>(most) * sizeof(Box));
        Candidate* const heap = own.as<Candidate>();
        counts[part] = 0;
        if (heap)
            counts[part] = select_boxes<T>(c, part / classes, part % classes, most, heap,
                                           reinterpret_cast<Box*>(heap + boxes), selected + part * most);
        else if (boxes != 0)
            __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    });
    if (failed)
        return fail(Status::memory, "boxes", "no memory for %lld boxes; want fewer", static_cast<long long>(boxes));
    int64_t row = 0;
    const auto put = [&](int64_t n, int64_t k, int64_t box) {
        int64_t* const to = rows.as<int64_t>() + row++ * rows.stride[0];
        to[0] = n, to[rows.stride[1]] = k, to[2 * rows.stride[1]] = box;
    };
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t i = 0; i < counts[part]; ++i) put(part / classes, part % classes, selected[part * most + i]);
    *count.as<int64_t>() = row;
    while (row < rows.shape[0]) put(-1, -1, -1);
    return Status::ok;
}

Status run(const Call& c) { return c.in[0].dtype == DType::f32 ? suppress<float>(c) : suppress<double>(c); }

Status infer(Call& c, Inferred& r) {
    const View &boxes = c.in[0], &scores = c.in[1];
    TW_TRY(want_real(boxes, "boxes"));
    TW_TRY(want_dtype_of(scores, "scores", boxes, "boxes"));
    if (boxes.ndim != 3 || boxes.shape[2] != 4)
        return fail(Status::shape, "boxes", "boxes has shape %s; want (N, K, 4)", shape_text(boxes).text);
    if (scores.ndim != 3 || scores.shape[0] != boxes.shape[0] || scores.shape[2] != boxes.shape[1])
        return fail(Status::shape, "scores", "scores has shape %s; want (N, C, K) with N=%lld and K=%lld of boxes",
                    shape_text(scores).text, static_cast<long long>(boxes.shape[0]),
                    static_cast<long long>(boxes.shape[1]));
    if (c.attr[kMost].i < 0)
        return fail(Status::attr, "most", "most=%lld; want 0 or more", static_cast<long long>(c.attr[kMost].i));
    if (!(c.attr[kIou].f >= 0 && c.attr[kIou].f <= 1))
        return fail(Status::attr, "iou_threshold", "iou_threshold=%g; want 0 to 1", c.attr[kIou].f);
    if (!c.attr[kScore].is_none && c.attr[kScore].f != c.attr[kScore].f)
        return fail(Status::attr, "score_threshold", "score_threshold=nan; want a number");
    const int64_t most = min_of(c.attr[kMost].i, boxes.shape[1]);
    int64_t rows[] = {0, 3};
    if (__builtin_mul_overflow(boxes.shape[0] * scores.shape[1], most, &rows[0]) || rows[0] >= int64_t{1} << 40)
        return fail(Status::attr, "most", "most=%lld of %lld samples and classes; want fewer",
                    static_cast<long long>(most), static_cast<long long>(boxes.shape[0] * scores.shape[1]));
    r.n_out = 2;
    r.out[0] = result(DType::i64, 2, rows);
    r.out[1] = result(DType::i64, 0, nullptr);
    return Status::ok;
}

constexpr Operand kOperands[] = {{"boxes"}, {"scores"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "most", .kind = AttrKind::integer, .required = true},
    {.name = "iou_threshold", .kind = AttrKind::real},
    {.name = "score_threshold", .kind = AttrKind::real, .none_ok = true},
    {.name = "centers", .kind = AttrKind::boolean},
};

}  // namespace

extern const Entry op_non_max_suppression = {"non_max_suppression", kOperands, 2, kAttrs, 4, infer, run};

}  // namespace tw::TW_ISA
