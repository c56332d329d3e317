"""The family picker at the head of the page: which families there are, and which fit this machine's memory."""

from __future__ import annotations

from collections.abc import Callable

import hsd
from chat.choosing import Offer
from chat.session import Session
from chat.ui.text import escape


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

    def offered(_: object = None) -> str:
        try:
            return "".join(_entry(offer) for offer in session.offers())
        except hsd.HsdError as error:
            return f'<p class="problem" role="alert">{escape(error)}</p>'

    return offered


def _entry(offer: Offer) -> str:
    family, fit = offer.choice.family, offer.fit
    if fit is None:
        words, state = offer.problem, "unknown"
    else:
        words, state = fit.verdict, "fits" if fit.fits else "large"
        words = f"{words[:1].upper()}{words[1:].rstrip('.')}."
        words += "".join(f" {name} is left out: {why.rstrip('.')}." for name, why in fit.dropped.items())
        if fit.download_gb:
            words += f" {fit.download_gb:.1f} GB to download."
    chain = " → ".join(model.name for model in family.models)
    name = escape(family.name)
    current = " aria-current=true" if offer.current else ""
    return (
        f'<button type="button" class="offer {state}" data-action="family" data-id="{name}"{current}>'
        f"<b>{escape(family.title or family.name)}</b>{' <i>in use</i>' if offer.current else ''}"
        f'<span>{escape(chain)}</span><span class="room">{escape(words)}</span></button>'
    )
