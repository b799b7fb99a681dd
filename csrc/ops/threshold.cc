// Thresholds of pictures: what a pixel becomes where it exceeds a value, and where it does not.
//
//     kind          above   else        kind          above   else
//     binary        high    0           tozero        x       0
//     binary_inv    0       high        tozero_inv    0       x
//     trunc         value   x
//
// Method    one pass over merged axes, whole vectors with an exact tail; any strides.
// Numerics  exact: an integer exceeds a value where it exceeds the integer below it; what trunc writes saturates. Of floats
//           the value is rounded to float32, and a NaN exceeds nothing.
// Threads   rows are cut into pieces of kChunkElements; elements are independent, so bits never depend on the split.
#include "core/walk.h"
#include "image/check.h"
#include "ops/ops.h"
#include "simd/pixels.h"

namespace tw::TW_ISA {
namespace {

enum Kind { kBinary, kBinaryInv, kTrunc, kTozero, kTozeroInv };

// What a pixel becomes: itself, or a value.
template <class T>
struct Choice {
    bool keep;
    T set;
};

// Pixels of more than 8 bits.
template <class T>
Status run_wide(const Call& c) {
    const double value = c.attr[0].f, floor = __builtin_floor(value);
    const T high = static_cast<T>(c.attr[1].f);
    const T limit = static_cast<T>(kIsFloating<T> ? value : floor < 0 ? 0 : floor > 65535 ? 65535 : floor);
    const bool always = !kIsFloating<T> && floor < 0;  // even 0 exceeds it
    const Choice<T> zero = {false, 0}, same = {true, 0}, bright = {false, high}, capped = {false, limit};
    const Choice<T> above[] = {bright, zero, capped, same, zero}, other[] = {zero, bright, same, zero, same};
    const Choice<T> a = above[c.attr[2].choice], b = always ? a : other[c.attr[2].choice];
    const View* views[] = {&c.out[0], &c.in[0]};
    const Walk w = walk_over(views, 2, c.out[0].ndim, c.out[0].shape);
    const Vec<T> limits = splat(limit), set_a = splat(a.set), set_b = splat(b.set);
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        T* const y = reinterpret_cast<T*>(at[0]);
        const T* const x = reinterpret_cast<const T*>(at[1]);
        int64_t i = 0;
        if (w.stride[0] == 1 && w.stride[1] == 1)
            for (; i < count; i += kLanes<T>) {
                const int64_t n = min_of(count - i, kLanes<T>);
                const Vec<T> v = load_n(x + i, n);
                store_n(y + i, select(v > limits, a.keep ? v : set_a, b.keep ? v : set_b), n);
            }
        for (; i < count; ++i) {
            const T v = x[i * w.stride[1]];
            const Choice<T> r = v > limit ? a : b;
            y[i * w.stride[0]] = r.keep ? v : r.set;
        }
    });
    return Status::ok;
}

// What `rule` makes of whole vectors of 8-bit pixels; of pixels that lie apart, by a table.
template <class Rule>
Status apply(const Call& c, const Rule& rule) {
    constexpr int64_t lanes = kLanes<uint8_t>;
    const View* views[] = {&c.out[0], &c.in[0]};
    const Walk w = walk_over(views, 2, c.out[0].ndim, c.out[0].shape);
    if (w.stride[0] != 1 || w.stride[1] != 1) {
        uint8_t table[256];
        for (int v = 0; v < 256; v += lanes) store(table + v, rule(iota<uint8_t>() + static_cast<uint8_t>(v)));
        for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
            uint8_t* const y = reinterpret_cast<uint8_t*>(at[0]);
            const uint8_t* const x = reinterpret_cast<const uint8_t*>(at[1]);
            for (int64_t i = 0; i < count; ++i) y[i * w.stride[0]] = table[x[i * w.stride[1]]];
        });
        return Status::ok;
    }
    for_each_row(w, 2 * kChunkElements, [&](char* const* at, int64_t count) {
        uint8_t* const y = reinterpret_cast<uint8_t*>(at[0]);
        const uint8_t* const x = reinterpret_cast<const uint8_t*>(at[1]);
        int64_t i = 0;
        for (; i + 4 * lanes <= count; i += 4 * lanes) {
            const u8v a = load(x + i), b = load(x + i + lanes);
            const u8v d = load(x + i + 2 * lanes), e = load(x + i + 3 * lanes);
            store(y + i, rule(a));
            store(y + i + lanes, rule(b));
            store(y + i + 2 * lanes, rule(d));
            store(y + i + 3 * lanes, rule(e));
        }
        for (; i < count; i += lanes) {
            const int64_t n = min_of(count - i, lanes);
            store_n(y + i, rule(load_n(x + i, n)), n);
        }
    });
    return Status::ok;
}

Status run(const Call& c) {
    if (c.in[0].dtype == DType::f32) return run_wide<float>(c);
    if (c.in[0].dtype == DType::u16) return run_wide<uint16_t>(c);
    const double floor = __builtin_floor(c.attr[0].f);
    int kind = static_cast<int>(c.attr[2].choice);
    // Pixels exceed the value from `least` on. Where none does, the opposite kind holds of all.
    const bool never = floor >= 255;
    const u8v least = splat(static_cast<uint8_t>(floor < 0 || never ? 0 : floor + 1));
    const u8v limit = splat(static_cast<uint8_t>(floor < 0 ? 0 : never ? 255 : floor));
    const u8v high = splat(static_cast<uint8_t>(c.attr[1].f));
    if (never) {
        constexpr int opposite[] = {kBinaryInv, kBinary, kTrunc, kTozeroInv, kTozero};
        kind = opposite[kind];
    }
    const auto exceeds = [=](u8v v) __attribute__((always_inline)) { return bitcast<u8v>(max_any(v, least) == v); };
    switch (kind) {
        case kBinary: return apply(c, [=](u8v v) __attribute__((always_inline)) { return exceeds(v) & high; });
        case kBinaryInv: return apply(c, [=](u8v v) __attribute__((always_inline)) { return ~exceeds(v) & high; });
        case kTrunc: return apply(c, [=](u8v v) __attribute__((always_inline)) { return min_any(v, limit); });
        case kTozero: return apply(c, [=](u8v v) __attribute__((always_inline)) { return exceeds(v) & v; });
        default: return apply(c, [=](u8v v) __attribute__((always_inline)) { return ~exceeds(v) & v; });
    }
}

Status infer(Call& c, Inferred& r) {
    const View& image = c.in[0];
    TW_TRY(want_pixel_type(image, "image"));
    if (c.attr[0].f != c.attr[0].f) return fail(Status::attr, "value", "value=nan; want a number");
    TW_TRY(want_value(c.attr[1].f, image.dtype, "high"));
    r.n_out = 1;
    r.out[0] = result(image.dtype, image.ndim, image.shape);
    return Status::ok;
}

constexpr Operand kImage[] = {{"image"}};
constexpr AttrSpec kAttrs[] = {
    {.name = "value", .kind = AttrKind::real, .required = true},
    {.name = "high", .kind = AttrKind::real, .f = 255},
    {.name = "kind", .kind = AttrKind::choice, .choices = "binary|binary_inv|trunc|tozero|tozero_inv"},
};

}  // namespace

extern const Entry op_threshold = {"threshold", kImage, 1, kAttrs, TW_COUNT(kAttrs), infer, run, kElementwise};

}  // namespace tw::TW_ISA
