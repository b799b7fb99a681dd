/* The DLPack structs (specification 1.2, https://dmlc.github.io/dlpack), declared here so that nothing is vendored. A
 * program that has a dlpack.h of its own includes it first. */
#ifndef DLPACK_DLPACK_H_
#define DLPACK_DLPACK_H_
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { kDLCPU = 1 };
enum { kDLInt = 0, kDLUInt = 1, kDLFloat = 2, kDLBfloat = 4, kDLBool = 6 };
enum { kDLFloat8_e4m3fn = 10, kDLFloat8_e4m3fnuz, kDLFloat8_e5m2, kDLFloat8_e5m2fnuz, kDLFloat8_e8m0fnu };
enum { kDLFloat4_e2m1fn = 17 };
enum { kDLFlagReadOnly = 1, kDLFlagPadded = 4 }; /* numbers of fewer than 8 bits take a byte each */

typedef struct {
    int32_t device_type;
    int32_t device_id;
} DLDevice;

typedef struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides; /* in elements; NULL means compact, row-major */
    uint64_t byte_offset;
} DLTensor;

typedef struct DLManagedTensor {
    DLTensor dl_tensor;
    void* manager_ctx;
    void (*deleter)(struct DLManagedTensor*);
} DLManagedTensor;

typedef struct {
    uint32_t major;
    uint32_t minor;
} DLPackVersion;

typedef struct DLManagedTensorVersioned {
    DLPackVersion version;
    void* manager_ctx;
    void (*deleter)(struct DLManagedTensorVersioned*);
    uint64_t flags;
    DLTensor dl_tensor;
} DLManagedTensorVersioned;

/* What a tensor type shows as __dlpack_c_exchange_api__ (DLPack 1.2): its tensors in and out without its Python methods.
 * Functions return 0, or -1 with a Python exception set. A capsule named "dlpack_exchange_api" holds it. */
typedef struct DLPackExchangeAPI {
    struct {
        DLPackVersion version;
        void* prev_api;
    } header;
    int (*managed_tensor_allocator)(DLTensor*, DLManagedTensorVersioned**, void*,
                                    void (*)(void*, const char*, const char*));
    int (*managed_tensor_from_py_object_no_sync)(void*, DLManagedTensorVersioned**);
    int (*managed_tensor_to_py_object_no_sync)(DLManagedTensorVersioned*, void** object); /* steals the tensor */
    int (*dltensor_from_py_object_no_sync)(void* object, DLTensor*); /* borrows; NULL if the type cannot */
    int (*current_work_stream)(int32_t, int32_t, void**);
} DLPackExchangeAPI;

#ifdef __cplusplus
}
#endif
#endif
