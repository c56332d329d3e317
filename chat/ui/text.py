"""Text of people and models as HTML that nothing can break out of, and numbers as people write them."""

from __future__ import annotations

import html
import itertools
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from chat import limits
from chat.disk import storable
from chat.ui import math


def escape(text: object) -> str:
    """Text for the inside of an element or of a quoted attribute."""
    return html.escape(storable(str(text)), quote=True)


class _Renderer(RendererHTML):
    """Code with a copy button, links in a new tab, and no picture from anywhere: a page that fetches tells on you."""

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        token = tokens[idx]
        language = token.info.strip().split(" ")[0][:30]
        return (
            f'<div class="code"><div class="code-head"><span>{escape(language or "text")}</span>'
            '<button type="button" data-action="copy-code">Copy</button></div>'
            f'<pre tabindex="0"><code>{escape(token.content)}</code></pre></div>'
        )

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return self.fence(tokens, idx, options, env)

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        token = tokens[idx]
        source = str(token.attrGet("src") or "")
        label = escape(token.content or source)
        return f'<a href="{escape(source)}" target="_blank" rel="noopener noreferrer">{label}</a>'

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        tokens[idx].attrSet("target", "_blank")
        tokens[idx].attrSet("rel", "noopener noreferrer")
        return self.renderToken(tokens, idx, options, env)

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return '<div class="scroll"><table>'

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</table></div>"


# "html": False escapes tags in the source; link targets are checked by markdown-it (no javascript:, no data:).
_markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=_Renderer)
_markdown.enable(["table", "strikethrough"])
math.add(_markdown)


class _TooSlow(Exception):
    """A text takes longer to read as Markdown than it may."""


def _in_time(state: StateBlock | StateInline, *_: Any) -> bool:
    """A rule that matches nothing: it is asked again and again, and ends what takes too long.

    Some texts take a thousand times as long as others of their length. Processor time is what counts, so that a busy
    machine shows the same page as an idle one.
    """
    state.env["looks"] = state.env.get("looks", 0) + 1
    if state.env["looks"] % 50 == 0:
        now = time.thread_time()
        if now > state.env.setdefault("end", now + limits.FORMAT_SECONDS):
            raise _TooSlow
    return False


_everywhere: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list", "table"]}
_markdown.block.ruler.before("table", "in_time", _in_time, _everywhere)
_markdown.inline.ruler.before("text", "in_time", _in_time)


def markdown(text: str) -> str:
    """Markdown as HTML; tags in the text come out as text. What is very long, or takes very long, is not formatted."""
    begin, rest = _beginning(text)
    return _formatted(begin) + (plain(rest) if rest else "")


@lru_cache(maxsize=512)
def _formatted(text: str) -> str:
    try:
        return _markdown.render(text)
    except _TooSlow:
        return plain(text)


def plain(text: str) -> str:
    """Text as it was written, where reading it as Markdown would take too long."""
    return f'<p class="plain">{escape(text)}</p>'


def _beginning(text: str) -> tuple[str, str]:
    """What of a text is read as Markdown, and the rest; they are cut between paragraphs, or at least lines."""
    if len(text) <= limits.FORMATTED_LETTERS:
        return text, ""
    end = limits.FORMATTED_LETTERS
    cut = next((at + len(mark) for mark in ("\n\n", "\n") if (at := text.rfind(mark, end // 2, end)) >= 0), end)
    return text[:cut], text[cut:]


def seconds(value: float) -> str:
    """`0.3 s`, `12 s`, `2 min 5 s`, `8 ms` for what is below a hundredth."""
    if value < 0.0995:
        return f"{value * 1000:.0f} ms" if value >= 0.001 else f"{value * 1000:.1f} ms"
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 90:
        return f"{value:.0f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


# What CommonMark ends a line with. `str.splitlines` also splits at U+2028, form feeds and others, which end none.
_LINE_END = re.compile(r"\r\n?|\n")
_LIST_NUMBER = re.compile(r"\d{1,9}", re.A)


def _begin_of_line(text: str, number: int) -> int:
    """Where a line begins in the text, in characters; lines count from 0."""
    ends = itertools.islice(_LINE_END.finditer(text), number)
    return max((found.end() for found in ends), default=0)


class Growing:
    """Markdown of a text that grows at its end: blocks that are over are rendered once, only the last one again.

    A reference that is defined further down is the one thing that comes out differently from `markdown`.
    """

    def __init__(self) -> None:
        self.settled = ""
        self._read = ""
        self._slow = False

    def add(self, text: str) -> str:
        """HTML of what may still change; what cannot is in `settled`. A text that did not grow starts anew."""
        if not text.startswith(self._read):
            self.settled, self._read, self._slow = "", "", False
        rest = text[len(self._read) :]
        if self._slow or len(text) > limits.FORMATTED_LETTERS:
            return plain(rest)
        try:
            tokens = _markdown.parse(rest)
        except _TooSlow:
            self._slow = True
            return plain(rest)
        begins = [place for place, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
        last = begins[-1] if begins else 0
        if len(begins) > 1 and last + 1 < len(tokens) and _LIST_NUMBER.fullmatch(tokens[last + 1].content):
            # Behind a list this may become the number of its next item.
            last = begins[-2]
        lines = tokens[last].map if last else None
        if lines:
            self.settled += _markdown.renderer.render(tokens[:last], _markdown.options, {})
            self._read += rest[: _begin_of_line(rest, lines[0])]
        return _markdown.renderer.render(tokens[last:], _markdown.options, {})


def precise(value: float) -> str:
    """`0.214 s`, `3.42 s`: for the details, where two times stand side by side."""
    if value < 0.001:
        return f"{value * 1000:.1f} ms"
    if value < 1:
        return f"{value:.3f} s"
    return f"{value:.2f} s" if value < 10 else seconds(value)


def count(value: float) -> str:
    """`950`, `25M`, `1.7B`: a number of parameters or tokens."""
    for limit, unit in ((1e9, "B"), (1e5, "M"), (1e4, "k")):
        if value >= limit:
            scaled = value / {"B": 1e9, "M": 1e6, "k": 1e3}[unit]
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{value:,.0f}"


def plural(number: int, noun: str) -> str:
    """`1 token`, `2 tokens`, `2 passes`, `2 replies`."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"
