// What an op is: its operands, its attributes, its shape rule and its kernel. One table per tier.
#pragma once
#include "core/attrs.h"
#include "core/status.h"
#include "core/types.h"

namespace tw {

enum class Role : uint8_t { required, optional, inout, optional_inout, variadic };

constexpr bool may_be_absent(Role r) { return r == Role::optional || r == Role::optional_inout; }
constexpr bool is_updated(Role r) { return r == Role::inout || r == Role::optional_inout; }

struct Operand {
    const char* name;
    Role role = Role::required;
};

struct OpDef;

struct Call {
    const OpDef* op;
    const View* in;  // n_in operands in table order; dtype none where not given
    int n_in;
    View* out;  // shapes from infer, data set by the caller before run
    int n_out;
    Attr* attr;          // one per AttrSpec, defaults filled in; infer resolves them in place (see below)
    const void* packed;  // what `pack` wrote for this call's prepared operands, or null
};

// The answer of the shape rule.
struct Inferred {
    View out[kMaxOutputs];  // ndim, shape, dtype; strides and data are the caller's
    int n_out;
    double flops;  // work of this call, 0 = about one operation per element touched
};

// What every tier compiles of an op. All else holds for all tiers, and only the least tier has it.
struct Kernels {
    Status (*run)(const Call&);
    int64_t (*packed_size)(const Call&) = nullptr;
    void (*pack)(const Call&, void*) = nullptr;
};

// Everything is constant-initialised, so that a tier object has no start-up code.
struct OpDef {
    const char* name;
    const Operand* operands;
    int n_operands;
    const AttrSpec* attrs;
    int n_attrs;
    // Checks every operand and attribute, then gives the output shapes; data may be null. Also resolves the attributes
    // in place: integers to one per spatial axis, padding to pairs, axes to sorted non-negative numbers, None to what
    // it means. `run`, the OpenCL launch and the reference only ever see resolved attributes.
    Status (*infer)(Call&, Inferred&);
    Status (*run)(const Call&);  // trusts infer
    uint32_t flags = 0;
    // Prepared operands: bytes needed and the packing itself; `call.in` holds the prepared operands only.
    int64_t (*packed_size)(const Call&) = nullptr;
    void (*pack)(const Call&, void*) = nullptr;
};

enum OpFlag : uint32_t {
    kElementwise = 1,   // out may be exactly one of the inputs
    kWeakScalars = 2,   // Python numbers are taken in the dtype of the other operand
    kOutIsLast = 4,     // out may be exactly the last operand
    kLeadingText = 8,   // the first attribute may come first, then the arrays of the variadic operand one by one
};

}  // namespace tw
