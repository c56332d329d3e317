"""Who is let in: hosts, pages from elsewhere, routes, bodies, passwords, visitors, and who may read the files."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from api_client import CHAT, problem, said, served
from chat_fakes import ScriptedEngine, poem
from chat_waiting import until

from chat import guard, limits, login, server
from chat.api_http import MOST_BYTES
from chat.guard import COOKIE, LARGE_BODIES, ROUTES, Guard
from chat.hosts import host_name, listen, names_this_machine, same_origin
from chat.login import FREE_GUESSES, Visitors
from chat.session import Session

KEY, PASSWORD = "a-key-for-tests", "open sesame"
JOIN, CALL = "/gradio_api/run/predict", "/gradio_api/component_server/"
ELSEWHERE = (
    "https://evil.example",
    "null",
    "http://127.0.0.1",
    "http://127.0.0.1:{other}",
    "https://127.0.0.1:{port}",
    "http://localhost:{port}",
    "http://127.0.0.1.:{port}",
    "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1:{port}@evil.example",
    "http://evil.example@127.0.0.1:{port}",
    "http://sub.127.0.0.1:{port}",
    "http://127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    "",
)


class Web:
    """A client of one server that keeps the cookies it is given, as long as it is told nothing else."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        self.port, self.address, self.cookies = port, address, {}

    def ask(
        self, method: str, path: str, body: Any = None, host: str | None = None, source: str = "", **headers: str
    ) -> tuple[int, list[tuple[str, str]], str]:
        """(status, headers, text)"""
        line = http.client.HTTPConnection(
            self.address, self.port, timeout=20, source_address=(source, 0) if source else None
        )
        with closing(line):
            line.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            line.putheader("host", host if host is not None else f"127.0.0.1:{self.port}")
            given = {"cookie": "; ".join(f"{n}={v}" for n, v in self.cookies.items())}
            given |= {name.replace("_", "-"): value for name, value in headers.items()}
            data = json.dumps(body).encode() if isinstance(body, dict | list) else body
            if data is not None:
                given = {"content-type": "application/json", "content-length": str(len(data)), **given}
            for name, value in given.items():
                if value or name == "origin":
                    line.putheader(name, value)
            line.endheaders(data)
            answer = line.getresponse()
            found = [(name.lower(), value) for name, value in answer.getheaders()]
            return answer.status, found, answer.read().decode("utf-8", "replace")

    def login(self, password: str = PASSWORD, **options: str) -> tuple[int, list[tuple[str, str]]]:
        form = urlencode({"username": "me", "password": password}).encode()
        options.setdefault("content_type", "application/x-www-form-urlencoded")
        status, headers, _ = self.ask("POST", "/login", form, **options)
        for name, value in headers:
            if name == "set-cookie":
                key, _, rest = value.partition("=")
                self.cookies[key] = rest.partition(";")[0]
        return status, headers


def closed(line: socket.socket) -> bool:
    """Whether the server has closed a connection; waits for that as long as the line's time."""
    with contextlib.suppress(ConnectionError):
        return line.recv(1) == b""
    return True


def join(page: str, data: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"data": data or ["new"], "event_data": None, "fn_index": 3, "trigger_id": 0, "session_hash": page, **more}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Web, Any]]:
    """A server for this machine alone, without password and key."""
    folder = tmp_path_factory.mktemp("local")
    with served(folder, lambda _: ScriptedEngine(poem, 0.001)) as (session, client):
        until(lambda: session.engine.state == "ready")
        yield session, Web(client.port), client.page


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Web, Any]]:
    """A server for guests, with a password and a key."""
    folder = tmp_path_factory.mktemp("shared")
    engine = ScriptedEngine(poem, 0.001)
    with served(folder, lambda _: engine, password=PASSWORD, host="0.0.0.0", api_key=KEY) as (session, client):
        until(lambda: session.engine.state == "ready")
        yield session, Web(client.port), client.page


