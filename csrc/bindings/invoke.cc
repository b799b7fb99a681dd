#include "bindings/invoke.h"

#include "bindings/arrays.h"
#include "bindings/attributes.h"
#include "bindings/raise.h"
#include "core/number.h"
#include "core/parallel.h"

namespace tw::bindings {
namespace {

constexpr double kReleaseWork = 40000;  // operations from which dropping the GIL pays (about 10 us)

Face g_faces[kOps];
bool g_faces_built[kOps];

// Everything a call holds while it runs; released in one place.
struct Held {
    PyObject* objects[2 * (kMaxInputs + kMaxOperands) + kMaxOutputs];
    int n = 0;
    void keep(PyObject* object) { objects[n++] = object; }
    ~Held() {
        for (int i = 0; i < n; ++i) Py_DECREF(objects[i]);
    }
};

bool is_number(PyObject* o) { return PyFloat_CheckExact(o) || (PyLong_Check(o) && !PyBool_Check(o)); }

bool is_array(PyObject* object, const Exchange* exchange) {
    return exchange ? is_tensor(*exchange, object) : is_numpy(object);
}

const char* array_name(const Exchange* exchange) { return exchange ? exchange->type->tp_name : "numpy.ndarray"; }

bool read_operand(PyObject* object, View& view, const char* op, const char* name, Held& held,
                  const Exchange* exchange) {
    if (exchange) return view_of(*exchange, object, view, op, name);
    PyObject* copy = nullptr;
    const bool good = view_of(object, view, op, name, &copy);
    if (copy) held.keep(copy);
    return good;
}

bool read_integer(PyObject* object, DType dtype, double& slot, const char* op, const char* name) {
    if (!PyLong_Check(object))
        return raise("DTypeError", op, name, "%s is a float and the other operand is %s; want an int", name,
                     name_of(dtype)),
               false;
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow || !put_integer(value, dtype, &slot))
        return raise("AttrError", op, name, "%s does not fit %s, the dtype of the other operand; want a smaller number",
                     name, name_of(dtype)),
               false;
    return true;
}

// Python numbers take the dtype of the first array operand.
bool read_number(PyObject* object, DType dtype, View& view, double& slot, const char* op, const char* name) {
    view = {&slot, {}, {}, 0, dtype};
    if (is_integer(dtype)) return read_integer(object, dtype, slot, op, name);
    const double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        return raise("AttrError", op, name, "%s does not fit a float64", name), false;
    }
    if (!is_float(dtype))
        return raise("DTypeError", op, name,
                     "%s is a Python number and the other operand is %s; want a float or an integer of 8 to 64 bits",
                     name, name_of(dtype)),
               false;
    put_number(value, dtype, &slot);
    return true;
}

struct Operands {
    View view[kMaxInputs + kMaxOperands];
    double number[kMaxOperands];
    int n = 0;
};

bool missing(const char* op, const char* name) {
    return raise("AttrTypeError", op, name, "%s is missing; want an array", name), false;
}

struct Items {
    PyObject* const* at;
    Py_ssize_t n;
};

// The arrays of the variadic operand, given one by one or as a list.
bool items_of(const OpDef& def, const Arguments& a, Items& items) {
    const char* name = def.operands[0].name;
    PyObject* list = a.operand[0];
    items = {a.spread, a.n_spread};
    if (!a.spread) {
        if (!list) return missing(def.name, name);
        if (!PyList_Check(list) && !PyTuple_Check(list))
            return raise("DTypeError", def.name, name, "%s is a %s; want a list or tuple of arrays", name,
                         Py_TYPE(list)->tp_name),
                   false;
        items = {PySequence_Fast_ITEMS(list), PySequence_Fast_GET_SIZE(list)};
    }
    if (items.n == 0 || items.n > kMaxInputs)
        return raise("ShapeError", def.name, name, "%s has %zd arrays; want 1 to %d", name, items.n, kMaxInputs), false;
    return true;
}

bool read_variadic(const OpDef& def, const Arguments& a, Operands& o, Held& held, const Exchange* exchange) {
    const char *op = def.name, *name = def.operands[0].name;
    Items items;
    if (!items_of(def, a, items)) return false;
    for (Py_ssize_t i = 0; i < items.n; ++i) {
        PyObject* item = items.at[i];
        if (!is_array(item, exchange))
            return raise("DTypeError", op, name, "%s[%zd] is a %s; want a %s", name, i, Py_TYPE(item)->tp_name,
                         array_name(exchange)),
                   false;
        held.keep(Py_NewRef(item));
        if (!read_operand(item, o.view[o.n++], op, name, held, exchange)) return false;
    }
    return true;
}

