"""A conversation as HTML: the turns that are over, the reply that is being written, and the empty page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import hsd
from chat import limits
from chat.records import Conversation, Message
from chat.session import Live
from chat.ui import race, reply, thinking
from chat.ui.text import Growing, escape, markdown, plain, plural

SHOWN = 100
"""Turns that are rendered; older ones come on demand, so that a long conversation opens as fast as a short one."""

_ENDINGS = {
    "cancelled": "Stopped.",
    "interrupted": "Interrupted: the program ended while this was written.",
    "running": "Being written by another process.",
}


def named(conversation_id: str | None) -> str:
    """Says in the page which conversation it shows; page.js puts that in the address as soon as it is shown."""
    return f'<span data-conversation="{escape(conversation_id or "new")}" hidden></span>'


def history(
    messages: Sequence[Message],
    known: dict[str, str],
    shown: int = SHOWN,
    places: Mapping[str, tuple[int, int]] | None = None,
    above: int = 0,
) -> str:
    """All turns, the last `shown` of them.

    `places`: of those that have siblings, which of how many they are. `above`: how many there are before `messages`.
    """
    hidden = max(0, len(messages) - shown)
    earlier = plural(above + hidden, "earlier message")
    more = (
        f'<button type="button" class="earlier" data-action="earlier">Show {earlier}</button>' if above + hidden else ""
    )
    last = messages[-1].id if messages else None
    places = places or {}
    turns, end = list[str](), time.thread_time() + limits.PAGE_SECONDS
    for m in reversed(messages[hidden:]):
        turns.append(_turn(m, known, places.get(m.id), last=m.id == last, formatted=time.thread_time() < end))
    return more + "".join(reversed(turns))


def _turn(
    message: Message, known: dict[str, str], place: tuple[int, int] | None, *, last: bool, formatted: bool = True
) -> str:
    if message.role == "user":
        return you(message, place)
    thought, answer = thinking.split(message)
    body = thinking.folded(thought) + (
        f'<div class="prose">{(markdown if formatted else plain)(answer)}</div>' if answer else ""
    )
    return (
        f'<article class="turn reply" data-id="{escape(message.id)}" aria-label="Reply">{body}'
        f"{_ending(message, last=last)}{_footer(message, known, place, last=last)}</article>"
    )


def you(message: Message, place: tuple[int, int] | None) -> str:
    """A prompt, as it was written."""
    return (
        f'<article class="turn you" data-id="{escape(message.id)}" aria-label="Your message">'
        f'<div class="said">{escape(message.text)}</div>'
        f'<div class="tools">{_branches(place)}{_button("copy-own", "Copy", "Copy your message")}'
        f"{_button('rewrite', 'Edit')}</div></article>"
    )


def waiting(messages: Sequence[Message]) -> str:
    """Messages that were sent while a reply is written, in the order in which they will be answered."""
    turns = "".join(
        f'<li class="turn you" data-id="{escape(message.id)}"><div class="said">{escape(message.text)}</div>'
        f'<div class="tools"><span class="line">{"Waiting" if place else "Waiting for this reply"}'
        f"</span>{_button('take-back', 'Take it back')}</div></li>"
        for place, message in enumerate(messages)
    )
    return f'<ol aria-label="Messages that wait">{turns}</ol>' if turns else ""


def _branches(place: tuple[int, int] | None) -> str:
    """`‹ 2/3 ›` under a message that has siblings."""
    if place is None:
        return ""
    which, of = place
    return (
        f'<span class="branches" role="group" aria-label="Versions of this message">'
        f"{_button('previous', '‹', 'Previous version', disabled=which == 1)}<span>{which}/{of}</span>"
        f"{_button('next', '›', 'Next version', disabled=which == of)}</span>"
    )


def _ending(message: Message, *, last: bool) -> str:
    label = "" if last else "Continue it as another version of this reply"
    going_on = f" {_button('resume', 'Continue', label)}" if message.text and message.state != "running" else ""
    if message.state == "error":
        refused = last and message.finish_reason == "refused"
        edit = f" {_button('edit', 'Edit the message')}" if refused or (last and not message.text) else ""
        sentence = escape(message.error or "The reply failed.")
        return f'<p class="ending problem" role="alert">{sentence}{edit}{going_on}</p>'
    if message.state == "interrupted" and not message.text:
        return '<p class="ending">Interrupted: the program ended before this was begun.</p>'
    if message.state in _ENDINGS:
        return f'<p class="ending">{_ENDINGS[message.state]}{going_on}</p>'
    if message.finish_reason == "length":
        return f'<p class="ending">Cut off at the longest reply allowed, see the settings.{going_on}</p>'
    return ""


def _footer(message: Message, known: dict[str, str], place: tuple[int, int] | None, *, last: bool) -> str:
    # What was never begun can still be answered, though more was said since.
    missed = message.state == "interrupted" and not message.text
    again = _button("again", "Try again") if missed or (last and message.state != "running") else ""
    again += _button("undo", "Undo", "Take back this message and its reply") if last and again else ""
    copy = _button("copy", "Copy") if thinking.split(message)[1] else ""
    buttons = f'<span class="tools">{_branches(place)}{copy}{again}</span>'
    if not message.stats:
        return f'<div class="foot">{buttons}</div>'
    where = (
        '<div class="where"><button type="button" class="plain" data-action="provenance">'
        "Show where each token came from</button><div></div></div>"
    ) + race.links(message)
    slow = " slower" if (message.stats.get("speedup") or 1) < 1 else ""
    return (
        f'<div class="foot"><details class="meta"><summary class="line{slow}">{escape(reply.line(message.stats))}'
        f"</summary>{reply.details(message, known)}{where}</details>{buttons}</div>"
    )


def _button(action: str, label: str, spoken: str = "", *, disabled: bool = False) -> str:
    more = (f' aria-label="{spoken}" title="{spoken}"' if spoken else "") + (" disabled" if disabled else "")
    return f'<button type="button" class="plain" data-action="{action}"{more}>{label}</button>'


class Running(NamedTuple):
    """HTML of a reply that is being written: thinking that is over, blocks that are, and what may still change."""

    lead: str
    settled: str
    rest: str


def running(live: Live, growing: Growing, *, loading: bool) -> Running:
    """A reply that is being written, of which `growing` has read the beginning."""
    thought, answer, over = hsd.split_thinking(live.text)
    rest = growing.add(answer) if answer else ""
    more = " more" if growing.settled else ""
    body = f'<div class="prose{more}">{rest}</div>' if rest else ""
    body = body if over else thinking.folded(thought, over=False)
    line = f'<p class="line">{escape(_progress(live, loading=loading))}</p>'
    return Running(thinking.folded(thought) if over else "", growing.settled, body + line)


def stage(live: Live, growing: Growing, *, loading: bool) -> str:
    """Where stream.js writes the reply that is being written, with what there is of it."""
    parts = running(live, growing, loading=loading)
    prose = "prose " if parts.settled else ""
    return (
        f'<div data-reply="{escape(live.message_id)}" data-id="{escape(live.message_id)}">'
        f'<div class="lead">{parts.lead}</div><div class="{prose}settled">{parts.settled}</div>'
        f'<div class="rest">{parts.rest}</div>'
        f'<div class="foot"><span class="tools">{_button("copy", "Copy")}</span></div></div>'
    )


def _progress(live: Live, *, loading: bool) -> str:
    if live.stopping:
        return "Stopping…"
    if loading:
        return "Waiting for the engine to load…"
    if not live.started:
        return f"Waiting, {plural(live.ahead, 'reply')} before this one…"
    if not live.tokens:
        return "Reading the prompt…"
    levels = "→".join(reply.chain(live.plan))
    return f"{plural(live.tokens, 'token')} · {levels}" if levels else plural(live.tokens, "token")


def taken_back() -> str:
    """Stands at the end of a conversation from which something was undone."""
    return f'<p class="ending back" role="status">Taken back. {_button("redo", "Bring it back")}</p>'


def menu(conversation: Conversation | None) -> str:
    """What is seldom done with a conversation."""
    items = _item("attach", "Add a text file to the message…") + _item("import", "Import a conversation…")
    if conversation:
        items = _item("export-markdown", "Export as Markdown") + _item("export-json", "Export as JSON") + items
    identifier = escape(conversation.id) if conversation else ""
    return (
        f'<details class="menu" data-id="{identifier}"><summary aria-label="More" title="More">⋯</summary>'
        f"<div>{items}</div></details>"
    )


def _item(action: str, label: str) -> str:
    return f'<button type="button" data-action="{action}">{label}</button>'


def banner(until: str) -> str:
    """Stands at the head of a chat that others share: who can read what is written, and until when it is there."""
    end = f" It ends {escape(until)}." if until else ""
    return f'<p class="quiet shared">A shared chat: whoever runs it can read what you write.{end}</p>'


def empty(
    title: str,
    examples: Sequence[str],
    *,
    temporary: bool = False,
    kept: str = "Everything stays on this machine.",
) -> str:
    """What a new conversation shows: who answers, messages to start with, and whether and where it is `kept`."""
    starts = "".join(
        f'<li><button type="button" data-action="example" data-id="{place}">{escape(text)}</button></li>'
        for place, text in enumerate(examples[:4])
    )
    kept = "Nothing of this chat is stored; leaving it forgets it." if temporary else kept
    switch = "Keep it after all" if temporary else "Make it a temporary chat"
    return (
        f'<div class="empty{" temporary" if temporary else ""}"><h2>What would you like to know?</h2>'
        f"<p>{escape(title)}. {kept}</p>{f'<ul>{starts}</ul>' if starts else ''}"
        f'<p class="keep">{_button("temporary", switch)}</p></div>'
    )
