// Python values as Attrs and back, by kind.
#pragma once
#include <Python.h>

#include "core/attrs.h"

namespace tw::bindings {

// Fills `attr` from a Python value; false with AttrTypeError (wrong type) or AttrError (wrong value) set.
bool attribute_from(PyObject* value, const AttrSpec& spec, Attr& attr, const char* op);

const char* wanted(const AttrSpec& spec);  // "an int or a tuple of ints": what the attribute takes, for messages

// A new reference: numbers, tuples, tuples of pairs, strings, numpy dtypes or None.
PyObject* attribute_object(const Attr& attr, const AttrSpec& spec);

}  // namespace tw::bindings
