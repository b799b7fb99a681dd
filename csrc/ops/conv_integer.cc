// Convolutions of 8-bit codes over 1, 2 or 3 spatial axes, exact in int32:
//     sum[n,k,p] = sum_{c,t} (w[k,c,t] - w_zero[k]) (x[n,c, p*stride + t*dilation - padding] - x_zero)
//
//   conv_integer   y = sum
//   qlinear_conv   y = clamp(rint((sum + b[k]) (x_scale w_scale[k] / y_scale)) + y_zero)
//   conv_int8      y = act(sum (x_scale w_scale[k]) + b[k]), x quantised on the way by the range of its image
//
// Method    gemm/quantized.h: filters times windows. Panels of windows are packed out of a copy of the image whose border
//           holds the zero point, laid out as gemm/padded.h has it; words along k are zipped from rows of pixels. A 1x1
//           kernel reads the image itself. prepare() keeps the filters as rows of codes.
// Numerics  integer sums are exact: a number of terms whose sum could leave int32 is an error. Float operations around
//           them are rounded one by one: bit-equal on every tier and device but for the ULP of an activation. An image
//           with a NaN or an infinity is NaN.
// Threads   tiles of y; small images and groups side by side.
// Source    ONNX ConvInteger-10, QLinearConv-10; Jacob et al., "Quantization and training of neural networks", 2018.
#include "gemm/micro.h"
#include "gemm/padded.h"
#include "gemm/quantized.h"
#include "ops/conv_problem.h"
#include "simd/quantize.h"

