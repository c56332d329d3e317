"""Settings under a name: some that come with the program, and a person's own, which are kept in `chat.db`."""

from __future__ import annotations

import dataclasses
import json

import hsd
from chat import limits
from chat.settings import NAMES, Settings
from chat.store import Store

# The rest stays as it is: a seed belongs to one reply; a plan, and a switch for thinking, to a family.
FIELDS = tuple(name for name in NAMES if name not in ("seed", "thinking", "plan"))

GIVEN = {
    "Balanced": Settings(),
    "Exact": Settings(temperature=0.0),
    "Inventive": Settings(temperature=1.0, min_p=0.05),
    "Short answers": Settings(max_tokens=256, system="Answer in one or two plain sentences."),
    "Code": Settings(
        temperature=0.2, max_tokens=1024, system="You help with programming. Show code first, then explain it briefly."
    ),
    "Explain step by step": Settings(
        max_tokens=1024, system="Explain step by step, in plain words, and say what you are not sure of."
    ),
}


def names(store: Store) -> list[str]:
    """The person's own in the order of the alphabet, then those that come with the program."""
    own = [name for (name,) in store.rows("SELECT name FROM presets ORDER BY name COLLATE NOCASE")]
    return own + [name for name in GIVEN if name not in own]


def apply(store: Store, name: str, settings: Settings) -> Settings:
    """The settings with what the preset says. Raises HsdError where it is gone."""
    rows = store.rows("SELECT settings FROM presets WHERE name = ?", name)
    if rows:
        preset = Settings.from_dict(json.loads(rows[0][0]))
    elif name in GIVEN:
        preset = GIVEN[name]
    else:
        raise hsd.HsdError(f"There is no preset '{name}' any more.", "Choose another.")
    return dataclasses.replace(settings, **{field: getattr(preset, field) for field in FIELDS})


def keep(store: Store, name: str, settings: Settings) -> None:
    """Keep settings under a name, in the place of what it stood for. Raises HsdError: no name, impossible settings."""
    name = " ".join(name.split())[:60]
    if not name:
        raise hsd.HsdError("The preset has no name.", "Write one into the field.")
    settings.params()
    limits.check_message(settings.system, "system prompt")
    values = {field: getattr(settings, field) for field in FIELDS}
    store.write("INSERT OR REPLACE INTO presets (name, settings) VALUES (?, ?)", name, json.dumps(values))


def drop(store: Store, name: str) -> None:
    """Forget one of the person's own; one of the program's that it hid is there again."""
    if not store.rows("SELECT 1 FROM presets WHERE name = ?", name):
        raise hsd.HsdError(f"'{name}' comes with the program." if name in GIVEN else "No preset is chosen.", "Keep it.")
    store.write("DELETE FROM presets WHERE name = ?", name)
