// Blocks of 16 rows of a weight times all new tokens, by the matrix unit or by dot products: what a step consists of.
//
// A weight is bfloat16, or packed in 4 or 8 bits and then unpacked block by block, to the very numbers that it would
// hold in bfloat16: either way the sums are the same, bit for bit. Packed, a quarter or half of the bytes is read.
//
// The input is pairs of features, a lane per token, in groups of lanes (`pair_at`): with tiles x[feature / 2][lane][2].
// Sums come out as out[row][lane], 16 lanes, or 1 where there is one token.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "vectors.h"

constexpr int kLanes = 16;  // most tokens of a pass
constexpr int kRows = 16;   // rows of a tile
constexpr int kDepth = 32;  // columns of a tile
constexpr int kTiles = 4;   // tiles of weights in flight
constexpr int kPack = 64;   // columns of a packed block

// A weight, row-major (out, in); or what is packed, see `unpack_4` and `unpack_8`.
struct Matrix {
  const bf16* whole;     // null if packed
  const uint8_t* codes;  // 4 bits: (out / 16, in / 64, 16, 32); 8 bits: (out, in), signed
  const float* scales;   // 4 bits: (out / 16, in / 64, 16); 8 bits: (out)
};

struct __attribute__((packed)) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

__attribute__((target("amx-tile"))) inline void configure(int lanes) {
  TileConfig c;
  for (int i = 0; i < 8; i++) {
    c.rows[i] = 16;
    c.bytes[i] = i == 4 || i == 5 ? 64 : lanes * 4;  // 0 to 3: sums; 4, 5: weights; 6: input
  }
  // The intrinsics do not tell every compiler that they read all of what they are pointed to.
  __asm__ volatile("" : : "r"(&c) : "memory");
  _tile_loadconfig(&c);
}

__attribute__((target("amx-tile"))) inline void release() { _tile_release(); }

// Sums of `Count` blocks of 16 rows with all lanes: out[block][row][lane].
template <int Count>
__attribute__((target("amx-tile,amx-bf16"))) inline void tiled(const bf16* const* w, int64_t depth, const bf16* x,
                                                               int lanes, float (*out)[kRows * kLanes]) {
  const int64_t row = depth * 2, pair = (lanes == 1 ? 1 : kLanes) * 4;
  __asm__ volatile("" : : "r"(x) : "memory");
  _tile_zero(0);
  if (Count > 1) _tile_zero(1);
  if (Count > 2) _tile_zero(2);
  if (Count > 3) _tile_zero(3);
  for (int64_t k = 0; k < depth; k += kDepth) {
    _tile_loadd(6, reinterpret_cast<const char*>(x) + k / 2 * pair, pair);
    _tile_loadd(4, w[0] + k, row);
    _tile_dpbf16ps(0, 4, 6);
    if (Count > 1) {
      _tile_loadd(5, w[1] + k, row);
      _tile_dpbf16ps(1, 5, 6);
    }
    if (Count > 2) {
      _tile_loadd(4, w[2] + k, row);
      _tile_dpbf16ps(2, 4, 6);
    }
    if (Count > 3) {
      _tile_loadd(5, w[3] + k, row);
      _tile_dpbf16ps(3, 5, 6);
    }
  }
  _tile_stored(0, out[0], pair);
  if (Count > 1) _tile_stored(1, out[1], pair);
  if (Count > 2) _tile_stored(2, out[2], pair);
  if (Count > 3) _tile_stored(3, out[3], pair);
}

// 64 columns of a row of 4 bits, unpacked. Byte j holds columns j (low half) and 32 + j; a code stands for an entry of
// `table` times the row's scale.
inline void unpack_4(const uint8_t* codes, float scale, __m512 table, __m512i* out) {
  const __m512i two = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)codes));
  // 16 entries twice: a look-up takes 5 bits, of which the fifth is the next code's.
  const __m512i entries = _mm512_broadcast_i64x4(narrowed(_mm512_mul_ps(table, _mm512_set1_ps(scale))));
  out[0] = _mm512_permutexvar_epi16(two, entries);
  out[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(two, 4), entries);
}