@pytest.fixture
def guest(shared: tuple[Session, Web, Any]) -> Web:
    """A visitor who has logged in, from an address where nobody guesses."""
    web = Web(shared[1].port)
    assert web.login(source="127.0.0.9")[0] == 200
    return web


# ------------------------------------------------------------------------------------------------------------- hosts


def test_every_spelling_of_this_machine_is_served_and_no_name_of_others(local: tuple[Session, Web, Any]) -> None:
    _, web, _ = local
    ours = ("LOCALHOST:{}", "localhost.:{}", "127.1:{}", "127.0.0.2", "0x7f.1", "2130706433", "[::1]:{}", "LocalHost")
    ours += ("localhost.localdomain:{}", "ip6-localhost:{}", "LOCALHOST6")
    ours += ("[::ffff:127.0.0.1]:{}", "[0:0:0:0:0:0:0:1]:{}", "chat.localhost:{}", "0.0.0.0:{}", "[::1%25lo]:{}")
    for host in ours:
        for path in ("/", "/v1/models", "/health"):
            assert web.ask("HEAD" if path == "/" else "GET", path, host=host.format(web.port))[0] in (200, 405), host
    others = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "1.2.3.4", "[2001:db8::1]:80")
    for host in (*others, "localhosts", "localhost.localdomain.evil.example", "127.0.0.1e", "0127.evil"):
        assert not names_this_machine(host_name(host) or "")
        status, _, text = web.ask("GET", "/v1/models", host=host)
        assert status == 421 and "--host" in problem(json.loads(text))["message"], host
        assert web.ask("GET", "/", host=host)[0] == 421 == web.ask("POST", JOIN, join("a"), host=host)[0]
    for host in (
        "",
        "local host",
        "[::1",
        "::1",
        "a@localhost",
        "localhost:99999",
        "localhost:x",
        "[localhost]",
        "a/b",
    ):
        assert host_name(host) is None
        status, _, text = web.ask("GET", "/v1/models", host=host)
        assert status == 400, host
        assert web.ask("GET", "/", host=host)[0] == 400, host


def test_a_page_and_the_api_are_served_over_ipv6(tmp_path: Path) -> None:
    with served(tmp_path, lambda _: ScriptedEngine(poem, 0.001), host="[::1]") as (_, client):
        web = Web(client.port, "::1")
        for host in (f"[::1]:{client.port}", f"localhost:{client.port}"):
            assert web.ask("GET", "/", host=host)[0] == 200 == web.ask("GET", "/v1/models", host=host)[0]
        own = f"http://[::1]:{client.port}"
        assert web.ask("POST", JOIN, join("a"), host=own[7:], origin=own)[0] == 200
        assert web.ask("POST", JOIN, join("a"), host=own[7:], origin=f"http://localhost:{client.port}")[0] == 403


# ------------------------------------------------------------------------------------------------- pages from elsewhere


def requests_of(page: str, component: int = 1) -> list[tuple[str, str, Any]]:
    """One for each route that is served."""
    asked = [("GET", "/", None), ("GET", "/theme.css", None), ("GET", "/static/img/logo_nosize.svg", None)]
    asked += [("GET", "/gradio_api/app_id", None), ("POST", JOIN, join(page)), ("GET", "/manifest.json", None)]
    return [*asked, ("POST", CALL, {"session_hash": page, "data": {}, "component_id": component, "fn_name": "none"})]


