"""The stages of training, in order: tokenizer, target, store, drafts, export. Each goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hsd.builtin import grow, kept, stored, tokenizer
from hsd.builtin.ahead import Workers, workers
from hsd.builtin.budget import Budget
from hsd.builtin.conversation import Conversation
from hsd.builtin.distill import kept_loss, soften
from hsd.builtin.export import FORMATS
from hsd.builtin.export import export as write
from hsd.builtin.kept import KeptStream
from hsd.builtin.loop import PROBED, Learner, Settings, mean_loss, train
from hsd.builtin.mixture import Mixture
from hsd.builtin.models import LADDERS, Shape, build, size
from hsd.builtin.optim import Rates
from hsd.builtin.presets import Preset
from hsd.builtin.stream import Encoded, Rounds, Stream, padded
from hsd.builtin.unasked import written
from hsd.builtin.writing import Writer, Written
from hsd.errors import HsdError
from hsd.loading.place import fast_bf16

CPU = torch.device("cpu")
TOKENIZER_ROUNDS = 3
READY = 4  # rounds that are there before a GPU begins: a step that waits for text must not be timed


@dataclass(frozen=True)
class Work:
    """A folder in which a family is made, and what all stages share."""

    folder: Path
    corpus: Path | None
    preset: Preset
    seed: int = 0
    device: torch.device = CPU
    budget: Budget = field(default_factory=lambda: Budget(Path("none"), None))
    nf4_from: int = stored.NF4_FROM
    compiled: bool = False
    grow_from: Path | None = None

    @property
    def ladder(self) -> dict[str, Shape]:
        return LADDERS[self.preset.ladder]

    @property
    def target(self) -> str:
        return list(self.ladder)[-1]

    @property
    def drafts(self) -> list[str]:
        return list(self.ladder)[:-1]

    @property
    def spoken_size(self) -> str:
        """What the family says of itself."""
        return f"{round(size(self.ladder[self.target], self.preset.vocabulary) / 1e6)} million"

    @cached_property
    def mixture(self) -> Mixture:
        return Mixture(self.corpus, self.seed, self.preset.shares, self.spoken_size)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Raises HsdError when the tokenizer stage has not run."""
        if not (self.folder / "tokenizer" / "tokenizer.json").is_file():
            raise HsdError(f"There is no tokenizer in {self.folder}.", "Run --stage tokenizer first.")
        return tokenizer.load(self.folder / "tokenizer")

    @cached_property
    def ahead(self) -> Workers | None:
        """Processes that make rounds while a GPU trains; a CPU has no time to spare."""
        if self.device.type == "cpu":
            return None
        learnt = self.folder / "tokenizer"
        return workers(self._rounds, self.corpus, self.seed, self.preset.shares, self.spoken_size, learnt)

    @property
    def _rounds(self) -> Path:
        return self.folder / f"rounds-{self.seed}"

    @cached_property
    def text(self) -> Rounds:
        """Rounds of the mixture."""
        return Rounds(self._rounds, lambda number: self.encode(self.mixture.round(number)), self.ahead)

    def encode(self, conversations: list[Conversation]) -> Encoded:
        return tokenizer.encode(conversations, self.tokenizer)

    def judge(self) -> Callable[[LlamaForCausalLM], dict[str, float]]:
        """Held-out loss of a model, set by set, in nats per token of the assistant's text; also tells the budget."""
        sets = {
            name: list(padded(self.encode(found), 16, self.preset.length))
            for name, found in self.mixture.held_out().items()
        }

        def judged(model: LlamaForCausalLM) -> dict[str, float]:
            self.budget.tell()
            return {name: mean_loss(model, batches) for name, batches in sets.items()}

        return judged

    def checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.pt"

    def fresh(self, name: str) -> LlamaForCausalLM:
        """Model `name` with random weights, on the device."""
        place = list(self.ladder).index(name)
        return build(self.ladder[name], len(self.tokenizer), seed=self.seed + place).to(self.device)

    def begun(self, name: str) -> LlamaForCausalLM:
        """Model `name` as its training begins: with what an earlier run has learnt, or with random weights.

        Raises:
            HsdError: the earlier run has no such model, or one that does not fit into this.
        """
        model = self.fresh(name)
        if self.grow_from is not None:
            state = grow.read(self.grow_from, self._stage(name), name)
            grow.grow(state, grow.shape_of(state), model, self.ladder[name])
        return model

    def _stage(self, name: str) -> str:
        return "target" if name == self.target else "drafts"

    def trained(self, name: str) -> LlamaForCausalLM:
        """Model `name` as its stage last saved it, or as the family has it that this run began with.

        Raises:
            HsdError: its stage has not saved anything yet, and there is no such family.
        """
        paths = [path for path in map(self.checkpoint, (self._stage(name), f"more-{name}")) if path.is_file()]
        if not paths:
            if self.untouched(name):
                return self.begun(name)
            raise HsdError(f"There is no checkpoint of '{name}' in {self.folder}.", "Run its stage first.")
        model = self.fresh(name)
        latest = max(paths, key=lambda path: path.stat().st_mtime)
        model.load_state_dict(torch.load(latest, map_location="cpu", weights_only=True)["learners"][name]["model"])
        return model

    def untouched(self, name: str) -> Path | None:
        """Where model `name` lies in the family that this run began with, if it is of this ladder and nothing in this
        run has trained it: such a model is taken as it is, since packing it again would not give the same numbers."""
        mine = (self._stage(name), f"more-{name}")
        if self.grow_from is None or any(self.checkpoint(stage).is_file() for stage in mine):
            return None
        if not grow.is_stored(self.grow_from, name):
            return None
        place, shape = stored.place_of(self.grow_from, name), self.ladder[name]
        config = stored.load(place).config if place.is_file() else LlamaConfig.from_pretrained(place)
        has = (config.hidden_size, config.num_hidden_layers, config.intermediate_size)
        return place if has == (shape.width, shape.layers, shape.inner) else None

    def settings(self, steps: int, rates: Rates, stop_after: int | None, lightest: float = 0.0) -> Settings:
        p = self.preset
        return Settings(
            steps,
            p.rows,
            p.length,
            p.save_every,
            p.judge_every,
            rates,
            lightest,
            stop_after=stop_after,
            pieces=p.pieces,
        )

    def planned(self, wanted: int, share: float) -> Callable[[float], int] | None:
        """How many steps fit the budget, given the seconds of one; None where there is no budget."""
        if self.budget.minutes is None:
            return None
        return lambda step_s: self.budget.steps(wanted, PROBED + 1, step_s, share)

    def close(self) -> None:
        """Ends the processes that make rounds, and keeps what is spent."""
        if "ahead" in self.__dict__ and self.ahead is not None:
            self.ahead.close()
        if self.folder.is_dir():
            self.budget.tell()


