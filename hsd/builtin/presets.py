"""What a training run is: sizes, lengths, and which ladder, for each kind of machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from hsd.builtin.mixture import Shares
from hsd.builtin.models import LADDERS, size
from hsd.builtin.optim import Rates

REPLY = 54
"""Tokens of a prompt with its reply: the mean over 67,700."""


@dataclass(frozen=True)
class Preset:
    """A run.

    Attributes:
        ladder: one of `models.LADDERS`.
        steps, draft_steps: of the target, and of the drafts together.
        rows, length: of a batch; a step is rows × length tokens.
        pieces: parts in which a step goes through the device; twice as many whenever memory runs out.
        asked: replies in a round that the target writes for its drafts; 0: they learn from its passes over the text.
        reply_rounds: so many rounds of replies; they are read again and again.
        share: of a time budget, what the target's steps may take.
        judge_every: steps between two looks at held-out loss.
        vocabulary: entries of the tokenizer.
        shares: of the mixture.
    """

    ladder: str
    steps: int
    draft_steps: int
    rows: int
    length: int
    asked: int
    reply_rounds: int
    target_rates: Rates
    draft_rates: Rates
    pieces: int = 1
    share: float = 0.68
    judge_every: int = 300
    save_every: int = 50
    vocabulary: int = 4096
    shares: Shares = field(default_factory=Shares)


PRESETS: dict[str, Preset] = {
    # What two cores with bfloat16 matrix units do in an hour and a half. Batches of 8,192 tokens, because Muon costs
    # the same whatever the batch and would take a third of a step of 4,096.
    "cpu": Preset(
        "cpu", 1700, 1150, 16, 512, 4500, 15, Rates(muon=0.025), Rates(muon=0.03, adam=5e-3, warmup=50, decay=0.6),
        shares=Shares(howtos=2600, dialogues=140),
    ),
    # The family of "cpu", made larger (--grow-from) and trained on, on one core: less of what it has learnt by heart,
    # more of what got new wordings since. The rate had come to its end, so it rises to half of where it was.
    "grown": Preset(
        "grown", 580, 260, 16, 512, 3600, 12,
        Rates(muon=0.0125, adam=1.5e-3, warmup=30, decay=0.7), Rates(muon=0.012, adam=2e-3, warmup=20, decay=0.8),
        judge_every=150,
        shares=Shares(3600, 900, 500, 350, 80, 90, 4400, 400, 700, 400, 2600),
    ),
    # One stay at a large GPU: 150M and 59M tokens.
    "gpu": Preset(
        "gpu", 2290, 900, 128, 512, 5000, 6,
        Rates(muon=0.02, adam=3e-3, warmup=100), Rates(muon=0.02, adam=4e-3, warmup=60, decay=0.6),
        judge_every=500, save_every=200,
        # Rounds come by the hundred: the 1,200 dialogues would be read 55 times, and the many rare pages but 9 times.
        shares=Shares(common_tasks=2000, other_tasks=2600, what_is=500, dialogues=90, app=700, sums=1100),
    ),
    # Every stage in seconds, to see that it runs; its models say nothing.
    "try": Preset(
        "try", 24, 20, 2, 64, 12, 1, Rates(warmup=16), Rates(warmup=16, decay=0.6), save_every=4, vocabulary=512,
        shares=Shares(40, 15, 20, 20, 5, 5, 30, 20, 15, 10, 20),
    ),
    # A table: a line is a thought.
}  # fmt: skip


def flops(preset: Preset) -> tuple[float, float]:
    """(target, drafts): 6 FLOP per parameter and token that is learnt, 2 per parameter of the target and token of the
    replies that it writes, or, without replies, of the drafts' batches."""
    *drafts, target = (size(shape, preset.vocabulary) for shape in LADDERS[preset.ladder].values())
    tokens = preset.rows * preset.length
    taught = preset.asked * preset.reply_rounds * REPLY if preset.asked else tokens * preset.draft_steps
    return 6.0 * target * tokens * preset.steps, 2.0 * target * taught + 6.0 * sum(drafts) * tokens * preset.draft_steps
