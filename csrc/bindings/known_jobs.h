// Jobs that a thread calls again and again: what was read, checked and inferred of one holds for the next of its kind.
#pragma once
#include "core/opdef.h"
#include "include/tilework/tilework.h"

namespace tw {

struct KnownJob;

// The kept job of this thread that `job`, of that op, is like: the same layouts and attributes, operands and results of its
// own that share no memory. Null where it has to be read and checked. Until `leave`, its call is that of this job.
KnownJob* known_job(const OpDef& def, const tw_job& job, const DLTensor* const* out, int32_t n_out);
const Call& call_of(const KnownJob& job);
void leave(KnownJob& job);

// Keeps a job that was found right, and the call that it is, when it is seen for the second time.
void keep_job(const tw_job& job, const DLTensor* const* out, const Call& call);

}  // namespace tw
