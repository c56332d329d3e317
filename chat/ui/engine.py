"""The engine column: which levels there are, what they do, what was expected and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import hsd
from chat.records import Message
from chat.request import EngineView
from chat.ui.levels import LOOKUP, look
from chat.ui.reply import chain, of_family
from chat.ui.text import count, escape, plural, seconds


def column(
    view: EngineView,
    title: str,
    replies: Sequence[Message],
    known: dict[str, str],
    here: Mapping[str, Any] | None = None,
    *,
    guest: bool = False,
) -> str:
    """The whole column. `replies` are the last ones of all conversations, `here` are statistics of the open one's.

    A `guest` is offered nothing that would take the engine from others.
    """
    replies = of_family(replies, view.info) if view.info else []
    last = next((m.stats for m in reversed(replies) if m.stats), None)
    parts = [f"<h2>{escape(view.info.title if view.info else title)}</h2>", _state(view, guest)]
    if view.info:
        parts += [_ladder(view.info, view.plan, last, known), _plan(view, last), _context(view.info, here)]
        parts += [_speedups(replies), _notes(view.info)]
    return "".join(parts)


def _state(view: EngineView, guest: bool) -> str:
    if view.state == "failed":
        error = escape(view.error or "The engine did not load.")
        return f'<p class="problem" role="alert">{error}</p>{_button("load", "Load it again")}'
    if view.state == "ready" and view.info:
        ready = f"Ready on {escape(view.info.device)} · context {view.info.context:,} tokens"
        return f'<p class="quiet">{ready}</p>{"" if guest else _button("unload", "Free its memory")}'
    if view.state == "unloaded":
        return f'<p class="quiet">Its memory is free; the next message loads it.</p>{_button("load", "Load it now")}'
    if view.state == "closed":
        return '<p class="quiet">Closed.</p>'
    return loading(view)


def _button(action: str, label: str) -> str:
    return f'<button type="button" class="plain" data-action="{action}">{label}</button>'


def loading(view: EngineView) -> str:
    """Which part is loading, how far, for how long."""
    progress = view.progress
    share = progress.done / progress.total if progress and progress.total else None
    bar = f'<progress max="1" value="{share:.3f}"' if share is not None else "<progress"
    return (
        f'<p class="quiet"><span role="status">{escape(_step(progress).capitalize())}</span> · '
        f"{seconds(max(view.seconds, 0.1))}</p>"
        f'{bar} aria-label="Loading"></progress>'
    )


def _step(progress: hsd.LoadProgress | None) -> str:
    if progress is None:
        return "starting the engine"
    return progress.step if progress.model in progress.step else f"{progress.step}, {progress.model}"


def status(view: EngineView) -> str:
    """A few words for the head of the page."""
    if view.state == "ready":
        return f"{plural(view.waiting, 'message')} waiting" if view.waiting else "ready"
    words = {"failed": "engine not loaded", "unloaded": "not in memory", "closed": "closed"}
    if view.state in words:
        return words[view.state]
    progress = view.progress
    share = f" {100 * progress.done / progress.total:.0f}%" if progress and progress.total else ""
    return f"{_step(progress)}{share}"


def room(view: EngineView) -> str:
    """What the family takes of its device's memory, for the head of the page; empty where that is not known."""
    memory = view.info.memory if view.info and view.state == "ready" else None
    if memory is None or not memory.total_gb:
        return ""
    taken = f"{memory.needed_gb:.1f} of {memory.total_gb:.0f} GB"
    return f'<span class="takes" title="{escape(memory.verdict)}">· {taken}</span>'


def _ladder(info: hsd.FamilyInfo, plan: str, last: Mapping[str, Any] | None, known: dict[str, str]) -> str:
    used = set(chain(plan))
    done = {level["name"]: level for level in (last or {}).get("levels", ())}
    names = [info.target, *reversed([m for m in info.models if m != info.target]), LOOKUP]
    rungs = "".join(_rung(name, info, done.get(name), name in used or not used, known) for name in names)
    return f'<h3>Models, largest first</h3><ol class="ladder">{rungs}</ol>'