def test_no_other_page_is_let_in_by_any_route(
    local: tuple[Session, Web, Any], shared: tuple[Session, Web, Any], guest: Web
) -> None:
    for web, served_page in ((local[1], local[2]), (guest, shared[2])):
        ports = {"port": str(web.port), "other": str(web.port + 1)}
        for origin in ELSEWHERE:
            for method, path, body in [*requests_of("foreign1"), ("POST", "/login", b""), ("GET", "/logout", None)]:
                status, headers, _ = web.ask(method, path, body, origin=origin.format(**ports))
                assert status == 403, (origin, path, status)
                assert not [name for name, _ in headers if name.startswith("access-control")]
        for site in ("cross-site", "same-site", "nonsense"):
            for method, path, body in requests_of("foreign1"):
                fetched = web.ask(method, path, body, sec_fetch_site=site, sec_fetch_mode="no-cors")
                assert fetched[0] == 403, (site, path)
        preflight = web.ask("OPTIONS", JOIN, origin="https://evil.example", access_control_request_method="POST")
        assert preflight[0] == 403 and not [n for n, _ in preflight[1] if n.startswith("access-control")]
        # A link on another page may be followed, but not into a frame.
        link = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
        assert web.ask("GET", "/", sec_fetch_dest="document", **link)[0] == 200
        assert web.ask("GET", "/", sec_fetch_dest="iframe", **link)[0] == 403
        own = {"origin": f"http://127.0.0.1:{web.port}", "sec_fetch_site": "same-origin"}
        for method, path, body in requests_of(f"own{web.port}", next(iter(served_page.blocks))):
            status, headers, text = web.ask(method, path, body, **own)
            assert status == 200 or "no function of this page" in text, (path, status)
            assert not [name for name, _ in headers if name.startswith("access-control")], path


def test_an_origin_is_compared_as_a_whole(guest: Web) -> None:
    assert same_origin("https://Box.example", "box.example:443", {"https"})
    assert same_origin("http://[::1]:80", "[::1]", {"http"})
    for origin in ("https://box.example:80", "http://box.example", "https://box.example.", "file://box.example", "x"):
        assert not same_origin(origin, "box.example", {"https"}), origin
    # Behind a proxy that ends https, as the tunnel of a shared link does.
    for origin, proto, status in (
        ("https://abc.gradio.live", "https", 401),
        ("http://abc.gradio.live", "https", 403),
        ("https://abd.gradio.live", "https", 403),
        ("https://gradio.live", "https", 403),
        ("https://abc.gradio.live", "", 200),
        ("http://abc.gradio.live", "", 200),
    ):
        asked = guest.ask("POST", JOIN, join("p1"), host="abc.gradio.live", origin=origin, x_forwarded_proto=proto)
        assert asked[0] == status, origin
    told = {"host": "127.0.0.1:1", "x_forwarded_host": "evil.example", "origin": "https://evil.example"}
    assert guest.ask("POST", JOIN, join("p1"), **told)[0] == 403


def test_cookies_are_for_this_server_alone(shared: tuple[Session, Web, Any]) -> None:
    for proto in ("http", "https"):
        web = Web(shared[1].port)
        status, headers = web.login(source="127.0.0.8", host="abc.gradio.live", x_forwarded_proto=proto)
        cookies = [value for name, value in headers if name == "set-cookie"]
        assert status == 200 and len(cookies) == 2
        for cookie in cookies:
            assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Domain" not in cookie
            assert ("; Secure" in cookie) == cookie.startswith("__Host-") == (proto == "https"), cookie
        asked = {"host": "abc.gradio.live", "x_forwarded_proto": proto}
        status, headers, _ = web.ask("GET", "/", **asked)
        assert status == 200 and not [name for name, _ in headers if name == "set-cookie"]
        # A cookie that came twice may be of another host of the same domain.
        (name, value), *_ = web.cookies.items()
        web.cookies = {}
        assert web.ask("GET", "/", cookie=f"{name}={value}; {name}=x", **asked)[0] == 401


def test_with_a_key_pages_of_any_origin_use_the_api_and_nothing_else(shared: tuple[Session, Web, Any]) -> None:
    web, bearer = Web(shared[1].port), f"Bearer {KEY}"
    for origin in ("http://[::1]:3000", "http://localhost:3000", "https://editor.example", "null"):
        asked = {
            "access_control_request_method": "POST",
            "access_control_request_headers": "authorization, x-stainless-os",
        }
        status, headers, _ = web.ask("OPTIONS", CHAT, origin=origin, **asked)
        told = dict(headers)
        assert (
            status == 204
            and told["access-control-allow-origin"] == "*"
            and "POST" in told["access-control-allow-methods"]
        )
        assert told["access-control-allow-headers"] == "authorization, x-stainless-os"
        assert "access-control-allow-credentials" not in told
        body = {"messages": said("hi"), "max_tokens": 2}
        for given, expected in ((bearer, 200), ("", 401)):
            status, headers, _ = web.ask("POST", CHAT, body, origin=origin, authorization=given)
            assert status == expected and dict(headers)["access-control-allow-origin"] == "*", origin
        assert web.ask("GET", "/", origin=origin)[0] == 403


