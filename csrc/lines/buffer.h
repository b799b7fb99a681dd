// Memory from the pool for the length of a call.
#pragma once
#include <new>

#include "core/memory.h"

namespace tw::lines {

template <class T>
class Buffer {
public:
    explicit Buffer(int64_t n) : bytes_(static_cast<size_t>(n) * sizeof(T)), data_(static_cast<T*>(pool_take(bytes_))) {
        if (!data_) throw std::bad_alloc();
    }
    ~Buffer() {
        if (data_) pool_give(data_, bytes_);
    }
    Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(other.data_) { other.data_ = nullptr; }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    T* data() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    size_t bytes_;
    T* data_;
};

}  // namespace tw::lines
