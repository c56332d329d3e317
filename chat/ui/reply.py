"""What stands under a reply: the quiet line, the details, and where every token came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hsd
from chat.plans import LOOKUP
from chat.records import Message
from chat.ui.levels import look
from chat.ui.text import escape, plural, precise, seconds

BASELINES = {
    "estimated": "estimated from the target's measured step times",
    "measured": "measured by decoding the same prompt plainly",
}


def of_family(replies: Sequence[Message], info: hsd.FamilyInfo) -> list[Message]:
    """Those whose plan names this family's levels and ends in its target."""
    names = {LOOKUP, *info.models}
    chains = ((message, chain((message.stats or {}).get("plan", ""))) for message in replies)
    return [message for message, levels in chains if levels and levels[-1] == info.target and names.issuperset(levels)]


def chain(plan: str) -> list[str]:
    """Level names of a plan's text form, cheapest first."""
    return [part.split(":")[0].strip() for part in plan.split(">") if part.strip()]


def line(stats: Mapping[str, Any]) -> str:
    """`2.4× estimated · 61 tok/s · first token 0.3 s · lookup→tiny→big`, as text."""
    speedup, levels = stats.get("speedup"), chain(stats.get("plan", ""))
    parts = []
    if speedup is not None and len(levels) > 1:
        how = " estimated" if stats.get("baseline") == "estimated" else ""
        parts.append(f"{speedup:.1f}×{how}" if speedup >= 1 else f"slower than plain decoding, {speedup:.2f}×{how}")
    parts.append(f"{stats.get('tokens_per_second', 0):.0f} tok/s")
    parts.append(f"first token {seconds(stats.get('first_token_seconds', 0))}")
    parts.append("→".join(levels) + (" alone" if len(levels) == 1 else ""))
    return " · ".join(parts)


def details(message: Message, known: dict[str, str]) -> str:
    """The facts behind the line, each with its unit and denominator."""
    stats = message.stats or {}
    tokens, passes = stats.get("tokens", 0), stats.get("target_passes", 0)
    rows = [
        ("Speed-up", _speedup(stats)),
        ("Tokens per target pass", f"{tokens / passes:.2f} ({plural(tokens, 'token')} in {plural(passes, 'pass')})")
        if passes
        else ("Tokens", plural(tokens, "token")),
        ("Continued", _continued(stats)),
        ("Time", _time(stats)),
        ("Prompt", _prompt(stats)),
        ("Plan", f"<code>{escape(stats.get('plan', ''))}</code>{_asked(message)}"),
        ("Forecast", _forecast(stats)),
        ("Seed", escape(stats["seed"]) if stats.get("seed") is not None else ""),
    ]
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows if value)
    return f'<dl class="facts">{facts}</dl>{_table(stats.get("levels", ()), known)}'


def _continued(stats: Mapping[str, Any]) -> str:
    before = stats.get("continued_after", 0)
    return f"after {plural(before, 'token')} that were there; these figures are of the rest" if before else ""


def _speedup(stats: Mapping[str, Any]) -> str:
    if stats.get("speedup") is None or stats.get("baseline_seconds") is None:
        return "not known: no baseline yet"
    how = BASELINES.get(stats.get("baseline", ""), "")
    if stats.get("race_seconds") is not None:
        return (
            f"{stats['speedup']:.2f}×: in a race {precise(stats['race_seconds'])} by the plan and "
            f"{precise(stats['baseline_seconds'])} by plain decoding ({how}); the reply itself took "
            f"{precise(stats['seconds'])}"
        )
    return (
        f"{stats['speedup']:.2f}×: {precise(stats['seconds'])} here, {precise(stats['baseline_seconds'])} by plain "
        f"decoding ({how})"
    )


def _time(stats: Mapping[str, Any]) -> str:
    return (
        f"{precise(stats.get('seconds', 0))}: prompt {precise(stats.get('prefill_seconds', 0))}, decoding "
        f"{precise(stats.get('decode_seconds', 0))}, of it {precise(stats.get('model_seconds', 0))} inside models"
    )


def _prompt(stats: Mapping[str, Any]) -> str:
    text = (
        f"{plural(stats.get('prompt_tokens', 0), 'token')}, {stats.get('reused_tokens', 0):,} of them still in memory"
    )
    dropped = stats.get("dropped_turns", 0)
    return text + (f"; {plural(dropped, 'old turn')} left out, the context is full" if dropped else "")


def _asked(message: Message) -> str:
    asked = (message.params or {}).get("plan", "auto")
    return " chosen by auto" if asked == "auto" else " set by hand"


def _forecast(stats: Mapping[str, Any]) -> str:
    forecast, tokens = stats.get("forecast_ms_per_token"), stats.get("tokens", 0)
    if forecast is None or tokens < 2:
        return ""
    # The first token comes out of the prompt's pass.
    outcome = stats.get("decode_seconds", 0) * 1000 / (tokens - 1)
    return f"{forecast:.1f} ms per token expected, {outcome:.1f} ms came out"


def _table(levels: Sequence[Mapping[str, Any]], known: dict[str, str]) -> str:
    if not levels:
        return ""
    total = sum(level["seconds"] for level in levels) or 1.0
    body = "".join(_table_row(level, total, known, last=level is levels[-1]) for level in levels)
    return (
        '<div class="scroll"><table class="levels"><thead><tr><th scope="col">level</th>'
        '<th scope="col">accepted of proposed</th><th scope="col">rate</th><th scope="col">passes</th>'
        f'<th scope="col">time</th><th scope="col">share</th></tr></thead><tbody>{body}</tbody></table></div>'
    )


def _table_row(level: Mapping[str, Any], total: float, known: dict[str, str], *, last: bool) -> str:
    proposed, accepted = level["proposed"], level["accepted"]
    handed = "target" if last else f"{accepted:,} of {proposed:,}"
    rate = f"{100 * accepted / proposed:.0f}%" if proposed else "–"
    return (
        f'<tr><th scope="row"><span class="{look(level["name"], known)}">{escape(level["name"])}</span></th>'
        f"<td>{handed}</td><td>{rate}</td><td>{level['passes']:,}</td><td>{precise(level['seconds'])}</td>"
        f"<td>{100 * level['seconds'] / total:.0f}%</td></tr>"
    )


def provenance(message: Message, known: dict[str, str]) -> str:
    """The reply with every token marked by the level that proposed it, and a legend."""
    names, pieces = message.provenance, message.pieces
    if not names or len(pieces) != len(names):
        return '<p class="quiet">Where its tokens came from was not recorded.</p>'
    marks = "".join(
        f'<span class="token {look(name, known)}" title="{escape(name)}">{escape(text)}</span>'
        for text, name in zip(pieces, names, strict=True)
    )
    legend = "".join(
        f'<li><span class="{look(name, known)}">{escape(name)}</span> proposed {names.count(name):,} of '
        f"{plural(len(names), 'token')}, {100 * names.count(name) / len(names):.0f}%</li>"
        for name in sorted(set(names), key=names.count, reverse=True)
    )
    return f'<ul class="legend">{legend}</ul><p class="tokens">{marks}</p>'
