#include "core/subscripts.h"

#include <cstdio>
#include <cstring>

#include "core/check.h"

namespace tw {
namespace {

constexpr const char* kArgument = "subscripts";
constexpr int kMaxName = 64;  // bytes of an operand's name

// A resolved text is at most a term of name, 8 letters, dots and comma per operand.
thread_local char t_resolved[(kMaxInputs + 1) * 24 + 8];

long long ll(int64_t v) { return static_cast<long long>(v); }

int letter_of(char c) { return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? 26 + c - 'a' : -1; }
char letter(int label) { return static_cast<char>(label < 26 ? 'A' + label : 'a' + label - 26); }

struct LabelText {
    char text[8];
};
LabelText label_text(int label) {
    LabelText t = {"'...'"};
    if (label < kLetters) std::snprintf(t.text, sizeof t.text, "'%c'", letter(label));
    return t;
}

// One side of a comma as it is written.
struct Written {
    const char* name;
    int name_length;
    int n;                      // letters
    uint8_t letter[kMaxDims];
    int dots;                   // letters before the ellipsis, -1 without one
};

class Reader {
public:
    Reader(const char* text, int64_t n) : at_(text), begin_(text), end_(text + n) {
        named_ = n > 0 && std::memchr(text, '_', static_cast<size_t>(n)) != nullptr;
    }
    bool named() const { return named_; }
    bool done() {
        skip_spaces();
        return at_ == end_;
    }
    bool take(char c) {
        skip_spaces();
        if (at_ == end_ || *at_ != c) return false;
        return ++at_, true;
    }
    Status take_arrow(bool& found) {
        found = take('-');
        if (!found) return Status::ok;
        if (at_ == end_ || *at_ != '>')
            return fail(Status::attr, kArgument, "subscripts has '-' without '>'; want '->'");
        return ++at_, Status::ok;
    }

    // Up to the next ',' or '-' or the end.
    Status term(Written& w) {
        w.name = nullptr;
        w.name_length = w.n = 0;
        w.dots = -1;
        skip_spaces();
        if (named_) TW_TRY(name(w));
        for (; at_ < end_ && *at_ != ',' && *at_ != '-'; ++at_) {
            const int l = letter_of(*at_);
            if (l >= 0) {
                if (w.n == kMaxDims)
                    return fail(Status::attr, kArgument,
                                "subscripts has more than %d letters in a row; want at most %d axes", kMaxDims,
                                kMaxDims);
                w.letter[w.n++] = static_cast<uint8_t>(l);
            } else if (*at_ == (named_ ? '*' : '.')) {
                if (!named_ && (end_ - at_ < 3 || at_[1] != '.' || at_[2] != '.'))
                    return fail(Status::attr, kArgument, "subscripts has dots that are no ellipsis; want '...'");
                if (w.dots >= 0)
                    return fail(Status::attr, kArgument, "subscripts has two ellipses in one term; want at most one");
                w.dots = w.n;
                if (!named_) at_ += 2;
            } else if (*at_ != ' ') {
                return unexpected();
            }
        }
        return Status::ok;
    }

private:
    void skip_spaces() {
        while (at_ < end_ && *at_ == ' ') ++at_;
    }
    Status unexpected() const {
        const auto c = static_cast<unsigned char>(*at_);
        char shown[8];
        std::snprintf(shown, sizeof shown, c > ' ' && c < 127 ? "'%c'" : "0x%02x", c);
        return fail(Status::attr, kArgument, "subscripts has %s at byte %lld; want %s", shown, ll(at_ - begin_),
                    named_ ? "terms like a_ij, with letters for axes and '*', separated by ',' and '->'"
                           : "letters, '...', ',' and '->'");
    }
    Status name(Written& w) {
        w.name = at_;
        while (at_ < end_ && (letter_of(*at_) >= 0 || (at_ > w.name && *at_ >= '0' && *at_ <= '9')) &&
               at_ - w.name < kMaxName)
            ++at_;
        w.name_length = static_cast<int>(at_ - w.name);
        if (w.name_length == 0 || at_ == end_ || *at_ != '_') {
            if (at_ < end_ && *at_ != ',' && *at_ != '-' && *at_ != '_' && *at_ != ' ') return unexpected();
            return fail(Status::attr, kArgument,
                        "subscripts has a term without a name beside terms that have one; want a_ij everywhere");
        }
        ++at_;
        return Status::ok;
    }

