// The pool and the scratch arena. The pool rounds sizes up to a class (four per power of two) and keeps a list of free
// blocks per class, threaded through the blocks themselves; what it keeps in total is bounded, and when it is full the
// classes take turns in making room. From 1 MiB on, a block is whole 2 MiB huge pages. The arena is a stack of chunks
// per thread; when it runs empty it keeps one chunk as large as the peak, so that the next call needs only that one.
#include "core/memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define TW_EXACT_BLOCKS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TW_EXACT_BLOCKS 1
#endif
#endif

namespace tw {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeFrom = size_t{1} << 20;     // blocks from here on are whole huge pages
constexpr size_t kMinCached = size_t{256} << 20;  // in the pool, over all classes, if not a sixteenth of the memory
constexpr size_t kMaxKept = size_t{64} << 20;     // in the arena of one thread
constexpr size_t kLargest = size_t{1} << 46;
constexpr int kClasses = 4 + 4 * (46 - 8);

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

struct SizeClass {
    int index;
    size_t bytes;
};

// 64 128 192 256, then 320 384 448 512, 640 768 896 1024, ...
constexpr SizeClass class_of(size_t bytes) {
    if (bytes >= kHugeFrom) bytes = round_up(bytes, kHugePage);
    if (bytes <= 4 * kLine) {
        const size_t lines = bytes ? (bytes + kLine - 1) / kLine : 1;
        return {static_cast<int>(lines) - 1, lines * kLine};
    }
    const int power = static_cast<int>(std::bit_width(bytes - 1)) - 1;
    const size_t quarter = size_t{1} << (power - 2);
    const size_t step = ((bytes - 1) >> (power - 2)) & 3;
    return {4 + 4 * (power - 8) + static_cast<int>(step), (size_t{1} << power) + (step + 1) * quarter};
}
static_assert(class_of(0).bytes == 64 && class_of(257).bytes == 320 && class_of(512).bytes == 512);
static_assert(class_of(kHugeFrom).bytes == kHugePage && class_of(5 << 20).bytes == 6 << 20);
static_assert(class_of(kLargest).index == kClasses - 1);

// ---- the system ----------------------------------------------------------------------------------------------------

struct Limit {
    size_t bytes = 0, cached = 0;
    char error[160] = "";
};
constinit Limit g_limit;

void find_limit() {
    g_limit.bytes =
        std::min(static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE)), kLargest);
    g_limit.cached = std::max(g_limit.bytes / 16, kMinCached);
    const char* text = getenv("TILEWORK_MAX_ALLOC");
    if (!text) return;
    size_t value = 0;
    const char* at = text;
    for (; *at >= '0' && *at <= '9'; ++at) value = std::min(value * 10 + static_cast<size_t>(*at - '0'), kLargest);
    if (*at != '\0' || value == 0) {
        snprintf(g_limit.error, sizeof g_limit.error,
                 "TILEWORK_MAX_ALLOC='%.64s' is not a size; want a number of bytes, at least 1", text);
    } else {
        g_limit.bytes = value;
    }
}

const Limit& limit() {
    static constinit pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_limit);
    return g_limit;
}

[[maybe_unused]] void* map_huge(size_t bytes) {
    const size_t room = bytes + kHugePage;
    void* got = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) return nullptr;
    char* const start = static_cast<char*>(got);
    const size_t before = round_up(reinterpret_cast<uintptr_t>(start), kHugePage) - reinterpret_cast<uintptr_t>(start);
    const size_t after = room - before - bytes;
    if (before) munmap(start, before);
    if (after) munmap(start + before + bytes, after);
#if defined(MADV_HUGEPAGE)
    madvise(start + before, bytes, MADV_HUGEPAGE);
#endif
    return start + before;
}

// `bytes` as class_of gives them.
void* system_take(size_t bytes) {
#if !defined(TW_EXACT_BLOCKS)
    if (bytes >= kHugePage) return map_huge(bytes);
#endif
    void* block = nullptr;
    return posix_memalign(&block, kLine, bytes) == 0 ? block : nullptr;
}

void system_give(void* block, [[maybe_unused]] size_t bytes) {
#if !defined(TW_EXACT_BLOCKS)
    if (bytes >= kHugePage) {
        munmap(block, bytes);
        return;
    }
#endif
    free(block);
}

// ---- the pool ------------------------------------------------------------------------------------------------------

struct FreeBlock {
    FreeBlock* next;
    size_t bytes;
};

struct Pool {
    std::mutex lock;
    FreeBlock* free[kClasses] = {};
    PoolStats stats{};
    int evict_from = 0;
};
constinit Pool g_pool;

// Takes blocks out of the cache, class after class, until at most `most` bytes are cached. Call with the lock held;
// the blocks are returned as a list, to be given back to the system without it.
FreeBlock* evict(size_t most) {
    FreeBlock* out = nullptr;
    for (int looked = 0; looked < kClasses && g_pool.stats.cached_bytes > most;) {
        FreeBlock*& list = g_pool.free[g_pool.evict_from];
        if (!list) {
            g_pool.evict_from = (g_pool.evict_from + 1) % kClasses;
            ++looked;
            continue;
        }
        FreeBlock* const block = list;
        list = block->next;
        g_pool.stats.cached_bytes -= block->bytes;
        block->next = out;
        out = block;
    }
    return out;
}

void give_list(FreeBlock* list) {
    while (list) {
        FreeBlock* const next = list->next;
        system_give(list, list->bytes);
        list = next;
    }
}

void trim_pool() {
    g_pool.lock.lock();
    FreeBlock* const out = evict(0);
    g_pool.lock.unlock();
    give_list(out);
}

