// One call, from Python objects to results: parse, infer, allocate, run. Every op and every entry goes through here.
#pragma once
#include <pybind11/pybind11.h>

#include "bindings/exchange.h"
#include "core/op_table.h"

namespace tw::bindings {

// The names an op answers to, interned once.
struct Face {
    OpId id;
    const OpDef* def;  // any tier's: names and specs are the same in all
    PyObject* name;
    PyObject* operand_names[kMaxOperands];
    PyObject* attr_names[kMaxAttrs];
    PyObject* out_name;
};

const Face* face_of(OpId id);          // built at first use; null with an error set
const Face* face_named(PyObject* name);  // null with an error set

// The arguments of a call by parameter, borrowed; null where not given.
struct Arguments {
    PyObject* operand[kMaxOperands];
    PyObject* attr[kMaxAttrs];
    PyObject* out;
    PyObject* const* spread;  // the arrays of a variadic operand that were given one by one, or null
    Py_ssize_t n_spread;
};

enum class Binding { done, foreign, failed };

// Sorts vectorcall arguments into parameters; the entries of `into` that are already set are defaults to override.
// `foreign`: an operand is neither a numpy array, a number nor None, so Python's dispatch must look at the call.
Binding bind(const Face& face, PyObject* const* args, Py_ssize_t n_args, PyObject* kwnames, Arguments& into);

// Attributes as given, defaults filled in, not yet resolved by infer; false with an error set.
bool read_attributes_of(const Face& face, const Arguments& arguments, Attr* attrs);

// Runs the op of `def` on numpy arrays, or on the tensors of an exchange, without `out`; `packed` as OpDef::pack wrote it,
// or null. A new reference or null.
PyObject* invoke(const Face& face, const OpDef& def, const Arguments& arguments, const void* packed,
                 const Exchange* exchange = nullptr);

// The shape rule alone: ([(shape, dtype), ...], {attribute: resolved value}). Operands need only shape and dtype.
PyObject* infer_only(const Face& face, const Arguments& arguments);

// Operands (null = not given) as Views and attributes for packing; false with an error set.
struct PackJob {
    View in[kMaxOperands];
    Attr attr[kMaxAttrs];
    Call call;
};
bool prepare_job(const Face& face, const OpDef& def, const Arguments& arguments, PackJob& job);

}  // namespace tw::bindings
