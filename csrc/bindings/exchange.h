// Tensors of another library, read where they lie and made over the pool's memory, without its Python methods.
#pragma once
#include <Python.h>

#include "core/types.h"
#include "include/tilework/dlpack_abi.h"

namespace tw::bindings {

// A tensor type, and the functions it shows for that (DLPack 1.2).
struct Exchange {
    PyTypeObject* type;
    const DLPackExchangeAPI* api;
};

// False without an error set where the type shows none of version 1.
bool exchange_of(PyTypeObject* type, Exchange& exchange);

static inline bool is_tensor(const Exchange& exchange, PyObject* object) {
    return PyObject_TypeCheck(object, exchange.type);
}

// Describes a tensor's memory, checked like any other descriptor; false with an error set.
bool view_of(const Exchange& exchange, PyObject* tensor, View& view, const char* op, const char* argument);

// A fresh C-ordered tensor for view.shape; fills data and stride. New reference or null.
PyObject* allocate(const Exchange& exchange, View& view, const char* op);

}  // namespace tw::bindings
