#include "bindings/exchange.h"

#include <cstdlib>
#include <cstring>

#include "bindings/arrays.h"
#include "bindings/raise.h"
#include "core/caller.h"
#include "core/memory.h"
#include "core/small.h"

namespace tw::bindings {
namespace {

// A result's memory and the descriptor under which its tensor owns it.
struct Result {
    DLManagedTensorVersioned managed;
    int64_t shape[kMaxDims];
    int64_t stride[kMaxDims];
    size_t bytes;
};

void delete_result(DLManagedTensorVersioned* managed) {
    auto* result = static_cast<Result*>(managed->manager_ctx);
    pool_give(managed->dl_tensor.data, result->bytes);
    std::free(result);
}

}  // namespace

bool exchange_of(PyTypeObject* type, Exchange& exchange) {
    PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
    const void* found = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;
    Py_XDECREF(capsule);
    PyErr_Clear();
    exchange = {type, static_cast<const DLPackExchangeAPI*>(found)};
    return found && exchange.api->header.version.major == 1 && exchange.api->dltensor_from_py_object_no_sync &&
           exchange.api->managed_tensor_to_py_object_no_sync;
}

bool view_of(const Exchange& exchange, PyObject* tensor, View& view, const char* op, const char* argument) {
    DLTensor described;
    if (exchange.api->dltensor_from_py_object_no_sync(tensor, &described)) {
        PyErr_Clear();
        return raise("DTypeError", op, argument, "%s has no memory to be read; want a strided tensor of the CPU",
                     argument),
               false;
    }
    const Status status = view_from(described, view, argument);
    return status == Status::ok ? true : (raise_status(status, op), false);
}

PyObject* allocate(const Exchange& exchange, View& view, const char* op) {
    if (is_padded(view.dtype))
        return raise("DTypeError", op, "", "the result has dtype %s, which tensors pack; want one of 8 bits or more",
                     name_of(view.dtype)),
               nullptr;
    size_t bytes;
    void* data = take_result(view, op, bytes);
    if (!data) return nullptr;
    auto* result = static_cast<Result*>(std::malloc(sizeof(Result)));
    if (!result) return pool_give(data, bytes), PyErr_NoMemory();
    std::memcpy(result->shape, view.shape, sizeof view.shape);
    std::memcpy(result->stride, view.stride, sizeof view.stride);
    result->bytes = bytes;
    result->managed = {{1, 0},
                       result,
                       delete_result,
                       0,
                       {data, {kDLCPU, 0}, view.ndim, data_type_of(view.dtype), result->shape, result->stride, 0}};
    view.data = data;
    void* object = nullptr;
    if (exchange.api->managed_tensor_to_py_object_no_sync(&result->managed, &object)) return nullptr;
    return static_cast<PyObject*>(object);
}

}  // namespace tw::bindings
