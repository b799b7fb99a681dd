// The two Python types that are called: an op, and an op with some arguments prepared.
#pragma once
#include <Python.h>

namespace tw::bindings {

bool init_callables(PyObject* module);  // adds Op and Prepared; false with an error set

}  // namespace tw::bindings
