// Borders of the components of a mask and of their holes, followed pixel by pixel.
//
//     points     of all borders, one behind the other, as (x, y)
//     starts     where a border begins among the points, and where the last one ends
//     parents    the border that surrounds a border directly, or -1
//     holes      whether a border is that of a hole
//     counts     how many borders and points there are
//
// Method    rows are scanned for places where a border begins that was not followed yet; marks left on the pixels tell
//           the borders apart. What does not fit into the results is counted but not written.
// Numerics  exact.
// Threads   one: where a border begins depends on those before it.
// Source    S. Suzuki and K. Abe, "Topological structural analysis of digitized binary images by border following", 1985.
#include "image/check.h"
#include "ops/ops.h"

namespace tw::TW_ISA {
namespace {

constexpr int64_t kMost = int64_t{1} << 30;

// Neighbours counterclockwise, as one sees a picture whose rows go down: right, up, left, down, and those between.
struct Around {
    int64_t step[16];
};

struct Traced {
    const View &points, &starts, &parents, &holes;
    int64_t borders, n;

    void point(int64_t x, int64_t y) {
        if (n < points.shape[0]) {
            int32_t* const to = points.as<int32_t>() + n * points.stride[0];
            to[0] = static_cast<int32_t>(x);
            to[points.stride[1]] = static_cast<int32_t>(y);
        }
        ++n;
    }
    void border(int64_t parent, bool hole) {
        if (borders < starts.shape[0]) starts.as<int64_t>()[borders * starts.stride[0]] = n;
        if (borders < parents.shape[0]) {
            parents.as<int32_t>()[borders * parents.stride[0]] = static_cast<int32_t>(parent);
            holes.as<uint8_t>()[borders * holes.stride[0]] = hole;
        }
        ++borders;
    }
};

// Follows the border number `mark` from pixel `start`, beside which lies the zero in direction `from`.
void follow(int32_t* f, int64_t start, int from, int32_t mark, const Around& around, int64_t pitch, Traced& out) {
    const auto emit = [&](int64_t at) { out.point(at % pitch - 1, at / pitch - 1); };
    int first = -1;  // direction of the first neighbour, clockwise from the zero
    for (int k = 0; k < 8 && first < 0; ++k) {
        const int d = (from + 8 - k) & 7;
        if (f[start + around.step[d]]) first = d;
    }
    if (first < 0) {
        emit(start);
        f[start] = -mark;
        return;
    }
    const int64_t last = start + around.step[first];
    int64_t at = start;
    for (int back = first;;) {  // back: the direction that the border comes from
        emit(at);
        bool open_right = false;
        int d = back;
        do {
            d = (d + 1) & 7;
            if (d == 0) open_right = !f[at + around.step[0]];
        } while (!f[at + around.step[d]]);
        if (open_right)
            f[at] = -mark;
        else if (f[at] == 1)
            f[at] = mark;
        const int64_t next = at + around.step[d];
        if (next == start && at == last) return;
        at = next;
        back = (d + 4) & 7;
    }
}

// Marks of borders begin at 2, so that border k has mark k + 2; mark 1 is the frame and a pixel on no border.
struct Border {
    int32_t parent;
    bool hole;
};

Status run(const Call& c) {
    const View& mask = c.in[0];
    const int64_t height = mask.shape[0], width = mask.shape[1], pitch = width + 2, cells = (height + 2) * pitch;
    for (int i = 0; i < 4; ++i) {  // results are contiguous along the last axis or walked by their strides
        const View& v = c.out[i];
        const int64_t rows = v.shape[0], columns = v.ndim == 2 ? 2 : 1, column = v.ndim == 2 ? v.stride[1] : 0;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t k = 0; k < columns; ++k) {
                const int64_t at = r * v.stride[0] + k * column;
                if (v.dtype == DType::i32) v.as<int32_t>()[at] = 0;
                if (v.dtype == DType::i64) v.as<int64_t>()[at] = 0;
                if (v.dtype == DType::u8) v.as<uint8_t>()[at] = 0;
            }
    }
    // There are at most as many borders as every other pixel of every other row, twice.
    const int64_t most = (height + 1) * (width + 1) / 2 + 2;
    Scratch scratch(static_cast<size_t>(cells * 4 + most * static_cast<int64_t>(sizeof(Border))));
    if (!scratch.as<char>())
        return fail(Status::memory, "mask", "no memory for %lld pixels; want a smaller mask",
                    static_cast<long long>(cells));
    int32_t* const f = scratch.as<int32_t>();
    Border* const borders = reinterpret_cast<Border*>(f + cells);
    __builtin_memset(f, 0, static_cast<size_t>(cells * 4));
    for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; ++x)
            f[(y + 1) * pitch + x + 1] = mask.as<uint8_t>()[y * mask.stride[0] + x * mask.stride[1]] != 0;
    const Around around = {{1, 1 - pitch, -pitch, -1 - pitch, -1, pitch - 1, pitch, pitch + 1}};
    Traced out = {c.out[0], c.out[1], c.out[2], c.out[3], 0, 0};
    for (int64_t y = 1; y <= height; ++y) {
        int32_t seen = 1;  // the mark of the border that was crossed last in this row
        for (int64_t at = y * pitch + 1; at <= y * pitch + width; ++at) {
            if (!f[at]) continue;
            const bool outer = f[at] == 1 && !f[at - 1], hole = !outer && f[at] >= 1 && !f[at + 1];
            if (outer || hole) {
                if (hole && f[at] > 1) seen = f[at];
                const int64_t k = out.borders;
                const bool inside_hole = seen == 1 || borders[seen - 2].hole;
                const int32_t crossed = seen - 2, beyond = seen == 1 ? -1 : borders[crossed].parent;
                const int32_t parent = inside_hole == hole ? beyond : seen == 1 ? -1 : crossed;
                borders[k] = {parent, hole};
                out.border(parent, hole);
                follow(f, at, outer ? 4 : 0, static_cast<int32_t>(k + 2), around, pitch, out);
            }
            if (f[at] != 1) seen = f[at] < 0 ? -f[at] : f[at];
        }
    }
    const View &starts = c.out[1], &counts = c.out[4];
    if (out.borders < starts.shape[0]) starts.as<int64_t>()[out.borders * starts.stride[0]] = out.n;
    counts.as<int64_t>()[0] = out.borders;
    counts.as<int64_t>()[counts.stride[0]] = out.n;
    return Status::ok;
}

