"""`models.yaml` to typed families. An unknown key, a wrong type or a missing target is an error with a hint.

Knows nothing of torch: the page and the command line read it before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from hsd.errors import ConfigError
from hsd.types import LOOKUP, check_name

T = TypeVar("T")

Quantization = Literal["none", "nf4", "int8"]
Overflow = Literal["refuse", "drop"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of a family. docs/models.md says what each key means to a person.

    Args:
        name: what plans and pages call it.
        path: a hub name (`Qwen/Qwen3-8B`), a folder, or `builtin:NAME` for the weights that come with the package.
        revision: commit, tag or branch on the hub.
        quantization: "none", "nf4" (4 bit, double quantization) or "int8", by bitsandbytes.
        dtype: "auto", "float32", "bfloat16" or "float16"; what is computed in, and stored unless quantized.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or "balanced" (spread over all GPUs).
        trust_remote_code: run Python code that comes with the model; off unless set.
    """

    name: str
    path: str
    revision: str | None = None
    quantization: Quantization = "none"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """Models with one vocabulary, cheapest first.

    Args:
        name: its name on the command line.
        models: cheapest first.
        target: name of the model whose tokens the reply is made of; the last one if not given.
        title: one line for people.
        context: longest prompt plus reply in tokens.
        overflow: a prompt that does not fit is refused with the numbers, or the oldest turns are dropped.
        system: text of a system message that is put before a conversation without one.
        license: licence of the weights, in words.
        memory_gb: memory the whole family wants, for people; 0 where nobody has said.
        examples: prompts to start with.
    """

    name: str
    models: tuple[ModelSpec, ...]
    target: str = ""
    title: str = ""
    context: int = 4096
    overflow: Overflow = "refuse"
    system: str = ""
    license: str = ""
    memory_gb: float = 0.0
    examples: tuple[str, ...] = ()

    @property
    def target_spec(self) -> ModelSpec:
        return next(m for m in self.models if m.name == self.target)


class _Strict(yaml.SafeLoader):
    """YAML as it is, but a key that stands twice in one mapping is an error: the first would be lost unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if no key stands in it twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' stands there twice", key_node.start_mark)
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


def default_path() -> Path:
    """The `models.yaml` in use: $HSD_MODELS, else the checkout's, else the package's own copy."""
    if os.environ.get("HSD_MODELS"):
        return Path(os.environ["HSD_MODELS"]).expanduser()
    here = Path(__file__).resolve().parent
    checkout = here.parent / "models.yaml"
    return checkout if checkout.exists() else here / "models.yaml"


def load_families(path: str | os.PathLike[str] | None = None) -> dict[str, Family]:
    """All families of a file, in its order.

    Raises:
        ConfigError: the file is missing, is no YAML, or says something impossible; the sentence names the place.
    """
    file = Path(path).expanduser() if path is not None else default_path()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror or error}.", "Give the path of a models.yaml, or restore it."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text.", "Save it as UTF-8.") from error
    try:
        data = yaml.load(text, _Strict)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place else ""
        raise ConfigError(f"{file} is not valid YAML{where}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(data, dict) or not isinstance(data.get("families"), dict) or not data["families"]:
        raise ConfigError(f"{file} holds no families.", "It must begin with 'families:' and name at least one.")
    _no_unknown(data, {"families"}, str(file))
    return {str(name): _family(str(name), value, file) for name, value in data["families"].items()}


def find_family(name: str, path: str | os.PathLike[str] | None = None) -> Family:
    """One family by name, or by `file.yaml#name` (`file.yaml` alone if it holds only one).

    Raises:
        ConfigError: there is no such family; the hint names the nearest.
    """
    if path is None and (".yaml" in name or ".yml" in name):
        path, _, name = name.partition("#")
        families = load_families(path)
        if not name and len(families) == 1:
            return next(iter(families.values()))
    else:
        families = load_families(path)
    if name not in families:
        near = difflib.get_close_matches(name, families, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"There are: {', '.join(families)}."
        raise ConfigError(f"There is no family '{name}' in {path or default_path()}.", hint)
    return families[name]


def _family(name: str, value: Any, file: Path) -> Family:
    where = f"family '{name}' of {file.name}"
    if not isinstance(value, dict):
        raise ConfigError(f"The {where} is no mapping.", "Give it 'models:' with at least one model.")
    fields = dict(value)
    models = fields.pop("models", None)
    if not isinstance(models, dict) or not models:
        raise ConfigError(f"The {where} has no models.", "List them under 'models:', cheapest first.")
    specs = tuple(_spec(str(key), entry, f"model '{key}' of {where}", file) for key, entry in models.items())
    fields["models"] = specs
    fields.setdefault("target", specs[-1].name)
    family = _typed(Family, {"name": name, **fields}, where)
    if family.target not in {m.name for m in specs}:
        raise ConfigError(
            f"The target '{family.target}' of {where} is not among its models.",
            f"Its models are: {', '.join(m.name for m in specs)}.",
        )
    if family.context < 16:
        raise ConfigError(f"The context of {where} is {family.context} tokens.", "Give at least 16.")
    return family


def _spec(name: str, value: Any, where: str, file: Path) -> ModelSpec:
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, dict):
        raise ConfigError(f"The {where} is no mapping.", "Give it at least 'path:'.")
    if "path" not in value:
        raise ConfigError(f"The {where} has no path.", "Give a hub name or a folder.")
    check_name(name)
    if name == LOOKUP:
        raise ConfigError(f"The {where} is called '{LOOKUP}'.", "That name is taken by the level without a model.")
    spec = _typed(ModelSpec, {"name": name, **value}, where)
    # A folder beside the file is meant as such, wherever the program was started.
    beside = file.parent / spec.path
    if spec.path.startswith(".") or (beside / "config.json").exists():
        spec = dataclasses.replace(spec, path=str(beside.resolve()))
    return spec


def _typed(kind: type[T], values: dict[str, Any], where: str) -> T:
    hints = typing.get_type_hints(kind)
    _no_unknown(values, set(hints), where)
    return kind(**{key: _checked(value, hints[key], key, where) for key, value in values.items()})


def _checked(value: Any, hint: Any, key: str, where: str) -> Any:
    """The value as the hint wants it. Raises ConfigError naming key and place."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in options:
            return value
        raise ConfigError(f"{key}: {value!r} of {where} is not known.", f"Use one of: {', '.join(map(str, options))}.")
    if origin is types.UnionType:
        if value is None:
            return None
        return _checked(value, next(o for o in options if o is not type(None)), key, where)
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_checked(v, options[0], key, where) for v in value)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    names = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list"}
    raise ConfigError(f"{key}: {value!r} of {where} should be {names.get(wanted, wanted)}.")


def _no_unknown(values: dict[str, Any], known: set[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(sorted(known - {'name'}))}."
            raise ConfigError(f"Unknown key '{key}' in {where}.", hint)
