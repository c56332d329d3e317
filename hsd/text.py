"""Text to tokens and back: prompts built from the ids that were generated, streams that never break a character."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hsd.errors import PromptError

Message = Mapping[str, Any]

_UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that the engine uses."""

    chat_template: Any
    all_special_ids: list[int]

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...
    def apply_chat_template(self, conversation: Any, tokenize: bool = ..., add_generation_prompt: bool = ...) -> Any: ...


class Prompts:
    """Builds the token ids of prompts, and remembers what replies were generated as.

    A reply's text need not tokenize to the ids that produced it. So that a conversation's next prompt begins with
    what the caches hold, replies are put back as the ids that were generated.

    Args:
        tokenizer: the family's tokenizer.
        system: text of the system message for conversations without one; empty for none.
        remember: how many replies to keep.
    """

    def __init__(self, tokenizer: Tokenizer, system: str = "", remember: int = 512) -> None:
        self._tokenizer = tokenizer
        self._system = system
        self._remember = remember
        self._replies: dict[str, tuple[int, ...]] = {}

    def note(self, text: str, ids: Sequence[int]) -> None:
        """Remembers that a reply's text was generated as these ids."""
        self._replies.pop(text, None)
        self._replies[text] = tuple(ids)
        while len(self._replies) > self._remember:
            del self._replies[next(iter(self._replies))]

    def build(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's reply begins.

        Args:
            messages: role and content each; an assistant's may carry the "token_ids" it was generated as.

        Raises:
            PromptError: no text in it, a malformed message, or the chat template refuses it.
        """
        messages = self._checked(messages)
        if self._tokenizer.chat_template is None:
            return self._encode("\n".join(m["content"] for m in messages), add_special_tokens=True)
        if self._system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        text = self._render(messages, True)
        return self._splice(text, messages)

    def text(self, text: str) -> list[int]:
        """Token ids of one user message, or of plain text where the tokenizer knows no chats."""
        return self.build([{"role": "user", "content": text}])

    def _splice(self, text: str, messages: Sequence[Message]) -> list[int]:
        """Tokenizes the rendered text, with the remembered ids in the place of the replies that stand in it verbatim.

        Where a template leaves part of a reply out (the thinking of earlier turns), its text is tokenized anew, and
        reading restarts there.
        """
        ids: list[int] = []
        done = 0
        for at, message in enumerate(messages):
            known = self._ids_of(message) if message["role"] == "assistant" else None
            if not known:
                continue
            before = self._render(messages[:at], True)
            begin = len(before)
            if begin < done or not text.startswith(before) or not text.startswith(message["content"], begin):
                continue
            ids += self._encode(text[done:begin], add_special_tokens=False)
            ids += known
            done = begin + len(message["content"])
        return ids + self._encode(text[done:], add_special_tokens=False)

    def _ids_of(self, message: Message) -> list[int] | None:
        given = message.get("token_ids")
        content = message["content"]
        if given and self._tokenizer.decode(list(given), skip_special_tokens=True) == content:
            ids = list(given)
        else:
            ids = list(self._replies.get(content, ()))
        # The end token belongs to the template's text behind the reply, which is tokenized with it.
        special = set(self._tokenizer.all_special_ids)
        while ids and ids[-1] in special:
            ids.pop()
        return ids

    def _render(self, messages: Sequence[Message], reply_follows: bool) -> str:
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        try:
            return self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=reply_follows)
        except Exception as error:  # templates are programs that come with models: they may raise anything
            raise PromptError(
                f"The model's chat template refuses this conversation: {str(error).splitlines()[0] if str(error) else error!r}.",
                "Let user and assistant take turns, and check the system message.",
            ) from error

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens)) if text else []

    @staticmethod
    def _checked(messages: Sequence[Message]) -> list[Message]:
        if not messages:
            raise PromptError("There is no message to answer.", "Send at least one message.")
        for message in messages:
            role = message.get("role") if isinstance(message, Mapping) else None
            content = message.get("content") if isinstance(message, Mapping) else None
            if not isinstance(role, str) or not isinstance(content, str):
                raise PromptError(
                    "A message is not of the form {'role': …, 'content': …} with texts in both.",
                    "Roles are 'system', 'user' and 'assistant'.",
                )
        if not str(messages[-1]["content"]).strip() and messages[-1]["role"] == "user":
            raise PromptError("The message is empty.", "Write something first.")
        return list(messages)


class TextStream:
    """Text of a growing reply: whole characters only, and nothing that may become a stop string.

    Args:
        tokenizer: the family's tokenizer.
        stop: strings before which the text ends.

    Attributes:
        text: everything that was given out.
        stopped: a stop string was met; the reply ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._decode: Callable[..., str] = tokenizer.decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._begin = 0  # first id of the window that is decoded again, so that joins between tokens come out right
        self._read = 0  # ids whose text has been taken
        self._held = ""  # text that may be the beginning of a stop string
        self.text = ""
        self.stopped = False

    def push(self, ids: Sequence[int]) -> tuple[str, int]:
        """Takes new token ids; returns the text that can be shown, and how many of the ids belong to the reply."""
        if not self._stop:
            self._ids += ids
            return self._give(self._new_text()), len(ids)
        shown = ""
        for used, token in enumerate(ids, 1):
            self._ids.append(token)
            shown += self._scan(self._new_text())
            if self.stopped:
                return shown, used
        return shown, len(ids)

    def flush(self) -> str:
        """What was held back and can now be shown; bytes of an unfinished character are left out."""
        rest = "" if self.stopped else self._held + self._window(self._read).rstrip(_UNFINISHED)
        self._held = ""
        self._read = len(self._ids)
        return self._give(rest)

    def _new_text(self) -> str:
        """Text of the ids that have not been taken; empty while they end inside a character."""
        new = self._window(self._read)
        if new.endswith(_UNFINISHED):
            return ""
        if new:
            self._begin, self._read = self._read, len(self._ids)
        return new

    def _window(self, taken: int) -> str:
        before = self._decode(self._ids[self._begin : taken], skip_special_tokens=True)
        after = self._decode(self._ids[self._begin :], skip_special_tokens=True)
        return after[len(before) :]

    def _scan(self, new: str) -> str:
        text = self._held + new
        ends = [place for place in (text.find(s) for s in self._stop) if place >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return self._give(text[: min(ends)])
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :] if keep else ""
        return self._give(text[: len(text) - keep])

    def _give(self, text: str) -> str:
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
