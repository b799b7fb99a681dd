// This tier's op table, in the order of ops.def.
#include "ops/ops.h"

namespace tw::TW_ISA {

extern const OpDef* const kOpTable[];
const OpDef* const kOpTable[] = {
#define TW_OP(name) &op_##name,
#include "ops/ops.def"
#undef TW_OP
};

}  // namespace tw::TW_ISA
