"""What stands before every request: which hosts, pages, visitors, routes and bodies are let in.

The order of the checks is the point: nothing of a body is read before host, origin, login, route and size are known,
and Gradio sees only what has passed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from chat import limits
from chat import login as logins
from chat.api_fields import ApiError
from chat.api_http import MOST_BYTES, Exchange, Gone, replayed
from chat.hosts import host_name, is_loopback, names_this_machine, same_origin
from chat.login import COOKIE, Login, Member

# Gradio's templates need inline script and eval; nothing may come from, or go to, anywhere else.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)

IMPORT_BYTES = 24 << 20
"""An imported conversation comes as the text of an event: 20 MB of it, and what JSON adds."""

LARGE_BODIES, LARGE_BODIES_OF_A_VISITOR = 4, 2
"""Bodies above `MOST_BYTES` that are held at once; the next has to come again."""

MOST_QUOTED, MOST_NESTED, MOST_OUTSIDE = 4000, 100, 64 << 10
"""Of a body: texts, lists and objects, and bytes outside of texts. An event has fewer than 50, 10 and 1,000."""

MOST_PAGES = 10_000
"""Open pages that are remembered with whose they are."""

API = ("/health", "/v1")


@dataclass(frozen=True, slots=True)
class Route:
    """A route that the page needs.

    Attributes:
        method: GET, with which HEAD comes, or POST.
        path: a regular expression for the whole path.
        public: served before the login.
        most: bytes that a body may have; its session hash is that of a page of who asks.
    """

    method: str
    path: str
    public: bool = False
    most: int = 0


PAGE = re.compile(r"[\w-]{1,64}", re.ASCII)
FILE = r"[\w@-][\w@.-]*(/[\w@-][\w@.-]*)*"
ROUTES = (
    # Browsers ask for these without cookies; there is nothing of anybody in them.
    Route("GET", r"/(favicon\.ico|robots\.txt|manifest\.json|static/img/logo_nosize\.svg)", public=True),
    Route("GET", "/"),
    Route("GET", r"/theme\.css"),
    Route("GET", f"/assets/{FILE}"),
    Route("GET", f"/static/{FILE}"),
    # An open page asks for this until the program is there again, and is then loaded anew.
    Route("GET", "/gradio_api/app_id/?", public=True),
    # Events: none goes through Gradio's queue. And functions of ours that the page calls.
    Route("POST", "/gradio_api/run/predict", most=IMPORT_BYTES),
    Route("POST", "/gradio_api/component_server/?", most=MOST_BYTES),
)
"""All that is served of Gradio; of two that match, the first counts. What is not here is a 404: also routes that a
later version of Gradio may have."""


def visitor(request: Any) -> str:
    """Who asks, as it is stored: what a browser was given, hashed, so that reading the database makes nobody a visitor.

    The guard lets no other cookie through than one that this program has given.
    """
    given = (getattr(request, "cookies", None) or {}).get(COOKIE) or f"page {getattr(request, 'session_hash', '')}"
    return logins.hashed(str(given))


class Guard:
    """ASGI middleware.

    Args:
        app: the API, and behind it the page.
        local_only: refuse requests that were addressed to another name: a web page elsewhere can point a name of its
            own at 127.0.0.1 and would otherwise read what is served here.
        login: asks for the password; None where there is none.
        guests: visitors are told apart.
        keyed: the API asks for a key, so that pages from elsewhere may use it.
        title: of the page that asks for the password.

    Attributes:
        public_host: the host of the shared link, which is reached by https alone.
    """

    def __init__(
        self,
        app: Any,
        local_only: bool,
        login: Login | None = None,
        guests: bool = False,
        keyed: bool = False,
        title: str = "hsd chat",
    ) -> None:
        self.app, self._local_only, self._login, self._guests, self._keyed = app, local_only, login, guests, keyed
        self._title = title
        self.public_host = ""
        self._routes = [(route, re.compile(route.path, re.ASCII)) for route in ROUTES]
        self._pages: dict[str, str] = {}
        # Of each visitor, what is being read.
        self._bodies: Counter[str] = Counter()
        self._large: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for_api = f"{scope['path']}/".startswith(tuple(f"{path}/" for path in API))
        http = Exchange(scope, receive, _with_headers(send, _API_HEADERS if for_api else _HEADERS))
        try:
            try:
                self._check_host(http)
                if http.header("content-length") and http.header("transfer-encoding"):
                    # A proxy may take the other one for true, and what comes behind it for another request.
                    raise ApiError(400, "The request says in two ways how long it is.", "Send one of them.")
                if for_api:
                    # It checks who asks by itself.
                    scope["hsd.foreign"] = self._foreign(http, scope)
                    await self.app(scope, receive, _with_headers(send, _API_HEADERS))
                else:
                    await self._serve(http, scope, receive, send)
            except ApiError as error:
                await self._refuse(http, error, for_api)
        except Gone:
            pass

    def _check_host(self, http: Exchange) -> None:
        given = http.headers("host")
        name = host_name(given[0].decode("latin-1")) if len(given) == 1 else None
        if name is None:
            raise ApiError(400, "The request names no host, or none that can be.", "Send one header 'Host: NAME:PORT'.")
        if self._local_only and not names_this_machine(name):
            raise ApiError(
                421,
                "This is served to this machine only, as localhost.",
                "Ask for http://localhost or http://127.0.0.1, or start it with --host for other names.",
                code="other_host",
            )

    def _https(self, http: Exchange, scope: Any) -> bool:
        """Whether the browser used https, which ends at a proxy. No page can add this header to a request unasked."""
        said = http.header("x-forwarded-proto").partition(b",")[0].strip().lower()
        host = http.header("host").decode("latin-1").lower()
        return said == b"https" or scope.get("scheme") == "https" or (not said and host == self.public_host)

    def _foreign(self, http: Exchange, scope: Any) -> bool:
        """Whether another page than our own asks. Programs that are no browser say nothing of it."""
        host = http.header("host").decode("latin-1")
        schemes = {"https"} if self._https(http, scope) else {"http"}
        if not is_loopback(host_name(host) or "") and not http.header("x-forwarded-proto"):
            # Some proxies do not say so. Nobody else can have https at this very host and port.
            schemes.add("https")
        origins = http.headers("origin")
        if len(origins) > 1 or (origins and not same_origin(origins[0].decode("latin-1"), host, schemes)):
            return True
        if http.header("sec-fetch-site").strip().lower() in (b"", b"same-origin", b"none"):
            return False
        # A link on another page may lead here, but shows what it leads to in a window of its own.
        opened = http.header("sec-fetch-mode") == b"navigate" and http.header("sec-fetch-dest") == b"document"
        return not (opened and http.method in ("GET", "HEAD") and http.path in ("/", "/login"))

    async def _serve(self, http: Exchange, scope: Any, receive: Any, send: Any) -> None:
        if self._foreign(http, scope):
            raise ApiError(403, "Another web page asks.", "Only this chat's own page may.", code="foreign_origin")
        cookies, https, member = _cookies(http), self._https(http, scope), None
        path = http.path.rstrip("/")
        route = next((route for route, pattern in self._routes if pattern.fullmatch(http.path)), None)
        if self._login and path in ("/login", "/logout"):
            await self._log(http, path, cookies, https)
            return
        if self._login and not (route and route.public):
            member = self._login.member(cookies, https)
            if member is None:
                raise ApiError(401, "This chat asks for a password.", "Open its page and type it.", code="no_login")
        if route is None:
            raise ApiError(404, "Not Found")
        if http.method != route.method and not (route.method == "GET" and http.method == "HEAD"):
            raise ApiError(
                405, f"This takes no {http.method}.", f"Send a {route.method}.", headers={"allow": route.method}
            )
        inner = _cleaned(scope, member.visitor if member and self._guests else None, https)
        if route.most:
            receive = replayed(await self._body(http, route, member), receive)
        kept = route.public or path.startswith(("/assets/", "/static/", "/theme.css"))
        await self.app(inner, receive, _filtered(send, _HEADERS if kept else (*_HEADERS, _NOT_KEPT)))

    async def _log(self, http: Exchange, path: str, cookies: dict[str, str], https: bool) -> None:
        """In and out."""
        assert self._login is not None
        if path == "/logout" and http.method in ("GET", "POST"):
            await self._login.leave(http, cookies, https)
        elif path == "/login" and http.method == "POST":
            await self._login.enter(http, cookies, https)
        elif path == "/login" and http.method in ("GET", "HEAD"):
            await http.answer(200, _HTML, logins.page(self._title))
        else:
            raise ApiError(405, f"This takes no {http.method}.", "Send a POST.", headers={"allow": "POST"})

    def _own_page(self, page: str, member: Member | None) -> None:
        """A page belongs to who first used its session hash: with it one reads its events, and sends it others."""
        if not PAGE.fullmatch(page):
            raise ApiError(400, "This is no page of ours.", "Load the page again.")
        who = member.visitor if member else ""
        if self._pages.setdefault(page, who) != who:
            raise ApiError(404, "This is the page of somebody else.", "Load the page again.")
        while len(self._pages) > MOST_PAGES:
            del self._pages[next(iter(self._pages))]

    async def _body(self, http: Exchange, route: Route, member: Member | None) -> bytes:
        """A body, read and checked. Raises ApiError where Gradio is not to see it."""
        if http.header("content-type").partition(b";")[0].strip().lower() != b"application/json":
            raise ApiError(415, "The body is not said to be JSON.", "Send 'Content-Type: application/json'.")
        large = http.declared > MOST_BYTES or not http.declared
        who = member.visitor if member else ""
        if member and self._bodies[who] >= limits.QUEUED_AT_ONCE:
            raise ApiError(429, "Too much is being read of you at once.", "Try again.", headers={"retry-after": "1"})
        own = LARGE_BODIES_OF_A_VISITOR if member else LARGE_BODIES
        if large and (self._large.total() >= LARGE_BODIES or self._large[who] >= own):
            raise ApiError(503, "Many large files are being read.", "Try again soon.", headers={"retry-after": "5"})
        self._bodies[who] += 1
        self._large[who] += large
        try:
            body = await http.body(route.most)
            # What is large takes a moment to look through, for which the others must not wait.
            event = await asyncio.to_thread(_parsed, body) if large else _parsed(body)
        finally:
            for counter, held in ((self._bodies, 1), (self._large, large)):
                counter[who] -= held
                if not counter[who]:
                    del counter[who]
        self._own_page(str(event.get("session_hash")), member)
        return body

    async def _refuse(self, http: Exchange, error: ApiError, for_api: bool) -> None:
        if for_api:
            await http.refuse(error)
        elif error.code in ("no_login", "wrong_password", "rate_limit_exceeded") and _wants_page(http):
            said = "" if error.code == "no_login" else str(error)
            await http.answer(error.status, _HTML, logins.page(self._title, said), [*error.headers.items()])
        else:
            await http.reply(error.status, {"detail": str(error)}, error.headers)


_HTML = "text/html; charset=utf-8"
_HEAD = b"<head>"
_DROPPED = (b"access-control-", b"set-cookie")
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # The page's own form must say where it comes from; other sites are told nothing.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# What somebody has written is not to be found on the disk of their browser, nor by its Back button after /logout.
_NOT_KEPT = (b"cache-control", b"no-store")
_API_HEADERS = ((b"x-content-type-options", b"nosniff"),)


def _with_headers(send: Any, headers: tuple[tuple[bytes, bytes], ...]) -> Any:
    async def with_headers(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *headers]}
        await send(message)

    return with_headers


def _filtered(send: Any, headers: tuple[tuple[bytes, bytes], ...]) -> Any:
    """What Gradio answers, with our headers, and without its own for pages from elsewhere."""

    async def filtered(message: Any) -> None:
        if message["type"] == "http.response.start":
            kept = [(n, value) for n, value in message.get("headers", ()) if not n.lower().startswith(_DROPPED)]
            message = {**message, "headers": [*kept, *headers]}
        await send(message)

    return filtered


class Beginning:
    """ASGI middleware inside Gradio's own, which compresses: lets the page begin with HTML of ours.

    Args:
        first: HTML that is to stand before any script that the page has without it.
    """

    def __init__(self, app: Any, first: str) -> None:
        self.app, self._first = app, first.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope.get("path") != "/" or scope.get("method") != "GET":
            await self.app(scope, receive, send)
            return
        held: dict[str, Any] | None = None  # how long the answer is may depend on its first part

        async def begin(message: Any) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                if dict(message.get("headers", ())).get(b"content-type", b"").startswith(b"text/html"):
                    held = message
                    return
            elif held is not None:
                start, held = held, None
                if _HEAD in message.get("body", b""):
                    message["body"] = message["body"].replace(_HEAD, _HEAD + self._first, 1)
                    start["headers"] = [_longer(header, len(self._first)) for header in start["headers"]]
                await send(start)
            await send(message)

        await self.app(scope, receive, begin)


def _longer(header: tuple[bytes, bytes], add: int) -> tuple[bytes, bytes]:
    name, value = header
    return (name, str(int(value) + add).encode()) if name == b"content-length" else header


def _wants_page(http: Exchange) -> bool:
    return http.path.rstrip("/") in ("", "/login") and (b"text/html" in http.header("accept") or http.path == "/")


def _cookies(http: Exchange) -> dict[str, str]:
    """Cookies by name. One that came twice is left out: the second may be of another host of the same domain."""
    found: dict[str, str] = {}
    twice = set()
    for part in b";".join(http.headers("cookie")).decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name in found:
            twice.add(name)
        found[name] = value
    return {name: value for name, value in found.items() if name not in twice}


_PRIVATE = (b"cookie", b"x-forwarded-host", b"x-forwarded-proto", b"origin")


def _cleaned(scope: Any, visitor: str | None, https: bool) -> Any:
    """A request as Gradio sees it: no query, no cookie but the visitor's, which was checked, nothing of proxies."""
    headers = [(name, value) for name, value in scope["headers"] if name not in _PRIVATE]
    if visitor is not None:
        headers.append((b"cookie", f"{COOKIE}={visitor}".encode()))
    return {**scope, "scheme": "https" if https else "http", "headers": headers, "query_string": b""}


def _parsed(body: bytes) -> dict[str, Any]:
    """The event in a body. Raises ApiError for what costs more than its size says, and for files.

    Gradio parses and walks through a body in its event loop, for which all wait. Texts are cheap, lists are not.
    """
    if json.detect_encoding(body) != "utf-8":
        raise _no_event()
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MOST_QUOTED:
        raise _no_event()
    outside = b"".join(bare.split(b'"')[::2])
    if len(outside) > MOST_OUTSIDE or outside.count(b"[") + outside.count(b"{") > MOST_NESTED:
        raise _no_event()
    try:
        event = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _no_event() from error
    data = event.get("data") if isinstance(event, dict) else None
    if not isinstance(event, dict) or not isinstance(event.get("session_hash"), str):
        raise _no_event()
    # Gradio fetches the address in an object that claims to be a file. The page has no fields that hold one.
    if isinstance(data, list) and any(isinstance(part, dict) for value in data for part in _within(value)):
        raise _no_event()
    return event


def _within(value: Any) -> list[Any]:
    return [value, *(part for inner in value for part in _within(inner))] if isinstance(value, list) else [value]


def _no_event() -> ApiError:
    return ApiError(400, "This is nothing that the page sends.", "Load the page again.")
