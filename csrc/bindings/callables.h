// The Python types that are called: an op, an op with some arguments prepared, and an op on another library's tensors.
#pragma once
#include <Python.h>

namespace tw::bindings {

bool init_callables(PyObject* module);  // adds Op, Prepared and Exchange; false with an error set

}  // namespace tw::bindings
