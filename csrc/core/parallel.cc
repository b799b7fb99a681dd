// The thread pool. One region runs at a time: its chunks are handed out by counting `remaining` of shares down, and whoever
// won a chunk may read the region's fields, since the region cannot end before that chunk has. So nobody ever waits for a
// worker that has not started anything: it comes late, finds nothing left and goes back to sleep. A thread begins with the
// same share in every region, so that what it made in one is in its cache in the next. Workers are detached and started
// on demand; the whole state is static words without destructors: exit needs no clean-up, a forked child only zeroes them.
#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include "core/cpus.h"
#include "core/float_mode.h"
#include "core/host_pool.h"
#include "core/profile.h"
#include "core/relax.h"

namespace tw {
namespace {

constexpr int64_t kWorkerSpinNs = 75'000;  // an idle worker stays awake this long, then sleeps
constexpr int64_t kCallerSpinNs = 20'000;  // a caller waits for started chunks spinning,
constexpr int64_t kCallerYieldNs = 1'000'000;  // then yielding, then asleep
constexpr int64_t kPreemptedNs = 20'000;  // a hole in the clock: somebody else wants this core
constexpr int64_t kPollNs = 50'000'000;

using Body = void (*)(void* context, int64_t i);

#if defined(__linux__)
static_assert(sizeof(std::atomic<int32_t>) == 4);
void sleep_while(std::atomic<int32_t>& word, int32_t value) {
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake(std::atomic<int32_t>& word, int threads) {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
}
#else
void sleep_while(std::atomic<int32_t>& word, int32_t value) { word.wait(value); }
void wake(std::atomic<int32_t>& word, int threads) { threads == 1 ? word.notify_one() : word.notify_all(); }
#endif

// ---- state ---------------------------------------------------------------------------------------------------------

// Neighbouring chunks: the caller's are the first, a worker's the next.
struct alignas(128) Share {
    std::atomic<int64_t> remaining{0};  // chunks nobody has claimed; 0 or less: none
    int64_t end = 0;  // valid for the holder of a chunk
};
constexpr int kMostShares = 64;
constinit Share g_shares[kMostShares];

struct Pool {
    alignas(128) std::atomic<int32_t> openings{0};  // workers that may still join
    std::atomic<int32_t> sleepers{0};

    alignas(128) std::atomic<int> shares{0};
    Body body = nullptr;  // these three are valid for the holder of a chunk
    void* context = nullptr;
    uint64_t float_mode = 0;

    alignas(128) std::atomic<int64_t> done{0};  // chunks that workers have finished
    std::atomic<int32_t> caller_sleeps{0};

    alignas(128) std::atomic<bool> busy{false};  // the caller that set it owns the fields below
    std::atomic<bool> stopped{false};
    int workers = 0;
    uint64_t forks = 0;  // changes in a forked child, whose workers are gone
};
constinit Pool g_pool;

struct Worker {
    std::atomic<int32_t> asleep{0};
    std::atomic<bool> moved{false};  // by its waker; the worker then sets its mask back
    pid_t tid = 0;
#if defined(__linux__)
    cpu_set_t mask{};
#endif
};
constinit Worker g_workers[kMaxThreads];

constinit std::atomic<int> g_threads{0};  // 0: not known yet
constinit std::atomic<const char*> g_reason{nullptr};
constinit std::atomic<bool> g_refused{false};  // the system gave no more threads
constinit ThreadDefault g_default{};

struct ThreadState {
    int depth = 0;  // regions this thread is inside of
    int limit = 0;
    int used = 1;
    bool is_worker = false;
    bool interrupted = false;
    int64_t next_poll = 0;
};
constinit thread_local ThreadState t_state;

constinit std::atomic<bool (*)()> g_poll{nullptr};

constinit std::atomic<HostRun> g_host_run{nullptr};
constinit std::atomic<void*> g_host_pool{nullptr};

// ---- how many threads ----------------------------------------------------------------------------------------------

int process_threads() {
    static constinit pthread_once_t once = PTHREAD_ONCE_INIT;  // unlike a guard variable, survives fork half way
    const int known = g_threads.load(std::memory_order_acquire);
    if (known) return known;
    pthread_once(&once, [] {
        g_default = thread_default();
        g_reason.store(g_default.reason);
        g_threads.store(g_default.threads);
    });
    return g_threads.load(std::memory_order_acquire);
}

// More threads than CPUs: whoever spins holds up the one it waits for.
bool may_spin() { return process_threads() <= g_default.cpus; }

// ---- where workers wake --------------------------------------------------------------------------------------------

// In a virtual machine an idle CPU can look taken to the kernel, which then queues a woken worker behind its busy waker
// for milliseconds. So the waker first forbids the worker its own CPU; the worker takes its mask back when it runs.
#if defined(__linux__)
bool without_this_cpu(const cpu_set_t& mask, cpu_set_t& others) {
    const int cpu = sched_getcpu();
    others = mask;
    if (cpu < 0 || cpu >= CPU_SETSIZE) return false;
    CPU_CLR(static_cast<size_t>(cpu), &others);
    return CPU_COUNT(&others) > 0;
}

void move_away(Worker& worker) {
    if (!worker.moved.load(std::memory_order_acquire)) {
        if (sched_getaffinity(worker.tid, sizeof worker.mask, &worker.mask) != 0) return;
        worker.moved.store(true, std::memory_order_release);
    }
    cpu_set_t others;
    if (without_this_cpu(worker.mask, others)) sched_setaffinity(worker.tid, sizeof others, &others);
}

void start_away(Worker& worker, pthread_attr_t& attributes) {
    if (sched_getaffinity(0, sizeof worker.mask, &worker.mask) != 0) return;
    cpu_set_t others;
    if (!without_this_cpu(worker.mask, others)) return;
    worker.moved.store(true, std::memory_order_release);
    pthread_attr_setaffinity_np(&attributes, sizeof others, &others);
}

void move_back(Worker& self) {
    if (!self.moved.load(std::memory_order_acquire)) return;
    sched_setaffinity(0, sizeof self.mask, &self.mask);
    self.moved.store(false, std::memory_order_release);
}
#else
void move_away(Worker&) {}
void start_away(Worker&, pthread_attr_t&) {}
void move_back(Worker&) {}
#endif

// ---- workers -------------------------------------------------------------------------------------------------------

// A chunk of share `own`, or when it has none of the next that has, or -1. The look before saves lines from idle writes.
int64_t claim(int own) {
    const int shares = g_pool.shares.load(std::memory_order_acquire);
    const int first = own && shares > 1 ? 1 + (own - 1) % (shares - 1) : 0;
    for (int k = 0; k < shares; ++k) {
        Share& share = g_shares[(first + k) % shares];
        if (share.remaining.load(std::memory_order_relaxed) <= 0) continue;
        const int64_t left = share.remaining.fetch_sub(1, std::memory_order_acq_rel);
        if (left > 0) return share.end - left;
    }
    return -1;
}

// How many chunks nobody will claim now.
int64_t drop_chunks() {
    int64_t dropped = 0;
    for (Share& share : g_shares) dropped += std::max<int64_t>(0, share.remaining.exchange(0));
    return dropped;
}

bool join_region() {
    int32_t open = g_pool.openings.load(std::memory_order_acquire);
    while (open > 0) {
        if (g_pool.openings.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel)) return true;
    }
    return false;
}

// Returns when this worker has taken an opening.
void wait_for_region(Worker& self) {
    for (;;) {
        move_back(self);
        const int64_t start = monotonic_ns();
        int64_t last = start;
        for (int turn = 1;; ++turn) {
            if (join_region()) return;
            relax();
            if (turn % 64) continue;
            const int64_t now = monotonic_ns();
            if (!may_spin() || now - start > kWorkerSpinNs || now - last > kPreemptedNs) break;
            last = now;
        }
        self.asleep.store(1);
        g_pool.sleepers.fetch_add(1);
        while (g_pool.openings.load() == 0 && self.asleep.load()) sleep_while(self.asleep, 1);
        g_pool.sleepers.fetch_sub(1);
        self.asleep.store(0);
    }
}

// Wakes up to `count` workers that sleep.
void wake_workers(int count) {
    for (int w = 0; w < g_pool.workers && count > 0; ++w) {
        Worker& worker = g_workers[w];
        if (!worker.asleep.load()) continue;
        if (may_spin()) move_away(worker);
        worker.asleep.store(0);
        wake(worker.asleep, 1);
        --count;
    }
}

void run_as_worker(int own) {
    int64_t ran = 0;
    for (int64_t i; (i = claim(own)) >= 0; ++ran) {
        if (ran == 0 && float_mode() != g_pool.float_mode) set_float_mode(g_pool.float_mode);
        g_pool.body(g_pool.context, i);
    }
    if (ran == 0) return;
    g_pool.done.fetch_add(ran);
    if (g_pool.caller_sleeps.load()) {
        g_pool.caller_sleeps.store(0);
        wake(g_pool.caller_sleeps, 1);
    }
}

// A live object of this kind makes the loader keep the library mapped, so that dlclose cannot pull it from under us.
struct KeepsLibrary {
    ~KeepsLibrary() { t_state.is_worker = false; }
};
thread_local KeepsLibrary t_keeps_library;

void* worker_main(void* arg) {
    Worker& self = *static_cast<Worker*>(arg);
    [[maybe_unused]] volatile void* registered = &t_keeps_library;
    t_state.is_worker = true;
    t_state.depth = 1;
#if defined(__linux__)
    self.tid = static_cast<pid_t>(syscall(SYS_gettid));
    pthread_setname_np(pthread_self(), "tilework");
#elif defined(__APPLE__)
    pthread_setname_np("tilework");
#endif
    for (;;) {
        wait_for_region(self);
        run_as_worker(1 + static_cast<int>(&self - g_workers));
    }
    return nullptr;
}

// In the child only the forking thread is left. If it is inside a region (it forked in a body or in the poll), that
// region is told by `forks` that its workers and their chunks are gone.
void after_fork_in_child() {
    for (int w = 0; w < g_pool.workers; ++w) {
        g_workers[w].asleep.store(0);
        g_workers[w].moved.store(false);
    }
    g_pool.openings.store(0);
    g_pool.sleepers.store(0);
    drop_chunks();
    g_pool.done.store(0);
    g_pool.caller_sleeps.store(0);
    g_pool.workers = 0;
    ++g_pool.forks;
    g_refused.store(false);
    g_pool.busy.store(false);
}

void start_workers(int wanted) {
    if (g_pool.workers >= wanted || g_refused.load(std::memory_order_relaxed)) return;
    static constinit pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, [] { pthread_atfork(nullptr, nullptr, after_fork_in_child); });

