"""Search over titles and messages by FTS5: its tables and triggers, and words as a condition.

Three letters in a row are what is indexed, so that any part of a word is found, in any script. `search_rows` gives
every text a number of its own: rowids of tables without a numeric key may change when SQLite tidies a file up.

What is indexed is the text without its differences of case, accents and width (`folded`), kept beside the number: the
index forgets a text only by the very letters that it was given.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata

import hsd
from chat import limits

# Accents of European scripts, vowel marks of Hebrew and Arabic, and what has no width: people leave all of them out.
# Marks of other scripts are letters to those who read them.
_MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670\u00ad\u200b-\u200f\u2060\ufeff]"
)


# Letters that Unicode does not take apart, as people without such keys write them; and the quotes, dashes and hyphens
# that word processors and phones put in the place of those on the keys. The index ends a text at a zero byte.
_PLAIN = str.maketrans(
    {
        **{"\u0131": "i", "ł": "l", "ø": "o", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "æ": "ae", "œ": "oe", "þ": "th"},
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2012\u2013\u2014\u2212", "-"),
        "\0": " ",
    }
)


def folded(text: str) -> str:
    """The text as it is compared: `ÄP` as `ap`, `Łódź` as `lodz`, `Straße` as `strasse`, `ＡＢＣ` as `abc`, `’` as '"""
    if text.isascii():
        return text.lower().replace("\0", " ")
    bare = _MARKS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFC", bare.casefold().translate(_PLAIN))


def prepare(connection: sqlite3.Connection) -> None:
    """Give a connection the function that the triggers call."""
    connection.create_function("hsd_folded", 1, folded, deterministic=True)


_NUMBER = "(SELECT number FROM search_rows WHERE text_id = {id})"
_ADD = """INSERT INTO search_rows (text_id, conversation_id) VALUES ({id}, {conversation});
    INSERT INTO search (rowid, text) VALUES ({number}, {text});"""
_TAKE = "INSERT INTO search (search, rowid, text) VALUES ('delete', {number}, {text});"


def _triggers(table: str, column: str, conversation: str) -> tuple[str, ...]:
    def filled(statement: str, row: str) -> str:
        number = _NUMBER.format(id=f"{row}.id")
        return statement.format(
            id=f"{row}.id", text=f"{row}.{column}", number=number, conversation=f"{row}.{conversation}"
        )

    return (
        f"CREATE TRIGGER {table}_searched AFTER INSERT ON {table} BEGIN {filled(_ADD, 'new')} END",
        f"""CREATE TRIGGER {table}_searched_anew AFTER UPDATE OF {column} ON {table}
            WHEN old.{column} IS NOT new.{column} BEGIN
            {filled(_TAKE, "old")}
            INSERT INTO search (rowid, text) VALUES ({_NUMBER.format(id="new.id")}, new.{column});
        END""",
        f"""CREATE TRIGGER {table}_unsearched BEFORE DELETE ON {table} BEGIN
            {filled(_TAKE, "old")}
            DELETE FROM search_rows WHERE text_id = old.id;
        END""",
    )


TABLES = (
    """CREATE TABLE search_rows (
        number INTEGER PRIMARY KEY,
        text_id TEXT NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL
    )""",
    """CREATE VIEW searched AS
        SELECT number, coalesce(m.text, c.title) AS text FROM search_rows
        LEFT JOIN messages m ON m.id = text_id LEFT JOIN conversations c ON c.id = text_id""",
    """CREATE VIRTUAL TABLE search USING fts5 (
        text, content = 'searched', content_rowid = 'number', tokenize = 'trigram'
    )""",
    "INSERT INTO search_rows (text_id, conversation_id) SELECT id, id FROM conversations",
    "INSERT INTO search_rows (text_id, conversation_id) SELECT id, conversation_id FROM messages",
    "INSERT INTO search (search) VALUES ('rebuild')",
    *_triggers("conversations", "title", "id"),
    *_triggers("messages", "text", "conversation_id"),
)


def _folding_triggers(table: str, column: str, conversation: str) -> tuple[str, ...]:
    take = """INSERT INTO search (search, rowid, text)
            SELECT 'delete', number, text FROM search_rows WHERE text_id = old.id"""
    add = "INSERT INTO search (rowid, text) SELECT number, text FROM search_rows WHERE text_id = new.id"
    return (
        f"""CREATE TRIGGER {table}_searched AFTER INSERT ON {table} BEGIN
            INSERT INTO search_rows (text_id, conversation_id, text)
            VALUES (new.id, new.{conversation}, hsd_folded(new.{column}));
            {add};
        END""",
        f"""CREATE TRIGGER {table}_searched_anew AFTER UPDATE OF {column} ON {table}
            WHEN old.{column} IS NOT new.{column} BEGIN
            {take};
            UPDATE search_rows SET text = hsd_folded(new.{column}) WHERE text_id = new.id;
            {add};
        END""",
        f"""CREATE TRIGGER {table}_unsearched BEFORE DELETE ON {table} BEGIN
            {take};
            DELETE FROM search_rows WHERE text_id = old.id;
        END""",
    )


FOLDED = (
    *(
        f"DROP TRIGGER {table}_{what}"
        for table in ("conversations", "messages")
        for what in ("searched", "searched_anew", "unsearched")
    ),
    "DROP TABLE search",
    "ALTER TABLE search_rows ADD COLUMN text TEXT NOT NULL DEFAULT ''",
    """UPDATE search_rows SET text = hsd_folded(
        coalesce((SELECT text FROM searched WHERE searched.number = search_rows.number), ''))""",
    "DROP VIEW searched",
    """CREATE VIRTUAL TABLE search USING fts5 (
        text, content = 'search_rows', content_rowid = 'number', tokenize = 'trigram'
    )""",
    "INSERT INTO search (search) VALUES ('rebuild')",
    *_folding_triggers("conversations", "title", "id"),
    *_folding_triggers("messages", "text", "conversation_id"),
)


def check(words: str) -> None:
    """Raises HsdError for more than a search may ask for."""
    if len(words) > limits.SEARCH_LETTERS or len(words.split()) > limits.SEARCH_WORDS:
        raise hsd.HsdError(
            f"A search has at most {limits.SEARCH_WORDS} words and {limits.SEARCH_LETTERS} characters.",
            "Leave some out.",
        )


def condition(words: str) -> tuple[str, list[str]]:
    """SQL that holds for a conversation `c` whose title or messages hold every word, and its values."""
    parts, values = [], []
    for word in folded(words).split():
        if len(word) >= 3:
            found = "SELECT rowid FROM search WHERE search MATCH ?"
            values.append('"' + word.replace('"', '""').replace("\0", "") + '"')
        else:
            # Too short for the index.
            found = "SELECT number FROM search_rows WHERE instr(text, ?)"
            values.append(word)
        parts.append(f"c.id IN (SELECT conversation_id FROM search_rows WHERE number IN ({found}))")
    # Words of which nothing is left, like a zero byte alone, are in no text.
    return " AND ".join(parts) or ("0" if words.strip() else "1"), values
