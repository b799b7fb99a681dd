// Memory that is part of the kernels: a size-class pool for results and packed weights, a thread-local arena for
// scratch.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tw {

// 64-byte aligned; blocks of 1 MiB and more on 2 MiB-aligned huge pages. nullptr when the system refuses, or when more
// than TILEWORK_MAX_ALLOC bytes (default: physical memory) are asked for.
void* pool_take(size_t bytes);
void pool_give(void* block, size_t bytes);  // same bytes as taken; any thread
const char* alloc_limit_error();            // non-null if TILEWORK_MAX_ALLOC was malformed: the text to raise
void pool_trim();                           // returns cached blocks (and this thread's arena) to the system

struct PoolStats {
    uint64_t live_bytes, live_blocks, cached_bytes;
};
PoolStats pool_stats();

// Scratch of the calling thread, 64-byte aligned, given back in reverse order when the Scratch goes out of scope.
// Kept between calls: no malloc in steady state. as() is nullptr when memory is exhausted.
class Scratch {
public:
    explicit Scratch(size_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }

private:
    void* data_;
    size_t mark_;
    void* chunk_;
};

}  // namespace tw