namespace tw::TW_ISA {
namespace {

enum { kStride, kPadding, kDilation, kGroups, kActivation };

// ---- shapes -----------------------------------------------------------------------------------------------------------

Status want_bytes(const View& v, const char* name) {
    if (v.dtype == DType::i8 || v.dtype == DType::u8) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want int8 or uint8", name, name_of(v.dtype));
}

Status want_one(const View& v, const char* name) {
    if (v.ndim == 0 || (v.ndim == 1 && v.shape[0] == 1)) return Status::ok;
    return fail(Status::shape, name, "%s has shape %s; want one number", name, shape_text(v).text);
}

// One number, or one per filter.
Status want_filters(const View& v, const char* name, const View& w) {
    if (v.ndim == 0 || (v.ndim == 1 && (v.shape[0] == 1 || v.shape[0] == w.shape[0]))) return Status::ok;
    return fail(Status::shape, name, "%s has shape %s but w has K=%lld; want () or (%lld,)", name, shape_text(v).text,
                static_cast<long long>(w.shape[0]), static_cast<long long>(w.shape[0]));
}

Status want_f32(const View& v, const char* name) {
    if (v.dtype == DType::f32) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want float32", name, name_of(v.dtype));
}

// x, w and the attributes; y but for its dtype.
Status infer_conv(Call& c, const View& x, const View& w, const View& w_zero, int64_t x_reach, Inferred& r) {
    TW_TRY(want_ndim(x, "x", 3, 5));
    TW_TRY(want_bytes(w, "w"));
    View y = result(DType::i32, x.ndim, x.shape);
    TW_TRY(check_conv(x, w, c.attr[kStride], c.attr[kPadding], c.attr[kDilation], c.attr[kGroups], y.shape + 2, "x"));
    y.shape[1] = w.shape[0];
    if (given(w_zero)) {
        TW_TRY(want_dtype_of(w_zero, "w_zero", w, "w"));
        TW_TRY(want_filters(w_zero, "w_zero", w));
    }
    int64_t terms = w.shape[1];
    for (int d = 2; d < w.ndim; ++d) terms *= w.shape[d];
    const int64_t most = 0x7fffffff / (x_reach * (given(w_zero) || w.dtype == DType::u8 ? 255 : 128));
    if (terms > most)
        return fail(Status::shape, "w",
                    "w has %lld terms per filter, whose sum could leave int32; want %lld or fewer for these types and "
                    "zero points",
                    static_cast<long long>(terms), static_cast<long long>(most));
    r.n_out = 1;
    r.out[0] = y;
    r.flops = conv_flops(y, w);
    return Status::ok;
}

int64_t reach_of(const View& v, const View& zero) { return given(zero) || v.dtype == DType::u8 ? 255 : 128; }

// ---- numbers ----------------------------------------------------------------------------------------------------------

int32_t code_at(const View& v, int64_t i) { return v.dtype == DType::u8 ? v.as<uint8_t>()[i] : v.as<int8_t>()[i]; }

float number_at(const View& v, int64_t i) {
    switch (v.dtype) {
        case DType::f64: return static_cast<float>(v.as<double>()[i]);
        case DType::f16: return to_float(v.as<f16>()[i]);
        case DType::bf16: return to_float(v.as<bf16>()[i]);
        default: return v.as<float>()[i];
    }
}

int64_t filter_step(const View& v) { return v.ndim && v.shape[0] > 1 ? v.stride[0] : 0; }

// ---- panels of windows ------------------------------------------------------------------------------------------------

constexpr int NR = kIntNR;
constexpr int kUnit = NR < 16 ? NR : 16;  // columns zipped at a time
typedef VecOf<uint8_t, kUnit>::type Unit;
typedef VecOf<uint8_t, kUnit>::loose LooseUnit;
typedef VecOf<uint16_t, kUnit / 2>::type UnitPairs;

struct Codes {
    Padded<uint8_t> padded;
    Window<uint8_t> window;
    int64_t k;
    uint8_t flip;  // makes a byte of x signed
    uint8_t blank;  // the zero point
};

// Row r of channel c of the copy.
void fill_row(const Codes& q, int64_t c, int64_t r, const int64_t* before) {
    const Padded<uint8_t>& p = q.padded;
    const WindowAxis *axis = q.window.axis, &v = axis[2];
    uint8_t* to = p.data + (c * p.size[0] * p.size[1] + r) * p.row;
    __builtin_memset(to, q.blank, static_cast<size_t>(p.row));
    const int64_t d = r / p.size[1] - before[0], h = r % p.size[1] - before[1];
    if (d < 0 || d >= axis[0].in || h < 0 || h >= axis[1].in) return;
    const uint8_t* x = q.window.image + c * q.window.channel_stride + d * axis[0].stride + h * axis[1].stride;
    const int64_t far = p.step * v.stride;
    for (int64_t phase = 0; phase < p.step; ++phase, to += p.phase) {
        int64_t begin, end;
        clip(phase - before[2], p.step, v.in, p.phase, begin, end);
        if (end <= begin) continue;
        const uint8_t* from = x + (phase - before[2] + begin * p.step) * v.stride;
        if (far == 1)
            __builtin_memcpy(to + begin, from, static_cast<size_t>(end - begin));
        else if (far == 2)
            for (int64_t i = begin; i < end; ++i) to[i] = from[2 * (i - begin)];
        else
            for (int64_t i = begin; i < end; ++i) to[i] = from[(i - begin) * far];
    }
}

TW_INLINE Unit load_unit(const uint8_t* p, uint8_t flip) { return *reinterpret_cast<const LooseUnit*>(p) ^ flip; }
TW_INLINE void store_unit(int8_t* p, Unit v) { *reinterpret_cast<LooseUnit*>(p) = v; }

// One word of NR columns: rows[d] holds code d of each.
TW_INLINE void zip_word(const uint8_t* const* rows, uint8_t flip, int8_t* to) {
#pragma GCC unroll 4
    for (int j = 0; j < NR; j += kUnit, to += kUnit * kDotDepth) {
        const Unit a = load_unit(rows[0] + j, flip), b = load_unit(rows[1] + j, flip);
        if constexpr (kDotDepth == 2) {
            store_unit(to, zip_low(a, b));
            store_unit(to + kUnit, zip_high(a, b));
        } else {
            const Unit c = load_unit(rows[kDotDepth - 2] + j, flip), d = load_unit(rows[kDotDepth - 1] + j, flip);
            const UnitPairs ab[] = {bitcast<UnitPairs>(zip_low(a, b)), bitcast<UnitPairs>(zip_high(a, b))};
            const UnitPairs cd[] = {bitcast<UnitPairs>(zip_low(c, d)), bitcast<UnitPairs>(zip_high(c, d))};
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                store_unit(to + 2 * half * kUnit, bitcast<Unit>(zip_low(ab[half], cd[half])));
                store_unit(to + (2 * half + 1) * kUnit, bitcast<Unit>(zip_high(ab[half], cd[half])));
            }
        }
    }
}

// Matches IntGemm::pack_b. Whole vectors are read beyond the pixels of a run; the copy ends with room for that.
void pack_copied(const void* context, int64_t n0, int64_t n, int8_t* panel) {
    static_assert(Padded<uint8_t>::kSlack >= NR);
    const Codes& q = *static_cast<const Codes*>(context);
    const Padded<uint8_t>& p = q.padded;
    const uint8_t* from[NR];
    int64_t to[NR];
    int runs = 0;
    for (int64_t done = 0; done < n; ++runs) {
        const int64_t pixel = n0 + done, at = pixel % p.out[2], row = pixel / p.out[2];
        from[runs] = p.data + (row / p.out[1] * p.move[0] * p.size[1] + row % p.out[1] * p.move[1]) * p.row + at;
        to[runs] = done;
        done += min_of(p.out[2] - at, n - done);
    }
    uint8_t none[NR], gathered[kDotDepth][2 * NR] = {};
    __builtin_memset(none, q.flip, sizeof none);
    const uint8_t* rows[kDotDepth];
    for (int64_t k = 0; k < q.k; k += kDotDepth, panel += NR * kDotDepth) {
        for (int d = 0; d < kDotDepth; ++d) {
            if (k + d >= q.k) {
                rows[d] = none;
            } else if (runs == 1) {
                rows[d] = from[0] + p.offset[k + d];
            } else {
                for (int r = 0; r < runs; ++r) __builtin_memcpy(gathered[d] + to[r], from[r] + p.offset[k + d], NR);
                rows[d] = gathered[d];
            }
        }
        zip_word(rows, q.flip, panel);
    }
}

// The same without a copy, which would be much larger than the image.
void pack_scattered(const void* context, int64_t n0, int64_t n, int8_t* panel) {
    const Codes& q = *static_cast<const Codes*>(context);
    const WindowAxis* axis = q.window.axis;
    const int64_t taps = q.window.taps();
    for (int64_t k = 0; k < ceil_div(q.k, kDotDepth) * kDotDepth; ++k) {
        const int64_t c = k / taps, tap = k % taps;
        const int64_t t[] = {tap / axis[2].taps / axis[1].taps, tap / axis[2].taps % axis[1].taps, tap % axis[2].taps};
        int8_t* to = panel + k / kDotDepth * NR * kDotDepth + k % kDotDepth;
        for (int64_t j = 0; j < NR; ++j) {
            uint8_t code = q.blank;
            const int64_t pixel = n0 + min_of(j, n - 1);
            const int64_t out[] = {pixel / axis[2].out / axis[1].out, pixel / axis[2].out % axis[1].out,
                                   pixel % axis[2].out};
            const uint8_t* x = q.window.image + c * q.window.channel_stride;
            bool inside = k < q.k;
            for (int a = 0; inside && a < kMaxRank; ++a) {
                const int64_t at = out[a] * axis[a].step + axis[a].offset[t[a]];
                inside = at >= 0 && at < axis[a].in;
                x += at * axis[a].stride;
            }
            if (inside) code = *x;
            to[j * kDotDepth] = k < q.k ? static_cast<int8_t>(code ^ q.flip) : 0;
        }
    }
}

// ---- filters ----------------------------------------------------------------------------------------------------------

struct Filters {
    Bytes w;
    int64_t k;
    const int32_t* zero;  // of each
};

void pack_filters(const void* context, int64_t first, int64_t rows, bool sums, DotLeft* to, int64_t stride,
                  RowTerms* terms) {
    const Filters& f = *static_cast<const Filters*>(context);
    for (int64_t i = 0; i < rows; ++i)
        pack_left_row(f.w, first + i, f.k, f.zero[first + i], sums, to + i * stride, terms + i);
}

int64_t depth_of(const View& w) { return w.shape[0] ? numel(w) / w.shape[0] : 0; }

// Prepared filters: rows of codes of zero point 0, then their terms.
int64_t packed_filters(const View& w) {
    if (!given(w) || w.ndim < 3 || w.ndim > 5 || (w.dtype != DType::i8 && w.dtype != DType::u8) || numel(w) == 0)
        return 0;
    return w.shape[0] *
           (left_stride(depth_of(w)) * static_cast<int64_t>(sizeof(DotLeft)) + static_cast<int64_t>(sizeof(RowTerms)));
}

const RowTerms* terms_of(const View& w, const void* packed) {
    return reinterpret_cast<const RowTerms*>(static_cast<const DotLeft*>(packed) +
                                             w.shape[0] * left_stride(depth_of(w)));
}

void prepare_filters(const View& w, void* packed) {
    const int64_t k = depth_of(w), stride = left_stride(k);
    Scratch scratch(run_bytes<uint8_t>(w, 1));
    if (!scratch.as<void>()) return;
    const View rows = as_run<uint8_t>(w, 1, scratch, true);
    const Bytes bytes = {rows.data, rows.stride[0], 1, w.dtype == DType::u8};
    auto* const terms = const_cast<RowTerms*>(terms_of(w, packed));
    parallel(w.shape[0], [&](int64_t i) {
        pack_left_row(bytes, i, k, 0, true, static_cast<DotLeft*>(packed) + i * stride, terms + i);
    });
}

// ---- the convolution of codes -----------------------------------------------------------------------------------------

// What becomes of the sums of an image: finish(context, tile) with rows from `filter` on.
struct Sink {
    void (*finish)(const void* context, const IntTile& tile);
    float x_scale;
    char* y;  // of this image and group
    int64_t row;  // between its filters
    int64_t filter;  // the first of the group
    const void* all;  // what all images share
};

struct IntConv {
    View x, w, w_zero, y;  // y: pixels are a run
    const int32_t* x_zero;  // of each image
    const float* x_scale;  // of each image, or null
    int64_t groups;
    const void* packed;
    void (*finish)(const void* context, const IntTile& tile);  // null: y is the sums
    const void* context;
};

bool is_point(const ConvAxes& s) {
    bool point = true;
    for (int a = 0; a < kMaxRank; ++a) point = point && s.taps[a] == 1 && s.stride[a] == 1 && s.out[a] == s.in[a];
    return point;
}

Status int_conv(const Call& c, const IntConv& q) {
    const View &w_given = q.w, &y = q.y;
    const int64_t filters = w_given.shape[0], kg = filters / q.groups, cg = w_given.shape[1];
    const auto axes_of = [&](const View& x) {
        return conv_axes(x, w_given, y, c.attr[kStride], c.attr[kPadding], c.attr[kDilation]);
    };
    const bool point = is_point(axes_of(q.x));
    Scratch w_scratch(run_bytes<uint8_t>(w_given, 1)), x_scratch(point ? run_bytes<uint8_t>(q.x, 2) : 64);
    if (!w_scratch.as<void>() || !x_scratch.as<void>()) return no_memory();
    const View w = as_run<uint8_t>(w_given, 1, w_scratch, true);
    const View x = point ? as_run<uint8_t>(q.x, 2, x_scratch, true) : q.x;
    const ConvAxes s = axes_of(x);
    const bool x_unsigned = x.dtype == DType::u8, w_unsigned = w.dtype == DType::u8;
    const int64_t pixels = pixels_of(s), depth = cg * taps_of(s);
    Scratch offsets(static_cast<size_t>(s.taps[0] + s.taps[1] + s.taps[2] + depth) * sizeof(int64_t));
    Scratch zeros(static_cast<size_t>(filters) * sizeof(int32_t));
    int64_t* const offset = offsets.as<int64_t>();
    int32_t* const w_zero = zeros.as<int32_t>();
    if (!offset || !w_zero) return no_memory();
    bool centred = true;
    for (int64_t k = 0; k < filters; ++k) {
        w_zero[k] = given(q.w_zero) ? code_at(q.w_zero, k * filter_step(q.w_zero)) : 0;
        centred = centred && w_zero[k] == 0;
    }
    Codes codes{};
    codes.k = depth;
    codes.flip = x_unsigned ? 0x80 : 0;
    codes.window.channel_stride = x.stride[1];
    int64_t at = 0;
    for (int a = 0; a < kMaxRank; ++a) {
        for (int64_t t = 0; t < s.taps[a]; ++t) offset[at + t] = t * s.dilation[a] - s.before[a];
        codes.window.axis[a] = {s.in[a], s.out[a], s.x_stride[a], s.stride[a], s.taps[a], offset + at};
        at += s.taps[a];
    }
    codes.padded = padded_for(codes.window, s.dilation);
    codes.padded.offset = offset + at;
    const bool copied = !point && padded_copy_fits(s);
    if (copied) padded_offsets(codes.padded, codes.window, cg, s.dilation);
    const bool prepared = q.packed && centred;
    return for_images(x.shape[0], q.groups, conv_flops(y, w), [&](int64_t image, int64_t group) {
        const int64_t filter = group * kg, rows = codes.padded.size[0] * codes.padded.size[1];
        const auto* const from = x.as<uint8_t>() + image * x.stride[0] + group * cg * x.stride[1];
        Codes own = codes;
        own.blank = static_cast<uint8_t>(q.x_zero[image]);
        own.window.image = from;
        const int32_t x_zero = right_zero(x_unsigned, q.x_zero[image]);
        Scratch copy_scratch(copied ? static_cast<size_t>(own.padded.elements(cg)) : 64);
        Scratch column_scratch(x_zero ? static_cast<size_t>(pixels) * sizeof(int32_t) : 64);
        own.padded.data = copy_scratch.as<uint8_t>();
        int32_t* const column_zero = column_scratch.as<int32_t>();
        if (!own.padded.data || !column_zero) return false;
        for (int64_t p = 0; x_zero && p < pixels; ++p) column_zero[p] = x_zero;
        if (copied) {
            __builtin_memset(own.padded.data + cg * rows * own.padded.row, 0, Padded<uint8_t>::kSlack);
            const int64_t together = max_of(1, 4096 / max_of(own.padded.row, 1));
            parallel(ceil_div(cg * rows, together), [&](int64_t job) {
                for (int64_t r = job * together; r < min_of(job * together + together, cg * rows); ++r)
                    fill_row(own, r / rows, r % rows, s.before);
            });
        }
        const Filters left = {
            {w.as<uint8_t>() + filter * w.stride[0], w.stride[0], 1, w_unsigned}, depth, w_zero + filter};
        IntGemm g{};
        g.m = kg, g.n = pixels, g.k = depth;
        g.pack_a = pack_filters, g.a = &left;
        if (prepared) {
            g.packed_a = static_cast<const DotLeft*>(q.packed) + filter * left_stride(depth);
            g.a_terms = terms_of(w, q.packed) + filter;
        }
        if (point)
            g.b = {from, x.stride[1], 1, x_unsigned};
        else
            g.pack_b = copied ? pack_copied : pack_scattered, g.b_context = &own;
        g.b_zero = x_zero ? column_zero : nullptr;
        char* const to = y.as<char>() + (image * y.stride[0] + filter * y.stride[1]) * item_size(y.dtype);
        const Sink sink = {q.finish, q.x_scale ? q.x_scale[image] : 1.f, to, y.stride[1], filter, q.context};
        if (q.finish)
            g.finish = q.finish, g.context = &sink;
        else
            g.c = reinterpret_cast<int32_t*>(to), g.c_row = y.stride[1];
        return int_gemm(g);
    });
}

// ---- conv_integer -----------------------------------------------------------------------------------------------------

Status infer_conv_integer(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &x_zero = c.in[2], &w_zero = c.in[3];
    TW_TRY(want_bytes(x, "x"));
    TW_TRY(infer_conv(c, x, w, w_zero, reach_of(x, x_zero), r));
    if (given(x_zero)) {
        TW_TRY(want_dtype_of(x_zero, "x_zero", x, "x"));
        TW_TRY(want_one(x_zero, "x_zero"));
    }
    return Status::ok;
}

// Runs int_conv with the same zero point for every image, and a y that is a run.
template <class Y>
Status run_codes(const Call& c, IntConv q, const View& x_zero, const View& y) {
    if (numel(y) == 0) return Status::ok;
    const int64_t images = q.x.shape[0];
    Scratch zeros(static_cast<size_t>(images) * sizeof(int32_t)), y_scratch(run_bytes<Y>(y, 2));
    int32_t* const zero = zeros.as<int32_t>();
    if (!zero || !y_scratch.as<void>()) return no_memory();
    for (int64_t i = 0; i < images; ++i) zero[i] = given(x_zero) ? code_at(x_zero, 0) : 0;
    q.x_zero = zero;
    q.groups = c.attr[kGroups].i;
    q.packed = c.packed;
    q.y = as_run<Y>(y, 2, y_scratch, false);
    TW_TRY(int_conv(c, q));
    if (q.y.data != y.data) copy<Y>(y, q.y);
    return Status::ok;
}

Status run_conv_integer(const Call& c) {
    IntConv q{};
    q.x = c.in[0], q.w = c.in[1], q.w_zero = c.in[3];
    return run_codes<int32_t>(c, q, c.in[2], c.out[0]);
}

// ---- qlinear_conv -----------------------------------------------------------------------------------------------------

enum { kX, kXScale, kXZero, kW, kWScale, kWZero, kYScale, kYZero, kB };

Status infer_qlinear_conv(Call& c, Inferred& r) {
    const View &x = c.in[kX], &w = c.in[kW], &b = c.in[kB];
    TW_TRY(want_bytes(x, "x"));
    TW_TRY(infer_conv(c, x, w, c.in[kWZero], reach_of(x, c.in[kXZero]), r));
    TW_TRY(want_f32(c.in[kXScale], "x_scale"));
    TW_TRY(want_one(c.in[kXScale], "x_scale"));
    TW_TRY(want_dtype_of(c.in[kXZero], "x_zero", x, "x"));
    TW_TRY(want_one(c.in[kXZero], "x_zero"));
    TW_TRY(want_f32(c.in[kWScale], "w_scale"));
    TW_TRY(want_filters(c.in[kWScale], "w_scale", w));
    TW_TRY(want_f32(c.in[kYScale], "y_scale"));
    TW_TRY(want_one(c.in[kYScale], "y_scale"));
    TW_TRY(want_bytes(c.in[kYZero], "y_zero"));
    TW_TRY(want_one(c.in[kYZero], "y_zero"));
    if (given(b)) {
        if (b.dtype != DType::i32) return fail(Status::dtype, "b", "b has dtype %s; want int32", name_of(b.dtype));
        TW_TRY(want_shape(b, "b", 1, w.shape));
    }
    r.out[0].dtype = c.in[kYZero].dtype;
    return Status::ok;
}

struct Requantize {
    const float* scale;  // of each filter
    const int32_t* bias;
    float zero;
};

template <class Q>
void requantize(const void* context, const IntTile& t) {
    const Sink& sink = *static_cast<const Sink*>(context);
    const Requantize& r = *static_cast<const Requantize*>(sink.all);
    constexpr int L = kLanes<float>;
    constexpr float low = static_cast<Q>(-1) < 0 ? -128.f : 0.f;
    for (int i = 0; i < t.m; ++i) {
        const int64_t k = sink.filter + t.m0 + i;
        const u32v bias = splat(static_cast<uint32_t>(r.bias[k]));
        const f32v scale = splat(r.scale[k]), zero = splat(r.zero);
        Q* const y = reinterpret_cast<Q*>(sink.y) + (t.m0 + i) * sink.row + t.n0;
        for (int j = 0; j < t.n; j += L) {
            const i32v sum = bitcast<i32v>(bitcast<u32v>(load(t.sums + i * kIntNR + j)) + bias);
            const f32v v = apart(to_f32(sum) * scale);
            store_part_n(y + j, narrow8<Q>(code_of(v, zero, low, low + 255.f)), t.n - j < L ? t.n - j : L);
        }
    }
}

Status run_qlinear_conv(const Call& c) {
    const View &w = c.in[kW], &w_scale = c.in[kWScale], &b = c.in[kB], &y = c.out[0];
    const int64_t filters = w.shape[0];
    Scratch scratch(static_cast<size_t>(filters) * 2 * sizeof(float) + 64);
    float* const scale = scratch.as<float>();
    if (!scale) return no_memory();
    int32_t* const bias = reinterpret_cast<int32_t*>(scale + filters);
    const float x_scale = *c.in[kXScale].as<float>(), y_scale = *c.in[kYScale].as<float>();
    for (int64_t k = 0; k < filters; ++k) {
        scale[k] = x_scale * w_scale.as<float>()[k * filter_step(w_scale)] / y_scale;
        bias[k] = given(b) ? b.as<int32_t>()[k * b.stride[0]] : 0;
    }
    const Requantize last = {scale, bias, static_cast<float>(code_at(c.in[kYZero], 0))};
    IntConv q{};
    q.x = c.in[kX], q.w = w, q.w_zero = c.in[kWZero];
    q.finish = y.dtype == DType::u8 ? requantize<uint8_t> : requantize<int8_t>;
    q.context = &last;
    return run_codes<uint8_t>(c, q, c.in[kXZero], y);
}

// ---- conv_int8 --------------------------------------------------------------------------------------------------------

Status infer_conv_int8(Call& c, Inferred& r) {
    const View &x = c.in[0], &w = c.in[1], &w_scale = c.in[2], &b = c.in[3], &w_zero = c.in[4];
    TW_TRY(want_conv_float(x, "x"));
    TW_TRY(infer_conv(c, x, w, w_zero, 255, r));
    if (w_scale.dtype != DType::f32) TW_TRY(want_dtype_of(w_scale, "w_scale", x, "x"));
    TW_TRY(want_filters(w_scale, "w_scale", w));
    TW_TRY(check_bias(b, x, w.shape[0]));
    r.out[0].dtype = x.dtype;
    return Status::ok;
}

template <class T>
void widen_row(float* to, const T* from, int64_t step, int64_t n) {
    int64_t i = 0;
    if constexpr (sizeof(T) <= sizeof(float))
        if (step == 1)
            for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, load_as<float>(from + i));
    for (; i < n; ++i)
        if constexpr (__is_same(T, double))
            to[i] = static_cast<float>(from[i * step]);
        else
            to[i] = to_float(from[i * step]);
}

