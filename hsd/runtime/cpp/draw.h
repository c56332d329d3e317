// What drafting and verifying models need of `draw.cpp`.

#pragma once

#include <cstdint>

extern "C" {
void hsd_best(const float* logits, int64_t rows, int64_t stride, int64_t vocab, int64_t* out);
double hsd_sure(const float* logits, int64_t vocab);
void hsd_softmax(const float* logits, int64_t rows, int64_t stride, int64_t vocab, float scale, float* out);
int64_t hsd_verify(int as_block, int64_t n, const int64_t* draft, const float* q, const float* p, int64_t vocab,
                   const double* coins, int64_t* token);
int64_t hsd_pick(const float* logits, int64_t vocab, float scale, double coin, float* out, double* sure);
}
