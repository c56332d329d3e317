// One pass of a Llama-shaped model over 1 to 16 new tokens, in bfloat16 with float32 sums, for x86-64 with AVX512-BF16.
//
// At batch 1 a step costs what it costs to read the weights, so everything here serves one aim: read each weight once,
// in the order in which it lies in memory, whatever the number of tokens. A tile of the matrix unit (AMX) takes 16 rows
// of a weight as they are, 32 columns at a time, and multiplies them with all new tokens at once; nothing is repacked.
//
// Layout. What belongs to the new tokens is kept feature by feature: f[feature][lane], a lane per token, 16 lanes, or 1
// where there is but one token. Inputs of products are pairs of features: x[feature / 2][lane][2], which is what tile
// and dot product instructions take. The root mean square norm scales a token as a whole, so products read what is not
// yet scaled, and their results are scaled.
//
// Every lane is computed by the same operations in the same order whatever the number of lanes. With tiles a pass over
// five tokens therefore gives, bit for bit, what five passes over one token give.

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>

#include "attention.h"
#include "dots.h"
#include "draw.h"
#include "model.h"

namespace {

struct Pass {
  const Model& m;
  int lanes;      // new tokens
  int stride;     // floats of a feature: 1 or 16
  int beside;     // pairs of features of a token that lie side by side in the input of products
  int64_t start;  // tokens before them

  template <int Count>
  void blocks(const Matrix* w, int64_t depth, const bf16* x, float (*out)[kRows * kLanes]) const {
    if (!w->whole) return packed<Count>(w, depth, x, out);
    if (m.tiles) {
      const bf16* rows[Count];
      for (int i = 0; i < Count; i++) rows[i] = w[i].whole;
      tiled<Count>(rows, depth, x, lanes, out);
    } else if (m.turned) {
      turned<Count>(w, depth, x, lanes, out);
    } else {
      for (int i = 0; i < Count; i++) dotted(Whole{w[i].whole, depth}, depth, x, lanes, out[i]);
    }
  }

  Packing packing(int64_t depth) const {
    return {m.bits, depth, m.bits == 4 ? _mm512_loadu_ps(m.table) : _mm512_setzero_ps()};
  }

  template <int Count>
  void packed(const Matrix* w, int64_t depth, const bf16* x, float (*out)[kRows * kLanes]) const {
    const Packing how = packing(depth);
    if (m.tiles) {
      constexpr int kAtOnce = Count > 1 ? 2 : 1;
      for (int i = 0; i < Count; i += kAtOnce) tiled<kAtOnce>(w + i, how, x, lanes, out + i);
    } else if (m.bits == 4) {
      for (int i = 0; i < Count; i++) dotted(Codes<4>{w[i], how}, depth, x, lanes, out[i]);
    } else {
      for (int i = 0; i < Count; i++) dotted(Codes<8>{w[i], how}, depth, x, lanes, out[i]);
    }
  }

  // `w` from row n on, a multiple of 16.
  Matrix from(const Matrix& w, int64_t n, int64_t depth) const {
    return w.whole ? Matrix{w.whole + n * depth, nullptr, nullptr} : packing(depth).from(w, n);
  }

  // Rows [begin, end) of `w`, 16 at a time: done(first row, sums[16][lane]).
  template <class Done>
  void product(const Matrix& w, int64_t depth, const bf16* x, int64_t begin, int64_t end, Done done) const {
    alignas(64) float out[kTiles][kRows * kLanes] = {};  // lanes without a token stay 0
    int64_t n = begin;
    for (; n + kTiles * kRows <= end; n += kTiles * kRows) {
      Matrix some[kTiles];
      for (int i = 0; i < kTiles; i++) some[i] = from(w, n + i * kRows, depth);
      blocks<kTiles>(some, depth, x, out);
      for (int i = 0; i < kTiles; i++) done(n + i * kRows, out[i]);
    }
    for (; n < end; n += kRows) {
      const Matrix one = from(w, n, depth);
      blocks<1>(&one, depth, x, out);
      done(n, out[0]);
    }
  }

