"""Tokens to text: a stream that never breaks a character and never shows a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hsd.marks import Tokenizer
from hsd.thinking import MARKS, Normalizer, Start, ThinkingMarks, overlap

_UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no whole character yet
_WINDOW = 32  # tokens after which the window begins anew: decoding it again costs a little for each of them


class TextStream:
    """Text of a growing reply in the normal form of `hsd.thinking`: whole characters only, and nothing that may become
    a stop string.

    Args:
        tokenizer: the family's tokenizer.
        stop: strings before which the answer ends; what is thought may hold them.
        marks: how the family marks thinking.
        start: where the text begins.

    Attributes:
        text: everything that was given out.
        stopped: a stop string was met, or a mark that ends the answer; the reply ends before it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        marks: ThinkingMarks | None = None,
        start: Start | None = None,
    ) -> None:
        self._decode = _decoder(tokenizer)
        self._stop = tuple(stop)
        start, marks = start or Start(), marks or ThinkingMarks()
        self._marks = marks.tokens
        self._normal = Normalizer(marks, start)
        self._ids: list[int] = list(start.before)
        self._begin = 0  # first id of the window that is decoded again, so that joins between tokens come out right
        self._read = len(self._ids)  # ids whose text has been taken
        # Text of the window's ids that has been taken.
        self._before = self._decode(self._ids, skip_special_tokens=True).rstrip(_UNFINISHED) if self._ids else ""
        # Text that may be the beginning of a stop string; so many characters of it were given out before.
        self._held = max((start.said[len(start.said) - overlap(start.said, s) :] for s in stop), key=len, default="")
        self._given = len(self._held)
        self.text = ""
        self.stopped = False

    def push(self, ids: Sequence[int]) -> tuple[str, int]:
        """Takes new token ids; returns the text that can be shown, and how many of the ids belong to the reply."""
        if not self._stop and self._marks.keys().isdisjoint(ids):
            self._ids += ids
            # What follows is `_new_text` where all characters are whole, in a line: it runs once a round.
            text = self._decode(self._ids[self._begin :], skip_special_tokens=True)
            if len(self._ids) - self._begin > _WINDOW or text.endswith(_UNFINISHED):
                return self._show(self._new_text()), len(ids)
            shown, self._before, self._read = text[len(self._before) :], text, len(self._ids)
            return self._show(shown), len(ids)
        shown = ""
        for used, token in enumerate(ids, 1):
            mark = self._marks.get(token, "")
            if mark:  # what is no whole character before a mark never will be
                new = self._window(len(self._ids))
                self._before += new
                shown += self._show(new.rstrip(_UNFINISHED))
            self._ids.append(token)
            if mark:  # which may be text in what is decoded, too
                self._before = self._decode(self._ids[self._begin :], skip_special_tokens=True)
                self._read = len(self._ids)
            shown += self._show(mark or self._new_text())
            if self.stopped:
                return shown, used
        return shown, len(ids)

    def flush(self) -> str:
        """What was held back and can now be shown; bytes of an unfinished character are left out."""
        rest = ""
        if not self.stopped:
            rest = self._show(self._window(len(self._ids)).rstrip(_UNFINISHED))
        if not self.stopped:
            before, answer = self._normal.flush()
            rest += self._give(before) + self._scan(answer)
        if not self.stopped:
            rest += self._give_new(self._held)
        self._held = ""
        self._begin = self._read = len(self._ids)
        self._before = ""
        return rest

    def _new_text(self) -> str:
        """Text of the ids that have not been taken, as far as it consists of whole characters."""
        end = len(self._ids)
        # A character has at most four bytes, so at most the last three tokens can belong to an unfinished one.
        for taken in range(end, max(end - 4, self._read), -1):
            new = self._window(taken)
            if not new.endswith(_UNFINISHED):
                return self._take(new, taken)
        if end - self._read > 4:  # bytes that are no character, and never will be
            return self._take(self._window(end - 4), end - 4)
        return ""

    def _take(self, new: str, taken: int) -> str:
        if not new:
            return new
        self._before += new
        if taken - self._begin > _WINDOW:
            self._begin = self._read
            self._before = self._decode(self._ids[self._begin : taken], skip_special_tokens=True)
        self._read = taken
        return new

    def _window(self, end: int) -> str:
        """Text that the ids up to `end` add to what has been taken."""
        return self._decode(self._ids[self._begin : end], skip_special_tokens=True)[len(self._before) :]

    def _show(self, new: str) -> str:
        """Gives out what can be shown of new text, which may hold marks."""
        if self._normal.plain and new not in MARKS:
            return self._scan(new)
        before, answer = self._normal.push(new)
        shown = self._give(before) + self._scan(answer)
        self.stopped = self.stopped or self._normal.over
        return shown

    def _scan(self, new: str) -> str:
        """Gives out text of the answer, up to a stop string."""
        if not self._stop:
            return self._give(new)
        text = self._held + new
        ends = [place for place in (text.find(s) for s in self._stop) if place >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return self._give_new(text[: min(ends)])
        keep = max((overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :] if keep else ""
        return self._give_new(text[: len(text) - keep])

    def _give_new(self, text: str) -> str:
        new, self._given = text[self._given :], max(0, self._given - len(text))
        return self._give(new)

    def _give(self, text: str) -> str:
        self.text += text
        return text


def _decoder(tokenizer: Tokenizer) -> Callable[..., str]:
    """`tokenizer.decode`, without the layers above it where those do nothing: it is called once a round."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    usual = getattr(type(tokenizer), "_decode", None)
    # A model's own tokenizer may decode in its own way, or tidy up what was decoded.
    plain = getattr(usual, "__module__", "").startswith("transformers.tokenization_utils")
    if backend is not None and plain and not getattr(tokenizer, "clean_up_tokenization_spaces", True):
        decode: Callable[..., str] = backend.decode
        return decode
    return tokenizer.decode
