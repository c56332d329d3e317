"""Figures of the page, printed: `python tests/chat_bench.py latency|open|many|cost|speed`.

latency  from the engine's event to the text in the browser, 200 messages of history, 200 tokens per second
open     first paint, and the opening of a conversation of 2,000 messages
many     the list, searches and a message among 5,000 conversations
cost     processor time that the page takes in the engine's process
speed    what the page costs the engine, in the chat's thread and in a process of its own: one reply in turn with nobody
         looking, the next with a client that reads the page's events, or with a browser. PAIRS=replies of each kind;
         DATA=folder keeps compiled steps between runs.

Browser, server and engine share the machine's cores: with two of them each takes from the other.
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
from chat_tab import GROUPS, HttpTab

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import hsd  # noqa: E402 (the path is set above)
from chat.request import Load  # noqa: E402 (the path is set above)

LONG = "Tell me everything."
QUESTIONS = (
    "How do I extract a tar.gz archive?",
    "How do I find files larger than 100 MB?",
    "What can you do?",
    "What does the speed-up under a reply mean?",
    LONG,
)
SETTINGS: dict[str, Any] = {"temperature": 0.7, "max_tokens": 300, "seed": 1, "plan": "tiny:4>large"}


def fill(
    folder: Path, messages: int, title: str, settings: Mapping[str, Any] | None = None, *, figures: bool = True
) -> str:
    """A stored conversation with Markdown, and invented figures unless they are not wanted; its id."""
    from chat_fakes import POEM

    from chat.store import Store

    store, parent = Store(folder / "chat.db"), None
    conversation = store.create(title)
    store.keep_settings(conversation, settings or {})
    stats = {"tokens": 90, "tokens_per_second": 61.2, "speedup": 2.4, "plan": "tiny:3>big", "baseline": "estimated"}
    with store.db.atomic():
        for number in range(messages // 2):
            _, parent = store.add_turn(conversation, parent, f"question {number}: how do I unpack it?", {})
            provenance = ["tiny"] * 90
            store.update(
                parent, text=f"{number} {POEM}", state="done", stats=stats if figures else None, provenance=provenance
            )
    store.close()
    return conversation


# Servers


def paced() -> Load:
    """An engine whose words are the times at which it said them, 200 of them a second, 3 to an event."""
    from chat_fakes import INFO, ScriptedEngine

    class Clock(ScriptedEngine):
        def stream(self, messages: Any, params: Any, **options: Any) -> Iterator[hsd.Event]:
            yield hsd.Started(hsd.Plan.parse("lookup:2>tiny:3>big"), 12, 4)
            begun, said, text = time.monotonic(), 0, ""
            while said < min(params.max_tokens, 1200) and not options["cancel"].is_set():
                said += 3
                time.sleep(max(0.0, begun + said / 200 - time.monotonic()))
                piece = f" {time.time() * 1000:.0f}" * 3 + ("\n\n" if said % 60 == 0 else "")
                text += piece
                yield hsd.Tokens(piece, self.tokenizer.ids(["x"] * 3), ("tiny",) * 3)
            yield hsd.Finished(self._reply("x", 1, "stop", hsd.Plan.parse("tiny:3>big"), 1.0))

    engine = Clock(lambda _: "")
    assert engine.info is INFO
    return lambda progress: engine


class Timed:
    """An engine whose replies are timed where the chat takes them; one to `LONG` does not end by itself."""

    def __init__(self, engine: Any, end_ids: Sequence[int], file: Path) -> None:
        self.engine, self._end_ids, self._file = engine, tuple(end_ids), file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def stream(self, messages: Any, params: Any, **options: Any) -> Iterator[hsd.Event]:
        long = messages[-1]["content"] == LONG
        params = dataclasses.replace(params, banned_ids=self._end_ids) if long else params
        first, tokens, at = 0.0, 0, 0.0
        for event in self.engine.stream(messages, params, **options):
            if isinstance(event, hsd.Tokens):
                at, first = time.perf_counter(), first or time.perf_counter()
                tokens += len(event.ids) if at > first else 0
            yield event
        with self._file.open("a") as file:
            print(tokens, at - first, file=file)


def serve(kind: str, port: int, folder: Path) -> None:
    """The chat over an engine: "paced", "thread", "short" (a thread that gets Python's lock sooner) or "process"."""
    from chat import app
    from chat.session import Session
    from chat.store import Store

    def load(progress: Any) -> Any:
        if kind == "paced":
            return paced()(progress)
        far = kind == "process"
        engine: Any = Far(folder) if far else hsd.Engine.load("builtin", data_dir=folder, progress=progress)
        ends = engine.all_special_ids if far else engine.tokenizer.all_special_ids
        return Timed(engine, ends, folder / "times")

    if kind == "short":
        sys.setswitchinterval(0.0005)
    session = Session(Store(folder / "chat.db"), load, title="Bench", models=("tiny", "small", "medium", "large"))
    app.launch(session, app.Arguments(port=port), None)
    session.start()
    while session.engine.state in ("starting", "loading"):
        time.sleep(0.05)
    print("ready" if session.engine.state == "ready" else session.engine.error, flush=True)
    signal.pause()


class Far:
    """An engine in a process of its own, whose events come through a pipe as JSON would: what a seam would cost."""

    def __init__(self, folder: Path) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._child = context.Process(target=engine_process, args=(end, str(folder)), daemon=True)
        self._child.start()
        self.info: Any
        self.all_special_ids: Sequence[int]
        self.info, self.all_special_ids = self._pipe.recv()
        self.tokenizer = self

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "x" * len(ids)

    def stream(self, messages: Any, params: Any, *, plan: str, cancel: threading.Event) -> Iterator[hsd.Event]:
        self._pipe.send((messages, params, plan))
        while True:
            event = self._pipe.recv()
            yield event
            if isinstance(event, hsd.Finished):
                return

    def learn(self, should_stop: Callable[[], bool]) -> bool:
        return False

    def close(self) -> None:
        self._child.kill()


def engine_process(pipe: Any, folder: str) -> None:
    """The other end of `Far`."""
    engine = hsd.Engine.load("builtin", data_dir=folder)
    pipe.send((engine.info, engine.tokenizer.all_special_ids))
    while True:
        try:
            messages, params, plan = pipe.recv()
        except EOFError:
            return
        for event in engine.stream(messages, params, plan=plan):
            pipe.send(event)


@contextmanager
def serving(kind: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server's address and its process."""
    from chat_server import free_port

    port = free_port()
    command = [sys.executable, str(HERE / "chat_bench.py"), "serve", kind, str(port), str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line == "ready\n", line
        yield f"http://127.0.0.1:{port}/", psutil.Process(server.pid)
    finally:
        server.kill()
        server.wait()


# What reads the page


class Reader:
    """A tab without a browser: asks for what has changed, and for the reply as it grows, as the page's scripts do."""

    def __init__(self, address: str, conversation: str, groups: Sequence[str] = GROUPS) -> None:
        self._tab, self._acting, self._growing = (HttpTab(address) for _ in range(3))
        self._acting.session = self._growing.session = self._tab.session
        self._acting.enter(conversation)
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=[groups], daemon=True)] if groups else []
        for thread in self._threads:
            thread.start()

    @property
    def bytes(self) -> int:
        """What came of it all."""
        return sum(tab.bytes for tab in (self._tab, self._acting, self._growing))

    def send(self, text: str, settings: list[Any]) -> None:
        """Send a message."""
        self._acting.send(text, settings)

    def _read(self, groups: Sequence[str]) -> None:
        lively = 0.0
        try:
            while not self._closed.is_set():
                values = self._tab.look(*groups)
                lively = time.monotonic() + 1 if values else lively
                for reply in re.findall(r'data-reply="([\w-]+)', str(values.get("running", ""))):
                    threading.Thread(target=self._grow, args=(reply,), daemon=True).start()
                between = float(self._tab.told["between"])
                self._closed.wait(min(between, 0.1) if time.monotonic() < lively else between)
        except (OSError, http.client.HTTPException, ValueError):
            pass  # the server has been stopped

    def _grow(self, reply: str) -> None:
        """As stream.js does."""
        told: dict[str, Any] = {"mark": 0}
        while not told.get("over"):
            told = self._growing.call("running", "growing", {"reply": reply, "mark": told["mark"]})
            time.sleep(told.get("between", 0))

    def close(self) -> None:
        """Leave, as a tab does that is closed."""
        self._closed.set()
        for thread in self._threads:
            thread.join(2)


def wait_for(folder: Path, replies: int) -> None:
    deadline = time.monotonic() + 60
    while len(finished(folder)) < replies:
        assert time.monotonic() < deadline, "no reply came"
        time.sleep(0.1)


def finished(folder: Path) -> list[str]:
    """Ids of the replies that are over."""
    with closing(sqlite3.connect(folder / "chat.db")) as db:
        return [row[0] for row in db.execute("SELECT id FROM messages WHERE role = 'assistant' AND state != 'running'")]


# Figures


def speed(ways: Sequence[str], pairs: int) -> None:
    """Tokens per second where the chat takes them: the same replies with and without somebody who looks, in turn."""
    from chat_browser import chromium, tab

    from chat.store import Store

    for way in ways:
        kind, watcher = way.split("+")
        folder = Path(os.environ.get("DATA") or tempfile.mkdtemp())
        for file in (*folder.glob("chat.db*"), *folder.glob("times")):
            file.unlink()
        store = Store(folder / "chat.db")
        conversations = [store.create(f"conversation {number}") for number in range(2 * pairs + 2)]
        store.close()
        with serving(kind, folder) as (address, _), chromium() as browser, tab(browser, f"{address}#c=new") as page:
            for number, conversation in enumerate(conversations):
                page.goto("about:blank")
                if looked_at(number) and watcher == "browser":
                    page.goto(f"{address}#c={conversation}")
                    page.wait_for_timeout(1500)
                _ask(address, conversation, folder, looked_at(number) and watcher == "reader")
        _print_speed(way, [tuple(map(float, line.split())) for line in (folder / "times").open()])


def looked_at(number: int) -> bool:
    """Now one first and now the other, so that what gets slower or faster with time meets both."""
    return number % 4 in (1, 2)


def _ask(address: str, conversation: str, folder: Path, look: bool) -> None:
    """All questions, one after the other, through the page's own event."""
    from chat.settings import Settings
    from chat.ui.settings import show

    reader = Reader(address, conversation, GROUPS if look else ())
    time.sleep(0.5)
    for question in QUESTIONS:
        over = len(finished(folder))
        reader.send(question, show(Settings(**SETTINGS)))
        wait_for(folder, over + 1)
        time.sleep(0.2)
    assert not look or reader.bytes > 5000, "the page's events were not read"
    reader.close()


def _print_speed(way: str, times: Sequence[tuple[float, ...]]) -> None:
    """Of (tokens, seconds) of every reply; the first two conversations are a warm-up."""
    size = len(QUESTIONS)
    talks = [times[at : at + size] for at in range(2 * size, len(times), size)]
    for name, part in (("short replies", slice(0, -1)), ("a long one", slice(-1, None))):
        rates = [sum(r[0] for r in talk[part]) / sum(r[1] for r in talk[part]) for talk in talks]
        seen = [rate for number, rate in enumerate(rates) if looked_at(number + 2)]
        alone = [rate for number, rate in enumerate(rates) if not looked_at(number + 2)]
        low, middle, high = statistics.quantiles([one / other for one, other in zip(seen, alone, strict=True)], n=4)
        print(
            f"{way}, {name}: median {statistics.median(alone):.0f} tok/s with nobody, {statistics.median(seen):.0f} "
            f"looked at, {100 * (middle - 1):+.1f}% (quartiles {100 * (low - 1):+.1f}%, {100 * (high - 1):+.1f}%), "
            f"{len(seen)} pairs",
            flush=True,
        )


LATENCY = """() => {
  window.delays = new Map();
  const look = () => {
    const numbers = document.getElementById("running").textContent.match(/\\d{13}/g) ?? [];
    const now = Date.now();
    for (const number of new Set(numbers)) {
      if (!window.delays.has(number)) window.delays.set(number, now - Number(number));
    }
  };
  new MutationObserver(() => requestAnimationFrame(look)).observe(document.getElementById("running"),
    { childList: true, subtree: true, characterData: true });
}"""


def latency() -> None:
    """Time from each event of the engine to the frame that shows its text."""
    from chat_browser import chromium, send, tab

    folder = Path(tempfile.mkdtemp())
    conversation = fill(folder, 200, "two hundred messages", {"max_tokens": 1200})
    with (
        serving("paced", folder) as (address, _),
        chromium() as browser,
        tab(browser, f"{address}#c={conversation}") as page,
    ):
        page.wait_for_selector("#history .turn")
        page.wait_for_timeout(1500)
        page.evaluate(LATENCY)
        begun = time.monotonic()
        send(page, "Tell me the time.")
        page.wait_for_function(
            "window.delays.size > 350 && !document.querySelector('#running .prose')",
            timeout=60_000,
        )
        took = time.monotonic() - begun
        delays = sorted(page.evaluate("[...window.delays.values()]"))
    q = statistics.quantiles(delays, n=20)
    print(
        f"latency: {len(delays)} events in {took:.1f} s, median {statistics.median(delays):.0f} ms, "
        f"95% {q[18]:.0f} ms, longest {delays[-1]} ms"
    )


def cost() -> None:
    """Processor time that the page takes from the engine's process while a reply streams: what a thread can lose.

    The engine here only sleeps and says words, so that nearly all of the time is the page's. Unlike speeds it is hardly
    moved by what else the machine does.
    """
    from chat_browser import chromium, tab

    for watcher in ("nobody", "reader", "browser"):
        folder = Path(tempfile.mkdtemp())
        conversation = fill(folder, 200, "two hundred messages", {"max_tokens": 1200})
        with serving("paced", folder) as (address, server):
            if watcher == "browser":
                with chromium() as browser, tab(browser, f"{address}#c={conversation}") as page:
                    page.wait_for_selector("#history .turn")
                    _cost(address, conversation, folder, server, watcher, ())
            else:
                _cost(address, conversation, folder, server, watcher, GROUPS if watcher == "reader" else ())


def _cost(
    address: str, conversation: str, folder: Path, server: psutil.Process, watcher: str, groups: Sequence[str]
) -> None:
    from chat.settings import Settings
    from chat.ui.settings import show

    reader = Reader(address, conversation, groups)
    time.sleep(3)
    before, begun = sum(server.cpu_times()[:2]), time.monotonic()
    time.sleep(3)
    idle = (sum(server.cpu_times()[:2]) - before) / (time.monotonic() - begun)
    replies = len(finished(folder))
    reader.send("Tell me the time.", show(Settings(max_tokens=1200)))
    time.sleep(0.5)
    before, begun = sum(server.cpu_times()[:2]), time.monotonic()
    time.sleep(4.5)
    share = (sum(server.cpu_times()[:2]) - before) / (time.monotonic() - begun)
    wait_for(folder, replies + 1)
    print(
        f"cost with {watcher}: {100 * share:.1f}% of a core while 200 tok/s stream, {100 * idle:.1f}% idle", flush=True
    )


PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def opening() -> None:
    """First paint of the page, and of a long conversation from the click to its last message."""
    from chat_browser import chromium, tab

    folder = Path(tempfile.mkdtemp())
    long = fill(folder, 2000, "two thousand messages")
    fill(folder, 4, "a short one")
    paints, usable, opens = [], [], []
    with serving("paced", folder) as (address, _), chromium() as browser:
        for _ in range(7):
            begun = time.monotonic()
            with tab(browser, f"{address}#c=new") as page:
                page.wait_for_selector(".listing li")
                usable.append(time.monotonic() - begun)
                paints.append(page.evaluate(PAINT) / 1000)
                page.wait_for_timeout(500)
                opens.append(page.evaluate(OPEN, long) / 1000)
    for name, values in (
        ("first contentful paint", paints),
        ("list on show, from a fresh tab", usable),
        ("2,000 messages, from click to last message", opens),
    ):
        print(f"{name}: median {statistics.median(values):.2f} s, longest {max(values):.2f} s, of {len(values)}")


def many(number: int = 5000) -> None:
    """Thousands of conversations: what the list, a search, a new message and the next start take from the database."""
    from chat_fakes import POEM

    from chat.store import Store

    path = Path(tempfile.mkdtemp()) / "chat.db"
    store = Store(path)
    with store.together():
        for place in range(number):
            conversation = store.create(f"conversation {place} about {'walrus' if place % 1000 == 7 else 'tar'}")
            _, reply = store.add_turn(conversation, None, f"question {place}: how do I unpack it?", {})
            store.update(reply, text=f"{place} {POEM}", state="done")
    found = store.conversations("walrus")
    assert len(found) == -(-(number - 7) // 1000), found
    actions: dict[str, Callable[[], Any]] = {
        "the list, its newest 200": lambda: store.conversations(limit=201),
        "search for a rare word": lambda: store.conversations("walrus", 201),
        "search for two frequent words": lambda: store.conversations("archive patience", 201),
        "search for two letters, without the index": lambda: store.conversations("zq", 201),
        "a message and its reply stored": lambda: store.add_turn(found[0].id, None, "and more", {}),
        "the file opened": lambda: Store(path).close(),
    }
    print(f"{number} conversations, {path.stat().st_size / 1e6:.0f} MB")
    for name, action in actions.items():
        times = []
        for _ in range(7):
            begun = time.perf_counter()
            action()
            times.append(1000 * (time.perf_counter() - begun))
        print(f"{name}: median {statistics.median(times):.1f} ms, longest {max(times):.1f} ms, of {len(times)}")
    store.close()


OPEN = """(id) => new Promise((done) => {
  const begun = performance.now();
  const look = () => {
    if (document.querySelectorAll("#history .turn").length > 10) done(performance.now() - begun);
    else requestAnimationFrame(look);
  };
  document.querySelector(`.listing li[data-id="${id}"] .title`).click();
  look();
})"""


def main(what: str, *rest: str) -> None:
    if what == "serve":
        serve(rest[0], int(rest[1]), Path(rest[2]))
    elif what == "latency":
        latency()
    elif what == "cost":
        cost()
    elif what == "open":
        opening()
    elif what == "many":
        many()
    elif what == "speed":
        speed(
            rest or ("thread+reader", "process+reader", "thread+browser", "process+browser"),
            int(os.environ.get("PAIRS", "10")),
        )
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["help"]))
