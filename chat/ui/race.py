"""The race as HTML: two runs of one prompt side by side, shown again at the speed at which they were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chat.race import Standing
from chat.records import Message
from chat.ui.levels import look
from chat.ui.plan import against_plain
from chat.ui.reply import chain
from chat.ui.text import escape, plural, precise

TIES = (
    "In bf16 a pass over one token and a pass over several differ in the last bits, so a tie between two tokens can "
    "fall the other way; both texts are the target's own."
)


def page(
    reply: Message | None,
    prompt: str,
    record: Mapping[str, Any] | None,
    standing: Standing | None,
    problem: str,
    tones: dict[str, str],
) -> str:
    """The whole page. `record` is the stored race, `standing` one that is not over, `problem` why none can be had."""
    if reply is None:
        gone = '<p class="problem" role="alert">This reply is not there any more.</p>'
        return f'<div class="planpage">{_head()}{gone}</div>'
    parts = [_head(), f'<p class="asked">{escape(prompt)}</p>']
    if problem:
        parts.append(f'<p class="problem" role="alert">{escape(problem)}</p>')
    if standing:
        parts.append(_waiting(standing, escape(reply.id)))
    elif record and record.get("lanes") and record.get("speedup") is not None:
        parts.append(_result(record, escape(reply.id), tones))
    else:
        if record and record.get("error"):
            parts.append(f'<p class="problem" role="alert">The race failed: {escape(record["error"])}</p>')
        parts.append(_offer(reply))
    return f'<div class="planpage">{"".join(parts)}</div>'


def _head() -> str:
    return (
        '<div class="name"><h1 tabindex="-1">Race</h1>'
        '<button type="button" class="plain" data-action="chat">Back to the chat</button></div>'
        '<p class="quiet">The same prompt and seed, decoded plainly and by the plan, one after the other.</p>'
    )


def _offer(reply: Message) -> str:
    plan = escape((reply.stats or {}).get("plan", ""))
    return (
        f'<p>Both runs read the prompt anew. The plan is <code>{plan}</code>.</p><p data-id="{escape(reply.id)}">'
        '<button type="button" class="do" data-action="race-start">Start the race</button></p>'
    )


def _waiting(standing: Standing, identifier: str) -> str:
    stop = (
        ""
        if standing.stopping
        else f' <button type="button" class="plain" data-action="race-stop" data-id="{identifier}">Stop</button>'
    )
    return f'<p role="status" class="standing">{_standing(standing)}{stop}</p>'


def _standing(standing: Standing) -> str:
    if standing.stopping:
        return "Stopping…"
    if not standing.started:
        return f"Waiting, {plural(standing.ahead, 'reply')} before it…"
    if not standing.counts:
        return "Reading the prompt…"
    lane = "Decoding plainly" if len(standing.counts) == 1 else "Decoding by the plan"
    return f"{lane}: {plural(standing.counts[-1], 'token')}…"


def _result(record: Mapping[str, Any], identifier: str, tones: dict[str, str]) -> str:
    plain, planned = record["lanes"]
    # Read by plan.js; the texts below it are complete, and what it does is hide and show their ends.
    steps = escape(json.dumps([plain["steps"], planned["steps"]]))
    longest = max(plain["seconds"], planned["seconds"])
    lanes = _lane(plain, "Plain decoding", longest, tones) + _lane(planned, "By the plan", longest, tones)
    return (
        f'<p class="verdict" role="status">{_verdict(record)}</p><div class="race" data-steps="{steps}">{lanes}</div>'
        f'<p class="tools" data-id="{identifier}"><button type="button" class="do" data-action="replay">Show it again'
        '</button> <button type="button" class="plain" data-action="race-start">Race once more</button></p>'
        f'<p class="quiet">{_sameness(record)} {_terms(record)}</p>'
    )


def _lane(lane: Mapping[str, Any], title: str, longest: float, tones: dict[str, str]) -> str:
    speed = lane["tokens"] / lane["seconds"] if lane["seconds"] else 0.0
    passes = f"{plural(lane['target_passes'], 'pass')} of the target"
    levels = " → ".join(f'<span class="{look(name, tones)}">{escape(name)}</span>' for name in chain(lane["plan"]))
    width = 100 * lane["seconds"] / longest if longest else 0.0
    return (
        f'<section class="lane" aria-label="{title}"><h2>{title}</h2><p class="quiet">{levels}</p>'
        f'<div class="track" aria-hidden="true"><i style="width: {width:.1f}%"></i></div>'
        f'<p class="clock">{precise(lane["seconds"])}</p>'
        f'<p class="quiet">{plural(lane["tokens"], "token")}, {speed:.0f} tok/s, first token after '
        f'{precise(lane["first_token_seconds"])}, {passes}</p><div class="text">{escape(lane["text"])}</div></section>'
    )


def _verdict(record: Mapping[str, Any]) -> str:
    plain, planned = record["lanes"]
    speed = against_plain(record["speedup"]).capitalize()
    if plain["tokens"] == planned["tokens"]:
        return f"{speed}: {precise(planned['seconds'])} by the plan, {precise(record['baseline_seconds'])} plainly."
    return (
        f"{speed}: {precise(planned['seconds'])} by the plan, {precise(record['baseline_seconds'])} plainly for as "
        f"many tokens ({planned['tokens']:,})."
    )


def _sameness(record: Mapping[str, Any]) -> str:
    tokens = record["lanes"][1]["tokens"]
    if record["same_ids"]:
        return f"Equal: all {plural(tokens, 'token')} have the same ids."
    if record["same_ids"] is False:
        return f"The token ids differ from token {record['differ_at']:,} on. {TIES}"
    return (
        "Above temperature 0 the two runs draw their tokens differently, so their texts may differ; each is "
        "distributed as the target's own."
    )


def _terms(record: Mapping[str, Any]) -> str:
    seed = f", seed {record['seed']}" if record.get("seed") is not None else ""
    return f"Temperature {record['temperature']:g}{escape(seed)}."


def links(reply: Message) -> str:
    """What stands in a reply's details: the ways to its race, where it can have one, and to the plan page."""
    stats = reply.stats or {}
    why = '<button type="button" class="plain" data-action="plan">Why this plan</button>'
    if len(chain(stats.get("plan", ""))) < 2 or stats.get("continued_after"):
        return f'<div class="where">{why}</div>'
    label = "Show the race" if stats.get("baseline") == "measured" else "Race it against plain decoding"
    return f'<div class="where"><button type="button" class="plain" data-action="race">{label}</button>{why}</div>'
