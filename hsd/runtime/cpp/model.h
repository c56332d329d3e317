// A model, a block that it drafts, a block that it judges, and a round of a chain of models, as Python lays them out.

#pragma once

#include <cstddef>

#include "products.h"

extern "C" {
// Mirrored by `hsd.runtime.layout`, field by field, as all that follows. Biases may be null.
struct Layer {
  Matrix qkv, out, gate_up, down;
  const bf16 *input_norm, *qkv_bias, *q_norm, *k_norm, *out_bias, *post_norm, *gate_up_bias, *down_bias;
};
struct Model {
  int64_t width, layers, heads, kv_heads, head_dim, inner, vocab, context, threads, tiles;
  int64_t turned;  // whether weights, none of them packed, lie as `turned` of `dots.h` takes them
  int64_t bits;    // of a weight of a layer that is packed; 0 if none is
  double eps;
  Matrix head;
  const bf16 *embedding, *norm, *head_bias;
  const float* table;      // what the 16 codes of 4 bits stand for
  const float *cos, *sin;  // (context, head_dim); the sine's first half carries the minus sign
  const Layer* layer;
};
// What a model drafts for itself, token after token.
struct Block {
  int64_t most;         // tokens
  const double* coins;  // one for each
  double scale;         // one over the temperature; 0 takes the likeliest
  int64_t vocab;        // ids that may appear
  const int64_t* ends;  // behind one of these nothing is drafted
  int64_t end_count;
  int64_t by_value;  // whether to stop by value (`hsd.planning.StopRule`), with what follows
  double mean, token_ms, draft_ms;
  const double *edges, *survival;
  int64_t edge_count;
  float* rows;      // takes the distributions, (most, vocab), unless the likeliest are taken
  int64_t* tokens;  // takes the tokens
  double* seconds;  // takes the time of each pass
};
// A block that a model verifies, and what it decides.
struct Judged {
  double scale;        // one over the temperature; 0 takes the likeliest
  int64_t vocab;       // ids that may appear
  int64_t block_wise;  // the rule
  int64_t count;       // tokens of the block
  const int64_t* draft;
  const float* q;       // their distributions, (count, vocab); null if each was certain
  const double* coins;  // count + 1
  float* rows;          // takes the model's own distributions, (count + 1, vocab), unless the likeliest are taken
  int64_t* best;        // takes those, count + 1
  int64_t token;        // behind the accepted ones; -1 if there is no distribution to draw it from
  double seconds;       // of the pass
};
// A level of a chain.
struct Rung {
  const Model* const* models;  // by the width of a pass, 0 to 16: what computes it
  char* const* scratch;        // theirs
  float* const* cache;
  float* rows;     // takes the distributions of its tokens that the next level has not judged; null for the likeliest
  int64_t length;  // tokens that its cache holds
  int64_t threshold;           // it hands up once it holds so many; not read at the top
  int64_t held;                // how many it holds
  int64_t proposed, accepted;  // its tokens that the next level judged, and those that it took
  int64_t passes;
  double* log;  // width, context, last and seconds of every pass
};
// One round of the last level of a chain.
struct Round {
  Rung* rungs;
  int64_t top;  // the last of them
  Block draft;  // how the first one drafts; `coins`, `rows` and `tokens` are filled in
  int64_t block_wise;
  int64_t* tokens;   // the sequence from `base` on
  int64_t* origins;  // the level that drew each token behind `start`
  int64_t base, start, prompt, limit;
  const double* coins;
  int64_t tossed;  // of them, those that were used
  float* logits;
  int64_t* best;
  int64_t end;                 // of the sequence behind the round
  int64_t proposed, accepted;  // of the last verdict
};

size_t hsd_scratch(const Model* m);
int hsd_step(const Model* m, const int64_t* ids, int lanes, int64_t start, float* const* cache, int last, float* logits,
             char* scratch);
int64_t hsd_decide(const Model* m, const float* logits, Judged* j);
int64_t hsd_draft(const Model* m, const int64_t* ids, int lanes, int64_t start, float* const* cache, float* logits,
                  char* scratch, const Block* b);
}