    sigset_t all, former;  // a worker inherits the mask: no signal handler ever runs on it
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &former);
    while (g_pool.workers < wanted && !g_refused.load(std::memory_order_relaxed)) {
        Worker& worker = g_workers[g_pool.workers];
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        if (may_spin()) start_away(worker, attributes);
        pthread_t thread;
        if (pthread_create(&thread, &attributes, worker_main, &worker) == 0) {
            ++g_pool.workers;
        } else {
            worker.moved.store(false);
            g_refused.store(true);
        }
        pthread_attr_destroy(&attributes);
    }
    pthread_sigmask(SIG_SETMASK, &former, nullptr);
}

// ---- callers -------------------------------------------------------------------------------------------------------

void wait_for_workers(int64_t chunks) {
    const auto finished = [chunks] { return g_pool.done.load() == chunks; };
    const bool spin = may_spin();
    for (int turn = 0; turn < 256; ++turn) {
        if (finished()) return;
        relax();
    }
    const int64_t start = monotonic_ns();
    for (int64_t waited = 0; waited < kCallerYieldNs; waited = monotonic_ns() - start) {
        if (finished()) return;
        if (spin && waited < kCallerSpinNs) {
            relax();
        } else {
            sched_yield();
        }
    }
    while (!finished()) {
        g_pool.caller_sleeps.store(1);
        if (finished()) break;
        sleep_while(g_pool.caller_sleeps, 1);
    }
    g_pool.caller_sleeps.store(0);
}

