"""Small pictures for the documents: lines and grids as SVG text, legible on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of Okabe and Ito that stand out on white and on black."""

_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #222 }
.small { font-size: 11px }
.axis { stroke: #888; fill: none }
.soft { stroke: #8886; fill: none; stroke-dasharray: 3 4 }
.cell { fill: #0a0a0a; font-size: 11px }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .cell { fill: #0a0a0a } }
</style>"""

_LEFT, _TOP, _WIDTH, _HEIGHT = 64, 40, 620, 280

_PALE, _FULL = (238, 243, 247), (86, 170, 220)  # the least and the most of a grid, both under black digits

Points = Sequence[tuple[float, float]]


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Points],
    marks: Mapping[str, float] | None = None,
    *,
    dots: bool = False,
) -> str:
    """Lines over numbers, both axes from 0.

    Args:
        series: name -> points, in the order of the colours.
        marks: words -> x of a vertical line.
        dots: show the points too.
    """
    every = [point for points in series.values() for point in points]
    x_top = _nice(max(x for x, _ in every))
    y_top = _nice(max(y for _, y in every))

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + _WIDTH * x / x_top, _TOP + _HEIGHT * (1 - y / y_top)

    out = [_text(_LEFT, 20, title), *_axes(x_top, y_top, x_label, y_label)]
    for words, x in (marks or {}).items():
        at = place(x, 0)[0]
        out.append(f'<path class="axis" d="M{at:.1f} {_TOP}V{_TOP + _HEIGHT}"/>')
        out.append(_text(at + 4, _TOP + 12, words, "small"))
    for number, (name, points) in enumerate(series.items()):
        colour = PALETTE[number % len(PALETTE)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in points))
        dash = "" if number == 0 else f' stroke-dasharray="{3 + 3 * number} 3"'  # not by colour alone
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if dots:
            spots = [place(*point) for point in points]
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in spots]
        row = _TOP + _HEIGHT + 54 + 18 * number
        out.append(f'<path d="M{_LEFT} {row - 4}h26" stroke="{colour}" stroke-width="2" fill="none"{dash}/>')
        out.append(_text(_LEFT + 34, row, name))
    return _page(out, _TOP + _HEIGHT + 60 + 18 * len(series))


def grid(
    title: str,
    x_label: str,
    y_label: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float]],
) -> str:
    """Numbers in cells, darker blue for more; `values[row][column]`, the first row on top."""
    low = min(min(row) for row in values)
    high = max(max(row) for row in values)
    wide, tall = _WIDTH / len(columns), 30
    out = [_text(_LEFT, 20, title)]
    for r, row in enumerate(values):
        y = _TOP + tall * r
        out.append(_text(_LEFT - 6, y + 20, rows[r], "small", "end"))
        for c, value in enumerate(row):
            part = (value - low) / (high - low) if high > low else 0.0
            mixed = (round(a + (b - a) * part) for a, b in zip(_PALE, _FULL, strict=True))
            colour = "#{:02x}{:02x}{:02x}".format(*mixed)
            x = _LEFT + wide * c
            out.append(f'<rect x="{x:.1f}" y="{y}" width="{wide - 2:.1f}" height="{tall - 2}" rx="3" fill="{colour}"/>')
            out.append(_text(x + wide / 2 - 1, y + 19, f"{value:.2f}", "cell", "middle"))
    bottom = _TOP + tall * len(rows)
    for c, name in enumerate(columns):
        out.append(_text(_LEFT + wide * (c + 0.5), bottom + 16, name, "small", "middle"))
    out.append(_text(_LEFT + _WIDTH / 2, bottom + 38, x_label, "", "middle"))
    out.append(_sideways(14, _TOP + tall * len(rows) / 2, y_label))
    return _page(out, bottom + 50)


def _axes(x_top: float, y_top: float, x_label: str, y_label: str) -> list[str]:
    out = [f'<path class="axis" d="M{_LEFT} {_TOP}v{_HEIGHT}h{_WIDTH}"/>']
    for part in (0, 0.25, 0.5, 0.75, 1):
        x, y = _LEFT + _WIDTH * part, _TOP + _HEIGHT * (1 - part)
        out.append(_text(x, _TOP + _HEIGHT + 16, f"{x_top * part:g}", "small", "middle"))
        out.append(_text(_LEFT - 6, y + 4, f"{y_top * part:g}", "small", "end"))
        if part:
            out.append(f'<path class="soft" d="M{_LEFT} {y}h{_WIDTH}"/>')
    out.append(_text(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 36, x_label, "", "middle"))
    out.append(_sideways(14, _TOP + _HEIGHT / 2, y_label))
    return out


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(words)}</text>'


def _sideways(x: float, y: float, words: str) -> str:
    return f'<text transform="translate({x:.1f} {y:.1f}) rotate(-90)" text-anchor="middle">{escape(words)}</text>'


def _page(parts: Sequence[str], height: float) -> str:
    size = f'width="{_LEFT + _WIDTH + 24}" height="{height:.0f}" viewBox="0 0 {_LEFT + _WIDTH + 24} {height:.0f}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', _STYLE, *parts, "</svg>"]) + "\n"


def _nice(value: float) -> float:
    """The next round number at or above a value."""
    scale = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 0.1 if value >= 0.1 else 0.01
    return next(scale * step for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10, 100) if scale * step >= value)
