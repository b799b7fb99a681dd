// Filters times windows of 8-bit codes: what conv_integer, qlinear_conv and conv_int8 run.
//     sum[n,k,p] = sum_{c,t} (w[k,c,t] - w_zero[k]) (x[n,c, p*stride + t*dilation - padding] - x_zero)
//
// Method    gemm/quantized.h. Panels of windows are packed out of a copy of the image whose border holds the zero point,
//           laid out as gemm/padded.h has it; words along k are zipped from rows of pixels. A 1x1 kernel reads the image
//           itself. Prepared filters are kept as rows of codes.
// Numerics  exact in int32.
// Threads   tiles of the sums; small images and groups side by side.
#include "ops/conv_integer_problem.h"

#include "gemm/padded.h"

namespace tw::TW_ISA {
namespace {

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

// A word of kUnit columns: rows[d] holds code d of each.
TW_INLINE void zip_word(const Unit* rows, int8_t* to) {
    const Unit low = zip_low(rows[0], rows[1]), high = zip_high(rows[0], rows[1]);
    if constexpr (kDotDepth == 2) {
        store_unit(to, low);
        store_unit(to + kUnit, high);
    } else {
        const Unit c = rows[kDotDepth - 2], d = rows[kDotDepth - 1];
        const UnitPairs ab[] = {bitcast<UnitPairs>(low), bitcast<UnitPairs>(high)};
        const UnitPairs cd[] = {bitcast<UnitPairs>(zip_low(c, d)), bitcast<UnitPairs>(zip_high(c, d))};
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            store_unit(to + 2 * half * kUnit, bitcast<Unit>(zip_low(ab[half], cd[half])));
            store_unit(to + (2 * half + 1) * kUnit, bitcast<Unit>(zip_high(ab[half], cd[half])));
        }
    }
}

// Column c of a unit lies at from + c, if `here` says so and no later source does.
struct Source {
    const uint8_t* from;
    Unit here;
};

template <int Sources>
TW_INLINE Unit take_codes(const Source* source, int sources, int64_t offset, uint8_t flip) {
    Unit v = load_unit(source[0].from + offset, flip);
#pragma GCC unroll 4
    for (int i = 1; i < (Sources ? Sources : sources); ++i) {
        const Unit other = load_unit(source[i].from + offset, flip);
        v ^= (v ^ other) & source[i].here;
    }
    return v;
}

// All words of kUnit columns.
template <int Sources>
void zip_columns(const Codes& q, const Source* source, int sources, int8_t* to) {
    const int64_t* const offset = q.padded.offset;
    Unit rows[kDotDepth];
    int64_t k = 0;
    for (; k + kDotDepth <= q.k; k += kDotDepth, to += NR * kDotDepth) {
#pragma GCC unroll 4
        for (int d = 0; d < kDotDepth; ++d) rows[d] = take_codes<Sources>(source, sources, offset[k + d], q.flip);
        zip_word(rows, to);
    }
    if (k == q.k) return;
    for (int d = 0; d < kDotDepth; ++d)
        rows[d] = k + d < q.k ? take_codes<Sources>(source, sources, offset[k + d], q.flip) : Unit{};
    zip_word(rows, to);
}

// Matches IntGemm::pack_b. Whole units are read beyond the pixels of a run; the copy ends with room for that.
void pack_copied(const void* context, int64_t n0, int64_t n, int8_t* panel) {
    static_assert(Padded<uint8_t>::kSlack >= NR);
    const Codes& q = *static_cast<const Codes*>(context);
    const Padded<uint8_t>& p = q.padded;
    Source source[NR / kUnit][kUnit];
    int sources[NR / kUnit] = {};
    for (int64_t done = 0; done < n;) {
        const int64_t pixel = n0 + done, at = pixel % p.out[2], row = pixel / p.out[2];
        const uint8_t* from =
            p.data + (row / p.out[1] * p.move[0] * p.size[1] + row % p.out[1] * p.move[1]) * p.row + at;
        const int64_t count = min_of(p.out[2] - at, n - done);
        for (int64_t u = done / kUnit; u * kUnit < done + count; ++u) {
            // Rows follow each other at least as far apart in the copy as here: `from` stays inside of it.
            const int64_t first = u * kUnit - done;
            Source& one = source[u][sources[u]++];
            one.from = from + first;
            for (int64_t c = 0; c < kUnit; ++c) one.here[c] = first + c >= 0 ? 0xff : 0;
        }
        done += count;
    }
    for (int u = 0; u < NR / kUnit; ++u, panel += kUnit * kDotDepth) {
        if (!sources[u]) source[u][0] = source[0][0], sources[u] = 1;  // beyond the last column: anything
        const auto zip = sources[u] == 1   ? zip_columns<1>
                         : sources[u] == 2 ? zip_columns<2>
                         : sources[u] == 3 ? zip_columns<3>
                                           : zip_columns<0>;
        zip(q, source[u], sources[u], panel);
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

const RowTerms* terms_of(const View& w, const void* packed) {
    return reinterpret_cast<const RowTerms*>(static_cast<const DotLeft*>(packed) +
                                             left_rows(w.shape[0]) * left_stride(depth_of(w)));
}

bool is_point(const ConvAxes& s) {
    bool point = true;
    for (int a = 0; a < kMaxRank; ++a) point = point && s.taps[a] == 1 && s.stride[a] == 1 && s.out[a] == s.in[a];
    return point;
}

}  // namespace

int64_t packed_filters(const View& w) {
    if (!given(w) || w.ndim < 3 || w.ndim > 5 || (w.dtype != DType::i8 && w.dtype != DType::u8) || numel(w) == 0)
        return 0;
    return left_rows(w.shape[0]) *
           (left_stride(depth_of(w)) * static_cast<int64_t>(sizeof(DotLeft)) + static_cast<int64_t>(sizeof(RowTerms)));
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
    codes.flip = right_flip(x_unsigned);
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
        g.b = {from, x.stride[1], 1, x_unsigned};
        g.a_unsigned = w_unsigned, g.a_centred = centred;
        if (!point) g.pack_b = copied ? pack_copied : pack_scattered, g.b_context = &own;
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

}  // namespace tw::TW_ISA
