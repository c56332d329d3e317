"""Casual dialogues of Synthetic-Persona-Chat (CC BY 4.0, Jandaghi et al. 2023, arXiv 2312.10007).

Columns: persona 1, persona 2, conversation ("User 1: …" and "User 2: …" line by line). User 2 becomes the
assistant. Conversations with unfilled blanks ("[user 1's name]") are left out.
"""

from __future__ import annotations

import csv
import gzip
import re
from pathlib import Path

from hsd.builtin.conversation import Conversation, Turn, conversation
from hsd.errors import HsdError

FILES: tuple[str, ...] = ("synthetic-persona-chat-valid.csv.gz", "synthetic-persona-chat-test.csv.gz")
_BLANK = re.compile(r"\[|\(\s*(?:insert |your |user )?\w*\s*name\s*\)", re.IGNORECASE)
_SPEAKER = re.compile(r"^User ([12]):\s*")


def parse(text: str) -> Conversation | None:
    """Turn one conversation into turns that alternate, starting with the user; None if it cannot be used."""
    if _BLANK.search(text):
        return None
    speakers: list[int] = []
    texts: list[str] = []
    for line in text.split("\n"):
        match = _SPEAKER.match(line)
        if match is None or not (said := line[match.end() :].strip()):
            continue
        if speakers and speakers[-1] == int(match[1]):
            texts[-1] += " " + said
        else:
            speakers.append(int(match[1]))
            texts.append(said)
    if speakers[:1] == [2]:
        texts = texts[1:]
    texts = texts[: len(texts) // 2 * 2]
    return conversation(*texts) if len(texts) >= 4 else None


def read_dialogues(corpus: Path) -> list[tuple[Conversation, str]]:
    """All usable dialogues with the assistant's persona, in the order of the files.

    Raises:
        HsdError: a file is not there.
    """
    dialogues = []
    for name in FILES:
        path = corpus / name
        if not path.is_file():
            raise HsdError(f"There is no {name} in {corpus}.", "Give the folder that holds the corpus by --corpus DIR.")
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            next(rows)
            for row in rows:
                turns = parse(row[2])
                if turns is not None:
                    dialogues.append((turns, " ".join(row[1].split())))
    return dialogues


def in_character(dialogue: Conversation, persona: str) -> Conversation:
    """The dialogue with the assistant's persona as the system message, so that what it says of itself is given."""
    return (Turn("system", f"Play this person: {persona}"), *dialogue)
