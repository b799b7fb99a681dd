// The thread's last error. The text is built aside and cut at a character border, so that it may quote a former one
// and is always valid UTF-8.
#include "core/status.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace tw {
namespace {

constinit thread_local ErrorText t_error{};

// Ends `text` with "..." no later than `room` bytes, never inside a UTF-8 character.
void cut(char* text, size_t room) {
    size_t end = room - 4;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    memcpy(text + end, "...", 4);
}

}  // namespace

ErrorText& last_error() { return t_error; }

Status fail(Status code, const char* argument, const char* format, ...) {
    ErrorText made{};
    made.code = code;
    snprintf(made.argument, sizeof made.argument, "%s", argument ? argument : "");
    va_list args;
    va_start(args, format);
    const int length = vsnprintf(made.text, sizeof made.text, format, args);
    va_end(args);
    if (length < 0) {
        snprintf(made.text, sizeof made.text, "the error text could not be formatted");
    } else if (static_cast<size_t>(length) >= sizeof made.text) {
        cut(made.text, sizeof made.text);
    }
    t_error = made;
    return code;
}

}  // namespace tw
