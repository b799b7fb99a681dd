// Method    copies of operands, the kernel, one pass that rounds: twice the memory, for ops that sum for long.
// Numerics  exact copies, one rounding.
// Threads   rows of the copies, then as the kernel does.
#include "ops/in_float32.h"

#include "core/check.h"
#include "core/memory.h"
#include "core/walk.h"
#include "simd/convert.h"

namespace tw::TW_ISA {
namespace {

template <class H>
Status through_float32(const Call& c, Status (*kernel)(const Call&)) {
    int64_t elements = 0;
    for (int i = 0; i < c.n_in; ++i) elements += given(c.in[i]) ? numel(c.in[i]) : 0;
    elements += numel(c.out[0]);
    Scratch scratch(static_cast<size_t>(elements + 1) * sizeof(float));
    float* at = scratch.as<float>();
    if (!at) return fail(Status::memory, "", "no memory for copies in float32; want smaller operands");
    View in[kMaxInputs], out = c.out[0];
    const auto wide = [&](View v) {
        v.dtype = DType::f32;
        set_contiguous(v);
        v.data = at;
        at += numel(v);
        return v;
    };
    const auto each = [](const View& to, const View& from, const auto& body) {
        const View* views[] = {&to, &from};
        const Walk w = walk_over(views, 2, to.ndim, to.shape);
        for_each_row(w, kChunkElements, [&](char* const* p, int64_t count) { body(w, p, count); });
    };
    for (int i = 0; i < c.n_in; ++i) {
        in[i] = c.in[i];
        if (!given(c.in[i]) || c.in[i].dtype != c.in[0].dtype) continue;
        in[i] = wide(c.in[i]);
        each(in[i], c.in[i], [](const Walk& w, char* const* p, int64_t count) {
            float* to = reinterpret_cast<float*>(p[0]);
            const H* from = reinterpret_cast<const H*>(p[1]);
            int64_t k = 0;
            if (w.stride[1] == 1)
                for (; k + kLanes<float> <= count; k += kLanes<float>) store(to + k, load_as<float>(from + k));
            for (; k < count; ++k) to[k] = to_float(from[k * w.stride[1]]);
        });
    }
    out = wide(out);
    Call f = c;
    f.in = in, f.out = &out;
    TW_TRY(kernel(f));
    each(c.out[0], out, [](const Walk& w, char* const* p, int64_t count) {
        H* to = reinterpret_cast<H*>(p[0]);
        const float* from = reinterpret_cast<const float*>(p[1]);
        int64_t k = 0;
        if (w.stride[0] == 1 && w.stride[1] == 1)
            for (; k + kLanes<float> <= count; k += kLanes<float>) store_from(to + k, load(from + k));
        for (; k < count; ++k) to[k * w.stride[0]] = from_float<H>(from[k * w.stride[1]]);
    });
    return Status::ok;
}

}  // namespace

Status in_float32(const Call& c, Status (*kernel)(const Call&)) {
    if (numel(c.out[0]) == 0) return Status::ok;
    if (c.in[0].dtype == DType::f16) return through_float32<f16>(c, kernel);
    if (c.in[0].dtype == DType::bf16) return through_float32<bf16>(c, kernel);
    return kernel(c);
}

}  // namespace tw::TW_ISA
