#include "bindings/callables.h"

#include <cstddef>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/invoke.h"
#include "bindings/raise.h"
#include "core/memory.h"

namespace tw::bindings {
namespace {

// ------------------------------------------------------------------------------------------------------------ Op

struct OpObject {
    PyObject_HEAD vectorcallfunc vectorcall;
    const Face* face;
    PyObject* fallback;  // called as fallback(op, args, kwargs) when an operand is not a numpy array
    PyObject* dict;
    PyObject* weakrefs;
};

PyObject* call_fallback(OpObject* self, PyObject* const* args, Py_ssize_t n_args, PyObject* kwnames, PyObject* bound) {
    PyObject* tuple = PyTuple_New(n_args);
    PyObject* kwargs = bound ? PyDict_Copy(bound) : PyDict_New();
    if (!tuple || !kwargs) return Py_XDECREF(tuple), Py_XDECREF(kwargs), nullptr;
    for (Py_ssize_t i = 0; i < n_args; ++i) PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; kwnames && i < PyTuple_GET_SIZE(kwnames); ++i)
        PyDict_SetItem(kwargs, PyTuple_GET_ITEM(kwnames, i), args[n_args + i]);
    PyObject* result = PyObject_CallFunctionObjArgs(self->fallback, self, tuple, kwargs, nullptr);
    Py_DECREF(tuple);
    Py_DECREF(kwargs);
    return result;
}

PyObject* op_call(PyObject* object, PyObject* const* args, size_t n_flags, PyObject* kwnames) {
    auto* self = reinterpret_cast<OpObject*>(object);
    const Py_ssize_t n_args = PyVectorcall_NARGS(n_flags);
    Arguments arguments{};
    switch (bind(*self->face, args, n_args, kwnames, arguments)) {
        case Binding::failed: return nullptr;
        case Binding::foreign: return call_fallback(self, args, n_args, kwnames, nullptr);
        case Binding::done: break;
    }
    return invoke(*self->face, *op_table(active_tier(), self->face->id), arguments, nullptr);
}

PyObject* op_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *name, *fallback;
    if (!PyArg_ParseTuple(args, "OO", &name, &fallback)) return nullptr;
    const Face* face = face_named(name);
    if (!face) return nullptr;
    auto* self = reinterpret_cast<OpObject*>(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    self->vectorcall = op_call;
    self->face = face;
    self->fallback = Py_NewRef(fallback);
    return reinterpret_cast<PyObject*>(self);
}

int op_traverse(PyObject* object, visitproc visit, void* arg) {
    auto* self = reinterpret_cast<OpObject*>(object);
    Py_VISIT(self->fallback);
    Py_VISIT(self->dict);
    return 0;
}

int op_clear(PyObject* object) {
    auto* self = reinterpret_cast<OpObject*>(object);
    Py_CLEAR(self->fallback);
    Py_CLEAR(self->dict);
    return 0;
}

void op_dealloc(PyObject* object) {
    PyObject_GC_UnTrack(object);
    if (reinterpret_cast<OpObject*>(object)->weakrefs) PyObject_ClearWeakRefs(object);
    op_clear(object);
    Py_TYPE(object)->tp_free(object);
}

PyObject* op_repr(PyObject* object) {
    return PyUnicode_FromFormat("<op %U>", reinterpret_cast<OpObject*>(object)->face->name);
}

// An op found on a class stays an op; this also makes help(op) print its docstring.
PyObject* op_get(PyObject* self, PyObject*, PyObject*) { return Py_NewRef(self); }

PyObject* op_name(PyObject* object, void*) { return Py_NewRef(reinterpret_cast<OpObject*>(object)->face->name); }

PyObject* op_operands(PyObject* object, void*) {
    const Face* face = reinterpret_cast<OpObject*>(object)->face;
    PyObject* tuple = PyTuple_New(face->def->n_operands);
    for (int i = 0; tuple && i < face->def->n_operands; ++i)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(face->operand_names[i]));
    return tuple;
}

PyObject* op_is_view(PyObject*, void*) { Py_RETURN_FALSE; }

PyObject* op_is_variadic(PyObject* object, void*) {
    return PyBool_FromLong(reinterpret_cast<OpObject*>(object)->face->def->operands[0].role == Role::variadic);
}

