// The notation of contractions, "ij,jk->ik": which labels the axes of operands and result have, how long each is, and
// in which order operands are best contracted.
#pragma once
#include "core/opdef.h"

namespace tw {

// A label is a letter (A-Z then a-z, 0 to 51) or an axis that an ellipsis stands for (52 the last, 53 the one before).
constexpr int kLetters = 52;
constexpr int kMaxLabels = kLetters + kMaxDims;

struct Term {
    int operand;
    int n;
    uint8_t label[kMaxDims];  // one per axis
};

struct Subscripts {
    int n_terms;
    Term term[kMaxInputs];
    Term result;
    int64_t result_size[kMaxDims];
    int64_t size[kMaxLabels];  // 0 or more where a term has the label, kUnseen otherwise
};

constexpr int64_t kUnseen = -1;

constexpr uint64_t bit(int label) { return uint64_t{1} << label; }

// Reads `text` for n operands of which only shapes are looked at, and rewrites it to what it means: no spaces, the
// result spelt out. Linear in the length of the text; never more than a term per operand is kept.
//
//   numpy   "ij,...jk->...ik"; without "->", the ellipsis and the labels that occur once, sorted
//   named   "a_ijp, b_ijq -> o_pq": operand, underscore, axes; a name that comes again is the same operand again, and
//           "*", first or last, is the ellipsis
//
// A size of 1 broadcasts. With `shape`, the result has that shape: it may repeat a label (a diagonal), have one that no
// operand has (copies), and a 1 where the label is longer is summed; without, its labels are distinct and known.
Status read_subscripts(Attr& text, const View* operands, int n, const Attr* shape, Subscripts& s);

// Which two of the remaining terms to contract, n_terms - 1 times; the product takes the place of the first.
struct Order {
    uint8_t first[kMaxInputs], second[kMaxInputs];
};

// The order of least work, exact up to 8 terms and greedy beyond, whose intermediates have at most `largest` elements.
// false: there is none. Labels of size 1 count nowhere.
bool find_order(const Subscripts& s, double largest, Order& order);

uint64_t labels_of(const Term& t);
uint64_t kept_labels(const Subscripts& s);  // of the result, those it has 1 of apart

}  // namespace tw
