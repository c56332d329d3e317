// What a drafting model needs of `draw.cpp`.

#pragma once

#include <cstdint>

extern "C" {
void hsd_best(const float* logits, int64_t rows, int64_t stride, int64_t vocab, int64_t* out);
double hsd_sure(const float* logits, int64_t vocab);
int64_t hsd_pick(const float* logits, int64_t vocab, float scale, double coin, float* out, double* sure);
}
