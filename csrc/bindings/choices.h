// The choices of an attribute as its table has them, "a|b|c".
#pragma once
#include <cstring>

namespace tw {

// Index of `text` in "a|b|c", -1 if absent.
inline int choice_index(const char* choices, const char* text) {
    const size_t length = std::strlen(text);
    int index = 0;
    for (const char* p = choices;; ++index) {
        const char* end = std::strchr(p, '|');
        const size_t n = end ? static_cast<size_t>(end - p) : std::strlen(p);
        if (n == length && std::memcmp(p, text, n) == 0) return index;
        if (!end) return -1;
        p = end + 1;
    }
}

}  // namespace tw