PyObject* op_reduce(PyObject* object, PyObject*) {
    PyObject* ops = PyImport_ImportModule("tilework.registry");
    PyObject* find = ops ? PyObject_GetAttrString(ops, "find") : nullptr;
    Py_XDECREF(ops);
    if (!find) return nullptr;
    return Py_BuildValue("(N(O))", find, reinterpret_cast<OpObject*>(object)->face->name);
}

PyGetSetDef g_op_getset[] = {
    {"name", op_name, nullptr, "The op's name.", nullptr},
    {"operands", op_operands, nullptr, "Names of the tensor arguments, in order.", nullptr},
    {"is_view", op_is_view, nullptr, "False: the op has a kernel.", nullptr},
    {"is_variadic", op_is_variadic, nullptr, "Whether the operand is a list of arrays.", nullptr},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {}};
PyMethodDef g_op_methods[] = {
    {"__reduce__", op_reduce, METH_NOARGS, "Pickles an op by its name."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, "Op[..., Any] in annotations."},
    {}};
PyTypeObject g_op_type = {};

// ------------------------------------------------------------------------------------------------------ Prepared

struct PreparedObject {
    PyObject_HEAD vectorcallfunc vectorcall;
    OpObject* op;
    PyObject* bound;       // {argument: value}: what __reduce__ hands on, and what keeps the values alive
    Arguments arguments;   // borrowed from `bound`
    const OpDef* def;      // of the tier the operands were packed for
    void* packed;
    size_t packed_bytes;
};

// Positional arguments fill the operands that were not prepared, in order; keywords may name those and `out`.
bool fill_remaining(const Face& face, PyObject* const* args, Py_ssize_t n_args, PyObject* kwnames, Arguments& into) {
    Py_ssize_t taken = 0;
    Arguments free = into;
    if ((face.def->flags & kLeadingText) && n_args > 0 && !into.operand[0] && is_numpy(args[0])) {
        into.spread = args, into.n_spread = n_args;
        taken = n_args;
    }
    for (int i = 0; i < face.def->n_operands && taken < n_args; ++i)
        if (!into.operand[i]) into.operand[i] = args[taken++];
    if (taken < n_args)
        return raise("AttrTypeError", face.def->name, "",
                     "%zd positional arguments; want at most %zd, the others are prepared", n_args, taken),
               false;
    for (Py_ssize_t k = 0; kwnames && k < PyTuple_GET_SIZE(kwnames); ++k) {
        PyObject* key = PyTuple_GET_ITEM(kwnames, k);
        PyObject* value = args[n_args + k];
        if (PyUnicode_Compare(key, face.out_name) == 0) {
            into.out = value == Py_None ? nullptr : value;
            continue;
        }
        int at = face.def->n_operands - 1;
        while (at >= 0 && PyUnicode_Compare(key, face.operand_names[at]) != 0) --at;
        if (at < 0 || free.operand[at] || into.operand[at])
            return raise("AttrTypeError", face.def->name, "",
                         "'%.60s' is prepared or unknown; want the remaining operands and out", PyUnicode_AsUTF8(key)),
                   false;
        into.operand[at] = value;
    }
    return true;
}

PyObject* prepared_call(PyObject* object, PyObject* const* args, size_t n_flags, PyObject* kwnames) {
    auto* self = reinterpret_cast<PreparedObject*>(object);
    const Face& face = *self->op->face;
    Arguments arguments = self->arguments;
    if (!fill_remaining(face, args, PyVectorcall_NARGS(n_flags), kwnames, arguments)) return nullptr;
    if (bind(face, nullptr, 0, nullptr, arguments) == Binding::done)
        return invoke(face, *self->def, arguments, self->packed);
    PyObject* kwargs = PyDict_Copy(self->bound);
    for (int i = 0; kwargs && i < face.def->n_operands; ++i)
        if (arguments.operand[i]) PyDict_SetItem(kwargs, face.operand_names[i], arguments.operand[i]);
    if (kwargs && arguments.spread) {
        PyObject* arrays = PyTuple_New(arguments.n_spread);
        for (Py_ssize_t i = 0; arrays && i < arguments.n_spread; ++i)
            PyTuple_SET_ITEM(arrays, i, Py_NewRef(arguments.spread[i]));
        if (arrays) PyDict_SetItem(kwargs, face.operand_names[0], arrays);
        Py_XDECREF(arrays);
    }
    if (kwargs && arguments.out) PyDict_SetItem(kwargs, face.out_name, arguments.out);
    PyObject* result = kwargs ? call_fallback(self->op, nullptr, 0, nullptr, kwargs) : nullptr;
    Py_XDECREF(kwargs);
    return result;
}