bool read_operands(const Face& face, const OpDef& def, const Arguments& a, Operands& o, Held& held,
                   const Exchange* exchange) {
    const int named = def.operands[0].role == Role::variadic;  // operands from here on have a name each
    if (named && !read_variadic(def, a, o, held, exchange)) return false;
    int numbers = 0;
    for (int i = named; i < def.n_operands; ++i) {
        const Operand& operand = def.operands[i];
        PyObject* object = a.operand[i];
        View& view = o.view[o.n++];
        if (!object || object == Py_None) {
            if (!may_be_absent(operand.role)) {
                if (!object) return missing(def.name, operand.name);
                return raise("DTypeError", def.name, operand.name, "%s is None; want an array", operand.name), false;
            }
            view.dtype = DType::none;
            continue;
        }
        if ((def.flags & kWeakScalars) && is_number(object)) {
            ++numbers;
            continue;
        }
        if (!is_array(object, exchange))
            return raise("DTypeError", def.name, operand.name, "%s is a %s; want a %s", operand.name,
                         Py_TYPE(object)->tp_name, array_name(exchange)),
                   false;
        if (exchange || !is_updated(operand.role)) {
            if (!read_operand(object, view, def.name, operand.name, held, exchange)) return false;
            continue;
        }
        if (!view_of(object, view, def.name, operand.name, nullptr)) return false;
        if (!is_writeable(object))
            return raise("ShapeError", def.name, operand.name,
                         "%s is read-only and would be updated in place; want a writeable array", operand.name),
                   false;
    }
    if (!numbers) return true;
    DType dtype = DType::none;
    for (int i = 0; i < def.n_operands && dtype == DType::none; ++i)
        if (!is_number(a.operand[i])) dtype = o.view[i].dtype;
    if (dtype == DType::none)
        return raise("DTypeError", def.name, def.operands[0].name,
                     "%s and %s are both Python numbers; want at least one array", def.operands[0].name,
                     def.operands[1].name),
               false;
    for (int i = 0; i < def.n_operands; ++i)
        if (is_number(a.operand[i]) &&
            !read_number(a.operand[i], dtype, o.view[i], o.number[i], def.name, def.operands[i].name))
            return false;
    (void)face;
    return true;
}

bool read_attrs(const OpDef& def, const Arguments& a, Attr* attrs) {
    for (int i = 0; i < def.n_attrs; ++i) {
        const AttrSpec& spec = def.attrs[i];
        if (a.attr[i]) {
            if (!attribute_from(a.attr[i], spec, attrs[i], def.name)) return false;
        } else if (spec.required) {
            return raise("AttrTypeError", def.name, spec.name, "%s is missing; want %s", spec.name, wanted(spec)),
                   false;
        } else {
            attrs[i] = default_of(spec);
        }
    }
    return true;
}

// A given `out` array as the result's View, checked before anything is written.
bool read_out(const Call& call, PyObject* object, View& want) {
    const char* op = call.op->name;
    if (!is_numpy(object))
        return raise("DTypeError", op, "out", "out is a %s; want a numpy.ndarray", Py_TYPE(object)->tp_name), false;
    View view;
    if (!view_of(object, view, op, "out", nullptr)) return false;
    if (!is_writeable(object)) return raise("ShapeError", op, "out", "out is read-only; want a writeable array"), false;
    if (const Status s = check_out(call, view, want, "out"); s != Status::ok) return raise_status(s, op), false;
    want = view;
    return true;
}

double work_of(const Call& call, const Inferred& inferred) {
    double work = inferred.flops;
    for (int i = 0; i < call.n_in; ++i)
        if (given(call.in[i])) work += static_cast<double>(numel(call.in[i]));
    for (int i = 0; i < call.n_out; ++i) work += static_cast<double>(numel(call.out[i]));
    return work;
}

bool run(const OpDef& def, const Call& call, const Inferred& inferred) {
    Status status;
    if (work_of(call, inferred) > kReleaseWork) {
        clear_interrupted();
        PyThreadState* state = PyEval_SaveThread();
        status = run_recorded(call);
        const bool stopped = interrupted();
        PyEval_RestoreThread(state);
        if (stopped) status = Status::interrupted;
    } else {
        status = run_recorded(call);
    }
    return status == Status::ok ? true : (raise_status(status, def.name), false);
}

