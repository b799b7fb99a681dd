// Memory from the pool for the length of a call.
#pragma once
#include <new>
#include <utility>

#include "core/memory.h"

namespace tw::lines {

template <class T>
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(int64_t n) : bytes_(static_cast<size_t>(n) * sizeof(T)), data_(static_cast<T*>(pool_take(bytes_))) {
        if (!data_) throw std::bad_alloc();
    }
    ~Buffer() {
        if (data_) pool_give(data_, bytes_);
    }
    Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(other.data_) { other.data_ = nullptr; }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(bytes_, other.bytes_);
        std::swap(data_, other.data_);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    size_t bytes_ = 0;
    T* data_ = nullptr;
};

}  // namespace tw::lines
