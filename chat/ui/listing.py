"""The list of conversations as HTML, in groups by age."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

from chat.records import Conversation
from chat.ui.text import escape

_DAY = 24 * 3600.0
_PEN = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M11.2 2.3l2.5 2.5L5.5 13H3v-2.5z"/></svg>'
_PIN = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M5.5 2.5h5M6.5 2.5v4L4.5 9h7l-2-2.5v-4M8 9v5"/></svg>'
_BIN = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.6 9h5.8l.6-9"/></svg>'


def _age(updated: float, now: float) -> str:
    midnight = time.mktime((*time.localtime(now)[:3], 0, 0, 0, 0, 0, -1))
    if updated >= midnight:
        return "Today"
    if updated >= midnight - _DAY:
        return "Yesterday"
    return "Last week" if updated >= midnight - 7 * _DAY else "Older"


def listing(
    conversations: Sequence[Conversation],
    open_id: str | None,
    search: str,
    undo: tuple[str, str] | None,
    *,
    more: bool = False,
) -> str:
    """All conversations; `undo` is the id and title of one just deleted, `more` offers older ones."""
    parts = []
    if undo:
        parts.append(
            f'<p class="undo" role="status">Deleted “<bdi>{escape(undo[1][:40])}</bdi>”. '
            f'<button type="button" class="plain" data-action="restore" data-id="{escape(undo[0])}">Undo</button></p>'
        )
    if not conversations:
        parts.append(f'<p class="quiet">{"Nothing found." if search else "No conversations yet."}</p>')
    now = time.time()
    for age, group in groupby(conversations, key=lambda c: "Pinned" if c.pinned else _age(c.updated, now)):
        items = "".join(_item(c, c.id == open_id) for c in group)
        parts.append(f"<h3>{age}</h3><ul>{items}</ul>")
    if more:
        parts.append('<button type="button" class="earlier" data-action="more">Show older ones</button>')
    return f'<nav class="listing" aria-label="Conversations">{"".join(parts)}</nav>'


def _item(conversation: Conversation, is_open: bool) -> str:
    identifier, title = escape(conversation.id), escape(conversation.title)
    current = ' class="open"' if is_open else ""
    pin = "Unpin" if conversation.pinned else "Pin"
    return (
        f'<li{current} data-id="{identifier}"><button type="button" class="title" data-action="open" '
        f'{"aria-current=page " if is_open else ""}title="{title}">{title}</button><span class="tools">'
        f'<button type="button" data-action="pin" aria-label="{pin} {title}" title="{pin}">{_PIN}</button>'
        f'<button type="button" data-action="rename" aria-label="Rename {title}" title="Rename">{_PEN}</button>'
        f'<button type="button" data-action="delete" aria-label="Delete {title}" title="Delete">{_BIN}</button>'
        "</span></li>"
    )
