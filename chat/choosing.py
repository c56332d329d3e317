"""What a person can do with families: see which fit this machine's memory, and change to another."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable

import hsd
from chat.comparing import Comparing
from chat.own_families import Choice
from chat.request import Busy, Load

_ASKING = threading.Lock()
"""Pages ask in threads of their own; two at once would import torch twice over."""


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """A family that can be loaded. `fit` is None until it is known, or where it cannot be."""

    choice: Choice
    current: bool
    fit: hsd.MemoryFit | None
    problem: str = ""


class Choosing(Comparing):
    """The part of a session that knows families.

    `family` is the name of the one in use. `opener` makes the loader of another; None where nobody may change it.
    """

    family: str = ""
    title: str
    default_plan: str
    examples: tuple[str, ...]
    opener: Callable[[Choice], Load] | None = None
    _may_drop: bool

    def offers(self) -> list[Offer]:
        """All families with what they need of this machine's memory, as if the present one were gone.

        Loads no model, but torch when it is first called: seconds. Raises HsdError where families cannot be changed.
        """
        return [self._offer(choice) for choice in self._choices().values()]

    def _choices(self) -> dict[str, Choice]:
        if self.opener is None or self.own_families is None:
            raise hsd.HsdError("The family cannot be changed here.", "Start the program with another --family.")
        return self.own_families.choices()

    def _offer(self, choice: Choice) -> Offer:
        freed = self._freed()
        current = choice.family.name == self.family
        try:
            with _ASKING:
                return Offer(choice, current, hsd.memory_fit(choice.family, also_free_gb=freed))
        except hsd.HsdError as error:
            return Offer(choice, current, None, str(error))

    def found(self) -> hsd.Found:
        """Families of models that other programs keep on this computer, but for those that were chosen before.

        Reads headers of files: seconds when it is first called. Raises HsdError where families cannot be changed.
        """
        choices = self._choices()
        with _ASKING:
            found = hsd.found_families(also_free_gb=self._freed())
        known = {_target(choice.family) for choice in choices.values()}
        return dataclasses.replace(found, families=tuple(f for f in found.families if _target(f.family) not in known))

    def choose_found(self, name: str) -> None:
        """Keep a family of `found` with those that the person added, and load it.

        Raises:
            HsdError: it is not there any more, it cannot be kept, or what `choose` raises.
        """
        offered = next((f for f in self.found().families if f.family.name == name), None)
        if offered is None or self.own_families is None:
            raise hsd.ConfigError("These models are not there any more.", "Look at the list again.")
        self._refuse_while_busy()
        self.choose(self.own_families.keep(offered).name)

    def choose(self, name: str) -> None:
        """Load another family in the place of the present one; messages that are sent meanwhile wait for it.

        Raises:
            HsdError: there is no such family, families cannot be changed, or a reply is being written.
        """
        choice = self._choices().get(name)
        if choice is None or self.opener is None:
            raise hsd.ConfigError(f"There is no family '{name}' any more.", "Look at the list again.")
        self._refuse_while_busy()
        family = choice.family
        self.family, self.title, self.default_plan = family.name, family.title or family.name, "auto"
        self.models = tuple(model.name for model in family.models)
        self.examples, self._may_drop = family.examples, family.overflow == "drop"
        self.worker.replace(self.opener(choice))
        self._touch("list", "engine", "family")

    def _refuse_while_busy(self) -> None:
        if self.worker.busy:
            raise Busy("A reply is being written.", lambda: not self.worker.busy)

    def _freed(self) -> float:
        """GB that the present family gives back when another one is loaded."""
        info = self.worker.view.info if self.worker.view.state == "ready" else None
        return info.memory.needed_gb if info and info.memory else 0.0


def _target(family: hsd.Family) -> str:
    """Where a family's target lies: links in folders above it are followed when a models.yaml is read."""
    folder, name = os.path.split(os.path.expanduser(family.target_spec.path))
    return os.path.join(os.path.realpath(folder), name)