bool run_serially(int64_t chunks, Body body, void* context) {
    for (int64_t i = 0; i < chunks; ++i) {
        if (i > 0 && interrupted()) return false;
        body(context, i);
    }
    return !t_state.interrupted;
}

bool run_with_workers(int64_t chunks, Body body, void* context, int wanted) {
    const uint64_t forks = g_pool.forks;
    start_workers(wanted);
    const int helpers = std::min(wanted, g_pool.workers);
    g_pool.body = body;
    g_pool.context = context;
    g_pool.float_mode = float_mode();
    g_pool.done.store(0, std::memory_order_relaxed);
    g_pool.stopped.store(false, std::memory_order_relaxed);
    const int shares = std::min(helpers + 1, kMostShares);
    g_pool.shares.store(shares, std::memory_order_relaxed);
    for (int k = 0; k < shares; ++k) {
        const int64_t n = chunks / shares + (k < chunks % shares);
        g_shares[k].end = k ? g_shares[k - 1].end + n : n;
        g_shares[k].remaining.store(n, std::memory_order_release);
    }
    g_pool.openings.store(helpers);
    const int awake = g_pool.workers - g_pool.sleepers.load();
    if (helpers > awake) wake_workers(helpers - awake);
    t_state.used = std::max(t_state.used, helpers + 1);

    int64_t mine = 0, dropped = 0;
    for (int64_t i; (i = claim(0)) >= 0; ++mine) {
        if (mine > 0 && interrupted()) {
            g_pool.stopped.store(true, std::memory_order_relaxed);
            dropped = 1 + drop_chunks();
            break;
        }
        body(context, i);
    }
    if (g_pool.forks != forks) {
        t_state.interrupted = true;
        return false;
    }
    g_pool.openings.store(0, std::memory_order_relaxed);
    wait_for_workers(chunks - mine - dropped);
    g_pool.busy.store(false, std::memory_order_release);
    return !t_state.interrupted;
}

