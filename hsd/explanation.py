"""What `Engine.explain` found, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_WIDTHS = (1, 2, 5, 9)


def tables(report: Mapping[str, Any]) -> Iterator[str]:
    """The numbers behind a choice: step times and their age, acceptances and how sure they are, who was left out."""
    yield f"ms per pass at width {', '.join(map(str, _WIDTHS))}; measured"
    for name, times in report["costs_ms"].items():
        shown = "  ".join(f"{times[min(w, len(times)) - 1]:8.3f}" for w in _WIDTHS)
        age = report["costs_age_seconds"].get(name)
        yield f"  {name:10} {shown}  {'' if age is None else _ago(age)}".rstrip()
    around = report["around_passes_ms"]
    if any(around.values()):
        yield (
            f"and around passes: {around['draft_ms']:.3f} per drawn draft token, {around['round_ms']:.3f} per round of "
            f"the target, {around['middle_ms']:.3f} per other pass, {around['row_ms']:.3f} per row that is judged"
        )
    yield ""
    yield f"acceptance at temperature {report['temperature']:g} (bucket '{report['bucket']}'; scored positions)"
    for pair, e in report["acceptances"].items():
        yield f"  {pair:20} {e['rate']:.3f} ± {e['standard_error']:.3f}  ({e['positions']}){_marks(e)}"
    for pair, rate in report["guessed"].items():
        yield f"  {pair:20} {rate:.3f}          guessed: nothing measured yet"
    yield ""
    how = "walking the last replies' own positions" if report["compared_by"] == "replay" else "the formula"
    yield f"Plans were compared by {how}." + (
        "" if report["certain"] else " Until every pair is sure, plans stay short: two drafts, blocks of four."
    )
    for draft in report.get("left_out", ()):
        yield f"Left out: '{draft['model']}': {draft['reason']}"


def _marks(estimate: Mapping[str, Any]) -> str:
    if estimate["moved"]:
        return "  changed lately: only the replies since then count"
    if estimate["borrowed"]:
        return "  borrowed from another temperature"
    return "" if estimate["sure"] else "  not sure: fewer than 500 positions"


def _ago(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} seconds ago"