  // The same for rows of two matrices of equal shape side by side: done(first row, sums of one, sums of the other).
  template <class Done>
  void product_of_two(const Matrix& a, const Matrix& b, int64_t depth, const bf16* x, int64_t begin, int64_t end,
                      Done done) const {
    alignas(64) float out[kTiles][kRows * kLanes] = {};  // lanes without a token stay 0
    int64_t n = begin;
    for (; n + 2 * kRows <= end; n += 2 * kRows) {
      const Matrix some[4] = {from(a, n, depth), from(b, n, depth), from(a, n + kRows, depth),
                              from(b, n + kRows, depth)};
      blocks<4>(some, depth, x, out);
      done(n, out[0], out[1]);
      done(n + kRows, out[2], out[3]);
    }
    for (; n < end; n += kRows) {
      const Matrix some[2] = {from(a, n, depth), from(b, n, depth)};
      blocks<2>(some, depth, x, out);
      done(n, out[0], out[1]);
    }
  }
};

inline __m512 gated(__m512 gate, __m512 up) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate));
  return _mm512_mul_ps(_mm512_div_ps(gate, _mm512_add_ps(one, e)), up);
}

// What threads share during a pass, cut out of one piece of memory.
struct Scratch {
  float *hidden, *qkv, *query, *squares, *scores;
  bf16 *x, *attended, *inner;
  double* usual;  // seconds of a pass by the number of its tokens, 0 if not known
  int64_t room;   // floats for a query's scores
  size_t bytes;

  Scratch(const Model& m, char* base) {
    char* at = base;
    const auto take = [&](int64_t count, size_t size) {
      char* here = at;
      at += (count * size + 63) / 64 * 64;
      return here;
    };
    const int64_t all = (m.heads + 2 * m.kv_heads) * m.head_dim, heads = m.heads * m.head_dim;
    usual = (double*)take(kLanes + 1, 8);
    hidden = (float*)take(m.width * kLanes, 4);
    qkv = (float*)take(all * kLanes, 4);
    query = (float*)take(heads * kLanes, 4);
    squares = (float*)take(m.width / kRows * kLanes, 4);
    room = rounded(m.context) + 16;
    scores = (float*)take(m.threads * kAsked * (room + m.head_dim), 4);
    x = (bf16*)take(m.width * kLanes, 2);
    attended = (bf16*)take(heads * kLanes, 2);
    inner = (bf16*)take(m.inner * kLanes, 2);
    bytes = at - base;
  }
};

// Adds 16 features of a product to the residual stream, hands on what the next norm's weights make of it, and writes
// the sum of their squares. Sixteen by sixteen: how threads share features out must not show in the result.
struct Residual {
  float *hidden, *squares;
  bf16* x;
  const bf16 *bias, *norm;
  int lanes, beside;

  void many(int64_t n, const float* sums) {
    __m512 scaled[2], square = _mm512_setzero_ps();
    for (int i = 0; i < kRows; i++) {
      __m512 y = _mm512_loadu_ps(sums + i * kLanes);
      if (bias) y = _mm512_add_ps(y, _mm512_set1_ps(widened(bias[n + i])));
      y = _mm512_add_ps(y, _mm512_loadu_ps(hidden + (n + i) * kLanes));
      _mm512_storeu_ps(hidden + (n + i) * kLanes, y);
      square = _mm512_fmadd_ps(y, y, square);
      scaled[i & 1] = _mm512_mul_ps(y, _mm512_set1_ps(widened(norm[n + i])));
      if (i & 1) put_pair(x, n + i - 1, scaled[0], scaled[1], lanes, beside);
    }
    _mm512_storeu_ps(squares + n / kRows * kLanes, square);
  }

  void one(int64_t n, const float* sums) {
    __m512 y = _mm512_loadu_ps(sums);
    if (bias) y = _mm512_add_ps(y, widened16(bias + n));
    y = _mm512_add_ps(y, _mm512_loadu_ps(hidden + n));
    _mm512_storeu_ps(hidden + n, y);
    float square = 0;
    for (int i = 0; i < kRows; i++) square = std::fma(hidden[n + i], hidden[n + i], square);
    squares[n / kRows * kLanes] = square;
    _mm256_storeu_si256((__m256i*)(x + n), narrowed(_mm512_mul_ps(y, widened16(norm + n))));
  }

