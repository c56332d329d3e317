"""The house in order: imports run downwards, docs say what the code has, no trace of one machine in the repository."""

from __future__ import annotations

import ast
import dataclasses
import functools
import graphlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import hsd

ROOT = Path(__file__).resolve().parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOM = re.compile(r"^\| (\d+) \| `([^`]+)` \|", re.M)

# ------------------------------------------------------------------------------------------------------ imports


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; a package stands under its own name."""
    found = {}
    for top in ("hsd", "chat"):
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()
LIBRARY = sorted(m for m in MODULES if m.split(".")[0] == "hsd")
CHAT = sorted(m for m in MODULES if m.split(".")[0] == "chat")


@functools.cache
def imports(module: str) -> set[str]:
    """Everything that a file imports, late imports and those for types included, as dotted names."""
    file = MODULES[module]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
            # `from a import b` is an import of a.b where that is a module of ours, of a otherwise.
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return found


def of(found: set[str], *packages: str) -> set[str]:
    """Those imports that are one of the packages or lie in it."""
    return {name for name in found if any(name == p or name.startswith(p + ".") for p in packages)}


def rooms() -> dict[str, int]:
    """Room -> floor, from the table of docs/architecture.md."""
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return {room: int(floor) for floor, room in ROOM.findall(table)}


ROOMS = rooms()


def room_of(module: str) -> str | None:
    """The room that a module lies in: its own file, or the nearest folder that has a row."""
    path = MODULES[module].relative_to(ROOT)
    candidates = [path.as_posix(), *(f"{parent.as_posix()}/" for parent in path.parents)]
    return next((c for c in candidates if c in ROOMS), None)


def test_every_file_has_a_room():
    homeless = [module for module in MODULES if room_of(module) is None]
    assert not homeless, f"no row in docs/architecture.md, decide on which floor they live: {homeless}"


def test_every_room_exists():
    gone = [room for room in ROOMS if not (ROOT / room).exists()]
    assert not gone, f"docs/architecture.md names rooms that are not there: {gone}"


def arrows() -> Iterator[tuple[str, str]]:
    for module in sorted(MODULES):
        for name in sorted(imports(module)):
            if name in MODULES and name != module:
                yield module, name


def test_no_arrow_runs_up():
    up = [
        f"{source} (floor {ROOMS[here]}) imports {target} (floor {ROOMS[there]})"
        for source, target in arrows()
        if (here := room_of(source)) and (there := room_of(target)) and ROOMS[there] > ROOMS[here]
    ]
    assert not up, "\n".join(up)


def test_rooms_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for source, target in arrows():
        here, there = room_of(source), room_of(target)
        if here and there and here != there:
            graph.setdefault(here, set()).add(there)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_the_library_knows_no_page():
    assert not {module: found for module in LIBRARY if (found := of(imports(module), "gradio", "chat"))}


def public_uses(module: str) -> Iterator[str]:
    """Names of hsd that a file of the chat uses: `from hsd import X`, `hsd.X`, and `hsd.x.y` imported as a module."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name[4:] for alias in node.names if alias.name.startswith("hsd."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hsd" and not node.level:
            if node.module == "hsd":
                yield from (alias.name for alias in node.names)
            else:
                yield f"{node.module} (a module inside hsd)"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hsd":
            yield node.attr


def test_the_chat_uses_public_names_alone():
    heavy = ("torch", "transformers", "bitsandbytes", "accelerate")
    assert not {module: found for module in CHAT if (found := of(imports(module), *heavy))}
    private = [f"{module}: hsd.{name}" for module in CHAT for name in public_uses(module) if name not in hsd.__all__]
    assert not private, f"not in hsd.__all__: {private}"


def test_gradio_is_known_from_the_page_up():
    page = ROOMS["chat/ui/"]
    users = [module for module in CHAT if of(imports(module), "gradio")]
    assert users, "no file imports gradio: does this test still look at the right names?"
    assert not [module for module in users if ROOMS.get(room_of(module) or "", 0) < page]


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("transformers", r"hsd\.(loading|runtime|sampling|bench|builtin)\b"),
        ("sqlite_utils", r"hsd\.stats\b|chat\.store\b"),
        ("torch", r"hsd\.(?!planning|stats|config|types|errors|paths|lookup|text|cli)"),
    ],
)
def test_heavy_packages_stay_in_their_rooms(package: str, allowed: str):
    users = [module for module in MODULES if of(imports(module), package)]
    assert users, f"no file imports {package}: does this test still look at the right names?"
    assert not [module for module in users if not re.match(allowed, module)]


