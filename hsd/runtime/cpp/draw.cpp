// Drawing and verifying on the host: the rules of `hsd/sampling.py` and `hsd/verify.py`, which are what people read and
// what tests trust. Beside a draft's step of 20 microseconds a dozen calls of a tensor library would cost more than it.
//
// Rows are float32, one behind the other. Sums over a vocabulary are float64 sums of blocks of 128, so that 150,000
// small numbers lose nothing; a draw inverts the cumulative sum, first over blocks, then inside one.

#include "draw.h"

#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t kBlock = 128;

inline __mmask16 within(int64_t left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }

// Weights of a row, 16 at a time and never negative: what is drawn from.
struct Plain {
  const float* p;
  __m512 operator()(int64_t i, __mmask16 m) const { return _mm512_maskz_loadu_ps(m, p + i); }
};

struct Residual {  // max(reach p - q, 0)
  const float *p, *q;
  __m512 reach;
  __m512 operator()(int64_t i, __mmask16 m) const {
    const __m512 own = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, p + i), reach);
    const __m512 rest = _mm512_sub_ps(own, _mm512_maskz_loadu_ps(m, q + i));
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(rest, _mm512_setzero_ps(), _CMP_LT_OQ), rest, _mm512_setzero_ps());
  }
};

struct Without {  // p but for one token: the residual of a one-hot q
  const float* p;
  int64_t token;
  __m512 operator()(int64_t i, __mmask16 m) const {
    if (token >= i && token < i + 16) m &= (__mmask16) ~(1u << (token - i));
    return _mm512_maskz_loadu_ps(m, p + i);
  }
};

template <class Row>
double block_sum(const Row& row, int64_t begin, int64_t vocab) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = begin; i < begin + kBlock && i < vocab; i += 16) sum = _mm512_add_ps(sum, row(i, within(vocab - i)));
  return _mm512_reduce_add_ps(sum);
}

template <class Row>
double total(const Row& row, int64_t vocab) {
  double sum = 0;
  for (int64_t i = 0; i < vocab; i += kBlock) sum += block_sum(row, i, vocab);
  return sum;
}

// A token by its weight, given a coin in [0, 1); -1 where there is no mass, or no finite one. Also the mass.
template <class Row>
int64_t drawn(const Row& row, int64_t vocab, double coin, double* mass) {
  static thread_local std::vector<double> up_to;
  up_to.clear();
  double sum = 0;
  for (int64_t i = 0; i < vocab; i += kBlock) up_to.push_back(sum += block_sum(row, i, vocab));
  *mass = sum;
  if (!(sum > 0) || !std::isfinite(sum)) return -1;
  const double wanted = coin * sum;
  size_t block = 0;
  while (block + 1 < up_to.size() && up_to[block] <= wanted) block++;
  const double before = block ? up_to[block - 1] : 0.0;
  const int64_t begin = int64_t(block) * kBlock, count = vocab - begin < kBlock ? vocab - begin : kBlock;
  alignas(64) float weights[kBlock];
  for (int64_t i = 0; i < kBlock; i += 16)
    _mm512_store_ps(weights + i, row(begin + i, i < count ? within(count - i) : 0));
  double inside = 0;
  for (int64_t i = 0; i < count; i++) inside += weights[i];
  // The block holds what is wanted; its own sum may fall short of it in the last bit, never onto a token without mass.
  const double goal = std::fmin(wanted - before, std::nextafter(inside, 0.0));
  double reached = 0;
  for (int64_t i = 0; i < count; i++) {
    reached += weights[i];
    if (reached > goal) return begin + i;
  }
  return -1;
}

float largest(const float* row, int64_t vocab) {
  __m512 top = _mm512_set1_ps(-INFINITY);
  for (int64_t i = 0; i < vocab; i += 16)
    top = _mm512_max_ps(top, _mm512_mask_loadu_ps(top, within(vocab - i), row + i));
  return _mm512_reduce_max_ps(top);
}

// out = exp(scale x - the largest); their sum. Not finite if a logit is NaN or the largest is infinite.
double exponentials(const float* row, int64_t vocab, float scale, float* out) {
  const __m512 factor = _mm512_set1_ps(scale), top = _mm512_mul_ps(_mm512_set1_ps(largest(row, vocab)), factor);
  double sum = 0;
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    __m512 part = _mm512_setzero_ps();
    for (int64_t i = begin; i < begin + kBlock && i < vocab; i += 16) {
      const __mmask16 m = within(vocab - i);
      const __m512 x = _mm512_sub_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(m, row + i), factor), top);
      const __m512 e = _mm512_maskz_mov_ps(m, exponential(_mm512_max_ps(_mm512_set1_ps(-104.0f), x)));
      if (out) _mm512_mask_storeu_ps(out + i, m, e);
      part = _mm512_add_ps(part, e);
    }
    sum += _mm512_reduce_add_ps(part);
  }
  return sum;
}

