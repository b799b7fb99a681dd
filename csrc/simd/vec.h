// Native-width vectors over GCC/Clang vector extensions: loads, stores, selects, reductions, small transposes.
// Included only by files compiled per tier; every function is a static always_inline, so no symbol leaves the object.
//
//   Vec<T>       kVecBytes wide: 16 (x86-64-v2, NEON), 32 (AVX2), 64 (AVX-512)
//   Mask<T>      what comparing two Vec<T> gives: an integer vector, lanes 0 or -1
//   *_n(p, n)    touch exactly the first n elements, 0 <= n <= kLanes<T>; the other lanes load as zero
//
// + - * / < <= == & | ~ are the language's own. -ffp-contract=fast may fuse a*b+c on tiers with FMA.
#pragma once
#include <cstdint>

#if defined(__SSE4_2__)
#if !defined(__clang__)
// GCC 11 and 12 warn about the deliberately undefined operands inside their own AVX-512 intrinsics.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define TW_INLINE static inline __attribute__((always_inline))

// TW_MM(add_ps) is the intrinsic of this tier's width.
#if defined(__AVX512F__)
#define TW_MM(op) _mm512_##op
#elif defined(__AVX2__)
#define TW_MM(op) _mm256_##op
#elif defined(__SSE4_2__)
#define TW_MM(op) _mm_##op
#endif

namespace tw::TW_ISA {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

// Architectural vector registers: what a register tile may fill.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

template <class T, int N>
struct VecOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
    typedef T loose __attribute__((vector_size(N * sizeof(T)), aligned(1), may_alias));
    typedef T exact __attribute__((vector_size(N * sizeof(T)), may_alias));
};
template <class T>
static constexpr int kLanes = kVecBytes / static_cast<int>(sizeof(T));
template <class T>
using Vec = typename VecOf<T, kLanes<T>>::type;
template <class T>
using Mask = decltype(Vec<T>{} < Vec<T>{});
using f32v = Vec<float>;
using f64v = Vec<double>;
using i32v = Vec<int32_t>;
using u32v = Vec<uint32_t>;

template <class T>
struct BareOf {
    typedef T type;
};
template <class T>
struct BareOf<T&> {
    typedef T type;
};
template <class T>
struct BareOf<T&&> {
    typedef T type;
};
template <class V>
using Elem = typename BareOf<decltype(V{}[0])>::type;
template <class V>
static constexpr int kCount = static_cast<int>(sizeof(V) / sizeof(Elem<V>));
template <class T>
static constexpr bool kIsFloating = static_cast<T>(0.5) != static_cast<T>(0);

// Seq<0, 1, ..., N-1>, for shuffles and constants that depend on the width.
template <int... I>
struct Seq {};
template <int N, int... I>
struct SeqOf : SeqOf<N - 1, N - 1, I...> {};
template <int... I>
struct SeqOf<0, I...> {
    typedef Seq<I...> type;
};
template <class V>
using Indices = typename SeqOf<kCount<V>>::type;

// ---- constants and reinterpretation ---------------------------------------------------------------------------------

template <class V, class U>
TW_INLINE V bitcast(U v) {
    static_assert(sizeof(V) == sizeof(U));
    return (V)v;
}
template <class T>
TW_INLINE Vec<T> zero() {
    return Vec<T>{};
}
template <class T>
TW_INLINE Vec<T> splat(T x) {
    return x - Vec<T>{};  // not 0 + x, which would lose -0.0
}
template <class T, int... I>
TW_INLINE Vec<T> iota_of(Seq<I...>) {
    return Vec<T>{static_cast<T>(I)...};
}
template <class T>
TW_INLINE Vec<T> iota() {
    return iota_of<T>(Indices<Vec<T>>{});
}

// ---- shuffles: lane i of the result is lane I[i] of (a, b) laid end to end ------------------------------------------