// ---- a host's threads ----------------------------------------------------------------------------------------------

struct HostRegion {
    Body body;
    void* context;
    uint64_t float_mode;
    std::atomic<int64_t> done;
};

void run_host_chunk(void* region_pointer, int64_t i) {
    auto& region = *static_cast<HostRegion*>(region_pointer);
    const uint64_t mode = float_mode();
    if (mode != region.float_mode) set_float_mode(region.float_mode);
    ++t_state.depth;
    region.body(region.context, i);
    --t_state.depth;
    if (mode != region.float_mode) set_float_mode(mode);
    region.done.fetch_add(1, std::memory_order_acq_rel);
}

bool run_on_host(HostRun run, int64_t chunks, Body body, void* context, int threads) {
    HostRegion region{body, context, float_mode(), {0}};
    t_state.used = std::max(t_state.used, threads);
    run(g_host_pool.load(), chunks, run_host_chunk, &region);
    if (region.done.load(std::memory_order_acquire) != chunks) t_state.interrupted = true;
    return !t_state.interrupted;
}

}  // namespace

bool parallel_chunks(int64_t chunks, void (*body)(void* context, int64_t i), void* context) {
    if (chunks <= 0) return true;
    ThreadState& state = t_state;
    if (state.depth == 0) state.interrupted = false;
    const auto threads = static_cast<int>(std::min<int64_t>(num_threads(), chunks));
    if (const HostRun run = g_host_run.load(std::memory_order_acquire); run && threads > 1)
        return run_on_host(run, chunks, body, context, threads);
    const bool owner = threads > 1 && !g_pool.busy.load(std::memory_order_relaxed) &&
                       !g_pool.busy.exchange(true, std::memory_order_acquire);
    ++state.depth;
    const bool whole =
        owner ? run_with_workers(chunks, body, context, threads - 1) : run_serially(chunks, body, context);
    --state.depth;
    return whole;
}

int num_threads() {
    const ThreadState& state = t_state;
    if (state.depth > 0) return 1;
    const int threads = process_threads();
    return state.limit > 0 ? std::min(state.limit, threads) : threads;
}

void set_num_threads(int n) {
    process_threads();
    g_reason.store("set_num_threads");
    g_refused.store(false);
    g_threads.store(std::clamp(n, 1, kMaxThreads));
}

void set_host_pool(HostRun run, void* pool, int threads) {
    if (run) set_num_threads(threads);
    g_host_pool.store(pool);
    g_host_run.store(run, std::memory_order_release);
}

int set_thread_limit(int n) {
    const int former = t_state.limit;
    t_state.limit = std::max(n, 0);
    return former;
}

const char* thread_count_reason() {
    const int threads = process_threads();
    if (t_state.depth > 0) return "inside a parallel region";
    if (t_state.limit > 0 && t_state.limit < threads) return "limit of the calling thread";
    return g_reason.load();
}

const char* thread_count_error() {
    process_threads();
    return g_default.error[0] ? g_default.error : nullptr;
}

int take_threads_used() {
    const int used = t_state.used;
    t_state.used = 1;
    return used;
}

void set_interrupt_poll(bool (*poll)()) { g_poll.store(poll); }

bool interrupted() {
    ThreadState& state = t_state;
    if (state.is_worker) return g_pool.stopped.load(std::memory_order_relaxed);
    if (state.interrupted) return true;
    bool (*const poll)() = g_poll.load(std::memory_order_acquire);
    if (!poll) return false;
    const int64_t now = monotonic_ns();
    if (now < state.next_poll) return false;
    state.next_poll = now + kPollNs;  // before the poll too: it may run code that comes back here
    const bool stop = poll();
    state.next_poll = monotonic_ns() + kPollNs;
    if (stop) state.interrupted = true;
    return state.interrupted;
}

void clear_interrupted() { t_state.interrupted = false; }

}  // namespace tw
