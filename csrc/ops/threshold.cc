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

// The result is (x & keep) | set, one such pair above the limit and one elsewhere.
struct Rule {
    uint8_t keep, set;
};

Status run(const Call& c) {
    if (c.in[0].dtype == DType::f32) return run_wide<float>(c);
    if (c.in[0].dtype == DType::u16) return run_wide<uint16_t>(c);
    const double floor = __builtin_floor(c.attr[0].f);
    const auto high = static_cast<uint8_t>(c.attr[1].f);
    const auto limit = static_cast<uint8_t>(floor < 0 ? 0 : floor > 255 ? 255 : floor);
    const uint8_t always = floor < 0 ? 255 : 0;  // even 0 exceeds it
    const Rule zero = {0, 0}, same = {255, 0}, bright = {0, high}, capped = {0, limit};
    const Rule above[] = {bright, zero, capped, same, zero}, other[] = {zero, bright, same, zero, same};
    const Rule a = above[c.attr[2].choice], b = other[c.attr[2].choice];
    const View* views[] = {&c.out[0], &c.in[0]};
    const Walk w = walk_over(views, 2, c.out[0].ndim, c.out[0].shape);
    const u8v limits = splat(limit), all = splat(always);
    // What holds below the limit, and what changes above it.
    const u8v keep = splat(b.keep), other_keep = splat(static_cast<uint8_t>(a.keep ^ b.keep));
    const u8v set = splat(b.set), other_set = splat(static_cast<uint8_t>(a.set ^ b.set));
    for_each_row(w, kChunkElements, [&](char* const* at, int64_t count) {
        uint8_t* const y = reinterpret_cast<uint8_t*>(at[0]);
        const uint8_t* const x = reinterpret_cast<const uint8_t*>(at[1]);
        if (w.stride[0] == 1 && w.stride[1] == 1) {
            const auto ruled = [&](u8v v) __attribute__((always_inline)) {
                const u8v exceeds = bitcast<u8v>(v > limits) | all;
                return (v & (keep ^ (exceeds & other_keep))) | (set ^ (exceeds & other_set));
            };
            constexpr int64_t lanes = kLanes<uint8_t>;
            int64_t i = 0;
            for (; i + 2 * lanes <= count; i += 2 * lanes) {
                const u8v one = ruled(load(x + i)), two = ruled(load(x + i + lanes));
                store(y + i, one);
                store(y + i + lanes, two);
            }
            for (; i < count; i += lanes) {
                const int64_t n = min_of(count - i, lanes);
                store_n(y + i, ruled(load_n(x + i, n)), n);
            }
            return;
        }
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t v = x[i * w.stride[1]];
            const Rule r = v > limit || always ? a : b;
            y[i * w.stride[0]] = static_cast<uint8_t>((v & r.keep) | r.set);
        }
    });
    return Status::ok;
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

extern const OpDef op_threshold = {"threshold", kImage, 1, kAttrs, TW_COUNT(kAttrs), infer, run, kElementwise};

}  // namespace tw::TW_ISA