  void operator()(int64_t n, const float* sums, int stride) { stride == 1 ? one(n, sums) : many(n, sums); }
};

// A head's features of one token, perhaps normed, rotated to its position.
void rotated(const float* from, int stride, const bf16* norm, const Model& m, int64_t place, float factor, float* out) {
  float v[512];
  const int64_t size = m.head_dim, half = size / 2;
  float square = 0;
  for (int64_t i = 0; i < size; i++) {
    v[i] = from[i * stride];
    square = std::fma(v[i], v[i], square);
  }
  if (norm) {
    const float scale = 1.0f / std::sqrt(square / float(size) + float(m.eps));
    for (int64_t i = 0; i < size; i++) v[i] = v[i] * scale * widened(norm[i]);
  }
  const float *cos = m.cos + place * size, *sin = m.sin + place * size;
  for (int64_t i = 0; i < half; i++) {
    out[i] = std::fma(v[i + half], sin[i], v[i] * cos[i]) * factor;
    out[i + half] = std::fma(v[i], sin[i + half], v[i + half] * cos[i + half]) * factor;
  }
}

struct Share {
  int64_t begin, end;
  // Thread `t` of `threads` takes so many of `count` things, in groups of `unit`.
  Share(int64_t count, int64_t unit, int t, int threads)
      : begin(count / unit * t / threads * unit), end(count / unit * (t + 1) / threads * unit) {}
};

// 1 / root mean square of every token, 16 lanes.
__m512 scales(const Model& m, const float* squares, int stride) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t n = 0; n < m.width / kRows; n++) {
    const float* of = squares + n * kLanes;
    sum = _mm512_add_ps(sum, stride == 1 ? _mm512_set1_ps(*of) : _mm512_loadu_ps(of));
  }
  const __m512 mean = _mm512_add_ps(_mm512_div_ps(sum, _mm512_set1_ps(float(m.width))), _mm512_set1_ps(float(m.eps)));
  return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(mean));
}

// A product's sums of row i, scaled, with the bias.
inline __m512 finished(const float* sums, int i, __m512 scale, const bf16* bias, int64_t n, int stride) {
  if (stride == 1) {
    const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(sums), scale);
    return bias ? _mm512_add_ps(y, widened16(bias + n)) : y;
  }
  const __m512 y = _mm512_mul_ps(_mm512_loadu_ps(sums + i * kLanes), scale);
  return bias ? _mm512_add_ps(y, _mm512_set1_ps(widened(bias[n + i]))) : y;
}

// While one is there, its thread takes numbers below the smallest normal float32 for 0. Softmax gives such weights to
// what a model does not look at, and a processor multiplies with one of them many times as slowly.
class Flushed {
 public:
  Flushed() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // results and operands
  ~Flushed() { _mm_setcsr(before_); }
  Flushed(const Flushed&) = delete;

 private:
  unsigned before_;
};

// What a head's query came to, as the next product takes it.
void attended_by(const Pass& pass, const Scratch& s, int64_t head, int64_t lane, const float* result, float share) {
  const int64_t size = pass.m.head_dim;
  alignas(64) bf16 narrow[512];
  for (int64_t i = 0; i < size; i += 16)
    _mm256_storeu_si256((__m256i*)(narrow + i),
                        narrowed(_mm512_mul_ps(_mm512_loadu_ps(result + i), _mm512_set1_ps(share))));
  if (pass.stride == 1) {
    std::memcpy(s.attended + head * size, narrow, size * sizeof(bf16));
    return;
  }
  const int64_t run = std::min(2 * pass.beside, 16);  // features of a token that lie side by side
  for (int64_t i = 0; i < size; i += run)
    std::memcpy(s.attended + 2 * pair_at(head * size + i, lane, pass.lanes, pass.beside), narrow + i, 2 * run);
}

