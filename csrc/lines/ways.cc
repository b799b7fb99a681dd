#include "lines/ways.h"

#include "core/isa.h"

namespace tw {

#define TW_EXTERN(name)                         \
    namespace name {                            \
    extern const lines::WayKernels kWayKernels; \
    }
TW_TIERS(TW_EXTERN)
#undef TW_EXTERN

namespace lines {

const WayKernels& way_kernels() {
#define TW_KERNELS(name) &name::kWayKernels,
    static constexpr const WayKernels* kKernels[] = {TW_TIERS(TW_KERNELS)};
#undef TW_KERNELS
    return *kKernels[static_cast<int>(active_tier())];
}

}  // namespace lines
}  // namespace tw
