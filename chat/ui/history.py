"""A conversation as HTML: the turns that are over, the reply that is being written, and the empty page."""

from __future__ import annotations

from collections.abc import Sequence

from chat.records import Message
from chat.session import Live
from chat.ui import reply
from chat.ui.text import Growing, escape, markdown, plural

SHOWN = 100
"""Turns that are rendered; older ones come on demand, so that a long conversation opens as fast as a short one."""

_ENDINGS = {
    "cancelled": "Stopped.",
    "interrupted": "Interrupted: the program ended while this was written.",
    "running": "Being written by another process.",
}


def history(messages: Sequence[Message], known: dict[str, str], shown: int = SHOWN) -> str:
    """All turns, the last `shown` of them."""
    hidden = max(0, len(messages) - shown)
    more = (
        f'<button type="button" class="earlier" data-action="earlier">Show {plural(hidden, "earlier message")}</button>'
        if hidden
        else ""
    )
    last = messages[-1].id if messages else None
    return more + "".join(_turn(message, known, last=message.id == last) for message in messages[hidden:])


def _turn(message: Message, known: dict[str, str], *, last: bool) -> str:
    if message.role == "user":
        return you(message.text)
    body = f'<div class="prose">{markdown(message.text)}</div>' if message.text else ""
    return (
        f'<article class="turn reply" data-id="{escape(message.id)}" aria-label="Reply">{body}'
        f"{_ending(message, last=last)}{_footer(message, known, last=last)}</article>"
    )


def you(text: str) -> str:
    """A prompt, as it was written."""
    return f'<article class="turn you" aria-label="Your message"><div>{escape(text)}</div></article>'


def _ending(message: Message, *, last: bool) -> str:
    if message.state == "error":
        edit = _button("edit", "Edit the message") if last else ""
        return f'<p class="ending problem" role="alert">{escape(message.error or "The reply failed.")} {edit}</p>'
    if message.state in _ENDINGS:
        return f'<p class="ending">{_ENDINGS[message.state]}</p>'
    if message.finish_reason == "length":
        return '<p class="ending">Cut off at the longest reply allowed; raise “Longest reply” in the settings.</p>'
    return ""


def _footer(message: Message, known: dict[str, str], *, last: bool) -> str:
    again = _button("again", "Try again") if last and message.state != "running" else ""
    copy = _button("copy", "Copy") if message.text else ""
    buttons = f'<span class="tools">{copy}{again}</span>'
    if not message.stats:
        return f'<div class="foot">{buttons}</div>'
    where = (
        '<div class="where"><button type="button" class="plain" data-action="provenance">'
        "Show where each token came from</button><div></div></div>"
    )
    slow = " slower" if (message.stats.get("speedup") or 1) < 1 else ""
    return (
        f'<div class="foot"><details class="meta"><summary class="line{slow}">{escape(reply.line(message.stats))}'
        f"</summary>{reply.details(message, known)}{where}</details>{buttons}</div>"
    )


def _button(action: str, label: str) -> str:
    return f'<button type="button" class="plain" data-action="{action}">{label}</button>'


def running(live: Live | None, growing: Growing, *, loading: bool) -> tuple[str, str]:
    """The reply that is being written: what will not change any more, and the rest; empty where there is none."""
    if live is None:
        return "", ""
    rest = growing.add(live.text) if live.text else ""
    more = " more" if growing.settled else ""
    body = f'<div class="prose{more}">{rest}</div>' if rest else ""
    settled = f'<div class="prose">{growing.settled}</div>' if growing.settled else ""
    line = f'<p class="line">{escape(_progress(live, loading=loading))}</p>'
    return settled, f'<div data-reply="{escape(live.message_id)}">{body}{line}</div>'


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


def empty(title: str, examples: Sequence[str]) -> str:
    """What a new conversation shows: who answers, and messages to start with."""
    starts = "".join(
        f'<li><button type="button" data-action="example" data-id="{place}">{escape(text)}</button></li>'
        for place, text in enumerate(examples[:4])
    )
    return (
        '<div class="empty"><h2>What would you like to know?</h2>'
        f"<p>{escape(title)}. Everything stays on this machine.</p>{f'<ul>{starts}</ul>' if starts else ''}</div>"
    )