void work(Pass pass, const Scratch& s, const int64_t* ids, float* const* cache, int last, float* logits, int t,
          int threads) {
  const Model& m = pass.m;
  const Flushed flushed;
  const int lanes = pass.lanes, stride = pass.stride, rows = stride == 1 ? 1 : kRows;
  const int64_t size = m.head_dim, kv = m.kv_heads, row = kv * size, group = m.heads / kv;
  const Share own(m.width, kRows, t, threads);
  if (m.tiles) configure(lanes);

  Residual begun{s.hidden, s.squares, s.x, nullptr, m.layers ? m.layer[0].input_norm : m.norm, lanes, pass.beside};
  for (int64_t n = own.begin; n < own.end; n += kRows) {
    alignas(64) float embedded[kRows * kLanes] = {};
    for (int lane = 0; lane < lanes; lane++)
      for (int i = 0; i < kRows; i++) embedded[i * stride + lane] = widened(m.embedding[ids[lane] * m.width + n + i]);
    std::memset(s.hidden + n * stride, 0, kRows * stride * sizeof(float));
    begun(n, embedded, stride);
  }
#pragma omp barrier

  for (int64_t at = 0; at < m.layers; at++) {
    const Layer& layer = m.layer[at];
    float *keys = cache[at], *values = cache[m.layers + at];
    __m512 scale = scales(m, s.squares, stride);

    const Share part((m.heads + 2 * kv) * size, kRows, t, threads);
    pass.product(layer.qkv, m.width, s.x, part.begin, part.end, [&](int64_t n, const float* sums) {
      for (int i = 0; i < rows; i++)
        _mm512_storeu_ps(s.qkv + (n + i) * stride, finished(sums, i, scale, layer.qkv_bias, n, stride));
    });
#pragma omp barrier

    const Share turned((m.heads + 2 * kv) * lanes, 1, t, threads);
    const float factor = 1.0f / std::sqrt(float(size));
    for (int64_t unit = turned.begin; unit < turned.end; unit++) {
      const int64_t head = unit / lanes, lane = unit % lanes, place = pass.start + lane;
      const float* from = s.qkv + head * size * stride + lane;
      if (head < m.heads) {
        rotated(from, stride, layer.q_norm, m, place, factor, s.query + (head * lanes + lane) * size);
      } else if (head < m.heads + kv) {
        rotated(from, stride, layer.k_norm, m, place, 1.0f, keys + place * row + (head - m.heads) * size);
      } else {
        float* to = values + place * row + (head - m.heads - kv) * size;
        for (int64_t i = 0; i < size; i++) to[i] = from[i * stride];
      }
    }
#pragma omp barrier

    const Asked asked(group * lanes, kv, threads);
    const Share seen(kv * asked.parts, 1, t, threads);
    float* scores = s.scores + t * kAsked * (s.room + size);
    for (int64_t unit = seen.begin; unit < seen.end; unit++) {
      const int64_t of = unit / asked.parts, first = asked.begin(unit % asked.parts),
                    count = asked.begin(unit % asked.parts + 1) - first;
      const float* queries[kAsked];
      float *results[kAsked], shares[kAsked];
      int64_t spans[kAsked], heads[kAsked], tokens[kAsked];
      for (int64_t i = 0; i < count; i++) {
        heads[i] = of * group + (first + i) % group, tokens[i] = (first + i) / group;
        queries[i] = s.query + (heads[i] * lanes + tokens[i]) * size;
        spans[i] = pass.start + tokens[i] + 1;
        results[i] = scores + kAsked * s.room + i * size;
      }
      const Attention attention{keys + of * size, values + of * size, row, size, scores, s.room};
      attention(queries, spans, int(count), results, shares);
      for (int64_t i = 0; i < count; i++) attended_by(pass, s, heads[i], tokens[i], results[i], shares[i]);
    }
#pragma omp barrier

    Residual attended{s.hidden, s.squares, s.x, layer.out_bias, layer.post_norm, lanes, pass.beside};
    pass.product(layer.out, m.heads * size, s.attended, own.begin, own.end,
                 [&](int64_t n, const float* sums) { attended(n, sums, stride); });
#pragma omp barrier

    scale = scales(m, s.squares, stride);
    const Share gates(m.inner, kRows, t, threads);
    const bf16 *gate_bias = layer.gate_up_bias, *up_bias = gate_bias ? gate_bias + m.inner : nullptr;
    pass.product_of_two(layer.gate_up, pass.from(layer.gate_up, m.inner, m.width), m.width, s.x, gates.begin, gates.end,
                        [&](int64_t n, const float* gate, const float* up) {
                          __m512 made[2];
                          for (int i = 0; i < rows; i++) {
                            made[i & 1] = gated(finished(gate, i, scale, gate_bias, n, stride),
                                                finished(up, i, scale, up_bias, n, stride));
                            if (i & 1) put_pair(s.inner, n + i - 1, made[0], made[1], lanes, pass.beside);
                          }
                          if (stride == 1) _mm256_storeu_si256((__m256i*)(s.inner + n), narrowed(made[0]));
                        });
#pragma omp barrier

    const bf16* next = at + 1 < m.layers ? m.layer[at + 1].input_norm : m.norm;
    Residual grown{s.hidden, s.squares, s.x, layer.down_bias, next, lanes, pass.beside};
    pass.product(layer.down, m.inner, s.inner, own.begin, own.end,
                 [&](int64_t n, const float* sums) { grown(n, sums, stride); });
#pragma omp barrier
  }

  if (last > 0) {
    const __m512 scale = scales(m, s.squares, stride);
    const Share part(m.vocab, kRows, t, threads);
    const __m512i places = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                              _mm512_set1_epi32(kLanes));
    pass.product(m.head, m.width, s.x, part.begin, part.end, [&](int64_t n, float* sums) {
      for (int i = 0; i < rows; i++)
        _mm512_storeu_ps(sums + i * stride, finished(sums, i, scale, m.head_bias, n, stride));
      for (int lane = lanes - last; lane < lanes; lane++) {
        float* to = logits + (lane - lanes + last) * m.vocab + n;
        _mm512_storeu_ps(to, stride == 1 ? _mm512_loadu_ps(sums) : _mm512_i32gather_ps(places, sums + lane, 4));
      }
    });
  }
  if (m.tiles) release();
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Where another program wants one of our cores, it stops a thread for milliseconds, and at the next barrier all others
// wait for it: a pass takes ten times as long. A pass with a thread less takes a little longer and waits for nobody.
// The results are the same, bit for bit.
class Crowd {
 public:
  // How many threads the next pass takes, of so many.
  int threads(int all) {
    const double at = now();
    if (missing_ && at > until_) missing_ = 0;
    return std::max(1, all - missing_);
  }