// A child must not inherit the lock as another thread held it.
void guard_fork() {
    static constinit pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, [] {
        pthread_atfork([] { g_pool.lock.lock(); }, [] { g_pool.lock.unlock(); }, [] { g_pool.lock.unlock(); });
    });
}

void* take_or_trim(size_t bytes) {
    void* block = system_take(bytes);
    if (block) return block;
    trim_pool();
    return system_take(bytes);
}

#if defined(TW_EXACT_BLOCKS)
SizeClass block_of(size_t bytes) { return {0, bytes ? bytes : 1}; }
#else
SizeClass block_of(size_t bytes) { return class_of(bytes); }
#endif

// ---- the arena -----------------------------------------------------------------------------------------------------

struct alignas(kLine) Chunk {
    Chunk* below;
    size_t size;  // header included
    size_t used;
};
static_assert(sizeof(Chunk) == kLine);

struct Arena {
    Chunk* top;
    Chunk* spare;
    size_t used;  // over all chunks
    size_t peak;
};
constinit thread_local Arena t_arena{};

void free_chunk(Chunk* chunk) {
    if (chunk) system_give(chunk, chunk->size);
}

void drop_spare(Arena& arena) {
    free_chunk(arena.spare);
    arena.spare = nullptr;
    arena.peak = arena.used;
}

struct FreesArena {
    bool armed = false;
    ~FreesArena() { drop_spare(t_arena); }
};
thread_local FreesArena t_frees_arena;

[[maybe_unused]] bool push_chunk(Arena& arena, size_t bytes) {
    const size_t wanted = arena.top ? 0 : std::min(arena.peak, kMaxKept - sizeof(Chunk));
    const size_t size = round_up(std::max(bytes, wanted) + sizeof(Chunk), kHugePage);
    Chunk* chunk = arena.spare;
    arena.spare = nullptr;
    if (chunk && chunk->size < size) {
        free_chunk(chunk);
        chunk = nullptr;
    }
    if (!chunk) {
        t_frees_arena.armed = true;
        guard_fork();
        chunk = static_cast<Chunk*>(take_or_trim(size));
        if (!chunk) return false;
        chunk->size = size;
    }
    chunk->used = sizeof(Chunk);
    chunk->below = arena.top;
    arena.top = chunk;
    return true;
}

[[maybe_unused]] void pop_chunk(Arena& arena) {
    Chunk* chunk = arena.top;
    arena.top = chunk->below;
    if (chunk->size <= kMaxKept && (!arena.spare || arena.spare->size < chunk->size)) std::swap(chunk, arena.spare);
    free_chunk(chunk);
}

}  // namespace

void* pool_take(size_t bytes) {
    if (bytes > limit().bytes) return nullptr;
    const SizeClass size = block_of(bytes);
    g_pool.lock.lock();
    FreeBlock*& list = g_pool.free[size.index];
    void* block = list;
    if (block) {
        list = list->next;
        g_pool.stats.cached_bytes -= size.bytes;
        g_pool.stats.live_bytes += size.bytes;
        g_pool.stats.live_blocks += 1;
    }
    g_pool.lock.unlock();
    if (block) return block;

    guard_fork();
    block = take_or_trim(size.bytes);
    if (!block) return nullptr;
    std::lock_guard hold(g_pool.lock);
    g_pool.stats.live_bytes += size.bytes;
    g_pool.stats.live_blocks += 1;
    return block;
}

void pool_give(void* block, size_t bytes) {
    if (!block) return;
    const SizeClass size = block_of(bytes);
#if defined(TW_EXACT_BLOCKS)
    constexpr size_t room = 0;
#else
    const size_t room = limit().cached;
#endif
    FreeBlock* out = nullptr;
    const bool keep = size.bytes <= room;
    g_pool.lock.lock();
    g_pool.stats.live_bytes -= size.bytes;
    g_pool.stats.live_blocks -= 1;
    if (keep) {
        out = evict(room - size.bytes);
        g_pool.free[size.index] = new (block) FreeBlock{g_pool.free[size.index], size.bytes};
        g_pool.stats.cached_bytes += size.bytes;
    }
    g_pool.lock.unlock();
    give_list(out);
    if (!keep) system_give(block, size.bytes);
}

void pool_trim() {
    trim_pool();
    drop_spare(t_arena);
}

PoolStats pool_stats() {
    std::lock_guard hold(g_pool.lock);
    return g_pool.stats;
}

const char* alloc_limit_error() { return limit().error[0] ? g_limit.error : nullptr; }

#if defined(TW_EXACT_BLOCKS)
Scratch::Scratch(size_t bytes) : data_(nullptr), mark_(0), chunk_(nullptr) {
    if (bytes <= limit().bytes) data_ = take_or_trim(bytes ? bytes : 1);
}

Scratch::~Scratch() { system_give(data_, 0); }
#else
Scratch::Scratch(size_t bytes) : data_(nullptr), mark_(0), chunk_(nullptr) {
    Arena& arena = t_arena;
    if (bytes > limit().bytes) return;
    const size_t room = bytes ? round_up(bytes, kLine) : kLine;
    if ((!arena.top || arena.top->size - arena.top->used < room) && !push_chunk(arena, room)) return;
    Chunk* const chunk = arena.top;
    data_ = reinterpret_cast<char*>(chunk) + chunk->used;
    mark_ = chunk->used;
    chunk_ = chunk;
    chunk->used += room;
    arena.used += room;
    arena.peak = std::max(arena.peak, arena.used);
}

Scratch::~Scratch() {
    if (!data_) return;
    Arena& arena = t_arena;
    Chunk* const chunk = static_cast<Chunk*>(chunk_);
    arena.used -= chunk->used - mark_;
    chunk->used = mark_;
    if (mark_ == sizeof(Chunk)) pop_chunk(arena);
}
#endif

}  // namespace tw
