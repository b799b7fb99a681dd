// JAX's way in: one XLA FFI handler for every op, over the C API. Built where jaxlib's headers are.
//
// `_op` names the op; `_given` has a "1" for each operand that is among the arguments and a "0" for each that is not.
// Other attributes are the op's own by type; "pairs:padding" is a list of (before, after) pairs, "none:axis" None.
#include <xla/ffi/api/c_api.h>

#include <cstdio>
#include <cstring>

#include "include/tilework/tilework.h"

namespace {

constexpr int kMostTensors = 64, kMostInputs = 80, kMostAttrs = 32, kMostInts = 512;
constexpr size_t kMostText = 8192;

DLDataType type_of(XLA_FFI_DataType type) {
    switch (type) {
        case XLA_FFI_DataType_PRED: return {kDLBool, 8, 1};
        case XLA_FFI_DataType_S8: return {kDLInt, 8, 1};
        case XLA_FFI_DataType_S16: return {kDLInt, 16, 1};
        case XLA_FFI_DataType_S32: return {kDLInt, 32, 1};
        case XLA_FFI_DataType_S64: return {kDLInt, 64, 1};
        case XLA_FFI_DataType_U8: return {kDLUInt, 8, 1};
        case XLA_FFI_DataType_U16: return {kDLUInt, 16, 1};
        case XLA_FFI_DataType_U32: return {kDLUInt, 32, 1};
        case XLA_FFI_DataType_U64: return {kDLUInt, 64, 1};
        case XLA_FFI_DataType_F16: return {kDLFloat, 16, 1};
        case XLA_FFI_DataType_F32: return {kDLFloat, 32, 1};
        case XLA_FFI_DataType_F64: return {kDLFloat, 64, 1};
        case XLA_FFI_DataType_BF16: return {kDLBfloat, 16, 1};
        default: return {255, 0, 1};  // the C API says that it is not taken
    }
}

DLTensor tensor_of(const void* buffer) {
    const auto& b = *static_cast<const XLA_FFI_Buffer*>(buffer);
    return {b.data, {kDLCPU, 0}, static_cast<int32_t>(b.rank), type_of(b.dtype), b.dims, nullptr, 0};
}

// A job as the handler's frame describes it.
struct Job {
    tw_job job{};
    const char* wrong = nullptr;  // why it could not be read
    const char* given = "";
    DLTensor tensors[2 * kMostTensors];
    const DLTensor* in[kMostInputs];
    const DLTensor* out[kMostTensors];
    tw_attr attrs[kMostAttrs];
    int64_t ints[kMostInts];
    char texts[kMostText];
    size_t n_ints = 0, n_text = 0;

    // Byte spans end nowhere; texts of the C API end with a zero byte.
    const char* text(const XLA_FFI_ByteSpan& span) {
        if (span.len >= kMostText - n_text) return wrong = "attributes are longer than 8 KiB", "";
        char* place = texts + n_text;
        std::memcpy(place, span.ptr, span.len);
        place[span.len] = 0;
        n_text += span.len + 1;
        return place;
    }

    void read_scalar(const XLA_FFI_Scalar& scalar, tw_attr& attr) {
        attr.kind = TW_INT;
        switch (scalar.dtype) {
            case XLA_FFI_DataType_PRED:
                attr.kind = TW_BOOL;
                attr.value.i = *static_cast<const bool*>(scalar.value);
                return;
            case XLA_FFI_DataType_S64: attr.value.i = *static_cast<const int64_t*>(scalar.value); return;
            case XLA_FFI_DataType_F64:
                attr.kind = TW_REAL;
                attr.value.f = *static_cast<const double*>(scalar.value);
                return;
            default: wrong = "an attribute is a number of another type than int64, float64 or bool";
        }
    }

    void read_array(const XLA_FFI_Array& array, tw_attr& attr) {
        if (array.dtype != XLA_FFI_DataType_S64 || array.size > kMostInts - n_ints) {
            wrong = "an attribute is a list of more than 512 numbers, or of others than int64";
            return;
        }
        int64_t* place = ints + n_ints;
        std::memcpy(place, array.data, array.size * sizeof(int64_t));
        n_ints += array.size;
        attr.kind = TW_INTS;
        attr.n = static_cast<int32_t>(array.size);
        attr.value.ints = place;
    }

