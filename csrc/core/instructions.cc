#include "core/instructions.h"

#include <charconv>
#include <cstdio>
#include <cstring>

namespace tw {
namespace {

constexpr const char* kArgument = "program";
constexpr int64_t kMaxText = 1 << 13;

struct Row {
    const char* name;
    int8_t sources, numbers;
    Kind kind;
};
constexpr Row kTable[] = {
#define TW_ROW(name, sources, numbers, kind) {#name, sources, numbers, Kind::kind},
    TW_INSTRUCTIONS(TW_ROW)
#undef TW_ROW
};
constexpr int kCodes = static_cast<int>(sizeof kTable / sizeof kTable[0]);

const char* name_of(Code code) { return kTable[static_cast<int>(code)].name; }

// A word of the text, cut for messages.
struct Word {
    const char* at;
    int n;
    bool is(const char* name) const {
        return n == static_cast<int>(std::strlen(name)) && std::memcmp(at, name, static_cast<size_t>(n)) == 0;
    }
};

// A word as messages show it: cut, and '?' for bytes that are not printable ASCII.
struct WordText {
    char text[41];
};
WordText shown(Word w) {
    WordText t = {};
    for (int k = 0; k < w.n && k < 40; ++k) t.text[k] = w.at[k] >= ' ' && w.at[k] <= '~' ? w.at[k] : '?';
    return t;
}

class Reader {
public:
    Reader(const char* text, int64_t bytes) : at_(text), end_(text + bytes) {}
    // The next word, empty before ';' and at the end.
    Word word() {
        skip_blanks();
        const char* const first = at_;
        while (at_ < end_ && !is_blank(*at_) && *at_ != ';') ++at_;
        return {first, static_cast<int>(at_ - first)};
    }
    // Past the ';' that ends an instruction; false at the end of the text.
    bool next() {
        skip_blanks();
        if (at_ == end_) return false;
        ++at_;
        return true;
    }

private:
    static bool is_blank(char c) { return c == ' ' || c == '\n'; }
    void skip_blanks() {
        while (at_ < end_ && is_blank(*at_)) ++at_;
    }

