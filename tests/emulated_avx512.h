// AVX-512 without AVX-512: the intrinsics of csrc/simd over AVX2, so that the wide tiers can be checked on any machine.
// Included ahead of every file of these tiers by -DTILEWORK_EMULATE_AVX512=ON; slow to build and to run.
#pragma once
#include <immintrin.h>

#include <cstdint>

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512CD__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#if defined(TW_EMULATED_VNNI)
#define __AVX512VNNI__ 1
#define __AVX512BF16__ 1
#endif

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"  // of vectors as template arguments

namespace emulated_avx512 {

#define EMULATED static inline __attribute__((always_inline))

// ---- both halves alike ------------------------------------------------------------------------------------------------

template <class Half, class Whole>
struct Halves {
    Half low, high;
    EMULATED Halves of(const Whole& v) {
        Halves h;
        __builtin_memcpy(&h, &v, sizeof h);
        return h;
    }
    __attribute__((always_inline)) inline operator Whole() const {
        Whole v;
        __builtin_memcpy(&v, this, sizeof v);
        return v;
    }
};
typedef Halves<__m256, __m512> Floats;
typedef Halves<__m256d, __m512d> Doubles;
typedef Halves<__m256i, __m512i> Integers;

#define EMULATE_1(name, H, W)                                  \
    EMULATED W name(W a) {                                     \
        const H x = H::of(a);                                  \
        return H{_mm256_##name(x.low), _mm256_##name(x.high)}; \
    }
#define EMULATE_2(name, H, W)                                                 \
    EMULATED W name(W a, W b) {                                               \
        const H x = H::of(a), y = H::of(b);                                   \
        return H{_mm256_##name(x.low, y.low), _mm256_##name(x.high, y.high)}; \
    }
#define EMULATE_3(name, H, W)                                                                \
    EMULATED W name(W a, W b, W c) {                                                         \
        const H x = H::of(a), y = H::of(b), z = H::of(c);                                    \
        return H{_mm256_##name(x.low, y.low, z.low), _mm256_##name(x.high, y.high, z.high)}; \
    }
EMULATE_1(sqrt_ps, Floats, __m512)
EMULATE_1(sqrt_pd, Doubles, __m512d)
EMULATE_2(max_ps, Floats, __m512)
EMULATE_2(min_ps, Floats, __m512)
EMULATE_2(max_pd, Doubles, __m512d)
EMULATE_2(min_pd, Doubles, __m512d)
EMULATE_2(madd_epi16, Integers, __m512i)
EMULATE_2(maddubs_epi16, Integers, __m512i)
EMULATE_2(shuffle_epi8, Integers, __m512i)
EMULATE_2(mulhi_epi16, Integers, __m512i)
EMULATE_2(packs_epi32, Integers, __m512i)
EMULATE_2(packs_epi16, Integers, __m512i)
EMULATE_2(packus_epi16, Integers, __m512i)
EMULATE_3(fmadd_ps, Floats, __m512)
EMULATE_3(fmadd_pd, Doubles, __m512d)
#undef EMULATE_1
#undef EMULATE_2
#undef EMULATE_3

EMULATED __m512 roundscale_ps(__m512 a, int) {
    const Floats x = Floats::of(a);
    return Floats{_mm256_round_ps(x.low, 8), _mm256_round_ps(x.high, 8)};
}
EMULATED __m512d roundscale_pd(__m512d a, int) {
    const Doubles x = Doubles::of(a);
    return Doubles{_mm256_round_pd(x.low, 8), _mm256_round_pd(x.high, 8)};
}
EMULATED __m512i cvtps_epi32(__m512 a) {
    const Floats x = Floats::of(a);
    return Integers{_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)};
}
EMULATED __m512i castsi256_si512(__m256i low) { return Integers{low, _mm256_setzero_si256()}; }
EMULATED __m512i inserti64x4(__m512i a, __m256i high, int) { return Integers{Integers::of(a).low, high}; }
template <int Scale>
EMULATED __m512i gather_epi32(__m512i index, const void* p) {
    int32_t at[16];
    __builtin_memcpy(at, &index, sizeof at);
    for (int32_t& word : at) __builtin_memcpy(&word, static_cast<const char*>(p) + int64_t{Scale} * word, sizeof word);
    __builtin_memcpy(&index, at, sizeof at);
    return index;
}
EMULATED void stream_si512(__m512i* p, __m512i v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), Integers::of(v).low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p) + 1, Integers::of(v).high);
}
EMULATED uint64_t movepi8_mask(__m512i v) {
    const Integers x = Integers::of(v);
    return static_cast<uint32_t>(_mm256_movemask_epi8(x.low)) |
           static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(x.high))) << 32;
}