    void read_attr(const char* name, XLA_FFI_AttrType type, const void* value) {
        tw_attr attr{};
        if (type == XLA_FFI_AttrType_STRING) {
            attr.kind = TW_TEXT;
            attr.value.text = text(*static_cast<const XLA_FFI_ByteSpan*>(value));
        } else if (type == XLA_FFI_AttrType_SCALAR) {
            read_scalar(*static_cast<const XLA_FFI_Scalar*>(value), attr);
        } else if (type == XLA_FFI_AttrType_ARRAY) {
            read_array(*static_cast<const XLA_FFI_Array*>(value), attr);
        } else {
            wrong = "an attribute is neither text, a number nor a list of numbers";
        }
        if (std::strcmp(name, "_op") == 0) {
            job.op = attr.value.text;
            return;
        }
        if (std::strcmp(name, "_given") == 0) {
            given = attr.value.text;
            return;
        }
        if (std::strncmp(name, "none:", 5) == 0) {
            name += 5;
            attr.kind = TW_NONE;
        } else if (std::strncmp(name, "pairs:", 6) == 0) {
            name += 6;
            attr.kind = TW_PAIRS;
            attr.n /= 2;
        }
        attr.name = name;
        attrs[job.n_attrs++] = attr;
    }

    explicit Job(const XLA_FFI_CallFrame& frame) {
        job.struct_size = sizeof job;
        job.in = in;
        job.attrs = attrs;
        const XLA_FFI_Attrs& a = frame.attrs;
        if (a.size > kMostAttrs || frame.args.size > kMostTensors || frame.rets.size > kMostTensors) {
            wrong = "more than 64 operands or 32 attributes";
            return;
        }
        for (int64_t i = 0; i < a.size && !wrong; ++i) {
            const char* name = text(*a.names[i]);
            if (!wrong) read_attr(name, a.types[i], a.attrs[i]);
        }
        if (wrong) return;
        DLTensor* tensor = tensors;
        int64_t taken = 0;
        for (const char* g = given; *g && job.n_in < kMostInputs; ++g) {
            const bool is_given = *g == '1' && taken < frame.args.size;
            in[job.n_in++] = is_given ? tensor : nullptr;
            if (is_given) *tensor++ = tensor_of(frame.args.args[taken++]);
        }
        for (int64_t i = 0; i < frame.rets.size; ++i) {
            *tensor = tensor_of(frame.rets.rets[i]);
            out[i] = tensor++;
        }
    }
};

XLA_FFI_Error_Code code_of(int32_t status) {
    switch (status) {
        case TW_UNSUPPORTED: return XLA_FFI_Error_Code_UNIMPLEMENTED;
        case TW_MEMORY: return XLA_FFI_Error_Code_RESOURCE_EXHAUSTED;
        case TW_INTERRUPTED: return XLA_FFI_Error_Code_CANCELLED;
        case TW_INDEX: return XLA_FFI_Error_Code_OUT_OF_RANGE;
        case TW_INTERNAL: return XLA_FFI_Error_Code_INTERNAL;
        default: return XLA_FFI_Error_Code_INVALID_ARGUMENT;
    }
}

XLA_FFI_Error* failure(const XLA_FFI_CallFrame& frame, const char* op, const char* text, XLA_FFI_Error_Code code) {
    char message[640];
    std::snprintf(message, sizeof message, "%s: %s", op, text);
    XLA_FFI_Error_Create_Args args{};
    args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
    args.message = message;
    args.errc = code;
    return frame.api->XLA_FFI_Error_Create(&args);
}

// XLA asks a handler for the version it was built with before it calls it.
bool tell_version(const XLA_FFI_CallFrame& frame) {
    if (!frame.extension_start || frame.extension_start->type != XLA_FFI_Extension_Metadata) return false;
    XLA_FFI_Metadata& told = *reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame.extension_start)->metadata;
    told.api_version.major_version = XLA_FFI_API_MAJOR;
    told.api_version.minor_version = XLA_FFI_API_MINOR;
    return true;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) XLA_FFI_Error* tw_xla_call(XLA_FFI_CallFrame* frame) {
    if (tell_version(*frame)) return nullptr;
    const Job made(*frame);
    const char* op = made.job.op ? made.job.op : "tilework";
    if (made.wrong) return failure(*frame, op, made.wrong, XLA_FFI_Error_Code_INVALID_ARGUMENT);
    const tw_status status = tw_call(&made.job, made.out, static_cast<int32_t>(frame->rets.size));
    return status == TW_OK ? nullptr : failure(*frame, op, tw_last_error()->text, code_of(status));
}

// 1000 * major + minor of the FFI whose headers this was built with.
__attribute__((visibility("default"))) int tw_xla_version(void) { return 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR; }

}  // extern "C"
