"""`hsd chat` refuses what cannot work in one sentence with a hint, before it serves anything."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from chat_server import ROOT, answer, free_port, log_of, serve

from chat import app
from chat.environment import direct, temporary_folder
from chat.hosts import is_loopback


def run(*arguments: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "chat", "--no-browser", "--data-dir", str(folder), *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def refused(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("Error: ") and lines[1].startswith("Hint: "), result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


def test_an_unknown_family_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    refused(run("--family", "bultin", folder=tmp_path), "'bultin'", "builtin")


def test_a_broken_models_yaml_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "models.yaml"
    broken.write_text("families:\n  mine:\n    models: {a: {path: x, qantization: nf4}}\n")
    refused(run("--config", str(broken), "--family", "mine", folder=tmp_path), "qantization", "quantization")


def test_a_plan_that_is_none_is_refused(tmp_path: Path) -> None:
    refused(run("--plan", "tiny:0>large", "--port", str(free_port()), folder=tmp_path), "threshold")


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(run("--port", str(taken.getsockname()[1]), folder=tmp_path), "is in use", "--port")


def test_a_database_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "chat.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    refused(run("--port", str(free_port()), folder=tmp_path), "newer version")


def test_a_wrong_option_is_a_wrong_usage(tmp_path: Path) -> None:
    assert run("--port", "many", folder=tmp_path).returncode == 2


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("box", False)]
)
def test_only_this_machine_needs_no_password(host: str, local: bool) -> None:
    assert is_loopback(host) is local
    assert (app.needed_password(app.Arguments(host=host)) is None) is local
    assert app.needed_password(app.Arguments(share=True))


def test_the_page_is_served_before_the_engine_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    server, port, seconds = serve(folder=tmp_path)
    try:
        print(f"first answer after {seconds:.1f} s")
        status, page = answer(port)
        assert status == 200 and "hsd chat" in page
        # Nothing is uploaded by the page, and nobody else fills the disk.
        body = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.txt\r\n\r\nmany\r\n--x--\r\n"
        assert answer(port, "/gradio_api/upload", body, **{"Content-Type": "multipart/form-data; boundary=x"})[0] == 404
        # A name of somebody else's that points here must not read the page.
        assert answer(port, Host="evil.example")[0] == 421
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=90)
    output = log_of(tmp_path).read_text()
    assert server.returncode == 130, output
    assert f"http://127.0.0.1:{port}" in output and "Traceback" not in output


def test_an_open_address_makes_and_prints_a_password(tmp_path: Path) -> None:
    server, port, _ = serve("--host", "0.0.0.0", folder=tmp_path)
    try:
        assert "gradio_config" in answer(port)[1] or answer(port)[0] == 401
        assert answer(port, "/gradio_api/info")[0] in (401, 404)
        assert answer(port, "/config")[0] == 401
    finally:
        os.kill(server.pid, signal.SIGTERM)
        server.wait(timeout=90)
    output = log_of(tmp_path).read_text()
    assert "Password: " in output and server.returncode == 143
    assert "Every browser sees its own conversations." in output
    # The owner's own conversations were not opened.
    assert (tmp_path / "shared.db").exists() and not (tmp_path / "chat.db").exists()


def test_it_serves_and_ends_whatever_the_shell_has_set(tmp_path: Path) -> None:
    occupied = tmp_path / "gradio"
    occupied.write_text("as good as a folder of somebody else's")
    data, temporary = tmp_path / "C# 東京", tmp_path / "temporary"
    data.mkdir()
    temporary.mkdir()
    strange = {
        **{
            "ALL_PROXY": "socks5://127.0.0.1:1",
            "HTTP_PROXY": "foo://x",
            "https_proxy": "127.0.0.1",
            "NO_PROXY": "[::1]",
        },
        **{"TMPDIR": str(temporary), "GRADIO_TEMP_DIR": str(occupied), "PYTHONIOENCODING": "latin-1"},
    }
    server, port, _ = serve(folder=data, **strange)
    try:
        assert answer(port)[0] == 200
        [made] = temporary.glob("hsd-chat-*")
        assert made.stat().st_mode & 0o077 == 0
    finally:
        # As a terminal that is closed says it, maybe twice.
        server.send_signal(signal.SIGHUP)
        server.send_signal(signal.SIGHUP)
        server.wait(timeout=90)
    output = log_of(data).read_text("latin-1")
    assert server.returncode == 129 and "Traceback" not in output, output
    assert not list(temporary.glob("hsd-chat-*"))
    assert "Stopping\\u2026" in output and "\\u6771" in output
    with closing(sqlite3.connect(data / "chat.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    "proxies",
    [
        {"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"},
        {"ALL_PROXY": "socks5://127.0.0.1:1"},
        {"all_proxy": "socks5h://127.0.0.1:1", "no_proxy": "example.org"},
        {"HTTP_PROXY": "foo://x"},
        {"HTTPS_PROXY": "http://a b:99999"},
        {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "[::1], ,10.0.0.0/8,"},
        {"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "*"},
    ],
)
@pytest.mark.parametrize("share", [False, True])
def test_what_it_asks_itself_goes_through_no_proxy(
    monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str], share: bool
) -> None:
    import httpx

    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with direct("127.0.0.1", share):
            assert httpx.head(f"http://127.0.0.1:{server.server_port}/", timeout=30).status_code == 200
            assert httpx.head(f"http://localhost:{server.server_port}/", timeout=30).status_code == 200
        server.shutdown()
    # The Hub is asked through what the person set.
    assert dict(os.environ) == before


def test_what_is_shared_still_asks_others_through_a_proxy_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.request import getproxies, proxy_bypass

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.org")
    with direct("192.168.1.7", outside=True):
        assert getproxies()["https"] == "http://127.0.0.1:1" and not proxy_bypass("gradio.app")
        assert all(proxy_bypass(host) for host in ("192.168.1.7", "localhost", "example.org"))
    with direct("192.168.1.7", outside=False):
        assert proxy_bypass("gradio.app")


def test_files_of_gradio_lie_in_a_folder_that_only_this_user_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "file").write_text("")
    for variable in ("GRADIO_TEMP_DIR", "TMPDIR"):
        for folder in (str(tmp_path), str(tmp_path / "none"), str(tmp_path / "file"), ""):
            monkeypatch.setenv(variable, folder)
            with temporary_folder(tmp_path) as first, temporary_folder(tmp_path) as second:
                assert first != second and os.environ["GRADIO_TEMP_DIR"] == second
                assert Path(first).stat().st_mode & 0o077 == 0
            assert not Path(first).exists()
    # Where no folder of the system can be written to, the data folder serves.
    monkeypatch.setattr(tempfile, "gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    with temporary_folder(tmp_path) as folder:
        assert Path(folder).parent == tmp_path == Path(tempfile.tempdir or "")


def test_a_signal_at_any_moment_is_heard() -> None:
    """A handler that waits for a lock which the interrupted thread holds would wait for ever."""
    heard = 0
    before = signal.getsignal(signal.SIGALRM)
    try:
        for turn in range(300):
            stopped = app._Stopped()
            signal.signal(signal.SIGALRM, lambda number, frame, stopped=stopped: stopped.tell(number))
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + turn * 1e-6)
            while not stopped.wait(1e-5):
                pass
            heard += stopped.status == signal.SIGALRM
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard == 300


def test_a_terminal_that_is_gone_keeps_nothing_from_being_stored() -> None:
    code = (
        "import os, sys; import hsd; from chat.environment import say; hsd.open_output(); "
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1); "
        "say('Stopping…'); say('again'); print('stored', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "stored\n", done.stderr