bool collect_outs(const OpDef& def, PyObject* out, int n, PyObject** outs) {
    if (n == 1 && !PyTuple_Check(out)) return outs[0] = out, true;
    if (!PyTuple_Check(out) || PyTuple_GET_SIZE(out) != n)
        return raise("AttrTypeError", def.name, "out", "out is a %s; want %s%d arrays", Py_TYPE(out)->tp_name,
                     n == 1 ? "an array or a tuple of " : "a tuple of ", n),
               false;
    for (int i = 0; i < n; ++i) outs[i] = PyTuple_GET_ITEM(out, i);
    return true;
}

// Any object with .shape and .dtype (a device array, a torch tensor's stand-in, a (shape, dtype) pair).
bool read_spec(PyObject* object, View& view, const char* op, const char* name) {
    PyObject *shape = nullptr, *dtype = nullptr;
    if (PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2) {
        shape = Py_NewRef(PyTuple_GET_ITEM(object, 0));
        dtype = Py_NewRef(PyTuple_GET_ITEM(object, 1));
    } else {
        shape = PyObject_GetAttrString(object, "shape");
        dtype = shape ? PyObject_GetAttrString(object, "dtype") : nullptr;
    }
    bool good = shape && dtype && PyTuple_Check(shape);
    if (good) {
        view.dtype = dtype_from(dtype);
        good = view.dtype != DType::none;
    }
    if (!good) {
        PyErr_Clear();
        raise("DTypeError", op, name, "%s is a %s; want an array of an element type tilework knows", name,
              Py_TYPE(object)->tp_name);
    } else if (PyTuple_GET_SIZE(shape) > kMaxDims) {
        good = false;
        raise("ShapeError", op, name, "%s has %zd dimensions; want at most %d", name, PyTuple_GET_SIZE(shape),
              kMaxDims);
    } else {
        view.data = nullptr;
        view.ndim = static_cast<int32_t>(PyTuple_GET_SIZE(shape));
        for (int d = 0; d < view.ndim; ++d) view.shape[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, d));
        if (PyErr_Occurred()) good = false;
        set_contiguous(view);
    }
    Py_XDECREF(shape);
    Py_XDECREF(dtype);
    return good;
}

bool read_specs(const OpDef& def, const Arguments& a, Operands& o) {
    const int named = def.operands[0].role == Role::variadic;
    if (named) {
        Items items;
        if (!items_of(def, a, items)) return false;
        for (Py_ssize_t i = 0; i < items.n; ++i)
            if (!read_spec(items.at[i], o.view[o.n++], def.name, def.operands[0].name)) return false;
    }
    DType first = DType::none;
    for (int i = named; i < def.n_operands; ++i) {
        View& view = o.view[o.n++];
        PyObject* object = a.operand[i];
        if (!object || object == Py_None) {
            if (!may_be_absent(def.operands[i].role)) return missing(def.name, def.operands[i].name);
            view.dtype = DType::none;
        } else if ((def.flags & kWeakScalars) && is_number(object)) {
            view = {nullptr, {}, {}, 0, DType::none};
        } else if (!read_spec(object, view, def.name, def.operands[i].name)) {
            return false;
        } else if (first == DType::none) {
            first = view.dtype;
        }
    }
    for (int i = 0; (def.flags & kWeakScalars) && i < def.n_operands; ++i) {
        if (given(o.view[i]) || first == DType::none) continue;
        double slot = 0;
        if (!read_number(a.operand[i], first, o.view[i], slot, def.name, def.operands[i].name)) return false;
        o.view[i].data = nullptr;
    }
    return true;
}

}  // namespace

const Face* face_of(OpId id) {
    const int k = static_cast<int>(id);
    if (g_faces_built[k]) return &g_faces[k];
    Face& face = g_faces[k];
    face.id = id;
    face.def = op_table(kLeastTier, id);
    face.name = PyUnicode_InternFromString(face.def->name);
    for (int i = 0; i < face.def->n_operands; ++i)
        face.operand_names[i] = PyUnicode_InternFromString(face.def->operands[i].name);
    for (int i = 0; i < face.def->n_attrs; ++i)
        face.attr_names[i] = PyUnicode_InternFromString(face.def->attrs[i].name);
    face.out_name = PyUnicode_InternFromString("out");
    g_faces_built[k] = true;
    return &face;
}

