// What every filter asks of a picture.
#pragma once
#include "core/check.h"
#include "simd/vec.h"

namespace tw::TW_ISA {
namespace {

// uint8, (H, W) or (H, W, 3).
TW_INLINE Status want_picture(const View& image) {
    if (image.dtype != DType::u8)
        return fail(Status::dtype, "image", "image has dtype %s; want uint8", name_of(image.dtype));
    if (image.ndim != 2 && !(image.ndim == 3 && image.shape[2] == 3))
        return fail(Status::shape, "image", "image has shape %s; want (H, W) or (H, W, 3)", shape_text(image).text);
    return Status::ok;
}

// uint8, uint16 or float32.
TW_INLINE Status want_pixel_type(const View& image, const char* name) {
    if (image.dtype == DType::u8 || image.dtype == DType::u16 || image.dtype == DType::f32) return Status::ok;
    return fail(Status::dtype, name, "%s has dtype %s; want uint8, uint16 or float32", name, name_of(image.dtype));
}

// The same of shape (H, W) or (H, W, 3).
TW_INLINE Status want_any_picture(const View& image) {
    TW_TRY(want_pixel_type(image, "image"));
    if (image.ndim != 2 && !(image.ndim == 3 && image.shape[2] == 3))
        return fail(Status::shape, "image", "image has shape %s; want (H, W) or (H, W, 3)", shape_text(image).text);
    return Status::ok;
}

// body(a pixel) with the type that pixels have.
template <class Body>
TW_INLINE Status with_pixels(DType t, const Body& body) {
    return t == DType::u16 ? body(uint16_t{}) : t == DType::f32 ? body(float{}) : body(uint8_t{});
}

// A number that pixels of a type can have: any of a float, whole ones in the range of an integer.
TW_INLINE Status want_value(double v, DType t, const char* name) {
    if (t == DType::f32) return v == v ? Status::ok : fail(Status::attr, name, "%s=nan; want a number", name);
    const double most = t == DType::u8 ? 255 : 65535;
    if (v >= 0 && v <= most && v == __builtin_floor(v)) return Status::ok;
    return fail(Status::attr, name, "%s=%g; want 0 to %g, whole", name, v, most);
}

// uint8, (H, W).
TW_INLINE Status want_plane(const View& image, const char* name) {
    if (image.dtype != DType::u8)
        return fail(Status::dtype, name, "%s has dtype %s; want uint8", name, name_of(image.dtype));
    if (image.ndim != 2) return fail(Status::shape, name, "%s has shape %s; want (H, W)", name, shape_text(image).text);
    return Status::ok;
}

}  // namespace
}  // namespace tw::TW_ISA
