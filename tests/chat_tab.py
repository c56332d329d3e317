"""A tab without a browser: does over HTTP what the page's own scripts do."""

from __future__ import annotations

import functools
import http.client
import json
import secrets
import time
import urllib.parse
from typing import Any

GROUPS = ("chat", "beside", "views")


class HttpTab:
    """One open page.

    Args:
        address: of the server.
        cookie: what a browser was given, see `browser_of`.
    """

    def __init__(self, address: str, cookie: str = "") -> None:
        self.session, self._cookie = secrets.token_hex(6), cookie
        host = urllib.parse.urlsplit(address)
        self._connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=30)
        self.config = _config(address, cookie)
        self._elements = {c["id"]: c.get("props", {}).get("elem_id") for c in self.config["components"]}
        self._ids = {name: identifier for identifier, name in self._elements.items() if name}
        self.marks = dict.fromkeys(GROUPS, "")
        self.bytes, self._used = 0, 0.0

    def post(self, path: str, body: dict[str, Any] | bytes) -> tuple[int, Any]:
        """(status, what was answered)."""
        if time.monotonic() - self._used > 3:
            # The server closes what is silent for five seconds.
            self._connection.close()
        self._used = time.monotonic()
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Cookie": self._cookie}
        self._connection.request("POST", f"/gradio_api/{path}", sent, headers)
        response = self._connection.getresponse()
        answer = response.read()
        self.bytes += len(answer)
        return response.status, json.loads(answer)

    def functions(self) -> list[dict[str, Any]]:
        """The events of the page that run something here."""
        return [d for d in self.config["dependencies"] if d["backend_fn"]]

    def event(self, data: list[Any], *, inputs: str = "", outputs: str) -> list[Any]:
        """Run the event whose first input and whose outputs hold the elements of these names; its values."""
        for function in self.functions():
            ins = [self._elements.get(i) for i in function["inputs"]]
            outs = [self._elements.get(i) for i in function["outputs"]]
            if outputs in outs and ins[:1] == ([inputs] if inputs else []):
                body = {"data": data, "fn_index": function["id"], "session_hash": self.session}
                status, told = self.post("run/predict", body)
                assert status == 200, told
                return dict(zip(outs, told["data"], strict=True))  # type: ignore[return-value]
        raise AssertionError(f"there is no event from {inputs} to {outputs}")

    def enter(self, conversation: str = "new") -> None:
        """Open a conversation, as the address of the page says."""
        self.held = self.event([conversation], inputs="current", outputs="held")["held"]  # type: ignore[call-overload]

    def call(self, element: str, name: str, data: Any) -> Any:
        """What a function of the page answers."""
        body = {"data": data, "component_id": self._ids[element], "fn_name": name, "session_hash": self.session}
        status, told = self.post("component_server/", body)
        assert status == 200, told
        return told

    def click(self, element: str, action: str, identifier: str = "") -> None:
        """Click on something in HTML of ours."""
        for function in self.functions():
            if [self._ids[element], "select"] in function["targets"]:
                body = {
                    "data": [None] * len(function["inputs"]),
                    "fn_index": function["id"],
                    "event_data": {"action": action, "id": identifier},
                    "session_hash": self.session,
                }
                status, told = self.post("run/predict", body)
                assert status == 200, told

    def look(self, *groups: str) -> dict[str, Any]:
        """Ask what has changed and fetch that, of these groups or all; the values that came, by their elements."""
        marks = {name: mark for name, mark in self.marks.items() if name in (groups or GROUPS)}
        values: dict[str, Any] = {}
        self.told = self.call("watch-chat", "watch", {"marks": marks, "open": ""})
        for name in self.told["changed"]:
            values |= self.event([], outputs=f"watch-{name}")  # type: ignore[operator]
            self.marks[name] = values[f"watch-{name}"].split('"')[1]
        return values

    def send(self, text: str, settings: list[Any]) -> str:
        """Send a message; "stored …" or "refused …"."""
        return self.event([text, self.held, *settings], inputs="message", outputs="sent")["sent"]  # type: ignore[call-overload]


@functools.cache
def _config(address: str, cookie: str) -> dict[str, Any]:
    host = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=30)
    connection.request("GET", "/", headers={"Cookie": cookie})
    _, _, rest = connection.getresponse().read().decode().partition("window.gradio_config = ")
    found: dict[str, Any] = json.JSONDecoder().raw_decode(rest)[0]
    return found


def browser_of(address: str, password: str) -> str:
    """The cookies of a browser that has just typed the password."""
    host, jar = urllib.parse.urlsplit(address), dict[str, str]()

    def keep(response: http.client.HTTPResponse) -> None:
        response.read()
        for header in response.headers.get_all("set-cookie") or []:
            name, _, value = header.partition(";")[0].partition("=")
            jar[name] = value

    connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=30)
    form = urllib.parse.urlencode({"username": "me", "password": password})
    connection.request("POST", "/login", form, {"Content-Type": "application/x-www-form-urlencoded"})
    keep(connection.getresponse())
    connection.request("GET", "/", headers={"Cookie": "; ".join(f"{k}={v}" for k, v in jar.items())})
    keep(connection.getresponse())
    return "; ".join(f"{k}={v}" for k, v in jar.items())
