// numpy arrays as Views and back, on pybind11's run-time copy of the numpy C API (no numpy headers, no array_t).
#pragma once
#include <pybind11/numpy.h>

#include "core/caller.h"

namespace tw::bindings {

namespace py = pybind11;

bool init_arrays();  // once, at import: looks up the dtypes; false with a Python error set

inline bool is_numpy(PyObject* object) {
    return Py_TYPE(object) == py::detail::npy_api::get().PyArray_Type_ ||
           PyObject_TypeCheck(object, py::detail::npy_api::get().PyArray_Type_);
}

// Fills `view` from a numpy array without a copy. A misaligned or oddly strided array cannot be described in whole
// elements: for those `*copy` receives an aligned copy to release after the call (null: refuse instead).
bool view_of(PyObject* array, View& view, const char* op, const char* argument, PyObject** copy);

bool is_writeable(PyObject* array);
DType dtype_of(PyObject* array);                            // DType::none if unsupported
DType dtype_from(PyObject* anything);                       // numpy.dtype(anything); none with a Python error set
PyObject* dtype_object(DType dtype);                        // new reference to a numpy.dtype, null with an error set
PyObject* allocate(View& view, const char* op);  // a fresh C-ordered array for view.shape; fills data, stride
// Memory of the pool for a C-ordered result of view.shape; fills stride and bytes. Null with an error set.
void* take_result(View& view, const char* op, size_t& bytes);
PyObject* wrap(const View& view, PyObject* owner, bool writeable);  // an array over borrowed memory; steals owner

}  // namespace tw::bindings
