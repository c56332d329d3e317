"""`hsd chat` refuses what cannot work in one sentence with a hint, before it serves anything."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import ROOT, answer, free_port, log_of, serve

from chat import app
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
    import sqlite3

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
