"""`hsd chat`: checks its arguments, serves the page, then loads the engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import hsd
from chat import app


@click.command("chat")
@click.option("--family", default="builtin", show_default=True, help="Family of models.yaml, or 'file.yaml#name'.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; any other demands a password."
)
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--share", is_flag=True, help="Also a public address, through Gradio's servers.")
@click.option(
    "--share-hours",
    default=72.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Hours after which a program with --share ends.",
)
@click.option("--together", is_flag=True, help="All who have the password see the same conversations.")
@click.option(
    "--password",
    default=None,
    envvar="HSD_PASSWORD",
    show_envvar=True,
    help="Ask visitors for it; made and printed where one is needed. Others on this machine can read arguments of "
    "programs: use the variable or the file.",
)
@click.option(
    "--password-file", default=None, type=click.Path(dir_okay=False), help="File with the password in its first line."
)
@click.option(
    "--api-key",
    default=None,
    envvar="HSD_API_KEY",
    show_envvar=True,
    help="Clients of the API must send it; without one the API answers this machine alone. As for the password, others "
    "can read it here.",
)
@click.option(
    "--api-key-file", default=None, type=click.Path(dir_okay=False), help="File with the API key in its first line."
)
@click.option("--data-dir", default=None, type=click.Path(file_okay=False), help="Folder of chat.db and stats.db.")
@click.option("--plan", default="auto", show_default=True, help="Plan of new conversations, like lookup:2>tiny:3>big.")
@click.option("--config", default=None, type=click.Path(dir_okay=False), help="Another models.yaml.")
@click.option(
    "--unload-after",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Minutes without a message after which the models leave the memory; 0 keeps them.",
)
@click.option("--no-browser", is_flag=True, help="Do not open the browser.")
def chat(no_browser: bool, password_file: str | None, api_key_file: str | None, **options: Any) -> None:
    """Chat with a family of models in the browser."""
    hsd.open_output()
    try:
        for option, file in (("password", password_file), ("api_key", api_key_file)):
            if file is not None:
                options[option] = _secret(option, file)
        sys.exit(app.serve(app.Arguments(**options, browser=not no_browser)))
    except hsd.HsdError as error:
        click.echo(f"Error: {error.message}", err=True)
        if error.hint:
            click.echo(f"Hint: {error.hint}", err=True)
        sys.exit(1)


def _secret(option: str, file: str) -> str:
    """The first line of a file. Raises HsdError where it cannot be read, or its option was given too."""
    name = option.replace("_", "-")
    if click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE:
        raise click.UsageError(f"--{name} and --{name}-file cannot be given together.")
    try:
        lines = Path(file).expanduser().read_bytes()[:4096].decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise hsd.ConfigError(
            f"The file {file} of --{name}-file cannot be read: {why}.", "Name a text file that you may read."
        ) from error
    if not lines or not lines[0].strip():
        raise hsd.ConfigError(f"The file {file} of --{name}-file has nothing in its first line.", "Write it there.")
    return lines[0].strip()


if __name__ == "__main__":
    chat()
