#include "lines/places.h"

#include <algorithm>
#include <iterator>

#include "core/isa.h"

namespace tw {

#define TW_EXTERN(name)                           \
    namespace name {                              \
    extern const lines::LineKernels kLineKernels; \
    }
TW_WHOLE_TIERS(TW_EXTERN)
#undef TW_EXTERN

namespace lines {

const LineKernels& line_kernels() {
#define TW_KERNELS(name) &name::kLineKernels,
    static constexpr const LineKernels* kKernels[] = {TW_WHOLE_TIERS(TW_KERNELS)};
#undef TW_KERNELS
    return *kKernels[std::min(static_cast<size_t>(active_tier()), std::size(kKernels) - 1)];
}

}  // namespace lines
}  // namespace tw
