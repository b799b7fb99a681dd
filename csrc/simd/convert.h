// Element types in memory <-> float vectors, and the same conversions for single values.
//
//   load_as<float>(p), load_as_n<float>(p, n)    kLanes<float> elements of float f16 bf16 int8 uint8 int32, widened
//   store_from(p, v), store_from_n(p, v, n)      one rounding, halves to even
//
// Numerics: every tier gives the same bits (base has no F16C and does f16 with integers). f16 overflows to Inf from
// 65520 and keeps subnormals; bf16 keeps denormals (so no vcvtneps2bf16, which flushes them). Narrowing quietens a NaN
// and keeps its sign and upper bits. Integers saturate, NaN becomes 0. from_double rounds once: the float in between is
// rounded to odd. Checked: all halves both ways, floats in steps of 61, halfway cases and their neighbours in double.
#pragma once
#include "core/types.h"
#include "simd/vec.h"

namespace tw::TW_ISA {

// What numbers of type T are computed in.
template <class T>
struct WideOf {
    typedef T type;
};
template <>
struct WideOf<f16> {
    typedef float type;
};
template <>
struct WideOf<bf16> {
    typedef float type;
};
template <class T>
using Wide = typename WideOf<T>::type;

// kLanes<float> elements of a narrower type.
template <class T>
using Part = typename VecOf<T, kLanes<float>>::type;
using Part16 = Part<uint16_t>;

template <class P, class T>
TW_INLINE P load_part(const T* p) {
    P v;
    __builtin_memcpy(&v, p, sizeof(P));
    return v;
}
template <class P, class T>
TW_INLINE P load_part_n(const T* p, int64_t n) {
#if defined(__AVX512F__)
    const uint64_t m = first_bits(n);
    if constexpr (sizeof(T) == 2) return (P)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(m), p);
    if constexpr (sizeof(T) == 1) return (P)_mm_maskz_loadu_epi8(static_cast<__mmask16>(m), p);
#else
    P v{};
    copy_part<sizeof(P)>(&v, p, n * static_cast<int64_t>(sizeof(T)));
    return v;
#endif
}
template <class T, class P>
TW_INLINE void store_part_n(T* p, P v, int64_t n) {
#if defined(__AVX512F__)
    const uint64_t m = first_bits(n);
    if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(m), (__m256i)v);
    if constexpr (sizeof(T) == 1) _mm_mask_storeu_epi8(p, static_cast<__mmask16>(m), (__m128i)v);
#else
    copy_part<sizeof(P)>(p, &v, n * static_cast<int64_t>(sizeof(T)));
#endif
}

// ---- narrow integers in 32-bit lanes --------------------------------------------------------------------------------

TW_INLINE u32v widen(Part16 v) {
#if defined(__AVX512F__)
    return (u32v)_mm512_cvtepu16_epi32((__m256i)v);
#elif defined(__AVX2__)
    return (u32v)_mm256_cvtepu16_epi32((__m128i)v);
#else
    return __builtin_convertvector(v, u32v);
#endif
}
TW_INLINE i32v widen(Part<int8_t> v) {
#if defined(__AVX512F__)
    return (i32v)_mm512_cvtepi8_epi32((__m128i)v);
#elif defined(__AVX2__)
    return (i32v)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bitcast<int64_t>(v)));
#elif defined(__SSE4_2__)
    return (i32v)_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bitcast<int32_t>(v)));
#else
    return __builtin_convertvector(v, i32v);
#endif
}
TW_INLINE i32v widen(Part<uint8_t> v) {
#if defined(__AVX512F__)
    return (i32v)_mm512_cvtepu8_epi32((__m128i)v);
#elif defined(__AVX2__)
    return (i32v)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bitcast<int64_t>(v)));
#elif defined(__SSE4_2__)
    return (i32v)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bitcast<int32_t>(v)));
#else
    return __builtin_convertvector(v, i32v);
#endif
}

// The caller's values fit the narrow type.
TW_INLINE Part16 narrow16(u32v v) {
#if defined(__AVX512F__)
    return (Part16)_mm512_cvtepi32_epi16((__m512i)v);
#elif defined(__AVX2__)
    const __m256i w = (__m256i)v;
    return (Part16)_mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
#elif defined(__SSE4_2__)
    const __m128i w = _mm_packus_epi32((__m128i)v, (__m128i)v);
    return bitcast<Part16>(_mm_cvtsi128_si64(w));
#else
    return __builtin_convertvector(v, Part16);
#endif
}
template <class T>
TW_INLINE Part<T> narrow8(i32v v) {
#if defined(__AVX512F__)
    return (Part<T>)_mm512_cvtepi32_epi8((__m512i)v);
#elif defined(__AVX2__)
    const __m256i low_bytes = _mm256_and_si256((__m256i)v, _mm256_set1_epi32(255));
    const __m128i w = _mm_packus_epi32(_mm256_castsi256_si128(low_bytes), _mm256_extracti128_si256(low_bytes, 1));
    return bitcast<Part<T>>(_mm_cvtsi128_si64(_mm_packus_epi16(w, w)));
#elif defined(__SSE4_2__)
    const __m128i low_bytes = _mm_and_si128((__m128i)v, _mm_set1_epi32(255));
    const __m128i w = _mm_packus_epi32(low_bytes, low_bytes);
    return bitcast<Part<T>>(_mm_cvtsi128_si32(_mm_packus_epi16(w, w)));
#else
    return __builtin_convertvector(v, Part<T>);
#endif
}

