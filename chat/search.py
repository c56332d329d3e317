"""Search over titles and messages by FTS5: its tables and triggers, and words as a condition.

Three letters in a row are what is indexed, so that any part of a word is found, in any script. `search_rows` gives
every text a number of its own: rowids of tables without a numeric key may change when SQLite tidies a file up.
"""

from __future__ import annotations

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


def condition(words: str) -> tuple[str, list[str]]:
    """SQL that holds for a conversation `c` whose title or messages hold every word, and its values."""
    parts, values = [], []
    for word in words.split():
        if len(word) >= 3:
            found = "SELECT rowid FROM search WHERE search MATCH ?"
            values.append('"' + word.replace('"', '""').replace("\0", "") + '"')
        else:
            # Too short for the index.
            found = "SELECT number FROM searched WHERE text LIKE ? ESCAPE '\\'"
            values.append("%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%")
        parts.append(f"c.id IN (SELECT conversation_id FROM search_rows WHERE number IN ({found}))")
    return " AND ".join(parts) or "1", values