def test_without_a_key_the_api_lets_no_other_page_in(local: tuple[Session, Web, Any]) -> None:
    _, web, _ = local
    for asked in ({"origin": "http://[::1]:3000"}, {"sec_fetch_site": "same-site"}, {"origin": "null"}):
        for path in ("/v1/models", "/health"):
            status, headers, text = web.ask("GET", path, **asked)
            assert status == 403 and "--api-key" in problem(json.loads(text))["message"]
            assert not [name for name, _ in headers if name.startswith("access-control")]


# ------------------------------------------------------------------------------------------------------------- routes


def test_a_route_of_gradios_that_is_not_on_the_list_is_never_reached(local: tuple[Session, Web, Any]) -> None:
    reached: list[str] = []

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(method: str, path: str) -> int:
        status: list[int] = []

        async def send(message: Any) -> None:
            status.append(message.get("status", 0))

        async def receive() -> Any:
            return {"type": "http.request", "body": json.dumps(join("a")).encode(), "more_body": False}

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"90")]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
        await Guard(gradio, local_only=True)(scope, receive, send)
        return status[0]

    seen, closed = set(), set()
    routes = list(local[2].server_app.routes)
    for route in routes:
        if router := getattr(route, "original_router", None):
            routes.extend(router.routes)
            continue
        path = re.sub(r"\{[^}]*\}", "x1", route.path).replace("run/x1", "run/predict")
        for method in (getattr(route, "methods", None) or {"GET"}) | {"GET", "POST", "PUT", "DELETE", "PATCH"}:
            reached.clear()
            status = asyncio.run(ask(method, path))
            wanted = next((known for known in ROUTES if re.fullmatch(known.path, path)), None)
            if wanted is None:
                assert status == 404 and not reached, (method, path)
                closed.add(path)
            elif method in (wanted.method, "HEAD" if wanted.method == "GET" else ""):
                assert status == 200 and reached == [path], (method, path)
                seen.add(wanted)
            else:
                assert status == 405 and not reached, (method, path)
    assert len(closed) > 40 and len(seen) >= len(ROUTES) - 2, (closed, set(ROUTES) - seen)


def test_what_gradio_offers_and_the_page_does_not_need_is_not_there(
    local: tuple[Session, Web, Any], guest: Web
) -> None:
    asked = [("GET", f"/gradio_api/{name}", None) for name in ("file=/etc/passwd", "file=https://example.com", "info")]
    asked += [
        ("GET", f"/gradio_api/{name}", None) for name in ("proxy=https://x.hf.space/", "deep_link?session_hash=a")
    ]
    asked += [("GET", "/config", None), ("GET", "/monitoring", None), ("GET", "/svelte/x.js", None)]
    asked += [
        ("POST", f"/gradio_api/{name}", b"{}")
        for name in ("upload", "run/x", "call/x", "cancel", "reset", "queue/join")
    ]
    asked += [("GET", f"/gradio_api/{name}", None) for name in ("queue/data?session_hash=a", "heartbeat/a")]
    asked += [("GET", path, None) for path in ("//", "/%2e%2e/", "/assets/../x", "/assets/.hidden", "/docs", "/V1")]
    for web in (local[1], guest):
        for method, path, body in asked:
            assert web.ask(method, path, body)[0] == 404, (path, web.cookies)
    # Without the password nothing is there but what browsers ask for without cookies.
    stranger = Web(guest.port)
    for method, path, body in [*asked, *requests_of("a")]:
        open_to_all = path in ("/static/img/logo_nosize.svg", "/gradio_api/app_id", "/manifest.json")
        assert stranger.ask(method, path, body)[0] == (200 if open_to_all else 401), path
    # A link to a stored state of somebody's page is the page and nothing else.
    assert '"deep_link_state": "none"' in local[1].ask("GET", "/?deep_link=abc")[2].replace('":"', '": "')


