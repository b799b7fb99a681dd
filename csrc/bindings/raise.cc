#include "bindings/raise.h"

#include <cstdarg>
#include <cstdio>

namespace tw::bindings {
namespace {

const char* class_of(Status status) {
    switch (status) {
        case Status::shape: return "ShapeError";
        case Status::dtype: return "DTypeError";
        case Status::attr: return "AttrError";
        case Status::index: return "IndexContentError";
        case Status::unsupported: return "UnsupportedError";
        case Status::memory: return "AllocationError";
        case Status::singular: return "SingularError";
        default: return "Error";
    }
}

void set_error(const char* error_class, const char* op, const char* argument, const char* text) {
    PyObject* errors = PyImport_ImportModule("tilework.errors");
    if (!errors) return;
    PyObject* type = PyObject_GetAttrString(errors, error_class);
    Py_DECREF(errors);
    if (!type) return;
    PyObject* args =
        Py_BuildValue("(N)", op[0] ? PyUnicode_FromFormat("%s: %s", op, text) : PyUnicode_FromString(text));
    PyObject* kwargs = Py_BuildValue("{s:s,s:s}", "op", op, "argument", argument);
    PyObject* error = args && kwargs ? PyObject_Call(type, args, kwargs) : nullptr;
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    if (error) PyErr_SetObject(type, error);
    Py_XDECREF(error);
    Py_DECREF(type);
}

}  // namespace

void raise_status(Status status, const char* op) {
    if (status == Status::interrupted) {
        if (!PyErr_Occurred()) PyErr_SetNone(PyExc_KeyboardInterrupt);
        return;
    }
    const ErrorText& error = last_error();
    set_error(class_of(status), op, error.argument, error.text);
}

void raise(const char* error_class, const char* op, const char* argument, const char* format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    set_error(error_class, op, argument, text);
}

}  // namespace tw::bindings
