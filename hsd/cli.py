"""The `hsd` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from hsd.bench import BENCHMARKS, BenchRequest
from hsd.errors import HsdError
from hsd.terminal import open_output

FAILED, INTERRUPTED = 1, 130


class Commands(click.Group):
    """Commands of this package, and those that other packages register under `hsd.commands` (`hsd chat`)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(e.name for e in entry_points(group="hsd.commands"))})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        found = next((e for e in entry_points(group="hsd.commands") if e.name == cmd_name), None)
        return None if found is None else found.load()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hsd")
def cli() -> None:
    """Local models that decode hierarchically: the target's own words, sooner."""


def run() -> None:
    """Entry point: one sentence and a hint for whatever a person can mend, and the exit status of `contract`."""
    open_output()
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except HsdError as error:
        click.echo(f"Error: {error}", err=True)
        code = FAILED
    except click.exceptions.Abort:
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:
        # What was not written would be tried again, and fail again, when the program ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = FAILED
    sys.exit(code if isinstance(code, int) else 0)


def _options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that several commands share."""
    known = {
        "family": click.option("--family", default="builtin", show_default=True, help="Family of models.yaml."),
        "config": click.option("--config", type=click.Path(), help="Another models.yaml."),
        "data": click.option("--data-dir", type=click.Path(), help="Folder of the statistics (default: $HSD_HOME)."),
        "json": click.option("--json", "as_json", is_flag=True, help="Print one JSON object on the last line."),
        "device": click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        "dtype": click.option("--dtype", help="float32, bfloat16 or float16; default: as the file says."),
        "temperature": click.option("--temperature", default=0.7, show_default=True, help="0 is greedy."),
    }

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda f, name: known[name](f), reversed(names), function)

    return wrap


def _engine(
    family: str, config: str | None, data_dir: str | None, device: str = "auto", dtype: str | None = None
) -> Any:
    """A loaded engine; progress on stderr."""
    import hsd

    def tell(progress: hsd.LoadProgress) -> None:
        if sys.stderr.isatty():
            share = f" {100 * progress.done / progress.total:3.0f}%" if progress.total else ""
            click.echo(f"\r\033[K{share} {progress.model}: {progress.step}"[:200], nl=False, err=True)

    engine = hsd.Engine.load(family, device, dtype, data_dir, config=config, progress=tell)
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    for note in (*(f"'{d.model}': {d.reason}" for d in engine.info.dropped), *engine.info.notes):
        click.echo(f"Note: {note}", err=True)
    return engine


def _print_json(value: Any) -> None:
    # Escaped: where readers split at U+2028 and its like, this must stay one line.
    click.echo(json.dumps(value))


def _json(value: Any, indent: int | None = None) -> str:
    """JSON with its letters as they are where the output has them, else in JSON's own writing."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(value, ensure_ascii=not unicode, indent=indent)


@cli.command()
@click.argument("prompt")
@_options("family", "config", "data", "device", "dtype", "temperature", "json")
@click.option("--plan", default="auto", show_default=True, help="auto, or like 'lookup:2>tiny:3>large'.")
@click.option("--max-tokens", default=512, show_default=True, help="The reply ends after this many tokens.")
@click.option("--seed", type=int, help="Reproduces a reply on the same device and plan.")
@click.option("--thinking/--no-thinking", default=None, help="Think first or not, where the family has the switch.")
def generate(
    prompt: str,
    family: str,
    config: str | None,
    data_dir: str | None,
    device: str,
    dtype: str | None,
    temperature: float,
    as_json: bool,
    plan: str,
    max_tokens: int,
    seed: int | None,
    thinking: bool | None,
) -> None:
    """One reply on the terminal, streamed."""
    import hsd

    params = hsd.SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed, thinking=thinking)
    with _engine(family, config, data_dir, device, dtype) as engine:
        if thinking is not None and not engine.info.thinking:
            click.echo("Note: this family has no switch for thinking.", err=True)
        reply = None
        for event in engine.stream(prompt, params, plan=plan):
            if isinstance(event, hsd.Tokens):
                click.echo(event.text, nl=False)
            elif isinstance(event, hsd.Finished):
                reply = event.reply
        assert reply is not None
        click.echo()
        if sys.stderr.isatty() or not as_json:
            click.echo(_line(reply), err=True)
        if as_json:
            _print_json(_reply_values(reply))
        with contextlib.suppress(Exception):  # learning makes later replies faster; this one is out
            while engine.learn():
                pass
        if reply.finish_reason == "error":
            raise HsdError(reply.error or "The reply failed.")


def _line(reply: Any) -> str:
    """`2.4× · 61 tok/s · first token 0.3 s · plan`"""
    stats = reply.stats
    speed = "" if stats.speedup is None else f"{stats.speedup:.1f}× · "
    return (
        f"{speed}{stats.tokens_per_second:.0f} tok/s · first token {stats.first_token_seconds:.2f} s · "
        f"{stats.plan} · {stats.baseline} baseline"
    )


