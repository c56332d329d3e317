"""The plan page as HTML: the family as a picture, the plan in use and why, the others, and what came out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import hsd
from chat import plans
from chat.plans import Edge, Known, Level, Outcome, Rank
from chat.records import Message
from chat.request import EngineView
from chat.ui import plots
from chat.ui.levels import look
from chat.ui.reply import chain, of_family
from chat.ui.text import count, escape, plural

RANKED = 10
"""Plans of the ranking that are shown at once; the others are folded."""


def top(view: EngineView, known: Known | None, plan: str, tones: dict[str, str]) -> str:
    """Picture, plan and reason. `plan` is what the next reply will be asked for: "auto", or one set by hand."""
    head = (
        '<div class="planpage"><div class="name"><h1 tabindex="-1">Plan</h1>'
        '<button type="button" class="plain" data-action="chat">Back to the chat</button></div>'
    )
    info = view.info
    if info is None:
        return f'{head}<p class="quiet">{_not_loaded(view)}</p></div>'
    running = _running(known, plan)
    parts = [f'<p class="quiet">{_source(known, info)}</p>', _family(info, known, running, tones)]
    parts += ["<h2>The plan of the next reply</h2>", _plan(info, known, plan, running)]
    return f"{head}{''.join(parts)}</div>"


def rest(view: EngineView, known: Known | None, replies: Sequence[Message], tones: dict[str, str]) -> str:
    """The ranking of the others, what the last replies did, and what was left out."""
    info = view.info
    if info is None:
        return ""
    parts = [_ranking(known), _plots(of_family(replies, info), tones), _left_out(info), _switches(known)]
    return f'<div class="planpage">{"".join(parts)}</div>'


def _not_loaded(view: EngineView) -> str:
    if view.state == "failed":
        return f"No family is loaded: {escape(view.error or 'the engine did not load.')}"
    return "Nothing is known yet: the family is not loaded. This page fills when it is."


def _running(known: Known | None, plan: str) -> hsd.Plan | None:
    text = plan if plan != "auto" else known.explained["plan"] if known else None
    return hsd.Plan.parse(text) if text else None


def milliseconds(value: float) -> str:
    """`0.004 ms`, `0.39 ms`, `12.3 ms`."""
    return f"{value:.3f} ms" if value < 0.1 else f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms"


def _source(known: Known | None, info: hsd.FamilyInfo) -> str:
    if known is None:
        return f"{escape(info.title)}. Nothing is measured yet; the numbers come while nobody waits for a reply."
    temperature = known.explained["temperature"]
    kind = "greedy replies (temperature 0)" if temperature == 0 else f"replies at temperature {temperature:g}"
    times = [moment for name, moment in known.measured.items() if name in info.models]
    age = f" Every model's step times were measured again since {_when(min(times))}." if times else ""
    return (
        f"{escape(info.title)}. As of {_when(known.at)}, for {kind}, after {plural(known.replies, 'reply')} of "
        f"this family.{age}"
    )


def _family(info: hsd.FamilyInfo, known: Known | None, plan: hsd.Plan | None, tones: dict[str, str]) -> str:
    levels, edges = plans.levels(info, known, plan), plans.edges(info, known, plan)
    nodes = "".join(_node(level, tones) for level in levels)
    note = (
        "An arc says how many of a draft's tokens the model at its right end accepts, and over how many scored "
        "positions; thick ones are in the plan, dashed ones rest on fewer than 500 positions. Times are of a pass over "
        "one token."
        if edges
        else "No pair has been scored yet. That happens after a reply, while nobody waits."
    )
    return (
        f'<figure class="family"><div class="scroll" tabindex="0" role="group" aria-label="The family as a picture">'
        f'<div style="min-width:{6.6 * len(levels):.1f}rem">{plots.family(levels, edges, tones) if edges else ""}'
        f'<ol class="nodes" style="grid-template-columns:repeat({len(levels)},1fr)">{nodes}</ol></div></div>'
        f"<figcaption class='quiet'>{note}</figcaption>{_edge_table(edges)}</figure>"
    )


def _node(level: Level, tones: dict[str, str]) -> str:
    size = f"{count(level.parameters)} parameters" if level.parameters else "no model"
    cost = milliseconds(level.ms) if level.ms is not None else "not measured"
    role = "target" if level.target else f"hands up {level.threshold}" if level.threshold else "not in the plan"
    state = "used" if level.used else "unused"
    return (
        f'<li class="{state} tone-{tones.get(level.name, "grey")}"><b class="{look(level.name, tones)}">'
        f"{escape(level.name)}</b><span>{cost}</span><span>{role}</span><span>{escape(size)}</span></li>"
    )


def _edge_table(edges: Sequence[Edge]) -> str:
    if not edges:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(e.draft)} → {escape(e.verifier)}</th><td>{100 * e.rate:.1f}%</td>'
        f"<td>± {100 * e.error:.1f}</td><td>{e.positions:,}</td><td>{_certainty(e)}</td></tr>"
        for e in edges
    )
    return (
        "<details class='more'><summary>The acceptances as a table</summary><div class='scroll'><table class='levels'>"
        "<thead><tr><th scope='col'>draft → verifier</th><th scope='col'>accepted</th><th scope='col'>standard error, "
        "points</th><th scope='col'>scored positions</th><th scope='col'>how sure</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _certainty(edge: Edge) -> str:
    if edge.borrowed:
        return "from other temperatures"
    return "sure" if edge.sure else "few positions"


def _plan(info: hsd.FamilyInfo, known: Known | None, plan: str, running: hsd.Plan | None) -> str:
    if running is None:
        return "<p>Auto decides with the first reply.</p>"
    who = "Chosen by auto." if plan == "auto" else "Set by hand for this conversation."
    text = f'<p class="chosen"><code>{escape(running)}</code> <span class="quiet">{who}</span></p>'
    text += f"<p>{escape(in_words(running))}</p>"
    if known is None:
        return text
    explained = known.explained
    if plan == "auto":
        return f"{text}<p>{escape(explained['reason'])}</p>{_sureness(explained['sure'])}"
    ms = plans.forecast(known, plan)
    if ms is None:
        return f"{text}<p>No forecast: a pair of it was never scored.</p>"
    rival = f"Auto would run <code>{escape(explained['plan'])}</code> at {explained['forecast_ms_per_token']:.2f} ms."
    return f"{text}<p>{_forecast(ms, explained['plain_ms_per_token'])} {rival}</p>{_sureness(explained['sure'])}"


def _forecast(ms: float, plain: float) -> str:
    return f"Forecast: {ms:.2f} ms per token, {against_plain(plain / ms)} ({plain:.2f} ms)."


def against_plain(speedup: float) -> str:
    """`2.4× plain decoding`; below 1 in words."""
    if speedup < 0.995:
        return f"slower than plain decoding, {speedup:.2f}×"
    return f"{speedup:.2f}× plain decoding"


def _sureness(sure: bool) -> str:
    words = (
        "Sure: every pair in the best three plans rests on at least 500 scored positions."
        if sure
        else "Not sure yet: some pair in the best three plans rests on fewer than 500 scored positions; it may change."
    )
    return f'<p class="quiet">{words}</p>'


def in_words(plan: hsd.Plan) -> str:
    """What the levels of a plan do, one after the other."""
    if not plan.drafts:
        return f"{plan.target} decodes plainly, one token a pass."
    first, *others = plan.drafts
    parts = [f"{first.name} drafts up to {plural(first.threshold, 'token')}"]
    parts += [f"{stage.name} checks them and goes on until it holds {stage.threshold}" for stage in others]
    return f"{', '.join(parts)}, {plan.target} verifies all in one pass."


def _ranking(known: Known | None) -> str:
    if known is None:
        return ""
    ranked = plans.ranking(known)
    best = ranked[: RANKED + 1]
    head = (
        '<table class="levels ranking"><thead><tr><th scope="col">plan</th><th scope="col">forecast</th>'
        '<th scope="col">against plain</th><th scope="col">why not</th></tr></thead>'
    )
    rows = "".join(map(_rank, best))
    more = ""
    if len(ranked) > len(best):
        others = "".join(map(_rank, ranked[len(best) :]))
        more = (
            f'<details class="more"><summary>{plural(len(ranked) - len(best), "more plan")}</summary>'
            f'<div class="scroll">{head}<tbody>{others}</tbody></table></div></details>'
        )
    return (
        f'<h2>All plans, fastest forecast first</h2><div class="scroll" tabindex="0" role="group" aria-label="Ranking">'
        f"{head}<tbody>{rows}</tbody></table></div>{more}"
    )


def _rank(rank: Rank) -> str:
    name = escape(rank.plan)
    speed = f"{rank.speedup:.2f}×" if rank.speedup >= 0.995 else f"slower, {rank.speedup:.2f}×"
    pin = f'<button type="button" class="plain" data-action="pin" data-id="{name}" aria-label="Pin {name}">Pin</button>'
    return (
        f'<tr{"" if rank.why else " class=chosen"}><th scope="row"><code>{name}</code> {pin}</th>'
        f"<td>{rank.ms:.2f} ms</td><td>{speed}</td><td>{escape(rank.why) or 'auto runs it'}</td></tr>"
    )


def _plots(replies: Sequence[Message], tones: dict[str, str]) -> str:
    accepted, outcomes = plans.accepted(replies), plans.outcomes(replies)
    if not accepted and not outcomes:
        return "<h2>The last replies</h2><p class='quiet'>None of this family yet.</p>"
    figures = []
    if accepted:
        legend = "".join(
            f"<li>{plots.key(tones.get(draft, 'grey'))}{escape(draft)} → {escape(verifier)}: "
            f"{sum(p.accepted for p in points):,} of {sum(p.proposed for p in points):,} proposed tokens in "
            f"{plural(len(points), 'reply')}</li>"
            for (draft, verifier), points in accepted.items()
        )
        figures.append(
            f"<figure><h3>Acceptance, last {plural(len(replies), 'reply')}</h3>"
            f'{plots.acceptance(accepted, len(replies), tones)}<ul class="legend">{legend}</ul></figure>'
        )
    if outcomes:
        drafts = [_below_target(point) for point in outcomes]
        figures.append(
            f"<figure><h3>Forecast and outcome, {plural(len(outcomes), 'reply')}</h3>"
            f"{plots.outcome(outcomes, tones, drafts)}<p class='quiet'>{_outcome_words(outcomes)}</p></figure>"
        )
    return f'<h2>The last replies</h2><div class="figures">{"".join(figures)}</div>'


def _below_target(point: Outcome) -> str:
    names = chain(point.plan)
    return names[-2] if len(names) > 1 else names[-1]


def _outcome_words(points: Sequence[Outcome]) -> str:
    error = plans.median_error(points) or 0.0
    slower = sum(point.outcome_ms > point.forecast_ms for point in points)
    return (
        f"On the line both are equal; above it the reply was slower than forecast, as {slower:,} of {len(points):,} "
        f"were. Half of the outcomes were within a factor of {1 + error:.2f} of the forecast. Both axes are "
        "logarithmic; the mark is that of the level just below the target."
    )


def _left_out(info: hsd.FamilyInfo) -> str:
    if not info.dropped and not info.notes:
        return ""
    items = [f"<li><b>{escape(d.model)}</b>: {escape(d.reason)}</li>" for d in info.dropped]
    items += [f"<li>{escape(note)}</li>" for note in info.notes]
    return f'<h2>Left out, and notes</h2><ul class="notes">{"".join(items)}</ul>'


def _switches(known: Known | None) -> str:
    if known is None or not known.switches:
        return ""
    items = "".join(f"<li>{_when(s['at_unix_s'])}: {escape(s['reason'])}</li>" for s in known.switches)
    return f'<h2>Last changes that auto made</h2><ul class="notes">{items}</ul>'


def _when(moment: float) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(moment))
