// The ops by number and by name, as each tier compiled them. Op files do not see this list: adding to it rebuilds few.
#pragma once
#include "core/isa.h"

namespace tw {

// The ops, in the order of ops/ops.def.
enum class OpId : int {
#define TW_OP(name) name,
#include "ops/ops.def"
#undef TW_OP
    count
};
constexpr int kOps = static_cast<int>(OpId::count);

const OpDef* op_table(Tier tier, OpId op);  // the op as compiled for that tier, or for the next below that has it
Status run_below(Tier tier, const Call& call);  // by the tier below, for kernels that take some calls only
// Names are short: to call strcmp takes longer than to compare them.
static inline bool same_text(const char* a, const char* b) {
    for (; *a && *a == *b; ++a) ++b;
    return *a == *b;
}
OpId find_op(const char* name);  // OpId::count if unknown

}  // namespace tw
