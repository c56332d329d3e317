"""Downloads from a hub on loopback by the real client: whole, cut off, damaged, refused, without room, then offline.

The client runs in a program of its own, because it reads its address and whether it is offline when it is imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models as tiny
import pytest
import test_loading as folders
from hub_server import COMMIT, Hub
from huggingface_hub import constants

import hsd

ROOT = Path(__file__).parents[1]

CLIENT = """
import json, os, resource, sys
from hsd.config import ModelSpec
from hsd.errors import HsdError
from hsd.loading.explain import readable
from hsd.loading.hub import fetch
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 65536  # it writes every 10 MB; the models here are smaller
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    constants.HF_HUB_CACHE = ask.pop("cache")
    limit = ask.pop("limit", None)
    spec, steps = ModelSpec("big", **ask), []
    def tell(step, held, size):
        steps.append([step, held, size])
        if held:
            print(json.dumps({"held": held}), flush=True)
    answer = {"steps": steps, "error": None}
    try:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with readable(spec):
            answer["folder"] = str(fetch(spec, tell))
    except HsdError as error:
        answer["error"] = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps({"answer": answer}), flush=True)
"""


class Client:
    """The program that downloads."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
        )
        assert self.line() == "ready"

    def line(self) -> Any:
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        while text == "\n":
            text = self.process.stdout.readline()
        return json.loads(text)

    def begin(self, cache: Path, path: str, **options: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"cache": str(cache), "path": path, **options}) + "\n")
        self.process.stdin.flush()

    def fetch(self, cache: Path, path: str, **options: Any) -> dict[str, Any]:
        self.begin(cache, path, **options)
        while True:
            said = self.line()
            if "answer" in said:
                return said["answer"]

    def end(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(10)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    """A hub with a model of 3 MB in two parts, under as many names as there are faults."""
    folder = tmp_path_factory.mktemp("repository")
    tiny.model("llama", width=128, layers=6).save_pretrained(folder, max_shard_size="2MB")
    folders.tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("not wanted")
    other = tmp_path_factory.mktemp("pickled")
    (other / "config.json").write_text("{}")
    (other / "pytorch_model.bin").write_bytes(b"x" * 100)
    hub = Hub()
    for name in ("good", "gated", "private", "token", "broken", "stall", "cut", "short", "corrupt", "huge", "full"):
        hub.folders[f"org/{name}"] = folder
        hub.faults[f"org/{name}"] = name
    hub.folders["org/pickled"] = other
    yield hub
    hub.shutdown()


@pytest.fixture(scope="module")
def client(hub) -> Iterator[Client]:
    client = Client(hub.address)
    yield client
    client.end()


def weights(hub: Hub) -> list[Path]:
    return sorted(hub.folders["org/good"].glob("*.safetensors"))


def test_a_first_download_says_how_far_and_then_the_family_works_offline(hub, client, tmp_path, monkeypatch):
    done = client.fetch(tmp_path / "cache", "org/good")
    assert done["error"] is None
    sizes = [(held, size) for _, held, size in done["steps"] if size]
    whole = sum(f.stat().st_size for f in hub.folders["org/good"].iterdir() if f.suffix != ".md")
    assert [s[0] for s in sizes] == sorted(s[0] for s in sizes) and sizes[-1] == (whole, whole)
    for file in weights(hub):
        assert any(file.name in step for step, *_ in done["steps"])
        assert (Path(done["folder"]) / file.name).read_bytes() == file.read_bytes()
    assert not (Path(done["folder"]) / "README.md").exists()
    before = len(hub.requests)
    again = client.fetch(tmp_path / "cache", "org/good")
    assert again["folder"] == done["folder"] and len(hub.requests) == before, "what is on disk is used unasked"
    # This program is offline.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    family = tmp_path / "models.yaml"
    family.write_text("families: {f: {context: 128, models: {big: org/good}}}")
    seen: list[hsd.LoadProgress] = []
    with hsd.Engine.load(f"{family}#f", data_dir=tmp_path, progress=seen.append) as engine:
        assert engine.generate("hello", hsd.SamplingParams(temperature=0, max_tokens=4)).token_ids
    assert any("reading org/good" in p.step for p in seen) and all(p.done <= p.total for p in seen if p.total)
    # A file that got lost is named.
    (Path(done["folder"]) / weights(hub)[1].name).unlink()
    with pytest.raises(hsd.LoadError) as caught:
        hsd.Engine.load(f"{family}#f", data_dir=tmp_path)
    assert weights(hub)[1].name in caught.value.message and "HF_HUB_OFFLINE" in caught.value.message


def test_a_killed_download_goes_on_where_it_was(hub, client, tmp_path):
    first = Client(hub.address)
    first.begin(tmp_path, "org/stall")
    size = weights(hub)[0].stat().st_size
    parts = tmp_path / "models--org--stall" / "blobs"
    deadline = time.monotonic() + 20
    while not any(p.stat().st_size >= size // 2 - 2 * 65536 for p in parts.glob("*.part")):
        assert time.monotonic() < deadline, "the first half never arrived"
        time.sleep(0.05)
    first.end(signal.SIGKILL)
    kept = next(parts.glob("*.part")).stat().st_size
    assert kept > size // 4
    done = client.fetch(tmp_path, "org/stall")
    assert done["error"] is None
    assert f"bytes={kept}-" in hub.ranges(f"/org/stall/resolve/{COMMIT}/{weights(hub)[0].name}")
    assert not list(parts.glob("*.part")), "no part is left behind"
    assert all((Path(done["folder"]) / f.name).read_bytes() == f.read_bytes() for f in weights(hub))


def test_a_connection_that_breaks_is_taken_up_again(hub, client, tmp_path):
    done = client.fetch(tmp_path, "org/cut")
    assert done["error"] is None and any(r for r in hub.ranges(weights(hub)[0].name))


@pytest.mark.parametrize(
    ("repo", "options", "said", "hint"),
    [
        ("org/gated", {}, "is gated", "huggingface.co/org/gated"),
        ("org/private", {}, "or it is private", "hf auth login"),
        ("org/token", {}, "does not let this computer read", "hf auth login"),
        ("org/none", {}, "There is no 'big' (org/none) on the hub", "models.yaml"),
        ("org/good", {"revision": "v9"}, "no revision 'v9'", "branch"),
        ("org/pickled", {}, "has no safetensors, but pytorch_model.bin", "choose a model with"),
        ("org/broken", {}, "status 500", "Try again later"),
        ("org/huge", {}, "needs 20000000.0 GB more on the disk", "HF_HUB_CACHE"),
        ("org/short", {}, "arrived damaged", "fetch it anew"),
        ("org/corrupt", {}, "its checksum is not the one", "fetch it anew"),
        ("org/full", {"limit": 1_000_000}, "The disk is full", "what has arrived is kept"),
        ("not a name", {}, "cannot be loaded", "path"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_leaves_nothing_half_done(hub, client, tmp_path, repo, options, said, hint):
    done = client.fetch(tmp_path, repo, **options)
    assert done["error"] is not None and said in done["error"] and hint in done["error"], done["error"]
    assert "\n" not in done["error"] and "Traceback" not in done["error"]
    from hsd.config import ModelSpec
    from hsd.loading.cache import on_disk

    assert not on_disk(ModelSpec("big", repo))
    parts = [p.stat().st_size for p in tmp_path.glob("models--*/blobs/*.part")]
    if repo == "org/full":
        assert max(parts) == options["limit"]
        whole = client.fetch(tmp_path, repo)  # there is room again
        assert whole["error"] is None and f"bytes={options['limit']}-" in hub.ranges(weights(hub)[0].name)
    else:
        assert not any(parts), "what is damaged is thrown away"


def test_weights_without_a_tokenizer_are_enough_offline(hub, tmp_path, monkeypatch):
    from hsd.config import ModelSpec
    from hsd.loading.hub import fetch

    snapshot = tmp_path / "models--org--draft" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in [
        *weights(hub),
        *hub.folders["org/good"].glob("*config.json"),
        *hub.folders["org/good"].glob("*.index.*"),
    ]:
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot / "tokenizer_config.json").unlink()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert fetch(ModelSpec("draft", "org/draft", revision=COMMIT)) == snapshot
    weights_of = sorted(snapshot.glob("*.safetensors"))
    weights_of[0].unlink()
    with pytest.raises(hsd.LoadError, match=weights_of[0].name):
        fetch(ModelSpec("draft", "org/draft", revision=COMMIT))


def test_no_network_names_what_is_missing(hub, tmp_path):
    gone = Client("http://127.0.0.1:9")
    try:
        error = gone.fetch(tmp_path, "org/good")["error"]
    finally:
        gone.end()
    assert "'big' (org/good) is not on this disk" in error and "the hub does not answer" in error