const Face* face_named(PyObject* name) {
    const char* text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : nullptr;
    const OpId id = text ? find_op(text) : OpId::count;
    if (id == OpId::count)
        return raise("UnsupportedError", "", "", "there is no op called '%.80s'", text ? text : "?"), nullptr;
    return face_of(id);
}

namespace {

int position_of(PyObject* key, PyObject* const* names, int n) {
    for (int i = 0; i < n; ++i)
        if (names[i] == key) return i;
    for (int i = 0; i < n; ++i)
        if (PyUnicode_Compare(names[i], key) == 0) return i;
    return -1;
}

bool unknown_keyword(const Face& face, PyObject* key) {
    char names[400] = "";
    size_t n = 0;
    for (int i = 0; i < face.def->n_operands + face.def->n_attrs && n + 64 < sizeof names; ++i)
        n += static_cast<size_t>(std::snprintf(
            names + n, sizeof names - n, "%s, ",
            i < face.def->n_operands ? face.def->operands[i].name : face.def->attrs[i - face.def->n_operands].name));
    return raise("AttrTypeError", face.def->name, "", "unknown argument '%.60s'; want %sout", PyUnicode_AsUTF8(key),
                 names),
           false;
}

Binding given_twice(const OpDef& def, const char* name) {
    raise("AttrTypeError", def.name, name, "%s is given twice", name);
    return Binding::failed;
}

}  // namespace

Binding bind(const Face& face, PyObject* const* args, Py_ssize_t n_args, PyObject* kwnames, Arguments& into) {
    const OpDef& def = *face.def;
    PyObject* const* keywords = args + n_args;
    const bool leads = (def.flags & kLeadingText) && n_args > 0 && PyUnicode_Check(args[0]);
    if ((def.flags & kLeadingText) && n_args > 0) {
        if (leads) {
            into.attr[0] = args[0];
            ++args, --n_args;
            const bool is_list = n_args == 1 && (PyList_Check(args[0]) || PyTuple_Check(args[0]));
            if (n_args > 0 && !is_list) {
                into.spread = args, into.n_spread = n_args;
                n_args = 0;
            }
        } else if (!PyList_Check(args[0]) && !PyTuple_Check(args[0])) {
            return Binding::foreign;
        }
    }
    if (n_args > def.n_operands) {
        raise("AttrTypeError", def.name, "", "%zd positional arguments; want at most %d, attributes by keyword", n_args,
              def.n_operands);
        return Binding::failed;
    }
    for (Py_ssize_t i = 0; i < n_args; ++i) into.operand[i] = args[i];
    const Py_ssize_t n_keywords = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < n_keywords; ++i) {
        PyObject* key = PyTuple_GET_ITEM(kwnames, i);
        PyObject* value = keywords[i];
        if (key == face.out_name) {
            into.out = value == Py_None ? nullptr : value;
        } else if (const int a = position_of(key, face.attr_names, def.n_attrs); a >= 0) {
            if (a == 0 && leads) return given_twice(def, def.attrs[0].name);
            into.attr[a] = value;
        } else if (const int o = position_of(key, face.operand_names, def.n_operands); o >= 0) {
            if (o < n_args || (o == 0 && into.spread)) return given_twice(def, def.operands[o].name);
            into.operand[o] = value;
        } else if (PyUnicode_Compare(key, face.out_name) == 0) {
            into.out = value == Py_None ? nullptr : value;
        } else {
            return unknown_keyword(face, key), Binding::failed;
        }
    }
    const bool variadic = def.operands[0].role == Role::variadic;
    for (int i = 0; i < def.n_operands; ++i) {
        PyObject* o = into.operand[i];
        if (!o || o == Py_None || is_numpy(o) || ((def.flags & kWeakScalars) && is_number(o))) continue;
        if (!variadic || (!PyList_Check(o) && !PyTuple_Check(o))) return Binding::foreign;
        for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(o); ++k)
            if (!is_numpy(PySequence_Fast_GET_ITEM(o, k))) return Binding::foreign;
    }
    for (Py_ssize_t k = 0; k < into.n_spread; ++k)
        if (!is_numpy(into.spread[k])) return Binding::foreign;
    if (into.out && !is_numpy(into.out) && !PyTuple_Check(into.out)) return Binding::foreign;
    return Binding::done;
}