// ---- 16-bit floats --------------------------------------------------------------------------------------------------

TW_INLINE f32v from_bf16_bits(Part16 h) { return bitcast<f32v>(widen(h) << 16); }

TW_INLINE Part16 to_bf16_bits(f32v v) {
    const u32v x = bitcast<u32v>(v);
    const u32v rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
    return narrow16(select(v != v, (x >> 16) | 0x40u, rounded));
}

TW_INLINE f32v from_f16_bits(Part16 h) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return _mm256_cvtph_ps((__m128i)h);
#elif defined(__aarch64__)
    return vcvt_f32_f16((float16x4_t)h);
#else
    const u32v w = widen(h), magnitude = w & 0x7fffu;
    // 2^112 moves the exponent from f16's bias to f32's and normalises subnormals in one exact multiplication.
    const f32v finite = bitcast<f32v>(magnitude << 13) * 0x1p112f;
    const u32v quiet = (magnitude > 0x7c00u ? splat<uint32_t>(0x400000u) : zero<uint32_t>());
    const u32v special = (magnitude << 13) | 0x7f800000u | quiet;
    return bitcast<f32v>(select(magnitude >= 0x7c00u, special, bitcast<u32v>(finite)) | ((w & 0x8000u) << 16));
#endif
}

TW_INLINE Part16 to_f16_bits(f32v v) {
#if defined(__AVX512F__)
    return (Part16)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    return (Part16)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
    return (Part16)vcvt_f16_f32(v);
#else
    const u32v x = bitcast<u32v>(v), magnitude = x & 0x7fffffffu;
    const u32v normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // One ulp of 0.5 is f16's subnormal spacing 2^-24, so the addition does the rounding.
    const u32v subnormal = bitcast<u32v>(bitcast<f32v>(magnitude) + 0.5f) - 0x3f000000u;
    const u32v finite = select(magnitude < 0x38800000u, subnormal, normal);
    const u32v nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    const u32v special = select(magnitude > 0x7f800000u, nan, splat<uint32_t>(0x7c00u));
    return narrow16(select(magnitude >= 0x477ff000u, special, finite) | ((x >> 16) & 0x8000u));
#endif
}

// ---- integers -------------------------------------------------------------------------------------------------------

template <class T>
TW_INLINE i32v to_narrow_int(f32v v) {
    constexpr float low = static_cast<T>(-1) < 0 ? -128.f : 0.f, high = low + 255.f;
    const f32v number = select(v == v, v, zero<float>());
    return to_i32(min_any(max_any(number, splat(low)), splat(high)));
}
TW_INLINE i32v to_int32(f32v v) {
#if defined(__aarch64__)
    return to_i32(v);  // saturates, NaN gives 0
#else
    // The instruction answers INT_MIN when out of range: all bits flip to INT_MAX above, NaN is masked to 0.
    return (to_i32(v) ^ (v >= 0x1p31f)) & (v == v);
#endif
}

// ---- loads and stores -----------------------------------------------------------------------------------------------

TW_INLINE f32v as_f32(Part16 v, f16) { return from_f16_bits(v); }
TW_INLINE f32v as_f32(Part16 v, bf16) { return from_bf16_bits(v); }
TW_INLINE f32v as_f32(Part<int8_t> v, int8_t) { return to_f32(widen(v)); }
TW_INLINE f32v as_f32(Part<uint8_t> v, uint8_t) { return to_f32(widen(v)); }
TW_INLINE f32v as_f32(i32v v, int32_t) { return to_f32(v); }
TW_INLINE Part16 of_f32(f32v v, f16) { return to_f16_bits(v); }
TW_INLINE Part16 of_f32(f32v v, bf16) { return to_bf16_bits(v); }
TW_INLINE Part<int8_t> of_f32(f32v v, int8_t) { return narrow8<int8_t>(to_narrow_int<int8_t>(v)); }
TW_INLINE Part<uint8_t> of_f32(f32v v, uint8_t) { return narrow8<uint8_t>(to_narrow_int<uint8_t>(v)); }
TW_INLINE i32v of_f32(f32v v, int32_t) { return to_int32(v); }

