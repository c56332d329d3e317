// Blocks of 16 rows of a weight times all new tokens by dot products, where there is no matrix unit.
//
// Each weight is read or unpacked once for all tokens, only tokens that are there cost something, and all are computed
// by the same operations in the same order, however many there are.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "products.h"
#include "vectors.h"

// First, weights as they lie. A register holds 32 columns of a row, another 32 features of a token; what they come to
// stays in a register for each row and token, and its parts are added up at the end of the row.

// Rows as they lie: registers of 32 columns.
struct Whole {
  static constexpr int kRegisters = 1;
  const bf16* w;
  int64_t depth;

  void take(int64_t row, int64_t k, __m512i* out) const { *out = _mm512_loadu_si512(w + row * depth + k); }
  void fetch(int64_t rows, int64_t row, int64_t k) const {  // what is read next
    for (int64_t i = 0; i < rows; i++) _mm_prefetch((const char*)(w + (row + rows + i) * depth + k), _MM_HINT_T0);
  }
};

// Rows of 4 or 8 bits, two registers at a time.
template <int Bits>
struct Codes {
  static constexpr int kRegisters = 2;
  Matrix w;
  Packing how;

  void take(int64_t row, int64_t k, __m512i* out) const { how.template row<Bits>(w, row, k, out); }
  void fetch(int64_t rows, int64_t row, int64_t k) const {
    // All rows of a block lie side by side, so what comes next is the next block, of which each turn fetches its part.
    const int64_t bytes = Bits == 4 ? kPack / 2 : kPack;
    const uint8_t* next = w.codes + (kRows + row) * how.depth * Bits / 8 + k * rows * Bits / 8;
    for (int64_t i = 0; i < rows * bytes; i += 64) _mm_prefetch((const char*)(next + i), _MM_HINT_T0);
  }
};

// Rows [row, row + Rows) times `Lanes` tokens: out[row][lane], or out[row] where there is one token. `x` and `out` may
// begin at a later token.
template <int Rows, int Lanes, class Weight>
inline void dot(const Weight& weight, int64_t row, int64_t depth, const bf16* x, float* out) {
  constexpr int kCount = Rows * Lanes, kStride = Lanes == 1 ? 1 : kLanes;
  constexpr int kParts = (kCount + 15) / 16;
  __m512 sum[kParts * 16];
  for (int i = 0; i < kParts * 16; i++) sum[i] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += 32 * Weight::kRegisters) {
    const bf16* from = x + k * kStride;
    weight.fetch(Rows, row, k);
    if constexpr (Weight::kRegisters == 1) {
      __m512i w[Rows];
      for (int i = 0; i < Rows; i++) weight.take(row + i, k, w + i);
      for (int j = 0; j < Lanes; j++) {
        const __m512bh v = (__m512bh)_mm512_loadu_si512(from + 32 * j);
        for (int i = 0; i < Rows; i++) sum[i * Lanes + j] = _mm512_dpbf16_ps(sum[i * Lanes + j], (__m512bh)w[i], v);
      }
    } else {
      __m512i w[Rows][2];
      for (int i = 0; i < Rows; i++) weight.take(row + i, k, w[i]);
      for (int half = 0; half < 2; half++)
        for (int j = 0; j < Lanes; j++) {
          const __m512bh v = (__m512bh)_mm512_loadu_si512(from + 32 * (half * kStride + j));
          for (int i = 0; i < Rows; i++)
            sum[i * Lanes + j] = _mm512_dpbf16_ps(sum[i * Lanes + j], (__m512bh)w[i][half], v);
        }
    }
  }
  alignas(64) float found[kParts * 16];
  for (int part = 0; part < kParts; part++) _mm512_store_ps(found + part * 16, sums(sum + part * 16));
  for (int i = 0; i < kCount; i++) out[(row + i / Lanes) * kStride + i % Lanes] = found[i];
}

// As many rows at once as registers hold sums, but two at least, or every product would wait for a token's features,
// which the nearest cache does not hold for all tokens: the last few tokens are taken on their own.
template <int Lanes, class Weight>
inline void dotted(const Weight& weight, int64_t depth, const bf16* x, float* out) {
  constexpr int kAtOnce = Lanes == 1 ? 16 : Lanes <= 6 ? 4 : 2, kFirst = Lanes <= 13 ? Lanes : 8;
  for (int row = 0; row < kRows; row += kAtOnce) {
    dot<kAtOnce, kFirst>(weight, row, depth, x, out);
    if constexpr (kFirst < Lanes) dot<kAtOnce, Lanes - kFirst>(weight, row, depth, x + 32 * kFirst, out + kFirst);
  }
}

