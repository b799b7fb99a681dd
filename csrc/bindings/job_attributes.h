// What a job of the C API says about attributes.
#pragma once
#include "core/opdef.h"
#include "include/tilework/tilework.h"

namespace tw {

constexpr auto kBadArgument = static_cast<Status>(TW_ARGUMENT);

const char* kind_text(AttrKind kind);

// The attributes of a job, defaults where it gives none, in the order of the op's table.
Status read_attributes(const OpDef& def, const tw_job& job, Attr* attrs);

}  // namespace tw