// x as contiguous float32: itself, or a copy in `to`.
template <class T>
const float* floats_of(const View& x, float* to) {
    if (__is_same(T, float) && is_contiguous(x)) return x.as<float>();
    View copy = x;
    copy.dtype = DType::f32;
    set_contiguous(copy);
    copy.data = to;
    const View* views[] = {&copy, &x};
    const Walk walk = walk_over(views, 2, x.ndim, x.shape);
    for_each_row(walk, kChunkElements, [&](char* const* at, int64_t count) {
        widen_row(reinterpret_cast<float*>(at[0]), reinterpret_cast<const T*>(at[1]), walk.stride[1], count);
    });
    return to;
}

constexpr int64_t kPiece = 1 << 14;  // of an image, searched or quantised by one job

// The codes of one image, its zero point and its scale.
bool quantize_image(const float* x, int64_t n, uint8_t* codes, int32_t* zero, float* scale) {
    const int64_t pieces = ceil_div(n, kPiece);
    Scratch scratch(static_cast<size_t>(pieces + 1) * sizeof(Range));
    Range* const ranges = scratch.as<Range>();
    if (!ranges) return false;
    parallel(pieces, [&](int64_t i) { ranges[i] = range_of(x + i * kPiece, min_of(kPiece, n - i * kPiece)); });
    Range all = {0, 0};
    for (int64_t i = 0; i < pieces; ++i) {
        if (!(ranges[i].low >= all.low)) all.low = ranges[i].low;
        if (!(ranges[i].high <= all.high)) all.high = ranges[i].high;
        if (ranges[i].low != ranges[i].low) {
            all = ranges[i];
            break;
        }
    }
    const RowCode own = row_code(all);
    const f32v inverse = splat(own.inverse), offset = splat(own.zero);
    parallel(pieces, [&](int64_t p) {
        constexpr int L = kLanes<float>;
        const int64_t end = min_of(p * kPiece + kPiece, n);
        for (int64_t i = p * kPiece; i < end; i += L) {
            const int64_t lanes = min_of(end - i, L);
            const f32v v = lanes == L ? load(x + i) : load_n(x + i, lanes);
            store_part_n(codes + i, narrow8<uint8_t>(code_of(apart(v * inverse), offset, 0.f, 255.f)), lanes);
        }
    });
    *zero = static_cast<int32_t>(own.zero), *scale = own.scale;
    return true;
}

