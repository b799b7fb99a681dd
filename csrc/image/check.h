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

// uint8, (H, W).
TW_INLINE Status want_plane(const View& image, const char* name) {
    if (image.dtype != DType::u8)
        return fail(Status::dtype, name, "%s has dtype %s; want uint8", name, name_of(image.dtype));
    if (image.ndim != 2) return fail(Status::shape, name, "%s has shape %s; want (H, W)", name, shape_text(image).text);
    return Status::ok;
}

}  // namespace
}  // namespace tw::TW_ISA
