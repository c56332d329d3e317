"""The stages of training, in order: tokenizer, target, drafts. Each can be run alone and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hsd.builtin import MODELS, tokenizer
from hsd.builtin.conversation import Conversation
from hsd.builtin.distill import soften
from hsd.builtin.loop import Learner, Settings, mean_loss, train
from hsd.builtin.mixture import Mixture
from hsd.builtin.models import SHAPES, Shape, build
from hsd.builtin.optim import Rates
from hsd.builtin.replies import answer, encoded
from hsd.builtin.stream import Encoded, Rounds, Stream, padded
from hsd.errors import HsdError

CPU = torch.device("cpu")
TARGET = MODELS[-1]
DRAFTS = MODELS[:-1]
TOKENIZER_ROUNDS = 3
VOCABULARY = 4096
FIRST_ASKED = 1000  # rounds from here on are only asked, never trained on as text
ASKED = 1200  # conversations of such a round that the target answers; with 0 drafts learn from text alone
REPLY_ROUNDS = 3  # then the replies come again


@dataclass(frozen=True)
class Work:
    """A folder in which the family is made, and what all stages share."""

    folder: Path
    corpus: Path | None
    seed: int = 0
    device: torch.device = CPU
    rows: int = 8
    length: int = 512
    vocabulary: int = VOCABULARY
    asked: int = ASKED

    @cached_property
    def mixture(self) -> Mixture:
        return Mixture(self.corpus, self.seed)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Raises HsdError when the tokenizer stage has not run."""
        if not (self.folder / "tokenizer" / "tokenizer.json").is_file():
            raise HsdError(f"There is no tokenizer in {self.folder}.", "Run --stage tokenizer first.")
        return tokenizer.load(self.folder / "tokenizer")

    @cached_property
    def text(self) -> Rounds:
        """Rounds of the mixture."""
        return Rounds(self.folder / f"rounds-{self.seed}", lambda number: self.encode(self.mixture.round(number)))

    def encode(self, conversations: list[Conversation]) -> Encoded:
        return tokenizer.encode(conversations, self.tokenizer)

    @property
    def judge(self) -> Callable[[LlamaForCausalLM], dict[str, float]]:
        """Held-out loss of a model, set by set, in nats per token of the assistant's text."""
        sets = {
            name: [batch.to(self.device) for batch in padded(self.encode(found), 16, self.length)]
            for name, found in self.mixture.held_out().items()
        }
        return lambda model: {name: mean_loss(model, batches) for name, batches in sets.items()}

    def checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.pt"

    def fresh(self, name: str) -> LlamaForCausalLM:
        """Model `name` with random weights, on the device."""
        shape: Shape = SHAPES[name]
        return build(shape, len(self.tokenizer), seed=self.seed + MODELS.index(name)).to(self.device)

    def trained(self, name: str) -> LlamaForCausalLM:
        """Model `name` as its stage last saved it.

        Raises:
            HsdError: its stage has not saved anything yet.
        """
        path = self.checkpoint("target" if name == TARGET else "drafts")
        if not path.is_file():
            raise HsdError(f"There is no checkpoint of '{name}' in {self.folder}.", "Run its stage first.")
        model = self.fresh(name)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["learners"][name]["model"])
        return model


def train_tokenizer(work: Work) -> None:
    """Learn the vocabulary from the first rounds, unless that has been done."""
    folder = work.folder / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return
    rounds = (work.mixture.round(number) for number in range(TOKENIZER_ROUNDS))
    learnt = tokenizer.train((turn.content for r in rounds for turns in r for turn in turns), work.vocabulary)
    learnt.save_pretrained(folder)


def train_target(work: Work, steps: int, stop_after: int | None = None) -> int:
    """Train the target on the text. Returns the step that was reached."""
    rates = Rates()
    learners = {TARGET: Learner(work.fresh(TARGET), rates)}
    settings = replace(_settings(work, steps, stop_after), rates=rates)
    return train(learners, Stream(work.text), settings, work.checkpoint("target"), judge=work.judge)


def train_drafts(work: Work, steps: int, stop_after: int | None = None) -> int:
    """Distil all drafts at once: the target's pass over a batch, the dearest part, is then made only once."""
    rates = Rates(muon=0.03, adam=5e-3, decay=0.6)
    learners = {name: Learner(work.fresh(name), rates) for name in DRAFTS}
    teacher = work.trained(TARGET).eval()
    settings = replace(_settings(work, steps, stop_after), rates=rates, lightest=0.5)
    stream = _draft_stream(work)
    checkpoint = work.checkpoint("drafts")
    return train(learners, stream, settings, checkpoint, teacher=(teacher, soften), judge=work.judge)


def _draft_stream(work: Work) -> Stream:
    """Rounds of the target's own replies and rounds of text, in turn."""
    if not work.asked:
        return Stream(work.text)
    target = work.trained(TARGET).to(torch.bfloat16)
    step = torch.load(work.checkpoint("target"), map_location="cpu", weights_only=True)["step"]

    def answered(number: int) -> Encoded:
        asked = work.mixture.round(FIRST_ASKED + number)[: work.asked]
        found = encoded(answer(target, work.tokenizer, asked, seed=work.seed + number))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(work.seed + number)).tolist()
        return [found[i] for i in order]

    replies = Rounds(work.folder / f"replies-{work.seed}-{step}", answered)
    return Stream(lambda n: work.text(n // 2) if n % 2 else replies(n // 2 % REPLY_ROUNDS))


def _settings(work: Work, steps: int, stop_after: int | None) -> Settings:
    return Settings(steps=steps, rows=work.rows, length=work.length, stop_after=stop_after)
