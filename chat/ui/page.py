"""The page: builds the pieces, wires them, returns the Blocks. What they do is the session's business."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from chat import presets
from chat.session import Session
from chat.ui import actions, families, growing, picker, settings, views, watch
from chat.ui.tabs import Tabs

# KaTeX as Gradio brings it, for formulas; its name changes with Gradio's version, and it may be missing.
_FORMULAS = next(iter(sorted(Path(gr.__file__).parent.glob("templates/frontend/assets/katex-*.js"))), None)
CSS = "".join(files("chat.ui").joinpath(name).read_text("utf-8") for name in ("style.css", "plan.css"))
HEAD = (
    "<style>@media (max-width: 800px) { html:not(.drawers) .sidebar { display: none !important; } }</style>"
    f"<script>window.hsdKatex = {json.dumps(_FORMULAS and 'assets/' + _FORMULAS.name)};</script>"
    + "".join(
        f"<script>{files('chat.ui').joinpath(name).read_text('utf-8')}</script>"
        for name in ("keys.js", "plan.js", "page.js", "stream.js", "typed.js", "unsent.js", "files.js")
    )
)
# Before anything of Gradio's, which adds the rest itself when it is there.
FIRST = f"<script>{files('chat.ui').joinpath('calm.js').read_text('utf-8')}</script>"
# Clicks inside HTML of ours reach Python as one event that says which action on what.
CLICKS = "element.addEventListener('click', (event) => hsdClick(event, trigger, server, props));"
LISTS = (
    "element.addEventListener('toggle', (event) => {"
    " if (event.target.matches('.families')) hsdFamilies(event.target, server); }, true);"
)
AGAIN_SECONDS = 3.0
"""An event that writes the page begins again this long after it was cut off; every tick costs the browser a little."""

OPEN_FROM_ADDRESS = "() => [(location.hash.match(/c=([\\w-]+)/) || ['', ''])[1]]"
SENT = "(mark) => { if (mark) hsdSent(mark); }"


def build(session: Session) -> gr.Blocks:
    """The page over a session; its look is in `theme()`, `CSS` and `HEAD`, which `launch` takes."""
    tabs = Tabs(session.belongs, session.guests)
    with gr.Blocks(title="hsd chat", analytics_enabled=False, fill_height=True) as page:
        ui = _left()
        ui |= _middle(session, tabs)
        ui |= views.build(CLICKS)
        ui |= _right(session)
        # Never shown: the id of the open conversation, for when the event that shows it begins again.
        ui["current"] = gr.Textbox(visible="hidden", elem_id="current", label="Open conversation")
        # Nor these: whether the last message was stored, and whose settings the fields hold.
        ui["sent"] = gr.Textbox(visible="hidden", elem_id="sent", label="Sent")
        ui["held"] = gr.Textbox(visible="hidden", elem_id="held", label="Settings of")
        _wire(page, session, tabs, ui)
    return page


def _html(value: str = "", **options: Any) -> gr.HTML:
    """HTML of ours: the stylesheet says how it looks, not Gradio's for prose."""
    return gr.HTML(value, apply_default_css=False, **options)


def _left() -> dict[str, Any]:
    with gr.Sidebar(label="Conversations", width=280, elem_id="left"):
        _html('<p class="brand">hsd chat</p>', elem_id="brand")
        new = gr.Button("New chat", elem_id="new", size="md")
        search = gr.Textbox(
            placeholder="Search", label="Search conversations", show_label=False, container=False, elem_id="search"
        )
        listing = _html(elem_id="listing", js_on_load=CLICKS)
    return {"new": new, "search": search, "listing": listing}


def _middle(session: Session, tabs: Tabs) -> dict[str, Any]:
    with gr.Column(elem_id="chat"):
        head = _html(
            elem_id="head",
            js_on_load=CLICKS + LISTS,
            server_functions=[actions.exported(session, tabs), picker.offered(session)],
        )
        history = _html(
            elem_id="history",
            js_on_load=CLICKS,
            server_functions=[actions.provenance(session, tabs), actions.written(session, tabs)],
        )
        running = _html(
            elem_id="running",
            js_on_load=CLICKS + "hsdStream(element, server);",
            server_functions=[growing.server_function(session, tabs), actions.written(session, tabs)],
        )
        waiting = _html(elem_id="waiting", js_on_load=CLICKS)
        with gr.Column(elem_id="composer"):
            notice = _html(elem_id="notice")
            message = gr.Textbox(
                lines=1,
                max_lines=12,
                label="Message",
                show_label=False,
                container=False,
                placeholder="Message",
                submit_btn="Send",
                elem_id="message",
            )
    return {
        "head": head,
        "history": history,
        "running": running,
        "waiting": waiting,
        "notice": notice,
        "message": message,
    }