template <class T>
EMULATED uint64_t signs_of(__m512i v) {
    constexpr int n = 64 / sizeof(T);
    T lanes[n];
    uint64_t bits = 0;
    __builtin_memcpy(lanes, &v, sizeof lanes);
    for (int i = 0; i < n; ++i) bits |= static_cast<uint64_t>(lanes[i] < 0) << i;
    return bits;
}
EMULATED uint64_t movepi16_mask(__m512i v) { return signs_of<int16_t>(v); }
EMULATED uint64_t movepi32_mask(__m512i v) { return signs_of<int32_t>(v); }

// ---- narrow and wide ----------------------------------------------------------------------------------------------------

EMULATED __m128i low_of(__m256i v) { return _mm256_castsi256_si128(v); }
EMULATED __m128i high_of(__m256i v) { return _mm256_extracti128_si256(v, 1); }

EMULATED __m512i cvtepu8_epi16(__m256i v) {
    return Integers{_mm256_cvtepu8_epi16(low_of(v)), _mm256_cvtepu8_epi16(high_of(v))};
}
EMULATED __m512i cvtepi8_epi16(__m256i v) {
    return Integers{_mm256_cvtepi8_epi16(low_of(v)), _mm256_cvtepi8_epi16(high_of(v))};
}
EMULATED __m512i cvtepu16_epi32(__m256i v) {
    return Integers{_mm256_cvtepu16_epi32(low_of(v)), _mm256_cvtepu16_epi32(high_of(v))};
}
EMULATED __m512i cvtepi8_epi32(__m128i v) {
    return Integers{_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
EMULATED __m512i cvtepu8_epi32(__m128i v) {
    return Integers{_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
EMULATED __m512 cvtph_ps(__m256i v) { return Floats{_mm256_cvtph_ps(low_of(v)), _mm256_cvtph_ps(high_of(v))}; }
EMULATED __m256i cvtps_ph(__m512 v, int) {
    const Floats x = Floats::of(v);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph(x.low, 0)), _mm256_cvtps_ph(x.high, 0), 1);
}
template <class Wide, class Narrow, class Result>
EMULATED Result narrowed(__m512i v) {
    constexpr int n = 64 / sizeof(Wide);
    Wide wide[n];
    Narrow narrow[n];
    __builtin_memcpy(wide, &v, sizeof wide);
    for (int i = 0; i < n; ++i) narrow[i] = static_cast<Narrow>(wide[i]);
    Result r;
    __builtin_memcpy(&r, narrow, sizeof r);
    return r;
}
EMULATED __m256i cvtepi32_epi16(__m512i v) { return narrowed<int32_t, uint16_t, __m256i>(v); }
EMULATED __m128i cvtepi32_epi8(__m512i v) { return narrowed<int32_t, uint8_t, __m128i>(v); }
EMULATED __m256i cvtepi16_epi8(__m512i v) { return narrowed<int16_t, uint8_t, __m256i>(v); }

// ---- masked memory ------------------------------------------------------------------------------------------------------

template <class V, class T>
EMULATED V masked_load(uint64_t mask, const void* p) {
    T lanes[sizeof(V) / sizeof(T)] = {};
    for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
        if (mask >> i & 1) __builtin_memcpy(lanes + i, static_cast<const T*>(p) + i, sizeof(T));
    V v;
    __builtin_memcpy(&v, lanes, sizeof v);
    return v;
}
template <class V, class T>
EMULATED void masked_store(void* p, uint64_t mask, V v) {
    T lanes[sizeof(V) / sizeof(T)];
    __builtin_memcpy(lanes, &v, sizeof v);
    for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
        if (mask >> i & 1) __builtin_memcpy(static_cast<T*>(p) + i, lanes + i, sizeof(T));
}
EMULATED __m512i maskz_loadu_epi8(uint64_t m, const void* p) { return masked_load<__m512i, uint8_t>(m, p); }
EMULATED __m512i maskz_loadu_epi16(uint64_t m, const void* p) { return masked_load<__m512i, uint16_t>(m, p); }
EMULATED __m512i maskz_loadu_epi32(uint64_t m, const void* p) { return masked_load<__m512i, uint32_t>(m, p); }
EMULATED __m512i maskz_loadu_epi64(uint64_t m, const void* p) { return masked_load<__m512i, uint64_t>(m, p); }
EMULATED __m256i half_maskz_loadu_epi16(uint64_t m, const void* p) { return masked_load<__m256i, uint16_t>(m, p); }
EMULATED __m128i quarter_maskz_loadu_epi8(uint64_t m, const void* p) { return masked_load<__m128i, uint8_t>(m, p); }
EMULATED void mask_storeu_epi8(void* p, uint64_t m, __m512i v) { masked_store<__m512i, uint8_t>(p, m, v); }
EMULATED void mask_storeu_epi16(void* p, uint64_t m, __m512i v) { masked_store<__m512i, uint16_t>(p, m, v); }
EMULATED void mask_storeu_epi32(void* p, uint64_t m, __m512i v) { masked_store<__m512i, uint32_t>(p, m, v); }
EMULATED void mask_storeu_epi64(void* p, uint64_t m, __m512i v) { masked_store<__m512i, uint64_t>(p, m, v); }
EMULATED void half_mask_storeu_epi16(void* p, uint64_t m, __m256i v) { masked_store<__m256i, uint16_t>(p, m, v); }
EMULATED void quarter_mask_storeu_epi8(void* p, uint64_t m, __m128i v) { masked_store<__m128i, uint8_t>(p, m, v); }

// ---- lane by lane -------------------------------------------------------------------------------------------------------

template <class F>
EMULATED __m512 each_float(__m512 v, F f) {
    float lanes[16];
    __builtin_memcpy(lanes, &v, sizeof lanes);
    for (int i = 0; i < 16; ++i) lanes[i] = f(i, lanes[i]);
    __builtin_memcpy(&v, lanes, sizeof v);
    return v;
}
EMULATED __m512 scalef_ps(__m512 v, __m512 powers) {
    float power[16];
    __builtin_memcpy(power, &powers, sizeof power);
    return each_float(v, [&](int i, float x) {
        if (power[i] != power[i]) return power[i];
        const double limited = power[i] < -600 ? -600 : power[i] > 600 ? 600 : static_cast<double>(power[i]);
        return static_cast<float>(__builtin_ldexp(static_cast<double>(x), static_cast<int>(__builtin_floor(limited))));
    });
}
EMULATED __m512 reduce_ps(__m512 v, int) {
    return each_float(v, [](int, float x) { return __builtin_isinf(x) ? 0.f : x - __builtin_floorf(x); });
}
EMULATED __m512 getexp_ps(__m512 v) {
    return each_float(v, [](int, float x) {
        if (x != x) return x;
        if (__builtin_isinf(x)) return __builtin_inff();
        return x == 0 ? -__builtin_inff() : static_cast<float>(__builtin_ilogbf(x));
    });
}
// To [1, 2) or [3/4, 3/2); of a negative number with its sign or NaN.
EMULATED __m512 getmant_ps(__m512 v, int interval, int sign) {
    return each_float(v, [&](int, float x) {
        if (x != x) return x;
        if (x < 0 && sign == _MM_MANT_SIGN_nan) return __builtin_nanf("");
        if (x == 0 || __builtin_isinf(x)) return __builtin_copysignf(1.f, x);
        const double m = __builtin_ldexp(static_cast<double>(x), -__builtin_ilogbf(x));
        return static_cast<float>(interval == _MM_MANT_NORM_p75_1p5 && __builtin_fabs(m) >= 1.5 ? m / 2 : m);
    });
}
EMULATED __m512 rcp14_ps(__m512 v) {
    return each_float(v, [](int, float x) { return 1 / x; });
}
EMULATED __m512 permutex2var_ps(__m512 low, __m512i index, __m512 high) {
    float table[32];
    int at[16];
    __builtin_memcpy(table, &low, sizeof low);
    __builtin_memcpy(table + 16, &high, sizeof high);
    __builtin_memcpy(at, &index, sizeof at);
    return each_float(low, [&](int i, float) { return table[at[i] & 31]; });
}

EMULATED __m512i dpbusd_epi32(__m512i acc, __m512i left, __m512i right) {
    uint8_t a[64];
    int8_t b[64];
    uint32_t sum[16];
    __builtin_memcpy(a, &left, 64);
    __builtin_memcpy(b, &right, 64);
    __builtin_memcpy(sum, &acc, 64);
    for (int i = 0; i < 64; ++i) sum[i / 4] += static_cast<uint32_t>(a[i] * b[i]);
    __builtin_memcpy(&acc, sum, 64);
    return acc;
}

// Denormals are zeros on the way in and on the way out.
EMULATED float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.f, x) : x; }
template <class B>
EMULATED __m512 dpbf16_ps(__m512 acc, B left, B right) {
    uint32_t a[16], b[16];
    __builtin_memcpy(a, &left, 64);
    __builtin_memcpy(b, &right, 64);
    const auto value = [](uint32_t bits) {
        float x;
        __builtin_memcpy(&x, &bits, 4);
        return flushed(x);
    };
    return each_float(acc, [&](int i, float sum) {
        sum = flushed(__builtin_fmaf(value(a[i] & 0xffff0000u), value(b[i] & 0xffff0000u), flushed(sum)));
        return flushed(__builtin_fmaf(value(a[i] << 16), value(b[i] << 16), sum));
    });
}