struct Scale {
    const float *scale, *bias;  // of each filter; bias may be null
    Activation activation;
};

template <class T>
void scale_sums(const void* context, const IntTile& t) {
    const Sink& sink = *static_cast<const Sink*>(context);
    const Scale& f = *static_cast<const Scale*>(sink.all);
    constexpr int L = kLanes<float>;
    for (int i = 0; i < t.m; ++i) {
        const int64_t k = sink.filter + t.m0 + i;
        const f32v both = splat(sink.x_scale * f.scale[k]);
        T* const y = reinterpret_cast<T*>(sink.y) + (t.m0 + i) * sink.row + t.n0;
        for (int j = 0; j < t.n; j += L) {
            const int lanes = t.n - j < L ? t.n - j : L;
            f32v v = apart(to_f32(load(t.sums + i * kIntNR + j)) * both);
            if (f.bias) v = v + splat(f.bias[k]);
            if (f.activation != Activation::none) v = activate(v, f.activation);
            if constexpr (__is_same(T, double))
                for (int e = 0; e < lanes; ++e) y[j + e] = static_cast<double>(v[e]);
            else
                lanes == L ? store_from(y + j, v) : store_from_n(y + j, v, lanes);
        }
    }
}

template <class T>
Status conv_int8(const Call& c) {
    const View &x = c.in[0], &w = c.in[1], &w_scale = c.in[2], &b = c.in[3], &y = c.out[0];
    const int64_t filters = w.shape[0], images = x.shape[0], size = numel(x) / images;
    const bool straight = __is_same(T, float) && is_contiguous(x);
    Scratch x_scratch(straight ? 64 : static_cast<size_t>(numel(x)) * sizeof(float) + 64);
    Scratch code_scratch(static_cast<size_t>(numel(x)) + 64), y_scratch(run_bytes<T>(y, 2));
    Scratch numbers(static_cast<size_t>(2 * filters + 2 * images) * sizeof(float));
    uint8_t* const codes = code_scratch.as<uint8_t>();
    float* const scale = numbers.as<float>();
    if (!x_scratch.as<void>() || !codes || !y_scratch.as<void>() || !scale) return no_memory();
    float *const bias = scale + filters, *const x_scale = bias + filters;
    int32_t* const x_zero = reinterpret_cast<int32_t*>(x_scale + images);
    for (int64_t k = 0; k < filters; ++k) {
        scale[k] = number_at(w_scale, k * filter_step(w_scale));
        bias[k] = given(b) ? number_at(b, k * b.stride[0]) : 0.f;
    }
    const float* const floats = floats_of<T>(x, x_scratch.as<float>());
    for (int64_t i = 0; i < images; ++i)
        if (!quantize_image(floats + i * size, size, codes + i * size, x_zero + i, x_scale + i)) return no_memory();
    const Scale last = {scale, given(b) ? bias : nullptr, activation_of(c.attr[kActivation])};
    IntConv q{};
    q.x = x, q.x.dtype = DType::u8, q.x.data = codes;
    set_contiguous(q.x);
    q.w = w, q.w_zero = c.in[4];
    q.x_zero = x_zero, q.x_scale = x_scale;
    q.groups = c.attr[kGroups].i;
    q.packed = c.packed;
    q.y = as_run<T>(y, 2, y_scratch, false);
    q.finish = scale_sums<T>, q.context = &last;
    TW_TRY(int_conv(c, q));
    if (q.y.data != y.data) copy<T>(y, q.y);
    return Status::ok;
}

