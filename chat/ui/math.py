"""Formulas in Markdown: `\\(…\\)`, `\\[…\\]`, `$…$` and `$$…$$` are set aside, so that Markdown leaves them alone.

The page draws them with the KaTeX that Gradio brings along; without it they stay the TeX that was written.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

# One dollar is more often a price or a variable of a shell: the formula may not touch a blank on its inside, nor a
# letter or digit behind it. Lengths are bounded, so that marks without an end cost no more than their number.
_INLINE = re.compile(
    r"\\\((?P<a>.{1,999}?)\\\)|\\\[(?P<b>.{1,999}?)\\\]|\$\$(?P<c>.{1,999}?)\$\$|\$(?P<d>(?![\s$])[^$\n]*?[^\s$\\])\$(?![\w$])",
    re.S,
)
_MAX_LINES = 100
_BLOCKS = {"$$": "$$", "\\[": "\\]"}


def add(markdown: MarkdownIt) -> None:
    """Teach a parser formulas."""
    markdown.inline.ruler.before("escape", "math", _inline)
    markdown.block.ruler.before(
        "fence", "math_block", _block, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    markdown.add_render_rule("math", _render)


def _inline(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    found = _INLINE.match(state.src, state.pos, state.posMax)
    if not found:
        return False
    if not silent:
        _push(state, next(text for text in found.groups() if text), display=found["b"] or found["c"])
    state.pos = found.end()
    return True


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    close = _BLOCKS.get(first[:2])
    if close is None:
        return False
    lines = [first[2:]]
    line = start
    while close not in lines[-1]:
        line += 1
        # Lines further out belong to what is around a list or a quotation.
        if line >= min(end, start + _MAX_LINES) or (state.sCount[line] < state.blkIndent and not state.isEmpty(line)):
            return False
        lines.append(state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]])
    last, _, behind = lines[-1].partition(close)
    if behind.strip():
        return False
    if not silent:
        token = _push(state, "\n".join([*lines[:-1], last]).strip(), display=True)
        token.block, token.map = True, [start, line + 1]
        state.line = line + 1
    return True


def _push(state: StateInline | StateBlock, tex: str, *, display: object) -> Token:
    token = state.push("math", "span", 0)
    token.content, token.markup = tex, "display" if display else ""
    return token


def _render(_: Any, tokens: Sequence[Token], idx: int, __: Any, ___: Any) -> str:
    token = tokens[idx]
    kind = "math display" if token.markup else "math"
    return f'<span class="{kind}">{html.escape(token.content)}</span>'