#undef EMULATED

}  // namespace emulated_avx512
#pragma GCC diagnostic pop

#define _mm512_sqrt_ps emulated_avx512::sqrt_ps
#define _mm512_sqrt_pd emulated_avx512::sqrt_pd
#define _mm512_max_ps emulated_avx512::max_ps
#define _mm512_min_ps emulated_avx512::min_ps
#define _mm512_max_pd emulated_avx512::max_pd
#define _mm512_min_pd emulated_avx512::min_pd
#define _mm512_madd_epi16 emulated_avx512::madd_epi16
#define _mm512_maddubs_epi16 emulated_avx512::maddubs_epi16
#define _mm512_shuffle_epi8 emulated_avx512::shuffle_epi8
#define _mm512_mulhi_epi16 emulated_avx512::mulhi_epi16
#define _mm512_packs_epi32 emulated_avx512::packs_epi32
#define _mm512_packs_epi16 emulated_avx512::packs_epi16
#define _mm512_packus_epi16 emulated_avx512::packus_epi16
#define _mm512_fmadd_ps emulated_avx512::fmadd_ps
#define _mm512_fmadd_pd emulated_avx512::fmadd_pd
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps emulated_avx512::roundscale_ps
#undef _mm512_roundscale_pd
#define _mm512_roundscale_pd emulated_avx512::roundscale_pd
#define _mm512_cvtps_epi32 emulated_avx512::cvtps_epi32
#define _mm512_castsi256_si512 emulated_avx512::castsi256_si512
#undef _mm512_inserti64x4
#define _mm512_inserti64x4 emulated_avx512::inserti64x4
#define _mm512_i32gather_epi32(index, p, scale) emulated_avx512::gather_epi32<scale>(index, p)
#define _mm512_stream_si512 emulated_avx512::stream_si512
#define _mm512_movepi8_mask emulated_avx512::movepi8_mask
#define _mm512_movepi16_mask emulated_avx512::movepi16_mask
#define _mm512_movepi32_mask emulated_avx512::movepi32_mask
#define _mm512_cvtepu8_epi16 emulated_avx512::cvtepu8_epi16
#define _mm512_cvtepi16_epi8 emulated_avx512::cvtepi16_epi8
#define _mm512_cvtepi8_epi16 emulated_avx512::cvtepi8_epi16
#define _mm512_cvtepi8_epi32 emulated_avx512::cvtepi8_epi32
#define _mm512_cvtepu8_epi32 emulated_avx512::cvtepu8_epi32
#define _mm512_cvtepu16_epi32 emulated_avx512::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated_avx512::cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated_avx512::cvtepi32_epi8
#define _mm512_cvtph_ps emulated_avx512::cvtph_ps
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph emulated_avx512::cvtps_ph
#define _mm512_maskz_loadu_epi8 emulated_avx512::maskz_loadu_epi8
#define _mm512_maskz_loadu_epi16 emulated_avx512::maskz_loadu_epi16
#define _mm512_maskz_loadu_epi32 emulated_avx512::maskz_loadu_epi32
#define _mm512_maskz_loadu_epi64 emulated_avx512::maskz_loadu_epi64
#define _mm512_mask_storeu_epi8 emulated_avx512::mask_storeu_epi8
#define _mm512_mask_storeu_epi16 emulated_avx512::mask_storeu_epi16
#define _mm512_mask_storeu_epi32 emulated_avx512::mask_storeu_epi32
#define _mm512_mask_storeu_epi64 emulated_avx512::mask_storeu_epi64
#define _mm256_maskz_loadu_epi16 emulated_avx512::half_maskz_loadu_epi16
#define _mm256_mask_storeu_epi16 emulated_avx512::half_mask_storeu_epi16
#define _mm_maskz_loadu_epi8 emulated_avx512::quarter_maskz_loadu_epi8
#define _mm_mask_storeu_epi8 emulated_avx512::quarter_mask_storeu_epi8
#undef _mm512_scalef_ps
#define _mm512_scalef_ps emulated_avx512::scalef_ps
#undef _mm512_reduce_ps
#define _mm512_reduce_ps emulated_avx512::reduce_ps
#undef _mm512_getexp_ps
#define _mm512_getexp_ps emulated_avx512::getexp_ps
#undef _mm512_getmant_ps
#define _mm512_getmant_ps emulated_avx512::getmant_ps
#undef _mm512_rcp14_ps
#define _mm512_rcp14_ps emulated_avx512::rcp14_ps
#undef _mm512_permutex2var_ps
#define _mm512_permutex2var_ps emulated_avx512::permutex2var_ps
#define _mm512_dpbusd_epi32 emulated_avx512::dpbusd_epi32
#define _mm512_dpbf16_ps emulated_avx512::dpbf16_ps