    const char *at_, *begin_, *end_;
    bool named_;
};

// The axes an ellipsis stands for get the labels that belong to their distance from its end.
void spell_out(const Written& w, int ndim, Term& t) {
    const int hidden = ndim - w.n;
    t.n = 0;
    for (int i = 0; i <= w.n; ++i) {
        for (int h = hidden; w.dots == i && h > 0; --h) t.label[t.n++] = static_cast<uint8_t>(kLetters + h - 1);
        if (i < w.n) t.label[t.n++] = w.letter[i];
    }
}

Status spell_operand(const Written& w, int operand, const View& x, Term& t) {
    t.operand = operand;
    if (w.n > x.ndim || (w.dots < 0 && w.n < x.ndim))
        return fail(Status::shape, "operands",
                    "operands[%d] has shape %s but subscripts gives it %d letters; want %s%d", operand,
                    shape_text(x).text, w.n, w.dots < 0 ? "" : "at most ", x.ndim);
    spell_out(w, x.ndim, t);
    return Status::ok;
}

Status measure(const View* operands, Subscripts& s, int k) {
    const Term& t = s.term[k];
    const View& x = operands[t.operand];
    for (int d = 0; d < t.n; ++d) {
        const int l = t.label[d];
        const int64_t n = x.shape[d];
        for (int e = 0; e < d; ++e)
            if (t.label[e] == l && x.shape[e] != n)
                return fail(Status::shape, "operands",
                            "operands[%d] has shape %s but %s stands for two of its axes; want them equal", t.operand,
                            shape_text(x).text, label_text(l).text);
        if (s.size[l] == kUnseen || s.size[l] == 1) {
            s.size[l] = n;
        } else if (n != 1 && n != s.size[l]) {
            return fail(Status::shape, "operands",
                        "operands[%d] has size %lld along %s, but an operand before it has %lld; want the same, or 1",
                        t.operand, ll(n), label_text(l).text, ll(s.size[l]));
        }
    }
    return Status::ok;
}

// Without "->": the ellipsis, then the letters that occur once, sorted.
Status imply_result(const Subscripts& s, int hidden, Written& w) {
    uint64_t seen = 0, again = 0;
    for (int k = 0; k < s.n_terms; ++k)
        for (int i = 0; i < s.term[k].n; ++i) {
            again |= seen & bit(s.term[k].label[i]);
            seen |= bit(s.term[k].label[i]);
        }
    w.n = 0;
    w.dots = hidden > 0 ? 0 : -1;
    for (int l = 0; l < kLetters; ++l) {
        if (!(seen & ~again & bit(l))) continue;
        if (w.n == kMaxDims)
            return fail(Status::shape, kArgument, "the result would have more than %d axes; want at most %d", kMaxDims,
                        kMaxDims);
        w.letter[w.n++] = static_cast<uint8_t>(l);
    }
    return Status::ok;
}

Status check_result(const Written& w, int hidden, Subscripts& s) {
    const int n = w.n + (w.dots < 0 ? 0 : hidden);
    if (n > kMaxDims)
        return fail(Status::shape, kArgument, "the result would have %d axes; want at most %d", n, kMaxDims);
    if (w.dots < 0 && hidden > 0)
        return fail(Status::attr, kArgument,
                    "subscripts has an ellipsis in an operand but none in the result; want both");
    spell_out(w, n, s.result);
    for (int d = 0; d < n; ++d) {
        const int l = s.result.label[d];
        for (int e = 0; e < d; ++e)
            if (s.result.label[e] == l)
                return fail(Status::attr, kArgument, "subscripts has %s twice in the result; want each label once",
                            label_text(l).text);
        if (s.size[l] == kUnseen)
            return fail(Status::attr, kArgument,
                        "subscripts has %s in the result but in no operand; want labels of operands",
                        label_text(l).text);
        s.result_size[d] = s.size[l];
    }
    return Status::ok;
}

Status check_shaped_result(const Written& w, const Attr& shape, Subscripts& s) {
    if (shape.n > kMaxDims || shape.n < w.n || (w.dots < 0 && shape.n != w.n))
        return fail(Status::attr, "shape",
                    "shape=%s has %d sizes but subscripts gives the result %d letters; want %s%d",
                    attr_text(shape).text, shape.n, w.n, w.dots < 0 ? "" : "at least ", w.n);
    spell_out(w, shape.n, s.result);
    for (int d = 0; d < shape.n; ++d) {
        const int l = s.result.label[d];
        const int64_t n = s.result_size[d] = shape.list[d];
        bool fits = n >= 0 && n < kMaxSize && (s.size[l] == kUnseen || n == 1 || n == s.size[l] || s.size[l] == 1);
        for (int e = 0; e < d; ++e) fits = fits && (s.result.label[e] != l || s.result_size[e] == n);
        if (!fits)
            return fail(Status::attr, "shape", "shape=%s has %lld along %s; want the size it has in the operands, or 1",
                        attr_text(shape).text, ll(n), label_text(l).text);
    }
    return Status::ok;
}

// ---- rewriting ------------------------------------------------------------------------------------------------------

void write_term(char*& to, int name, bool named, const Written& w) {
    if (named) to += std::snprintf(to, 8, name < 0 ? "y_" : "x%d_", name);
    for (int i = 0; i <= w.n; ++i) {
        if (w.dots == i) to += std::snprintf(to, 4, named ? "*" : "...");
        if (i < w.n) *to++ = letter(w.letter[i]);
    }
}

}  // namespace

uint64_t labels_of(const Term& t) {
    uint64_t mask = 0;
    for (int d = 0; d < t.n; ++d) mask |= bit(t.label[d]);
    return mask;
}

uint64_t kept_labels(const Subscripts& s) {
    uint64_t mask = 0;
    for (int d = 0; d < s.result.n; ++d)
        if (s.result_size[d] != 1) mask |= bit(s.result.label[d]);
    return mask;
}

Status read_subscripts(Attr& text, const View* operands, int n, const Attr* shape, Subscripts& s) {
    Reader reader(text.text, text.n);
    Written term[kMaxInputs], result;
    const Written* named[kMaxInputs];  // the first term of each name
    int n_operands = 0, wildcard = -1;  // -1: none yet, else whether it comes last
    bool arrow = false;
    s.n_terms = 0;
    for (int l = 0; l < kMaxLabels; ++l) s.size[l] = kUnseen;
    do {
        if (s.n_terms == kMaxInputs || (!reader.named() && s.n_terms == n))
            return fail(Status::attr, kArgument, "subscripts has more terms than the %d operands given; want one each",
                        n);
        const int k = s.n_terms++;
        Written& w = term[k];
        TW_TRY(reader.term(w));
        int operand = 0;
        while (reader.named() && operand < n_operands &&
               (named[operand]->name_length != w.name_length ||
                std::memcmp(named[operand]->name, w.name, static_cast<size_t>(w.name_length)) != 0))
            ++operand;
        if (!reader.named()) operand = k;
        if (operand == n_operands) {
            if (operand == n)
                return fail(Status::attr, kArgument, "subscripts names more operands than the %d given; want one each",
                            n);
            named[n_operands++] = &w;
        }
        if (reader.named() && w.dots >= 0 && w.n > 0) {
            if ((w.dots != 0 && w.dots != w.n) || (wildcard >= 0 && wildcard != (w.dots != 0)))
                return fail(Status::attr, kArgument,
                            "subscripts has '*' between axes, or first in one term and last in another; "
                            "want it first everywhere or last everywhere");
            wildcard = w.dots != 0;
        }
        TW_TRY(spell_operand(w, operand, operands[operand], s.term[k]));
        TW_TRY(measure(operands, s, k));
        if (reader.take(',')) continue;
        TW_TRY(reader.take_arrow(arrow));
        break;
    } while (true);
    if (n_operands != n)
        return fail(Status::attr, kArgument, "subscripts has terms for %d operands but %d are given; want one each",
                    n_operands, n);
    int hidden = 0;
    for (int k = 0; k < s.n_terms; ++k)
        if (s.term[k].n - term[k].n > hidden) hidden = s.term[k].n - term[k].n;
    if (arrow) {
        TW_TRY(reader.term(result));
        if (!reader.done())
            return fail(Status::attr, kArgument,
                        "subscripts has text after the result; want one result and no second '->'");
        for (int k = 0; reader.named() && k < n_operands; ++k)
            if (named[k]->name_length == result.name_length &&
                std::memcmp(named[k]->name, result.name, static_cast<size_t>(result.name_length)) == 0)
                return fail(Status::attr, kArgument,
                            "subscripts gives the result the name of an operand; want another");
    } else if (reader.named() || shape) {
        return fail(Status::attr, kArgument, "subscripts has no '->'; want the result named behind one");
    } else {
        TW_TRY(imply_result(s, hidden, result));
    }
    TW_TRY(shape ? check_shaped_result(result, *shape, s) : check_result(result, hidden, s));

    char* to = t_resolved;
    const bool keep_names = reader.named() && s.n_terms > n;
    for (int k = 0; k < s.n_terms; ++k) {
        if (k) *to++ = ',';
        write_term(to, s.term[k].operand, keep_names, term[k]);
    }
    *to++ = '-', *to++ = '>';
    write_term(to, -1, keep_names, result);
    text.text = t_resolved;
    text.n = static_cast<int32_t>(to - t_resolved);
    return Status::ok;
}

// ---- order ----------------------------------------------------------------------------------------------------------

namespace {

constexpr int kExact = 8;

double elements(const Subscripts& s, uint64_t labels) {
    double n = 1;
    for (; labels; labels &= labels - 1) n *= static_cast<double>(s.size[__builtin_ctzll(labels)]);
    return n;
}

uint64_t long_labels(const Subscripts& s, const Term& t) {
    uint64_t mask = labels_of(t);
    for (int d = 0; d < t.n; ++d)
        if (s.size[t.label[d]] <= 1) mask &= ~bit(t.label[d]);
    return mask;
}

// Every way to halve every subset of the terms.
struct Subsets {
    double cost[1 << kExact];
    uint64_t labels[1 << kExact];  // of the product of a subset, after what it alone has is summed
    uint8_t left[1 << kExact];
};

bool exact_order(const Subscripts& s, const uint64_t* term, uint64_t result, double largest, Order& order) {
    Subsets best;
    const int n = s.n_terms, all = (1 << n) - 1;
    const double never = 1e300;
    uint64_t within[1 << kExact];
    within[0] = 0;
    for (int set = 1; set <= all; ++set) {
        const int low = __builtin_ctz(static_cast<unsigned>(set));
        within[set] = within[set & (set - 1)] | term[low];
    }
    for (int set = 1; set <= all; ++set) {
        best.labels[set] = within[set] & (within[all & ~set] | result);
        best.cost[set] = never;
        best.left[set] = 0;
        if ((set & (set - 1)) == 0) {
            best.cost[set] = 0;
            continue;
        }
        if (set != all && elements(s, best.labels[set]) > largest) continue;
        // Each halving once: the part with the first term is the left one.
        const int first = set & -set;
        for (int left = (set - 1) & set; left > 0; left = (left - 1) & set) {
            if (!(left & first)) continue;
            const int right = set & ~left;
            const double cost =
                best.cost[left] + best.cost[right] + elements(s, best.labels[left] | best.labels[right]);
            if (cost < best.cost[set]) best.cost[set] = cost, best.left[set] = static_cast<uint8_t>(left);
        }
    }
    if (best.cost[all] >= never) return false;
    // Halves in reverse order of their making; a product stands where its first term stood.
    int stack[2 * kExact], depth = 0, step = n - 1;
    stack[depth++] = all;
    while (depth) {
        const int set = stack[--depth];
        if ((set & (set - 1)) == 0) continue;
        const int left = best.left[set], right = set & ~left;
        --step;
        order.first[step] = static_cast<uint8_t>(__builtin_ctz(static_cast<unsigned>(left)));
        order.second[step] = static_cast<uint8_t>(__builtin_ctz(static_cast<unsigned>(right)));
        stack[depth++] = left, stack[depth++] = right;
    }
    return true;
}

// The pair whose product shrinks most, or grows least, again and again.
bool greedy_order(const Subscripts& s, const uint64_t* terms, uint64_t result, double largest, Order& order) {
    uint64_t term[kMaxInputs];
    bool gone[kMaxInputs] = {};
    for (int k = 0; k < s.n_terms; ++k) term[k] = terms[k];
    for (int step = 0; step < s.n_terms - 1; ++step) {
        double best = 0;
        int first = -1, second = -1;
        for (int i = 0; i < s.n_terms; ++i) {
            for (int j = i + 1; j < s.n_terms && !gone[i]; ++j) {
                if (gone[j]) continue;
                uint64_t rest = result;
                for (int k = 0; k < s.n_terms; ++k)
                    if (!gone[k] && k != i && k != j) rest |= term[k];
                const double made = elements(s, (term[i] | term[j]) & rest);
                if (step < s.n_terms - 2 && made > largest) continue;
                const double growth = made - elements(s, term[i]) - elements(s, term[j]);
                if (first < 0 || growth < best) best = growth, first = i, second = j;
            }
        }
        if (first < 0) return false;
        uint64_t rest = result;
        for (int k = 0; k < s.n_terms; ++k)
            if (!gone[k] && k != first && k != second) rest |= term[k];
        term[first] = (term[first] | term[second]) & rest;
        gone[second] = true;
        order.first[step] = static_cast<uint8_t>(first);
        order.second[step] = static_cast<uint8_t>(second);
    }
    return true;
}

// The last orders this thread found: a search for 8 terms takes longer than many contractions.
struct Remembered {
    int n_terms;
    uint64_t term[kMaxInputs], result;
    int64_t size[kMaxLabels];
    double largest;
    Order order;
};
constexpr int kRemembered = 8;
thread_local Remembered t_orders[kRemembered];
thread_local unsigned t_next_order;

}  // namespace

bool find_order(const Subscripts& s, double largest, Order& order) {
    order.first[0] = 0, order.second[0] = 1;
    if (s.n_terms <= 2) return true;
    uint64_t term[kMaxInputs];
    const uint64_t result = kept_labels(s) & long_labels(s, s.result);
    for (int k = 0; k < s.n_terms; ++k) term[k] = long_labels(s, s.term[k]);
    const size_t bytes = static_cast<size_t>(s.n_terms) * sizeof term[0];
    for (const Remembered& r : t_orders)
        if (r.n_terms == s.n_terms && r.result == result && r.largest == largest &&
            std::memcmp(r.term, term, bytes) == 0 && std::memcmp(r.size, s.size, sizeof s.size) == 0) {
            order = r.order;
            return true;
        }
    if (!(s.n_terms <= kExact ? exact_order : greedy_order)(s, term, result, largest, order)) return false;
    Remembered& r = t_orders[t_next_order++ % kRemembered];
    r.n_terms = s.n_terms, r.result = result, r.largest = largest, r.order = order;
    std::memcpy(r.term, term, bytes);
    std::memcpy(r.size, s.size, sizeof s.size);
    return true;
}

}  // namespace tw
