// A C++ program whose own threads do the work: same bits as tilework's pool, and as one thread.
#include <tilework/tilework.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

namespace {

std::atomic<long> parts{0};

void run_on_three(void*, int64_t n, tw_body body, void* context) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t i; (i = next++) < n; ++parts) body(context, i);
    };
    std::thread one(work), two(work);
    work();
    one.join();
    two.join();
}

void run_nothing(void*, int64_t, tw_body, void*) {}

}  // namespace

int main() {
    const int64_t size = 300;
    std::vector<float> a(size * size), b(size * size), own(size * size), hosted(size * size), single(size * size);
    for (size_t i = 0; i < a.size(); ++i) {
        a[i] = static_cast<float>(i % 17) - 8;
        b[i] = static_cast<float>(i % 13) / 7;
    }
    int64_t shape[] = {size, size};
    auto tensor = [&](std::vector<float>& v) {
        return DLTensor{v.data(), {kDLCPU, 0}, 2, {kDLFloat, 32, 1}, shape, nullptr, 0};
    };
    DLTensor at = tensor(a), bt = tensor(b);
    const DLTensor* in[] = {&at, &bt};
    tw_job job{};
    job.struct_size = sizeof job;
    job.op = "matmul";
    job.in = in;
    job.n_in = 2;
    auto product = [&](std::vector<float>& y) {
        DLTensor yt = tensor(y);
        const DLTensor* out[] = {&yt};
        const tw_status status = tw_call(&job, out, 1);
        if (status != TW_OK) std::printf("%s: %s\n", tw_last_error()->op, tw_last_error()->text);
        return status;
    };
    if (tw_set_num_threads(2) || product(own)) return 1;
    if (tw_set_num_threads(1) || product(single)) return 2;
    if (tw_set_thread_pool(run_on_three, nullptr, 3) || product(hosted)) return 3;
    if (parts.load() < 2) return 4;
    if (tw_set_thread_pool(run_nothing, nullptr, 3) || product(hosted = own) != TW_INTERRUPTED) return 5;
    if (tw_set_thread_pool(run_on_three, nullptr, 3) || product(hosted)) return 6;
    if (tw_set_thread_pool(run_on_three, nullptr, 0) != TW_ARGUMENT) return 7;
    if (tw_set_thread_pool(nullptr, nullptr, 0) || product(own)) return 8;
    const size_t bytes = sizeof(float) * own.size();
    if (std::memcmp(own.data(), hosted.data(), bytes) || std::memcmp(own.data(), single.data(), bytes)) return 9;
    tw_trim();
    std::printf("same bits\n");
    return 0;
}
