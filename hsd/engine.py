"""A loaded family that answers: caches, streaming, stopping, statistics, the choice of plans."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hsd import loading, scoring
from hsd.config import Family, ModelSpec, find_family
from hsd.conversations import Conversation, Conversations
from hsd.errors import ConfigError, HsdError, LoadError, ModelError, PromptError
from hsd.generation import Generation, Request
from hsd.loading import Loaded
from hsd.paths import data_dir as data_folder
from hsd.planner import Planner
from hsd.stats import ReplyRecord, Stats
from hsd.text import Message, Prompts
from hsd.types import (
    LOOKUP,
    Event,
    FamilyInfo,
    Finished,
    LoadProgress,
    Plan,
    Reply,
    SamplingParams,
    Verification,
)

CACHE_BYTES = 2 << 30
"""Memory that the caches of all conversations may take unless told otherwise."""

_SCORING_SHARE = 0.05  # of the time of the replies, once the numbers are sure
_UNSCORED = 8  # finished replies that wait to be scored; older ones are let go

Prompt = str | Sequence[Message] | Sequence[int]


class _Turn:
    """One at a time; others wait. A thread that would wait for itself is told so instead of waiting for ever.

    A stream may be closed by another thread than the one that began it, so this is no RLock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            if self._holder == threading.get_ident():
                raise HsdError("Another reply of this engine is still being streamed.", "Finish or close it first.")
            self._lock.acquire()
        self._holder = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._holder = None
        self._lock.release()


@dataclass(frozen=True, slots=True)
class _Unscored:
    generation: Generation
    conversation: Conversation
    tokens: tuple[int, ...]
    reply_id: int