  // A pass took so long, with some of all threads; `usual` is what passes of its kind take with all of them.
  void took(double at, double seconds, int threads, int all, double& usual) {
    const double expected = usual * all / threads;
    // Threads that have slept a while need time to wake up: that says nothing.
    const bool awake = threads == last_ && at - seconds < ended_ + kAsleep;
    last_ = threads, ended_ = at;
    if (!awake) return;
    if (usual > 0 && seconds > kStalled * expected + kNoise) {
      // A burst of other work is soon over, so the first pause is short; whoever stays makes it grow: who stopped a
      // thread soon after the pause, however long it was stopped.
      worth_ = at - seconds < until_ + pause_ ? std::min(2 * worth_, kMost) : kLeast;
      pause_ = std::min(worth_ * seconds, kLongest);
      until_ = at + pause_;
      missing_ = all - threads + 1;
    } else if (threads == all) {
      usual = usual > 0 ? std::min(seconds, kDrift * usual) : seconds;
    }
  }

 private:
  static constexpr double kStalled = 2.5, kNoise = 5e-4;  // longer than usual, and by seconds
  static constexpr double kAsleep = 0.002;                // seconds
  static constexpr double kDrift = 1.01;                  // contexts grow, and with them passes
  static constexpr double kLeast = 0.5, kMost = 64;       // a pause is so many times what the stall took,
  static constexpr double kLongest = 1.0;                 // and at most these seconds

  double until_ = 0, pause_ = 0, worth_ = kLeast, ended_ = 0;
  int missing_ = 0, last_ = 0;
};

thread_local Crowd crowd;  // a team of threads belongs to the thread that asks for it

}  // namespace

extern "C" {

// Asks the system for the matrix unit; 0 if this process may use it. Linux hands out its large registers on request.
int hsd_tiles() { return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */); }

