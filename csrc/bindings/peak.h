// Runs a tier's peak loop on a number of threads at once, for the bench.
#pragma once
#include "core/isa.h"

namespace tw::bindings {

struct PeakRun {
    double operations;  // of all threads together: flops, or bytes read and written
    double seconds;     // from the common start to the end of the last thread; one thread: less when it had no CPU
};

enum class PeakKind { fma_f32, fma_f64, dot_bf16, dot_i8, read, copy, copy_streamed, count };
constexpr const char* kPeakKinds[] = {"fma_f32", "fma_f64", "dot_bf16", "dot_i8", "read", "copy", "copy_streamed"};

// `bytes` per thread for the memory loops, both buffers of a copy together. seconds < 0 when memory is exhausted.
PeakRun run_peak(Tier tier, PeakKind kind, double seconds, int threads, int64_t bytes);

}  // namespace tw::bindings