def train_tokenizer(work: Work) -> None:
    """Learn the vocabulary from the first rounds, unless that has been done; what grows keeps the one it has."""
    folder = work.folder / "tokenizer"
    if (folder / "tokenizer.json").is_file():
        return
    partial = folder.with_name(".tokenizer.partial")
    if work.grow_from is not None:
        names = reversed(work.ladder)
        places = [work.grow_from / "tokenizer", *(work.grow_from / f"{n}{end}" for n in names for end in ("", ".gguf"))]
        place = next((place for place in places if place.is_file() or (place / "tokenizer.json").is_file()), None)
        if place is None:
            message = f"There is no tokenizer in {work.grow_from}."
            raise HsdError(message, "--grow-from takes the --work folder of a run, or the folder of a family.")
        tokenizer.load(place).save_pretrained(partial)
        partial.rename(folder)
        return
    rounds = (work.mixture.round(number) for number in range(TOKENIZER_ROUNDS))
    learnt = tokenizer.train((turn.content for r in rounds for turns in r for turn in turns), work.preset.vocabulary)
    learnt.save_pretrained(partial)
    partial.rename(folder)


def train_target(work: Work, stop_after: int | None = None) -> int:
    """Train the target on the text. Returns the step that was reached."""
    p = work.preset
    learners = {work.target: Learner(work.begun(work.target), p.target_rates, work.compiled)}
    settings = work.settings(p.steps, p.target_rates, stop_after)

    plan = work.planned(p.steps, p.share)
    for number in range(READY if work.ahead is not None else 0):
        work.text(number)
    return train(learners, Stream(work.text), settings, work.checkpoint("target"), judge=work.judge(), plan=plan)