template <int... I, class V>
TW_INLINE V shuffle(V a, V b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    typedef decltype(a < b) Index;
    return __builtin_shuffle(a, b, Index{I...});
#endif
}

// ---- loads and stores -----------------------------------------------------------------------------------------------

template <class T>
TW_INLINE Vec<T> load(const T* p) {
    return *reinterpret_cast<const typename VecOf<T, kLanes<T>>::loose*>(p);
}
template <class T>
TW_INLINE void store(T* p, Vec<T> v) {
    *reinterpret_cast<typename VecOf<T, kLanes<T>>::loose*>(p) = v;
}
template <class T>
TW_INLINE Vec<T> load_aligned(const T* p) {
    return *reinterpret_cast<const typename VecOf<T, kLanes<T>>::exact*>(p);
}

// Non-temporal store to an aligned address; stream_fence() before other threads read.
template <class T>
TW_INLINE void stream(T* p, Vec<T> v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE4_2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
    store(p, v);
#endif
}
TW_INLINE void stream_fence() {
#if defined(__SSE4_2__)
    _mm_sfence();
#endif
}

// Copies bytes (0..Max, Max a power of two) in at most log2(Max) fixed-size moves.
template <int Max>
TW_INLINE void copy_part(void* to, const void* from, int64_t bytes) {
    if (bytes >= Max) {
        __builtin_memcpy(to, from, Max);
        return;
    }
    if constexpr (Max > 1) {
        constexpr int half = Max / 2;
        const int64_t taken = bytes & half;
        if (taken) __builtin_memcpy(to, from, half);
        copy_part<half>(static_cast<char*>(to) + taken, static_cast<const char*>(from) + taken, bytes - taken);
    }
}

#if defined(__AVX512F__)
TW_INLINE uint64_t first_bits(int64_t n) { return _bzhi_u64(~0ull, static_cast<unsigned>(n)); }
#endif

template <class T>
TW_INLINE Vec<T> load_n(const T* p, int64_t n) {
#if defined(__AVX512F__)
    const uint64_t m = first_bits(n);
    if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_loadu_epi64(static_cast<__mmask8>(m), p);
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_epi32(static_cast<__mmask16>(m), p);
    if constexpr (sizeof(T) == 2) return (Vec<T>)_mm512_maskz_loadu_epi16(static_cast<__mmask32>(m), p);
    if constexpr (sizeof(T) == 1) return (Vec<T>)_mm512_maskz_loadu_epi8(m, p);
#else
    if (n >= kLanes<T>) return load(p);
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 8) {
        const auto m = iota<int64_t>() < splat<int64_t>(n);
        return (Vec<T>)_mm256_maskload_epi64(reinterpret_cast<const long long*>(p), (__m256i)m);
    }
    if constexpr (sizeof(T) == 4) {
        const auto m = iota<int32_t>() < splat<int32_t>(static_cast<int32_t>(n));
        return (Vec<T>)_mm256_maskload_epi32(reinterpret_cast<const int*>(p), (__m256i)m);
    }
#endif
    if constexpr (kLanes<T> == 2) return n == 1 ? Vec<T>{p[0]} : Vec<T>{};
    if constexpr (kLanes<T> == 4)
        return n == 0 ? Vec<T>{} : n == 1 ? Vec<T>{p[0]} : n == 2 ? Vec<T>{p[0], p[1]} : Vec<T>{p[0], p[1], p[2]};
    Vec<T> v{};
    copy_part<kVecBytes>(&v, p, n * static_cast<int64_t>(sizeof(T)));
    return v;
#endif
}