bool read_attributes_of(const Face& face, const Arguments& arguments, Attr* attrs) {
    return read_attrs(*face.def, arguments, attrs);
}

PyObject* invoke(const Face& face, const OpDef& def, const Arguments& a, const void* packed, const Exchange* exchange) {
    Operands o;
    Held held;
    Attr attrs[kMaxAttrs];
    if (!read_operands(face, def, a, o, held, exchange) || !read_attrs(def, a, attrs)) return nullptr;
    Inferred inferred;
    inferred.n_out = 0;
    inferred.flops = 0;
    Call call{&def, o.view, o.n, nullptr, 0, attrs, packed};
    if (const Status s = def.infer(call, inferred); s != Status::ok) return raise_status(s, def.name), nullptr;
    if (const Status s = check_inout(call); s != Status::ok) return raise_status(s, def.name), nullptr;
    PyObject* outs[kMaxOutputs];
    const int n = inferred.n_out;
    if (a.out) {
        if (!collect_outs(def, a.out, n, outs)) return nullptr;
        for (int i = 0; i < n; ++i)
            if (!read_out(call, outs[i], inferred.out[i])) return nullptr;
        if (const Status s = check_outs_apart(inferred.out, n); s != Status::ok)
            return raise_status(s, def.name), nullptr;
        for (int i = 0; i < n; ++i) held.keep(Py_NewRef(outs[i]));
    } else {
        for (int i = 0; i < n; ++i) {
            outs[i] = exchange ? allocate(*exchange, inferred.out[i], def.name) : allocate(inferred.out[i], def.name);
            if (!outs[i]) return nullptr;
            held.keep(outs[i]);
        }
    }
    call.out = inferred.out;
    call.n_out = n;
    if (!run(def, call, inferred)) return nullptr;
    if (n == 0) Py_RETURN_NONE;
    if (n == 1) return Py_NewRef(outs[0]);
    PyObject* tuple = PyTuple_New(n);
    for (int i = 0; tuple && i < n; ++i) PyTuple_SET_ITEM(tuple, i, Py_NewRef(outs[i]));
    return tuple;
}

PyObject* infer_only(const Face& face, const Arguments& a) {
    const OpDef& def = *face.def;
    Operands o;
    Attr attrs[kMaxAttrs];
    if (!read_specs(def, a, o) || !read_attrs(def, a, attrs)) return nullptr;
    Inferred inferred;
    inferred.n_out = 0;
    inferred.flops = 0;
    Call call{&def, o.view, o.n, nullptr, 0, attrs, nullptr};
    if (const Status s = def.infer(call, inferred); s != Status::ok) return raise_status(s, def.name), nullptr;
    PyObject* results = PyList_New(inferred.n_out);
    for (int i = 0; i < inferred.n_out; ++i) {
        const View& out = inferred.out[i];
        PyObject* shape = PyTuple_New(out.ndim);
        for (int d = 0; d < out.ndim; ++d) PyTuple_SET_ITEM(shape, d, PyLong_FromLongLong(out.shape[d]));
        PyObject* dtype = dtype_object(out.dtype);
        PyObject* pair = dtype ? Py_BuildValue("(NN)", shape, dtype) : nullptr;
        if (!pair) return Py_DECREF(results), nullptr;
        PyList_SET_ITEM(results, i, pair);
    }
    PyObject* resolved = PyDict_New();
    for (int i = 0; i < def.n_attrs; ++i) {
        PyObject* value = attribute_object(attrs[i], def.attrs[i]);
        if (!value || PyDict_SetItem(resolved, face.attr_names[i], value) < 0) return nullptr;
        Py_DECREF(value);
    }
    return Py_BuildValue("(NN)", results, resolved);
}

bool prepare_job(const Face& face, const OpDef& def, const Arguments& a, PackJob& job) {
    (void)face;
    Held held;
    for (int i = 0; i < def.n_operands; ++i) {
        job.in[i].dtype = DType::none;
        if (a.operand[i] && a.operand[i] != Py_None && is_numpy(a.operand[i]) &&
            !view_of(a.operand[i], job.in[i], def.name, def.operands[i].name, nullptr))
            return false;
    }
    if (!read_attrs(def, a, job.attr)) return false;
    job.call = Call{&def, job.in, def.n_operands, nullptr, 0, job.attr, nullptr};
    return true;
}

}  // namespace tw::bindings
