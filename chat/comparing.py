"""What a person can do to compare plans: set one by hand, and race a reply against plain decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hsd
from chat import limits, plans
from chat.library import Library
from chat.own_families import OwnFamilies
from chat.race import Standing, place, request_for
from chat.worker import Worker


class Comparing(Library):
    """The part of a session that compares plans.

    `models` are the family's names, cheapest first, as far as they are known before it is loaded.
    """

    worker: Worker
    models: tuple[str, ...]
    own_families: OwnFamilies | None = None
    """Where a person may add families; None where nobody may."""

    def levels(self) -> tuple[tuple[str, ...], str | None]:
        """Names of the family's models, cheapest first, and its target if that is known."""
        info = self.worker.view.info
        return (info.models, info.target) if info else (self.models, None)

    def pin_plan(self, conversation_id: str | None, text: str) -> str:
        """Store the plan of a conversation's next replies, "auto" or one by hand; its usual form.

        Raises:
            ConfigError: it is no plan of this family. Nothing is stored.
        """
        plan = plans.checked(text, *self.levels())
        conversation = self.conversation(conversation_id)
        if conversation:
            self._of(conversation.id).keep_settings(conversation.id, {**conversation.settings, "plan": plan})
            self._touch(conversation.id)
        return plan

    def check_waiting(self, visitor: str) -> None:
        """Raises HsdError where a visitor waits for as much as one may."""
        if self.worker.waiting_of(visitor) >= limits.WAITING:
            raise hsd.HsdError(f"You wait for {limits.WAITING} replies already.", "Wait for them, or stop some.")

    def race(self, message_id: str) -> None:
        """Decode a reply's prompt once more, plainly and by its plan; one at a time for each reply.

        Raises:
            HsdError: that cannot be done; the sentence says why.
        """
        message = self.message(message_id)
        if message is None:
            raise hsd.HsdError("This reply is not there any more.", "Reload the page.")
        path = self._of(message_id).path_to(message_id)[:-1]
        request = request_for(message, path, *self.levels())
        request.visitor = self._of(message_id).visitor_of(message_id) or ""
        self.check_waiting(request.visitor)
        if self.worker.request(request.conversation_id) is None:
            self.worker.submit(request)
        self._touch(request.conversation_id)

    def stop_race(self, message_id: str) -> None:
        """Stop it within a round; nothing of it is stored."""
        self.worker.cancel(place(message_id))
        self._touch(place(message_id))

    def racing(self, message_id: str) -> Standing | None:
        """How far a reply's race is, or None where none is being run."""
        found = self.worker.request(place(message_id))
        return Standing.of(*found) if found else None

    def raced(self, message_id: str) -> Mapping[str, Any] | None:
        """The stored race of a reply, see `chat.race.record`, or {"error"}; None where there is none."""
        unsaved: Mapping[str, Any] | None = self.worker.saving.waiting(message_id).get("race")
        return unsaved or self._of(message_id).race(message_id)