def test_a_page_is_of_who_opened_it(guest: Web) -> None:
    other = Web(guest.port)
    assert other.login(source="127.0.0.9")[0] == 200
    # The same form, with the same user name: still two people.
    assert guest.ask("POST", JOIN, join("page-of-guest"))[0] == 200
    call = {"session_hash": "page-of-guest", "data": {}, "component_id": 1, "fn_name": "none"}
    for method, path, body in (
        ("POST", JOIN, join("page-of-guest")),
        ("POST", CALL, call),
    ):
        assert other.ask(method, path, body)[0] == 404, path
    for page in ("", "a/b", "x" * 65, "ä", None, 7):
        assert other.ask("POST", JOIN, {**join("a"), "session_hash": page})[0] == 400, page


def test_no_value_of_a_field_makes_the_server_fetch_anything(local: tuple[Session, Web, Any]) -> None:
    _, web, _ = local
    file = {"path": "http://198.51.100.1/x", "url": "http://198.51.100.1/x", "meta": {"_type": "gradio.FileData"}}
    for data in ([file], [[file]], ["a", [1, ["b", file]]], [{}]):
        assert web.ask("POST", JOIN, join("a", data))[0] == 400, data
    assert web.ask("POST", JOIN, join("a", ["new"]))[0] == 200


# ------------------------------------------------------------------------------------------------------------- bodies


def test_a_body_without_a_length_is_cut_off_while_it_is_read(local: tuple[Session, Web, Any], guest: Web) -> None:
    for web, path, cookie, most in (
        (local[1], CALL, "", MOST_BYTES),
        (local[1], CHAT, "", MOST_BYTES),
        (Web(guest.port), JOIN, "", 0),
    ):
        with socket.create_connection(("127.0.0.1", web.port), 10) as line:
            line.sendall(
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{web.port}\r\nContent-Type: application/json\r\n"
                f"Transfer-Encoding: chunked\r\n{cookie}\r\n".encode()
            )
            sent, chunk = 0, b"10000\r\n" + b"[" * 65536 + b"\r\n"
            try:
                while sent < 64 << 20:
                    line.sendall(chunk)
                    sent += 65536
            except OSError:
                pass
            answer = line.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413" if most else b"HTTP/1.1 401"), answer[:200]
        assert b"connection: close" in answer.lower() and sent < most + (12 << 20), sent


def test_a_body_of_many_small_things_is_refused_before_gradio_walks_through_it(local: tuple[Session, Web, Any]) -> None:
    _, web, _ = local
    head, end = b'{"session_hash":"a","fn_index":3,"data":', b"}"
    for data in (
        b"[" * 3000 + b"]" * 3000,
        b"[" + b"[]," * 1_000_000 + b"0]",
        b"[" + b"0," * 1_000_000 + b"0]",
        b"[" + b'"a",' * 1_000_000 + b'"b"]',
        b"[{" + b",".join(b'"%d":{}' % n for n in range(100_000)) + b"}]",
        b"[1" + b"0" * 10_000 + b"]",
        b'["\\"' + b"[" * 100_000 + b'"',
        b"[\xff]",
    ):
        status, _, text = web.ask("POST", JOIN, head + data + end)
        assert status == 400 and "nothing that the page sends" in text, data[:40]
    # Of UTF-16 the quotes would be counted wrongly.
    assert web.ask("POST", JOIN, (head + b"[]" + end).decode().encode("utf-16"))[0] == 400
    # A text may hold all of this.
    text = '[{"a": "\\"b\\\\"}, ' * 60_000
    event = {"action": "import", "text": text}
    assert guard._parsed(json.dumps(join("a", ["x"], event_data=event)).encode())["event_data"] == event
    assert web.ask("POST", JOIN, join("a", ["\\" * 100_000]))[0] == 200


