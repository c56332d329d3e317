// What tokens see of those before them: softmax attention in float32, for several queries of one head of keys at once.
//
// Wide passes ask the same keys and values with many queries. What is loaded is shared among up to four of them; each
// query is computed by the same operations in the same order however many there are.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

constexpr int kAsked = 16;  // queries that share what is loaded of keys and values
constexpr int kAhead = 8;   // positions that are fetched ahead

inline int64_t rounded(int64_t n) { return (n + 15) / 16 * 16; }

// `Queries` queries times 16 / Queries positions: scores[query * room + position].
template <int Queries>
inline void score(const float* const* q, const float* keys, int64_t stride, int64_t some, int64_t size, float* scores,
                  int64_t room) {
  constexpr int kAtOnce = 16 / Queries;
  const float* k[kAtOnce];
  for (int i = 0; i < kAtOnce; i++) k[i] = keys + (i < some ? i : 0) * stride;
  __m512 v[16];
  for (int i = 0; i < 16; i++) v[i] = _mm512_setzero_ps();
  for (int64_t c = 0; c < size; c += 16) {
    __m512 key[kAtOnce];
    for (int i = 0; i < kAtOnce; i++) key[i] = _mm512_loadu_ps(k[i] + c);
    for (int j = 0; j < Queries; j++) {
      const __m512 query = _mm512_loadu_ps(q[j] + c);
      for (int i = 0; i < kAtOnce; i++) v[j * kAtOnce + i] = _mm512_fmadd_ps(query, key[i], v[j * kAtOnce + i]);
    }
  }
  const __m512 s = sums(v);
  if (Queries == 1) return _mm512_storeu_ps(scores, s);
  alignas(64) float all[16];
  _mm512_store_ps(all, s);
  for (int j = 0; j < Queries; j++) std::memcpy(scores + j * room, all + j * kAtOnce, kAtOnce * sizeof(float));
}

// `Queries` queries' weights times 16 * Parts features of all positions: out[query][feature].
template <int Queries, int Parts>
inline void blend(const float* weights, int64_t room, const float* values, int64_t stride, int64_t span,
                  float* const* out) {
  __m512 sum[Queries][Parts];
  for (int j = 0; j < Queries; j++)
    for (int i = 0; i < Parts; i++) sum[j][i] = _mm512_setzero_ps();
  for (int64_t p = 0; p < span; p++) {
    const float* v = values + p * stride;
    for (int i = 0; i < Parts; i++) _mm_prefetch((const char*)(v + kAhead * stride + 16 * i), _MM_HINT_T0);
    __m512 value[Parts];
    for (int i = 0; i < Parts; i++) value[i] = _mm512_loadu_ps(v + 16 * i);
    for (int j = 0; j < Queries; j++) {
      const __m512 weight = _mm512_set1_ps(weights[j * room + p]);
      for (int i = 0; i < Parts; i++) sum[j][i] = _mm512_fmadd_ps(weight, value[i], sum[j][i]);
    }
  }
  for (int j = 0; j < Queries; j++)
    for (int i = 0; i < Parts; i++) _mm512_storeu_ps(out[j] + 16 * i, sum[j][i]);
}

// Some queries of one head of keys over the positions before them, `stride` floats apart. Each query is computed by the
// same operations in the same order however many there are: only what is loaded is shared.
struct Attention {
  const float *keys, *values;
  int64_t stride, size;
  float* scores;  // room for so many positions of every query
  int64_t room;

  template <int Queries>
  void scored(const float* const* q, float* to, int64_t p, int64_t most) const {
    constexpr int kAtOnce = 16 / Queries;
    for (int64_t end = std::min(p + 16, most); p < end; p += kAtOnce)
      score<Queries>(q, keys + p * stride, stride, std::min<int64_t>(most - p, kAtOnce), size, to + p, room);
  }

  template <int Queries>
  void blended(const float* weights, int64_t span, float* const* out) const {
    constexpr int kWide = Queries > 2 ? 4 : 8;
    float* to[Queries];
    for (int64_t c = 0; c < size;) {
      for (int j = 0; j < Queries; j++) to[j] = out[j] + c;
      if (size - c >= 16 * kWide) {
        blend<Queries, kWide>(weights, room, values + c, stride, span, to);
        c += 16 * kWide;
      } else {
        blend<Queries, 1>(weights, room, values + c, stride, span, to);
        c += 16;
      }
    }
  }

  // Query i sees `spans[i]` positions, the last one the most. `out[i]` (size) is still to be multiplied by `shares[i]`.
  void operator()(const float* const* q, const int64_t* spans, int count, float* const* out, float* shares) const {
    const int64_t most = spans[count - 1];
    for (int64_t p = 0; p < most; p += 16) {
      for (int64_t i = p + 16; i < std::min(p + 32, most); i++)
        for (int64_t c = 0; c < size; c += 16) _mm_prefetch((const char*)(keys + i * stride + c), _MM_HINT_T0);
      int i = 0;
      for (; i + 4 <= count; i += 4) scored<4>(q + i, scores + i * room, p, most);
      for (; i + 2 <= count; i += 2) scored<2>(q + i, scores + i * room, p, most);
      if (i < count) scored<1>(q + i, scores + i * room, p, most);
    }
    for (int i = 0; i < count; i++) shares[i] = weigh(scores + i * room, spans[i], most);
    int i = 0;
    for (; i + 4 <= count; i += 4) blended<4>(scores + i * room, spans[i + 3], out + i);
    for (; i + 2 <= count; i += 2) blended<2>(scores + i * room, spans[i + 1], out + i);
    if (i < count) blended<1>(scores + i * room, spans[i], out + i);
  }

  // Scores of `span` positions become weights, those behind them, up to `most`, 0. One over the sum of the weights.
  static float weigh(float* scores, int64_t span, int64_t most) {
    const __m512 none = _mm512_set1_ps(-INFINITY);
    const auto some = [span](int64_t p) { return span - p < 16 ? __mmask16((1 << (span - p)) - 1) : __mmask16(-1); };
    __m512 top = none;
    for (int64_t p = 0; p < span; p += 16)
      top = _mm512_max_ps(top, _mm512_mask_blend_ps(some(p), none, _mm512_loadu_ps(scores + p)));
    const __m512 largest = _mm512_set1_ps(_mm512_reduce_max_ps(top));
    __m512 total = _mm512_setzero_ps();
    for (int64_t p = 0; p < span; p += 16) {
      const __m512 e = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + p), largest));
      _mm512_storeu_ps(scores + p, _mm512_maskz_mov_ps(some(p), e));
      total = _mm512_add_ps(total, _mm512_maskz_mov_ps(some(p), e));
    }
    for (int64_t p = rounded(span); p < most; p += 16) _mm512_storeu_ps(scores + p, _mm512_setzero_ps());
    return 1.0f / _mm512_reduce_add_ps(total);
  }
};

// How the queries of a head of keys are shared out: in parts that keep all threads busy; each part reads all keys.
struct Asked {
  int64_t all, parts;

  Asked(int64_t all, int64_t heads, int threads) : all(all), parts((all + kAsked - 1) / kAsked) {
    const auto cost = [&](int64_t n) { return (heads * n + threads - 1) / threads * (double(all) / n + 1); };
    for (int64_t n = parts + 1; n <= all; n++)
      if (cost(n) < cost(parts)) parts = n;
  }
  int64_t begin(int64_t part) const { return all * part / parts; }
};
