"""The page: builds the pieces, wires them, returns the Blocks. What they do is the session's business."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from chat import limits, presets
from chat.session import Session
from chat.ui import actions, families, growing, picker, settings, views, watch
from chat.ui.shares import Handlers, Shares
from chat.ui.tabs import Tab, Tabs

# KaTeX as Gradio brings it, for formulas; its name changes with Gradio's version, and it may be missing.
_FORMULAS = next(iter(sorted(Path(gr.__file__).parent.glob("templates/frontend/assets/katex-*.js"))), None)
CSS = "".join(files("chat.ui").joinpath(name).read_text("utf-8") for name in ("style.css", "plan.css"))
HEAD = (
    "<style>@media (max-width: 800px) { html:not(.drawers) .sidebar { display: none !important; } }</style>"
    f"<script>window.hsdKatex = {json.dumps(_FORMULAS and 'assets/' + _FORMULAS.name)};</script>"
    + "".join(
        f"<script>{files('chat.ui').joinpath(name).read_text('utf-8')}</script>"
        for name in ("keys.js", "plan.js", "page.js", "watch.js", "stream.js", "typed.js", "unsent.js", "files.js")
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
OPEN_FROM_ADDRESS = "() => [(location.hash.match(/c=([\\w-]+)/) || ['', ''])[1]]"
SENT = "(mark) => { if (mark) { hsdSent(mark); hsdLook(); } }"


def build(session: Session) -> gr.Blocks:
    """The page over a session; its look is in `theme()`, `CSS` and `HEAD`, which `launch` takes."""
    tabs = Tabs(session.belongs, session.guests)
    shares = Shares(tabs.visitor)
    with gr.Blocks(title="hsd chat", analytics_enabled=False, fill_height=True) as page:
        ui = _left()
        ui |= _middle(session, tabs, shares)
        ui |= views.build(CLICKS)
        ui |= _right(session)
        # Never shown: the id of the open conversation.
        ui["current"] = gr.Textbox(visible="hidden", elem_id="current", label="Open conversation")
        # Nor these: whether the last message was stored, and whose settings the fields hold.
        ui["sent"] = gr.Textbox(visible="hidden", elem_id="sent", label="Sent")
        ui["held"] = gr.Textbox(visible="hidden", elem_id="held", label="Settings of")
        _wire(page, session, tabs, shares, ui)
    # Gradio keeps what it last sent to each page.
    page.state_session_capacity = limits.TABS
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


def _middle(session: Session, tabs: Tabs, shares: Shares) -> dict[str, Any]:
    with gr.Column(elem_id="chat"):
        head = _html(
            elem_id="head",
            js_on_load=CLICKS + LISTS,
            server_functions=[shares.handler(actions.exported(session, tabs)), shares.handler(picker.offered(session))],
        )
        where, written = (shares.handler(made(session, tabs)) for made in (actions.provenance, actions.written))
        history = _html(elem_id="history", js_on_load=CLICKS, server_functions=[where, written])
        running = _html(
            elem_id="running",
            js_on_load=CLICKS + "hsdStream(element, server);",
            server_functions=[growing.server_function(session, tabs, shares), written],
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


def _wire(page: gr.Blocks, session: Session, tabs: Tabs, shares: Shares, ui: dict[str, Any]) -> None:
    acting = actions.Actions(session, tabs)
    do = Handlers(shares, acting)
    fields, message, current = ui["settings"], ui["message"], ui["current"]
    given, sent = [*fields, ui["held"]], [message, ui["held"], *fields]
    quiet: dict[str, Any] = {
        "show_progress": "hidden",
        "api_visibility": "private",
        # What a field holds is checked where it is used, and what is no value of a field before that, see events.py.
        "preprocess": False,
        # Gradio runs forty events of its queue at once, of all visitors together; these wait for nobody.
        "queue": False,
    }
    _keep(session, tabs, shares, acting, ui, quiet)
    page.load(do.enter, [current], given, js=OPEN_FROM_ADDRESS, **quiet)

    message.submit(_entered(acting, do.send, shares), sent, [ui["sent"], *given], **quiet)
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
    views.wire(page, session, tabs, shares, ui, quiet)
    if session.own_families:
        families.wire(session.own_families, ui, quiet)


def _keep(
    session: Session,
    tabs: Tabs,
    shares: Shares,
    acting: actions.Actions,
    ui: dict[str, Any],
    quiet: dict[str, Any],
) -> None:
    """Keep the page up to date: it asks which parts have changed, and fetches them, see watch.js."""

    async def known(page: growing.Page, shown: str) -> Tab:
        # Whose conversation it is stands in the database, which may be locked for seconds.
        tab: Tab = tabs.known(page) or await shares.run(page, tabs.at, page, shown)
        return tab

    async def leave(_: Any, request: gr.Request) -> None:
        acting.leave(await growing.Page.of(request))

    parts = watch.parts(session, ui)
    groups = [
        watch.Group(name, some, lambda: session.worker.writing)
        for name, some in (
            ("chat", [part for part in parts if not part.beside]),
            ("beside", [part for part in parts if part.beside]),
            # What is skipped costs as much as the rest.
            ("views", views.parts(session, ui)),
        )
    ]
    functions = [watch.server_function(session, groups, known), leave]
    for group in groups:
        # Never shown: holds the mark of what came last, and asks for more.
        mark = gr.HTML(
            visible="hidden",
            elem_id=f"watch-{group.name}",
            js_on_load=f"hsdWatch('{group.name}', element, trigger, server);",
            server_functions=functions if group is groups[0] else None,
        )
        mark.select(_fetch(group, tabs, shares), None, [*(part.component for part in group.parts), mark], **quiet)


def _fetch(group: watch.Group, tabs: Tabs, shares: Shares) -> Any:
    def fetch(request: gr.Request) -> list[Any]:
        return group.fetch(tabs.at(request))

    return shares.handler(fetch)


def _entered(acting: actions.Actions, send: Any, shares: Shares) -> Any:
    """Sends when it is known what the tab shows. Waiting for that takes no thread."""

    async def sent(request: gr.Request, *values: Any) -> Any:
        with shares.place(request):
            await acting.entered(request)
        return await send(request, *values)

    return sent


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
