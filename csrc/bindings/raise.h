// From a Status to a Python exception of tilework.errors.
#pragma once
#include <Python.h>

#include "core/status.h"

namespace tw::bindings {

// Sets the Python error for the thread's last ErrorText, prefixed by the op's name.
void raise_status(Status status, const char* op);

// Sets tilework.errors.<error_class> with "<op>: <text>".
void raise(const char* error_class, const char* op, const char* argument, const char* format, ...)
    __attribute__((format(printf, 4, 5)));

}  // namespace tw::bindings
