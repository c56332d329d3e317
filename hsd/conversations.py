"""Caches of several conversations, kept by least-recent use within a memory budget.

Nobody says which conversation a prompt belongs to: it goes on with whichever cached text it shares most with. An edited
history, a regenerated reply and a common system message are the same thing, a shared prefix; where it is the smaller
part of the old text it is copied, so that the old text keeps its caches too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hsd.lookup import SuffixIndex
from hsd.runtime import LanguageModel, Reader


class Conversation:
    """One text, and what every model has cached of it.

    Args:
        models: the family's models by name.
    """

    def __init__(self, models: Mapping[str, LanguageModel]) -> None:
        self.models = models
        self._readers: dict[str, Reader] = {}
        self.tokens: list[int] = []
        self.turn = 0  # prompts that it has turned to
        self._index: SuffixIndex | None = None

    def reader(self, name: str) -> Reader:
        """The model's reader of this text, made when first asked for."""
        if name not in self._readers:
            model = self.models[name]
            self._readers[name] = Reader(model, model.new_cache())
        return self._readers[name]

    @property
    def readers(self) -> Mapping[str, Reader]:
        return self._readers

    @property
    def index(self) -> SuffixIndex:
        """The suffix index of the text; made, and brought up to the text's end, when a lookup level asks for it."""
        if self._index is None:
            self._index = SuffixIndex()
        self._index.settle(self.tokens[len(self._index) :])
        return self._index

    @property
    def nbytes(self) -> int:
        """Memory of all caches and of the index."""
        index = 0 if self._index is None else self._index.nbytes
        return index + sum(reader.cache.nbytes for reader in self._readers.values())

    def shared(self, prompt: list[int]) -> int:
        """Length of the longest common prefix with a prompt, in tokens."""
        size = min(len(self.tokens), len(prompt))
        if self.tokens[:size] == prompt[:size]:
            return size
        low, high = 0, size  # bisection over slices: comparing lists runs in C
        while low < high:
            middle = (low + high + 1) // 2
            if self.tokens[low:middle] == prompt[low:middle]:
                low = middle
            else:
                high = middle - 1
        return low

    def branch(self, length: int) -> Conversation:
        """Another conversation that begins with the first `length` tokens of this one."""
        new = Conversation(self.models)
        new.tokens = self.tokens[:length]
        new._readers = {name: reader.copy(length) for name, reader in self._readers.items() if len(reader)}
        return new

    def begin(self, prompt: list[int]) -> None:
        """Turns to a new prompt: keeps what it shares with the old text, in every cache."""
        self.turn += 1
        kept = self.shared(prompt)
        for reader in self._readers.values():
            reader.rewind(kept)
            reader.meter.passes.clear()
        if self._index is not None:
            self._index.cut(min(kept, len(self._index)))
        self.tokens = list(prompt)


class Conversations:
    """The conversations that are held.

    Args:
        models: the family's models by name.
        budget: bytes that all caches together may take; the conversation in use is kept even beyond it.
    """

    def __init__(self, models: Mapping[str, LanguageModel], budget: int) -> None:
        self._models = models
        self._budget = budget
        self._held: list[Conversation] = []  # least recently used first

    def __len__(self) -> int:
        return len(self._held)

    def take(self, prompt: Sequence[int], apart: bool = False) -> Conversation:
        """The conversation to read this prompt in, turned to it; the others are dropped as far as memory asks.

        One that is taken apart begins with nothing, and is not held.
        """
        prompt = list(prompt)
        if apart:
            alone = Conversation(self._models)
            alone.begin(prompt)
            return alone
        best = max(self._held, key=lambda c: c.shared(prompt), default=None)
        if best is None:
            best = Conversation(self._models)
        elif 2 * best.shared(prompt) < len(best.tokens):
            best = best.branch(best.shared(prompt))
        else:
            self._held.remove(best)
        self._held.append(best)
        best.begin(prompt)
        self.trim()
        return best

    def trim(self) -> None:
        """Drops conversations, least recently used first, until the budget holds."""
        while len(self._held) > 1 and sum(c.nbytes for c in self._held) > self._budget:
            del self._held[0]

    def drop(self, conversation: Conversation) -> None:
        """Forgets one, whose caches may hold what no model wrote."""
        if conversation in self._held:
            self._held.remove(conversation)

    def clear(self) -> None:
        """Drops them all."""
        self._held.clear()