// Whether the caller's structures are as large as these: otherwise it was written for other sources.
int hsd_layout(const int64_t* sizes, int64_t count) {
  const int64_t mine[] = {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Block),
                          sizeof(Judged), sizeof(Rung),  sizeof(Round)};
  return count == 7 && std::equal(mine, mine + 7, sizes);
}

// Bytes of scratch that a model's passes need.
size_t hsd_scratch(const Model* m) { return Scratch(*m, nullptr).bytes; }

// Reads `lanes` tokens behind `start` cached ones: writes their keys and values, (context, kv_heads, head_dim) float32
// per layer, keys of all layers before values, and logits (last, vocab). Not 0 if an id is none of the model's.
int hsd_step(const Model* m, const int64_t* ids, int lanes, int64_t start, float* const* cache, int last, float* logits,
             char* scratch) {
  for (int i = 0; i < lanes; i++)
    if (ids[i] < 0 || ids[i] >= m->vocab) return 1;
  const Pass pass{*m, lanes, lanes == 1 ? 1 : kLanes, m->tiles || m->turned ? 1 : kBeside, start};
  const Scratch shared(*m, scratch);
  const int threads = crowd.threads(int(m->threads));
  const double begun = threads > 1 ? now() : 0;
#pragma omp parallel num_threads(threads)
  work(pass, shared, ids, cache, last, logits, omp_get_thread_num(), omp_get_num_threads());
  if (threads > 1) crowd.took(now(), now() - begun, threads, int(m->threads), shared.usual[lanes]);
  return 0;
}

// Reads `lanes` tokens, of which the last are a block, and decides on it. How many tokens are accepted; -1 if an id is
// none of the model's.
int64_t hsd_judge(const Model* m, const int64_t* ids, int lanes, int64_t start, float* const* cache, float* logits,
                  char* scratch, Judged* j) {
  const double begun = now();
  if (hsd_step(m, ids, lanes, start, cache, int(j->count) + 1, logits, scratch)) return -1;
  j->seconds = now() - begun;
  return hsd_decide(m, logits, j);
}

// The same once the logits are there, (count + 1, the model's vocabulary).
int64_t hsd_decide(const Model* m, const float* logits, Judged* j) {
  if (j->scale > 0) {
    hsd_softmax(logits, j->count + 1, m->vocab, j->vocab, float(j->scale), j->rows);
    return hsd_verify(int(j->block_wise), j->count, j->draft, j->q, j->rows, j->vocab, j->coins, &j->token);
  }
  hsd_best(logits, j->count + 1, m->vocab, j->vocab, j->best);
  int64_t accepted = 0;
  while (accepted < j->count && j->draft[accepted] == j->best[accepted]) accepted++;
  j->token = j->best[accepted];
  return accepted;
}

// Drafts a block behind `ids`, of which at least the last is not cached yet. How many tokens: -1 if an id is none of
// the model's, -2 if a row is no distribution.
int64_t hsd_draft(const Model* m, const int64_t* ids, int lanes, int64_t start, float* const* cache, float* logits,
                  char* scratch, const Block* b) {
  double chance = 1;
  int64_t count = 0;
  while (count < b->most && (!b->by_value || chance * b->mean * b->token_ms > b->draft_ms)) {
    const double begun = now();
    if (hsd_step(m, count ? b->tokens + count - 1 : ids, count ? 1 : lanes, start, cache, 1, logits, scratch))
      return -1;
    start += count ? 1 : lanes;
    b->seconds[count] = now() - begun;
    double sure = 1;
    int64_t token;
    if (b->scale > 0) {
      token = hsd_pick(logits, b->vocab, float(b->scale), b->coins[count], b->rows + count * b->vocab, &sure);
    } else {
      hsd_best(logits, 1, m->vocab, b->vocab, &token);
      if (b->by_value && token >= 0) sure = hsd_sure(logits, b->vocab);
    }
    if (token < 0) return -2;
    b->tokens[count++] = token;
    if (std::find(b->ends, b->ends + b->end_count, token) != b->ends + b->end_count) break;
    if (b->by_value) chance *= b->survival[std::upper_bound(b->edges, b->edges + b->edge_count, sure) - b->edges];
  }
  return count;
}
}
