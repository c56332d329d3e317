"""Pictures of plans as inline SVG: the family, acceptance over replies, forecast against outcome.

Every level keeps its colour and has a mark of its own, so that no picture needs the colour. Text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from chat.plans import Accepted, Edge, Level, Outcome
from chat.ui.text import escape

MARKS = {
    "orange": "circle",
    "sky": "square",
    "green": "triangle",
    "purple": "diamond",
    "vermillion": "cross",
    "yellow": "plus",
    "blue": "ring",
}
_COLUMN, _STEP = 118, 40
_WIDTH, _HEIGHT = 420, 260
_LEFT, _BOTTOM, _TOP, _RIGHT = 46, 40, 14, 12


def mark(tone: str, x: float, y: float, title: str = "", size: float = 4.0) -> str:
    """A level's mark at a place."""
    s = size
    shape = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{s}"/>',
        "ring": f'<circle class="hollow" cx="{x:.1f}" cy="{y:.1f}" r="{s}"/>',
        "square": f'<rect x="{x - s:.1f}" y="{y - s:.1f}" width="{2 * s}" height="{2 * s}"/>',
        "triangle": f'<path d="M{x:.1f} {y - s - 0.5:.1f}l{s + 0.5} {2 * s}h{-2 * s - 1}z"/>',
        "diamond": f'<path d="M{x:.1f} {y - s - 1:.1f}l{s + 1} {s + 1}l{-s - 1} {s + 1}l{-s - 1} {-s - 1}z"/>',
        "cross": f'<path class="hollow" d="M{x - s:.1f} {y - s:.1f}l{2 * s} {2 * s}m0 {-2 * s}l{-2 * s} {2 * s}"/>',
        "plus": f'<path class="hollow" d="M{x - s - 1:.1f} {y:.1f}h{2 * s + 2}M{x:.1f} {y - s - 1:.1f}v{2 * s + 2}"/>',
    }[MARKS.get(tone, "circle")]
    words = f"<title>{escape(title)}</title>" if title else ""
    return f'<g class="mark tone-{tone}">{words}{shape}</g>'


def family(levels: Sequence[Level], edges: Sequence[Edge], tones: Mapping[str, str]) -> str:
    """Arcs from drafts to the models that verify them, over the levels' names; those of the plan on show are thick.

    Each arc says which share of a draft's tokens its verifier accepts and over how many scored positions.
    """
    place = {level.name: (index + 0.5) * _COLUMN for index, level in enumerate(levels)}
    order = [level.name for level in levels]
    spans = [order.index(e.verifier) - order.index(e.draft) for e in edges]
    height = round(0.75 * (_STEP * max(spans, default=1) + 16)) + 14
    arcs, labels = [], []
    # Those of the plan last, on top of the others.
    for edge, span in sorted(zip(edges, spans, strict=True), key=lambda both: both[0].used):
        begin, end = place[edge.draft], place[edge.verifier]
        peak = height - _STEP * span - 4
        used = " used" if edge.used else ""
        sure = "" if edge.sure else " unsure"
        arcs.append(
            f'<path class="arc{used}{sure} tone-{tones.get(edge.draft, "grey")}" '
            f'd="M{begin} {height}C{begin} {peak - 12} {end} {peak - 12} {end} {height}"/>'
        )
        labels.append(
            f'<text class="rate{used}" x="{(begin + end) / 2}" y="{height - (height - peak + 12) * 0.75 + 4:.0f}">'
            f"{100 * edge.rate:.0f}% of {edge.positions:,}</text>"
        )
    width = _COLUMN * len(levels)
    words = "; ".join(
        f"{edge.verifier} accepts {100 * edge.rate:.0f}% of {edge.draft}'s tokens, {edge.positions:,} positions"
        for edge in edges
    )
    head = f'<svg class="arcs" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}">'
    return f"{head}{''.join(arcs)}{''.join(labels)}</svg>"