template <class T>
TW_INLINE void store_n(T* p, Vec<T> v, int64_t n) {
#if defined(__AVX512F__)
    const uint64_t m = first_bits(n);
    if constexpr (sizeof(T) == 8) _mm512_mask_storeu_epi64(p, static_cast<__mmask8>(m), (__m512i)v);
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_epi32(p, static_cast<__mmask16>(m), (__m512i)v);
    if constexpr (sizeof(T) == 2) _mm512_mask_storeu_epi16(p, static_cast<__mmask32>(m), (__m512i)v);
    if constexpr (sizeof(T) == 1) _mm512_mask_storeu_epi8(p, m, (__m512i)v);
#else
    if (n >= kLanes<T>) return store(p, v);
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 8) {
        const auto m = iota<int64_t>() < splat<int64_t>(n);
        return _mm256_maskstore_epi64(reinterpret_cast<long long*>(p), (__m256i)m, (__m256i)v);
    }
    if constexpr (sizeof(T) == 4) {
        const auto m = iota<int32_t>() < splat<int32_t>(static_cast<int32_t>(n));
        return _mm256_maskstore_epi32(reinterpret_cast<int*>(p), (__m256i)m, (__m256i)v);
    }
#endif
    if constexpr (kLanes<T> <= 4) {
        if (n > 0) p[0] = v[0];
        if constexpr (kLanes<T> == 4) {
            if (n > 1) p[1] = v[1];
            if (n > 2) p[2] = v[2];
        }
    } else {
        copy_part<kVecBytes>(p, &v, n * static_cast<int64_t>(sizeof(T)));
    }
#endif
}

template <class T, int... I>
TW_INLINE Vec<T> load_strided_all(const T* p, int64_t stride, Seq<I...>) {
    return Vec<T>{p[I * stride]...};
}
// p[0], p[stride], ... in the first n lanes, zero beyond. No gather instruction: slower on Zen.
template <class T>
TW_INLINE Vec<T> load_strided(const T* p, int64_t stride, int64_t n) {
    if (n >= kLanes<T>) return load_strided_all(p, stride, Indices<Vec<T>>{});
    alignas(kVecBytes) T lane[kLanes<T>] = {};
    for (int64_t i = 0; i < n; ++i) lane[i] = p[i * stride];
    return load_aligned(lane);
}

// The second load starts one element early, so that its last lane is the last element needed, p[2*kLanes - 2].
template <class T, int... I>
TW_INLINE Vec<T> pick_stride2(Vec<T> a, Vec<T> b, Seq<I...>) {
    constexpr int half = kLanes<T> / 2;
    return shuffle<(I < half ? 2 * I : kLanes<T> + 2 * (I - half) + 1)...>(a, b);
}
template <class T>
TW_INLINE Vec<T> load_stride2(const T* p) {
    return pick_stride2<T>(load(p), load(p + kLanes<T> - 1), Indices<Vec<T>>{});
}
template <class T>
TW_INLINE Vec<T> load_stride2_n(const T* p, int64_t n) {
    constexpr int64_t lanes = kLanes<T>;
    if (n <= 0) return Vec<T>{};
    const int64_t span = 2 * n - 1, first = span < lanes ? span : lanes, second = span - (lanes - 1);
    const Vec<T> b = second > 0 ? load_n(p + lanes - 1, second) : Vec<T>{};
    return pick_stride2<T>(load_n(p, first), b, Indices<Vec<T>>{});
}

// a0 b0 a1 b1 ... of the lower or the upper halves.
template <int High, class V, int... I>
TW_INLINE V zip_half(V a, V b, Seq<I...>) {
    return shuffle<(I / 2 + I % 2 * kCount<V> + High * (kCount<V> / 2))...>(a, b);
}
template <class V>
TW_INLINE V zip_low(V a, V b) {
    return zip_half<0>(a, b, Indices<V>{});
}
template <class V>
TW_INLINE V zip_high(V a, V b) {
    return zip_half<1>(a, b, Indices<V>{});
}

// ---- lane-wise arithmetic -------------------------------------------------------------------------------------------

template <class M, class V>
TW_INLINE V select(M mask, V a, V b) {
    return mask ? a : b;
}

