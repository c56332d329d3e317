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

# One dollar is more often a price or a variable of a shell. Pandoc's rule: a formula touches no blank on its inside,
# and no digit follows it. In addition, a letter or digit before the opening dollar makes it a currency (`US$`), and
# what makes the closing dollar a variable (`$A/$B`, `${A}/${B}`, `$(a)/$(b)`) makes the formula none; `$n$th` is one.
# Code spans and links take precedence. An index or a power alone may stand anywhere: `H$_2$O`, `90$^\circ$C`. The parts
# of a formula are atomic: with two ways to read `\text{…}` each further one would double the time.
_DOLLARS = re.compile(
    r"""
    (?<!\$) \$ (?P<script> [_^] (?: [0-9A-Za-z+-] | \{[^{}$\n]{1,99}\} | \\[A-Za-z]+ ) ) \$ (?!\$)
    | (?<![A-Za-z_$]) (?: (?<![0-9]) | (?=\$\\[A-Za-z]) ) \$ (?! [\s$@\#?] | \.[A-Za-z] )
    (?P<tex> (?> \\(?:text|mbox)\{[^{}\n`]{0,99}\} | \\[^\n] | (?!\]\() [^\\$\n`] ){1,999}? )
    (?<!\s) \$ (?! [0-9$_{(] | (?!(?:th|st|nd|rd|s)\b) [A-Za-z] )
    """,
    re.X,
)
# `$5, or 6$` begins with a number, goes on in words and has no sign of TeX.
_PRICE = re.compile(r"\d[^\\^_={}]*?\s[A-Za-z]{2,}\b[^\\^_={}]*")
_INLINE = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}
_MAX_LENGTH = 1000  # marks without an end cost no more than their number
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
    mark = state.src[state.pos : state.pos + 2]
    found = _between(state, mark) if mark in _INLINE else _single(state) if mark[:1] == "$" else None
    if found is None:
        return False
    tex, end = found
    if not silent:
        _push(state, tex, display=mark in ("\\[", "$$"))
    state.pos = end
    return True


def _between(state: StateInline, mark: str) -> tuple[str, int] | None:
    """(TeX, where its closing mark ends) of a formula between marks of two characters."""
    begin = state.pos + 2
    end = state.src.find(_INLINE[mark], begin, min(begin + _MAX_LENGTH, state.posMax))
    if mark == "$$" and state.src[end - 1] == "\\":
        # An escaped dollar is the last character of the formula.
        end += 1
    tex, behind = state.src[begin:end], state.src[end + 2 : end + 3]
    # `\[1\](address)` is a link that was escaped, `$$` the number of a shell's process.
    none = behind == "(" if mark == "\\[" else mark == "$$" and re.match(r"[\w$]", behind, re.A)
    return None if end < begin or not tex.strip() or none else (tex, end + 2)


def _single(state: StateInline) -> tuple[str, int] | None:
    """(TeX, where its closing mark ends) of a formula between single dollars."""
    found = _DOLLARS.match(state.src, state.pos, state.posMax)
    if not found:
        return None
    tex = found["script"] or found["tex"]
    bare = re.sub(r"\\.", "", tex)
    if _PRICE.fullmatch(tex) or bare.count("{") != bare.count("}"):
        return None
    return tex, found.end()


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    close = _BLOCKS.get(first[:2])
    if close is None:
        return False
    lines = [first[2:]]
    line = start
    # A blank line ends a paragraph, and a formula that begins beside text; marks that stand alone may hold some.
    alone = not first[2:].strip()
    while close not in lines[-1]:
        line += 1
        if line < end and state.isEmpty(line) and not alone:
            return False
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
