#include "bindings/arrays.h"

#include <cstdio>
#include <cstring>

#include "bindings/raise.h"
#include "core/check.h"
#include "core/memory.h"

namespace tw::bindings {
namespace {

using py::detail::array_descriptor_proxy;
using py::detail::array_proxy;
using py::detail::npy_api;

constexpr int kAligned = 0x0100, kWriteable = 0x0400;
constexpr size_t kPoolBytes = 4096;          // smaller results come from numpy's own small-block cache
constexpr int64_t kMaxElements = int64_t{1} << 40;

PyObject* g_dtypes[kDTypes];                  // numpy.dtype objects; those of ml_dtypes once they are met
int g_type_num[kDTypes];

int type_num(PyObject* dtype) { return array_descriptor_proxy(dtype)->type_num; }

bool is_of_ml_dtypes(int k) { return k == static_cast<int>(DType::bf16) || k >= kNumberTypes; }

bool load(int k) {
    if (g_dtypes[k]) return true;
    PyObject* module = PyImport_ImportModule("ml_dtypes");
    if (!module) return false;
    PyObject* scalar = PyObject_GetAttrString(module, kDTypeName[k]);
    Py_DECREF(module);
    if (!scalar) return false;
    PyObject* numpy = PyImport_ImportModule("numpy");
    PyObject* dtype = numpy ? PyObject_CallMethod(numpy, "dtype", "O", scalar) : nullptr;
    Py_XDECREF(numpy);
    Py_DECREF(scalar);
    if (!dtype) return false;
    g_dtypes[k] = dtype;
    g_type_num[k] = type_num(dtype);
    return true;
}

// The number of the type of ml_dtypes with that name, or -1.
int number_of(const char* name) {
    for (int k = 0; k < kDTypes; ++k)
        if (is_of_ml_dtypes(k) && std::strcmp(name, kDTypeName[k]) == 0) return k;
    return -1;
}

// ml_dtypes registers its types at run time: the number of one is known once it was met.
DType dtype_of_ml_dtypes(const PyTypeObject* scalar, int num) {
    for (int k = 0; k < kDTypes; ++k)
        if (is_of_ml_dtypes(k) && g_dtypes[k] && num == g_type_num[k]) return static_cast<DType>(k);
    const char* const dot = std::strrchr(scalar->tp_name, '.');
    const int named = number_of(dot ? dot + 1 : scalar->tp_name);
    return named >= 0 && load(named) && num == g_type_num[named] ? static_cast<DType>(named) : DType::none;
}

DType dtype_of_descriptor(PyObject* dtype) {
    const auto* proxy = array_descriptor_proxy(dtype);
    if (proxy->byteorder == '>') return DType::none;
    const int num = proxy->type_num;
    switch (num) {
        case 0: return DType::boolean;
        case 1: return DType::i8;
        case 2: return DType::u8;
        case 3: return DType::i16;
        case 4: return DType::u16;
        case 5: return DType::i32;
        case 6: return DType::u32;
        case 11: return DType::f32;
        case 12: return DType::f64;
        case 23: return DType::f16;
        default: break;
    }
    if (num == 7 || num == 9) return sizeof(long) == 8 || num == 9 ? DType::i64 : DType::i32;
    if (num == 8 || num == 10) return sizeof(long) == 8 || num == 10 ? DType::u64 : DType::u32;
    const bool foreign = num >= 256 && proxy->kind != 'M';
    return foreign ? dtype_of_ml_dtypes(reinterpret_cast<PyTypeObject*>(proxy->typeobj), num) : DType::none;
}

// A block of the pool that a numpy array keeps alive.
struct Block {
    PyObject_HEAD void* data;
    size_t bytes;
};

void block_dealloc(PyObject* self) {
    auto* block = reinterpret_cast<Block*>(self);
    pool_give(block->data, block->bytes);
    Py_TYPE(self)->tp_free(self);
}

PyTypeObject g_block_type = {};

}  // namespace

bool init_arrays() {
    g_block_type.tp_name = "tilework._core.Block";
    g_block_type.tp_basicsize = sizeof(Block);
    g_block_type.tp_dealloc = block_dealloc;
    g_block_type.tp_flags = Py_TPFLAGS_DEFAULT;
    g_block_type.tp_doc = "A block of tilework's memory pool, given back when the last array on it goes.";
    Py_SET_REFCNT(reinterpret_cast<PyObject*>(&g_block_type), 1);
    if (PyType_Ready(&g_block_type) < 0) return false;
    PyObject* numpy = PyImport_ImportModule("numpy");
    if (!numpy) return false;
    for (int k = 0; k < kDTypes; ++k) {
        if (is_of_ml_dtypes(k)) continue;
        g_dtypes[k] = PyObject_CallMethod(numpy, "dtype", "s", kDTypeName[k]);
        if (!g_dtypes[k]) return false;
        g_type_num[k] = type_num(g_dtypes[k]);
    }
    Py_DECREF(numpy);
    return true;
}

DType dtype_of(PyObject* array) { return dtype_of_descriptor(array_proxy(array)->descr); }

DType dtype_from(PyObject* anything) {
    if (PyUnicode_Check(anything)) {
        const char* const text = PyUnicode_AsUTF8(anything);
        if (!text) return DType::none;
        const int named = number_of(text);
        if (named >= 0) return load(named) ? static_cast<DType>(named) : DType::none;
    }
    PyObject* numpy = PyImport_ImportModule("numpy");
    PyObject* dtype = numpy ? PyObject_CallMethod(numpy, "dtype", "O", anything) : nullptr;
    Py_XDECREF(numpy);
    if (!dtype) return DType::none;
    const DType found = dtype_of_descriptor(dtype);
    if (found == DType::none) PyErr_Format(PyExc_TypeError, "%S is not an element type of tilework", dtype);
    Py_DECREF(dtype);
    return found;
}

PyObject* dtype_object(DType dtype) {
    const int k = static_cast<int>(dtype);
    return is_of_ml_dtypes(k) && !load(k) ? nullptr : Py_NewRef(g_dtypes[k]);
}

bool is_writeable(PyObject* array) { return array_proxy(array)->flags & kWriteable; }

bool view_of(PyObject* array, View& view, const char* op, const char* argument, PyObject** copy) {
    const auto* a = array_proxy(array);
    view.dtype = dtype_of_descriptor(a->descr);
    if (view.dtype == DType::none) {
        PyObject* text = PyObject_Str(a->descr);
        raise("DTypeError", op, argument,
              array_descriptor_proxy(a->descr)->byteorder == '>'
                  ? "%s has dtype %s; want native byte order, as %s.astype(%s.dtype.newbyteorder('=')) gives"
                  : "%s has dtype %s; want float32, float64, float16, bfloat16, an integer of 8 to 64 bits or bool",
              argument, text ? PyUnicode_AsUTF8(text) : "?", argument, argument);
        Py_XDECREF(text);
        return false;
    }
    if (a->nd > kMaxDims) {
        raise("ShapeError", op, argument, "%s has %d dimensions; want at most %d", argument, a->nd, kMaxDims);
        return false;
    }
    view.ndim = a->nd;
    view.data = a->data;
    const int64_t size = item_size(view.dtype);
    bool whole = (a->flags & kAligned) || a->nd == 0 || size == 1;
    if (a->nd == 0 && !(a->flags & kAligned)) whole = false;
    int64_t elements = 1;
    for (int d = 0; d < view.ndim; ++d) {
        view.shape[d] = a->dimensions[d];
        if (a->strides[d] % size) whole = false;
        view.stride[d] = a->strides[d] / size;
        if (__builtin_mul_overflow(elements, view.shape[d] ? view.shape[d] : 1, &elements) || elements > kMaxElements) {
            raise("ShapeError", op, argument, "%s has shape %s, more than 2^40 elements; want fewer", argument,
                  shape_text(view).text);
            return false;
        }
    }
    if (whole) return true;
    if (!copy) {
        raise("ShapeError", op, argument, "%s is not aligned to its %lld-byte elements; want an aligned array",
              argument, static_cast<long long>(size));
        return false;
    }
    *copy = PyObject_CallMethod(array, "copy", nullptr);
    return *copy && view_of(*copy, view, op, argument, nullptr);
}

namespace {

// Lays out a result of view.shape in C order; false with an error set where it is too large.
bool lay_out(View& view, const char* op, size_t& bytes) {
    int64_t elements = 1;
    bool empty = false;
    for (int d = 0; d < view.ndim; ++d) {
        if (view.shape[d] == 0) empty = true;
        if (__builtin_mul_overflow(elements, view.shape[d] ? view.shape[d] : 1, &elements) || elements > kMaxElements) {
            raise("ShapeError", op, "", "the result would have shape %s, more than 2^40 elements; want fewer",
                  shape_text(view).text);
            return false;
        }
    }
    set_contiguous(view);
    bytes = empty ? 0 : static_cast<size_t>(elements * item_size(view.dtype));
    return true;
}

void* take(const View& view, const char* op, size_t bytes) {
    void* data = pool_take(bytes);
    if (!data)
        raise("AllocationError", op, "",
              "no memory for a result of shape %s, %zu bytes; want a smaller one, or a larger "
              "TILEWORK_MAX_ALLOC",
              shape_text(view).text, bytes);
    return data;
}

}  // namespace

void* take_result(View& view, const char* op, size_t& bytes) {
    return lay_out(view, op, bytes) ? take(view, op, bytes) : nullptr;
}

PyObject* allocate(View& view, const char* op) {
    size_t bytes;
    if (!lay_out(view, op, bytes)) return nullptr;
    if (bytes < kPoolBytes) {
        PyObject* dtype = dtype_object(view.dtype);
        if (!dtype) return nullptr;
        auto& api = npy_api::get();
        PyObject* array =
            api.PyArray_NewFromDescr_(api.PyArray_Type_, dtype, view.ndim, reinterpret_cast<Py_intptr_t*>(view.shape),
                                      nullptr, nullptr, 0, nullptr);
        if (array) view.data = array_proxy(array)->data;
        return array;
    }
    void* data = take(view, op, bytes);
    if (!data) return nullptr;
    auto* block = PyObject_New(Block, &g_block_type);
    if (!block) return pool_give(data, bytes), nullptr;
    block->data = data;
    block->bytes = bytes;
    view.data = data;
    return wrap(view, reinterpret_cast<PyObject*>(block), true);
}

PyObject* wrap(const View& view, PyObject* owner, bool writeable) {
    PyObject* dtype = dtype_object(view.dtype);
    if (!dtype) return Py_XDECREF(owner), nullptr;
    auto& api = npy_api::get();
    Py_intptr_t shape[kMaxDims], strides[kMaxDims];
    for (int d = 0; d < view.ndim; ++d) {
        shape[d] = view.shape[d];
        strides[d] = view.stride[d] * item_size(view.dtype);
    }
    PyObject* array = api.PyArray_NewFromDescr_(api.PyArray_Type_, dtype, view.ndim, shape, strides, view.data,
                                                writeable ? kWriteable : 0, nullptr);
    if (!array) return Py_XDECREF(owner), nullptr;
    if (owner && api.PyArray_SetBaseObject_(array, owner) < 0) return Py_DECREF(array), nullptr;
    return array;
}

}  // namespace tw::bindings
