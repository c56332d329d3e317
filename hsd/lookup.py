"""The lookup level: the longest suffix of the sequence that occurred before proposes what followed it.

A suffix automaton (Blumer et al. 1985) of the *settled* tokens, prompt and committed reply, grown in amortised constant
time per token. Pending tokens are only matched against it, never indexed: a match is a (state, length) pair, so
rewinding a rejected draft drops pairs and touches no index. Settled tokens are cut only between turns, by an undo log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_ROOT = 0

_WEIGHTS = (-2.4, 0.4, 1.8, 1.45)
"""Log odds of a confidence: constant, per doubling of the match, for the share of the last proposals that held, and
where only one token ever followed. Fitted on replies of a 1.5B model (docs/log.md)."""

_MEMORY = 0.7  # what the share of the last proposals that held keeps of itself at each of them
_UNKNOWN = 0.5  # that share before the first proposal


class _Match(NamedTuple):
    """The longest matching suffix ends in `state` and has `length` tokens."""

    state: int
    length: int


class SuffixIndex:
    """Suffixes of one sequence of token ids, longest match first.

    The sequence is `settled + pending`. `settle` appends settled tokens, `push` pending ones; `cut` shortens either.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._settled = 0
        self._next: list[dict[int, int]] = [{}]  # per state: token -> state
        self._link: list[int] = [-1]  # longest suffix of the state's strings that is in another state
        self._length: list[int] = [0]  # longest string of the state
        self._place: list[int] = [-1]  # where a string of the state ends: the last place seen to be its longest match
        self._last = _ROOT
        self._undo: list[list[tuple]] = []  # per settled token: what its insertion changed, newest last
        self._matches: list[_Match] = [_Match(_ROOT, 0)]  # after all settled tokens, then after each pending one
        self._held: list[float] = []  # per settled token: the share of the last proposals that held until then

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def settled(self) -> int:
        """Tokens at the start of the sequence that are part of the text for good."""
        return self._settled

    @property
    def nbytes(self) -> int:
        """Memory, roughly: about 800 bytes a token were measured on random and on repetitive text of 32k tokens."""
        return 800 * self._settled

    def settle(self, tokens: Sequence[int]) -> None:
        """Appends tokens that are part of the text for good. Pending tokens must have been settled or cut."""
        assert len(self.tokens) == self._settled, "pending tokens stand between the text and what is to be settled"
        for token in tokens:
            self._note(token)
            self._extend(token)
        self._settled = len(self.tokens)
        # The whole text matches itself; its longest suffix that occurred *before* is one link further.
        state = self._link[self._last]
        self._matches = [_Match(_ROOT, 0) if state < 0 else _Match(state, self._length[state])]

    def push(self, token: int) -> None:
        """Appends a pending token: amortised constant time."""
        match = self._after(self._matches[-1], token)
        self.tokens.append(token)
        self._matches.append(match)

    def cut(self, length: int) -> None:
        """Keeps the first `length` tokens."""
        if length >= self._settled:
            del self._matches[len(self._matches) - (len(self.tokens) - length) :]
            del self.tokens[length:]
            return
        del self.tokens[self._settled :]
        while len(self.tokens) > length:
            self._retract()
        self._settled = length
        self.settle(())

    def ahead(self, most: int) -> tuple[list[int], list[float]]:
        """What it would propose next, and how sure it is of each token, if all of them are right.

        Returns:
            At most `most` token ids, and their confidences: see `confidence`.
        """
        tokens: list[int] = []
        sure: list[float] = []
        match, held = self._matches[-1], self._share_held
        while len(tokens) < most and match.length:
            at = self._place[match.state] + 1
            # A match may run into what is proposed here: text that repeats itself goes on repeating itself.
            tokens.append(self.tokens[at] if at < len(self.tokens) else tokens[at - len(self.tokens)])
            sure.append(self._confidence(match, held))
            match, held = self._after(match, tokens[-1]), _share(held, True)
        return tokens, sure

    @property
    def confidence(self) -> float:
        """How sure it is of its next proposal, 0 to 1; NaN where it has none.

        From three things that say most about it: the length of the match, the share of its last proposals that held,
        and whether everything that ever followed the match was the same token. Roughly the chance that the token is
        right; what it is worth under a given verifier is fitted on finished replies (`planning.fit`).
        """
        return self._confidence(self._matches[-1], self._share_held)

    def propose(self) -> int | None:
        """The token that followed the longest suffix that occurred before; None if no suffix of one token did."""
        state, length = self._matches[-1]
        if length == 0:
            return None
        return self.tokens[self._place[state] + 1]

    @property
    def match_length(self) -> int:
        """Tokens in the longest suffix of the sequence that occurred before."""
        return self._matches[-1].length

    @property
    def _share_held(self) -> float:
        """Of the last proposals; pending tokens count as proposals that held."""
        share = self._held[-1] if self._held else _UNKNOWN
        return 1 - (1 - share) * _MEMORY ** (len(self._matches) - 1)

    def _confidence(self, match: _Match, held: float) -> float:
        if not match.length:
            return math.nan
        base, per_length, per_held, single = _WEIGHTS
        odds = base + per_length * math.log2(match.length) + per_held * held
        if len(self._next[match.state]) == 1:
            odds += single
        return 1 / (1 + math.exp(-odds))

    def _after(self, match: _Match, token: int) -> _Match:
        """The match behind one more token."""
        state, length = match
        while state != _ROOT and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        following = self._next[state].get(token)
        return _Match(_ROOT, 0) if following is None else _Match(following, length + 1)

    def _note(self, token: int) -> None:
        """Counts whether the proposal behind the settled text was right."""
        # The longest suffix that occurred before is one link from the text itself.
        state = self._link[self._last]
        share = self._held[-1] if self._held else _UNKNOWN
        if state > _ROOT:  # something was proposed
            share = _share(share, self.tokens[self._place[state] + 1] == token)
        self._held.append(share)

    def _extend(self, token: int) -> None:
        at, last = len(self.tokens), self._last
        undo: list[tuple] = [("last", last)]
        # What was the longest match until now is left behind here: this is its latest occurrence.
        matched = self._link[last]
        if matched > _ROOT:
            undo.append(("place", matched, self._place[matched]))
            self._place[matched] = at - 1
        new = self._state({}, self._length[last] + 1, at)
        state = last
        while state >= 0 and token not in self._next[state]:
            self._next[state][token] = new
            undo.append(("edge", state, token, None))
            state = self._link[state]
        self._link[new] = _ROOT if state < 0 else self._split(state, token, undo)
        self._last = new
        self.tokens.append(token)
        self._undo.append(undo)

    def _split(self, state: int, token: int, undo: list[tuple]) -> int:
        """The state of the strings of `state` followed by `token`; cloned from one that holds longer strings too."""
        target = self._next[state][token]
        if self._length[target] == self._length[state] + 1:
            return target
        clone = self._state(dict(self._next[target]), self._length[state] + 1, self._place[target])
        self._link[clone] = self._link[target]
        undo.append(("link", target, self._link[target]))
        self._link[target] = clone
        walk = state
        while walk >= 0 and self._next[walk].get(token) == target:
            self._next[walk][token] = clone
            undo.append(("edge", walk, token, target))
            walk = self._link[walk]
        return clone

    def _state(self, edges: dict[int, int], length: int, place: int) -> int:
        self._next.append(edges)
        self._link.append(-1)
        self._length.append(length)
        self._place.append(place)
        return len(self._next) - 1

    def _retract(self) -> None:
        """Takes back the last settled token."""
        for kind, *change in reversed(self._undo.pop()):
            if kind == "edge":
                state, token, before = change
                if before is None:
                    del self._next[state][token]
                else:
                    self._next[state][token] = before
            elif kind == "link":
                self._link[change[0]] = change[1]
            elif kind == "place":
                self._place[change[0]] = change[1]
            else:
                self._last = change[0]
        self.tokens.pop()
        self._held.pop()
        # States are made in order, the token's own before its clone; the clone's longest string is never longer.
        size = 2 if self._length[-1] != len(self.tokens) + 1 else 1
        for table in (self._next, self._link, self._length, self._place):
            del table[len(table) - size :]


def _share(held: float, right: bool) -> float:
    """The share of the last proposals that held, after one more."""
    return _MEMORY * held + (1 - _MEMORY) * right
