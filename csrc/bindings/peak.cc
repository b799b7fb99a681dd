#include "bindings/peak.h"

#include <atomic>
#include <cstring>
#include <ctime>
#include <thread>
#include <vector>

#include "core/memory.h"
#include "core/profile.h"

namespace tw::bindings {
namespace {

constexpr int64_t kRounds = 4096;           // of a register loop between two looks at the clock: some 20 us
constexpr int64_t kSlice = int64_t{1} << 20;  // bytes a memory loop moves between two looks, at least

struct Worker {
    void* buffer = nullptr;
    double operations = 0;
    int64_t end = 0;
    int64_t cpu = 0;  // nanoseconds on a CPU between the common start and the end
    alignas(64) unsigned char sink[kPeakSink];
};

double once(const PeakLoops& loops, PeakKind kind, Worker& w, int64_t bytes) {
    char* const half = static_cast<char*>(w.buffer) + bytes / 2;
    switch (kind) {
        case PeakKind::fma_f32: return loops.fma_f32(kRounds, w.sink);
        case PeakKind::fma_f64: return loops.fma_f64(kRounds, w.sink);
        case PeakKind::dot_bf16: return loops.dot_bf16(kRounds, w.sink);
        case PeakKind::dot_i8: return loops.dot_i8(kRounds, w.sink);
        case PeakKind::read: return loops.read(w.buffer, bytes, w.sink);
        case PeakKind::copy: return loops.copy(half, w.buffer, bytes / 2);
        case PeakKind::copy_streamed: return loops.copy_streamed(half, w.buffer, bytes / 2);
        case PeakKind::count: break;
    }
    return 0;
}

int64_t thread_cpu_ns() {
    timespec used;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return static_cast<int64_t>(used.tv_sec) * 1'000'000'000 + used.tv_nsec;
}

}  // namespace

PeakRun run_peak(Tier tier, PeakKind kind, double seconds, int threads, int64_t bytes) {
    const PeakLoops& loops = peak_loops(tier);
    bytes = kind < PeakKind::read ? 0 : (bytes + 4095) / 4096 * 4096;
    std::vector<Worker> workers(static_cast<size_t>(threads));
    bool good = true;
    for (Worker& w : workers)
        if (bytes > 0 && !(w.buffer = pool_take(static_cast<size_t>(bytes)))) good = false;

    std::atomic<int> ready{0};
    std::atomic<int64_t> start{0};
    auto work = [&](Worker& w) {
        if (bytes > 0) std::memset(w.buffer, 1, static_cast<size_t>(bytes));  // first touch, and into the caches
        once(loops, kind, w, bytes);
        if (ready.fetch_add(1) + 1 == threads) start.store(monotonic_ns());
        while (start.load() == 0) std::this_thread::yield();
        const int64_t cpu = thread_cpu_ns();
        const int64_t stop = start.load() + static_cast<int64_t>(seconds * 1e9);
        do {
            int64_t moved = 0;
            do {
                w.operations += once(loops, kind, w, bytes);
                moved += bytes;
            } while (bytes > 0 && moved < kSlice);
            w.end = monotonic_ns();
        } while (w.end < stop);
        w.cpu = thread_cpu_ns() - cpu;
    };
    if (good) {
        std::vector<std::thread> others;
        for (int t = 1; t < threads; ++t) others.emplace_back([&, t] { work(workers[static_cast<size_t>(t)]); });
        work(workers[0]);
        for (std::thread& t : others) t.join();
    }

    PeakRun run{0, good ? 0.0 : -1.0};
    for (Worker& w : workers) {
        run.operations += w.operations;
        const int64_t wall = w.end - start.load();
        const double took = static_cast<double>(threads == 1 && w.cpu < wall ? w.cpu : wall) * 1e-9;
        if (good && took > run.seconds) run.seconds = took;
        if (w.buffer) pool_give(w.buffer, static_cast<size_t>(bytes));
    }
    return run;
}

}  // namespace tw::bindings
