"""Judge a stored family on what it never saw: `python -m hsd.builtin.evaluate`. Prints the figures of its card.

Right commands and facts, replies that end, perplexity, and how often each model would be accepted by each larger one.
With a corpus there are held-out pages and dialogues to judge on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm

from hsd.builtin import MODELS, WEIGHTS, judging, questions, stored, tokenizer
from hsd.builtin.conversation import Conversation, conversation
from hsd.builtin.mixture import Mixture
from hsd.builtin.replies import Reply, answer
from hsd.errors import HsdError

PARTS: tuple[str, ...] = ("replies", "perplexity", "acceptance")
PROMPTS = 200  # replies that endings are counted on


@dataclass(frozen=True)
class Asked:
    """What the models are asked: all of it, or every few where it must be quick."""

    commands: list[questions.CommandQuestion]
    facts: list[questions.FactQuestion]
    sums: list[Conversation]
    known: list[tuple[Conversation, questions.CommandQuestion]]
    sets: dict[str, list[Conversation]]

    @classmethod
    def of(cls, corpus: Path | None, every: int) -> Asked:
        mixture = Mixture(corpus)
        rng = Random("known tasks")
        known = [(howto.play(rng), howto.task.command) for howto in mixture.howtos]
        return cls(
            commands=questions.read_commands()[::every],
            facts=questions.read_facts()[::every],
            sums=questions.read_sums()[::every],
            known=[(t, questions.CommandQuestion(t[0].content, (c,))) for t, c in known][:: 2 * every],
            sets={name: found[::every] for name, found in mixture.held_out().items()},
        )

    def prompts(self) -> list[Conversation]:
        """Held-out prompts of all kinds, for acceptance."""
        alone = [q.asked for q in self.commands[::4]] + [q.asked for q in self.facts[::2]]
        return (
            [conversation(text) for text in alone] + self.sets["unseen questions"] + self.sets.get("dialogues", [])[:24]
        )


def main(arguments: list[str] | None = None) -> int:
    """Print all figures as Markdown tables, or as one JSON object. Returns the exit status."""
    a = parser().parse_args(arguments)
    if a.threads:
        torch.set_num_threads(a.threads)
    try:
        found = evaluate(a.weights, a.corpus, a.models, a.parts, 5 if a.quick else 1, a.replies)
    except HsdError as error:
        print(error, file=sys.stderr)
        return 1
    for line in lines(found):
        print(line)
    if a.json:
        print(json.dumps(found))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m hsd.builtin.evaluate", description=__doc__)
    p.add_argument("--corpus", type=Path, help="folder with the text; without it no held-out pages and dialogues")
    p.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the family")
    p.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="which models, cheapest first")
    p.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    p.add_argument("--quick", action="store_true", help="every fifth question")
    p.add_argument("--replies", type=Path, help="file for every question with its replies, to be read")
    p.add_argument("--threads", type=int, help="CPU threads")
    p.add_argument("--json", action="store_true", help="one JSON object on the last line")
    return p


def evaluate(
    weights: Path,
    corpus: Path | None,
    names: list[str],
    parts: list[str],
    every: int = 1,
    replies: Path | None = None,
) -> dict[str, Any]:
    """All figures of a family.

    Raises:
        HsdError: a model is not there, or the corpus is not.
    """
    places = {name: stored.place_of(weights, name) for name in names}
    begun = time.perf_counter()
    asked = Asked.of(corpus, every)
    tok = tokenizer.load(places[names[-1]])
    models = {name: stored.load(place) for name, place in places.items()}
    found: dict[str, Any] = {"models": {n: {"parameters": m.num_parameters()} for n, m in models.items()}}
    said: dict[str, list[tuple[str, Reply]]] = {}
    for name, model in models.items():
        if "perplexity" in parts:
            found["models"][name]["perplexity"] = judging.perplexity(model, tok, asked.sets)
        if "replies" in parts:
            figures, said[name] = _replies(partial(answer, model, tok, temperature=0), asked)
            found["models"][name].update(figures)
    if "acceptance" in parts and len(models) > 1:
        for temperature in (0.0, 0.7):
            tqdm.write(f"acceptance at T = {temperature}", file=sys.stderr)
            found.setdefault("acceptance", {})[str(temperature)] = judging.acceptance(
                models, tok, asked.prompts(), temperature
            )
    if replies is not None:
        replies.write_text(_readable(said), encoding="utf-8")
    found["seconds"] = time.perf_counter() - begun
    return found


def _replies(
    speak: Callable[[list[Conversation]], list[Reply]], asked: Asked
) -> tuple[dict[str, Any], list[tuple[str, Reply]]]:
    """Greedy replies of one model: figures, and the replies beside what was asked."""
    alone = [conversation(text) for text in (*(q.asked for q in asked.commands), *(q.asked for q in asked.facts))]
    known, sums = ([turns[:1] for turns in some] for some in ([t for t, _ in asked.known], asked.sums))
    made = speak([*alone, *known, *sums, *asked.sets.get("dialogues", [])[:50]])
    texts = [reply.text for reply in made]
    cut = len(asked.commands)
    tasks, units = len(alone) + len(known), len(alone) + len(known) + len(sums)
    figures = {
        "commands": judging.commands(texts[:cut], asked.commands),
        "facts": judging.facts(texts[cut : len(alone)], asked.facts),
        "known": judging.commands(texts[len(alone) : tasks], [q for _, q in asked.known]),
        "sums": judging.sums(texts[tasks:units], asked.sums),
    }
    # Dialogues come last: those with too long a prompt have no reply.
    mixed = [*made[:cut:2], *made[cut : len(alone)], *made[units:], *made[1:cut:2]][:PROMPTS]
    ended = sum(reply.ended for reply in mixed)
    figures["endings"] = {"replies": len(mixed), "ended": ended / len(mixed)}
    shown = [*zip(alone, made, strict=False), *zip(sums, made[tasks:units], strict=True)]
    return figures, [(turns[0].content, reply) for turns, reply in shown]


def _readable(said: dict[str, list[tuple[str, Reply]]]) -> str:
    return "\n".join(
        json.dumps({"model": name, "asked": asked, "reply": reply.text, "ended": reply.ended}, ensure_ascii=False)
        for name, pairs in said.items()
        for asked, reply in pairs
    )


def lines(found: dict[str, Any]) -> list[str]:
    """The figures as Markdown tables."""
    out: list[str] = []
    rows = found["models"]
    if any("commands" in row for row in rows.values()):
        out += [
            "| model | right command, exact | edit similarity ≥ 0.9 | app: all key facts | known tasks | sums | ended |"
        ]
        out += ["|---|---|---|---|---|---|---|"]
        for name, row in rows.items():
            c, f, k, s, e = (row[kind] for kind in ("commands", "facts", "known", "sums", "endings"))
            out.append(
                f"| {name} | {_part(c, 'exact')} | {_part(c, 'similar')} | {_part(f, 'right')} | {_part(k, 'similar')} "
                f"| {_part(s, 'right')} | {round(e['ended'] * e['replies'])} of {e['replies']} |"
            )
    if any("perplexity" in row for row in rows.values()):
        sets = next(iter(rows.values()))["perplexity"]
        out += ["", "| perplexity | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
        out += [
            f"| {n} | " + " | ".join(f"{v:.2f}" for v in row["perplexity"].values()) + " |" for n, row in rows.items()
        ]
    for temperature, table in found.get("acceptance", {}).items():
        names = list(rows)
        out += ["", f"Acceptance at T = {temperature}, {table['positions']} tokens", ""]
        out += ["| draft | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for draft in ("lookup", *names[:-1]):
            cells = (f"{table['pairs'][f'{draft}>{v}']:.3f}" if f"{draft}>{v}" in table["pairs"] else "" for v in names)
            out.append(f"| {draft} | " + " | ".join(cells) + " |")
    return [*out, "", f"{found['seconds']:.0f} s"]


def _part(figures: dict[str, float], key: str) -> str:
    count = int(figures["questions"])
    return f"{round(figures[key] * count)} of {count}"


if __name__ == "__main__":
    sys.exit(main())
