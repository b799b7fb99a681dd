// This tier's op table, in the order of ops.def; null where the tier below has the op.
#include "ops/ops.h"
#include "simd/tiles.h"

// Is there a tier below that takes ops from this one?
#define TW_NARROWER(isa) TW_PASTE(TW_NARROWER_, isa)

namespace tw::TW_ISA {

// Each is defined in the op's own file.
#define TW_OP(name) extern const Entry op_##name;
#include "ops/ops.def"
#undef TW_OP
#undef TW_OP_DOT8
#undef TW_OP_TILES
#undef TW_OP_NARROW

#if TW_LEAST(TW_ISA)
extern const OpDef* const kOpTable[];
const OpDef* const kOpTable[] = {
#else
extern const Kernels* const kKernelTable[];
const Kernels* const kKernelTable[] = {
#endif
#if defined(TW_ONLY_DOT8)
#define TW_OP(name) nullptr,
#define TW_OP_DOT8(name) &op_##name,
#if defined(TW_TILES)
#define TW_OP_TILES(name) &op_##name,
#endif
#else
#define TW_OP(name) &op_##name,
#if TW_NARROWER(TW_ISA)
#define TW_OP_NARROW(name) nullptr,
#endif
#endif
#include "ops/ops.def"
#undef TW_OP
};

}  // namespace tw::TW_ISA
