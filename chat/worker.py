"""The one thread that owns the engine: loads it, answers requests in turn, and lets it learn while nobody waits.

Knows nothing of conversations, files or pages: a request carries its messages, results leave through `save`.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import hsd
from chat import plans
from chat.api_request import ApiRequest
from chat.race import RaceRequest
from chat.request import EngineLike, EngineState, EngineView, Load, Request, outcome
from chat.saving import Saving
from chat.turns import Turns

log = logging.getLogger(__name__)

Wish = Literal["load", "unload", "replace"]

CHECKPOINT_SECONDS = 1.0
RETRY_SAVE_SECONDS = 2.0
SETTLE_SECONDS = 0.5  # from the end of a reply to idle work


class Worker:
    """Owns the engine.

    Args:
        load: makes the engine; called in the worker's thread with a function that takes `hsd.LoadProgress`.
        save: stores columns of a message; may raise `hsd.StoreError`, then it is tried again later.
        changed: called with "engine", or with the id of a conversation whose running reply changed or ended.
        idle_seconds: the engine's memory is given back after this long without a request; None keeps it.
    """

    def __init__(
        self,
        load: Load,
        save: Callable[[str, Mapping[str, Any]], None],
        changed: Callable[[str], None],
        idle_seconds: float | None = None,
    ) -> None:
        self._load, self._changed, self._idle_seconds = load, changed, idle_seconds
        self._used = 0.0
        self.saving = Saving(save, lambda: changed("engine"))
        self._wake = threading.Condition()
        self._pending = Turns()
        self._active: Request | None = None
        self._closing = False
        self._wish: Wish | None = None
        self._learn = False
        self._engine: EngineLike | None = None
        self._loading_since = 0.0
        self._state: EngineState = "starting"
        self._progress: hsd.LoadProgress | None = None
        self._error: str | None = None
        self._info: hsd.FamilyInfo | None = None
        self._plan = self._reason = ""
        self._known: plans.Known | None = None
        self._temperature = hsd.SamplingParams().temperature
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load the engine."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request; see `Turns` for when it is served."""
        with self._wake:
            self._pending.add(request)
            self._wake.notify_all()
        self._changed("engine")

    def load(self) -> None:
        """Load the engine, where it did not load or was unloaded."""
        self._wish_for("load")

    def unload(self) -> None:
        """Give the engine's memory back as soon as nobody waits for a reply; the next message loads it again."""
        self._wish_for("unload")

    def replace(self, load: Load) -> None:
        """Load another engine in the place of this one, after the reply that is being written; others wait for it."""
        self._load = load
        if self._thread.ident is not None:
            self._wish_for("replace")

    def _wish_for(self, wish: Wish) -> None:
        with self._wake:
            self._wish = wish
            self._wake.notify_all()

    def cancel(self, conversation_id: str, *, first: bool = False) -> bool:
        """Stop what this conversation waits for, only its `first` reply or all; whether there was anything."""
        with self._wake:
            found = [r for r in [self._active, *self._pending] if r and r.conversation_id == conversation_id]
            found = found[:1] if first else found
            for request in found:
                request.cancel.set()
            # One that has not begun ends now: it need not wait for the reply before it.
            waiting = [r for r in found if r in self._pending]
            for request in waiting:
                self._pending.remove(request)
        for request in waiting:
            self._end(request, {"state": "cancelled", "finish_reason": "cancelled"})
        return bool(found)

    def withdraw(self, message_id: str) -> bool:
        """End a request that has not begun; whether it was there."""
        with self._wake:
            request = next((r for r in self._pending if r.message_id == message_id), None)
            if request:
                self._pending.remove(request)
        if request:
            self._end(request, {"state": "cancelled", "finish_reason": "cancelled"})
        return request is not None

    def request(self, conversation_id: str) -> tuple[Request, int] | None:
        """The first that this conversation waits for, and how many are before it."""
        return next(iter(self.requests(conversation_id)), None)

    def requests(self, conversation_id: str) -> list[tuple[Request, int]]:
        """All that this conversation waits for, each with how many are before it."""
        with self._wake:
            queue = [request for request in (self._active, *self._pending) if request]
        return [(request, at) for at, request in enumerate(queue) if request.conversation_id == conversation_id]

    def waiting_of(self, visitor: str) -> int:
        """How many requests of this visitor wait."""
        with self._wake:
            return sum(request.visitor == visitor for request in self._pending)

    @property
    def view(self) -> EngineView:
        """The engine now."""
        with self._wake:
            return EngineView(
                state=self._state,
                progress=self._progress,
                error=self._error,
                info=self._info,
                plan=self._plan,
                reason=self._reason,
                seconds=time.monotonic() - self._loading_since if self._loading_since else 0.0,
                waiting=len(self._pending),
                known=self._known,
            )

    @property
    def writing(self) -> bool:
        """Whether a reply is being written."""
        return self._active is not None

    @property
    def busy(self) -> bool:
        """Whether a reply is being written or waited for."""
        return self._active is not None or bool(self._pending)

    @property
    def alive(self) -> bool:
        """Whether the thread still runs; after `close` only if it was in the middle of loading."""
        return self._thread.is_alive()

    def close(self, timeout: float = 20.0) -> None:
        """Stop what runs, mark it as interrupted, close the engine."""
        with self._wake:
            self._closing = True
            if self._active:
                self._active.cancel.set()
            self._wake.notify_all()
        if self._thread.ident is not None:
            # An engine that is still loading cannot be stopped and has nothing to lose.
            self._thread.join(timeout if self._state == "ready" else 0.5)
        if self._thread.is_alive() or self._thread.ident is None:
            self._interrupt_waiting()

    # In the worker's thread

    def _main(self) -> None:
        self._open()
        while True:
            with self._wake:
                # Whoever chose another engine and then sent a message means the new one to answer it.
                answers = self._pending and not self._closing and self._wish != "replace"
                self._active = self._pending.take() if answers else None
                wish, self._wish = (self._wish, None) if self._active is None else (None, self._wish)
            if self._active:
                self._run(self._active)
            elif self._closing:
                break
            elif wish:
                self._fulfil(wish)
            else:
                self._idle()
        self._shut()

    def _fulfil(self, wish: Wish) -> None:
        if wish == "replace":
            self._close_engine()
            self._info, self._plan, self._reason = None, "", ""
            self._open()
        elif wish == "load" and self._engine is None:
            self._open()
        elif wish == "unload" and self._engine is not None:
            self._close_engine()
            self._set_state("unloaded")

    def _open(self) -> None:
        self._loading_since, self._progress, self._error, self._known = time.monotonic(), None, None, None
        self._set_state("loading")
        try:
            self._engine = self._load(self._note_progress)
        except hsd.HsdError as error:
            self._error = str(error)
        except Exception as error:
            log.exception("the engine did not load")
            self._error = f"The engine did not load: {type(error).__name__}: {error}. Run `hsd doctor` for the details."
        self._learn, self._used = True, time.monotonic()
        self._note_info()
        self._set_state("ready" if self._engine else "failed")

    def _note_info(self) -> None:
        # Kept, since pages look often and the engine gathers it anew each time; also while it is not in memory.
        if self._engine:
            self._info = self._engine.info

    def _note_progress(self, progress: hsd.LoadProgress) -> None:
        self._progress = progress
        self._changed("engine")

    def _set_state(self, state: EngineState) -> None:
        with self._wake:
            self._state = state
        self._changed("engine")

    def _idle(self) -> None:
        self.saving.again()
        if self._learn and self._engine:
            self._learn = False
            with self._wake:
                # Whoever shows the reply draws its end now, on the cores of the steps that are to be timed.
                self._wake.wait_for(self._called, SETTLE_SECONDS)
            try:
                # What is left is done after a pause like this one.
                self._learn = self._engine.learn(should_stop=self._called)
            except Exception:
                # Learning only makes later replies faster; a failure in it must not end the chat.
                log.exception("learning from finished replies failed")
            if not self._learn:
                self._note_info()
                self._look_up()
        left = self._idle_left()
        if left is not None and left <= 0 and not self._called():
            self._close_engine()
            self._set_state("unloaded")
            left = None
        with self._wake:
            if not self._called() and not self._learn:
                self._wake.wait(RETRY_SAVE_SECONDS if self.saving.behind else left)

    def _called(self) -> bool:
        """Whether anybody wants anything."""
        return bool(self._pending or self._wish) or self._closing

    def _idle_left(self) -> float | None:
        """Seconds until the engine's memory is given back. A machine that sleeps does not count them on Linux."""
        if self._idle_seconds is None or self._engine is None:
            return None
        return self._used + self._idle_seconds - time.monotonic()

    def _look_up(self) -> None:
        """Ask the engine what it knows of its plans, for pages that must not wait for its turn."""
        if self._pending or self._wish or self._closing:
            return
        self._known = plans.look_up(self._engine, self._temperature) or self._known
        self._changed("plans")

    def _run(self, request: Request) -> None:
        if self._state == "unloaded":
            self._open()
        if self._engine is None:
            self._end(request, {"state": "error", "finish_reason": "error", "error": self._error})
            return
        request.started = time.monotonic()
        self._temperature = request.params.temperature
        self._changed(request.conversation_id)
        try:
            if isinstance(request, RaceRequest | ApiRequest):
                values = request.run(self._engine, self._changed)
            else:
                values = self._follow(self._engine, request)
        except hsd.PromptError as error:
            # A reply that went on is worth keeping; a prompt that never had one gives way to the next.
            reason = "error" if request.begun else "refused"
            values = {"state": "error", "finish_reason": reason, "error": str(error)}
        except hsd.HsdError as error:
            values = {**request.partial(), "state": "error", "finish_reason": "error", "error": str(error)}
        except Exception as error:
            log.exception("the engine failed during a reply")
            sentence = f"The engine failed: {type(error).__name__}: {error}. Try again: it is loaded anew."
            values = {**request.partial(), "state": "error", "finish_reason": "error", "error": sentence}
            # A device that was lost while the machine slept stays lost: the next message gets a new engine.
            self._close_engine()
            self._set_state("unloaded")
        self._learn, self._used = True, time.monotonic()
        self._note_info()
        self._end(request, values)

    def _follow(self, engine: EngineLike, request: Request) -> dict[str, Any]:
        saved = time.monotonic()
        values: dict[str, Any] | None = None
        for event in engine.stream(request.prompt(engine), request.params, plan=request.plan, cancel=request.cancel):
            match event:
                case hsd.Tokens():
                    request.add(event)
                    if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                        self.saving.store(request.message_id, request.partial())
                        saved = time.monotonic()
                case hsd.Started():
                    request.dropped_turns += event.dropped_turns
                    self._note_plan(request, event.plan, "")
                case hsd.Replanned():
                    self._note_plan(request, event.plan, event.reason)
                case hsd.Finished():
                    values = outcome(request, event.reply, engine.tokenizer)
                    if self._closing and values["state"] == "cancelled":
                        values["state"] = "interrupted"
            self._changed(request.conversation_id)
        return values or {**request.partial(), "state": "interrupted"}

    def _note_plan(self, request: Request, plan: hsd.Plan, reason: str) -> None:
        request.decided_plan = str(plan)
        self._plan, self._reason = str(plan), reason
        self._changed("engine")

    def _end(self, request: Request, values: dict[str, Any]) -> None:
        if stored := request.ending(values):
            self.saving.store(request.message_id, stored)
        with self._wake:
            if self._active is request:
                self._active = None
        self._changed(request.conversation_id)
        self._changed("engine")

    def _interrupt_waiting(self) -> None:
        with self._wake:
            left = self._pending.clear()
        for request in left:
            self._end(request, {**request.partial(), "state": "interrupted"})

    def _shut(self) -> None:
        self._interrupt_waiting()
        self.saving.again()
        self._close_engine()
        self._set_state("closed")

    def _close_engine(self) -> None:
        if self._engine:
            try:
                self._engine.close()
            except Exception:
                log.exception("the engine did not close")
        self._engine = None
        # Models refer to themselves: only a collection gives their memory back now.
        gc.collect()
