"""Text to token ids, where only the chat template writes control tokens: what people write stays text.

Control tokens in a person's text are sealed before the template is rendered, and what was sealed is encoded as the
letters that it consists of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from hsd.marks import Tokenizer, pattern_of

# Characters that Unicode has set aside for use inside a program: around a token of a person's text, and around one of
# the template's.
_SEAL, _SEALED = "\ufdd8", "\ufdd9"
_OWN, _OWNED = "\ufdda", "\ufddb"
_ASIDE = str.maketrans(dict.fromkeys((*map(chr, range(0xFDD0, 0xFDF0)),), "\ufffd"))


class Encoder:
    """Encodes texts and rendered conversations.

    Args:
        tokenizer: the family's.
        control: text of each control token -> its id.
    """

    def __init__(self, tokenizer: Tokenizer, control: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self._control = control
        self._pattern = pattern_of(control)
        self._sealed = re.compile(
            f"{_SEAL}(?:{self._pattern.pattern}){_SEALED}|{self._pattern.pattern}|[{_SEAL}{_SEALED}]"
        )
        self._ids_in = _encoder(tokenizer)

    def clean(self, text: str) -> str:
        """The text without characters that are used inside here, and without halves of characters."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text.translate(_ASIDE)

    def holds_control(self, text: str) -> bool:
        """Whether a text holds a control token, or begins or ends with a part of one that a neighbour may complete."""
        if self._pattern.search(text) or self._head_seal(text.lstrip()) or self._tail_seal(text.rstrip()):
            return True
        normal = self._normal(text)
        return normal != text and self._pattern.search(normal) is not None

    def seal(self, text: str, inside: bool = False) -> str:
        """The text with all control tokens sealed: around each, or behind its first character."""
        if inside:
            sealed = self._pattern.sub(lambda found: f"{found[0][0]}{_SEALED}{found[0][1:]}", text)
        else:
            sealed = self._pattern.sub(f"{_SEAL}\\g<0>{_SEALED}", text)
        body = sealed.strip()
        head, _, tail = sealed.partition(body)
        head_seal, tail_seal = self._head_seal(body), self._tail_seal(body)
        if sealed == text and not head_seal:
            tail_seal = _SEALED  # the token shows in what the tokenizer makes of the text
        return f"{head}{head_seal}{body}{tail_seal}{tail}"

    @staticmethod
    def hide(text: str, marks: Iterable[str]) -> str:
        """The text with marks that a template looks for sealed behind their first character."""
        for mark in marks:
            text = text.replace(mark, f"{mark[0]}{_SEALED}{mark[1:]}")
        return text

    def _head_seal(self, body: str) -> str:
        return _SEAL if any(body[:size] in self._parts[1] for size in range(2, self._parts[2])) else ""

    def _tail_seal(self, body: str) -> str:
        return _SEALED if any(body[-size:] in self._parts[0] for size in range(2, self._parts[2])) else ""

    @cached_property
    def _parts(self) -> tuple[frozenset[str], frozenset[str], int]:
        """Beginnings and ends of control tokens, of two characters at least, and the length of the longest token."""
        sizes = [(token, size) for token in self._control for size in range(2, len(token))]
        longest = max(map(len, self._control), default=0)
        return frozenset(t[:n] for t, n in sizes), frozenset(t[-n:] for t, n in sizes), longest

    @staticmethod
    def unseal(text: str) -> str:
        """The text as it was before."""
        return text.replace(_SEAL, "").replace(_SEALED, "")

    def encode(self, text: str, behind: bool = False) -> list[int]:
        """Token ids of a text in which what people wrote is sealed, if it holds control tokens.

        Args:
            behind: other tokens stand before the text, so that nothing is put before its first word.
        """
        if not text:
            return []
        if _SEAL not in text and _SEALED not in text:
            return self._behind(text) if behind else self._ids_in(text, False)
        return self._encode_sealed(text, behind)

    def encode_text(self, text: str, behind: bool = False) -> list[int]:
        """Token ids of a text that holds no control token, whatever it says."""
        text = self.clean(text)
        return self.encode(self.seal(text) if self.holds_control(text) else text, behind)

    @cached_property
    def before_text(self) -> list[int]:
        """Ids that the tokenizer puts before a text by itself, like a token that begins it."""
        whole, bare = self._ids_in("a", True), self._ids_in("a", False)
        place = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return whole[:place]

    def _behind(self, text: str) -> list[int]:
        """Ids of a text that does not begin the prompt. SentencePiece would put a blank before it."""
        if not self._prefixes or self._pattern.match(text):
            return self._ids_in(text, False)
        line, whole = self._ids_in("\n", False), self._ids_in("\n" + text, False)
        return whole[len(line) :] if whole[: len(line)] == line else self._ids_in(text, False)

    @cached_property
    def _prefixes(self) -> bool:
        """Whether the tokenizer puts something before the first word of a text."""
        line, whole = self._ids_in("\n", False), self._ids_in("\na", False)
        return whole[: len(line)] == line and whole[len(line) :] != self._ids_in("a", False)

    def _normal(self, text: str) -> str:
        """The text as tokens are looked for in it, where the tokenizer writes some characters in another way first."""
        normalizer = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "normalizer", None)
        return str(normalizer.normalize_str(text)) if normalizer is not None else text

    def _encode_sealed(self, text: str, behind: bool) -> list[int]:
        if self._apart is None:
            return self._encode_pieces(text, behind)
        whole = self._sealed.sub(
            lambda found: f"{_OWN}{found[0]}{_OWNED}" if found[0] in self._control else self.unseal(found[0]), text
        )
        if not behind or not self._prefixes or whole.startswith(_OWN):
            return self._apart(whole)
        line, ids = self._apart("\n"), self._apart("\n" + whole)
        return ids[len(line) :] if ids[: len(line)] == line else self._apart(whole)

    def _encode_pieces(self, text: str, behind: bool) -> list[int]:
        """The same with any tokenizer: a token of a person's text is cut behind its first character."""
        cut = self._sealed.sub(
            lambda found: found[0] if found[0] in self._control else f"{found[0][:2]}{_SEALED}{found[0][2:]}", text
        )
        ids = list[int]()
        for piece in re.split(f"{_SEALED}|{_SEAL}", cut):
            if piece:
                ids += self._behind(piece) if ids or behind else self._ids_in(piece, False)
        return ids

    @cached_property
    def _apart(self) -> Callable[[str], list[int]] | None:
        """Encodes a text in which a control token counts only between two characters that no text has.

        It is the family's own tokenizer but for the spelling of these tokens, so that all other text gets the ids it
        always gets, also where it touches a token. Made when it is first needed: it takes a second for a large
        vocabulary.
        """
        from tokenizers import Tokenizer as Backend

        if not _usual(self._tokenizer):
            return None
        state = json.loads(self._tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        names: dict[str, int] = {}
        for token in state["added_tokens"]:
            text = token["content"]
            if text in self._control:
                token |= {"content": f"{_OWN}{text}{_OWNED}", "normalized": False}
            names[token["content"]] = token["id"]
        apart = Backend.from_str(json.dumps(state | {"truncation": None, "padding": None}))

        def encode(text: str) -> list[int]:
            found = apart.encode(text, add_special_tokens=False)
            # Tokens that were spelled anew have ids of their own there.
            return [names.get(token, i) for i, token in zip(found.ids, found.tokens, strict=True)]

        return encode


def _usual(tokenizer: Any) -> bool:
    """Whether a tokenizer encodes as transformers' own do. A model's own tokenizer may have its own way."""
    plain = getattr(getattr(type(tokenizer), "_encode_plus", None), "__module__", "")
    usual = getattr(tokenizer, "backend_tokenizer", None) is not None
    return usual and plain.startswith("transformers.tokenization_utils")


def _encoder(tokenizer: Tokenizer) -> Callable[[str, bool], list[int]]:
    """`tokenizer.encode`, without the layers above it where those do nothing: a short reply feels them."""
    if not _usual(tokenizer) or getattr(tokenizer, "split_special_tokens", False):
        return lambda text, special: list(tokenizer.encode(text, add_special_tokens=special))
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]

    def encode(text: str, special: bool) -> list[int]:
        # What cuts or pads is set anew at every call.
        if backend.truncation is None and backend.padding is None:
            return list(backend.encode(text, add_special_tokens=special).ids)
        return list(tokenizer.encode(text, add_special_tokens=special))

    return encode