def _rung(name: str, info: hsd.FamilyInfo, level: Mapping[str, Any] | None, used: bool, known: dict[str, str]) -> str:
    size = f"{count(info.parameters[name])} parameters" if name in info.parameters else ""
    if name == LOOKUP:
        size = "repeats what was said before"
    role = "target" if name == info.target else ""
    rows = ""
    if role and name in info.exact:
        rows = "exact rows" if info.exact[name] else "may differ at near-ties"
    state = "used" if used else "unused"
    return (
        f'<li class="{state} tone-{known.get(name, "grey")}"><span class="{look(name, known)}">{escape(name)}</span>'
        f'<span class="quiet">{escape(" · ".join(part for part in (role, size, rows) if part))}</span>'
        f"{_share(name, level, role)}</li>"
    )


def _share(name: str, level: Mapping[str, Any] | None, role: str) -> str:
    if level and level["proposed"]:
        percent = f"{100 * level['accepted'] / level['proposed']:.0f}"
        return (
            f'<div class="share"><div class="bar" role="meter" aria-label="acceptance of {escape(name)}, percent" '
            f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
            f"<span>{level['accepted']:,} of {level['proposed']:,} proposed tokens accepted</span></div>"
        )
    if level and role:
        return f'<div class="share"><span>{plural(level["passes"], "pass")} in the last reply</span></div>'
    return ""


def _plan(view: EngineView, last: Mapping[str, Any] | None) -> str:
    plan = view.plan or (last or {}).get("plan", "")
    if not plan:
        return (
            f"<h3>Plan</h3><p class='quiet'>Chosen with the first reply.</p>{_button('plan', 'What is known of plans')}"
        )
    text = f"<h3>Plan</h3><p><code>{escape(plan)}</code></p>"
    if view.reason:
        text += f'<p class="quiet">{escape(view.reason)}</p>'
    if last and last.get("forecast_ms_per_token") and last.get("tokens", 0) > 1:
        outcome = last["decode_seconds"] * 1000 / (last["tokens"] - 1)
        text += (
            f'<p class="quiet">Last reply: {last["forecast_ms_per_token"]:.1f} ms per token expected, '
            f"{outcome:.1f} ms came out.</p>"
        )
    return text + _button("plan", "Why this plan")


def _context(info: hsd.FamilyInfo, here: Mapping[str, Any] | None) -> str:
    if not here:
        return ""
    used = here.get("prompt_tokens", 0) + here.get("tokens", 0)
    percent = f"{min(100, 100 * used / info.context):.0f}"
    dropped = here.get("dropped_turns", 0)
    left_out = f"; {plural(dropped, 'old turn')} left out" if dropped else ""
    return (
        f'<h3>Context of this conversation</h3><div class="share tone-grey"><div class="bar" role="meter" '
        f'aria-label="context used, percent" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}">'
        f'<i style="width:{percent}%"></i></div><span>{used:,} of {info.context:,} tokens{left_out}</span></div>'
    )


def _speedups(replies: Sequence[Message]) -> str:
    # A plain reply has no speed-up: what stands there is how far the estimate of plain decoding is off.
    drafted = [m.stats for m in replies if m.stats and ">" in m.stats.get("plan", "")]
    values = [stats["speedup"] for stats in drafted if stats.get("speedup") is not None][-50:]
    if not values:
        return ""
    top = max(*values, 1.2)
    width, height = 6, 56
    bars = "".join(
        f'<rect class="{"" if value >= 1 else "slow"}" x="{place * width}" width="{width - 2}" rx="1" '
        f'y="{height - value / top * height:.1f}" height="{value / top * height:.1f}"/>'
        for place, value in enumerate(values)
    )
    one = height - height / top
    middle = sorted(values)[len(values) // 2]
    caption = f"median {middle:.1f}×, last {values[-1]:.1f}×; the line is plain decoding"
    return (
        f"<h3>Speed-up, last {plural(len(values), 'reply')} with drafts</h3>"
        f'<svg class="spark" viewBox="0 0 {50 * width} {height}" role="img" '
        f'aria-label="{caption}">{bars}<line x1="0" x2="100%" y1="{one:.1f}" y2="{one:.1f}"/></svg>'
        f'<p class="quiet">{caption}</p>'
    )


def _notes(info: hsd.FamilyInfo) -> str:
    items = [f"<b>{escape(d.model)}</b> is left out: {escape(d.reason)}" for d in info.dropped]
    items += [escape(note) for note in info.notes]
    return f'<h3>Notes</h3><ul class="notes">{"".join(f"<li>{item}</li>" for item in items)}</ul>' if items else ""
