// Which pixels lie on lines that were found: a bit each.
#pragma once
#include <cstring>

#include "lines/buffer.h"

namespace tw::lines {

class Claims {
public:
    Claims(int64_t height, int64_t width) : pitch_(width / kBits + 2), bits_(height * pitch_) {
        std::memset(bits_.data(), 0, static_cast<size_t>(height * pitch_) * sizeof(uint64_t));
    }

    bool has(int64_t x, int64_t y) const { return bits_[y * pitch_ + word_of(x)] >> bit_of(x) & 1; }

    // Pixels x and its neighbours to the left and right; all lie in the picture.
    void claim_beside(int64_t x, int64_t y) {
        uint64_t* const word = &bits_[y * pitch_ + word_of(x - 1)];
        const int at = bit_of(x - 1);
        word[0] |= uint64_t{7} << at;
        if (at > kBits - 3) word[1] |= uint64_t{7} >> (kBits - at);
    }
    void claim_above(int64_t x, int64_t y) {
        uint64_t *const above = &bits_[(y - 1) * pitch_ + word_of(x)], *const at = above + pitch_,
                        *const below = at + pitch_;
        const uint64_t bit = uint64_t{1} << bit_of(x);
        *above |= bit, *at |= bit, *below |= bit;
    }

private:
    static constexpr int kBits = 64;
    static int64_t word_of(int64_t x) { return x >> 6; }
    static int bit_of(int64_t x) { return static_cast<int>(x & (kBits - 1)); }

    int64_t pitch_;  // words of a row
    Buffer<uint64_t> bits_;
};

}  // namespace tw::lines
