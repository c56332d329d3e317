"""The API beside the page: what clients of OpenAI's chat completions ask for, answered by the page's own worker.

It checks who asks by itself: what Gradio asks of visitors of the page does not cover it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import hsd
from chat import api_fields
from chat.api_answers import Answer
from chat.api_fields import ApiError
from chat.api_http import Exchange, Gone
from chat.api_replies import Telling, failed
from chat.api_request import ApiRequest
from chat.login import Guesses, network, slow_down
from chat.session import Session

log = logging.getLogger(__name__)

MOST_OPEN = 32
"""Requests that are answered or wait at once; the next is asked to come again."""

AGAIN_SECONDS = 5
SHORTEST_KEY = 8
FREE_GUESSES = 20
FREE_GUESSES_KNOWN = 40
"""Wrong keys before an address has to wait: programs try again by themselves, also beside one that has the key."""


def checked_key(key: str | None) -> str | None:
    """The key that clients must send, or None.

    Raises:
        ConfigError: it is too short, or holds what a header cannot.
    """
    if key is None:
        return None
    if len(key) < SHORTEST_KEY or not all("!" <= letter <= "~" for letter in key):
        raise hsd.ConfigError(
            f"The API key is no key of at least {SHORTEST_KEY} letters, digits and signs without blanks.",
            "Make one: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'.",
        )
    return key


class Api:
    """ASGI middleware: answers /health and /v1, and leaves the rest to the page.

    Args:
        session: whose worker answers.
        key: what clients must send as a bearer; None asks for none.
        free: answer without a key, where there is none. Only where nobody but the person at this machine can ask,
            and the page asks for nothing either.

    With a key, pages from everywhere may ask: a browser adds no bearer by itself.
    """

    def __init__(self, app: Any, session: Session, key: str | None = None, free: bool = False) -> None:
        self.app, self._session, self._free = app, session, free
        self._key = key.encode() if key else None
        self._guesses = Guesses(FREE_GUESSES, FREE_GUESSES_KNOWN)
        self._begun = int(time.time())
        self._places = set(range(MOST_OPEN))
        self._routes: dict[str, tuple[str, Callable[[Exchange], Awaitable[None]]]] = {
            "/health": ("GET", self._health),
            "/v1/models": ("GET", self._models),
            "/v1/chat/completions": ("POST", self._chat),
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(("/health/", "/v1/")):
            await self.app(scope, receive, send)
            return
        http = Exchange(scope, receive, _shared(scope, send) if self._key else send)
        try:
            try:
                await self._answer(http, foreign=bool(scope.get("hsd.foreign")))
            except ApiError as error:
                await http.refuse(error)
            except Gone:
                raise
            except Exception:
                log.exception("a request to the API failed")
                if http.begun:
                    raise
                await http.refuse(failed("The server failed. Its log says why."))
        except Gone:
            pass

    async def _answer(self, http: Exchange, foreign: bool) -> None:
        if self._key is not None and http.method == "OPTIONS":
            await http.answer(204, "text/plain", b"", _preflight(http))
            return
        known = self._allow(http, foreign)
        path = http.path.rstrip("/") or "/"
        if path == "/health" and not known:
            await self._health(http, bare=True)
            return
        method, route = ("GET", self._model) if path.startswith("/v1/models/") else self._routes.get(path, ("", None))
        if route is None:
            there = ", ".join(f"{method} {path}" for path, (method, _) in self._routes.items())
            raise ApiError(404, f"There is no {path[:80]} here.", f"There is {there}.", code="unknown_url")
        if http.method != method and not (method == "GET" and http.method == "HEAD"):
            raise ApiError(405, f"{path} takes no {http.method}.", f"Send a {method}.", headers={"allow": method})
        await route(http)

    def _allow(self, http: Exchange, foreign: bool) -> bool:
        """Whether the client is known; False where it may see no more than that this is up.

        Raises:
            ApiError: it may see nothing.
        """
        if self._key is not None:
            if self._has_key(http):
                return True
            if http.path.rstrip("/") == "/health":
                return False
            raise ApiError(
                401,
                "The API key is missing or wrong.",
                "Send the header 'Authorization: Bearer KEY' with the key that this server was started with.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        if not self._free:
            raise ApiError(
                403,
                "The API is off: it was given no key, and the page of this server asks for a password.",
                "Start it with --api-key-file or --api-key, or set HSD_API_KEY.",
                code="api_off",
            )
        if foreign:
            raise ApiError(
                403,
                "A web page from elsewhere asks, and this server was given no key.",
                "Start it with --api-key to let pages of yours in that know it.",
                code="foreign_origin",
            )
        return True

    def _has_key(self, http: Exchange) -> bool:
        """Whether the key was sent. Raises ApiError where too many wrong ones were."""
        assert self._key is not None
        scheme, _, given = http.header("authorization").partition(b" ")
        if scheme.lower() != b"bearer" or not given.strip():
            return False
        who = network(http.client)
        if (wait := self._guesses.wait(who)) > 0:
            raise slow_down(wait, "keys")
        if secrets.compare_digest(given.strip(), self._key):
            self._guesses.right(who)
            return True
        self._guesses.wrong(who)
        return False

    # What there is

    async def _health(self, http: Exchange, bare: bool = False) -> None:
        view = self._session.engine
        up = view.state in ("ready", "unloaded")
        values: dict[str, Any] = {"status": "ok" if up else "error" if view.state == "failed" else "loading"}
        if not bare:
            values |= {"model": self._family, "state": view.state, "waiting": view.waiting, "error": view.error}
            if view.progress and not up:
                values |= {"progress": {name: getattr(view.progress, name) for name in _PROGRESS}}
        await http.reply(200 if up else 503, values, None if up else {"retry-after": str(AGAIN_SECONDS)})

    @property
    def _family(self) -> str:
        info = self._session.engine.info
        return self._session.family or (info.name if info else "")

    def _described(self) -> dict[str, Any]:
        info = self._session.engine.info
        about: dict[str, Any] = {"id": self._family, "object": "model", "created": self._begun, "owned_by": "hsd"}
        if info:
            about["max_model_len"] = info.context
            about["meta"] = {
                "n_ctx": info.context,
                "target": info.target,
                "levels": list(info.models),
                "n_params": info.parameters.get(info.target),
            }
        return about

    async def _models(self, http: Exchange) -> None:
        await http.reply(200, {"object": "list", "data": [self._described()]})

    async def _model(self, http: Exchange) -> None:
        self._check_model(http.path.rstrip("/").removeprefix("/v1/models/"))
        await http.reply(200, self._described())

    def _check_model(self, name: object) -> None:
        if name is not None and not isinstance(name, str):
            raise ApiError(400, "model is not a text.", f"Send '{self._family}', or leave it out.", param="model")
        if name and name != self._family:
            raise ApiError(
                404,
                f"The model '{name[:80]}' does not exist here.",
                f"There is '{self._family}'; another is served after it was chosen on the page.",
                param="model",
                code="model_not_found",
            )

    # Replies

    async def _chat(self, http: Exchange) -> None:
        if http.header("content-type").partition(b";")[0].strip().lower() != b"application/json":
            # Pages from elsewhere may send other types without asking first.
            raise ApiError(415, "The body is not said to be JSON.", "Send 'Content-Type: application/json'.")
        values = api_fields.parse(await http.body())
        self._check_model(values.get("model"))
        context = self._ready().context
        asked = api_fields.read(values, context, self._session.default_plan, self._session.levels())
        answer = Answer(f"chatcmpl-{secrets.token_hex(12)}", self._family)
        with self._place() as place:
            telling = Telling(http, answer)
            request = ApiRequest(
                answer.identifier,
                place,
                asked.messages,
                asked.params,
                asked.plan,
                visitor=f"api {http.client}",
                tell=telling.news.tell,
            )
            self._session.worker.submit(request)
            try:
                await http.unless_gone(
                    telling.stream(request, counted=asked.usage) if asked.stream else telling.whole(request)
                )
            finally:
                # Whoever asked has the reply or is gone: in both cases nobody waits for more of it.
                self._session.worker.cancel(place)

    def _ready(self) -> hsd.FamilyInfo:
        """The family, if it can answer now or will when it is asked. Raises ApiError where it cannot."""
        view = self._session.engine
        if view.info and view.state in ("ready", "unloaded", "loading"):
            return view.info
        if view.state in ("starting", "loading"):
            at = f": {view.progress.model} {view.progress.step}".rstrip() if view.progress else ""
            raise _later(503, f"The family '{self._family}' is being loaded{at}.", "loading", "server_error")
        raise failed(view.error or "The server is ending.", 503)

    @contextlib.contextmanager
    def _place(self) -> Iterator[str]:
        """A name for a request among the worker's. There are so many: what is kept of each does not add up."""
        if not self._places:
            raise _later(429, f"{MOST_OPEN} requests wait already.", "rate_limit_exceeded", "rate_limit_error")
        place = self._places.pop()
        try:
            yield f"api-{place}"
        finally:
            self._places.add(place)