// The same for bytes: numbers of which 127 stands for the row's scale, rounded as bitsandbytes does.
inline void unpack_8(const uint8_t* codes, float scale, __m512i* out) {
  const __m512 least = _mm512_set1_ps(7.874015718698502e-3f), all = _mm512_set1_ps(scale);
  const auto some = [&](int j) {
    const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(codes + j)));
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(wide), all), least);
  };
  for (int j = 0; j < 2; j++) out[j] = (__m512i)_mm512_cvtne2ps_pbh(some(32 * j + 16), some(32 * j));
}

// How a model's weights are packed.
struct Packing {
  int64_t bits;
  int64_t depth;  // columns of this weight
  __m512 table;

  // Where row n begins, a multiple of 16.
  Matrix from(const Matrix& w, int64_t n) const {
    if (bits == 4) return {nullptr, w.codes + n * depth / 2, w.scales + n * depth / kPack};
    return {nullptr, w.codes + n * depth, w.scales + n};
  }

  // Row `i` of 16 and columns k to k + 64, half in each register.
  template <int Bits>
  void row(const Matrix& w, int64_t i, int64_t k, __m512i* out) const {
    if (Bits == 4)
      unpack_4(w.codes + k * kRows / 2 + i * kPack / 2, w.scales[k / kPack * kRows + i], table, out);
    else
      unpack_8(w.codes + i * depth + k, w.scales[i], out);
  }

  // 16 rows of them.
  void unpack(const Matrix& w, int64_t k, bf16* out) const {
    __m512i both[2];
    for (int i = 0; i < kRows; i++, out += kPack) {
      bits == 4 ? row<4>(w, i, k, both) : row<8>(w, i, k, both);
      _mm512_storeu_si512(out, both[0]);
      _mm512_storeu_si512(out + kPack / 2, both[1]);
    }
  }
};

// As `tiled`, for packed weights.
template <int Count>
__attribute__((target("amx-tile,amx-bf16"))) inline void tiled(const Matrix* w, const Packing& packing, const bf16* x,
                                                               int lanes, float (*out)[kRows * kLanes]) {
  const int64_t pair = (lanes == 1 ? 1 : kLanes) * 4, steps = packing.depth / kPack;
  // Two, since tiles cannot be loaded at once from what was just stored.
  alignas(64) bf16 made[2][Count][kRows * kPack];
  const auto make = [&](int64_t step) {
    for (int i = 0; i < Count; i++) packing.unpack(w[i], step * kPack, made[step & 1][i]);
  };
  _tile_zero(0);
  if (Count > 1) _tile_zero(1);
  make(0);
  for (int64_t step = 0; step < steps; step++) {
    if (step + 1 < steps) make(step + 1);
    __asm__ volatile("" : : "r"(x), "r"(made) : "memory");
    for (int half = 0; half < 2; half++) {
      const bf16* from = made[step & 1][0] + half * kDepth;
      _tile_loadd(6, reinterpret_cast<const char*>(x) + (step * kPack + half * kDepth) / 2 * pair, pair);
      _tile_loadd(4, from, kPack * 2);
      _tile_dpbf16ps(0, 4, 6);
      if (Count > 1) {
        _tile_loadd(5, from + kRows * kPack, kPack * 2);
        _tile_dpbf16ps(1, 5, 6);
      }
    }
  }
  _tile_stored(0, out[0], pair);
  if (Count > 1) _tile_stored(1, out[1], pair);
}

// Pairs of features of one lane that lie side by side in the input: one for a tile; for dot products those of a
// register.
constexpr int kBeside = 16;

// Where a pair of features of one lane lies in the input, in pairs: [pairs / beside][lane][beside]; without room for
// other lanes where there is one token.
inline int64_t pair_at(int64_t feature, int64_t lane, int lanes, int beside) {
  const int64_t pair = feature / 2;
  return lanes == 1 ? pair : pair / beside * beside * kLanes + lane * beside + pair % beside;
}

// Two features of all lanes as what a product takes.
inline void put_pair(bf16* x, int64_t feature, __m512 even, __m512 odd, int lanes, int beside) {
  const __m512i lo = _mm512_cvtepu16_epi32(narrowed(even));
  const __m512i both = _mm512_or_si512(lo, _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrowed(odd)), 16));
  bf16* at = x + 2 * pair_at(feature, 0, lanes, beside);
  if (beside == 1) return _mm512_storeu_si512(at, both);
  const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i places = _mm512_mullo_epi32(numbers, _mm512_set1_epi32(beside));
  _mm512_mask_i32scatter_epi32(at, (__mmask16)((1 << lanes) - 1), places, both, 4);
}
