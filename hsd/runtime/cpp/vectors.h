// Small things that steps and draws share: bfloat16 to float and back, 16 at a time, and the exponential function.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

typedef uint16_t bf16;

inline float widened(bf16 v) {
  const uint32_t bits = uint32_t(v) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline __m512 widened16(const bf16* v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)v)), 16));
}

inline __m256i narrowed(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }

// 16 sums of 16 lanes each, all added in the same order.
inline __m512 sums(const __m512* v) {
  __m512 a[16], b[16];
  for (int i = 0; i < 8; i++) {
    const __m512 lo = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), hi = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    a[i] = _mm512_add_ps(lo, hi);  // in every quarter: two lanes of v[2i], v[2i+1] in turn
  }
  for (int i = 0; i < 4; i++) {
    const __m512 lo = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a[2 * i]), _mm512_castps_pd(a[2 * i + 1])));
    const __m512 hi = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a[2 * i]), _mm512_castps_pd(a[2 * i + 1])));
    b[i] = _mm512_add_ps(lo, hi);  // in every quarter: one sum of each of v[4i] … v[4i+3]
  }
  for (int i = 0; i < 2; i++) {
    const __m512 lo = _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
                 hi = _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd);
    a[i] = _mm512_add_ps(lo, hi);
  }
  const __m512 lo = _mm512_shuffle_f32x4(a[0], a[1], 0x88), hi = _mm512_shuffle_f32x4(a[0], a[1], 0xdd);
  return _mm512_add_ps(lo, hi);
}

// e to the power of x, within 3e-7 of its value.
inline __m512 exponential(__m512 x) {
  const __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts: the first has so few bits that its multiples are exact.
  __m512 r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}