def _shared(scope: Any, send: Any) -> Any:
    """Answers that the page of any origin may read."""
    origin = next((value for name, value in scope["headers"] if name == b"origin"), None)

    async def shared(message: Any) -> None:
        if message["type"] == "http.response.start" and origin is not None:
            more = [
                (b"access-control-allow-origin", b"*"),
                (b"access-control-expose-headers", b"retry-after"),
            ]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return shared


def _preflight(http: Exchange) -> list[tuple[str, str]]:
    """What a browser asks before it sends the key."""
    asked = http.header("access-control-request-headers").decode("latin-1")
    return [
        ("access-control-allow-methods", "GET, POST"),
        ("access-control-allow-headers", asked if _HEADER_NAMES.fullmatch(asked) else "authorization, content-type"),
        ("access-control-allow-private-network", "true"),
        ("access-control-max-age", "600"),
    ]


_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+(, ?[A-Za-z0-9-]+)*", re.ASCII)


def _later(status: int, sentence: str, code: str, kind: str) -> ApiError:
    """What is asked for is there in a while."""
    again = {"retry-after": str(AGAIN_SECONDS)}
    return ApiError(status, sentence, "Ask again in some seconds.", code=code, kind=kind, headers=again)


_PROGRESS = ("model", "step", "done", "total")
