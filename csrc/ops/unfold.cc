// Windows of an image as columns (im2col), and columns added up to an image (col2im), each the other's gradient:
//     unfold    y[n,(c,t),p] = x[n,c, p*stride + t*dilation - padding], zeros outside
//     fold      x[n,c,q]     = sum of y[n,(c,t),p] over all t, p with p*stride + t*dilation - padding = q
//
// Method    unfold: a row of pixels under one tap is one copy. fold gathers: every row of x adds the rows of y that meet
//           it, the phases of the stride apart, so that neighbours are added to neighbours.
// Numerics  unfold copies bits. fold adds tap after tap, 16-bit columns in float, and rounds once at its store.
// Threads   taps of planes, and bands of rows; sums are never split between threads.
#include "gemm/padded.h"
#include "ops/conv_problem.h"
#include "simd/between.h"
#include "simd/rows.h"

namespace tw::TW_ISA {
namespace {

enum { kKernel, kStride, kPadding, kDilation, kWindowAttrs };

// The four attributes of the windows over `shape`, and how many windows and taps there are.
Status resolve_columns(Attr* attr, const int64_t* shape, int rank, const char* blame, int64_t* out, int64_t& pixels,
                       int64_t& taps) {
    TW_TRY(resolve_integers(attr[kKernel], "kernel", rank, 1));
    TW_TRY(resolve_integers(attr[kStride], "stride", rank, 1));
    TW_TRY(resolve_integers(attr[kDilation], "dilation", rank, 1));
    TW_TRY(resolve_window(shape, attr[kKernel].list, attr[kStride].list, attr[kDilation].list, attr[kPadding], rank,
                          false, out, blame));
    pixels = taps = 1;
    for (int d = 0; d < rank; ++d)
        if (__builtin_mul_overflow(pixels, out[d], &pixels) ||
            __builtin_mul_overflow(taps, attr[kKernel].list[d], &taps))
            return fail(Status::attr, "kernel", "kernel=%s has more than 2^63 windows or taps; want fewer",
                        attr_text(attr[kKernel]).text);
    return Status::ok;
}

Status infer_unfold(Call& c, Inferred& r) {
    const View& x = c.in[0];
    TW_TRY(want_floating(x, "x"));
    TW_TRY(want_ndim(x, "x", 3, 5));
    int64_t out[kMaxDims], pixels, taps;
    TW_TRY(resolve_columns(c.attr, x.shape + 2, x.ndim - 2, "x", out, pixels, taps));
    int64_t shape[] = {x.shape[0], 0, pixels};
    if (__builtin_mul_overflow(x.shape[1], taps, &shape[1]))
        return fail(Status::attr, "kernel", "kernel=%s gives more than 2^63 columns; want fewer",
                    attr_text(c.attr[kKernel]).text);
    r.n_out = 1;
    r.out[0] = result(x.dtype, 3, shape);
    return Status::ok;
}

Status infer_fold(Call& c, Inferred& r) {
    const View& y = c.in[0];
    Attr &sizes = c.attr[0], *windows = c.attr + 1;
    TW_TRY(want_floating(y, "y"));
    TW_TRY(want_ndim(y, "y", 3, 3));
    const int rank = sizes.is_scalar ? 1 : sizes.n;
    if (rank < 1 || rank > kMaxRank)
        return fail(Status::attr, "shape", "shape=%s has %d numbers; want 1 to 3, one per spatial axis",
                    attr_text(sizes).text, rank);
    TW_TRY(resolve_integers(sizes, "shape", rank, 0));
    int64_t out[kMaxDims], pixels, taps;
    TW_TRY(resolve_columns(windows, sizes.list, rank, "shape", out, pixels, taps));
    if (y.shape[1] % taps)
        return fail(Status::shape, "y", "y has %lld rows and kernel=%s has %lld taps; want C times that many rows",
                    static_cast<long long>(y.shape[1]), attr_text(windows[kKernel]).text, static_cast<long long>(taps));
    if (y.shape[2] != pixels)
        return fail(Status::shape, "y", "y has %lld columns but shape=%s has %lld windows; want one column for each",
                    static_cast<long long>(y.shape[2]), attr_text(sizes).text, static_cast<long long>(pixels));
    int64_t shape[kMaxDims] = {y.shape[0], y.shape[1] / taps};
    for (int d = 0; d < rank; ++d) shape[2 + d] = sizes.list[d];
    r.n_out = 1;
    r.out[0] = result(y.dtype, 2 + rank, shape);
    return Status::ok;
}

// The geometry of image x and columns y, whose pixels are walked like those of a result of convolution.
ConvAxes column_axes(const View& x, const View& y, const Attr* attr) {
    View w = result(x.dtype, x.ndim, x.shape), pixels = w;
    for (int d = x.ndim - 1; d >= 2; --d) {
        const int a = d - 2;
        const int64_t reach = (attr[kKernel].list[a] - 1) * attr[kDilation].list[a] + 1;
        const int64_t padded = x.shape[d] + attr[kPadding].list[2 * a] + attr[kPadding].list[2 * a + 1];
        w.shape[d] = attr[kKernel].list[a];
        pixels.shape[d] = (padded - reach) / attr[kStride].list[a] + 1;
        pixels.stride[d] = d == x.ndim - 1 ? y.stride[2] : pixels.stride[d + 1] * pixels.shape[d + 1];
    }
    return conv_axes(x, w, pixels, attr[kStride], attr[kPadding], attr[kDilation]);
}

// ---- unfold --------------------------------------------------------------------------------------------------------------

template <class T>
void copy_pixels(T* to, int64_t to_stride, const T* from, int64_t from_stride, int64_t n) {
    if constexpr (sizeof(T) >= 4)
        if (to_stride == 1 && from_stride == 2) return take_row(to, from, from_stride, n);
    copy_row(to, to_stride, from, from_stride, n);
}

// T: the bits of an element.
template <class T>
void unfold(const View& x, const View& y, const ConvAxes& s) {
    const int64_t taps = taps_of(s), channels = x.shape[1];
    parallel(x.shape[0] * channels * taps, [&](int64_t job) {
        const int64_t n = job / taps / channels, c = job / taps % channels, t = job % taps;
        const int64_t tap[] = {t / s.taps[2] / s.taps[1], t / s.taps[2] % s.taps[1], t % s.taps[2]};
        int64_t first[kMaxRank], begin[kMaxRank],
            end[kMaxRank];  // pixels whose tap lies inside, and where pixel 0's is
        for (int a = 0; a < kMaxRank; ++a) {
            reach(s, a, tap[a], begin[a], end[a]);
            first[a] = tap[a] * s.dilation[a] - s.before[a];
        }
        const T zero = 0;
        const T* image = x.as<T>() + n * x.stride[0] + c * x.stride[1];
        T* columns = y.as<T>() + n * y.stride[0] + (c * taps + t) * y.stride[1];
        const int64_t step = s.y_stride[2];
        for (int64_t d = 0; d < s.out[0]; ++d)
            for (int64_t h = 0; h < s.out[1]; ++h) {
                T* row = columns + d * s.y_stride[0] + h * s.y_stride[1];
                const bool inside = d >= begin[0] && d < end[0] && h >= begin[1] && h < end[1];
                const int64_t low = inside ? begin[2] : 0, high = inside ? end[2] : 0;
                copy_row(row, step, &zero, 0, low);
                if (high > low)
                    copy_pixels(row + low * step, step,
                                image + (d * s.stride[0] + first[0]) * s.x_stride[0] +
                                    (h * s.stride[1] + first[1]) * s.x_stride[1] +
                                    (low * s.stride[2] + first[2]) * s.x_stride[2],
                                s.stride[2] * s.x_stride[2], high - low);
                copy_row(row + high * step, step, &zero, 0, s.out[2] - high);
            }
    });
}

Status run_unfold(const Call& c) {
    const View &x = c.in[0], &y = c.out[0];
    if (numel(y) == 0) return Status::ok;
    const ConvAxes s = column_axes(x, y, c.attr);
    switch (item_size(x.dtype)) {
        case 2: unfold<uint16_t>(x, y, s); break;
        case 4: unfold<uint32_t>(x, y, s); break;
        default: unfold<uint64_t>(x, y, s); break;
    }
    return Status::ok;
}

// ---- fold ----------------------------------------------------------------------------------------------------------------

// The pixel whose tap lies at place q along axis a, or -1.
int64_t pixel_at(const ConvAxes& s, int a, int64_t q, int64_t tap) {
    const int64_t far = q + s.before[a] - tap * s.dilation[a];
    return far >= 0 && far % s.stride[a] == 0 && far / s.stride[a] < s.out[a] ? far / s.stride[a] : -1;
}

// Where a tap of a row of the kernel lies: the pixels whose tap is inside x, and where the first one's falls in the sums.
struct TapPixels {
    int64_t begin, count, to;
};
void tap_pixels(const ConvAxes& s, int64_t wide, TapPixels* taps) {
    for (int64_t t = 0; t < s.taps[2]; ++t) {
        int64_t begin, end;
        reach(s, 2, t, begin, end);
        const int64_t place = begin * s.stride[2] + t * s.dilation[2] - s.before[2];
        const bool any = begin < end;
        taps[t] = {begin, end - begin, any ? place % s.stride[2] * wide + place / s.stride[2] : 0};
    }
}

// Sums are kept as whole vectors where lanes are loaded by a mask: a load waits for a store that it only overlaps.
template <class T>
constexpr bool kWholeSums = kVecBytes == 64 && !kIsNarrow<T>;

constexpr int64_t kLinesAhead = 5;

template <class T>
TW_INLINE void add_lanes(T* sums, const T* from, int64_t begin, int64_t end) {
    constexpr int64_t L = kLanes<T>;
    for (int64_t i = begin / L * L; i < end; i += L) {
        __builtin_prefetch(from + i +
                           kLinesAhead * L);  // many rows a little at a time: no stream that the hardware sees
        const Vec<T> v = load_between(from + i, max_of(begin - i, 0), min_of(end - i, L));
        store(sums + i, load(sums + i) + v);
    }
}

// Adds what the taps of one row of the kernel bring from a row of pixels to the phases of a row of x.
template <class T>
void add_row(const TapPixels* taps, int64_t n_taps, const T* y, int64_t tap_stride, int64_t step, Wide<T>* sums) {
    for (int64_t t = 0; t < n_taps; ++t, y += tap_stride) {
        Wide<T>* const to = sums + taps[t].to;
        const T* const from = y + taps[t].begin * step;
        if constexpr (kWholeSums<T>)
            if (step == 1) {
                add_lanes(sums, from - taps[t].to, taps[t].to, taps[t].to + taps[t].count);
                continue;
            }
        each_vector<T>(taps[t].count, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
            store_n(to + i, load_n(to + i, n) + take(from, step, i, n), n);
        });
    }
}

template <class T>
Status fold(const View& y, const View& x, const ConvAxes& s) {
    typedef Wide<T> W;
    const int64_t taps = taps_of(s), channels = x.shape[1], rows = s.in[0] * s.in[1];
    const int64_t band = max_of(1, kChunkElements / (s.in[2] * taps)), bands = ceil_div(rows, band);
    constexpr int64_t L = kWholeSums<T> ? kLanes<W> : 1;
    const int64_t wide = ceil_div(ceil_div(s.in[2], s.stride[2]), L) * L, phases = min_of(s.stride[2], s.in[2]);
    bool enough = true;
    parallel(x.shape[0] * channels * bands, [&](int64_t job) {
        const int64_t n = job / bands / channels, c = job / bands % channels,
                      last = min_of(rows, (job % bands + 1) * band);
        Scratch scratch(static_cast<size_t>(phases * wide + s.in[2]) * sizeof(W)),
            places(static_cast<size_t>(s.taps[2]) * sizeof(TapPixels));
        W* const sums = scratch.as<W>();
        TapPixels* const along = places.as<TapPixels>();
        if (!sums || !along) return __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        tap_pixels(s, wide, along);
        W* const line = phases == 1 ? sums : sums + phases * wide;
        const T* from = y.as<T>() + n * y.stride[0] + c * taps * y.stride[1];
        T* to = x.as<T>() + n * x.stride[0] + c * x.stride[1];
        for (int64_t row = job % bands * band; row < last; ++row) {
            const int64_t d = row / s.in[1], h = row % s.in[1];
            for (int64_t i = 0; i < phases * wide; ++i) sums[i] = 0;
            for (int64_t i = 0; i < s.taps[0]; ++i) {
                const int64_t at_d = pixel_at(s, 0, d, i);
                if (at_d < 0) continue;
                for (int64_t j = 0; j < s.taps[1]; ++j) {
                    const int64_t at_h = pixel_at(s, 1, h, j), t = (i * s.taps[1] + j) * s.taps[2];
                    if (at_h >= 0)
                        add_row(along, s.taps[2], from + t * y.stride[1] + at_d * s.y_stride[0] + at_h * s.y_stride[1],
                                y.stride[1], s.y_stride[2], sums);
                }
            }
            if (phases > 1) write_phases(sums, wide, s.stride[2], s.in[2], line, 1);
            copy_row(to + d * s.x_stride[0] + h * s.x_stride[1], s.x_stride[2], line, 1, s.in[2]);
        }
    });
    return enough ? Status::ok : no_memory();
}

Status run_fold(const Call& c) {
    const View &y = c.in[0], &x = c.out[0];
    if (numel(x) == 0) return Status::ok;
    const ConvAxes s = column_axes(x, y, c.attr + 1);
    return for_floating(x.dtype, [&]<class T>() { return fold<T>(y, x, s); });
}

constexpr Operand kX[] = {{"x"}};
constexpr Operand kY[] = {{"y"}};
#define TW_WINDOW_ATTRS                                               \
    {.name = "kernel", .kind = AttrKind::integers, .required = true}, \
        {.name = "stride", .kind = AttrKind::integers, .i = 1},       \
        {.name = "padding", .kind = AttrKind::padding, .i = 0},       \
        {.name = "dilation", .kind = AttrKind::integers, .i = 1}
constexpr AttrSpec kUnfoldAttrs[] = {TW_WINDOW_ATTRS};
constexpr AttrSpec kFoldAttrs[] = {{.name = "shape", .kind = AttrKind::integers, .required = true}, TW_WINDOW_ATTRS};
static_assert(TW_COUNT(kUnfoldAttrs) == kWindowAttrs);

}  // namespace

extern const Entry op_unfold = {"unfold", kX, 1, kUnfoldAttrs, TW_COUNT(kUnfoldAttrs), infer_unfold, run_unfold};
extern const Entry op_fold = {"fold", kY, 1, kFoldAttrs, TW_COUNT(kFoldAttrs), infer_fold, run_fold};

}  // namespace tw::TW_ISA
