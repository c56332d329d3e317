"""Who a visitor is: the password and its guesses, sessions, and the cookie by which a browser is known again.

Gradio's own login is not used: it checks after it has read a body, and not on all of its routes.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import math
import secrets
import time
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import hsd
from chat.api_fields import ApiError
from chat.api_http import Exchange
from chat.hosts import ip_address

COOKIE = "hsd-visitor"
SESSION = "hsd-session"
YEAR_SECONDS = 365 * 24 * 3600
SESSION_SECONDS = 30 * 24 * 3600
MOST_SESSIONS = 10_000
"""Where there are more, the one ends that was not used for longest, of the network that has most."""

KEY_BYTES = 32
SHORTEST_PASSWORD = 8
LONGEST_PASSWORD = 1000
LOGIN_BYTES, LOGIN_BODY_SECONDS = 16 << 10, 5.0

FREE_GUESSES = 5
LONGEST_WAIT = 900.0
GUESSES_AN_HOUR = 600
"""Wrong ones of all addresses together."""

MOST_ADDRESSES = 10_000


def checked_password(password: str | None) -> str | None:
    """The password that visitors must know; None for none.

    Raises:
        ConfigError: it is too short, or cannot be typed into a form.
    """
    if password is None:
        return None
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD or not password.isprintable():
        raise hsd.ConfigError(
            f"The password does not have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} letters, digits and signs.",
            "Choose a longer one, or leave it out: one is made where it is needed.",
        )
    return password


def hashed(token: str) -> str:
    """A visitor's token as it is stored."""
    return hashlib.sha256(token.encode()).hexdigest()[:24]


class Visitors:
    """Tokens of browsers, signed, so that nobody can choose one. The key is kept: browsers outlive the program.

    Args:
        folder: of the key.
        used: whether a token is in use, as `hashed` gives it. Those of older versions are not signed.

    Attributes:
        name: of the cookie. Browsers send cookies to all ports of a machine: programs with other keys have others.
    """

    def __init__(self, folder: Path, used: Callable[[str], bool] = lambda _: False) -> None:
        self._used = used
        path = folder / "visitors.key"
        try:
            hsd.private_file(path)
            if path.stat().st_size < KEY_BYTES:
                # Another program may do the same now: both take what was written first.
                with path.open("ab") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
            self._key = path.read_bytes()[:KEY_BYTES]
        except OSError:
            # Where nothing can be written, browsers are known until the program ends.
            self._key = secrets.token_bytes(KEY_BYTES)
        self.name = f"{COOKIE}-{hmac.new(self._key, b'name', 'sha256').hexdigest()[:8]}"

    def new(self) -> str:
        """A token that nobody has."""
        return secrets.token_urlsafe(18)

    def cookie(self, token: str) -> str:
        """What a browser keeps of its token."""
        return f"{token}.{hmac.new(self._key, token.encode(), 'sha256').hexdigest()[:40]}"

    def token(self, cookie: str) -> str | None:
        """The token in a cookie; None if it was not given by this program."""
        token, _, _ = cookie.partition(".")
        if secrets.compare_digest(cookie.encode(), self.cookie(token).encode()) and token:
            return token
        return cookie if len(cookie) == len(self.new()) and cookie.isascii() and self._used(hashed(cookie)) else None

    def known(self, cookies: Mapping[str, str], https: bool) -> str | None:
        """The token of a browser that was here before, also with an older version; None for another."""
        given = (self.token(cookies.get(secure(name, https), "")) for name in (self.name, COOKIE))
        return next((token for token in given if token), None)


