"""Puts store, session and page on one server: checks first, the page next, the engine last.

Importing gradio takes seconds and torch many more, so both wait until what can be refused at once has been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import queue
import secrets
import signal
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import hsd
from chat.api import Api, checked_key
from chat.environment import direct, say, temporary_folder
from chat.guard import Beginning, Guard
from chat.hosts import address_of, is_loopback, listen
from chat.login import Login, Visitors, checked_password
from chat.own_families import OwnFamilies
from chat.request import EngineLike, Load
from chat.session import Session
from chat.store import Store

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

FIRST_LOOK_SECONDS = 2.0
"""The engine's imports wait this long for the first visitor, whose page would share the processor with them."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What `hsd chat` was asked for; see its help."""

    family: str = "builtin"
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    password: str | None = None
    data_dir: str | None = None
    plan: str = "auto"
    config: str | None = None
    browser: bool = True
    unload_after: float = 60.0
    together: bool = False
    share_hours: float = 72.0
    api_key: str | None = None

    @property
    def local(self) -> bool:
        """Only the person at this machine can reach the page."""
        return is_loopback(self.host) and not self.share

    @property
    def guests(self) -> bool:
        """Visitors are told apart."""
        return not self.local and not self.together


def serve(arguments: Arguments) -> int:
    """Serve until interrupted; the exit status.

    Raises:
        HsdError: what was asked for is not possible. Nothing has been served then.
    """
    family = hsd.find_family(arguments.family, arguments.config)
    if arguments.plan != "auto":
        hsd.Plan.parse(arguments.plan)
    checked_key(arguments.api_key)
    checked_password(arguments.password)
    check_port(arguments.host, arguments.port)
    folder = hsd.data_dir(arguments.data_dir)
    # Visitors must not read what the owner wrote.
    store = Store(folder / ("shared.db" if arguments.share or arguments.guests else "chat.db"))
    session = Session(
        store,
        loader(arguments, folder),
        title=family.title or family.name,
        models=tuple(model.name for model in family.models),
        plan=arguments.plan,
        examples=family.examples,
        may_drop=family.overflow == "drop",
        family=family.name,
        idle_seconds=60 * arguments.unload_after if arguments.unload_after else None,
    )
    session.guests = arguments.guests
    ends = time.time() + 3600 * arguments.share_hours if arguments.share else None
    session.until = time.strftime("on %A, %H:%M", time.localtime(ends)) if ends else ""
    if arguments.local:
        # What is added is loaded from this machine and written to it: nothing for guests.
        session.own_families = OwnFamilies(folder, arguments.config)
        session.opener = lambda choice: loader(
            dataclasses.replace(arguments, family=choice.reference, config=None if choice.own else arguments.config),
            folder,
        )
    stopped = _stop_on_signals()
    password = needed_password(arguments) if arguments.password is None else arguments.password
    page, address, shared = launch(session, arguments, password)
    try:
        _announce(arguments, address, shared, password, folder, session.until)
        _wait(session, stopped, ends, arguments.share_hours)
        say("\nStopping…")
    finally:
        # Whatever happens to the terminal: what was written so far is stored.
        session.close()
        page.close(verbose=False)
        page.temporary.cleanup()
    if session.worker.alive:
        # A thread in the middle of importing torch would trip over an interpreter that is being taken down.
        os._exit(stopped.status)
    return stopped.status


def _wait(session: Session, stopped: _Stopped, ends: float | None, hours: float) -> None:
    """Until a signal, or the end of a shared link; the engine is loaded meanwhile."""
    deadline = time.monotonic() + FIRST_LOOK_SECONDS
    while not stopped.wait(0.05):
        if session.visited.is_set() or time.monotonic() > deadline:
            session.start()
            break
    while not stopped.wait(min(3600.0, max(0.0, ends - time.time())) if ends else 3600.0):
        if ends and time.time() >= ends:
            say(f"The shared link has ended, after {hours:g} hours.")
            break


def loader(arguments: Arguments, folder: Path) -> Load:
    """A function that loads the engine, for the worker."""

    def load(progress: Callable[[hsd.LoadProgress], None]) -> EngineLike:
        engine: EngineLike = hsd.Engine.load(
            arguments.family, data_dir=folder, config=arguments.config, progress=progress
        )
        return engine

    return load


def check_port(host: str, port: int) -> None:
    """Raises HsdError where the port cannot be listened on."""
    for found in listen(host, port):
        found.close()


def needed_password(arguments: Arguments) -> str | None:
    """A password where one is needed and none was given."""
    if not arguments.local:
        return secrets.token_urlsafe(9)
    return None


def launch(session: Session, arguments: Arguments, password: str | None) -> tuple[gr.Blocks, str, str | None]:
    """Serve the page in the background; (page, its address, its public address)."""
    # All of these are read when gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    temporary = temporary_folder(session.store.path.parent)
    with direct(arguments.host, outside=arguments.share):
        page, address, shared = _launch(session, arguments, password)
    page.temporary = temporary
    return page, address, shared


