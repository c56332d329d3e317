"""The family picker at the head of the page: which families there are, and which fit this machine's memory."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

import hsd
from chat.choosing import Offer
from chat.session import Session
from chat.ui.text import escape, plural

_MOST_REASONS = 20

SLOW_SECONDS = 0.2
"""A token that takes longer is worth a warning: people read about five a second."""


def menu(session: Session) -> str:
    """The family's title, and where it may be changed the menu that its list is put into when it is opened."""
    title = escape(session.title)
    if session.opener is None:
        return title
    return (
        '<details class="menu families" data-id=""><summary title="Change the family" '
        f'aria-label="Family: {title}. Change it">{title} ▾</summary>'
        '<div><p class="quiet" role="status">Looking at this machine\'s memory…</p></div></details>'
    )


def offered(session: Session) -> Callable[..., str]:
    """A function for the page that lists the families; it takes seconds when it is first called."""

    def offered(_: object, request: gr.Request) -> str:
        try:
            # What needs no download comes first.
            return _found(session.found()) + "".join(_entry(offer) for offer in session.offers())
        except hsd.HsdError as error:
            return f'<p class="problem" role="alert">{escape(error)}</p>'

    return offered


def _found(found: hsd.Found) -> str:
    """The part of the list with models that other programs keep here; empty where there are none."""
    if not found.families and not found.left_out:
        return ""
    entries = "".join(_found_entry(offered) for offered in found.families)
    left_out = "".join(
        f"<li><b>{escape(path.name)}</b> ({escape(program)}): {escape(why)}</li>"
        for path, program, why in found.left_out[:_MOST_REASONS]
    )
    more = len(found.left_out) - _MOST_REASONS
    left_out += f"<li>{more} more: <code>hsd families --found</code> names them all</li>" if more > 0 else ""
    count = len(found.left_out)
    why = f"{plural(count, 'file')} not used"
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    return (
        f'<section class="found" aria-label="Found on this computer"><h3>Found on this computer</h3>{entries}'
        f"{f'<details><summary>{why}</summary><ul>{left_out}</ul>{notes}</details>' if left_out else notes}</section>"
    )


def _found_entry(offered: hsd.FoundFamily) -> str:
    family, fit = offered.family, offered.fit
    chain = " → ".join(escape(model.name) for model in family.models)
    size = f"{offered.size / 1e9:.1f} GB" if offered.size > 1e8 else f"{offered.size / 1e6:.1f} MB"
    others = f", from {escape(' and '.join(offered.programs))}" if len(offered.programs) > 1 else ""
    return (
        '<div class="offered"><button type="button" class="offer fits" data-action="found" '
        f'data-id="{escape(family.name)}"><b>{escape(family.title)}</b>'
        f"<span>{chain} · {size} on disk{others}</span>"
        f'<span class="room">{escape(_room(fit))}</span></button>{_why(fit)}</div>'
    )


def _entry(offer: Offer) -> str:
    family, fit = offer.choice.family, offer.fit
    left_out = fit.dropped if fit else {}
    chain = " → ".join(
        f"<s>{escape(model.name)}</s>" if model.name in left_out else escape(model.name) for model in family.models
    )
    state = "unknown" if fit is None else "fits" if fit.fits else "large"
    name = escape(family.name)
    current = " aria-current=true" if offer.current else ""
    return (
        f'<div class="offered"><button type="button" class="offer {state}" data-action="family" data-id="{name}"'
        f"{current}>"
        f"<b>{escape(family.title or family.name)}</b>{' <i>in use</i>' if offer.current else ''}"
        f'<span>{chain}</span><span class="room">{escape(_room(fit) if fit else offer.problem)}</span></button>'
        f"{_why(fit) if fit else ''}</div>"
    )


def _room(fit: hsd.MemoryFit) -> str:
    """Whether it fits, in one line or two; `_why` has the rest."""
    if not fit.fits:
        return f"Too large: {fit.needed_gb:.1f} GB even without drafts, {fit.free_gb:.1f} GB are free."
    words = f"Fits: {fit.needed_gb:.1f} of {fit.free_gb:.1f} GB that are free"
    if fit.dropped:
        words += f", without {' and '.join(fit.dropped)}"
    if fit.context < fit.wanted_context:
        words += f", context {fit.context:,} tokens"
    if (fit.seconds_per_token or 0) > SLOW_SECONDS:
        words += f". Slow without a GPU: {fit.seconds_per_token:.1f} s per token"
    return words + (f". {fit.download_gb:.1f} GB to download." if fit.download_gb else ".")


def _why(fit: hsd.MemoryFit) -> str:
    """The whole sentence, folded, where something is left out or nothing fits."""
    if fit.fits and not fit.dropped and fit.context >= fit.wanted_context:
        return ""
    words = f"{fit.verdict[:1].upper()}{fit.verdict[1:].rstrip('.')}."
    reasons = "".join(f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in fit.dropped.items())
    return f"<details><summary>Why</summary><p>{escape(words)}</p>{f'<ul>{reasons}</ul>' if reasons else ''}</details>"
