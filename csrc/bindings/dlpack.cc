#include "bindings/dlpack.h"

#include <cstdlib>
#include <cstring>

#include "bindings/arrays.h"
#include "bindings/raise.h"
#include "core/caller.h"
#include "core/small.h"

namespace tw::bindings {
namespace {

constexpr const char* kName = "dltensor";
constexpr const char* kUsedName = "used_dltensor";
constexpr const char* kVersionedName = "dltensor_versioned";
constexpr const char* kUsedVersionedName = "used_dltensor_versioned";

template <class Managed>
void release_managed(PyObject* owner) {
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(owner, nullptr));
    if (managed && managed->deleter) managed->deleter(managed);
}

PyObject* capsule_of(PyObject* producer, const char* op, const char* a) {
    PyObject* method = PyObject_GetAttrString(producer, "__dlpack__");
    if (!method) return nullptr;
    PyObject* kwargs = Py_BuildValue("{s:(ii)}", "max_version", 1, 0);
    PyObject* none = PyTuple_New(0);
    PyObject* capsule = PyObject_Call(method, none, kwargs);
    if (!capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        capsule = PyObject_Call(method, none, nullptr);
    }
    Py_DECREF(method);
    Py_DECREF(kwargs);
    Py_DECREF(none);
    if (!capsule && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyObject* text = value ? PyObject_Str(value) : nullptr;
        PyErr_Clear();
        raise("DTypeError", op, a, "%s.__dlpack__() failed: %.200s; want an array it can export", a,
              text ? PyUnicode_AsUTF8(text) : "");
        Py_XDECREF(text);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(trace);
    }
    if (capsule && !PyCapsule_CheckExact(capsule)) {
        raise("DTypeError", op, a, "%s.__dlpack__() gave a %s; want a DLPack capsule", a, Py_TYPE(capsule)->tp_name);
        Py_CLEAR(capsule);
    }
    return capsule;
}

// Whether a torch tensor is seen with the other sign, of which its __dlpack__ says nothing.
bool is_negated(PyObject* producer) {
    PyObject* found = PyObject_CallMethod(producer, "is_neg", nullptr);
    if (!found) PyErr_Clear();
    const bool negated = found == Py_True;
    Py_XDECREF(found);
    return negated;
}

// Takes the managed tensor out of its capsule; the returned array's owner calls the deleter once.
template <class Managed>
PyObject* adopt(PyObject* capsule, const char* name, const char* used, const char* op, const char* a, bool writeable) {
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
    View view;
    if (!managed) return nullptr;
    if (const Status s = view_from(managed->dl_tensor, view, a); s != Status::ok) return raise_status(s, op), nullptr;
    PyObject* owner = PyCapsule_New(managed, nullptr, release_managed<Managed>);
    if (!owner) return nullptr;
    PyCapsule_SetName(capsule, used);
    return wrap(view, owner, writeable);
}

// What to_dlpack hands out: the tensor, its shape and strides, and the array that owns the memory.
struct Export {
    DLManagedTensorVersioned managed;
    int64_t shape[kMaxDims];
    int64_t stride[kMaxDims];
    PyObject* array;
};

void delete_export(DLManagedTensorVersioned* managed) {
    auto* e = static_cast<Export*>(managed->manager_ctx);
    const PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF(e->array);
    PyGILState_Release(gil);
    std::free(e);
}

void drop_capsule(PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, kVersionedName)) return;  // consumed: the consumer deletes
    auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule, kVersionedName));
    managed->deleter(managed);
}

}  // namespace

namespace {

thread_local int t_inside;  // __dlpack__ methods that this thread is in
constexpr int kMostInside = 8;

struct Inside {
    Inside() { ++t_inside; }
    ~Inside() { --t_inside; }
};

}  // namespace

PyObject* from_dlpack(PyObject* producer, const char* op, const char* a) {
    const Inside inside;
    if (t_inside > kMostInside)
        return raise("DTypeError", op, a, "%s.__dlpack__() asks for itself; want an array it can export", a), nullptr;
    PyObject* device = PyObject_CallMethod(producer, "__dlpack_device__", nullptr);
    if (!device) {
        PyErr_Clear();
        return raise("DTypeError", op, a, "%s is a %s without a working __dlpack_device__; want an array", a,
                     Py_TYPE(producer)->tp_name),
               nullptr;
    }
    int type = 0, id = 0;
    const bool pair = PyTuple_Check(device) && PyArg_ParseTuple(device, "ii", &type, &id);
    Py_DECREF(device);
    if (!pair || type != kDLCPU) {
        PyErr_Clear();
        return raise("DTypeError", op, a,
                     "%s is on DLPack device type %d; want a CPU array (type 1), or a pyopencl array for a device", a,
                     type),
               nullptr;
    }
    if (is_negated(producer))
        return raise("DTypeError", op, a, "%s has its negative bit set; want %s.resolve_neg()", a, a), nullptr;
    PyObject* capsule = capsule_of(producer, op, a);
    if (!capsule) return nullptr;
    PyObject* array = nullptr;
    if (PyCapsule_IsValid(capsule, kVersionedName)) {
        auto* managed = static_cast<DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule, kVersionedName));
        if (managed->version.major > 1)
            raise("DTypeError", op, a, "%s uses DLPack %u.%u; want 1.x", a, managed->version.major,
                  managed->version.minor);
        else
            array = adopt<DLManagedTensorVersioned>(capsule, kVersionedName, kUsedVersionedName, op, a,
                                                    !(managed->flags & kDLFlagReadOnly));
    } else if (PyCapsule_IsValid(capsule, kName)) {
        array = adopt<DLManagedTensor>(capsule, kName, kUsedName, op, a, true);
    } else {
        const char* name = PyCapsule_GetName(capsule);
        raise("DTypeError", op, a, "%s gave a capsule named '%.40s'; want an unused DLPack capsule", a,
              name ? name : "");
    }
    Py_DECREF(capsule);
    return array;
}

PyObject* to_dlpack(PyObject* array) {
    if (!is_numpy(array))
        return raise("DTypeError", "to_dlpack", "array", "array is a %s; want a numpy.ndarray",
                     Py_TYPE(array)->tp_name),
               nullptr;
    View view;
    if (!view_of(array, view, "to_dlpack", "array", nullptr)) return nullptr;
    auto* e = static_cast<Export*>(std::calloc(1, sizeof(Export)));
    if (!e) return PyErr_NoMemory();
    std::memcpy(e->shape, view.shape, sizeof e->shape);
    std::memcpy(e->stride, view.stride, sizeof e->stride);
    e->array = Py_NewRef(array);
    e->managed.version = {1, 0};
    e->managed.manager_ctx = e;
    e->managed.deleter = delete_export;
    e->managed.flags = (is_writeable(array) ? 0 : kDLFlagReadOnly) | (is_padded(view.dtype) ? kDLFlagPadded : 0);
    e->managed.dl_tensor = tensor_of(view);
    e->managed.dl_tensor.shape = e->shape, e->managed.dl_tensor.strides = e->stride;
    PyObject* capsule = PyCapsule_New(&e->managed, kVersionedName, drop_capsule);
    if (!capsule) delete_export(&e->managed);
    return capsule;
}

DLTensor tensor_of(View& v) { return {v.data, {kDLCPU, 0}, v.ndim, data_type_of(v.dtype), v.shape, v.stride, 0}; }

}  // namespace tw::bindings
