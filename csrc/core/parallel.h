// The thread pool: neighbouring chunks to each thread, and to whoever is idle those that are left; the caller works too.
#pragma once
#include <cstdint>

namespace tw {

// Runs body(context, i) for every i in [0, chunks), on this thread and on any idle worker. What a chunk does must
// depend on i alone, never on who runs it, so that results have the same bits for every thread count.
// Nested calls and second concurrent callers run serially on their own thread. Returns false if interrupted.
bool parallel_chunks(int64_t chunks, void (*body)(void* context, int64_t i), void* context);

int num_threads();  // threads a call from this thread may use now
void set_num_threads(int n);  // n >= 1; process-wide
int set_thread_limit(int n);  // for the calling thread only, 0 = no limit; returns the former limit
const char* thread_count_reason();  // why num_threads is what it is: "TILEWORK_NUM_THREADS", "affinity mask", ...
const char* thread_count_error();  // non-null if an environment variable was malformed: the text to raise

int take_threads_used();  // most threads a region of this thread was offered to since last asked

// Ctrl-C: the binding installs a poll; parallel_chunks calls it on the calling thread, between chunks, at most every
// 50 ms. Once it says true, interrupted() stays true for this thread until its next outermost region of more than one
// chunk starts or until clear_interrupted(), which the binding calls before an op. On a worker: was the region stopped.
void set_interrupt_poll(bool (*poll)());
bool interrupted();  // polls (rate limited) on the calling thread
void clear_interrupted();

// Between chunks of one parallel region, on any thread: a serial stretch of the caller is simply code.
template <class Body>
static inline bool parallel(int64_t chunks, const Body& body) {
    if (chunks == 1) return body(int64_t{0}), true;
    return parallel_chunks(chunks, [](void* context, int64_t i) { (*static_cast<const Body*>(context))(i); },
                           const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace tw
