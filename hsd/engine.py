"""A loaded family that answers: caches, streaming, stopping, statistics, the choice of plans."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from hsd import loading
from hsd.asking import Asked, ask, complete
from hsd.config import find_family
from hsd.conversations import Conversation, Conversations
from hsd.errors import HsdError, LoadError
from hsd.failures import understand
from hsd.generation import Generation, Request
from hsd.kernels import Kernels
from hsd.learning import STRETCH, Learner, Outcomes, record_of
from hsd.loading import Loaded
from hsd.params import SamplingParams
from hsd.paths import data_dir as data_folder
from hsd.planner import Planner
from hsd.prompts import Prompt, Prompts
from hsd.race import race
from hsd.runtime.graphs import capture
from hsd.stats import Stats
from hsd.turn import Stream, Turn
from hsd.types import Event, FamilyInfo, Finished, LoadProgress, Plan, Race, Reply, ReplyStats, Verification

CACHE_BYTES = 2 << 30
"""Memory that the caches of all conversations may take unless told otherwise."""


class Engine:
    """A family of models in memory, and everything that is known about it. One reply at a time; others wait.

    Use `Engine.load` or `Engine.from_models`. `stats` are the rolling statistics, `planner` chooses plans, `captured`
    are the models' steps on an NVIDIA GPU.
    """

    def __init__(self, loaded: Loaded, stats: Stats, cache_bytes: int = CACHE_BYTES) -> None:
        self._loaded = loaded
        self.stats = stats
        self._models = loaded.models
        self._target = loaded.models[list(loaded.models)[-1]]
        self._prompts = Prompts(loaded.tokenizer, loaded.vocab, loaded.family.system)
        self._fit = partial(self._prompts.prepare, context=self._target.context, drop=loaded.family.overflow == "drop")
        self._conversations = Conversations(loaded.models, min(cache_bytes, loaded.cache_bytes))
        self.planner = Planner(loaded.key, loaded.models, stats)
        self.captured = capture({n: m for n, m in loaded.models.items() if m.device.type == "cuda"})
        # On a GPU whole functions of tensors draw and verify, so that it is waited for once.
        self._kernels = Kernels() if all(m.device.type == "cuda" for m in loaded.models.values()) else None
        self._lock = Turn()
        self._last: tuple[float, int, Plan] | None = None  # temperature, prompt length and plan of the last reply
        self.learner = Learner(self.planner, stats, list(loaded.models))
        self._outcomes = Outcomes(self.planner, stats)
        self._broken: str | None = None
        self._stream: weakref.ref[Stream] | None = None  # the one begun last
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
        engine.planner.profile.begin(progress or (lambda _: None))
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
            context: longest prompt plus reply in tokens; None is what the target was made for, at most 4096.
            overflow: "refuse" prompts that do not fit, or "drop" the oldest turns.
            cache_bytes: memory for the caches of all conversations.

        Raises:
            ConfigError: no models, or a target that is not among them.
            LoadError: the target cannot be used.
        """
        family, ordered = loading.in_memory(models, target, context, overflow)
        loaded = loading.assemble(family, ordered, tokenizer)
        return cls(loaded, Stats(None if data_dir is None else data_folder(data_dir) / "stats.db"), cache_bytes)

    @property
    def info(self) -> FamilyInfo:
        """What is loaded, for people."""
        return self._loaded.info([self.stats.warning] if self.stats.warning else [])

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
        drop: bool | None = None,
    ) -> Stream:
        """A reply as it is made: Started, Tokens per round of the target, Replanned where the plan changes, Finished.

        Closing the iterator, setting `cancel` and `params.time_limit` each end the reply within one round; every cache
        stays good for the next turn. A failure inside a model ends the reply with `finish_reason` "error" and what
        there is of it.

        Args:
            messages: a conversation (role and content each; a reply at its end goes on), one user message as text, or
                token ids.
            params: sampling settings.
            plan: "auto", or `level:threshold>…>target`.
            verification: rule above temperature 0, "block" or "token".
            early_stop: let the first level, if it is a model, stop drafting before its threshold when one more token
                does not pay. Needs 500 scored positions; off above temperature 0 where `params` has a seed, because
                what is drafted then depends on what was learned so far.
            cancel: set it, from any thread, to end the reply.
            drop: leave the oldest turns out of what is too long, or refuse it; None is as the family says.

        Raises:
            PromptError: no message, or more of it than the context holds.
            ConfigError: an impossible plan or setting.
            LoadError: the engine is closed, or a GPU error made it unusable.
        """
        self._usable()
        begun = time.perf_counter()
        fit = self._fit if drop is None else partial(self._fit, drop=drop)
        asked = ask(messages, params, plan, verification, early_stop, cancel, planner=self.planner, fit=fit)
        stream = Stream(self._run(asked, time.perf_counter() - begun), asked.cancel)
        self._stream = weakref.ref(stream)
        return stream

    def race(
        self,
        messages: Prompt,
        params: SamplingParams | None = None,
        plan: str | Plan = "auto",
        verification: Verification = "block",
        early_stop: bool = True,
        *,
        cancel: threading.Event | None = None,
        tell: Callable[[Event], None] = lambda _: None,
    ) -> Race:
        """The same prompt decoded plainly and by a plan, one after the other: a measured baseline, not an estimate.

        Both read the prompt anew into caches of their own; the conversations that are held stay as they are. Both are
        stored in the statistics. Arguments and errors are those of `stream`; a seed holds for both.

        Args:
            tell: hears every event of the plain reply, then every event of the plan's, while they are made.
        """
        self._usable()
        asked = ask(messages, params, plan, verification, early_stop, cancel, planner=self.planner, fit=self._fit)
        return race(asked, self._target.name, lambda one: self._run(one, 0.0), tell)

    def learn(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Idle work: prices the drafts on finished replies, times passes anew, and chooses the next plan.

        It takes at most half a second at a time, and a tenth of the time of the replies altogether.

        Args:
            should_stop: asked before every pass; True ends it.

        Returns:
            Whether there is more to do.
        """
        with self._lock:
            try:
                begun, allowance = time.perf_counter(), self.learner.allowance
                self.learner.run(should_stop)
                # What comes behind scoring has a stretch of its own.
                more = self.learner.waits or time.perf_counter() - begun > STRETCH / 2
                if not more and not should_stop():
                    left = min(allowance.left, STRETCH - (time.perf_counter() - begun))
                    with allowance.spending():
                        # A part of what is left: scoring and choosing need some of it, too.
                        self.planner.profile.refresh(min(left, allowance.earned) / 3, should_stop)
                        if self._last is not None and self.planner.profile.measured and not should_stop():
                            self.planner.replan(*self._last, seconds=left)
            except BaseException:
                # Whatever failed may have left a cache half-way.
                self._conversations.clear()
                self.learner.clear()
                raise
            self._conversations.trim()
            return more

    def explain(self, temperature: float = 0.7) -> dict[str, Any]:
        """Costs, acceptances, the plan of `auto` and every alternative with its forecast, as plain values."""
        with self._lock:
            self._usable()
            self.planner.profile.ready(needed=True)
            return {**self.planner.report(temperature), "left_out": [asdict(d) for d in self.info.dropped]}

    def forget(self) -> None:
        """Drops all cached conversations, so that the next prompt is read from its start."""
        with self._lock:
            self._conversations.clear()
            self.learner.clear()

    def close(self) -> None:
        """Gives models, caches and the statistics file back; ends a reply that is being made."""
        running = self._stream and self._stream()
        if running:
            running.close()
        with self._lock:
            self._closed = True
            self._conversations.clear()
            self.learner.clear()
            self.stats.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, asked: Asked, spent: float) -> Generator[Event, None, None]:
        if not self._lock.take(asked.cancel.is_set):
            unborn = ReplyStats(prompt_tokens=len(asked.prompt))
            yield Finished(Reply("", (), "cancelled", unborn, seed=asked.params.seed))
            return
        try:
            self._usable()
            self.planner.profile.ready(needed=asked.plan == "auto" and self._target.cuttable)
            begun = time.perf_counter()
            request = complete(asked, self.planner)
            request = replace(request, spent=spent + time.perf_counter() - begun)
            yield from self._reply(request, self._conversations.take(request.prompt, asked.apart))
        finally:
            self._lock.give()

    def _reply(self, request: Request, conversation: Conversation) -> Iterator[Event]:
        """The events of a reply, while it is its turn."""
        loaded, error = self._loaded, None
        generation = Generation(
            request,
            conversation,
            loaded.tokenizer,
            marks=self._prompts.marks,
            vocab=loaded.vocab,
            end_ids=loaded.end_ids,
            context=self._target.context,
            device=self._target.device,
            kernels=self._kernels,
        )
        try:
            yield from generation.events()
            tail = generation.tail()
        except GeneratorExit:
            self._finish(generation, conversation, "cancelled", None)
            raise
        except Exception as failure:
            error, tail = self._recovered(failure, conversation), None
        except BaseException:
            self._conversations.drop(conversation)  # interrupted inside a pass
            raise
        reply = self._finish(generation, conversation, "error" if error else generation.reason, error)
        if tail:
            yield tail
        yield Finished(reply)

    def _finish(self, generation: Generation, conversation: Conversation, reason: Any, error: HsdError | None) -> Reply:
        reply = generation.finish(reason, error, self.planner.profile.plain_ms)
        for name, reader in generation.readers.items():
            self.planner.profile.learn(name, reader.meter.passes)
            reader.meter.passes.clear()
        self._conversations.trim()
        if reply.token_ids and not error:
            self._prompts.note(reply.text, reply.token_ids)
        reply_id = self.stats.record_reply(
            record_of(reply, generation.request, generation.rounds, self.planner.family, str(self._target.device))
        )
        self.planner.replied()
        self._outcomes.replied(reply, generation, reply_id)
        request = generation.request
        self._last = (request.params.temperature, reply.stats.prompt_tokens, request.plan)
        can_score = reply_id and self._target.cuttable and error is None
        self.learner.replied(reply, generation, conversation if can_score else None, reply_id)
        return reply

    def _recovered(self, failure: Exception, conversation: Conversation) -> HsdError:
        """What to say of a failure, after caches that it may have touched were dropped."""
        known = understand(failure, self._target.name)
        self._conversations.drop(conversation)
        if known.everywhere:
            self._conversations.clear()
            self.learner.clear()
        self._broken = known.broken
        return known.error

    def _usable(self) -> None:
        if self._closed:
            raise LoadError("The engine is closed.", "Load the family again.")
        if self._broken:
            raise LoadError(self._broken, "Load the family again, or restart the program.")