PyObject* prepared_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *op, *bound;
    if (!PyArg_ParseTuple(args, "O!O!", &g_op_type, &op, &PyDict_Type, &bound)) return nullptr;
    auto* self = reinterpret_cast<PreparedObject*>(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    self->vectorcall = prepared_call;
    self->op = reinterpret_cast<OpObject*>(Py_NewRef(op));
    self->bound = PyDict_Copy(bound);
    if (!self->bound) return Py_DECREF(self), nullptr;
    const Face& face = *self->op->face;
    const Py_ssize_t n = PyDict_GET_SIZE(self->bound);
    PyObject* names = PyTuple_New(n);
    PyObject* values[kMaxOperands + kMaxAttrs];
    if (!names || n > kMaxOperands + kMaxAttrs) return Py_XDECREF(names), Py_DECREF(self), nullptr;
    PyObject *key, *value;
    Py_ssize_t position = 0, i = 0;
    while (PyDict_Next(self->bound, &position, &key, &value)) {
        PyTuple_SET_ITEM(names, i, Py_NewRef(key));
        values[i++] = value;
    }
    const Binding binding = bind(face, values, 0, names, self->arguments);
    Py_DECREF(names);
    if (binding == Binding::failed) return Py_DECREF(self), nullptr;
    self->def = op_table(active_tier(), face.id);
    PackJob job;
    if (binding == Binding::done) {
        if (!prepare_job(face, *self->def, self->arguments, job)) return Py_DECREF(self), nullptr;
        const int64_t bytes = self->def->packed_size ? self->def->packed_size(job.call) : 0;
        if (bytes > 0) {
            self->packed = pool_take(static_cast<size_t>(bytes));
            if (!self->packed) {
                raise("AllocationError", face.def->name, "", "no memory for packed operands of %lld bytes",
                      static_cast<long long>(bytes));
                return Py_DECREF(self), nullptr;
            }
            self->packed_bytes = static_cast<size_t>(bytes);
            self->def->pack(job.call, self->packed);
        }
    }
    return reinterpret_cast<PyObject*>(self);
}

void prepared_dealloc(PyObject* object) {
    auto* self = reinterpret_cast<PreparedObject*>(object);
    if (self->packed) pool_give(self->packed, self->packed_bytes);
    Py_XDECREF(self->bound);
    Py_XDECREF(self->op);
    Py_TYPE(object)->tp_free(object);
}

PyObject* prepared_reduce(PyObject* object, PyObject*) {
    auto* self = reinterpret_cast<PreparedObject*>(object);
    return Py_BuildValue("(O(OO))", Py_TYPE(object), self->op, self->bound);
}

PyObject* prepared_repr(PyObject* object) {
    auto* self = reinterpret_cast<PreparedObject*>(object);
    PyObject* keys = PyDict_Keys(self->bound);
    PyObject* text = keys ? PyUnicode_FromFormat("<%U prepared with %R>", self->op->face->name, keys) : nullptr;
    Py_XDECREF(keys);
    return text;
}

PyObject* prepared_packed_bytes(PyObject* object, void*) {
    return PyLong_FromSize_t(reinterpret_cast<PreparedObject*>(object)->packed_bytes);
}

PyObject* prepared_bound(PyObject* object, void*) {
    return PyDict_Copy(reinterpret_cast<PreparedObject*>(object)->bound);
}

PyGetSetDef g_prepared_getset[] = {
    {"packed_bytes", prepared_packed_bytes, nullptr, "Bytes of packed operands this object holds.", nullptr},
    {"bound", prepared_bound, nullptr, "A copy of the arguments that were prepared.", nullptr},
    {}};
PyMethodDef g_prepared_methods[] = {
    {"__reduce__", prepared_reduce, METH_NOARGS, "Pickles the operands; they are packed again."}, {}};
PyTypeObject g_prepared_type = {};

// ------------------------------------------------------------------------------------------------------ Exchange

struct ExchangeObject {
    PyObject_HEAD vectorcallfunc vectorcall;
    const Face* face;
    Exchange exchange;
};

