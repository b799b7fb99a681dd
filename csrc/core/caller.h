// What every caller, Python or C, does around a kernel: borrow tensors, check what will be written, run and record.
#pragma once
#include "core/opdef.h"
#include "include/tilework/dlpack_abi.h"

namespace tw {

constexpr uintptr_t kLastAddress = UINTPTR_MAX >> 1;  // the upper half is the system's

DLDataType data_type_of(DType t);
DType dtype_of(DLDataType t);  // DType::none if unsupported

// Checks every field of a descriptor that can be checked, then describes it as a View. With `shape_only`, the data pointer
// and the offset are not looked at.
Status view_from(const DLTensor& tensor, View& view, const char* name, bool shape_only = false);

// The bytes a view spans: [low, high).
struct Extent {
    const char* low;
    const char* high;
};
Extent extent_of(const View& view);
bool overlap(const View& a, const View& b);
bool overlaps_itself(const View& view);  // two elements of it share memory: some stride is 0 or walks into another axis

// Whether `given`, writeable, may receive the result `want` (shape and dtype) of `call`.
Status check_out(const Call& call, const View& given, const View& want, const char* name);
Status check_outs_apart(const View* outs, int n);
Status check_inout(const Call& call);  // operands that are updated in place share memory with nothing

Status run_recorded(const Call& call);  // `run` of the op, with an entry in the profile while it is on

}  // namespace tw
