"""`hsd chat`: checks its arguments, serves the page, then loads the engine."""

from __future__ import annotations

import sys
from typing import Any

import click

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
@click.option("--password", default=None, help="Ask visitors for it; made and printed where one is needed.")
@click.option(
    "--api-key",
    default=None,
    envvar="HSD_API_KEY",
    show_envvar=True,
    help="Clients of the API must send it; without one the API answers this machine alone.",
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
def chat(no_browser: bool, **options: Any) -> None:
    """Chat with a family of models in the browser."""
    arguments = app.Arguments(**options, browser=not no_browser)
    try:
        sys.exit(app.serve(arguments))
    except hsd.HsdError as error:
        click.echo(f"Error: {error.message}", err=True)
        if error.hint:
            click.echo(f"Hint: {error.hint}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    chat()
