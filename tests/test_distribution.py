"""Every chain emits the target's own distribution: exact joint laws by enumeration against the hierarchy's rounds.

Only the models are replaced, by tables behind the runtime seam. The same test is run against deliberately wrong rules:
a test of losslessness that a wrong residual passes is worth nothing.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from tables import TableModel, near, random_table

import hsd.hierarchy
from hsd import Plan, SamplingParams, verify
from hsd.hierarchy import Hierarchy
from hsd.kernels import Kernels
from hsd.levels import TokenSequence, make_levels
from hsd.lookup import SuffixIndex
from hsd.planning import StopRule
from hsd.runtime import LanguageModel, Reader
from hsd.sampling import Sampler

VOCAB, PROMPT = 4, (0, 1, 2, 1, 0, 1, 2)
HORIZON = 3


@dataclass(frozen=True)
class Case:
    plan: str
    rule: str
    params: SamplingParams
    noise: float = 0.8
    end: int | None = None  # a token that ends a reply; the length limit then is the horizon
    kernels: str = ""  # "plain": functions of tensors, as on a GPU

    def __str__(self) -> str:
        p = self.params
        extra = f" top_p={p.top_p}" if p.top_p < 1 else " penalties" if p.repetition_penalty != 1 else ""
        extra += f" top_k={p.top_k}" if p.top_k else ""
        extra += f" min_p={p.min_p}" if p.min_p else ""
        extra += "" if self.end is None else f" end={self.end}"
        return f"{self.plan} {self.rule}{extra}{f' {self.kernels} kernels' if self.kernels else ''}"


PLAIN = SamplingParams(temperature=1.0)
TOP_P = SamplingParams(temperature=0.8, top_p=0.8)
PENALTIES = SamplingParams(temperature=1.0, repetition_penalty=1.6, presence_penalty=0.4, frequency_penalty=0.7)
CASES = [
    Case("c:2>t", "token", PLAIN),
    Case("c:3>t", "block", PLAIN),
    Case("lookup:3>t", "block", PLAIN),
    Case("lookup:2>t", "token", TOP_P),
    Case("a:2>c:3>t", "block", PLAIN),
    Case("a:2>c:3>t", "token", PENALTIES),
    Case("lookup:2>c:3>t", "block", PENALTIES),
    Case("a:3>c:2>t", "block", TOP_P),
    Case("lookup:2>a:2>c:4>t", "block", PLAIN),
    Case("a:1>b:2>c:3>t", "token", PLAIN),
    Case("a:2>b:3>c:3>t", "block", TOP_P),
    Case("lookup:1>a:2>c:3>t", "block", PENALTIES),
    Case("a:3>c:2>t", "block", PLAIN, end=2),
    Case("lookup:2>c:4>t", "token", PLAIN, end=0),
    Case("c:4>t", "block", PLAIN, kernels="plain"),
    Case("a:2>c:3>t", "token", PLAIN, end=1, kernels="plain"),
]


def kernels(kind: str) -> Kernels | None:
    """What draws and verifies."""
    return Kernels() if kind else None


def models(case: Case) -> dict[str, TableModel]:
    target = random_table(VOCAB, seed=1)
    return {
        "a": TableModel("a", near(target, 2, 2 * case.noise)),
        "b": TableModel("b", near(target, 3, 1.5 * case.noise)),
        "c": TableModel("c", near(target, 4, case.noise)),
        "t": TableModel("t", target),
    }


def law(case: Case, row: Callable[[tuple[int, ...]], np.ndarray] | None = None) -> dict[tuple[int, ...], float]:
    """Exact joint distribution of the first tokens, with the filters written anew in numpy.

    `row` gives the target's logits behind a prefix; None takes those of the target's table.
    """
    if row is None:
        table = models(case)["t"].table.double().numpy()
        return law(case, lambda prefix: table[prefix[-2], prefix[-1]])

    def following(prefix: tuple[int, ...]) -> np.ndarray:
        p, logits = case.params, row(prefix).copy()
        counts = Counter(prefix[len(PROMPT) :])
        for token in set(prefix):
            logits[token] = (
                logits[token] / p.repetition_penalty if logits[token] > 0 else logits[token] * p.repetition_penalty
            )
        for token, count in counts.items():
            logits[token] -= p.presence_penalty + p.frequency_penalty * count
        chances = np.exp(logits / p.temperature)
        chances /= chances.sum()
        if p.top_k:
            chances[np.argsort(-chances)[p.top_k :]] = 0
            chances /= chances.sum()
        if p.top_p < 1:
            order = np.argsort(-chances)
            before = np.concatenate(([0.0], np.cumsum(chances[order])[:-1]))
            chances[order[before >= p.top_p]] = 0
        chances[chances < p.min_p * chances.max()] = 0
        return chances / chances.sum()

    out = {(): 1.0}
    for _ in range(HORIZON):
        out = {
            (*tokens, *([] if ended else [x])): mass * chance
            for tokens, mass in out.items()
            for ended in [tokens[-1:] == (case.end,)]
            for x, chance in enumerate([1.0] if ended else following((*PROMPT, *tokens)))
        }
    return out


def sample(
    case: Case,
    count: int,
    seed: int,
    stop: StopRule | None = None,
    lengths: set[int] | None = None,
    family: dict[str, LanguageModel] | None = None,
) -> Counter[tuple[int, ...]]:
    """First tokens of `count` replies, through the hierarchy's own rounds.

    `lengths` collects those of the blocks; `family` are other models than the tables.
    """
    plan, family = Plan.parse(case.plan), models(case) if family is None else family
    coins = random.Random(seed)
    readers = {name: Reader(model, model.new_cache()) for name, model in family.items()}
    index = SuffixIndex()
    index.settle(PROMPT)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(count):
        for reader in readers.values():
            reader.rewind(len(PROMPT) - 1)
            reader.meter.passes.clear()
        index.cut(len(PROMPT))
        sequence = TokenSequence(list(PROMPT), len(PROMPT))
        hierarchy = Hierarchy(
            make_levels(plan.names, plan.thresholds, readers.__getitem__, lambda: index),
            sequence,
            Sampler(case.params, PROMPT, VOCAB, "cpu", kernels(case.kernels)),
            end_ids=() if case.end is None else (case.end,),
            limit=len(PROMPT) + (40 if case.end is None else HORIZON),
            rule=case.rule,
            coins=coins,
            stop=stop,
        )
        while len(sequence.tokens) < len(PROMPT) + HORIZON and not hierarchy.finished:
            done = hierarchy.round()
            if lengths is not None:
                lengths.add(done.proposed)
        seen[tuple(sequence.tokens[len(PROMPT) : len(PROMPT) + HORIZON])] += 1
    return seen


def p_value(case: Case, seen: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float] | None = None) -> float:
    """Chi-square p-value; rare outcomes are pooled, impossible ones must not occur. `expected`: None is `law(case)`."""
    expected, total = law(case) if expected is None else expected, sum(seen.values())
    if any(expected[tokens] == 0 for tokens in seen):
        return 0.0
    cells = [(seen[tokens], chance * total) for tokens, chance in expected.items() if chance > 0]
    large = [c for c in cells if c[1] >= 8]
    rest = [sum(x) for x in zip(*(c for c in cells if c[1] < 8), strict=True)] or [0, 0]
    if rest[1] >= 1:
        large.append((rest[0], rest[1]))
    observed, wanted = (np.array(x, dtype=float) for x in zip(*large, strict=True))
    return float(scipy_stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_joint_law_of_the_first_tokens_is_the_targets(case):
    assert p_value(case, sample(case, 700, seed=5)) > 1e-4


@pytest.mark.full
def test_the_joint_laws_at_large_counts():
    values = {}
    for case in CASES:
        values[str(case)] = p_value(case, sample(case, 50_000, seed=11))
        print(f"chi-square p = {values[str(case)]:.4f}  50000 samples  {case}", flush=True)
    assert min(values.values()) > 1e-4
    # Uniform over the cases: Kolmogorov-Smirnov, itself at a level that a right engine fails once in 10,000 runs.
    uniform = scipy_stats.kstest(list(values.values()), "uniform").pvalue
    print(f"Kolmogorov-Smirnov against uniform: p = {uniform:.4f}")
    assert uniform > 1e-4


def residual_from_p(draft, q, p, coins):
    """Wrong: the rejected token is drawn from p instead of max(p - q, 0)."""
    right = verify.token_wise(draft, q, p, coins)
    if right.accepted == len(draft):
        return right
    return verify.Verdict(right.accepted, verify.draw(p[right.accepted], coins[-1]))


def softmax_for_one_hot(draft, q, p, coins):
    """Wrong: a one-hot draft is verified as if it had been drawn from a soft distribution."""
    if isinstance(q, list) and draft:
        soft = torch.full((len(draft), p.shape[1]), 0.1)
        q = torch.softmax(soft.scatter(1, torch.tensor(draft)[:, None], 2.0), -1)
    return verify.token_wise(draft, q, p, coins)


def block_accepts_what_it_reaches(draft, q, p, coins):
    """Wrong: every prefix of a block is accepted with r_i, as if nothing could be accepted behind it."""
    reach, accepted = [1.0], 0
    for i, token in enumerate(draft):
        reach.append(min(reach[-1] * float(p[i, token]) / float(q[i, token]), 1.0))
        accepted = i + 1 if coins[i] < reach[-1] else accepted
    rest = p[accepted] if accepted == len(draft) else (reach[accepted] * p[accepted] - q[accepted]).clamp(min=0)
    token = verify.draw(rest, coins[-1])
    return verify.Verdict(accepted, token if token >= 0 else verify.draw(p[accepted], coins[-1]))


class DropsUnlikely(Hierarchy):
    """Wrong: a draft looks at the token it drew and takes it back if its probability is low."""

    def _draft(self, level):
        super()._draft(level)
        token = self.sequence.tokens[-1]
        if len(level.rows) > 1 and level.rows[-1][0, token] < 0.5:
            level.rows.pop()
            self._cut(len(self.sequence.tokens) - 1)
            self._refused = True

    def _fill(self, at):
        if at:
            return super()._fill(at)
        self._refused, level, start = False, self.levels[0], len(self.sequence.tokens)
        while len(self.sequence.tokens) - start < level.threshold and not self._refused:
            self._draft(level)
        return None


@pytest.mark.parametrize(
    ("case", "rule", "wrong"),
    [
        (Case("c:2>t", "token", PLAIN, 1.5), "token_wise", residual_from_p),
        (Case("lookup:2>t", "token", PLAIN, 1.5), "token_wise", softmax_for_one_hot),
        (Case("c:3>t", "block", PLAIN, 1.5), "block_wise", block_accepts_what_it_reaches),
    ],
    ids=["residual from p", "softmax for one-hot", "block accepts what it reaches"],
)
def test_the_test_catches_a_wrong_rule(monkeypatch, case, rule, wrong):
    def mutant(draft, q, p, coins, *_):
        return wrong(draft, q, p, coins)

    assert p_value(case, sample(case, 1500, seed=7)) > 1e-4
    monkeypatch.setattr(hsd.hierarchy, "verify", mutant)
    assert p_value(case, sample(case, 1500, seed=7)) < 1e-4


def test_the_test_catches_a_draft_that_drops_what_it_drew(monkeypatch):
    case = Case("a:4>t", "token", PLAIN, 0.5)
    assert p_value(case, sample(case, 2500, seed=7)) > 1e-4
    monkeypatch.setitem(globals(), "Hierarchy", DropsUnlikely)
    assert p_value(case, sample(case, 2500, seed=7)) < 1e-4


def test_every_outcome_is_enumerated():
    assert len(law(CASES[0])) == VOCAB**HORIZON
    assert sum(law(CASES[5]).values()) == pytest.approx(1)
    assert set(itertools.product(range(VOCAB), repeat=HORIZON)) == set(law(CASES[0]))