class Engine:
    """A family of models in memory, and everything that is known about it. One reply at a time; others wait.

    Use `Engine.load` or `Engine.from_models`.
    """

    def __init__(self, loaded: Loaded, stats: Stats, cache_bytes: int = CACHE_BYTES) -> None:
        self._loaded = loaded
        self._stats = stats
        self._models = loaded.models
        self._target = loaded.models[list(loaded.models)[-1]]
        self._prompts = Prompts(loaded.tokenizer, loaded.family.system)
        self._conversations = Conversations(loaded.models, cache_bytes)
        self.planner = Planner(_family_key(loaded), loaded.models, stats)
        self._lock = _Turn()
        self._unscored: deque[_Unscored] = deque(maxlen=_UNSCORED)
        self._reply_seconds = self._scoring_seconds = 0.0
        self._broken: str | None = None
        self._closed = False

    @classmethod
    def load(
        cls,
        family: str,
        device: str = "auto",
        dtype: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        progress: Callable[[LoadProgress], None] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> Engine:
        """Loads a family of `models.yaml`.

        Args:
            family: its name, or `file.yaml#name`.
            device: "auto" (a GPU if there is one), or a torch device that overrides the file's.
            dtype: overrides the file's: "float32", "bfloat16" or "float16".
            data_dir: folder of the statistics; None is `$HSD_HOME` or the platform's.
            config: path of another models.yaml.
            progress: told what is being loaded.
            cache_bytes: memory for the caches of all conversations.

        Raises:
            ConfigError: no such family, or a broken file.
            LoadError: the target cannot be loaded.
            StoreError: the statistics were written by a newer version.
        """
        loaded = loading.load(find_family(family, config), device, dtype, progress)
        engine = cls(loaded, Stats(data_folder(data_dir) / "stats.db"), cache_bytes)
        engine.planner.restore()
        if not engine.planner.measured:
            tell = progress or (lambda _: None)
            engine.planner.measure(lambda name: tell(LoadProgress(name, "measuring step times")))
        return engine

    @classmethod
    def from_models(
        cls,
        models: Mapping[str, Any],
        tokenizer: Any,
        target: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        context: int | None = None,
        overflow: str = "refuse",
        cache_bytes: int = CACHE_BYTES,
    ) -> Engine:
        """An engine over transformers causal language models that are in memory.

        Args:
            models: name -> model, cheapest first.
            tokenizer: the one they share.
            target: name of the target; None is the last.
            data_dir: folder of the statistics; None keeps them in memory and touches no file.
            context: longest prompt plus reply in tokens; None is what the target was made for.
            overflow: "refuse" prompts that do not fit, or "drop" the oldest turns.
            cache_bytes: memory for the caches of all conversations.

        Raises:
            ConfigError: no models, or a target that is not among them.
            LoadError: the target cannot be used.
        """
        if not models:
            raise ConfigError("There are no models.", "Give at least one.")
        target = target or list(models)[-1]
        if target not in models:
            raise ConfigError(f"The target '{target}' is not among the models: {', '.join(models)}.")
        if overflow not in ("refuse", "drop"):
            raise ConfigError(f"overflow={overflow!r} is not known.", "Use 'refuse' or 'drop'.")
        ordered = {**{n: m for n, m in models.items() if n != target}, target: models[target]}
        made_for = getattr(models[target].config, "max_position_embeddings", None) or 4096
        family = Family(
            name="models",
            models=tuple(ModelSpec(name, path=name) for name in ordered),
            target=target,
            context=min(context or made_for, made_for),
            overflow="drop" if overflow == "drop" else "refuse",
        )
        loaded = loading.assemble(family, ordered, tokenizer)
        return cls(loaded, Stats(None if data_dir is None else data_folder(data_dir) / "stats.db"), cache_bytes)

    @property
    def info(self) -> FamilyInfo:
        """What is loaded, for people."""
        loaded = self._loaded
        warning = () if self._stats.warning is None else (self._stats.warning,)
        return FamilyInfo(
            name=loaded.family.name,
            title=loaded.family.title or loaded.family.name,
            models=tuple(loaded.models),
            target=self._target.name,
            context=self._target.context,
            device=str(self._target.device),
            parameters=loaded.parameters,
            dropped=loaded.dropped,
            notes=(*loaded.notes, *warning),
        )

    @property
    def stats(self) -> Stats:
        """The rolling statistics."""
        return self._stats

    @property
    def tokenizer(self) -> Any:
        """The family's tokenizer."""
        return self._loaded.tokenizer

    def generate(
        self,
        messages: Prompt,
        params: SamplingParams | None = None,
        plan: str | Plan = "auto",
        verification: Verification = "block",
        early_stop: bool = True,
    ) -> Reply:
        """The whole reply; see `stream`."""
        for event in self.stream(messages, params, plan, verification, early_stop):
            if isinstance(event, Finished):
                return event.reply
        raise AssertionError("a stream ends with Finished")

    def stream(
        self,
        messages: Prompt,
        params: SamplingParams | None = None,
        plan: str | Plan = "auto",
        verification: Verification = "block",
        early_stop: bool = True,
        *,
        cancel: threading.Event | None = None,
    ) -> Iterator[Event]:
        """A reply as it is made: Started, Tokens per round of the target, Finished.

        Closing the iterator, setting `cancel` and `params.time_limit` each end the reply within one round; every cache
        stays good for the next turn. A failure inside a model ends the reply with `finish_reason` "error" and what
        there is of it.

        Args:
            messages: a conversation (role and content each), one user message as text, or token ids.
            params: sampling settings.
            plan: "auto", or `level:threshold>…>target`.
            verification: rule above temperature 0, "block" or "token".
            early_stop: let levels stop drafting before their threshold when one more token does not pay. Thresholds
                alone stop them so far, so both values decode alike.
            cancel: set it, from any thread, to end the reply.

        Raises:
            PromptError: no message, or more of it than the context holds.
            ConfigError: an impossible plan or setting.
            LoadError: the engine is closed, or a GPU error made it unusable.
        """
        begun = time.perf_counter()
        self._usable()
        params = params or SamplingParams()
        if verification not in ("block", "token"):
            raise ConfigError(f"verification={verification!r} is not known.", "Use 'block' or 'token'.")
        prompt, dropped = self._prompt(messages, params)
        chosen, forecast = self._plan(plan, params, len(prompt))
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(31))
        request = Request(
            tuple(prompt), params, chosen, verification, begun, forecast, dropped, cancel or threading.Event()
        )
        return self._run(request)

    def learn(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Idle work: prices all pairs of the family on finished replies, and times the target's plain step anew.

        Args:
            should_stop: asked before every pass; whoever waits for the engine makes it True.
        """
        with self._lock:
            learned = False
            while self._unscored and not should_stop() and self._may_score():
                learned = self._score(self._unscored.pop(), should_stop) or learned
            if learned and not should_stop():
                self.planner.refresh_target()
                self.planner.store_costs()

    def explain(self, temperature: float = 0.7) -> dict[str, Any]:
        """Costs, acceptances, the plan that `auto` runs and every alternative with its forecast, as plain values."""
        with self._lock:
            self._measured()
            return self.planner.report(temperature)

    def close(self) -> None:
        """Gives models, caches and the statistics file back."""
        with self._lock:
            self._closed = True
            self._conversations.clear()
            self._unscored.clear()
            self._stats.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, request: Request) -> Iterator[Event]:
        with self._lock:
            self._usable()
            conversation = self._conversations.take(request.prompt)
            loaded = self._loaded
            generation = Generation(
                request,
                conversation,
                loaded.tokenizer,
                vocab=loaded.vocab,
                end_ids=loaded.end_ids,
                context=self._target.context,
                device=self._target.device,
            )
            error: HsdError | None = None
            try:
                yield from generation.events()
            except GeneratorExit:
                self._finish(generation, conversation, "cancelled", None)
                raise
            except ModelError as failure:
                error = failure
                self._recover(failure)
            tail = generation.tail()
            reply = self._finish(generation, conversation, "error" if error else generation.reason, error)
            if tail:
                yield tail
            yield Finished(reply)

    def _finish(
        self, generation: Generation, conversation: Conversation, reason: Any, error: HsdError | None
    ) -> Reply:
        reply = generation.finish(reason, error, self._baseline)
        for name, reader in generation.readers.items():
            self.planner.learn_passes(name, reader.meter.passes)
            reader.meter.passes.clear()
        self._conversations.trim()
        if reply.token_ids and not error:
            self._prompts.note(reply.text, reply.token_ids)
        self._reply_seconds += reply.stats.seconds
        reply_id = self._stats.record_reply(self._record(generation, reply))
        scored = (*generation.request.prompt, *reply.token_ids)
        if reply_id and len(reply.token_ids) > 1 and self._target.cuttable and error is None:
            self._unscored.append(_Unscored(generation, conversation, scored, reply_id))
        return reply

    def _record(self, generation: Generation, reply: Reply) -> ReplyRecord:
        stats, request = reply.stats, generation.request
        return ReplyRecord(
            family=self.planner.family,
            device=str(self._target.device),
            plan=stats.plan,
            temperature=request.params.temperature,
            verification=request.verification,
            prompt_tokens=stats.prompt_tokens,
            reused_tokens=stats.reused_tokens,
            reply_tokens=stats.tokens,
            seconds=stats.seconds,
            first_token_seconds=stats.first_token_seconds,
            target_passes=stats.target_passes,
            finish_reason=reply.finish_reason,
            baseline_seconds=stats.baseline_seconds,
            baseline=stats.baseline,
            speedup=stats.speedup,
            forecast_ms_per_token=stats.forecast_ms_per_token,
            decode_seconds=stats.decode_seconds,
            levels=stats.levels,
            thresholds=request.plan.thresholds,
            rounds=tuple((r.proposed, r.accepted, r.seconds * 1000) for r in generation.rounds),
            seed=reply.seed,
        )

    def _baseline(self, generation: Generation) -> float | None:
        """Seconds plain decoding would have taken: the target's prefill, then one plain step per token."""
        decode = self.planner.baseline_ms(generation.context_lengths) / 1000
        return generation.target_prefill_seconds + decode

    def _prompt(self, messages: Prompt, params: SamplingParams) -> tuple[list[int], int]:
        """Token ids of what is asked, and how many of the oldest turns were left out to make it fit.

        Raises:
            PromptError: nothing is asked, or it does not fit the context.
        """
        context, dropped = self._target.context, 0
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if messages and all(isinstance(m, int) for m in messages):
            ids = [int(m) for m in messages]  # type: ignore[arg-type, call-overload]
            wrong = next((i for i in ids if not 0 <= i < self._loaded.vocab), None)
            if wrong is not None:
                raise PromptError(
                    f"The prompt holds token id {wrong}.", f"The vocabulary has ids 0 to {self._loaded.vocab - 1}."
                )
        else:
            turns: list[Any] = list(messages)
            ids = self._prompts.build(turns)
            if self._loaded.family.overflow == "drop":
                room = context - min(params.max_tokens, context // 4)
                while len(ids) > room and (shorter := _without_oldest_turn(turns)):
                    turns, dropped = shorter, dropped + 1
                    ids = self._prompts.build(turns)
        if not ids:
            raise PromptError("The prompt is empty.", "Write something first.")
        if len(ids) >= context:
            raise PromptError(
                f"The conversation has {len(ids)} tokens, and the context holds {context} with the reply.",
                "Shorten the message or begin a new chat.",
            )
        return ids, dropped

    def _plan(self, plan: str | Plan, params: SamplingParams, prompt_tokens: int) -> tuple[Plan, float | None]:
        """The plan to run and its forecast in ms per token.

        Raises:
            ConfigError: a plan whose levels are not in this family, in another order, or under another target.
        """
        if plan == "auto":
            if not self._target.cuttable:
                return Plan(self._target.name), None
            with self._lock:
                self._measured()
                decision = self.planner.choose(params.temperature, prompt_tokens)
            return decision.plan, decision.forecast_ms
        chosen = Plan.parse(plan) if isinstance(plan, str) else plan
        order = [LOOKUP, *self._models]
        for name in chosen.names:
            if name not in order:
                raise ConfigError(f"The plan '{chosen}' uses '{name}'.", f"This family has: {', '.join(order)}.")
        if chosen.target != self._target.name:
            raise ConfigError(
                f"The plan '{chosen}' ends with '{chosen.target}', but the target is '{self._target.name}'.",
                "The reply must be the target's own words.",
            )
        if [n for n in order if n in chosen.names] != list(chosen.names):
            raise ConfigError(
                f"The plan '{chosen}' is not cheapest first.", f"The order of this family is: {', '.join(order)}."
            )
        if chosen.drafts and not self._target.cuttable:
            raise ConfigError(
                f"'{self._target.name}' decodes plainly: its cache cannot be cut back.", f"Use '{self._target.name}'."
            )
        return chosen, self.planner.forecast(chosen, params.temperature, prompt_tokens)

    def _measured(self) -> None:
        if not self.planner.measured:
            self.planner.measure()

    def _may_score(self) -> bool:
        """Scoring may take a small share of the replies' time; until the numbers are sure it may take what it needs."""
        latest = self._unscored[-1].generation.request.params.temperature
        estimates = self.planner.acceptances(latest).values()
        sure = bool(estimates) and all(e.sure for e in estimates)
        return not sure or self._scoring_seconds <= _SCORING_SHARE * self._reply_seconds

    def _score(self, entry: _Unscored, should_stop: Callable[[], bool]) -> bool:
        """Scores one reply; False if it was stopped or its conversation has moved on."""
        tokens = list(entry.tokens)
        if entry.conversation.shared(tokens) < len(tokens):
            return False  # edited or regenerated since: its caches hold another text
        begun = time.perf_counter()
        overlaps = scoring.score(
            entry.conversation,
            list(self._models),
            tokens,
            len(entry.generation.request.prompt),
            entry.generation.sampler,
            should_stop,
        )
        self._scoring_seconds += time.perf_counter() - begun
        if overlaps is None:
            self._unscored.append(entry)
            return False
        self._stats.record_scores(entry.reply_id, overlaps)
        return True

    def _recover(self, failure: ModelError) -> None:
        """After a failure inside a model: caches are dropped; a dead GPU context ends this engine."""
        cause = failure.__cause__
        if cause is None:
            return
        self._conversations.clear()
        self._unscored.clear()
        text = str(cause)
        if "CUDA error" in text or "device-side assert" in text or type(cause).__name__ == "AcceleratorError":
            self._broken = f"The GPU stopped working for this program ({text.splitlines()[0][:120]})."

    def _usable(self) -> None:
        if self._closed:
            raise LoadError("The engine is closed.", "Load the family again.")
        if self._broken:
            raise LoadError(self._broken, "Load the family again, or restart the program.")


def _without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation without its oldest question and answer; None if only the last message is left."""
    head = [m for m in messages[:1] if m["role"] == "system"]
    rest = list(messages[len(head) :])
    following = next((i for i, m in enumerate(rest) if i > 0 and m["role"] == "user"), None)
    return None if following is None else [*head, *rest[following:]]


def _family_key(loaded: Loaded) -> str:
    """What acceptances are valid for: the models, how they are stored and what they compute in."""
    parts = [f"{name}={loaded.stored.get(name, '')}/{model.dtype}" for name, model in loaded.models.items()]
    return f"{loaded.family.name}: {', '.join(parts)}"


