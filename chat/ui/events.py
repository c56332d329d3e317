"""What a page may send to Gradio, checked: what is no event of ours ends in a sentence, before Gradio sees it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import gradio as gr

from chat import limits
from chat.api_http import replayed

PREFIX = "/gradio_api/"
EVENT = "run/predict"
FUNCTIONS = "component_server"
SESSION = re.compile(r"[\w-]{1,64}", re.A)
MOST_BYTES = limits.FILE_LETTERS + (4 << 20)
TOLD = ("action", "id", "text")
"""What comes with a click on HTML of ours, see `Click`."""

MOST_NUMBER = 2**53
"""The largest whole number that a browser can write."""


class _Wrong(Exception):
    """What a page of ours does not send: a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Events:
    """ASGI middleware before Gradio.

    Args:
        page: what the events are about.
    """

    def __init__(self, app: Any, page: gr.Blocks) -> None:
        self.app, self._page = app, page

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = str(scope.get("path", ""))
        if scope["type"] != "http" or not path.startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        name = path.removeprefix(PREFIX).rstrip("/")
        try:
            if scope["method"] == "POST":
                receive = replayed(self._checked(name, await _body(receive)), receive)
        except _Wrong as wrong:
            await _refuse(send, wrong)
            return
        await self.app(_without_length(scope), receive, send)

    def _checked(self, name: str, body: bytes) -> bytes:
        """The body with nothing in it but what is known."""
        if name not in (EVENT, FUNCTIONS):
            raise _Wrong(404, "The page sends nothing to this address.")
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            raise _Wrong(400, "The body is no JSON.") from None
        if not isinstance(given, dict):
            raise _Wrong(400, "The body is no JSON object.")
        session = given.get("session_hash")
        if not isinstance(session, str) or not SESSION.fullmatch(session):
            raise _Wrong(400, "session_hash is not the name of a page.")
        kept = self._function(given) if name == FUNCTIONS else self._event(given)
        # Half a character, which JSON can write, cannot be sent on.
        return json.dumps({**kept, "session_hash": session}, ensure_ascii=False).encode("utf-8", "replace")

    def _event(self, given: Mapping[str, Any]) -> dict[str, Any]:
        number, data = given.get("fn_index"), given.get("data")
        function = self._page.fns.get(number) if _whole(number) else None
        if function is None or function.fn is None:
            raise _Wrong(404, "fn_index is no event of this page.")
        if not isinstance(data, list) or len(data) != len(function.inputs):
            raise _Wrong(400, f"data is not a list of {len(function.inputs)} values.")
        for place, (block, value) in enumerate(zip(function.inputs, data, strict=True)):
            if not _fits(block, value):
                raise _Wrong(400, f"data[{place}] is not what its field holds.")
        told = given["event_data"] if isinstance(given.get("event_data"), dict) else {}
        trigger = given.get("trigger_id")
        return {
            "fn_index": number,
            "data": data,
            "event_data": {k: v for k, v in told.items() if k in TOLD and isinstance(v, str)},
            "trigger_id": trigger if _whole(trigger) else None,
        }

    def _function(self, given: Mapping[str, Any]) -> dict[str, Any]:
        number, name = given.get("component_id"), given.get("fn_name")
        block = self._page.blocks.get(number) if _whole(number) else None
        known = block is not None and isinstance(name, str) and name.isidentifier()
        if not known or not getattr(getattr(block, str(name), None), "_is_server_fn", False):
            raise _Wrong(404, "component_id and fn_name are no function of this page.")
        data = given.get("data")
        return {"component_id": number, "fn_name": name, "data": data if isinstance(data, dict | str) else {}}


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_NUMBER


def _fits(block: Any, value: object) -> bool:
    """Whether a field can hold a value; what a person wrote into it is judged where it is used."""
    if value is None or isinstance(value, bool):
        return value is None or isinstance(block, gr.Checkbox)
    if isinstance(block, gr.Slider | gr.Number):
        return _whole(value) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, str)


async def _body(receive: Any) -> bytes:
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MOST_BYTES:
            raise _Wrong(413, f"The body is larger than {MOST_BYTES >> 20} MB.")
        chunks.append(chunk)
        more = message["type"] == "http.request" and message.get("more_body", False)
    return b"".join(chunks)


def _without_length(scope: Any) -> Any:
    return {**scope, "headers": [header for header in scope["headers"] if header[0] != b"content-length"]}


async def _refuse(send: Any, wrong: _Wrong) -> None:
    body = json.dumps({"detail": str(wrong)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": wrong.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
