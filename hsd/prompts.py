"""Conversations to token ids: replies as the ids that were generated, the whole fitted to the context."""

from __future__ import annotations

import contextlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hsd.encoding import Encoder
from hsd.errors import PromptError
from hsd.marks import Marks, Message, Tokenizer
from hsd.params import MAX_STOP
from hsd.text import TextStream
from hsd.thinking import BEGIN, END, Start, Where, overlap, split_thinking, with_thinking

Prompt = str | Sequence[Message] | Sequence[int]

_JOINS = 32  # ids of a begun reply that the text behind it may depend on
_OPENING = 100  # characters before a reply in which a template may open the thinking


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is asked, ready for the engine.

    Args:
        ids: token ids of the prompt.
        dropped: oldest turns that were left out to make it fit.
        start: where the text of the reply begins.
    """

    ids: list[int]
    dropped: int = 0
    start: Start = field(default_factory=Start)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A message as the template gets it.

    Args:
        message: role, content, and the fields that the template reads.
        ids: what it was generated as, if that is known.
        apart: its thinking is not in the content; the template writes it before that, or leaves it out.
    """

    message: Message
    ids: Sequence[int] = ()
    apart: bool = False


class Prompts:
    """Builds the token ids of prompts, and remembers what replies were generated as.

    A reply's text need not tokenize to the ids that produced it. So that a conversation's next prompt begins with
    what the caches hold, replies are put back as the ids that were generated. Only the template, these ids and the
    marks of a reply's own thinking make control tokens; all other text is encoded as text.

    Args:
        tokenizer: the family's tokenizer.
        vocab: token ids that may appear, 0 to vocab - 1.
        system: text of the system message for conversations without one; empty for none.
        remember: how many replies to keep.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, system: str = "", remember: int = 512) -> None:
        self._tokenizer = tokenizer
        self.marks = Marks(tokenizer)
        self._encoder = Encoder(tokenizer, self.marks.control)
        self._vocab = vocab
        self._system = system
        self._remember = remember
        self._replies: dict[str, tuple[int, ...]] = {}
        # The end token belongs to the template's text behind the reply, which is tokenized with it.
        own = {i for i in self.marks.thinking.tokens if i not in self.marks.end_ids}
        self._ends = (set(tokenizer.all_special_ids) | self.marks.end_ids) - own

    def note(self, text: str, ids: Sequence[int]) -> None:
        """Remembers that a reply's text was generated as these ids; not where a stop string cut the text."""
        if not text or not self._matches(text, ids):
            return
        self._replies.pop(text, None)
        self._replies[text] = tuple(ids)
        while len(self._replies) > self._remember:
            del self._replies[next(iter(self._replies))]

    def build(self, messages: Sequence[Message], thinking: bool | None = None) -> list[int]:
        """Token ids of a conversation, up to where the assistant's reply begins, or goes on.

        Args:
            messages: role and content each; an assistant's may carry the "token_ids" it was generated as, and the
                "reasoning_content" that it thought. Where the last one is an assistant's, the reply goes on behind its
                last token.
            thinking: see `SamplingParams`.

        Raises:
            PromptError: no text in it, a malformed message, or the chat template refuses it.
        """
        return self._built(messages, thinking).ids

    def _built(self, messages: Sequence[Message], thinking: bool | None) -> Prepared:
        asked, begun = _begun(self._checked(messages))
        text, turns = self._text(asked, thinking)
        opened = self.marks.thinking.opened(text)
        if begun is None:
            return Prepared(self._splice(text, turns, thinking), start=_opened(opened))
        content = self._content(begun)
        split = split_thinking(content)
        thought = content.lstrip().startswith(BEGIN)
        if opened and not thought:
            text, turns = self._text_without_thinking(asked, text, turns, thinking)
            opened = ""
        elif thought and thinking is not True and self.marks.switch:  # a thought that was begun goes on
            text, turns = self._text(asked, True)
            opened = self.marks.thinking.opened(text)
        head = self._splice(text, turns, thinking)
        ids = self._ids_begun(begun, content, opened)
        where: Where = "answer" if not thought or split.answer else "gap" if split.over else "thought"
        held = content[len(content) - overlap(content, END) :] if where == "thought" else ""
        said = content[-MAX_STOP:] if where == "answer" else ""
        return Prepared(head + ids, start=Start(where, "", tuple(ids[-_JOINS:]), held, said))

    def fit(
        self, prompt: Prompt, context: int, max_tokens: int, drop: bool, thinking: bool | None = None
    ) -> tuple[list[int], int]:
        """Token ids of what is asked, and how many turns were left out: `prepare` without the rest."""
        prepared = self.prepare(prompt, context, max_tokens, drop, thinking)
        return prepared.ids, prepared.dropped

    def prepare(
        self, prompt: Prompt, context: int, max_tokens: int, drop: bool, thinking: bool | None = None
    ) -> Prepared:
        """Token ids of what is asked, and how many of the oldest turns were left out to make it fit.

        Args:
            prompt: a conversation, one user message as text, or token ids. Without a chat template and a system text, a
                text alone is what the model goes on with.
            context: longest prompt and reply together, in tokens.
            max_tokens: wanted for the reply; turns are dropped where it does not leave room for this many, or for a
                quarter of the context if that is less, and then down to half the context.
            drop: leave the oldest turns out instead of refusing.
            thinking: see `SamplingParams`; token ids are taken as they are.

        Raises:
            PromptError: nothing is asked, an id is out of range, or it does not fit.
        """
        if isinstance(prompt, str) and self.marks.template is None and not self._system:
            # Nothing says who speaks: a model without chat template goes on with the text.
            prompt = self._encoder.before_text + self._encoder.encode_text(prompt)
        elif isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if hasattr(prompt, "tolist"):  # a tensor or an array of ids
            prompt = prompt.tolist()
        if len(prompt) and all(isinstance(m, int) and not isinstance(m, bool) for m in prompt):
            prepared = self._given(list(prompt))  # type: ignore[arg-type]  # mypy does not see what is looked at
        else:
            turns: list[Any] = self._checked(list(prompt))  # type: ignore[arg-type]  # ids were told apart above
            prepared = self._built(turns, thinking)
            if drop and len(prepared.ids) > context - min(max_tokens, context // 4):
                # Half the context at once: dropping just enough would read everything anew in every later turn. Halving
                # the search, because every look at a size tokenizes all that is left.
                rests = [turns]
                while shorter := _without_oldest_turn(rests[-1]):
                    rests.append(shorter)
                fits = bisect_left(rests, True, key=lambda rest: self._size(rest, thinking) <= context // 2)
                dropped = min(fits, len(rests) - 1)
                kept = self._built(rests[dropped], thinking)
                prepared = Prepared(kept.ids, dropped, kept.start)
        ids = prepared.ids
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
        return prepared

    def _given(self, ids: list[int]) -> Prepared:
        """Ids that a program has made; they may end in opened thinking as a template's text does."""
        end = [i for i in ids[-16:] if 0 <= i < self._vocab]
        text = str(self._tokenizer.decode(end, skip_special_tokens=False)) if self.marks.thinking.own else ""
        return Prepared(ids, start=_opened(self.marks.thinking.opened(text)))

    def _size(self, messages: Sequence[Message], thinking: bool | None) -> int:
        """Tokens of a conversation, about: by its text, without looking for known replies in it."""
        asked, begun = _begun(messages)
        text = self._encoder.unseal(self._text(asked, thinking)[0]) + (self._content(begun) if begun else "")
        return len(self._encoder.encode(text))

    # The text of a conversation

    def _text(self, messages: Sequence[Message], thinking: bool | None) -> tuple[str, list[_Turn]]:
        """The conversation as text with people's control tokens sealed, up to where the assistant's reply begins.

        Templates that refuse an order of roles, or a system message, get neighbours of one role as one message, the
        system text before the first question, and an empty question before a reply that has none.
        """
        if self._system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        first: Exception | None = None
        left_out: tuple[str, list[_Turn]] | None = None
        for arranged in _arrangements(messages):
            try:
                text, turns = self._sealed(arranged, thinking)
            except Exception as error:  # templates are programs that come with models: they may raise anything
                first = first or error
                continue
            system = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
            if self._encoder.clean(system) in self._encoder.unseal(text):
                return text, turns
            left_out = left_out or (text, turns)
        if left_out:
            return left_out
        said = (str(first).strip() or repr(first)).splitlines()[0].rstrip(".")
        raise PromptError(
            f"The model's chat template refuses this conversation: {said}.",
            "Let user and assistant take turns, and check the system message.",
        ) from first

    def _sealed(self, messages: Sequence[Message], thinking: bool | None) -> tuple[str, list[_Turn]]:
        """The rendered conversation. The template must make of sealed text what it makes of the text."""
        turns = [self._turn(m, None) for m in messages]
        said = (str(m.get(name) or "") for m in messages for name in ("content", "reasoning_content"))
        if not any(self._encoder.holds_control(text) for text in said):
            return self._render(turns, thinking), turns
        found, plain = None, ""
        with contextlib.suppress(Exception):  # some templates refuse such tokens in texts
            plain = self._encoder.unseal(self._render(turns, thinking))
        for inside in (False, True):
            sealed = [self._turn(m, partial(self._encoder.seal, inside=inside)) for m in messages]
            try:
                text = self._render(sealed, thinking)
            except Exception:  # some templates look for such tokens; the other seal hides less of them
                continue
            if self._encoder.unseal(text) == plain:
                return text, sealed
            found = found or (text, sealed)
        if found is None:
            raise PromptError("The messages hold control tokens that its template cannot take as text")
        return found

    def _turn(self, message: Message, seal: Callable[[str], str] | None) -> _Turn:
        """A message as the template gets it: a reply's thinking in the marks or the fields that the family has."""

        def safe(text: str) -> str:
            return seal(text) if seal and self._encoder.holds_control(text) else text

        role, marks = str(message["role"]), self.marks.thinking
        content = self._encoder.clean(str(message["content"]))
        if role != "assistant":
            return _Turn({"role": role, "content": safe(content)})
        apart = self._encoder.clean(str(message.get("reasoning_content") or "")) and self._content(message)
        whole = apart or content
        fields, spelled = {}, safe(self._hidden(content))
        if whole.lstrip().startswith(BEGIN):
            split = split_thinking(whole)
            names = [n for n in ("reasoning_content", "thinking", "reasoning") if self.marks.reads(n)]
            if (apart or not marks.normal) and names:
                fields = dict.fromkeys(names, safe(split.thought))
                spelled = safe(self._hidden(split.answer))
            elif marks.own:
                spelled = self._in_marks(whole, safe)
            elif not apart:
                spelled = safe(whole)
        elif split_thinking(content, older=True).thought:
            thought, mark, answer = content.partition(END)
            spelled = safe(thought) + mark + safe(self._hidden(answer))
        ids = self._ids_of(whole, message.get("token_ids"))
        return _Turn({"role": role, "content": spelled, **fields}, ids, apart=bool(fields))

    def _hidden(self, answer: str) -> str:
        """An answer in which the template finds no thinking."""
        marks = {mark for pair in self.marks.thinking.pairs for mark in pair}
        return self._encoder.hide(answer, (mark for mark in sorted(marks) if mark in (self.marks.template or "")))

    def _in_marks(self, content: str, safe: Callable[[str], str], opened: bool = False) -> str:
        """A reply's text in the family's own marks. `opened`: the opening mark stands in the prompt."""
        marks = self.marks.thinking
        opening, closing = marks.pairs[0]
        opening += marks.label
        blanks, _, rest = content.partition(BEGIN)
        thought, mark, answer = rest.partition(END)
        if marks.channels:
            thought, answer = thought.strip(), answer.lstrip()
            answer = f"<|start|>assistant<|channel|>final<|message|>{safe(answer)}" if answer else ""
        else:
            answer = safe(self._hidden(answer))
        head = "" if opened else blanks + opening
        thought = thought.lstrip() if opened else thought
        return head + safe(thought) + (closing + answer if mark else "")

    def _content(self, message: Message) -> str:
        """A reply's text in the normal form, with what it thought."""
        content, thought = str(message["content"]), str(message.get("reasoning_content") or "")
        return with_thinking(self._encoder.clean(thought), self._encoder.clean(content))

    def _render(self, turns: Sequence[_Turn], thinking: bool | None) -> str:
        switch = {"enable_thinking": thinking} if self.marks.switch and thinking is not None else {}
        return self.marks.render([turn.message for turn in turns], **switch)

    def _text_without_thinking(
        self, asked: Sequence[Message], text: str, turns: list[_Turn], thinking: bool | None
    ) -> tuple[str, list[_Turn]]:
        """The prompt of an answer that was begun without thinking, where the template has opened the thinking."""
        if self.marks.switch and thinking is not False:
            with contextlib.suppress(PromptError):
                other, others = self._text(asked, False)
                if not self.marks.thinking.opened(other):
                    return other, others
        line = "\n" if text.endswith("\n") else ""
        return f"{text}{line}{self.marks.thinking.pairs[0][1]}{line * 2}", turns

    # Its token ids

    def _splice(self, text: str, turns: Sequence[_Turn], thinking: bool | None) -> list[int]:
        """Tokenizes the rendered text, with the remembered ids in the place of the replies that stand in it verbatim.

        Where a template leaves part of a reply out (the thinking of earlier turns), its text is tokenized anew, and
        reading restarts there.
        """
        ids = self._encoder.before_text[:] if self.marks.template is None else []
        done = 0
        for begin, end, turn in self._replies_in(text, turns, thinking):
            if begin < done:
                continue
            ids += self._encoder.encode(text[done:begin], behind=done > 0)
            ids += turn.ids
            done = end
        return ids + self._encoder.encode(text[done:], behind=done > 0)

    def _replies_in(self, text: str, turns: Sequence[_Turn], thinking: bool | None) -> Iterator[tuple[int, int, _Turn]]:
        """Where the replies whose ids are known stand in the rendered text.

        The conversation is rendered once more with a mark in the place of each of them. Templates that look into
        replies may write other text around a mark; from there on the text before each reply is rendered alone.
        """
        known = [at for at, turn in enumerate(turns) if turn.ids]
        marked = [replace(t, message={**t.message, "content": _mark(at)}) if t.ids else t for at, t in enumerate(turns)]
        rest = ""
        with contextlib.suppress(Exception):  # some templates refuse a reply without its own marks
            rest = self._render(marked, thinking) if known else ""
        place = 0
        while known:
            before, found, rest = rest.partition(_mark(known[0]))
            if not found or not text.startswith(before, place):
                break
            turn, content = turns[known.pop(0)], place + len(before)
            begin = max(place, content - self._written_before(turn))
            place = self._end_of(turn, text, begin)
            if place > begin:
                yield begin, place, turn
            else:  # the template has changed it, and goes on behind it
                behind = rest.partition(_mark(known[0]))[0] if known else rest
                place = text.find(behind, content)
                if place < 0:
                    break
        # What stands before a reply that is to come without thinking may be left out where the reply is an earlier one.
        ways = dict.fromkeys((thinking, True, False)) if self.marks.switch else (None,)
        for at in known:
            begin, end = next(self._places(text, turns[:at], turns[at], ways), (-1, -1))
            yield begin, end, turns[at]

    def _places(
        self, text: str, before: Sequence[_Turn], turn: _Turn, ways: Iterable[bool | None]
    ) -> Iterator[tuple[int, int]]:
        """Where the reply stands in the rendered text. A template may refuse what comes before it alone."""
        for way in ways:
            try:
                head = self._render(before, way)
            except Exception:  # its text is tokenized anew, that is all
                continue
            if text.startswith(head) and (end := self._end_of(turn, text, len(head))) > len(head):
                yield len(head), end

    def _written_before(self, turn: _Turn) -> int:
        """Characters of a reply's thinking that stand before its content where the template writes all of it."""
        whole, content = self._whole(turn), str(turn.message["content"])
        return len(whole) - len(content) if turn.apart and whole.endswith(content) else 0

    def _end_of(self, turn: _Turn, text: str, begin: int) -> int:
        """Where a reply ends that begins there in the rendered text; `begin` where it does not stand there."""
        opened = self.marks.thinking.opened(text[max(0, begin - _OPENING) : begin])
        for spelled in self._spelled(turn):
            said = spelled.removeprefix(opened)
            if text.startswith(said, begin):
                return begin + len(said)
        return begin

    def _spelled(self, turn: _Turn) -> Iterator[str]:
        """How the text of a reply may stand in the rendered text: as the template got it, or with all its tokens."""
        if not turn.apart:
            yield str(turn.message["content"])
        yield self._whole(turn)

    def _whole(self, turn: _Turn) -> str:
        return str(self._tokenizer.decode(list(turn.ids), skip_special_tokens=False))

    def _matches(self, text: str, ids: Sequence[int]) -> bool:
        """Whether a reply of these ids has this text, also where the prompt had opened its thinking."""
        return self._matches_whole(text, ids) or self._matches_inside(text, ids)

    def _matches_whole(self, text: str, ids: Sequence[int]) -> bool:
        whole = text.rstrip("\ufffd")
        marked = self.marks.thinking.tokens.keys() & set(ids)
        if not marked and self._tokenizer.decode(list(ids), skip_special_tokens=True).rstrip("\ufffd") == whole:
            return True
        return self._said(ids, Start()) == whole

    def _matches_inside(self, text: str, ids: Sequence[int]) -> bool:
        lead = re.match(rf"{BEGIN}\s*", text)
        said = self._said(ids, Start("thought")).lstrip() if lead else ""
        return lead is not None and said == text[lead.end() :].rstrip("\ufffd")

    def _said(self, ids: Sequence[int], start: Start) -> str:
        stream = TextStream(self._tokenizer, marks=self.marks.thinking, start=start)
        stream.push(ids)
        stream.flush()
        return stream.text

    def _ids_of(self, content: str, given: Sequence[int] | None) -> list[int]:
        """What a reply was generated as, without the token that ended it; empty where nobody knows."""
        if not (given and self._matches(content, given)):
            given = self._replies.get(content, ())
        return self._without_end(given)

    def _without_end(self, given: Sequence[int]) -> list[int]:
        ids = list(given)
        while ids and ids[-1] in self._ends:
            ids.pop()
        return ids

    def _ids_begun(self, message: Message, content: str, opened: str) -> list[int]:
        """Ids of a reply that is to go on. They may end inside a character, which its text cannot show yet.

        Args:
            opened: the opening mark that stands in the prompt, in the normal form; the reply then begins inside it.
        """
        thought = content.lstrip().startswith(BEGIN)
        for ids in (self._without_end(message.get("token_ids") or ()), self._ids_of(content, None)):
            if ids and (self._matches_inside if opened else self._matches_whole)(content, ids):
                return ids
        if not content:
            return []
        marks = self.marks.thinking
        if thought and (marks.own or opened):
            text = self._in_marks(content, self._safe, bool(opened))
        elif marks.channels:
            text = f"<|channel|>final<|message|>{self._safe(content)}"
        else:
            text = self._safe(content)
        return self._encoder.encode(text, behind=True)

    def _safe(self, text: str) -> str:
        return self._encoder.seal(text) if self._encoder.holds_control(text) else text

    def _checked(self, messages: Sequence[Message]) -> list[Message]:
        if not messages:
            raise PromptError("There is no message to answer.", "Send at least one message.")
        # A turn of the assistant without words has None in many programs: it called a tool, or was stopped.
        messages = [_with_text(message) for message in messages]
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
        return [{**m, "role": self._role(m["role"])} for m in messages]

    @staticmethod
    def _role(role: str) -> str:
        """The role, if it is a word: some templates make a control token of it."""
        if not re.fullmatch(r"[\w -]+", role):
            raise PromptError(f"The role {role[:40]!r} is no word.", "Roles are 'system', 'user' and 'assistant'.")
        return role


def _with_text(message: Any) -> Any:
    wordless = isinstance(message, Mapping) and message.get("role") == "assistant" and message.get("content") is None
    return {**message, "content": ""} if wordless else message


def _mark(at: int) -> str:
    """Stands for a reply in a rendered conversation: characters that no text has, see `Encoder.clean`."""
    return f"\ufddc{at}\ufddd"


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


def _opened(lead: str) -> Start:
    return Start("thought", lead) if lead else Start()


def _arrangements(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The conversation as it is, then as templates may want it that refuse its roles or their order."""
    yield messages
    merged = _merged(messages)
    if len(merged) < len(messages):
        yield merged
    head, rest = merged[:1], merged[1:]
    if head[0]["role"] != "system":
        head, rest = [], merged
    if rest and rest[0]["role"] == "assistant":
        rest = [{"role": "user", "content": ""}, *rest]
        yield [*head, *rest]
    if head and rest:
        asked = "\n\n".join(text for text in (head[0]["content"], rest[0]["content"]) if text)
        yield [{**rest[0], "content": asked}, *rest[1:]]


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message. Ids and thinking of replies that are joined do not fit any more."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"]:
            content = f"{merged[-1]['content']}\n\n{message['content']}"
            merged[-1] = {"role": message["role"], "content": content}
        else:
            merged.append(message)
    return merged


def begun_ids(tokenizer: Any, ids: Sequence[int], text: str) -> list[int]:
    """Ids of a reply that is to go on, without the token that ended it; made from its text where there are none.

    Args:
        tokenizer: of the family that goes on.
        ids: what the reply was generated as, if that is known.
        text: the reply's text so far.
    """
    own = Prompts(tokenizer, 0)
    return own._without_end(ids) or own._ids_begun({}, text, "")