def _launch(session: Session, arguments: Arguments, password: str | None) -> tuple[gr.Blocks, str, str | None]:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from chat import server
    from chat.ui import page as ui

    page = ui.build(session)
    # Nobody waits in Gradio's own queue, so nobody need be told of it. It looks for events a thousand times a second,
    # on the models' processor; nobody feels a hundredth of one.
    page.queue(default_concurrency_limit=None, status_update_rate=3600)
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = 0.01, 1.0
    key = checked_key(arguments.api_key)
    # Without a key the API answers those who can use the page too: this machine, where no password is asked for.
    api = Api(_mounted(page), session=session, key=key, free=arguments.local and password is None)
    login = None
    if password is not None:
        login = Login(password, Visitors(session.store.path.parent, session.known_visitor), arguments.port)
    guard = Guard(api, arguments.local, login, guests=arguments.guests, title=page.title)
    sockets = listen(arguments.host, arguments.port)
    if arguments.local and not all(is_loopback(found.getsockname()[0]) for found in sockets):
        for found in sockets:
            found.close()
        raise hsd.HsdError(f"'{arguments.host}' is not this machine alone.", "Use 127.0.0.1 or ::1.")
    running = server.Server(guard, sockets, behind_tunnel=arguments.share)
    try:
        running.start()
    except OSError as error:
        raise hsd.HsdError(f"Port {arguments.port} on {arguments.host} cannot be used.", str(error)) from error
    # `page.close` closes it.
    page.server = running
    shared = server.tunnel(sockets[0]) if arguments.share else None
    guard.public_host = shared.partition("://")[2].strip("/").lower() if shared else ""
    return page, address_of(arguments.host, arguments.port), shared


def _mounted(page: gr.Blocks) -> FastAPI:
    """The page as an application, without what is not needed of Gradio."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    from chat.ui import page as ui
    from chat.ui.events import Events

    mounted: FastAPI = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        "/",
        footer_links=[],
        show_error=True,
        # Files are read in the browser; nobody fills this disk by uploading.
        max_file_size=1,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=True,
        mcp_server=False,
        theme=ui.theme(),
        css=ui.CSS,
        head=ui.HEAD,
        app_kwargs={
            "middleware": [Middleware(Beginning, first=ui.FIRST), Middleware(Events, page=page)],
            "docs_url": None,
            "redoc_url": None,
        },
    )
    inner = mounted.routes[-1].app  # type: ignore[attr-defined]
    page.app = page.server_app = inner
    page._queue.set_server_app(inner)
    return mounted


def _announce(
    arguments: Arguments, address: str, shared: str | None, password: str | None, folder: Path, until: str
) -> None:
    say(f"The chat is at {address.rstrip('/')}  (Ctrl-C ends it; data in {folder})")
    if arguments.share:
        say(f"Shared at {shared}; it ends {until}" if shared else "No public address: sharing needs the network.")
    if arguments.api_key or (arguments.local and not password):
        asks = "asks for the key" if arguments.api_key else "for programs of this machine"
        say(f"The API is at {address.rstrip('/')}/v1  ({asks})")
    if password:
        # One that was given may be a secret of other things too, and what is printed may be kept.
        say("It asks for the password." if arguments.password else f"Password: {password}")
        own = "Every browser sees its own conversations." if arguments.guests else "All see the same conversations."
        say(own)
    if arguments.browser and is_loopback(arguments.host) and _has_browser():
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _has_browser() -> bool:
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return True


class _Stopped:
    """Told by a signal; `status` is what a shell expects of a program that ended by it, 0 until then.

    A handler runs in the middle of whatever the main thread does, where an Event's lock may be held: setting it there
    would wait for ever. A SimpleQueue may be told at any moment.
    """

    def __init__(self) -> None:
        self.status = 0
        self._told: queue.SimpleQueue[int] = queue.SimpleQueue()

    def tell(self, status: int) -> None:
        """There was a signal."""
        self.status = status
        self._told.put(status)

    def wait(self, seconds: float) -> bool:
        """Whether there was a signal, as soon as there was or the time is up."""
        if not self.status:
            with contextlib.suppress(queue.Empty):
                self._told.get(timeout=seconds)
        return bool(self.status)


def _stop_on_signals() -> _Stopped:
    stopped, hangup = _Stopped(), getattr(signal, "SIGHUP", None)

    def stop(number: int, _: FrameType | None) -> None:
        if stopped.status and number != hangup:
            # Asked twice: whoever does it does not want to wait for a tidy end.
            os._exit(128 + number)
        stopped.tell(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    # A terminal that is closed says so, maybe twice. Who started this with nohup wants it to go on.
    if hangup and signal.getsignal(hangup) != signal.SIG_IGN:
        signal.signal(hangup, stop)
    return stopped
