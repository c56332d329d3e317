"""The `hsd` command, as a person types it: output, JSON on the last line, exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hsd import cli
from hsd.builtin.lines import rows

ROOT = Path(__file__).parents[1]
QUESTION = "How do I extract a tar.gz archive?"


def hsd(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from hsd.cli import run; run()", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
        env={**os.environ, "HSD_HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_every_plan_generates_the_same_ids_and_every_level_works(home):
    """The command of the README, for plans of one to four levels, in float32."""
    replies = {}
    plans = ("large", "tiny:4>large", "tiny:3>medium:4>large", "tiny:2>small:3>medium:4>large")
    for plan in plans:
        options = ("--temperature", "0", "--dtype", "float32", "--max-tokens", "48", "--plan", plan, "--json")
        replies[plan] = last_json(hsd("generate", QUESTION, *options, home=home))
    ids = {plan: reply["token_ids"] for plan, reply in replies.items()}
    assert all(ids[plan] == ids["large"] for plan in plans) and len(ids["large"]) > 5
    for plan in plans[1:]:
        stats = replies[plan]["stats"]
        assert len(stats["levels"]) == plan.count(">") + 1 and all(level["passes"] > 0 for level in stats["levels"])
        assert stats["target_passes"] < stats["tokens"] == len(ids[plan])
    assert replies["large"]["stats"]["target_passes"] == len(ids["large"])


def test_plan_explains_and_stats_reads_what_was_stored(home):
    done = hsd("plan", "--explain", "--json", home=home)
    report = last_json(done)
    assert report["plan"].endswith("large") and report["alternatives"] and len(report["costs_ms"]["large"]) == 16
    assert "ms per pass" in done.stdout
    stored = last_json(hsd("stats", "--json", home=home))
    assert stored["rows"]["replies"] >= 4
    reset = last_json(hsd("stats", "--reset", "--json", home=home))
    assert Path(reset["copy"]).exists()
    assert last_json(hsd("stats", "--json", home=home))["rows"]["replies"] == 0


def test_families_and_doctor_say_what_there_is(home):
    families = last_json(hsd("families", "--json", home=home))["families"]
    assert families[0]["name"] == "builtin" and families[0]["on_disk"] == "on disk"
    done = hsd("doctor", "--json", home=home)
    assert str(home) in done.stdout and last_json(done)["facts"]["torch"].startswith("2.")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("generate", "hi", "--family", "builtn"), 1, "Did you mean 'builtin'?"),
        (("generate", "hi", "--plan", "tiny:2"), 1, "has a threshold"),
        (("generate", "hi", "--plan", "nobody:2>large"), 1, "This family has"),
        (("generate", ""), 1, "empty"),
        (("generate", "hi", "--temperature", "-1"), 1, "temperature"),
        (("generate", "x " * 9000), 1, "the context holds"),
        (("generate", "hi", "--family", "qwen3-8b"), 1, "not on this disk"),
        (("generate", "hi", "--config", "no-such.yaml"), 1, "cannot be read"),
        (("generate", "hi", "--max-tokens", "many"), 2, "not a valid integer"),
        (("generate",), 2, "Missing argument"),
        (("nothing",), 2, "No such command"),
        (("generate", "hi", "--colour"), 2, "No such option"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_the_right_exit_status(arguments, status, said, home):
    done = hsd(*arguments, home=home)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr
    if status == 1:
        assert done.stderr.startswith("Error: ") and len(done.stderr.strip().splitlines()) == 1


def test_a_data_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    done = hsd("stats", home=tmp_path / "file" / "below")
    assert done.returncode == 1 and "cannot be made" in done.stderr and "HSD_HOME" in done.stderr


def test_statistics_of_a_newer_version_are_refused_and_kept(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "stats.db") as db:
        db.execute("PRAGMA user_version = 999")
        db.execute("CREATE TABLE later (x)")
    done = hsd("stats", "--json", home=tmp_path)
    assert done.returncode == 1 and "newer" in done.stderr
    assert sqlite3.connect(tmp_path / "stats.db").execute("PRAGMA user_version").fetchone() == (999,)


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\v", "\ud83d"])
def test_the_line_of_json_is_one_line_whatever_a_reply_holds(mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_json({"text": f"a{mark}b"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"text": f"a{mark}b"}


def test_a_file_of_json_lines_may_hold_any_text(tmp_path: Path) -> None:
    told = [{"text": f"a{mark}b"} for mark in ("\u2028", "\x85", "\v")]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told))
    assert [row for _, row in rows(tmp_path / "some.jsonl", {"text"})] == told


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_letters_that_the_terminal_does_not_have_do_no_harm(tmp_path, encoding):
    folder = tmp_path / "Grüße aus 東京 🗼"
    command = [sys.executable, "-c", "from hsd.cli import run; run()", "stats", "--reset", "--json"]
    environment = {**os.environ, "HSD_HOME": str(folder), "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    # What programs read is whole in every encoding.
    assert str(folder) in json.loads(done.stdout.splitlines()[-1].decode(encoding))["copy"]


@pytest.mark.parametrize("redirected", ["| true", ">&-", "<&- >&- 2>&-"])
def test_an_output_that_is_closed_ends_a_command_without_a_traceback(tmp_path, redirected):
    command = f'"{sys.executable}" -c "from hsd.cli import run; run()" stats'
    environment = {**os.environ, "HSD_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    shell = ["bash", "-c", f"{command} {redirected}"]
    done = subprocess.run(shell, capture_output=True, timeout=60, check=False, env=environment)
    assert not done.stderr and done.returncode == 0, done.stderr
    assert (tmp_path / "stats.db").read_bytes().startswith(b"SQLite format 3")


def test_without_a_home_folder_nothing_is_made_in_the_current_one(tmp_path, monkeypatch):
    from hsd.errors import StoreError
    from hsd.paths import data_dir

    monkeypatch.chdir(tmp_path)
    for path in ("~no-such-user/data", "~no-such-user"):
        with pytest.raises(StoreError, match="no home folder"):
            data_dir(path)
    assert not list(tmp_path.iterdir())