// x86 semantics on every target: b where a and b do not compare (NaN, +-0). max_any(limit, x) keeps a NaN in x.
template <class V>
TW_INLINE V max_any(V a, V b) {
#if defined(__SSE4_2__)
    if constexpr (__is_same(V, f32v)) return TW_MM(max_ps)(a, b);
    if constexpr (__is_same(V, f64v)) return TW_MM(max_pd)(a, b);
#endif
    return a > b ? a : b;
}
template <class V>
TW_INLINE V min_any(V a, V b) {
#if defined(__SSE4_2__)
    if constexpr (__is_same(V, f32v)) return TW_MM(min_ps)(a, b);
    if constexpr (__is_same(V, f64v)) return TW_MM(min_pd)(a, b);
#endif
    return a < b ? a : b;
}
// A NaN in either operand is the result.
template <class V>
TW_INLINE V max_nan(V a, V b) {
    return select(a != a, a, max_any(a, b));
}
template <class V>
TW_INLINE V min_nan(V a, V b) {
    return select(a != a, a, min_any(a, b));
}

template <class V>
TW_INLINE V abs(V v) {
    if constexpr (kIsFloating<Elem<V>>) {
        typedef decltype(v < v) Bits;
        return bitcast<V>(bitcast<Bits>(v) & ~bitcast<Bits>(-V{}));
    } else {
        return v < 0 ? -v : v;
    }
}

// One rounding where the tier has FMA, two where it has not.
TW_INLINE f32v fma(f32v a, f32v b, f32v c) {
#if defined(__FMA__)
    return TW_MM(fmadd_ps)(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}
TW_INLINE f64v fma(f64v a, f64v b, f64v c) {
#if defined(__FMA__)
    return TW_MM(fmadd_pd)(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f64(c, a, b);
#else
    return a * b + c;
#endif
}

// To the nearest integer, halves to even.
TW_INLINE f32v round_nearest(f32v v) {
#if defined(__AVX512F__)
    return _mm512_roundscale_ps(v, 8);
#elif defined(__SSE4_2__)
    return TW_MM(round_ps)(v, 8);
#elif defined(__aarch64__)
    return vrndnq_f32(v);
#else
    for (int i = 0; i < kLanes<float>; ++i) v[i] = __builtin_roundevenf(v[i]);
    return v;
#endif
}
TW_INLINE f64v round_nearest(f64v v) {
#if defined(__AVX512F__)
    return _mm512_roundscale_pd(v, 8);
#elif defined(__SSE4_2__)
    return TW_MM(round_pd)(v, 8);
#elif defined(__aarch64__)
    return vrndnq_f64(v);
#else
    for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_roundeven(v[i]);
    return v;
#endif
}

// Halves to even; the caller keeps |v| < 2^31 (store_from in convert.h saturates).
TW_INLINE i32v to_i32(f32v v) {
#if defined(__SSE4_2__)
    return (i32v)TW_MM(cvtps_epi32)(v);
#elif defined(__aarch64__)
    return vcvtnq_s32_f32(v);
#else
    return __builtin_convertvector(round_nearest(v), i32v);
#endif
}
TW_INLINE f32v to_f32(i32v v) { return __builtin_convertvector(v, f32v); }

// ---- across lanes ---------------------------------------------------------------------------------------------------

template <class M>
TW_INLINE bool any(M mask) {
#if defined(__AVX512F__)
    return _mm512_movepi8_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE4_2__)
    return _mm_movemask_epi8((__m128i)mask) != 0;
#else
    const Vec<uint64_t> m = bitcast<Vec<uint64_t>>(mask);
    return (m[0] | m[1]) != 0;
#endif
}
template <class M>
TW_INLINE bool all(M mask) {
    return !any(~mask);
}

// A fixed tree: lane i meets lane i + n/2, then n/4, ... so the order depends on the tier only.
template <int Step, class V, class Op, int... I>
TW_INLINE V fold_lanes(V v, Op op, Seq<I...> lanes) {
    if constexpr (Step == 0) {
        return v;
    } else {
        return fold_lanes<Step / 2>(op(v, shuffle<(I ^ Step)...>(v, v)), op, lanes);
    }
}
template <class V>
TW_INLINE Elem<V> reduce_add(V v) {
    return fold_lanes<kCount<V> / 2>(v, [](V a, V b) __attribute__((always_inline)) { return a + b; }, Indices<V>{})[0];
}
template <class V>
TW_INLINE Elem<V> reduce_max(V v) {
    return fold_lanes<kCount<V> / 2>(v, [](V a, V b) __attribute__((always_inline)) { return max_nan(a, b); },
                                     Indices<V>{})[0];
}
template <class V>
TW_INLINE Elem<V> reduce_min(V v) {
    return fold_lanes<kCount<V> / 2>(v, [](V a, V b) __attribute__((always_inline)) { return min_nan(a, b); },
                                     Indices<V>{})[0];
}

// ---- transposes -----------------------------------------------------------------------------------------------------

// Inside each 16-byte unit: a0 b0 a1 b1 ... from the low or the high half of the unit.
template <int High, class V, int... I>
TW_INLINE V interleave(V a, V b, Seq<I...>) {
    constexpr int n = 16 / static_cast<int>(sizeof(Elem<V>));
    return shuffle<(I / n * n + I % n / 2 + I % 2 * kCount<V> + High * (n / 2))...>(a, b);
}
template <class V>
TW_INLINE V interleave_low(V a, V b) {
    return interleave<0>(a, b, Indices<V>{});
}
template <class V>
TW_INLINE V interleave_high(V a, V b) {
    return interleave<1>(a, b, Indices<V>{});
}

// 16 bytes each from p, p + step, p + 2 step, ...: moves between units happen in the load ports, not in shuffles.
template <class T>
TW_INLINE Vec<T> load_units(const T* p, int64_t step) {
#if defined(__AVX2__)
    const auto unit = [=](int64_t i) __attribute__((always_inline)) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * step));
    };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(unit(0)), unit(1), 1);
