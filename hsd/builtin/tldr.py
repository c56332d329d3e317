"""Pages of the tldr project (CC BY 4.0, tldr-pages team and contributors) as tasks: a description and a command.

A page has a title (the command), a quoted description and pairs of "- description:" and "`command`". The
command's placeholders are turned into readable text, and of every choice of spellings one is kept, so that
what the model learns can be typed. The syntax is https://github.com/tldr-pages/tldr, CONTRIBUTING.md.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hsd.errors import HsdError

ARCHIVE = "tldr-pages-en.tar.gz"
PLATFORMS: tuple[str, ...] = ("common", "linux")
"""Folders that are read; where both have a page of the same name, the first wins."""

_OPTIONS = re.compile(r"\{\{\[([^\[\]{}]*\|[^\[\]{}]*)\]\}\}")  # {{[-C|--directory]}}
_SUFFIXES = re.compile(r"\[(\.[^\[\]]*\|[^\[\]]*)\]")  # source.tar[.gz|.bz2|.xz]
_PLACEHOLDER = re.compile(r"\{\{(?!\{)(.*?)\}\}(?!\})")
_MNEMONIC = re.compile(r"\[(\w{1,3})\](?=[\w\s()/.,-]|$)|(?<=\w)\[(\w{1,3})\]")  # E[x]tract
_PAIR = re.compile(r"^- (.+?):?\s*\n\s*\n`(.+)`\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Task:
    """One thing a person can want, and the command that does it.

    Attributes:
        program: what to call the command in prose, "git commit".
        wish: imperative, no full stop, first letter as in a sentence: "List all files".
        command: one runnable line.
        rank: 0 for the best-known commands (`common_commands.txt`), 1 for the others.
    """

    program: str
    wish: str
    command: str
    rank: int = 1


@dataclass(frozen=True)
class Page:
    """A command, what it is in one sentence, and its tasks."""

    program: str
    summary: str
    tasks: tuple[Task, ...]
    rank: int = 1


def clean_command(text: str) -> str:
    """Make a tldr command line runnable: one option spelling, the first of alternatives, no braces.

    >>> clean_command("tar xf {{path/to/a.tar[.gz|.xz]}} {{[-C|--directory]}} {{path/to/directory}}")
    'tar xf path/to/a.tar.gz --directory path/to/directory'
    """
    text = _OPTIONS.sub(lambda m: _longest(m[1].split("|")), text)
    text = _SUFFIXES.sub(lambda m: m[1].split("|")[0], text)
    return _PLACEHOLDER.sub(lambda m: _placeholder(m[1]), text).replace("\\{\\{", "{{").replace("\\}\\}", "}}").strip()


def _longest(choices: list[str]) -> str:
    """The spelling that explains itself: the long option if there is one."""
    long = [choice for choice in choices if choice.strip().startswith("--") or " --" in choice]
    return max(long or choices, key=len).strip()


def _placeholder(text: str) -> str:
    text = re.sub(r"\s*\.\.\.$", "", text)
    if "|" in text and " | " not in text:
        text = text.split("|")[0]
    return text


def clean_wish(text: str) -> str:
    """Plain prose from a description: no mnemonic brackets, links, code marks or remarks in parentheses at the end."""
    text = _MNEMONIC.sub(lambda m: m[1] or m[2], text.replace("`", ""))
    text = re.sub(r"<(https?://[^>]*)>", r"\1", text)
    text = re.sub(r"\s*\((?:[^()]|\([^()]*\))*\)\s*$", "", text.strip().rstrip(":.").strip())
    return re.sub(r"\s+", " ", text).strip().rstrip(":.")


def parse_page(text: str, rank: int = 1) -> Page | None:
    """Parse one page; None for pages that only point to another one ("This command is an alias of …")."""
    title = re.match(r"#\s+(.+)", text)
    quoted = [line[1:].strip() for line in text.split("\n") if line.startswith(">")]
    facts = [line for line in quoted if not re.match(r"(More information|See also|Note|Some subcommands|For )", line)]
    if title is None or not facts or "alias of" in facts[0]:
        return None
    program = title[1].strip()
    tasks = []
    for described, line in _PAIR.findall(text):
        wish, command = clean_wish(described), clean_command(line)
        fits = 0 < len(command) <= 140 and 0 < len(wish) <= 120
        if fits and not wish.lower().startswith("display help"):
            tasks.append(Task(program, wish, command, rank))
    summary = clean_wish(facts[0])
    return Page(program, summary, tuple(tasks), rank) if tasks and summary else None


def read_pages(corpus: Path, common: frozenset[str]) -> list[Page]:
    """All pages of `PLATFORMS`, sorted by name.

    Args:
        corpus: folder that holds `ARCHIVE`.
        common: programs of rank 0; a page "git commit" counts when "git commit" or its page name is listed.
    Raises:
        HsdError: the archive is not there.
    """
    pages: dict[str, Page] = {}
    for stem, text in _texts(corpus):
        page = parse_page(text, rank=0 if stem in common else 1)
        if page is not None:
            pages.setdefault(stem, page)
    return [pages[stem] for stem in sorted(pages)]


def _texts(corpus: Path) -> Iterator[tuple[str, str]]:
    path = corpus / ARCHIVE
    if not path.is_file():
        raise HsdError(f"There is no {ARCHIVE} in {corpus}.", "Give the folder that holds the corpus by --corpus DIR.")
    texts: dict[str, str] = {}
    with tarfile.open(path) as archive:  # read in the archive's own order: seeking in gzip starts from the beginning
        for member in archive:
            if member.name.endswith(".md") and (file := archive.extractfile(member)) is not None:
                texts[f"/{member.name}"] = file.read().decode()
    for platform in PLATFORMS:
        for name in sorted(texts):
            if f"/{platform}/" in name:
                yield Path(name).stem, texts[name]