def acceptance(series: Mapping[tuple[str, str], Sequence[Accepted]], replies: int, tones: Mapping[str, str]) -> str:
    """Share of proposed tokens that were accepted, reply by reply, a line per pair; colour and mark are the draft's."""
    x_of = _scale(0, max(replies - 1, 1), _LEFT + 6, _WIDTH - _RIGHT - 6)
    y_of = _scale(0, 1, _HEIGHT - _BOTTOM, _TOP)
    parts = [_level_line(y_of(share), f"{100 * share:.0f}%") for share in (0, 0.25, 0.5, 0.75, 1)]
    ticks = sorted({1, replies, *((replies + 1) // 2 for _ in range(replies > 4))})
    parts += [_tick_below(x_of(tick - 1), str(tick)) for tick in ticks]
    for (draft, verifier), points in series.items():
        tone = tones.get(draft, "grey")
        spots = [(x_of(p.reply), y_of(p.accepted / p.proposed), p) for p in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in spots)
        parts.append(f'<polyline class="line tone-{tone} mark-{MARKS.get(tone, "circle")}" points="{line}"/>')
        for x, y, p in spots:
            words = f"{draft} to {verifier}, reply {p.reply + 1}: {p.accepted:,} of {p.proposed:,} accepted"
            parts.append(mark(tone, x, y, words, 3))
    parts.append(_name_below("reply, oldest first"))
    return _plot(parts, f"Acceptance over the last {replies} replies, in percent of proposed tokens")


def outcome(points: Sequence[Outcome], tones: Mapping[str, str], drafts: Sequence[str]) -> str:
    """Outcome over forecast, a mark per reply, both in ms per token on logarithmic axes; on the line both are equal.

    `drafts`: the level below the target in each reply, which gives the mark.
    """
    values = [value for p in points for value in (p.forecast_ms, p.outcome_ms)]
    ticks = _ticks(min(values), max(values))
    low, high = math.log(ticks[0]), math.log(ticks[-1])
    x_of = _scale(low, high, _LEFT, _WIDTH - _RIGHT)
    y_of = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_level_line(y_of(math.log(tick)), f"{tick:g}") for tick in ticks]
    parts += [_tick_below(x_of(math.log(tick)), f"{tick:g}") for tick in ticks]
    parts.append(
        f'<line class="equal" x1="{x_of(low):.1f}" y1="{y_of(low):.1f}" x2="{x_of(high):.1f}" y2="{y_of(high):.1f}"/>'
    )
    for point, draft in zip(points, drafts, strict=True):
        title = f"{point.plan}: {point.forecast_ms:.2f} ms forecast, {point.outcome_ms:.2f} ms came out"
        spot = x_of(math.log(point.forecast_ms)), y_of(math.log(point.outcome_ms))
        parts.append(mark(tones.get(draft, "grey"), *spot, title, 3.5))
    parts += [
        _name_below("forecast, ms per token"),
        f'<text class="axis" x="{_LEFT + 6}" y="{_TOP + 12}">outcome, ms per token</text>',
    ]
    return _plot(parts, f"Forecast and outcome of {len(points)} replies in ms per token")


def key(tone: str) -> str:
    """A level's mark as a small picture, for legends."""
    return f'<svg class="key" viewBox="0 0 12 12" aria-hidden="true">{mark(tone, 6, 6, size=3.6)}</svg>'


def _scale(low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: begin + (value - low) / span * (end - begin)


def _ticks(low: float, high: float) -> list[float]:
    """Numbers of the series 1, 2, 5, 10, … that enclose a range."""
    exponent = math.floor(math.log10(low)) - 1
    series = [round(base * 10.0**e, 12) for e in range(exponent, exponent + 14) for base in (1, 2, 5)]
    first = max(i for i, value in enumerate(series) if value <= low)
    last = min((i for i, value in enumerate(series) if value >= high), default=len(series) - 1)
    return series[first : max(last, first + 1) + 1]


def _level_line(y: float, words: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis left" x="{_LEFT - 7}" y="{y + 4:.1f}">{words}</text>'
    )


def _tick_below(x: float, words: str) -> str:
    return f'<text class="axis middle" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}">{words}</text>'


def _name_below(words: str) -> str:
    return f'<text class="axis middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}">{words}</text>'


def _plot(parts: Sequence[str], words: str) -> str:
    head = f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(words)}">'
    return f"{head}{''.join(parts)}</svg>"
