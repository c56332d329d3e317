"""What the guard rests on, without a server: addresses, guesses, passwords, signed cookies, unread bodies."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_server import free_port
from click.testing import CliRunner

import hsd
from chat import app, login
from chat.__main__ import chat
from chat.api_http import Exchange
from chat.guard import COOKIE, Guard, visitor
from chat.hosts import address_of, listen
from chat.login import Guesses, Visitors, checked_password, network

JOIN, CALL = "/gradio_api/run/predict", "/gradio_api/component_server/"


@pytest.mark.parametrize(
    ("host", "where", "url"),
    [
        ("::1", {"::1"}, "http://[::1]:{}/"),
        ("[::1]", {"::1"}, "http://[::1]:{}/"),
        ("0:0:0:0:0:0:0:1", {"::1"}, "http://[::1]:{}/"),
        ("::", {"::1", "127.0.0.1"}, "http://localhost:{}/"),
        ("localhost", {"127.0.0.1"}, "http://localhost:{}/"),
        ("0.0.0.0", {"127.0.0.1"}, "http://localhost:{}/"),
        ("127.1", {"127.0.0.1"}, "http://127.0.0.1:{}/"),
        ("::ffff:127.0.0.1", {"127.0.0.1"}, "http://127.0.0.1:{}/"),
    ],
)
def test_a_host_is_listened_on_at_all_its_addresses_and_its_url_opens(host: str, where: set[str], url: str) -> None:
    port = free_port()
    sockets = listen(host, port)
    try:
        for address in where:
            socket.create_connection((address, port), 5).close()
        # Otherwise every answer of two parts takes 40 ms: asyncio sets TCP_NODELAY on no other.
        assert all(found.proto == socket.IPPROTO_TCP for found in sockets)
        assert address_of(host, port) == url.format(port)
        with pytest.raises(hsd.HsdError, match="in use"):
            listen(host, port)
    finally:
        for found in sockets:
            found.close()


@pytest.mark.parametrize("host", ["", "no.such.name.invalid", "192.0.2.1", "2001:db8::1", "a b", "x" * 300])
def test_an_address_that_is_not_here_is_refused_in_a_sentence(host: str) -> None:
    with pytest.raises(hsd.HsdError, match="Cannot listen"):
        app.check_port(host, free_port())


def test_the_wait_grows_and_is_forgotten() -> None:
    now = [0.0]
    guesses = Guesses(free=3, free_known=12, clock=lambda: now[0])
    waits = []
    for _ in range(16):
        now[0] += guesses.wait("ann")
        guesses.wrong("ann")
        waits.append(guesses.wait("ann"))
    assert waits[:7] == [0, 0, 1, 2, 4, 8, 16] and waits[-1] == login.LONGEST_WAIT and guesses.wait("bob") == 0
    now[0] += 3601
    guesses.wrong("ann")
    assert guesses.wait("ann") == 0
    # A right one shows that the wrong ones were mistakes.
    guesses.right("ann")
    for _ in range(10):
        guesses.wrong("ann")
    assert guesses.wait("ann") == 0
    # All together, wherever they come from; who was here before may still try.
    for number in range(login.GUESSES_AN_HOUR):
        guesses.wrong(f"address {number}")
    assert guesses.wait("new") > 0 == guesses.wait("new", trusted=True)
    assert network("2001:db8::1") == network("2001:db8::2:3") != network("2001:db8:0:1::1")
    assert network("::ffff:10.0.0.1") == network("10.0.0.1") == "10.0.0.1"


@pytest.mark.parametrize("password", ["", "short", "seven77", "x" * 1001, "with\nline break", "\ud800 half of one"])
def test_a_password_that_is_easily_guessed_or_cannot_be_typed_is_refused(password: str, tmp_path: Path) -> None:
    with pytest.raises(hsd.ConfigError, match="password"):
        checked_password(password)
    if password.isprintable() and len(password) < 100:
        given = ["--password", password, "--data-dir", str(tmp_path), "--no-browser"]
        result = CliRunner().invoke(chat, given)
        assert result.exit_code == 1 and "8 to 1000 letters" in result.output and "Hint:" in result.output


def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[app.Arguments] = []
    monkeypatch.setattr(app, "serve", lambda arguments: given.append(arguments) or 0)
    file, run = tmp_path / "secret", CliRunner().invoke
    file.write_bytes(b"\xef\xbb\xbfwith umlauts \xc3\xa4\r\nnot this\n")
    assert run(chat, ["--password-file", str(file)], env={"HSD_PASSWORD": "from outside"}).exit_code == 0
    assert run(chat, ["--api-key-file", str(file)], env={"HSD_PASSWORD": "from outside"}).exit_code == 0
    assert run(chat, ["--password", "as argument"], env={"HSD_PASSWORD": ""}).exit_code == 0
    assert run(chat, [], env={"HSD_PASSWORD": "", "HSD_API_KEY": ""}).exit_code == 0
    assert [(a.password, a.api_key) for a in given] == [
        ("with umlauts ä", None),
        ("from outside", "with umlauts ä"),
        ("as argument", None),
        (None, None),
    ]
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "empty", "binary"):
        for option in ("--password-file", "--api-key-file"):
            result = run(chat, [option, str(tmp_path / name)])
            assert result.exit_code == 1 and option in result.output and "Hint:" in result.output
    assert run(chat, ["--password", "as argument", "--password-file", str(file)]).exit_code == 2
    assert "--password-file" in run(chat, ["--help"]).output


def test_a_visitor_of_an_older_version_keeps_what_they_wrote(tmp_path: Path) -> None:
    old = "abcdefghijklmnopqrstuvwx"
    who = visitor(SimpleNamespace(cookies={COOKIE: old}, session_hash="x"))
    visitors = Visitors(tmp_path, used=lambda hashed: hashed == who)
    assert visitors.token(old) == old and visitors.token("abcdefghijklmnopqrstuvwy") is None
    assert visitors.token(visitors.cookie(old)) == old
    # Signed ones of before the name had the key in it are taken too.
    assert visitors.known({COOKIE: visitors.cookie(old)}, False) == old == visitors.known({COOKIE: old}, False)
    assert visitors.known({f"__Host-{COOKIE}": old}, True) == old and visitors.known({COOKIE: old}, True) is None


def test_chats_at_other_ports_of_a_machine_take_no_visitor_from_each_other(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here, there = (Visitors(tmp_path / name) for name in ("here", "there"))
    jar: dict[str, str] = {}
    tokens = []
    # A browser sends to both what either gave it, and keeps one cookie of each name.
    for visitors in (here, there, here, there):
        token = visitors.known(jar, False) or visitors.new()
        jar[visitors.name] = visitors.cookie(token)
        tokens.append(token)
    assert tokens[:2] == tokens[2:] and tokens[0] != tokens[1] and len(jar) == 2
    # The key is kept, and so is the name.
    assert Visitors(tmp_path / "here").known(jar, False) == tokens[0]


def test_who_logs_in_again_and_again_ends_nobody_elses_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "MOST_SESSIONS", 20)
    asking = login.Login("open sesame", Visitors(tmp_path), 1)

    def enter(address: str) -> dict[str, str]:
        given: list[bytes] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"password=open+sesame"}

        async def send(message: Any) -> None:
            given.extend(v.partition(b";")[0] for n, v in message.get("headers", ()) if n == b"set-cookie")

        scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "client": (address, 1)}
        asyncio.run(asking.enter(Exchange(scope, receive, send), {}, False))
        return dict(value.decode().split("=", 1) for value in given)

    quiet, beside = enter("192.0.2.1"), enter("192.0.2.2")
    many = []
    for _ in range(60):
        many.append(enter("192.0.2.2"))
        # One that is used at the same address stays too.
        assert asking.member(beside, False)
    assert asking.member(quiet, False) and asking.member(many[-1], False) and not asking.member(many[0], False)
    assert len(asking._members) == 20


def test_nothing_of_a_body_is_read_before_host_origin_login_route_and_size(tmp_path: Path) -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError("the body was read, or Gradio was asked")

    status: list[int] = []

    async def send(message: Any) -> None:
        status.append(message.get("status", 0)) if message["type"] == "http.response.start" else None

    asking = login.Login("open sesame", Visitors(tmp_path), 1)
    for path, headers, code, asks in (
        (JOIN, {b"host": b"evil.example"}, 421, None),
        (JOIN, {b"origin": b"null"}, 403, None),
        (JOIN, {}, 401, asking),
        ("/gradio_api/upload", {}, 401, asking),
        ("/gradio_api/upload", {}, 404, None),
        ("/login", {}, 413, asking),
        (JOIN, {}, 413, None),
        (CALL, {b"content-length": b"5000000"}, 413, None),
        (CALL, {b"content-length": b"5", b"content-type": b"text/plain"}, 415, None),
    ):
        given = {b"host": b"localhost", b"content-type": b"application/json", b"content-length": b"%d" % (1 << 30)}
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [*{**given, b"expect": b"1", **headers}.items()],
        }
        asyncio.run(Guard(never, True, asks)(scope, never, send))
        assert status.pop() == code, (path, headers)
