// A round of a chain of models: draft, verify, cut, as `hsd/hierarchy.py` has it, which is what people read and what
// tests compare this with. Between two passes of a small draft a dozen lines of an interpreter whose code has left the
// caches cost more than the pass; here a round is one call.

#include <algorithm>
#include <chrono>
#include <cmath>

#include "draw.h"
#include "model.h"

namespace {

constexpr int kWidest = 16;  // tokens of a pass

enum Failure { kUnknownId = 1, kNoDistribution = 2 };

// What a level could not do; caught where the round begins.
struct Stop {
  int level;
  Failure what;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Play {
  Round& r;

  bool greedy() const { return !(r.draft.scale > 0); }

  const int64_t* from(int64_t place) const { return r.tokens + (place - r.base); }

  bool ended() const {
    const int64_t *begin = r.draft.ends, *end = begin + r.draft.end_count;
    return r.end > r.prompt && std::find(begin, end, *from(r.end - 1)) != end;
  }

  // Longest sequence that a level may make: a draft leaves the last place to the target's own token.
  int64_t room(int at) const { return r.limit - (at < r.top); }

  float* rows_of(const Rung& g) const { return g.rows ? g.rows + g.held * r.draft.vocab : nullptr; }

  void append(int64_t token, int at) {
    r.tokens[r.end - r.base] = token;
    r.origins[r.end - r.start] = at;
    r.end++;
    r.rungs[at].held++;
  }

  // Everything behind the first `length` tokens was never there, at any level.
  void cut(int64_t length) {
    r.end = length;
    for (int i = 0; i <= r.top; i++) r.rungs[i].length = std::min(r.rungs[i].length, length);
  }

  void note(Rung& g, int width, int64_t context, int last, double seconds) const {
    double* entry = g.log + 4 * g.passes++;
    entry[0] = width, entry[1] = double(context), entry[2] = last, entry[3] = seconds;
  }

  void pass(int at, int width, int last, float* logits) {
    Rung& g = r.rungs[at];
    const double begun = now();
    if (hsd_step(g.models[width], from(g.length), width, g.length, g.cache, last, logits, g.scratch[width]))
      throw Stop{at, kUnknownId};
    note(g, width, g.length, last, now() - begun);
    g.length += width;
  }

  // Extends the cache up to the last `left` tokens of the sequence.
  void catch_up(int at, int64_t left) {
    Rung& g = r.rungs[at];
    while (g.length < r.end - left) pass(at, int(std::min<int64_t>(kWidest, r.end - left - g.length)), 0, r.logits);
  }

  // Extends the cache to the end of the sequence: logits of the last positions.
  void read(int at, int64_t last) {
    Rung& g = r.rungs[at];
    g.length = std::min(g.length, r.end - last);
    if (r.end - g.length <= kWidest) return pass(at, int(r.end - g.length), int(last), r.logits);
    catch_up(at, last);
    for (int64_t done = 0; done < last;) {
      const int width = int(std::min<int64_t>(kWidest, last - done));
      pass(at, width, width, r.logits + done * g.models[width]->vocab);
      done += width;
    }
  }

  // A level draws one token.
  void draw(int at) {
    Rung& g = r.rungs[at];
    read(at, 1);
    int64_t token;
    double sure;
    if (greedy())
      hsd_best(r.logits, 1, r.draft.vocab, r.draft.vocab, &token);
    else
      token = hsd_pick(r.logits, r.draft.vocab, float(r.draft.scale), r.coins[r.tossed++], rows_of(g), &sure);
    if (token < 0) throw Stop{at, kNoDistribution};
    append(token, at);
  }

  // The first level drafts up to its threshold.
  void draft() {
    Rung& g = r.rungs[0];
    Block b = r.draft;
    b.most = std::min(g.threshold, room(0) - r.end);
    if (b.most <= 0 || ended() || (b.by_value && !(b.mean * b.token_ms > b.draft_ms))) return;
    g.length = std::min(g.length, r.end - 1);
    if (r.end - g.length > kWidest) catch_up(0, 1);
    const int width = int(r.end - g.length);
    const int64_t context = g.length;
    b.coins = greedy() ? r.coins : r.coins + r.tossed;
    b.rows = rows_of(g);
    b.tokens = r.tokens + (r.end - r.base);
    const int64_t count = hsd_draft(g.models[1], from(context), width, context, g.cache, r.logits, g.scratch[1], &b);
    if (count < 0) throw Stop{0, count == -1 ? kUnknownId : kNoDistribution};
    for (int64_t i = 0; i < count; i++) {
      note(g, i ? 1 : width, i ? context + width + i - 1 : context, 1, b.seconds[i]);
      r.origins[r.end - r.start + i] = 0;
    }
    g.length = context + width + count - 1;
    g.held += count;
    r.end += count;
    if (!greedy()) r.tossed += count;
  }

  // A level emits tokens until it holds its threshold.
  void fill(int at) {
    if (at == 0) return draft();
    const int64_t start = r.end;
    while (r.end - start < r.rungs[at].threshold && r.end < room(at) && !ended()) verify(at);
  }

  // A level takes a block from below, verifies it in one pass, and appends one token of its own.
  void verify(int at) {
    const int64_t start = r.end;
    if (at > 0) fill(at - 1);
    const int64_t n = r.end - start;
    r.proposed = r.accepted = 0;
    if (n == 0) return draw(at);  // a chain asks for tokens only where one more has room
    Rung &g = r.rungs[at], &below = r.rungs[at - 1];
    read(at, n + 1);
    Judged j{};
    j.scale = r.draft.scale, j.vocab = r.draft.vocab, j.block_wise = r.block_wise, j.count = n;
    j.draft = from(start), j.q = below.rows, j.best = r.best, j.rows = rows_of(g);
    j.coins = greedy() ? r.coins : r.coins + r.tossed;
    const int64_t k = hsd_decide(g.models[1], r.logits, &j);
    if (j.token < 0) throw Stop{at, kNoDistribution};
    if (!greedy()) r.tossed += n + 1;
    below.proposed += n, below.accepted += k, below.held = 0;
    r.proposed = n, r.accepted = k;
    if (k < n) cut(start + k);
    g.held += k;
    // Behind an end token, or where the sequence is full, the token of its own is not drawn.
    if (k < n || !(ended() || r.end >= room(at))) append(j.token, at);
  }
};

}  // namespace

extern "C" {

// One round of a chain's last level; counts and logs go on from where they are. 0, or which level failed and how: 4 ×
// level + failure.
int hsd_round(Round* r) {
  r->proposed = r->accepted = 0;
  r->end = r->start;
  for (int i = 0; i <= r->top; i++) r->rungs[i].held = 0;
  try {
    Play{*r}.verify(int(r->top));
  } catch (const Stop& stop) {
    return 4 * stop.level + stop.what;
  }
  return 0;
}
}
