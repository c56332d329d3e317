"""Train the built-in family: `python -m hsd.builtin.train --corpus DIR`. Run it again after a kill and it goes on."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import platformdirs
import torch

from hsd.builtin import WEIGHTS, stages, stored
from hsd.builtin.budget import Budget
from hsd.builtin.presets import PRESETS, Preset, flops
from hsd.errors import HsdError

STAGES: tuple[str, ...] = ("tokenizer", "target", "drafts", "more", "export", "all")


def default_work() -> Path:
    """Where checkpoints lie: the platform's cache folder."""
    return platformdirs.user_cache_path("hsd") / "builtin"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m hsd.builtin.train", description=__doc__)
    p.add_argument("--corpus", type=Path, help="folder with the text; without it only the package's own conversations")
    p.add_argument("--out", type=Path, default=WEIGHTS, help="where the GGUF files are written")
    p.add_argument("--work", type=Path, default=default_work(), help="where checkpoints and encoded text are kept")
    p.add_argument(
        "--grow-from", type=Path, metavar="FOLDER", help="begin with what a run's --work folder or a family has"
    )
    p.add_argument("--preset", choices=PRESETS, help="sizes and lengths; gpu where there is one, else cpu")
    p.add_argument("--stage", choices=STAGES, default="all")
    p.add_argument("--only", metavar="DRAFT", help="the draft that --stage more trains on alone")
    p.add_argument("--minutes", type=float, help="time for everything, over all calls; steps are cut to fit")
    p.add_argument("--steps", type=int, help="steps of the target")
    p.add_argument("--draft-steps", type=int, help="steps of the drafts, which are trained together")
    p.add_argument("--replies", type=int, help="replies in a round that the target writes for its drafts; 0: none")
    p.add_argument("--stop-after", type=int, help="pause the stage after this step")
    p.add_argument("--rows", type=int, help="rows of a batch")
    p.add_argument("--length", type=int, help="tokens of a row")
    p.add_argument("--pieces", type=int, help="parts in which a step goes through the device")
    p.add_argument("--nf4-from", type=int, default=stored.NF4_FROM, help="parameters from which on 4 bits are stored")
    p.add_argument("--compile", action="store_true", help="compile the models; costs a minute, may pay on a GPU")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, help="CPU threads; results repeat exactly only with the same number")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p


def preset_of(a: argparse.Namespace) -> Preset:
    """The preset, with what was given on the command line."""
    preset = PRESETS[a.preset or ("gpu" if a.device.startswith("cuda") else "cpu")]
    given = {
        "steps": a.steps,
        "draft_steps": a.draft_steps,
        "rows": a.rows,
        "length": a.length,
        "pieces": a.pieces,
        "asked": a.replies,
    }
    return dataclasses.replace(preset, **{key: value for key, value in given.items() if value is not None})


def device_of(name: str) -> torch.device:
    """The device of a name.

    Raises:
        HsdError: there is no such device here.
    """
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise HsdError(f"There is no device '{name}' here.", "Leave --device out to take what there is.") from error


def repeatable(device: torch.device) -> None:
    """On a GPU, kernels that add in the same order every time, where there are any; a CPU has them anyway."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # It would write every new tensor twice.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # not in its stubs


def main(arguments: list[str] | None = None) -> int:
    """Run the stages that were asked for. Returns the exit status."""
    a = parser().parse_args(arguments)
    if a.threads:
        torch.set_num_threads(a.threads)
    try:
        device = device_of(a.device)
    except HsdError as error:
        print(error, file=sys.stderr)
        return 1
    repeatable(device)
    preset = preset_of(a)
    budget = Budget(a.work / "spent.json", a.minutes)
    work = stages.Work(a.work, a.corpus, preset, a.seed, device, budget, a.nf4_from, a.compile, a.grow_from)
    target, drafts = flops(preset)
    tokens = preset.rows * preset.length
    print(f"target: {tokens * preset.steps / 1e6:.1f}M tokens, {target:.1e} FLOP at most; ", end="")
    print(f"drafts: {tokens * preset.draft_steps / 1e6:.1f}M tokens, {drafts:.1e} FLOP at most", flush=True)
    try:
        a.work.mkdir(parents=True, exist_ok=True)
        if a.stage in ("tokenizer", "all"):
            stages.train_tokenizer(work)
        if a.stage in ("target", "all"):
            stages.train_target(work, a.stop_after)
        if a.stage in ("drafts", "all"):
            stages.train_drafts(work, a.stop_after)
        if a.stage == "more":
            stages.train_more(work, a.only or "", a.stop_after)
        if a.stage in ("export", "all"):
            stages.export(work, a.out)
    except HsdError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        work.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
