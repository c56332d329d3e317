"""A hub on loopback: the part of the real one's interface that its client uses, with faults that can be asked for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories.

    `faults` maps a repository to what goes wrong: "gated", "private", "missing", "token", "broken", "stall" (the
    first large file stops half-way), "cut" (its connection closes half-way), "short", "corrupt", "huge".
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folders: dict[str, Path] = {}
        self.faults: dict[str, str] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.cuts: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self, name: str) -> list[str]:
        """The ranges that were asked of a file, in order; "" is the whole."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(name)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.about(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.tree(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.file(match[1], match[3])
        else:
            self.refuse(404, "RepoNotFound")

    def about(self, repo: str, revision: str) -> None:
        fault = self.server.faults.get(repo)
        if fault == "private":
            self.refuse(401, "RepoNotFound")
        elif fault == "token":
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif fault == "broken":
            self.refuse(500, "")
        elif repo not in self.server.folders:
            self.refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            self.json({"id": repo, "sha": COMMIT, "siblings": []})

    def tree(self, repo: str) -> None:
        entries = []
        for file in sorted(self.server.folders[repo].iterdir()):
            data = file.read_bytes()
            size = len(data)
            if self.server.faults.get(repo) == "huge" and large(file):
                size = 10**16
            entry = {"type": "file", "path": file.name, "size": size, "oid": hashlib.sha1(data).hexdigest()}
            if large(file):
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": size, "pointerSize": 130}
            entries.append(entry)
        self.json(entries)

    def file(self, repo: str, name: str) -> None:
        fault, file = self.server.faults.get(repo), self.server.folders[repo] / name
        if fault == "gated":
            self.refuse(403, "GatedRepo")
            return
        if not file.is_file():
            self.refuse(404, "EntryNotFound")
            return
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest() if large(file) else hashlib.sha1(data).hexdigest()
        if large(file) and fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if large(file) and fault == "short":
            data = data[:-1000]
        start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or ["0"])[0])
        if start >= len(data) > 0:
            self.refuse(416, "")
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if large(file):
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.send(repo, file, data, start)

    def send(self, repo: str, file: Path, data: bytes, start: int) -> None:
        fault, half = self.server.faults.get(repo), len(data) // 2
        first = repo not in self.server.cuts and large(file) and start < half
        if fault in ("stall", "cut") and first:
            self.server.cuts.add(repo)
            self.wfile.write(data[start:half])
            self.wfile.flush()
            if fault == "stall":
                time.sleep(60)
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def large(file: Path) -> bool:
    """Whether a file is kept as the hub keeps large ones."""
    return file.suffix in (".safetensors", ".bin")