Status want_room(const Attr& a, const char* name) {
    if (a.i >= 0 && a.i <= kMost) return Status::ok;
    return fail(Status::attr, name, "%s=%lld; want 0 to 2^30", name, static_cast<long long>(a.i));
}

Status infer(Call& c, Inferred& r) {
    const View& mask = c.in[0];
    TW_TRY(want_plane(mask, "mask"));
    if (numel(mask) >= kMost)
        return fail(Status::shape, "mask", "mask has shape %s; want less than 2^30 elements", shape_text(mask).text);
    TW_TRY(want_room(c.attr[0], "borders"));
    TW_TRY(want_room(c.attr[1], "points"));
    const int64_t points[] = {c.attr[1].i, 2}, starts[] = {c.attr[0].i + 1}, borders[] = {c.attr[0].i}, counts[] = {2};
    r.n_out = 5;
    r.out[0] = result(DType::i32, 2, points);
    r.out[1] = result(DType::i64, 1, starts);
    r.out[2] = result(DType::i32, 1, borders);
    r.out[3] = result(DType::u8, 1, borders);
    r.out[4] = result(DType::i64, 1, counts);
    return Status::ok;
}

constexpr Operand kMask[] = {{"mask"}};
constexpr AttrSpec kAttrs[] = {{.name = "borders", .kind = AttrKind::integer, .required = true},
                               {.name = "points", .kind = AttrKind::integer, .required = true}};

}  // namespace

extern const Entry op_trace_contours = {"trace_contours", kMask, 1, kAttrs, TW_COUNT(kAttrs), infer, run};

}  // namespace tw::TW_ISA