PyObject* exchange_call(PyObject* object, PyObject* const* args, size_t n_flags, PyObject* kwnames) {
    auto* self = reinterpret_cast<ExchangeObject*>(object);
    Arguments arguments{};
    if (bind(*self->face, args, PyVectorcall_NARGS(n_flags), kwnames, arguments) == Binding::failed) return nullptr;
    if (arguments.out)
        return raise("AttrTypeError", self->face->def->name, "out", "out is given; want it left out"), nullptr;
    return invoke(*self->face, *op_table(active_tier(), self->face->id), arguments, nullptr, &self->exchange);
}

PyObject* exchange_new(PyTypeObject* type, PyObject* args, PyObject*) {
    PyObject *name, *tensors;
    if (!PyArg_ParseTuple(args, "OO!", &name, &PyType_Type, &tensors)) return nullptr;
    const Face* face = face_named(name);
    if (!face) return nullptr;
    Exchange exchange;
    if (!exchange_of(reinterpret_cast<PyTypeObject*>(tensors), exchange))
        return PyErr_Format(PyExc_BufferError, "%s shows no __dlpack_c_exchange_api__ of DLPack 1",
                            exchange.type->tp_name);
    auto* self = reinterpret_cast<ExchangeObject*>(type->tp_alloc(type, 0));
    if (!self) return nullptr;
    self->vectorcall = exchange_call;
    self->face = face;
    self->exchange = exchange;
    Py_INCREF(tensors);
    return reinterpret_cast<PyObject*>(self);
}

void exchange_dealloc(PyObject* object) {
    Py_DECREF(reinterpret_cast<PyObject*>(reinterpret_cast<ExchangeObject*>(object)->exchange.type));
    Py_TYPE(object)->tp_free(object);
}

PyTypeObject g_exchange_type = {};

}  // namespace

bool init_callables(PyObject* module) {
    g_op_type.tp_name = "tilework._core.Op";
    g_op_type.tp_doc = "A compiled op: call it on numpy arrays; every other array goes to the fallback.";
    g_op_type.tp_basicsize = sizeof(OpObject);
    g_op_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL;
    g_op_type.tp_new = op_new;
    g_op_type.tp_dealloc = op_dealloc;
    g_op_type.tp_traverse = op_traverse;
    g_op_type.tp_clear = op_clear;
    g_op_type.tp_call = PyVectorcall_Call;
    g_op_type.tp_repr = op_repr;
    g_op_type.tp_descr_get = op_get;
    g_op_type.tp_getset = g_op_getset;
    g_op_type.tp_methods = g_op_methods;
    g_op_type.tp_vectorcall_offset = offsetof(OpObject, vectorcall);
    g_op_type.tp_dictoffset = offsetof(OpObject, dict);
    g_op_type.tp_weaklistoffset = offsetof(OpObject, weakrefs);
    g_prepared_type.tp_name = "tilework._core.Prepared";
    g_prepared_type.tp_doc = "An op with some operands and attributes fixed, the operands packed once; picklable.";
    g_prepared_type.tp_basicsize = sizeof(PreparedObject);
    g_prepared_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
    g_prepared_type.tp_new = prepared_new;
    g_prepared_type.tp_dealloc = prepared_dealloc;
    g_prepared_type.tp_call = PyVectorcall_Call;
    g_prepared_type.tp_repr = prepared_repr;
    g_prepared_type.tp_getset = g_prepared_getset;
    g_prepared_type.tp_methods = g_prepared_methods;
    g_prepared_type.tp_vectorcall_offset = offsetof(PreparedObject, vectorcall);
    g_exchange_type.tp_name = "tilework._core.Exchange";
    g_exchange_type.tp_doc = "An op on the tensors of a type that shows __dlpack_c_exchange_api__: call it on those.";
    g_exchange_type.tp_basicsize = sizeof(ExchangeObject);
    g_exchange_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL;
    g_exchange_type.tp_new = exchange_new;
    g_exchange_type.tp_dealloc = exchange_dealloc;
    g_exchange_type.tp_call = PyVectorcall_Call;
    g_exchange_type.tp_vectorcall_offset = offsetof(ExchangeObject, vectorcall);
    const std::pair<const char*, PyTypeObject*> types[] = {
        {"Op", &g_op_type}, {"Prepared", &g_prepared_type}, {"Exchange", &g_exchange_type}};
    for (const auto& [name, type] : types) {
        Py_SET_REFCNT(reinterpret_cast<PyObject*>(type), 1);
        if (PyType_Ready(type) < 0 || PyModule_AddObjectRef(module, name, reinterpret_cast<PyObject*>(type)) < 0)
            return false;
    }
    return true;
}

}  // namespace tw::bindings