def test_large_files_are_read_a_few_at_a_time(local: tuple[Session, Web, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LARGE_BODIES", 0)
    status, headers, _ = local[1].ask("POST", JOIN, json.dumps(join("a", ["x" * MOST_BYTES])).encode())
    assert status == 503 and dict(headers)["retry-after"]
    assert local[1].ask("POST", JOIN, join("a", ["x"]))[0] == 200


@pytest.mark.parametrize(("size", "lines"), [(MOST_BYTES + 100, LARGE_BODIES), (1000, limits.QUEUED_AT_ONCE)])
def test_slow_uploads_of_one_visitor_leave_places_for_others(guest: Web, size: int, lines: int) -> None:
    other = Web(guest.port)
    assert other.login(source="127.0.0.9")[0] == 200
    slow, head = [], f"POST {JOIN} HTTP/1.1\r\nHost: 127.0.0.1:{guest.port}\r\nContent-Type: application/json\r\n"
    head += "Cookie: " + "; ".join(f"{name}={value}" for name, value in guest.cookies.items())
    own, theirs = (json.dumps(join(f"{name}{size}", ["x" * size])).encode() for name in ("own", "theirs"))
    try:
        for _ in range(lines):
            slow.append(socket.create_connection(("127.0.0.1", guest.port), 10))
            slow[-1].sendall(f"{head}\r\nContent-Length: {len(own)}\r\n\r\n{{".encode())
        until(lambda: guest.ask("POST", JOIN, own)[0] in (429, 503))
        assert other.ask("POST", JOIN, theirs)[0] == 200
    finally:
        for line in slow:
            line.close()
    until(lambda: guest.ask("POST", JOIN, own)[0] == 200)


def test_an_answer_that_nobody_takes_is_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STUCK_SECONDS", 0.3)
    size = 20 << 20

    async def answers(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
            await send({"type": "http.response.body", "body": bytes(size)})

    sockets = listen("127.0.0.1", 0)
    running = server.Server(answers, sockets)
    running.start()
    try:
        lines = [socket.create_connection(sockets[0].getsockname(), 10) for _ in range(2)]
        for line in lines:
            line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # One takes a little now and then, which is enough; the other takes nothing.
        taken = 0
        for _ in range(10):
            taken += len(lines[0].recv(1 << 20))
            time.sleep(0.1)
        while taken < size:
            taken += len(lines[0].recv(1 << 20))
        rest = 0
        with contextlib.suppress(ConnectionError):
            while more := lines[1].recv(1 << 20):
                rest += len(more)
        assert rest < size <= taken
    finally:
        running.close()


def test_connections_that_say_nothing_keep_nobody_out(
    local: tuple[Session, Web, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, web, _ = local
    monkeypatch.setattr(server, "MOST_WAITING", 10)
    begun = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "
    silent = [socket.create_connection(("127.0.0.1", web.port), 10) for _ in range(30)]
    try:
        for number, line in enumerate(silent):
            line.sendall((b"", b"G", begun)[number % 3])
        # The oldest are closed; a whole request finds its place at any time, and one more on the same connection.
        assert all(closed(line) for line in silent[:19])
        with socket.create_connection(("127.0.0.1", web.port), 10) as line:
            for _ in range(3):
                line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
                line.sendall(b"\r\n")
                answer = line.recv(65536)
                while not answer.endswith(b"}"):
                    answer += line.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
        with socket.create_connection(("127.0.0.1", web.port), 10) as line:
            for letter in begun * 5:
                with contextlib.suppress(OSError):
                    line.sendall(bytes([letter]))
                time.sleep(0.005)
            assert closed(line)
    finally:
        for line in silent:
            line.close()


def test_a_request_of_two_lengths_is_refused(local: tuple[Session, Web, Any]) -> None:
    _, web, _ = local
    for path in ("/", JOIN, CHAT, "/login"):
        with socket.create_connection(("127.0.0.1", web.port), 10) as line:
            line.sendall(
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
                "0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            answers = b""
            while more := line.recv(65536):
                answers += more
        assert answers.startswith(b"HTTP/1.1 400") and answers.count(b"HTTP/1.1") == 1, path


def test_nothing_that_somebody_wrote_is_kept_by_browsers(local: tuple[Session, Web, Any], guest: Web) -> None:
    for web in (local[1], guest):
        for method, path, body in [*requests_of("kept"), ("GET", "/login", None), ("GET", "/none", None)]:
            kept = dict(web.ask(method, path, body)[1]).get("cache-control") != "no-store"
            assert kept == path.endswith((".css", ".svg", ".json", "app_id")), path


# ---------------------------------------------------------------------------------------------------- password and keys


def test_guesses_are_slowed_and_lock_nobody_else_out(shared: tuple[Session, Web, Any]) -> None:
    web = Web(shared[1].port)
    codes = [web.login(f"guess {n}", source="127.0.0.5")[0] for n in range(FREE_GUESSES + 3)]
    assert codes[:FREE_GUESSES] == [401] * FREE_GUESSES and codes[-1] == 429, codes
    status, headers = web.login(PASSWORD, source="127.0.0.5")
    assert status == 429 and 1 <= int(dict(headers)["retry-after"]) <= 2
    assert web.login(PASSWORD, source="127.0.0.6")[0] == 200
    # A browser that was here before is no stranger at that address either.
    assert web.login(PASSWORD, source="127.0.0.5")[0] == 200


def test_wrong_keys_are_slowed_too(shared: tuple[Session, Web, Any]) -> None:
    web = Web(shared[1].port)
    codes = [
        web.ask("GET", path, source="127.0.0.7", authorization=f"Bearer guess-{n}")[0]
        for n in range(15)
        for path in ("/v1/models", "/health")
    ]
    assert codes[0] == 401 and codes[1] == 200 and codes[-1] == 429
    status, headers, text = web.ask("GET", "/v1/models", source="127.0.0.7", authorization="Bearer x")
    assert status == 429 and "retry-after" in dict(headers) and "keys" in problem(json.loads(text))["message"]
    assert web.ask("GET", "/v1/models", source="127.0.0.1", authorization=f"Bearer {KEY}")[0] == 200


def test_a_form_of_any_kind_logs_in_and_logout_ends_ones_own_session_alone(shared: tuple[Session, Web, Any]) -> None:
    ann, bob, cy = (Web(shared[1].port) for _ in range(3))
    assert ann.login(source="127.0.0.10")[0] == 200 == bob.login(source="127.0.0.10")[0]
    form = b'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\n%s\r\n--x--\r\n' % PASSWORD.encode()
    status, headers, _ = cy.ask(
        "POST", "/login", form, content_type="multipart/form-data; boundary=x", accept="text/html"
    )
    assert status == 303 and dict(headers)["location"] == "/"
    for body in (b"", b"password=", b"username=me", b"password", b"\xff" * 100, b"&" * 5000):
        assert Web(ann.port).ask("POST", "/login", body, source="127.0.0.11")[0] in (401, 429), body
    assert ann.ask("GET", "/")[0] == 200 == bob.ask("GET", "/")[0]
    status, headers, _ = ann.ask("GET", "/logout")
    assert status == 303 and any("Max-Age=0" in value for name, value in headers if name == "set-cookie")
    # Her cookie is worth nothing any more, and his is.
    assert ann.ask("GET", "/")[0] == 401 and bob.ask("GET", "/")[0] == 200
    assert "<form" in ann.ask("GET", "/")[2] and "gradio_config" not in ann.ask("GET", "/")[2]


def test_nobody_chooses_whose_visitor_they_are(shared: tuple[Session, Web, Any], tmp_path: Path) -> None:
    web = Web(shared[1].port)
    assert web.login(source="127.0.0.12")[0] == 200
    name = next(name for name in web.cookies if name.startswith(COOKIE))
    own = web.cookies[name]
    for chosen in (
        "ann",
        "",
        own.partition(".")[0],
        own[:-1] + ("1" if own[-1] == "0" else "0"),
        own + "x",
        "." + own,
        own.replace(".", "x."),
    ):
        other = Web(web.port)
        other.cookies |= {name: chosen, COOKIE: chosen}
        assert other.login(source="127.0.0.12")[0] == 200
        assert other.cookies[name].partition(".")[0] not in (chosen, own.partition(".")[0]), chosen
    # The same browser is the same visitor, also after it has left; a cookie that comes later changes nothing.
    web.ask("GET", "/logout")
    assert web.login(source="127.0.0.12")[0] == 200 and web.cookies[name] == own
    # Gradio sees the visitor of the session, whatever the browser says.
    seen: list[Any] = []

    async def gradio(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]).get(b"cookie"))

    async def body() -> Any:
        return {"type": "http.request", "body": b"password=" + PASSWORD.replace(" ", "+").encode(), "more_body": False}

    given: list[bytes] = []

    async def send(message: Any) -> None:
        given.extend(v.partition(b";")[0] for n, v in message.get("headers", ()) if n == b"set-cookie")

    def ask(server: Guard, method: str, path: str, cookie: bytes) -> None:
        headers = [(b"host", b"box"), (b"cookie", cookie)]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
        asyncio.run(server(scope, body, send))

    def started() -> Guard:
        return Guard(gradio, False, login.Login(PASSWORD, Visitors(tmp_path), 1), guests=True)

    first = started()
    ask(first, "POST", "/login", b"")
    session, cookie = given
    for more in (b"", cookie, b"hsd-visitor=ann", b"hsd-visitor="):
        ask(first, "GET", "/", session + b"; " + more)
    token = cookie.partition(b"=")[2].partition(b".")[0]
    assert seen == [COOKIE.encode() + b"=" + token] * 4, (
        "Gradio sees the visitor of the session, whatever the browser says"
    )
    # The key is kept: after a restart the browser logs in again and is who it was.
    given.clear()
    ask(started(), "POST", "/login", cookie)
    assert given[1] == cookie
    assert stat.S_IMODE((tmp_path / "visitors.key").stat().st_mode) == 0o600


# --------------------------------------------------------------------------------------------------- a browser
# Last: its event loop is in the way of others.


@pytest.mark.browser
def test_in_a_browser_no_other_page_reads_a_visitors_chat(browser: Any, shared: tuple[Session, Web, Any]) -> None:
    _, web, _ = shared
    title = "narwhals and their secrets"

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<title>evil</title>")

        def log_message(self, *_: Any) -> None:
            pass

    evil = ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    threading.Thread(target=evil.serve_forever, daemon=True).start()
    chat_at = f"http://127.0.0.1:{web.port}"
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(chat_at)
        page.fill("#password", "not this one")
        page.click("button")
        assert "This is not the password" in page.inner_text("[role=alert]")
        page.fill("#password", PASSWORD)
        page.click("button")
        page.wait_for_selector("#message textarea")
        page.fill("#message textarea", title)
        page.press("#message textarea", "Enter")
        page.wait_for_selector(f".listing:has-text('{title}')")
        # Another port is the same site, so that cookies are sent; another name for this machine is another site.
        for name in ("127.0.0.1", "localhost"):
            other = context.new_page()
            other.goto(f"http://{name}:{evil.server_port}/")
            for method, path, body in requests_of("foreign2"):
                read = other.evaluate(
                    """async ([url, method, body]) => {
                      const sent = { method, credentials: "include" };
                      if (body) Object.assign(sent, { body, headers: { "content-type": "application/json" } });
                      try { return await (await fetch(url, sent)).text(); } catch (error) { return "refused"; }
                    }""",
                    [chat_at + path, method, body and json.dumps(body)],
                )
                assert read == "refused", (name, path)
            other.close()
    finally:
        context.close()
        evil.shutdown()
        evil.server_close()
