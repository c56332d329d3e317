"""Train the built-in family: `python -m hsd.builtin.train --corpus DIR`. Run it again after a kill and it goes on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import platformdirs
import torch

from hsd.builtin import MODELS, WEIGHTS
from hsd.builtin.export import export
from hsd.builtin.stages import ASKED, Work, train_drafts, train_target, train_tokenizer
from hsd.errors import HsdError

STAGES: tuple[str, ...] = ("tokenizer", "target", "drafts", "export", "all")


def default_work() -> Path:
    """Where checkpoints lie: the platform's cache folder."""
    return platformdirs.user_cache_path("hsd") / "builtin"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m hsd.builtin.train", description=__doc__)
    p.add_argument("--corpus", type=Path, help="folder with the text; without it only the package's own conversations")
    p.add_argument("--out", type=Path, default=WEIGHTS, help="where the models are written")
    p.add_argument("--work", type=Path, default=default_work(), help="where checkpoints and encoded text are kept")
    p.add_argument("--stage", choices=STAGES, default="all")
    p.add_argument("--steps", type=int, default=1600, help="steps of the target")
    p.add_argument("--draft-steps", type=int, default=750, help="steps of the drafts, which are trained together")
    p.add_argument("--replies", type=int, default=ASKED, help="replies of the target in a round for the drafts")
    p.add_argument("--stop-after", type=int, help="pause the stage after this step")
    p.add_argument("--rows", type=int, default=8, help="rows of a batch")
    p.add_argument("--length", type=int, default=512, help="tokens of a row")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--threads", type=int, help="CPU threads; results repeat exactly only with the same number")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return p


def main(arguments: list[str] | None = None) -> int:
    """Run the stages that were asked for. Returns the exit status."""
    a = parser().parse_args(arguments)
    if a.threads:
        torch.set_num_threads(a.threads)
    try:
        work = Work(a.work, a.corpus, a.seed, torch.device(a.device), a.rows, a.length, asked=a.replies)
        if a.stage in ("tokenizer", "all"):
            train_tokenizer(work)
        if a.stage in ("target", "all"):
            train_target(work, a.steps, a.stop_after)
        if a.stage in ("drafts", "all"):
            train_drafts(work, a.draft_steps, a.stop_after)
        if a.stage in ("export", "all"):
            export(work, a.out, MODELS)
    except HsdError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
