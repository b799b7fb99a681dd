// DLPack in and out: every field that can be checked is checked before it is believed.
#pragma once
#include <Python.h>

#include "core/types.h"
#include "include/tilework/dlpack_abi.h"

namespace tw::bindings {

// A numpy view of a foreign CPU array (anything with __dlpack__), without a copy. New reference or null.
PyObject* from_dlpack(PyObject* producer, const char* op, const char* argument);

// A capsule for a numpy array, bfloat16 included (numpy itself cannot export that). New reference or null.
PyObject* to_dlpack(PyObject* array);

// The same memory as a DLTensor, whose shape and strides lie in the view.
DLTensor tensor_of(View& view);

}  // namespace tw::bindings
