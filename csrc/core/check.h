// Checks that shape rules share. Each names the argument, its value and what would be right.
#pragma once
#include "core/attrs.h"
#include "core/opdef.h"

namespace tw {

struct ShapeText {
    char text[200];
};
ShapeText shape_text(const View& v);  // "(2, 3)", as Python writes it
ShapeText shape_text(int ndim, const int64_t* shape);

struct AttrText {
    char text[160];
};
AttrText attr_text(const Attr& a);  // integers, axes and padding: "2", "(2, 2)", "((0, 1), (2, 3))", cut if long

Status want_real(const View& v, const char* name);      // float32 or float64
Status want_floating(const View& v, const char* name);  // float32, float64, float16 or bfloat16
Status want_dtype_of(const View& v, const char* name, const View& model, const char* model_name);
Status want_shape_of(const View& v, const char* name, const View& model, const char* model_name);
Status want_shape(const View& v, const char* name, int ndim, const int64_t* shape);
Status want_ndim(const View& v, const char* name, int least, int most);

Status resolve_axis(Attr& a, const char* name, int ndim);               // integer in [-ndim, ndim) -> [0, ndim)
Status resolve_axes(Attr& a, const char* name, int ndim);               // None or numbers -> sorted, distinct, >= 0
Status resolve_integers(Attr& a, const char* name, int n,
                        int64_t least);  // one number or n numbers -> n, each >= least

// What a window sees along one axis. `same` is resolved to numbers by the caller's rule below.
constexpr int64_t kMaxSize = int64_t{1} << 40;  // sizes and parameters stay below this, so that products of two fit
Status resolve_padding(Attr& padding, const char* name, int n);  // numbers or pairs -> n pairs, each in [0, kMaxSize)

// Output sizes of a window op over spatial axes: resolves `padding` ("same" included) to pairs and writes out[0..n).
// shape, kernel, stride and dilation have n entries. ceil_mode counts a last window that starts inside the padded input.
Status resolve_window(const int64_t* shape, const int64_t* kernel, const int64_t* stride, const int64_t* dilation,
                      Attr& padding, int n, bool ceil_mode, int64_t* out, const char* blame = "x");

View result(DType dtype, int ndim, const int64_t* shape);  // a View without data

}  // namespace tw