void scaled(float* row, int64_t vocab, float factor) {
  const __m512 f = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < vocab; i += 16) {
    const __mmask16 m = within(vocab - i);
    _mm512_mask_storeu_ps(row + i, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, row + i), f));
  }
}

bool sound(double sum) { return sum > 0 && std::isfinite(sum); }

}  // namespace

extern "C" {

// The likeliest token of every row, the first of equals; -1 for a row with a NaN, or whose largest is infinite.
void hsd_best(const float* logits, int64_t rows, int64_t stride, int64_t vocab, int64_t* out) {
  for (int64_t r = 0; r < rows; r++) {
    const float* row = logits + r * stride;
    const __m512 top = _mm512_set1_ps(largest(row, vocab));
    out[r] = -1;
    __mmask16 odd = 0;
    for (int64_t i = 0; i < vocab; i += 16) {
      const __mmask16 m = within(vocab - i);
      const __m512 x = _mm512_maskz_loadu_ps(m, row + i);
      const __mmask16 equal = _mm512_mask_cmp_ps_mask(m, x, top, _CMP_EQ_OQ);
      odd |= _mm512_mask_cmp_ps_mask(m, x, x, _CMP_UNORD_Q);
      if (equal && out[r] < 0) out[r] = i + __builtin_ctz(equal);
    }
    if (odd || !std::isfinite(_mm512_cvtss_f32(top))) out[r] = -1;
  }
}

// Probability of the likeliest token of a row, at temperature 1.
double hsd_sure(const float* logits, int64_t vocab) { return 1 / exponentials(logits, vocab, 1.0f, nullptr); }

// Draws from softmax(scale * logits), which `out` takes; -1 if that is no distribution. Also its largest probability.
int64_t hsd_pick(const float* logits, int64_t vocab, float scale, double coin, float* out, double* sure) {
  double sum = exponentials(logits, vocab, scale, out), mass;
  *sure = 1 / sum;
  if (!sound(sum)) return -1;
  const int64_t token = drawn(Plain{out}, vocab, coin, &mass);
  scaled(out, vocab, float(1 / sum));
  return token;
}

// out = softmax(scale * logits), row by row; NaN for a row that is no distribution.
void hsd_softmax(const float* logits, int64_t rows, int64_t stride, int64_t vocab, float scale, float* out) {
  for (int64_t r = 0; r < rows; r++) {
    const double sum = exponentials(logits + r * stride, vocab, scale, out + r * vocab);
    scaled(out + r * vocab, vocab, sound(sum) ? float(1 / sum) : NAN);
  }
}

// How many of `n` draft tokens are accepted, and the verifier's own token (-1 if `p` is no distribution).
//
// p has n + 1 rows; q has n, or is null where the draft was certain of every token. coins has n + 1 entries. Rules:
// token by token (Leviathan et al. 2022, arXiv 2211.17192) or the block as a whole (Sun et al. 2024, arXiv 2403.10444).
int64_t hsd_verify(int as_block, int64_t n, const int64_t* draft, const float* q, const float* p, int64_t vocab,
                   const double* coins, int64_t* token) {
  *token = -1;
  int64_t accepted = 0;
  double reach = 1, mass;
  if (as_block) {
    std::vector<double> reaches(1, 1.0);
    for (int64_t i = 0; i < n; i++) {
      const double own = p[i * vocab + draft[i]], theirs = q ? q[i * vocab + draft[i]] : 1.0;
      if (std::isnan(own)) return 0;
      reaches.push_back(own > 0 ? std::fmin(reaches.back() * own / theirs, 1.0) : 0.0);
    }
    if (n && coins[n - 1] < reaches[n]) accepted = n;
    for (int64_t i = n - 1; i > 0 && accepted == 0; i--) {
      const float* row = p + i * vocab;
      const double r = reaches[i];
      const double rest = q ? total(Residual{row, q + i * vocab, _mm512_set1_ps(float(r))}, vocab)
                            : r * total(Without{row, draft[i]}, vocab);
      // Where neither mass nor doubt is left, the prefix cannot end here.
      if (coins[i - 1] * (rest + 1 - r) < rest) accepted = i;
    }
    reach = reaches[accepted];
  } else {
    for (int64_t i = 0; i < n; i++) {
      if (std::isnan(p[i * vocab + draft[i]])) return 0;
    }
    while (accepted < n &&
           coins[accepted] * (q ? q[accepted * vocab + draft[accepted]] : 1.0) < p[accepted * vocab + draft[accepted]])
      accepted++;
  }
  const float* row = p + accepted * vocab;
  if (accepted < n) {
    *token = q ? drawn(Residual{row, q + accepted * vocab, _mm512_set1_ps(float(reach))}, vocab, coins[n], &mass)
               : drawn(Without{row, draft[accepted]}, vocab, coins[n], &mass);
  }
  // Where p and q are equal up to rounding nothing is left, and p itself is the residual.
  if (*token < 0) *token = drawn(Plain{row}, vocab, coins[n], &mass);
  return accepted;
}
}