#if defined(__AVX512F__)
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(unit(2)), unit(3), 1);
    return (Vec<T>)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
    return (Vec<T>)low;
#endif
#else
    (void)step;
    return load(p);
#endif
}

// dst[c * dst_stride + r] = src[r * src_stride + c] for a kLanes x kLanes tile of float or double.
template <class T>
TW_INLINE void transpose_tile(const T* src, int64_t src_stride, T* dst, int64_t dst_stride) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    constexpr int q = 16 / static_cast<int>(sizeof(T));  // rows and columns of one 16-byte unit block
#pragma GCC unroll 4
    for (int unit = 0; unit < kVecBytes / 16; ++unit) {
        const T* s = src + unit * q;
        T* d = dst + unit * q * dst_stride;
        const Vec<T> r0 = load_units(s, q * src_stride), r1 = load_units(s + src_stride, q * src_stride);
        if constexpr (q == 2) {
            store(d, interleave_low(r0, r1));
            store(d + dst_stride, interleave_high(r0, r1));
        } else {
            const Vec<T> r2 = load_units(s + 2 * src_stride, q * src_stride);
            const Vec<T> r3 = load_units(s + 3 * src_stride, q * src_stride);
            const f64v low01 = bitcast<f64v>(interleave_low(r0, r1)), high01 = bitcast<f64v>(interleave_high(r0, r1));
            const f64v low23 = bitcast<f64v>(interleave_low(r2, r3)), high23 = bitcast<f64v>(interleave_high(r2, r3));
            store(d, bitcast<Vec<T>>(interleave_low(low01, low23)));
            store(d + dst_stride, bitcast<Vec<T>>(interleave_high(low01, low23)));
            store(d + 2 * dst_stride, bitcast<Vec<T>>(interleave_low(high01, high23)));
            store(d + 3 * dst_stride, bitcast<Vec<T>>(interleave_high(high01, high23)));
        }
    }
}

}  // namespace tw::TW_ISA