def _reply_values(reply: Any) -> dict[str, Any]:
    import dataclasses

    stats = dataclasses.asdict(reply.stats)
    stats["tokens_per_second"] = reply.stats.tokens_per_second
    for values, level in zip(stats["levels"], reply.stats.levels, strict=True):
        values["acceptance"] = level.acceptance
    return {
        "text": reply.text,
        "token_ids": list(reply.token_ids),
        "finish_reason": reply.finish_reason,
        "error": reply.error,
        "seed": reply.seed,
        "stats": stats,
    }


@cli.command()
@_options("config", "json")
@click.option("--found", is_flag=True, help="Families of models that LM Studio, Ollama and others keep here, as YAML.")
def families(config: str | None, as_json: bool, found: bool) -> None:
    """What models.yaml holds, what is on disk, what fits this machine."""
    if found:
        _found(as_json)
        return
    from hsd import machine
    from hsd.config import load_families

    rows = [machine.fit(family) for family in load_families(config).values()]
    for row in rows:
        click.echo(f"{row['name']:23} {row['title']}")
        click.echo(f"{'':23} {' > '.join(row['models'])} · {row['on_disk']}")
        click.echo(f"{'':23} {row['fits']}")
    if as_json:
        _print_json({"families": rows})


def _found(as_json: bool) -> None:
    """The YAML that offers what was found; the rest as comments."""
    from hsd.found import found_families

    found = found_families()
    for note in found.notes:
        click.echo(f"# {note}")
    for path, program, why in found.left_out:
        # A name may hold a line break, which would end the comment.
        click.echo(f"# Left out: {' '.join(str(path).split())} ({program}): {why}.")
    for offered in found.families:
        click.echo(f"# {offered.family.name}: {offered.size / 1e9:.1f} GB on disk, {offered.fit.verdict}.")
    click.echo(found.yaml().rstrip("\n") or "# No GGUF models were found that a chat can use.")
    if as_json:
        _print_json(found.values())


@cli.command()
@_options("data", "json")
def doctor(data_dir: str | None, as_json: bool) -> None:
    """Machine, versions, GPU, memory, what will be slow and what to do about it."""
    from hsd.doctor import report as examined

    report = examined(data_dir)
    for name, value in report["facts"].items():
        click.echo(f"{name:16} {value}")
    for advice in report["advice"]:
        click.echo(f"- {advice}")
    if as_json:
        _print_json(report)


@cli.command()
@_options("family", "config", "data", "device", "dtype", "temperature", "json")
@click.option("--explain", is_flag=True, help="Also the tables, and why every other plan lost.")
def plan(
    family: str,
    config: str | None,
    data_dir: str | None,
    device: str,
    dtype: str | None,
    temperature: float,
    as_json: bool,
    explain: bool,
) -> None:
    """The acceptance and cost tables, the chosen plan, the ranking and why."""
    with _engine(family, config, data_dir, device, dtype) as engine:
        report = engine.explain(temperature)
    click.echo(f"{report['plan']}\n{report['reason']}")
    if explain:
        from hsd.explanation import tables

        click.echo("")
        for line in tables(report):
            click.echo(line)
    click.echo("\nforecast ms per token")
    for other in report["alternatives"][: None if explain else 5]:
        click.echo(f"  {other['forecast_ms_per_token']:8.3f}  {other['plan']}  {other['why']}")
    if as_json:
        _print_json(report)


@cli.command()
@_options("data", "json")
@click.option("--reset", is_flag=True, help="Begin anew; what was stored is copied beside the file first.")
def stats(data_dir: str | None, as_json: bool, reset: bool) -> None:
    """The rolling statistics."""
    from hsd.paths import data_dir as folder
    from hsd.stats import Stats

    with Stats(folder(data_dir) / "stats.db") as store:
        if reset:
            copy = store.reset()
            click.echo(f"The statistics begin anew; the old ones are in {copy}.")
            if as_json:
                _print_json({"reset": True, "copy": None if copy is None else str(copy)})
            return
        summary = store.summary()
        click.echo(_json(summary, indent=2) if not as_json else "", nl=not as_json)
        if as_json:
            _print_json(summary)


@cli.command(epilog="\b\n" + "\n".join(f"{name:11} {what}" for name, what in BENCHMARKS.items()))
@click.argument("what", type=click.Choice(list(BENCHMARKS)), default="replies")
@_options("family", "config", "data", "device", "dtype", "json")
@click.option("--quick", is_flag=True, help="Fewer prompts and repeats.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--minutes", type=click.FloatRange(min=0.1), help="Of `peers`: begin nothing new after so long.")
def bench(
    what: str,
    family: str,
    config: str | None,
    data_dir: str | None,
    device: str,
    dtype: str | None,
    as_json: bool,
    quick: bool,
    out: Path | None,
    minutes: float | None,
) -> None:
    """A benchmark: by default plain decoding against the plan that `auto` chooses, interleaved in one run."""
    asked = BenchRequest(family, config, data_dir, device, dtype, quick, out, click.echo, minutes)
    result = importlib.import_module(f"hsd.bench.{what}").run(asked)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{what}.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
        click.echo(f"Written to {out / f'{what}.json'}.")
    if as_json:
        _print_json(result)