LIGHT = ["hsd", "hsd.types", "hsd.config", "hsd.planning", "hsd.stats", "hsd.cli", "chat.session", "chat.__main__"]


@pytest.mark.parametrize("module", [m for m in LIGHT if m in MODULES])
def test_loads_no_torch(module: str):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]", f"importing {module} loads {result.stdout}"


# --------------------------------------------------------------------------------------------------------- docs


# A version and an alias of types can hold no docstring.
@pytest.mark.parametrize("name", [n for n in hsd.__all__ if n not in {"__version__", "Event"}])
def test_every_public_name_says_what_it_is(name: str):
    thing = getattr(hsd, name)
    doc = thing.__doc__ or ""
    assert doc and not doc.startswith(f"{name}("), f"hsd.{name} has no docstring"
    if inspect.isclass(thing):
        bare = [n for n, f in vars(thing).items() if not n.startswith("_") and inspect.isroutine(f) and not f.__doc__]
        assert not bare, f"methods of hsd.{name} without a docstring: {bare}"


def documented(text: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


def command_lines() -> dict[str, list[str]]:
    """Command -> its long options, as click has them."""
    if "hsd.cli" not in MODULES:
        return {}
    import click

    from hsd.cli import cli

    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {
        name: [o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--") and o != "--help"]
        for name, command in commands.items()
        if command is not None and not command.hidden
    }


def test_every_command_and_option_is_documented():
    text = "\n".join(file.read_text(encoding="utf-8") for file in DOCS)
    missing = [f"hsd {name}" for name in command_lines() if f"hsd {name}" not in text]
    missing += [
        f"hsd {name} {option}"
        for name, options in command_lines().items()
        for option in options
        if not documented(text, option)
    ]
    assert not missing, f"neither in README.md nor in docs/: {missing}"


def test_launch_help_names_every_option_of_the_chat():
    text = subprocess.run([str(ROOT / "launch.sh"), "--help"], capture_output=True, text=True, check=True).stdout
    missing = [option for option in command_lines().get("chat", []) if not documented(text, option)]
    assert not missing, f"./launch.sh --help does not say: {missing}"


def test_every_key_of_models_yaml_is_documented():
    from hsd import config

    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    specs = [s for s in vars(config).values() if dataclasses.is_dataclass(s) and s.__module__ == config.__name__]
    keys = {field.name for spec in specs for field in dataclasses.fields(spec)} - {"name"}
    missing = sorted(key for key in keys if f"`{key}`" not in text and f"`{key}:" not in text)
    assert not missing, f"docs/models.md does not say what these are: {missing}"


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_links_inside_the_repository_lead_somewhere(file: Path):
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", file.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (file.parent / target).exists()]


def test_the_changelog_and_the_package_name_the_same_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == hsd.__version__
    assert re.search(rf"^## {re.escape(hsd.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


# --------------------------------------------------------------------------------------------------- the repository


def repository() -> list[Path]:
    """Files that are in git or would be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        files = [ROOT / name for name in result.stdout.split("\0") if name]
    else:
        files = [f for f in ROOT.rglob("*") if not any(part.startswith(".") for part in f.relative_to(ROOT).parts)]
    return [file for file in files if file.is_file() and not file.is_symlink()]


# In two halves, so that this file does not name them itself.
ELSEWHERE = [
    a + b
    for a, b in [
        ("/wo", "rk/"),
        ("/tmp", "/dev"),
        ("/opt", "/wheels"),
        ("/opt", "/pypi"),
        ("py", "pi.org"),
        ("files.python", "hosted.org"),
        ("registry.npm", "js.org"),
        ("deb.debian", ".org"),
        ("conda.ana", "conda.org"),
    ]
]


def test_nothing_names_a_machine_or_a_package_registry():
    found = []
    for file in repository():
        data = file.read_bytes()
        if b"\0" in data[:8192]:
            continue  # weights, pictures, archives
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            found += [f"{file.relative_to(ROOT)}:{number}: {word}" for word in ELSEWHERE if word in line]
    assert not found, "\n".join(found[:20])


MOST_LINES = 600
"""A lower limit split classes by inheritance, in files that nobody could read alone."""


def test_no_file_is_too_long_to_read():
    long = []
    for file in repository():
        inside = file.relative_to(ROOT)
        if file.suffix in {".py", ".sh", ".js", ".css"} and inside.parts[0] != "tests":
            lines = len(file.read_text(encoding="utf-8").splitlines())
            long += [f"{inside}: {lines} lines"] if lines > MOST_LINES else []
    assert not long, f"over {MOST_LINES} lines, ask which two subjects share the file: {long}"
