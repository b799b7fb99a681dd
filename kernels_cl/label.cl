// Connected components of a mask, numbered from 1 in the order of their first pixels.
//
// Method    each pixel joins its component in a forest (union.clh). Pieces of PIECE pixels count their roots, one item
//           adds the counts up, and each piece numbers its roots; then each pixel takes the number of its root.
#include "union.clh"

#define PIECE 256

__kernel void start(IN(uchar, mask), OUT(uint, labels), const long n) {
    START(mask);
    START(labels);
    const long i = get_global_id(0);
    if (i < n) labels[i] = mask[i] ? (uint)i + 1 : 0;
}

__kernel void unite(OUT(uint, labels), const long height, const long width, const long corners) {
    START(labels);
    const long i = get_global_id(0);
    if (i >= height * width || !labels[i]) return;
    const long y = i / width, x = i % width;
    if (x > 0 && labels[i - 1]) link(labels, (uint)i, (uint)(i - 1));
    if (y == 0) return;
    for (long k = max(x - corners, (long)0); k <= min(x + corners, width - 1); ++k) {
        const long above = (y - 1) * width + k;
        if (labels[above]) link(labels, (uint)i, (uint)above);
    }
}

__kernel void count(IN(uint, labels), OUT(int, counts), const long n) {
    START(labels);
    START(counts);
    const long piece = get_global_id(0);
    if (piece * PIECE >= n) return;
    int found = 0;
    for (long i = piece * PIECE; i < min((piece + 1) * PIECE, n); ++i) found += labels[i] == (uint)i + 1;
    counts[piece] = found;
}

// counts[k] becomes the sum of those before it, and total that of all.
__kernel void add_up(OUT(int, counts), OUT(int, total), const long pieces) {
    START(counts);
    START(total);
    if (get_global_id(0)) return;
    int sum = 0;
    for (long k = 0; k < pieces; ++k) {
        const int own = counts[k];
        counts[k] = sum;
        sum += own;
    }
    total[0] = sum;
}

__kernel void number(IN(uint, labels), IN(int, counts), OUT(int, numbers), const long n) {
    START(labels);
    START(counts);
    START(numbers);
    const long piece = get_global_id(0);
    if (piece * PIECE >= n) return;
    int next = counts[piece];
    for (long i = piece * PIECE; i < min((piece + 1) * PIECE, n); ++i)
        if (labels[i] == (uint)i + 1) numbers[i] = ++next;
}

__kernel void put(IN(uint, labels), IN(int, numbers), OUT(int, out), const long n) {
    START(labels);
    START(numbers);
    START(out);
    const long i = get_global_id(0);
    if (i < n) out[i] = labels[i] ? numbers[root_of(labels, (uint)i)] : 0;
}