Status run_conv_int8(const Call& c) {
    if (numel(c.out[0]) == 0) return Status::ok;
    return for_floating(c.in[0].dtype, [&]<class T>() { return conv_int8<T>(c); });
}

// ---- the ops ----------------------------------------------------------------------------------------------------------

int64_t packed_size(const Call& c) { return packed_filters(c.in[1]); }
void pack(const Call& c, void* packed) { prepare_filters(c.in[1], packed); }
int64_t packed_size_qlinear(const Call& c) { return packed_filters(c.in[kW]); }
void pack_qlinear(const Call& c, void* packed) { prepare_filters(c.in[kW], packed); }

constexpr Operand kInteger[] = {{"x"}, {"w"}, {"x_zero", Role::optional}, {"w_zero", Role::optional}};
constexpr Operand kLinear[] = {{"x"},       {"x_scale"}, {"x_zero"},           {"w"}, {"w_scale"}, {"w_zero"},
                               {"y_scale"}, {"y_zero"},  {"b", Role::optional}};
constexpr Operand kDynamic[] = {{"x"}, {"w"}, {"w_scale"}, {"b", Role::optional}, {"w_zero", Role::optional}};
constexpr AttrSpec kAttrs[] = {TW_CONV_ATTRS};
constexpr AttrSpec kDynamicAttrs[] = {
    TW_CONV_ATTRS,
    {.name = "activation", .kind = AttrKind::choice, .choices = "relu|sigmoid|tanh|gelu", .none_ok = true}};

}  // namespace

extern const OpDef op_conv_integer = {"conv_integer",     kInteger,         4, kAttrs,      TW_COUNT(kAttrs),
                                      infer_conv_integer, run_conv_integer, 0, packed_size, pack};
extern const OpDef op_qlinear_conv = {
    "qlinear_conv",      kLinear,     9, kAttrs, TW_COUNT(kAttrs), infer_qlinear_conv, run_qlinear_conv, 0,
    packed_size_qlinear, pack_qlinear};
extern const OpDef op_conv_int8 = {"conv_int8",     kDynamic,      5, kDynamicAttrs, TW_COUNT(kDynamicAttrs),
                                   infer_conv_int8, run_conv_int8, 0, packed_size,   pack};

}  // namespace tw::TW_ISA