template <class Weight>
inline void dotted(const Weight& weight, int64_t depth, const bf16* x, int lanes, float* out) {
  using Function = void (*)(const Weight&, int64_t, const bf16*, float*);
  static constexpr Function kBy[] = {
      dotted<1, Weight>,  dotted<2, Weight>,  dotted<3, Weight>,  dotted<4, Weight>,
      dotted<5, Weight>,  dotted<6, Weight>,  dotted<7, Weight>,  dotted<8, Weight>,
      dotted<9, Weight>,  dotted<10, Weight>, dotted<11, Weight>, dotted<12, Weight>,
      dotted<13, Weight>, dotted<14, Weight>, dotted<15, Weight>, dotted<16, Weight>,
  };
  kBy[lanes - 1](weight, depth, x, out);
}

// Second, weights that were turned: blocks of 16 rows, [pair of columns][row][2]. A register holds a pair of columns of
// 16 rows, another one pair of a token's features 16 times, so nothing is left to be added up. For short rows that is
// most of the work; it takes a copy, so it is for small models.

// Four lanes of 16 rows to out[row][lane].
inline void put_four(const __m512* lane, float* out) {
  const __m512 a = _mm512_unpacklo_ps(lane[0], lane[1]), b = _mm512_unpackhi_ps(lane[0], lane[1]);
  const __m512 c = _mm512_unpacklo_ps(lane[2], lane[3]), d = _mm512_unpackhi_ps(lane[2], lane[3]);
  const auto pairs = [](__m512 v) { return _mm512_castps_pd(v); };
  const __m512d rows[4] = {_mm512_unpacklo_pd(pairs(a), pairs(c)), _mm512_unpackhi_pd(pairs(a), pairs(c)),
                           _mm512_unpacklo_pd(pairs(b), pairs(d)), _mm512_unpackhi_pd(pairs(b), pairs(d))};
  for (int i = 0; i < 4; i++) {  // rows i, 4 + i, 8 + i and 12 + i
    const __m512 four = _mm512_castpd_ps(rows[i]);
    _mm_storeu_ps(out + i * kLanes, _mm512_castps512_ps128(four));
    _mm_storeu_ps(out + (4 + i) * kLanes, _mm512_extractf32x4_ps(four, 1));
    _mm_storeu_ps(out + (8 + i) * kLanes, _mm512_extractf32x4_ps(four, 2));
    _mm_storeu_ps(out + (12 + i) * kLanes, _mm512_extractf32x4_ps(four, 3));
  }
}

template <int Count, int Lanes>
inline void turned(const Matrix* w, int64_t depth, const bf16* x, float (*out)[kRows * kLanes]) {
  constexpr int kStride = Lanes == 1 ? 1 : kLanes, kRoom = (Lanes + 3) / 4 * 4;
  __m512 sum[Count][kRoom];
  for (int i = 0; i < Count; i++)
    for (int j = 0; j < kRoom; j++) sum[i][j] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < depth / 2; pair++) {
    __m512bh v[Count];
    for (int i = 0; i < Count; i++) v[i] = (__m512bh)_mm512_loadu_si512(w[i].whole + pair * 2 * kRows);
    for (int j = 0; j < Lanes; j++) {
      int32_t two;
      std::memcpy(&two, x + (pair * kStride + j) * 2, 4);
      const __m512bh token = (__m512bh)_mm512_set1_epi32(two);
      for (int i = 0; i < Count; i++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], v[i], token);
    }
  }
  for (int i = 0; i < Count; i++) {
    if (Lanes == 1) {
      _mm512_storeu_ps(out[i], sum[i][0]);
      continue;
    }
    for (int j = 0; j < Lanes; j += 4) put_four(sum[i] + j, out[i] + j);
  }
}

// As many of `Count` blocks at once as registers hold sums.
template <int Count, int Lanes>
inline void turned_by(const Matrix* w, int64_t depth, const bf16* x, float (*out)[kRows * kLanes]) {
  constexpr int kMost = Lanes <= 6 ? 4 : Lanes <= 13 ? 2 : 1, kAtOnce = kMost < Count ? kMost : Count;
  for (int i = 0; i < Count; i += kAtOnce) turned<kAtOnce, Lanes>(w + i, depth, x, out + i);
}

template <int Count>
inline void turned(const Matrix* w, int64_t depth, const bf16* x, int lanes, float (*out)[kRows * kLanes]) {
  using Function = void (*)(const Matrix*, int64_t, const bf16*, float (*)[kRows * kLanes]);
  static constexpr Function kBy[] = {
      turned_by<Count, 1>,  turned_by<Count, 2>,  turned_by<Count, 3>,  turned_by<Count, 4>,
      turned_by<Count, 5>,  turned_by<Count, 6>,  turned_by<Count, 7>,  turned_by<Count, 8>,
      turned_by<Count, 9>,  turned_by<Count, 10>, turned_by<Count, 11>, turned_by<Count, 12>,
      turned_by<Count, 13>, turned_by<Count, 14>, turned_by<Count, 15>, turned_by<Count, 16>,
  };
  kBy[lanes - 1](w, depth, x, out);
}
