#include "bindings/attributes.h"

#include <cstring>

#include "bindings/arrays.h"
#include "bindings/choices.h"
#include "bindings/raise.h"

namespace tw::bindings {
namespace {

constexpr Py_ssize_t kMaxText = 0x7fffffff;

bool wrong_type(PyObject* value, const AttrSpec& spec, const char* op) {
    PyErr_Clear();
    PyObject* text = PyObject_Repr(value);
    raise("AttrTypeError", op, spec.name, "%s=%.80s is a %s; want %s", spec.name, text ? PyUnicode_AsUTF8(text) : "?",
          Py_TYPE(value)->tp_name, wanted(spec));
    Py_XDECREF(text);
    return false;
}

bool wrong_value(PyObject* value, const AttrSpec& spec, const char* op, const char* want) {
    PyErr_Clear();
    PyObject* text = PyObject_Repr(value);
    raise("AttrError", op, spec.name, "%s=%.80s; want %s", spec.name, text ? PyUnicode_AsUTF8(text) : "?", want);
    Py_XDECREF(text);
    return false;
}

// Python ints, numpy integers and 0-d integer arrays; never bools or floats.
bool is_integer(PyObject* value) { return !PyBool_Check(value) && PyIndex_Check(value) && !PySequence_Check(value); }

bool integer_from(PyObject* value, const AttrSpec& spec, int64_t& result, const char* op) {
    if (PyLong_CheckExact(value)) {
        int overflow = 0;
        result = PyLong_AsLongLongAndOverflow(value, &overflow);
        return overflow ? wrong_value(value, spec, op, "an int of at most 64 bits") : true;
    }
    if (PyBool_Check(value) || !PyIndex_Check(value)) return wrong_type(value, spec, op);
    PyObject* number = PyNumber_Index(value);
    if (!number) return wrong_type(value, spec, op);
    int overflow = 0;
    result = PyLong_AsLongLongAndOverflow(number, &overflow);
    Py_DECREF(number);
    return overflow ? wrong_value(value, spec, op, "an int of at most 64 bits") : true;
}

bool real_from(PyObject* value, const AttrSpec& spec, double& result, const char* op) {
    if (PyFloat_CheckExact(value)) return result = PyFloat_AS_DOUBLE(value), true;
    const bool number = !PyBool_Check(value) && !PyUnicode_Check(value) && !PyBytes_Check(value) &&
                        (PyFloat_Check(value) || PyIndex_Check(value) ||
                         (Py_TYPE(value)->tp_as_number && Py_TYPE(value)->tp_as_number->nb_float));
    if (!number) return wrong_type(value, spec, op);
    result = PyFloat_AsDouble(value);
    return result == -1.0 && PyErr_Occurred() ? wrong_type(value, spec, op) : true;
}

bool integers_from(PyObject* value, const AttrSpec& spec, Attr& attr, const char* op) {
    attr.is_scalar = attr.is_pairs = false;
    if (is_integer(value) || PyLong_Check(value) || PyBool_Check(value)) {
        attr.is_scalar = true;
        attr.n = 1;
        return integer_from(value, spec, attr.list[0], op);
    }
    if (PyUnicode_Check(value) || PyBytes_Check(value) || !PySequence_Check(value) || is_numpy(value))
        return wrong_type(value, spec, op);
    PyObject* items = PySequence_Fast(value, "");
    if (!items) return wrong_type(value, spec, op);
    const Py_ssize_t n = PySequence_Fast_GET_SIZE(items);
    const bool pairs = n > 0 && spec.kind == AttrKind::padding &&
                       PySequence_Check(PySequence_Fast_GET_ITEM(items, 0)) &&
                       !PyUnicode_Check(PySequence_Fast_GET_ITEM(items, 0));
    attr.is_pairs = pairs;
    attr.n = 0;
    bool good = true;
    if ((pairs ? 2 * n : n) > kMaxInts) good = wrong_value(value, spec, op, "at most 8 numbers or pairs");
    for (Py_ssize_t i = 0; good && i < n; ++i) {
        PyObject* item = PySequence_Fast_GET_ITEM(items, i);
        if (!pairs) {
            good = integer_from(item, spec, attr.list[attr.n++], op);
            continue;
        }
        if ((!PyTuple_Check(item) && !PyList_Check(item)) || PySequence_Size(item) != 2) {
            good = wrong_value(value, spec, op, "one (before, after) pair per axis");
            break;
        }
        for (Py_ssize_t side = 0; good && side < 2; ++side) {
            PyObject* number = PySequence_GetItem(item, side);
            good = number && integer_from(number, spec, attr.list[attr.n++], op);
            Py_XDECREF(number);
        }
    }
    Py_DECREF(items);
    return good;
}

PyObject* choice_object(const char* choices, int index) {
    const char* p = choices;
    while (index-- > 0) p = std::strchr(p, '|') + 1;
    const char* end = std::strchr(p, '|');
    return end ? PyUnicode_FromStringAndSize(p, end - p) : PyUnicode_FromString(p);
}

bool choice_from(PyObject* value, const AttrSpec& spec, Attr& attr, const char* op) {
    if (!PyUnicode_Check(value)) return wrong_type(value, spec, op);
    const char* text = PyUnicode_AsUTF8(value);
    if (!text) return wrong_type(value, spec, op);
    attr.choice = choice_index(spec.choices, text);
    if (attr.choice >= 0) return true;
    char want[256];
    std::snprintf(want, sizeof want, "one of %s%s", spec.none_ok ? "None, " : "", spec.choices);
    return wrong_value(value, spec, op, want);
}

bool text_from(PyObject* value, const AttrSpec& spec, Attr& attr, const char* op) {
    if (!PyUnicode_Check(value)) return wrong_type(value, spec, op);
    Py_ssize_t n = 0;
    attr.text = PyUnicode_AsUTF8AndSize(value, &n);
    if (!attr.text || n > kMaxText)
        return wrong_value(value, spec, op, "text without lone surrogates, below 2^31 bytes");
    attr.n = static_cast<int32_t>(n);
    return true;
}

bool padding_from(PyObject* value, const AttrSpec& spec, Attr& attr, const char* op) {
    attr.choice = 0;
    attr.is_scalar = attr.is_pairs = false;
    if (!PyUnicode_Check(value)) return integers_from(value, spec, attr, op);
    if (PyUnicode_CompareWithASCIIString(value, "same") == 0) return attr.choice = 1, attr.n = 0, true;
    if (PyUnicode_CompareWithASCIIString(value, "valid") == 0) return attr.choice = 2, attr.n = 0, true;
    return wrong_value(value, spec, op, "an int, a tuple of ints or of pairs, 'same' or 'valid'");
}

}  // namespace

const char* wanted(const AttrSpec& spec) {
    switch (spec.kind) {
        case AttrKind::integer: return "an int";
        case AttrKind::real: return "a float";
        case AttrKind::boolean: return "a bool";
        case AttrKind::choice: return "a string";
        case AttrKind::integers: return "an int or a tuple of ints";
        case AttrKind::axes: return "None, an int or a tuple of ints";
        case AttrKind::padding: return "an int, a tuple of ints or of pairs, 'same' or 'valid'";
        case AttrKind::dtype: return "a numpy dtype";
        case AttrKind::text: return "a string";
    }
    return "";
}

bool attribute_from(PyObject* value, const AttrSpec& spec, Attr& attr, const char* op) {
    if (value == Py_None) {
        if (!spec.none_ok) return wrong_type(value, spec, op);
        attr = {};  // infer may put numbers in place of None, and every field is read afterwards
        return attr.is_none = true;
    }
    attr.is_none = false;
    switch (spec.kind) {
        case AttrKind::integer: return integer_from(value, spec, attr.i, op);
        case AttrKind::real: return real_from(value, spec, attr.f, op);
        case AttrKind::boolean:
            if (!PyBool_Check(value) && std::strcmp(Py_TYPE(value)->tp_name, "numpy.bool") != 0 &&
                std::strcmp(Py_TYPE(value)->tp_name, "numpy.bool_") != 0)
                return wrong_type(value, spec, op);
            attr.i = PyObject_IsTrue(value);
            return true;
        case AttrKind::choice: return choice_from(value, spec, attr, op);
        case AttrKind::integers:
        case AttrKind::axes: return integers_from(value, spec, attr, op);
        case AttrKind::padding: return padding_from(value, spec, attr, op);
        case AttrKind::dtype: {
            const DType dtype = dtype_from(value);
            if (dtype == DType::none) return wrong_type(value, spec, op);
            attr.choice = static_cast<int>(dtype);
            return true;
        }
        case AttrKind::text: return text_from(value, spec, attr, op);
    }
    return false;
}

PyObject* attribute_object(const Attr& attr, const AttrSpec& spec) {
    if (attr.is_none) return Py_NewRef(Py_None);
    switch (spec.kind) {
        case AttrKind::integer: return PyLong_FromLongLong(attr.i);
        case AttrKind::real: return PyFloat_FromDouble(attr.f);
        case AttrKind::boolean: return PyBool_FromLong(attr.i != 0);
        case AttrKind::choice: return choice_object(spec.choices, attr.choice);
        case AttrKind::dtype: return dtype_object(static_cast<DType>(attr.choice));
        case AttrKind::text: return PyUnicode_FromStringAndSize(attr.text, attr.n);
        case AttrKind::padding:
            if (attr.choice == 1) return PyUnicode_FromString("same");
            if (attr.choice == 2) return PyUnicode_FromString("valid");
            break;
        default: break;
    }
    if (attr.is_scalar) return PyLong_FromLongLong(attr.list[0]);
    const int step = attr.is_pairs ? 2 : 1;
    PyObject* tuple = PyTuple_New(attr.n / step);
    for (int i = 0; tuple && i < attr.n; i += step)
        PyTuple_SET_ITEM(tuple, i / step,
                         attr.is_pairs ? Py_BuildValue("(LL)", static_cast<long long>(attr.list[i]),
                                                       static_cast<long long>(attr.list[i + 1]))
                                       : PyLong_FromLongLong(attr.list[i]));
    return tuple;
}

}  // namespace tw::bindings
