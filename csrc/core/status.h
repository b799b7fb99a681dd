// Error codes and the thread's last error text. Kernels return a Status; nothing throws or prints.
#pragma once

namespace tw {

enum class Status : int { ok, shape, dtype, attr, index, unsupported, memory, interrupted, internal, singular };

struct ErrorText {
    Status code;
    char op[48];        // filled by the caller of the op
    char argument[48];  // the operand or attribute to blame, "" if none
    char text[512];     // what is wrong; what would be right
};

// Records the text for this thread and returns `code`, so that checks read `return fail(...)`.
Status fail(Status code, const char* argument, const char* format, ...) __attribute__((format(printf, 3, 4)));
ErrorText& last_error();

}  // namespace tw

#define TW_TRY(expr)                                                           \
    do {                                                                       \
        if (::tw::Status tw_s = (expr); tw_s != ::tw::Status::ok) return tw_s; \
    } while (0)