def store_target(work: Work) -> Path:
    """Write the target in the weights that its drafts learn from, unless that was done since it was trained.

    Returns its folder; of a family that this run began with, its folder or file there.
    """
    folder, checkpoint = work.folder / "stored" / work.target, work.checkpoint("target")
    if begun := work.untouched(work.target):
        return begun
    model = work.trained(work.target)
    if not folder.is_dir() or folder.stat().st_mtime < checkpoint.stat().st_mtime:
        folder.parent.mkdir(exist_ok=True)
        stored.store(model, work.tokenizer, folder, work.nf4_from)
    return folder


def train_drafts(work: Work, stop_after: int | None = None) -> int:
    """Distil all drafts at once: the target's pass over a batch, the dearest part, is then made only once.

    Their teacher is the target as stored, since that is what they will draft for: what it thought while it wrote
    replies, or, without replies, its pass over the text.
    """
    p = work.preset
    learners = {
        name: Learner(work.begun(name), p.draft_rates, work.compiled, varied=p.asked > 0) for name in work.drafts
    }
    target = _teacher(work)
    settings = work.settings(p.draft_steps, p.draft_rates, stop_after, lightest=0.5)
    plan, checkpoint, judge = work.planned(p.draft_steps, 1.0), work.checkpoint("drafts"), work.judge()
    if not p.asked:
        return train(
            learners, Stream(work.text), settings, checkpoint, teacher=(target, soften), judge=judge, plan=plan
        )
    stream = KeptStream(_replies(work, target), work.seed, _kept_loss(work))
    return train(learners, stream, settings, checkpoint, judge=judge, plan=plan)


def train_more(work: Work, name: str, stop_after: int | None = None) -> int:
    """Train one draft on, alone, from where the drafts' stage left it, on the same replies in another order.

    A draft between two others pays only if it is clearly better than the smallest, so it may need more steps than that
    can use; alone its steps cost a fraction of those of all.

    Raises:
        HsdError: there is no such draft, the drafts' stage has not run, or there are no replies.
    """
    if name not in work.drafts:
        raise HsdError(f"There is no draft '{name}'.", f"--only takes one of {', '.join(work.drafts)}.")
    p = work.preset
    checkpoint = work.checkpoint(f"more-{name}")
    begun = work.fresh(name) if checkpoint.is_file() else work.trained(name)
    learners = {name: Learner(begun, p.draft_rates, work.compiled, varied=True)}
    settings = work.settings(p.draft_steps, p.draft_rates, stop_after, lightest=0.5)
    replies = _replies(work, _teacher(work))
    if not replies:
        raise HsdError("There are no replies to learn from.", "--stage more needs --replies of at least 1.")
    stream = KeptStream(replies, work.seed + 1, _kept_loss(work))
    return train(learners, stream, settings, checkpoint, judge=work.judge())


def _teacher(work: Work) -> LlamaForCausalLM:
    """The target as stored, in the numbers that this device computes fastest with."""
    half = torch.bfloat16 if work.device.type == "cuda" or fast_bf16() else torch.float32
    return stored.load(store_target(work), work.device, half).eval()


def _kept_loss(work: Work) -> Callable[..., Tensor]:
    return torch.compile(kept_loss, dynamic=True) if work.compiled else kept_loss


def _replies(work: Work, target: LlamaForCausalLM) -> list[Written]:
    """All rounds of the target's replies; what is missing is written before training begins."""
    path, step = work.checkpoint("target"), 0
    if path.is_file():
        step = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"]
    folder, found = work.folder / f"kept-{work.seed}-{step}", []
    writer = Writer(target)
    for number in range(work.preset.reply_rounds):
        path = folder / f"round-{number:04d}.npz"
        if not path.exists():
            kept.keep(
                path, written(writer, work.mixture, work.tokenizer, number, work.preset.asked, work.seed + number)
            )
        found += kept.read(path)
    return found


def export(work: Work, out: Path) -> None:
    """Write the family to `out` as GGUF files: the target as its drafts knew it, and the drafts.

    What is not a GGUF file already lies in the work folder too, as safetensors.
    """
    family = work.folder / "family"
    family.mkdir(exist_ok=True)
    for name in work.ladder:
        begun = work.untouched(name) or (store_target(work) if name == work.target else None)
        if begun is None:
            begun = family / name
            stored.store(work.trained(name), work.tokenizer, begun, work.nf4_from)
        file = out / f"{name}.gguf"
        if not begun.is_file():
            write(begun, file, FORMATS[name])
        elif begun.resolve() != file.resolve():
            out.mkdir(parents=True, exist_ok=True)
            partial = out / f".{file.name}.partial"
            shutil.copyfile(begun, partial)
            partial.rename(file)