template <class T>
using PartOf = decltype(of_f32(f32v{}, T{}));

template <class To, class T>
TW_INLINE Vec<To> load_as(const T* p) {
    if constexpr (__is_same(To, T)) {
        return load(p);
    } else {
        static_assert(__is_same(To, float));
        return as_f32(load_part<PartOf<T>>(p), T{});
    }
}
template <class To, class T>
TW_INLINE Vec<To> load_as_n(const T* p, int64_t n) {
    if constexpr (__is_same(To, T)) {
        return load_n(p, n);
    } else {
        static_assert(__is_same(To, float));
        if constexpr (sizeof(T) == 4) {
            return as_f32(load_n(p, n), T{});
        } else {
            return as_f32(load_part_n<PartOf<T>>(p, n), T{});
        }
    }
}

TW_INLINE void store_from(float* p, f32v v) { store(p, v); }
TW_INLINE void store_from(double* p, f64v v) { store(p, v); }
TW_INLINE void store_from_n(float* p, f32v v, int64_t n) { store_n(p, v, n); }
TW_INLINE void store_from_n(double* p, f64v v, int64_t n) { store_n(p, v, n); }
template <class T>
TW_INLINE void store_from(T* p, f32v v) {
    const auto part = of_f32(v, T{});
    __builtin_memcpy(p, &part, sizeof part);
}
template <class T>
TW_INLINE void store_from_n(T* p, f32v v, int64_t n) {
    if constexpr (sizeof(T) == 4) {
        store_n(p, of_f32(v, T{}), n);
    } else {
        store_part_n(p, of_f32(v, T{}), n);
    }
}

// Non-temporal, to an address aligned to what is stored; stream_fence() before other threads read.
TW_INLINE void stream_from(float* p, f32v v) { stream(p, v); }
TW_INLINE void stream_from(double* p, f64v v) { stream(p, v); }
template <class T>
TW_INLINE void stream_from(T* p, f32v v) {
    const auto part = of_f32(v, T{});
#if defined(__AVX512F__)
    if constexpr (sizeof part == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)part);
#elif defined(__AVX2__)
    if constexpr (sizeof part == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)part);
#endif
    __builtin_memcpy(p, &part, sizeof part);
}

// ---- single values --------------------------------------------------------------------------------------------------

TW_INLINE float to_float(float x) { return x; }
TW_INLINE float to_float(f16 h) { return from_f16_bits(h.bits - Part16{})[0]; }
TW_INLINE float to_float(bf16 h) {
    const uint32_t bits = static_cast<uint32_t>(h.bits) << 16;
    return __builtin_bit_cast(float, bits);
}
TW_INLINE float to_float(int8_t x) { return x; }
TW_INLINE float to_float(uint8_t x) { return x; }
TW_INLINE float to_float(int32_t x) { return static_cast<float>(x); }

template <class T>
TW_INLINE T from_float(float x) {
    if constexpr (__is_same(T, float) || __is_same(T, double)) {
        return x;
    } else {
        const auto part = of_f32(splat(x), T{});
        T out;
        __builtin_memcpy(&out, &part, sizeof out);
        return out;
    }
}

// Rounded so that a second rounding, to at most 22 bits, cannot go wrong: inexact results get an odd last bit.
TW_INLINE float to_odd_float(double x) {
    const float near = static_cast<float>(x);
    const double back = near;
    uint32_t bits = __builtin_bit_cast(uint32_t, near);
    if (back != x && x == x && (bits & 1u) == 0) bits += (back < 0 ? -back : back) > (x < 0 ? -x : x) ? ~0u : 1u;
    return __builtin_bit_cast(float, bits);
}
template <class T>
TW_INLINE T from_double(double x) {
    if constexpr (__is_same(T, double)) {
        return x;
    } else if constexpr (__is_same(T, float)) {
        return static_cast<float>(x);
    } else if constexpr (__is_same(T, f16) || __is_same(T, bf16)) {
        return from_float<T>(to_odd_float(x));
    } else {
        constexpr int64_t bits = 8 * sizeof(T);
        constexpr double low = static_cast<T>(-1) < 0 ? -static_cast<double>(int64_t{1} << (bits - 1)) : 0.0;
        constexpr double high = low + static_cast<double>((int64_t{1} << bits) - 1);
        const double inside = !(x == x) ? 0.0 : x < low ? low : x > high ? high : x;
        // At 1.5 * 2^52 one ulp is 1: the addition rounds half to even.
        return static_cast<T>((inside + 0x1.8p52) - 0x1.8p52);
    }
}

}  // namespace tw::TW_ISA
