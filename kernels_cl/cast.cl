// Conversions between element types.
//
// Method    one item per element of the result, each.clh.
// Numerics  float to float rounds once, half to even, also from f64 to f16 and bf16; float to integer truncates,
//           saturates, and takes NaN to 0; integer to integer saturates; to boolean is x != 0.
//
// Defined by the launch:  SRC, DST   dtypes;   WRAPS   integers keep their low bits instead
#include "types.clh"
#include "each.clh"

#define S CAT(storage_, SRC)
#define D CAT(storage_, DST)

// A float that rounds to half and bf16 as the wider value would: the dropped bits leave a 1 behind ("round to odd").
inline float odd_f64(const double v) {
    const float near = convert_float_rtz(v);
    return (double)near == v || isnan(v) ? near : as_float(as_int(near) | 1);
}
inline float odd_i64(const long v) {
    const float near = convert_float_rtz(v);
    return convert_long(near) == v ? near : as_float(as_int(near) | 1);
}
#define odd_f32(v) (v)
#define odd_f16(v) (v)
#define odd_bf16(v) (v)
#define odd_i8(v) ((float)(v))
#define odd_u8(v) ((float)(v))
#define odd_i16(v) ((float)(v))
#define odd_u16(v) ((float)(v))
#define odd_i32(v) odd_i64(v)
#define odd_boolean(v) ((float)(v))

#define floating_f32 1
#define floating_f64 1
#define floating_f16 1
#define floating_bf16 1
#define floating_i8 0
#define floating_u8 0
#define floating_i16 0
#define floating_u16 0
#define floating_i32 0
#define floating_i64 0
#define floating_boolean 0

#define to_f32(v) ((float)(v))
#define to_f64(v) ((double)(v))
#define to_f16(v) CAT(odd_, SRC)(v)
#define to_bf16(v) CAT(odd_, SRC)(v)
#define to_boolean(v) ((v) != 0)
#if CAT(floating_, SRC)
#define to_i8(v) saturated(v, CHAR_MIN, CHAR_MAX)
#define to_u8(v) saturated(v, 0, UCHAR_MAX)
#define to_i16(v) saturated(v, SHRT_MIN, SHRT_MAX)
#define to_u16(v) saturated(v, 0, USHRT_MAX)
#define to_i32(v) saturated(v, INT_MIN, INT_MAX)
#define to_i64(v) saturated(v, LONG_MIN, LONG_MAX)
#define W CAT(wide_, SRC)
// low and high + 1 are powers of two or 0, hence exact as floats.
inline long saturated(const W v, const long low, const long high) {
    if (isnan(v)) return 0;
    if (v <= (W)low) return low;
    return v >= (W)high ? high : (long)v;
}
#elif defined(WRAPS)
#define to_i8(v) ((char)(v))
#define to_u8(v) ((uchar)(v))
#define to_i16(v) ((short)(v))
#define to_u16(v) ((ushort)(v))
#define to_i32(v) ((int)(v))
#define to_i64(v) ((long)(v))
#else
#define to_i8(v) clamp((long)(v), (long)CHAR_MIN, (long)CHAR_MAX)
#define to_u8(v) clamp((long)(v), (long)0, (long)UCHAR_MAX)
#define to_i16(v) clamp((long)(v), (long)SHRT_MIN, (long)SHRT_MAX)
#define to_u16(v) clamp((long)(v), (long)0, (long)USHRT_MAX)
#define to_i32(v) clamp((long)(v), (long)INT_MIN, (long)INT_MAX)
#define to_i64(v) ((long)(v))
#endif

__kernel void cast(ANY(S, x), ANY(D, y), const Walk walk) {
    START(x);
    START(y);
    EACH(k, i) {
        const CAT(wide_, SRC) v = CAT(load_, SRC)(x, AT(0, i));
        CAT(store_, DST)(y, AT(1, i), CAT(to_, DST)(v));
    }
}