class Guesses:
    """Slows those who guess: after some wrong guesses an address waits, twice as long after each further one.

    Args:
        free: wrong guesses before the first wait.
        free_known: the same for an address that guessed right within an hour.
        clock: seconds.
    """

    def __init__(
        self, free: int = FREE_GUESSES, free_known: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._free, self._free_known, self._clock = free, max(free, free_known), clock
        self._by: dict[str, tuple[int, float]] = {}
        self._right: dict[str, float] = {}
        self._all: deque[float] = deque(maxlen=GUESSES_AN_HOUR)

    def wait(self, who: str, trusted: bool = False) -> float:
        """Seconds until this address may guess again; 0 if it may now. `trusted`: the limit for all is not for it."""
        now = self._clock()
        count, last = self._by.get(who, (0, now))
        free = self._free_known if now - self._right.get(who, -math.inf) < 3600 else self._free
        own = last + min(LONGEST_WAIT, 2.0 ** min(count - free, 20)) - now if count >= free else 0.0
        full = len(self._all) == GUESSES_AN_HOUR and not trusted
        return max(0.0, own, self._all[0] + 3600 - now if full else 0.0)

    def wrong(self, who: str) -> None:
        """Count a wrong guess. They are forgotten after an hour without one."""
        now = self._clock()
        count, last = self._by.pop(who, (0, now))
        self._by[who] = (count + 1 if now - last < 3600 else 1, now)
        self._all.append(now)
        _bound(self._by)

    def right(self, who: str) -> None:
        """A right guess: the wrong ones before it were mistakes."""
        self._by.pop(who, None)
        self._right.pop(who, None)
        self._right[who] = self._clock()
        _bound(self._right)


def _bound(table: dict[str, Any], most: int = MOST_ADDRESSES) -> None:
    while len(table) > most:
        del table[next(iter(table))]


def network(address: str) -> str:
    """Whose guesses are counted together: an IPv4 address, or a network of IPv6, which one person may have whole."""
    found = ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found or address)


def slow_down(seconds: float, what: str) -> ApiError:
    """Too many wrong guesses."""
    again = math.ceil(seconds)
    return ApiError(
        429,
        f"Too many wrong {what}.",
        f"Try again in {again} {'second' if again == 1 else 'seconds'}.",
        code="rate_limit_exceeded",
        kind="rate_limit_error",
        headers={"retry-after": str(again)},
    )


@dataclass(frozen=True, slots=True)
class Member:
    """A browser that has logged in: the token of its visitor, until when it need not do so again, and from where."""

    visitor: str
    until: float
    network: str


class Login:
    """The password, and who has given it. A session is a cookie; it ends with the program, or by /logout.

    Args:
        password: what visitors must know.
        visitors: gives browsers their tokens.
        port: tells the cookies of several programs on one machine apart.
    """

    def __init__(self, password: str, visitors: Visitors, port: int) -> None:
        self._password, self._visitors = _digest(password), visitors
        self._name = f"{SESSION}-{port}"
        self._members: dict[bytes, Member] = {}
        self.guesses = Guesses()

    def member(self, cookies: Mapping[str, str], https: bool) -> Member | None:
        """Who asks with these cookies; None if nobody who has logged in."""
        session = _digest(cookies.get(secure(self._name, https), ""))
        member = self._members.pop(session, None)
        if member is None or member.until <= time.time():
            return None
        self._members[session] = member  # the last one that was used
        return member

    async def enter(self, http: Exchange, cookies: Mapping[str, str], https: bool) -> None:
        """Answer a form with the password. Raises ApiError where it is wrong, or where too many were."""
        known = self._visitors.known(cookies, https)
        # A browser that has logged in before is told apart from strangers at the same address.
        who = f"visitor {known}" if known else network(http.client)
        if (wait := self.guesses.wait(who, trusted=known is not None)) > 0:
            raise slow_down(wait, "passwords")
        given = _form_field(await http.body(LOGIN_BYTES, LOGIN_BODY_SECONDS), http.header("content-type"), "password")
        # The wait is looked at again: other guesses came while this one was on its way.
        if (wait := self.guesses.wait(who, trusted=known is not None)) > 0:
            raise slow_down(wait, "passwords")
        if not secrets.compare_digest(_digest(given), self._password):
            self.guesses.wrong(who)
            raise ApiError(401, "This is not the password.", "Type it as you were given it.", code="wrong_password")
        self.guesses.right(who)
        token, session = known or self._visitors.new(), secrets.token_urlsafe(32)
        self._members[_digest(session)] = Member(token, time.time() + SESSION_SECONDS, network(http.client))
        while len(self._members) > MOST_SESSIONS:
            # Who logs in ten thousand times ends their own sessions.
            (most, _), *_ = Counter(member.network for member in self._members.values()).most_common(1)
            del self._members[next(key for key, member in self._members.items() if member.network == most)]
        set_cookies = [
            ("set-cookie", _cookie(secure(self._name, https), session, https)),
            (
                "set-cookie",
                _cookie(secure(self._visitors.name, https), self._visitors.cookie(token), https, YEAR_SECONDS),
            ),
        ]
        if b"text/html" in http.header("accept"):
            await http.answer(303, "text/plain", b"", [("location", "/"), *set_cookies])
        else:
            await http.answer(200, "application/json", b'{"success":true}', set_cookies)

    async def leave(self, http: Exchange, cookies: Mapping[str, str], https: bool) -> None:
        """End the session that asks, and no other."""
        name = secure(self._name, https)
        self._members.pop(_digest(cookies.get(name, "")), None)
        await http.answer(303, "text/plain", b"", [("location", "/"), ("set-cookie", _cookie(name, "", https, 0))])


