// What ran: kernels name themselves, the profile keeps a ring of records while it is on.
#pragma once
#include <cstdint>

namespace tw {

struct ProfileRecord {
    const char* op;
    char kernel[64];
    const char* tier;
    int threads;
    int64_t nanoseconds;
};

void note_kernel(const char* kernel);  // called by a kernel: a literal naming the path it took
void profile_begin();                  // nestable
void profile_end();
bool profile_on();
void profile_add(const char* op, const char* tier, int64_t nanoseconds);  // takes the noted kernel and clears it
int64_t profile_count();                                                  // records ever added
bool profile_get(int64_t index, ProfileRecord& record);                   // false if overwritten

int64_t monotonic_ns();

}  // namespace tw
