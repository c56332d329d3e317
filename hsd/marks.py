"""What a family's tokenizer and chat template say of its marks: control tokens, thinking, and how a turn ends.

Names of turn marks are read from the template, never from a list of known families. For thinking there are common
spellings, and a family has those that stand in its template or its vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from hsd.thinking import BEGIN, CHANNEL, CLOSE, END, HEADER, MESSAGE, MESSAGE_END, OPEN, ThinkingMarks

Message = Mapping[str, Any]

_BRACKETED = re.compile(r"[<\[◁⟨{].*\w.*[>\]▷⟩}]", re.S)
_HTML = re.compile(
    r"</?(?:a|abbr|b|blockquote|body|br|button|caption|center|cite|code|col|dd|del|details|div|dl|dt|em|figure|font|form|"
    r"h[1-6]|head|header|hr|html|i|img|input|ins|kbd|li|main|mark|nav|ol|option|p|path|pre|q|s|samp|script|section|"
    r"select|small|span|strike|strong|style|sub|summary|sup|svg|table|tbody|td|tfoot|th|thead|title|tr|u|ul|var)/?>"
)
_MARK = re.compile(r"<[^<>\s'\"{}]{1,40}>|\[/?[A-Za-z_]{3,40}\]|◁/?\w{1,40}▷")
_THINKING = re.compile(r"think|thought|reason", re.I)
_OPENED_ALONE = re.compile(r"<(?:\w+:)?(?:think|thinking|thought|reasoning)>")  # in a generation prompt
_ANSWER = re.compile(r"<\|?(?:begin_of_|start_)?(?:answer|response|solution)\|?>", re.I)
# Pairs whose names do not say that they are about thinking; they count where the template has them.
_NAMED = {"<|inner_prefix|>": "<|inner_suffix|>", "<|channel>": "<channel|>", "<unused94>": "<unused95>"}
_LABELS = {"<|channel>": "thought", "<unused94>": "thought"}
_CHANNEL_TOKENS = {
    "<|start|>": HEADER,
    "<|channel|>": CHANNEL,
    "<|constrain|>": CHANNEL,
    "<|message|>": MESSAGE,
    "<|end|>": MESSAGE_END,
    "<|return|>": MESSAGE_END,
    "<|call|>": MESSAGE_END,
}
_HALVES = (("begin", "end"), ("BEGIN", "END"), ("start", "end"), ("START", "END"), ("open", "close"))
# Words for conversations that are rendered to see what a template writes around them.
_ASKED, _SAID, _ASKED_NEXT = "Quillfeather", "Marblewick", "Thornapple"


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


def template_of(tokenizer: Any) -> tuple[str | None, bool]:
    """The chat template for conversations without tools, and whether transformers has to be told which one that is."""
    stored = getattr(tokenizer, "chat_template", None)
    if isinstance(stored, list | tuple):
        stored = {one["name"]: one["template"] for one in stored}
        return (stored.get("default") or next(iter(stored.values()), None)), True
    if isinstance(stored, Mapping):
        return (stored.get("default") or next(iter(stored.values()), None)), "default" not in stored
    return (stored if stored is None else str(stored)), False


def thinks(tokenizer: Any) -> bool:
    """Whether the chat template takes `enable_thinking`, the name that Qwen3 and SmolLM3 gave the switch."""
    return "enable_thinking" in (template_of(tokenizer)[0] or "")


def plain_format(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """A conversation for a family without chat template: `User: …` and `Assistant: …` on lines of their own."""
    lines = []
    for message in messages:
        role, content = str(message["role"]), str(message["content"])
        if role == "system":
            lines.append(f"{content}\n")
        else:
            # A model writes the blank behind the colon itself.
            lines.append(f"{role.capitalize()}:{'' if content[:1].isspace() else ' '}{content}")
    return "\n".join([*lines, "Assistant:"] if add_generation_prompt else lines)


class Marks:
    """The marks of one family.

    Args:
        tokenizer: the family's.

    Attributes:
        template: the chat template for conversations without tools; None where there is none.
        switch: whether it takes `enable_thinking`.
        control: text of a token -> its id, for tokens that steer a model and that no text of a person may become.
        thinking: how the family marks thinking.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.template, self._named = template_of(tokenizer)
        self.switch = thinks(tokenizer)
        self._special, self._added = _added_tokens(tokenizer)
        self.thinking = self._thinking()
        self.control = {text: i for text, i in self._added.items() if self._steers(text, i)}

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, **switch: Any) -> str:
        """A conversation as text. Raises whatever the template raises."""
        if self.template is None:
            return plain_format(messages, add_generation_prompt)
        if self._parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return self._rendered(messages, add_generation_prompt, **switch)

    def _rendered(self, messages: Sequence[Message], add_generation_prompt: bool = True, **switch: Any) -> str:
        if self._named:
            switch["chat_template"] = self.template
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **switch
            )
        )

    @cached_property
    def _parts(self) -> bool:
        """Whether the template reads texts as lists of parts alone."""
        found = []
        for content in (_ASKED, [{"type": "text", "text": _ASKED}]):
            try:
                found.append(_ASKED in self._rendered([{"role": "user", "content": content}]))
            except Exception:  # templates may raise anything
                found.append(False)
        return found == [False, True]

    def reads(self, name: str) -> bool:
        """Whether the template looks at a field or variable of this name."""
        return re.search(rf"(?<!\w){name}(?!\w)", self.template or "") is not None

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that the template puts directly behind an assistant's text: a reply ends there."""
        found = (self._first_mark(text.lstrip()) for text in self._behind)
        # A message on a channel may be followed by another one of the same reply, which is the answer.
        between = self.control.get("<|end|>") if self.thinking.channels else None
        return frozenset(i for i in found if i not in (None, between))

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """What the template puts there where it is ordinary text, like the name of who speaks next."""
        texts = []
        for behind in self._behind:
            first = self._control_pattern.search(behind)
            text = (behind[: first.start()] if first else behind).rstrip()
            if self._first_mark(behind.lstrip()) is None and re.search(r"\w", text) and len(text.strip()) > 1:
                # The same mark behind one line break, where the template writes more of them.
                texts += [text, f"\n{text.lstrip()}"] if text[0] == "\n" else [text]
        return tuple(dict.fromkeys(texts))

    @cached_property
    def _behind(self) -> list[str]:
        """Texts that follow an assistant's text: before another turn, and at the end of a conversation."""
        asked, said = {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}
        found = []
        for messages in ([asked, said, {**asked, "content": _ASKED_NEXT}], [asked, said]):
            try:
                text = self.render(messages, add_generation_prompt=False)
            except Exception:  # templates may raise anything; then they say nothing of a turn's end
                continue
            _, place, rest = text.rpartition(_SAID)
            rest = rest.partition(_ASKED_NEXT)[0]
            if place and rest.strip():
                found.append(rest)
        return found

    def _first_mark(self, text: str) -> int | None:
        """The control token that a text begins with."""
        known = self._control_pattern.match(text)
        if known or not text or self.template is None:
            return self.control[known[0]] if known else None
        # Some tokenizers do not list what they have added.
        first = self._tokenizer.encode(text, add_special_tokens=False)[:1]
        said = str(self._tokenizer.decode(first, skip_special_tokens=False)).strip()
        return first[0] if first and text.startswith(said) and _BRACKETED.fullmatch(said) else None

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        return pattern_of(self.control)

    def _steers(self, text: str, identifier: int) -> bool:
        """Whether an added token is a control token. Words are text, and so are tags of HTML: Gemma has some."""
        if identifier in self._special or text in (mark for pair in self.thinking.pairs for mark in pair):
            return True
        return _BRACKETED.fullmatch(text) is not None and (
            _HTML.fullmatch(text) is None or text in (self.template or "")
        )

    def _thinking(self) -> ThinkingMarks:
        template = self.template or ""
        if {"<|channel|>", "<|message|>"} <= self._added.keys():
            tokens = {i: _CHANNEL_TOKENS[text] for text, i in self._added.items() if text in _CHANNEL_TOKENS}
            pair = ("<|channel|>analysis<|message|>", "<|end|>")
            return ThinkingMarks((pair,), tokens, frozenset(), channels=True, own=True)
        written = set(_MARK.findall(template))
        pairs = [*self._pairs({*written, *self._added}), *((o, c) for o, c in _NAMED.items() if {o, c} <= written)]
        if not pairs:
            return ThinkingMarks()
        pairs.sort(key=lambda pair: (pair[0] not in template and pair[1] not in template, pair != (BEGIN, END), pair))
        tokens = {}
        for pair in pairs:
            for text, stands in zip(pair, (OPEN, CLOSE), strict=True):
                if text in self._added and self._vanishes(self._added[text]):
                    tokens[self._added[text]] = stands
        texts = {text for pair in pairs for text in pair if self._added.get(text) not in tokens}
        return ThinkingMarks(
            tuple(pairs),
            tokens,
            frozenset(texts),
            answers=tuple((m, _closing(m)) for m in sorted(written) if _ANSWER.fullmatch(m)),
            labels=tuple({_LABELS[o] for o, _ in pairs if o in _LABELS}),
            own=True,
        )

    @staticmethod
    def _pairs(known: set[str]) -> list[tuple[str, str]]:
        found = []
        for mark in known:
            if not (_THINKING.search(mark) and _MARK.fullmatch(mark)):
                continue
            opening = re.sub(r"^([<\[◁][|｜]?)/", r"\1", mark)
            if opening != mark:  # some templates write the closing mark alone
                found.append((opening, mark))
            elif _closing(mark) in known or _OPENED_ALONE.fullmatch(mark):
                found.append((mark, _closing(mark)))
        return list(dict.fromkeys(found))

    def _vanishes(self, identifier: int) -> bool:
        """Whether a token leaves nothing in text that is decoded without special tokens."""
        return not str(self._tokenizer.decode([identifier], skip_special_tokens=True)).strip()


def pattern_of(texts: Mapping[str, Any]) -> re.Pattern[str]:
    """Finds any of the texts, the longest where several begin at one place."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _closing(mark: str) -> str:
    """The closing mark of an opening one."""
    for begin, end in _HALVES:
        if re.search(rf"(?<![a-zA-Z]){begin}(?![a-zA-Z])", mark.replace("_", " ")):
            return mark.replace(begin, end)
    return re.sub(r"^([<\[◁][|｜]?)", r"\1/", mark)


def _added_tokens(tokenizer: Any) -> tuple[set[int], dict[str, int]]:
    """Ids of special tokens; text -> id of all tokens that were added to the vocabulary, blanks left out."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    added = {str(token): i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    special |= {i for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if getattr(t, "special", False)}
    if unlisted := special - set(added.values()):
        added |= {text: i for text, i in getattr(tokenizer, "get_vocab", dict)().items() if i in unlisted}
    return special, {text: i for text, i in added.items() if text.strip()}
