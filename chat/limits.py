"""What a message, a visitor and a search may take, with the reasons. The page and the API share these numbers."""

from __future__ import annotations

from typing import Final

import hsd

MESSAGE_LETTERS: Final = 2_000_000
"""Characters of a message, a system prompt or an imported text: no context of today holds a quarter of it."""

MESSAGES: Final = 20_000
"""Messages of an imported conversation."""

ROWS_AT_ONCE: Final = 50
"""Messages that are stored while others wait: 20,000 of them take seconds."""

FILE_LETTERS: Final = 20_000_000
"""Characters of an imported file."""

SEARCH_WORDS: Final = 16
"""Words of a search: each is looked for in every text of its own."""

SEARCH_LETTERS: Final = 200
"""Characters of a search."""

SEARCH_SECONDS: Final = 1.0
"""A search ends after this long: one letter is in no index, and is looked for in every text there is."""

WAITING: Final = 40
"""Replies and races that one visitor may wait for. The engine writes one at a time."""

TABS: Final = 1000
"""Tabs that are remembered. One that was forgotten and is still open says what it shows, and is known again."""

TABS_OF_A_VISITOR: Final = 100
"""The same of one visitor, where visitors are told apart."""

TAB_SECONDS: Final = 6 * 3600.0
"""A tab that asks for nothing for this long is taken for closed. A hidden one asks once a minute, or
not at all where its browser lets it sleep; a page that is left says so itself."""

AT_ONCE: Final = 4
"""What one visitor has done at once, each in a thread. The rest of it waits, and needs no thread for that."""

QUEUED_AT_ONCE: Final = 40
"""What of one visitor may wait for that; more is refused."""

THREADS: Final = 48
"""Threads of all visitors together: twelve may be as busy as they can before the next one waits."""

FORMATTED_LETTERS: Final = 100_000
"""Characters of a reply that are read as Markdown; what comes behind them is shown as it was written."""

FORMAT_SECONDS: Final = 2.0
"""Processor time that reading a reply as Markdown may take; a usual one of 100,000 characters takes a
fifth of that."""

PAGE_SECONDS: Final = 4.0
"""The same for all replies that a page shows: what is older than the ones that took it is shown as it was written."""

TOPICS: Final = 10_000
"""Topics whose last change is remembered. A page that shows an older one renders it once more."""


def check_message(text: str, what: str = "message") -> None:
    """Raises PromptError for a text that is longer than a message may be."""
    if len(text) > MESSAGE_LETTERS:
        raise hsd.PromptError(
            f"The {what} has {len(text):,} characters; the longest that is taken has {MESSAGE_LETTERS:,}.",
            "Send a part of it.",
        )
