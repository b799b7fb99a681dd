#include "lines/places.h"

#include "core/isa.h"

namespace tw {

#define TW_EXTERN(name)                           \
    namespace name {                              \
    extern const lines::LineKernels kLineKernels; \
    }
TW_TIERS(TW_EXTERN)
#undef TW_EXTERN

namespace lines {

const LineKernels& line_kernels() {
#define TW_KERNELS(name) &name::kLineKernels,
    static constexpr const LineKernels* kKernels[] = {TW_TIERS(TW_KERNELS)};
#undef TW_KERNELS
    return *kKernels[static_cast<int>(active_tier())];
}

}  // namespace lines
}  // namespace tw
