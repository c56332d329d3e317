"""Conversations to token ids: replies as the ids that were generated, the whole fitted to the context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hsd.errors import PromptError

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that the engine uses."""

    chat_template: Any
    all_special_ids: list[int]

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: Any, skip_special_tokens: bool = ...) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...
    def apply_chat_template(
        self, conversation: Any, tokenize: bool = ..., add_generation_prompt: bool = ..., **variables: Any
    ) -> Any: ...


def thinks(tokenizer: Tokenizer) -> bool:
    """Whether the chat template takes `enable_thinking`, the name that Qwen3 and SmolLM3 gave the switch."""
    return "enable_thinking" in str(tokenizer.chat_template)


class Prompts:
    """Builds the token ids of prompts, and remembers what replies were generated as.

    A reply's text need not tokenize to the ids that produced it. So that a conversation's next prompt begins with
    what the caches hold, replies are put back as the ids that were generated.

    Args:
        tokenizer: the family's tokenizer.
        vocab: token ids that may appear, 0 to vocab - 1.
        system: text of the system message for conversations without one; empty for none.
        remember: how many replies to keep.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, system: str = "", remember: int = 512) -> None:
        self._tokenizer = tokenizer
        self._thinks = thinks(tokenizer)
        self._vocab = vocab
        self._system = system
        self._remember = remember
        self._replies: dict[str, tuple[int, ...]] = {}
        self._ids_in = _encoder(tokenizer)

    def note(self, text: str, ids: Sequence[int]) -> None:
        """Remembers that a reply's text was generated as these ids; not where a stop string cut the text."""
        if not text or self._tokenizer.decode(list(ids), skip_special_tokens=True) != text:
            return
        self._replies.pop(text, None)
        self._replies[text] = tuple(ids)
        while len(self._replies) > self._remember:
            del self._replies[next(iter(self._replies))]

    def build(self, messages: Sequence[Message], thinking: bool | None = None) -> list[int]:
        """Token ids of a conversation, up to where the assistant's reply begins, or goes on.

        Args:
            messages: role and content each; an assistant's may carry the "token_ids" it was generated as. Where the
                last one is an assistant's, the reply goes on behind its last token.
            thinking: see `SamplingParams`.

        Raises:
            PromptError: no text in it, a malformed message, or the chat template refuses it.
        """
        messages = self._checked(messages)
        messages, begun = _begun(messages)
        return self._head(messages, thinking) + (self._ids_begun(begun) if begun else [])

    def _head(self, messages: Sequence[Message], thinking: bool | None) -> list[int]:
        if self._tokenizer.chat_template is None:
            return self._encode("\n".join(m["content"] for m in messages), add_special_tokens=True)
        if self._system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        return self._splice(self._render(messages, thinking), messages, thinking)

    def fit(
        self, prompt: Prompt, context: int, max_tokens: int, drop: bool, thinking: bool | None = None
    ) -> tuple[list[int], int]:
        """Token ids of what is asked, and how many of the oldest turns were left out to make it fit.

        Args:
            prompt: a conversation, one user message as text, or token ids.
            context: longest prompt and reply together, in tokens.
            max_tokens: wanted for the reply; turns are dropped where it does not leave room for this many, or for a
                quarter of the context if that is less, and then down to half the context.
            drop: leave the oldest turns out instead of refusing.
            thinking: see `SamplingParams`; token ids are taken as they are.

        Raises:
            PromptError: nothing is asked, an id is out of range, or it does not fit.
        """
        dropped, ids = 0, list[int]()
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if hasattr(prompt, "tolist"):  # a tensor or an array of ids
            prompt = prompt.tolist()
        if len(prompt) and all(isinstance(m, int) and not isinstance(m, bool) for m in prompt):
            ids = list(prompt)  # type: ignore[arg-type]  # mypy does not see what the line above has looked at
        else:
            turns: list[Any] = list(prompt)
            ids = self.build(turns, thinking)
            if drop and len(ids) > context - min(max_tokens, context // 4):
                # Half the context at once: dropping just enough would read everything anew in every later turn. Halving
                # the search, because every look at a size tokenizes all that is left.
                rests = [turns]
                while shorter := _without_oldest_turn(rests[-1]):
                    rests.append(shorter)
                fits = bisect_left(rests, True, key=lambda rest: self._size(rest, thinking) <= context // 2)
                dropped = min(fits, len(rests) - 1)
                ids = self.build(rests[dropped], thinking)
        if not ids:
            raise PromptError("The prompt is empty.", "Write something first.")
        if len(ids) >= context:
            raise PromptError(
                f"The conversation has {len(ids)} tokens, and the context holds {context} with the reply.",
                "Shorten the message or begin a new chat.",
                tokens=len(ids),
            )
        wrong = next((i for i in ids if not 0 <= i < self._vocab), None)
        if wrong is not None:
            raise PromptError(f"The prompt holds token id {wrong}.", f"The vocabulary has ids 0 to {self._vocab - 1}.")
        return ids, dropped

    def _size(self, messages: Sequence[Message], thinking: bool | None) -> int:
        """Tokens of a conversation, about: by its text, without looking for known replies in it."""
        messages, begun = _begun(messages)
        text = self._render(messages, thinking) + (begun["content"] if begun else "")
        return len(self._encode(text, add_special_tokens=False))

    def _splice(self, text: str, messages: Sequence[Message], thinking: bool | None) -> list[int]:
        """Tokenizes the rendered text, with the remembered ids in the place of the replies that stand in it verbatim.

        Where a template leaves part of a reply out (the thinking of earlier turns), its text is tokenized anew, and
        reading restarts there.
        """
        # What stands before a reply that is to come without thinking may be left out where the reply is an earlier one.
        ways = dict.fromkeys((thinking, True, False)) if self._thinks else (None,)
        ids: list[int] = []
        done = 0
        for at, message in enumerate(messages):
            known = self._ids_of(message) if message["role"] == "assistant" else None
            if not known:
                continue
            befores = (self._render(messages[:at], way) for way in ways)
            begins = (len(b) for b in befores if text.startswith(b) and text.startswith(message["content"], len(b)))
            begin = next(begins, -1)
            if begin < done:
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

    def _ids_begun(self, message: Message) -> list[int]:
        """Ids of a reply that is to go on. They may end inside a character, which its text cannot show yet."""
        content, given = message["content"], list(message.get("token_ids") or ())
        special = set(self._tokenizer.all_special_ids)
        while given and given[-1] in special:
            given.pop()
        said = self._tokenizer.decode(given, skip_special_tokens=True) if given else ""
        if given and said.rstrip("\ufffd") == content.rstrip("\ufffd"):
            return given
        return self._ids_of(message) or self._encode(content, add_special_tokens=False)

    def _render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        """The conversation as text, up to where the assistant's reply begins."""
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        switch = {"enable_thinking": thinking} if self._thinks and thinking is not None else {}
        try:
            return self._tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **switch)
        except Exception as error:  # templates are programs that come with models: they may raise anything
            said = (str(error).strip() or repr(error)).splitlines()[0]
            raise PromptError(
                f"The model's chat template refuses this conversation: {said}.",
                "Let user and assistant take turns, and check the system message.",
            ) from error

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._ids_in(text, add_special_tokens) if text else []

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
        if not _begun(messages)[0]:
            raise PromptError("There is a reply without a message before it.", "Put the user's message before it.")
        return list(messages)


def _encoder(tokenizer: Tokenizer) -> Callable[[str, bool], list[int]]:
    """`tokenizer.encode`, without the layers above it where those do nothing: a short reply feels them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    usual = getattr(type(tokenizer), "_encode_plus", None)
    plain = getattr(usual, "__module__", "").startswith("transformers.tokenization_utils")
    # A model's own tokenizer may encode in its own way; what cuts or pads is set anew at every call.
    if backend is None or not plain or getattr(tokenizer, "split_special_tokens", False):
        return lambda text, special: list(tokenizer.encode(text, add_special_tokens=special))

    def encode(text: str, special: bool) -> list[int]:
        if backend.truncation is None and backend.padding is None:
            return list(backend.encode(text, add_special_tokens=special).ids)
        return list(tokenizer.encode(text, add_special_tokens=special))

    return encode


def _begun(messages: Sequence[Message]) -> tuple[list[Message], Message | None]:
    """What is answered, and the reply to it that was begun, if the conversation ends in one."""
    rest = list(messages)
    return (rest[:-1], rest[-1]) if rest and rest[-1]["role"] == "assistant" else (rest, None)


def _without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """The conversation without its oldest question and answer; None if only the last message is left."""
    head = [m for m in messages[:1] if m["role"] == "system"]
    rest = list(messages[len(head) :])
    following = next((i for i, m in enumerate(rest) if i > 0 and m["role"] == "user"), None)
    return None if following is None else [*head, *rest[following:]]