    const char *at_, *end_;
};

template <class T>
bool number_of(Word w, T& x) {
    const auto [stop, error] = std::from_chars(w.at, w.at + w.n, x);
    return w.n > 0 && error == std::errc() && stop == w.at + w.n;
}

// "$3"; false for anything else.
bool value_of(Word w, int64_t& k) { return w.n > 1 && w.at[0] == '$' && number_of(Word{w.at + 1, w.n - 1}, k); }

Status no_such_value(int at, Word w, int known) {
    return fail(Status::attr, kArgument, "program takes %s in instruction %d; want one of $0 to $%d, made before it",
                shown(w).text, at, known - 1);
}

Status read_source(Word w, int at, int known, const Row& row, Instruction& i, int k) {
    int64_t value = 0;
    if (value_of(w, value)) {
        if (value < 0 || value >= known) return no_such_value(at, w, known);
        i.source[k] = static_cast<int16_t>(value);
        return Status::ok;
    }
    i.source[k] = kNumber;
    if (number_of(w, i.number[k])) return Status::ok;
    if (w.n == 0)
        return fail(Status::attr, kArgument, "program gives instruction %d, %s, %d sources; want %d", at, row.name, k,
                    row.sources);
    return fail(Status::attr, kArgument, "program has '%s' in instruction %d, %s; want a value like $0 or a number",
                shown(w).text, at, row.name);
}

Status want_number(bool good, Word w, int at, const Row& row, const char* want) {
    if (good) return Status::ok;
    return fail(Status::attr, kArgument, "program has '%s' in instruction %d, %s; want %s", shown(w).text, at, row.name,
                want);
}

Status read_numbers(Reader& reader, int at, const Row& row, Instruction& i) {
    if (i.kind == Kind::conversion) {
        const Word w = reader.word();
        for (int d = 0; d < kDTypes; ++d)
            if (w.is(kDTypeName[d])) i.dtype = static_cast<DType>(d);
        const bool good = i.dtype != DType::none && (is_float(i.dtype) || i.dtype == DType::boolean);
        return want_number(good, w, at, row, "float32, float64, float16, bfloat16 or bool");
    }
    if (i.kind == Kind::draw) {
        Word w = reader.word();
        const bool good = number_of(w, i.constant[0]) && i.constant[0] >= 0 && i.constant[0] <= 1;
        TW_TRY(want_number(good, w, at, row, "a probability, 0 to 1"));
        for (int64_t& word : i.draw) {
            w = reader.word();
            TW_TRY(want_number(number_of(w, word) && word >= 0, w, at, row, "a seed and an offset, integers from 0"));
        }
        return Status::ok;
    }
    for (int k = 0; k < row.numbers; ++k) {
        const Word w = reader.word();
        const bool good = number_of(w, i.constant[k]) && i.constant[k] == i.constant[k];
        TW_TRY(want_number(good, w, at, row, row.numbers == 1 ? "one number of its own" : "two numbers of its own"));
    }
    if ((i.code == Code::clip || i.code == Code::clip_dx) && !(i.constant[0] <= i.constant[1]))
        return fail(Status::attr, kArgument,
                    "program clips to low=%g above high=%g in instruction %d; want low <= high", i.constant[0],
                    i.constant[1], at);
    return Status::ok;
}

Status read_results(Reader& reader, Program& p) {
    const int known = p.n_operands + p.n;
    for (Word w = reader.word(); w.n; w = reader.word()) {
        int64_t value = 0;
        if (!value_of(w, value) || value < p.n_operands || value >= known)
            return fail(Status::attr, kArgument, "program returns '%s'; want values that it makes, $%d to $%d",
                        shown(w).text, p.n_operands, known - 1);
        for (int k = 0; k < p.n_results; ++k)
            if (p.result[k] == value)
                return fail(Status::attr, kArgument, "program returns %s twice; want each value once", shown(w).text);
        if (p.n_results == kMaxOutputs)
            return fail(Status::attr, kArgument, "program returns more than %d values; want fewer", kMaxOutputs);
        p.result[p.n_results++] = static_cast<int16_t>(value);
    }
    if (p.n_results == 0) return fail(Status::attr, kArgument, "program returns nothing; want at least one value");
    if (reader.next()) return fail(Status::attr, kArgument, "program goes on behind its return; want that to be last");
    return Status::ok;
}

Status read_instruction(Reader& reader, Word name, Program& p) {
    int code = 0;
    while (code < kCodes && !name.is(kTable[code].name)) ++code;
    if (code == kCodes)
        return fail(Status::attr, kArgument, "program has '%s' as instruction %d; want an op such as add, gelu or sum",
                    shown(name).text, p.n);
    if (p.n == kMaxInstructions)
        return fail(Status::attr, kArgument, "program has more than %d instructions; want fewer", kMaxInstructions);
    const Row& row = kTable[code];
    Instruction& i = p.instruction[p.n];
    i = {};
    i.code = static_cast<Code>(code);
    i.kind = row.kind;
    i.dtype = DType::none;
    i.n_sources = row.sources;
    bool takes_value = false;
    for (int k = 0; k < row.sources; ++k) {
        TW_TRY(read_source(reader.word(), p.n, p.n_operands + p.n, row, i, k));
        takes_value |= i.source[k] != kNumber;
    }
    if (!takes_value)
        return fail(Status::attr, kArgument, "program gives instruction %d, %s, numbers alone; want a value among them",
                    p.n, row.name);
    TW_TRY(read_numbers(reader, p.n, row, i));
    if (const Word w = reader.word(); w.n)
        return fail(Status::attr, kArgument, "program has '%s' behind instruction %d, %s; want ';' there",
                    shown(w).text, p.n, row.name);
    ++p.n;
    return Status::ok;
}

Status read_all(const char* text, int64_t bytes, Program& p) {
    Reader reader(text, bytes);
    int folds = 0;
    do {
        const Word name = reader.word();
        if (name.n == 0) return fail(Status::attr, kArgument, "program lacks instruction %d; want a name there", p.n);
        if (name.is("return")) {
            if (p.n == 0) return fail(Status::attr, kArgument, "program has no instruction; want at least one");
            return read_results(reader, p);
        }
        TW_TRY(read_instruction(reader, name, p));
        folds += p.instruction[p.n - 1].kind == Kind::fold;
        if (folds > kMaxFolds)
            return fail(Status::attr, kArgument, "program folds more than %d values; want fewer", kMaxFolds);
    } while (reader.next());
    p.result[p.n_results++] = static_cast<int16_t>(p.n_operands + p.n - 1);
    return Status::ok;
}

struct Last {
    bool good;
    int64_t bytes;
    Program program;
    char text[kMaxText];
};
thread_local Last t_last;

}  // namespace

Status read_program(const char* text, int64_t bytes, int n_operands, const Program*& program) {
    Last& last = t_last;
    program = &last.program;
    if (last.good && bytes == last.bytes && n_operands == last.program.n_operands &&
        std::memcmp(text, last.text, static_cast<size_t>(bytes)) == 0)
        return Status::ok;
    if (bytes > kMaxText)
        return fail(Status::attr, kArgument, "program has %lld bytes; want at most %lld", static_cast<long long>(bytes),
                    static_cast<long long>(kMaxText));
    last.good = false;
    last.program.n_operands = n_operands;
    last.program.n = last.program.n_results = 0;
    TW_TRY(read_all(text, bytes, last.program));
    std::memcpy(last.text, text, static_cast<size_t>(bytes));
    last.bytes = bytes;
    last.good = true;
    return Status::ok;
}

namespace {

// The dtype that the sources from `first` on share.
Status shared_dtype(const Instruction& i, int at, const ProgramTypes& t, int first, DType& dtype) {
    dtype = DType::none;
    for (int k = first; k < i.n_sources; ++k) {
        if (i.source[k] == kNumber) continue;
        const DType own = t.dtype[i.source[k]];
        if (!is_float(own))
            return fail(Status::dtype, kArgument,
                        "program gives instruction %d, %s, $%d of bool; want a float, by cast", at, name_of(i.code),
                        i.source[k]);
        if (dtype != DType::none && own != dtype)
            return fail(Status::dtype, kArgument,
                        "program gives instruction %d, %s, $%d of %s beside %s; want one dtype", at, name_of(i.code),
                        i.source[k], name_of(own), name_of(dtype));
        dtype = own;
    }
    return Status::ok;
}

Status type_instruction(const Instruction& i, int at, ProgramTypes& t, DType& dtype) {
    switch (i.kind) {
        case Kind::conversion:
            if (i.source[0] == kNumber || (is_float(i.dtype) && (i.dtype == DType::f64) != (t.wide == DType::f64)))
                return fail(Status::dtype, kArgument,
                            "program casts to %s in instruction %d among %s; want no mix of "
                            "float64 with narrower floats",
                            name_of(i.dtype), at, name_of(t.wide));
            dtype = i.dtype;
            return Status::ok;
        case Kind::choice:
            if (i.source[0] == kNumber || t.dtype[i.source[0]] != DType::boolean)
                return fail(Status::dtype, kArgument,
                            "program chooses in instruction %d by what is not bool; want a "
                            "comparison or a bool operand",
                            at);
            TW_TRY(shared_dtype(i, at, t, 1, dtype));
            if (dtype == DType::none)
                return fail(Status::dtype, kArgument,
                            "program chooses in instruction %d between numbers; want a value "
                            "among them",
                            at);
            return Status::ok;
        default:
            TW_TRY(shared_dtype(i, at, t, 0, dtype));
            if (i.kind == Kind::comparison) dtype = DType::boolean;
            return Status::ok;
    }
}

}  // namespace

Status type_program(const Program& p, const View* operands, ProgramTypes& t) {
    t.wide = DType::none;
    for (int k = 0; k < p.n_operands; ++k) {
        const DType own = operands[k].dtype;
        if (!is_float(own) && own != DType::boolean)
            return fail(Status::dtype, "operands",
                        "operands[%d] has dtype %s; want float32, float64, float16, bfloat16 or bool", k, name_of(own));
        t.dtype[k] = own;
        t.per_row[k] = false;
        if (!is_float(own)) continue;
        const DType wide = own == DType::f64 ? DType::f64 : DType::f32;
        if (t.wide != DType::none && wide != t.wide)
            return fail(Status::dtype, "operands",
                        "operands[%d] has dtype %s beside others; want no mix of float64 with narrower floats", k,
                        name_of(own));
        t.wide = wide;
    }
    if (t.wide == DType::none) t.wide = DType::f32;
    for (int at = 0; at < p.n; ++at) {
        const Instruction& i = p.instruction[at];
        const int value = p.n_operands + at;
        TW_TRY(type_instruction(i, at, t, t.dtype[value]));
        bool per_row = true;
        for (int k = 0; k < i.n_sources; ++k)
            if (i.source[k] != kNumber) per_row &= t.per_row[i.source[k]];
        if (per_row && (i.kind == Kind::fold || i.kind == Kind::draw))
            return fail(Status::attr, kArgument,
                        "program gives instruction %d, %s, a value that is folded already; want "
                        "whole ones",
                        at, name_of(i.code));
        t.per_row[value] = per_row || i.kind == Kind::fold;
    }
    return Status::ok;
}

}  // namespace tw
