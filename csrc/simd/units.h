// Even and odd elements inside each 16-byte unit of a vector: one instruction where the whole vector takes several.
//
// Rows that are deinterleaved, used lane by lane and put back need no other order in between.
#pragma once
#include "simd/vec.h"

namespace tw::TW_ISA {

template <int OddA, int OddB, class V, int... I>
TW_INLINE V halves_of_units_at(V a, V b, Seq<I...>) {
    constexpr int n = 16 / static_cast<int>(sizeof(Elem<V>)), half = n / 2;
    return shuffle<(I / n * n + I % half * 2 + (I % n < half ? OddA : kCount<V> + OddB))...>(a, b);
}
template <class V, int... I>
TW_INLINE V from_units_at(V v, Seq<I...>) {
    constexpr int n = 16 / static_cast<int>(sizeof(Elem<V>)), half = n / 2, all = kCount<V> / 2;
    return shuffle<(I % all / half * n + I / all * half + I % half)...>(v, v);
}
template <class V, int... I>
TW_INLINE V in_units_at(V v, Seq<I...>) {
    constexpr int n = 16 / static_cast<int>(sizeof(Elem<V>)), half = n / 2, all = kCount<V> / 2;
    return shuffle<(I % n / half * all + I / n * half + I % half)...>(v, v);
}

template <int High, class V, int... I>
TW_INLINE V alternating_units_at(V a, V b, Seq<I...>) {
    constexpr int n = 16 / static_cast<int>(sizeof(Elem<V>)), first = High * (kCount<V> / n);
    return shuffle<((first + I / n) / 2 * n + I % n + (first + I / n) % 2 * kCount<V>)...>(a, b);
}

// In each unit the even or odd elements of a, then those of b.
template <int OddA, int OddB, class V>
TW_INLINE V halves_of_units(V a, V b) {
    return halves_of_units_at<OddA, OddB>(a, b, Indices<V>{});
}
// From that order to that of a row, and back.
template <class V>
TW_INLINE V from_units(V v) {
    return from_units_at(v, Indices<V>{});
}
template <class V>
TW_INLINE V in_units(V v) {
    return in_units_at(v, Indices<V>{});
}

// Units of a and b by turns: the first or the second half of them all.
template <int High, class V>
TW_INLINE V alternating_units(V a, V b) {
    return alternating_units_at<High>(a, b, Indices<V>{});
}

}  // namespace tw::TW_ISA