def secure(name: str, https: bool) -> str:
    """The name of a cookie. Over https no other host of the same domain can set one of this name."""
    return f"__Host-{name}" if https else name


def _cookie(name: str, value: str, https: bool, seconds: int | None = None) -> str:
    age = "" if seconds is None else f"; Max-Age={seconds}"
    return f"{name}={value}; Path=/{age}; HttpOnly; SameSite=Lax{'; Secure' if https else ''}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "replace")).digest()


def _form_field(body: bytes, kind: bytes, name: str) -> str:
    """A field of a form, as browsers send it; "" where it is missing."""
    if kind.lower().startswith(b"multipart/form-data"):
        from email.parser import BytesParser

        message = BytesParser().parsebytes(b"Content-Type: " + kind + b"\r\n\r\n" + body)
        parts: list[Any] = message.get_payload() if message.is_multipart() else []  # type: ignore[assignment]
        found = [p.get_payload(decode=True) for p in parts if p.get_param("name", header="content-disposition") == name]
        return bytes(found[0]).decode("utf-8", "replace") if found else ""
    try:
        return parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20)[name][0]
    except (KeyError, ValueError):
        return ""


def page(title: str, problem: str = "") -> bytes:
    """The page that asks for the password."""
    said = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    return _PAGE.replace("TITLE", html.escape(title)).replace("PROBLEM", said).encode()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; --text: #1c1917; --quiet: #57534e; --line: #a8a29e; --page: #fff; --accent: #0072b2;
  --wrong: #b42318; }
@media (prefers-color-scheme: dark) {
  :root { --text: #f5f5f4; --quiet: #a8a29e; --line: #78716c; --page: #0c0a09; --accent: #3f99d0; --wrong: #f9a8a0; }
}
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--page); color: var(--text);
  font: 1rem/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
form { box-sizing: border-box; width: min(22rem, 100vw); padding: 1.5rem; display: grid; gap: .75rem; }
h1 { margin: 0; font-size: 1.25rem; font-weight: 600; }
p { margin: 0; color: var(--quiet); }
p[role=alert] { color: var(--wrong); }
input, button { box-sizing: border-box; width: 100%; padding: .6rem .75rem; border-radius: .5rem; font: inherit; }
input { border: 1px solid var(--line); background: transparent; color: inherit; }
button { border: 0; background: var(--accent); color: #fff; font-weight: 600; cursor: pointer; }
@media (prefers-color-scheme: dark) { button { color: #0c0a09; } }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.away { display: none; }
</style>
</head>
<body>
<main>
<form method="post" action="login">
<h1>TITLE</h1>
<p id="what">This chat asks for a password.</p>
PROBLEM
<input class="away" name="username" autocomplete="username" value="visitor" tabindex="-1" aria-hidden="true">
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus
  aria-describedby="what">
<button>Open the chat</button>
</form>
<script>document.forms[0].action += location.hash;</script>
</main>
</body>
</html>
"""