def _right(session: Session) -> dict[str, Any]:
    with gr.Sidebar(label="Engine", width=300, position="right", elem_id="right"):
        engine = _html(elem_id="engine", js_on_load=CLICKS)
        panel = settings.build(session.default_plan, presets.names(session.store), keep=not session.guests)
        own = families.build() if session.own_families else {}
    return {"engine": engine, **panel, **own}


def _wire(page: gr.Blocks, session: Session, tabs: Tabs, ui: dict[str, Any]) -> None:
    do = actions.Actions(session, tabs)
    fields, message, current = ui["settings"], ui["message"], ui["current"]
    given, sent = [*fields, ui["held"]], [message, ui["held"], *fields]
    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "api_visibility": "private",
        "concurrency_limit": None,
    }
    parts = watch.parts(session, ui)
    beside = [part for part in parts if part.beside]
    for group in ([part for part in parts if not part.beside], beside, views.parts(session, ui)):
        _keep(page, session, tabs, group, current, quiet)
    page.load(do.enter, [current], given, js=OPEN_FROM_ADDRESS, **quiet)

    message.submit(do.send, sent, [ui["sent"], *given], **quiet)
    ui["sent"].change(None, [ui["sent"]], None, js=SENT)
    message.stop(do.stop, None, None, **quiet)
    ui["new"].click(do.new, None, given, **quiet)
    ui["search"].change(do.search, [ui["search"]], None, trigger_mode="always_last", **quiet)
    # Two clicks in a row are two wishes; the second does not wait for the first.
    ui["listing"].select(do.choose, None, given, trigger_mode="multiple", **quiet)
    ui["head"].select(do.bring, None, given, **quiet)
    ui["engine"].select(do.engine, None, None, **quiet)
    ui["history"].select(do.turn, sent, [message], **quiet)
    ui["waiting"].select(do.take_back, [message], [message], trigger_mode="multiple", **quiet)
    preset = ui["preset"]
    page.load(do.known_presets, None, [preset], **quiet)
    preset.input(do.preset, [preset, *fields], fields, **quiet)
    if not session.guests:
        ui["preset_keep"].click(do.keep_preset, [preset, *fields], [preset], **quiet)
        ui["preset_forget"].click(do.forget_preset, [preset], [preset], **quiet)
    views.wire(page, session, tabs, ui, quiet)
    if session.own_families:
        families.wire(session.own_families, ui, quiet)
    page.unload(do.leave)


def _keep(
    page: gr.Blocks,
    session: Session,
    tabs: Tabs,
    parts: list[watch.Part],
    current: gr.components.Component,
    quiet: dict[str, Any],
) -> None:
    """Keep parts that change together up to date, by an event that lasts: what it skips costs as much as the rest."""

    async def follow(wanted: str, request: gr.Request) -> AsyncIterator[list[Any]]:
        # Whose conversation it is stands in the database, which may be locked for seconds.
        tab = await asyncio.to_thread(tabs.at, request, wanted)

        def young() -> float:
            return growing.young(session.live(tab.open))

        async for values in watch.follow(parts, tab, lambda: session.worker.writing, young):
            yield values

    # The browser drops ticks while their event runs; when one has ended or was cut off, the next takes it up again.
    gr.on(
        [page.load, gr.Timer(AGAIN_SECONDS).tick],
        follow,
        [current],
        [part.component for part in parts],
        trigger_mode="once",
        **quiet,
    )


def theme() -> gr.themes.Base:
    """System fonts and one accent; nothing of it is fetched."""
    accent = gr.themes.Color(
        "#eef6fc",
        "#d7eaf7",
        "#b0d5ee",
        "#7dbbe2",
        "#3f99d0",
        "#0072b2",
        "#00639b",
        "#00537f",
        "#004567",
        "#003a57",
        "#00263a",
    )
    return gr.themes.Base(
        primary_hue=accent,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"],
    )
